"""Who says much at once is heard in turns; who says little is heard at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from appliance.service.shares import MOST_OCTETS, PIECE_OCTETS, TURN_SECONDS, Share, Shares

NOTHING = 1e-9


class Slow:
    """Hears a piece in so many seconds."""

    def __init__(self, clock: Clock, shares: Shares, seconds: float) -> None:
        self.heard: list[bytes] = []
        self.transport = StringTransport()
        self._clock, self._seconds = clock, seconds
        self.share: Share = shares.share(self._hear, self.transport)

    def _hear(self, octets: bytes) -> None:
        self.heard.append(octets)
        self._clock.rightNow += self._seconds

    @property
    def octets(self) -> int:
        return sum(map(len, self.heard))


def turn(clock: Clock) -> bool:
    """One turn of the reactor, and no more: `advance` goes on while a call makes time pass. Whether there was
    something to do."""
    calls: list[Any] = list(clock.getDelayedCalls())
    for call in calls[:1]:
        clock.calls.remove(call)
        call.called = 1
        call.func(*call.args, **call.kw)
    return bool(calls)


Making = Callable[[float], Slow]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(clock: Clock) -> Making:
    shares = Shares(clock)
    return lambda seconds: Slow(clock, shares, seconds)


def test_what_comes_alone_is_heard_at_once(clock: Clock, made: Making) -> None:
    one, other = made(0.0), made(0.0)
    one.share.received(b"hello")
    other.share.received(b"hi")
    assert (one.heard, other.heard) == ([b"hello"], [b"hi"])
    clock.advance(0)
    assert not clock.getDelayedCalls()


def test_a_turn_is_no_longer_than_it_may_be(clock: Clock, made: Making) -> None:
    talkers = [made(TURN_SECONDS / 2) for _ in range(3)]
    began = clock.seconds()
    for talker in talkers:
        talker.share.received(bytes(2 * PIECE_OCTETS))
    assert clock.seconds() - began <= TURN_SECONDS + NOTHING
    assert sum(talker.octets for talker in talkers) == 2 * PIECE_OCTETS
    turns = 1
    began = clock.seconds()
    while turn(clock):
        assert clock.seconds() - began <= TURN_SECONDS + NOTHING
        turns += 1
        began = clock.seconds()
    assert turns >= 3
    assert [talker.octets for talker in talkers] == [2 * PIECE_OCTETS] * 3


def test_they_take_turns(clock: Clock, made: Making) -> None:
    long, short = made(TURN_SECONDS), made(TURN_SECONDS)
    long.share.received(bytes(10 * PIECE_OCTETS))
    short.share.received(b"ping")
    turn(clock)
    turn(clock)
    assert short.heard == [b"ping"]
    assert long.octets < 10 * PIECE_OCTETS


def test_octets_keep_their_order(clock: Clock, made: Making) -> None:
    talker = made(TURN_SECONDS)
    said = bytes(range(256)) * 20
    for at in range(0, len(said), 100):
        talker.share.received(said[at : at + 100])
    while turn(clock):
        pass
    assert b"".join(talker.heard) == said


def test_who_says_too_much_is_not_read_for_a_while(clock: Clock, made: Making) -> None:
    talker = made(TURN_SECONDS)
    talker.share.received(bytes(MOST_OCTETS + 2 * PIECE_OCTETS))
    assert talker.transport.producerState == "paused"
    while turn(clock):
        pass
    assert talker.transport.producerState == "producing"


def test_the_rest_is_heard_at_the_end(clock: Clock, made: Making) -> None:
    talker, other = made(TURN_SECONDS), made(0.0)
    talker.share.received(bytes(3 * PIECE_OCTETS) + b"goodbye")
    talker.share.finish()
    assert talker.heard[-1].endswith(b"goodbye")
    assert not clock.getDelayedCalls()
    talker.share.finish()
    assert talker.octets == 3 * PIECE_OCTETS + len(b"goodbye")
    other.share.received(b"hello")
    assert other.heard == [b"hello"]
    other.share.finish()


def test_what_is_said_while_another_is_heard_comes_next_and_not_in_between(clock: Clock) -> None:
    shares, order = Shares(clock), list[str]()
    above = shares.share(lambda octets: order.append("above"), StringTransport())

    def hear(octets: bytes) -> None:
        order.append("below begins")
        above.received(octets)
        order.append("below ends")

    below = shares.share(hear, StringTransport())
    below.received(b"hello")
    assert order == ["below begins", "below ends", "above"]


def test_others_are_looked_for_before_each_piece_and_behind_the_last(clock: Clock) -> None:
    order: list[str] = []
    shares = Shares(clock, lambda: order.append("others"))
    talkers = [
        shares.share(lambda octets, number=number: order.append(number), StringTransport())  # type: ignore[misc]
        for number in ("first", "second")
    ]
    talkers[0].received(bytes(2 * PIECE_OCTETS))
    talkers[1].received(b"hello")
    assert order == ["others", "first", "others", "first", "others", "others", "second", "others"]


def test_who_left_while_others_were_served_is_not_heard(clock: Clock) -> None:
    leaving: list[Share] = []
    shares = Shares(clock, lambda: leaving.pop().finish() if leaving else None)
    talker = Slow(clock, shares, 0.0)
    leaving.append(talker.share)
    talker.share.received(b"goodbye")
    assert talker.heard == [b"goodbye"]  # once, at its end
    assert not clock.getDelayedCalls()
