"""Settings of the whole suite: skipped and slow tests, signals, examples, and gevent.

In CI, a skipped test fails, because everything is installed there.
"""
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from collections.abc import Iterator

import pytest
from hypothesis import settings


def _is_patched() -> bool:
    """Return whether gevent has replaced sockets and threads in this process."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def pytest_configure(config: pytest.Config) -> None:
    if _is_patched():
        from tests.support import undergevent

        undergevent.prepare()
    # A shell starts its background jobs with SIGINT ignored, and nohup does so with
    # SIGHUP. Programs that tests start would inherit this, and ignore their signals.
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Hypothesis chooses the same examples in each run, so whether a change passes does
    # not depend on chance. A soak, which says how many it wants, has new ones.
    settings.register_profile(
        "postcommit", derandomize="POSTCOMMIT_EXAMPLES" not in os.environ, deadline=None
    )
    settings.load_profile("postcommit")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    # `tests.test_conftest` runs a copy of this module, beside other tests.
    if items and items[0].nodeid.startswith("tests/"):
        from tests.support import slow

        slow.mark(items)
    if _is_patched():
        from tests.support import undergevent

        items[:], unfit = undergevent.fit(items)
        config.hook.pytest_deselected(items=unfit)


@pytest.fixture
def commands_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable from outside configures a command, and none changes the log."""
    from tests.support.service import environment
    from tests.support.service import logging_restored

    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    with logging_restored():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    # A module that is skipped as a whole has no tests to report.
    report = yield
    if os.environ.get("CI") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
