"""The page of a search that is running."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from merganser import cli
from merganser.errors import InputError
from merganser.reports import live
from merganser.study import search_loop
from merganser.study.search_space import load_search
from messages import assert_one_line

SEARCH = {
    "merge_method": "linear",
    "models": [
        {"model": "a", "parameters": {"weight": "{{ w }}"}},
        {"model": "b", "parameters": {"weight": "{{ v }}"}},
    ],
    "search": {
        "over": {"w": {"from": 0, "to": 1}, "v": {"from": 0.1, "to": 1}},
        "objectives": {"accuracy": "max", "tokens": "min"},
        "method": "random",
        "budget": 12,
    },
}


def tried(folder: Path, count: int) -> None:
    """A history of some candidates, the rest of which were not reached."""

    def score(candidate: search_loop.Candidate) -> dict[str, float]:
        if candidate.number > count:
            raise KeyboardInterrupt
        return {"accuracy": candidate.values["w"], "tokens": candidate.values["v"]}

    search = load_search(SEARCH)
    if count < search.budget:
        with pytest.raises(KeyboardInterrupt):
            search_loop.explore(search, score, folder)
    else:
        search_loop.explore(search, score, folder)


def test_the_page_is_loaded_anew_until_the_search_has_ended(tmp_path: Path) -> None:
    tried(tmp_path, 9)
    page = live.LivePage(tmp_path)
    assert page.update() == tmp_path / "search.html"
    text = (tmp_path / "search.html").read_text()
    assert 'http-equiv="refresh" content="10"' in text
    assert "9 candidates so far; running" in text
    assert text.count("<svg") == 4
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert page.update() is None  # not so soon
    page.end()
    text = (tmp_path / "search.html").read_text()
    assert "refresh" not in text
    assert "9 candidates so far; ended" in text
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    tried(tmp_path, 9)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"candidate": 10, "name": "can')
    assert len(live.read_history(tmp_path).points) == 9


def test_nothing_stops_the_search(tmp_path: Path) -> None:
    page = live.LivePage(tmp_path)
    assert page.update() is None
    (tmp_path / "history.jsonl").write_text("nonsense\n")
    page.end()
    assert not (tmp_path / "search.html").exists()
    with pytest.raises(InputError) as error:
        live.read_history(tmp_path)
    assert_one_line(str(error.value), "history.jsonl: not the history of a search")
    with pytest.raises(InputError) as error:
        live.read_history(tmp_path / "nowhere")
    assert_one_line(str(error.value), "no search has run")


def test_report_draws_a_search_that_is_running(tmp_path: Path) -> None:
    tried(tmp_path, 9)
    done = CliRunner().invoke(cli.main, ["report", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["page"] == str(tmp_path / "search.html")
