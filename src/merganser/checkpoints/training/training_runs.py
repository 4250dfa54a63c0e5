"""Find a training run's step, its weights and its config.

Layouts of verl (``RUN/global_step_N/actor``), Megatron (``RUN/iter_N``), DeepSpeed and the trainer of
transformers (``checkpoint-N/global_stepN``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from merganser.checkpoints.protocol import Weights
from merganser.checkpoints.sidecar_files import read_json
from merganser.errors import InputError, RecipeError
from merganser.recipe.run_steps import step_of

if TYPE_CHECKING:
    from merganser.checkpoints.training.dcp import Contents

HUGGINGFACE = ("huggingface", "hf_config_and_tokenizer", "model/huggingface")
"""Subfolders of a step with config, tokenizer and sometimes weights."""

_SHARDS = ("", "dist_ckpt", "model/dist_ckpt", "pytorch_model_fsdp_0")

_RANK = re.compile(
    r"(?:model(?:_world_size_\d+)?_rank_\d+|(?:bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states)\.pt"
)


_OPTIMIZER_ONLY = "holds only the state of the optimizer"
_ADAPTER_ONLY = "holds a LoRA adapter in Megatron's form, which cannot be read"
_EXPORT_ADAPTER = "export the adapter in PEFT's form and merge BASE+ADAPTER"


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a reference's weights.

    Attributes:
        folder: the folder or file.
        shards: whether they are the shards of a training run.
        notes: decisions that the user should know.
    """

    folder: Path
    shards: bool
    notes: tuple[str, ...] = ()


def locate(path: Path, weights: Weights) -> Place:
    """Find the weights of a path: a model's folder, or a step of a training run.

    Args:
        path: a file, the folder of a model or of a step, or that of a run, for its last step.
        weights: the weights to read of a step that has both kinds.

    Raises:
        InputError: when a run names a step that is missing, or there are no such weights.
        RecipeError: when ``weights`` is not one of its values.
    """
    if weights not in get_args(Weights):
        known = ", ".join(get_args(Weights))
        raise RecipeError(f"weights: {weights!r} is unknown; it is one of {known}")
    if path.is_file():
        return Place(path, False)
    step = _step(path)
    shards, published = _shards(step), _published(step)
    here = _told(step, path)
    if shards is None:
        return Place(published or step, False)
    if published is not None and (contents := _contents(shards)) != "model":
        return _beside(path, shards, published, contents, weights, named=published == step)
    if published is None:
        if weights == "huggingface":
            raise InputError(f"{step}: has training shards only, no Hugging Face weights")
        beside = not shards.is_relative_to(step)
        note = f"{here} holds no weights; the training shards in {shards.name}/ beside it are taken"
        return Place(shards, True, (note,) if beside else ())
    if weights == "huggingface" or (weights == "auto" and published == step):
        note = (
            f"the weights of {_told(published, path)} are taken; the training shards in "
            f"{shards.name}/, of higher precision, are taken with weights: shards"
        )
        return Place(published, False, (note,) if weights == "auto" else ())
    note = (
        f"the training shards in {_told(shards, path)} are taken, for their precision; "
        f"the weights of {published.name}/ are taken with weights: huggingface"
    )
    return Place(shards, True, (note,) if weights == "auto" else ())


def _contents(shards: Path) -> Contents:
    """The contents of training shards; ``model`` if they cannot be read, since opening reports why."""
    from merganser.checkpoints.training import dcp

    with suppress(InputError):
        if (shards / dcp.METADATA).is_file():
            return dcp.contents(shards)
    return "model"


def _beside(
    path: Path, shards: Path, published: Path, contents: Contents, weights: Weights, named: bool
) -> Place:
    """The place of a Megatron step's Hugging Face weights, if its shards contain no weights.

    Args:
        path: the path that the user named.
        shards, published: the folders of the shards and of the Hugging Face weights.
        contents: the contents of the shards.
        weights: the weights to read.
        named: whether ``path`` is the Hugging Face folder.

    Raises:
        InputError: when the shards are asked for, or the weights are those before the training.
    """
    here, there = _told(shards, path), _told(published, path)
    if contents == "optimizer":
        if weights == "shards":
            raise InputError(f"{path}: {here} {_OPTIMIZER_ONLY}; the weights are in {there}")
        return Place(
            published, False, (f"{here} {_OPTIMIZER_ONLY}; the weights of {there} are taken",)
        )
    if weights == "shards" or (weights == "auto" and not named):
        raise InputError(
            f"{path}: {here} {_ADAPTER_ONLY}, and {there} holds its base model; {_EXPORT_ADAPTER}; "
            "weights='huggingface' takes the base model"
        )
    note = f"{there} holds the base model without the training: {here} {_ADAPTER_ONLY}"
    return Place(published, False, (f"{note}; {_EXPORT_ADAPTER}",))


def companions(folder: Path) -> Path:
    """The folder with config and tokenizer for a folder of training shards; itself if there is none."""
    for home in (folder, *folder.absolute().parents[:2]):
        for candidate in (home, *(home / name for name in HUGGINGFACE)):
            if (candidate / "config.json").is_file() and (home == folder or _is_model(candidate)):
                return candidate
    return folder


def _is_model(folder: Path) -> bool:
    """Whether a folder's ``config.json`` describes a model rather than the training."""
    try:
        config = read_json(folder / "config.json")
    except InputError:
        return False
    return "model_type" in config or "architectures" in config


def step_number(folder: Path) -> int | None:
    """The training step in the name of a folder or of one of its three nearest parents; else None."""
    numbers = map(step_of, reversed(folder.absolute().parts[-4:]))
    return next((number for number in numbers if number is not None), None)


def _step(path: Path) -> Path:
    """The policy's folder in a step, or in a run's last step."""
    for tracker in ("latest_checkpointed_iteration.txt", "latest"):
        if (path / tracker).is_file() and _published(path) != path:
            path = _tracked(path / tracker)
    actor = path / "actor"
    return actor if actor.is_dir() and (_shards(actor) or _published(actor)) else path


def _tracked(tracker: Path) -> Path:
    """The folder of the step that a run's tracker file names.

    Raises:
        InputError: when it is missing.
    """
    try:
        latest = tracker.read_text(encoding="utf-8")[:200].strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{tracker}: cannot be read ({error})") from None
    if not latest:
        raise InputError(f"{tracker}: names no step; name one of the folders beside it")
    names = [f"global_step_{latest}", f"iter_{int(latest):07d}"] if latest.isdecimal() else [latest]
    for name in names:
        step = tracker.parent / name
        with suppress(OSError, ValueError):  # too long a name, or a NUL in it
            if Path(name).name == name and name not in ("", ".", "..") and step.is_dir():
                return step
    missing = tracker.parent / names[0][:60]
    raise InputError(f"{tracker}: names step {latest[:60]!r}, but {missing} is missing")


def _shards(step: Path) -> Path | None:
    """The folder of a step's training shards: the step's, one below, or one next to its Hugging Face
    folder; None if there is none."""
    for folder in _shard_folders(step):
        if folder.is_dir() and holds_shards(folder):
            return folder
    return None


def _shard_folders(step: Path) -> Iterator[Path]:
    homes = [step]
    if step.name in HUGGINGFACE:
        homes += [step.parent, step.parent.parent]
    for home in homes:
        yield from (home / name for name in _SHARDS)
        if (home / "latest").is_file():
            with suppress(InputError):  # the step is often removed once its weights are exported
                yield _tracked(home / "latest")


def holds_shards(folder: Path) -> bool:
    """Whether a folder contains shards of a training run."""
    return (folder / ".metadata").is_file() or any(
        _RANK.fullmatch(entry.name) for entry in folder.glob("*.pt")
    )


def _published(step: Path) -> Path | None:
    """The folder of a step with Hugging Face weights; None if there is none."""
    for folder in (step, *(step / name for name in HUGGINGFACE)):
        files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        if any(not file.name.startswith("adapter") for file in files):
            return folder
    return None


def _told(folder: Path, path: Path) -> str:
    """A folder's name relative to ``path``, for messages."""
    return (
        f"{folder.relative_to(path)}/"
        if folder != path and folder.is_relative_to(path)
        else f"{folder.name}/"
    )


# -- advice ----------------------------------------------------------------------------------------


def what_is_there(path: Path) -> str:
    """Explain why a folder or file is not a checkpoint, and what to do."""
    from merganser.checkpoints.computed import adapter

    if path.is_file():
        if path.name.endswith(".distcp"):
            return "is a part of a distributed checkpoint; name the folder that it lies in"
        if path.suffix in (".yml", ".yaml"):
            return "is a YAML file, and no model; plan and merge take recipes"
        return "this file is no checkpoint in a format known here (.safetensors, .bin, .pt, .pth, .gguf)"
    for folder in (path, path / "actor"):
        explanation = _of_training(folder) if folder.is_dir() else None
        if explanation is not None:
            return explanation
    names = sorted(entry.name for entry in path.iterdir())
    if adapter.CONFIG in names:
        return _adapter_alone(path, adapter.CONFIG)
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickles:
        return (
            f"holds no weights under a name known here; if {pickles[0]} holds them, name that file"
        )
    inner = next((n for n in names if (path / n / "config.json").is_file()), None)
    if "modules.json" in names and inner is not None and "config.json" not in names:
        return (
            f"is a sentence-transformers model with its transformer in {inner}, which cannot be merged "
            f"with its modules; name {path / inner} to merge the transformer alone"
        )
    if "config.json" in names:
        return "has a config.json but no weights (no *.safetensors file)"
    return "holds no model: neither config.json nor *.safetensors"


def _adapter_alone(path: Path, file: str) -> str:
    """Explain what to write instead of an adapter's folder."""
    config = read_json(path / file)
    kind, base = str(config.get("peft_type", "LORA")), config.get("base_model_name_or_path")
    what = "a LoRA adapter" if kind.upper() == "LORA" else f"an adapter of the kind {kind}"
    if isinstance(base, str) and base:
        return f"is {what} of {base}, and no model; write {base}+{path}"
    return f"is {what}, and no model; write BASE+{path} with the model that it was trained on"


def why_no_model(folder: Path, contents: Contents) -> str | None:
    """Explain why a distributed checkpoint is not a model; None if it is one."""
    if contents == "model":
        return None
    home = next((home for home in folder.absolute().parents[:2] if _published(home)), None)
    published = _published(home) if home is not None else None
    if contents == "adapter":
        base = f", for the model in {published}" if published is not None else ""
        return f"{_ADAPTER_ONLY}{base}; {_EXPORT_ADAPTER}"
    where = (
        f"name {published}, which holds the weights"
        if published is not None
        else "the trainer exports the weights to huggingface/ beside it; fetch that folder"
    )
    return f"{_OPTIMIZER_ONLY}; {where}"


def _of_training(folder: Path) -> str | None:
    """Explain what a folder of a training run lacks; None if it is not one."""
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    steps = {name: number for name in folders if (number := step_of(name)) is not None}
    if steps:
        last = max(steps, key=lambda name: steps[name])
        return f"holds steps of a run, and no file that names the last; name one, such as {last}"
    old = folders | {entry.name for entry in (folder / "model").glob("mp_rank_*")}
    if any(name.startswith("mp_rank_") for name in old):
        return (
            "holds a Megatron checkpoint of the older form (mp_rank_*), which cannot be read; "
            "save it as torch_dist, or export the model as safetensors"
        )
    for pattern, explanation in (
        (
            "optimizer/dist_ckpt/.metadata",
            "holds the optimizer's state, but no weights (model/huggingface/*.safetensors); fetch them",
        ),
        (
            "*_model_states.pt",
            "holds DeepSpeed's *_model_states.pt, but not the *_optim_states.pt in which the "
            "weights are float32; fetch them",
        ),
        (
            "optim_world_size_*_rank_*.pt",
            "holds the optimizer's state, but no weights (model_world_size_*_rank_*.pt)",
        ),
    ):
        if any(folder.glob(pattern)):
            return explanation
    return None
