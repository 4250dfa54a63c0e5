"""Run one command as a whole process and measure its time and memory.

This module and whatever imports it stay small on purpose: the kernel counts the resident memory
that a child had *before* it became the measured program, which is that of this process, in the
child's ``ru_maxrss``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
_KIB = 1024 / 1e6


@dataclass(frozen=True)
class Usage:
    """What one process took. Memory is in MB (a million bytes), time in seconds."""

    returncode: int
    timed_out: bool
    wall_s: float
    cpu_s: float
    """User and system time."""
    anonymous_mb: float
    """Highest sampled RssAnon + RssShmem: memory that only this process can give back."""
    file_mb: float
    """Highest sampled RssFile: pages of mapped files, inputs included, that the system may drop."""
    resident_mb: float
    """Highest sampled sum of the two, at one moment."""
    hwm_mb: float
    """The kernel's own high-water mark of the main process (VmHWM), as last seen."""
    maxrss_mb: float
    """ru_maxrss of wait4: exact, but mapped input pages count."""
    disk_read_mb: float
    disk_written_mb: float


class _Sampler(threading.Thread):
    """Watches a process and its descendants until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.anonymous = self.file = self.resident = self.hwm = 0.0

    def run(self) -> None:
        while True:
            self._sample()
            if self._done.wait(SAMPLE_SECONDS):
                return

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _sample(self) -> None:
        anonymous = file = 0.0
        for pid in self._tree():
            fields = _status(pid)
            anonymous += fields.get("RssAnon", 0.0) + fields.get("RssShmem", 0.0)
            file += fields.get("RssFile", 0.0)
            if pid == self._pid:
                self.hwm = max(self.hwm, fields.get("VmHWM", 0.0))
        self.anonymous = max(self.anonymous, anonymous)
        self.file = max(self.file, file)
        self.resident = max(self.resident, anonymous + file)

    def _tree(self) -> list[int]:
        """The process and its descendants, so that workers do not hide memory."""
        found = [self._pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError):
                        found += map(int, (task / "children").read_text().split())
        return found


def _status(pid: int) -> dict[str, float]:
    """The memory lines of /proc/PID/status in MB; empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    fields: dict[str, float] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.startswith(("Rss", "VmHWM")):
            fields[key] = int(value.split()[0]) * _KIB
    return fields


def measure(
    command: Sequence[str | Path],
    *,
    stdout: Path,
    stderr: Path,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> Usage:
    """Run ``command`` to its end and return what it took.

    Output goes to files, because a full pipe would stop the measured process.
    """
    timed_out = threading.Event()

    def kill() -> None:
        timed_out.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    with stdout.open("wb") as out, stderr.open("wb") as err:
        started = time.perf_counter()
        # As for users: Python stores compiled modules, which saves every process a second.
        compiled = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**compiled, **(environment or {})},
            start_new_session=True,
        )
        sampler = _Sampler(process.pid)
        sampler.start()
        timer = threading.Timer(timeout_s, kill)
        timer.daemon = True
        timer.start()
        try:
            # Popen.wait would throw the resource usage away.
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
        except BaseException:
            kill()
            process.wait()
            raise
        finally:
            timer.cancel()
            sampler.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
    return Usage(
        returncode=process.returncode,
        timed_out=timed_out.is_set(),
        wall_s=wall,
        cpu_s=usage.ru_utime + usage.ru_stime,
        anonymous_mb=sampler.anonymous,
        file_mb=sampler.file,
        resident_mb=sampler.resident,
        hwm_mb=sampler.hwm,
        maxrss_mb=usage.ru_maxrss * _KIB,
        # The kernel counts blocks of 512 bytes.
        disk_read_mb=usage.ru_inblock * 512 / 1e6,
        disk_written_mb=usage.ru_oublock * 512 / 1e6,
    )
