"""Open checkpoints of any format; dequantise them and apply adapters."""

from __future__ import annotations

from pathlib import Path

from merganser.checkpoints.formats import open_training, open_weights
from merganser.checkpoints.locators import Folder
from merganser.checkpoints.protocol import Checkpoint, Weights
from merganser.checkpoints.training.training_runs import locate
from merganser.errors import InputError, reraise_os_errors


def open_checkpoint(
    folder: str | Path, label: str | None = None, *, weights: Weights = "auto"
) -> Checkpoint:
    """Open a local checkpoint by its headers: names, dtypes, shapes and offsets of the tensors.

    Args:
        folder: a Hugging Face model folder, a single file of weights, a step of a training run, or
            a training run, of which the last step is opened.
        label: its name in messages; the path if None.
        weights: the weights to open if a training step has both kinds: ``shards``, ``huggingface``, or
            ``auto``, see :data:`Weights`.

    Returns:
        The checkpoint: ``specs`` lists its tensors, and ``read`` fills a buffer with bytes of a tensor. The
        caller must call its ``close()``.

    Raises:
        InputError: when there is no checkpoint, or its headers are invalid.
    """
    with reraise_os_errors(InputError, "read", folder):
        return _opened(Path(folder), label or str(folder), weights)


def _opened(path: Path, name: str, weights: Weights) -> Checkpoint:
    if not path.exists():
        raise InputError(f"{name}: no such model")
    if not path.is_file() and not path.is_dir():
        raise InputError(f"{name}: is neither a file nor a folder")
    place = locate(path, weights)
    opener = open_training if place.shards else open_weights
    checkpoint = opener(place.folder, name)
    if checkpoint is None:
        from merganser.checkpoints.advice import what_is_there

        raise InputError(f"{name}: {what_is_there(place.folder)}")
    if place.shards:
        from merganser.checkpoints.training.lora_shards import merged

        checkpoint = merged(checkpoint, place.folder)
    elif place.folder.is_dir():
        from merganser.checkpoints.sentence_transformers import with_modules

        checkpoint = with_modules(checkpoint, place.folder)
    checkpoint.locator = Folder(path, name, weights)
    checkpoint.notes = (*(f"{name}: {note}" for note in place.notes), *checkpoint.notes)
    return checkpoint


def as_numbers(checkpoint: Checkpoint, adapter: Path | None = None) -> Checkpoint:
    """Return a checkpoint of the weights with which the model computes: dequantised, with an adapter applied.

    Args:
        checkpoint: an open checkpoint.
        adapter: the folder of a LoRA adapter, or None.

    Raises:
        InputError: when its quantisation is not supported, or the adapter does not fit.
    """
    from merganser.checkpoints.computed.quantised import dequantised

    made = dequantised(checkpoint)
    if adapter is None:
        return made
    from merganser.checkpoints.adapters import adapted

    return adapted(made, adapter)
