"""Options for writing output folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from merganser.engine.events import Listener, ignore
from merganser.planning import PlanKeywords, PlanOptions

OnNonfinite = Literal["warn", "error"]


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """Options for writing output folders; none affects the weights.

    Attributes:
        force: replace an output folder that is not empty; it stays until the new one is complete.
        threads: number of threads; None for the default.
        memory: memory limit of the process in bytes; None for no limit.
        digest_inputs: write digests of all inputs' contents into the manifest, not only of their
            headers.
        on_nonfinite: ``warn`` about infinite and NaN values, or raise an ``error``.
        public: write short names instead of local paths into card, recipe and manifest.
        write_card: whether to write ``README.md``.
        copy_tokenizer: whether to write the tokenizer and its companions.
        on_event: called with progress events.
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
    """The fields of both option classes."""


def split_options(options: Mapping[str, Any]) -> tuple[PlanOptions, WriteOptions]:
    """Split a merge's options into planning and writing options.

    Raises:
        TypeError: for an unknown option.
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
