"""The output folder: what may be replaced, the unfinished folder beside it, and how it gets its name.

All of an unfinished merge is in ``OUT.partial``:

    lock            held by the process at work
    journal.jsonl   what is merged, and which files are whole
    new/            the output folder to be
    old/            the folder that it replaces, between two renames

``new/`` becomes ``OUT`` by one rename, when all in it is whole and synced.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from merganser import number_format, system
from merganser.engine import TensorOutcome
from merganser.errors import InputError, OutputExistsError, ResourceError, reraise_os_errors
from merganser.merging.journal import Journal, difference, files_of
from merganser.planning import DISK_MARGIN, Plan
from merganser.sinks import SafetensorsSink

Leftover = Literal["refuse", "resume", "discard", "either"]
"""What becomes of an unfinished merge: it is refused, gone on with (or refused where it is another),
thrown away, or gone on with where it is the same and thrown away where it is not."""

LOCK, JOURNAL, NEW, OLD = "lock", "journal.jsonl", "new", "old"

# -- before a merge --------------------------------------------------------------------------------


def partial_of(folder: Path) -> Path:
    """Where the unfinished output lies."""
    return folder.with_name(folder.name + ".partial")


@reraise_os_errors(ResourceError, "looked at", "the output")
def check_existing(folder: Path, force: bool) -> None:
    """Refuse an output that is there, or that cannot be one.

    Raises:
        OutputExistsError: when it is.
        ResourceError: when that cannot be told.
    """
    partial = partial_of(folder)
    if Path.cwd().is_relative_to(folder):
        raise OutputExistsError(
            f"{folder}: is where you are; give the output folder a name of its own"
        )
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputExistsError(f"{folder}: is there already, and is no folder")
    if folder.is_mount():
        raise OutputExistsError(f"{folder}: is a mount point; name a folder in it")
    if _is_filled(folder) and not force:
        raise OutputExistsError(
            f"{folder}: is there already and not empty; choose another name, or give force=True"
        )
    if partial.is_symlink() or (partial.exists() and not _is_ours(partial)):
        raise OutputExistsError(f"{partial}: is there already, and no merge left it; move it away")


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_ours(partial: Path) -> bool:
    """Whether a merge left it: it has a journal, or nothing but what comes before that."""
    if not partial.is_dir():
        return False
    names = {entry.name for entry in partial.iterdir()}
    return names <= {LOCK, JOURNAL, NEW, OLD, f"{Path(JOURNAL).stem}.new"}


@reraise_os_errors(ResourceError, "looked at", "the output")
def check_overlap(plan: Plan, folder: Path) -> None:
    """Refuse an output that lies in an input, or the other way round, by any of their names.

    Raises:
        OutputExistsError: when it does.
        ResourceError: when that cannot be told.
    """
    for given, name in plan.homes.items():
        for target in (folder, partial_of(folder)):
            if _holds(target, given) or _holds(given, target):
                raise OutputExistsError(f"{folder}: lies in the input {name}, or holds it")


def _holds(outer: Path, inner: Path) -> bool:
    """Whether a folder is another's, or above it; told by the file system, which knows of links,
    mounts, and names that differ in case only."""
    outer, inner = outer.resolve(), inner.resolve()
    if inner.is_relative_to(outer):
        return True
    if not outer.exists():
        return False
    return any(place.exists() and place.samefile(outer) for place in (inner, *inner.parents))


@reraise_os_errors(ResourceError, "looked at", "the output")
def check_space(plans: Mapping[Path, Plan]) -> None:
    """Refuse merges that do not all fit on their disks, with what is written of them counted.

    Args:
        plans: by the folders that they go to.

    Raises:
        ResourceError: when a disk is too small, or that cannot be told.
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
    """Bytes of an unfinished output: those of its finished files if it is the plan's, which will be
    kept, or all of them, which will go."""
    partial = partial_of(folder)
    if not partial.is_dir():
        return 0
    journal = Journal(partial / JOURNAL)
    if journal.stated is not None and difference(journal.stated, plan) is None:
        return files_of(tuple(journal.whole), plan)
    files = [entry for entry in (partial / NEW).rglob("*") if entry.is_file()]
    return sum(512 * entry.stat().st_blocks for entry in files)


def clear_finished(folder: Path) -> None:
    """Take away what a merge left beside a folder that it had finished when it was killed."""
    partial = partial_of(folder)
    with suppress(OSError, OutputExistsError):
        if not _is_filled(folder) or partial.is_symlink() or not _is_ours(partial):
            return
        if (partial / NEW).exists():
            return
        lock = Lock(partial / LOCK)
        try:
            for name in (OLD, JOURNAL):
                _remove(partial / name)
        finally:
            lock.release()
        partial.rmdir()


# -- the lock --------------------------------------------------------------------------------------


class Lock:
    """A file that one process holds at a time. It is let go of when the process ends, however it does.

    Where a file system has no such locks, the process that is named in it holds it as long as it lives.
    """

    def __init__(self, file: Path) -> None:
        """Take it.

        Raises:
            OutputExistsError: when somebody else has it.
            OSError: when it cannot be made.
        """
        self.file = file
        while True:
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | system.OPEN_FLAGS, 0o666)
            try:
                try:
                    system.lock(self._descriptor)
                except BlockingIOError:
                    self._refuse("")
                except OSError as error:
                    if error.errno not in system.NO_LOCKS:
                        raise
                    self._check_living()
                if self._is_in_place():
                    break
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)  # it was removed by its holder in the meantime
        try:
            os.ftruncate(self._descriptor, 0)
            system.write_at(self._descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            self.release()
            raise

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.file.stat())
        except FileNotFoundError:
            return False

    def _holder(self) -> tuple[int, str]:
        """Process and machine that are written in it; zero if there are none."""
        text = bytearray(300)
        count = system.read_at(self._descriptor, memoryview(text), 0)
        number, _, host = text[:count].decode(errors="replace").partition(" ")
        return int(number) if number.isdecimal() else 0, host.strip()

    def _check_living(self) -> None:
        number, host = self._holder()
        if not number:
            return
        if host == socket.gethostname():
            if number == os.getpid():  # numbers are given out again, in containers above all
                return
            try:
                os.kill(number, 0)
            except ProcessLookupError:
                return
            except PermissionError:
                pass
        self._refuse(
            f"; this file system has no locks: if no merge is running there, remove {self.file}"
        )

    def _refuse(self, hint: str) -> None:
        number, host = self._holder()
        who = f" (process {number} on {host})" if number else ""
        raise OutputExistsError(f"{self.file.parent}: another merge{who} is at work there{hint}")

    def release(self, *, unlink: bool = True) -> None:
        """Release the lock.

        Args:
            unlink: whether to remove the file; otherwise it stays, empty, for the next process.
        """
        try:
            if unlink:
                self.file.unlink(missing_ok=True)
            else:
                os.ftruncate(self._descriptor, 0)
        finally:
            os.close(self._descriptor)


# -- the unfinished folder -------------------------------------------------------------------------


class Partial:
    """An unfinished output folder that this process is at work on.

    Attributes:
        folder: what it will be.
        new: where its files are written.
        known: what is known of tensors whose files are whole, by name.
        journal: takes note of files that become whole.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        *,
        force: bool,
        leftover: Leftover,
        digest_inputs: bool = False,
    ) -> None:
        """Take hold of it: of a new one, or of one that was left unfinished.

        Args:
            folder: the output folder.
            plan: the merge.
            force: whether the output folder may be replaced.
            leftover: what becomes of an unfinished merge.
            digest_inputs: whether inputs' digests must be known of files that are gone on with.

        Raises:
            OutputExistsError: when another process is at work there, or what is there may not be
                replaced, or is another merge's and was to be gone on with.
            ResourceError: when it cannot be made.
        """
        self.folder = folder
        self.plan = plan
        self._force = force
        self._leftover = leftover
        self._path = partial_of(folder)
        self.new = self._path / NEW
        self._made = [parent for parent in self._path.parents if not parent.exists()]
        try:
            self._lock = self._locked()
        except OSError as error:
            with suppress(OSError):  # it is not there, or has something in it
                self._path.rmdir()
            self.remove_parents()
            raise ResourceError(f"{self._path}: cannot be made ({error.strerror})") from None
        self.journal = Journal(self._path / JOURNAL)
        try:
            self._bring_back_old()
            if _is_filled(folder) and not force:
                raise OutputExistsError(
                    f"{folder}: is there already and not empty; give force=True to replace it"
                )
            self.known = self._take_over(leftover, digest_inputs)
            self.journal.begin(plan)
            system.sync(self._path)
        except BaseException as error:
            if self.journal.stated is None or (self._path / JOURNAL).stat().st_size == 0:
                self._remove()
                self.remove_parents()
            else:
                self._lock.release(unlink=False)
            if isinstance(error, OSError):
                told = f"{self._path}: cannot be made ({error.strerror})"
                raise ResourceError(told) from None
            raise

    def _locked(self) -> Lock:
        """Make the folder, and take its lock; another process may take the folder away meanwhile."""
        for _ in range(100):
            self._path.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                return Lock(self._path / LOCK)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _take_over(self, leftover: Leftover, digest_inputs: bool) -> dict[str, TensorOutcome]:
        """Clear up what is there, but for the files that are whole and wanted."""
        stated = self.journal.stated
        if stated is not None and leftover == "refuse":
            raise OutputExistsError(
                f"{self._path}: is what a merge left unfinished, with {self._count()} whole; give "
                "resume=True to go on, or force=True to begin anew"
            )
        if stated is None or leftover == "discard":
            self.journal.whole = {}
        elif (reason := difference(stated, self.plan)) is not None:
            if leftover == "resume":
                raise OutputExistsError(
                    f"{self._path}: cannot be resumed: {reason}; give force=True to begin anew"
                )
            self.journal.whole = {}
        self.new.mkdir(exist_ok=True)
        known = self.journal.keep_what_is_whole(self.plan, self.new, digest_inputs)
        for entry in list(self.new.rglob("*")):
            name = entry.relative_to(self.new).as_posix()
            kept = any(f"{file}/".startswith(f"{name}/") for file in self.journal.whole)
            if not kept and os.path.lexists(entry):
                _remove(entry)
        return known

    def _count(self) -> str:
        return f"{len(self.journal.whole)} of {len(self.plan.shards)} files"

    def _bring_back_old(self) -> None:
        """Undo half an exchange of the old folder for the new one; of a whole one the old folder is
        of no use any more."""
        old = self._path / OLD
        if old.is_dir():
            if self.folder.exists():
                shutil.rmtree(old)
            else:
                old.rename(self.folder)

    def sink(self) -> SafetensorsSink:
        """Takes the files that are not whole."""
        shards = [shard for shard in self.plan.shards if shard.file not in self.journal.whole]
        return SafetensorsSink(self.new, shards, self.journal.note_file)

    def put_in_place(self) -> None:
        """Sync all, and give the folder its name; an old one steps aside until it has it.

        Raises:
            ResourceError: when that cannot be done; an old folder is where it was.
            OutputExistsError: when a folder came there in the meantime.
        """
        if _is_filled(self.folder) and not self._force:
            raise OutputExistsError(f"{self.folder}: came there while the merge ran")
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
        with suppress(OSError):  # the output is whole: what else lies there does no harm
            self._remove()

    def abandon(self) -> str | None:
        """Leave it: with its finished files, if there are any that can be gone on with, else without
        a trace.

        Returns:
            A clause that says what is kept; None if nothing is.
        """
        if not self.journal.whole or not self._inputs_are_the_same():
            self._remove()
            return None
        self.journal.close()
        self._lock.release(unlink=False)
        how = "the next run" if self._leftover == "either" else "resume=True"
        return f"{self._path} has {self._count()} whole, and {how} goes on from there"

    def _inputs_are_the_same(self) -> bool:
        try:
            self.plan.check_inputs_unchanged()
        except InputError:
            return False
        return True

    def _remove(self) -> None:
        try:
            self.journal.close()
            for entry in (self.new, self._path / OLD, self._path / JOURNAL):
                _remove(entry)
        finally:
            self._lock.release()
        try:
            self._path.rmdir()
        except OSError:  # another merge has begun there, or the disk is at fault: nothing is lost
            return

    def remove_parents(self) -> None:
        """Take away the folders that were made for it, if nothing is in them."""
        for parent in self._made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def abandon_all(partials: Iterable[Partial]) -> list[str]:
    """Leave unfinished folders; see :meth:`Partial.abandon`. What fails doing so is passed over."""
    notes, left = [], list(partials)
    for partial in left:
        try:
            note = partial.abandon()
        except OSError:
            note = f"{partial.new.parent} is left as it is"
        notes += [note] if note else []
    for partial in left:
        partial.remove_parents()
    return notes
