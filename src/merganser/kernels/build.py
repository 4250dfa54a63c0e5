"""Build the compiled kernels: ``python -m merganser.kernels.build`` writes them next to their
sources.

The compiler is clang from the PyPI package ``ziglang``, the same on every platform. It needs no
system compiler, and one machine builds for all others. ``MERGANSER_CLANG`` names another clang,
which builds for this machine only: AddressSanitizer needs a library that ``ziglang`` lacks. The package's
build runs this file too, so it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "source"
BUILT = HERE / "built"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "merganser" / "kernels"
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
        RuntimeError: when the compiler is missing or fails.
    """
    if checks := os.environ.get("MERGANSER_SANITIZE"):
        extra = [*extra, f"-fsanitize={checks}", "-fno-sanitize-recover=all"]
    clang = os.environ.get("MERGANSER_CLANG", "")
    key = hashlib.sha256(" ".join([source_digest(), system, clang, *extra]).encode()).hexdigest()[
        :16
    ]
    names = [file_name(level, system) for level in LEVELS[TARGETS[system][0]]]
    mark = into / f"{system}.txt"
    if all((into / n).exists() for n in names) and mark.exists() and mark.read_text() == key:
        return [into / name for name in names]
    cached = CACHE / (key if extra or clang else source_digest())
    if not all((cached / name).exists() for name in names):
        import tempfile  # needed for building only, so not loaded for merges

        with tempfile.TemporaryDirectory() as folder:
            _place(_compile_all(system, extra, Path(folder)), cached)
    mark.unlink(missing_ok=True)
    libraries = _place([cached / name for name in names], into)
    mark.write_text(key)
    return libraries


def _place(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copy files; processes that use an old file keep it."""
    import shutil

    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        fresh = folder / f"{file.name}.{os.getpid()}"
        shutil.copyfile(file, fresh)
        fresh.replace(folder / file.name)
    return [folder / file.name for file in files]


def _compile_all(system: str, extra: Sequence[str], folder: Path) -> list[Path]:
    """The libraries for all levels of a platform."""
    from concurrent.futures import ThreadPoolExecutor

    architecture, target, _ = TARGETS[system]
    clang = os.environ.get("MERGANSER_CLANG")
    if (
        clang
    ):  # it names the processor by another option, and its targets have no version of the C library
        target = f"{architecture}-linux-gnu"
    common = ["-target", target, *OPTIONS, f'-DSTAMP="{source_digest()}"', *extra]
    if "windows" not in system:
        common.append("-fPIC")

    def compile_one(level: str, source: Path) -> str:
        made = folder / f"{level}-{source.stem}.o"
        march = f"-march={level.replace('_', '-')}"
        processor = march if clang and architecture == "x86_64" else f"-mcpu={PROCESSORS[level]}"
        _compile(*common, processor, "-c", str(source), "-o", str(made))
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
            _compile("-target", target, "-shared", "-s", *extra, *files, "-o", str(library))
            libraries.append(library)
    return libraries


def _compile(*arguments: str) -> None:
    import subprocess

    clang = os.environ.get("MERGANSER_CLANG")
    compiler = [clang] if clang else [sys.executable, "-m", "ziglang", "cc"]
    done = subprocess.run([*compiler, *arguments], capture_output=True, text=True)
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
