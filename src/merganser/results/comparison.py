"""The result of comparing two models of a study."""

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
        direction: ``max`` if higher scores are better, else ``min``.
        model, reference: names of entries.
        mean, reference_mean: the scores of both, on the compared problems.
        difference: model minus reference.
        error: standard error of the difference.
        low, high: 95 % interval; for a selected model, simultaneous over all models of its family.
        p: p-value of this test alone; None for a selected model. If all sign flips are enumerated, this
            is the mid-p-value, whose false-positive rate is nearer to 5 % than the exact p-value's.
        p_exact: the exact p-value, whose false-positive rate never exceeds 5 %; None if it is not known.
        p_max_t: adjusted for all models of the family by max-T; None if problems are not paired.
        p_holm: adjusted for all tests of the family, and all tasks of the scorer, by Holm.
        family: number of tests that the adjusted values and the verdict account for.
        detectable: the smallest true difference that the verdict's test detects with a power of 80 %.
        problems: number of problems; 0 if they are not paired.
        wins, losses: numbers of problems on which the model is better, or worse.
        test: the test that gives p.
        selected: whether the model was selected on these same problems, so that only results that are
            simultaneous over all models of the family are valid.
        held_out: whether the problems are the held-out ones, on which no model was selected.
        span: the largest possible difference of two models: 1 for scores from 0 to 1; None if unlimited.
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
    span: float | None = None

    @property
    def p_verdict(self) -> float:
        """The p-value that decides: max-T if several models are tested, else Holm's, else the
        single test's."""
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
        """Return the verdict as text; if not significant, with the smallest detectable difference."""
        if self.verdict != "not significant":
            return self.verdict
        if not self.error and not self.difference:
            return "not significant (the same on every problem)"
        if not self.error or (self.span is not None and self.detectable >= self.span):
            return "not significant (too few problems to see any difference)"
        return f"not significant (would see {self.detectable:.{places}f})"


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The result of :func:`merganser.compare`.

    Attributes:
        study: the study's name.
        rows: the comparisons, score by score, reference by reference.
        left_out: by task, the number of problems that some models lack, which are not compared.
        draws: number of random sign flips, used if there are too many to enumerate.
    """

    study: str
    rows: tuple[Comparison, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    draws: int = DRAWS

    def __repr__(self) -> str:
        verdicts = [row.verdict for row in self.rows]
        return (
            f"Comparisons({self.study!r}, {len(verdicts)} differences: {verdicts.count('better')} better, "
            f"{verdicts.count('worse')} worse, {verdicts.count('not significant')} not significant)"
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
        """The comparisons as plain data, for JSON."""
        rows = [
            asdict(row) | {"p_verdict": row.p_verdict, "verdict": row.verdict} for row in self.rows
        ]
        return {"study": self.study, "level": LEVEL, "draws": self.draws} | {
            "left_out": dict(self.left_out),
            "comparisons": rows,
        }
