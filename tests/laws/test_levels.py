"""All kernels have the same results at every instruction level and on every processor: one program, one digest."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from merganser.kernels import build, library

PROGRAM = Path(__file__).parent / "native" / "digest.cpp"

pytest.importorskip("ziglang")


def digest(target: str, processor: str, folder: Path, *emulator: str) -> str:
    program = folder / processor
    options = [o for o in build.OPTIONS if o != "-Werror"]
    command = [sys.executable, "-m", "ziglang", "cc", *options, '-DSTAMP=""', "-static"]
    command += ["-target", target, f"-mcpu={processor}", "-I", str(build.SOURCE)]
    subprocess.run([*command, str(PROGRAM), "-o", str(program)], check=True)
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(build.this_platform() != "linux-x86_64", reason="runs programs for Linux")
def test_one_digest_at_every_level_and_on_arm(tmp_path: Path) -> None:
    """On Arm by qemu, where it is installed (``qemu-user`` in Debian)."""
    found = {level: digest("x86_64-linux-musl", level, tmp_path) for level in library.levels()}
    if emulator := shutil.which("qemu-aarch64"):
        found["neon"] = digest("aarch64-linux-musl", "generic", tmp_path, emulator)
    assert len(found) > 1
    assert len(set(found.values())) == 1, found
