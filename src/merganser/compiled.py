"""Loops compiled by numba at their first call, whose machine code is kept on disk.

It is kept and found as numba keeps it, with two differences:

- Machine code belongs to the text of all files that went into it: numba looks at the file of the loop
  alone, and would run old copies of functions that it calls.
- Loading needs nothing but the runtime: numba would first import all that it can compile, which takes
  longer than a small merge.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.runtime.nrt import rtsys

PACKAGE = __name__.partition(".")[0]


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: numba's ``njit`` without the lock of the interpreter, kept on disk.

    Args:
        **options: others of ``njit``.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        loop = njit(nogil=True, **options)(function)
        loop._cache = _Cache(function)
        return loop

    return decorate


def sources(module: ModuleType) -> list[ModuleType]:
    """The modules of this package whose functions a module has, and so on, and itself: by name."""
    found: dict[str, ModuleType] = {}
    open_ = [module]
    while open_:
        each = open_.pop()
        found[each.__name__] = each
        homes = {getattr(value, "__module__", None) or "" for value in list(vars(each).values())}
        ours = {home for home in homes if home.startswith(PACKAGE + ".")} - found.keys()
        open_ += [sys.modules[home] for home in ours]
    return [found[name] for name in sorted(found)]


def stamp(module: ModuleType) -> str:
    """A digest of all text that a module's loops are made of, and of its constants."""
    digest = hashlib.sha256()
    for each in sources(module):
        digest.update(Path(str(each.__file__)).read_bytes())
        constants = {k: v for k, v in vars(each).items() if isinstance(v, int | float)}
        digest.update(repr(sorted(constants.items())).encode())
    return digest.hexdigest()


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=stamp(sys.modules[function.__module__]),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Machine code for these types, if there is any on disk."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)
