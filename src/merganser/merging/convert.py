"""Convert any readable model into a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from merganser import hub, recipe
from merganser.checkpoints import Checkpoint, Weights, open_checkpoint
from merganser.checkpoints.readers import with_companions
from merganser.checkpoints.training.run_folders import companions
from merganser.errors import RecipeError
from merganser.merging.merge import merge
from merganser.merging.options import MergeKeywords
from merganser.merging.result import MergeResult


def convert(
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    resume: bool | None = False,
    **options: Unpack[MergeKeywords],
) -> MergeResult:
    """Write any readable model as a Hugging Face folder, by a merge of that model alone.

    Args:
        source: the model, as a recipe names it: a folder, a file, a training run,
            ``model+adapter``.
        out: the output folder.
        base: a model whose config and tokenizer replace the source's.
        dtype: the result's dtype; None for the source's.
        resume: as in :func:`merganser.merge`.
        options: those of :func:`merganser.merge`.

    Returns:
        The result of the merge, as :func:`merganser.merge` returns it.

    Raises:
        MerganserError: as :func:`merganser.merge` does.
    """
    config, lent = conversion(source, base, dtype, options.get("weights"))
    return merge(config, out, resume=resume, checkpoints=lent, **options)


def conversion(
    source: str | Path, base: str | Path | None, dtype: str | None, weights: Weights | None
) -> tuple[dict[str, Any], dict[str, Checkpoint] | None]:
    """Return a conversion as a recipe, with its open checkpoint if another model lends its companions.

    Args:
        source, base, dtype: as for :func:`convert`.
        weights: which weights of a training step are read.

    Raises:
        MerganserError: the source or the base cannot be opened.
    """
    config: dict[str, Any] = {"merge_method": "passthrough", "models": [{"model": str(source)}]}
    config |= {"dtype": dtype} if dtype is not None else {}
    if base is None:
        return config, None
    return config, _with_companions(str(source), str(base), weights or "auto")


def _with_companions(source: str, base: str, weights: Weights) -> dict[str, Checkpoint]:
    """Return a reference's checkpoint, with another model's config and tokenizer, by name."""
    try:
        model, lender = recipe.parse_reference(source), recipe.parse_reference(base)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    folder = companions(hub.resolve(lender.path, lender.revision, weights=False))
    checkpoint = open_checkpoint(hub.resolve(model.path, model.revision), source, weights=weights)
    checkpoint = with_companions(checkpoint, folder, base)
    return {f"{model.path}@{model.revision}" if model.revision else model.path: checkpoint}
