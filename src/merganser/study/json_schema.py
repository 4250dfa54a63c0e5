"""JSON Schema of all files that the commands read: recipes, sweeps, searches, and files of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from merganser import recipe
from merganser.evaluation.task_entries import Evaluate
from merganser.recipe.axes import WHERE
from merganser.recipe.run_models import SCHEMA
from merganser.recipe.simplex import MAX_POINTS
from merganser.results.scores import Direction
from merganser.study.evaluate_block import Study
from merganser.study.search_space import MAX_BUDGET, MAX_LENGTH, Method

Schema = dict[str, Any]

EXPRESSION: Schema = {"type": "string", "pattern": r"\{\{", "description": "an expression, {{ … }}"}

_NUMBER: Schema = {"type": ["number", "string"]}  # YAML 1.1 reads 2e-6 as text
_SCALAR: Schema = {"type": ["number", "boolean", "string"]}
_LIST: Schema = {"type": "array", "items": _SCALAR, "minItems": 1}
_TOGETHER: Schema = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"anyOf": [_SCALAR, _LIST, {"$ref": "#/$defs/Together"}]},
    "description": "values that vary together",
}
_VALUES: Schema = {
    "type": "array",
    "items": {"anyOf": [_SCALAR, _LIST, {"$ref": "#/$defs/Together"}]},
    "minItems": 1,
}
_NAMES: Schema = {"pattern": r"^[A-Za-z_]\w*$"}


def _object(properties: Mapping[str, Any], *required: str) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


_WHOLE: Schema = {"type": "integer", "minimum": 0}
_MODELS: Schema = {
    "type": "array",
    "items": {"type": "string", "pattern": r"^[A-Za-z_]\w*$"},
    "minItems": 2,
}
_POINTS: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_POINTS}
_SIMPLEX: Schema = {
    "anyOf": [
        _object(
            {"simplex": _MODELS, "step": _NUMBER, "inside": {"type": "boolean"}}, "simplex", "step"
        ),
        _object(
            {
                "simplex": _MODELS,
                "layers": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 1},
                    "minItems": 1,
                },
                "inside": {"type": "boolean"},
            },
            "simplex",
            "layers",
        ),
        _object({"sobol": _MODELS, "points": _POINTS, "seed": _WHOLE}, "sobol", "points"),
        _object(
            {
                "dirichlet": _MODELS,
                "points": _POINTS,
                "alpha": {"type": "number", "minimum": 0.01, "maximum": 1000},
                "seed": _WHOLE,
            },
            "dirichlet",
            "points",
        ),
    ],
    "description": "weights that add up to one",
}
_RUN = _object(
    {
        "run": {"type": "string", "minLength": 1},
        "steps": SCHEMA["properties"]["steps"],
        **{key: _WHOLE for key in ("first", "last", "from", "to", "every")},
    },
    "run",
)
_STEPS = _object({"from": _NUMBER, "to": _NUMBER, "step": _NUMBER}, "from", "to", "step")
_GRID: Schema = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": _NAMES,
    "properties": {
        WHERE: {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    },
    "additionalProperties": {"anyOf": [_SCALAR, _VALUES, _STEPS, _SIMPLEX, _RUN]},
}
_SWEEP: Schema = {"anyOf": [_GRID, {"type": "array", "items": _GRID, "minItems": 1}]}

_RANGE = _object(
    {
        "from": _NUMBER,
        "to": _NUMBER,
        "step": _NUMBER,
        "int": {"type": "boolean"},
        "log": {"type": "boolean"},
        "length": {"type": "integer", "minimum": 1, "maximum": MAX_LENGTH},
    },
    "from",
    "to",
)
_SEARCH = _object(
    {
        "over": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": _NAMES,
            "additionalProperties": {
                "anyOf": [
                    _SCALAR,
                    _VALUES,
                    _object({"simplex": _MODELS, "step": _NUMBER}, "simplex"),
                    _RANGE,
                ]
            },
        },
        "from": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    _object({key: SCHEMA["properties"][key] for key in ("run", "steps")}, "run"),
                ]
            },
            "minItems": 1,
        },
        "again": {"type": "boolean"},
        "equal": {"type": "boolean"},
        "objectives": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": {"enum": list(get_args(Direction))},
                },
            ]
        },
        "constraints": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"least": _NUMBER, "most": _NUMBER},
                "minProperties": 1,
                "additionalProperties": False,
            },
        },
        "method": {"enum": list(get_args(Method))},
        "budget": {"type": "integer", "minimum": 1, "maximum": MAX_BUDGET},
        "population": {"type": "integer", "minimum": 2, "maximum": 1000},
        "seed": {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**32},
        "held_out": {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        },
        "keep": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 1000}, {"const": "front"}]},
    },
    "objectives",
)
_SEARCH["anyOf"] = [{"required": ["over"]}, {"required": ["from"]}]


def json_schema() -> Schema:
    """Return the JSON Schema of recipes, sweeps and searches, and of files of tasks.

    In sweeps and searches, an expression may replace a number, a word, or a list of them.
    """
    schema = recipe.json_schema()
    dialect, defs = schema.pop("$schema"), {k: _open(v) for k, v in schema.pop("$defs").items()}
    schema = _open(schema)
    blocks = {"Study": Study.model_json_schema(), "Tasks": Evaluate.model_json_schema()}
    for name, block in blocks.items():
        defs |= block.pop("$defs")
        defs[name] = block
    schema["properties"] |= {
        "sweep": _SWEEP,
        "search": _SEARCH,
        "evaluate": {"$ref": "#/$defs/Study"},
    }
    return {
        "$schema": dialect,
        "title": "A recipe, a sweep, a search, or a file of tasks",
        "if": {"type": "object", "required": ["tasks"]},
        "then": {"$ref": "#/$defs/Tasks"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": defs | {"Together": _TOGETHER, "Recipe": schema},
    }


def _open(schema: Any) -> Any:
    """Return a schema that also accepts an expression in place of any value that is not a text."""
    if isinstance(schema, list):
        return [_open(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {
        key: {name: _open(entry) for name, entry in value.items()}
        if key == "properties"
        else value
        if key in ("default", "enum", "const", "required")
        else _open(value)
        for key, value in schema.items()
    }
    closed = schema.get("type") in ("number", "integer", "boolean", "array")
    if closed or "enum" in schema or "const" in schema:
        return {"anyOf": [opened, EXPRESSION]}
    return opened
