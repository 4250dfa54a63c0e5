"""A cache with spare capacity, so that appending a token does not copy all keys and values."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Minimum spare capacity in tokens when a layer grows; a quarter of its tokens if that is more."""


class RoomyLayer(DynamicLayer):
    """A cache layer whose ``keys`` and ``values`` are views of the start of larger tensors.

    If other code replaces ``keys`` or ``values``, the next token allocates new tensors.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [rows, heads, new, width]; return those of all tokens."""
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
        """Return a copy with capacity for ``all_tokens`` tokens and spare ones."""
        used = part.shape[-2]
        shape = (*part.shape[:-2], all_tokens + max(ROOM, used // 4), part.shape[-1])
        whole = torch.empty(shape, dtype=part.dtype, device=part.device)
        whole[..., :used, :] = part
        return whole


def make_cache() -> Cache:
    """Return an empty cache of :class:`RoomyLayer`."""
    return Cache(layer_class_to_replicate=RoomyLayer)
