"""Publishing: what is shown, what is refused, and what arrives at a stand-in of the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import merganser
from checkpoints_on_disk import tree
from hubs import TOKEN, StandIn, stand_in, use
from merganser import cli
from merganser.cli import publishing as commands
from messages import assert_one_line
from recipe_files import RecipeFile
from sweeps import SWEEP

Push = Callable[..., Result]

# The library's own, when it sends through LFS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as server:
        use(server, monkeypatch)
        yield server


@pytest.fixture
def push() -> Push:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli.main, ["push", *map(str, arguments)])

    return run


@pytest.fixture
def folder(tmp_path: Path, linear: Path) -> Path:
    merganser.merge(linear, tmp_path / "out", public=True, shard_size=9_000)
    return tmp_path / "out"


@pytest.fixture
def sweep(pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path) -> Path:
    merganser.sweep(recipe_file(SWEEP), tmp_path / "points", public=True)
    return tmp_path / "points"


def test_a_folder_arrives_whole_and_is_not_sent_twice(
    hub: StandIn, push: Push, folder: Path
) -> None:
    done = push(folder, "org/merged", "--yes", "--quiet")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{hub.url}/org/merged/commit/")
    assert hub.files("org/merged") == tree(folder)
    assert not hub.repos["org/merged"].private
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    digests = [hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards]
    assert sorted(hub.uploads()) == sorted(digests)
    again = push(folder, "org/merged", "--yes", "--quiet")
    assert again.exit_code == 0, again.output
    assert "is there already" in again.stderr
    assert sorted(hub.uploads()) == sorted(digests)
    assert len(hub.repos["org/merged"].commits) == 1
    (folder / "NOTES.md").write_text("new\n")
    push(folder, "org/merged", "--yes", "--quiet")
    sent = [line for line in hub.repos["org/merged"].commits[1]["lines"] if line["key"] != "header"]
    assert [line["value"]["path"] for line in sent] == ["NOTES.md"]


def test_what_is_shown_before(hub: StandIn, push: Push, folder: Path) -> None:
    shown = push(folder, "org/merged", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert hub.requests == []
    assert "PUBLIC" in shown.stdout
    for file in tree(folder):
        assert file in shown.stdout
    assert "a: none stated, b: none stated" in shown.stdout
    data = json.loads(push(folder, "org/merged", "--dry-run", "--private", "--json").stdout)
    assert data["private"] is True
    sizes = {name: len(content) for name, content in tree(folder).items()}
    assert data["repositories"][0]["files"] == sizes


def test_asking(hub: StandIn, push: Push, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = push(folder, "org/merged", "--quiet")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    monkeypatch.setattr(commands, "_can_ask", lambda: True)
    arguments = ["push", str(folder), "org/merged", "--quiet"]
    assert CliRunner().invoke(cli.main, arguments, input="n\n").exit_code == 1
    assert hub.repos == {}
    assert CliRunner().invoke(cli.main, arguments, input="y\n").exit_code == 0
    assert "org/merged" in hub.repos


def test_private_and_branches(hub: StandIn, push: Push, folder: Path) -> None:
    assert push(folder, "org/mine", "--private", "--revision", "v2", "--yes").exit_code == 0
    assert hub.repos["org/mine"].private
    assert hub.files("org/mine", "v2") == tree(folder)
    assert hub.files("org/mine") == {}
    push(folder, "org/open", "--yes")
    refused = push(folder, "org/open", "--private", "--yes")
    assert_one_line(refused.stderr.strip(), "org/open", "public")


def test_an_upload_that_broke_off_goes_on(hub: StandIn, push: Push, folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    digests = [hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards]
    hub.refused = {digests[-1]}
    failed = push(folder, "org/merged", "--yes", "--quiet")
    assert failed.exit_code == 1
    assert_one_line(failed.stderr.splitlines()[-1], "org/merged", "run the same command again")
    assert "Traceback" not in failed.output
    assert hub.repos["org/merged"].commits == []
    hub.refused, before = set(), len(hub.uploads())
    assert push(folder, "org/merged", "--yes", "--quiet").exit_code == 0
    assert hub.uploads()[before:] == [digests[-1]]
    assert hub.files("org/merged") == tree(folder)


def test_a_push_that_was_killed_goes_on(
    hub: StandIn, push: Push, folder: Path, tmp_path: Path
) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    digests = [hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards]
    hub.stuck = {digests[-1]}
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "merganser", "push", str(folder), "org/merged", "--yes", "-q"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not set(digests) <= set(hub.uploads()) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        time.sleep(0.2)
    finally:
        process.kill()
        process.communicate()
    assert hub.repos["org/merged"].commits == []
    hub.stuck, before = set(), len(hub.uploads())
    assert push(folder, "org/merged", "--yes", "--quiet").exit_code == 0
    assert hub.uploads()[before:] == [digests[-1]]
    assert hub.files("org/merged") == tree(folder)


def test_weights_of_an_earlier_push_do_not_stay(
    hub: StandIn, push: Push, folder: Path, tmp_path: Path, linear: Path
) -> None:
    push(folder, "org/merged", "--yes")
    merganser.merge(linear, tmp_path / "whole", public=True)
    done = push(tmp_path / "whole", "org/merged", "--yes")
    assert done.exit_code == 0, done.output
    assert "is deleted there" in done.stderr
    assert hub.files("org/merged") == tree(tmp_path / "whole")


def test_a_sweep_and_its_collection(hub: StandIn, push: Push, sweep: Path) -> None:
    done = push(sweep, "org/Two weights", "--yes", "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert sorted(data["commits"]) == ["org/m_w0.3", "org/m_w0.7"]
    for name in ("m_w0.3", "m_w0.7"):
        assert hub.files(f"org/{name}") == tree(sweep / name)
    [collection] = hub.collections.values()
    assert collection["title"] == "Two weights"
    assert [item["id"] for item in collection["items"]] == ["org/m_w0.3", "org/m_w0.7"]
    assert push(sweep, "org/Two weights", "--yes").exit_code == 0
    assert len(hub.collections) == 1
    assert len(collection["items"]) == 2


def test_only_what_a_study_chose(hub: StandIn, push: Push, sweep: Path) -> None:
    from merganser.results import scores
    from merganser.results.scores import Entry, Results

    entries = tuple(Entry(name, "point", folder=name) for name in ("m_w0.3", "m_w0.7"))
    study = Results("pair", "", {}, {}, entries, {"m_w0.7": "knee of the front"})
    scores.write(study, sweep)
    assert push(sweep, "org", "--yes").exit_code == 0
    assert list(hub.repos) == ["org/m_w0.7"]
    [collection] = hub.collections.values()
    assert collection["title"] == "pair"


def test_what_is_not_whole_is_not_sent(hub: StandIn, push: Push, folder: Path) -> None:
    partial = folder.with_name("out.partial")
    folder.rename(partial)
    assert_one_line(push(partial, "org/m", "--yes").stderr.strip(), "out.partial", "unfinished")
    partial.rename(folder)
    shard = sorted(folder.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused = push(folder, "org/m", "--yes", "-q")
    assert refused.exit_code == 3
    assert_one_line(refused.stderr.strip(), "not what was merged")
    (folder / "secret").symlink_to("/etc/hostname")
    data[-1] ^= 1
    shard.write_bytes(data)
    assert_one_line(push(folder, "org/m", "--yes", "-q").stderr.strip(), "secret", "link")
    assert push(folder.parent / "nowhere", "org/m", "--yes").exit_code == 3
    assert hub.requests == []


@pytest.mark.parametrize("name", ["merged", "org/a/b", "org/-x", "org/a--b", "org/" + 97 * "x"])
def test_names_that_cannot_be(push: Push, folder: Path, name: str) -> None:
    refused = push(folder, name, "--yes", "-q")
    assert refused.exit_code == 2
    assert_one_line(refused.stderr.strip(), name)


def test_local_paths_of_earlier_recipes_are_taken_out(
    hub: StandIn, push: Push, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    first, second = pair
    file = tmp_path / "recipe.yml"
    file.write_text(
        f"name: stage\nmerge_method: passthrough\nmodels: [{{model: {first}}}]\n---\n"
        f"merge_method: slerp\nbase_model: stage\nmodels: [{{model: {second}}}]\n"
        "parameters: {t: 0.5}\n"
    )
    merganser.merge_all(file, tmp_path / "out")
    refused = push(tmp_path / "out", "org/m", "--yes", "-q")
    assert f"local path in mergekit_config.yml: {first}" in refused.stderr
    assert push(tmp_path / "out", "org/m", "--yes", "-q", "--public").exit_code == 0
    for name, content in hub.files("org/m").items():
        assert str(tmp_path).encode() not in content, name
    texts = hub.files("org/m")["mergekit_config.yml"].decode()
    stage, last = yaml.safe_load_all(texts)
    assert stage["models"] == [{"model": first.name}]
    assert last["base_model"] == "stage"


def test_local_paths_are_shown_and_can_be_taken_out(
    hub: StandIn, push: Push, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    models = [{"model": str(p), "parameters": {"weight": 0.5}} for p in pair]
    merganser.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["_name_or_path"] = "/scratch/someone/runs"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    refused = push(tmp_path / "out", "org/m", "--yes", "-q")
    assert refused.exit_code == 2
    assert_one_line(refused.stderr.splitlines()[-1], "--hide-paths", "--with-paths")
    for file in ("README.md", "mergekit_config.yml", "merge_manifest.json"):
        assert f"local path in {file}: {pair[0]}" in refused.stderr
    assert "local path in config.json: /scratch/someone/runs" in refused.stderr
    assert hub.repos == {}
    assert push(tmp_path / "out", "org/m", "--yes", "-q", "--public").exit_code == 0
    for name, content in hub.files("org/m").items():
        assert str(tmp_path).encode() not in content, name
        assert b"/scratch" not in content, name
    merganser.merge({"merge_method": "linear", "models": models}, tmp_path / "same", public=True)
    wanted = tree(tmp_path / "same")
    sent = hub.files("org/m")
    for name in ("README.md", "mergekit_config.yml"):
        assert sent[name] == wanted[name].replace(b'"same"', b'"out"').replace(b"# same", b"# out")
    assert push(tmp_path / "out", "org/m", "--yes", "-q", "--with-paths").exit_code == 0
    assert hub.files("org/m") == tree(tmp_path / "out")


def test_a_card_that_was_edited_is_not_written_anew(
    hub: StandIn, push: Push, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    models = [{"model": str(p), "parameters": {"weight": 0.5}} for p in pair]
    merganser.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    card.write_text(card.read_text() + "Trained in ~/runs/acc, see https://example.org/a/b.\n")
    refused = push(tmp_path / "out", "org/m", "--yes", "-q", "--public")
    assert refused.exit_code == 2
    assert_one_line(refused.stderr.splitlines()[-1], "3 local paths", "edit the files")
    assert "local path in README.md: ~/runs/acc\n" in refused.stderr
    assert "example.org" not in refused.stderr
    assert hub.repos == {}


def test_no_token(hub: StandIn, push: Push, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = push(folder, "org/m", "--yes", "-q")
    assert refused.exit_code == 1
    assert_one_line(refused.stderr.strip(), "hf auth login")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    assert_one_line(
        push(folder, "org/m", "--yes", "-q").stderr.strip(), "hf auth login", "no token"
    )


def test_no_permission(hub: StandIn, push: Push, folder: Path) -> None:
    refused = push(folder, "others/m", "--yes", "-q")
    assert refused.exit_code == 1
    assert_one_line(refused.stderr.splitlines()[-1], "others/m", "may not write there")


def test_no_network(
    hub: StandIn, push: Push, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused = push(folder, "org/m", "--yes", "-q")
    assert refused.exit_code == 1
    assert_one_line(refused.stderr.strip(), "cannot be reached")
