"""Load the compiled kernels for this processor, and report which ones run."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import Any, get_args

from merganser.kernels import MOST, build, self_test
from merganser.kernels.arguments import Inputs
from merganser.kernels.steps import How

VARIABLE = "MERGANSER_KERNELS"
"""Environment variable: an instruction level instead of the best one, or ``none`` for numpy."""

# Processor features that a level requires, as Linux names them.
_V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_FLAGS = {
    "x86_64_v3": _V3,
    "x86_64_v4": _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "neon": set(),
}

SIGNATURES = {
    **{step.kernel: "p" for step in get_args(How)},
    "measure": "piip",
    "measure_rows": "piiiipp",
    "measure_columns": "piiiip",
    "combine_each": "piipiiiip",
    "norms": "piipiip",
    "tally": "piip",
    "sample_keys": "piiip",
    "count_shared": "piidp",
    "draw_by_rank": "piip",
    "diverge": "piiipp",
    "count_keys": "piiipipp",
    "digest": "pipi",
    "count_nonfinite": "pii",
    "widen_all": "piip",
    "compare": "pipp",
    "add_product": "p",
    "add_squares": "piiip",
    "look_up": "pipppiiiip",
}
"""All kernels, with their argument types: pointers, 64-bit integers, doubles."""

_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}

_lock = threading.Lock()
_loaded: list[tuple[ctypes.CDLL | None, str]] = []


def kernels() -> ctypes.CDLL | None:
    """The compiled kernels; None to use numpy."""
    return _state()[0]


def kernels_for(inputs: Inputs) -> ctypes.CDLL | None:
    """The compiled kernels; None if there are none, or for too many inputs."""
    return kernels() if len(inputs.rows) <= MOST else None


def description() -> str:
    """The kernels in use: a level, or numpy with the reason."""
    return _state()[1]


def warning() -> str | None:
    """A one-line warning if numpy is used without the user's choice."""
    library, reason = _state()
    if library is not None or os.environ.get(VARIABLE) == "none":
        return None
    return f"the compiled kernels are not used ({reason}); numpy computes the same bits, slower"


def use(level: str | None) -> None:
    """Switch to another level, for tests; None for the best."""
    with _lock:
        _loaded[:] = [_load(level)]


def levels() -> list[str]:
    """The levels that this processor supports and that are built, best first."""
    return list(dict.fromkeys(level for level, _ in _libraries()))


def _libraries() -> list[tuple[str, Path]]:
    """Levels and files, best first; those next to the sources before those in the cache."""
    system = build.this_platform()
    if system is None:
        return []
    has = _processor_flags()
    return [
        (level, path)
        for level in build.LEVELS[build.TARGETS[system][0]]
        if has is None or has >= _FLAGS[level]
        for folder in _folders()
        if (path := folder / build.file_name(level, system)).exists()
    ]


def _folders() -> list[Path]:
    """Where libraries may be."""
    cached = [] if build.CACHE is None else [build.CACHE / build.source_digest()]
    return [build.BUILT, *cached]


def _reason() -> str:
    """Why there is no library for this processor."""
    system = build.this_platform()
    if system is None:
        return "there are none for this platform"
    levels = build.LEVELS[build.TARGETS[system][0]]
    names = [build.file_name(level, system) for level in levels]
    if any((folder / name).exists() for folder in _folders() for name in names):
        return f"this processor is older than {levels[-1]}"
    places = " or ".join(str(folder) for folder in _folders())
    return f"none are in {places}; python -m merganser.kernels.build builds them"


def _state() -> tuple[ctypes.CDLL | None, str]:
    if not _loaded:
        with _lock:
            if not _loaded:
                _loaded.append(_load(os.environ.get(VARIABLE) or None))
    return _loaded[0]


def _load(wanted: str | None) -> tuple[ctypes.CDLL | None, str]:
    if wanted == "none":
        return None, f"numpy: {VARIABLE} is none"
    found = _libraries()
    if wanted is not None and wanted not in (level for level, _ in found):
        names = ", ".join(["none", *(level for level, _ in found)])
        return None, f"{VARIABLE}: {wanted!r} is none of {names}"
    reason = _reason() if not found else ""
    for level, path in found:
        if wanted is not None and level != wanted:
            continue
        try:
            _check_end(path)
            library = ctypes.CDLL(str(path))
        except OSError as error:
            reason = f"{path.name} does not load: {error}"
            continue
        if problem := _check(library):
            reason = f"{path.name} {problem}"
            continue
        return library, level
    return None, reason


def _check_end(path: Path) -> None:
    """Check that a library for Linux is complete: loading a part of one kills the process.

    Raises:
        OSError: when the file ends before the table of its sections.
    """
    with path.open("rb") as file:
        header = file.read(64)
    table, size, count = (
        int.from_bytes(header[begin:end], "little") for begin, end in ((40, 48), (58, 60), (60, 62))
    )
    if header[:4] == b"\x7fELF" and path.stat().st_size < table + size * count:
        raise OSError("the file is not complete")


def _check(library: ctypes.CDLL) -> str | None:
    """Why a library is unusable; None if it is usable."""
    try:
        stamp = library.stamp
        stamp.restype = ctypes.c_char_p
    except AttributeError:
        return "is not a library of kernels"
    if build.SOURCE.exists() and stamp() != build.source_digest().encode():
        return "is built from other sources: python -m merganser.kernels.build"
    for name, kinds in SIGNATURES.items():
        if not hasattr(library, name):
            return f"has no function {name}: python -m merganser.kernels.build"
        getattr(library, name).argtypes = [_KINDS[kind] for kind in kinds]
    library.count_nonfinite.restype = ctypes.c_int64
    return self_test.problem(library)


def _processor_flags() -> set[str] | None:
    """Processor features, as Linux names them; None if the architecture implies them."""
    if build.this_platform() in ("linux-aarch64", "macos-aarch64"):
        return None
    if sys.platform == "darwin":
        return _flags_of_macos()
    if sys.platform == "win32":
        return _flags_of_windows()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _flags_of_macos() -> set[str]:
    library = ctypes.CDLL("/usr/lib/libSystem.dylib")
    names = {
        "avx2": "avx2_0",
        "fma": "fma",
        "f16c": "f16c",
        "movbe": "movbe",
        "bmi1": "bmi1",
        "bmi2": "bmi2",
    }
    names |= {name: name for name in _FLAGS["x86_64_v4"] if name.startswith("avx512")}
    found = set()
    for flag, name in names.items():
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        key = f"hw.optional.{name}".encode()
        if (
            not library.sysctlbyname(key, ctypes.byref(value), ctypes.byref(size), None, 0)
            and value.value
        ):
            found.add(flag)
    return found


def _flags_of_windows() -> set[str]:
    """Windows reports AVX2 (40) and AVX-512 (41); processors with these have the rest of the
    level."""
    kernel32: Any = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    found = set(_FLAGS["x86_64_v3"]) if kernel32.IsProcessorFeaturePresent(40) else set()
    return found | _FLAGS["x86_64_v4"] if kernel32.IsProcessorFeaturePresent(41) else found
