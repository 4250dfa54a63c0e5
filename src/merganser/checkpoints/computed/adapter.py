"""LoRA adapters as PEFT saves them, applied to a model's tensors as they are read.

A weight W [out, in] becomes W + s * B A, with A [rank, in], B [out, rank] and s = alpha / rank, or
alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732). DoRA (arXiv:2402.09353) then scales each of its
rows to the length m: (m / |row|) * row. Weights that are stored as [in, out] (GPT-2's Conv1D), and
embeddings, are changed by the transpose. Tensors that an adapter holds whole take the place of the
model's.

A number is the sum over the ranks in order, in float64, rounded once to float32 (float64 where the
weight is), so that its bits do not depend on which range is read. No merged copy is made; DoRA's
lengths need whole rows and are found when the first tile of a tensor is read.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from merganser.architecture import Architecture, infer, ties_embeddings
from merganser.checkpoints.computed.derived import Array, Derived, DerivedCheckpoint, read_numbers
from merganser.checkpoints.locators import Adapted, after
from merganser.checkpoints.opening import open_checkpoint
from merganser.checkpoints.protocol import Checkpoint
from merganser.checkpoints.sidecar_files import read_json
from merganser.errors import InputError
from merganser.kernels import storage
from merganser.modules import sections
from merganser.tensors import FLOAT32, FLOAT64, TensorSpec

CONFIG = "adapter_config.json"

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

HEAD = "lm_head.weight"
"""The name of the head that a model gets whose adapter unties it from its embedding."""

MAX_STEPS = 10**9
"""Most steps, at worst, of matching modules' names with patterns: some seconds."""

KEPT_FACTORS = 4
"""Right factors that are kept in memory, while tiles of their tensors are read."""

CHUNK = 2**18
"""Elements over which DoRA's lengths are found at once."""

_REFUSED = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""Options of PEFT that make of an adapter something else than is computed here."""

_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin an adapter that also change the weights that it is for."""

_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}
"""Model types whose square weights may be stored as [in, out]: others are told by their shapes."""

_FACTOR = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_BIAS = re.compile(r"(.+)\.lora_B(?:\.default)?\.bias")
_WRAPPER = re.compile(r"\.(base_layer|original_module|modules_to_save(\.default)?)(?=\.)")

_OUTER = {"model", "language_model", "transformer", "base_model"}
"""Parts of names by which versions of a model class differ from what is stored."""


@dataclass(slots=True)
class _Change:
    """What an adapter makes of one tensor; names of its tensors, None where it has none.

    Attributes:
        module: the module that the adapter names.
        whole: takes the place of the model's.
        a, b: the factors.
        embedding: whether they are an embedding's.
        magnitude: DoRA's lengths.
        bias: is added to a bias, scaled like the factors' product.
    """

    module: str
    whole: str | None = None
    a: str | None = None
    b: str | None = None
    embedding: bool = False
    magnitude: str | None = None
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter at rest.

    Attributes:
        folder: where it lies.
        config: its ``adapter_config.json``.
        weights: its tensors.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: Checkpoint
    steps: list[int] = field(default_factory=lambda: [0])
    """What matching patterns has cost so far, at worst."""

    def scale(self, module: str) -> tuple[float, int]:
        """What a module's product of factors is multiplied by, and its rank."""
        rank = self._by_pattern("rank_pattern", module, self.config.get("r", 8))
        alpha = self._by_pattern("alpha_pattern", module, self.config.get("lora_alpha", 8))
        known = isinstance(rank, int) and isinstance(alpha, int | float)
        if not known or not 0 < rank < 2**31 or not math.isfinite(alpha):
            raise InputError(
                f"{self.folder / CONFIG}: r {rank!r} or lora_alpha {alpha!r} is no number"
            )
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank), rank

    def _by_pattern(self, key: str, module: str, default: Any) -> Any:
        """PEFT's rule: a pattern matches the whole of a module's name, or its end after a dot."""
        patterns = self.config.get(key) or {}
        try:
            for pattern, value in patterns.items():
                found, wildcards = _pattern(pattern)
                self.steps[0] += _cost(len(module), wildcards)
                if self.steps[0] > MAX_STEPS:
                    raise ValueError("matching them all would take too long")
                if found.match(module):
                    return value
        except (re.error, ValueError, AttributeError, RecursionError, OverflowError) as error:
            reason = f"{str(error)[:80]}; " if isinstance(error, ValueError) else ""
            raise InputError(
                f"{self.folder / CONFIG}: {key} holds a pattern that cannot be used ({reason}write "
                "the modules' names)"
            ) from None
        return default


@lru_cache(maxsize=4096)
def _pattern(text: str) -> tuple[re.Pattern[str], int]:
    """A pattern of PEFT's, and how many things in it can match in several ways.

    Python's matching may take a time that is exponential in the name's length. It cannot where nothing
    is repeated but single characters, and nothing looks around or back.

    Raises:
        ValueError: when it is more than that.
    """
    plain = re.sub(r"\\.", "x", text)
    if len(text) > 256 or "(?" in plain or re.search(r"\)[*+?{]|\\[1-9]", text):
        raise ValueError(f"{text[:40]!r} repeats groups, looks around or is very long")
    return re.compile(rf"(.*\.)?({text})$"), len(re.findall(r"[*+?{|]", plain))


def _cost(length: int, wildcards: int) -> int:
    """Steps that matching a name may take, at worst."""
    return int(max(length, 2) ** (wildcards + 1) // math.factorial(wildcards + 1)) + 1


def open_adapter(folder: Path) -> Adapter:
    """Open the LoRA adapter in a folder, or in the shards of a training step, reading headers only.

    Raises:
        InputError: when there is none, or it is of another kind.
    """
    label = str(folder)
    settings, weights = _opened(folder, label)
    kind = str(settings.get("peft_type", "LORA"))
    if kind.upper() != "LORA":
        raise InputError(f"{label}: is an adapter of the kind {kind}; only LORA can be merged")
    for key in _REFUSED:
        if settings.get(key):
            raise InputError(
                f"{label}: its {CONFIG} has {key}, which is not supported; "
                "merge it with PEFT (merge_and_unload) and use the model that this gives"
            )
    begun = str(settings.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGED_BASES):
        raise InputError(
            f"{label}: was begun by {begun}, which changed the base model's weights too; convert it to a "
            "plain LoRA with PEFT (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return Adapter(folder, settings, weights or open_checkpoint(_weights_file(folder), label))


def _opened(folder: Path, label: str) -> tuple[Mapping[str, Any], Checkpoint | None]:
    """The settings of an adapter, and its tensors where they are in the shards of a training step."""
    if (folder / CONFIG).is_file():
        return read_json(folder / CONFIG), None
    from merganser.checkpoints.training.lora_shards import find

    trained = find(folder)
    if trained is None:
        raise InputError(f"{label}: holds no adapter ({CONFIG} is missing)")
    return trained


def _weights_file(folder: Path) -> Path:
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: holds an {CONFIG} but no weights ({WEIGHTS[0]})")
    return file


def describe(folder: Path) -> dict[str, Any]:
    """Facts about the adapter in a folder.

    Raises:
        InputError: when there is none, or it is of another kind.
    """
    adapter = open_adapter(folder)
    rank, alpha = adapter.config.get("r", 8), adapter.config.get("lora_alpha", 8)
    return {"rank": rank, "alpha": alpha, "tensors": len(adapter.weights.specs)}


def adapted(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """A model with an adapter on top.

    Args:
        checkpoint: the model, dequantised.
        folder: the adapter's.

    Raises:
        InputError: when there is no adapter, or it does not fit the model.
    """
    made = applied(checkpoint, open_adapter(folder))
    made.locator = after(Adapted, checkpoint.locator, folder)
    return made


def applied(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """A model with an open adapter on top.

    Raises:
        InputError: when it does not fit the model.
    """
    architecture = infer(checkpoint.specs, checkpoint.config)
    embedding = _embedding(architecture)
    changes = _changes(adapter, checkpoint, embedding)
    heads = (n for n, p in architecture.places.items() if p.role == "head" and p.vocabulary)
    head = next(heads, None)
    factors = _Factors(adapter.weights)

    def made(name: str, change: _Change | None) -> Derived | str:
        return _derive(adapter, checkpoint, change, name, factors) if change else name

    tensors = {name: made(name, changes.get(name)) for name in checkpoint.specs}
    config: Mapping[str, Any] = checkpoint.config
    if embedding and {HEAD, head, embedding} & changes.keys() and _is_tied(checkpoint):
        # What is for one of the two is not for the other: PEFT's model computes with a head and an
        # embedding that are no longer the same, although its merged model may tie them again.
        if head is None:
            tensors[HEAD] = made(embedding, changes.get(HEAD))
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


# -- which tensor is changed, and by what ------------------------------------------------------------


def _changes(adapter: Adapter, checkpoint: Checkpoint, embedding: str | None) -> dict[str, _Change]:
    """The changed tensors by their names in the model."""
    label, found = adapter.weights.label, dict[str, _Change]()
    for key in adapter.weights.specs:
        name = key.removeprefix("base_model.model.")
        if match := _FACTOR.fullmatch(name):
            change = found.setdefault(f"{match[1]}.weight", _Change(match[1]))
            if match[2] == "A":
                change.a = key
            else:
                change.b = key
            change.embedding = "lora_embedding_" in name
        elif match := _MAGNITUDE.fullmatch(name):
            found.setdefault(f"{match[1]}.weight", _Change(match[1])).magnitude = key
        elif match := _BIAS.fullmatch(name):
            found.setdefault(f"{match[1]}.bias", _Change(match[1])).bias = key
        else:
            whole = _WRAPPER.sub("", name)
            found.setdefault(whole, _Change(whole.rpartition(".")[0])).whole = key
    places: dict[str, list[str]] = {}
    for name in checkpoint.specs:
        places.setdefault(_core(name), []).append(name)
    changes: dict[str, _Change] = {}
    for name, change in found.items():
        keys = change.whole, change.a, change.b, change.magnitude, change.bias
        key = next(key for key in keys if key is not None)
        matches = [name] if name in checkpoint.specs else places.get(_core(name), [])
        if name == HEAD and not matches and embedding is not None and _is_tied(checkpoint):
            matches = [HEAD]
        if len(matches) != 1:
            raise InputError(f"{label}: {key!r} changes {name!r}, which {checkpoint.label} has not")
        if matches[0] in changes:
            raise InputError(f"{label}: {key!r} is not the only one to change {matches[0]!r}")
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


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the head of a model that stores none is its embedding."""
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


# -- how it is computed ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Product:
    """W + s * B A of one tensor.

    Attributes:
        source: the checkpoint that holds W, and ``name`` its name there.
        shape: of W, as it is stored.
        factors: the adapter's.
        left, right: names of the factors whose product has W's shape as it is stored; with
            ``transposed`` their transposes have.
        scale: s.
        magnitude: name of DoRA's lengths, or None.
        lengths: those of W + s * B A by rows, by columns if ``transposed``; found when needed.
    """

    source: Checkpoint
    name: str
    shape: tuple[int, int]
    factors: _Factors
    left: str
    right: str
    transposed: bool
    scale: float
    magnitude: str | None
    lengths: list[Array] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Factors:
    """An adapter's factors, in float32: rows of left ones are read as needed, right ones are kept
    for a while."""

    def __init__(self, weights: Checkpoint) -> None:
        self.weights = weights
        self._kept: OrderedDict[str, Array] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, name: str, first: int, count: int, transposed: bool) -> Array:
        """Rows of a left factor, or columns of its transpose: float32 [count, rank]."""
        rows, columns = self.weights.specs[name].shape
        if not transposed:
            return self._read(name, first * columns, count * columns).reshape(count, columns)
        lines = [self._read(name, k * columns + first, count) for k in range(rows)]
        return np.ascontiguousarray(np.stack(lines, axis=1))

    def whole(self, name: str, transposed: bool) -> Array:
        """A right factor: float32 [rank, columns]."""
        with self._lock:
            if name not in self._kept:
                spec = self.weights.specs[name]
                read = self._read(name, 0, spec.numel).reshape(spec.shape)
                self._kept[name] = np.ascontiguousarray(read.T) if transposed else read
                while len(self._kept) > KEPT_FACTORS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(name)
            return self._kept[name]

    def _read(self, name: str, start: int, count: int) -> Array:
        return read_numbers(self.weights, name, start, count).astype(np.float32, copy=False)


def _derive(
    adapter: Adapter, checkpoint: Checkpoint, change: _Change, name: str, factors: _Factors
) -> Derived:
    """How a tensor is computed; ``name`` is that of the model's own."""
    weights, label = adapter.weights, adapter.weights.label
    own = checkpoint.specs[name]
    source, stored = (weights, change.whole) if change.whole else (checkpoint, name)
    spec = source.specs[stored]
    if spec.shape != own.shape or not (spec.dtype.mergeable and own.dtype.mergeable):
        raise InputError(
            f"{label}: {stored!r} is {spec}, and the {name!r} that it changes is {own}; "
            "adapters with a vocabulary of their own cannot be applied"
        )
    narrow = own.natural
    if change.a is None and change.b is None and change.magnitude is None and change.bias is None:
        whole = TensorSpec(spec.dtype, spec.shape, narrow)
        return Derived(whole, partial(_fill_whole, source, stored))
    scale, rank = adapter.scale(change.module)
    made = TensorSpec(FLOAT64 if spec.dtype == FLOAT64 else FLOAT32, spec.shape, narrow)
    if change.bias is not None:
        _check_shape(weights, change.bias, spec.shape, name)
        return Derived(made, partial(_fill_bias, source, stored, weights, change.bias, scale))
    if change.a is None or change.b is None:
        there = change.a or change.b or change.magnitude
        raise InputError(f"{label}: {there!r} has no partner; lora_A and lora_B come in pairs")
    shape = spec.shape
    if len(shape) != 2:
        raise InputError(f"{label}: {change.a!r} is for {name!r}, which is no matrix but {spec}")
    transposed = _is_transposed(adapter, checkpoint, change, shape)
    outer, inner = shape[::-1] if transposed else shape
    _check_shape(weights, change.a, (rank, inner), name)
    _check_shape(weights, change.b, (outer, rank), name)
    if change.magnitude is not None:
        _check_shape(weights, change.magnitude, (outer,), name)
    left, right = (change.a, change.b) if transposed else (change.b, change.a)
    product = _Product(
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
    return Derived(made, partial(_fill_product, product))


def _check_shape(weights: Checkpoint, key: str, shape: tuple[int, ...], name: str) -> None:
    spec = weights.specs[key]
    if spec.shape != shape or not spec.dtype.mergeable:
        raise InputError(
            f"{weights.label}: {key!r} is {spec}, and should be {list(shape)} to go with {name!r} "
            f"and {CONFIG}"
        )


def _is_transposed(
    adapter: Adapter, checkpoint: Checkpoint, change: _Change, shape: tuple[int, ...]
) -> bool:
    """Whether a weight is stored as [in, out]. Its factors tell, where it is not square: PEFT
    itself looks at the module and corrects what the config says."""
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


def _fill_whole(source: Checkpoint, name: str, start: int, into: Array) -> None:
    source.read(name, start * source.specs[name].dtype.itemsize, into.data)


def _fill_bias(
    source: Checkpoint,
    name: str,
    weights: Checkpoint,
    bias: str,
    scale: float,
    start: int,
    into: Array,
) -> None:
    own = read_numbers(source, name, start, len(into) // _numbers(source, name).itemsize)
    added = read_numbers(weights, bias, start, len(own)).astype(np.float64)
    into.view(own.dtype)[:] = own + scale * added


def _numbers(source: Checkpoint, name: str) -> np.dtype[Any]:
    return np.dtype(np.float64 if source.specs[name].dtype == FLOAT64 else np.float32)


def _fill_product(product: _Product, start: int, into: Array) -> None:
    out = into.view(_numbers(product.source, product.name))
    columns = product.shape[1]
    first, last = start // columns, (start + len(out) - 1) // columns
    by_row, by_column = np.ones(last + 1 - first), np.ones(columns)
    if product.magnitude is not None:
        factors = _dora_factors(product)
        by_row, by_column = (
            (by_row, factors) if product.transposed else (factors[first : last + 1], by_column)
        )
    _compute(product, start, out, by_row, by_column)


def _compute(product: _Product, start: int, out: Array, by_row: Array, by_column: Array) -> None:
    """A range of (W + s * B A), rows and columns scaled, into numbers of any float dtype."""
    columns = product.shape[1]
    first, last = start // columns, (start + len(out) - 1) // columns
    weights = read_numbers(product.source, product.name, start, len(out))
    left = product.factors.rows(product.left, first, last + 1 - first, product.transposed)
    right = product.factors.whole(product.right, product.transposed)
    storage.add_product(
        weights, left, right, product.scale, start - first * columns, by_row, by_column, out
    )


def _dora_factors(product: _Product) -> Array:
    """m / |row| of every row, of every column of a transposed one: float64; found once."""
    assert product.magnitude is not None
    with product.lock:
        if not product.lengths:
            rows, columns = product.shape
            step = max(1, CHUNK // columns)
            squares = np.zeros(columns if product.transposed else rows)
            for first in range(0, rows, step):
                count = min(step, rows - first)
                values = np.empty((count, columns))
                _compute(
                    product,
                    first * columns,
                    values.reshape(-1),
                    np.ones(count),
                    np.ones(columns),
                )
                storage.add_squares(
                    values,
                    product.transposed,
                    squares if product.transposed else squares[first : first + count],
                )
            size = len(squares)
            wanted = read_numbers(product.factors.weights, product.magnitude, 0, size)
            with np.errstate(divide="ignore", invalid="ignore"):
                product.lengths.append(wanted.astype(np.float64) / np.sqrt(squares))
        return product.lengths[0]
