"""Long work gives way every few milliseconds."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from twisted.internet.task import Clock

from appliance.service.nameserver.slices import SLICE_SECONDS, Slices


class Work:
    """Steps of one millisecond on a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.steps = 0

    def run(self, steps: int, what: str = "done") -> Generator[None, None, str]:
        for _ in range(steps):
            self.clock.rightNow += 0.001
            self.steps += 1
            yield
        return what


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_short_work_is_done_at_once(clock: Clock) -> None:
    slices = Slices(clock)
    done: list[Any] = []
    slices.run(Work(clock).run(3)).addCallback(done.append)
    assert (done, slices.busy, clock.getDelayedCalls()) == (["done"], False, [])


def test_long_work_gives_way(clock: Clock) -> None:
    slices, work = Slices(clock), Work(clock)
    done: list[Any] = []
    slices.run(work.run(23)).addCallback(done.append)
    per_slice = round(SLICE_SECONDS * 1000)
    assert work.steps == per_slice
    waiting: Any
    (waiting,) = clock.getDelayedCalls()
    assert waiting.getTime() <= clock.seconds()
    clock.calls.clear()
    waiting.func()
    assert work.steps == 2 * per_slice
    clock.advance(0)
    assert done == ["done"]
    assert not clock.getDelayedCalls()


def test_new_work_waits_for_none_but_finishes_what_is_under_way(clock: Clock) -> None:
    slices, work = Slices(clock), Work(clock)
    done: list[Any] = []
    slices.run(work.run(100, "first")).addCallback(done.append)
    assert slices.busy
    slices.run(work.run(1, "second")).addCallback(done.append)
    assert (done, work.steps) == (["first", "second"], 101)
    slices.finish()
    assert not clock.getDelayedCalls()


def test_a_mistake_is_told(clock: Clock) -> None:
    def wrong() -> Generator[None, None, None]:
        yield
        raise ValueError

    slices = Slices(clock)
    told: list[Any] = []
    slices.run(wrong()).addErrback(told.append)
    assert told[0].check(ValueError)
    assert not slices.busy
