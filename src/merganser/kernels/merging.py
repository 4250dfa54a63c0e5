"""Merge a tile: the bytes of every model in, the bytes of each output out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.kernels import CODES, WIDTHS
from merganser.kernels.arguments import Array, Inputs, InputsStruct, cells_of, checked, quietly
from merganser.kernels.steps import Given, Output, Sums

_I64, _U64, _F64, _PTR = ctypes.c_int64, ctypes.c_uint64, ctypes.c_double, ctypes.c_void_p


class _SumsStruct(ctypes.Structure):
    _fields_ = tuple((name, _PTR) for name in Sums._fields)


class _OutputStruct(ctypes.Structure):
    _fields_ = (
        ("out", _PTR),
        ("how", _PTR),
        ("seed", _U64),
        ("share", _F64),
        ("sums", _SumsStruct),
        ("digests", _PTR),
    )


class _TileStruct(ctypes.Structure):
    _fields_ = (
        ("inputs", InputsStruct),
        ("count", _I64),
        ("start", _I64),
        ("wide", _I64),
        ("code", _I64),
        ("stochastic", _I64),
        ("outputs", _I64),
        ("output", _PTR),
        ("digests", _PTR),
    )


@quietly
def merge(
    library: ctypes.CDLL | None,
    inputs: Inputs,
    count: int,
    start: int,
    work: np.dtype[Any],
    dtype: str,
    stochastic: bool,
    outputs: Sequence[Output],
    digests: Sequence[Array | None] = (),
) -> None:
    """Compute a tile of several outputs, each rounded once.

    Args:
        library: the compiled kernels, or None for numpy.
        inputs: the tile, the base first if there is one.
        count: elements in the tile.
        start: the tile's first element in its tensor; a multiple of CELL.
        work: float32 or float64, the dtype of the computation.
        dtype: of all outputs.
        stochastic: whether to round stochastically.
        outputs: the outputs, all of one kind.
        digests: for each input uint64 by cells of its bytes, filled as by
            :func:`merganser.kernels.storage.digest`, or None; empty for none of them.

    Raises:
        ValueError: when an array does not fit the others, or numpy has no such step.
    """
    code, k = CODES[dtype], len(inputs.rows) - outputs[0].how.extra
    wide = work == np.float64
    structs = [o.how.struct(k, work, start, count) for o in outputs]  # alive during the call
    out = (_OutputStruct * len(outputs))(
        *(
            _OutputStruct(
                checked(o.data, np.uint8, count * WIDTHS[code]),
                None if told is None else ctypes.addressof(told),
                o.seed,
                o.how.share,
                _sums_struct(o.sums, k, cells_of(count)),
                _digests(o.digests, count * WIDTHS[code]),
            )
            for o, told in zip(outputs, structs, strict=True)
        )
    )
    if start < 0 or len({o.how.kernel for o in outputs}) != 1 or k < 1:
        raise ValueError(f"no tile: {k} models, from element {start}")
    if digests and len(digests) != len(inputs.rows):
        raise ValueError(f"{len(digests)} digests for {len(inputs.rows)} inputs")
    cells = (ctypes.c_void_p * len(digests))(*map(_digests, digests, map(len, inputs.rows)))
    tile = _TileStruct(
        inputs.struct(count),
        count,
        start,
        wide,
        code,
        stochastic,
        len(outputs),
        ctypes.addressof(out),
        ctypes.addressof(cells) if digests else None,
    )
    if library is not None:
        if getattr(library, outputs[0].how.kernel)(ctypes.byref(tile)):
            raise ValueError("a kernel refuses its arguments")
        return
    from merganser.kernels import plain

    plain.merge(inputs, count, start, work, dtype, stochastic, outputs)
    written = [o.data[: count * WIDTHS[code]] for o in outputs]
    for row, into in zip(
        [*inputs.rows[: len(digests)], *written],
        [*digests, *(o.digests for o in outputs)],
        strict=True,
    ):
        if into is not None:
            plain.digest(row, into)


def _digests(cells: Array | None, size: int) -> int | None:
    return None if cells is None else checked(cells, np.uint64, cells_of(size))


def _sums_struct(sums: Sums | None, k: int, cells: int) -> _SumsStruct:
    if sums is None:
        return _SumsStruct()
    shapes = {"gram": (cells, k - 1, k - 1), "noise": (cells,)}
    return _SumsStruct(
        *(
            None if array is None else checked(array, np.float64, *shapes.get(name, (cells, k - 1)))
            for name, array in zip(Sums._fields, sums, strict=True)
        )
    )


def narrow(
    library: ctypes.CDLL | None,
    numbers: Array,
    dtype: str,
    stochastic: bool,
    seed: int,
    start: int,
    into: Array,
) -> None:
    """Round float32 or float64 numbers to stored bytes: :func:`merge` of a finished result."""
    code = CODES[numbers.dtype.name]
    row = numbers.view(np.uint8)
    inputs = Inputs.of((row, row), (code, code))
    work = np.dtype(numbers.dtype)
    output = Output(into, Given(), seed)
    merge(library, inputs, len(numbers), start, work, dtype, stochastic, [output])
