"""GGUF files against the readers of others: the package of llama.cpp's authors, and transformers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.quantization_config import GgufConfig

import ggufs
from checkpoints_on_disk import config, shapes, write_json
from ggufs import LLAMA, llama
from merganser.checkpoints import Checkpoint, open_checkpoint
from merganser.checkpoints.gguf import ggml
from merganser.errors import InputError
from messages import assert_one_line

QWEN2 = config(hidden=64, tied=True)
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def numbers(checkpoint: Checkpoint, name: str, start: int = 0, count: int | None = None) -> Any:
    spec = checkpoint.specs[name]
    count = spec.numel - start if count is None else count
    buffer = bytearray(count * spec.dtype.itemsize)
    checkpoint.read(name, start * spec.dtype.itemsize, memoryview(buffer))
    return torch.frombuffer(buffer, dtype=getattr(torch, spec.dtype.name))


@pytest.mark.parametrize("kind", ggml.FORMATS)
def test_blocks_have_the_bits_of_the_reference(kind: int) -> None:
    form, reference = ggml.FORMATS[kind], gguf.GGMLQuantizationType(kind)
    assert form.name == reference.name
    assert (form.count, form.size) == gguf.GGML_QUANT_SIZES[reference]
    blocks = np.random.default_rng(kind).integers(0, 256, (300, form.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = dequantize(blocks, reference).reshape(-1)
    found = ggml.dequantise(form, blocks.reshape(-1))
    assert found.dtype == np.float32
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    finite = ~np.isnan(expected)
    assert np.array_equal(found[finite].view(np.uint32), expected[finite].view(np.uint32))


def test_names_of_types_are_those_of_the_reference() -> None:
    for kind, name in ggml.OTHERS.items():
        assert gguf.GGMLQuantizationType(kind).name == name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_a_range_of_a_tensor_of_large_blocks(tmp_path: Path, kind: str) -> None:
    """Ranges that begin and end anywhere in blocks of 256, of a tensor between others."""
    quantised = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[quantised]
    blocks = np.random.default_rng(1).integers(0, 200, (48, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    for key, value in {"block_count": 1, "embedding_length": 512, "feed_forward_length": 9}.items():
        writer.add_uint32(f"qwen2.{key}", value)
    writer.add_uint32("qwen2.attention.head_count", 2)
    writer.add_uint32("qwen2.context_length", 32)
    writer.add_tensor("output_norm.weight", np.ones(512, np.float32))
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=quantised)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(512, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    name = "model.embed_tokens.weight"
    assert checkpoint.specs[name].shape == (48, 512)
    assert checkpoint.format == f"GGUF ({kind})"
    with np.errstate(all="ignore"):
        expected = dequantize(blocks, quantised).reshape(-1).view(np.uint32)
    for start, count in ((0, 48 * 512), (1, 1), (255, 2), (256, 256), (700, 5000), (24575, 1)):
        found = numbers(checkpoint, name, start, count).numpy().view(np.uint32)
        assert np.array_equal(found, expected[start : start + count]), (start, count)


@pytest.mark.parametrize("model", [LLAMA, QWEN2, QWEN3], ids=lambda model: model["model_type"])
def test_transformers_reads_the_same_model(tmp_path: Path, model: dict[str, Any]) -> None:
    tensors = llama()
    if model["model_type"] == "qwen2":
        tensors = {name: 0.05 * torch.randn(s) for name, s in shapes(hidden=64, head=False).items()}
    if model["model_type"] == "qwen3":
        for i in range(2):
            for part in "qk":
                tensors[f"model.layers.{i}.self_attn.{part}_norm.weight"] = torch.randn(16)
    file = ggufs.save(tmp_path / "m.gguf", tensors, model, "Q8_0")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        **({"head_dim": 16} if model is QWEN3 else {}),  # which it does not read from the file
    ).state_dict()
    ours = open_checkpoint(file)
    assert set(ours.specs) == set(theirs) - {"lm_head.weight"}
    for name, spec in ours.specs.items():
        assert torch.equal(numbers(ours, name).reshape(spec.shape), theirs[name]), name


@pytest.mark.parametrize("model", [LLAMA, QWEN2, QWEN3], ids=lambda model: model["model_type"])
def test_the_config_is_that_of_the_model(tmp_path: Path, model: dict[str, Any]) -> None:
    keys = {f"tokenizer.ggml.{role}_token_id": i for i, role in enumerate(("bos", "eos"), 1)}
    width = model["hidden_size"]
    tensors = {"model.embed_tokens.weight": torch.zeros(model["vocab_size"], width)}
    found = dict(
        open_checkpoint(ggufs.save(tmp_path / "m.gguf", tensors, model, "F16", keys)).config
    )
    left_out = {"torch_dtype", "bos_token_id", "eos_token_id"}
    for key in set(model) - left_out:
        assert found[key] == model[key], key
    assert found["bos_token_id"] == 1
    write_json(tmp_path / "config.json", found)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.num_key_value_heads == model["num_key_value_heads"]
    assert loaded.rope_parameters["rope_theta"] == model["rope_theta"]


def test_what_a_result_is_stored_in(tmp_path: Path) -> None:
    """Vectors are float32 in every file; a result has them in what the matrices have."""
    natural = {}
    for kind in ("Q8_0", "F16", "BF16", "F32"):
        found = open_checkpoint(ggufs.save(tmp_path / f"{kind}.gguf", llama(), LLAMA, kind))
        natural[kind] = {spec.natural.name for spec in found.specs.values()}
    assert natural == {
        "Q8_0": {"bfloat16"},
        "F16": {"float16"},
        "BF16": {"bfloat16"},
        "F32": {"float32"},
    }


def test_stretched_positions(tmp_path: Path) -> None:
    """Llama 3's factors, by the formula of transformers, become its config again."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = LLAMA | {
        "rope_theta": 500000.0,
        "head_dim": 64,
        "hidden_size": 256,
        "max_position_embeddings": 131072,
    }
    shape = LlamaConfig(**model, rope_scaling=dict(stretched))
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](shape, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    ggufs.NAMES["rope_freqs"] = "rope_freqs"
    tensors = {
        "model.embed_tokens.weight": torch.zeros(48, 256),
        "rope_freqs.weight": plain / frequencies,
    }
    found = open_checkpoint(ggufs.save(tmp_path / "m.gguf", tensors, model))
    assert list(found.specs) == ["model.embed_tokens.weight"]
    assert found.config["rope_scaling"] == stretched
    tensors["rope_freqs.weight"] = tensors["rope_freqs.weight"] * 1.5
    with pytest.raises(InputError, match=r"config\.json"):
        open_checkpoint(ggufs.save(tmp_path / "other.gguf", tensors, model))


def test_a_config_beside_the_file_counts(tmp_path: Path) -> None:
    file = ggufs.save(tmp_path / "m.gguf", llama(), LLAMA)
    given = LLAMA | {"rope_theta": 7.0}
    write_json(tmp_path / "config.json", given)
    for path in (file, tmp_path):
        found = open_checkpoint(path)
        assert found.config == given
        assert found.path == tmp_path
    write_json(tmp_path / "config.json", LLAMA | {"num_hidden_layers": 3})
    with pytest.raises(InputError) as error:
        open_checkpoint(file)
    assert_one_line(str(error.value), "config.json", "3 layers", "m.gguf has 2")


def test_a_model_in_several_files(tmp_path: Path) -> None:
    tensors = llama()
    names = list(tensors)
    for i in range(3):
        part = {name: tensors[name] for name in names[i::3]}
        keys = {"split.no": i, "split.count": 3}
        ggufs.save(tmp_path / f"m-{i + 1:05d}-of-00003.gguf", part, LLAMA, keys=keys)
    for path in (tmp_path, tmp_path / "m-00002-of-00003.gguf"):
        found = open_checkpoint(path)
        assert set(found.specs) == set(tensors)
        assert len(found.files) == 3
        for name, tensor in tensors.items():
            assert torch.equal(numbers(found, name), tensor.reshape(-1)), name
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00003.gguf: is missing"):
        open_checkpoint(tmp_path)


# -- bad files -------------------------------------------------------------------------------------


def header(tensors: int = 0, keys: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return text(name) + sizes


BAD = {
    "empty": (b"", "begin"),
    "another": (b"PK\x03\x04" + bytes(40), "begin"),
    "cut": (header(keys=1), "cut off"),
    "version 1": (header(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many keys": (header(keys=2**60), "keys, too many"),
    "many tensors": (header(tensors=2**40), "keys, too many"),
    "a long key": (header(keys=1, rest=text(b"a", 2**62)), "cut off"),
    "a long array": (header(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**61)), "cut off"),
    "many texts": (header(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 8, 2**40)), "texts"),
    "nested": (
        header(keys=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1) + bytes(64)),
        "type 9",
    ),
    "a type of keys": (header(keys=1, rest=text(b"a") + struct.pack("<I", 77)), "type 77"),
    "axes": (header(tensors=1, rest=text(b"t") + struct.pack("<I", 2**31)), "axes"),
    "beyond": (header(tensors=1, rest=info(b"t", (2**40,), 0, 0)), "cut off within"),
    "a huge shape": (header(tensors=1, rest=info(b"t", (2**63,) * 4, 0, 0)), "cut off within"),
    "an unknown type": (header(tensors=1, rest=info(b"t", (32,), 21, 0)), "IQ3_S"),
    "rows": (header(tensors=1, rest=info(b"t", (31,), 8, 0)), "rows of 31"),
    "overlap": (
        header(tensors=2, rest=info(b"t", (4,), 0, 0) + info(b"u", (4,), 0, 8)) + bytes(99),
        "overlap",
    ),
    "twice": (header(tensors=2, rest=2 * info(b"t", (0,), 0, 0)) + bytes(99), "twice"),
    "no architecture": (header() + bytes(64), "llama, qwen2, qwen3"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, case: str) -> None:
    content, part = BAD[case]
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        open_checkpoint(file)
    assert_one_line(str(error.value), str(file), part)


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"llama.block_count": 0}, "llama.block_count"),
        ({"llama.attention.head_count": [4, 2]}, "head_count"),
        ({"llama.attention.head_count": 7}, "7 heads"),
        ({"llama.context_length": "many"}, "context_length"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.block_count": 1}, "blk.1"),
        ({"split.count": 2}, "one of 2 files"),
        ({"split.count": [1, 2]}, "split.count"),
        ({"llama.rope.scaling.type": [1, 2]}, "rope.scaling.type"),
        ({"general.alignment": [1, 2]}, "general.alignment"),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, keys: dict[str, Any], part: str) -> None:
    file = ggufs.save(tmp_path / "m.gguf", llama(), LLAMA, keys=keys)
    with pytest.raises(InputError) as error:
        open_checkpoint(file)
    assert_one_line(str(error.value), str(file), part)


def test_no_change_of_a_header_is_more_than_one_clear_line(tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0, "split.count": 1}
    file = ggufs.save(tmp_path / "m.gguf", llama(), LLAMA, "Q8_0", keys=keys)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(whole)
        at = int(rng.integers(4, 3000))
        big = [b"\xff" * 8, bytes(8), (1 << 40).to_bytes(8, "little"), rng.bytes(1)]
        new = big[rng.integers(4)]
        changed[at : at + len(new)] = new
        file.write_bytes(changed)
        try:
            open_checkpoint(file)
        except InputError as error:
            assert_one_line(str(error))


def test_which_of_several_models(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ggufs.save(tmp_path / f"{name}.gguf", llama(), LLAMA)
    with pytest.raises(InputError, match="several"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path / "a.gguf").specs
