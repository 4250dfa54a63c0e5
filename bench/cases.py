"""What is measured: one ``Case`` a line of the table. Add a case by adding it to a list here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Case:
    """One merge, done by each contestant."""

    name: str
    family: str
    """A family of ``checkpoints.py``."""

    inputs: tuple[str, ...]
    """The family's members that a merge reads; the floor reads the same."""

    recipe: dict[str, Any] | None = None
    """``"{a}"`` anywhere in it stands for the folder of the family's member ``a``."""

    sink: Literal["folder", "null"] = "folder"
    """Merges into ``null`` measure the engine's memory: no floor, no MergeKit."""

    script: tuple[str, ...] = ()
    """In place of ``merganser merge``: a script of this folder and its arguments.

    It is run as ``python SCRIPT ARGUMENTS... OUT``, where a member's folder and ``"{out}"`` may
    stand in the arguments as they do in a recipe; with ``"{out}"`` in them, OUT is not appended.
    """

    outputs: int = 1
    """Models written in one run; the floor writes as many."""

    mergekit: bool = True
    """Whether MergeKit can do this at all."""

    mergekit_timeout_s: float = 900.0


# --- Merges into a folder: time against the floor and MergeKit -----------------------------------

_LINEAR: dict[str, Any] = {
    "merge_method": "linear",
    "models": [
        {"model": "{a}", "parameters": {"weight": 0.9}},
        {"model": "{b}", "parameters": {"weight": 0.1}},
    ],
    "parameters": {"normalize": True},
    "dtype": "bfloat16",
}

MERGES: list[Case] = [
    Case("linear", "qwen2-1.5b", ("a", "b"), _LINEAR),
    Case(
        "slerp",
        "qwen2-1.5b",
        ("base", "a"),
        {
            "merge_method": "slerp",
            "base_model": "{base}",
            "models": [{"model": "{base}"}, {"model": "{a}"}],
            "parameters": {"t": 0.3},
            "dtype": "bfloat16",
        },
    ),
    Case(
        "task_arithmetic",
        "qwen2-1.5b",
        ("base", "a", "b"),
        {
            "merge_method": "task_arithmetic",
            "base_model": "{base}",
            "models": [
                {"model": "{a}", "parameters": {"weight": 0.9}},
                {"model": "{b}", "parameters": {"weight": 0.1}},
            ],
            "dtype": "bfloat16",
        },
    ),
    Case(
        "passthrough",
        "qwen2-1.5b",
        ("a",),
        {"merge_method": "passthrough", "models": [{"model": "{a}"}], "dtype": "bfloat16"},
    ),
    Case("moe-20000", "moe-20000", ("a", "b"), _LINEAR, mergekit_timeout_s=200.0),
]

# --- Merges into nothing: memory against the size of the model -----------------------------------

MEMORY: list[Case] = [
    Case(f"memory-{family}", family, ("a", "b"), _LINEAR, sink="null", mergekit=False)
    # The 70B pair comes last: reading 282 GB of zeros empties the page cache of the others.
    for family in ("tiny-0.1b", "qwen2-1.5b", "sparse-70b")
]

# --- Scripts: uses of the Python API that one `merganser merge` cannot express -------------------
#
# For example nine weights in one pass, or a live re-blend, as a script of this folder:
#
#     Case("nine-weights", "qwen2-1.5b", ("a", "b"), script=("nine_weights.py", "{a}", "{b}"),
#          outputs=9, mergekit=False)

SCRIPTS: list[Case] = []

CASES: dict[str, Case] = {case.name: case for case in [*MERGES, *SCRIPTS, *MEMORY]}
