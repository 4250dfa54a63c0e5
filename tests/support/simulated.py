"""Studies whose samples are drawn, in folders as evaluations leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from merganser.evaluation import samples
from merganser.evaluation.samples import Sample
from merganser.evaluation.statistics import summarize
from merganser.results import scores
from merganser.results.scores import Entry, Results


def write(
    folder: Path,
    entries: Sequence[Entry],
    verdicts: Mapping[str, Mapping[str, np.ndarray]],
    *,
    tasks: Sequence[str] = ("sums",),
    completion: str = "said",
    chosen: Mapping[str, str] | None = None,
    directions: Mapping[str, scores.Direction] | None = None,
) -> Results:
    """A study of one scorer, ``exact``, and the number of tokens.

    Args:
        folder: where it goes; made.
        entries: names and roles.
        verdicts: of each task and model, [problems, samples].
        tasks: their names.
        completion: what every sample says.
        chosen: of the results.
        directions: of the results; by default of ``exact``. Of others the entries have its score.
    """
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    prefix = {task: f"{task}/" if len(tasks) > 1 else "" for task in tasks}
    found = []
    for entry in entries:
        said, own = [], {}
        for task in tasks:
            if entry.name not in verdicts[task]:
                continue
            values = verdicts[task][entry.name]
            summary = summarize(values.mean(axis=1).tolist())
            own |= {name: summary for name in directions or [f"{prefix[task]}exact"]}
            said += [
                Sample(
                    task, f"p{q}", j, "ask", completion, 9, "stop", {"exact": float(x)}, "1", "k"
                )
                for q, row in enumerate(values)
                for j, x in enumerate(row)
            ]
        if said:
            samples.write(said, folder / "samples" / f"{entry.name}.jsonl")
            entry = replace(entry, scores=own, samples=f"samples/{entry.name}.jsonl")
        found.append(entry)
    names = directions or {f"{prefix[task]}exact": "max" for task in tasks}
    results = Results("drawn", "", names, {}, tuple(found), dict(chosen or {}))
    scores.write(results, folder)
    return results


def verdicts(
    seed: int, problems: int, samples: int, chances: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Verdicts of 0 and 1 of models with these mean chances, on problems of all difficulties."""
    random = np.random.default_rng(seed)
    hard = random.normal(0, 1.5, problems)
    found = {}
    for name, chance in chances.items():
        p = 1 / (
            1 + np.exp(-(np.log(chance / (1 - chance)) + hard + random.normal(0, 0.8, problems)))
        )
        found[name] = (random.random((problems, samples)) < p[:, None]).astype(float)
    return found
