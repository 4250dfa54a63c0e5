"""Methods of one's own: what their declarations say, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from merganser import Combination, SparseDeltas, Weight, merge_method, methods
from merganser.errors import RecipeError
from merganser.methods import registry


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' methods are gone afterwards."""
    methods.names()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))


def registered(function: Callable[..., Any], **claims: Any) -> methods.Method:
    merge_method("mine", **claims)(function)
    method = methods.get("mine")
    assert method is not None
    return method


def without(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A method without a base."""
    return tensors[0]


def required(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    """A method that always has a base."""
    return base + (tensors[0] - base)


def optional(tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
    """A method that may have a base."""
    return tensors[0] if base is None else base


def sparse(*, weight: Weight) -> SparseDeltas:
    """All changes."""
    return SparseDeltas(tuple(weight), ())


def combination(*, weight: Weight) -> Combination:
    """A weighted sum."""
    return Combination(tuple(weight))


@pytest.mark.parametrize(
    ("function", "base"),
    [
        (without, "none"),
        (required, "required"),
        (optional, "optional"),
        (sparse, "required"),
        (combination, "none"),
    ],
)
def test_the_signature_says_whether_there_is_a_base(
    function: Callable[..., Any], base: str
) -> None:
    assert registered(function).base == base


@pytest.mark.parametrize(
    ("function", "claims", "message"),
    [
        (without, {"base": "required"}, "no parameter base"),
        (required, {"base": "none"}, "never None"),
        (sparse, {"base": "none"}, "SparseDeltas"),
        (combination, {"elementwise": True}, "returns a tensor"),
        (without, {"measure": without}, "facts"),
    ],
)
def test_claims_that_contradict_the_signature_are_refused(
    function: Callable[..., Any], claims: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        merge_method("mine", **claims)(function)
    assert methods.get("mine") is None


def test_a_method_takes_whole_tensors_unless_it_says_that_it_is_elementwise() -> None:
    assert registered(without).whole
    assert not registered(without, elementwise=True, replace=True).whole


def test_a_name_that_is_taken_is_refused() -> None:
    linear = methods.get("linear")
    with pytest.raises(ValueError, match=r"'linear' already, Merganser's own.*replace=True"):
        merge_method("linear")(combination)
    assert methods.get("linear") is linear
    merge_method("linear", replace=True)(combination)
    replaced = methods.get("linear", "mergekit")
    assert replaced is not None
    assert replaced.function is combination  # and not the variant of the method that it replaces


def test_a_function_may_be_defined_again() -> None:
    """A cell of a notebook is run more than once."""
    registered(combination)
    registered(combination)
    with pytest.raises(ValueError, match=r"from .*test_own_methods.py"):
        registered(sparse)


FILE = '''
from __future__ import annotations
from dataclasses import dataclass
from merganser import Combination, Weight, merge_method

@dataclass
class Half:
    share: float = 0.5

@merge_method("NAME")
def halves(*, weight: Weight) -> Combination:
    """Halves."""
    return Combination(tuple(Half().share * w for w in weight))
'''


def test_a_file_of_methods_is_known_by_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(FILE.replace("NAME", "mine"))
    methods.load_file(file)
    methods.load_file(file)
    method = methods.get("mine")
    assert method is not None
    assert method.origin == methods.Origin(str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    assert methods.describe(method)["sha256"] == method.origin.digest
    other = tmp_path / "other" / "own.py"
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    with pytest.raises(RecipeError, match=r"other.own\.py: .*'mine' already, from .*replace=True"):
        methods.load_file(other)


def test_built_in_methods_have_no_origin() -> None:
    assert all(method.origin is None for method in registry._registry.values())
