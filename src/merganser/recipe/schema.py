"""MergeKit's configuration language as pydantic models, which report unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
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

Reference = Annotated[ModelReference, BeforeValidator(parse_reference), WithJsonSchema(_REFERENCE)]
ParameterSetting = Annotated[
    Setting,
    BeforeValidator(parse_setting),
    WithJsonSchema({"anyOf": [_VALUE, _RULE, {"type": "array", "items": _RULE}]}),
]
Parameters = dict[str, ParameterSetting]


def _dtype(value: object) -> object:
    """Normalise a dtype: as MergeKit, accept ``torch.bfloat16``, and an empty text as none."""
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name in (None, ""):
        return None
    if name not in ("float16", "bfloat16", "float32", "float64"):
        known = isinstance(name, str) and name in BY_NAME
        reason = "is no type to merge in" if known else "is no dtype"
        raise ValueError(f"{value!r} {reason}; use bfloat16, float16, float32 or float64")
    return name


DTypeName = Annotated[
    Literal["float16", "bfloat16", "float32", "float64"] | None, BeforeValidator(_dtype)
]


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


Layer = Annotated[int, BeforeValidator(_layer)]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True
    )


class ModelInput(_Part):
    """A model to merge."""

    model: Reference
    parameters: Parameters = Field(default_factory=dict)


class SliceSource(_Part):
    """A range of a model's layers, half-open, counted from 0."""

    model: Reference
    layer_range: tuple[Layer, Layer]
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _in_order(self) -> SliceSource:
        if self.layer_range[1] < self.layer_range[0]:
            raise ValueError(f"layer_range {list(self.layer_range)} ends before it begins")
        return self


class OutputSlice(_Part):
    """Consecutive layers of the output, and their sources."""

    sources: list[SliceSource] = Field(min_length=1)
    base_model: Reference | None = None
    parameters: Parameters = Field(default_factory=dict)
    residual_weight: Any = None

    @model_validator(mode="after")
    def _same_length(self) -> OutputSlice:
        lengths = {source.layer_range[1] - source.layer_range[0] for source in self.sources}
        if len(lengths) > 1:
            raise ValueError("the sources of one slice must have the same number of layers")
        return self


class Module(_Part):
    """A module of a model, such as its vision tower."""

    models: list[ModelInput] | None = Field(default=None, min_length=1)
    slices: list[OutputSlice] | None = Field(default=None, min_length=1)
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_form(self) -> Module:
        if (self.models is None) == (self.slices is None):
            raise ValueError("a module has either models or slices")
        return self


class ModelTokenSource(_Part):
    """The embedding of a model's token."""

    kind: Literal["model_token"]
    model: Reference
    token: str | None = None
    token_id: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    @model_validator(mode="after")
    def _one_token(self) -> ModelTokenSource:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("a model_token is named by either token or token_id")
        return self


class ZeroTokenSource(_Part):
    """An embedding of zeros."""

    kind: Literal["zero"]


def _kind(value: object) -> str:
    """The form of a token's source, so that errors describe that form only."""
    if isinstance(value, ModelTokenSource | ZeroTokenSource):
        return f"<{value.kind}>"
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return "<zero>" if kind == "zero" else "<model_token>" if kind is not None else "<model>"


TokenSource = Annotated[
    Annotated[ModelTokenSource, Tag("<model_token>")]
    | Annotated[ZeroTokenSource, Tag("<zero>")]
    | Annotated[Reference, Tag("<model>")],
    Discriminator(_kind),
]


class TokenRule(_Part):
    """The source of one token's embedding."""

    source: TokenSource | None = None
    force: bool = False


class Tokenizer(_Part):
    """The tokenizer of the output."""

    source: Literal["union", "base"] | Reference = "union"
    tokens: dict[str, TokenRule] | None = None
    pad_to_multiple_of: Annotated[int, Field(gt=0, le=2**20)] | None = None


class Recipe(_Part):
    """A recipe: MergeKit's keys, and four more at the end."""

    merge_method: str
    models: list[ModelInput] | None = Field(default=None, min_length=1)
    slices: list[OutputSlice] | None = Field(default=None, min_length=1)
    modules: dict[str, Module] | None = Field(default=None, min_length=1)
    base_model: Reference | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: DTypeName = None
    out_dtype: DTypeName = None
    tokenizer_source: Literal["union", "base"] | Reference | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    name: str | None = None

    rounding: Literal["nearest", "stochastic"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    arithmetic: Literal["exact", "mergekit", "mergekit-0.1.4"] | None = None
    weights: Literal["auto", "shards", "huggingface"] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Recipe:
        given = [
            form for form in ("models", "slices", "modules") if getattr(self, form) is not None
        ]
        if not given:
            raise ValueError("nothing to merge: give models, slices or modules")
        if len(given) > 1:
            raise ValueError(f"give either {' or '.join(given)}, not both")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give either tokenizer or tokenizer_source, not both")
        return self


def valid_keys(path: tuple[str | int, ...]) -> list[str]:
    """The valid keys at a path, for suggestions."""
    model: type[BaseModel] = Recipe
    inner: Mapping[str, type[BaseModel]] = {
        "models": ModelInput,
        "slices": OutputSlice,
        "sources": SliceSource,
        "modules": Module,
        "tokenizer": Tokenizer,
        "tokens": TokenRule,
    }
    for part in path:
        model = inner.get(str(part), model)
    return list(model.model_fields)
