"""Draw tokens inside vLLM with one random generator per request; vLLM imports this module by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from merganser.evaluation import drawing

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig

KEY = "merganser"
"""Key in ``extra_args`` of a mapping with ``seed`` (hexadecimal), ``temperature`` and ``top_p``."""


@dataclass(slots=True)
class _Row:
    """A sampling request: its random numbers, settings, and generated token ids so far."""

    numbers: Any
    temperature: float
    top_p: float
    tokens: list[int]


class Drawing(LogitsProcessor):
    """A logits processor that draws the token of each sampling request, and excludes all others."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False: the drawn token may differ from the most likely one."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Update the rows of requests that join, leave or move within the batch."""
        process_dict_updates(self._rows, batch_update, _row_of)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits [rows, vocabulary] with -inf for all but the drawn token of sampling requests."""
        groups: dict[tuple[float, float], list[int]] = {}
        for index, row in self._rows.items():
            groups.setdefault((row.temperature, row.top_p), []).append(index)
        for (temperature, top_p), indices in groups.items():
            rows = [self._rows[index] for index in indices]
            numbers = [row.numbers[len(row.tokens)] for row in rows]
            logits[indices] = drawing.draw(logits[indices], numbers, temperature, top_p)
        return logits


def _row_of(params: SamplingParams, _prompt: list[int] | None, tokens: list[int]) -> _Row | None:
    settings = (params.extra_args or {}).get(KEY)
    if settings is None:
        return None
    numbers = drawing.numbers_of(int(settings["seed"], 16), params.max_tokens or 0)
    return _Row(numbers, settings["temperature"], settings["top_p"], tokens)
