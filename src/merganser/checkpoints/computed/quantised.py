"""Dequantise weights during reading: fp8 with scales, and mxfp4.

fp8: a tensor of ``float8_e4m3fn`` or ``float8_e5m2``, with a scale per tensor, per row or per
block, named ``NAME_scale_inv`` (DeepSeek, Qwen, transformers) or ``NAME_scale``
(compressed-tensors, fbgemm, ModelOpt). Both names mean the same: number = stored value * scale.

mxfp4 (gpt-oss): ``NAME_blocks`` uint8 [experts, rows, groups, 16], two 4-bit numbers (e2m1, the low
half first) a byte, and ``NAME_scales`` uint8 [experts, rows, groups], a power of two for every 32
numbers. As transformers has it, the tensor is their transpose, [experts, 32 * groups, rows].

Reading gives float32, rounded once if the product with the scale is inexact. Other formats (GPTQ,
AWQ, bitsandbytes, integers) raise an error. Here the headers decide how tensors are stored;
:mod:`dequantising` computes their numbers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from merganser.checkpoints.computed.derived import Derived, DerivedCheckpoint
from merganser.checkpoints.locators import Dequantised, after
from merganser.checkpoints.protocol import Checkpoint
from merganser.errors import InputError
from merganser.modules import sections
from merganser.tensors import BY_NAME, FLOAT32, TensorSpec

_BFLOAT16 = BY_NAME["bfloat16"]

CONFIG_KEYS = ("quantization_config", "compression_config")
"""Keys of ``config.json`` with quantisation settings."""

METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "mxfp4")
"""Supported values of ``quant_method``, if their weights are fp8 or mxfp4."""

BLOCK = (128, 128)
"""Default number of rows and columns that share a scale."""

_FOREIGN = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_zero_point|SCB|W_q|qscales|codebooks|bitmask)$"
    r"|\.(absmax|quant_map|quant_state\.\w+)$"
)
"""Names of tensors that occur only in unsupported formats."""

_ACTIVATION_SCALE = re.compile(
    r"[._](input_scale(_ub|_inv)?|(input_)?activation_scale(_inv)?|input_global_scale|output_scale)$"
    r"|\.[qkv]_scale$"
)
"""Names of scales for activations and caches, which a merge ignores."""

_WEIGHT_SCALE = re.compile(r"(_scale_inv|\bweight_scale|_proj_scales)$")

_EIGHTS = ("float8_e4m3fn", "float8_e5m2")


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint with its quantised tensors dequantised; unchanged if it has none.

    Raises:
        InputError: when its quantisation is not supported, or a scale is missing, has a wrong
            shape, or belongs to no tensor.
    """
    stated = _stated(checkpoint)
    _check_unknown(checkpoint, stated)
    specs, blocks = checkpoint.specs, list(_block_sizes(stated))
    eights = {name: _scale_of(name, specs) for name, s in specs.items() if s.dtype.name in _EIGHTS}
    fours = {
        name.removesuffix("_blocks"): name.removesuffix("_blocks") + "_scales"
        for name, spec in specs.items()
        if name.endswith("_blocks") and spec.dtype.name == "uint8"
    }
    if not eights and not fours and not stated:
        return checkpoint
    scales = {*eights.values(), *fours.values()}
    tensors: dict[str, Derived | str] = {}
    left_out = 0
    for name in specs:
        plain = name.removesuffix("_blocks")
        if name in eights:
            if eights[name] is None and (stated or scales != {None}):
                raise InputError(
                    f"{checkpoint.label}: tensor {name!r} is {specs[name]}, and its scale "
                    f"({name}_scale_inv or {name}_scale) is missing"
                )
            tensors[name] = _from_eights(checkpoint, name, eights[name], blocks)
        elif plain in fours and plain != name:
            tensors[plain] = _from_fours(checkpoint, plain)
        elif _ACTIVATION_SCALE.search(name):
            left_out += 1
        elif name not in scales:
            if _WEIGHT_SCALE.search(name):
                raise InputError(
                    f"{checkpoint.label}: {name!r} is a scale, but its quantised tensor is missing"
                )
            tensors[name] = name
    kinds = sorted({specs[name].dtype.name for name in eights} | ({"mxfp4"} if fours else set()))
    notes = []
    if kinds:
        notes.append(f"{checkpoint.label}: its {' and '.join(kinds)} weights are dequantised")
    if left_out:
        notes.append(f"{checkpoint.label}: {left_out} scales of activations are left out")
    return DerivedCheckpoint(
        checkpoint,
        tensors,
        _without_quantisation(checkpoint.config),
        f"dequantised by blocks of {blocks}",
        format=f"{checkpoint.format} ({', '.join(kinds) or 'nothing quantised'})",
        notes=notes,
        locator=after(Dequantised, checkpoint.locator),
    )


def _scale_of(name: str, specs: Mapping[str, TensorSpec]) -> str | None:
    """A tensor's scale."""
    return next((n for n in (f"{name}_scale_inv", f"{name}_scale") if n in specs), None)


# -- settings in the config ------------------------------------------------------------------------


def _stated(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config's quantisation settings; empty if there are none."""
    for part in sections(checkpoint.config):
        for key in CONFIG_KEYS:
            if isinstance(part.get(key), dict) and part[key]:
                return dict(part[key])
    return {}


def _without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = {id(part) for part in sections(config)}
    return {
        key: _without_quantisation(value) if id(value) in inner else value
        for key, value in config.items()
        if key not in CONFIG_KEYS
    }


def _check_unknown(checkpoint: Checkpoint, stated: Mapping[str, Any]) -> None:
    method = str(stated.get("quant_method") or ("fp8" if not stated else "an unnamed method"))
    advice = "merge the model that was quantised, or dequantise this one and save it first"
    foreign = next((name for name in checkpoint.specs if _FOREIGN.search(name)), None)
    how = None
    if method not in METHODS:
        how = method
    elif str(stated.get("quant_algo", "FP8")).upper().split("_")[0] != "FP8":
        how = f"{method} {stated['quant_algo']}"
    else:
        for weights in _weight_schemes(stated):
            if weights.get("type") != "float" or weights.get("num_bits") != 8:
                how = f"{method} ({weights.get('num_bits')}-bit {weights.get('type')})"
        sparsity = stated.get("sparsity_config")
        if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
            how = f"{method} ({sparsity['format']})"
    if how is None and foreign is not None:
        how = f"integers or codes (tensor {foreign!r})"
    if how is not None:
        raise InputError(
            f"{checkpoint.label}: its weights are quantised by {how}, which cannot be merged; {advice}"
        )


def _weight_schemes(stated: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The weight settings of each group of compressed-tensors."""
    groups = stated.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            yield weights


def _block_sizes(stated: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Possible sizes of blocks that share a scale."""
    candidates = [stated.get("weight_block_size")]
    for weights in _weight_schemes(stated):
        candidates += [weights.get("block_structure"), [1, weights.get("group_size")]]
    sizes = [
        (block[0], block[1])
        for block in candidates
        if isinstance(block, list | tuple)
        and len(block) == 2
        and all(isinstance(n, int) and n > 0 for n in block)
    ]
    yield from dict.fromkeys(sizes or [BLOCK])
    yield 1, 32  # microscaling, whose scales are powers of two


# -- fp8 -------------------------------------------------------------------------------------------


def _from_eights(
    checkpoint: Checkpoint, name: str, scale: str | None, blocks: list[tuple[int, int]]
) -> Derived:
    from merganser.checkpoints.computed import dequantising

    spec = checkpoint.specs[name]
    grid = None
    if scale is not None:
        grid = dequantising.grid_of(spec, checkpoint.specs[scale], blocks)
        if grid is None:
            raise InputError(
                f"{checkpoint.label}: {scale!r} is {checkpoint.specs[scale]}, which fits tensor {name!r} "
                f"({list(spec.shape)}) neither as one scale, as one a row, nor as one a block of {list(blocks[0])}"
            )
    return Derived(
        TensorSpec(FLOAT32, spec.shape, _BFLOAT16),
        functools.partial(dequantising.fill_eights, checkpoint, name, scale, grid),
    )


# -- mxfp4 -----------------------------------------------------------------------------------------


def _from_fours(checkpoint: Checkpoint, name: str) -> Derived:
    blocks, scales = f"{name}_blocks", f"{name}_scales"
    spec, of_scales = checkpoint.specs[blocks], checkpoint.specs.get(scales)
    if of_scales is None:
        raise InputError(f"{checkpoint.label}: tensor {blocks!r} lacks its scales, {scales!r}")
    if (
        len(spec.shape) != 4
        or spec.shape[3] != 16
        or of_scales.shape != spec.shape[:3]
        or of_scales.dtype.itemsize != 1
    ):
        raise InputError(
            f"{checkpoint.label}: {blocks!r} ({spec}) and {scales!r} ({of_scales}) do not fit each "
            "other as mxfp4 does: [experts, rows, groups, 16] and [experts, rows, groups]"
        )
    from merganser.checkpoints.computed import dequantising

    experts, rows, groups, _ = spec.shape
    shape = (experts, 32 * groups, rows)
    fill = dequantising.filler_of_fours(checkpoint, blocks, scales)
    return Derived(TensorSpec(FLOAT32, shape, _BFLOAT16), fill)
