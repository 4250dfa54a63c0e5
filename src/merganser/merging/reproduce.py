"""Reproduce a published merge from its recipe, and compare every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from merganser import hub
from merganser.checkpoints import open_checkpoint
from merganser.engine.events import Listener, ignore
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.merging import multistage
from merganser.merging.dry_run import run_dry
from merganser.planning import PlanOptions, make_plan
from merganser.planning.plan_data import Arithmetic
from merganser.recipe import load_all
from merganser.release import manifest, verification
from merganser.sinks import DigestSink

MERGEKITS: tuple[Arithmetic, ...] = ("mergekit", "mergekit-0.1.4", "exact")
"""The arithmetics that are tried for a merge without a manifest, in this order."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A reproduction in one arithmetic.

    Attributes:
        arithmetic: the arithmetic.
        equal: tensors with the same bits.
        different: tensors with other bits, or another shape or dtype.
        missing: published tensors that the reproduction lacks.
        added: tensors that only the reproduction has.
        failed: the reason why the merge failed in this arithmetic; None if it did not.
    """

    arithmetic: Arithmetic
    equal: int = 0
    different: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    failed: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether it equals the published merge bit for bit."""
        return self.failed is None and not (self.different or self.missing or self.added)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of reproducing a published merge.

    Attributes:
        model: the repository or folder.
        made_by: the program that wrote the model, if its files name it.
        tensors: number of published tensors.
        attempts: one per arithmetic tried; the last one agrees, if any does.
        inputs: differences between the inputs and the manifest; empty without one.
        commits: the commits of inputs on the Hub that were used.
    """

    model: str
    made_by: Literal["Merganser", "MergeKit"]
    tensors: int
    attempts: tuple[Attempt, ...]
    inputs: tuple[str, ...]
    commits: Mapping[str, str]

    @property
    def arithmetic(self) -> Arithmetic | None:
        """The arithmetic that reproduces the published merge; None if none does."""
        return next((attempt.arithmetic for attempt in self.attempts if attempt.agrees), None)

    @property
    def closest(self) -> Attempt | None:
        """The attempt with the most equal tensors."""
        done = [attempt for attempt in self.attempts if attempt.failed is None]
        return max(done, key=lambda attempt: (attempt.agrees, attempt.equal), default=None)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data, for JSON."""
        return {**asdict(self), "arithmetic": self.arithmetic}


def reproduce(
    model: str | Path, *, against: str | Path | None = None, on_event: Listener = ignore
) -> Reproduction:
    """Reproduce a published merge from the recipe in its repository, and compare every tensor.

    Nothing is written. For a merge by Merganser the manifest states the arithmetic. For others,
    such as MergeKit's ``mergekit_config.yml``, every arithmetic is tried until one agrees.

    Args:
        model: a repository on the Hub, or a folder.
        against: the folder for the recipe's relative paths; by default the current one, then the
            model's.
        on_event: called with progress events.

    Raises:
        InputError: when the model does not exist or has no recipe.
        MerganserError: one of its subclasses, by cause, for instance when an input is missing.
    """
    folder = hub.resolve(str(model))
    recipe_file = folder / manifest.RECIPE
    if not recipe_file.is_file():
        raise InputError(f"{model}: has no {manifest.RECIPE}, so nothing says how it was merged")
    published = _published(folder, on_event)
    if (folder / manifest.NAME).is_file():
        return _by_manifest(str(model), folder, published, against, on_event)
    return _by_recipe(str(model), folder, published, against, on_event)


def _published(folder: Path, on_event: Listener) -> dict[str, str]:
    """Return the digests of a folder's tensors by name."""
    reading = {"merge_method": "passthrough", "models": [{"model": str(folder)}]}
    result = run_dry(
        reading,
        DigestSink(),
        on_event=on_event,
        strictness="lenient",
        checkpoints={str(folder): open_checkpoint(folder)},
    )
    return manifest.tensor_digests([result.outcome])


def _by_manifest(
    model: str,
    folder: Path,
    published: Mapping[str, str],
    against: str | Path | None,
    on_event: Listener,
) -> Reproduction:
    stated = manifest.read(folder)
    verification.check_method(stated, folder)
    again = multistage.merge_again(
        folder,
        against,
        DigestSink(),
        digest_inputs=any("tensors" in entry for entry in stated["inputs"]),
        on_event=on_event,
    )
    attempt = _compare(stated["arithmetic"], published, manifest.tensor_digests([again.outcome]))
    inputs = (
        *verification.different_inputs(stated, again.manifest),
        *verification.different_method(stated),
    )
    commits = _commits(again.manifest)
    return Reproduction(model, "Merganser", len(published), (attempt,), inputs, commits)


def _by_recipe(
    model: str,
    folder: Path,
    published: Mapping[str, str],
    against: str | Path | None,
    on_event: Listener,
) -> Reproduction:
    *earlier, parsed = load_all(folder / manifest.RECIPE, "lenient")
    if earlier:
        raise RecipeError(
            f"{folder / manifest.RECIPE}: holds {len(earlier) + 1} recipes that build on each other, but no "
            "manifest says how they were merged"
        )
    if against is not None:
        from dataclasses import replace

        parsed = replace(parsed, folder=Path(against))
    attempts: list[Attempt] = []
    commits: Mapping[str, str] = {}
    for arithmetic in MERGEKITS:
        try:
            plan = make_plan(parsed, PlanOptions(arithmetic=arithmetic, strictness="lenient"))
        except RecipeError as error:
            attempts.append(Attempt(arithmetic, failed=str(error)))
            continue
        again = run_dry(plan, DigestSink(), on_event=on_event)
        commits = _commits(again.manifest)
        attempts.append(_compare(arithmetic, published, manifest.tensor_digests([again.outcome])))
        if attempts[-1].agrees:
            break
    if all(attempt.failed for attempt in attempts):
        raise MerganserError(f"{model}: cannot be merged again: {attempts[0].failed}")
    return Reproduction(model, "MergeKit", len(published), tuple(attempts), (), commits)


def _compare(
    arithmetic: Arithmetic, published: Mapping[str, str], again: Mapping[str, str]
) -> Attempt:
    shared = [name for name in published if name in again]
    different = tuple(name for name in shared if published[name] != again[name])
    return Attempt(
        arithmetic,
        len(shared) - len(different),
        different,
        tuple(name for name in published if name not in again),
        tuple(name for name in again if name not in published),
    )


def _commits(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the commits of a merge's inputs on the Hub, by reference."""
    return {
        entry["reference"]: commit
        for entry in facts["inputs"]
        for commit in list(entry.get("commits", {}).values())[:1]
    }
