"""The steps of elementwise methods: the parameters of each kernel of a merge, and its outputs."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from merganser.kernels import CELL
from merganser.kernels.arguments import Array, cells_of, checked
from merganser.kernels.rules import Rules, RulesStruct, struct_of

_I64, _F64, _PTR = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class Sums(NamedTuple):
    """Sums for the report: float64 arrays whose first axis is the tile's cells. With several
    outputs, only the first has the sums of the inputs.

    Attributes:
        gram: [cells, k-1, k-1], inner products of the inputs' deltas to the first input (lower
            triangle).
        differ: [cells, k-1], number of elements in which each input differs from the first.
        ideal: [cells, k-1], inner products of the deltas with the exact output's delta, or None.
        cross: [cells, k-1], the same with the stored output's delta.
        noise: [cells], squared distance of the stored output from the exact one.
    """

    gram: Array | None
    differ: Array | None
    ideal: Array | None
    cross: Array
    noise: Array

    @classmethod
    def zeros(cls, cells: int, k: int) -> Sums:
        """Zeros for a number of cells and inputs."""
        vector = (cells, k - 1)
        differ, ideal, cross = (np.zeros(vector) for _ in range(3))
        return cls(np.zeros((*vector, k - 1)), differ, ideal, cross, np.zeros(cells))

    def at(self, cells: slice) -> Sums:
        """The sums of a range of cells."""
        return Sums(*(None if array is None else array[cells] for array in self))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear combination by fused multiply-adds in the order of the inputs.

    Attributes:
        coefficients: [k] in the dtype of the computation.
        divisor: divisor of the sum.
        plus: added to the sum before the division; -0.0 changes nothing, 0.0 makes negative zeros positive.
    """

    kernel: ClassVar[str] = "linear"
    extra: ClassVar[int] = 0

    coefficients: Array
    divisor: float = 1.0
    plus: float = -0.0

    class Struct(ctypes.Structure):
        """``LinearHow`` in ``source/elementwise.cpp``."""

        _fields_ = (("coefficients", _PTR), ("divisor", _F64), ("plus", _F64))

    @property
    def share(self) -> float:
        """The sum of the coefficients, in the order and dtype of the combination."""
        share = self.coefficients.dtype.type(0)
        for coefficient in self.coefficients:
            share += coefficient
        return float(share / self.coefficients.dtype.type(self.divisor))

    def struct(self, k: int, work: np.dtype[Any], _start: int, _count: int) -> Any:
        """The parameters as the C++ struct; valid while the arrays exist."""
        return self.Struct(checked(self.coefficients, work, k), self.divisor, self.plus)


@dataclass(frozen=True, slots=True)
class Sparse:
    """Sum of sparse deltas to the first input, with optional sign election.

    Attributes:
        rules: which deltas are kept.
        factors: [k-1] in the dtype of the computation: weight times rescaling.
        weights: [k-1], for the divisor.
        elect: whether to elect a sign.
        divide: the divisor of the sum: ``no``, ``weights`` (their total), or ``counted``.
        total_weight: the total for ``weights``.
        scale: factor of the merged delta.
        least, slack: how many models must have ``|d_i| >= slack_i |m - d_i|`` at a position for its
            merged delta m to count, and [k-1] slack_i; 0 for all positions.
    """

    kernel: ClassVar[str] = "sparse"
    extra: ClassVar[int] = 0

    rules: Rules
    factors: Array
    weights: Array
    elect: bool
    divide: str
    total_weight: float
    scale: float
    least: int = 0
    slack: Array | None = None

    class Struct(ctypes.Structure):
        """``SparseHow`` in ``source/elementwise.cpp``."""

        _fields_ = (
            ("rules", RulesStruct),
            ("factors", _PTR),
            ("weights", _PTR),
            ("slack", _PTR),
            ("total", _F64),
            ("scale", _F64),
            ("elect", _I64),
            ("weighted", _I64),
            ("counted", _I64),
            ("least", _I64),
        )

    @property
    def share(self) -> float:
        """Coefficient of the first input in the output."""
        return 1.0

    def struct(self, k: int, work: np.dtype[Any], start: int, count: int) -> Any:
        """The parameters as the C++ struct; valid while the arrays exist."""
        if start % CELL:
            raise ValueError(f"element {start} is not the first of a cell")
        slack = self.factors if self.slack is None else self.slack
        return self.Struct(
            struct_of(self.rules, k - 1, start + count, cells_of(start + count)),
            checked(self.factors, work, k - 1),
            checked(self.weights, work, k - 1),
            checked(slack, work, k - 1),
            self.total_weight,
            self.scale,
            self.elect,
            self.divide == "weights",
            self.divide == "counted",
            self.least,
        )


@dataclass(frozen=True, slots=True)
class Given:
    """A result computed elsewhere, given as a last input after the models; the report ignores it."""

    kernel: ClassVar[str] = "given"
    extra: ClassVar[int] = 1

    @property
    def share(self) -> float:
        """Coefficient of the first input in the output."""
        return 1.0

    def struct(self, _k: int, _work: np.dtype[Any], _start: int, _count: int) -> Any:
        """The parameters as the C++ struct; valid while the arrays exist."""
        return None


@dataclass(frozen=True, slots=True)
class NearSwap:
    """The step of :func:`merganser.methods.selection.nearswap`."""

    kernel: ClassVar[str] = "nearswap"
    extra: ClassVar[int] = 0
    share: ClassVar[float] = 1.0

    t: float

    class Struct(ctypes.Structure):
        """``NearSwapHow`` in ``source/elementwise.cpp``."""

        _fields_ = (("t", _F64),)

    def struct(self, k: int, _work: np.dtype[Any], _start: int, _count: int) -> Any:
        """The parameters as the C++ struct; valid while the arrays exist."""
        if k != 2:
            raise ValueError(f"nearswap takes arrays of 2 inputs, not {k}")
        return self.Struct(self.t)


@dataclass(frozen=True, slots=True)
class Ram:
    """The step of :func:`merganser.methods.selection.ram`; with factors for deltas of one model
    alone, [k-1] in the dtype of the computation, the step of ``ramplus_tl``."""

    kernel: ClassVar[str] = "ram"
    extra: ClassVar[int] = 0
    share: ClassVar[float] = 1.0

    epsilon: float
    factors: Array | None = None

    class Struct(ctypes.Structure):
        """``RamHow`` in ``source/elementwise.cpp``."""

        _fields_ = (("epsilon", _F64), ("factors", _PTR))

    def struct(self, k: int, work: np.dtype[Any], _start: int, _count: int) -> Any:
        """The parameters as the C++ struct; valid while the arrays exist."""
        factors = None if self.factors is None else checked(self.factors, work, k - 1)
        return self.Struct(self.epsilon, factors)


@dataclass(frozen=True, slots=True)
class Fusion:
    """The step of :func:`merganser.methods.selection.arcee_fusion`.

    Attributes:
        divergences: float64, divergences of the tensor's rows.
        length: elements per row.
        bound: smallest importance that is kept.
    """

    kernel: ClassVar[str] = "fusion"
    extra: ClassVar[int] = 0
    share: ClassVar[float] = 1.0

    divergences: Array
    length: int
    bound: float

    class Struct(ctypes.Structure):
        """``FusionHow`` in ``source/fusion.cpp``."""

        _fields_ = (("divergences", _PTR), ("length", _I64), ("bound", _F64))

    def struct(self, k: int, _work: np.dtype[Any], start: int, count: int) -> Any:
        """The parameters as the C++ struct; valid while the arrays exist."""
        if k != 2 or self.length < 1:
            raise ValueError(f"fusion takes arrays of 2 inputs, not {k}, and rows of a length")
        rows = -(-(start + count) // self.length)
        return self.Struct(checked(self.divergences, np.float64, rows), self.length, self.bound)


How = Linear | Sparse | Given | NearSwap | Ram | Fusion


class Output(NamedTuple):
    """One output of a tile.

    Attributes:
        data: uint8 [bytes], output.
        how: the computation.
        seed: for stochastic rounding.
        sums: incremented; None for no report.
        digests: uint64 by cells of the output's bytes, filled as by
            :func:`merganser.kernels.storage.digest`; None for none.
    """

    data: Array
    how: How
    seed: int = 0
    sums: Sums | None = None
    digests: Array | None = None
