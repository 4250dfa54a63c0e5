"""A model with a LoRA adapter; reading applies the adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from merganser.architecture import Architecture, infer, ties_embeddings
from merganser.checkpoints.computed.adapter import CONFIG, Adapter, Change, changes_by_name
from merganser.checkpoints.computed.adapter_product import (
    Factors,
    Product,
    fill_bias,
    fill_product,
    fill_whole,
)
from merganser.checkpoints.computed.derived import Derived, DerivedCheckpoint
from merganser.checkpoints.protocol import Checkpoint, Described
from merganser.errors import InputError
from merganser.modules import sections
from merganser.tensors import FLOAT32, FLOAT64, TensorSpec

HEAD = "lm_head.weight"
"""Name of the separate head of a model whose adapter unties it from the embedding."""

_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}
"""Model types whose square weights may be stored as [in, out]; for others the shapes decide."""

_OUTER = {"model", "language_model", "transformer", "base_model"}
"""Parts of module names in which an adapter's names and the stored names may differ."""


def applied(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """Return a checkpoint of a model with an open adapter applied to its weights.

    Raises:
        InputError: when the adapter does not fit the model.
    """
    architecture = infer(checkpoint.specs, checkpoint.config)
    embedding = _embedding(architecture)
    changes = find_changes(adapter, checkpoint, embedding)
    heads = (n for n, p in architecture.places.items() if p.role == "head" and p.vocabulary)
    head = next(heads, None)
    factors = Factors(adapter.weights)

    def derive(name: str, change: Change | None) -> Derived | str:
        return _derive(adapter, checkpoint, change, name, factors) if change else name

    tensors = {name: derive(name, changes.get(name)) for name in checkpoint.specs}
    config: Mapping[str, Any] = checkpoint.config
    if embedding and {HEAD, head, embedding} & changes.keys() and _is_tied(checkpoint):
        # A delta of the embedding does not apply to the tied head, nor vice versa: PEFT's model computes
        # with separate weights, although its merged model may tie them again.
        if head is None:
            tensors[HEAD] = derive(embedding, changes.get(HEAD))
        config = _untied(config)
    digest = json.dumps(adapter.config, sort_keys=True)
    return DerivedCheckpoint(
        checkpoint,
        tensors,
        config,
        f"adapted {digest}",
        format=f"{checkpoint.format} with a LoRA adapter",
        others=[adapter.weights],
    )


def find_changes(
    adapter: Adapter, checkpoint: Described, embedding: str | None
) -> dict[str, Change]:
    """The adapter's deltas, by the model's tensor names.

    Raises:
        InputError: when the adapter does not fit the model.
    """
    label = adapter.weights.label
    places: dict[str, list[str]] = {}
    for name in checkpoint.specs:
        places.setdefault(_core(name), []).append(name)
    changes: dict[str, Change] = {}
    for name, change in changes_by_name(adapter).items():
        keys = change.whole, change.a, change.b, change.magnitude, change.bias
        key = next(key for key in keys if key is not None)
        matches = [name] if name in checkpoint.specs else places.get(_core(name), [])
        if name == HEAD and not matches and embedding is not None and _is_tied(checkpoint):
            matches = [HEAD]
        if len(matches) != 1:
            raise InputError(
                f"{label}: {key!r} is for tensor {name!r}, which {checkpoint.label} does not have"
            )
        if matches[0] in changes:
            raise InputError(f"{label}: {key!r} is a second change of tensor {matches[0]!r}")
        changes[matches[0]] = change
    return changes


def _core(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _OUTER)


def _embedding(architecture: Architecture) -> str | None:
    return next(
        (
            name
            for name, place in architecture.places.items()
            if place.role == "embedding" and name.endswith(("embed_tokens.weight", "wte.weight"))
        ),
        None,
    )


def _is_tied(checkpoint: Described) -> bool:
    """Whether a model without a stored head uses its embedding as head."""
    stated = [s.get("tie_word_embeddings") for s in sections(checkpoint.config)]
    classes = str(checkpoint.config.get("architectures"))
    return ties_embeddings(checkpoint.config) or (
        False not in stated and ("CausalLM" in classes or "LMHead" in classes)
    )


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    parts = {id(part) for part in sections(config)}
    return {
        key: _untied(value) if id(value) in parts and "tie_word_embeddings" in value else value
        for key, value in config.items()
    } | {"tie_word_embeddings": False}


def _derive(
    adapter: Adapter, checkpoint: Checkpoint, change: Change, name: str, factors: Factors
) -> Derived:
    """The computed tensor for a change; ``name`` is the tensor's name in the model."""
    weights, label = adapter.weights, adapter.weights.label
    base_spec = checkpoint.specs[name]
    source, stored = (weights, change.whole) if change.whole else (checkpoint, name)
    spec = source.specs[stored]
    if spec.shape != base_spec.shape or not (spec.dtype.mergeable and base_spec.dtype.mergeable):
        raise InputError(
            f"{label}: {stored!r} is {spec}, but tensor {name!r} of the base is {base_spec}; "
            "adapters with a vocabulary of their own cannot be applied"
        )
    narrow = base_spec.natural
    if change.a is None and change.b is None and change.magnitude is None and change.bias is None:
        replaced = TensorSpec(spec.dtype, spec.shape, narrow)
        return Derived(replaced, partial(fill_whole, source, stored))
    scale, rank = adapter.scale(change.module)
    widened = TensorSpec(FLOAT64 if spec.dtype == FLOAT64 else FLOAT32, spec.shape, narrow)
    if change.bias is not None:
        _check_shape(weights, change.bias, spec.shape, name)
        return Derived(widened, partial(fill_bias, source, stored, weights, change.bias, scale))
    if change.a is None or change.b is None:
        there = change.a or change.b or change.magnitude
        raise InputError(f"{label}: {there!r} has no partner; lora_A and lora_B come in pairs")
    shape = spec.shape
    if len(shape) != 2:
        raise InputError(f"{label}: {change.a!r} is for {name!r}, which is not a matrix ({spec})")
    transposed = is_transposed(adapter, checkpoint, change, shape)
    outer, inner = shape[::-1] if transposed else shape
    _check_shape(weights, change.a, (rank, inner), name)
    _check_shape(weights, change.b, (outer, rank), name)
    if change.magnitude is not None:
        _check_shape(weights, change.magnitude, (outer,), name)
    left, right = (change.a, change.b) if transposed else (change.b, change.a)
    product = Product(
        source,
        stored,
        (shape[0], shape[1]),
        factors,
        left,
        right,
        transposed,
        scale,
        change.magnitude,
    )
    return Derived(widened, partial(fill_product, product))


def _check_shape(weights: Checkpoint, key: str, shape: tuple[int, ...], name: str) -> None:
    spec = weights.specs[key]
    if spec.shape != shape or not spec.dtype.mergeable:
        raise InputError(
            f"{weights.label}: {key!r} is {spec}, but tensor {name!r} and {CONFIG} ask "
            f"for {list(shape)}"
        )


def is_transposed(
    adapter: Adapter, checkpoint: Described, change: Change, shape: tuple[int, ...]
) -> bool:
    """Whether a weight is stored as [in, out].

    If it is not square, the shapes of the factors determine this; PEFT itself inspects the module, and
    ignores the config.
    """
    if change.embedding:
        return True
    assert change.a is not None
    assert change.b is not None
    specs = adapter.weights.specs
    outer, inner = specs[change.b].shape[:1], specs[change.a].shape[-1:]
    if outer != inner:
        return outer + inner == shape[::-1]
    conv1d = checkpoint.config.get("model_type") in _CONV1D
    return bool(adapter.config.get("fan_in_fan_out")) or (
        conv1d and change.module.rpartition(".")[2] in ("c_attn", "c_proj", "c_fc", "q_attn")
    )
