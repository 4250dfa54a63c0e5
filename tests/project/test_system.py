"""Without the calls that Windows and macOS lack: the same bytes, by the fallbacks."""

from __future__ import annotations

import errno
import json
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_on_disk import make_model, tree
from merganser import system
from merganser.checkpoints.stored_files import POPULATE
from recipe_files import RecipeFile

BARE = """
import mmap, os, sys
for name in ("preadv", "pwritev", "pread", "pwrite", "O_CLOEXEC", "O_DIRECT", "sysconf",
             "sched_getaffinity", "RWF_NOWAIT", "posix_fadvise"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE", "MADV_POPULATE_READ"):
    if hasattr(mmap, name):
        delattr(mmap, name)
sys.modules["fcntl"] = None  # importing it fails
sys.modules["resource"] = None
from merganser.cli import main
main()
"""


def run(*arguments: str | Path, bare: bool) -> str:
    command = [sys.executable, "-c", BARE] if bare else [sys.executable, "-m", "merganser"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plan_merge_and_verify_work_without_them(tmp_path: Path, recipe_file: RecipeFile) -> None:
    for seed, name in enumerate(["a", "b"]):
        make_model(tmp_path / name, seed=seed)
    recipe = recipe_file(
        "merge_method: slerp\nbase_model: ./a\nmodels: [{model: ./a}, {model: ./b}]\n"
        "parameters: {t: 0.3}\ndtype: bfloat16\n"
    )
    planned = [json.loads(run("plan", recipe, "--json", bare=bare)) for bare in (False, True)]
    assert planned[0] == planned[1]
    for bare in (False, True):
        run("merge", recipe, tmp_path / str(bare) / "out", "-q", "--shard-size", "8kB", bare=bare)
    whole, other = tree(tmp_path / "False" / "out"), tree(tmp_path / "True" / "out")
    log = "merge_manifest.json"  # holds times
    assert {k: v for k, v in whole.items() if k != log} == {
        k: v for k, v in other.items() if k != log
    }
    assert len([name for name in whole if name.endswith(".safetensors")]) > 1
    run("verify", tmp_path / "True" / "out", bare=True)
    assert not (tmp_path / "True" / "out.partial").exists()


def test_reads_and_writes_of_several_threads_keep_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "pwrite")
    file = tmp_path / "file"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    parts = [bytes([n]) * 1000 for n in range(64)]

    def copy(n: int) -> bytes:
        assert system.write_at(descriptor, parts[n], n * 1000) == 1000
        into = bytearray(1000)
        assert system.read_at(descriptor, memoryview(into), n * 1000) == 1000
        return bytes(into)

    try:
        with ThreadPoolExecutor(8) as crew:
            assert list(crew.map(copy, range(64))) == parts
    finally:
        os.close(descriptor)
    assert file.read_bytes() == b"".join(parts)


def test_a_lock_without_fcntl_goes_by_the_process_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merganser.errors import OutputExistsError
    from merganser.merging.lock import Lock

    monkeypatch.setitem(sys.modules, "fcntl", None)
    file = tmp_path / "lock"
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    import socket

    file.write_text(f"{sleeper.pid} {socket.gethostname()}\n")
    with pytest.raises(OutputExistsError, match=f"process {sleeper.pid}"):
        Lock(file)
    sleeper.communicate(b"\n")
    Lock(file).release()
    assert not file.exists()


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")],
)
def test_the_device_of_auto(
    cuda: bool, mps: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from merganser.study.live_model import LiveModel

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert LiveModel().device == device


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_goes_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    blocks: list[bytes | None] = [b"x" * 100_000 for _ in range(800)]
    blocks[:] = [block if n % 50 == 0 else None for n, block in enumerate(blocks)]
    before = resident()  # what is freed between blocks that stay is still there
    system.give_back_memory()
    assert resident() < before - 30_000_000


@pytest.mark.skipif(not POPULATE, reason="only Linux maps pages ahead")
def test_advice_on_a_mapping_is_taken_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * mmap.PAGESIZE)
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped,
    ):
        system.advise(mapped, POPULATE)
        assert mapped[:2] == b"xx"
        with pytest.raises(OSError, match="madvise") as refusal:
            system.advise(mapped, 12345)
        assert refusal.value.errno == errno.EINVAL
