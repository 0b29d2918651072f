"""Who is asked for a renewal, and who next."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from appliance.service.carrying import ANSWER_SECONDS, MAX_PENDING, Carrying
from appliance.tunnel.renewal import RenewalRefused, Request


class Ends:
    """Those who can be asked, and what they were asked."""

    def __init__(self, *names: str) -> None:
        self.clock = Clock()
        self.asked: list[tuple[str, Request]] = []
        self.carrying = Carrying(
            self.clock,
            lambda: [(name, lambda request, name=name: self.asked.append((name, request))) for name in names],  # type: ignore[misc]
        )
        self.results: list[Any] = []

    def ask(self, request: Request) -> Deferred[str]:
        asked = self.carrying.ask(request)
        assert asked is not None
        asked.addBoth(self.results.append)
        return asked

    def refusal(self) -> str:
        failure = self.results.pop()
        assert isinstance(failure, Failure)
        assert isinstance(failure.value, RenewalRefused)
        return str(failure.value)


ONE, TWO = Request("certificate", "one", "sig="), Request("certificate", "two", "sig=")


def test_there_is_nobody() -> None:
    assert Ends().carrying.ask(ONE) is None


def test_the_answers_find_their_questions() -> None:
    ends = Ends("a")
    ends.ask(ONE)
    ends.ask(TWO)
    assert [request for _, request in ends.asked] == [ONE, TWO]
    ends.carrying.answered("a", "second", "", TWO.digest)
    ends.carrying.answered("a", "first", "", ONE.digest)
    assert ends.results == ["second", "first"]
    ends.carrying.answered("a", "again", "", ONE.digest)
    assert not ends.clock.getDelayedCalls()


def test_who_refuses_and_who_is_silent_is_followed_by_the_next() -> None:
    ends = Ends("a", "b", "c")
    ends.ask(ONE)
    first, second, third = "bca"
    ends.carrying.answered(first, "", "not now", ONE.digest)
    ends.carrying.answered(first, "", "once more", ONE.digest)  # it is another one's turn
    ends.clock.advance(ANSWER_SECONDS)
    assert [name for name, _ in ends.asked] == [first, second, third]
    ends.carrying.answered(third, "", "not now", ONE.digest)
    assert ends.refusal() == "not now; there was no answer in time"
    assert not ends.clock.getDelayedCalls()


def test_a_certificate_that_comes_late_is_one() -> None:
    ends = Ends("a", "b")
    ends.ask(ONE)
    ends.clock.advance(ANSWER_SECONDS)
    ends.carrying.answered("b", "late", "", ONE.digest)
    assert ends.results == ["late"]
    assert not ends.clock.getDelayedCalls()


def test_it_is_not_always_the_same_one_who_is_first() -> None:
    ends = Ends("a", "b")
    for request in (ONE, TWO):
        ends.ask(request)
    assert {name for name, _ in ends.asked} == {"a", "b"}


def test_one_that_is_asked_already_and_too_many() -> None:
    ends = Ends("a")
    ends.ask(ONE)
    ends.ask(ONE)
    assert "at this moment" in ends.refusal()
    for number in range(MAX_PENDING - 1):
        ends.ask(Request("certificate", str(number), "sig="))
    ends.ask(TWO)
    assert "too many others" in ends.refusal()
    ends.clock.advance(ANSWER_SECONDS)
    assert len(ends.results) == MAX_PENDING
    ends.ask(TWO)


def test_who_gives_up_is_forgotten() -> None:
    ends = Ends("a")
    asked = ends.ask(ONE)
    asked.cancel()
    assert not ends.clock.getDelayedCalls()
    ends.carrying.answered("a", "late", "", ONE.digest)
    ends.ask(ONE)
    ends.carrying.answered("a", "in time", "")  # a link says no digest: there is one question on it
    assert ends.results[-1] == "in time"
    ends.carrying.answered("a", "more", "")
