"""Significance tests of differences between a study's models, paired over problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np

from merganser import suggestions
from merganser.errors import RecipeError
from merganser.evaluation import significance
from merganser.evaluation.significance import DRAWS, Difference
from merganser.recipe.short_names import matching
from merganser.results import problem_scores, scores
from merganser.results.comparison import Comparison, Comparisons
from merganser.results.interpolation import labels
from merganser.results.problem_scores import ScoreTable
from merganser.results.scores import Direction, Entry, Results

Pair = tuple[str, str]
"""A model, and the reference that it is compared with."""

TOGETHER = "mean of tasks"
"""Replaces the task in the name of a score over several tasks."""


def compare(
    study: str | Path,
    *models: str,
    against: Sequence[str] = (),
    scores: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparisons:
    """Test models of a study against references, on the problems that both have.

    Differences are paired over problems; all samples of a problem count as one. P-values are from sign
    flips of problems (McNemar's test for one sample per problem scored 0 or 1), adjusted by max-T for all
    models that are compared with one reference. A model that was selected on the problems, or is the best
    on them, is judged only by the value adjusted for all merges; if the study has held-out problems, it
    is tested on those.

    Args:
        study: the folder of a study.
        models: names, or short names as in tables. With ``against``, each is compared with every reference;
            otherwise the first is compared with each of the others. By default all merges are compared.
        against: the references; by default all models of the study that are not merges.
        scores: the scores to test; by default all, and the means over tasks of scorers of several tasks.
        weights: the tasks' weights in that mean; equal by default.
        draws: number of random sign flips, used if there are too many to enumerate.
        seed: seed of the draws.

    Returns:
        One row per score, model and reference: difference, 95 % interval, p-values and verdict.

    Raises:
        InputError: when there are no results, or their samples cannot be read.
        RecipeError: when a model or score does not exist, or there is nothing to compare.
    """
    folder = Path(study)
    seen = _read(folder, scores, weights)
    wanted = _pairs(seen.results, models, against)
    later = folder / _HELD_OUT
    unseen = _read(later, scores, weights) if (later / _JSON).is_file() else None
    families = []
    for score in seen.scores(scores):
        scorer = score if score in seen.groups else score.rpartition("/")[2]
        for number, pairs in enumerate(wanted):
            tested = unseen if unseen and score in unseen.scores(()) else None
            rows = _compare(seen, tested, score, pairs, bool(models), draws, seed)
            families.append((scorer, number, rows))
    left_out = {t.task: t.left_out for t in seen.tables.values() if t.left_out}
    return Comparisons(seen.results.name, tuple(_finished(families)), left_out, draws)


def leaders(study: str | Path, *, draws: int = DRAWS, seed: int = 0) -> dict[str, frozenset[str]]:
    """Return, for each score, the best model and all models that are not significantly worse, by max-T
    over all models, at 5 %.

    Raises:
        InputError: there are no results, or their samples are broken.
    """
    seen = _read(Path(study), (), None)
    result: dict[str, frozenset[str]] = {}
    for score in seen.results.directions:
        having = [e.name for e in seen.results.entries if seen.has(score, e.name)]
        if not having:
            continue
        sign = 1 if seen.direction(score) == "max" else -1
        values = {name: sign * seen.mean(score, name) for name in having}
        best = max(values, key=values.__getitem__)
        pairs = [(name, best) for name in having if name != best]
        try:
            rows = _family(seen, score, pairs, set(), draws, seed) if pairs else []
        except RecipeError:  # there is only one problem
            rows = []
        close = [row.model for row in rows if row.verdict == "not significant"]
        result[score] = frozenset([best, *close])
    return result


def additions(study: str | Path, *, draws: int = DRAWS, seed: int = 0) -> tuple[Comparison, ...]:
    """Return tests of the models that a greedy search tried to add: each soup against that without the model.

    The search selected among them by these problems, so intervals and p-values are simultaneous over all.

    Args:
        study: the folder of a search.
        draws: number of random sign flips, used if there are too many to enumerate.
        seed: seed of the draws.

    Returns:
        One comparison per addition in the results; empty for other studies, and if there is only one problem.

    Raises:
        InputError: there are no results, or their samples are broken.
    """
    seen = _read(Path(study), (), None)
    tried = seen.results.additions
    if not tried:
        return ()
    objectives = seen.results.settings["search"]["objectives"]
    [score] = [objectives] if isinstance(objectives, str) else objectives
    pairs = [(each.name, each.soup) for each in tried]
    chosen = {name for pair in pairs for name in pair}
    try:
        return tuple(_finished([(score, 0, _family(seen, score, pairs, chosen, draws, seed))]))
    except RecipeError:  # there is only one problem
        return ()


_HELD_OUT, _JSON = scores.HELD_OUT, scores.JSON_NAME


# -- the compared models and scores --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Study:
    """The results of a study with the scores of each problem."""

    results: Results
    tables: Mapping[str, ScoreTable]
    groups: Mapping[str, tuple[tuple[str, float], ...]]
    """By the name of a score over several tasks: the scores of the tasks, with weights."""

    def scores(self, asked: Sequence[str]) -> list[str]:
        """Return the names of the scores to compare.

        Raises:
            RecipeError: a requested score does not exist.
        """
        known = [*self.results.directions, *self.groups]
        for name in asked:
            if name not in known:
                raise RecipeError(f"there is no score {name!r}; {suggestions.suggest(name, known)}")
        return list(asked) or known

    def parts(self, score: str) -> tuple[tuple[str, float], ...]:
        """Return the single tasks' scores that a score averages, with their weights."""
        return self.groups.get(score, ((score, 1.0),))

    def direction(self, score: str) -> Direction:
        """Return ``max`` if more of a score is better, else ``min``."""
        return self.results.directions[self.parts(score)[0][0]]

    def entry(self, name: str) -> Entry:
        """Return the entry with a name."""
        return next(entry for entry in self.results.entries if entry.name == name)

    def has(self, score: str, name: str) -> bool:
        """Whether a model has a score."""
        names = {entry.name for entry in self.results.entries}
        return name in names and all(
            part in self.entry(name).scores for part, _ in self.parts(score)
        )

    def is_paired(self, score: str, name: str) -> bool:
        """Whether a model's scores of each problem are known."""
        return all(
            part in self.tables and name in self.tables[part].models
            for part, _ in self.parts(score)
        )

    def mean(self, score: str, name: str) -> float:
        """Return the mean of a model's score."""
        parts = self.parts(score)
        total = sum(weight for _, weight in parts)
        if self.is_paired(score, name):
            means = [(float(self.tables[p].row(name).mean()), w) for p, w in parts]
        else:
            means = [(self.entry(name).scores[p].mean, w) for p, w in parts]
        return sum(mean * weight for mean, weight in means) / total


def _read(folder: Path, asked: Sequence[str], weights: Mapping[str, float] | None) -> _Study:
    results = scores.read(folder)
    tables = problem_scores.load(results, folder)
    shared: dict[str, list[ScoreTable]] = {}
    for table in tables.values():
        shared.setdefault(table.scorer, []).append(table)
    tasks = list(dict.fromkeys(table.task for table in tables.values()))
    for name, weight in (weights or {}).items():
        if name not in tasks:
            raise RecipeError(f"weights: no task {name!r}; {suggestions.suggest(name, tasks)}")
        if not weight >= 0:
            raise RecipeError(f"weights: {name}: {weight:g} is negative")
    groups = {}
    for scorer, members in shared.items():
        parts = [(t.score, (weights or {}).get(t.task, 0.0 if weights else 1.0)) for t in members]
        parts = [(score, weight) for score, weight in parts if weight > 0]
        if len(parts) > 1 and len({t.direction for t in members}) == 1:
            groups[f"{TOGETHER}/{scorer}"] = tuple(parts)
    return _Study(results, tables, groups)


def find(results: Results, name: str) -> str:
    """Return the full name of an entry, given that or its short name in tables.

    Raises:
        RecipeError: no entry matches, or several do.
    """
    names = [entry.name for entry in results.entries]
    if name in names:
        return name
    short = labels(results)
    chosen = [candidate for candidate in names if short[candidate] == name] or matching(names, name)
    if not chosen:
        raise RecipeError(
            f"{results.name} has no model {name!r}; {suggestions.suggest(name, [short[n] for n in names])}"
        )
    if len(chosen) > 1:
        raise RecipeError(f"{name!r} may be {' or '.join(chosen[:3])}; give more of the name")
    return chosen[0]


def _pairs(results: Results, models: Sequence[str], against: Sequence[str]) -> list[list[Pair]]:
    """Return the families of comparisons: one per reference, or one of a model with several references."""
    named = [find(results, name) for name in models]
    references = [find(results, name) for name in against]
    others = [entry.name for entry in results.entries if entry.role != "point"]
    if references or not named:
        named = named or [point.name for point in results.points]
        references = references or others
        pairs = [[(n, r) for n in named if n != r] for r in dict.fromkeys(references)]
    else:
        first, *rest = named
        pairs = [[(first, other) for other in dict.fromkeys(rest or others) if other != first]]
    pairs = [group for group in pairs if group]
    if not pairs:
        raise RecipeError(f"{results.name}: there are no two models to compare; name some")
    return pairs


# -- the comparisons -----------------------------------------------------------------------------


def _compare(
    seen: _Study,
    unseen: _Study | None,
    score: str,
    pairs: Sequence[Pair],
    named: bool,
    draws: int,
    seed: int,
) -> list[Comparison]:
    """Return one family's comparisons in one score; of selected models on held-out problems, if any."""
    pairs = [pair for pair in pairs if all(seen.has(score, name) for name in pair)]
    if not pairs:
        return []
    chosen = _selected(seen, score)
    again = [
        pair
        for pair in pairs
        if unseen and chosen & set(pair) and all(unseen.has(score, name) for name in pair)
    ]
    first = [pair for pair in pairs if pair not in again] if named else list(pairs)
    rows: list[Comparison] = []
    points = [point.name for point in seen.results.points if seen.has(score, point.name)]
    free = [pair for pair in first if not chosen & set(pair)]
    if len(free) == len(first) or set(points) <= {model for model, _ in first}:
        rows += _family(seen, score, first, chosen, draws, seed)
    else:
        rows += _family(seen, score, free, chosen, draws, seed) if free else []
        for pair in first:
            if pair not in free:
                models, references = ([n] if n not in chosen else points for n in pair)
                wide = [(m, r) for m in models for r in references if m != r]
                family = _family(seen, score, wide, chosen, draws, seed)
                rows += [row for row in family if (row.model, row.reference) == pair]
    if again and unseen:
        family = _family(unseen, score, again, set(), draws, seed)
        rows += [replace(row, held_out=True) for row in family]
    return rows


def _selected(seen: _Study, score: str) -> set[str]:
    """Return the merges that were selected on these problems: by the study's rule, or as the best."""
    having = [point.name for point in seen.results.points if seen.has(score, point.name)]
    if len(having) < 2:
        return set()
    sign = 1 if seen.direction(score) == "max" else -1
    best = max(having, key=lambda name: sign * seen.mean(score, name))
    return {best, *(name for name in having if name in seen.results.chosen)}


def _family(
    study: _Study, score: str, pairs: Sequence[Pair], chosen: set[str], draws: int, seed: int
) -> list[Comparison]:
    """Return the comparisons of one family, adjusted for each other."""
    paired = [pair for pair in pairs if all(study.is_paired(score, name) for name in pair)]
    rows = _paired(study, score, paired, chosen, draws, seed) if paired else []
    rows += [_unpaired(study, score, *pair, chosen) for pair in pairs if pair not in set(paired)]
    adjusted = significance.holm([row.p or 0.0 for row in rows])
    order = {pair: place for place, pair in enumerate(pairs)}
    rows = [replace(row, p_holm=p, family=len(rows)) for row, p in zip(rows, adjusted, strict=True)]
    return sorted(rows, key=lambda row: order[row.model, row.reference])


def _paired(
    study: _Study, score: str, pairs: Sequence[Pair], chosen: set[str], draws: int, seed: int
) -> list[Comparison]:
    """Return comparisons of models whose scores of each problem are known."""
    weighted = study.parts(score)
    tables = [study.tables[part] for part, _ in weighted]
    weights = [weight for _, weight in weighted]
    parts = [
        np.stack([table.row(model) - table.row(reference) for model, reference in pairs])
        for table in tables
    ]
    rates = all(table.is_rate for table in tables)
    problems = sum(len(table.problems) for table in tables)
    if min(len(table.problems) for table in tables) < 2:
        raise RecipeError(f"{score}: one problem allows no comparison; two or more are needed")
    estimates = significance.differences(parts, weights, rates=rates)
    tested = significance.family(parts, weights, draws=draws, seed=seed)
    sign = 1 if study.direction(score) == "max" else -1
    rows = []
    for n, (model, reference) in enumerate(pairs):
        task_differences = [part[n] for part in parts]
        p, exact, test = _single(tables, task_differences, tested.single[n], tested.exact, draws)
        selected = bool(chosen & {model, reference})
        several = len(pairs) > 1
        low, high = estimates[n].interval(tested.critical if selected and several else None)
        rows.append(
            Comparison(
                score=score,
                direction=study.direction(score),
                model=model,
                reference=reference,
                mean=study.mean(score, model),
                reference_mean=study.mean(score, reference),
                difference=estimates[n].mean,
                error=estimates[n].error,
                low=low,
                high=high,
                p=p,
                p_max_t=max(tested.adjusted[n], p) if several else p,
                p_holm=p,
                family=len(pairs),
                detectable=estimates[n].detectable(tested.critical if several else None),
                problems=problems,
                wins=sum(int((sign * d > 1e-12).sum()) for d in task_differences),
                losses=sum(int((sign * d < -1e-12).sum()) for d in task_differences),
                test=test,
                selected=selected,
                p_exact=None if selected and several else exact,
                span=1.0 if rates else None,
            )
        )
    return rows


def _single(
    tables: Sequence[ScoreTable],
    task_differences: Sequence[Any],
    drawn: float,
    listed: bool,
    draws: int,
) -> tuple[float, float | None, str]:
    """Return a test's unadjusted p-value, its exact p-value, and its name."""
    if len(tables) == 1 and tables[0].grain:
        middle = significance.mid_p(task_differences[0], tables[0].grain)
        if middle is not None:
            single = tables[0].is_rate and bool((tables[0].counts == 1).all())
            exact = significance.exact_p(task_differences[0], tables[0].grain)
            return middle, exact, "McNemar, mid-p" if single else "all sign flips, mid-p"
    if listed:
        return drawn, drawn, "all sign flips"
    return drawn, None, f"{draws:,} sign flips"


def _unpaired(
    study: _Study, score: str, model: str, reference: str, chosen: set[str]
) -> Comparison:
    """Return a comparison of two scores that have only means and standard errors."""
    parts = study.parts(score)
    total = sum(weight for _, weight in parts)
    errors = [
        study.entry(name).scores[part].error * weight / total
        for part, weight in parts
        for name in (model, reference)
    ]
    means = [study.mean(score, name) for name in (model, reference)]
    estimate = Difference(means[0] - means[1], hypot(*errors), 1e9)
    z = abs(estimate.mean) / estimate.error if estimate.error else 0.0
    p = significance.normal_tail(z)
    low, high = estimate.interval()
    return Comparison(
        score=score,
        direction=study.direction(score),
        model=model,
        reference=reference,
        mean=means[0],
        reference_mean=means[1],
        difference=estimate.mean,
        error=estimate.error,
        low=low,
        high=high,
        p=p,
        p_max_t=None,
        p_holm=p,
        family=1,
        detectable=estimate.detectable(),
        problems=0,
        wins=0,
        losses=0,
        test="normal, not paired",
        selected=bool(chosen & {model, reference}),
    )


def _finished(families: Sequence[tuple[str, int, Sequence[Comparison]]]) -> list[Comparison]:
    """Return comparisons with Holm's p-values over all tasks of a scorer; selected models get no
    unadjusted p-value."""
    groups: dict[tuple[str, int, bool, int], list[Comparison]] = {}
    for scorer, number, rows in families:
        for row in rows:
            groups.setdefault((scorer, number, row.held_out, row.family), []).append(row)
    adjusted: dict[int, float] = {}
    for group in groups.values():
        tasks = {row.score for row in group}
        if len(group) == len(tasks) * group[0].family:  # otherwise the tests include other models
            values = significance.holm([row.p or 0.0 for row in group])
            adjusted |= {id(row): p for row, p in zip(group, values, strict=True)}
    return [
        replace(
            row,
            p_holm=adjusted.get(id(row), row.p_holm),
            p=None if row.selected and row.family > 1 else row.p,
        )
        for _, _, rows in families
        for row in rows
    ]
