"""Sections of a report: which differences are significant, and which models dominate others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser import number_format
from merganser.errors import RecipeError
from merganser.results import paired
from merganser.results.comparison import Comparison
from merganser.results.front import Certainty
from merganser.results.scores import Results

MOST_ROWS = 400
"""Maximum number of comparisons on a page."""


def tables(folder: Path, short: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the comparisons of a study's merges with its other models, as data for one table per score and
    reference.

    Raises:
        InputError: when the samples cannot be read.
    """
    try:
        rows = paired.compare(folder).rows
    except RecipeError:  # there are no two models, or only one problem
        return []
    groups: dict[tuple[str, str, bool], list[Comparison]] = {}
    for row in rows[:MOST_ROWS]:
        groups.setdefault((row.score, row.reference, row.held_out), []).append(row)
    return [
        {
            "title": f"{score} against {short.get(reference, reference)}"
            + (", on held-out problems" if held_out else ""),
            "several": compared[0].family > 1,
            "note": _note(compared),
            "rows": [
                _cells(row, short, number_format.decimals(r.error for r in compared))
                for row in compared
            ],
        }
        for (score, reference, held_out), compared in groups.items()
    ]


def additions(found: Results, folder: Path, short: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the models that a greedy search tried to add to its soup; None for other studies.

    Raises:
        InputError: the samples are broken.
    """
    rows = paired.additions(folder) if found.additions else ()
    if not rows:
        return None
    places = number_format.decimals(row.error for row in rows)
    return {
        "score": rows[0].score,
        "note": _note(rows),
        "rows": [
            _cells(row, short, places)
            | {"soup": short.get(row.reference, row.reference), "kept": each.kept}
            for row, each in zip(rows, found.additions, strict=True)
        ],
    }


def _cells(row: Comparison, short: Mapping[str, str], places: int) -> dict[str, Any]:
    difference, low, high = (
        number_format.signed(value, places).replace("-", "−")
        for value in (row.difference, row.low, row.high)
    )
    return {
        "name": row.model,
        "short": short.get(row.model, row.model) + (" ‡" if row.selected else ""),
        "difference": difference,
        "value": row.difference,
        "interval": f"{low} to {high}",
        "better": f"{row.wins}:{row.losses}" if row.problems else number_format.MISSING,
        "p": number_format.p_value(row.p),
        "max_t": number_format.p_value(row.p_max_t),
        "holm": number_format.p_value(row.p_holm),
        "p_verdict": row.p_verdict,
        "verdict": row.verdict_text(places),
        "significant": row.verdict != "not significant",
    }


def _note(rows: Sequence[Comparison]) -> str:
    problems = max(row.problems for row in rows)
    tests = ", ".join(dict.fromkeys(row.test for row in rows))
    count = f"{problems} problems; " if problems else ""
    family = f"; adjusted for {rows[0].family} models" if rows[0].family > 1 else ""
    return f"{count}{tests}{family}."


def dominance(results: Results, sure: Certainty, short: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the shares of resamples in which each model dominates each reference or is dominated by it;
    None without two scores."""
    others = [e.name for e in results.entries if e.role != "point" and e.name in sure.dominates]
    if len(results.directions) < 2 or not others:
        return None
    rows = [
        {
            "name": name,
            "short": short.get(name, name),
            "cells": [
                {"over": wins.get(other), "under": sure.dominates[other].get(name)}
                for other in others
            ],
        }
        for name, wins in sure.dominates.items()
    ]
    return {"heads": [short.get(name, name) for name in others], "rows": rows}
