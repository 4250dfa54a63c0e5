"""One thread of the engine, with private buffers: reads a tile, merges it, passes it on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merganser.engine import steps
from merganser.engine.running_plan import RunningPlan, Scratch
from merganser.engine.tiles import Group, Tile
from merganser.errors import InputError
from merganser.kernels import CELL, CODES, measuring, merging, storage
from merganser.kernels.arguments import Array, Inputs
from merganser.kernels.library import kernels_for
from merganser.kernels.steps import Given, How, Output, Sparse
from merganser.sinks import Sink


class Worker:
    """Processes tiles. Its buffers grow to the largest tile and are reused."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._scratch = Scratch()
        self._undigested: dict[int, Array] = {}  # of a tile's rows

    def do(self, tile: Tile) -> int:
        """Measure or merge a tile.

        Returns:
            Bytes of output.

        Raises:
            InputError: when an input cannot be read, or integer tensors differ.
        """
        group, count = tile.group, tile.stop - tile.start
        inputs = self._read(group, tile.start, count)
        if tile.passes:
            for measurement in tile.passes:
                measurement.add(
                    inputs.take(measurement.part.rows), tile.start, count, self._scratch
                )
            return 0
        written = 0
        self._undigested = {
            index: digests[begin : begin - (-len(data) // CELL)]
            for index, (row, data, digests) in enumerate(
                zip(group.rows, inputs.rows, group.digests, strict=False)
            )
            if digests is not None
            for begin in [tile.start * row.size // CELL]
        }
        for batch in group.batches:
            taken = inputs.take(batch.parts[0].rows)
            written += self._merge(batch.parts, batch.combinations, taken, tile.start, count)
        for part in group.parts:
            if part.copies:
                written += self._copy(part, group, inputs, tile.start, count)
            elif not part.fused:
                written += self._compute(part, group, inputs, tile)
            if part.digests is not None and not part.copies:
                self._count_nonfinite(part, inputs.take(part.rows), tile.start, count)
        for row, cells in self._undigested.items():
            storage.digest(inputs.rows[row], cells)
        return written

    def _input_digests(self, part: RunningPlan, how: How) -> list[Array | None]:
        """Where a kernel puts the digests of a part's inputs, unless another has, or will, since it
        does not read what is stored."""
        if part.job.cast is not None:
            return []
        return [*(self._undigested.pop(row, None) for row in part.rows), *[None] * how.extra]

    def _output_digests(self, part: RunningPlan, begin: int, size: int) -> Array | None:
        """The digests of a range of a part's output, for the kernel that writes it."""
        if part.digests is None:
            return None
        first = begin // CELL
        digests: Array = part.digests[first : first - (-size // CELL)]
        return digests

    def _count_nonfinite(self, part: RunningPlan, inputs: Inputs, start: int, count: int) -> None:
        """Count the inputs' infinities and NaNs, unless the report's sums show that there are none."""
        if not part.may_be_nonfinite(_cells(start, count)):
            return
        for index, (data, dtype) in enumerate(zip(inputs.rows, part.dtypes, strict=True)):
            nonfinite = storage.count_nonfinite(data, CODES[dtype.name])
            if nonfinite:
                part.nonfinite.append((index, nonfinite))

    def _read(self, group: Group, start: int, count: int) -> Inputs:
        buffer = self._scratch("inputs", np.uint8, len(group.rows), count * group.itemsize)
        return group.read(start, count, buffer)

    def _merge(
        self,
        parts: Sequence[RunningPlan],
        hows: Sequence[How],
        inputs: Inputs,
        start: int,
        count: int,
    ) -> int:
        """Compute parts of one kind with one kernel call, and write their outputs; returns their
        bytes. The inputs are those of each part, and what its step takes behind them."""
        first = parts[0]
        dtype, cells = first.job.spec.dtype, _cells(start, count)
        begin, size = start * dtype.itemsize, count * dtype.itemsize
        reserved = self._reserve(first, begin, size) if len(parts) == 1 else None
        outs = reserved
        if outs is None:
            outs = self._scratch("outs", np.uint8, len(parts), size)
        outputs = []
        for p, (part, how) in enumerate(zip(parts, hows, strict=True)):
            sums = None if part.sums is None else part.sums.at(cells)
            if sums is not None and p:
                sums = sums._replace(gram=None, differ=None)
            digests = self._output_digests(part, begin, size)
            outputs.append(Output(outs[p], how, part.seed, sums, digests))
        merging.merge(
            kernels_for(inputs),
            inputs,
            count,
            start,
            first.wide,
            dtype.name,
            bool(first.rounding),
            outputs,
            self._input_digests(first, hows[0]),
        )
        if reserved is not None:
            self._count_in_output(first, begin, outs[0])
            self._sinks[first.plan].commit(first.job.name, begin, size)
            return size
        return sum(
            self._put(part, start, out[:size]) for part, out in zip(parts, outs, strict=True)
        )

    def _reserve(self, part: RunningPlan, begin: int, size: int) -> Array | None:
        """The sink's memory as an array [1, size], if it has some with suitable alignment."""
        view = self._sinks[part.plan].reserve(part.job.name, begin, size) if size else None
        if view is None:
            return None
        array = np.frombuffer(view, np.uint8)
        aligned = array.ctypes.data % part.job.spec.dtype.itemsize == 0
        return array.reshape(1, size) if aligned else None

    def _copy(self, part: RunningPlan, group: Group, inputs: Inputs, start: int, count: int) -> int:
        taken = inputs.rows[part.rows[0]]
        for row in part.rows[1:]:
            if not np.array_equal(taken, inputs.rows[row]):
                raise InputError(
                    f"tensor {part.job.name!r} ({part.job.spec.dtype}) cannot be averaged, and differs between "
                    f"{group.rows[part.rows[0]].checkpoint.label} and {group.rows[row].checkpoint.label}"
                )
        digests = self._output_digests(part, start * part.job.spec.dtype.itemsize, len(taken))
        if digests is not None and len(taken):
            storage.digest(taken, digests)
        return self._put(part, start, taken)

    def _compute(self, part: RunningPlan, group: Group, inputs: Inputs, tile: Tile) -> int:
        """Compute and write a tile's output, for jobs that the kernel for linear combinations does
        not compute; returns its bytes."""
        start, count, taken = tile.start, tile.stop - tile.start, inputs.take(part.rows)
        if part.job.consensus is not None:
            return self._merge((part,), (_sparse(part),), part.stored(taken), start, count)
        if (step := steps.step_of(part)) is not None:
            return self._merge((part,), (step,), taken, start, count)
        if part.each is not None:
            exact = self._combine_each(part, group, taken, start, count)
        else:
            exact = self._in_torch(part, group, taken, tile)
        row, code = exact.view(np.uint8), CODES[exact.dtype.name]
        inputs_with_base = Inputs.of((*taken.rows, row), (*taken.codes, code))
        return self._merge((part,), (Given(),), inputs_with_base, start, count)

    def _in_torch(self, part: RunningPlan, group: Group, inputs: Inputs, tile: Tile) -> Array:
        from merganser.engine import reference, torch_numbers

        users_method = part.method.origin is not None and part.combination is None
        if users_method and part.method.elementwise and tile.start == 0:
            reference.try_elementwise(part, inputs.rows)
        shape = group.shape if part.whole else (tile.stop - tile.start,)
        result = reference.compute(part, inputs.rows, shape)
        return torch_numbers.numbers(result, part.wide)

    def _combine_each(
        self, part: RunningPlan, group: Group, inputs: Inputs, start: int, count: int
    ) -> Array:
        assert part.each is not None
        exact: Array = self._scratch("exact", part.wide, 1, count)[0]
        length = group.shape[-1] if part.each_rows else part.each.shape[1]
        measuring.combine_each(
            part.stored(inputs), count, part.each, length, part.each_rows, start, exact
        )
        return exact

    def _put(self, part: RunningPlan, start: int, out: Array) -> int:
        """Write a tile's output, whose digests are known, to the sink; returns its bytes."""
        begin = start * part.job.spec.dtype.itemsize
        if len(out):
            self._count_in_output(part, begin, out)
            self._sinks[part.plan].write(part.job.name, begin, out.data)
        return len(out)

    def _count_in_output(self, part: RunningPlan, begin: int, out: Array) -> None:
        """Count an output's infinities and NaNs."""
        if part.digests is None:
            return
        code = CODES.get(part.job.spec.dtype.name)
        size = part.job.spec.dtype.itemsize
        if code is not None and part.may_be_nonfinite(_cells(begin // size, len(out) // size)):
            count = storage.count_nonfinite(out, code)
            if count:
                part.nonfinite.append((-1, count))


def _sparse(part: RunningPlan) -> Sparse:
    """The step of a method with sparse deltas."""
    sparse_deltas, facts = part.consensus, part.facts
    return Sparse(
        facts.rules,
        facts.factors,
        facts.weights,
        sparse_deltas.elect,
        sparse_deltas.divide,
        float(facts.total_weight),
        float(part.wide.type(sparse_deltas.scale)),
        sparse_deltas.agree or 0,
        np.array(sparse_deltas.slack, part.wide) if sparse_deltas.slack else None,
    )


def _cells(start: int, count: int) -> slice:
    first = start // CELL
    return slice(first, first - (-count // CELL))
