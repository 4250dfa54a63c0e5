"""The laws that every input format keeps, tried on one small model in each of its forms."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser import system
from merganser.checkpoints import Checkpoint, open_checkpoint, stored_files
from merganser.checkpoints.blocks import SPAN
from merganser.checkpoints.stored import Files
from merganser.errors import InputError
from messages import assert_one_line
from sources import FORMS, bytes_of


@dataclass(frozen=True)
class Source:
    """A form of the model: what to open, what is in it, and all its files."""

    path: Path
    folder: Path
    expected: Mapping[str, torch.Tensor]
    checkpoint: Checkpoint


@pytest.fixture(scope="module", params=list(FORMS))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source") / "m"
    path, expected = FORMS[request.param](folder)
    return Source(path, folder, expected, open_checkpoint(path))


def whole(checkpoint: Checkpoint, name: str) -> bytes:
    buffer = bytearray(checkpoint.specs[name].nbytes)
    checkpoint.read(name, 0, memoryview(buffer))
    return bytes(buffer)


def test_headers_do_not_lie(source: Source) -> None:
    checkpoint = source.checkpoint
    assert set(checkpoint.specs) == set(source.expected)
    for name, tensor in source.expected.items():
        spec = checkpoint.specs[name]
        assert spec.dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert spec.shape == tuple(tensor.shape)
        assert spec.nbytes == len(bytes_of(tensor))


def test_it_says_what_it_is(source: Source) -> None:
    checkpoint = source.checkpoint
    assert checkpoint.format
    assert checkpoint.label == str(source.path)
    assert checkpoint.home is not None
    assert checkpoint.path is not None
    assert source.path.is_relative_to(source.folder)
    home = checkpoint.home if checkpoint.home.is_dir() else checkpoint.home.parent
    assert checkpoint.files
    for name, size in checkpoint.files.items():
        assert (home / name).stat().st_size == size
    again = open_checkpoint(source.path)
    assert again.header_digest == checkpoint.header_digest
    assert list(again.specs) == list(checkpoint.specs)


def test_the_digest_of_headers_does_not_tell_where_the_model_lies(
    source: Source, tmp_path: Path
) -> None:
    moved = shutil.copytree(source.folder, tmp_path / "moved", symlinks=True)
    elsewhere = open_checkpoint(moved / source.path.relative_to(source.folder))
    assert elsewhere.header_digest == source.checkpoint.header_digest


def test_every_tensor_is_what_was_saved(source: Source) -> None:
    for name, tensor in source.expected.items():
        assert whole(source.checkpoint, name) == bytes_of(tensor), name


@given(st.data())
@settings(max_examples=30)
def test_ranges_concatenate_to_the_whole(source: Source, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(source.expected)))
    expected = bytes_of(source.expected[name])
    cuts = data.draw(st.lists(st.integers(0, len(expected)), max_size=6))
    buffer = bytearray(len(expected))
    for begin, end in pairwise(sorted({0, len(expected), *cuts})):
        source.checkpoint.read(name, begin, memoryview(buffer)[begin:end])
    assert bytes(buffer) == expected


def test_threads_agree(source: Source) -> None:
    checkpoint = open_checkpoint(source.path)
    names = list(source.expected) * 10
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: whole(checkpoint, name), names))
    assert found == [bytes_of(source.expected[name]) for name in names]
    checkpoint.close()


def test_reading_goes_on_after_closing(source: Source) -> None:
    checkpoint = open_checkpoint(source.path)
    name = max(source.expected, key=lambda name: source.expected[name].numel())
    checkpoint.close()
    assert whole(checkpoint, name) == bytes_of(source.expected[name])
    checkpoint.close()
    checkpoint.close()


def test_more_files_than_are_kept_open(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4 * (stored_files.KEPT.taken + 1)
    monkeypatch.setattr(system, "most_open_files", lambda: limit)
    checkpoint = open_checkpoint(source.path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    names = list(source.expected) * 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: whole(checkpoint, name), names))
    assert found == [bytes_of(source.expected[name]) for name in names]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    checkpoint.close()


def test_a_range_touches_little_more_than_itself(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    read = Files.read

    def counted(self: Files, file: Path, position: int, into: memoryview, what: str) -> None:
        nonlocal count
        count += len(into)
        read(self, file, position, into, what)

    monkeypatch.setattr(Files, "read", counted)
    monkeypatch.setattr("merganser.checkpoints.blocks.SPAN", 64)
    assert SPAN > 64
    for name, spec in source.checkpoint.specs.items():
        width = spec.dtype.itemsize
        buffer = memoryview(bytearray(width * (spec.numel // 3)))
        count = 0
        source.checkpoint.read(name, width * (spec.numel // 3), buffer)
        assert count <= 2 * len(buffer) + 3 * 64, name


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, None])
def test_a_truncated_file_is_one_clear_line(
    source: Source, tmp_path: Path, share: float | None
) -> None:
    for broken in source.checkpoint.files:
        folder = tmp_path / broken.replace("/", "_")
        shutil.copytree(source.folder, folder, symlinks=True)
        home = source.checkpoint.home
        assert home is not None
        inside = (home if home.is_dir() else home.parent).relative_to(source.folder)
        file = folder / inside / broken
        size = file.stat().st_size
        os.truncate(file, size - 1 if share is None else int(share * size))
        with pytest.raises(InputError) as error:
            open_checkpoint(folder / source.path.relative_to(source.folder))
        assert_one_line(str(error.value), str(file))


@pytest.mark.parametrize(
    "form",
    ["pickled_shards", "fsdp2-2", "fsdp2-old-2", "fsdp1-2", "dcp-2", "megatron-4", "zero2-3"],
)
def test_damage_is_one_clear_line_or_nothing(form: str, tmp_path: Path) -> None:
    """Bytes of the pickles changed at random: no traceback, and no tensor that reads beyond itself."""
    path, _ = FORMS[form](tmp_path / "m")
    files = [file for file in open_checkpoint(path).files]
    home = open_checkpoint(path).home
    assert home is not None

    @given(st.data())
    @settings(max_examples=80)
    def damaged(data: st.DataObject) -> None:
        file = home / data.draw(st.sampled_from(files))
        content = file.read_bytes()
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, min(len(changed), 12_000) - 1))
            changed[place] = data.draw(st.integers(0, 255))
        file.write_bytes(changed)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.specs:
                whole(checkpoint, name)
        except InputError as error:
            assert_one_line(str(error), str(home))
        finally:
            file.write_bytes(content)

    damaged()
