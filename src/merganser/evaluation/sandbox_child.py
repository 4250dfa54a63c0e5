"""The child process of ``sandbox``: runs a program within limits, then its checks. Standard library only.

It reads a JSON object from a file: the limits, the program, the checks, and a token. It writes the token
to a pipe only if program and checks run to their end.
"""

import ctypes
import json
import os
import resource
import signal
import sys

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of Landlock's system calls, on every architecture except alpha."""

WRITING = 0b0001_1111_1111_0010
"""Landlock's rights to write, create, and remove files and folders."""

TRUNCATE = 1 << 14

SET_NO_NEW_PRIVILEGES = 38


class Beneath(ctypes.Structure):
    """Landlock's ``landlock_path_beneath_attr``: the rights allowed below a folder."""

    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def limit(seconds: float, memory: int, file_size: int, processes: int) -> None:
    """Limit processor time, memory, sizes of files, and processes of this process and its children."""
    whole = max(1, round(seconds + 1))
    for kind, most in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        later = kind == resource.RLIMIT_CPU and hard in (resource.RLIM_INFINITY, most + 1)
        resource.setrlimit(kind, (most, most + later))  # so that SIGXCPU precedes SIGKILL


def confine(folder: str) -> str:
    """Forbid TCP, and writing outside one folder, with Landlock; return the protections the kernel lacks."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
        return int(libc.syscall(ctypes.c_long(number), *given))

    version = call(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return "files network"
    writing = WRITING | (1 << 13 if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    network, scoped = (0b11 if version >= 4 else 0), (0b11 if version >= 6 else 0)
    rights = (ctypes.c_uint64 * 3)(writing, network, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = call(CREATE_RULESET, ctypes.byref(rights), size, 0)
    if rules < 0:
        return "files network"
    libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    held = True
    to_a_file = writing & (0b10 | TRUNCATE)
    for path, allowed in ((folder, writing), ("/dev/null", to_a_file)):
        place = os.open(path, os.O_PATH)
        beneath = Beneath(allowed, place)
        held = call(ADD_RULE, rules, 1, ctypes.byref(beneath), 0) == 0 and held
        os.close(place)
    held = held and call(RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    if not held:
        return "files network"
    return "" if network else "network"


def run(order: "dict[str, object]", pipe: int) -> None:
    """Run the program and its checks, then write the token to the pipe."""
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    for part in ("program", "checks"):
        exec(compile(str(order[part]), f"<{part}>", "exec"), names)
    sys.stdout.flush()
    os.write(pipe, str(order["token"]).encode())


def main() -> None:
    """Read the order, apply the limits, and run the program."""
    path, pipe = sys.argv[1], int(sys.argv[2])
    with open(path) as file:  # noqa: PTH123 (pathlib takes a tenth of the start)
        order = json.load(file)
    os.unlink(path)  # noqa: PTH108 (it holds the token)
    os.chdir(order["folder"])
    lacking = confine(order["folder"])
    os.write(pipe, f"{lacking}\n".encode())
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    limit(order["seconds"], order["memory"], order["file_size"], order["processes"])
    sys.argv = ["program"]
    run(order, pipe)


if __name__ == "__main__":
    main()
