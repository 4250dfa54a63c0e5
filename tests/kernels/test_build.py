"""Building the kernels: a cache that cannot be written, and compilers that fail. Nothing is compiled here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from merganser.kernels import build

SYSTEM = build.this_platform()

pytestmark = pytest.mark.skipif(SYSTEM is None, reason="no kernels for this platform")


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Libraries that the compiler is said to have made."""
    assert SYSTEM is not None
    levels = build.LEVELS[build.TARGETS[SYSTEM][0]]
    paths = [tmp_path / build.file_name(level, SYSTEM) for level in levels]
    for path in paths:
        path.write_text(path.name)
    monkeypatch.setattr(build, "_compile_all", lambda *_: paths)
    return paths


@pytest.mark.parametrize("home", ["file", None])
def test_without_a_cache_that_can_be_written(
    home: str | None, compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SYSTEM is not None
    (tmp_path / "file").write_text("is no folder")
    place = home and tmp_path / home
    monkeypatch.setattr(build, "HOME_CACHE", place)
    monkeypatch.setattr(build, "CACHE", place and place / "merganser")
    libraries = build.build(SYSTEM, tmp_path / "built")
    assert [path.read_text() for path in libraries] == [path.name for path in compiled]
    assert {path.parent for path in libraries} == {tmp_path / "built"}
    # zig waits forever for a cache that it cannot write
    assert build._zig_cache(tmp_path)["ZIG_GLOBAL_CACHE_DIR"] == str(tmp_path / "zig")
    with pytest.raises(RuntimeError, match=r"^the kernels cannot be built: .*file"):
        build.build(SYSTEM, tmp_path / "file" / "built")


def test_with_a_cache_nothing_is_compiled_twice(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SYSTEM is not None
    monkeypatch.setattr(build, "HOME_CACHE", tmp_path / "home")
    monkeypatch.setattr(build, "CACHE", tmp_path / "home" / "merganser")
    assert build._zig_cache(tmp_path) == {}
    build.build(SYSTEM, tmp_path / "one")
    monkeypatch.delattr(build, "_compile_all")
    libraries = build.build(SYSTEM, tmp_path / "two")
    assert [path.read_text() for path in libraries] == [path.name for path in compiled]


@pytest.mark.parametrize(
    ("lines", "timeout", "message"),
    [
        (
            "print('No module named ziglang', file=sys.stderr); sys.exit(1)",
            60,
            "pip install ziglang",
        ),
        ("print('error: no', file=sys.stderr); sys.exit(1)", 60, "cannot be compiled: error: no"),
        ("import time; time.sleep(60)", 0.2, "cannot be compiled within 0.2 seconds"),
    ],
)
def test_a_compiler_that_fails_is_one_line(
    lines: str, timeout: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "TIMEOUT", timeout)
    with pytest.raises(RuntimeError, match=message):
        build._run([sys.executable, "-c", f"import sys; {lines}"], os.environ)
