"""Build the compiled kernels: ``python -m merganser.kernels.build`` writes them next to their
sources.

The compiler is clang from the PyPI package ``ziglang``, the same on every platform. It needs no
system compiler, and one machine builds for all others. ``MERGANSER_CLANG`` names another clang,
which builds for this machine only: AddressSanitizer needs a library that ``ziglang`` lacks. The package's
build runs this file too, so it imports nothing of the package, and merges find libraries by it, so
it imports what compiling needs only then.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "source"
BUILT = HERE / "built"


def _cache() -> Path | None:
    """The user's folder for caches; None for a user without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return None


HOME_CACHE = _cache()
CACHE = HOME_CACHE and HOME_CACHE / "merganser" / "kernels"
"""Cache of libraries by the digest of their sources, shared by all checkouts."""

LEVELS = {"x86_64": ("x86_64_v4", "x86_64_v3"), "aarch64": ("neon",)}
"""Instruction levels of each architecture, best first."""

TARGETS = {
    "linux-x86_64": ("x86_64", "x86_64-linux-gnu.2.17", "manylinux2014_x86_64"),
    "linux-aarch64": ("aarch64", "aarch64-linux-gnu.2.17", "manylinux2014_aarch64"),
    "macos-aarch64": ("aarch64", "aarch64-macos.11.0", "macosx_11_0_arm64"),
    "macos-x86_64": ("x86_64", "x86_64-macos.11.0", "macosx_11_0_x86_64"),
    "windows-x86_64": ("x86_64", "x86_64-windows-gnu", "win_amd64"),
}
"""Platforms: the architecture, the compiler's target name, and the wheel's tag."""

PROCESSORS = {"x86_64_v4": "x86_64_v4", "x86_64_v3": "x86_64_v3", "neon": "generic"}

# fmt: off
OPTIONS = (
    "-O3", "-g0", "-std=c++20", "-fno-rtti", "-fno-exceptions", "-ffp-contract=off", "-fvisibility=hidden",
    "-Wall", "-Werror", "-Wno-psabi", "-Wno-nan-infinity-disabled",
)
# fmt: on


TIMEOUT = 3600
"""Seconds that compiling one file may take, on a machine that is busy with other work."""


def this_platform() -> str | None:
    """This machine's entry of :data:`TARGETS`, or None."""
    systems = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
    machines = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
    name = f"{systems.get(platform.system())}-{machines.get(platform.machine())}"
    return name if name in TARGETS else None


def file_name(level: str, system: str) -> str:
    """File name of the library for a level."""
    suffix = {"linux": "so", "macos": "dylib", "windows": "dll"}[system.partition("-")[0]]
    return f"kernels-{level}.{suffix}"


def source_digest() -> str:
    """Digest of the libraries' sources; a library with another one is not loaded."""
    digest = hashlib.sha256(" ".join(OPTIONS).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def build(system: str, into: Path = BUILT, extra: Sequence[str] = ()) -> list[Path]:
    """Compile all levels of a platform unless they are up to date, and return the libraries.

    Args:
        system: a name of :data:`TARGETS`.
        into: the folder for the libraries.
        extra: more options for the compiler.

    Raises:
        RuntimeError: when the compiler is missing or fails, or the folder cannot be written.
    """
    if checks := os.environ.get("MERGANSER_SANITIZE"):
        extra = [*extra, f"-fsanitize={checks}", "-fno-sanitize-recover=all"]
    clang = os.environ.get("MERGANSER_CLANG", "")
    sources = source_digest()
    facts = " ".join([sources, system, clang, *extra])
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    names = [file_name(level, system) for level in LEVELS[TARGETS[system][0]]]
    mark = into / f"{system}.txt"
    try:
        if all((into / n).exists() for n in names) and mark.exists() and mark.read_text() == key:
            return [into / name for name in names]
        cached = CACHE and CACHE / (key if extra or clang else sources)
        with _temporary_folder() as folder:
            if cached is not None and all((cached / name).exists() for name in names):
                libraries = [cached / name for name in names]
            else:
                libraries = _compile_all(system, clang, extra, folder)
                if cached is not None:
                    with suppress(OSError):  # without the cache, every checkout compiles
                        _place(libraries, cached)
            mark.unlink(missing_ok=True)
            placed = _place(libraries, into)
        mark.write_text(key)
    except OSError as error:
        raise RuntimeError(f"the kernels cannot be built: {error}") from None
    return placed


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _place(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copy files; processes that use an old file keep it."""
    import shutil

    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        fresh = folder / f"{file.name}.{os.getpid()}"
        shutil.copyfile(file, fresh)
        fresh.replace(folder / file.name)
    return [folder / file.name for file in files]


def _compile_all(system: str, clang: str, extra: Sequence[str], folder: Path) -> list[Path]:
    """The libraries for all levels of a platform; ``clang`` is empty for that of ``ziglang``."""
    from concurrent.futures import ThreadPoolExecutor

    architecture, target, _ = TARGETS[system]
    if clang:  # it names the processor by another option, and the target has no C library's version
        target = f"{architecture}-linux-gnu"
    compiler = [clang] if clang else [sys.executable, "-m", "ziglang", "cc"]
    environment = os.environ | ({} if clang else _zig_cache(folder))
    common = ["-target", target, *OPTIONS, f'-DSTAMP="{source_digest()}"', *extra]
    if "windows" not in system:
        common.append("-fPIC")

    def compile_one(level: str, source: Path) -> str:
        made = folder / f"{level}-{source.stem}.o"
        march = f"-march={level.replace('_', '-')}"
        processor = march if clang and architecture == "x86_64" else f"-mcpu={PROCESSORS[level]}"
        options = [*common, processor, "-c", str(source), "-o", str(made)]
        _run([*compiler, *options], environment)
        return str(made)

    libraries = []
    with ThreadPoolExecutor(os.cpu_count()) as crew:
        objects = {
            level: [crew.submit(compile_one, level, path) for path in sorted(SOURCE.glob("*.cpp"))]
            for level in LEVELS[architecture]
        }
        for level, made in objects.items():
            library = folder / file_name(level, system)
            files = [future.result() for future in made]
            options = ["-target", target, "-shared", "-s", *extra, *files, "-o", str(library)]
            if "macos" in system:  # instead of the temporary folder's name
                options.append(f"-Wl,-install_name,@rpath/{library.name}")
            _run([*compiler, *options], environment)
            libraries.append(library)
    return libraries


def _zig_cache(folder: Path) -> dict[str, str]:
    """Environment variables that move zig's cache into ``folder`` if the user's cannot be written:
    zig waits for it forever."""
    if HOME_CACHE is not None:
        with suppress(OSError):
            (HOME_CACHE / "zig").mkdir(parents=True, exist_ok=True)
            if os.access(HOME_CACHE / "zig", os.W_OK):
                return {}
    return {"ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"), "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    import subprocess

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the kernels cannot be compiled within {TIMEOUT} seconds") from None
    if "No module named ziglang" in done.stderr:
        raise RuntimeError("the kernels cannot be compiled without a compiler: pip install ziglang")
    if done.returncode:
        raise RuntimeError(f"the kernels cannot be compiled: {done.stderr.strip()[-2000:]}")


def main() -> int:
    """Build for this machine."""
    system = this_platform()
    if system is None:
        print(f"no kernels for {platform.system()} on {platform.machine()}", file=sys.stderr)  # noqa: T201
        return 1
    try:
        libraries = build(system)
    except RuntimeError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    for path in libraries:
        print(path)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
