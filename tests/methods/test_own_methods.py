"""Methods of one's own: what their declarations say, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import merganser
from checkpoints_on_disk import make_model
from command_line import commands
from merganser import Combination, SparseDeltas, Weight, merge_method, methods
from merganser.cli import main
from merganser.errors import MerganserError, RecipeError
from merganser.methods import registry
from messages import assert_one_line


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


def no_types(tensors, *, scale=1.0):  # type: ignore[no-untyped-def]
    """A parameter without a type."""
    return tensors[0] * scale


def unknown_type(tensors: Sequence[torch.Tensor], *, scale: Nowhere = 1.0) -> torch.Tensor:  # type: ignore[name-defined]  # noqa: F821
    """A type that is not imported."""
    return tensors[0] * scale


def anything(*tensors: torch.Tensor) -> torch.Tensor:
    """Any number of arguments."""
    return tensors[0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_types, "parameter scale has no type"),
        (unknown_type, "annotations cannot be read .*'Nowhere'"),
        (anything, "a recipe's parameters are keyword-only"),
        (partial(without), "a plain function, not partial"),
    ],
)
def test_a_signature_that_says_too_little_is_refused(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        merge_method("mine")(function)
    assert_one_line(str(caught.value))


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
    assert all(method.origin is None for method in registry.registered())


# -- what a method's code does ---------------------------------------------------------------------


def unit_length(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A method that needs the whole tensor."""
    return tensors[0] / tensors[0].norm()


def running_sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A method whose result depends on the place."""
    return tensors[0].flatten().cumsum(0).reshape(tensors[0].shape)


def top_half(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A method that finds a threshold."""
    return torch.where(tensors[0] >= tensors[0].median(), tensors[0], 0.0)


def honest(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """An elementwise method, with functions that torch computes in vectors."""
    return (tensors[0].exp() - tensors[0].sin()).sigmoid()


@pytest.mark.parametrize("function", [unit_length, running_sum, top_half])
def test_a_method_that_claims_to_be_elementwise_and_is_not_is_caught(
    function: Callable[..., Any],
) -> None:
    tensor = torch.randn(300, 301, generator=torch.Generator().manual_seed(0))
    merge_method("mine", elementwise=True)(function)
    with pytest.raises(MerganserError, match="mine says elementwise=True") as caught:
        merganser.merge_tensors([tensor], "mine")
    assert_one_line(str(caught.value))
    merge_method("mine")(function)
    merged = merganser.merge_tensors([tensor], "mine", dtype="float64")
    torch.testing.assert_close(merged, function([tensor.double()]), rtol=1e-12, atol=1e-12)


def test_a_method_that_is_elementwise_passes() -> None:
    merge_method("mine", elementwise=True)(honest)
    tensor = torch.randn(300, 301, generator=torch.Generator().manual_seed(0))
    tensor[0, 0], tensor[0, 1] = torch.nan, torch.inf
    merged = merganser.merge_tensors([tensor], "mine", dtype="float64")
    torch.testing.assert_close(merged, honest([tensor.double()]), equal_nan=True)


def wrong_shape(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A sum that forgets the shape."""
    return tensors[0].sum()


def broken(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """An index that is not there."""
    return tensors[7]


def no_tensor(tensors: Sequence[torch.Tensor]) -> Any:
    """A number in place of a tensor."""
    return 1.0


def too_many(*, weight: Weight) -> Combination:
    """A coefficient too many."""
    return Combination((*weight, 1.0))


def too_many_by_gram(gram: Any, *, weight: Weight) -> Combination:
    """A coefficient too many, known when the tensor has been read."""
    return Combination((*weight, 1.0))


def no_combination(*, weight: Weight) -> Combination:
    """A list in place of a combination."""
    return list(weight)  # type: ignore[return-value]


def too_few(*, weight: Weight) -> SparseDeltas:
    """Sparse deltas without the last model."""
    return SparseDeltas(tuple(weight)[:-1], ())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (wrong_shape, r"returned a tensor of shape \[\] for inputs of shape \[2, 3\]"),
        (broken, r"IndexError: .* \(test_own_methods.py:\d+\)"),
        (no_tensor, "returned float, and not a tensor"),
        (too_many, "returned 3 coefficients for 2 inputs"),
        (too_many_by_gram, "returned 3 coefficients for 2 inputs"),
        (no_combination, "returned list, and not the Combination"),
        (too_few, "returned SparseDeltas with 1 weights for 2 models"),
    ],
)
def test_a_fault_in_a_methods_code_is_one_line(function: Callable[..., Any], message: str) -> None:
    method = registered(function)
    tensors = [torch.ones(2, 3), torch.ones(2, 3)]
    with pytest.raises(MerganserError, match=f"mine, tensor 'tensor': {message}") as caught:
        merganser.merge_tensors(
            tensors,
            "mine",
            base=tensors[0] if method.base == "required" else None,
            parameters={"weight": [0.5, 0.5]} if method.parameters else {},
        )
    assert_one_line(str(caught.value))


# -- from the file to the card ---------------------------------------------------------------------

OWN = '''
from merganser import Combination, Weight, merge_method

@merge_method("mine", title="Mine", paper="2203.05482")
def mine(*, weight: Weight) -> Combination:
    """The weighted sum of all models."""
    return Combination(tuple(weight))
'''

RECIPE = """
merge_method: mine
models: [{model: ./a}, {model: ./b}]
parameters: {weight: 0.5}
"""


def forget() -> None:
    for key in [key for key in registry._registry if key[0] == "mine"]:
        del registry._registry[key]


def run(*arguments: str | Path, code: int = 0) -> Result:
    """Run a command in a process that has not loaded the methods of another command."""
    forget()
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, a recipe, and the file of its method."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        make_model(tmp_path / name, seed=seed)
    (tmp_path / "recipe.yml").write_text(RECIPE)
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


@pytest.mark.parametrize("public", [[], ["--public"]])
def test_manifest_and_card_say_where_the_method_comes_from(place: Path, public: list[str]) -> None:
    run("merge", "recipe.yml", "OUT", "--methods", "mine.py", *public)
    digest = hashlib.sha256((place / "mine.py").read_bytes()).hexdigest()
    manifest = json.loads((place / "OUT" / "merge_manifest.json").read_text())
    assert manifest["method_source"] == {
        "file": "mine.py",
        "sha256": digest,
        "package": None,
        "title": "Mine",
        "paper": "2203.05482",
    }
    card = (place / "OUT" / "README.md").read_text()
    assert "merganser merge mergekit_config.yml OUT --methods mine.py\n" in card
    assert (
        f"The method `mine` is not built into Merganser: it comes from `mine.py`, sha256 `{digest}`"
        in card
    )
    forget()
    run("card", "OUT")
    assert "[Mine](https://arxiv.org/abs/2203.05482)" in (place / "OUT" / "README.md").read_text()


def test_a_chain_names_the_methods_of_all_its_merges(place: Path) -> None:
    last = "---\nmerge_method: linear\nmodels: [{model: first}, {model: ./b}]\nparameters: {weight: 1}\n"
    (place / "chain.yml").write_text(f"name: first\n{RECIPE.strip()}\n{last}")
    run("merge", "chain.yml", "OUT", "--methods", "mine.py")
    card = (place / "OUT" / "README.md").read_text()
    assert "merganser merge mergekit_config.yml OUT --methods mine.py\n" in card
    assert "The method `mine` is not built into Merganser: it comes from `mine.py`" in card
    assert "--methods mine.py" in run("verify", "OUT", "--recompute", code=2).stderr
    run("verify", "OUT", "--recompute", "--methods", "mine.py")


def test_a_built_in_method_has_no_source(place: Path) -> None:
    (place / "recipe.yml").write_text(RECIPE.replace("mine", "linear"))
    run("merge", "recipe.yml", "OUT")
    assert json.loads((place / "OUT" / "merge_manifest.json").read_text())["method_source"] is None
    assert "not built into" not in (place / "OUT" / "README.md").read_text()


def test_a_merge_by_a_method_of_ones_own_is_verified(place: Path) -> None:
    run("merge", "recipe.yml", "OUT", "--methods", "mine.py")
    run("verify", "OUT")
    told = run("verify", "OUT", "--recompute", code=2).stderr
    assert "OUT: was merged by the method 'mine' of mine.py" in told
    assert "--methods mine.py" in told
    run("verify", "OUT", "--recompute", "--methods", "mine.py")
    (place / "mine.py").write_text(OWN.replace("tuple(weight)", "tuple(2 * w for w in weight)"))
    told = run("verify", "OUT", "--recompute", "--methods", "mine.py", code=3).stderr
    assert "the method 'mine' is not the one that merged" in told


def test_other_code_is_another_plan(place: Path) -> None:
    def digest() -> str:
        found = run("plan", "recipe.yml", "--methods", "mine.py", "--json").stdout
        return str(json.loads(found)["digest"])

    before = digest()
    assert digest() == before
    (place / "mine.py").write_text(OWN + "\n# another line\n")
    assert digest() != before


def test_a_recipe_and_a_point_of_a_sweep_are_compared_with_a_model(place: Path) -> None:
    run("merge", "recipe.yml", "OUT", "--methods", "mine.py")
    sweep = RECIPE.replace("0.5", '"{{ w }}"') + "sweep: {w: [0.5, 1.0]}\n"
    (place / "sweep.yml").write_text(sweep)
    for name in ("recipe.yml", "sweep.yml#w=0.5"):
        found = run("diff", name, "OUT", "--methods", "mine.py", "--json").stdout
        assert json.loads(found)["whole"]["changed"] == 0.0


def test_every_command_that_plans_takes_methods() -> None:
    planning = {"plan", "merge", "verify", "sweep", "search", "eval", "diff", "generate", "chat"}
    planning |= {"reproduce", "serve", "studio"}
    takes = {
        name
        for name, command in commands().items()
        if any("--methods" in option.opts for option in command.params)
    }
    assert takes == planning | {"methods"}
