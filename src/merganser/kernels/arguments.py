"""Arguments of kernels: arrays whose sizes are checked here, since C++ cannot check them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from merganser.kernels import CELL, WIDTHS

Array = np.ndarray[Any, Any]

Function = TypeVar("Function", bound=Callable[..., Any])

_I64, _PTR = ctypes.c_int64, ctypes.c_void_p
_BYTE: Callable[[Any], Any] = ctypes.c_char.from_buffer


class InputsStruct(ctypes.Structure):
    """``Inputs`` in ``source/vectors.hpp``."""

    _fields_ = (("k", _I64), ("rows", _PTR), ("codes", _PTR))


@dataclass(frozen=True, slots=True)
class Inputs:
    """The stored bytes of a tile of each input, at any address.

    Attributes:
        rows: for each input its stored bytes, uint8 [elements times bytes per element].
        places: intp [k], the addresses of the rows, valid while the rows exist.
        codes: int64 [k], dtype codes; -1 for rows that are only copied.
    """

    rows: tuple[Array, ...]
    places: Array
    codes: Array

    @classmethod
    def of(cls, rows: Iterable[Array], codes: Sequence[int] | Array) -> Inputs:
        """Make inputs from contiguous byte arrays."""
        rows = tuple(rows)
        places = np.array([address(row) for row in rows], np.intp)
        return cls(rows, places, np.array(codes, np.int64))

    def take(self, which: Sequence[int]) -> Inputs:
        """The inputs with these indices, in this order."""
        some = list(which)
        return Inputs(tuple(self.rows[i] for i in some), self.places[some], self.codes[some])

    def struct(self, count: int) -> InputsStruct:
        """The C++ struct for ``count`` elements per input.

        Raises:
            ValueError: when a row is too short, or a kernel lacks its dtype.
        """
        if count < 0 or not self.rows or len(self.codes) != len(self.rows):
            raise ValueError(
                f"{len(self.rows)} inputs of {count} elements, and {len(self.codes)} dtypes"
            )
        for row, code in zip(self.rows, self.codes.tolist(), strict=True):
            if not 0 <= code < len(WIDTHS):
                raise ValueError(f"kernels have no dtype {code}")
            if row.nbytes < count * WIDTHS[code]:
                raise ValueError(f"an input has {row.nbytes} bytes, not {count} elements")
        return InputsStruct(len(self.rows), address(self.places), address(self.codes))


def address(array: Array) -> int:
    """The address of an array's data."""
    try:
        return ctypes.addressof(_BYTE(array))  # the fastest way, for non-empty writable arrays
    except (TypeError, ValueError):
        place: int = array.__array_interface__["data"][0]
        return place


def checked(array: Array, dtype: Any, *shape: int) -> int:
    """The address of an array of at least this shape (exactly this, except for the first axis).

    Raises:
        ValueError: when it has another dtype, is too small, or is not contiguous.
    """
    if array.dtype != dtype or array.ndim != len(shape) or not array.flags.c_contiguous:
        raise ValueError(
            f"an array is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape} without gaps"
        )
    if array.shape[1:] != shape[1:] or array.shape[0] < shape[0]:
        raise ValueError(f"an array is {array.shape}, not {shape}")
    return address(array)


def quietly(function: Function) -> Function:
    """Disable numpy's warnings: infinities and NaNs are valid here, and 64-bit words wrap
    around."""
    return np.errstate(all="ignore")(function)


def cells_of(count: int) -> int:
    """Number of cells that ``count`` elements or bytes touch, from the start of a cell on."""
    return -(-count // CELL)
