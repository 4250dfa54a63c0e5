"""Fixtures that all tests share."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import upstream
from checkpoints_on_disk import make_model
from recipe_files import RecipeFile
from shared_folder import VARIABLE

settings.register_profile(
    "merganser",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("quick", settings.get_profile("merganser"), max_examples=10)
settings.load_profile("merganser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    upstream.mark_tests(items)


@pytest.fixture(scope="session", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.getbasetemp()
    os.environ[VARIABLE] = str(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture
def recipe_file(tmp_path: Path) -> RecipeFile:
    """Writes a recipe beside the test's models, indentation taken off."""

    def write(text: str, name: str = "recipe.yml") -> Path:
        file = tmp_path / name
        file.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return file

    return write


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of one shape, ``a`` and ``b``, in the test's folder."""
    return make_model(tmp_path / "a", seed=1), make_model(tmp_path / "b", seed=2)


@pytest.fixture
def linear(pair: tuple[Path, Path], recipe_file: RecipeFile) -> Path:
    """A recipe that averages the pair, by paths relative to it; the sums are exact in float32."""
    return recipe_file(
        """
        merge_method: linear
        models:
          - model: ./a
            parameters: {weight: 0.25}
          - model: ./b
            parameters: {weight: 0.75}
        dtype: bfloat16
        """
    )


def _build_kernels() -> None:
    """Compile the kernels of this checkout where they are missing or old; pytest's workers then find them."""
    from importlib.util import find_spec

    from merganser.kernels import build

    system = build.this_platform()
    if system and find_spec("ziglang") and "PYTEST_XDIST_WORKER" not in os.environ:
        build.build(system)


_build_kernels()
