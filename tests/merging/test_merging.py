"""The output folder: what is in it, when it appears, and how it is verified."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import merganser
from checkpoints_on_disk import change_config, config, make_model, shapes, tree, write_json
from merganser import engine
from merganser.errors import InputError, MerganserError, OutputExistsError, RecipeError
from merganser.merging import folders
from merganser.merging.in_memory import blend, merge_state_dicts, merge_tensors
from merganser.merging.merge import merge
from merganser.merging.verify import verify
from messages import assert_one_line
from recipe_files import RecipeFile

INDEX, MANIFEST = "model.safetensors.index.json", "merge_manifest.json"
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: t for file in sorted(folder.glob("*.safetensors")) for k, t in load_file(file).items()
    }


def average(a: Path, b: Path) -> dict[str, torch.Tensor]:
    one, two = weights(a), weights(b)
    return {k: (0.25 * one[k].float() + 0.75 * two[k].float()).bfloat16() for k in one}


def recipe_of(*folders: Path, **more: Any) -> dict[str, Any]:
    models = [{"model": str(folder), "parameters": {"weight": 1}} for folder in folders]
    return {"merge_method": "linear", "models": models, **more}


@pytest.fixture
def out(tmp_path: Path, linear: Path) -> Path:
    """The pair, merged."""
    folder = tmp_path / "out"
    merge(linear, folder)
    return folder


# -- what is in it ---------------------------------------------------------------------------------


def test_the_folder_is_whole(out: Path, linear: Path) -> None:
    a, b = linear.parent / "a", linear.parent / "b"
    assert set(tree(out)) == {
        "config.json",
        "model.safetensors",
        "mergekit_config.yml",
        "README.md",
        MANIFEST,
        *COMPANIONS,
    }
    for name, tensor in average(a, b).items():
        assert torch.equal(weights(out)[name], tensor), name
    for name in COMPANIONS:
        assert (out / name).read_bytes() == (a / name).read_bytes()
    assert (out / "mergekit_config.yml").read_bytes() == linear.read_bytes()


def test_shards_come_with_an_index(tmp_path: Path, linear: Path) -> None:
    result = merge(linear, tmp_path / "out", shard_size="4kB")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    held = {name: file.name for file in files for name in load_file(file)}
    assert index["weight_map"] == held
    assert index["metadata"] == {
        "total_size": sum(t.nbytes for t in weights(tmp_path / "out").values()),
        "total_parameters": result.plan.parameters,
    }
    for name, tensor in average(tmp_path / "a", tmp_path / "b").items():
        assert torch.equal(weights(tmp_path / "out")[name], tensor)


@pytest.mark.parametrize(
    ("keys", "changes", "expected"),
    [
        ({}, {}, {}),
        ({"dtype": "float32"}, {}, {"torch_dtype": "float32"}),
        ({"out_dtype": "float16"}, {}, {"torch_dtype": "float16"}),
        ({"dtype": "float32"}, {"torch_dtype": None, "dtype": "bfloat16"}, {"dtype": "float32"}),
        ({}, {"zulu": {"é": [1e-7, 1.5e300, None]}, "alpha": "ü"}, {}),
        ({"dtype": "float32"}, {"text_config": {"dtype": "bfloat16", "x": 1}},
         {"torch_dtype": "float32", "text_config": {"dtype": "float32", "x": 1}}),
    ],
)  # fmt: skip
def test_only_what_changed_is_edited_in_the_config(
    tmp_path: Path, keys: Mapping[str, Any], changes: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    a = change_config(make_model(tmp_path / "a"), **changes)
    before = json.loads((a / "config.json").read_text())
    merge(recipe_of(a, **keys), tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
    assert json.loads(text) == before | expected
    assert list(json.loads(text)) == list(before)
    assert json.loads(text)["max_position_embeddings"] == 131072
    if not keys and not changes:
        assert text == (a / "config.json").read_text()


def test_a_config_without_a_dtype_is_told_it(tmp_path: Path) -> None:
    a = change_config(make_model(tmp_path / "a"), torch_dtype=None)
    merge(recipe_of(a, dtype="float16"), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == config() | {"torch_dtype": "float16"}


def test_stacked_layers_change_the_config(tmp_path: Path) -> None:
    lists = {
        "layer_types": ["full", "slide", "full", "slide"],
        "max_window_layers": 4,
        "eos_token_id": [2, 5],
        "some_scales": [1, 2, 3, 4],
    }
    a = change_config(make_model(tmp_path / "a", layers=4), **lists)
    slices = [{"sources": [{"model": str(a), "layer_range": r}]} for r in ([0, 3], [1, 3], [3, 4])]
    merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    origin = [0, 1, 2, 1, 2, 3]
    assert written["num_hidden_layers"] == 6
    assert written["layer_types"] == [lists["layer_types"][i] for i in origin]
    assert written["some_scales"] == [1 + i for i in origin]
    assert written["eos_token_id"] == [2, 5]
    assert set(weights(tmp_path / "out")) == set(shapes(layers=6))
    source, stacked = weights(a), weights(tmp_path / "out")
    name = "model.layers.{}.mlp.up_proj.weight"
    for i, layer in enumerate(origin):
        assert torch.equal(stacked[name.format(i)], source[name.format(layer)])


@pytest.mark.parametrize(
    ("tied", "heads", "flag", "has_head"),
    [
        ((True, True), (True, True), True, False),
        ((True, False), (False, True), False, True),
        ((True, True), (False, False), True, False),
        ((False, False), (True, True), False, True),
    ],
)
def test_the_config_says_whether_the_head_is_tied(
    tmp_path: Path, tied: tuple[bool, bool], heads: tuple[bool, bool], flag: bool, has_head: bool
) -> None:
    folders = [make_model(tmp_path / str(i), tied=tied[i], head=heads[i], seed=i) for i in range(2)]
    merge(recipe_of(*folders), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is flag
    assert ("lm_head.weight" in weights(tmp_path / "out")) is has_head


def test_companions_come_from_the_base(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    base = make_model(tmp_path / "base")
    (base / "chat_template.jinja").write_text("the base's")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("the base's tool")
    (base / "optimizer.pt").write_text("no part of a published model")
    merge(recipe_of(*pair, base, base_model=str(base)), tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "the base's"
    assert "additional_chat_templates/tool.jinja" in tree(tmp_path / "out")
    assert "optimizer.pt" not in tree(tmp_path / "out")


def test_what_is_not_wanted_is_not_written(tmp_path: Path, linear: Path) -> None:
    merge(linear, tmp_path / "out", copy_tokenizer=False, write_card=False)
    assert set(tree(tmp_path / "out")).isdisjoint({"README.md", "tokenizer.json"})
    assert "generation_config.json" in tree(tmp_path / "out")


def test_a_model_without_a_tokenizer_is_told_of(tmp_path: Path) -> None:
    a = make_model(tmp_path / "a")
    (a / "tokenizer.json").unlink()
    result = merge(recipe_of(a), tmp_path / "out")
    [warning] = [w for w in result.manifest["warnings"] if "tokenizer" in w]
    assert_one_line(warning, str(a))


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, linear: Path) -> None:
    runs = [{"threads": 1}, {"threads": 4}, {"memory": 300 * 2**20}]
    trees = []
    for i, options in enumerate(runs):
        folder = tmp_path / f"run{i}" / "out"
        merge(linear, folder, **options)
        files = tree(folder)
        manifest = json.loads(files[MANIFEST])
        del manifest["log"]
        trees.append(files | {MANIFEST: json.dumps(manifest).encode()})
    assert trees[0] == trees[1] == trees[2]


def test_the_same_models_elsewhere_give_the_same_bytes(tmp_path: Path, linear: Path) -> None:
    (linear.parent / "recipe.yml").write_text(linear.read_text() + "license: mit\n")  # a warning
    found = []
    for place in ("here", "there"):
        shutil.copytree(tmp_path / "a", tmp_path / place / "a")
        shutil.copytree(tmp_path / "b", tmp_path / place / "b")
        shutil.copy(linear, tmp_path / place)
        merge(tmp_path / place / "recipe.yml", tmp_path / place / "out")
        files = tree(tmp_path / place / "out")
        manifest = json.loads(files[MANIFEST])
        del manifest["log"]
        assert str(tmp_path) not in json.dumps(manifest)
        found.append(files | {MANIFEST: json.dumps(manifest).encode()})
    assert found[0] == found[1]


def test_the_manifest_tells_what_went_in_and_came_out(out: Path, linear: Path) -> None:
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["method"] == "linear"
    assert manifest["plan"] == merganser.plan(linear).digest
    assert [entry["reference"] for entry in manifest["inputs"]] == ["./a", "./b"]
    content = (out / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert manifest["files"] == {
        "model.safetensors": {
            "size": len(content),
            "tensors": len(weights(out)),
            "header_size": header,
            "header_digest": f"sha256:{hashlib.sha256(content[:header]).hexdigest()}",
        }
    }
    assert set(manifest["tensors"]) == set(weights(out))
    models = manifest["effective_weights"]["models"]
    assert [m["given"] for m in models] == [0.25, 0.75]
    assert [m["requested"] for m in models] == pytest.approx([0.25, 0.75])
    assert [m["effective"] for m in models] == pytest.approx([0.25, 0.75], abs=0.01)
    assert models[1]["differ"] > 0.9


def test_weights_are_reported_without_rounding_errors(tmp_path: Path) -> None:
    asked = [0.3, 0.0, 0.1, 0.6]
    models = [
        {
            "model": str(make_model(tmp_path / f"m{seed}", seed=seed)),
            "parameters": {"weight": weight},
        }
        for seed, weight in enumerate(asked)
    ]
    report = merge({"merge_method": "linear", "models": models}, tmp_path / "out").outcome.report
    assert report is not None
    assert [m.requested for m in report.models] == asked


# -- when it appears -------------------------------------------------------------------------------


def fail(*_args: Any, **_more: Any) -> None:
    raise MerganserError("the disk is on fire")


def test_an_output_that_is_there_is_refused(tmp_path: Path, linear: Path) -> None:
    folder, file = tmp_path / "out", tmp_path / "file"
    folder.mkdir()
    (folder / "note.txt").write_text("mine")
    file.write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    before = tree(tmp_path)
    for target in (folder, file, tmp_path / "link"):
        with pytest.raises(OutputExistsError) as error:
            merge(linear, target)
        assert_one_line(str(error.value), str(target), "exists and is not")
    assert tree(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path, linear: Path) -> None:
    (tmp_path / "out").mkdir()
    merge(linear, tmp_path / "out")
    assert "model.safetensors" in tree(tmp_path / "out")


@pytest.mark.parametrize("target", [".", "./", "new/..", "new/", "../empty"])
def test_an_output_without_a_name_of_its_own_is_filled_or_refused(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    try:
        merge(linear, target)
    except MerganserError as error:
        assert_one_line(str(error), str((tmp_path / "empty").resolve()))
    else:
        assert "model.safetensors" in tree((tmp_path / "empty" / target).resolve())
    assert not list(tmp_path.rglob("*.partial"))


def test_force_keeps_the_old_folder_until_the_new_one_is_whole(
    tmp_path: Path, out: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "note.txt").write_text("old")
    before = tree(out)
    for module, name in (
        (engine, "run"),
        (folders, "_finish_folder"),
        (folders.card, "write_card"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(MerganserError, match="on fire"):
                merge(linear, out, force=True)
        assert tree(out) == before
    merge(linear, out, force=True)
    assert "note.txt" not in tree(out)
    assert not list(tmp_path.glob("out.*"))


def test_a_rename_that_fails_brings_the_old_folder_back(
    tmp_path: Path, out: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(out)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(MerganserError) as error:
        merge(linear, out, force=True)
    assert_one_line(str(error.value), str(out), "Input/output error")
    assert tree(out) == before


def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)
    monkeypatch.setattr(engine, "run", fail)
    for error in (KeyboardInterrupt, MerganserError):
        monkeypatch.setattr(
            engine, "run", lambda *_a, error=error, **_k: (_ for _ in ()).throw(error)
        )
        with pytest.raises(error):
            merge(linear, tmp_path / "out")
        assert tree(tmp_path) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "recipe.yml"]


def test_neighbours_of_the_output_are_left_alone(tmp_path: Path, out: Path, linear: Path) -> None:
    """``out.old`` is somebody's, and the place for the old folder must be another."""
    kept = tmp_path / "out.old"
    kept.mkdir()
    (kept / "note.txt").write_text("mine")
    merge(linear, out, force=True)
    assert (kept / "note.txt").read_text() == "mine"


def test_an_input_next_to_the_output_is_never_removed(tmp_path: Path, out: Path) -> None:
    name = "out.partial"
    model = make_model(tmp_path / name)
    before = tree(model)
    try:
        merge(recipe_of(model), out, force=True)
    except MerganserError as error:
        assert_one_line(str(error), name)
    assert tree(model) == before
    assert "model.safetensors" in tree(out)


@pytest.mark.parametrize("target", ["a", "a/merged", ".", "a/../b", "link", "link/merged"])
def test_an_output_that_touches_an_input_is_refused(
    tmp_path: Path, linear: Path, target: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError):
        merge(linear, tmp_path / target, force=True)
    assert tree(tmp_path) == before


def test_too_little_space_is_told_before_anything_is_written(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(MerganserError) as error:
        merge(linear, tmp_path / "new" / "out")
    assert_one_line(str(error.value), "1 kB free", "needs")
    assert error.value.exit_code == 4
    assert not (tmp_path / "new").exists()


def test_too_little_memory_is_told(tmp_path: Path, linear: Path) -> None:
    with pytest.raises(MerganserError) as error:
        merge(linear, tmp_path / "out", memory=10**6)
    assert_one_line(str(error.value), "memory", "1 MB")
    assert error.value.exit_code == 4
    assert not list(tmp_path.glob("out*"))


def test_a_place_that_cannot_be_written(tmp_path: Path, linear: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MerganserError) as error:
        merge(linear, tmp_path / "file" / "out")
    assert_one_line(str(error.value), "file")
    assert error.value.exit_code == 4


# -- verify ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded merge of float32 and bfloat16 models that tests damage, and mend again."""
    root = tmp_path_factory.mktemp("merged")
    a = make_model(root / "a", seed=1, dtype=torch.float32, extra={"count": torch.arange(7)})
    b = make_model(root / "b", seed=2, extra={"count": torch.arange(7)})
    merge(recipe_of(a, b, out_dtype="bfloat16"), root / "out", shard_size="20kB")
    return root / "out"


def test_a_merge_verifies(merged: Path) -> None:
    assert verify(merged) == []
    assert verify(merged, recompute=True) == []


@given(st.data())
@settings(max_examples=60)
def test_any_flipped_bit_is_found_and_its_tensor_named(merged: Path, data: Any) -> None:
    file = data.draw(st.sampled_from(sorted(merged.glob("*.safetensors"))))
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    position = data.draw(st.integers(header, len(content) - 1))
    damaged = bytearray(content)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    offsets = {
        name: entry["data_offsets"]
        for name, entry in json.loads(content[8:header]).items()
        if name != "__metadata__"
    }
    [hit] = [name for name, (b, e) in offsets.items() if b <= position - header < e]
    file.write_bytes(damaged)
    try:
        problems = verify(merged)
    finally:
        file.write_bytes(content)
    assert len(problems) == 1
    assert_one_line(problems[0], repr(hit))


def rewritten(folder: Path, change: Any) -> None:
    """Write a single-file model again, its tensors changed."""
    tensors = change(weights(folder))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}, ["lm_head.weight", "missing"]),
        (lambda t: t | {"stray": torch.ones(2)}, ["stray", "not in the manifest"]),
        (lambda t: t | {"model.norm.weight": t["model.norm.weight"].reshape(4, 4)}, ["model.norm.weight"]),
        (
            lambda t: t | {"model.norm.weight": t["model.norm.weight"].view(torch.float16)},
            ["model.norm.weight"],
        ),
    ],
)  # fmt: skip
def test_tensors_that_are_missing_added_or_relabelled(
    out: Path, change: Any, parts: list[str]
) -> None:
    rewritten(out, change)
    problems = verify(out)
    assert any(all(part in problem for part in parts) for problem in problems), problems
    for problem in problems:
        assert_one_line(problem)


def test_recomputing_finds_inputs_that_changed(out: Path, linear: Path) -> None:
    assert verify(out, recompute=True) == []
    make_model(linear.parent / "b", seed=9)
    problems = verify(out, recompute=True)
    assert len(problems) == 1 + len(weights(out))
    assert_one_line(problems[0], "27 of 27 tensors of the input ./b are not what was merged")
    assert_one_line(problems[1], "from the inputs")
    assert verify(out) == []


def test_recomputing_takes_the_arguments_of_the_merge(tmp_path: Path, linear: Path) -> None:
    merge(
        linear,
        tmp_path / "out",
        rounding="stochastic",
        seed=3,
        shard_size="4kB",
        arithmetic="exact",
    )
    assert verify(tmp_path / "out", recompute=True) == []


def test_recomputing_without_the_inputs_says_so(out: Path, linear: Path) -> None:
    shutil.rmtree(linear.parent / "a")
    with pytest.raises(InputError) as error:
        verify(out, recompute=True)
    assert_one_line(str(error.value), "./a")


@pytest.mark.parametrize("manifest", ["{", "[]", "7", "{}", '{"format": 2, "tensors": {}}', None])
def test_a_folder_without_a_manifest_cannot_be_verified(out: Path, manifest: str | None) -> None:
    (out / MANIFEST).unlink() if manifest is None else (out / MANIFEST).write_text(manifest)
    with pytest.raises(InputError) as error:
        verify(out)
    assert_one_line(str(error.value), MANIFEST)


@pytest.mark.parametrize("missing", ["arithmetic", "rounding", "seed", "tensors"])
def test_a_manifest_that_lacks_something_is_an_input_error(out: Path, missing: str) -> None:
    manifest = json.loads((out / MANIFEST).read_text())
    del manifest[missing]
    write_json(out / MANIFEST, manifest)
    with pytest.raises(InputError) as error:
        verify(out, recompute=True)
    assert_one_line(str(error.value), MANIFEST)


def test_a_file_that_is_cut_off_cannot_be_verified(out: Path) -> None:
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError) as error:
        verify(out)
    assert_one_line(str(error.value), str(file), "cut off")


# -- the card --------------------------------------------------------------------------------------


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    data = yaml.safe_load(found[1])
    assert isinstance(data, dict)
    return data


def without_recipe(card: str) -> str:
    return re.sub(r"## Recipe\n\n(`{3,})yaml\n.*?\n\1\n", "", card, flags=re.DOTALL)


def without_code(card: str) -> str:
    return re.sub(r"^(`{3,}).*?^\1$", "", card, flags=re.DOTALL | re.M)


def test_the_card(out: Path, linear: Path) -> None:
    card = (out / "README.md").read_text()
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "merganser", "mergekit", "linear"],
    }
    titles = re.findall(r"^#+ (.*)$", without_recipe(card), re.M)
    assert titles == ["out", "Models", "Key facts", "Use", "Reproduce"]
    assert linear.read_text().rstrip() in card
    assert "arxiv.org/abs/2203.05482" in card
    rows = [
        [c.strip() for c in row.split("|")[1:-1]]
        for row in re.findall(r"^\| `[ab]`.*$", card, re.M)
    ]
    assert [row[:3] for row in rows[:2]] == [["`a`", "0.25", "0.25"], ["`b`", "0.75", "0.75"]]
    assert [float(row[3]) for row in rows[:2]] == pytest.approx([0.25, 0.75], abs=0.01)
    for fact in (
        "Qwen2ForCausalLM",
        "131,072",
        "bfloat16",
        "| Layers | 2 |",
        "| Vocabulary | 32 |",
    ):
        assert fact in card
    assert json.loads((out / MANIFEST).read_text())["plan"][:16] in card


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0"), None),
        (("mit", None), None),
        (("[a, b]", "[a, b]"), None),
        (("x: y", "x: y"), None),
    ],
)
def test_a_licence_is_stated_if_all_parents_agree(
    tmp_path: Path, pair: tuple[Path, Path], licenses: tuple[Any, Any], expected: str | None
) -> None:
    for folder, license_ in zip(pair, licenses, strict=True):
        if license_:
            (folder / "README.md").write_text(f"---\nlicense: {license_}\n---\n# A model\n")
    merge(recipe_of(*pair), tmp_path / "out")
    assert front_matter((tmp_path / "out" / "README.md").read_text()).get("license") == expected


def test_local_paths_are_only_in_the_recipe(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    merge(recipe_of(*pair), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) in card
    assert str(tmp_path) not in without_recipe(card)
    assert front_matter(card).get("base_model") is None


@pytest.mark.parametrize("reference", ["models/acc", "./acc", "acc"])
def test_a_folder_beside_the_recipe_is_no_published_model(
    tmp_path: Path, recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    make_model(tmp_path / reference)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    merge(recipe_file(f"merge_method: passthrough\nmodels: [{{model: {reference}}}]\n"), "out")
    card = Path("out/README.md").read_text()
    assert "huggingface.co" not in card
    assert "base_model" not in front_matter(card)


def test_published_models_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("expert", "base"):
        make_model(tmp_path / f"models--org--{name}" / "snapshots" / ("0" * 40))
        (tmp_path / f"models--org--{name}" / "refs").mkdir()
        (tmp_path / f"models--org--{name}" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    models = [{"model": "org/expert", "parameters": {"weight": 1}}]
    data = {"merge_method": "task_arithmetic", "models": models, "base_model": "org/base"}
    merge(data, tmp_path / "out", public=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(card)["base_model"] == ["org/base", "org/expert"]
    assert front_matter(card)["base_model_relation"] == "merge"
    assert "[org/expert](https://huggingface.co/org/expert)" in card
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert [entry["reference"] for entry in manifest["inputs"]] == ["org/expert", "org/base"]
    assert yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text()) == data


PUBLIC = {
    "plain": "models:\n- model: {root}/a\n- model: {root}/b\n",
    "a comment": "# see {root}/notes\nmodels: # {root}\n- model: {root}/a\n- model: {root}/b\n",
    "quoted": "models:\n- model: '{root}/a'\n- model: \"{root}/\\x62\"\n",
    "folded": "models:\n- model: {root}/a\n- model: >-\n    {root}/b\n",
    "a mapping": "models:\n- model: {{model: {{path: {root}/a}}}}\n- model: {{model: {root}/b}}\n",
    "a warning": "models:\n- model: {root}/a\n- model: {root}/b\nlicense: mit\n",
    "a key of no meaning": "models:\n- model: {root}/a\n- model: {root}/b\nwhere: {root}/c\n",
    "a prefix": "models:\n- model: {root}/a\n- model: {root}/a2\n",
}


@pytest.mark.parametrize("text", PUBLIC.values(), ids=PUBLIC)
def test_public_has_no_local_path_at_all(
    tmp_path: Path, pair: tuple[Path, Path], recipe_file: RecipeFile, text: str
) -> None:
    make_model(tmp_path / "a2", seed=4)
    head = "merge_method: linear\nparameters: {{weight: 1}}\n"
    file = recipe_file((head + text).format(root=tmp_path))
    merge(file, tmp_path / "out", public=True)
    for name, content in tree(tmp_path / "out").items():
        assert str(tmp_path).encode() not in content, name
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert recipe["merge_method"] == "linear"
    assert recipe["parameters"] == {"weight": 1}
    assert len(recipe["models"]) == 2
    assert verify(tmp_path / "out") == []


def test_public_names_are_put_for_paths_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_file: RecipeFile
) -> None:
    """Short paths are parts of other words: ``./l`` must not turn ``./linear`` into ``linear``."""
    make_model(tmp_path / "l")
    make_model(tmp_path / "./linear")
    text = (
        "merge_method: linear\nmodels:\n- model: ./l\n- model: ./linear\nparameters: {weight: .5}\n"
    )
    merge(recipe_file(text), tmp_path / "out", public=True)
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert recipe == {
        "merge_method": "linear",
        "models": [{"model": "l"}, {"model": "linear"}],
        "parameters": {"weight": 0.5},
    }


def test_public_names_are_put_for_references_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_file: RecipeFile
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, path in enumerate(("x/linear", "linear", "elsewhere/bfloat16")):
        make_model(tmp_path / path, seed=seed)
    file = recipe_file(
        f"""
        merge_method: linear
        models: [{{model: x/linear}}, {{model: {{model: {{path: linear}}}}}}]
        parameters: {{weight: 1.0}}
        dtype: bfloat16
        tokenizer: {{source: {tmp_path}/elsewhere/bfloat16}}
        """
    )
    merge(file, tmp_path / "out", public=True)
    written = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert written == {
        "merge_method": "linear",
        "models": [{"model": "linear"}, {"model": {"model": "linear-2"}}],
        "parameters": {"weight": 1.0},
        "dtype": "bfloat16",
        "tokenizer": {"source": "bfloat16"},
    }


def test_public_names_change_no_key_of_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_file: RecipeFile
) -> None:
    """A model that is called ``a`` gets another name beside ``other/a``, and only the model does."""
    make_model(tmp_path / "other" / "a")
    make_model(tmp_path / "a", seed=1)
    text = "merge_method: linear\nmodels:\n- model: other/a\n- model: a\nparameters: {weight: 1}\n"
    file = recipe_file(text + "license: mit\n")
    own, public = merge(file, tmp_path / "own"), merge(file, tmp_path / "out", public=True)
    made = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert made.keys() == own.manifest.keys()
    assert made["tensors"] == own.manifest["tensors"]
    assert [entry["reference"] for entry in made["inputs"]] == ["a", "a-2"]
    assert [m["model"] for m in made["effective_weights"]["models"]] == ["a", "a-2"]
    worst = made["effective_weights"]["worst_tensors"]
    assert {w["tensor"] for w in worst} <= made["tensors"].keys()
    assert {w["model"] for w in worst} <= {"a", "a-2"}
    assert made["warnings"] == public.manifest["warnings"] == own.manifest["warnings"]
    assert verify(tmp_path / "out") == []


def test_public_names_tell_models_apart(tmp_path: Path) -> None:
    folders = [make_model(tmp_path / "acc" / f"global_step_{i}", seed=i) for i in (10, 20)]
    merge(recipe_of(*folders), tmp_path / "out", public=True)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert len({entry["reference"] for entry in manifest["inputs"]}) == 2


def test_titles_and_names_cannot_become_markup(tmp_path: Path) -> None:
    name = "m`|<b>x"
    folder = make_model(tmp_path / name)
    merge(recipe_of(folder, name="# a |\n<script> b"), tmp_path / "out")
    card = without_code((tmp_path / "out" / "README.md").read_text())
    assert "<script>" not in card
    assert "<b>" not in re.sub("`[^`\n]*`", "", card)
    assert "\n# # a \\| &lt;script&gt; b\n" in card
    front_matter(card)


# -- in memory -------------------------------------------------------------------------------------


def test_state_dicts_are_merged_as_files_are(tmp_path: Path, linear: Path, out: Path) -> None:
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    before = {k: t.clone() for k, t in a.items()}
    merged = merge_state_dicts([a, b], "linear", weights=[0.25, 0.75], dtype="bfloat16")
    assert set(merged) == set(weights(out))
    for name, tensor in weights(out).items():
        assert torch.equal(merged[name], tensor)
        assert torch.equal(a[name], before[name])


def test_parameters_of_state_dicts() -> None:
    base, one, two = ({"t": torch.full((3,), value)} for value in (1.0, 2.0, 5.0))
    merged = merge_state_dicts(
        [one, two], "task_arithmetic", base=base, parameters={"weight": [1, 0.5], "lambda": 2}
    )
    assert merged["t"].tolist() == [7.0] * 3
    assert (
        merge_tensors([one["t"]], "passthrough", parameters={"scale": [3.0]}).tolist() == [6.0] * 3
    )
    slerp = merge_tensors(
        [two["t"]], "slerp", base=base["t"], parameters={"t": 0.25}, dtype="float64"
    )
    assert slerp.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"models": [], "method": "linear", "weights": []}, RecipeError),
        ({"method": "linear"}, RecipeError),
        ({"method": "liner", "weights": [1, 1]}, RecipeError),
        ({"method": "linear", "weights": [1]}, RecipeError),
        ({"method": "linear", "weights": [1, 1, 1]}, RecipeError),
        ({"method": "linear", "parameters": {"weight": [1]}}, RecipeError),
        ({"method": "linear", "weights": [1, float("nan")]}, RecipeError),
        ({"method": "linear", "weights": [1, 1], "dtype": "int8"}, RecipeError),
        ({"method": "task_arithmetic", "weights": [1, 1]}, RecipeError),
        ({"models": [{"t": torch.ones(2)}, {"u": torch.ones(2)}], "method": "linear", "weights": [1, 1]},
         InputError),
        ({"models": [{"t": torch.ones(2)}, {"t": torch.ones(3)}], "method": "linear", "weights": [1, 1]},
         InputError),
    ],
)  # fmt: skip
def test_wrong_arguments_are_merganser_errors(
    arguments: dict[str, Any], error: type[MerganserError]
) -> None:
    arguments = {"models": [{"t": torch.ones(2)}, {"t": torch.ones(2)}]} | arguments
    with pytest.raises(error) as raised:
        merge_state_dicts(**arguments)
    assert_one_line(str(raised.value))


class Tiny(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32, width: int = 3) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 2, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x)
        return found


@pytest.fixture
def tiny(tmp_path: Path) -> merganser.Plan:
    folders = []
    for i in range(2):
        torch.manual_seed(i)
        (tmp_path / str(i)).mkdir()
        save_file(Tiny().state_dict(), tmp_path / str(i) / "model.safetensors")
        folders.append(tmp_path / str(i))
    return merganser.plan(recipe_of(*folders))


def test_a_live_model_is_changed_in_place(tiny: merganser.Plan, tmp_path: Path) -> None:
    model, x = Tiny(), torch.ones(1, 3)
    parameter = model.layer.weight
    blend(model, tiny)
    one, two = weights(tmp_path / "0"), weights(tmp_path / "1")
    expected = (one["layer.weight"].double() + two["layer.weight"].double()) / 2
    assert model.layer.weight is parameter
    assert parameter.requires_grad
    assert torch.equal(parameter.detach(), expected.float())
    bias = ((one["layer.bias"].double() + two["layer.bias"].double()) / 2).float()
    assert torch.equal(model(x), torch.nn.functional.linear(x, expected.float(), bias))


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (Tiny(torch.bfloat16), "bfloat16"),
        (Tiny(width=4), "[2, 4]"),
        (torch.nn.Linear(3, 2), "no tensor 'layer."),
    ],
)
def test_a_live_model_that_does_not_fit(
    tiny: merganser.Plan, model: torch.nn.Module, part: str
) -> None:
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(MerganserError) as error:
        blend(model, tiny)
    assert_one_line(str(error.value), part)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
