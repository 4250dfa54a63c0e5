"""Check the small files of the inputs that an output receives."""

from __future__ import annotations

from collections.abc import Iterable

from merganser.checkpoints.sidecar_files import check_json, check_link
from merganser.planning import Plan
from merganser.release import config, tokenizer


def check_copies(plans: Iterable[Plan], copy_tokenizer: bool = True) -> None:
    """Check, before any weight is merged, the small files that are copied into the outputs.

    Raises:
        InputError: when a file is a link out of its folder, or a JSON file is broken.
    """
    for plan in plans:
        tokenizers = tokenizer.copied(plan) if copy_tokenizer else []
        for file in (*config.copied(plan), *tokenizers):
            check_link(file)
            if file.suffix == ".json":
                check_json(file)
