"""The short version of ``tests/robustness/fuzz.py``: some hundred spoiled inputs of every kind, with fixed seeds."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import pytest

import mutations
from merganser.errors import LONGEST, MerganserError

NAMES = ("safetensors", "index", "config", "tokenizer", "recipe", "sweep", "pickle", "deepspeed")
NAMES += ("dcp", "fsdp", "adapter", "gguf")
INPUTS = 40


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, mutations.Kind]:
    return mutations.kinds(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("name", NAMES)
def test_spoiled_inputs_are_merged_or_refused_in_one_line(
    kinds: dict[str, mutations.Kind], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kind, home = kinds[name], tmp_path / "in"
    _write(kind.files, home)
    refused = 0
    for number in range(INPUTS):
        files = kind.spoiled(random.Random(f"{name} {number}"))
        _write(files, home)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                kind.run(home, tmp_path / "out")
        except MerganserError as error:
            told = str(error)
            assert told
            assert told.isprintable()
            assert len(told) <= LONGEST + 200
            refused += 1
        for folder in tmp_path.iterdir():
            if folder != home:
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        _write({name: kind.files[name] for name in files}, home)
    assert mutations.read_tree(home) == dict(kind.files)
    assert refused > INPUTS // 8


def _write(files: dict[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
