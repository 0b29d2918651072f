"""A herd is let in at a steady rate."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.herd import LATE_SECONDS, PAUSE_SECONDS, Turnstile, spread_seconds

MOST, WINDOW_SECONDS = 10, 0.1


@given(st.lists(st.one_of(st.floats(0, 0.2), st.floats(0, 0.005)), min_size=1, max_size=60))
@settings(deadline=None)
def test_never_more_than_ten_in_any_window(pauses: list[float]) -> None:
    turnstile, now, begun = Turnstile(), 0.0, list[float]()
    for pause in pauses:
        now = turnstile.opens_at(now) + pause
        turnstile.passed(now)
        begun.append(now)
    for first, last in zip(begun, begun[MOST:], strict=False):
        assert last - first >= WINDOW_SECONDS - 1e-9


def test_one_does_not_wait() -> None:
    turnstile = Turnstile()
    assert turnstile.opens_at(1.0) == 1.0
    turnstile.passed(1.0)
    assert turnstile.opens_at(1.0) == 1.0 + PAUSE_SECONDS - LATE_SECONDS
    assert turnstile.opens_at(2.0) == 2.0


def test_timers_that_are_late_take_nothing_of_the_rate() -> None:
    turnstile, now = Turnstile(), 1.0
    for _ in range(1000):
        now = turnstile.opens_at(now) + 0.9 * LATE_SECONDS
        turnstile.passed(now)
    assert now < 1.0 + 1001 * PAUSE_SECONDS


def test_a_thousand_clients_are_back_before_their_own_longest_pause_is_over() -> None:
    assert 10.0 < spread_seconds(1000) < 18.0
    assert spread_seconds(1) < 0.02
