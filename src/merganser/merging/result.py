"""The result of a merge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser import engine, notebook, number_format
from merganser.planning import Plan


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The result of a merge.

    Attributes:
        folder: the output folder; None if the merge was computed without writing it.
        plan: the plan.
        outcome: the engine's outcome: digests of the tensors, and effective weights.
        manifest: the content of ``manifest.json``.
        warnings: warnings for the user, with the recipe's full path.
        timings: seconds by phase: plan_s, engine_s, finish_s, total_s.
    """

    folder: Path | None
    plan: Plan
    outcome: engine.Outcome
    manifest: dict[str, Any]
    warnings: tuple[str, ...]
    timings: dict[str, float]

    def __repr__(self) -> str:
        where = f"{str(self.folder)!r}, " if self.folder else ""
        count = f", {len(self.warnings)} warnings" if self.warnings else ""
        return f"MergeResult({where}{self.plan.summary}, {self.timings.get('total_s', 0.0):.1f} s{count})"

    def _repr_html_(self) -> str:
        facts = {
            "folder": self.folder,
            "method": self.plan.method.name,
            "parameters": f"{self.plan.parameters:,}",
            "dtype": self.plan.dtype.name,
            "size": number_format.size(self.plan.output_bytes),
            "seconds": self.timings.get("total_s"),
        }
        report = self.outcome.report
        weights = report._repr_html_() if report else ""
        return notebook.facts(facts) + weights + notebook.notes(self.warnings)


def all_warnings(plan: Plan, facts: dict[str, Any]) -> tuple[str, ...]:
    """Return the warnings of the plan and of the merge, and one if there are no compiled kernels."""
    from merganser.kernels import library  # plans need no kernels

    slow = library.warning()
    later = facts["warnings"][len(plan.warnings) :]
    return (*plan.warnings, *later, *((slow,) if slow else ()))


def timings_of(began: float, planned: float, merged: float, done: float) -> dict[str, float]:
    """Return seconds by phase, from the phases' start times."""
    phases = {
        "plan_s": planned - began,
        "engine_s": merged - planned,
        "finish_s": done - merged,
        "total_s": done - began,
    }
    return {name: round(seconds, 3) for name, seconds in phases.items()}
