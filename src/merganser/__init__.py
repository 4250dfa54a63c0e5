"""Merganser merges language-model checkpoints.

The whole public API, each name imported when it is first used:

* ``merge(config, out)``: a recipe in, a model folder out. ``plan(config)`` decides the same
  without reading weights, ``verify(folder)`` checks it afterwards. ``merge_all(file, out)`` takes
  files with several recipes that build on each other, ``sweep(file, out)`` files of many merges,
  ``evaluate_sweep(file, out)`` those that say how they are scored, and ``search(file, out)`` files of ranges.
* ``convert(model, out)``: any model that can be read, as a model folder.
* ``merge_state_dicts(models, method)``, ``merge_tensors(tensors, method)``: the same in memory.
* ``blend(module, plan)``: a merge into a live model. ``run(plans, sinks)``: many merges in one pass.
* ``load_recipe(config)``, ``open_checkpoint(folder)``: the parts.
* ``merge_method``: the decorator that adds a method; ``Combination``, ``Gram``, ``PerModel``,
  ``Range`` and ``Weight`` are for its signature.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from merganser.openmp import wait_passively

__version__ = "0.1.0"

_HOMES = {
    "merge": "merganser.merging",
    "merge_all": "merganser.chain",
    "convert": "merganser.merging",
    "plan": "merganser.planning",
    "sweep": "merganser.study.sweep",
    "evaluate_sweep": "merganser.study.evaluating",
    "search": "merganser.study.search",
    "verify": "merganser.merging",
    "merge_state_dicts": "merganser.merging",
    "merge_tensors": "merganser.merging",
    "blend": "merganser.merging",
    "MergeResult": "merganser.merging",
    "run": "merganser.engine",
    "Plan": "merganser.planning",
    "Recipe": "merganser.recipe",
    "load_recipe": "merganser.recipe:load",
    "open_checkpoint": "merganser.checkpoints",
    "merge_method": "merganser.methods",
    "Combination": "merganser.methods",
    "Gram": "merganser.methods",
    "PerModel": "merganser.methods",
    "Range": "merganser.methods",
    "SparseDeltas": "merganser.methods",
    "Weight": "merganser.methods",
    "MerganserError": "merganser.errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from merganser.chain import merge_all
    from merganser.checkpoints import open_checkpoint
    from merganser.engine import run
    from merganser.errors import MerganserError
    from merganser.merging import (
        MergeResult,
        blend,
        convert,
        merge,
        merge_state_dicts,
        merge_tensors,
        verify,
    )
    from merganser.methods import (
        Combination,
        Gram,
        PerModel,
        Range,
        SparseDeltas,
        Weight,
        merge_method,
    )
    from merganser.planning import Plan, plan
    from merganser.recipe import Recipe
    from merganser.recipe import load as load_recipe
    from merganser.study.evaluating import evaluate_sweep
    from merganser.study.search import search
    from merganser.study.sweep import sweep


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'merganser' has no attribute {name!r}")
    wait_passively()
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
