"""Exact thresholds: the magnitudes of given ranks in a tensor, from passes over its tiles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from merganser.engine.passes import Cut, Measurement, cells_of
from merganser.engine.running_plan import RunningPlan, Scratch
from merganser.kernels import CELL, LANES, selecting
from merganser.kernels import rules as rule
from merganser.kernels.arguments import Array, Inputs

Sample = Callable[[Sequence[int], int], Inputs]
"""Reads a sample of a group's tensors: runs at the given places, of the given number of elements."""

RUN = 1024
"""Elements read at a time for a sample."""

HIGHEST = int(rule.ABSENT) - 1
"""Greatest possible key."""


class Selection:
    """An exact search for the ``rank`` greatest keys of a tensor, or for a share of those that are not
    zero, which the first pass counts.

    A sample brackets the threshold. A pass counts the keys above the bracket and collects those
    inside; if the bracket misses the threshold, it moves and the pass repeats. Frequent keys are
    counted instead of collected.

    Attributes:
        what: the model of the deltas, or VARIANCE.
        rank: number of keys to select; until the first pass ends, an estimate if a share is given.
        low, high: the bracket, inclusive.
        guesses: two keys to count by cells: the likeliest cut, and a frequent key.
        cut: the smallest selected key, once known.
        allowed, present: by cells, how many keys equal to the cut are selected, and how many exist;
            both zero if all of them are selected.
        missing: how many keys equal to the cut are selected, until they are distributed over the
            cells; then None.
    """

    def __init__(self, what: int, rank: int, size: int, share: float | None = None) -> None:
        self.what = what
        self.rank = rank
        self._size = size
        self._share = share
        self.low, self.high = 0, HIGHEST
        self.guesses = (0, HIGHEST + 1)
        self.cut: int | None = None
        self.missing: int | None = None
        self.allowed = np.zeros(-(-size // CELL), np.int64)
        self.present = self.allowed
        self._empty()
        self._lock = threading.Lock()

    def _empty(self) -> None:
        self._above = 0
        self._equal = np.zeros((2, len(self.allowed)), np.int64)
        self._found: list[Array] = []

    def bracket(self, keys: Array, size: int) -> None:
        """Narrow the bracket to five standard deviations around the rank in a sample of the tensor's
        keys, which is in descending order."""
        if self._share is not None:
            self.rank = int(self._share * np.count_nonzero(keys) / len(keys) * size)
        share = self.rank / size
        place = min(len(keys) - 1, int(share * len(keys)))
        margin = 8 + int(5 * (len(keys) * share * (1 - share)) ** 0.5)
        guess = int(keys[place])
        self.high = int(keys[place - margin]) if place >= margin else HIGHEST
        self.low = int(keys[place + margin]) if place + margin < len(keys) else 0
        near = keys[max(0, place - margin) : place + margin + 1]
        others, counts = np.unique(near[near != guess], return_counts=True)
        frequent = int(others[counts.argmax()]) if len(others) else HIGHEST + 1
        self.guesses = (guess, frequent if self._share is None or guess == 0 else 0)

    def take(self, above: int, equal: Array, cells: slice, keys: Array) -> None:
        """Add a tile's counts and collected keys; any thread may call it."""
        with self._lock:
            self._above += above
            self._equal[:, cells] += equal
            if len(keys):
                self._found.append(keys.copy())

    def settle(self) -> None:
        """Finish a pass: find the cut, or move the bracket."""
        if self._share is not None:
            zeros = int(self._equal[self.guesses.index(0)].sum())
            self.rank = int((self._size - zeros) * self._share)
            self._share = None
            if not 0 < self.rank < self._size:
                self.cut = HIGHEST + 1
                return
        keys = np.sort(np.concatenate([np.zeros(0, np.uint32), *self._found]))[::-1]
        wanted = self.rank - self._above
        counted = [
            (key, int(equal.sum()), equal)
            for key, equal in zip(self.guesses, self._equal, strict=True)
        ]
        if wanted <= 0:  # the cut is above the bracket
            self._move(self.high + 1, HIGHEST)
        elif wanted > len(keys) + sum(count for key, count, _ in counted if key >= self.low):
            self._move(0, self.low - 1)
        else:
            for key, count, equal in sorted(counted, key=lambda entry: -entry[0]):
                more = len(keys) - int(np.searchsorted(keys[::-1], key, side="right"))
                if wanted <= more:
                    break
                if wanted <= more + count:
                    self._decide(key, wanted - more, count, equal)
                    break
                wanted -= count
            if self.cut is None:
                key = int(keys[wanted - 1])
                more = len(keys) - int(np.searchsorted(keys[::-1], key, side="right"))
                count = int(np.searchsorted(keys[::-1], key, side="right")) - int(
                    np.searchsorted(keys[::-1], key, side="left")
                )
                self._decide(key, wanted - more, count, None)
        self._empty()

    def _decide(self, key: int, wanted: int, count: int, equal: Array | None) -> None:
        """Set the cut, of whose ``count`` ties ``wanted`` are selected."""
        self.cut = key
        if wanted < count:
            self.missing = wanted
            if equal is not None:
                self.deal_out(equal)
            else:
                self.guesses = (key, HIGHEST + 1)
                self.low = self.high = key

    def _move(self, low: int, high: int) -> None:
        """Move the bracket to the side of the threshold, 16 times as wide."""
        width = max(2**20, 16 * (self.high - self.low + 1))
        if low > self.high:
            self.low, self.high = low, min(high, low + width)
        else:
            self.low, self.high = max(low, high - width), high
        self.guesses = (self.low, HIGHEST + 1)

    def count_ties(self) -> None:
        """Finish a pass that only counts ties."""
        self.deal_out(self._equal[0])

    def deal_out(self, present: Array) -> None:
        """Distribute the selected ties, the first ones in the tensor, over the cells; ``present`` counts
        all ties by cells."""
        assert self.missing is not None
        before = np.cumsum(present) - present
        self.present = present
        self.allowed = np.clip(self.missing - before, 0, present)
        self.missing = None


def find_cuts(
    selections: Sequence[Selection], part: RunningPlan, size: int, sample: Sample
) -> Measurement:
    """Find the cuts of selections in as few passes as they need."""
    if not selections:
        return
    keys = _sample_keys(selections, part, size, sample)
    for selection, drawn in zip(selections, keys, strict=True):
        selection.bracket(drawn, size)
    searching = list(selections)
    while searching:
        yield _Tally(part, searching)
        for selection in searching:
            selection.settle()
        searching = [s for s in searching if s.cut is None]
    tied = [s for s in selections if s.missing is not None]
    if tied:
        yield _Tally(part, tied)
        for selection in tied:
            selection.count_ties()


class _Tally:
    """A pass that counts and collects keys for several selections."""

    cut: Cut = "cells"

    def __init__(self, part: RunningPlan, selections: Sequence[Selection]) -> None:
        self.part = part
        self.selections = selections
        self.what = np.array([s.what for s in selections])
        self.lows, self.highs, self.guesses = (
            np.array([getattr(s, name) for s in selections], np.uint32)
            for name in ("low", "high", "guesses")
        )

    def add(self, inputs: Inputs, start: int, count: int, scratch: Scratch) -> None:
        m, cells = len(self.selections), cells_of(start, count)
        above, fill = np.zeros(m, np.int64), np.zeros(m, np.int64)
        equal = np.zeros((m, 2, cells.stop - cells.start), np.int64)
        keys = scratch("found", np.uint32, m, count + LANES)
        selecting.tally(
            self.part.stored(inputs),
            count,
            self.part.wide,
            self.what,
            self.lows,
            self.highs,
            self.guesses,
            above,
            equal,
            keys,
            fill,
        )
        for i, selection in enumerate(self.selections):
            selection.take(int(above[i]), equal[i], cells, keys[i, : fill[i]])


def _sample_keys(
    selections: Sequence[Selection], part: RunningPlan, size: int, sample: Sample
) -> list[Array]:
    """Sampled keys of the tensor, in descending order: runs at places spread over it."""
    runs = min(1024, max(64, size >> 18))
    complete = size <= runs * RUN
    places = [0] if complete else [i * (size - RUN) // (runs - 1) for i in range(runs)]
    count = size if complete else RUN
    inputs = part.stored(sample(places, count).take(part.rows))
    samples: dict[int, Array] = {}
    for selection in selections:
        if selection.what not in samples:
            keys = np.empty(len(places) * count, np.uint32)
            selecting.sample_keys(inputs, len(keys), part.wide, selection.what, keys)
            samples[selection.what] = np.sort(keys)[::-1]
    return [samples[selection.what] for selection in selections]
