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

    baseline: tuple[str, ...] = ()
    """Another way to do the same: a script of this folder and its arguments, as in ``script``."""

    written: str = ""
    """A family whose first member is as large as the output; empty for the inputs' own."""


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

# --- Four experts: what two more cost, against reading their bytes ---------------------------------


def _experts(name: str, method: str, experts: str) -> Case:
    density = {"density": 0.3} if method == "ties" else {}
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": [
            {"model": f"{{{expert}}}", "parameters": {"weight": 0.3, **density}}
            for expert in experts
        ],
        "dtype": "bfloat16",
    }
    if method == "ties":
        recipe["base_model"] = "{base}"
    members = ("base", *experts) if method == "ties" else tuple(experts)
    return Case(name, "qwen2-0.6b-five", members, recipe, mergekit=False)


FOUR: list[Case] = [
    _experts(f"{method}-{count}", method, experts)
    for method in ("linear", "ties")
    for count, experts in (("two", "ab"), ("four", "abcd"))
]

# --- Every method ----------------------------------------------------------------------------------

_WEIGHTS = {"a": {"weight": 0.9}, "b": {"weight": 0.1}}


def _method(
    name: str,
    *,
    experts: str = "ab",
    base: bool = True,
    weights: bool = True,
    mergekit: bool = True,
    per_model: dict[str, float] | None = None,
    **parameters: Any,
) -> Case:
    """A merge of the study's experts by one method."""
    models = [
        {
            "model": f"{{{expert}}}",
            "parameters": {**(_WEIGHTS[expert] if weights else {}), **(per_model or {})},
        }
        for expert in experts
    ]
    recipe: dict[str, Any] = {"merge_method": name, "models": models, "dtype": "bfloat16"}
    if base:
        recipe["base_model"] = "{base}"
    if parameters:
        recipe["parameters"] = parameters
    members = ("base", *experts) if base else tuple(experts)
    return Case(f"method-{name}", "qwen2-1.5b", members, recipe, mergekit=mergekit)


METHODS: list[Case] = [
    _method("linear", base=False),
    _method("slerp", experts="a", weights=False, t=0.3),
    _method("nuslerp", base=False),
    _method("multislerp"),
    _method("karcher", base=False, weights=False),
    _method("task_arithmetic"),
    _method("model_stock", weights=False),
    _method("ties", per_model={"density": 0.3}),
    _method("dare_linear", per_model={"density": 0.5}),
    _method("dare_ties", per_model={"density": 0.5}),
    _method("breadcrumbs", per_model={"density": 0.5, "gamma": 0.05}),
    _method("breadcrumbs_ties", per_model={"density": 0.5, "gamma": 0.05}),
    _method("della", per_model={"density": 0.5, "epsilon": 0.1}),
    _method("della_linear", per_model={"density": 0.5, "epsilon": 0.1}),
    _method("sce", weights=False, select_topk=0.5),
    _method("consensus_ta", mergekit=False),
    _method("consensus_ties", mergekit=False, per_model={"density": 0.3}),
    _method("ram", weights=False),
    _method("ramplus_tl", weights=False),
    _method("nearswap", experts="a", weights=False, t=1e-5),
    _method("arcee_fusion", experts="a", weights=False),
    _method("passthrough", experts="a", base=False, weights=False),
]
"""For ``bench/methods.py``: the table of all methods."""

# --- Training steps: float32 shards of 8 ranks to a folder in bfloat16 ----------------------------

_CONVERT: dict[str, Any] = {  # what `merganser convert` is
    "merge_method": "passthrough",
    "models": [{"model": "{a}"}],
    "dtype": "bfloat16",
}

SHARDS: list[Case] = [
    Case(
        f"{what}-{family}",
        family,
        inputs,
        recipe,
        mergekit=False,
        baseline=("verl_baseline.py", "{a}") if what == "convert" else (),
        written=written,
    )
    for family, written in (("fsdp-0.1b", "tiny-0.1b"), ("fsdp-1.5b", "qwen2-1.5b"))
    for what, inputs, recipe in (("convert", ("a",), _CONVERT), ("merge", ("a", "b"), _LINEAR))
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

CASES: dict[str, Case] = {case.name: case for case in [*MERGES, *FOUR, *SHARDS, *SCRIPTS, *MEMORY]}
"""What ``bench/run.py`` runs if nothing is asked for."""
