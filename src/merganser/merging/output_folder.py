"""The output folder: checks before replacing, the unfinished folder next to it, and the final
rename.

An unfinished merge is stored in ``OUT.partial``:

    lock            held by the running process
    journal.jsonl   the merge's identity, and its finished files
    shared/         results of units, if several processes write the merge
    new/            the future output folder
    old/            the folder that it replaces, between two renames

``new/`` becomes ``OUT`` by one rename, when its files are complete and synced.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from merganser import number_format, system
from merganser.engine import TensorOutcome
from merganser.errors import InputError, OutputExistsError, ResourceError, reraise_os_errors
from merganser.merging.journal import Journal, difference, files_of
from merganser.merging.lock import Lock
from merganser.merging.shared_folder import SHARED, check_no_workers, complete_files
from merganser.planning import DISK_MARGIN, Plan
from merganser.sinks import SafetensorsSink

Leftover = Literal["refuse", "resume", "discard", "either"]
"""How to treat an unfinished merge: raise; resume (raise if it is another merge); delete; or resume
if it is the same merge and delete otherwise."""

LOCK, JOURNAL, NEW, OLD = "lock", "journal.jsonl", "new", "old"

# -- before a merge --------------------------------------------------------------------------------


def partial_of(folder: Path) -> Path:
    """Return the path of the unfinished output, ``OUT.partial``."""
    return folder.with_name(folder.name + ".partial")


@reraise_os_errors(ResourceError, "looked at", "the output")
def check_existing(folder: Path, force: bool) -> None:
    """Raise if the output exists, or cannot be an output.

    Raises:
        OutputExistsError: when it exists.
        ResourceError: when the file system gives no answer.
    """
    partial = partial_of(folder)
    if Path.cwd().is_relative_to(folder):
        raise OutputExistsError(f"{folder}: is the current folder; choose another output folder")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputExistsError(f"{folder}: exists and is not a folder; choose another name")
    if folder.is_mount():
        raise OutputExistsError(f"{folder}: is a mount point; choose a folder below it")
    if _is_filled(folder) and not force:
        raise OutputExistsError(
            f"{folder}: exists and is not empty; choose another name, or give force=True"
        )
    if partial.is_symlink() or (partial.exists() and not _is_ours(partial)):
        raise OutputExistsError(f"{partial}: exists, but is not an unfinished merge; move it away")


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_ours(partial: Path) -> bool:
    """Whether a merge left the folder: it has a journal, or only files that precede one."""
    if not partial.is_dir():
        return False
    names = {entry.name for entry in partial.iterdir()}
    return names <= {LOCK, JOURNAL, NEW, OLD, SHARED, f"{Path(JOURNAL).stem}.new"}


@reraise_os_errors(ResourceError, "looked at", "the output")
def check_overlap(plan: Plan, folder: Path) -> None:
    """Raise if the output is inside an input or contains one, under any of their names.

    Raises:
        OutputExistsError: when it does.
        ResourceError: when the file system gives no answer.
    """
    for given, name in plan.homes.items():
        for target in (folder, partial_of(folder)):
            if _holds(target, given) or _holds(given, target):
                raise OutputExistsError(
                    f"{folder}: is inside the input {name}, or contains it; choose another folder"
                )


def _holds(outer: Path, inner: Path) -> bool:
    """Whether a folder equals or contains another, by file identity, which resolves links, mounts, and
    names that differ only in case."""
    outer, inner = outer.resolve(), inner.resolve()
    if inner.is_relative_to(outer):
        return True
    if not outer.exists():
        return False
    return any(place.exists() and place.samefile(outer) for place in (inner, *inner.parents))


@reraise_os_errors(ResourceError, "looked at", "the output")
def check_space(plans: Mapping[Path, Plan]) -> None:
    """Check that all merges together fit on their disks, counting files already written.

    Args:
        plans: by output folder.

    Raises:
        ResourceError: when a disk is too small, or its free space is unknown.
    """
    disks: dict[int, tuple[Path, list[Path]]] = {}
    for folder in plans:
        parent = folder.absolute().parent
        while not parent.exists():
            parent = parent.parent
        disks.setdefault(parent.stat().st_dev, (parent, []))[1].append(folder)
    for parent, folders in disks.values():
        free = shutil.disk_usage(parent).free
        needed = sum(plans[f].output_bytes - _written(f, plans[f]) for f in folders) + DISK_MARGIN
        if free < needed:
            what = "the merge needs" if len(folders) == 1 else f"the {len(folders)} merges need"
            raise ResourceError(
                f"{parent}: has {number_format.size(free)} free, and {what} {number_format.size(needed)}"
            )


def _written(folder: Path, plan: Plan) -> int:
    """Return the bytes of an unfinished output: of finished files, which stay if it is the plan's, and
    what others take on the disk, which will be deleted, or are being written."""
    partial = partial_of(folder)
    if not partial.is_dir():
        return 0
    journal = Journal(partial / JOURNAL)
    finished: dict[str, Any] = {}
    if journal.stated is not None and difference(journal.stated, plan) is None:
        finished = journal.finished
    others = 0
    for entry in (partial / NEW).rglob("*"):
        if entry.relative_to(partial / NEW).as_posix() not in finished:
            with suppress(FileNotFoundError):  # another process has just finished the folder
                status = entry.stat()
                others += 512 * status.st_blocks if entry.is_file() else 0
    return files_of(tuple(finished), plan) + others


def clear_finished(folder: Path) -> None:
    """Delete ``OUT.partial`` if the merge was killed after it had finished ``OUT``."""
    partial = partial_of(folder)
    with suppress(OSError, OutputExistsError):
        if not _is_filled(folder) or partial.is_symlink() or not _is_ours(partial):
            return
        if (partial / NEW).exists():
            return
        lock = Lock(partial / LOCK)
        try:
            for name in (OLD, SHARED, JOURNAL):
                _remove(partial / name)
        finally:
            lock.release()
        partial.rmdir()


# -- the unfinished folder -------------------------------------------------------------------------


class Partial:
    """An unfinished output folder, locked by this process.

    Attributes:
        folder: the output folder.
        new: the folder where files are written.
        shared: the folder for what workers share.
        known: results for tensors of finished files, by name.
        journal: records finished files.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        *,
        force: bool,
        leftover: Leftover,
        digest_inputs: bool = False,
        shared: bool = False,
    ) -> None:
        """Acquire a new folder or an unfinished one.

        Args:
            folder: the output folder.
            plan: the merge.
            force: whether the output folder may be replaced.
            leftover: how to treat an unfinished merge.
            digest_inputs: whether resumed files need their inputs' digests.
            shared: whether other processes write files too; those of the same merge go on with it.

        Raises:
            OutputExistsError: when another process works there, the folder must not be replaced, or
                another merge's files cannot be resumed.
            ResourceError: when the folder cannot be created.
        """
        self.folder = folder
        self.plan = plan
        self._force = force
        self._leftover = leftover
        self._path = partial_of(folder)
        self.new = self._path / NEW
        self.shared = self._path / SHARED
        self._made = [parent for parent in self._path.parents if not parent.exists()]
        try:
            self._lock = self._locked()
        except OSError as error:
            with suppress(OSError):  # missing or not empty
                self._path.rmdir()
            self.remove_parents()
            raise ResourceError(f"{self._path}: cannot be created ({error.strerror})") from None
        self.journal = Journal(self._path / JOURNAL)
        try:
            self._bring_back_old()
            if _is_filled(folder) and not force:
                raise OutputExistsError(
                    f"{folder}: exists and is not empty; give force=True to replace it"
                )
            self.known = self._take_over(leftover, digest_inputs, shared)
            self.journal.begin(plan)
            system.sync(self._path)
        except BaseException as error:
            if self.journal.stated is None or (self._path / JOURNAL).stat().st_size == 0:
                self._remove()
                self.remove_parents()
            else:
                self._lock.release(unlink=False)
            if isinstance(error, OSError):
                message = f"{self._path}: cannot be created ({error.strerror})"
                raise ResourceError(message) from None
            raise

    def _locked(self) -> Lock:
        """Create and lock the folder, again if another process deletes it meanwhile."""
        for _ in range(100):
            self._path.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                return Lock(self._path / LOCK)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _take_over(
        self, leftover: Leftover, digest_inputs: bool, shared: bool
    ) -> dict[str, TensorOutcome]:
        """Delete its content, except finished files to resume from, and files that workers write."""
        stated = self.journal.stated
        if stated is not None and leftover == "refuse":
            raise OutputExistsError(
                f"{self._path}: is an unfinished merge, with {self._count()} complete; give "
                "resume=True to finish it, or force=True to start over"
            )
        same = False
        if stated is None or leftover == "discard":
            self.journal.finished = {}
        elif (reason := difference(stated, self.plan)) is not None:
            if leftover == "resume":
                raise OutputExistsError(
                    f"{self._path}: cannot be resumed: {reason}; give force=True to start over"
                )
            self.journal.finished = {}
        else:
            same = True
            self.journal.finished |= complete_files(self.shared, self.plan)
        if self.shared.exists() and not (same and shared):
            check_no_workers(self.shared)
            _remove(self.shared)
        self.new.mkdir(exist_ok=True)
        known = self.journal.verify_finished(self.plan, self.new, digest_inputs)
        files = [shard.file for shard in self.plan.shards]
        stays = files if same and shared else list(self.journal.finished)
        for entry in list(self.new.rglob("*")):
            name = entry.relative_to(self.new).as_posix()
            complete = any(f"{file}/".startswith(f"{name}/") for file in stays)
            if not complete and os.path.lexists(entry):
                _remove(entry)
        return known

    def _count(self) -> str:
        return f"{len(self.journal.finished)} of {len(self.plan.shards)} files"

    def _bring_back_old(self) -> None:
        """Undo an interrupted replacement of the output; after a complete one, delete the old folder."""
        old = self._path / OLD
        if old.is_dir():
            if self.folder.exists():
                shutil.rmtree(old)
            else:
                old.rename(self.folder)

    def sink(self) -> SafetensorsSink:
        """Return a sink that writes the remaining files."""
        shards = [shard for shard in self.plan.shards if shard.file not in self.journal.finished]
        return SafetensorsSink(self.new, shards, self.journal.note_file)

    def put_in_place(self) -> None:
        """Sync all files and rename the folder to its final name; an old folder is moved aside
        until then.

        Raises:
            ResourceError: when that fails; an old folder is back in its place.
            OutputExistsError: when a folder appeared there in the meantime.
        """
        if _is_filled(self.folder) and not self._force:
            raise OutputExistsError(
                f"{self.folder}: appeared while the merge ran, so it is not replaced; the merge is in {self._path}"
            )
        old = self._path / OLD
        try:
            for file in (*self.new.rglob("*"), self.new):
                system.sync(file)
            if self.folder.exists():
                self.folder.rename(old)
            try:
                self.new.rename(self.folder)
                system.sync(self.folder.parent)
            except BaseException:
                if not self.new.exists():
                    self.folder.rename(self.new)
                self._bring_back_old()
                raise
        except OSError as error:
            raise ResourceError(
                f"{self.folder}: cannot be put in place ({error.strerror})"
            ) from None
        with suppress(OSError):  # the output is complete: leftovers do no harm
            self._remove()

    def abandon(self) -> str | None:
        """Release the unfinished folder; keep its finished files if it can be resumed, else delete it.

        Returns:
            A clause about the remaining files; None if there are none.
        """
        units = self.shared.is_dir() and any(self.shared.glob("*.result"))
        if not (self.journal.finished or units) or not self._inputs_are_the_same():
            self._remove()
            return None
        self.journal.close()
        self._lock.release(unlink=False)
        how = "the next run" if self._leftover == "either" else "resume=True"
        return f"{self._path} has {self._count()} complete; {how} continues from there"

    def _inputs_are_the_same(self) -> bool:
        try:
            self.plan.check_inputs_unchanged()
        except InputError:
            return False
        return True

    def _remove(self) -> None:
        try:
            self.journal.close()
            for entry in (self.shared, self.new, self._path / OLD, self._path / JOURNAL):
                _remove(entry)
        finally:
            self._lock.release()
        try:
            self._path.rmdir()
        except OSError:  # another merge has started there, or the disk fails: no data is lost
            return

    def remove_parents(self) -> None:
        """Delete the parent folders created for it, if they are empty."""
        for parent in self._made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def abandon_all(partials: Iterable[Partial]) -> list[str]:
    """Release unfinished folders, ignoring errors; see :meth:`Partial.abandon`."""
    notes, left = [], list(partials)
    for partial in left:
        try:
            note = partial.abandon()
        except OSError:
            note = f"{partial.new.parent} is left unchanged"
        notes += [note] if note else []
    for partial in left:
        partial.remove_parents()
    return notes
