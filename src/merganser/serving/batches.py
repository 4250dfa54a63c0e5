"""Continuous batches of a transformers model: rows join and leave between two decoding steps."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from merganser import extras
from merganser.errors import InputError
from merganser.evaluation import drawing
from merganser.serving.generation import TokenScore
from merganser.serving.rows import Row

if TYPE_CHECKING:
    import torch

SHORT = 1024
"""Rows of at most this many tokens are padded to one length without limit."""

MOST_PADDING = 4
"""Longer rows are padded to at most this multiple of their length."""


class Forward:
    """The forward pass of a transformers model.

    Args:
        module: the model.
        padding: the id of the padding token.
        label: names the model in messages.

    Attributes:
        joins: whether rows can join a running batch. Models whose caches are not keys and values of each
            token run every row in a batch of one.

    Raises:
        InputError: the model does not accept a cache as an argument.
    """

    def __init__(self, module: Any, padding: int, label: str) -> None:
        cache_utils = extras.load("transformers.cache_utils", "eval")
        names = inspect.signature(module.forward).parameters
        self.module = module
        self.padding = padding
        self._cache_name = next((n for n in ("cache", "past_key_values") if n in names), "")
        if not self._cache_name:
            raise InputError(f"{label}: cannot be served: its class supports no key-value cache")
        self._takes_positions = "position_ids" in names
        self._takes_keep = "logits_to_keep" in names
        self._new: Any = cache_utils.DynamicCache
        plain = (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer)
        layers = self._new(config=module.config).layers
        self.joins = all(type(layer) in plain for layer in layers)

    def new_cache(self) -> Any:
        """Return an empty cache; one with keys and values of all tokens if the model supports it."""
        if self.joins:
            return extras.load("merganser.serving.roomy_cache", "eval").make_cache()
        return self._new(config=self.module.config)

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Run the model on new tokens, and extend the cache.

        Args:
            ids: ids of the new tokens, int64 [rows, new].
            mask: 1 for tokens and 0 for padding, cached ones included [rows, all].
            positions: positions of the new tokens in their rows [rows, new].
            cache: the cache of the earlier tokens; extended in place.

        Returns:
            Float32 logits of the next token [rows, vocabulary].
        """
        given: dict[str, Any] = {
            "input_ids": ids,
            self._cache_name: cache,
            "use_cache": True,
        }
        if self.joins:  # a batch of one row has no padding
            given["attention_mask"] = mask
        if self._takes_positions:
            given["position_ids"] = positions
        if self._takes_keep:
            given["logits_to_keep"] = 1
        scores: torch.Tensor = self.module(**given).logits[:, -1]
        return scores.float()


class Reading:
    """The prefill of prompts: several short ones at once, or a long one in pieces.

    Args:
        forward: the model.
        rows: the rows whose prompts are read; equal prompts are read once.
        piece: tokens of a row per step.
    """

    def __init__(self, forward: Forward, rows: Sequence[Row], piece: int) -> None:
        import torch

        self.rows = list(rows)
        self.cache = forward.new_cache()
        self._forward = forward
        self._piece = piece
        unique: dict[tuple[int, ...], int] = {}
        self._places = [unique.setdefault(tuple(row.tokens), len(unique)) for row in rows]
        width = max(map(len, unique))
        ids = torch.full((len(unique), width), forward.padding)
        mask = torch.zeros((len(unique), width), dtype=torch.long)
        for place, tokens in enumerate(unique):
            ids[place, width - len(tokens) :] = torch.tensor(tokens)
            mask[place, width - len(tokens) :] = 1
        device = forward.module.device
        self._ids, self._mask = ids.to(device), mask.to(device)
        self._done = 0
        self.tokens = int(mask.sum())

    def step(self) -> torch.Tensor | None:
        """Read the next piece; return the rows' logits [rows, vocabulary] after the last piece, else None."""
        end = min(self._done + self._piece, self._ids.shape[1])
        part = slice(self._done, end)
        mask = self._mask[:, :end]
        scores = self._forward(self._ids[:, part], mask, _positions(mask)[:, part], self.cache)
        self._done = end
        if end < self._ids.shape[1]:
            return None
        return scores[self._places]

    def batch(self) -> Batch:
        """Return the rows as a batch, once the last piece is read."""
        import torch

        mask = self._mask
        if self._places != list(range(len(mask))):
            chosen = torch.tensor(self._places, device=mask.device)
            self.cache.batch_select_indices(chosen)
            mask = mask[chosen]
        return Batch(self._forward, self.rows, self.cache, mask)


class Batch:
    """Rows that share one cache, padded on the left to one length.

    Attributes:
        rows: the completions; the last token of each is not in the cache yet.
    """

    def __init__(
        self, forward: Forward, rows: Sequence[Row], cache: Any, mask: torch.Tensor
    ) -> None:
        self.rows = list(rows)
        self._forward = forward
        self._cache = cache
        self._mask = mask

    @property
    def width(self) -> int:
        """Cached tokens per row, padding included."""
        return int(self._mask.shape[1])

    @property
    def size(self) -> int:
        """Cached tokens of all rows, padding included."""
        return self._mask.numel()

    def step(self) -> torch.Tensor:
        """Run the model on each row's last token; return the logits of the next one [rows, vocabulary]."""
        import torch

        last = torch.tensor([[row.generated[-1]] for row in self.rows], device=self._mask.device)
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        positions = self._mask.sum(dim=1, keepdim=True) - 1
        return self._forward(last, self._mask, positions, self._cache)

    def keep(self, places: Sequence[int]) -> None:
        """Keep the rows at these indices; drop the others, and padding that no remaining row needs."""
        import torch

        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        if not places:
            return
        chosen = torch.tensor(places, device=self._mask.device)
        self._mask = self._mask[chosen]
        first = int(self._mask.any(dim=0).long().argmax()) if self._forward.joins else 0
        self._mask = self._mask[:, first:]
        for layer in _filled(self._cache):
            layer.keys = layer.keys[chosen][..., first:, :]
            layer.values = layer.values[chosen][..., first:, :]

    def takes(self, other: Batch) -> bool:
        """Whether another batch's rows may join, without too much padding."""
        if not self._forward.joins or other._forward is not self._forward:
            return False
        short, long = sorted((self.width, other.width))
        return long <= SHORT or long <= MOST_PADDING * short

    def join(self, other: Batch) -> None:
        """Append another batch's rows."""
        import torch

        width = max(self.width, other.width)
        for mine, theirs in zip(_filled(self._cache), _filled(other._cache), strict=True):
            mine.keys = torch.cat([_padded(mine.keys, width), _padded(theirs.keys, width)])
            mine.values = torch.cat([_padded(mine.values, width), _padded(theirs.values, width)])
        masks = [_padded(m[..., None], width)[..., 0] for m in (self._mask, other._mask)]
        self._mask = torch.cat(masks)
        self.rows += other.rows


def choose(rows: Sequence[Row], scores: torch.Tensor) -> list[tuple[int, TokenScore | None]]:
    """Return the next token of each row, with its log-probabilities if the client asked for them.

    Args:
        rows: the rows.
        scores: float32 logits [rows, vocabulary].
    """
    chosen: list[int] = scores.argmax(dim=-1).tolist()
    drawn: dict[tuple[float, float], list[int]] = {}
    for place, row in enumerate(rows):
        sampling = row.wanted.sampling
        if sampling.temperature > 0:
            drawn.setdefault((sampling.temperature, sampling.top_p), []).append(place)
    for (temperature, top_p), places in drawn.items():
        numbers = [rows[place].next_number() for place in places]
        only = drawing.draw(scores[places], numbers, temperature, top_p)
        for place, token in zip(places, only.argmax(dim=-1).tolist(), strict=True):
            chosen[place] = token
    scored = [place for place, row in enumerate(rows) if row.wanted.top is not None]
    found: list[TokenScore | None] = [None] * len(rows)
    if scored:
        shares = scores[scored].log_softmax(dim=-1)
        most = max(rows[place].wanted.top or 0 for place in scored)
        best, tokens = shares.topk(min(most, shares.shape[-1]), dim=-1)
        for number, place in enumerate(scored):
            count = rows[place].wanted.top
            pairs = zip(tokens[number].tolist(), best[number].tolist(), strict=True)
            own = float(shares[number, chosen[place]])
            found[place] = TokenScore(chosen[place], own, tuple(pairs)[:count])
    return list(zip(chosen, found, strict=True))


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 0)


def _padded(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Return a tensor [..., tokens, values] padded with zeros on the left of its tokens."""
    import torch

    return torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[-2], 0))


def _filled(cache: Any) -> list[Any]:
    """Return the layers that have keys and values; in some models layers share those of others."""
    return [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
