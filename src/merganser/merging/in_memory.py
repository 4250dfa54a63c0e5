"""Merge in memory: state dicts, single tensors, or into a live model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from merganser import engine
from merganser.checkpoints import Checkpoint
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.errors import RecipeError
from merganser.planning import Config, MemoryKeywords, Plan, PlanOptions, make_plan
from merganser.sinks import ModuleSink, StateDictSink

if TYPE_CHECKING:
    import torch


def merge_state_dicts(
    models: Sequence[Mapping[str, torch.Tensor]],
    method: str,
    *,
    base: Mapping[str, torch.Tensor] | None = None,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    **options: Unpack[MemoryKeywords],
) -> dict[str, torch.Tensor]:
    """Merge state dicts in memory.

    Args:
        models: state dicts of CPU tensors, with the same names and shapes.
        method: the name of a merge method.
        base: the base model's state dict, for methods that need one.
        weights: the parameter ``weight``, one per model.
        parameters: the method's parameters by name: a number for all models, or a list with one number
            per model, if the method takes one per model.
        dtype: the result's dtype, such as ``bfloat16``; None for the inputs' dtype.
        options: those of :func:`merganser.plan`.

    Returns:
        A new state dict, with new tensors.

    Raises:
        RecipeError: when a parameter is wrong or missing.
        InputError: when the state dicts do not fit each other.
    """
    shared = dict(parameters or {})
    if not models:
        raise RecipeError("there are no models to merge")
    if weights is not None:
        shared["weight"] = list(weights)
    for name, value in shared.items():
        if isinstance(value, list | tuple) and len(value) != len(models):
            raise RecipeError(f"{name}: {len(value)} numbers for {len(models)} models")
    entries: list[dict[str, Any]] = []
    for i in range(len(models)):
        settings = {"weight": weights[i]} if weights is not None else {}
        settings |= {
            name: value[i] for name, value in shared.items() if isinstance(value, list | tuple)
        }
        entries.append({"model": f"model {i}", "parameters": settings})
    data: dict[str, Any] = {
        "merge_method": method,
        "models": entries,
        "dtype": dtype,
        "parameters": {
            name: value for name, value in shared.items() if not isinstance(value, list | tuple)
        },
    }
    checkpoints: dict[str, Checkpoint] = {
        f"model {i}": MemoryCheckpoint(model, f"model {i}") for i, model in enumerate(models)
    }
    if base is not None:
        data["base_model"] = "base"
        checkpoints["base"] = MemoryCheckpoint(base, "base")
    plan = make_plan(data, PlanOptions(**options), checkpoints=checkpoints)
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    engine.run([plan], [sink], report=False, checkpoints=checkpoints)
    return sink.tensors


def merge_tensors(
    tensors: Sequence[torch.Tensor],
    method: str,
    *,
    base: torch.Tensor | None = None,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    **options: Unpack[MemoryKeywords],
) -> torch.Tensor:
    """Merge tensors of one shape into a new tensor; arguments and errors as in :func:`merge_state_dicts`."""
    merged = merge_state_dicts(
        [{"tensor": t} for t in tensors],
        method,
        base=None if base is None else {"tensor": base},
        weights=weights,
        parameters=parameters,
        dtype=dtype,
        **options,
    )
    return merged["tensor"]


def blend(
    module: torch.nn.Module,
    merge: Plan | Config,
    *,
    threads: int | None = None,
    report: bool = False,
) -> engine.Outcome:
    """Write a merge into the parameters of a live PyTorch model on the CPU, in place.

    Args:
        module: a model with the plan's tensors, under the same names, with the plan's dtypes and shapes.
        merge: a plan, or a recipe: a file, a mapping, or a loaded recipe.
        threads: number of threads; None for the default.
        report: whether to measure effective weights.

    Returns:
        The engine's outcome; with ``report`` its ``report`` has the effective weights.

    Raises:
        MerganserError: when the model does not fit the plan, or the recipe cannot be planned.
    """
    if not isinstance(merge, Plan):
        return blend(module, make_plan(merge), threads=threads, report=report)
    sink = ModuleSink(module, {job.name: job.spec for job in merge.jobs})
    [outcome] = engine.run([merge], [sink], threads=threads, report=report)
    return outcome
