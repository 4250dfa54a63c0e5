"""Numbers of a recipe: what is out of range is refused, what is unusual is warned of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import merganser
from checkpoints_on_disk import make_model
from merganser import methods, planning
from merganser.errors import RecipeError
from merganser.methods import Method, Parameter, Range
from messages import assert_one_line
from recipe_files import RecipeFile


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models ``a``, ``b``, ``c`` and ``base`` of two layers."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "c", "base")):
        make_model(folder / name, seed=seed)
    return folder


def recipe(models: Path, method: str, **parameters: Any) -> dict[str, Any]:
    """A recipe with as many models as the method takes; a list is one value for each model."""
    found = methods.get(method)
    assert found is not None
    least, most = found.models
    count = max(least, min(2, most or 2))
    listed: list[dict[str, Any]] = [{"model": str(models / name)} for name in "abc"[:count]]
    data: dict[str, Any] = {"merge_method": method, "models": listed, "parameters": {}}
    if found.base == "required":
        data["base_model"] = str(models / "base")
    for parameter in found.parameters:
        given = parameters.get(parameter.name, 0.5 if parameter.required else None)
        if given is not None and parameter.per_model:
            values = given if isinstance(given, list) else [given] * count
            for entry, value in zip(listed, values, strict=True):
                entry.setdefault("parameters", {})[parameter.name] = value
        elif given is not None:
            data["parameters"][parameter.name] = given
    return data


def warnings(data: Any, **options: Any) -> tuple[str, ...]:
    return planning.plan(data, **options).warnings


def ranged() -> list[Any]:
    return [
        pytest.param(method, parameter, parameter.range, id=f"{name}-{parameter.name}")
        for name in methods.names()
        if (method := methods.get(name)) is not None
        for parameter in method.parameters
        if parameter.range is not None
    ]


def test_every_numeric_parameter_declares_its_range() -> None:
    lacking = [
        (name, parameter.name)
        for name in methods.names()
        if (method := methods.get(name)) is not None and method.origin is None
        for parameter in method.parameters
        if parameter.type in (int, float) and parameter.range is None
    ]
    assert lacking == []


@pytest.mark.parametrize(("method", "parameter", "limits"), ranged())
def test_a_value_without_a_meaning_is_an_error(
    models: Path, method: Method, parameter: Parameter, limits: Range
) -> None:
    step = 1 if parameter.type is int else 0.01
    for value in (limits.least - step, limits.most + step):
        if math.isfinite(value):
            data = recipe(models, method.name, **{parameter.name: value})
            with pytest.raises(RecipeError) as error:
                planning.plan(data, strictness="lenient")
            told = f"{parameter.name} must be {limits.valid_text}, not {value:g}"
            assert_one_line(str(error.value), told)


@pytest.mark.parametrize(("method", "parameter", "limits"), ranged())
def test_an_unusual_value_is_a_warning_and_a_usual_one_is_none(
    models: Path, method: Method, parameter: Parameter, limits: Range
) -> None:
    if parameter.normalized_by is True:
        return  # judged by quotients, below
    flags = {parameter.normalized_by: False} if parameter.normalized_by else {}

    def unusual(value: float) -> list[str]:
        data = recipe(models, method.name, **{parameter.name: value}, **flags)
        for entry in data["models"][1:]:  # one model's value is enough
            if parameter.per_model and not parameter.required:
                del entry["parameters"][parameter.name]
        return [w for w in warnings(data) if "unusual" in w]

    middle = (limits.low + limits.high) / 2
    step = 1 if parameter.type is int else 0.005
    for value in (limits.low, limits.high, middle):
        assert unusual(int(value) if parameter.type is int else value) == []
    for value in (limits.low - step, limits.high + step):
        if limits.least <= value <= limits.most:
            [warning] = unusual(value)
            assert_one_line(warning, f"{value:g} is unusual", parameter.name, limits.usual_text)


@pytest.mark.parametrize(
    ("method", "block", "place", "text"),
    [
        ("ties", "{weight: 1, density: 50}", 6, "density must be between 0 and 1, not 50"),
        ("ties", "{weight: 1, density: -1}", 6, "density must be between 0 and 1, not -1"),
        ("ties", "\n    weight: 1\n    density:\n    - 0.5\n    - 1.5", 10, "not 1.5"),
        (
            "ties",
            "\n    weight: 1\n    density:\n    - {filter: no_such, value: 7}\n    - value: 1",
            9, "not 7",
        ),
        ("slerp", "{}\nparameters: {t: 5}", 7, "t must be between 0 and 1, not 5"),
        ("slerp", "{}\nparameters: {t: [0, '5']}", 7, "parameters.t[1]: t must be between 0 and 1"),
        ("slerp", "{}\nparameters: {t: true}", 7, "t is a number, not true"),
        ("nearswap", "{}\nparameters: {t: 5e-1}", None, ""),
        ("nearswap", "{}\nparameters: {t: -1e-3}", 7, "t must be at least 0, not -0.001"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("arithmetic", ["exact", "mergekit"])
def test_the_address_is_that_of_the_value(
    models: Path, recipe_file: RecipeFile, method: str, block: str, place: int | None, text: str,
    arithmetic: Any,
) -> None:  # fmt: skip
    file = recipe_file(
        f"merge_method: {method}\nbase_model: {models}/base\ndtype: bfloat16\nmodels:\n"
        f"- model: {models}/a\n  parameters: {block}\n"
    )
    if place is None:
        assert warnings(file, arithmetic=arithmetic) == ()
        return
    with pytest.raises(RecipeError) as error:
        planning.plan(file, arithmetic=arithmetic)
    assert_one_line(str(error.value), f"{file}:{place}: ", text)


def test_strict_makes_an_unusual_value_an_error(models: Path) -> None:
    data = recipe(models, "task_arithmetic", **{"lambda": 3})
    [warning] = warnings(data)
    assert_one_line(warning, "parameters.lambda", "3 is unusual", "between 0 and 2")
    with pytest.raises(RecipeError, match="3 is unusual"):
        planning.plan(data, strictness="strict")


def test_normalised_weights_are_judged_by_their_quotients(models: Path) -> None:
    for method in ("linear", "ties", "nuslerp", "multislerp", "karcher"):
        assert warnings(recipe(models, method, weight=[3000, 1000])) == (), method
    for method in ("linear", "ties", "nuslerp", "multislerp"):
        [warning] = warnings(recipe(models, method, weight=[0.4, -0.3]))
        assert_one_line(warning, "0.4, divided by the sum 0.1 of all, is unusual for weight")
    [warning] = warnings(recipe(models, "task_arithmetic", weight=[3, -1]))
    assert_one_line(warning, "models[0].parameters.weight: 3 is unusual for weight")
    assert warnings(recipe(models, "task_arithmetic", weight=[2, -2])) == ()


def test_a_warning_of_some_tensors_names_the_first(models: Path) -> None:
    rules = [{"filter": "mlp", "value": 5.0}, {"value": 1.0}]
    [warning] = warnings(recipe(models, "task_arithmetic", weight=[rules, 1.0]))
    assert_one_line(warning, "5 is unusual", "(tensor model.layers.0.mlp", "and 5 more)")


def test_a_list_for_all_models_is_a_gradient_and_says_so(models: Path) -> None:
    for name, method in (("weight", "linear"), ("density", "ties")):
        data = recipe(models, method)
        for entry in data["models"]:
            entry.get("parameters", {}).pop(name, None)
        data["parameters"][name] = [0.3, 0.7]
        [warning] = warnings(data)
        assert_one_line(warning, f"parameters.{name}: 2 values are a gradient over the layers")
        for other in ([0.3, 0.5, 0.7], [0.5, 0.5], [0.5], 0.5):
            data["parameters"][name] = other
            assert warnings(data) == ()
    assert warnings(recipe(models, "slerp", t=[0.3])) == ()
    assert warnings(recipe(models, "linear", weight=[[0.3, 0.7], [0.7, 0.3]])) == ()


def test_a_list_for_the_models_of_a_slice_or_with_a_listed_base(models: Path) -> None:
    layers = {"layer_range": [0, 2]}
    sources = [{"model": str(models / name), **layers} for name in ("a", "b", "base")]
    piece = {"sources": sources, "parameters": {"weight": [0.3, 0.7]}}
    data = {"merge_method": "ties", "slices": [piece], "base_model": str(models / "base")}
    [warning] = warnings(data)
    assert_one_line(warning, "slices[0].parameters.weight", "gradient")
    piece["parameters"] = {"weight": [0.3, 0.5, 0.6, 0.7]}
    assert warnings(data) == ()


@pytest.mark.parametrize(
    ("weight", "normalize", "text"),
    [
        ([0.5, 0.5], False, None),
        ([1 / 3, 0.66], False, None),
        ([2, -1], False, None),
        ([1, 1], False, "add up to 2"),
        ([0.3, 0.3], False, "add up to 0.6"),
        ([1, -1], False, "add up to 0"),
        ([1, 1], True, None),
    ],
)
def test_the_sum_of_weights_that_are_not_normalised(
    models: Path, weight: list[float], normalize: bool, text: str | None
) -> None:
    found = warnings(recipe(models, "linear", weight=weight, normalize=normalize))
    assert len(found) == (text is not None)
    for warning in found:
        assert_one_line(warning, "models[0].parameters.weight", str(text), "normalize is false")


CAUTIONS: list[tuple[str, dict[str, Any], str | None]] = [
    ("nuslerp", {"weight": [1, -1]}, "half-way"),
    ("nuslerp", {"weight": [1, 0]}, None),
    ("task_arithmetic", {"weight": [1, -1], "normalize": True}, "not normalised"),
    ("task_arithmetic", {"weight": [1, -1]}, None),
    ("task_arithmetic", {"weight": [1, 1], "normalize": True}, None),
    ("dare_linear", {"weight": [1, -1], "normalize": True}, "not normalised"),
    ("della", {"density": 0.9}, "epsilon 0.15 is narrowed to 0.1"),
    ("della", {"density": 0.85}, None),
    ("della", {"density": 1.0}, None),
    ("della_linear", {"density": 0.3, "epsilon": 0.4}, "epsilon 0.4 is narrowed to 0.3"),
    ("breadcrumbs", {"density": 0.9, "gamma": 0.2}, "dropped is 0.1"),
    ("breadcrumbs", {"density": 0.9, "gamma": 0.1}, None),
    ("breadcrumbs_ties", {"density": 1.0, "gamma": 0.2}, None),
    ("consensus_ta", {"k": 3}, "k is 3, but there are 2 models"),
    ("consensus_ties", {"k": 2}, None),
]


@pytest.mark.parametrize(("method", "parameters", "text"), CAUTIONS)
def test_numbers_that_are_odd_together(
    models: Path, method: str, parameters: dict[str, Any], text: str | None
) -> None:
    found = warnings(recipe(models, method, **parameters))
    assert len(found) == (text is not None), found
    for warning in found:
        assert_one_line(warning, str(text))


@pytest.mark.parametrize("arithmetic", ["exact", "mergekit"])
@pytest.mark.parametrize("method", ["linear", "multislerp", "karcher"])
def test_a_sum_of_zero_is_refused_before_the_merge(
    models: Path, method: str, arithmetic: Any
) -> None:
    weight = [0, 0] if method == "karcher" else [1, -1]
    with pytest.raises(RecipeError) as error:
        planning.plan(recipe(models, method, weight=weight), arithmetic=arithmetic)
    assert_one_line(str(error.value), "add up to 0")


def test_python_has_the_same_ranges() -> None:
    import torch

    tensors = [torch.ones(4), torch.zeros(4)]
    with pytest.raises(RecipeError, match="density must be between 0 and 1, not 2"):
        merganser.merge_tensors(
            tensors, "ties", base=torch.ones(4), parameters={"weight": 1, "density": 2}
        )


@pytest.mark.parametrize(
    "ends", [(1, 0, 0, 1), (0, 1, 0.5, 1), (0, 1, 0, 0.5), (math.nan, 1, 0, 1)]
)
def test_a_range_has_its_ends_in_order(ends: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="a Range needs"):
        Range(*ends)


@pytest.mark.parametrize("place", ["model", "top"])
def test_a_parameter_in_the_wrong_place_is_an_error(
    models: Path, recipe_file: RecipeFile, place: str
) -> None:
    beside = "weight: 0.9, " if place == "model" else ""
    text = (
        f"merge_method: linear\nmodels:\n  - {{model: {models}/a, {beside}parameters: {{weight: 1}}}}\n"
        f"  - {{model: {models}/b, parameters: {{weight: 1}}}}\n"
    )
    text += "normalize: false\n" if place == "top" else ""
    file = recipe_file(text)
    with pytest.raises(RecipeError) as caught:
        planning.plan(file)
    line, name, home = {
        "model": (3, "models[0].weight", "models[0].parameters.weight"),
        "top": (5, "normalize", "parameters.normalize"),
    }[place]
    assert_one_line(str(caught.value), f"recipe.yml:{line}: {name}: ", f"write it as {home}")
    assert any("it is ignored" in text for text in warnings(file, strictness="lenient"))


@pytest.mark.parametrize("value", [True, "yes", False])
def test_a_truth_value_is_no_weight(models: Path, value: object) -> None:
    with pytest.raises(RecipeError, match=r"weight is a (number, not (true|false)|float)"):
        planning.plan(recipe(models, "linear", weight=[0.5, value]))
