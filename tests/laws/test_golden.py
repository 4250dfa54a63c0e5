"""The very bytes of merges of fixed inputs: they may not change from one version or machine to the next.

Only methods whose coefficients need no measuring: every operation on the way is exactly rounded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import merganser

SHAPES = {"a.weight": (37, 91), "b.weight": (70000,), "c.bias": (3,), "d.scale": ()}


def fixed_models(folder: Path) -> list[str]:
    """Numbers of ordinary sizes from integer arithmetic alone, so that they are the same everywhere."""
    names = []
    state = 12345
    for model in range(3):
        tensors = {}
        for name, shape in SHAPES.items():
            count = int(np.prod(shape, dtype=np.int64))
            bits = np.empty(count, np.uint16)
            for i in range(count):
                state = (state * 1103515245 + 12345) % 2**31
                sign, exponent, mantissa = state >> 30, 118 + (state >> 8) % 8, (state >> 16) % 128
                bits[i] = sign << 15 | exponent << 7 | mantissa
            tensors[name] = (
                torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).reshape(shape)
            )
        path = folder / f"model{model}"
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
        names.append(str(path))
    return names


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return fixed_models(tmp_path_factory.mktemp("golden"))


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "linear": (
        {"merge_method": "linear", "weights": [0.9, 0.1]},
        "7988817dc77de631",
    ),
    "linear of three, not normalised": (
        {"merge_method": "linear", "weights": [0.5, 0.4, 0.3], "parameters": {"normalize": False}},
        "085a6beb16081fcf",
    ),
    "linear to float16": (
        {"merge_method": "linear", "weights": [0.7, 0.3], "out_dtype": "float16"},
        "4be06bd876222b8e",
    ),
    "linear to float32": (
        {"merge_method": "linear", "weights": [0.7, 0.3], "out_dtype": "float32"},
        "387f8694eccd640a",
    ),
    "linear, stochastic": (
        {"merge_method": "linear", "weights": [0.9, 0.1], "rounding": "stochastic", "seed": 7},
        "1d990c903dd152f2",
    ),
    "linear, MergeKit's arithmetic": (
        {"merge_method": "linear", "weights": [0.9, 0.1], "arithmetic": "mergekit"},
        "7988817dc77de631",
    ),
    "task arithmetic": (
        {"merge_method": "task_arithmetic", "weights": [None, 0.6, 0.5], "parameters": {"lambda": 0.8}},
        "a52bd301c5c284b6",
    ),
    "passthrough, scaled": (
        {"merge_method": "passthrough", "parameters": {"scale": 0.3}, "weights": [None]},
        "23800d79e843f387",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_what_they_were(case: str, models: list[str], tmp_path: Path) -> None:
    recipe, expected = CASES[case]
    recipe = dict(recipe)
    weights = recipe.pop("weights")
    recipe["models"] = [
        {"model": model, "parameters": {} if weight is None else {"weight": weight}}
        for model, weight in zip(models, weights, strict=False)
    ]
    if recipe["merge_method"] == "task_arithmetic":
        recipe["base_model"] = models[0]
    merganser.merge({"dtype": "bfloat16", **recipe}, tmp_path / "out", threads=3)
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == expected
