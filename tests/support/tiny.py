"""Tiny random models of any type that transformers knows: its own default config, made small."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS = 5
TOWER_LAYERS = 2
VOCABULARY = 128
PARAMETERS = (3_000_000, 20_000_000)
"""How many a model may have: the first, or the second if no config is that small."""

SHRINKAGES = ((64, 64), (32, 32), (64, 8), (32, 8), (16, 16), (16, 8), (8, 8), (4, 4), (2, 2))
"""Divisors of every width, and of those of towers such as the vision encoder's: one pair after the
other, until a model can be built and run."""

CODEC_SHRINKAGE = 4
"""That of codecs of images and sound, whose group norms have 32 groups."""

EXTRA: Mapping[str, Mapping[str, Any]] = {
    "BigBirdConfig": {"attention_type": "original_full"},
    "BloomConfig": {"n_layer": LAYERS},
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "FalconH1Config": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 16,
    },
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 2], [["global"], 1]]},
    "HunYuanDenseV1Config": {"head_dim": 8},
    "HunYuanMoEV1Config": {"head_dim": 8},
    "Lfm2MoeConfig": {"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]},
    "MinistralConfig": {"head_dim": 8},
    "NemotronConfig": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "ReformerConfig": {"is_decoder": True},
    "Zamba2Config": {
        "layers_block_type": ["hybrid" if i % 2 else "linear_attention" for i in range(LAYERS)]
    },
}
"""Values that a class needs beside its defaults, or that cannot be derived from these."""

_LAYER_COUNT = re.compile(
    r"^(num_|n_)?(hidden_|encoder_|decoder_|block_|text_|transformer_|backbone_|main_|dec_|enc_|"
    r"vision_|audio_|global_|local_|unet_)*"
    r"(layers?|blocks|depth)$"
)
_FEW = re.compile(
    r"(nextn_predict|mtp|qformer|resampler|connector|perceiver|adapter|conformer|code_predictor)"
)
_WIDTH = re.compile(
    r"(hidden_size|intermediate|dim\b|_dim$|^dim$|width|embd|d_model|d_inner|dim_model|d_ff|d_kv|d_head|"
    r"ffn|channels|rank|head_size|inner|proj|embedding_size|d_embed|embed_size|hidden_dims?|_size_mlp|"
    r"attention_hidden|filter|_dims$|_sizes$|d_state|bottleneck|n_inner|units|features$|lru|_features_)"
)
_NO_WIDTH = re.compile(
    r"(vocab|patch|kernel|window|stride|image|num_|n_mels|max_|min_|position|group_size|chunk|"
    r"block_size|num_channels|in_channels|in_chans|out_features|state_size|input_size|sampling|"
    r"in_dim|act|type|temporal|spatial|merge|codebook|input_channels|_axis|layers|multiplier|factor|"
    r"ratio|bias|dropout|output_size|conv_dim_per|mm_tokens|num_mel|input_dim|mel_dim|input_feat)"
)


_fitting: dict[type, tuple[int, int]] = {}
"""The divisors with which a config class gave a model that runs, for the other classes of its type."""


class NotBuilt(Exception):
    """No tiny model of the type could be built."""


def class_names(mapping: str) -> dict[str, str]:
    """The model classes of one of transformers' mappings, by model type."""
    names = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES")
    return {kind: value if isinstance(value, str) else value[0] for kind, value in names.items()}


def tiny_configs(config_class: type[PreTrainedConfig]) -> Iterator[tuple[tuple[int, int], Any]]:
    """Configs of a class, each with its divisors of widths; those that cannot be made are left out.

    Raises:
        NotBuilt: when the class has no config without arguments.
    """
    try:
        default = config_class()
    except Exception as error:
        raise NotBuilt(f"its config has no defaults ({tiny_line(error)})") from None
    last: Exception | None = None
    found = False
    known = _fitting.get(config_class)
    for shrinkage in SHRINKAGES if known is None else (known, *SHRINKAGES):
        try:
            config = _shrunk(default, shrinkage, LAYERS)
        except Exception as error:
            last = error
            continue
        found = True
        yield shrinkage, config
    if not found:
        raise NotBuilt(f"its config cannot be made smaller ({tiny_line(last)})")


def _shrunk(default: PreTrainedConfig, shrinkage: tuple[int, int], layers: int) -> Any:
    """A config of the same class: few layers and tokens, and all widths divided, so that what must
    be a multiple of another stays one."""
    config_class = type(default)
    fields = {
        f.name: f for f in dataclasses.fields(config_class) if f.init and not f.name.startswith("_")
    }
    plain = config_class()
    given: dict[str, Any] = {}
    depth = _depth(default)
    ids = iter(range(20, VOCABULARY))
    for name, field in fields.items():
        if name in ("transformers_version", "architectures", "dtype", "id2label", "label2id"):
            continue
        value = vars(default).get(name)
        if isinstance(value, PreTrainedConfig):
            given[name] = _shrunk_part(name, value, shrinkage, layers)
            continue
        differs = value != vars(plain).get(name)
        if field.default is None and value is not None and not differs:
            if name == "rope_parameters" and "mrope_section" in value:
                given[name] = value
            continue  # computed anew from the rest
        changed = _smaller(name, value, shrinkage[0], layers, depth, ids)
        if changed != value or differs:
            given[name] = changed
    given |= EXTRA.get(config_class.__name__, {})
    if isinstance(given.get("rope_parameters"), dict):
        given["rope_parameters"] = _fitting_rope(given["rope_parameters"], default, given)
    return config_class(**given)


def _shrunk_part(name: str, value: Any, shrinkage: tuple[int, int], layers: int) -> Any:
    """A config inside another."""
    if re.search("vq|codec|dac|mimi|vae", name):
        return _shrunk(value, (CODEC_SHRINKAGE, CODEC_SHRINKAGE), TOWER_LAYERS)
    if _is_text(name):
        return _shrunk(value, shrinkage, layers)
    return _shrunk(value, (shrinkage[1], shrinkage[1]), TOWER_LAYERS)


def _fitting_rope(rope: dict[str, Any], default: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters whose sections add up to half a smaller head."""
    sections = rope.get("mrope_section")
    if not sections:
        return rope
    values = {**vars(default), **given}
    heads = values.get("num_attention_heads") or 1
    width = values.get("head_dim") or (values.get("hidden_size") or heads) // heads
    half = int(width * (rope.get("partial_rotary_factor") or 1)) // 2
    smaller = [max(1, half * section // sum(sections)) for section in sections]
    smaller[0] += half - sum(smaller)
    return {**rope, "mrope_section": smaller}


def _is_text(name: str) -> bool:
    return not re.search("vision|audio|image|speech|qformer|vq|codec|dac|mimi|depth|flow|vae", name)


def _depth(config: PreTrainedConfig) -> int | None:
    values = (
        getattr(config, name, None) for name in ("num_hidden_layers", "num_layers", "n_layer")
    )
    return next((value for value in values if isinstance(value, int)), None)


def _smaller(
    name: str, value: Any, shrinkage: int, layers: int, depth: int | None, ids: Iterator[int]
) -> Any:
    """One value of a config."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, float)):
        if isinstance(value, str) and len(value) == depth and re.fullmatch(r"[A-Z*|-]+", value):
            return _few_kinds(value, layers)
        return value
    if isinstance(value, int):
        return _smaller_number(name, value, shrinkage, layers, ids)
    if isinstance(value, (list, tuple)) and value:
        return type(value)(_smaller_list(name, list(value), shrinkage, layers, depth, ids))
    return value


def _smaller_number(name: str, value: int, shrinkage: int, layers: int, ids: Iterator[int]) -> int:
    if re.search(r"(token_id|token_index|_token_ids?|_ids?|_index)$", name) and "idxs" not in name:
        return next(ids) if value >= VOCABULARY else value
    if "vocab" in name and value > VOCABULARY:
        return VOCABULARY
    if _LAYER_COUNT.search(name) and value > 1:
        return min(value, 1 if _FEW.search(name) else layers)
    if "experts_per_tok" in name or name in (
        "moe_topk",
        "moe_k",
        "top_k_experts",
        "num_selected_experts",
    ):
        return min(value, 2)
    if "expert" in name and "size" not in name and "period" not in name and "offset" not in name:
        return min(value, 4)
    if name in ("n_group", "topk_group", "num_expert_group"):
        return 1
    if name == "num_kv_shared_layers":
        return 0
    if name == "first_k_dense_replace":
        return min(value, 1)
    if name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"):
        return min(value, 512)
    if name.endswith("chunk_size"):
        return min(value, 16)
    if "codebook_size" in name:
        return min(value, 64)
    if _WIDTH.search(name) and not _NO_WIDTH.search(name) and value >= 8:
        return max(1, -(-value // shrinkage))
    return value


def _smaller_list(
    name: str,
    value: list[Any],
    shrinkage: int,
    layers: int,
    depth: int | None,
    ids: Iterator[int],
) -> list[Any]:
    numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if depth is not None and len(value) == depth and depth > layers:
        if numbers:
            return [_smaller_number(name, v, shrinkage, layers, ids) for v in value[:layers]]
        return _few_kinds(value, layers)
    if numbers and re.search(
        r"layers$|idxs?$|indexes$|indices$|layer_ids$|layer_index|_layer$", name
    ):
        return [v for v in value if v < layers] or [1]
    if numbers and re.search("depths|num_blocks|layers", name):
        return [min(v, 2) for v in value]
    if numbers:
        return [_smaller_number(name, v, shrinkage, layers, ids) for v in value]
    return value


def _few_kinds(value: Any, layers: int) -> Any:
    """As many layers of a pattern, each kind among them, in the order in which they begin."""
    kinds = [value.index(kind) for kind in dict.fromkeys(value)][:layers]
    rest = [i for i in range(len(value)) if i not in kinds][: layers - len(kinds)]
    picked = [value[i] for i in sorted(kinds + rest)]
    return "".join(picked) if isinstance(value, str) else picked


def build(
    model_class: Any, model_type: str, folder: Path
) -> tuple[Any, dict[str, list[str]], Mapping[str, Any] | None]:
    """A random model in float32 that is saved in a folder, as it is loaded from there, with what
    transformers says of its tensors, and inputs with which it runs; None if none were found.

    Raises:
        NotBuilt: with the reason.
    """
    config_class = getattr(model_class, "config_class", None) or CONFIG_MAPPING[model_type]
    reason = ""
    for most in PARAMETERS[config_class in _fitting :]:
        reserve: Any = None
        for shrinkage, config in tiny_configs(config_class):
            try:
                model = _random(model_class, config, most)
                inputs = working_inputs(model)
                if inputs is None and reserve is not None:
                    continue
                model.save_pretrained(folder)
                model, info = loaded(model_class, folder)
            except Exception as error:
                reason = reason or tiny_line(error)
                continue
            if inputs is not None:
                _fitting[config_class] = shrinkage
                return model, info, inputs
            reserve = model, info
        if reserve is not None:
            reserve[0].save_pretrained(folder)
            return *reserve, None
    raise NotBuilt(reason or "no config is small enough")


def loaded(model_class: Any, folder: Path) -> tuple[Any, dict[str, list[str]]]:
    """A model, and what transformers says of its tensors: those that are missing, and so on."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    notes = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    return model.float().eval(), notes


def _random(model_class: Any, config: Any, most: int) -> Any:
    """A model of a config, all of whose parameters differ from those of an untrained one."""
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in model_class(config).parameters())
    except Exception:
        count = 0
    if count > most:
        raise NotBuilt(f"its smallest config has {count} parameters")
    torch.manual_seed(0)
    model = model_class(config).to(torch.float32).eval()
    perturb(model, 0.05)
    return model


def perturb(model: Any, scale: float) -> None:
    """Add noise to every parameter."""
    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * scale)


def working_inputs(model: Any) -> Mapping[str, Any] | None:
    """Inputs with which a model gives finite numbers."""
    for inputs in _inputs(model):
        try:
            if torch.isfinite(run(model, inputs)).all():
                return inputs
        except Exception:
            continue
    return None


def run(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The first floating-point tensor of a model's output."""
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(**inputs)
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    return next(v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point())


def _inputs(model: Any) -> Iterator[dict[str, Any]]:
    config = model.config
    ids = torch.arange(4, 12)[None] % VOCABULARY
    text: dict[str, Any] = {"input_ids": ids}
    if "MultipleChoice" in type(model).__name__:
        text = {"input_ids": torch.stack([ids, ids + 1], dim=1)}
    size = next((s for c in _all(config) if (s := getattr(c, "image_size", None))), 64)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = next((n for c in _all(config) if (n := getattr(c, "num_channels", None))), 3)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, height, width, generator=generator)
    mels = next((n for c in _all(config) if (n := getattr(c, "num_mel_bins", None))), 80)
    choices: list[dict[str, Any]] = []
    name = getattr(model, "main_input_name", "input_ids")
    if name == "pixel_values":
        choices += [{"pixel_values": image}]
    if name in ("input_values", "input_features"):
        waves = torch.randn(1, 16000, generator=generator)
        frames = 2 * getattr(config, "max_source_positions", 100)
        features = torch.randn(1, mels, frames, generator=generator)
        choices += [{"input_values": waves}, {"input_features": features}]
        choices += [{"input_features": features.transpose(1, 2)}]
        choices += [{"input_values": features.transpose(1, 2)}]
    choices += [text, text | {"bbox": torch.zeros(1, 8, 4, dtype=torch.long)}]
    choices += [text | {"pixel_values": image}]
    if name != "pixel_values":
        choices += [{"pixel_values": image}]
    for choice in choices:
        for more in ({}, {"decoder_input_ids": ids}):
            for options in ({"use_cache": False}, {}):
                yield {**choice, **more, **options}


def _all(config: Any) -> list[Any]:
    """A config and those inside it."""
    inner = [v for v in vars(config).values() if isinstance(v, PreTrainedConfig)]
    return [config, *(each for value in inner for each in _all(value))]


def tiny_line(error: object) -> str:
    text = str(error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:160] if lines else type(error).__name__
