"""What no test may leave behind: delayed calls, open selectables, logged errors; and no test may hang."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.base import DelayedCall
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

TEST_SECONDS = 60
LAST_WORDS_SECONDS = 10
"""A test that does not end on the first alarm ends the run on the second."""
SLOW_TEST_SECONDS = 900
"""`make prove` moves gigabytes and waits for time-outs of minutes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked slow run only where somebody asks for them with -m."""
    if "slow" in config.getoption("markexpr", ""):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture
def logged_errors() -> Iterator[list[LogEvent]]:
    """The errors that were logged during the test. One that expects some takes them out of the list."""
    errors: list[LogEvent] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            errors.append(event)

    globalLogPublisher.addObserver(observe)
    yield errors
    globalLogPublisher.removeObserver(observe)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, logged_errors: list[LogEvent]) -> Iterator[None]:
    """Fail the test that leaves anything in the reactor or an error in the log, or that takes for ever."""

    alarms = 0

    def too_long(*_: object) -> None:
        nonlocal alarms
        alarms += 1
        if alarms > 1:  # a running reactor logs the error below and goes on: there is no other way out
            faulthandler.dump_traceback()
            os._exit(1)
        raise TimeoutError(f"{request.node.nodeid} took over {seconds} s")

    seconds = SLOW_TEST_SECONDS if request.node.get_closest_marker("slow") else TEST_SECONDS
    before = _in_reactor()
    was = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds, LAST_WORDS_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, was)
    gc.collect(1)  # an unhandled error in a Deferred is logged when the Deferred goes
    left = [thing for thing in _in_reactor() if not any(thing is known for known in before)]
    texts = [f"left in the reactor: {thing}" for thing in left]
    for call in left:
        if isinstance(call, DelayedCall):
            call.cancel()
    texts += [
        f"logged: {formatEvent(event)} {event['log_failure'].getTraceback()}" for event in logged_errors
    ]
    if texts:
        pytest.fail("\n".join(texts))


def _in_reactor() -> list[Any]:
    """Delayed calls and selectables of the global reactor, where some test made one."""
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if reactor is None:
        return []
    internal = getattr(reactor, "_internalReaders", ())
    selectables = {*reactor.getReaders(), *reactor.getWriters()} - set(internal)
    return [*reactor.getDelayedCalls(), *selectables]
