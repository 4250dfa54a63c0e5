"""Published merges made again: with and without a manifest, and with an input that changed by one bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

import merganser
import peers
from checkpoints_on_disk import make_model
from hubs import StandIn, stand_in, use
from merganser import cli
from merganser.errors import MerganserError
from merganser.merging.reproduce import reproduce
from merganser.planning.plan_data import Arithmetic
from merganser.release import manifest
from messages import assert_one_line


def flip(model: Path) -> None:
    """Change one bit of a model's weights."""
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def test_a_merge_of_ours_and_an_input_that_changed_by_one_bit(
    linear: Path, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    out = tmp_path / "out"
    merganser.merge(linear, out)
    found = reproduce(out)
    assert found.arithmetic == "exact"
    assert found.inputs == ()
    assert found.made_by == "Merganser"
    assert found.attempts[0].equal == found.tensors > 3
    before = {file: file.read_bytes() for file in out.iterdir() if file.is_file()}
    flip(pair[1])
    found = reproduce(out)
    assert found.arithmetic is None
    [attempt] = found.attempts
    [name] = attempt.different
    assert attempt.equal == found.tensors - 1
    [problem] = found.inputs
    assert_one_line(problem, f"tensor '{name}' of the input ./b is not what was merged")
    done = CliRunner().invoke(cli.main, ["reproduce", str(out), "-q"])
    assert done.exit_code == 3
    assert (
        f"{found.tensors - 1} of {found.tensors} tensors are equal; 1 differ: {name}" in done.output
    )
    assert {file: file.read_bytes() for file in out.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("arithmetic", ["mergekit", "mergekit-0.1.4", "exact"])
def test_without_a_manifest_the_arithmetic_is_found(arithmetic: Arithmetic, tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        make_model(tmp_path / name, seed=seed, dtype=torch.float32)
    models = [
        {"model": str(tmp_path / name), "parameters": {"weight": weight}}
        for name, weight in zip("abc", (0.3, 0.33, 0.37), strict=True)
    ]
    recipe = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    out = tmp_path / "out"
    merganser.merge(recipe, out, arithmetic=arithmetic)
    (out / manifest.NAME).unlink()
    found = reproduce(out)
    assert found.arithmetic == arithmetic
    assert found.made_by == "MergeKit"
    assert [each.agrees for each in found.attempts] == [False] * (len(found.attempts) - 1) + [True]
    done = CliRunner().invoke(cli.main, ["reproduce", str(out)])
    assert done.exit_code == 0, done.output
    assert f"bit for bit (--arithmetic {arithmetic})" in done.output
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in "abc":
        shutil.move(tmp_path / name, moved / name)
        make_model(tmp_path / name, seed=9)
    done = CliRunner().invoke(cli.main, ["reproduce", str(out), "--json"])
    assert done.exit_code == 3
    told = json.loads(done.stdout)
    assert told["arithmetic"] is None
    assert [each["arithmetic"] for each in told["attempts"]] == [
        "mergekit",
        "mergekit-0.1.4",
        "exact",
    ]


@pytest.mark.peer
@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_merges_of_mergekit_itself(method: str, tmp_path: Path) -> None:
    for seed, name in enumerate(["base", "a", "b"]):
        peers.make_model(tmp_path / name, seed=seed, layers=1)
    models = [
        {"model": str(tmp_path / name), "parameters": {"weight": 0.6, "density": 0.5}}
        for name in "ab"
    ]
    recipe: dict[str, object] = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method == "linear":
        for each in models:
            each["parameters"] = {"weight": 0.6}
    elif method == "slerp":
        recipe["models"] = [{"model": each["model"]} for each in models]
        recipe |= {"base_model": str(tmp_path / "a"), "parameters": {"t": 0.3}}
    else:
        recipe["base_model"] = str(tmp_path / "base")
    out = tmp_path / "theirs"
    peers.mergekit(recipe, out)
    (out / manifest.RECIPE).write_text(yaml.safe_dump(recipe))
    found = reproduce(out)
    assert found.arithmetic == "mergekit", found
    flip(tmp_path / "b")
    again = reproduce(out)
    assert again.arithmetic is None
    assert again.closest is not None
    assert again.closest.equal >= again.tensors - 1


def test_what_cannot_be_made_again(tmp_path: Path, linear: Path) -> None:
    model = make_model(tmp_path / "plain", seed=1)
    with pytest.raises(MerganserError) as refused:
        reproduce(model)
    assert_one_line(str(refused.value), "plain: has no mergekit_config.yml")
    out = tmp_path / "out"
    merganser.merge(linear, out)
    (out / manifest.NAME).unlink()
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(MerganserError) as refused:
        reproduce(out)
    assert_one_line(str(refused.value), "./a: no such folder")
    text = (out / manifest.RECIPE).read_text()
    (out / manifest.RECIPE).write_text(f"name: x\n{text}\n---\n{text.replace('./b', 'x')}")
    with pytest.raises(MerganserError) as refused:
        reproduce(out)
    assert_one_line(str(refused.value), "holds 2 recipes that build on each other")


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_merge_on_the_hub_of_models_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_manifest: bool
) -> None:
    """The commits of the inputs are named, and used again; offline it works from the cache."""

    def publish(hub: StandIn, name: str, folder: Path) -> str:
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        return hub.put(f"org/{name}", files)

    with stand_in() as hub:
        use(hub, monkeypatch, tmp_path / "cache")
        commits = {}
        for seed, name in enumerate("ab"):
            make_model(tmp_path / name, seed=seed)
            commits[f"org/{name}"] = publish(hub, name, tmp_path / name)
        models = [{"model": name, "parameters": {"weight": 0.5}} for name in commits]
        merganser.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
        if not has_manifest:
            (tmp_path / "out" / manifest.NAME).unlink()
        publish(hub, "merged", tmp_path / "out")
        found = reproduce("org/merged")
        assert found.arithmetic == ("exact" if has_manifest else found.attempts[-1].arithmetic)
        assert found.commits == commits
        done = CliRunner().invoke(cli.main, ["reproduce", "org/merged"])
        assert done.exit_code == 0, done.output
        assert f"merged now: org/b at commit {commits['org/b']}" in done.stdout
        asked = len(hub.requests)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert reproduce("org/merged") == found
        assert len(hub.requests) == asked
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        flip(tmp_path / "b")
        moved = publish(hub, "b", tmp_path / "b")
        again = reproduce("org/merged")
        if has_manifest:  # which names the commits
            assert again == found
        else:
            assert again.arithmetic is None
            assert again.commits["org/b"] == moved != commits["org/b"]
            assert [len(attempt.different) for attempt in again.attempts] == [1, 1, 1]
        with pytest.raises(
            MerganserError, match=r"^org/none: no such folder, nor is it on the Hub"
        ):
            reproduce("org/none")
