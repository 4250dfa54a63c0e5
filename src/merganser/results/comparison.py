"""What a comparison of two models of a study says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from merganser import notebook, number_format
from merganser.evaluation.significance import DRAWS, LEVEL
from merganser.results.scores import Direction

Verdict = Literal["better", "worse", "not significant"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model against one reference, in one score.

    Attributes:
        score: the score's name; ``mean of tasks/SCORER`` over several tasks.
        direction: whether more or less of it is better.
        model, reference: names of entries.
        mean, reference_mean: the score of both, on the problems that are compared.
        difference: model minus reference.
        error: standard error of the difference.
        low, high: 95 % interval; of a selected model the one that holds for all models of its family.
        p: of this test alone; None for a selected model. Where the distribution of all sign flips is known
            this is the mid-p-value, which gives 5 % false alarms where the exact one gives fewer.
        p_exact: the exact p-value, where it is known, which never gives more than 5 %.
        p_max_t: adjusted for all models of the family by max-T; None where problems are not paired.
        p_holm: adjusted for all tests of the family, and all tasks of the scorer, by Holm.
        family: how many tests the adjusted values and the verdict count.
        detectable: the smallest true difference that the verdict's test finds in 80 % of studies like this.
        problems: how many; 0 where problems are not paired.
        wins, losses: problems on which the model is better, or worse.
        test: how p was found.
        selected: whether the model was chosen by these very problems, so that only what holds for all
            models of the family counts.
        held_out: whether the problems are those that no model was chosen by.
    """

    score: str
    direction: Direction
    model: str
    reference: str
    mean: float
    reference_mean: float
    difference: float
    error: float
    low: float
    high: float
    p: float | None
    p_max_t: float | None
    p_holm: float
    family: int
    detectable: float
    problems: int
    wins: int
    losses: int
    test: str
    selected: bool = False
    held_out: bool = False
    p_exact: float | None = None

    @property
    def p_verdict(self) -> float:
        """The p-value that decides: max-T where several are tested, else Holm's, else its own."""
        if self.family > 1 or self.p is None:
            return self.p_holm if self.p_max_t is None else self.p_max_t
        return self.p

    @property
    def verdict(self) -> Verdict:
        """Whether the model is better or worse than the reference, at 5 %."""
        if self.p_verdict > LEVEL or not self.difference:
            return "not significant"
        return "better" if (self.difference > 0) == (self.direction == "max") else "worse"

    def verdict_text(self, places: int) -> str:
        """The verdict; if it is not significant, with the difference that would have been."""
        if self.verdict != "not significant":
            return self.verdict
        return f"not significant (would see {self.detectable:.{places}f})"


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What a call of :func:`merganser.compare` found.

    Attributes:
        study: the study's name.
        rows: the comparisons, score by score, reference by reference.
        left_out: by task, problems that not all models have, and that no comparison counts.
        draws: sign flips where they are too many to list.
    """

    study: str
    rows: tuple[Comparison, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    draws: int = DRAWS

    def __repr__(self) -> str:
        found = [row.verdict for row in self.rows]
        return (
            f"Comparisons({self.study!r}, {len(found)} differences: {found.count('better')} better, "
            f"{found.count('worse')} worse, {found.count('not significant')} not significant)"
        )

    def _repr_html_(self) -> str:
        head = ("score", "model", "reference", "difference", "95 %", "p", "verdict", "detectable")
        rows = [
            (
                row.score,
                row.model,
                row.reference,
                number_format.significant(row.difference),
                f"{number_format.significant(row.low)} … {number_format.significant(row.high)}",
                number_format.significant(row.p_verdict),
                row.verdict,
                number_format.significant(row.detectable),
            )
            for row in self.rows
        ]
        return notebook.table(head, rows, f"Comparisons of {self.study}")

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        rows = [
            asdict(row) | {"p_verdict": row.p_verdict, "verdict": row.verdict} for row in self.rows
        ]
        return {"study": self.study, "level": LEVEL, "draws": self.draws} | {
            "left_out": dict(self.left_out),
            "comparisons": rows,
        }
