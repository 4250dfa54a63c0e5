"""Tests that fail through a fault of a dependency: which, since when, in which versions, and why.

A test listed here must fail, with the error that is listed, while the installed version has the
fault; the test run's summary shows the reason (xfail). Every other outcome is a failure: another
error, a test that passes, or the same error in a version after the range.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from dataclasses import dataclass

import pytest
from packaging.specifiers import SpecifierSet


@dataclass(frozen=True)
class Fault:
    """A fault in some versions of a package.

    Attributes:
        test: the one test that fails, as pytest names it, from its file on.
        versions: the package's versions in which the fault was seen, with an upper bound.
        seen: the day on which it was seen last.
        error: what the test fails with.
    """

    test: str
    package: str
    versions: str
    seen: datetime.date
    error: type[BaseException]
    reason: str

    def __post_init__(self) -> None:
        bounds = {specifier.operator for specifier in SpecifierSet(self.versions)}
        if not bounds & {"==", "<", "<="}:
            raise ValueError(f"{self.test}: {self.versions} has no upper bound")

    def mark(self, installed: str) -> pytest.MarkDecorator | None:
        """The mark of the test, if the installed version has the fault."""
        if not SpecifierSet(self.versions).contains(installed, prereleases=True):
            return None
        reason = f"{self.package} {self.versions}, seen on {self.seen}: {self.reason}"
        return pytest.mark.xfail(reason=reason, raises=self.error, strict=True)


FAULTS = (
    Fault(
        test="planning/test_architectures.py::test_a_family_merges_stacks_and_loads[llama4]",
        package="transformers",
        versions="==5.24.0",
        seen=datetime.date(2026, 11, 29),
        error=AttributeError,
        reason="Llama4ForConditionalGeneration.forward reads image_outputs, which its model's "
        "output does not have",
    ),
)


def mark_tests(items: list[pytest.Item]) -> None:
    """Mark the collected tests that a fault of a dependency fails."""
    by_name = {item.nodeid.removeprefix("tests/"): item for item in items}
    for fault in FAULTS:
        mark = fault.mark(importlib.metadata.version(fault.package))
        if mark is not None and fault.test in by_name:
            by_name[fault.test].add_marker(mark)
