"""Run programs that models wrote: in a separate process, with limits and Linux's isolation.

Processor time, memory, file sizes and processes are always limited. Landlock prevents writing outside
the temporary folder (Linux 5.13) and TCP connections (Linux 6.7). Namespaces separate the program from
all networks and other processes, on systems where users may create them. Programs can read files. This
protects against careless programs; for programs that attack the kernel, use a virtual machine.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import MerganserError

SPACES = ("--user", "--net", "--pid", "--ipc", "--fork", "--kill-child")
"""Options of ``unshare``: new namespaces of users, networks, processes and inter-process communication."""

MOST_OUTPUT = 2**20
"""Maximum number of bytes that are read: of stdout from its beginning, of stderr from its end."""

FILE_SIZE = 16 * 2**20
"""Maximum size in bytes of a file that a program writes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on a program's resources.

    Attributes:
        seconds: limit on elapsed time and on processor time; one second later the program is killed.
        memory: address space in bytes.
        processes: number of further processes and threads.
    """

    seconds: float = 10.0
    memory: int = 1024 * 2**20
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of running a program.

    Attributes:
        passed: whether the program and its checks ran to their end.
        reason: the last line of stderr, or the limit that was exceeded; empty if it passed.
        output: the program's stdout, at most :data:`MOST_OUTPUT` bytes of it.
        lacking: protections that this system lacks: ``files``, ``network``.
    """

    passed: bool
    reason: str
    output: str
    lacking: tuple[str, ...]


def run(program: str, checks: str = "", *, stdin: str = "", limits: Limits = Limits()) -> Outcome:
    """Run a Python program, then checks in its namespace.

    Args:
        program: the program.
        checks: statements that raise an exception if the program is wrong.
        stdin: the text of its standard input.
        limits: limits on its resources.

    Raises:
        MerganserError: the system is not Linux, or no process can be started.
    """
    if not sys.platform.startswith("linux"):
        raise MerganserError("programs of models are run on Linux only, which can limit them")
    with tempfile.TemporaryDirectory(prefix="merganser-") as home:
        folder = Path(home) / "work"
        folder.mkdir()
        token = secrets.token_hex(16)
        order = Path(home) / "order.json"
        order.write_text(
            json.dumps(
                {
                    "program": program,
                    "checks": checks,
                    "token": token,
                    "folder": str(folder),
                    "seconds": limits.seconds,
                    "memory": limits.memory,
                    "file_size": FILE_SIZE,
                    "processes": limits.processes,
                }
            )
        )
        (Path(home) / "in").write_text(stdin)
        said, late, status, out, errors = _run(Path(home), order, limits.seconds)
    lacking, _, rest = said.partition("\n")
    missing = [what for what in lacking.split() if what == "files" or not _spaces()]
    passed = rest == token and not late
    reason = "" if passed else _reason(late, status, errors, limits)
    return Outcome(passed, reason, out, tuple(missing))


def _run(home: Path, order: Path, seconds: float) -> tuple[str, bool, int, str, str]:
    """Run the child; return its pipe's text, whether it exceeded the time, its status, stdout and stderr."""
    reader, writer = os.pipe()
    child = Path(__file__).with_name("sandbox_child.py")
    command = [*_spaces(), sys.executable, "-I", "-B", str(child), str(order), str(writer)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home / "work"),
        "TMPDIR": str(home / "work"),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with (
        (home / "in").open("rb") as stdin,
        (home / "out").open("wb") as stdout,
        (home / "errors").open("wb") as stderr,
        os.fdopen(reader, "rb") as pipe,
    ):
        try:
            process = subprocess.Popen(
                command,
                cwd=home / "work",
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        ended = os.pidfd_open(process.pid)
        try:
            late = not select.select([ended], [], [], seconds + 1.0)[0]
        finally:
            os.close(ended)
            with suppress(ProcessLookupError):  # the process group exists until wait()
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        os.set_blocking(pipe.fileno(), False)
        said = pipe.read(4096) or b""
    out = (home / "out").read_bytes()[:MOST_OUTPUT].decode("utf-8", "replace")
    errors = (home / "errors").read_bytes()[-MOST_OUTPUT:].decode("utf-8", "replace")
    return said.decode("utf-8", "replace"), late, status, out, errors


def _reason(late: bool, status: int, errors: str, limits: Limits) -> str:
    if late or status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return f"took longer than {limits.seconds:g} s"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    last = lines[-1][:200] if lines else ""
    if "MemoryError" in last or "Cannot allocate memory" in errors:
        return f"needed more than {limits.memory // 2**20} MB of memory"
    if last:
        return last
    return "ended before its checks" if status == 0 else f"ended with status {status}"


@functools.cache
def _spaces() -> tuple[str, ...]:
    """The command prefix that runs a program in new namespaces; empty if the system does not allow them."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, *SPACES)
    with suppress(OSError, subprocess.TimeoutExpired):
        tried = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False)
        if tried.returncode == 0:
            return command
    return ()


@functools.cache
def lacking() -> tuple[str, ...]:
    """Protections that this system lacks: ``files`` (programs can write anywhere), ``network``.

    Raises:
        MerganserError: see :func:`run`.
    """
    return run("").lacking
