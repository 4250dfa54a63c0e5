"""Sampling of tokens with random numbers per request, so that results depend on neither batch nor engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.evaluation.codec import text_of
from merganser.evaluation.generation import Request, Sampling

if TYPE_CHECKING:
    import torch


def seed_of(request: Request, sampling: Sampling) -> int:
    """A 128-bit seed for one request, from the task's seed, the prompt and the sample's number."""
    text = f"{sampling.seed}\n{request.sample}\n{text_of(request.prompt)}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:16], "little")


def generator_of(seed: int) -> Any:
    """A numpy random generator; its ``random()`` gives the number in [0, 1) of each token in turn."""
    return np.random.Generator(np.random.Philox(key=seed))


def numbers_of(seed: int, count: int) -> Any:
    """The random numbers of the first ``count`` tokens: float64 [count], in [0, 1)."""
    return generator_of(seed).random(count)


def draw(
    scores: torch.Tensor, numbers: Sequence[float], temperature: float, top_p: float
) -> torch.Tensor:
    """Draw one token per row; return logits [rows, vocabulary] of 0 for that token and -inf for others.

    A token is drawn by the inverse of the cumulative distribution, in float64.

    Args:
        scores: logits [rows, vocabulary], of any float dtype; the result has the same dtype.
        numbers: one random number in [0, 1) per row.
        temperature, top_p: see :class:`merganser.evaluation.generation.Sampling`.
    """
    import torch

    # Apple's GPUs have no float64, so their logits are computed with on the CPU.
    exact = (scores.cpu() if scores.device.type == "mps" else scores).double()
    shares = torch.softmax(exact / temperature, dim=-1)
    if top_p < 1:
        ordered, places = shares.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p
        shares = shares.masked_fill(beyond.scatter(-1, places, beyond), 0.0)
    reached = shares.cumsum(dim=-1)
    drawn = torch.tensor(numbers, dtype=torch.float64)
    wanted = drawn.to(reached.device)[:, None] * reached[:, -1:]
    chosen = torch.searchsorted(reached, wanted, right=True)
    last = (shares > 0).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    only = torch.full_like(scores, float("-inf"))
    return only.scatter(-1, torch.minimum(chosen, last).to(scores.device), 0.0)
