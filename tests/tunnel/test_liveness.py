from __future__ import annotations

from collections.abc import Callable
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.liveness import HEARD_SLACK_SECONDS, LATE_LOOK_SECONDS, PONG_SECONDS, Liveness
from tests.effort import examples


def liveness(now: float = 0.0) -> Liveness:
    return Liveness(nonces(), now, ping_seconds=5.0)


def nonces() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"n{next(numbers)}"


def test_one_ping_at_a_time_each_with_its_own_nonce() -> None:
    alive = liveness()
    assert alive.next_deadline() == 5.0
    assert alive.due(4.9) is None
    assert alive.due(5.0) == "n1"
    assert alive.due(14.9) is None
    assert alive.answered("n1", 5.2)
    assert alive.next_deadline() == 10.0
    assert alive.due(10.0) == "n2"


def test_a_slow_answer_is_followed_by_the_next_ping_at_once() -> None:
    alive = liveness()
    alive.due(5.0)
    assert alive.answered("n1", 14.0)
    assert alive.next_deadline() == 14.0
    assert alive.due(14.0) == "n2"


def test_answers_that_answer_nothing() -> None:
    alive = liveness()
    assert not alive.answered("n1", 0.0)
    alive.due(5.0)
    assert not alive.answered("n2", 5.0)
    assert alive.answered("n1", 5.0)
    assert not alive.answered("n1", 5.0)


def test_who_is_pinged_does_not_ping() -> None:
    alive = liveness()
    for second in (3.0, 8.0, 13.2):
        alive.heard(second)
        assert alive.next_deadline() == second + 5.0 + HEARD_SLACK_SECONDS
        assert alive.due(second + 5.4) is None
    assert alive.due(18.7) == "n1"
    alive.heard(19.0)  # a ping that crossed ours: the answer is still due
    assert alive.next_deadline() == 18.7 + PONG_SECONDS


def test_doubt_is_a_ping_at_once() -> None:
    alive = liveness()
    alive.doubt(1.0)
    assert alive.next_deadline() == 1.0
    assert alive.due(1.0) == "n1"
    alive.doubt(2.0)  # it is asked already
    assert alive.due(2.0) is None
    assert alive.next_deadline() == 1.0 + PONG_SECONDS
    assert alive.answered("n1", 3.0)
    assert alive.next_deadline() == 6.0


def test_a_new_pace() -> None:
    alive = liveness()
    alive.every(30.0)
    assert alive.due(5.0) == "n1"
    assert alive.answered("n1", 5.1)
    assert alive.next_deadline() == 35.0


def test_overdue_to_the_second() -> None:
    alive = liveness()
    assert not alive.overdue(1000.0)
    alive.due(5.0)
    assert alive.next_deadline() == 5.0 + PONG_SECONDS
    assert not alive.overdue(4.9 + PONG_SECONDS)
    assert alive.overdue(5.0 + PONG_SECONDS)
    assert alive.overdue(5.0 + PONG_SECONDS + LATE_LOOK_SECONDS)


def test_who_looks_late_looks_twice() -> None:
    alive = liveness()
    alive.due(5.0)
    assert not alive.overdue(30.0)
    assert alive.next_deadline() == 30.0 + LATE_LOOK_SECONDS
    assert alive.overdue(30.0 + LATE_LOOK_SECONDS)


@given(st.lists(st.floats(0.1, PONG_SECONDS - 0.1), max_size=30))
@settings(max_examples=examples(50), deadline=None)
def test_who_answers_within_the_time_lives(delays: list[float]) -> None:
    alive, now = liveness(), 0.0
    for delay in delays:
        now = max(now, alive.next_deadline())
        assert not alive.overdue(now)
        nonce = alive.due(now)
        assert nonce is not None
        now += delay
        assert not alive.overdue(now)
        assert alive.answered(nonce, now)
