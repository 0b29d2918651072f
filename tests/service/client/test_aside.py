"""The thread beside the reactor."""

from __future__ import annotations

import threading

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from appliance.service.client.aside import Aside


@pytest_twisted.ensureDeferred
async def test_calls_run_in_order_in_one_thread_that_is_not_this() -> None:
    aside = Aside(reactor)
    said: list[tuple[int, str]] = []
    asked = [
        aside.call(lambda n=number: said.append((n, threading.current_thread().name)))  # type: ignore[misc]
        for number in range(5)
    ]
    await gatherResults(asked)
    assert said == [(number, "aside") for number in range(5)]
    aside.stop()


@pytest_twisted.ensureDeferred
async def test_what_it_raises_is_the_failure() -> None:
    aside = Aside(reactor)

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await aside.call(fail)
    assert await aside.call(lambda: 7) == 7
    aside.stop()


@pytest_twisted.ensureDeferred
async def test_after_the_end_nothing_is_told_and_nobody_waits() -> None:
    aside = Aside(reactor)
    began, go, ended = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        began.set()
        go.wait(10)
        ended.set()

    results: list[object] = []
    blocked: Deferred[None] = aside.call(block)
    blocked.addBoth(results.append)
    aside.call(lambda: results.append("ran"))
    assert began.wait(10)
    aside.stop()
    go.set()
    assert ended.wait(10)
    await deferLater(reactor, 0.01)
    assert results == []


@pytest_twisted.ensureDeferred
async def test_the_result_of_a_cancelled_call_is_nobodys() -> None:
    aside = Aside(reactor)
    go = threading.Event()
    cancelled = aside.call(lambda: go.wait(10))
    cancelled.cancel()
    go.set()
    with pytest.raises(CancelledError):
        await cancelled
    assert await aside.call(lambda: 7) == 7
    aside.stop()
