"""One thread of the engine, with buffers of its own: reads a tile, merges it, hands it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.engine import kernels
from merganser.engine.work import Array, Batch, Group, Part, Work
from merganser.errors import InputError
from merganser.planning import CELL
from merganser.sinks import Sink
from merganser.tensors import FLOAT64


class Worker:
    """Does pieces of work. Its buffers grow to the largest tile it meets, and are used again."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._buffers: dict[str, Array] = {}

    def do(self, work: Work) -> int:
        """Measure or merge a tile.

        Returns:
            Bytes of output made.

        Raises:
            InputError: when an input cannot be read, or integer tensors differ.
        """
        group, count = work.group, work.stop - work.start
        inputs = self._read(group, work.start, count)
        if work.measure:
            for part in group.parts:
                if part.measured is not None:
                    self._measure(part, _take(inputs, part.rows), work.start, count)
            return 0
        made = 0
        for batch in group.batches:
            made += self._combine(batch, inputs, work.start, count)
        for part in group.parts:
            if part.copies:
                made += self._copy(part, group, inputs, work.start, count)
            elif not part.fused:
                made += self._compute(part, group, inputs, work.start, count)
        return made

    def _read(self, group: Group, start: int, count: int) -> Array:
        width = count * max(row.dtype.itemsize for row in group.rows)
        inputs = self._buffer("inputs", len(group.rows), width)
        for row, into in zip(group.rows, inputs, strict=True):
            size = row.dtype.itemsize
            if count:
                row.checkpoint.read(row.name, start * size, into[: count * size].data)
        return inputs

    def _measure(self, part: Part, inputs: Array, start: int, count: int) -> None:
        assert part.measured is not None
        codes = part.codes
        if part.job.cast is not None:  # what is merged is what is measured
            inputs = _cast(inputs, part, count)
            codes[:] = kernels.CODES["float64"]
        scratch = self._scratch(np.dtype(np.float64), len(part.rows))
        cells = _cells(start, count)
        kernels.measure(inputs, codes, count, scratch, part.measured[cells])

    def _combine(self, batch: Batch, inputs: Array, start: int, count: int) -> int:
        first = batch.parts[0]
        dtype = first.job.spec.dtype
        size = count * dtype.itemsize
        begin = start * dtype.itemsize
        reserved = self._reserve(first, begin, size) if len(batch.parts) == 1 else None
        outs = self._buffer("outs", len(batch.parts), size) if reserved is None else reserved
        scratch = self._scratch(batch.coefficients.dtype, 2 * len(first.rows) + 2)
        cells = _cells(start, count) if batch.report else slice(0, 0)
        kernels.combine(
            _take(inputs, first.rows),
            batch.codes,
            count,
            batch.coefficients,
            batch.divisors,
            batch.from_zero,
            kernels.CODES[dtype.name],
            first.rounding,
            batch.seeds,
            start,
            scratch,
            outs,
            batch.report,
            batch.gram[cells],
            batch.differ[cells],
            batch.cross[:, cells],
            batch.noise[:, cells],
        )
        if reserved is not None:
            self._digest(first, begin, outs[0])
            self._sinks[first.plan].commit(first.job.name, begin, size)
            return size
        return sum(
            self._put(part, start, out[:size]) for part, out in zip(batch.parts, outs, strict=True)
        )

    def _reserve(self, part: Part, begin: int, size: int) -> Array | None:
        """Memory of the sink's own as an array [1, size], if it has some that numbers can lie in."""
        view = self._sinks[part.plan].reserve(part.job.name, begin, size) if size else None
        if view is None:
            return None
        array = np.frombuffer(view, np.uint8)
        aligned = array.ctypes.data % part.job.spec.dtype.itemsize == 0
        return array.reshape(1, size) if aligned else None

    def _copy(self, part: Part, group: Group, inputs: Array, start: int, count: int) -> int:
        size = count * part.dtypes[0].itemsize
        taken = inputs[part.rows[0], :size]
        for row in part.rows[1:]:
            if not np.array_equal(taken, inputs[row, :size]):
                raise InputError(
                    f"tensor {part.job.name!r} ({part.job.spec.dtype}) cannot be averaged, and differs between "
                    f"{group.rows[part.rows[0]].checkpoint.label} and {group.rows[row].checkpoint.label}"
                )
        return self._put(part, start, taken)

    def _compute(self, part: Part, group: Group, inputs: Array, start: int, count: int) -> int:
        from merganser.engine import reference

        stored = [
            inputs[row, : count * dtype.itemsize]
            for row, dtype in zip(part.rows, part.dtypes, strict=True)
        ]
        shape = group.shape if part.whole else (count,)
        result = reference.compute(
            part.job, part.method, stored, part.dtypes, shape, part.combination
        )
        wide = np.dtype(np.float64 if part.job.work.name == "float64" else np.float32)
        exact = reference.numbers(result, wide)
        out_dtype = part.job.spec.dtype
        (out,) = self._buffer("outs", 1, count * out_dtype.itemsize)
        code = kernels.CODES[out_dtype.name]
        kernels.narrow(exact, count, code, part.rounding, np.uint64(part.seed), start, out)
        if part.sums is not None:
            cells, sums = _cells(start, count), part.sums
            kernels.survey(
                _take(inputs, part.rows),
                part.codes,
                count,
                exact,
                out,
                code,
                self._scratch(wide, 2 * len(part.rows) + 2),
                sums.gram[cells],
                sums.differ[cells],
                sums.ideal[cells],
                sums.cross[cells],
                sums.noise[cells],
            )
        return self._put(part, start, out)

    def _put(self, part: Part, start: int, out: Array) -> int:
        begin = start * part.job.spec.dtype.itemsize
        if len(out):
            self._digest(part, begin, out)
            self._sinks[part.plan].write(part.job.name, begin, out.data)
        return len(out)

    def _digest(self, part: Part, begin: int, out: Array) -> None:
        if part.digests is not None:
            first = begin // CELL
            kernels.digest(out, part.digests[first : first - (-len(out) // CELL)])

    def _buffer(self, name: str, rows: int, width: int) -> Array:
        """A uint8 array [rows, width] at the start of a buffer that is kept."""
        width = -(-width // 64) * 64 if rows > 1 else width  # rows begin on cache lines
        kept = self._buffers.get(name)
        if kept is None or len(kept) < rows * width:
            kept = self._buffers[name] = np.empty(rows * width, np.uint8)
        return kept[: rows * width].reshape(rows, width)

    def _scratch(self, dtype: np.dtype[Any], rows: int) -> Array:
        key = f"scratch {dtype} {rows}"
        if key not in self._buffers:
            self._buffers[key] = np.zeros((rows, kernels.BLOCK), dtype)
        return self._buffers[key]


def _cast(inputs: Array, part: Part, count: int) -> Array:
    """The inputs as they are after the cast, as the bytes of float64."""
    from merganser.engine import reference

    stored = zip(inputs, part.dtypes, strict=True)
    rows = [
        reference.widen(row[: count * dtype.itemsize], dtype, part.job.cast, FLOAT64).numpy()
        for row, dtype in stored
    ]
    return np.stack(rows).view(np.uint8)


def _take(inputs: Array, rows: tuple[int, ...]) -> Array:
    return inputs if rows == tuple(range(len(inputs))) else inputs[list(rows)]


def _cells(start: int, count: int) -> slice:
    first = start // CELL
    return slice(first, first - (-count // CELL))
