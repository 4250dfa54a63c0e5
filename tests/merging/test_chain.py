"""Files with several recipes: their order, what is planned, merged and kept, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import merganser
from checkpoints_on_disk import make_model, tree, write_json
from merganser import recipe
from merganser.cli import main
from merganser.errors import InputError, MerganserError, OutputExistsError, RecipeError
from merganser.merging.chain_plans import plan_all
from merganser.recipe.document import parse_documents
from merganser.recipe.steps import load_steps
from merganser.release import manifest
from merganser.sinks import NullSink
from messages import assert_one_line
from recipe_files import RecipeFile

THREE = """
    # the last comes first
    merge_method: slerp
    base_model: linear
    models: [{model: bfloat16}]
    parameters: {t: 0.25}
    ---
    name: linear
    merge_method: linear
    models:
      - {model: a, parameters: {weight: 0.25}}
      - {model: b, parameters: {weight: 0.75}}
    dtype: bfloat16
    --- # made from the one above
    name: bfloat16
    merge_method: task_arithmetic
    base_model: {model: {path: linear}}
    models: [{model: c, parameters: {weight: 0.5}}]
    """
"""Names that are also a method's and a dtype's; one reference is a mapping."""


@pytest.fixture
def three(tmp_path: Path, recipe_file: RecipeFile) -> Path:
    """A recipe of three documents on three models, and the current folder is another."""
    for seed, name in enumerate("abc"):
        make_model(tmp_path / name, seed=seed)
    return recipe_file(THREE)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return result


def made(results: list[Any]) -> dict[str | None, bool]:
    """Which steps were merged, rather than kept, in the order in which they were run."""
    return {result.step.name: result.merged is not None for result in results}


def by_hand(tmp_path: Path, out: Path) -> None:
    """The same three merges, each with a recipe of its own."""
    first: list[Any] = [{"model": str(tmp_path / name)} for name in "ab"]
    for entry, weight in zip(first, (0.25, 0.75), strict=True):
        entry["parameters"] = {"weight": weight}
    merganser.merge({"merge_method": "linear", "models": first, "dtype": "bfloat16"}, out / "1")
    second = {"model": str(tmp_path / "c"), "parameters": {"weight": 0.5}}
    base = {"base_model": str(out / "1")}
    merganser.merge({"merge_method": "task_arithmetic", "models": [second], **base}, out / "2")
    last = {"models": [{"model": str(out / "2")}], "parameters": {"t": 0.25}}
    merganser.merge({"merge_method": "slerp", **last, **base}, out / "3")


# -- merging ---------------------------------------------------------------------------------------


def test_each_merge_has_the_bytes_of_its_own_recipe(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = merganser.merge_all(three, out)
    assert [result.step.name for result in results] == ["linear", "bfloat16", None]
    kept = tmp_path / "out.intermediate"
    assert [result.folder for result in results] == [kept / "linear", kept / "bfloat16", out]
    by_hand(tmp_path, tmp_path / "hand")
    for number, result in enumerate(results, 1):
        assert weights(result.folder) == weights(tmp_path / "hand" / str(number))
        assert merganser.verify(result.folder, recompute=True) == []
        assert (result.folder / "tokenizer.json").is_file()


def test_cards_show_their_own_text_and_the_recipe_is_whole(three: Path, tmp_path: Path) -> None:
    results = merganser.merge_all(three, tmp_path / "out")
    written = three.read_text()
    for result in results:
        card = (result.folder / "README.md").read_text()
        shown = card.split("```yaml\n")[1].split("```")[0]
        assert yaml.safe_load(shown) == yaml.safe_load(shown)
        [own] = [d for d in parse_documents(written) if d.data == yaml.safe_load(shown)]
        assert shown == own.text
    assert "# the last comes first" in (tmp_path / "out" / "README.md").read_text()
    assert "# made from the one above" in (results[1].folder / "README.md").read_text()
    again = tmp_path / "again"
    for (
        name
    ) in "abc":  # the recipe in the output leads to the same output, from where the models are
        (tmp_path / "out" / name).symlink_to(tmp_path / name)
    merganser.merge_all(tmp_path / "out" / "mergekit_config.yml", again)
    assert weights(again) == weights(tmp_path / "out")


def test_a_public_merge_names_no_folder(three: Path, tmp_path: Path) -> None:
    text = three.read_text().replace("model: a", f"model: {tmp_path}/a")
    three.write_text(text)
    results = merganser.merge_all(three, tmp_path / "out", public=True)
    for result in results:
        for name, data in tree(result.folder).items():
            assert str(tmp_path).encode() not in data, (result.folder, name)
    assert len(recipe.load_all(tmp_path / "out" / "mergekit_config.yml")) == 3


@pytest.mark.parametrize("public", [False, True])
def test_a_chain_is_recomputed_from_its_first_inputs(
    three: Path, tmp_path: Path, public: bool
) -> None:
    out = tmp_path / "out"
    merganser.merge_all(three, out, public=public, rounding="stochastic", seed=5)
    assert merganser.verify(out, against=tmp_path) == []
    shutil.rmtree(tmp_path / "out.intermediate")
    assert merganser.verify(out, against=tmp_path) == []
    if not public:
        assert merganser.verify(out, recompute=True) == []
    make_model(tmp_path / "b", seed=9)
    *_, last = merganser.verify(out, against=tmp_path)
    assert_one_line(last, "merged again from the inputs")


def test_the_manifest_of_a_chain_names_the_inputs_of_all_recipes(
    three: Path, tmp_path: Path
) -> None:
    merganser.merge_all(three, tmp_path / "out")
    stated = manifest.read(tmp_path / "out")
    assert [each["name"] for each in stated["earlier"]] == ["linear", "bfloat16"]
    first, second = (each["inputs"] for each in stated["earlier"])
    assert [entry["reference"] for entry in (*first, *second)] == ["a", "b", "c", "linear"]
    kept = manifest.read(tmp_path / "out.intermediate" / "linear")["inputs"]
    assert [entry["digest"] for entry in first] == [entry["digest"] for entry in kept]
    assert len({entry["digest"] for entry in (*first, *second)}) == 4
    inputs = (tmp_path / "out" / "README.md").read_text().split("commit, or digest")[1]
    assert [line.split("`")[1] for line in inputs.splitlines()[2:]] == ["a", "b", "c"]


def test_intermediates_go_where_they_are_told_to(three: Path, tmp_path: Path) -> None:
    run("merge", three, tmp_path / "out", "-I", tmp_path / "work", "--no-copy-tokenizer")
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["bfloat16", "linear"]
    assert not (tmp_path / "out.intermediate").exists()
    assert (tmp_path / "work" / "linear" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_a_result_takes_the_place_of_a_folder_of_that_name(
    tmp_path: Path, recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(["a", "b", "stage"]):
        make_model(tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    file = recipe_file(
        """
        name: stage
        merge_method: passthrough
        models: [{model: b}]
        ---
        merge_method: passthrough
        models: [{model: stage}]
        """
    )
    merganser.merge_all(file, "out")
    names = list(merganser.plan({"merge_method": "passthrough", "models": [{"model": "b"}]}).jobs)
    assert names
    stated, wanted = (
        manifest.read(tmp_path / n)["tensors"] for n in ("out", "out.intermediate/stage")
    )
    assert stated == wanted
    other = merganser.merge(
        {"merge_method": "passthrough", "models": [{"model": "stage"}]}, "other"
    )
    assert other.manifest["tensors"] != stated


# -- only what changed is done again ---------------------------------------------------------------


def test_only_what_changed_is_merged_again(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def again(**options: Any) -> dict[str | None, bool]:
        return made(merganser.merge_all(three, out, force=True, **options))

    def steps(*changed: str) -> dict[str | None, bool]:
        return {"linear": "linear" in changed, "bfloat16": "bfloat16" in changed, None: True}

    assert again() == steps("linear", "bfloat16")
    assert again() == steps()
    assert again(redo=True) == steps("linear", "bfloat16")
    three.write_text(three.read_text().replace("weight: 0.5", "weight: 0.6"))
    assert again() == steps("bfloat16")
    three.write_text(three.read_text().replace("weight: 0.75", "weight: 0.7"))
    assert again() == steps("linear", "bfloat16")
    three.write_text(three.read_text().replace("{t: 0.25}", "{t: 0.5}"))
    assert again() == steps()
    assert again(arithmetic="mergekit") == steps("linear", "bfloat16")
    assert again(arithmetic="mergekit") == steps()


def test_an_input_that_changed_is_noticed(three: Path, tmp_path: Path) -> None:
    """Another model of the same shape, even an older one: headers are the same."""
    out = tmp_path / "out"
    merganser.merge_all(three, out)
    make_model(tmp_path / "new", seed=9)
    for file in (tmp_path / "new").iterdir():
        os.utime(file, (1e9, 1e9))
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "new").rename(tmp_path / "c")
    results = merganser.merge_all(three, out, force=True)
    assert made(results) == {"linear": False, "bfloat16": True, None: True}


def test_a_merge_that_was_cut_off_is_not_built_on(three: Path, tmp_path: Path) -> None:
    """The first result is new, the second is still of the old first one."""
    out = tmp_path / "out"
    merganser.merge_all(three, out)
    three.write_text(three.read_text().replace("weight: 0.75", "weight: 0.7"))
    first = load_steps(three)[0].parsed
    merganser.merge(first, tmp_path / "out.intermediate" / "linear", force=True)
    results = merganser.merge_all(three, out, force=True)
    assert made(results) == {"linear": False, "bfloat16": True, None: True}


@pytest.mark.parametrize("damage", ["cut", "gone", "no manifest", "another dtype"])
def test_a_damaged_result_is_merged_again(three: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    merganser.merge_all(three, out)
    before = weights(out)
    folder = tmp_path / "out.intermediate" / "linear"
    file = folder / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif damage == "gone":
        file.unlink()
    elif damage == "another dtype":
        file.write_bytes(file.read_bytes().replace(b"BF16", b"F16 ", 1).replace(b"F16 ", b"F16"))
    else:
        shutil.rmtree(folder)
    results = merganser.merge_all(three, out, force=True)
    assert made(results)["linear"]
    assert weights(out) == before


def test_what_no_merge_left_is_not_replaced(three: Path, tmp_path: Path) -> None:
    notes = tmp_path / "out.intermediate" / "linear" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.touch()
    with pytest.raises(OutputExistsError) as error:
        merganser.merge_all(three, tmp_path / "out")
    assert_one_line(str(error.value), str(notes.parent), "another folder for intermediate results")
    assert notes.exists()


# -- which documents are the output ----------------------------------------------------------------

PAIR = """
    name: one
    merge_method: passthrough
    models: [{{model: a}}]
    ---
    name: two
    merge_method: linear
    models: [{{model: {other}, parameters: {{weight: 1}}}}, {{model: b, parameters: {{weight: 1}}}}]
    """


def test_where_all_have_names_the_one_that_none_needs_is_the_output(
    pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path
) -> None:
    merganser.merge_all(recipe_file(PAIR.format(other="one")), tmp_path / "out")
    assert (tmp_path / "out.intermediate" / "one" / "model.safetensors").is_file()
    assert manifest.read(tmp_path / "out")["method"] == "linear"
    assert "# two\n" in (tmp_path / "out" / "README.md").read_text()


def test_several_outputs_go_to_folders_of_their_names(
    pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path
) -> None:
    file = recipe_file(PAIR.format(other="a"))
    merganser.merge_all(file, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one", "two"]
    assert not (tmp_path / "out.intermediate").exists()
    with pytest.raises(OutputExistsError):
        merganser.merge_all(file, tmp_path / "out")
    merganser.merge_all(file, tmp_path / "out", force=True)


def test_one_recipe_may_have_any_name(linear: Path, tmp_path: Path) -> None:
    linear.write_text("name: a / b\n" + linear.read_text())
    [result] = merganser.merge_all(linear, tmp_path / "out")
    assert result.folder == tmp_path / "out"


def test_a_document_that_none_uses_is_told_of(
    pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path
) -> None:
    file = recipe_file(
        """
        merge_method: passthrough
        models: [{model: a}]
        ---
        merge_method: passthrough
        name: spare
        models: [{model: b}]
        """
    )
    result = run("merge", file, tmp_path / "out", "-q")
    assert_one_line(result.stderr, "warning: ", "recipe.yml:5: ", "no other document uses")
    assert (tmp_path / "out.intermediate" / "spare" / "model.safetensors").is_file()
    result = run("merge", file, tmp_path / "new", "--strict", code=2)
    assert_one_line(result.stderr, "recipe.yml:5: ")


# -- planning --------------------------------------------------------------------------------------


def test_all_is_planned_before_anything_is_there(three: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    data = json.loads(run("plan", three, "--json").stdout)
    assert [entry["name"] for entry in data["documents"]] == ["linear", "bfloat16", None]
    assert tree(tmp_path) == before
    results = merganser.merge_all(three, tmp_path / "out")
    assert [r.plan.digest for r in results] == [entry["digest"] for entry in data["documents"]]
    shown = run("plan", three).stdout
    for part in ("linear, intermediate result", "bfloat16, intermediate result", "── output"):
        assert part in shown


def test_the_last_recipe_is_checked_before_the_first_is_merged(three: Path, tmp_path: Path) -> None:
    three.write_text(three.read_text().replace("{t: 0.25}", "{t: [0.25, wrong]}"))
    run("merge", three, tmp_path / "out", code=2)
    assert not (tmp_path / "out.intermediate").exists()
    three.write_text(three.read_text().replace("[0.25, wrong]", "0.25"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    run("merge", three, tmp_path / "out", code=2)
    assert not (tmp_path / "out.intermediate").exists()


UNION = """
    name: stage
    merge_method: linear
    models:
      - {model: a, parameters: {weight: 1}}
      - {model: b, parameters: {weight: 1}}
    tokenizer_source: union
    ---
    name: next
    merge_method: linear
    models:
      - {model: stage, parameters: {weight: 1}}
      - {model: c, parameters: {weight: 1}}
    tokenizer_source: base
    ---
    merge_method: passthrough
    models: [{model: next}]
    """


@pytest.mark.parametrize("more", [[], ["<new>"]], ids=["same tokenizers", "a new token"])
def test_what_needs_a_tokenizer_that_is_not_there_waits_for_it(
    tmp_path: Path, recipe_file: RecipeFile, more: list[str]
) -> None:
    for seed, name in enumerate("abc"):
        make_model(tmp_path / name, seed=seed)
    tokenizer = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(more)}
    write_json(tmp_path / "b" / "tokenizer.json", tokenizer)
    file = recipe_file(UNION)
    known = [plan is not None for _, plan in plan_all(file)]
    assert known == ([True, False, False] if more else [True, True, True])
    told = run("plan", file).stdout
    assert told.count("once the merges that write its tokenizers") == known.count(False)
    data = json.loads(run("plan", file, "--json").stdout)["documents"]
    assert [document["needs"] for document in data] == [[], ["stage"], ["next"]]
    assert ["digest" in document for document in data] == known
    results = merganser.merge_all(file, tmp_path / "out")
    assert merganser.verify(tmp_path / "out", recompute=True) == []
    if not more:
        digests = [document["digest"] for document in data]
        assert [result.plan.digest for result in results] == digests
    again = merganser.merge_all(file, tmp_path / "out", force=True)
    assert made(again) == {"stage": False, "next": False, None: True}


def test_an_adapter_goes_on_a_result(
    pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(
        adapter / "adapter_config.json",
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]},
    )
    prefix = "base_model.model.model.layers.0.self_attn.o_proj.lora_"
    factors = {f"{prefix}A.weight": torch.ones(2, 16), f"{prefix}B.weight": torch.ones(16, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    file = recipe_file(
        """
        name: stage
        merge_method: passthrough
        models: [{model: a}]
        ---
        merge_method: passthrough
        models: [{model: stage+adapter}]
        """
    )
    digest = [plan.digest for _, plan in plan_all(file) if plan is not None]
    results = merganser.merge_all(file, tmp_path / "out")
    assert [result.plan.digest for result in results] == digest
    name = "model.layers.0.self_attn.o_proj.weight"
    before, after = (load_file(f / "model.safetensors")[name] for f in (pair[0], tmp_path / "out"))
    assert torch.equal(after, (before.float() + 4.0).bfloat16())


def test_what_is_planned_cannot_be_read(three: Path) -> None:
    plan = plan_all(three)[1][1]
    assert plan is not None
    with pytest.raises(InputError) as error:
        merganser.run([plan], [NullSink()])
    assert_one_line(str(error.value), "linear", "not merged yet")


# -- the command line ------------------------------------------------------------------------------


def test_the_command_tells_of_every_merge(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run("merge", three, out).stdout
    for folder in ("out.intermediate/linear", "out.intermediate/bfloat16", "out: "):
        assert str(tmp_path / folder) in first
    again = run("merge", three, out, "--force").stdout
    assert f"{tmp_path}/out.intermediate/linear: is up to date" in again
    data = json.loads(run("merge", three, out, "--force", "--json").stdout)
    assert data["up_to_date"] == [
        f"{tmp_path}/out.intermediate/{n}" for n in ("linear", "bfloat16")
    ]
    assert [merge["out"] for merge in data["merges"]] == [str(out)]
    data = json.loads(run("merge", three, out, "--force", "--json", "--no-lazy").stdout)
    assert len(data["merges"]) == 3


def test_sinks_that_are_no_folder_take_one_recipe(three: Path) -> None:
    result = run("merge", three, "--sink", "null", code=2)
    assert_one_line(result.stderr, "recipe.yml:7: ", "one is expected", "3")


# -- what is refused -------------------------------------------------------------------------------


def document(name: str | None, *models: str) -> str:
    data: dict[str, Any] = {} if name is None else {"name": name}
    data |= {"merge_method": "linear", "models": [{"model": model} for model in models]}
    return yaml.safe_dump(data, sort_keys=False)


@pytest.mark.parametrize(
    ("documents", "line", "parts"),
    [
        ([document("x", "a"), document("x", "b")], 6, ["'x'", "two documents", "line 1"]),
        ([document("x y", "a"), document("x?y", "b")], 6, ["'x?y'", "same folder"]),
        ([document("Stage", "a"), document("stage", "b")], 6, ["'stage'", "same folder"]),
        ([document(None, "a"), document(None, "b")], 5, ["no name", "line 1"]),
        ([document("x", "y"), document("y", "a", "x")], 4, ["circle", "'x' needs 'y' needs 'x'"]),
        ([document("x", "x"), document(None, "x")], 4, ["circle", "'x' needs 'x'"]),
        ([document("..", "a"), document(None, "..")], 1, ["'..'", "folder"]),
        ([document("stage1", "a"), document(None, "b", "stage2")], 9, ["'stage2'", "'stage1'"]),
        ([document("x", "a"), "merge_method: linear\nmodel: []\n"], 7, ["'models'"]),
        ([document("x", "a"), "- a\n"], 6, ["mapping"]),
        (
            [document("x", "a"), "merge_method: a\nmerge_method: b\n"],
            7,
            ["'merge_method'", "twice"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) and len(value) < 2 else None,
)
def test_what_cannot_be_a_chain_is_refused_in_one_line(
    recipe_file: RecipeFile, documents: list[str], line: int, parts: list[str]
) -> None:
    file = recipe_file("---\n".join(documents))
    with pytest.raises(RecipeError) as error:
        load_steps(file)
    assert_one_line(str(error.value), f"{file}:{line}: ", *parts)


def test_a_longer_circle_is_told_without_what_leads_to_it(recipe_file: RecipeFile) -> None:
    file = recipe_file(
        "---\n".join(
            [document(None, "x"), document("x", "y"), document("y", "z"), document("z", "y")]
        )
    )
    with pytest.raises(RecipeError, match=r":13: .*'y' needs 'z' needs 'y'$"):
        load_steps(file)


def test_a_missing_model_is_told_of_as_ever(three: Path, tmp_path: Path) -> None:
    three.write_text(three.read_text().replace("model: c", "model: ./nowhere"))
    with pytest.raises(MerganserError) as error:
        merganser.merge_all(three, tmp_path / "out")
    assert_one_line(str(error.value), "./nowhere", "no such folder")


@pytest.mark.parametrize("where", ["out", "out/inside", "."])
def test_intermediates_lie_beside_the_output(three: Path, tmp_path: Path, where: str) -> None:
    with pytest.raises(OutputExistsError) as error:
        merganser.merge_all(three, tmp_path / "out", intermediate_dir=tmp_path / where)
    assert_one_line(str(error.value), "beside")
    assert not (tmp_path / "out").exists()


def test_one_recipe_is_wanted_by_merge(three: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        merganser.merge(three, tmp_path / "out")
    assert_one_line(str(error.value), f"{three}:7: ", "3")


# -- documents -------------------------------------------------------------------------------------


def test_documents_have_the_files_lines_and_their_own_text() -> None:
    text = "# head\nname: a\n---\n# of b\nx:\n  - 1\n...\n--- # of c\ny: 2\n---\n"
    first, second, third = parse_documents(text)
    assert [d.data for d in (first, second, third)] == [{"name": "a"}, {"x": [1]}, {"y": 2}]
    assert first.text == "# head\nname: a\n"
    assert second.text == "# of b\nx:\n  - 1\n...\n"
    assert third.text == "# of c\ny: 2\n"
    assert second.lines[("x", 0)] == 6
    assert third.lines[("y",)] == 9


@pytest.mark.parametrize("text", ["---\nx: 1\n", "x: 1\n---\n", "---\n---\nx: 1\n...\n", "x: 1"])
def test_empty_documents_are_none(text: str) -> None:
    [only] = parse_documents(text)
    assert only.data == {"x": 1}
    assert only.text == text


@pytest.mark.parametrize("text", ["", "---\n---\n", "# nothing\n"])
def test_a_file_of_nothing_is_empty(text: str) -> None:
    with pytest.raises(RecipeError, match="is empty"):
        parse_documents(text)
