"""The choice of tests of ``make quick``."""

from __future__ import annotations

from pathlib import Path

import quick


def test_quick_selects_the_tests_of_what_changed(tmp_path: Path) -> None:
    for folder in ("engine", "laws", "cli", "recipe"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    (tmp_path / "tests" / "laws" / "test_golden.py").touch()
    for file in ("engine/test_engine.py", "cli/test_cli.py"):
        (tmp_path / "tests" / file).touch()
    law = "tests/laws/test_golden.py"
    select = quick.select
    assert select([], tmp_path) == [law]
    assert select(["src/merganser/engine/tiles.py"], tmp_path) == [law, "tests/engine"]
    changed = ["src/merganser/engine/tiles.py", "tests/engine/test_engine.py"]
    assert select(changed, tmp_path) == [law, "tests/engine"]
    assert select(["tests/cli/test_cli.py", "README.md"], tmp_path) == [
        law,
        "tests/cli/test_cli.py",
    ]
    assert select(["tests/support/tiny.py"], tmp_path) == [law]
    assert select(["src/merganser/errors.py"], tmp_path) == [
        law, "tests/cli", "tests/engine", "tests/recipe",
    ]  # fmt: skip
