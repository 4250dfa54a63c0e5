"""Write ``docs/differences.md``: where results differ from MergeKit's on purpose, measured on both.

Needs MergeKit 0.1.5, which the development group has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import merganser

TARGET = Path(__file__).parent / "differences.md"

HEADER = """# Differences from MergeKit

`make docs` writes this page: `docs/differences.py` gives MergeKit 0.1.5 and Merganser the same tensors
and records both results. The last column is the default, `--arithmetic exact`. `--arithmetic mergekit`
gives MergeKit's result with the same bits. Random methods have the same distribution instead, and
`arcee_fusion` draws another sample for tensors of over a million elements.
"""

FOOTER = """
## Not measured here

- MergeKit writes only the tensors that its definition of the architecture names, and only the modules
  that `modules:` names. Others vanish without a warning. Merganser merges every input tensor, copies it
  from the donor, or names it in a warning.
- Without `base_model`, MergeKit copies config and tokenizer from a model that changes from run to run.
  Merganser copies them from the first one.
- MergeKit's draws (`dare`, `della`) come from one generator, in the order in which tensors happen to be
  processed. In Merganser they depend on seed, tensor, model and element alone, so threads and other
  tensors change nothing.
- `rescale: true` restores the L1 norm that all changes had, as in MergeKit. The DARE paper divides by
  the density: `rescale: dare`.
- MergeKit does not have `consensus_ta`, `consensus_ties`, `relex`, weights of `karcher` or `rescale: dare`;
  its arithmetic computes them with the same formulas.
"""


class Difference(NamedTuple):
    """One section of the page: what is measured, what MergeKit gives, and what we give."""

    title: str
    text: str
    measured: str
    theirs: str
    ours: str


Merge = Callable[..., torch.Tensor]
Parameters = Mapping[str, Any]


def mergekit(
    name: str, tensors: Sequence[torch.Tensor], base: torch.Tensor | None = None, **given: Any
) -> torch.Tensor:
    """MergeKit's result; lists are one number a model."""
    from mergekit.merge_methods import merge_tensors

    ids = [f"model {i}" for i in range(len(tensors))]
    dtype = given.pop("dtype", None)
    parameters = {
        key: dict(zip(ids, value, strict=True)) if isinstance(value, list) else value
        for key, value in given.items()
    }
    merged: torch.Tensor = merge_tensors(
        [*([] if base is None else [base]), *tensors],
        name,
        parameters=parameters,
        ids=[*([] if base is None else ["base"]), *ids],
        base_index=None if base is None else 0,
        dtype=dtype,
    )
    return merged


def exact(
    name: str, tensors: Sequence[torch.Tensor], base: torch.Tensor | None = None, **given: Any
) -> torch.Tensor:
    """Our result."""
    dtype = given.pop("dtype", None)
    options = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    return merganser.merge_tensors(list(tensors), name, base=base, parameters=given, **options)


def both(measure: Callable[[Merge], object]) -> tuple[str, str]:
    """What is measured of MergeKit, and of ours; an error by its kind."""
    found = []
    for merge in (mergekit, exact):
        try:
            found.append(str(measure(merge)))
        except Exception as error:
            found.append(f"fails: {type(error).__name__}")
    return found[0], found[1]


def differences() -> list[Difference]:
    """All sections, in the order of the page."""
    return [
        Difference(title, text, measured, *both(measure))
        for title, text, measured, measure in _SECTIONS
    ]


def _models(count: int, step: float, shape: tuple[int, ...] = (256, 256)) -> list[torch.Tensor]:
    """float32: a base and models near it."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(shape, generator=generator)
    return [
        base,
        *(base + step * torch.randn(shape, generator=generator) for _ in range(count - 1)),
    ]


def _wrong(merged: torch.Tensor, wanted: torch.Tensor) -> str:
    """Share of the entries that are not the float64 result, rounded."""
    return f"{float((merged != wanted.to(merged.dtype)).double().mean()):.0%}"


def _along(merged: torch.Tensor, base: torch.Tensor, change: torch.Tensor) -> str:
    """How much of a change is in a result."""
    moved = (merged.double() - base.double()).flatten()
    return f"{float(moved @ change.double().flatten() / change.double().norm() ** 2):.2f}"


def _rounding_sums(merge: Merge) -> str:
    base, *models = (tensor.bfloat16() for tensor in _models(3, 1e-3))
    merged = merge("task_arithmetic", models, base, weight=[0.3, 0.7])
    x = [tensor.double() for tensor in (base, *models)]
    return _wrong(merged, x[0] + 0.3 * (x[1] - x[0]) + 0.7 * (x[2] - x[0]))


def _rounding_inputs(merge: Merge) -> str:
    first, second = _models(2, 1e-4)
    merged = merge("linear", [first, second], weight=[0.3, 0.7], dtype=torch.bfloat16)
    return _wrong(merged, 0.3 * first.double() + 0.7 * second.double())


def _rounding_weights(merge: Merge) -> str:
    zero, one = torch.zeros(8).bfloat16(), torch.full((8,), 256.0).bfloat16()
    merged = merge("task_arithmetic", [one] * 3, zero, weight=[0.3, 0.3, 0.3])
    return f"{float(merged[0]) / 256:.5f}"


def _sce_threshold(merge: Merge) -> str:
    """Where the models changed different entries, the result shows their weights."""
    base = torch.zeros(1000)
    changes = torch.zeros(2, 1000)
    changes[0], changes[1] = 4e-4, 2e-4
    merged = merge("sce", list(changes), base)
    share = (float(merged[0]) - 2e-4) / 2e-4
    return f"{share:.2f} and {1 - share:.2f}"


def _model_stock_clamp(merge: Merge) -> str:
    base, change = torch.zeros(16), torch.full((16,), 1e-4)
    return _along(merge("model_stock", [change, change], base), base, change)


def _della_epsilon(merge: Merge) -> str:
    torch.manual_seed(0)
    ones = torch.ones(500, 100)
    merged = merge("della", [ones], torch.zeros_like(ones), weight=[1.0], density=[0.9])
    return f"keeps {float((merged != 0).double().mean()):.2f}"


def _della_columns(merge: Merge) -> str:
    torch.manual_seed(0)
    ones = torch.ones(50_000, 1)
    merged = merge("della", [ones], torch.zeros_like(ones), weight=[1.0], density=[0.5])
    return f"keeps {float((merged != 0).double().mean()):.2f}"


def _multislerp_frozen(merge: Merge) -> str:
    [base] = _models(1, 0)
    merged = merge("multislerp", [base, base, base], base, weight=[1.0, 1.0, 1.0])
    return "is the base" if torch.equal(merged, base) else "is not the base"


def _karcher_small(merge: Merge) -> str:
    small = torch.full((16,), 1e-6)
    return f"{float(merge('karcher', [small, small])[0]):.0e}"


def _dtype(name: str) -> Callable[[Merge], str]:
    def measure(merge: Merge) -> str:
        base, other = (tensor.bfloat16() for tensor in _models(2, 1e-2))
        return str(merge(name, [other], base).dtype).removeprefix("torch.")

    return measure


def _nuslerp_rows(merge: Merge) -> str:
    """Of rows of length 1, turned row by row, the lengths."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 20, 30, generator=generator)
    first, second = rows / rows.norm(dim=-1, keepdim=True)
    merged = merge(
        "nuslerp",
        [first, second],
        weight=[0.5, 0.5],
        nuslerp_flatten=False,
        nuslerp_row_wise=True,
    )
    lengths = merged.norm(dim=-1)
    return f"{float(lengths.min()):.2f} to {float(lengths.max()):.2f}"


def _arcee_sample(merge: Merge) -> str:
    base, other = _models(2, 1e-2, (1100, 1000))
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        runs.append(merge("arcee_fusion", [other], base))
    return "differ" if bool((runs[0] != runs[1]).any()) else "are equal"


def _ties_equal(merge: Merge) -> str:
    ones = torch.ones(40)
    merged = merge("ties", [ones], torch.zeros(40), weight=[1.0], density=[0.1])
    return "the first" if bool(merged[:4].all()) else "others"


def _nearswap_clamp(merge: Merge) -> str:
    base, other = torch.zeros(1), torch.full((1,), 2e-7)
    return _along(merge("nearswap", [other], base, t=5e-7), base, other)


def _linear_zero(merge: Merge) -> str:
    return str(merge("linear", [torch.ones(1), torch.ones(1)], weight=[1.0, -1.0]).tolist()[0])


_SECTIONS: list[tuple[str, str, str, Callable[[Merge], object]]] = [
    (
        "Sums are rounded once",
        "MergeKit computes all methods but `linear` and `slerp` in the inputs' dtype and rounds every step.",
        "elements of a `task_arithmetic` of bfloat16 models that differ from the rounded float64 result",
        _rounding_sums,
    ),
    (
        "Weights are not rounded",
        "MergeKit rounds a weight of 0.3 to 0.30078 between bfloat16 models.",
        "0.3 of each of three equal changes",
        _rounding_weights,
    ),
    (
        "`dtype` does not round the inputs",
        "MergeKit casts inputs to `dtype` as it loads them. In Merganser `dtype` is the dtype of the result.",
        "elements of a `linear` of float32 models to bfloat16 that differ from the rounded float64 result",
        _rounding_inputs,
    ),
    (
        "`sce` computes weights from small changes too",
        "If the mean squares of the changes add up to less than 1e-6, as after a light fine-tune, MergeKit uses "
        "equal weights.",
        "weights of changes of 4e-4 and 2e-4, whose squares have the ratio 0.8 to 0.2",
        _sce_threshold,
    ),
    (
        "`model_stock` measures angles between small changes too",
        "MergeKit takes products of lengths below 1e-6 for 1e-6, so that small changes seem less alike than they "
        "are.",
        "share that is applied of two equal changes of length 4e-4; it should be 1",
        _model_stock_clamp,
    ),
    (
        "`della` accepts any density",
        "MergeKit refuses densities that do not leave room for `epsilon`, 0.15 by default, on both sides. Here "
        "`epsilon` is reduced.",
        "density 0.9 with the default `epsilon`",
        _della_epsilon,
    ),
    (
        "`della` accepts columns of one element",
        "MergeKit divides 0 by 0 if a row has one element.",
        "density 0.5 of a tensor of shape (50000, 1)",
        _della_columns,
    ),
    (
        "`multislerp` accepts frozen tensors",
        "With three models or more, MergeKit stops at a tensor that no model changed.",
        "three copies of the base",
        _multislerp_frozen,
    ),
    (
        "`karcher` preserves short tensors",
        "MergeKit assigns no direction to inputs no longer than `tol`, 1e-5, and sets their mean to zero.",
        "mean of two tensors of 16 elements of 1e-6",
        _karcher_small,
    ),
    (
        "`arcee_fusion` preserves the dtype",
        "MergeKit's mask is float32, and so is the file unless `out_dtype` is set; `config.json` says otherwise.",
        "dtype of the result of bfloat16 models",
        _dtype("arcee_fusion"),
    ),
    (
        "`ramplus_tl` preserves the dtype",
        "As `arcee_fusion`.",
        "dtype of the result of bfloat16 models",
        _dtype("ramplus_tl"),
    ),
    (
        "`nuslerp_row_wise` means rows",
        "With `nuslerp_flatten: false` MergeKit confuses rows and columns.",
        "lengths of the rows between rows of length 1, turned by `nuslerp_row_wise: true`",
        _nuslerp_rows,
    ),
    (
        "`arcee_fusion` is not random",
        "MergeKit estimates the quartiles of tensors of over a million elements from a random sample.",
        "two runs with different seeds",
        _arcee_sample,
    ),
    (
        "Of equal changes the first survive",
        "Where several changes have the magnitude at the cut of `ties` or `breadcrumbs`, MergeKit keeps those that "
        "its sort happens to leave in front.",
        "which of 40 equal changes survive at density 0.1",
        _ties_equal,
    ),
    (
        "`nearswap` has no smallest distance",
        "MergeKit takes distances below 1e-6 for 1e-6, so models nearer than `t` are not always swapped completely.",
        "share that is applied of a distance of 2e-7 at `t: 5e-7`; it should be 1",
        _nearswap_clamp,
    ),
    (
        "Weights that cancel are an error",
        "MergeKit divides by their sum.",
        "`linear` with weights 1 and -1",
        _linear_zero,
    ),
]


def page() -> str:
    """The whole page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sections = [section(difference) for difference in differences()]
    return "\n".join([HEADER, *sections]) + FOOTER


def section(difference: Difference) -> str:
    """One difference."""
    return (
        f"## {difference.title}\n\n{difference.text}\n\n"
        f"| measured | MergeKit 0.1.5 | Merganser |\n|---|---|---|\n"
        f"| {difference.measured} | {difference.theirs} | {difference.ours} |\n"
    )


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
