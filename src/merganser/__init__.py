"""Merganser merges language-model checkpoints.

This is the whole public API. A name is imported when it is first used; ``help(merganser.merge)``
explains one. docs/python.md has examples.

Merge:
    merge(config, out)              merge a recipe's models into a folder
    plan(config)                    what a merge will do, from checkpoint headers alone
    load_plan(file)                 read a plan from its JSON
    verify(folder)                  check a merged folder against its manifest
    reproduce(model)                make a published merge again, and compare every tensor
    convert(model, out)             write any readable model as a Hugging Face folder
    merge_all(file, out)            several recipes that use each other's results
    merge_with_workers(file, out, workers)
                                    the same, with files shared among processes or machines

In memory:
    merge_state_dicts(models, method)   merge dicts of tensors
    merge_tensors(tensors, method)  merge tensors of one shape
    blend(module, plan)             write a merge into a live PyTorch model
    run(plans, sinks)               run many merges in one pass over the inputs

Study:
    sweep(file, out)                many merges from one file
    evaluate(model, tasks)          score a model, a recipe, or a point of a sweep
    evaluate_sweep(file, out)       score all points of a sweep, and write the best
    sweep_with_workers(file, out, workers)
                                    the same by several processes or machines
    work(out)                       score models of such a study, as one of its workers
    search(file, out)               search the best values of any parameters
    search_with_workers(file, out, workers)
                                    the same by several processes or machines
    compare(study)                  test which models of a study are better than which
    power(study)                    how many problems it takes to see a difference
    diff(a, b)                      how two models differ
    report(folder)                  draw a study's results on one page

Try:
    generate(model, prompt)         a model's answer; merges are made in memory
    serve(models)                   serve models by OpenAI's API, from one set of weights
    LiveModel()                     a model in memory that becomes one merge after another

Publish:
    card(folder)                    rewrite the card of a merged folder
    push(folder, name)              publish on the Hub

Look up:
    inspect(model)                  a model's fact sheet
    list_models(text)               models in the Hub's cache, or on the Hub
    load_recipe(config)             read and check a recipe
    open_checkpoint(folder)         names, dtypes, shapes and bytes of any readable model

Extend (docs/adding.md):
    merge_method(name)              the decorator that registers a merge method
    load_methods(file)              load a file of merge methods
    Combination, SparseDeltas       results of methods that do not return a tensor
    Gram, PerModel, Range, Weight   types for the signatures of methods
    Sink                            the base class of destinations of merges

Plan, Recipe, MergeResult and MerganserError are the types that these functions return and raise.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from merganser.openmp import wait_passively
from merganser.version import VERSION as __version__

if TYPE_CHECKING:
    from merganser.chat.talk import generate as generate
    from merganser.checkpoints import open_checkpoint as open_checkpoint
    from merganser.differences.diff import diff as diff
    from merganser.engine import run as run
    from merganser.errors import MerganserError as MerganserError
    from merganser.hub.catalogue import list_models as list_models
    from merganser.merging.convert import convert as convert
    from merganser.merging.in_memory import blend as blend
    from merganser.merging.in_memory import merge_state_dicts as merge_state_dicts
    from merganser.merging.in_memory import merge_tensors as merge_tensors
    from merganser.merging.merge import merge as merge
    from merganser.merging.multistage import merge_all as merge_all
    from merganser.merging.reproduce import reproduce as reproduce
    from merganser.merging.result import MergeResult as MergeResult
    from merganser.merging.verify import verify as verify
    from merganser.methods import Combination as Combination
    from merganser.methods import Gram as Gram
    from merganser.methods import PerModel as PerModel
    from merganser.methods import Range as Range
    from merganser.methods import SparseDeltas as SparseDeltas
    from merganser.methods import Weight as Weight
    from merganser.methods import load_file as load_methods
    from merganser.methods import merge_method as merge_method
    from merganser.planning import Plan as Plan
    from merganser.planning import plan as plan
    from merganser.planning.plan_loading import load_plan as load_plan
    from merganser.publishing.push import push as push
    from merganser.publishing.study_cards import rewrite as card
    from merganser.recipe import Recipe as Recipe
    from merganser.recipe import load as load_recipe
    from merganser.release.fact_sheet import inspect as inspect
    from merganser.reports.page import write as report
    from merganser.results.paired import compare as compare
    from merganser.results.power import power as power
    from merganser.serving.serve import serve as serve
    from merganser.sinks import Sink as Sink
    from merganser.study.evaluate import evaluate_sweep as evaluate_sweep
    from merganser.study.evaluate_model import evaluate as evaluate
    from merganser.study.live_model import LiveModel as LiveModel
    from merganser.study.search import search as search
    from merganser.study.sweep import sweep as sweep
    from merganser.workers.driving import sweep_with_workers as sweep_with_workers
    from merganser.workers.merge_driver import merge_with_workers as merge_with_workers
    from merganser.workers.searching import search_with_workers as search_with_workers
    from merganser.workers.working import work as work

_HOMES = {
    "Combination": "merganser.methods",
    "Gram": "merganser.methods",
    "LiveModel": "merganser.study.live_model",
    "MerganserError": "merganser.errors",
    "MergeResult": "merganser.merging.result",
    "PerModel": "merganser.methods",
    "Plan": "merganser.planning",
    "Range": "merganser.methods",
    "Recipe": "merganser.recipe",
    "Sink": "merganser.sinks",
    "SparseDeltas": "merganser.methods",
    "Weight": "merganser.methods",
    "blend": "merganser.merging.in_memory",
    "card": "merganser.publishing.study_cards:rewrite",
    "compare": "merganser.results.paired",
    "convert": "merganser.merging.convert",
    "diff": "merganser.differences.diff",
    "evaluate": "merganser.study.evaluate_model",
    "evaluate_sweep": "merganser.study.evaluate",
    "generate": "merganser.chat.talk",
    "inspect": "merganser.release.fact_sheet",
    "list_models": "merganser.hub.catalogue",
    "load_methods": "merganser.methods:load_file",
    "load_plan": "merganser.planning.plan_loading",
    "load_recipe": "merganser.recipe:load",
    "merge": "merganser.merging.merge",
    "merge_all": "merganser.merging.multistage",
    "merge_method": "merganser.methods",
    "merge_state_dicts": "merganser.merging.in_memory",
    "merge_tensors": "merganser.merging.in_memory",
    "merge_with_workers": "merganser.workers.merge_driver",
    "open_checkpoint": "merganser.checkpoints",
    "plan": "merganser.planning",
    "power": "merganser.results.power",
    "push": "merganser.publishing.push",
    "report": "merganser.reports.page:write",
    "reproduce": "merganser.merging.reproduce",
    "run": "merganser.engine",
    "search": "merganser.study.search",
    "search_with_workers": "merganser.workers.searching",
    "serve": "merganser.serving.serve",
    "sweep": "merganser.study.sweep",
    "sweep_with_workers": "merganser.workers.driving",
    "verify": "merganser.merging.verify",
    "work": "merganser.workers.working",
}
"""Where each public name is defined. There is no ``__all__``, with which ``help`` would print the
documentation of every name."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'merganser' has no attribute {name!r}")
    wait_passively()
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(["__version__", *_HOMES])
