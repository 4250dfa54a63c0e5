"""Remove the prefixes that wrappers of a model (parallel, compiled, sharded) add to tensor names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from merganser.errors import InputError

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def unwrapped(names: Collection[str], file: Path) -> dict[str, str]:
    """Return tensor names without wrappers' prefixes, by their names in a file.

    Raises:
        InputError: when two tensors would have one name.
    """
    plain: dict[str, str] = {}
    parallel = all(name.startswith(WRAPPERS[0]) for name in names)
    for wrapped in names:
        name = wrapped.removeprefix(WRAPPERS[0]) if parallel else wrapped
        for wrapper in WRAPPERS[1:]:
            name = name.replace(wrapper, "")
        plain[wrapped] = name
    if len(set(plain.values())) < len(plain):
        twice = next(w for w, name in plain.items() if w != name and name in names)
        raise InputError(f"{file}: holds tensor {plain[twice]!r} twice, once as {twice!r}")
    return plain
