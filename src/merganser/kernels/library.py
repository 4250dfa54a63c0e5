"""Loads the compiled kernels for this processor, and says which run."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path
from typing import Any

from merganser.kernels import build

VARIABLE = "MERGANSER_KERNELS"
"""An instruction level to use instead of the best one, or ``none`` for numpy."""

# What a level needs of the processor, as Linux names it.
_V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_FLAGS = {
    "x86_64_v3": _V3,
    "x86_64_v4": _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "neon": set(),
}

SIGNATURES = {
    **dict.fromkeys(("linear", "sparse", "given", "nearswap", "ram", "fusion"), "p"),
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
"""All kernels, with the kinds of their arguments: pointers, 64-bit integers, doubles."""

_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}

_lock = threading.Lock()
_loaded: list[tuple[ctypes.CDLL | None, str]] = []


def kernels() -> ctypes.CDLL | None:
    """The compiled kernels; None where numpy must do."""
    return _state()[0]


def description() -> str:
    """Which kernels run: a level, or numpy and why."""
    return _state()[1]


def warning() -> str | None:
    """One line for people where the slow kernels run unasked."""
    library, reason = _state()
    if library is not None or os.environ.get(VARIABLE) == "none":
        return None
    return f"the compiled kernels are not used ({reason}); numpy computes the same bits, slower"


def use(level: str | None) -> None:
    """Load another level from now on: for tests. None for the best."""
    with _lock:
        _loaded[:] = [_load(level)]


def levels() -> list[str]:
    """The levels that this processor has and that are built, the best first."""
    return list(dict.fromkeys(level for level, _ in _libraries()))


def _libraries() -> list[tuple[str, Path]]:
    """Levels and files, the best first; those beside the sources before those of other checkouts."""
    system = build.this_platform()
    if system is None:
        return []
    has = _processor_flags()
    folders = (build.BUILT, build.CACHE / build.source_digest())
    return [
        (level, path)
        for level in build.LEVELS[build.TARGETS[system][0]]
        if has is None or has >= _FLAGS[level]
        for folder in folders
        if (path := folder / build.file_name(level, system)).exists()
    ]


def _state() -> tuple[ctypes.CDLL | None, str]:
    if not _loaded:
        with _lock:
            if not _loaded:
                _loaded.append(_load(os.environ.get(VARIABLE) or None))
    return _loaded[0]


def _load(wanted: str | None) -> tuple[ctypes.CDLL | None, str]:
    if wanted == "none":
        return None, f"numpy: {VARIABLE} is none"
    if build.this_platform() is None:
        return None, "there are none for this platform"
    found = _libraries()
    if wanted is not None and wanted not in (level for level, _ in found):
        names = ", ".join(level for level, _ in found) or "no levels"
        return None, f"{VARIABLE}: {wanted!r} is none of {names}"
    reason = "none are built for this processor: python -m merganser.kernels.build"
    for level, path in found:
        if wanted is not None and level != wanted:
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            reason = f"{path.name} does not load: {error}"
            continue
        if problem := _check(library):
            reason = f"{path.name} {problem}"
            continue
        return library, level
    return None, reason


def _check(library: ctypes.CDLL) -> str | None:
    """What is wrong with a library."""
    try:
        stamp = library.stamp
        stamp.restype = ctypes.c_char_p
    except AttributeError:
        return "is no library of kernels"
    if build.SOURCE.exists() and stamp() != build.source_digest().encode():
        return "is built from other sources: python -m merganser.kernels.build"
    for name, kinds in SIGNATURES.items():
        getattr(library, name).argtypes = [_KINDS[kind] for kind in kinds]
    library.count_nonfinite.restype = ctypes.c_int64
    from merganser.kernels import self_test

    return self_test.problem(library)


def _processor_flags() -> set[str] | None:
    """What the processor can do, as Linux names it; None if all that its architecture has."""
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
    """Windows names AVX2 (40) and AVX-512 (41); processors that have them have the rest of the level."""
    kernel32: Any = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    found = set(_FLAGS["x86_64_v3"]) if kernel32.IsProcessorFeaturePresent(40) else set()
    return found | _FLAGS["x86_64_v4"] if kernel32.IsProcessorFeaturePresent(41) else found
