"""The slow end-to-end test: a published language model, fine-tuned, merged, loaded and chatting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2" / "demo.py"


@pytest.mark.slow
def test_a_published_model_is_merged_and_chats(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "250"},  # so that no tag is broken over two lines
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "<answer>" in done.stdout  # the merge keeps the fine-tuned manner
    manifest = json.loads((tmp_path / "merge" / "merge_manifest.json").read_text())
    effective = [model["effective"] for model in manifest["effective_weights"]["models"]]
    assert effective == pytest.approx([0.5, 0.5], abs=0.05)
