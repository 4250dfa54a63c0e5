"""What a caller may decide of how folders are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from merganser.engine.events import Listener, ignore
from merganser.planning import PlanKeywords, PlanOptions

OnNonfinite = Literal["warn", "error"]


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How folders are written; none of it changes what a merge is.

    Attributes:
        force: replace an output folder that is not empty; it is kept until the new one is complete.
        threads: how many; None for as many as pay off.
        memory: bytes that the process may take; None for no bound.
        digest_inputs: write digests of the contents of all inputs into the manifest, and not of their
            headers alone.
        on_nonfinite: ``warn`` of values that are infinite or not a number, or make them an ``error``.
        public: write short names instead of local paths into card, recipe and manifest.
        write_card: whether to write ``README.md``.
        copy_tokenizer: whether to write the tokenizer and its companions.
        on_event: is called with each event of the progress.
    """

    force: bool = False
    threads: int | None = None
    memory: int | None = None
    digest_inputs: bool = True
    on_nonfinite: OnNonfinite = "warn"
    public: bool = False
    write_card: bool = True
    copy_tokenizer: bool = True
    on_event: Listener = ignore


class WriteKeywords(TypedDict, total=False):
    """The fields of :class:`WriteOptions` as keywords of public functions."""

    force: bool
    threads: int | None
    memory: int | None
    digest_inputs: bool
    on_nonfinite: OnNonfinite
    public: bool
    write_card: bool
    copy_tokenizer: bool
    on_event: Listener


class MergeKeywords(PlanKeywords, WriteKeywords, total=False):
    """The fields of both kinds of options."""


def split_options(options: Mapping[str, Any]) -> tuple[PlanOptions, WriteOptions]:
    """The options of a merge by their kinds.

    Raises:
        TypeError: when there is another.
    """
    known = {kind: {f.name for f in fields(kind)} for kind in (PlanOptions, WriteOptions)}
    unknown = sorted(set(options) - set().union(*known.values()))
    if unknown:
        raise TypeError(f"there is no option {unknown[0]!r}")
    planning, writing = (
        {name: value for name, value in options.items() if name in names}
        for names in known.values()
    )
    return PlanOptions(**planning), WriteOptions(**writing)
