"""Keys and values in memory that is larger than they are, so that a new token does not copy all others."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Tokens for which there is room at least when a layer grows, and a quarter of those it has."""


class RoomyLayer(DynamicLayer):
    """A layer whose ``keys`` and ``values`` are the first part of larger tensors.

    Whoever replaces them gets new ones at the next token.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [rows, heads, new, width]; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        if not used:
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        all_tokens = used + key_states.shape[-2]
        room = self._room
        if room is None or room[0].shape[-2] < all_tokens or not self._is_in(room):
            room = self._room = (
                self._grown(self.keys, all_tokens),
                self._grown(self.values, all_tokens),
            )
        for whole, new in zip(room, (key_states, value_states), strict=True):
            whole[..., used:all_tokens, :] = new
        self.keys, self.values = (whole[..., :all_tokens, :] for whole in room)
        return self.keys, self.values

    def _is_in(self, room: tuple[torch.Tensor, torch.Tensor]) -> bool:
        parts: tuple[Any, Any] = (self.keys, self.values)
        pairs = zip(room, parts, strict=True)
        return all(
            whole.data_ptr() == part.data_ptr() and whole.shape[0] == part.shape[0]
            for whole, part in pairs
        )

    def _grown(self, part: Any, all_tokens: int) -> torch.Tensor:
        """A copy with room for that many tokens, and for more."""
        used = part.shape[-2]
        shape = (*part.shape[:-2], all_tokens + max(ROOM, used // 4), part.shape[-1])
        whole = torch.empty(shape, dtype=part.dtype, device=part.device)
        whole[..., :used, :] = part
        return whole


def make_cache() -> Cache:
    """An empty cache of such layers."""
    return Cache(layer_class_to_replicate=RoomyLayer)
