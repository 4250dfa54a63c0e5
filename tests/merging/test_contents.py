"""Digests of what models hold: the same wherever their files are, remembered until those change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints_on_disk import make_model
from merganser import merge, plan
from merganser.engine import digests
from merganser.merging.dry_run import run_dry
from merganser.release import contents


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "merganser" / "contents"


def model(folder: Path, seed: int = 1) -> Path:
    """A model whose files are old enough to be remembered."""
    make_model(folder, seed=seed)
    for file in folder.iterdir():
        os.utime(file, (1e9, 1e9))
    return folder


def digest(folder: Path) -> str:
    made = plan({"merge_method": "passthrough", "models": [{"model": str(folder)}]})
    [found] = contents.of_models(made).values()
    return found


def test_contents_do_not_depend_on_places_and_times(tmp_path: Path, cache: Path) -> None:
    first = digest(model(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    assert digest(tmp_path / "two") == first
    assert digest(model(tmp_path / "other", seed=2)) != first
    for name in ("README.md", "trainer_state.json", "merge_manifest.json"):
        (tmp_path / "two" / name).write_text("{}")
    assert digest(tmp_path / "two") == first
    with (tmp_path / "two" / "tokenizer_config.json").open("a") as stream:
        stream.write("\n")
    assert digest(tmp_path / "two") != first


def test_digests_are_remembered_until_files_change(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path / "one")
    first = digest(folder)
    [remembered] = cache.iterdir()
    read: list[Any] = []
    real = digests.read_digest
    monkeypatch.setattr(digests, "read_digest", lambda *a: read.append(a) or real(*a))
    assert digest(folder) == first
    assert not read
    remembered.write_text("no JSON")
    assert digest(folder) == first
    assert read
    shutil.copyfile(model(tmp_path / "new", seed=2) / "model.safetensors", tmp_path / "weights")
    os.utime(tmp_path / "weights", (1e9, 1e9))
    (tmp_path / "weights").replace(folder / "model.safetensors")  # same name, size and time
    assert digest(folder) == digest(tmp_path / "new")
    read.clear()
    (folder / "model.safetensors").touch()
    assert digest(folder) == digest(folder)  # a file that was just written is read each time
    assert len(list(cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    assert digest(model(tmp_path / "one")) == digest(tmp_path / "one")


def test_the_digest_is_that_of_the_merge(tmp_path: Path, cache: Path) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(model(tmp_path / name, seed)) } for seed, name in enumerate("ab")],
        "parameters": {"weight": 1.0},
    }  # fmt: skip
    stated = merge(recipe, tmp_path / "out").manifest
    made = plan(recipe)
    for index, entry in enumerate(stated["inputs"]):
        names = {read.name for job in made.jobs for read in job.reads if read.source == index}
        assert contents.of_weights(made.sources[index], names) == entry["digest"]
    assert contents.state(made) == stated["log"]["contents"]


@pytest.mark.parametrize(
    "dtypes", [["bfloat16"] * 2, ["float32"] * 3, ["float64", "float16", "bfloat16"]]
)
def test_merges_digest_their_inputs_cell_by_cell(
    tmp_path: Path, cache: Path, dtypes: list[str]
) -> None:
    models = []
    for seed, dtype in enumerate(dtypes):
        torch.manual_seed(seed)
        tensors = {
            f"t{n}": torch.randn(n).to(getattr(torch, dtype)) for n in (0, 35, 65536, 150_003)
        }
        save_file(tensors, tmp_path / f"{seed}.safetensors")
        models.append({"model": str(tmp_path / f"{seed}.safetensors")})
    recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}
    stated = run_dry(recipe, digest_inputs=True).manifest["inputs"]
    made = plan(recipe)
    for source, entry in zip(made.sources, stated, strict=True):
        assert contents.of_weights(source, source.checkpoint.specs) == entry["digest"]
