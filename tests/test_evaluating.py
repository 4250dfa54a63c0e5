"""A sweep that is evaluated: scored in memory, resumed, and only what its rule keeps is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

import peers
from conftest import RecipeFile, assert_one_line
from merganser import cli
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation import samples
from merganser.evaluation.statistics import Score
from merganser.recipe import Document
from merganser.study import evaluating, report, results
from merganser.study.evaluating import evaluate, evaluate_sweep, judge_again
from merganser.study.keep import parse_rule
from merganser.study.live import LiveModel
from merganser.study.results import Entry

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
    told = json.loads(report.measure(home).read_text())
    elsewhere = tmp_path / "elsewhere"
    for name in ("a", "b"):
        peers.make_model(elsewhere / name, seed=7, layers=1)
    monkeypatch.chdir(elsewhere)
    for place in (home, Path("..", "study", "out")):
        assert json.loads(report.measure(place).read_text()) == told
    assert told[0]["whole"]["relative"] > 0
    shutil.move(tmp_path / "a", tmp_path / "gone")
    shutil.move(elsewhere / "a", tmp_path / "gone too")
    with pytest.raises(InputError, match=r"^\./a: "):
        report.measure(home)


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


def test_base_experts_and_points_are_scored_and_one_is_written(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = evaluate_sweep(file, out)
    assert results.read(out) == found
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

    def counted(self: LiveModel, decided: object, **options: object) -> object:
        blended.append(decided.recipe.recipe.name or "")  # type: ignore[attr-defined]
        return real(self, decided, **options)  # type: ignore[arg-type]

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

    def become(self: LiveModel, decided: object, **options: object) -> object:
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
    assert notes == [f"12 kept completions of b, m_w0.3, m_w0.7 {ending}"]
    monkeypatch.chdir(copied)
    text = (copied / file.name).read_text()
    (copied / file.name).write_text(text.replace("max_tokens: 6", "max_tokens: 5"))
    told = CliRunner().invoke(cli.main, ["sweep", file.name, "out", "--no-write", "-q"])
    assert_one_line(told.stderr.splitlines()[0], "8 kept", "the prompt or the sampling changed")
    assert_one_line(told.stderr.splitlines()[1], "8 kept", "./b and the prompt or the sampling")


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


def test_the_command(file: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(cli.main, ["sweep", str(file), str(tmp_path / "out"), "--no-write"])
    assert done.exit_code == 0, done.output
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
        ("max exact with tokens <= 100", "the best", 14, "none of all, none"),
        ("max_tokens: 6", "preset: openrs", 12, "greedy, open-rs"),
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
    assert evaluating.SAMPLES in [p.name for p in (tmp_path / "out").iterdir()]
