"""`merganser plan --json` and `merganser merge --plan`: the same bytes, here and elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from checkpoints_on_disk import make_model, tree
from merganser.cli import main
from messages import assert_one_line

RECIPE = """
merge_method: linear
models:
  - {model: in/a, parameters: {weight: 0.3}}
  - {model: in/b, parameters: {weight: 0.7}}
"""


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def plan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        make_model(tmp_path / "in" / name, layers=1, hidden=8, seed=seed)
    (tmp_path / "recipe.yml").write_text(RECIPE)
    file = tmp_path / "plan.json"
    file.write_text(run("plan", "recipe.yml", "--json").stdout)
    return file


def files(folder: Path) -> dict[str, bytes]:
    """All that is the same whenever it is written."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    del found["merge_manifest.json"]
    return found


def test_a_plan_and_its_recipe_give_the_same_bytes(plan_file: Path, tmp_path: Path) -> None:
    run("merge", "recipe.yml", tmp_path / "one" / "out")
    run("merge", "--plan", plan_file, tmp_path / "two" / "out")
    assert files(tmp_path / "two" / "out") == files(tmp_path / "one" / "out")
    assert run("verify", tmp_path / "two" / "out", "--recompute").exit_code == 0


def test_the_inputs_may_lie_elsewhere(plan_file: Path, tmp_path: Path) -> None:
    run("merge", "recipe.yml", tmp_path / "one" / "out")
    shutil.copytree(tmp_path / "in", tmp_path / "copy")
    shutil.rmtree(tmp_path / "in")
    message = run("merge", "--plan", plan_file, tmp_path / "out", code=3).stderr.strip()
    assert_one_line(message, "no such model")
    run("merge", "--plan", plan_file, "--root", tmp_path / "copy", tmp_path / "two" / "out")
    assert files(tmp_path / "two" / "out") == files(tmp_path / "one" / "out")


def test_digests_of_a_plan(plan_file: Path) -> None:
    planned = run("merge", "--plan", plan_file, "--sink", "digest").stdout
    assert planned == run("merge", "recipe.yml", "--sink", "digest").stdout


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--plan", "plan.json", "recipe.yml", "out"), 2, "in place of CONFIG"),
        (("--plan", "plan.json", "out", "--seed", "3"), 2, "seed"),
        (("recipe.yml", "out", "--root", "in"), 2, "--root"),
        (("--plan", "nothing.json", "out"), 2, "cannot be read"),
        (("--plan", "recipe.yml", "out"), 2, "not valid JSON"),
        ((), 2, "missing argument 'CONFIG'"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    plan_file: Path, tmp_path: Path, words: tuple[str, ...], code: int, part: str
) -> None:
    before = tree(tmp_path)
    assert_one_line(run("merge", *words, code=code).stderr.strip(), part)
    assert tree(tmp_path) == before


def test_a_plan_of_another_version_is_refused(plan_file: Path, tmp_path: Path) -> None:
    written = json.loads(plan_file.read_text())
    plan_file.write_text(json.dumps(written | {"merganser_plan": 7}))
    message = run("merge", "--plan", plan_file, tmp_path / "out", code=2).stderr
    assert_one_line(message.strip(), "version 7", "plan again")
    assert not (tmp_path / "out").exists()
