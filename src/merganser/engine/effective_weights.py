"""The effective weights of a merge: the models' coefficients in the stored output.

Asked for 0.7 of one expert and 0.3 of another, a merge rounded to bfloat16 may have 0.84: where
the experts differ by less than two units in the last place, rounding to nearest selects one of
them. The effective weights are the least-squares coefficients of the stored output on the inputs:
with d_i = x_i - x_0 they solve ``G e = c``, where ``G_ij = <d_i, d_j>`` and ``c_i = <y - s x_0,
d_i>`` with ``s`` the sum of the requested coefficients; x_0's weight is ``s`` less the sum of ``e``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser import notebook, number_format
from merganser.planning import Plan
from merganser.tensors import TensorSpec

Matrix = np.ndarray[Any, np.dtype[np.float64]]

NOTABLE = 0.02
"""Difference between effective and requested weight that causes a warning."""

MOST_WORST = 5

MOST_MEASURED = 16
"""Maximum number of inputs whose inner products are measured. The cost grows with its square: for
75 steps of a run it is ten times that of the merge."""


@dataclass(frozen=True, slots=True)
class InnerProducts:
    """Inner products from which the effective weights of an output tensor with k inputs are computed;
    x_0 is the first input, d_i = x_i - x_0.

    Attributes:
        gram: [k-1, k-1] inner products of the d_i.
        ideal: [k-1] their inner products with the unrounded output's delta.
        cross: [k-1] their inner products with the stored output's delta.
        differ: [k-1] number of elements in which each input differs from the first.
        share: the sum of the requested coefficients.
        noise: squared distance of the stored output from the unrounded one.
    """

    gram: Matrix
    ideal: Matrix
    cross: Matrix
    differ: Matrix
    share: float
    noise: float


@dataclass(frozen=True, slots=True)
class TensorOutcome:
    """The engine's result for one output tensor.

    Attributes:
        name: of the output.
        spec: dtype and shape of the output.
        digest: of its bytes, or None.
        sources: the inputs as indices of the plan's sources.
        measurement: its inner products; None for copies, single inputs, and without a report.
        nonfinite: counts of infinite and NaN values of each input, then of the output; empty if
            there are none, or if the sink wants no digests.
        inputs: digests of the inputs, if requested; None for one whose files' hashes are known.
    """

    name: str
    spec: TensorSpec
    digest: str | None
    sources: tuple[int, ...]
    measurement: InnerProducts | None = None
    nonfinite: tuple[int, ...] = ()
    inputs: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelWeight:
    """The given, requested and effective weight of one input.

    Attributes:
        model: its reference in the recipe.
        given: the weight in the recipe, where it is one number for all tensors.
        requested: its coefficient in the exact result, over all tensors.
        effective: its coefficient in the stored output; None if the inputs are linearly dependent.
        differ: share of entries in which it differs from the first model; None for the first.
    """

    model: str
    given: float | None
    requested: float | None
    effective: float | None
    differ: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """Effective weights over all tensors of a merge.

    Attributes:
        models: weights over all tensors, in the plan's order.
        worst: tensors whose effective weights are farthest from the requested ones:
            (tensor, model, requested, effective).
        noise: root mean square of the rounding error, relative to that of the models' distance;
            None where the models do not differ.
        warnings: warnings for the user.
    """

    models: tuple[ModelWeight, ...]
    worst: tuple[tuple[str, str, float, float], ...]
    noise: float | None
    warnings: tuple[str, ...]

    def _repr_html_(self) -> str:
        columns = ("model", "asked", "exact", "stored", "differs")
        rows = [
            (
                m.model,
                *map(number_format.significant, (m.given, m.requested, m.effective, m.differ)),
            )
            for m in self.models
        ]
        return notebook.table(columns, rows, "Effective weights") + notebook.notes(self.warnings)

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON, numbers rounded to six digits."""
        return {
            "models": [
                {
                    "model": m.model,
                    "given": m.given,
                    "requested": _figure(m.requested),
                    "effective": _figure(m.effective),
                    "differ": _figure(m.differ),
                }
                for m in self.models
            ],
            "worst_tensors": [
                {"tensor": t, "model": m, "requested": _figure(r), "effective": _figure(e)}
                for t, m, r, e in self.worst
            ],
            "rounding_noise": _figure(self.noise),
            "warnings": list(self.warnings),
        }


def summarize(plan: Plan, tensors: Sequence[TensorOutcome]) -> Report | None:
    """The report of a merge; None if no tensor has two inputs.

    With more inputs than are measured it has only the requested weights.
    """
    measured = [(t, t.measurement) for t in tensors if t.measurement is not None]
    if not measured:
        return _requested(plan)
    sources = measured[0][0].sources
    same = [(t, m) for t, m in measured if t.sources == sources]
    elements = sum(t.spec.numel for t, _ in same)
    gram: Matrix = np.sum([m.gram for _, m in same], axis=0)
    ideal: Matrix = np.sum([m.ideal for _, m in same], axis=0)
    cross: Matrix = np.sum([m.cross for _, m in same], axis=0)
    share = math.fsum(m.share * t.spec.numel for t, m in same) / max(elements, 1)
    requested = _settled([m for _, m in same], gram, ideal)
    effective = _solve(gram, cross)
    differ = np.sum([m.differ for _, m in same], axis=0) / max(elements, 1)
    names = [plan.sources[source].reference.text for source in sources]
    given = _given(plan, sources)
    models = [
        ModelWeight(
            names[0], given.get(sources[0]), _rest(share, requested), _rest(share, effective), None
        )
    ]
    for i, name in enumerate(names[1:]):
        models.append(
            ModelWeight(
                name,
                given.get(sources[i + 1]),
                _entry(requested, i),
                _entry(effective, i),
                float(differ[i]),
            )
        )
    noise = sum(m.noise for _, m in same)
    distance = float(np.trace(gram)) / len(gram) if len(gram) else 0.0
    relative = math.sqrt(noise / distance) if distance > 0 else None
    report = Report(tuple(models), tuple(_worst(same, names)), relative, ())
    return Report(report.models, report.worst, relative, tuple(_warnings(plan, report)))


def why_unknown(models: Sequence[ModelWeight]) -> str | None:
    """Why a merge has no effective weights; None if it has them."""
    if not models:
        return "no tensor is merged from two models"
    if all(m.effective is not None for m in models):
        return None
    first, *others = models
    if all(m.differ is None for m in others):
        return f"those of more than {MOST_MEASURED} models are not measured"
    same = [m.model for m in others if m.differ == 0]
    if len(same) == len(others):
        return "the models are the same"
    if same:
        return f"{same[0]} is the same as {first.model}"
    return "the models' differences are linearly dependent, or not finite"


def _requested(plan: Plan) -> Report | None:
    """The weights of more models than are measured, from the coefficients over all tensors."""
    jobs = [
        (job, job.combination.shares)
        for job in plan.jobs
        if job.combination is not None and len(job.reads) > MOST_MEASURED
    ]
    if not jobs:
        return None
    sources = [read.source for read in jobs[0][0].reads]
    same = [(j, c) for j, c in jobs if [read.source for read in j.reads] == sources]
    sizes = np.array([job.spec.numel for job, _ in same], np.float64)
    overall = sizes @ np.array([c for _, c in same], np.float64) / max(float(sizes.sum()), 1.0)
    given = _given(plan, sources)
    models = [
        ModelWeight(
            plan.sources[source].reference.text, given.get(source), _weight(float(c)), None, None
        )
        for source, c in zip(sources, overall, strict=True)
    ]
    return Report(tuple(models), (), None, ())


def _settled(measured: Sequence[InnerProducts], gram: Matrix, ideal: Matrix) -> Matrix | None:
    """The requested weights: those of every tensor if they are equal, otherwise the fit over all."""
    known = [s for m in measured if (s := _solve(m.gram, m.ideal)) is not None]
    if known and np.ptp(np.array(known), axis=0).max() < 1e-9:
        return known[0]
    return _solve(gram, ideal)


def _solve(gram: Matrix, right: Matrix) -> Matrix | None:
    """Least-squares coefficients; None if the deltas are linearly dependent or not finite."""
    if len(gram) == 1:  # two models, the most frequent case: a division
        square, along = float(gram[0, 0]), float(right[0])
        return np.array([along / square]) if square > 0 and math.isfinite(square + along) else None
    if not len(gram) or not np.all(np.isfinite(gram)) or not np.all(np.isfinite(right)):
        return None
    scale = np.sqrt(np.diag(gram))
    if not np.all(scale > 0):
        return None
    normal = gram / np.outer(scale, scale)
    if np.linalg.cond(normal) > 1e8:
        return None
    solution: Matrix = np.linalg.solve(normal, right / scale) / scale
    return solution


def _rest(share: float, others: Matrix | None) -> float | None:
    return None if others is None else _weight(share - float(np.sum(others)))


def _entry(values: Matrix | None, index: int) -> float | None:
    return None if values is None else _weight(float(values[index]))


def _weight(value: float) -> float:
    """A weight without rounding errors of its computation: 0 instead of 1e-17."""
    return round(value, 12) + 0.0


def _given(plan: Plan, sources: Sequence[int]) -> dict[int, float]:
    """The recipe's weights, for inputs with the same number in all tensors."""
    seen: dict[int, set[float]] = {}
    for job in plan.jobs:
        weights = job.numbers.get("weight")
        if weights is None:
            continue
        models = job.reads[len(job.reads) - len(weights) :]
        for read, weight in zip(models, weights, strict=True):
            seen.setdefault(read.source, set()).add(weight)
    return {source: next(iter(weights)) for source, weights in seen.items() if len(weights) == 1}


def _worst(
    measured: Sequence[tuple[TensorOutcome, InnerProducts]], names: Sequence[str]
) -> list[tuple[str, str, float, float]]:
    """See :class:`Report`."""
    rows = []
    for t, m in measured:
        requested, effective = _solve(m.gram, m.ideal), _solve(m.gram, m.cross)
        if requested is None or effective is None:
            continue
        i = int(np.argmax(np.abs(effective - requested)))
        rows.append((t.name, names[i + 1], float(requested[i]), float(effective[i])))
    rows.sort(key=lambda entry: (-abs(entry[3] - entry[2]), entry[0]))
    return [entry for entry in rows[:MOST_WORST] if abs(entry[3] - entry[2]) > 1e-4]


def _warnings(plan: Plan, report: Report) -> list[str]:
    moved = [
        m
        for m in report.models
        if m.requested is not None
        and m.effective is not None
        and abs(m.effective - m.requested) > NOTABLE
    ]
    if not moved:
        return []
    parts = ", ".join(
        f"{_short(m.model)} from {m.requested:.2f} to {m.effective:.2f}" for m in moved
    )
    remedy = "out_dtype: float32" + (
        " or rounding: stochastic" if plan.rounding == "nearest" else ""
    )
    return [
        f"rounding to {plan.dtype} moved the effective weight of {parts}; {remedy} keeps what was asked for"
    ]


def _short(model: str) -> str:
    from merganser.recipe import parse_reference

    return parse_reference(model).name


def _figure(value: float | None) -> float | None:
    """A number rounded to six significant digits; None if it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
