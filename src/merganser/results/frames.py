"""A data frame of every sample of a study; for one of its models, see ``Results.to_pandas``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser import extras
from merganser.evaluation import samples as kept_samples
from merganser.results import problem_scores, scores

if TYPE_CHECKING:
    import pandas as pd


def samples(folder: str | Path) -> pd.DataFrame:
    """Return one row per sample of a study: the model and its values, the completion, and each score.

    Raises:
        MerganserError: pandas is not installed.
        InputError: there are no results, or their samples are broken.
    """
    pandas = extras.load("pandas", "frames")
    home = Path(folder)
    study = scores.read(home)
    rows: list[dict[str, Any]] = []
    for entry in study.entries:
        file = problem_scores.sample_file(study, home, entry.name)
        for sample in kept_samples.read(file) if file is not None else ():
            prompt = sample.prompt
            rows.append(
                {
                    "model": entry.name,
                    "role": entry.role,
                    **{key: value for key, value in entry.values.items() if _is_plain(value)},
                    "task": sample.task,
                    "problem": sample.problem,
                    "sample": sample.sample,
                    "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt),
                    "completion": sample.completion,
                    "answer": sample.answer,
                    "tokens": sample.tokens,
                    "finish": sample.finish,
                    **{f"score_{name}": value for name, value in sample.scores.items()},
                }
            )
    frame: pd.DataFrame = pandas.DataFrame(rows)
    return frame


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)
