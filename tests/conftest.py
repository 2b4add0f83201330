"""Settings for all tests: no test runs for ever, and where every test must run a skip is a failure.

With LMTP_PROXY_NO_SKIP=1 in the environment (continuous integration) a skipped test or module fails with the reason,
unless it begins with `CANNOT`: nothing that could be installed would help.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

CANNOT = "this machine cannot "
DEFAULT_TIMEOUT = 150  # seconds for one test, also on a machine with other work; one that needs longer has a mark

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a background job, and of all it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.pop("PYTHONUNBUFFERED", None)  # in it a broken pipe is seen earlier than an operator's Python sees it

settings.register_profile(
    "project",
    deadline=None,  # the tests share a machine with others: pytest-timeout watches the time
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    """What a test has frozen as a start of the proxy does is seen again by whoever asks for an object's referrers.

    Hypothesis does at its first use in a process, and warns where there are none: one test in some runs.
    """
    yield
    if gc.get_freeze_count():
        gc.unfreeze()


def skips_are_failures() -> bool:
    return os.environ.get("LMTP_PROXY_NO_SKIP", "") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(DEFAULT_TIMEOUT))


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or not skips_are_failures():
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    if str(reason).startswith(f"Skipped: {CANNOT}"):
        return
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped, and LMTP_PROXY_NO_SKIP=1 forbids that. {reason}"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    del item, call
    outcome = yield
    _forbid_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, None]:
    del collector
    outcome = yield
    _forbid_skip(outcome.get_result())
