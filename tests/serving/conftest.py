"""Fixtures that the tests of serving share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from merganser.serving.limits import Limits
from merganser.serving.names import Catalogue
from merganser.serving.server import Address
from merganser.serving.service import Service
from merganser.serving.transformers_engine import TransformersEngine
from merganser.study.live_model import LiveModel
from served_study import SWEEP, Alone, Running, start, write_models


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep file of nine points."""
    folder = tmp_path_factory.mktemp("served")
    write_models(folder)
    file = folder / "sweep.yml"
    file.write_text(SWEEP.lstrip("\n"))
    return file


@pytest.fixture(scope="session")
def catalogue(study: Path) -> Catalogue:
    """The models of the study."""
    return Catalogue([str(study)])


@pytest.fixture(scope="session")
def alone() -> Alone:
    """See :class:`Alone`."""
    return Alone()


@pytest.fixture(scope="session")
def server(catalogue: Catalogue) -> Iterator[Running]:
    """A server of the study on loopback."""
    limits = Limits(turn=0.05, longest_turn=0.5, body=200_000)
    service = Service(catalogue, TransformersEngine(LiveModel()), limits)
    running = start(service, Address(port=0))
    yield running
    running.stop()
