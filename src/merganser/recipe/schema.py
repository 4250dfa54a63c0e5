"""MergeKit's configuration language as dataclasses, whose readers report unknown keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from merganser.recipe.kinds import (
    Anything,
    ByKind,
    Either,
    Flag,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Nested,
    OneOf,
    Optional,
    Pair,
    Parsed,
    Part,
    Text,
    key,
    names,
)
from merganser.recipe.references import ModelReference, parse_reference
from merganser.recipe.settings import Setting, parse_setting
from merganser.tensors import BY_NAME

_SCALAR = {"type": ["number", "boolean", "string"]}
_VALUE = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]}
_RULE = {
    "type": "object",
    "properties": {"filter": {"type": ["string", "null"]}, "value": _VALUE},
    "required": ["value"],
    "additionalProperties": False,
}

_PATH = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "revision": {"type": ["string", "null"]},
            },
            "required": ["path"],
            "additionalProperties": False,
        },
    ]
}
_REFERENCE = {
    "anyOf": [
        {"type": "string", "description": "path@revision+adapter"},
        {
            "type": "object",
            "properties": {
                "model": _PATH,
                "lora": {"anyOf": [_PATH, {"type": "null"}]},
                "override_architecture": {"type": ["string", "null"]},
            },
            "required": ["model"],
            "additionalProperties": False,
        },
    ]
}

REFERENCE = Parsed(parse_reference, _REFERENCE)
_SETTING = {"anyOf": [_VALUE, _RULE, {"type": "array", "items": _RULE}]}
PARAMETERS = MapOf(Parsed(parse_setting, _SETTING))
Parameters = dict[str, Setting]


DTYPES = ("float16", "bfloat16", "float32", "float64")


def _dtype(value: object) -> object:
    """Normalise a dtype: as MergeKit, accept ``torch.bfloat16``, and an empty text as none."""
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name in (None, ""):
        return None
    if name not in DTYPES:
        known = isinstance(name, str) and name in BY_NAME
        reason = "is not a dtype that can be merged" if known else "is not a dtype"
        raise ValueError(f"{value!r} {reason}; use bfloat16, float16, float32 or float64")
    return name


DTYPE = Parsed(_dtype, Optional(OneOf(DTYPES)).schema({}))


def _layer(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a layer number is a whole number, not {value!r}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"a layer number is a whole number, not {str(value)[:40]!r}") from None
    if not number.is_integer() or number < 0:
        raise ValueError(f"a layer number is a whole number from 0 on, not {value!r}")
    return int(number)


LAYER = Parsed(_layer, {"type": "integer"})


@dataclass(frozen=True)
class ModelInput(Part):
    """A model to merge."""

    model: ModelReference = key(REFERENCE)
    parameters: Parameters = key(PARAMETERS, factory=dict)


@dataclass(frozen=True)
class SliceSource(Part):
    """A range of a model's layers, half-open, counted from 0."""

    model: ModelReference = key(REFERENCE)
    layer_range: tuple[int, int] = key(Pair(LAYER))
    parameters: Parameters = key(PARAMETERS, factory=dict)

    def __post_init__(self) -> None:
        if self.layer_range[1] < self.layer_range[0]:
            raise ValueError(f"layer_range {list(self.layer_range)} ends before it begins")


@dataclass(frozen=True)
class OutputSlice(Part):
    """Consecutive layers of the output, and their sources."""

    sources: list[SliceSource] = key(ListOf(Nested(SliceSource)))
    base_model: ModelReference | None = key(Optional(REFERENCE), None)
    parameters: Parameters = key(PARAMETERS, factory=dict)
    residual_weight: Any = key(Anything(), None)

    def __post_init__(self) -> None:
        lengths = {source.layer_range[1] - source.layer_range[0] for source in self.sources}
        if len(lengths) > 1:
            raise ValueError("the sources of one slice must have the same number of layers")


_MODELS: Kind = Optional(ListOf(Nested(ModelInput)))
_SLICES: Kind = Optional(ListOf(Nested(OutputSlice)))


@dataclass(frozen=True)
class Module(Part):
    """A module of a model, such as its vision tower."""

    models: list[ModelInput] | None = key(_MODELS, None)
    slices: list[OutputSlice] | None = key(_SLICES, None)
    parameters: Parameters = key(PARAMETERS, factory=dict)

    def __post_init__(self) -> None:
        if (self.models is None) == (self.slices is None):
            raise ValueError("a module has either models or slices")


@dataclass(frozen=True)
class ModelTokenSource(Part):
    """The embedding of a model's token."""

    kind: str = key(OneOf(("model_token",)))
    model: ModelReference = key(REFERENCE)
    token: str | None = key(Optional(Text()), None)
    token_id: int | None = key(Optional(Integer(minimum=0, exclusiveMaximum=2**31)), None)

    def __post_init__(self) -> None:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("a model_token takes either token or token_id")


@dataclass(frozen=True)
class ZeroTokenSource(Part):
    """An embedding of zeros."""

    kind: str = key(OneOf(("zero",)))


TokenSource = ModelTokenSource | ZeroTokenSource | ModelReference
_TOKEN_SOURCE = ByKind({"model_token": ModelTokenSource, "zero": ZeroTokenSource}, REFERENCE)


@dataclass(frozen=True)
class TokenRule(Part):
    """The source of one token's embedding."""

    source: TokenSource | None = key(Optional(_TOKEN_SOURCE), None)
    force: bool = key(Flag(), False)


_TOKENIZER_SOURCE = Either(OneOf(("union", "base")), REFERENCE)


@dataclass(frozen=True)
class Tokenizer(Part):
    """The tokenizer of the output."""

    source: str | ModelReference = key(_TOKENIZER_SOURCE, "union")
    tokens: dict[str, TokenRule] | None = key(Optional(MapOf(Nested(TokenRule))), None)
    pad_to_multiple_of: int | None = key(Optional(Integer(exclusiveMinimum=0, maximum=2**20)), None)


@dataclass(frozen=True)
class Recipe(Part):
    """A recipe: MergeKit's keys, and four more at the end."""

    merge_method: str = key(Text())
    models: list[ModelInput] | None = key(_MODELS, None)
    slices: list[OutputSlice] | None = key(_SLICES, None)
    modules: dict[str, Module] | None = key(Optional(MapOf(Nested(Module), 1)), None)
    base_model: ModelReference | None = key(Optional(REFERENCE), None)
    parameters: Parameters = key(PARAMETERS, factory=dict)
    dtype: str | None = key(DTYPE, None)
    out_dtype: str | None = key(DTYPE, None)
    tokenizer_source: str | ModelReference | None = key(Optional(_TOKENIZER_SOURCE), None)
    tokenizer: Tokenizer | None = key(Optional(Nested(Tokenizer)), None)
    chat_template: str | None = key(Optional(Text()), None)
    name: str | None = key(Optional(Text()), None)

    rounding: Literal["nearest", "stochastic"] | None = key(
        Optional(OneOf(("nearest", "stochastic"))), None
    )
    seed: int | None = key(Optional(Integer(minimum=0, exclusiveMaximum=2**63)), None)
    arithmetic: Literal["exact", "mergekit", "mergekit-0.1.4"] | None = key(
        Optional(OneOf(("exact", "mergekit", "mergekit-0.1.4"))), None
    )
    weights: Literal["auto", "shards", "huggingface"] | None = key(
        Optional(OneOf(("auto", "shards", "huggingface"))), None
    )

    def __post_init__(self) -> None:
        given = [
            form for form in ("models", "slices", "modules") if getattr(self, form) is not None
        ]
        if not given:
            raise ValueError("nothing to merge: give models, slices or modules")
        if len(given) > 1:
            raise ValueError(f"give either {' or '.join(given)}, not both")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give either tokenizer or tokenizer_source, not both")


def valid_keys(path: tuple[str | int, ...]) -> Sequence[str]:
    """The keys that the schema knows where ``path`` points to; for "did you mean"."""
    model: type[Part] = Recipe
    inner: Mapping[str, type[Part]] = {
        "models": ModelInput,
        "slices": OutputSlice,
        "sources": SliceSource,
        "modules": Module,
        "tokenizer": Tokenizer,
        "tokens": TokenRule,
    }
    for part in path:
        model = inner.get(str(part), model)
    return names(model)
