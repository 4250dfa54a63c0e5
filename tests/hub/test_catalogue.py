"""Models of the Hub's cache, and searches of the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import hubs
from merganser.cli import main
from merganser.errors import InputError, MerganserError
from merganser.hub import catalogue

COMMIT = "0123456789" * 4


def cached(cache: Path, name: str, files: dict[str, bytes], commit: str = COMMIT) -> Path:
    """Put a repository into a cache, as huggingface_hub stores one."""
    home = cache / f"models--{name.replace('/', '--')}"
    folder = home / "snapshots" / commit
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "hub"
    place.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    return place


def test_complete_models_of_the_cache_are_listed(cache: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    parts = {"config.json": b"{}", "model.safetensors.index.json": index.encode()}
    cached(cache, "org/whole", parts | {"model-1.safetensors": b"12", "model-2.safetensors": b"3"})
    cached(cache, "org/half", parts | {"model-1.safetensors": b"12"})
    cached(cache, "org/words", {"config.json": b"{}", "tokenizer.json": b"{}"})
    cached(cache, "Org/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1"})
    cached(cache, "gpt2", {"config.json": b"{}", "model.safetensors": b"1"})
    (cache / "datasets--org--set").mkdir()
    listed = catalogue.cached_models()
    assert [(model.name, model.adapter) for model in listed] == [
        ("gpt2", False),
        ("Org/lora", True),
        ("org/whole", False),
    ]
    assert listed[2].size == 2 + len(index) + 2 + 1
    shown = CliRunner().invoke(main, ["models"]).output
    assert "org/whole" in shown
    assert "org/half" not in shown


def test_an_empty_cache_is_no_error(cache: Path) -> None:
    cache.rmdir()
    assert catalogue.list_models() == []
    assert "has no complete model" in CliRunner().invoke(main, ["models"]).output


@pytest.mark.parametrize("revision", ["../../../secret", "..", "a/../..", "/etc", ""])
def test_a_revision_cannot_leave_the_cache(cache: Path, revision: str) -> None:
    folder = cached(cache, "org/name", {"config.json": b"{}"})
    (cache / "secret").mkdir()
    assert catalogue.cached_folder("org/name") == folder
    assert catalogue.cached_folder("org/name", COMMIT) == folder
    assert catalogue.cached_folder("org/name", revision) in (None, folder)
    assert catalogue.cached_folder("../name") is None


def test_the_hub_is_searched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(cache, "org/small-one", {"config.json": b"{}", "model.safetensors": b"1"})
    with hubs.stand_in() as stand_in:
        hubs.use(stand_in, monkeypatch, cache)
        for name in ("org/small-one", "org/Small-two", "org/other"):
            stand_in.put(name, {"config.json": b"{}"})
        listed = catalogue.list_models("small")
        run = CliRunner().invoke(main, ["models", "--json", "--", "small"])
    assert [(model.name, model.cached) for model in listed] == [
        ("org/small-one", True),
        ("org/Small-two", False),
    ]
    assert listed[0].parameters == 7
    assert [model["name"] for model in json.loads(run.output)] == ["org/small-one", "org/Small-two"]
    assert stand_in.requests.count("GET /api/models") == 2


def test_a_search_says_in_one_line_why_it_cannot(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MerganserError, match="HF_HUB_OFFLINE is set"):
        catalogue.list_models("small")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MerganserError, match="cannot be reached"):
        catalogue.list_models("small")
    with pytest.raises(InputError, match="a part of the model's name"):
        catalogue.list_models(" ")
