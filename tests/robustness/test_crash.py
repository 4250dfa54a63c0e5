"""Merges that are cut off: what is left, what goes on, what is refused. The whole of it: ``make torture``."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints_on_disk import tree
from merganser import planning, system
from merganser.errors import InputError, MerganserError, OutputExistsError, ResourceError
from merganser.merging import journal, output_folder
from merganser.merging.lock import Lock
from merganser.merging.merge import merge
from merganser.merging.multistage import merge_all
from merganser.merging.verify import verify
from merganser.recipe import exists
from merganser.study.sweep import sweep
from messages import assert_one_line
from recipe_files import RecipeFile

SHARDS = "4kB"
"""Of the pair's 14 kB, so that there are several files."""

SWEEP = """
name: m_w{{ w }}
sweep: {w: [0.3, 0.7]}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
dtype: bfloat16
"""


def without_log(folder: Path) -> dict[str, Any]:
    """All of a folder but what in the manifest tells of time and place."""
    files: dict[str, Any] = dict(tree(folder))
    manifest = json.loads(files["merge_manifest.json"])
    manifest.pop("log")
    return {**files, "merge_manifest.json": manifest}


def killed(work: Callable[[], object]) -> int:
    """Do something in a process that is expected to be killed; the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def cut_off(recipe: Any, out: Path, files: int, **options: Any) -> None:
    """A merge that is killed when so many of its files are whole."""

    def work() -> None:
        note, count = journal.Journal._note, [0]

        def counted(self: journal.Journal, file: str, what: str) -> None:
            note(self, file, what)
            count[0] += file in self.finished
            if count[0] == files:
                os.kill(os.getpid(), signal.SIGKILL)

        journal.Journal._note = counted  # type: ignore[method-assign]
        merge(recipe, out, shard_size=SHARDS, threads=1, **options)

    assert killed(work) == signal.SIGKILL


@pytest.fixture
def undisturbed(linear: Path, tmp_path: Path) -> dict[str, Any]:
    merge(linear, tmp_path / "undisturbed" / "out", shard_size=SHARDS)
    return without_log(tmp_path / "undisturbed" / "out")


@pytest.mark.parametrize("files", [1, 3])
def test_a_killed_merge_goes_on_to_the_same_bytes(
    linear: Path, tmp_path: Path, undisturbed: dict[str, Any], files: int
) -> None:
    out = tmp_path / "out"
    cut_off(linear, out, files)
    assert not out.exists()
    done = sorted((tmp_path / "out.partial" / "new").iterdir())[:files]
    before = [file.stat().st_ino for file in done]
    result = merge(linear, out, shard_size=SHARDS, resume=True)
    assert [(out / file.name).stat().st_ino for file in done] == before
    assert without_log(out) == undisturbed
    assert result.outcome.report is not None
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == [
        "out"
    ]


def test_files_are_trusted_by_their_digests_alone(
    linear: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    cut_off(linear, out, 3)
    first, second, third = sorted((tmp_path / "out.partial" / "new").glob("*.safetensors"))[:3]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1])
    third.unlink()
    with (tmp_path / "out.partial" / "journal.jsonl").open("a") as stream:
        stream.write('{"file": "model-000')  # a line that was cut off
    merge(linear, out, shard_size=SHARDS, resume=True)
    assert without_log(out) == undisturbed


def test_an_unfinished_merge_is_told_of_and_not_touched(linear: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut_off(linear, out, 2)
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError) as error:
        merge(linear, out, shard_size=SHARDS)
    assert_one_line(str(error.value), "out.partial", "2 of 4 files", "resume=True", "force=True")
    assert {**tree(tmp_path), "out.partial/lock": b""} == {**before, "out.partial/lock": b""}
    merge(linear, out, shard_size=SHARDS, force=True)
    assert "merge_manifest.json" in tree(out)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("recipe", "the recipe or its options changed"),
        ("input", "the input ./b changed"),
        ("version", "another version of Merganser (0.0 began it)"),
    ],
)
def test_another_merge_is_not_gone_on_with(
    linear: Path, tmp_path: Path, change: str, told: str
) -> None:
    out = tmp_path / "out"
    cut_off(linear, out, 2)
    if change == "recipe":
        linear.write_text(linear.read_text().replace("0.25", "0.5"))
    elif change == "input":
        os.utime(tmp_path / "b" / "model.safetensors")
    else:
        file = tmp_path / "out.partial" / "journal.jsonl"
        first, rest = file.read_text().split("\n", 1)
        file.write_text(json.dumps({**json.loads(first), "merganser": "0.0"}) + "\n" + rest)
    with pytest.raises(OutputExistsError) as error:
        merge(linear, out, shard_size=SHARDS, resume=True)
    assert_one_line(str(error.value), "out.partial", "cannot be resumed", told, "force=True")
    merge(linear, out, shard_size=SHARDS, force=True)


def test_without_anything_to_resume_it_begins(
    linear: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    merge(linear, tmp_path / "out", shard_size=SHARDS, resume=True)
    assert without_log(tmp_path / "out") == undisturbed


def test_a_failure_keeps_finished_files_and_says_so(
    linear: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def full(descriptor: int, data: Any, position: int) -> int:
        if "-00003-" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, "No space left on device")
        return real(descriptor, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceError) as error:
            merge(linear, tmp_path / "out", shard_size=SHARDS, threads=1)
    assert_one_line(str(error.value), "No space left", "free some space")
    assert "out.partial has 2 of 4 files complete; resume=True" in error.value.__notes__[0]
    merge(linear, tmp_path / "out", shard_size=SHARDS, resume=True)
    assert without_log(tmp_path / "out") == undisturbed


# -- exchanging the old folder for the new one -----------------------------------------------------


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_between_the_renames(
    linear: Path, tmp_path: Path, undisturbed: dict[str, Any], renames: int
) -> None:
    """The old folder is in place, or in the unfinished one, from which it comes back."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "note.txt").write_text("old")

    def work() -> None:
        rename, left = Path.rename, [renames]

        def counted(self: Path, target: Path) -> Path:
            if "jsonl" in str(target):
                return rename(self, target)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return rename(self, target)

        Path.rename = counted  # type: ignore[method-assign, assignment]
        output_folder._remove = lambda _entry: os.kill(os.getpid(), signal.SIGKILL)
        merge(linear, out, shard_size=SHARDS, force=True)

    assert killed(work) == signal.SIGKILL
    if renames == 2:
        assert without_log(out) == undisturbed
        with pytest.raises(OutputExistsError):
            merge(linear, out, shard_size=SHARDS)
        output_folder.clear_finished(out)
        assert not (tmp_path / "out.partial").exists()
        return
    assert out.exists() == (renames == 0)
    with pytest.raises(OutputExistsError):
        merge(linear, out, shard_size=SHARDS, resume=True)
    assert tree(out) == {"note.txt": b"old"}
    merge(linear, out, shard_size=SHARDS, resume=True, force=True)
    assert without_log(out) == undisturbed
    assert not (tmp_path / "out.partial").exists()


# -- locks, signals --------------------------------------------------------------------------------


def test_the_second_of_two_merges_is_refused(linear: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    lock = Lock(partial / "lock")
    with pytest.raises(OutputExistsError) as error:
        merge(linear, tmp_path / "out")
    assert_one_line(
        str(error.value), "another merge (process", str(os.getpid()), "is writing there"
    )
    lock.release()
    merge(linear, tmp_path / "out")


@pytest.mark.parametrize("living", [True, False])
def test_where_there_are_no_locks_the_process_counts(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, living: bool
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        partial = tmp_path / "out.partial"
        partial.mkdir()
        (partial / "lock").write_text(f"{child.pid} {os.uname().nodename}\n")
        if living:
            with pytest.raises(OutputExistsError) as error:
                merge(linear, tmp_path / "out")
            assert_one_line(str(error.value), str(child.pid), "has no locks", "remove")
    finally:
        child.communicate()
    merge(linear, tmp_path / "out")
    assert not partial.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_merge_within_a_second(
    linear: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The third file is never made: a thread is stuck there."""
    probe = """
import sys, time
from merganser.sinks import safetensors
from merganser.cli import main
flush = safetensors._ShardFile._flush
def slow(self, *arguments):
    if "-00003-" in self.path.name:
        print("stuck", flush=True)
        time.sleep(60)
    return flush(self, *arguments)
safetensors._ShardFile._flush = slow
main(sys.argv[1:])
"""
    arguments = ["merge", linear, tmp_path / "out", "--shard-size", SHARDS, "-q", "-j", "1"]
    command = [sys.executable, "-c", probe, *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "stuck\n"
    began = time.monotonic()
    child.send_signal(number)
    _, told = child.communicate(timeout=20)
    assert time.monotonic() - began < 2  # one, and something for a busy machine
    assert child.returncode == 130
    assert_one_line(told, "interrupted", "out.partial has 2 of 4 files complete", "--resume")
    merge(linear, tmp_path / "out", shard_size=SHARDS, resume=True)


# -- inputs that change, sweeps and chains ---------------------------------------------------------


@pytest.mark.parametrize("change", ["touched", "replaced", "gone"])
def test_an_input_that_changes_while_it_is_read(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    file = tmp_path / "b" / "model.safetensors"
    close = output_folder.SafetensorsSink.close

    def meddle(self: output_folder.SafetensorsSink) -> None:
        close(self)
        if change == "touched":
            os.utime(file)
        elif change == "replaced":
            data, times = file.read_bytes(), file.stat()
            file.rename(tmp_path / "b" / "elsewhere")
            file.write_bytes(data)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        else:
            file.unlink()

    monkeypatch.setattr(output_folder.SafetensorsSink, "close", meddle)
    with pytest.raises(InputError) as error:
        merge(linear, tmp_path / "out", shard_size=SHARDS)
    assert_one_line(
        str(error.value), str(file), "cannot be read" if change == "gone" else "changed"
    )
    assert not list(tmp_path.glob("out*"))


def test_points_of_a_killed_sweep_go_on(
    pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path
) -> None:
    file = recipe_file(SWEEP)
    sweep(file, tmp_path / "undisturbed", shard_size=SHARDS)

    def work() -> None:
        put, count = output_folder.Partial.put_in_place, [0]

        def counted(self: output_folder.Partial) -> None:
            count[0] += 1
            if count[0] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            put(self)

        output_folder.Partial.put_in_place = counted  # type: ignore[method-assign]
        sweep(file, tmp_path / "out", shard_size=SHARDS)

    assert killed(work) == signal.SIGKILL
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["m_w0.3", "m_w0.7.partial"]
    shard = next((tmp_path / "out" / names[1] / "new").glob("*.safetensors"))
    before = shard.stat().st_ino
    result = sweep(file, tmp_path / "out", shard_size=SHARDS)
    assert [point.merged is None for point in result.points] == [True, False]
    for name in ("m_w0.3", "m_w0.7"):
        point = tmp_path / "out" / name
        assert without_log(point) == without_log(tmp_path / "undisturbed" / name)
    assert (tmp_path / "out" / "m_w0.7" / shard.name).stat().st_ino == before


def test_the_disk_must_hold_all_of_a_chain_and_what_is_written_counts(
    pair: tuple[Path, Path],
    recipe_file: RecipeFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = """
    name: half
    merge_method: linear
    models: [{model: ./a, parameters: {weight: 1}}, {model: ./b, parameters: {weight: 1}}]
    ---
    merge_method: linear
    models: [{model: half, parameters: {weight: 1}}, {model: ./b, parameters: {weight: 1}}]
    """
    file = recipe_file(steps)
    size = (tmp_path / "a" / "model.safetensors").stat().st_size
    free = planning.DISK_MARGIN + size * 3 // 2

    def usage(_path: Path) -> Any:
        return output_folder.shutil._ntuple_diskusage(0, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(output_folder.shutil, "disk_usage", usage)
    with pytest.raises(ResourceError, match="the 2 merges need"):
        merge_all(file, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_written_files_count_as_space(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    cut_off(linear, out, 3)
    whole = sum(f.stat().st_size for f in (tmp_path / "out.partial" / "new").glob("*-0000[123]-*"))
    total = merge(linear, tmp_path / "other", shard_size=SHARDS).plan.output_bytes
    free = planning.DISK_MARGIN + total - whole

    def usage(_path: Path) -> Any:
        return output_folder.shutil._ntuple_diskusage(0, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(output_folder.shutil, "disk_usage", usage)
    with pytest.raises(ResourceError):
        merge(linear, tmp_path / "third", shard_size=SHARDS)
    merge(linear, out, shard_size=SHARDS, resume=True)
    assert out.is_dir()


def test_a_link_is_no_unfinished_folder(linear: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "out.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputExistsError) as error:
        merge(linear, tmp_path / "out", force=True)
    assert_one_line(str(error.value), "out.partial", "is not an unfinished merge")


def test_an_output_is_told_to_be_an_input_by_the_file_system(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that does not tell ``A`` from ``a``."""
    real = Path.samefile
    monkeypatch.setattr(
        Path,
        "samefile",
        lambda self, other: str(self).lower() == str(other).lower() or real(self, other),
    )
    (tmp_path / "A").mkdir()
    with pytest.raises(MerganserError) as error:
        merge(linear, tmp_path / "A", force=True)
    assert_one_line(str(error.value), "is inside the input")


def test_a_place_that_may_not_be_written_is_one_line(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError) as error:
        merge(linear, tmp_path / "out")
    assert_one_line(str(error.value), "out.partial", "Read-only file system")


def test_a_folder_whose_new_name_is_not_on_the_disk_steps_back(
    linear: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last sync of all fails: nothing has been put in place, and ``--resume`` does it."""
    out, sync = tmp_path / "out", system.sync

    def failing(path: Path) -> None:
        if path == out.parent:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(system, "sync", failing)
        with pytest.raises(ResourceError, match="cannot be put in place"):
            merge(linear, out, shard_size=SHARDS)
    assert not out.exists()
    merge(linear, out, shard_size=SHARDS, resume=True)
    assert without_log(out) == undisturbed
    assert not output_folder.partial_of(out).exists()


def test_a_lock_that_finds_no_room_is_let_go_of(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays, and the same process can try again."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    out, before = tmp_path / "new" / "out", tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            merge(linear, out)
    assert tree(tmp_path) == before
    assert not out.parent.exists()
    merge(linear, out)


def test_what_cannot_be_removed_does_not_keep_the_lock(
    linear: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, unlink = tmp_path / "out", Path.unlink

    def failing(self: Path, missing_ok: bool = False) -> None:
        if self.name == output_folder.JOURNAL:
            raise OSError(errno.EIO, "Input/output error", str(self))
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing)
        merge(linear, out, shard_size=SHARDS)
    merge(linear, out, shard_size=SHARDS, force=True)
    assert without_log(out) == undisturbed
    assert not output_folder.partial_of(out).exists()


def test_what_cannot_be_cleared_away_spoils_no_finished_merge(
    linear: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: output_folder.Partial) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(output_folder.Partial, "_remove", failing)
    merge(linear, tmp_path / "out", shard_size=SHARDS)
    assert without_log(tmp_path / "out") == undisturbed


@pytest.mark.parametrize(
    ("path", "error", "fate"),
    [
        ("a", InputError, "read"),  # and is not taken for a model on the Hub
        ("a/config.json", InputError, "read"),
        ("a/model.safetensors", InputError, "read"),
        ("a/tokenizer.json", InputError, ""),
        ("out", ResourceError, "looked at"),
        ("out.partial", ResourceError, ""),
    ],
)
def test_a_file_that_cannot_even_be_looked_at(
    linear: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: type[MerganserError],
    fate: str,
) -> None:
    stat = Path.stat

    def failing(self: Path, **how: Any) -> os.stat_result:
        if self.is_absolute() and self == linear.parent / path:
            raise OSError(errno.EIO, "Input/output error", str(self))
        return stat(self, **how)

    monkeypatch.setattr(Path, "stat", failing)
    with pytest.raises(error) as caught:
        merge(linear, linear.parent / "out")
    assert_one_line(str(caught.value), str(linear.parent / path), "Input/output error", fate)


def test_whether_a_model_is_there_is_asked_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.14 on ``Path.exists`` hides errors, and a folder would be taken for a Hub name."""

    def failing(self: Path, **_: Any) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error", str(self))

    monkeypatch.setattr(Path, "exists", lambda _self: False)
    monkeypatch.setattr(Path, "stat", failing)
    with pytest.raises(InputError, match=r"a: cannot be read \(Input/output error\)"):
        exists(str(tmp_path / "a"))


def test_a_merged_folder_that_cannot_be_read_is_told(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, glob = tmp_path / "out", Path.glob
    merge(linear, out)

    def failing(self: Path, pattern: str) -> Any:
        if self == out:
            raise OSError(errno.EIO, "Input/output error")
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", failing)
    with pytest.raises(InputError, match=r"out: cannot be read \(Input/output error\)"):
        verify(out)
