"""A folder with two models, and a studio of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from served_study import write_models
from studio_client import Client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models in a folder, and next to the folder a model that is none of the studio's business."""
    home = tmp_path_factory.mktemp("studio")
    write_models(home)
    root = home / "runs"
    root.mkdir()
    for name in "ab":
        (home / name).rename(root / name)
    secret = home / "secret"
    secret.mkdir()
    for file in (root / "a").iterdir():
        (secret / file.name).write_bytes(file.read_bytes())
    (secret / "README.md").write_text("secret")
    (root / "way_out").symlink_to(secret)
    (root / "problems.jsonl").write_text('{"prompt": "1", "answer": "2"}\n')
    return root


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    made = Client(folder)
    yield made
    made.close()
