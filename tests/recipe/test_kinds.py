"""Reading values by their kinds: what is taken, what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from merganser import recipe
from merganser.recipe.kinds import Either, Fault, Flag, Integer, Kind, ListOf, OneOf, Pair, Text

HALVES = Integer(minimum=0, maximum=10)


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (Flag(), "yes", True),
        (Flag(), "OFF", False),
        (Flag(), 1.0, True),
        (HALVES, " 7 ", 7),
        (HALVES, "1_0", 10),
        (HALVES, "3.0", 3),
        (HALVES, 4.0, 4),
        (HALVES, True, 1),
        (Pair(HALVES), [1, 2], (1, 2)),
        (ListOf(Text()), ("a", "b"), ["a", "b"]),
        (Either(OneOf(("a", "b")), HALVES), "3", 3),
    ],
)
def test_what_is_taken(kind: Kind, value: Any, wanted: Any) -> None:
    faults: list[Fault] = []
    found = kind.read(value, (), faults)
    assert not faults
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Flag(), "maybe", "valid boolean, unable to interpret input"),
        (Flag(), 3.5, "valid boolean"),
        (HALVES, -1, "greater than or equal to 0"),
        (HALVES, 11, "less than or equal to 10"),
        (HALVES, 2.5, "a number with a fractional part"),
        (HALVES, float("inf"), "a finite number"),
        (HALVES, "seven", "unable to parse string as an integer"),
        (HALVES, "1" * 5000, "exceeded maximum size"),
        (HALVES, None, "a valid integer"),
        (Pair(HALVES), [1, 2, 3], "at most 2 items after validation, not 3"),
        (Pair(HALVES), [1], "Field required"),
        (ListOf(Text()), [], "at least 1 item"),
        (OneOf(("a", "b", "c")), "d", "'a', 'b' or 'c'"),
        (Either(OneOf(("a", "b")), HALVES), "c", "'a' or 'b'"),
    ],
)
def test_what_is_refused(kind: Kind, value: Any, message: str) -> None:
    faults: list[Fault] = []
    kind.read(value, ("key",), faults)
    assert message in faults[0].msg
    assert faults[0].loc[0] == "key"


def test_a_recipe_in_python_is_the_recipe_that_was_read() -> None:
    written = {
        "merge_method": "ties",
        "models": [
            {"model": "a", "parameters": {"weight": 0.3}},
            {"model": "b@main+c", "parameters": {"weight": [0.1, 0.9]}},
        ],
        "base_model": "base",
        "parameters": {
            "density": [{"filter": "mlp", "value": 0.5}, {"filter": None, "value": 1.0}]
        },
        "tokenizer": {"tokens": {"<s>": {"source": "a", "force": True}}},
        "seed": 3,
    }
    read = recipe.load(written).recipe
    again = recipe.load(read)
    assert again.recipe is read
    assert again.data == written
    assert recipe.load(again.data).recipe == read
