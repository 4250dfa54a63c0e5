"""Dtype and shape of tensors, and the only dtype table of the package."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """A storage type of tensor elements.

    Attributes:
        name: torch's name, which is also the name used in recipes and ``config.json``.
        tag: the name in a safetensors header.
        itemsize: bytes an element.
        floating: whether its numbers can be merged; tensors of other types are copied.
        mergeable: whether the engine reads it directly; fp8, for example, needs its scales first.
    """

    name: str
    tag: str
    itemsize: int
    floating: bool
    mergeable: bool

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], DType], tuple[str]]:
        return _by_name, (self.name,)  # one object a dtype, also of what is unpickled


DTYPES: tuple[DType, ...] = (
    DType("bfloat16", "BF16", 2, True, True),
    DType("float16", "F16", 2, True, True),
    DType("float32", "F32", 4, True, True),
    DType("float64", "F64", 8, True, True),
    DType("float8_e4m3fn", "F8_E4M3", 1, True, False),
    DType("float8_e5m2", "F8_E5M2", 1, True, False),
    DType("float8_e8m0fnu", "F8_E8M0", 1, True, False),
    DType("int64", "I64", 8, False, False),
    DType("int32", "I32", 4, False, False),
    DType("int16", "I16", 2, False, False),
    DType("int8", "I8", 1, False, False),
    DType("uint64", "U64", 8, False, False),
    DType("uint32", "U32", 4, False, False),
    DType("uint16", "U16", 2, False, False),
    DType("uint8", "U8", 1, False, False),
    DType("bool", "BOOL", 1, False, False),
    DType("complex64", "C64", 8, False, False),
)

BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_TAG = {dtype.tag: dtype for dtype in DTYPES}


def _by_name(name: str) -> DType:
    return BY_NAME[name]


FLOAT32 = BY_NAME["float32"]
FLOAT64 = BY_NAME["float64"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype and shape of a tensor, read from a header.

    Attributes:
        dtype: the dtype that reading the tensor gives.
        shape: its sizes, outermost first.
        narrow: the default dtype of a result, for a tensor that is read in a wider dtype to lose
            nothing (quantised, adapted and averaged tensors); None for ``dtype``.
    """

    dtype: DType
    shape: tuple[int, ...]
    narrow: DType | None = None

    @property
    def natural(self) -> DType:
        """The default dtype of a result of this tensor alone."""
        return self.narrow or self.dtype

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes, contiguous."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


def parse_size(text: str | int) -> int:
    """Read a number of bytes: ``5000000000``, ``5B`` (MergeKit's billion), ``5GB``, ``5GiB``, ``1.5G``.

    Raises:
        ValueError: when the text is not a size.
    """
    if isinstance(text, int):
        return text
    digits = text.strip().rstrip("aABbgGiIkKmMtT")
    unit = text.strip()[len(digits) :].lower()
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "b": 10**9}
    units |= {f"{prefix}b": units[prefix] for prefix in "kmgt"}
    units |= {
        f"{prefix}i{b}": 1024**power for power, prefix in enumerate("kmgt", 1) for b in ("", "b")
    }
    try:
        size = int(float(digits) * units[unit])
        if size < 0 and text.strip() != "-1":  # MergeKit's way to write "no limit"
            raise ValueError
        return size
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a size; write it like 5GB, 512MB or 5GiB") from None
