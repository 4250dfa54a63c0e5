"""One plan's job for a tensor, with the measurements made during the run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from merganser.kernels import CELL, CODES, LANES
from merganser.kernels import rules as rule
from merganser.kernels.arguments import Array, Inputs
from merganser.kernels.steps import Sums
from merganser.methods import Combination, Method, MostVaried, SparseDeltas
from merganser.planning import TensorJob
from merganser.tensors import FLOAT64, DType


class Scratch:
    """A thread's buffers. Arrays grow as needed and are reused."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Array] = {}

    def __call__(self, name: str, dtype: Any, rows: int, width: int) -> Array:
        """An uninitialised array [rows, width]; the next one of that name and dtype overwrites it."""
        dtype = np.dtype(dtype)
        padded = -(-width // 64) * 64 if rows > 1 else width  # rows begin at cache lines
        key = name, dtype.char
        buffer = self._kept.get(key)
        if buffer is None or len(buffer) < rows * padded:
            buffer = self._kept[key] = np.zeros(rows * padded, dtype)
        return buffer[: rows * padded].reshape(rows, padded)


@dataclass(slots=True)
class Facts:
    """Which deltas of a tensor are kept, with which factors; see
    :class:`merganser.kernels.steps.Sparse`."""

    rules: rule.Rules
    factors: Array
    weights: Array
    total_weight: Any

    @classmethod
    def of(cls, part: RunningPlan, size: int) -> Facts:
        """Facts that keep all deltas, with weights of one."""
        models = len(part.rows) - 1
        kinds = models + isinstance(part.consensus.keep, MostVaried)
        ties = (kinds, 2, -(-size // CELL))
        rules = rule.Rules(
            np.full(kinds, rule.ALL),
            np.tile(np.array([rule.ABSENT, 0], np.uint32), (kinds, 1)),
            np.zeros(ties, np.int64),
            np.zeros(ties, np.int64),
            np.zeros(models, np.uint64),
            np.zeros(models, np.uint64),
            np.zeros((models, 0), np.uint8),
        )
        ones = np.ones(models, part.wide)
        return cls(rules, ones, ones, part.wide.type(1))

    def make_room(self, size: int) -> None:
        """Allocate empty masks: one bit per element, plus padding."""
        shape = len(self.rules.chances), -(-size // 8) + LANES
        self.rules = self.rules._replace(masks=np.zeros(shape, np.uint8))


@dataclass(slots=True, eq=False)
class RunningPlan:
    """One plan's job in a group.

    Attributes:
        plan: index of the plan.
        plan_seed: the recipe's seed.
        job: the job.
        method: its method.
        rows: indices of its inputs in the group's rows.
        dtypes: the inputs' stored dtypes.
        seed: for stochastic rounding.
        rounding: 1 for stochastic rounding, 0 for rounding to nearest.
        combination: the coefficients, once they are known.
        each: coefficients per row or column [k, vectors]; ``each_rows`` states which.
        facts: which deltas are kept, for sparse methods, once known.
        counted: the result of the method's ``measure``; for arcee_fusion its step.
        digests: uint64, by cells of the output's bytes; None if not wanted.
        sums: for the report; None if not wanted.
        nonfinite: (input, count) pairs, one for each tile with infinite or NaN values; input -1 is
            the output.
    """

    plan: int
    plan_seed: int
    job: TensorJob
    method: Method
    rows: tuple[int, ...]
    dtypes: tuple[DType, ...]
    seed: int
    rounding: int
    combination: Combination | None
    each: Array | None = None
    each_rows: bool = False
    _facts: Facts | None = None
    counted: Any = None
    digests: Array | None = None
    sums: Sums | None = None
    nonfinite: list[tuple[int, int]] = field(default_factory=list)

    @property
    def copies(self) -> bool:
        """Whether the tensor is a bitwise copy."""
        return self.job.method == "copy"

    @property
    def fused(self) -> bool:
        """Whether the fused kernel for linear combinations computes it from stored inputs."""
        return (
            not self.copies
            and self.combination is not None
            and self.each is None
            and self.job.cast is None
        )

    def may_be_nonfinite(self, cells: slice) -> bool:
        """Whether some cells may have infinities or NaNs: not if the report's sums are finite."""
        if self.sums is None:
            return True
        sums = self.sums
        gram = 0.0 if sums.gram is None else sums.gram[cells].sum()
        return not np.isfinite(gram + sums.cross[cells].sum() + sums.noise[cells].sum())

    @property
    def whole(self) -> bool:
        """Whether its method takes whole tensors."""
        return not self.copies and self.method.whole

    @property
    def wide(self) -> np.dtype[Any]:
        """The dtype of results before rounding: numpy's float32 or float64."""
        return np.dtype(np.float64 if self.job.work.name == "float64" else np.float32)

    @property
    def based(self) -> bool:
        """Whether the first input is the base."""
        return self.job.based

    @property
    def consensus(self) -> SparseDeltas:
        """The method's rule for sparse deltas; only for methods of that form."""
        assert self.job.consensus is not None
        return self.job.consensus

    @property
    def facts(self) -> Facts:
        """See the attributes."""
        assert self._facts is not None
        return self._facts

    @facts.setter
    def facts(self, facts: Facts) -> None:
        self._facts = facts

    def seed_of_draws(self, model: int) -> int:
        """The seed for the draws that select a model's deltas."""
        return seed_of(self.plan_seed, f"{self.job.name}/{model}/keep")

    def stored(self, inputs: Inputs) -> Inputs:
        """Inputs for the kernels: the stored ones or, for a job with a cast, the rounded numbers as
        float64."""
        if self.job.cast is None:
            return inputs
        from merganser.engine.torch_numbers import widen

        rows = [
            widen(row, dtype, self.job.cast, FLOAT64).numpy()
            for row, dtype in zip(inputs.rows, self.dtypes, strict=True)
        ]
        return Inputs.of((row.view(np.uint8) for row in rows), [CODES["float64"]] * len(rows))


def seed_of(seed: int, use: str) -> int:
    """A 64-bit seed for one use of a recipe's seed."""
    digest = hashlib.blake2b(f"{seed}/{use}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
