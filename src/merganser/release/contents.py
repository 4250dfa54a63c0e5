"""Digests of models' contents, independent of the paths and times of files.

Digests of tensors are cached in the user's cache folder, by path, size, time and inode of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

from merganser.checkpoints import Stamp, check_unchanged
from merganser.checkpoints.readers import Readers
from merganser.errors import InputError, reraise_os_errors
from merganser.planning import Plan, Source

SCHEME = "mg1"
"""Name of the digest scheme of tensors; see ``docs/output.md``."""

READ = (".json", ".jinja", ".model", ".txt")
"""Suffixes of the files, besides weights, that may affect a model's behaviour."""

UNREAD = ("merge_manifest.json", "trainer_state.json")

MOST_REMEMBERED = 256
"""Maximum number of models in the cache."""

SETTLED = 2_000_000_000
"""Minimum age in nanoseconds of a file whose digests are cached.

On file systems with coarse times, a change of a younger file might leave its time as it is."""


def digest_of_parts(parts: Mapping[str, str]) -> str:
    """Combine named digests into one digest that does not depend on their order."""
    lines = sorted(f"{name} {digest}\n" for name, digest in parts.items())
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def hashes(source: Source) -> dict[str, str]:
    """The SHA-256 of each weight file of a source on the Hub, by name."""
    return {name: f"sha256:{digest}" for name, digest in source.hashes.items()}


def of_weights(source: Source, names: Iterable[str]) -> str:
    """The ``digest`` of an input in a manifest: of its files on the Hub, or of its tensors.

    Raises:
        InputError: when a tensor cannot be read, or its file changes during reading.
    """
    return digest_of_parts(hashes(source) or _tensor_digests(source, names))


def of_models(plan: Plan, weights: Mapping[int, str] | None = None) -> dict[str, str]:
    """Return the digest of each model that a plan reads, of weights and other files, by reference.

    Args:
        plan: the plan.
        weights: known results of :func:`of_weights` by the index of the source; others are computed.

    Raises:
        InputError: when a model cannot be read, or its files change during reading.
    """
    parts: dict[str, dict[str, str]] = {name: {} for name in plan.homes.values()}
    read: dict[int, set[str]] = {}
    for job in plan.jobs:
        for each in job.reads:
            read.setdefault(each.source, set()).add(each.name)
    for index, source in enumerate(plan.sources):
        model_parts = parts.setdefault(source.reference.text, {})
        known = (weights or {}).get(index)
        model_parts["weights"] = known or of_weights(source, read.get(index, ()))
    for home, name in plan.homes.items():
        with reraise_os_errors(InputError, "read", home):
            for file in _small_files(plan, home):
                parts[name][f"{len(parts[name])} {file.name}"] = digest_of_file(file)
    return {name: digest_of_parts(model_parts) for name, model_parts in parts.items()}


def state(plan: Plan, weights: Mapping[int, str] | None = None) -> str:
    """One digest of all models that a plan reads; for the arguments see :func:`of_models`."""
    digests = of_models(plan, weights).values()
    return digest_of_parts({str(index): digest for index, digest in enumerate(digests)})


def files_of(plan: Plan) -> list[Path]:
    """The files that :func:`of_models` reads."""
    files = [file for source in plan.sources for file in source.checkpoint.stamps]
    return files + [file for home in plan.homes for file in _small_files(plan, home)]


def _small_files(plan: Plan, home: Path) -> list[Path]:
    """The files of a model, besides weights, that may affect its behaviour."""
    weights = {file for source in plan.sources for file in source.checkpoint.stamps}
    files = sorted(home.iterdir()) if home.is_dir() else []
    return [file for file in files if file not in weights and _matters(file)]


def _matters(file: Path) -> bool:
    index = file.name.endswith(".index.json")
    return file.suffix in READ and not index and file.name not in UNREAD and file.is_file()


def digest_of_file(file: Path) -> str:
    """The SHA-256 of a file, computed once for each of its stamps.

    Raises:
        InputError: when it cannot be read.
    """
    with reraise_os_errors(InputError, "read", file):
        return _of_file(file, Stamp.of(file.stat()))


@lru_cache(maxsize=4096)
def _of_file(file: Path, _stamp: Stamp) -> str:
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _tensor_digests(source: Source, names: Iterable[str]) -> dict[str, str]:
    """Digests of tensors; only those that are not in the cache are read."""
    checkpoint, wanted = source.checkpoint, sorted(names)
    file = _remembered_in(source)
    known = _recalled(file)
    missing = [name for name in wanted if name not in known]
    if missing:
        from concurrent.futures import ThreadPoolExecutor  # unused if all digests are cached

        from merganser.engine.digests import read_digest

        with Readers() as readers, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            opened = readers.open(checkpoint)
            computed = pool.map(
                lambda name: read_digest(opened.specs[name], partial(opened.read, name)),
                missing,
            )
            digests = [f"{SCHEME}:{digest}" for digest in computed]
        check_unchanged(checkpoint)
        known |= dict(zip(missing, digests, strict=True))
        youngest = max((stamp.mtime_ns for stamp in checkpoint.stamps.values()), default=0)
        if file is not None and time.time_ns() - youngest > SETTLED:
            _remember(file, known)
    return {name: known[name] for name in wanted}


def _remembered_in(source: Source) -> Path | None:
    """The cache file for a source in its present state; None for a source in memory."""
    checkpoint = source.checkpoint
    if not checkpoint.stamps:
        return None
    stamps = sorted(
        [str(file.absolute()), stamp.size, stamp.mtime_ns, stamp.inode]
        for file, stamp in checkpoint.stamps.items()
    )
    facts = json.dumps([SCHEME, checkpoint.header_digest, stamps])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "merganser" / "contents" / f"{hashlib.sha256(facts.encode()).hexdigest()}.json"


def _recalled(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        digests = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(digests) if isinstance(digests, dict) else {}


def _remember(file: Path, digests: Mapping[str, str]) -> None:
    """Write digests to the cache, ignoring errors, since the cache only saves time."""
    partial_file = file.with_name(f"{file.name}.{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file.write_text(json.dumps(digests), encoding="utf-8")
        partial_file.replace(file)
        cached = sorted(file.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for old in cached[:-MOST_REMEMBERED]:
            old.unlink()
