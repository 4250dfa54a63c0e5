"""Studies of a page: finished, running and stopped ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.evaluation.statistics import Score
from merganser.results import scores
from merganser.results.scores import Entry, Results
from merganser.studio import studies
from studio_client import Client


def results(*names: str) -> Results:
    entries = tuple(
        Entry(
            name, "point", scores={"exact": Score(mean=n / 4, error=0.1, problems=4, low=0, high=1)}
        )
        for n, name in enumerate(names)
    )
    return Results("s", "text", {"exact": "max"}, {}, entries)


def test_a_study_that_runs_is_seen_to_grow(client: Client) -> None:
    home = client.library.root / "grows"
    home.mkdir()
    with pytest.raises(InputError, match="is not below"):
        studies.describe("grows", client.library)
    file = client.library.root / "grows.yml"
    file.write_text("sweep: {}\nevaluate: {}\n")
    assert studies.describe("grows", client.library) == {"version": "none"}
    file.unlink()
    scores.write_partial(results("p1"), 3, home)
    assert "grows" in client.get("/studio/library").data["studies"]
    first = client.get("/studio/study?place=grows").data
    assert ([entry["name"] for entry in first["entries"]], first["total"]) == (["p1"], 3)
    same = client.get(f"/studio/study?place=grows&seen={first['version']}").data
    assert same == {"version": first["version"]}
    scores.write_partial(results("p1", "p2"), 3, home)
    os.utime(home / scores.PARTIAL_NAME, ns=(1, 1))
    second = client.get(f"/studio/study?place=grows&seen={first['version']}").data
    assert len(second["entries"]) == 2
    scores.write(results("p1", "p2", "p3"), home)
    last = client.get(f"/studio/study?place=grows&seen={second['version']}").data
    assert (len(last["entries"]), last["total"]) == (3, None)
    assert sorted(file.name for file in home.iterdir()) == ["results.csv", "results.json"]
    for file in home.iterdir():
        file.unlink()
    home.rmdir()


def test_partial_results_are_read_as_results_are(tmp_path: Path) -> None:
    scores.write_partial(results("p1"), 2, tmp_path)
    assert scores.read_partial(tmp_path) == (results("p1"), 2)
    with pytest.raises(InputError, match=r"results\.json: does not exist"):
        scores.read(tmp_path)
    (tmp_path / scores.PARTIAL_NAME).write_text('{"format": 1, "total": 2}')
    with pytest.raises(InputError, match="name"):
        scores.read_partial(tmp_path)
