"""Reports: everything is on the page, in pictures and tables, and nothing of it runs or calls out."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from click.testing import CliRunner

import simulated
from merganser import cli, number_format
from merganser.errors import InputError, RecipeError
from merganser.evaluation.samples import Sample, read
from merganser.evaluation.samples import write as write_samples
from merganser.recipe import short_names as names
from merganser.reports import distances, figure_style, figures, pictures, search_figures
from merganser.reports import page as report
from merganser.results import completions
from merganser.results import scores as results
from merganser.results.scores import Entry, Results, Role, Score
from messages import assert_one_line

EVIL = '</script><img src="//evil.example/x" onerror="boom()">\'$x_{a}$&amp;<!--'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def scores(accuracy: float, form: float, tokens: float) -> dict[str, Score]:
    found = {"accuracy": (accuracy, 0.02), "format": (form, 0.02), "tokens": (tokens, 9.0)}
    return {k: Score(m, e, m - 2 * e, m + 2 * e, 40) for k, (m, e) in found.items()}


def study(methods: Sequence[str] = ("linear",)) -> Results:
    a, b = "accfmt_LR2e-6", "acc_LR2e-6"
    entries = [
        Entry("base", "base", "models/base", scores=scores(0.2, 0.1, 300)),
        Entry(a, "expert", f"runs/{a}", scores=scores(0.4, 0.9, 150)),
        Entry(b, "expert", f"runs/{b}", scores=scores(0.7, 0.4, 200)),
    ]
    for m, method in enumerate(methods):
        for w in (0.1, 0.3, 0.5, 0.7, 0.9):
            up = (0.1 - 0.15 * m) * math.sin(math.pi * w)
            entries.append(
                Entry(
                    f"merge_w{w}_{method}",
                    "point",
                    values={"w": w, "method": method},
                    scores=scores(0.4 + 0.3 * w + up, 0.9 - 0.5 * w + up, 150 + 50 * w),
                    weights={a: 1 - w, b: w},
                    effective={a: 1 - w * w, b: w * w},
                )
            )
    return Results(
        "accfmt_acc",
        "sweep: {w: [0.1, 0.9]}\nname: '<b>{{ w }}</b>'\n",
        {"accuracy": "max", "format": "max", "tokens": "min"},
        {"temperature": 0.6, "versions": {"torch": "2"}},
        tuple(entries),
        {"merge_w0.7_linear": "accuracy, with format >= 0.5"},
    )


def written(found: Results, folder: Path, said: str = "<think>a</think>") -> Results:
    """Results with samples, in a folder."""
    folder.mkdir(exist_ok=True)
    entries = []
    for e, entry in enumerate(found.entries):
        lines = [
            {
                "task": "sums",
                "problem": f"p{p}",
                "sample": s,
                "prompt": [{"role": "user", "content": f"{p} + 1? {said}"}],
                "completion": f"{entry.name}: {said}",
                "tokens": 5,
                "finish": "stop",
                "scores": {k: float((p + e + s) % 2) for k in found.directions},
                "answer": str(p + 1),
            }
            for p in range(4)
            for s in range(2)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{e}.jsonl").write_text(text)
        entries.append(replace(entry, samples=f"{e}.jsonl"))
    found = replace(found, entries=tuple(entries))
    results.write(found, folder)
    return found


def test_a_search_shows_what_was_held_out_and_its_history(tmp_path: Path) -> None:
    block = {"objectives": {"accuracy": "max"}, "constraints": {"tokens": {"most": 180}}}
    found = written(replace(study(), settings={"search": block}), tmp_path)
    held_out = tmp_path / results.HELD_OUT
    apart = replace(found.points[3], scores=scores(0.123, 0.5, 180), samples=None)
    held_out.mkdir()
    results.write(replace(found, entries=(apart,)), held_out)
    files = [file.name for file in report.write(tmp_path)]
    for stem in ("history", "parameters"):
        assert f"{stem}.svg" in files
    page = (tmp_path / "report.html").read_text()
    order = [page.index(f'<section id="{name}"') for name in ("held-out", "chosen", "history")]
    assert order == sorted(order)
    assert "0.123" in page[order[0] : order[1]]
    assert "0.123" not in page[order[1] :]
    figure = search_figures.progress(found, ["accuracy"])
    [line] = [each for each in figure.axes[0].lines if each.get_label() == "best so far"]
    allowed = [p.scores["accuracy"].mean for p in found.points if p.scores["tokens"].mean <= 180]
    assert list(line.get_ydata())[-1] == max(allowed)
    assert max(allowed) < max(p.scores["accuracy"].mean for p in found.points)
    names = {axes.get_xlabel() for axes in search_figures.parameters(found, ["accuracy"]).axes}
    assert names == {"w"}


def test_reports_of_sweeps_have_no_history(tmp_path: Path) -> None:
    written(study(), tmp_path)
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert 'id="history"' not in page
    assert 'id="held-out"' not in page


def test_everything_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "ENDINGS", ("svg", "png", "pdf"))
    found = written(study(["linear", "slerp"]), tmp_path)
    cells = {"q_proj": {"0": {"relative": 0.1, "changed": 0.5}}}
    measured = [{"title": "accfmt and acc", "whole": {"changed": 0.5}, "cells": cells}]
    (tmp_path / distances.NAME).write_text(json.dumps(measured))
    shown = CliRunner().invoke(cli.main, ["report", str(tmp_path), "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.output)
    assert told["page"] == str(tmp_path / "report.html")
    stems = [
        "front",
        "front-2",
        "front-3",
        "front-three",
        "front-lines",
        "curves",
        "effective-weights",
        "distance",
    ]
    made = sorted(f"{stem}.{ending}" for stem in stems for ending in ("pdf", "png", "svg"))
    assert sorted(Path(file).name for file in told["figures"]) == made
    begins = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    for file in map(Path, told["figures"]):
        assert file.read_bytes().startswith(begins[file.suffix])
        if file.suffix == ".svg":
            ET.parse(file)
            assert "var(--" not in file.read_text()  # dark on white, wherever it is opened
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(stems)
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'<a href="(figures/[^"]+)">', page)
    assert sorted(links) == [f"figures/{name}" for name in made]
    check_colours(page)
    check_hints(page, found)
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    for entry in found.entries:
        assert entry.name in text
        for score in entry.scores.values():
            assert number_format.typeset(score.low) in page
        for name, places in {"accuracy": 3, "format": 3, "tokens": 1}.items():
            assert f"{entry.scores[name].mean:.{places}f}  ± " in text
    for words in ("Hypervolume", "reference", "temperature", "accuracy, with format >= 0.5"):
        assert words in text
    assert found.recipe in text


def check_colours(page: str) -> None:
    """The colours of text, axes and series are the page's, each of which has one for the dark."""
    style = page[page.index("<style>") : page.index("</style>")]
    light, dark = style.split("prefers-color-scheme: dark", 1)
    drawn = {
        name for svg in page.split("<svg")[1:] for name in re.findall(r"var\((--[\w-]+)\)", svg)
    }
    assert {"--figure-ink", "--figure-paper", "--figure-colour-1"} <= drawn
    assert all(f"{name}:" in light and f"{name}:" in dark for name in drawn)
    assert drawn <= {f"--figure-{name}" for name in figure_style.NAMED.values()}
    pictures = "".join(svg[: svg.index("</svg>")] for svg in page.split("<svg")[1:])
    fixed = set(re.findall(r"(?:fill|stroke): (#\w+)", pictures))
    assert not fixed & set(figure_style.NAMED)


def check_hints(page: str, found: Results) -> None:
    """In each picture of two scores every model has a point, which says all about it."""
    front = page[page.index('<section id="front"') :]
    front = front[front.index("<svg") : front.index("</svg>")]
    titles = [unescape(each) for each in re.findall(r"<title>(.*?)</title>", front, re.DOTALL)]
    assert len(titles) == len(found.entries)
    [title] = [each for each in titles if each.startswith("merge_w0.7_linear\n")]
    assert title.splitlines() == [
        "merge_w0.7_linear",
        "w = 0.7, method = linear",
        "weights: accfmt 0.3 → 0.510, acc 0.7 → 0.490",
        "accuracy: 0.6909, 95 % 0.6509 to 0.7309",
        "format: 0.6309, 95 % 0.5909 to 0.6709",
        "tokens: 185, 95 % 167 to 203",
        "chosen: accuracy, with format >= 0.5",
    ]
    across = [float(x) for x in re.findall(r'</title><use [^>]* x="([\d.]+)"', front)]
    assert across == sorted(across)  # from left to right, as arrow keys go
    assert len(across) == len(titles)
    for section in ("curves", "weights", "planes"):
        assert page.index('class="point"', page.index(f'<section id="{section}"')) > 0


def degenerate() -> Mapping[str, Results]:
    whole = study()
    same = {"accuracy": Score(0.5, 0.0, 0.5, 0.5, 1), "format": Score(0.0, 0.0, 0.0, 0.0, 1)}
    lone: Role = "point"
    return {
        "nothing": Results("", "", {}, {}, ()),
        "unscored": replace(
            whole, directions={}, entries=tuple(replace(e, scores={}) for e in whole.entries)
        ),
        "one score": replace(whole, directions={"accuracy": "max"}),
        "no experts": replace(whole, entries=whole.points),
        "some without scores": replace(
            whole, entries=(*whole.entries, Entry("late", "point", values={"w": 0.95}))
        ),
        "all the same": replace(
            whole,
            directions={"accuracy": "max", "format": "max"},
            entries=tuple(replace(e, scores=same) for e in whole.entries),
        ),
        "one model": replace(whole, entries=(Entry("x", lone, scores=scores(0.1, 0.2, 3)),)),
    }


@pytest.mark.parametrize("case", degenerate())
def test_studies_that_are_hardly_there(tmp_path: Path, case: str) -> None:
    results.write(degenerate()[case], tmp_path)
    page, *_ = report.write(tmp_path)
    text = page.read_text()
    assert "</html>" in text
    if case == "one model":
        report.write(tmp_path)
        assert page.read_text() == text


def test_slips_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluate the study first"):
        report.write(tmp_path)
    written(study(), tmp_path)
    with pytest.raises(RecipeError) as wrong:
        report.write(tmp_path, x="speed")
    assert_one_line(str(wrong.value), "no score 'speed'; there are accuracy, format, tokens")
    (tmp_path / "0.jsonl").write_text('{"problem": 1}\n')
    with pytest.raises(InputError, match=r"0\.jsonl:1: no sample"):
        report.write(tmp_path)
    found = study()
    results.write(replace(found, entries=(replace(found.entries[0], samples="../x"),)), tmp_path)
    with pytest.raises(InputError, match="outside"):
        report.write(tmp_path)
    results.write(found, tmp_path)
    (tmp_path / distances.NAME).write_text("[" * 200_000)
    with pytest.raises(InputError, match="measure again"):
        report.write(tmp_path)
    (tmp_path / distances.NAME).write_text("{}}")
    with pytest.raises(InputError, match="measure again"):
        report.write(tmp_path)


def test_measured_distances(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    found = study()
    a, b = (
        replace(e, model=str(p)) for e, p in zip(found.entries[1:3], reversed(pair), strict=True)
    )
    base = replace(found.entries[0], model=str(pair[0]))
    found = replace(found, entries=(base, a, b), directions={"accuracy": "max"})
    results.write(found, tmp_path)
    told = CliRunner().invoke(cli.main, ["report", str(tmp_path), "--distances"])
    assert told.exit_code == 0, told.output
    (measured,) = json.loads((tmp_path / distances.NAME).read_text())
    assert measured["title"] == "accfmt and acc"
    assert measured["whole"]["relative_b"] == 0  # the second expert is the base
    assert (tmp_path / "figures" / "distance.svg").is_file()


def test_certainty_is_paired_where_there_are_samples(tmp_path: Path) -> None:
    kept = completions.load(written(study(), tmp_path), tmp_path)
    per = completions.per_problem(kept)
    assert per["base"]["accuracy"] == {f"p{p}": 0.5 for p in range(4)}
    paired = report._front_facts(study(), [], kept)
    assert "resamples of the problems" in paired["certainty"]
    alone = report._front_facts(study(), [], {})
    assert "of the scores by their errors" in alone["certainty"]


def test_completions_are_cut_and_chosen(tmp_path: Path) -> None:
    def sample(problem: int, score: float, text: str) -> Sample:
        return Sample("t", str(problem), 0, "?", text, 1, "stop", {"s": score})

    many = completions.MOST_PROBLEMS + 20
    kept = {
        "a": [sample(p, 1.0, "x") for p in range(many)],
        "b": [sample(p, float(p < many - 7), "y" * 100_000) for p in range(many)],
    }
    shown = completions.for_page(kept)
    assert len(shown) == completions.MOST_PROBLEMS
    assert {p["title"] for p in shown} >= {str(p) for p in range(many - 7, many)}
    text = shown[0]["completions"][1]["text"]
    assert "[… 94000 characters …]" in text
    assert len(text) < completions.LONGEST + 50


def hostile() -> Results:
    found = study()
    entries = tuple(replace(e, name=f"{e.name}{EVIL}") for e in found.entries)
    weights = {e.name: f"{e.name}{EVIL}" for e in found.entries}
    entries = tuple(
        replace(
            e,
            weights={weights[k]: v for k, v in e.weights.items()},
            values={f"{k}{EVIL}": v for k, v in e.values.items()},
            scores={f"{k}{EVIL}": v for k, v in e.scores.items()},
        )
        for e in entries
    )
    return Results(
        EVIL,
        EVIL,
        {f"{k}{EVIL}": v for k, v in found.directions.items()},
        {EVIL: EVIL},
        entries,
        {entries[-1].name: EVIL},
    )


PROBE = """
const seen = [];
window.addEventListener("error", (event) => seen.push("error: " + event.message));
document.addEventListener("securitypolicyviolation", (event) => seen.push("blocked: " + event.blockedURI));
window.boom = () => seen.push("boom");
window.addEventListener("load", () => {
  const root = document.documentElement;
  const column = () => [...document.querySelectorAll("#scores tbody tr")].map((r) => r.cells[3].dataset.value);
  const heading = document.querySelectorAll("#scores thead th")[3];
  heading.querySelector("button").click();
  root.dataset.rising = column();
  heading.querySelector("button").click();
  root.dataset.falling = column();
  root.dataset.sort = heading.getAttribute("aria-sort");
  document.getElementById("after").click();
  root.dataset.problem = document.getElementById("problem").value;
  root.dataset.said = document.querySelector("#answers pre").textContent;
  root.dataset.wide = document.documentElement.scrollWidth > window.innerWidth;
  const hint = document.getElementById("hint");
  const points = [...document.querySelectorAll("#front .point")];
  document.querySelector("#front").scrollIntoView({ behavior: "instant" });
  const box = points[3].getBoundingClientRect();
  const where = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
  points[3].dispatchEvent(new PointerEvent("pointermove", where));
  const says = points[3].getAttribute("aria-label");
  root.dataset.pointed = JSON.stringify([hint.hidden, [...hint.children].some((p) => p.textContent === says)]);
  const inside = hint.getBoundingClientRect();
  root.dataset.inside = inside.left >= 0 && inside.right <= window.innerWidth;
  points[0].focus();
  points[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  root.dataset.focused = points.indexOf(document.activeElement);
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  root.dataset.closed = hint.hidden;
  root.dataset.seen = JSON.stringify(seen);
});
"""


def browse(page: Path, *options: str) -> tuple[str, str]:
    """A page's document once it has loaded, and what the browser logged."""
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--enable-logging=stderr",
            f"--user-data-dir={page.parent / 'browser'}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_opens_it_whatever_names_and_completions_say(tmp_path: Path) -> None:
    found = written(hostile(), tmp_path, EVIL)
    page, *_ = report.write(tmp_path)
    text = page.read_text()
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("<title>", f"<script>{PROBE}</script><title>", 1))
    document, log = browse(probed, "--dump-dom", "--window-size=360,800")
    assert "CONSOLE" not in log
    head = document[: document.index("<head>")]
    facts = {k: unescape(v) for k, v in re.findall(r'data-([a-z]+)="([^"]*)"', head)}
    assert json.loads(facts["seen"]) == []
    rising = [float(v) for v in facts["rising"].split(",")]
    assert rising == sorted(rising)
    assert [float(v) for v in facts["falling"].split(",")] == rising[::-1]
    assert len(rising) == len(found.entries)
    assert facts["sort"] == "descending"
    assert facts["problem"] == "p1"
    assert facts["said"] == f"{found.entries[0].name}: {EVIL}"
    assert facts["wide"] == "false"  # a narrow screen does not scroll sideways
    assert json.loads(facts["pointed"]) == [False, True]
    assert facts["inside"] == "true"
    assert facts["focused"] == "1"
    assert facts["closed"] == "true"
    assert document.count("<svg") == text.count("<svg")
    assert "<img" not in document


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    for file in (tmp_path / "a.svg", tmp_path / "b.svg"):
        figures.save(figures.front(study(), "accuracy", "format"), file)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_labels_do_not_overlap() -> None:
    figure = figures.front(study(["linear", "slerp"]), "accuracy", "format")
    (axes,) = figure.axes
    boxes = [t.get_window_extent() for t in axes.texts if t.get_text()]
    assert len(boxes) == 13
    for n, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:n])
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0)
        assert figure.bbox.containsy(box.y1)


def test_short_names() -> None:
    assert names.shorten(["accfmt_R4_LR2e-6", "acc_R4_LR2e-6"]) == ["accfmt", "acc"]
    assert names.shorten(["runs/long/a/x", "runs/long/b/x"]) == ["a", "b"]
    assert names.shorten(["merge_w0.1_linear", "merge_w0.2_linear"]) == ["w0.1", "w0.2"]
    assert names.shorten(["m_001", "m_002"]) == ["m_001", "m_002"]
    assert names.shorten(["same"]) == ["same"]
    assert names.shorten(["x" * 99])[0] == "x" * 14 + "…" + "x" * 13
    assert names.shorten([]) == []


def test_numbers_as_people_write_them() -> None:
    written = {
        0.5: "0.5",
        0.12345: "0.1235",
        1234.5678: "1235",
        0.0: "0",
        1e-9: "1e−09",
        -0.25: "−0.25",
    }
    assert {value: number_format.typeset(value) for value in written} == written
    assert number_format.typeset_difference(-0.25) == "−0.25"
    assert number_format.typeset_difference(0.25) == "+0.25"


def test_differences_and_dominance_are_on_the_page(tmp_path: Path) -> None:
    chances = {"base": 0.3, "acc": 0.6, "w1": 0.45, "w2": 0.62}
    drawn = simulated.verdicts(3, 60, 4, chances)
    roles: dict[str, Role] = {"base": "base", "acc": "expert"}
    entries = [Entry(name, roles.get(name, "point"), values={"w": 1.0}) for name in chances]
    simulated.write(tmp_path, entries, {"sums": drawn}, directions={"exact": "max", "b": "max"})
    for file in (tmp_path / "samples").iterdir():
        said = [replace(s, scores={**s.scores, "b": 1 - s.scores["exact"]}) for s in read(file)]
        write_samples(said, file)
    report.write(tmp_path)
    text = unescape((tmp_path / report.NAME).read_text())
    assert "Which differences are more than luck" in text
    assert "exact against base" in text
    assert "<b>better</b>" in text
    assert "not significant (would see 0." in text
    assert "w2 ‡" in text
    assert "dominates base" in text
