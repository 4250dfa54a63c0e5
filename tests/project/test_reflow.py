"""The script that fills the prose of pages: it changes line breaks in prose, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "reflow.py"
PAGE = f"""# A heading that stays

{"word " * 40}
and more.

- first {"item " * 30}of two lines
- second

| {"cell " * 40}|
|---|

```
{"code " * 40}
```
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_prose_is_filled_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert run("--check", str(page)).returncode == 1
    assert page.read_text() == PAGE
    assert run(str(page)).returncode == 0
    text = page.read_text()
    assert text.split() == PAGE.split()
    lines = text.split("\n")
    assert [line for line in lines if len(line) > 100] == [  # a table and code
        line for line in PAGE.split("\n") if line.startswith(("| ", "code"))
    ]
    assert any(line.startswith("  item") for line in lines)
    assert run("--check", str(page)).returncode == 0


@pytest.mark.parametrize(
    "kept", ["`code with blanks in it`", "[a link of words](there.md)", "95 %", "a -", "a 1."]
)
def test_no_line_breaks_inside_code_and_links(tmp_path: Path, kept: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{'x' * (100 - len(kept))} {kept} and\nso on\n")
    assert run(str(page)).returncode == 0
    assert page.read_text() == f"{'x' * (100 - len(kept))}\n{kept} and so on\n"
