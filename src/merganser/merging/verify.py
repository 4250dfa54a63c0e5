"""Verify a merged folder against its manifest."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from merganser.checkpoints import open_checkpoint
from merganser.engine.events import Listener, ignore
from merganser.errors import InputError
from merganser.merging import multistage
from merganser.merging.dry_run import run_dry
from merganser.release import manifest, verification
from merganser.sinks import DigestSink


def verify(
    folder: str | Path,
    *,
    recompute: bool = False,
    against: str | Path | None = None,
    may_differ: Collection[str] = (),
    on_event: Listener = ignore,
) -> list[str]:
    """Verify every file and tensor of a merged folder against its manifest.

    Args:
        folder: a folder written by :func:`merge`.
        recompute: also recompute the merge from its inputs and compare it, and compare the inputs'
            digests if the manifest has them.
        against: the folder for the recipe's relative paths; implies ``recompute``. None for the
            recipe's folder.
        may_differ: files that may have been edited since.
        on_event: called with progress events.

    Returns:
        The problems, one sentence for each; empty if there are none.

    Raises:
        InputError: when the folder has no manifest, or cannot be read.
    """
    path = Path(folder)
    stated = manifest.read(path)
    if not verification.is_as_written(stated, path):
        return [f"{manifest.NAME} is not what was written"]
    problems = verification.damage(stated, path, may_differ)
    reading = {"merge_method": "passthrough", "models": [{"model": str(path)}]}
    try:
        result = run_dry(
            reading,
            DigestSink(),
            on_event=on_event,
            strictness="lenient",
            checkpoints={str(path): open_checkpoint(path)},
        )
    except InputError as error:
        if not problems:
            raise
        return [*problems, str(error)]
    problems += verification.difference(stated, manifest.tensor_digests([result.outcome]))
    if recompute or against is not None:
        verification.check_method(stated, path)
        again = multistage.merge_again(
            path,
            against,
            DigestSink(),
            on_event=on_event,
            digest_inputs=any("tensors" in entry for entry in stated["inputs"]),
        )
        problems += verification.different_inputs(stated, again.manifest)
        different = verification.difference(stated, manifest.tensor_digests([again.outcome]))
        problems += verification.different_method(stated) if different else []
        problems += [f"merged again from the inputs: {problem}" for problem in different]
    return problems
