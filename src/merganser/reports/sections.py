"""Sections of the report for some studies only: searches, merges of three models, training steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from merganser import extras
from merganser.results.scores import Results
from merganser.results.simplex import triangles

Picture = Callable[..., Any]
"""Adds a figure to the page: file name, figure, title, caption."""

_DOTS = "Bars are 95 % intervals. Hollow: breaks a constraint. Ringed: chosen."


def history(results: Results, picture: Picture) -> list[Any]:
    """Return the figures of a search; empty for other studies."""
    figures = extras.load("merganser.reports.search_figures", "plot")
    many = extras.load("merganser.reports.many_scores", "plot")
    scores = figures.objectives(results)
    if not scores or not results.points:
        return []
    both = " and ".join(scores)
    pictures = [
        picture(
            "history",
            figures.progress(results, scores),
            "The search",
            f"Each candidate’s {both}, and the best so far. {_DOTS}",
        )
    ]
    if (figure := figures.parameters(results, scores)) is not None:
        caption = f"Each parameter against {both}. {_DOTS}"
        pictures.append(picture("parameters", figure, "Parameters against scores", caption))
    if (figure := figures.importance(results, scores)) is not None:
        caption = (
            f"How much of {both} each parameter explains by itself, as a share of its variance between "
            "candidates. The mark is what chance reaches in 19 of 20 cases; grey is not above it."
        )
        pictures.append(picture("importance", figure, "Importance of parameters", caption))
    values = figures.flat_values(results)
    figure = many.parallel(results, values, figures.varied_keys(values), scores)
    if figure is not None:
        caption = (
            f"Parallel coordinates: a line for each candidate through its parameters and {both}; brighter where "
            f"{scores[0]} is better, up where a score is better. Orange: chosen."
        )
        pictures.append(picture("parallel", figure, "Parallel coordinates", caption))
    return pictures


def simplex(results: Results, picture: Picture) -> Any:
    """Return the ternary plots of merges of three models; None for other studies."""
    if not results.directions or not triangles(results):
        return None
    figure = extras.load("merganser.reports.ternary", "plot").ternary(results)
    caption = (
        "Each score over the weights of three models: every dot is a merge, brighter where the score is better, "
        "lines join equal scores. Starred: the best, with its weights in the order left, right, top. Ringed: "
        "chosen."
    )
    if any(entry.role == "expert" for entry in results.entries):
        caption += " Diamonds: the models themselves."
    return figure and picture("ternary", figure, "Scores over three weights", caption)


def steps(results: Results, picture: Picture) -> list[Any]:
    """Return the figures of scores against the steps of a training run; empty for other studies."""
    figures = extras.load("merganser.reports.step_figures", "plot")
    pictures = []
    if (figure := figures.against_steps(results)) is not None:
        caption = (
            "Scores against the step of training. Diamonds: the run’s steps as they are; dotted: the base. "
            "Bands are 95 % intervals."
        )
        pictures.append(picture("steps", figure, "Scores against steps", caption))
    if (figure := figures.over_steps(results)) is not None:
        caption = "Scores over steps and the other number; brighter is better. Framed: chosen."
        pictures.append(picture("steps-grid", figure, "Scores over steps", caption))
    return pictures


def third_score(results: Results, x: str | None, y: str | None, picture: Picture) -> Any:
    """Return the figure of the front of three scores; None for studies with fewer scores."""
    z = next((name for name in results.directions if name not in (x, y)), None)
    if x is None or y is None or z is None:
        return None
    figure = extras.load("merganser.reports.many_scores", "plot").coloured_front(results, x, y, z)
    caption = (
        f"{y} against {x}, coloured by {z}: brighter is better. Large: no other model is at least as good in "
        "all three and better in one. Diamonds: the merged models."
    )
    return figure and picture("front-three", figure, f"{y} against {x}, and {z}", caption)
