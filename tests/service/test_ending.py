"""SIGTERM: in order at first, at once at the second."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from appliance.service.ending import Ending


class Running(Clock):
    """A reactor that runs."""

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.callLater(0, call)

    def callWhenRunning(self, call: Callable[[], object]) -> None:
        call()


class Process:
    """What ends, and a drain that a test ends."""

    def __init__(self) -> None:
        self.reactor = Running()
        self.drains: list[Deferred[None]] = []
        self.ended: list[int] = []
        self.ending = Ending(self.reactor, self._drain)

    def _drain(self) -> Deferred[None]:
        self.drains.append(Deferred())
        return self.drains[-1]

    def term(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        self.reactor.advance(0)


@contextmanager
def running() -> Iterator[Process]:
    """Inside a test only: pytest-twisted's own reactor puts its handler there when the first one begins."""
    made = Process()
    before = signal.signal(signal.SIGTERM, lambda number, frame: made.ended.append(number))
    made.ending.startService()
    yield made
    if made.ending.running:
        made.ending.stopService()
    signal.signal(signal.SIGTERM, before)


def test_the_process_ends_as_by_the_signal_when_all_is_done() -> None:
    with running() as process:
        process.term()
        assert process.ended == []
        process.drains[0].callback(None)
        assert process.ended == [signal.SIGTERM]
        process.term()  # while it stops: nothing more to hurry
        assert process.ended == [signal.SIGTERM]
        assert len(process.drains) == 1


def test_a_second_one_ends_it_at_once() -> None:
    with running() as process:
        process.term()
        process.term()
        assert process.ended == [signal.SIGTERM]
        process.drains[0].callback(None)
        assert process.ended == [signal.SIGTERM]


def test_a_command_that_is_given_twice_hurries_nobody() -> None:
    with running() as process:
        process.ending.begin()
        process.ending.begin()
        assert process.ended == []
        assert len(process.drains) == 1
        process.term()
        assert process.ended == [signal.SIGTERM]


def test_who_is_stopped_otherwise_has_the_old_handler_back() -> None:
    with running() as process:
        process.ending.stopService()
        signal.raise_signal(signal.SIGTERM)
        assert process.ended == [signal.SIGTERM]
        assert process.drains == []
