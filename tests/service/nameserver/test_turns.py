"""Connections share the turns of the reactor."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from appliance.service.nameserver.turns import SHARE_MESSAGES, TURN_MESSAGES, TURN_OCTETS, Turns


class _Clock(Clock):
    """As in a real reactor, what is called later is not called in this turn."""

    def callLater(self, delay: float, callable: Any, *args: object, **kw: object) -> Any:
        return super().callLater(max(delay, 1e-6), callable, *args, **kw)

    def turn(self) -> None:
        self.advance(1e-6)


class _Asking:
    """A connection with `left` messages, whose answers have `octets` each."""

    def __init__(self, turns: Turns, left: int, octets: int = 100) -> None:
        self.turns = turns
        self.left = left
        self.octets = octets
        self.answered: list[int] = []
        self.go_on()

    def go_on(self) -> None:
        messages, octets = self.turns.share()
        taken = 0
        while self.left and taken < messages and (taken * self.octets < octets or not taken):
            taken += 1
            self.left -= 1
        self.answered.append(taken)
        self.turns.used(taken, taken * self.octets)
        if self.left:
            self.turns.wait(self)


def test_one_alone_has_the_whole_turn() -> None:
    clock = _Clock()
    asking = _Asking(Turns(clock), 2 * TURN_MESSAGES + 5)
    assert asking.answered == [TURN_MESSAGES]
    clock.turn()
    assert sum(asking.answered) == 2 * TURN_MESSAGES
    clock.turn()
    assert asking.left == 0
    assert not clock.getDelayedCalls()


def test_a_single_question_is_answered_at_once_whoever_waits() -> None:
    clock = _Clock()
    turns = Turns(clock)
    many = [_Asking(turns, 10_000, 4000) for _ in range(100)]
    assert sum(sum(asking.answered) for asking in many) < TURN_MESSAGES + 100
    for _ in range(10):
        one = _Asking(turns, 1)
        assert one.answered == [1]
        before = sum(sum(asking.answered) for asking in many)
        clock.turn()
        octets = (sum(sum(asking.answered) for asking in many) - before) * 4000
        assert 0 < octets <= TURN_OCTETS + 8 * 1024 + 4000, "all together have one turn"


def test_those_that_wait_go_on_in_turn() -> None:
    clock = _Clock()
    turns = Turns(clock)
    many = [_Asking(turns, 1000) for _ in range(20)]
    for _ in range(20):
        clock.turn()
    counts = [sum(asking.answered) for asking in many[1:]]  # the first found all of a turn
    assert max(counts) - min(counts) <= SHARE_MESSAGES


def test_who_leaves_is_not_asked_again() -> None:
    clock = _Clock()
    turns = Turns(clock)
    asking = _Asking(turns, 1000)
    assert turns.is_waiting(asking)
    turns.leave(asking)
    turns.leave(asking)
    assert not turns.is_waiting(asking)
    assert not clock.getDelayedCalls()
