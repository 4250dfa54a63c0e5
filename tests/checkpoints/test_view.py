"""What lies in the page cache is looked at where it lies; all else is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import merganser
from merganser.checkpoints import Checkpoint, open_checkpoint, stored_files
from merganser.checkpoints.computed.derived import look
from merganser.errors import InputError
from merganser.sinks import StateDictSink

SIZE = 4 * stored_files.MAPPED
linux = pytest.mark.skipif(not stored_files.POPULATE, reason="only Linux tells what is in memory")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    numbers = np.random.default_rng(0).integers(0, 255, SIZE // 4, dtype=np.int32)
    save_file({"odd": torch.zeros(3, dtype=torch.uint8), "w": torch.from_numpy(numbers)}, file)
    return file


def opened(file: Path) -> Checkpoint:
    """A checkpoint of which something has been read."""
    checkpoint = open_checkpoint(file)
    assert checkpoint.view("w", 0, SIZE) is None  # its file is not open yet
    checkpoint.read("w", 0, memoryview(bytearray(8)))
    return checkpoint


def seen(checkpoint: Checkpoint, start: int, length: int) -> bytes | None:
    view = checkpoint.view("w", start, length)
    return None if view is None else bytes(view)


def read(checkpoint: Checkpoint, start: int, length: int) -> bytes:
    into = bytearray(length)
    checkpoint.read("w", start, memoryview(into))
    return bytes(into)


@linux
@pytest.mark.parametrize("start", [0, 4, 4096, stored_files.MAPPED - 8])
def test_what_is_seen_is_what_is_read(file: Path, start: int) -> None:
    checkpoint = opened(file)
    found = seen(checkpoint, start, SIZE - start)
    assert found is not None
    assert found == read(checkpoint, start, SIZE - start)


@linux
def test_what_is_written_into_it_is_not_kept(file: Path) -> None:
    checkpoint, before = opened(file), file.read_bytes()
    view = checkpoint.view("w", 0, SIZE)
    assert view is not None
    view[:100] = b"\1" * 100
    assert file.read_bytes() == before
    assert seen(checkpoint, 0, SIZE) == read(checkpoint, 0, SIZE)


@linux
def test_it_outlives_the_checkpoint(file: Path) -> None:
    checkpoint = opened(file)
    whole = read(checkpoint, 0, SIZE)
    array = look(checkpoint, "w", 0, np.zeros(SIZE, np.uint8))
    assert array.base is not None
    checkpoint.close()
    assert array.tobytes() == whole


def test_little_is_read(file: Path) -> None:
    assert opened(file).view("w", 0, stored_files.MAPPED - 4) is None


def test_what_is_cut_off_is_an_error_of_reading(file: Path) -> None:
    checkpoint = opened(file)
    os.truncate(file, file.stat().st_size - 64)
    assert checkpoint.view("w", 0, SIZE) is None
    with pytest.raises(InputError, match="ends within tensor 'w'"):
        look(checkpoint, "w", 0, np.zeros(SIZE, np.uint8))


@linux
@pytest.mark.parametrize("error", [BlockingIOError, OSError])
def test_what_is_not_in_memory_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    checkpoint, real = opened(file), os.preadv

    def preadv(descriptor: int, buffers: list[bytearray], place: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise error
        return real(descriptor, buffers, place)

    monkeypatch.setattr(os, "preadv", preadv)
    assert checkpoint.view("w", 0, SIZE) is None
    assert look(checkpoint, "w", 0, np.zeros(SIZE, np.uint8)).tobytes() == read(checkpoint, 0, SIZE)


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_merge_of_more_files_than_may_be_open(tmp_path: Path) -> None:
    import resource

    before = open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 4 * (before + 8)
    numbers = {"w": torch.ones(stored_files.MAPPED // 4)}
    for n in range(limit):
        save_file(numbers, tmp_path / f"{n}.safetensors")
    models = [{"model": str(tmp_path / f"{n}.safetensors")} for n in range(limit)]
    how: dict[str, Any] = {"merge_method": "linear", "parameters": {"weight": 1}}
    plan = merganser.plan(how | {"models": models, "dtype": "float32"})
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        merganser.run([plan], [sink], threads=4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert torch.equal(sink.tensors["w"], numbers["w"])
    assert stored_files.KEPT.taken < limit // 4
    assert open_files() <= before


@linux
def test_numbers_at_odd_places_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(SIZE // 4)}, file)
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length] + b" "  # the numbers move by a byte
    file.write_bytes((length + 1).to_bytes(8, "little") + header + whole[8 + length :])
    assert opened(file).view("w", 0, SIZE) is None
