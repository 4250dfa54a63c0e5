"""Plugin of ``tests/quick.py``: the quickest tests first, and none after the time is up."""

from __future__ import annotations

import os
import time

import pytest

TIMES = "quick/seconds"
"""The key of pytest's cache with the seconds that each test took."""

budget = float(os.environ["MERGANSER_QUICK_SECONDS"])
"""No test starts later than this after the tests were collected."""

began: list[float] = []
seconds: dict[str, float] = {}
late: list[str] = []

LATE = "the time is up"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    assert config.cache is not None
    known = config.cache.get(TIMES, {})
    items.sort(key=lambda item: known.get(item.nodeid, 0.0))


def pytest_collection_finish() -> None:
    began.append(time.monotonic())


def pytest_runtest_setup() -> None:
    if time.monotonic() > began[0] + budget:
        pytest.skip(LATE)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and LATE in str(report.longrepr):
        late.append(report.nodeid)
    elif not report.skipped:
        seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if late:
        terminalreporter.write_line(
            f"{len(late)} tests were left when the time was up; make test runs them"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    cache = session.config.cache
    if cache is not None and not hasattr(session.config, "workerinput"):
        known = cache.get(TIMES, {})
        known |= {test: round(duration, 3) for test, duration in seconds.items()}
        # A test that was left may be quick after all: its last time is halved, until it runs again.
        known |= {test: known.get(test, 0.0) / 2 for test in late}
        cache.set(TIMES, known)
