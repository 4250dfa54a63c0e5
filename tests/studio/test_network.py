"""Models of the Hub's cache in a studio, and what asks the Hub."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from merganser.errors import InputError, RecipeError
from merganser.recipe.references import parse_reference
from merganser.studio import jobs as running
from merganser.studio import recipes
from merganser.studio.commands import Asked, Command
from merganser.studio.estimates import Estimates
from merganser.studio.jobs import Jobs
from merganser.studio.library import Library
from studio_client import RECIPE, Client

COMMIT = "a" * 40


@pytest.fixture
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub with the folder's model ``b``, whose files are links to blobs."""
    place = tmp_path / "hub"
    home = place / "models--org--b"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in (folder / "b").iterdir():
        blob = home / "blobs" / file.name
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    return place


def test_models_of_the_cache_are_read(folder: Path, cache: Path) -> None:
    library = Library(folder, hub_cache=True)
    assert library.contents().cached == ["org/b"]
    plan = recipes.read_plan(RECIPE.replace("model: b", "model: org/b"), library)
    assert plan.input_bytes == recipes.read_plan(RECIPE, library).input_bytes
    for name in ("org/b@main", f"org/b@{COMMIT}"):
        assert recipes.read_model(name, library).sources[0].reference.text == name
    for name in ("org/c", "org/b@other", "../hub/models--org--b", str(cache / "models--org--b")):
        with pytest.raises(InputError, match="is not below the studio's folder"):
            library.located(parse_reference(name))


def test_the_cache_is_read_only_if_it_is_given(folder: Path, cache: Path) -> None:
    library = Library(folder)
    assert library.contents().cached == []
    with pytest.raises(InputError, match="is not below"):
        recipes.read_model("org/b", library)


def test_a_model_of_the_cache_may_not_link_out_of_it(folder: Path, cache: Path) -> None:
    config = cache / "models--org--b" / "snapshots" / COMMIT / "config.json"
    config.unlink()
    config.symlink_to(folder.parent / "secret" / "config.json")
    with pytest.raises(InputError, match="is not below"):
        recipes.read_model("org/b", Library(folder, hub_cache=True))
    (cache / "secret.json").write_text("{}")
    with pytest.raises(InputError, match="is not below"):
        Library(folder, hub_cache=True).readable(cache / "secret.json", "x")


def test_without_the_network_nothing_asks_the_hub(client: Client) -> None:
    assert client.get("/studio/library").data["network"] is False
    publish = {"kind": "publish", "folder": "a", "repository": "org/name", "send": True}
    for asked in (
        {"kind": "search", "text": "qwen"},
        {"kind": "fetch", "repository": "org/name"},
        publish,
    ):
        reply = client.post("/studio/jobs", asked)
        assert reply.status == 400
        assert reply.data["error"]["message"].endswith("started without --network")
    assert client.post("/studio/jobs", {"kind": "fetch", "repository": "../x"}).status == 400
    assert client.get("/studio/jobs").data == {"jobs": []}


def test_commands_of_the_network_are_those_of_a_terminal(client: Client) -> None:
    def words(asked: dict[str, object]) -> list[str]:
        return list(TypeAdapter(Asked).validate_python(asked).command(client.library).words)  # type: ignore[attr-defined]

    assert words({"kind": "search", "text": "-x"}) == ["models", "--json", "--", "-x"]
    assert words({"kind": "fetch", "repository": "org/name"}) == ["inspect", "org/name"]
    push = {"kind": "publish", "folder": "a", "repository": "org/name"}
    ends = ["push", "a", "org/name", "--private", "--hide-paths"]
    assert words(push) == [*ends, "--dry-run", "--json"]
    assert words(push | {"send": True}) == [*ends, "--yes"]
    assert words({"kind": "diff", "first": "a", "second": "b", "ulp": "bfloat16"}) == [
        "diff", "a", "b", "--ulp", "bfloat16", "--json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("online", "network", "expected"),
    [
        (None, "none", "1"),
        (None, "allowed", "1"),
        ({"HF_HUB_OFFLINE": ""}, "none", "1"),
        ({"HF_HUB_OFFLINE": ""}, "allowed", ""),
        ({"HF_HUB_OFFLINE": "1"}, "needed", "1"),
    ],
)
def test_a_command_has_the_network_only_if_it_needs_it(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    online: dict[str, str] | None,
    network: str,
    expected: str,
) -> None:
    seen: list[str] = []

    class Stopped(Exception): ...

    async def start(*_: object, env: dict[str, str], **__: object) -> None:
        seen.append(env["HF_HUB_OFFLINE"])
        raise Stopped

    monkeypatch.setattr(running.asyncio, "create_subprocess_exec", start)
    with pytest.raises(Stopped):
        asyncio.run(Jobs(folder, online).start(Command("x", ["x"], network=network)))  # type: ignore[arg-type]
    assert seen == [expected]
    with pytest.raises(RecipeError, match="--network"):
        asyncio.run(Jobs(folder).start(Command("x", ["x"], network="needed")))


def test_the_time_of_a_merge_is_estimated_from_an_earlier_one(client: Client) -> None:
    root = client.library.root
    plan = recipes.read_plan(RECIPE, client.library)
    estimates = Estimates(client.library)
    assert estimates.of(plan, []) is None  # too small to measure the disk by it
    manifest = {"files": {"x": {"size": 50 * 2**20}}, "inputs": [1, 2], "log": {"seconds": 0.5}}
    merged = root / "merged_before"
    merged.mkdir()
    file = merged / "merge_manifest.json"
    file.write_text(json.dumps(manifest))
    found = estimates.of(plan, ["merged_before", "gone"])
    assert found is not None
    assert found["rate"] == 3 * 50 * 2**20 / 0.5
    assert found["seconds"] == (plan.input_bytes + plan.output_bytes) / found["rate"]
    assert found["source"] == "the merge merged_before"
    for broken in (
        "{",
        "[]",
        json.dumps(manifest | {"log": {"seconds": 0}}),
        json.dumps({"files": 3}),
    ):
        file.write_text(broken)
        os.utime(file, ns=(time.time_ns(), time.time_ns()))
        assert estimates.of(plan, ["merged_before"]) is None
    file.unlink()
    merged.rmdir()
