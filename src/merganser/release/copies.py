"""Which small files of the inputs an output gets, and whether it may."""

from __future__ import annotations

from collections.abc import Iterable

from merganser.checkpoints.sidecar_files import check_link
from merganser.planning import Plan
from merganser.release import config, tokenizer


def check_links(plans: Iterable[Plan], copy_tokenizer: bool = True) -> None:
    """Refuse small files that cannot be copied into an output, before any weight is merged.

    Raises:
        InputError: when one is a link out of its folder.
    """
    for plan in plans:
        tokenizers = tokenizer.copied(plan) if copy_tokenizer else []
        for file in (*config.copied(plan), *tokenizers):
            check_link(file)
