"""A lock between processes, based on a file."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from merganser import system
from merganser.errors import OutputExistsError


class LockedError(OutputExistsError):
    """Another process writes the output."""


class Lock:
    """A file that one process locks at a time. The lock ends with the process.

    On file systems without locks, the process named in the file holds it while that process
    lives.
    """

    def __init__(self, file: Path) -> None:
        """Acquire the lock.

        Raises:
            LockedError: when another process has it.
            OSError: when the file cannot be created.
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
            os.close(self._descriptor)  # the process that held it has removed it
        try:
            os.ftruncate(self._descriptor, 0)
            system.write_at(self._descriptor, f"{os.getpid()} {platform.node()}\n".encode(), 0)
        except BaseException:
            self.release()
            raise

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.file.stat())
        except FileNotFoundError:
            return False

    def _holder(self) -> tuple[int, str]:
        """Return the process id and the machine that the file names; process 0 if it names none."""
        text = bytearray(300)
        count = system.read_at(self._descriptor, memoryview(text), 0)
        number, _, host = text[:count].decode(errors="replace").partition(" ")
        return int(number) if number.isdecimal() else 0, host.strip()

    def _check_living(self) -> None:
        number, host = self._holder()
        if not number:
            return
        if host == platform.node():
            if number == os.getpid():  # process ids are reused, especially in containers
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
        raise LockedError(f"{self.file.parent}: another merge{who} is writing there{hint}")

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
