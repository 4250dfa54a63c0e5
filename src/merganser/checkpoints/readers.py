"""Open checkpoints by their locators, once per locator, and close them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from merganser.checkpoints import locators
from merganser.checkpoints.computed.planned import NotMergedYet
from merganser.checkpoints.locators import Locator, TensorAt
from merganser.checkpoints.opening import open_checkpoint
from merganser.checkpoints.protocol import Checkpoint, Described, Stamp
from merganser.checkpoints.sidecar_files import read_config
from merganser.errors import InputError


class Readers(ExitStack):
    """A context manager that opens checkpoints on demand and closes all at the end of the block.

    Args:
        given: checkpoints in memory, by their names in plans.
    """

    def __init__(self, given: Mapping[str, Checkpoint] | None = None) -> None:
        super().__init__()
        self._given = given or {}
        self._open: dict[Any, tuple[Locator, Checkpoint]] = {}

    def open(self, model: Described) -> Checkpoint:
        """Return the open checkpoint of the headers in a plan.

        Raises:
            NotMergedYet: when the checkpoint is a merge that has not run.
            InputError: when its files have changed, or it is in memory and was not passed.
        """
        if model.locator is None:
            raise NotMergedYet(f"{model.label}: is planned, but not merged yet")
        try:
            checkpoint = self.at(model.locator)
        except InputError:
            for file in model.stamps:
                with suppress(OSError):  # for a missing file, the original error is raised
                    check_stamp(model, file, Stamp.of(file.stat()))
            raise
        check_same(model, checkpoint)
        return checkpoint

    def at(self, locator: Locator) -> Checkpoint:
        """Return the checkpoint of a locator, opened on first use.

        Raises:
            InputError: when it cannot be opened.
        """
        plain = isinstance(locator, locators.Folder | locators.Given)
        key = locator if plain else id(locator)
        if key not in self._open:
            checkpoint = _OPENERS[type(locator)](self, locator)
            self.callback(checkpoint.close)
            self._open[key] = locator, checkpoint
        return self._open[key][1]

    def given(self, name: str) -> Checkpoint:
        """Return the checkpoint in memory that was passed under a name.

        Raises:
            InputError: when none was passed under that name.
        """
        checkpoint = self._given.get(name)
        if checkpoint is None:
            raise InputError(
                f"{name}: is a checkpoint in memory; hand it to run(…, checkpoints={{{name!r}: …}})"
            )
        return checkpoint


def check_stamp(model: Described, file: Path, stamp: Stamp) -> None:
    """Check that a file of a model has the stamp that it had when its header was read.

    Raises:
        InputError: when the file has changed.
    """
    if stamp != model.stamps[file]:
        raise InputError(f"{file}: changed since its header was read; merge again")


def check_same(model: Described, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint is the one whose headers were read.

    Raises:
        InputError: when a file changed.
    """
    if model.stamps.keys() == checkpoint.stamps.keys():
        for file, stamp in checkpoint.stamps.items():
            check_stamp(model, file, stamp)
    if checkpoint.header_digest != model.header_digest:
        place = model.home or "it"
        raise InputError(f"{model.label}: {place} changed since its header was read; merge again")


def with_companions(checkpoint: Checkpoint, folder: Path, label: str) -> Checkpoint:
    """Return a checkpoint with the config and tokenizer of another folder.

    Raises:
        InputError: when the folder has no config.
    """
    config = read_config(folder)
    if not config:
        raise InputError(f"{label}: has no config.json to use for another model")
    inner = checkpoint.locator
    checkpoint.path, checkpoint.config = folder, config
    checkpoint.locator = locators.WithCompanions(inner, folder) if inner is not None else None
    return checkpoint


# -- one opener per kind ---------------------------------------------------------------------------


def _folder(readers: Readers, at: locators.Folder) -> Checkpoint:
    return open_checkpoint(at.path, at.label, weights=at.weights)


def _given(readers: Readers, at: locators.Given) -> Checkpoint:
    return readers.given(at.name)


def _with_companions(readers: Readers, at: locators.WithCompanions) -> Checkpoint:
    return with_companions(readers.at(at.of), at.folder, str(at.folder))


def _dequantised(readers: Readers, at: locators.Dequantised) -> Checkpoint:
    from merganser.checkpoints.computed.quantised import dequantised

    return dequantised(readers.at(at.of))


def _adapted(readers: Readers, at: locators.Adapted) -> Checkpoint:
    from merganser.checkpoints.adapters import adapted

    return adapted(readers.at(at.of), at.folder)


def _experts_named(readers: Readers, at: locators.ExpertsNamed) -> Checkpoint:
    from merganser.checkpoints.computed.moe import named_like

    return named_like(readers.at(at.of), readers.at(at.like))


def _rearranged(readers: Readers, at: locators.Rearranged) -> Checkpoint:
    from merganser.checkpoints.computed.rearranged import rearranged

    return rearranged(readers.at(at.of), dict(at.tensors), at.notes)


def _gathered(readers: Readers, at: locators.Gathered) -> Checkpoint:
    from merganser.checkpoints.computed.vocabulary_rows import Donor, GatheredTensor, gathered

    def donor(tensor: TensorAt | None) -> Donor | None:
        return None if tensor is None else Donor(readers.at(tensor.checkpoint), tensor.name)

    tensors = {
        each.name: GatheredTensor([donor(tensor) for tensor in each.donors], each.own, at.rows)
        for each in at.tensors
    }
    return gathered(readers.at(at.of), tensors)


def _joined(readers: Readers, at: locators.Joined) -> Checkpoint:
    from merganser.checkpoints.computed.layer_blocks import Blocks, JoinedBlocks, joined

    tensors = {}
    for each in at.tensors:
        parts = zip(each.donors, each.axes, each.depths, strict=True)
        donors = [Blocks(readers.at(t.checkpoint), t.name, axis, n) for t, axis, n in parts]
        tensors[each.name] = JoinedBlocks(donors, each.layers)
    return joined(readers.at(at.of), tensors)


_OPENERS: dict[type[Locator], Callable[[Readers, Any], Checkpoint]] = {
    locators.Folder: _folder,
    locators.Given: _given,
    locators.WithCompanions: _with_companions,
    locators.Dequantised: _dequantised,
    locators.Adapted: _adapted,
    locators.ExpertsNamed: _experts_named,
    locators.Rearranged: _rearranged,
    locators.Gathered: _gathered,
    locators.Joined: _joined,
}
"""Openers by kind of locator."""
