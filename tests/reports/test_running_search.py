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
from merganser.results import scores
from merganser.results.scores import Entry, Results, Score
from merganser.study import exploration, search_loop
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

    def score(candidate: exploration.Candidate) -> dict[str, float]:
        if candidate.number > count:
            raise KeyboardInterrupt
        return {"accuracy": candidate.values["w"], "tokens": candidate.values["v"]}

    search = load_search(SEARCH)
    if count < search.budget:
        with pytest.raises(KeyboardInterrupt):
            search_loop.explore(search, score, folder)
    else:
        search_loop.explore(search, score, folder)


def test_the_page_is_loaded_again_until_the_study_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(tmp_path, 9)
    report = tmp_path / "report.html"

    def read() -> Results:
        return live.read_history(tmp_path)

    assert live.LivePage(tmp_path).update(read, 12) is None  # not so soon
    monkeypatch.setattr(live, "FIRST", 0.0)
    page = live.LivePage(tmp_path)
    assert page.update(read, 12) == report
    text = report.read_text()
    assert '<html lang="en" data-every="10">' in text
    assert "9 of 12 models scored" in text
    assert "the study is running" in text
    assert 'id="history"' in text
    assert text.count('class="point"') >= 4 * 9
    assert not (tmp_path / "figures").exists()
    assert '<a href="figures' not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert page.update(read, 12) is None  # not so soon


def test_a_study_that_stops_says_so_on_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FIRST", 0.0)
    score = {"exact": Score(0.5, 0.1, 0.4, 0.6, 9)}
    found = Results("study", "", {}, {}, (Entry("m", "point", scores=score), Entry("n", "point")))
    report = tmp_path / "report.html"
    page = live.LivePage(tmp_path)
    assert page.update(lambda: found, 2) == report
    assert "1 of 2 models scored" in report.read_text()
    assert "data-every" in report.read_text()
    with pytest.raises(KeyboardInterrupt), page:
        raise KeyboardInterrupt
    text = report.read_text()
    assert "data-every" not in text
    assert "the study has stopped" in text
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_a_sweep_that_runs_has_a_report_too(tmp_path: Path) -> None:
    score = {"exact": Score(0.5, 0.1, 0.4, 0.6, 9)}
    found = Results("study", "", {"exact": "max"}, {}, (Entry("m", "point", scores=score),))
    scores.write_partial(found, 3, tmp_path)
    assert live.is_running(tmp_path)
    run = CliRunner().invoke(cli.main, ["report", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert "1 of 3 models scored" in (tmp_path / "report.html").read_text()
    scores.write(found, tmp_path)
    assert not live.is_running(tmp_path)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    tried(tmp_path, 9)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"candidate": 10, "name": "can')
    assert len(live.read_history(tmp_path).points) == 9


def test_nothing_stops_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST", 0.0)
    page = live.LivePage(tmp_path)
    (tmp_path / "history.jsonl").write_text("nonsense\n")
    assert page.update(lambda: live.read_history(tmp_path), 3) is None
    with pytest.raises(ValueError, match="of the study"), page:
        raise ValueError("of the study")
    assert not (tmp_path / "report.html").exists()
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
    assert json.loads(done.stdout)["page"] == str(tmp_path / "report.html")
    assert "9 models scored" in (tmp_path / "report.html").read_text()
