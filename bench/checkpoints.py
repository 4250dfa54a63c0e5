"""Make the synthetic checkpoints that the benchmarks merge.

    python bench/checkpoints.py [--data DIR] [FAMILY ...]

A family is a folder with one Hugging Face model folder per member, for example
``DATA/qwen2-1.5b/{base,a,b}``. Values depend on the seed alone, so two machines make the same
bytes. A family that is complete has a marker file, written last, and is not made again unless
its definition changed.

Everything is generated and written in small blocks: making 10 GB takes less than 100 MB of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_DATA = Path(__file__).parent / "data"
MARKER = "complete.json"

# Raise this when the generator changes in a way that changes bytes.
GENERATOR_VERSION = 1
SEED = 20260214

# 1 Mi values: 4 MB as float32, so a block and its temporaries stay near the CPU cache.
BLOCK = 1 << 20

BASE_SIGMA = 0.02
# Reinforcement learning at a rate of 2e-6 for 30 Adam-like steps moves a weight by at most 6e-5.
# Uniform moves within that bound have a mean size of 3e-5, below the bfloat16 spacing of 1.2e-4
# near 0.02: experts agree with the base in most entries, as real ones do.
EXPERT_REACH = 30 * 2e-6

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """A group of checkpoints with one architecture, and how to fill them."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, Shape]
    """In the order of the layers; a file stores them sorted by name, as safetensors does."""

    members: tuple[str, ...] = ("base", "a", "b")
    """``base`` comes first where there is one; the others are experts trained from it."""

    sparse: bool = False
    """Real headers, and data that is one hole: all zeros, no disk space."""

    shard_bytes: int | None = None
    """Largest shard; None for a single file."""

    ranks: int | None = None
    """Instead of a folder of safetensors: a training step as verl saves it, in float32, of this many
    ranks."""

    seed: int = SEED

    @property
    def parameters(self) -> int:
        """Number of values in one member."""
        return sum(prod(shape) for shape in self.tensors.values())

    def fingerprint(self) -> str:
        """A digest of everything that the bytes depend on."""
        recipe = [
            GENERATOR_VERSION,
            self.seed,
            self.config,
            list(self.tensors.items()),
            self.members,
            self.sparse,
            self.shard_bytes,
        ]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


# --- The architectures ---------------------------------------------------------------------------


def _attention(prefix: str, config: dict[str, Any], *, bias: bool) -> dict[str, Shape]:
    """Attention projections of one layer, as Hugging Face names and shapes them."""
    hidden = config["hidden_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    sizes = {
        "q": config["num_attention_heads"] * head_dim,
        "k": config["num_key_value_heads"] * head_dim,
        "v": config["num_key_value_heads"] * head_dim,
    }
    tensors: dict[str, Shape] = {}
    for letter, rows in sizes.items():
        tensors[f"{prefix}.self_attn.{letter}_proj.weight"] = (rows, hidden)
        if bias:
            tensors[f"{prefix}.self_attn.{letter}_proj.bias"] = (rows,)
    tensors[f"{prefix}.self_attn.o_proj.weight"] = (hidden, sizes["q"])
    return tensors


def _gated_mlp(prefix: str, hidden: int, intermediate: int) -> dict[str, Shape]:
    """The three matrices of a gated MLP."""
    return {
        f"{prefix}.gate_proj.weight": (intermediate, hidden),
        f"{prefix}.up_proj.weight": (intermediate, hidden),
        f"{prefix}.down_proj.weight": (hidden, intermediate),
    }


def _decoder(config: dict[str, Any], *, bias: bool) -> dict[str, Shape]:
    """Tensors of a dense or mixture-of-experts decoder of the Llama and Qwen kind."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    tensors: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        tensors |= _attention(layer, config, bias=bias)
        if "num_experts" in config:
            for norm in ("q_norm", "k_norm"):
                tensors[f"{layer}.self_attn.{norm}.weight"] = (config["head_dim"],)
            tensors[f"{layer}.mlp.gate.weight"] = (config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                tensors |= _gated_mlp(
                    f"{layer}.mlp.experts.{expert}", hidden, config["moe_intermediate_size"]
                )
        else:
            tensors |= _gated_mlp(f"{layer}.mlp", hidden, config["intermediate_size"])
        tensors[f"{layer}.input_layernorm.weight"] = (hidden,)
        tensors[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    tensors["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (vocabulary, hidden)
    return tensors


# What every family's config.json says; the token ids are those of the small tokenizer below.
_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "initializer_range": BASE_SIGMA,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
    "use_cache": True,
}


def _qwen2(name: str, **sizes: Any) -> Family:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **_COMMON,
        "max_window_layers": sizes["num_hidden_layers"],
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "use_sliding_window": False,
        **sizes,
    }
    return Family(name, config, _decoder(config, bias=True))


def _qwen2_1_5b() -> Family:
    """The shape of DeepSeek-R1-Distill-Qwen-1.5B: 1.777 B parameters, 3.55 GB, one file."""
    return _qwen2(
        "qwen2-1.5b",
        hidden_size=1536,
        intermediate_size=8960,
        max_position_embeddings=131072,
        num_attention_heads=12,
        num_hidden_layers=28,
        num_key_value_heads=2,
        vocab_size=151936,
    )


def _five() -> Family:
    """A base and four experts of the study's shape with 4 of its layers: 0.65 B parameters each."""
    shape = _qwen2(
        "qwen2-0.6b-five",
        hidden_size=1536,
        intermediate_size=8960,
        max_position_embeddings=131072,
        num_attention_heads=12,
        num_hidden_layers=4,
        num_key_value_heads=2,
        vocab_size=151936,
    )
    return replace(shape, members=("base", "a", "b", "c", "d"))


def _tiny() -> Family:
    """0.1 B parameters, for warming up and for the smallest point of the memory cases."""
    return _qwen2(
        "tiny-0.1b",
        hidden_size=768,
        intermediate_size=2048,
        max_position_embeddings=4096,
        num_attention_heads=12,
        num_hidden_layers=12,
        num_key_value_heads=2,
        vocab_size=16384,
    )


def _moe() -> Family:
    """Exactly 20,000 small tensors: what a merge costs per tensor, not per byte."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **_COMMON,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 4096,
        "max_window_layers": 66,
        "mlp_only_layers": [],
        "moe_intermediate_size": 8,
        "norm_topk_prob": True,
        "num_attention_heads": 2,
        "num_experts": 98,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 66,
        "num_key_value_heads": 1,
        "output_router_logits": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        # Without a head the count comes out round: 66 * (9 + 3 * 98) + 2.
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 512,
    }
    return Family("moe-20000", config, _decoder(config, bias=False), members=("a", "b"))


def _sparse_70b() -> Family:
    """The shape of Llama 3 70B in 5 GB shards, for measuring memory; takes no disk."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_COMMON,
        "attention_bias": False,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "vocab_size": 128256,
    }
    return Family(
        "sparse-70b",
        config,
        _decoder(config, bias=False),
        members=("a", "b"),
        sparse=True,
        shard_bytes=5 * 10**9,
    )


def _sparse_671b() -> Family:
    """The shape of DeepSeek-V3 in bfloat16 and 5 GB shards: 45,000 tensors; takes no disk."""
    hidden, heads, latent, low_rank = 7168, 128, 512, 1536
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **_COMMON,
        "attention_bias": False,
        "first_k_dense_replace": 3,
        "hidden_size": hidden,
        "intermediate_size": 18432,
        "kv_lora_rank": latent,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": heads,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": heads,
        "q_lora_rank": low_rank,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": 129280,
    }
    tensors: dict[str, Shape] = {"model.embed_tokens.weight": (129280, hidden)}
    for index in range(61):
        layer = f"model.layers.{index}"
        tensors |= {
            f"{layer}.self_attn.q_a_proj.weight": (low_rank, hidden),
            f"{layer}.self_attn.q_a_layernorm.weight": (low_rank,),
            f"{layer}.self_attn.q_b_proj.weight": (heads * 192, low_rank),
            f"{layer}.self_attn.kv_a_proj_with_mqa.weight": (latent + 64, hidden),
            f"{layer}.self_attn.kv_a_layernorm.weight": (latent,),
            f"{layer}.self_attn.kv_b_proj.weight": (heads * 256, latent),
            f"{layer}.self_attn.o_proj.weight": (hidden, heads * 128),
        }
        if index < 3:
            tensors |= _gated_mlp(f"{layer}.mlp", hidden, 18432)
        else:
            tensors[f"{layer}.mlp.gate.weight"] = (256, hidden)
            tensors[f"{layer}.mlp.gate.e_score_correction_bias"] = (256,)
            for expert in range(256):
                tensors |= _gated_mlp(f"{layer}.mlp.experts.{expert}", hidden, 2048)
            tensors |= _gated_mlp(f"{layer}.mlp.shared_experts", hidden, 2048)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{norm}.weight"] = (hidden,)
    tensors["model.norm.weight"] = (hidden,)
    tensors["lm_head.weight"] = (129280, hidden)
    return Family(
        "sparse-671b",
        config,
        tensors,
        members=("a", "b"),
        sparse=True,
        shard_bytes=5 * 10**9,
    )


def _fsdp(name: str, of: Family) -> Family:
    """Two experts of a family as training steps of 8 ranks."""
    return replace(of, name=name, members=("a", "b"), ranks=8)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _tiny(),
        _moe(),
        _sparse_70b(),
        _sparse_671b(),
        _qwen2_1_5b(),
        _five(),
        _fsdp("fsdp-0.1b", _tiny()),
        _fsdp("fsdp-1.5b", _qwen2_1_5b()),
    )
}


# --- Files ---------------------------------------------------------------------------------------


def _header(tensors: dict[str, Shape]) -> tuple[bytes, int]:
    """The bytes before the data of a safetensors file, and the number of data bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _shards(family: Family) -> dict[str, dict[str, Shape]]:
    """Which file holds which tensors, packed in the order of the layers."""
    groups: list[dict[str, Shape]] = [{}]
    filled = 0
    for name, shape in family.tensors.items():
        size = 2 * prod(shape)
        if family.shard_bytes is not None and groups[-1] and filled + size > family.shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += size
    names = (
        ["model.safetensors"]
        if family.shard_bytes is None
        else [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    )
    return {file: dict(sorted(group.items())) for file, group in zip(names, groups, strict=True)}


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 bits, to nearest even (no NaN comes in)."""
    bits = values.view(np.uint32)
    odd = (bits >> 16) & 1
    odd += 0x7FFF
    odd += bits
    odd >>= 16
    return odd.astype(np.uint16)


def _to_float32(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16 bits to float32."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _blocks(family: Family, name: str, shape: Shape) -> Iterator[list[np.ndarray]]:
    """Blocks of one tensor: bfloat16 bits for the base, then for each expert."""
    experts = [member for member in family.members if member != "base"]
    total = prod(shape)
    identity = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    for number, start in enumerate(range(0, total, BLOCK)):
        size = min(BLOCK, total - start)
        # One generator for a block: any block could be made alone, in any order.
        random = np.random.Generator(np.random.SFC64([family.seed, identity, number]))
        values = random.standard_normal(size, dtype=np.float32)
        values *= np.float32(BASE_SIGMA)
        if name.endswith("norm.weight"):
            values += np.float32(1.0)
        base = _to_bfloat16(values)
        # Training starts from the released base, which is bfloat16 already.
        start_point = _to_float32(base)
        made = [base]
        for _ in experts:
            moved = random.random(size, dtype=np.float32)
            moved -= np.float32(0.5)
            moved *= np.float32(2 * EXPERT_REACH)
            moved += start_point
            made.append(_to_bfloat16(moved))
        yield made


def _write_dense(family: Family, folders: dict[str, Path]) -> None:
    """Write all members side by side, so that the base is generated once."""
    for file, tensors in _shards(family).items():
        header, _ = _header(tensors)
        streams = {member: (folder / file).open("wb") for member, folder in folders.items()}
        try:
            for stream in streams.values():
                stream.write(header)
            for name, shape in tensors.items():
                for base, *experts in _blocks(family, name, shape):
                    by_member = dict(
                        zip((m for m in family.members if m != "base"), experts, strict=True)
                    )
                    for member, stream in streams.items():
                        stream.write(by_member.get(member, base).data)
        finally:
            for stream in streams.values():
                stream.close()


def _write_ranks(family: Family, folders: dict[str, Path]) -> None:
    """Write real files of FSDP2's ranks, sharded by rows, one rank after the other in one process.

    A rank's part is in memory: an eighth of the model.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert family.ranks is not None
    for rank in range(family.ranks):
        dist.init_process_group("fake", rank=rank, world_size=family.ranks, store=FakeStore())
        mesh = init_device_mesh("cpu", (family.ranks,), mesh_dim_names=("fsdp",))
        for member, folder in folders.items():
            state = {}
            for name, shape in family.tensors.items():
                rows = -(-shape[0] // family.ranks)
                begin = min(rank * rows, shape[0])
                own = (min(begin + rows, shape[0]) - begin, *shape[1:])
                local = torch.from_numpy(_rank_values(family, name, own, rank, member))
                stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
                state[name] = DTensor.from_local(
                    local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride
                )
            torch.save(state, folder / f"model_world_size_{family.ranks}_rank_{rank}.pt")
            del state
        dist.destroy_process_group()


def _rank_values(family: Family, name: str, shape: Shape, rank: int, member: str) -> np.ndarray:
    """A rank's rows of one tensor of an expert, in float32."""
    identity = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.empty(prod(shape), np.float32)
    for number, start in enumerate(range(0, len(values), BLOCK)):
        block = values[start : start + BLOCK]
        where = [family.seed, identity, rank, number]
        np.random.Generator(np.random.SFC64(where)).standard_normal(out=block, dtype=np.float32)
        block *= np.float32(BASE_SIGMA)
        if name.endswith("norm.weight"):
            block += np.float32(1.0)
        moves = np.random.Generator(np.random.SFC64([*where, family.members.index(member)]))
        moved = moves.random(len(block), dtype=np.float32)
        moved -= np.float32(0.5)
        moved *= np.float32(2 * EXPERT_REACH)
        block += moved
    return values.reshape(shape)


def _write_sparse(family: Family, folders: dict[str, Path]) -> None:
    """Write real headers and leave the data as one hole."""
    for file, tensors in _shards(family).items():
        header, data_bytes = _header(tensors)
        for folder in folders.values():
            with (folder / file).open("wb") as stream:
                stream.write(header)
                stream.truncate(len(header) + data_bytes)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """Write a small but complete tokenizer, so that tools which copy one find one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|begin|>", "<|end|>", "<|unknown|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=special[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": special[0],
            "eos_token": special[1],
            "pad_token": special[1],
            "unk_token": special[2],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
        },
    )


def _write_model_files(family: Family, folder: Path) -> None:
    """Everything of a model folder but its weights."""
    _write_json(folder / "config.json", family.config)
    _write_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": family.config["bos_token_id"],
            "eos_token_id": family.config["eos_token_id"],
            "transformers_version": family.config["transformers_version"],
        },
    )
    _write_tokenizer(folder)
    if family.shard_bytes is not None:
        weight_map = {name: file for file, group in _shards(family).items() for name in group}
        _write_json(
            folder / "model.safetensors.index.json",
            {
                "metadata": {"total_size": 2 * family.parameters},
                "weight_map": dict(sorted(weight_map.items())),
            },
        )


# --- The cache -----------------------------------------------------------------------------------


def is_complete(name: str, data: Path) -> bool:
    """Whether the family lies in ``data``, made by the present definition."""
    marker = data / name / MARKER
    if not marker.exists():
        return False
    made = json.loads(marker.read_text(encoding="utf-8"))
    return bool(made["fingerprint"] == FAMILIES[name].fingerprint())


def ensure(name: str, data: Path = DEFAULT_DATA) -> dict[str, Path]:
    """Make a family unless it is there; return its members' folders."""
    family = FAMILIES[name]
    root = data / name
    folders = {member: root / member for member in family.members}
    if is_complete(name, data):
        return folders
    shutil.rmtree(root, ignore_errors=True)
    for folder in folders.values():
        beside = folder / "huggingface" if family.ranks else folder
        beside.mkdir(parents=True)
        _write_model_files(family, beside)
    if family.sparse:
        _write_sparse(family, folders)
    elif family.ranks:
        _write_ranks(family, folders)
    else:
        _write_dense(family, folders)
    _write_json(
        root / MARKER,
        {
            "fingerprint": family.fingerprint(),
            "members": list(family.members),
            "parameters": family.parameters,
            "tensors": len(family.tensors),
        },
    )
    return folders


def main() -> None:
    """Make the named families, or all."""
    parser = argparse.ArgumentParser(description="Make the benchmarks' synthetic checkpoints.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    arguments = parser.parse_args()
    unknown = set(arguments.families) - FAMILIES.keys()
    if unknown:
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    for name in arguments.families or FAMILIES:
        family = FAMILIES[name]
        started = time.perf_counter()
        cached = is_complete(name, arguments.data)
        ensure(name, arguments.data)
        print(
            f"{name}: {len(family.members)} x {family.parameters / 1e9:.3f} B parameters in "
            f"{len(family.tensors)} tensors, "
            + ("there already" if cached else f"made in {time.perf_counter() - started:.1f} s"),
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
