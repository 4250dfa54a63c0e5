"""LoRA adapters as PEFT saves them: their settings, and the tensors that they modify."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from merganser.checkpoints.protocol import Checkpoint
from merganser.errors import InputError

CONFIG = "adapter_config.json"

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

MAX_STEPS = 10**9
"""Maximum number of worst-case steps for matching module names with patterns; they take some seconds."""

_FACTOR = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_BIAS = re.compile(r"(.+)\.lora_B(?:\.default)?\.bias")
_WRAPPER = re.compile(r"\.(base_layer|original_module|modules_to_save(\.default)?)(?=\.)")


@dataclass(slots=True)
class Change:
    """An adapter's modification of one tensor; fields are names of its tensors, None if absent.

    Attributes:
        module: the module that the adapter names.
        whole: a complete tensor that replaces the model's.
        a, b: the low-rank factors.
        embedding: whether the factors belong to an embedding.
        magnitude: DoRA's lengths.
        bias: added to the bias, scaled like the factors' product.
    """

    module: str
    whole: str | None = None
    a: str | None = None
    b: str | None = None
    embedding: bool = False
    magnitude: str | None = None
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An opened adapter.

    Attributes:
        folder: its folder.
        config: its ``adapter_config.json``.
        weights: its tensors.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: Checkpoint
    steps: list[int] = field(default_factory=lambda: [0])
    """Worst-case steps of pattern matching so far."""

    def scale(self, module: str) -> tuple[float, int]:
        """The scale of a module's product of factors, and its rank."""
        rank = self._by_pattern("rank_pattern", module, self.config.get("r", 8))
        alpha = self._by_pattern("alpha_pattern", module, self.config.get("lora_alpha", 8))
        known = isinstance(rank, int) and isinstance(alpha, int | float)
        if not known or not 0 < rank < 2**31 or not math.isfinite(alpha):
            raise InputError(
                f"{self.folder / CONFIG}: r ({rank!r}) and lora_alpha ({alpha!r}) must be numbers"
            )
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank), rank

    def _by_pattern(self, key: str, module: str, default: Any) -> Any:
        """PEFT's rule: a pattern matches the module's full name, or its end after a dot."""
        patterns = self.config.get(key) or {}
        try:
            for pattern, value in patterns.items():
                expression, wildcards = _pattern(pattern)
                self.steps[0] += _cost(len(module), wildcards)
                if self.steps[0] > MAX_STEPS:
                    raise ValueError("matching them all would take too long")
                if expression.match(module):
                    return value
        except (re.error, ValueError, AttributeError, RecursionError, OverflowError) as error:
            reason = f"{str(error)[:80]}; " if isinstance(error, ValueError) else ""
            raise InputError(
                f"{self.folder / CONFIG}: {key} holds a regular expression that cannot be used "
                f"({reason}write the modules' names)"
            ) from None
        return default


@lru_cache(maxsize=4096)
def _pattern(text: str) -> tuple[re.Pattern[str], int]:
    """A compiled pattern of PEFT's, and its number of ambiguous parts.

    Python's matching may take exponential time in the name's length. It cannot if only single
    characters are repeated, without lookarounds and backreferences.

    Raises:
        ValueError: when the pattern uses anything else.
    """
    plain = re.sub(r"\\.", "x", text)
    if len(text) > 256 or "(?" in plain or re.search(r"\)[*+?{]|\\[1-9]", text):
        raise ValueError(f"{text[:40]!r} repeats a group, looks around or is too long")
    return re.compile(rf"(.*\.)?({text})$"), len(re.findall(r"[*+?{|]", plain))


def _cost(length: int, wildcards: int) -> int:
    """Worst-case number of steps to match a name."""
    return int(max(length, 2) ** (wildcards + 1) // math.factorial(wildcards + 1)) + 1


def changes_by_name(adapter: Adapter) -> dict[str, Change]:
    """The modifications, by the adapter's names of the tensors."""
    changes: dict[str, Change] = {}
    for key in adapter.weights.specs:
        name = key.removeprefix("base_model.model.")
        if match := _FACTOR.fullmatch(name):
            change = changes.setdefault(f"{match[1]}.weight", Change(match[1]))
            if match[2] == "A":
                change.a = key
            else:
                change.b = key
            change.embedding = "lora_embedding_" in name
        elif match := _MAGNITUDE.fullmatch(name):
            changes.setdefault(f"{match[1]}.weight", Change(match[1])).magnitude = key
        elif match := _BIAS.fullmatch(name):
            changes.setdefault(f"{match[1]}.bias", Change(match[1])).bias = key
        else:
            tensor = _WRAPPER.sub("", name)
            changes.setdefault(tensor, Change(tensor.rpartition(".")[0])).whole = key
    return changes
