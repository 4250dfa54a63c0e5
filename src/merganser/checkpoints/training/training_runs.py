"""Find the weights of a training run by its path.

The supported layouts are those of verl (``RUN/global_step_N/actor``), Megatron (``RUN/iter_N``), DeepSpeed
and the trainer of transformers (``checkpoint-N/global_stepN``).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from merganser.checkpoints.protocol import Weights
from merganser.checkpoints.training.run_folders import (
    ADAPTER_ONLY,
    EXPORT_ADAPTER,
    METADATA,
    OPTIMIZER_ONLY,
    Contents,
    published_weights,
    tracked_step,
    training_shards,
)
from merganser.errors import InputError, RecipeError


@dataclass(frozen=True, slots=True)
class WeightsLocation:
    """The location of a reference's weights.

    Attributes:
        folder: the folder or file.
        shards: whether they are the shards of a training run.
        notes: decisions that the user should know.
    """

    folder: Path
    shards: bool
    notes: tuple[str, ...] = ()


def locate(path: Path, weights: Weights) -> WeightsLocation:
    """Find the weights of a path: a model's folder, or a step of a training run.

    Args:
        path: a file, the folder of a model or of a step, or the folder of a run, whose last step is used.
        weights: the weights to read if a step has both kinds.

    Raises:
        InputError: when a run names a step that is missing, or there are no such weights.
        RecipeError: when ``weights`` is not one of its values.
    """
    if weights not in get_args(Weights):
        known = ", ".join(get_args(Weights))
        raise RecipeError(f"weights: {weights!r} is unknown; it is one of {known}")
    if path.is_file():
        return WeightsLocation(path, False)
    step = _step(path)
    shards, published = training_shards(step), published_weights(step)
    here = _shown(step, path)
    if shards is None:
        return WeightsLocation(published or step, False)
    if published is not None and (contents := _contents(shards)) != "model":
        return _beside(path, shards, published, contents, weights, named=published == step)
    if published is None:
        if weights == "huggingface":
            raise InputError(f"{step}: has training shards only, no Hugging Face weights")
        beside = not shards.is_relative_to(step)
        note = (
            f"{here} holds no weights; the training shards next to it, in {shards.name}/, are used"
        )
        return WeightsLocation(shards, True, (note,) if beside else ())
    if weights == "huggingface" or (weights == "auto" and published == step):
        note = (
            f"the weights of {_shown(published, path)} are used; weights: shards uses the training "
            f"shards in {shards.name}/, which are more precise"
        )
        return WeightsLocation(published, False, (note,) if weights == "auto" else ())
    note = (
        f"the training shards in {_shown(shards, path)} are used, for their precision; "
        f"weights: huggingface uses the weights of {published.name}/"
    )
    return WeightsLocation(shards, True, (note,) if weights == "auto" else ())


def _contents(shards: Path) -> Contents:
    """The contents of training shards; ``model`` if they cannot be read, since opening reports why."""
    with suppress(InputError):
        if (shards / METADATA).is_file():
            from merganser.checkpoints.training import dcp  # it imports the reader of pickles

            return dcp.contents(shards)
    return "model"


def _beside(
    path: Path, shards: Path, published: Path, contents: Contents, weights: Weights, named: bool
) -> WeightsLocation:
    """The location of a Megatron step's Hugging Face weights, for shards without model weights.

    Args:
        path: the path that the user named.
        shards, published: the folders of the shards and of the Hugging Face weights.
        contents: the contents of the shards.
        weights: the weights to read.
        named: whether ``path`` is the Hugging Face folder.

    Raises:
        InputError: when ``weights`` is ``shards``, or the Hugging Face weights are those before training.
    """
    here, there = _shown(shards, path), _shown(published, path)
    if contents == "optimizer":
        if weights == "shards":
            raise InputError(f"{path}: {here} {OPTIMIZER_ONLY}; the weights are in {there}")
        return WeightsLocation(
            published, False, (f"{here} {OPTIMIZER_ONLY}; the weights of {there} are used",)
        )
    if weights == "shards" or (weights == "auto" and not named):
        raise InputError(
            f"{path}: {here} {ADAPTER_ONLY}, and {there} holds its base model; {EXPORT_ADAPTER}; "
            "weights='huggingface' takes the base model"
        )
    note = f"{there} holds the base model without the training: {here} {ADAPTER_ONLY}"
    return WeightsLocation(published, False, (f"{note}; {EXPORT_ADAPTER}",))


def _step(path: Path) -> Path:
    """The policy's folder in a step, or in a run's last step."""
    for tracker in ("latest_checkpointed_iteration.txt", "latest"):
        if (path / tracker).is_file() and published_weights(path) != path:
            path = tracked_step(path / tracker)
    actor = path / "actor"
    return (
        actor if actor.is_dir() and (training_shards(actor) or published_weights(actor)) else path
    )


def _shown(folder: Path, path: Path) -> str:
    """A folder's name relative to ``path``, for messages."""
    return (
        f"{folder.relative_to(path)}/"
        if folder != path and folder.is_relative_to(path)
        else f"{folder.name}/"
    )
