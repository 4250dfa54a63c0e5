"""Parity with MergeKit 0.1.5 over a grid: methods by parameters, dtypes, gradients, slices, heads.

Every axis's values meet each other, though not in every combination for every method. All that is not
random has MergeKit's bits; random methods do where nothing is dropped, and are compared in
distribution where something is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from peers import Tensors, Zoo, different_bits, load, mergekit, ours

pytestmark = pytest.mark.peer

Config = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A method and what is varied of it.

    Attributes:
        models: how many, the base included; each case takes the next number.
        based: whether the first is the base.
        each: parameters of each model, with their values for one case after the other.
        shared: parameters of all models alike.
    """

    models: tuple[int, ...] = (3, 2, 4)
    based: bool = True
    each: dict[str, Sequence[Any]] = field(default_factory=dict)
    shared: dict[str, Sequence[Any]] = field(default_factory=dict)


WEIGHT = {"weight": (0.3, 0.7, 1.1, -0.4, 0.55)}
TRIMMED = WEIGHT | {"density": (0.5, 0.2, 1.0, 0.83)}
SUM = {"normalize": (False, True), "lambda": (1.0, 0.7, 1.3)}
UNTRIMMED = WEIGHT | {"density": (1,)}

AXES: dict[str, Axis] = {
    "linear": Axis(based=False, each=WEIGHT, shared={"normalize": (True, False)}),
    "passthrough": Axis((1,), based=False, each={"scale": (0.3, 1.0, -0.5)}),
    "slerp": Axis((2,), shared={"t": (0.35, 0.0, 0.8, 1.0)}),
    "nuslerp": Axis(
        (2, 3),
        based=False,
        each=WEIGHT,
        shared={"nuslerp_flatten": (True, False), "nuslerp_row_wise": (False, False, True)},
    ),
    "multislerp": Axis(each=WEIGHT, shared={"normalize_weights": (True, False), "eps": (1e-8,)}),
    "karcher": Axis(based=False, shared={"max_iter": (10, 1, 3), "tol": (1e-5,)}),
    "task_arithmetic": Axis(each=WEIGHT, shared=SUM),
    "model_stock": Axis((3, 4), shared={"filter_wise": (False, True)}),
    "nearswap": Axis((2,), shared={"t": (0.001, 0.01, 1e-5)}),
    "ram": Axis(shared={"epsilon": (1e-5, 1e-3)}),
    "ramplus_tl": Axis(shared={"epsilon": (1e-5,), "r": (0.1, 0.9), "alpha": (0.2, 0.5)}),
    "arcee_fusion": Axis((2,)),
    "ties": Axis(each=TRIMMED, shared=SUM),
    "breadcrumbs": Axis(each=TRIMMED | {"gamma": (0.01, 0.1, 0.4)}, shared=SUM),
    "breadcrumbs_ties": Axis(each=TRIMMED | {"gamma": (0.05, 0.0)}, shared=SUM),
    "sce": Axis(shared={"select_topk": (0.5, 1.0, 0.1)}),
    "dare_linear": Axis(each=UNTRIMMED, shared=SUM),
    "dare_ties": Axis(each=UNTRIMMED, shared=SUM),
    "della": Axis(each=UNTRIMMED, shared=SUM),
    "della_linear": Axis(each=UNTRIMMED, shared=SUM),
}

DTYPES: list[tuple[tuple[str, ...], Config]] = [
    (("float32",), {}),
    (("bfloat16",), {}),
    (("bfloat16",), {"dtype": "float32", "out_dtype": "bfloat16"}),
    (("float32",), {"dtype": "bfloat16"}),
    (("float16",), {}),
    (("bfloat16", "float32"), {"dtype": "float32"}),
]
"""What models are stored in, and the recipe's dtypes."""

HEADS = [("tied",), ("untied",), ("tied", "untied")]
FORMS = ["models", "slices"]
SETTINGS = ["plain", "gradient", "filter"]
CASES = 3


def cases() -> Iterator[Any]:
    """Each method with steps along every axis that are coprime, so that all pairs come up."""
    for number, name in enumerate(AXES):
        for i in range(CASES):
            stored, keys = DTYPES[(i + number) % len(DTYPES)]
            setting = SETTINGS[(i + number) % len(SETTINGS)]
            form = FORMS[(i // 2 + number) % len(FORMS)]
            heads = HEADS[(i + i // 3) % len(HEADS)]
            text = "-".join([name, *stored, *map(str, keys.values()), setting, form, *heads])
            yield pytest.param(name, i, stored, keys, setting, form, heads, id=text)


def varied(value: Any, setting: str) -> Any:
    """A value as a recipe may give it: alone, as a gradient, or by filters."""
    if isinstance(value, bool | int):
        return (
            [{"filter": "mlp", "value": value}, {"value": value}] if setting != "plain" else value
        )
    if setting == "gradient":
        return [value, value / 2, value]
    if setting == "filter":
        return [
            {"filter": "mlp", "value": [value / 2, value]},
            {"filter": "norm", "value": value},
            {"value": value},
        ]
    return value


def recipe(name: str, i: int, folders: list[str], setting: str, form: str, keys: Config) -> Config:
    """The i-th recipe of a method."""
    axis = AXES[name]
    shared = {p: varied(v[i % len(v)], setting) for p, v in axis.shared.items()}
    based = axis.based or (name == "nuslerp" and len(folders) == 3)
    entries: list[Config] = []
    for number, folder in enumerate(folders):
        own = {p: varied(v[(i + number) % len(v)], setting) for p, v in axis.each.items()}
        is_base = based and number == 0
        entries.append({"model": folder} | ({} if is_base else {"parameters": own}))
    if name == "nuslerp" and not based:
        entries = entries[:2]
    config: Config = {"merge_method": name, "parameters": shared, **keys}
    if based:
        config["base_model"] = folders[0]
    if form == "models":
        return config | {"models": entries}
    cuts = [[0, 2], [1, 3], [2, 2]]
    slices = [{"sources": [entry | {"layer_range": cut} for entry in entries]} for cut in cuts]
    return config | {"slices": slices}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


def models(zoo: Zoo, count: int, stored: Sequence[str], heads: Sequence[str]) -> list[str]:
    """The first is the base, the others lie near; in turn of the dtypes and with or without a head."""
    return [
        zoo(
            "llama",
            i + 1,
            *stored,
            tie_word_embeddings=heads[i % len(heads)] == "tied",
            near=True,
            step=1e-3,
        )[i]
        for i in range(count)
    ]


@pytest.mark.parametrize(("name", "i", "stored", "keys", "setting", "form", "heads"), list(cases()))
def test_grid(
    zoo: Zoo,
    tmp_path: Path,
    name: str,
    i: int,
    stored: tuple[str, ...],
    keys: Config,
    setting: str,
    form: str,
    heads: tuple[str, ...],
) -> None:
    axis = AXES[name]
    folders = models(zoo, axis.models[i % len(axis.models)], stored, heads)
    config = recipe(name, i, folders, setting, form, keys)
    theirs = mergekit(config, tmp_path / "theirs")
    assert different_bits(ours(config, arithmetic="mergekit"), theirs) == {}


# -- random methods, in distribution ---------------------------------------------------------------


@pytest.mark.parametrize("density", [0.2, 0.7])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_keep_as_many_and_as_much(
    zoo: Zoo, tmp_path: Path, name: str, rescale: bool, density: float
) -> None:
    folders = models(zoo, 2, ["float32"], ["untied"])
    parameters = {"weight": 0.6, "density": density, "normalize": False, "rescale": rescale}
    if "della" in name:
        parameters["epsilon"] = 0.1
    config = {
        "merge_method": name,
        "base_model": folders[0],
        "models": [{"model": folders[1]}],
        "parameters": parameters,
    }
    theirs = kept(mergekit(config, tmp_path / "theirs", random_seed=3), folders)
    for arithmetic in ("exact", "mergekit"):
        mine = kept(ours(config, arithmetic=arithmetic, seed=3), folders)
        noise = 5 * math.sqrt(2 * density * (1 - density) / entries(folders))
        assert mine[0] == pytest.approx(density, abs=noise)
        assert mine[0] == pytest.approx(theirs[0], abs=noise)
        assert mine[1] == pytest.approx(theirs[1], rel=0.03)
        if rescale:
            assert mine[1] == pytest.approx(0.6, rel=1e-3)
        elif "della" in name:  # which keeps larger changes more often
            assert mine[1] > 0.6 * density * 1.02


def kept(made: Tensors, folders: list[str]) -> tuple[float, float]:
    """The share of the changed entries that still are, and the share of the change, by its L1 norm."""
    base, other = (load(folder) for folder in folders)
    names = [name for name, tensor in made.items() if tensor.dim() == 2]
    moved = torch.cat([(made[n].double() - base[n].double()).flatten() for n in names])
    change = torch.cat([(other[n].double() - base[n].double()).flatten() for n in names])
    there = moved.abs() > 0.05 * change.abs()
    return float(there.double().mean()), float(moved.abs().sum() / change.abs().sum())


def entries(folders: list[str]) -> int:
    return sum(t.numel() for t in load(folders[0]).values() if t.dim() == 2)
