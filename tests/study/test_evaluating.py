"""A sweep that is evaluated: scored in memory, resumed, and only what its rule keeps is written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import peers
from merganser import cli
from merganser.errors import (
    InputError,
    MerganserError,
    OutputExistsError,
    RecipeError,
    ResourceError,
)
from merganser.evaluation import samples
from merganser.evaluation.statistics import Score
from merganser.merging.lock import Lock
from merganser.recipe import Document
from merganser.reports import live, page
from merganser.reports.distances import measure
from merganser.results import scores as results
from merganser.results.paired import compare
from merganser.results.scores import Entry, Results
from merganser.study import participants, sharing
from merganser.study.evaluate import evaluate_sweep
from merganser.study.evaluate_model import evaluate, judge_again
from merganser.study.keep import parse_rule
from merganser.study.live_model import LiveModel
from merganser.study.progress import Event, Scored, Turn, Waiting
from merganser.tracking import Run
from messages import assert_one_line
from recipe_files import RecipeFile

SWEEP = """
name: m_w{{ w }}
sweep: {w: [0.3, 0.7]}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
dtype: bfloat16
evaluate:
  base: ./base
  tasks:
    - problems: sums.jsonl
      max_tokens: 6
      scorers: [exact, tokens]
  keep: "max exact with tokens <= 100"
"""


@pytest.fixture
def file(tmp_path: Path, recipe_file: RecipeFile) -> Path:
    for seed, name in enumerate(["base", "a", "b"]):
        peers.make_model(tmp_path / name, seed=seed, layers=1)
    lines = [
        {"problem": f"what is {n} + 1 =", "answer": str(n + 1), "id": f"n{n}"} for n in range(4)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return recipe_file(SWEEP)


def test_experts_are_compared_from_wherever_a_report_is_asked_for(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths of models are those that the study saw, not what lies where the report is drawn."""
    evaluate_sweep(file, tmp_path / "study" / "out", write=False)
    home = tmp_path / "study" / "out"
    assert results.read(home).places[-1] == "../.."
    told = json.loads(measure(home).read_text())
    elsewhere = tmp_path / "elsewhere"
    for name in ("a", "b"):
        peers.make_model(elsewhere / name, seed=7, layers=1)
    monkeypatch.chdir(elsewhere)
    for place in (home, Path("..", "study", "out")):
        assert json.loads(measure(place).read_text()) == told
    assert told[0]["whole"]["relative"] > 0
    shutil.move(tmp_path / "a", tmp_path / "gone")
    shutil.move(elsewhere / "a", tmp_path / "gone too")
    with pytest.raises(InputError, match=r"^\./a: "):
        measure(home)


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("sums.jsonl", "sum.jsonl", 12, "problems: there is no file"),
        ("sums.jsonl", "~no.such.user/sums.jsonl", 12, "problems: there is no file"),
        ("sums.jsonl", "sum.jsonl", 12, "did you mean 'sums.jsonl'?"),
        ("base: ./base", "base: ./bsae", 10, "./bsae: no such folder"),
        ("[exact, tokens]", "[exat, tokens]", 14, "no scorer 'exat'; did you mean 'exact'?"),
        ("[exact, tokens]", "[xyz, tokens]", 14, "and your own as module:function"),
        ("max exact", "max exat", 15, "no score 'exat'; did you mean 'exact'?"),
        ("max exact", "max xyz", 15, "no score 'xyz'; there are exact, tokens"),
    ],
)
def test_slips_in_what_is_scored(
    file: Path, tmp_path: Path, old: str, new: str, line: int, told: str
) -> None:
    file.write_text(SWEEP.replace(old, new))
    with pytest.raises(MerganserError) as refused:
        evaluate_sweep(file, tmp_path / "out")
    assert_one_line(str(refused.value), f"{file}:{line}: ", told)


class Noting:
    """A tracker that keeps what it gets."""

    name = "noting"

    def __init__(self) -> None:
        self.steps: list[str | int] = []
        self.metrics: Mapping[str, float] = {}
        self.config: Mapping[str, object] = {}

    def start(self, run: Run) -> None:
        self.steps.append("start")
        self.config = run.config

    def point(self, number: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(number)
        self.metrics = metrics

    def finish(self, files: Sequence[Path], *, failed: bool) -> None:
        self.steps += [file.name for file in files]
        self.steps.append("failed" if failed else "finished")


def test_base_experts_and_points_are_scored_and_one_is_written(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tracker, so_far = Noting(), []
    written: list[bool] = []

    def note(found: Results, total: int) -> None:
        so_far.append(([e.name for e in found.entries], total))
        written.append(results.read_partial(out) == (found, total))

    found = evaluate_sweep(file, out, track=tracker, on_results=note)
    assert results.read(out) == found
    assert written == [True] * 5
    assert so_far == [([e.name for e in found.entries[:n]], 5) for n in range(1, 6)]
    assert tracker.steps == ["start", 0, 0, 0, 1, 2, "results.csv", "finished"]
    assert tracker.metrics["effective_w"] == found.points[1].effective["./b"]
    assert tracker.metrics["exact_high"] == found.points[1].scores["exact"].high
    assert tracker.config["sums/max_tokens"] == 6
    assert not any("template" in key or "system" in key for key in tracker.config)
    assert [(e.name, e.role) for e in found.entries] == [
        ("base", "base"),
        ("a", "expert"),
        ("b", "expert"),
        ("m_w0.3", "point"),
        ("m_w0.7", "point"),
    ]
    assert found.directions == {"exact": "max", "tokens": "min"}
    point = found.points[1]
    assert point.weights == pytest.approx({"./a": 0.3, "./b": 0.7}, abs=1e-6)
    assert point.effective == pytest.approx(point.weights, abs=0.2)
    assert point.effective != point.weights
    [name] = found.chosen
    assert [e.folder for e in found.points] == [
        name if e.name == name else None for e in found.points
    ]
    assert (out / name / "model.safetensors").is_file()
    card = (out / name / "README.md").read_text()
    assert f"Chosen as: {found.chosen[name]}." in card.replace("&gt;", ">").replace("&lt;", "<")
    assert (out / name / "front.png").is_file()
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [name, "results.json", "results.csv", "samples"]
    )
    entry = next(e for e in found.entries if e.name == name)
    again = evaluate(str(out / name), file)
    assert again.entries[0].scores == entry.scores
    assert entry.samples is not None
    assert judge_again(out / entry.samples, file).entries[0].scores == entry.scores
    [sample, *_] = samples.read(out / entry.samples)
    assert (sample.task, sample.problem, sample.answer) == ("sums", "n0", "1")


@pytest.mark.parametrize(
    ("keep", "text"), [("none", None), ("max exact with tokens <= 0", "keeps no point")]
)
def test_warnings_of_the_points_and_of_a_rule_that_keeps_none(
    file: Path, tmp_path: Path, keep: str, text: str | None
) -> None:
    told: list[str] = []
    file.write_text(SWEEP.replace("max exact with tokens <= 100", keep) + "license: mit\n")
    evaluate_sweep(file, tmp_path / "out", on_warning=told.append)
    own, *more = told
    assert_one_line(own, "m_w0.3: ", "'license'", "ignored")
    assert len(more) == (text is not None)
    for warning in more:
        assert_one_line(warning, str(text))


def test_what_is_kept_is_not_run_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished study blends nothing; one that was cut off only what is missing."""
    out = tmp_path / "out"
    first = evaluate_sweep(file, out, write=False)
    blended: list[str] = []
    real = LiveModel.become

    def counted(self: LiveModel, plan: object, **options: object) -> object:
        blended.append(plan.recipe.recipe.name or "")  # type: ignore[attr-defined]
        return real(self, plan, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveModel, "become", counted)
    again = evaluate_sweep(file, out, write=False)
    assert not blended
    for one, other in zip(first.entries, again.entries, strict=True):
        assert one.scores == other.scores
        assert one.effective == pytest.approx(other.effective)
    kept = out / "samples" / "m_w0.7.jsonl"
    text = kept.read_text()
    lines = text.splitlines(keepends=True)
    kept.write_text("".join(lines[:2]) + lines[2][:30])
    assert evaluate_sweep(file, out, write=False).entries == again.entries
    assert blended == ["m_w0.7"]
    assert kept.read_text() == text
    problems = tmp_path / "sums.jsonl"
    problems.write_text(problems.read_text().replace("what is 3", "what is 5"))
    evaluate_sweep(file, out, write=False, only=["w=0.3"])
    assert blended[1:] == ["", "", "", "m_w0.3"]


def test_completions_are_kept_by_what_models_hold(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither times nor places of files matter; what changed is told before anything is run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    study = tmp_path / "study"
    study.mkdir()
    for name in ("base", "a", "b", "sums.jsonl", file.name):
        shutil.move(tmp_path / name, study / name)
    monkeypatch.chdir(study)
    first = evaluate_sweep(file.name, "out", write=False)
    copied = tmp_path / "copied"
    shutil.copytree(study, copied, copy_function=shutil.copyfile)
    for path in study.rglob("*"):
        os.utime(path, (1e9, 1e9))
    notes: list[str] = []

    def become(self: LiveModel, plan: object, **options: object) -> object:
        raise AssertionError("nothing has to be generated")

    with monkeypatch.context() as patched:
        patched.setattr(LiveModel, "become", become)
        for place in (study, copied):
            patched.chdir(place)
            again = evaluate_sweep(file.name, "out", write=False, on_warning=notes.append)
            assert [e.scores for e in again.entries] == [e.scores for e in first.entries]
        assert notes == []
        peers.make_model(copied / "b", seed=9, layers=1)
        with pytest.raises(AssertionError):
            evaluate_sweep(file.name, "out", write=False, on_warning=notes.append)
    ending = "are generated again and replaced: the model ./b changed"
    assert notes == [f"12 stored completions of b, m_w0.3, m_w0.7 {ending}"]
    monkeypatch.chdir(copied)
    text = (copied / file.name).read_text()
    (copied / file.name).write_text(text.replace("max_tokens: 6", "max_tokens: 5"))
    told = CliRunner().invoke(cli.main, ["sweep", file.name, "out", "--no-write", "-q"])
    assert_one_line(told.stderr.splitlines()[0], "8 stored", "the prompt or the sampling changed")
    assert_one_line(told.stderr.splitlines()[1], "8 stored", "./b and the prompt or the sampling")


def test_points_that_are_written_are_kept_by_what_models_hold(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    found = evaluate_sweep(file, out)
    [name] = found.chosen
    weights = out / name / "model.safetensors"
    before = weights.stat().st_mtime_ns
    for path in (tmp_path / "a").iterdir():
        os.utime(path, (1e9, 1e9))
    assert evaluate_sweep(file, out) == found
    assert weights.stat().st_mtime_ns == before


def test_chosen_points_are_scored_on_what_is_held_out(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = evaluate_sweep(file, out)
    [name] = plain.chosen
    luck = "was chosen by these very scores"
    assert luck in (out / name / "README.md").read_text()
    file.write_text(SWEEP + "  held_out: 0.5\n")
    found = evaluate_sweep(file, out)
    [name] = found.chosen
    apart = results.read(out / "held_out")
    assert [entry.name for entry in apart.entries] == ["base", "a", "b", name]
    assert apart.entries[-1].folder == f"../{name}"
    assert set(apart.entries[-1].weights) == {"./a", "./b"}
    asked: list[set[str]] = []
    for home in (out, out / "held_out"):
        kept = samples.read(home / "samples" / f"{name}.jsonl")
        asked.append({sample.problem for sample in kept})
    assert [len(each) for each in asked] == [2, 2]
    assert not asked[0] & asked[1]
    card = (out / name / "README.md").read_text()
    assert "over 2 problems" in card
    assert "The problems were held out: " in card
    assert luck not in card
    file.write_text(SWEEP)
    evaluate_sweep(file, out)
    assert luck in (out / name / "README.md").read_text()


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        ("other", "evaluate.held_out: there is no task 'other'; there are sums"),
        ("sums", "evaluate.held_out: names all tasks"),
        ("0.01", "evaluate.held_out: a share of 0.01 of the 4 problems of 'sums' leaves one part"),
        ("1.5", "held_out: "),
    ],
)
def test_what_cannot_be_held_out_of_a_sweep(
    file: Path, tmp_path: Path, held_out: str, told: str
) -> None:
    file.write_text(f"{SWEEP}  held_out: {held_out}\n")
    with pytest.raises(MerganserError) as refused:
        evaluate_sweep(file, tmp_path / "out")
    assert_one_line(str(refused.value), f"{file}:16: ", told)


def test_the_command(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    monkeypatch.setattr(live, "FIRST", 0.0)
    done = run(cli.main, ["sweep", str(file), str(tmp_path / "out"), "--no-write"])
    assert done.exit_code == 0, done.output
    assert f"watch it: {tmp_path / 'out' / 'report.html'}" in done.stderr
    assert "m_w0.3" in done.stdout
    assert not (tmp_path / "out" / "m_w0.3").exists()
    assert "</html>" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "figures" / "front.svg").is_file()
    asked = run(cli.main, ["eval", f"{file}#w=0.3", str(file), "--json", "-q"])
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["entries"][0]["name"] == "m_w0.3"
    wrong = run(cli.main, ["eval", f"{file}#w=0.4", str(file)])
    assert wrong.exit_code == 2
    assert_one_line(wrong.stderr.strip(), "0.4")


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("max_tokens: 6", "max_token: 6", 12, "did you mean 'max_tokens'"),
        ("max_tokens: 6", "max_tokens: 0", 12, "max_tokens"),
        ("exact, tokens]", "exakt]", 13, "no scorer 'exakt'"),
        ("exact, tokens]", "exact, exact]", 13, "two scores are called 'exact'"),
        ("exact, tokens]", "{scorer: cosine, parameters: {max_lenght: 1}}]", 13, "max_lenght"),
        ("exact, tokens]", "{scorer: exact, pass_at: [4]}]", 13, "samples: 4"),
        ("exact, tokens]", "length]", 13, "samples: 2"),
        ("exact, tokens]", "my.py:score]", 13, "no such file"),
        ("max exact", "max exakt", 14, "no score 'exakt'"),
        ("max exact with tokens <= 100", "the best", 14, "is not a rule; write all, none"),
        ("max_tokens: 6", "preset: openrs", 12, "did you mean 'open-rs'?"),
        ("max_tokens: 6", "template: hello", 12, "{problem}"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    file: Path, tmp_path: Path, old: str, new: str, line: int, told: str
) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(RecipeError) as error:
        evaluate_sweep(file, tmp_path / "out")
    assert_one_line(str(error.value), f"recipe.yml:{line}:", told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no problems"),
        ("{}\n", "nothing is asked"),
        ('{"problem": "1"}\n[', "sums.jsonl:2: not JSON"),
        ('{"problem": "1"}\n', "sums.jsonl:1: has no answer"),
        ('{"problem": "1", "answer": [1]}', "the answer is a text"),
        ('{"problem": "1", "id": "a"}\n\n{"problem": "1", "id": "a"}', "sums.jsonl:3: id 'a'"),
        ('{"messages": [{"role": "user"}]}', "is a list of"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "asks nothing"),
    ],
)
def test_wrong_problems(file: Path, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "sums.jsonl").write_text(text)
    with pytest.raises(InputError) as error:
        evaluate_sweep(file, tmp_path / "out")
    assert_one_line(str(error.value), told)


# -- the rule ----------------------------------------------------------------------------------------

ENTRIES = [
    Entry(name, role, scores={"a": Score(a, 0, a, a, 9), "t": Score(t, 0, t, t, 9)})  # type: ignore[arg-type]
    for name, role, a, t in [
        ("expert", "expert", 0.9, 100.0),
        ("p1", "point", 0.8, 50.0),
        ("p2", "point", 0.7, 60.0),
        ("p3", "point", 0.6, 10.0),
    ]
]


@pytest.mark.parametrize(
    ("keep", "chosen"),
    [
        ("all", {"p1", "p2", "p3"}),
        ("none", set()),
        ("front", {"p1", "p3"}),
        ({"front": ["a"]}, set()),
        ("best: a", {"p1"}),
        ({"best": "t"}, {"p3"}),
        ("max a with t < 20", {"p3"}),
        ("max a with t <= 60 and a < 0.8", {"p2"}),
        ("min a", {"p3"}),
        ("max a with t < 5", set()),
    ],
)
def test_rules(keep: str | Mapping[str, str | list[str]], chosen: set[str]) -> None:
    rule = parse_rule(keep, {"a": "max", "t": "min"}, Document({}))
    assert set(rule(ENTRIES)) == chosen


def test_models_of_one_name_are_told_apart(tmp_path: Path, recipe_file: RecipeFile) -> None:
    for name in ("one/x", "two/x"):
        peers.make_model(tmp_path / name, layers=1)
    (tmp_path / "sums.jsonl").write_text('{"problem": "what is 1 + 1 ="}\n')
    text = SWEEP.replace("  base: ./base\n", "").replace("./a", "./one/x").replace("./b", "./two/x")
    text = text.replace("m_w{{", "x_{{").replace("exact, ", "")
    text = text.replace('"max exact with tokens <= 100"', "none")
    found = evaluate_sweep(recipe_file(text), tmp_path / "out")
    assert len({e.name for e in found.entries}) == 4
    assert found.chosen == {}
    assert participants.SAMPLES in [p.name for p in (tmp_path / "out").iterdir()]


def test_points_that_only_leaves_out_stay_in_the_results(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = evaluate_sweep(file, out, only=["w=0.7"], write=False)
    assert [entry.name for entry in first.points] == ["m_w0.7"]
    both = evaluate_sweep(file, out, only=["w=0.3"], write=False)
    assert [entry.name for entry in both.entries] == ["base", "a", "b", "m_w0.3", "m_w0.7"]
    assert both.points[1].scores == first.points[0].scores
    assert both.points[1].effective == pytest.approx(first.points[0].effective)
    assert results.read(out) == both
    assert (out / "results.csv").read_text().count("m_w0.") == 2
    kept = out / "samples" / "m_w0.7.jsonl"
    kept.write_text(kept.read_text().splitlines(keepends=True)[0])
    again = evaluate_sweep(file, out, only=["w=0.3"], write=False)
    assert [entry.name for entry in again.points] == ["m_w0.3"], "half a point has no scores"
    evaluate_sweep(file, out, write=False)
    monkeypatch.setattr(LiveModel, "become", None)  # nothing is generated
    assert evaluate_sweep(file, out, only=["w=0.3"], write=False) == both


def test_a_model_that_another_process_scores_comes_last(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "samples").mkdir(parents=True)
    monkeypatch.setattr(sharing, "WAIT", 0.01)
    held = Lock(out / "samples" / ".a.lock")
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Waiting):
            held.release()

    found = evaluate_sweep(file, out, write=False, on_progress=listen)
    assert [entry.name for entry in found.entries] == ["base", "a", "b", "m_w0.3", "m_w0.7"]
    scored = [event.turn.model for event in events if isinstance(event, Scored)]
    assert scored == ["base", "b", "m_w0.3", "m_w0.7", "a"]
    waited = [event.turn for event in events if isinstance(event, Waiting)]
    assert waited == [Turn("a", 2, 5)]
    assert not list((out / "samples").glob(".*.lock"))


def test_threads_share_work_without_doing_any_twice(tmp_path: Path) -> None:
    done: dict[str, str] = {}
    turns = threading.Barrier(2)

    def work(_place: int, item: str) -> str:
        if item not in done:  # as completions that are kept
            done[item] = threading.current_thread().name
            time.sleep(0.02)
        return item.upper()

    def run() -> None:
        turns.wait()
        results.append(
            sharing.each_once(list("abcdef"), lambda i: tmp_path / i, work, lambda *_: None)
        )

    results: list[list[str]] = []
    crew = [threading.Thread(target=run) for _ in range(2)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert results == [list("ABCDEF")] * 2
    assert len(set(done.values())) == 2, "one thread did everything"


def test_what_stops_the_writing_stops_the_study_before_it_begins(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveModel, "become", None)
    out = tmp_path / "out"
    taken = out / "m_w0.7" / "notes.txt"
    taken.parent.mkdir(parents=True)
    taken.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"m_w0\.7: exists and is not empty"):
        evaluate_sweep(file, out)
    assert taken.read_text() == "mine"
    taken.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(ResourceError, match="out: has 1 kB free, and the merge needs"):
            evaluate_sweep(file, out)
    real = importlib.util.find_spec
    missing = {"moocore": "plot", "lm_eval": "lm-eval", "transformers": "eval"}
    for package, extra in missing.items():
        with monkeypatch.context() as patch:
            patch.setattr(
                importlib.util,
                "find_spec",
                lambda name, *rest, absent=package: None if name == absent else real(name, *rest),
            )
            text = SWEEP.replace('"max exact with tokens <= 100"', "front")
            if package == "lm_eval":
                text += "  lm_eval: [{task: t, metric: acc}]\n"
            file.write_text(text)
            with pytest.raises(MerganserError, match=rf"{package}.*merganser\[{extra}\]"):
                evaluate_sweep(file, out)


SCORERS = """
def strict(completion, problem):
    return 1 / 0

def late(completion, problem):
    if "boxed" not in completion:
        raise KeyError("no box")
    return 1
"""


def test_a_scorer_that_fails_does_so_before_anything_is_generated(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(SCORERS)
    file.write_text(SWEEP.replace("exact, tokens]", 'exact, tokens, "own.py:strict"]'))
    monkeypatch.setattr(LiveModel, "become", None)
    with pytest.raises(MerganserError) as caught:
        evaluate_sweep(file, tmp_path / "out", write=False)
    said = str(caught.value)
    assert "recipe.yml:14: evaluate.tasks[0].scorers[2]" in said
    assert "failed on a test completion" in said
    assert "ZeroDivisionError: division by zero; own.py:3: return 1 / 0" in said


def test_a_scorer_that_fails_later_loses_no_completion(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(SCORERS)
    file.write_text(SWEEP.replace("exact, tokens]", 'exact, tokens, "own.py:late"]'))
    out = tmp_path / "out"
    with pytest.raises(MerganserError, match=r"own\.py:7: raise KeyError") as caught:
        evaluate_sweep(file, out, write=False)
    assert "base.jsonl and are reused" in caught.value.__notes__[0]
    kept = (out / "samples" / "base.jsonl").read_text()
    assert kept.count("\n") == 4
    file.write_text(SWEEP)
    events: list[Event] = []
    evaluate_sweep(file, out, write=False, on_progress=events.append)
    [base, *_] = [event for event in events if isinstance(event, Scored)]
    assert (base.turn.model, base.generated) == ("base", 0)


def test_plan_checks_how_points_are_scored(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    real = importlib.util.find_spec
    with monkeypatch.context() as patch:  # planning runs no model, so it needs no transformers
        patch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name == "transformers" else real(name, *rest),
        )
        assert run(cli.main, ["plan", str(file)]).exit_code == 0
    file.write_text(SWEEP.replace("max exact", "max exakt"))
    wrong = run(cli.main, ["plan", str(file)])
    assert wrong.exit_code == 2
    assert_one_line(wrong.stderr.strip(), "recipe.yml:15", "no score 'exakt'")


REFERENCES = """
  references:
    - {model: ./mixed, role: mixed, name: both rewards}
    - name: theirs
      role: published
      source: arXiv:2503.16219
      scores: {exact: {mean: 0.467, problems: 30}, tokens: {mean: 4.5, error: 0.5}}
"""


def test_references_are_scored_and_stated(file: Path, tmp_path: Path) -> None:
    peers.make_model(tmp_path / "mixed", seed=9, layers=1)
    file.write_text(SWEEP + REFERENCES)
    found = evaluate_sweep(file, tmp_path / "out", write=False)
    assert results.read(tmp_path / "out") == found
    assert [(e.name, e.role) for e in found.entries[3:5]] == [
        ("both-rewards", "mixed"),
        ("theirs", "published"),
    ]
    mixed, theirs = found.references
    assert (tmp_path / "out" / "samples" / "both-rewards.jsonl").is_file()
    assert mixed.scores.keys() == {"exact", "tokens"}
    assert theirs.samples is None
    assert theirs.source == "arXiv:2503.16219"
    assert theirs.scores["exact"].problems == 30
    again = evaluate_sweep(file, tmp_path / "out", only=["w=0.3"], write=False)
    assert [e.name for e in again.entries] == [e.name for e in found.entries]
    compared = compare(tmp_path / "out", scores=["tokens"])
    assert {row.reference for row in compared.rows} == {"base", "a", "b", "both-rewards", "theirs"}
    assert {r.problems for r in compared.rows if r.reference == "theirs"} == {0}
    page.write(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "hypervolume, theirs alone" in text
    assert "2 references" in text


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("./mixed", "./mixd", 17, "./mixd: no such folder"),
        ("./mixed", "./a", 18, "references[0]: ./a is a model of the study already"),
        ("exact: {mean", "exat: {mean", 22, "no score 'exat'; did you mean 'exact'?"),
        (", problems: 30", "", 22, "its uncertainty is missing: give error"),
        ("name: theirs", "name: both rewards", 19, "two models are called"),
        ("model: ./mixed, ", "", 18, "give either a model, which is scored, or scores and a name"),
        ("role: mixed", "role: mixt", 18, "references[0].role"),
    ],
)
def test_slips_in_references(
    file: Path, tmp_path: Path, old: str, new: str, line: int, told: str
) -> None:
    peers.make_model(tmp_path / "mixed", seed=9, layers=1)
    file.write_text((SWEEP + REFERENCES).replace(old, new))
    with pytest.raises(MerganserError) as refused:
        evaluate_sweep(file, tmp_path / "out")
    assert_one_line(str(refused.value), f"{file}:{line}: ", told)
