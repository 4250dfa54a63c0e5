"""Checkpoints: what a header may say, and that reading gives what the file holds."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ggufs
from checkpoints_on_disk import make_model, tree, write_json
from merganser import hub, weight_formats
from merganser.checkpoints import Checkpoint, open_checkpoint
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.errors import InputError
from merganser.merging.in_memory import merge_tensors
from merganser.merging.merge import merge
from merganser.merging.output_folder import Partial
from merganser.recipe.run_steps import list_steps
from merganser.release.verification import damage
from merganser.tensors import DTYPES
from messages import assert_one_line

INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def whole(checkpoint: Checkpoint, name: str) -> bytes:
    buffer = bytearray(checkpoint.specs[name].nbytes)
    checkpoint.read(name, 0, memoryview(buffer))
    return bytes(buffer)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


# -- what opens ------------------------------------------------------------------------------------


def single(folder: Path) -> Path:
    return make_model(folder)


def sharded(folder: Path) -> Path:
    return make_model(folder, shards=3)


def loose(folder: Path) -> Path:
    """Shards without an index, beside files that are no part of the model."""
    (make_model(folder, shards=3) / INDEX).unlink()
    save_file({"lora": torch.ones(2)}, folder / "adapter_model.safetensors")
    save_file({"again": torch.ones(2)}, folder / "consolidated.safetensors")
    return folder


def indexed(folder: Path) -> Path:
    """An index beside a single file, which is then not looked at."""
    make_model(folder, shards=2)
    save_file({"stray": torch.ones(2)}, folder / "model.safetensors")
    return folder


def linked(folder: Path) -> Path:
    """The Hub's cache: files are links to blobs."""
    make_model(folder, shards=2)
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(blobs / file.name)
    return folder


forms = pytest.mark.parametrize("form", [single, sharded, loose, indexed, linked])


@forms
def test_all_forms_of_a_model_read_the_same(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    folder = form(tmp_path / "m")
    expected = stored(make_model(tmp_path / "plain"))
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.specs) == set(expected)
    assert checkpoint.config["model_type"] == "qwen2"
    assert checkpoint.path == folder
    for name, tensor in expected.items():
        spec = checkpoint.specs[name]
        assert (spec.dtype.name, spec.shape) == ("bfloat16", tuple(tensor.shape))
        assert whole(checkpoint, name) == bytes_of(tensor)
    used = [folder / name for name in checkpoint.files]
    assert list(checkpoint.files.values()) == [file.stat().st_size for file in used]
    checkpoint.close()


def test_a_bare_file(tmp_path: Path) -> None:
    file = make_model(tmp_path / "m") / "model.safetensors"
    checkpoint = open_checkpoint(file)
    assert set(checkpoint.specs) == set(load_file(file))
    assert checkpoint.config == {}
    assert checkpoint.files == {file.name: file.stat().st_size}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_dtype_is_recognised_and_read(tmp_path: Path, dtype: Any) -> None:
    tensor = torch.arange(6 * dtype.itemsize, dtype=torch.uint8)
    if dtype.name == "bool":
        tensor %= 2
    tensor = tensor.view(getattr(torch, dtype.name)).reshape(2, 3)
    file = tmp_path / "m.safetensors"
    save_file({"t": tensor}, file)
    checkpoint = open_checkpoint(file)
    assert str(checkpoint.specs["t"]) == f"{dtype.name}[2, 3]"
    assert checkpoint.specs["t"].nbytes == 6 * dtype.itemsize
    assert whole(checkpoint, "t") == bytes_of(tensor)


def test_the_digest_of_headers_tells_models_apart(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"layers": 3}, {"shards": 2}, {"dtype": torch.float16}]
    folders = [make_model(tmp_path / str(i), **change) for i, change in enumerate(changes)]
    assert len({open_checkpoint(folder).header_digest for folder in folders}) == len(folders)
    again = make_model(tmp_path / "again", seed=5)
    assert open_checkpoint(again).header_digest == open_checkpoint(folders[0]).header_digest


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ([], "holds no model"),
        (["config.json"], "no weights"),
        (["config.json", "model.pt"], "name that file"),
        (["adapter_model.safetensors"], "no"),
        (["global_step_9/data.pt", "global_step_10/data.pt"], "such as global_step_10"),
        (["actor/optim_world_size_2_rank_0.pt"], "the optimizer's state, but no weights"),
        (["model/mp_rank_00/model.pt"], "torch_dist"),
        (["mp_rank_00_model_states.pt"], "*_optim_states.pt"),
        (["latest_checkpointed_iteration.txt"], "names no step"),
    ],
)
def test_what_is_no_checkpoint_says_what_is_there(
    tmp_path: Path, names: list[str], part: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name.endswith(".txt") else "{}")
    with pytest.raises(InputError) as error:
        open_checkpoint(tmp_path, "the model")
    start = str(tmp_path) if names[:1] == ["latest_checkpointed_iteration.txt"] else "the model: "
    assert_one_line(str(error.value), start, part)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a checkpoint"):
        open_checkpoint(write_json(tmp_path / "config.json", {}))
    with pytest.raises(InputError, match="name its folder"):
        open_checkpoint(write_json(tmp_path / "__0_0.distcp", {}))


def test_a_format_declares_its_suffixes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages, the choice of a run's steps and the check of a folder follow the table."""
    for folder in ("run/global_step_5", "merged"):
        (tmp_path / folder).mkdir(parents=True)
    write_json(tmp_path / "run" / "global_step_5" / "model.npz", {})
    foreign = write_json(tmp_path / "merged" / "model.npz", {})
    assert [step.problem for step in list_steps(tmp_path / "run")] == ["holds no weights"]
    assert damage({}, foreign.parent) == []
    npz = weight_formats.WeightFormat("npz", (".npz",))
    monkeypatch.setattr(weight_formats, "FORMATS", (*weight_formats.FORMATS, npz))
    assert [step.problem for step in list_steps(tmp_path / "run")] == [None]
    assert damage({}, foreign.parent) == ["model.npz is not in the manifest"]
    with pytest.raises(InputError, match=r"can be read \(\.safetensors, .*, \.gguf, \.npz\)"):
        open_checkpoint(write_json(tmp_path / "notes.json", {}))


# -- reading ---------------------------------------------------------------------------------------

SHAPE = (37, 13)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint, bytes]:
    """One tensor between others, as a file and in memory, and its bytes."""
    file = tmp_path_factory.mktemp("reading") / "m.safetensors"
    tensors = {name: torch.randn(SHAPE).bfloat16() for name in ("a", "t", "z")}
    save_file(tensors, file)
    return open_checkpoint(file), MemoryCheckpoint(tensors), bytes_of(tensors["t"])


@given(st.lists(st.integers(0, 2 * 37 * 13)))
def test_ranges_concatenate_to_the_whole(
    reading: tuple[Checkpoint, Checkpoint, bytes], cuts: list[int]
) -> None:
    *checkpoints, expected = reading
    ends = sorted({0, len(expected), *cuts})
    for checkpoint in checkpoints:
        buffer = bytearray(len(expected))
        for begin, end in pairwise(ends):
            checkpoint.read("t", begin, memoryview(buffer)[begin:end])
        assert bytes(buffer) == expected


@forms
def test_threads_read_the_same(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    folder = form(tmp_path / "m")
    checkpoint, expected = open_checkpoint(folder), stored(make_model(tmp_path / "plain"))
    names = list(expected) * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: whole(checkpoint, name), names))
    assert found == [bytes_of(expected[name]) for name in names]


def test_reading_goes_on_after_closing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_model(tmp_path / "m"))
    first = whole(checkpoint, EMBEDDING)
    checkpoint.close()
    assert whole(checkpoint, EMBEDDING) == first
    checkpoint.close()


def test_memory_is_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    tensors = stored(make_model(tmp_path / "m"))
    tensors |= {
        "transposed": torch.randn(4, 6).t(),
        "strided": torch.randn(4, 6)[:, ::2],
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    file = tmp_path / "copy.safetensors"
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)
    memory, disk = MemoryCheckpoint(tensors), open_checkpoint(file)
    assert dict(memory.specs) == dict(disk.specs)
    assert list(memory.specs) == list(tensors)
    for name in tensors:
        assert whole(memory, name) == whole(disk, name)


# -- lying headers ---------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
}


def lying(file: Path, header: object, size: int = 16, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    file.write_bytes(length.to_bytes(8, "little") + text + bytes(size))
    return file


def with_b(**changes: Any) -> dict[str, Any]:
    return GOOD | {"b": GOOD["b"] | changes}


def test_the_header_that_the_lies_are_made_of_is_good(tmp_path: Path) -> None:
    assert set(open_checkpoint(lying(tmp_path / "m.safetensors", GOOD)).specs) == {"a", "b"}


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"7", "object"),
        (b"null", "object"),
        (b"\xff\xfe{}", "JSON"),
        (b"{" + b"[" * 100_000, "JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON"),
        (b'{"a": {}, "a": {}}', "twice"),
        ({"a": 7}, "'a'"),
        ({"a": "text"}, "'a'"),
        ({"a": None}, "'a'"),
        ({"a": {}}, "'a'"),
        ({"a": []}, "'a'"),
        (with_b(data_offsets=[4, 12]), "overlap"),
        (with_b(data_offsets=[0, 8]), "overlap"),
        (with_b(data_offsets=[9, 17]), "gap"),
        ({"b": GOOD["b"]}, "gap"),
        ({"a": GOOD["a"]}, "no tensor"),
        ({}, "no tensor"),
        (with_b(shape=[2, 4], data_offsets=[8, 24]), "cut off"),
        (with_b(shape=[2**40], data_offsets=[8, 8 + 2**41]), "cut off"),
        (with_b(data_offsets=[-8, 0]), "impossible"),
        (with_b(data_offsets=[16, 8]), "impossible"),
        (with_b(data_offsets=[8.0, 16.0]), "impossible"),
        (with_b(data_offsets=[8, True]), "impossible"),
        (with_b(data_offsets=[8]), "malformed"),
        (with_b(data_offsets=[8, 16, 24]), "malformed"),
        (with_b(data_offsets="xy"), "impossible"),
        (with_b(data_offsets=None), "malformed"),
        (with_b(shape=[-2, -2]), "impossible"),
        (with_b(shape=[2, 2.0]), "impossible"),
        (with_b(shape=[[2, 2]]), "impossible"),
        (with_b(shape=4), "malformed"),
        (with_b(shape="4"), "impossible"),
        (with_b(shape={}), "'b'"),
        (with_b(shape=[3]), "6 bytes"),
        (with_b(shape=[2**62, 2**62]), "bytes"),
        (with_b(dtype="F32"), "16 bytes"),
        (with_b(dtype="F4"), "'F4'"),
        (with_b(dtype="bf16"), "'bf16'"),
        (with_b(dtype=None), "None"),
        (with_b(dtype=7), "7"),
        (with_b(dtype=["BF16"]), "'b'"),
        (with_b(dtype={}), "'b'"),
        (with_b(dtype="x" * 10**6), "xxx"),
    ],
    ids=lambda value: repr(value)[-60:],
)
def test_a_header_that_lies(tmp_path: Path, header: object, part: str) -> None:
    file = lying(tmp_path / "m.safetensors", header)
    with pytest.raises(InputError) as error:
        open_checkpoint(tmp_path, "the model")
    assert_one_line(str(error.value), str(file), part)
    assert len(str(error.value)) < 400 + len(str(file))


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**9, 2**63, 2**64 - 1])
def test_a_length_of_the_header_that_lies(tmp_path: Path, length: int) -> None:
    file = lying(tmp_path / "m.safetensors", GOOD, length=length)
    with pytest.raises(InputError) as error:
        open_checkpoint(file)
    assert_one_line(str(error.value), str(file), "header")


def test_a_tensor_name_cannot_break_the_line(tmp_path: Path) -> None:
    file = lying(
        tmp_path / "m.safetensors",
        {"a\nb": {"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}},
    )
    with pytest.raises(InputError) as error:
        open_checkpoint(file)
    assert_one_line(str(error.value), str(file))


@given(st.integers(0, 400))
def test_a_truncated_file(tmp_path: Path, length: int) -> None:
    file = lying(tmp_path / "m.safetensors", GOOD)
    content = file.read_bytes()
    length %= len(content)
    file.write_bytes(content[:length])
    with pytest.raises(InputError) as error:
        open_checkpoint(tmp_path)
    assert_one_line(str(error.value), str(file))


@given(st.data())
@settings(max_examples=200)
def test_any_damage_to_a_header_is_an_input_error_or_none(tmp_path: Path, data: Any) -> None:
    file = lying(tmp_path / "m.safetensors", GOOD)
    content = bytearray(file.read_bytes())
    header = len(content) - 16
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(
            st.integers(0, 255) | st.sampled_from(b'[]{},:"0129-')
        )
    file.write_bytes(content)
    try:
        checkpoint = open_checkpoint(file)
    except InputError as error:
        assert_one_line(str(error), str(file))
    else:
        assert sum(spec.nbytes for spec in checkpoint.specs.values()) == 16


# -- lying indices ---------------------------------------------------------------------------------


def remapped(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    index = folder / INDEX
    data = json.loads(index.read_text())
    changed = change(data["weight_map"])
    return write_json(index, {"weight_map": changed})


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: m | {EMBEDDING: f"../{FIRST}"}, ["outside", EMBEDDING]),
        (lambda m: m | {EMBEDDING: "/etc/passwd"}, ["outside", "/etc/passwd"]),
        (lambda m: m | {EMBEDDING: f"./{FIRST}"}, ["outside"]),
        (lambda m: m | {EMBEDDING: f"sub/{FIRST}"}, ["outside"]),
        (lambda m: m | {EMBEDDING: ".."}, ["outside"]),
        (lambda m: m | {EMBEDDING: ""}, ["outside"]),
        (lambda m: m | {EMBEDDING: 7}, ["7"]),
        (lambda m: m | {EMBEDDING: None}, ["None"]),
        (lambda m: m | {EMBEDDING: "missing.safetensors"}, ["missing.safetensors"]),
        (lambda m: m | {EMBEDDING: "a\0b"}, ["missing"]),
        (lambda m: m | {EMBEDDING: "x" * 5000}, ["xxx"]),
        (lambda m: m | {"a tensor": FIRST}, ["'a tensor'", FIRST]),
        (lambda m: m | {EMBEDDING: SECOND if m[EMBEDDING] == FIRST else FIRST}, [EMBEDDING]),
        (lambda m: {}, ["weight_map"]),
        (lambda m: None, ["weight_map"]),
        (lambda m: list(m), ["weight_map"]),
    ],
)  # fmt: skip
def test_an_index_that_lies(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], parts: list[str]
) -> None:
    folder = make_model(tmp_path / "m", shards=2)
    remapped(folder, change)
    with pytest.raises(InputError) as error:
        open_checkpoint(folder)
    assert_one_line(str(error.value), str(folder), *parts)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"weight_map"', "[" * 100_000, "\udcff"])
@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_json_that_is_none(tmp_path: Path, name: str, text: str) -> None:
    folder = make_model(tmp_path / "m", shards=2)
    (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError) as error:
        open_checkpoint(folder)
    assert_one_line(str(error.value), str(folder / name))


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", shards=2)
    (folder / SECOND).unlink()
    with pytest.raises(InputError) as error:
        open_checkpoint(folder)
    assert_one_line(str(error.value), str(folder), SECOND)


def test_a_tensor_in_two_loose_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"t": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError) as error:
        open_checkpoint(tmp_path)
    assert_one_line(str(error.value), "'t'", "one.safetensors", "two.safetensors")


# -- files that change under way -------------------------------------------------------------------


def test_a_file_truncated_after_planning(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, begin = tmp_path / "b" / "model.safetensors", Partial.__init__

    def truncate(self: Partial, *arguments: Any, **options: Any) -> None:
        os.truncate(file, file.stat().st_size - 100)
        begin(self, *arguments, **options)

    monkeypatch.setattr(Partial, "__init__", truncate)
    before = {name for name in tree(tmp_path)}
    with pytest.raises(InputError) as error:
        merge(linear, tmp_path / "out")
    assert_one_line(str(error.value), str(file), "changed since its header was read")
    assert {name for name in tree(tmp_path)} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "recipe.yml"]


def test_a_file_that_is_gone_after_planning(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_model(tmp_path / "m"))
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError) as error:
        whole(checkpoint, EMBEDDING)
    assert_one_line(str(error.value), "model.safetensors")


def test_integers_that_differ_cannot_be_merged() -> None:
    with pytest.raises(InputError, match="differs"):
        merge_tensors([torch.arange(3), torch.arange(3) + 1], "linear", weights=[1, 1])
    same = merge_tensors([torch.arange(3), torch.arange(3)], "linear", weights=[1, 1])
    assert torch.equal(same, torch.arange(3))


# -- the Hub's cache -------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub's, empty, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.parametrize("path", ["org/name", "name"])
def test_a_model_that_is_not_in_the_cache(offline: Path, path: str) -> None:
    for revision, name in ((None, path), ("v1", f"{path}@v1")):
        with pytest.raises(InputError) as error:
            hub.resolve(path, revision)
        assert_one_line(str(error.value), name, "HF_HUB_OFFLINE is set", f"hf download {path}")


@pytest.mark.parametrize(
    "path", ["../org/name", "a/b/c", "./missing", "/org/name", "org/na me", "."]
)
def test_what_cannot_be_on_the_hub_is_a_missing_folder(
    offline: Path, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if path == ".":
        assert hub.resolve(path) == Path()
        return
    with pytest.raises(InputError) as error:
        hub.resolve(path, beside=tmp_path)
    assert_one_line(str(error.value), path, "no such folder")
    assert "Hub" not in str(error.value)


def test_a_model_in_the_cache(offline: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = offline / "models--org--name"
    make_model(model / "snapshots" / commit)
    (model / "refs").mkdir()
    for name in ("main", "v1"):
        (model / "refs" / name).write_text(commit)
    for revision in (None, "v1", commit):
        found = hub.resolve("org/name", revision)
        assert found == model / "snapshots" / commit
        assert EMBEDDING in open_checkpoint(found).specs
    with pytest.raises(InputError, match=re.escape("org/name@v2")):
        hub.resolve("org/name", "v2")


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ([], []),
        (["duck.gguf"], ["duck.gguf"]),
        (["duck-Q4_K_M.gguf", "duck.Q8_0.gguf", "duck-q6_k.gguf"], ["duck.Q8_0.gguf"]),
        (["duck-BF16.gguf", "duck-f16.gguf", "duck-Q8_0.gguf"], ["duck-BF16.gguf"]),
        (["duck-Q5_K_L.gguf", "duck-Q4_0.gguf", "duck-IQ4_XS.gguf"], ["duck-Q5_K_L.gguf"]),
        (["duck.gguf", "mmproj-F32.gguf", "duck.imatrix.gguf"], ["duck.gguf"]),
        (
            ["f16/duck-f16-00002-of-00002.gguf", "f16/duck-f16-00001-of-00002.gguf", "q.gguf"],
            ["f16/duck-f16-00001-of-00002.gguf", "f16/duck-f16-00002-of-00002.gguf"],
        ),
    ],
)
def test_which_gguf_model_of_a_repository(files: list[str], chosen: list[str]) -> None:
    assert hub.chosen_gguf(files, "org/duck") == chosen


@pytest.mark.parametrize(
    "files", [["a.gguf", "b.gguf"], ["a-F16.gguf", "b-F16.gguf", "c-Q4_0.gguf"]]
)
def test_a_repository_whose_names_do_not_tell(files: list[str]) -> None:
    with pytest.raises(InputError) as error:
        hub.chosen_gguf(files, "org/duck@v1")
    assert_one_line(str(error.value), "org/duck@v1", *files[:2], f"hf download org/duck {files[0]}")


@pytest.mark.parametrize("network", [True, False])
def test_a_repository_of_gguf_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: bool
) -> None:
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    for kind in ("Q8_0", "F16"):
        ggufs.save(repository / f"duck-{kind}.gguf", ggufs.llama(), ggufs.LLAMA, kind)
    (repository / "README.md").write_text("A duck.")
    fetched: set[str] = set()

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        cache.mkdir(exist_ok=True)
        for file in repository.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, cache)
                fetched.add(file.name)
        return str(cache)

    def listed(name: str, **_: object) -> list[str]:
        if not network:
            raise ConnectionError
        return [file.name for file in repository.iterdir()]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", listed)
    if network:
        assert open_checkpoint(hub.resolve("org/duck")).format == "GGUF"
        assert fetched == {"duck-F16.gguf", "README.md"}
        return
    assert hub.resolve("org/duck") == cache  # nothing is known of it
    shutil.copy(repository / "duck-Q8_0.gguf", cache)
    assert hub.resolve("org/duck") == cache / "duck-Q8_0.gguf"


def test_a_folder_goes_before_the_cache(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = make_model(tmp_path / "beside" / "org" / "name").parent.parent
    assert hub.resolve("org/name", beside=beside) == beside / "org" / "name"
    here = make_model(tmp_path / "here" / "org" / "name").parent.parent
    monkeypatch.chdir(here)
    assert hub.resolve("org/name", beside=beside) == Path("org/name")
