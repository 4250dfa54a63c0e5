"""Attacks made by hand: one line and exit code 2 or 3, in bounded time and memory, nothing run or touched."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import pytest

from conftest import make_model, tree
from hostile import ATTACKS, HEAD

SECONDS = 5
MEMORY = 2**30


def in_a_process(folder: Path) -> tuple[int, str, int]:
    """The command's exit code, what it prints as an error, and the memory that it took: with a limit
    on memory, and none on the mistakes it may make."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    errors = folder.parent / "errors.txt"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = _merge(folder, errors)
        except BaseException:
            errors.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, errors.read_text(), max(0, usage.ru_maxrss - before) * 1024


def _merge(folder: Path, errors: Path) -> int:
    from merganser.cli import main

    os.chdir(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY + 2**28, resource.RLIM_INFINITY))
    signal.alarm(4 * SECONDS)
    is_sweep = "sweep:" in Path("recipe.yml").read_text(errors="replace")
    with errors.open("w") as stream:
        sys.stderr = stream
        arguments = ["sweep" if is_sweep else "merge", "recipe.yml", "out", "-q"]
        code = main(arguments, standalone_mode=False)
        return int(code or 0)


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """What a merge imports and compiles is there before the processes are forked."""
    import merganser.chain
    import merganser.engine.kernels
    import merganser.release.facts
    import merganser.study.sweep  # noqa: F401


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    for seed, name in enumerate("ab"):
        make_model(folder / name, hidden=8, seed=seed)
    (folder / "recipe.yml").write_text(HEAD % 1)
    return folder


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_is_refused_in_one_line(models: Path, name: str) -> None:
    ATTACKS[name](models)
    before = {name: data for name, data in tree(models).items() if len(data) < 2**20}
    code, told, memory = in_a_process(models)
    assert code in (2, 3), (code, told[-2000:])
    lines = [line for line in told.splitlines() if "warning:" not in line]
    assert len(lines) == 1, told[-2000:]
    assert lines[0].startswith("merganser: ")
    assert lines[0].isprintable()
    assert len(lines[0].replace(str(models), "")) < 650
    assert memory < MEMORY
    after = {name: data for name, data in tree(models).items() if len(data) < 2**20}
    assert after == before
    assert sorted(entry.name for entry in models.parent.iterdir()) == ["errors.txt", "work"]
