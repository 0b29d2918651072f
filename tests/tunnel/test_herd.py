"""A herd is let in at a steady rate."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.herd import BEGUN_AT_MOST, WINDOW_SECONDS, Turnstile, spread_seconds


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=60))
@settings(deadline=None)
def test_never_more_than_ten_in_any_window(pauses: list[float]) -> None:
    turnstile, now, begun = Turnstile(), 0.0, list[float]()
    for pause in pauses:
        now = turnstile.opens_at(now + pause)
        turnstile.passed(now)
        begun.append(now)
    for first, last in zip(begun, begun[BEGUN_AT_MOST:], strict=False):
        assert last - first >= WINDOW_SECONDS - 1e-9


def test_a_few_do_not_wait() -> None:
    turnstile = Turnstile()
    for _ in range(BEGUN_AT_MOST):
        assert turnstile.opens_at(1.0) == 1.0
        turnstile.passed(1.0)
    assert turnstile.opens_at(1.0) == 1.1
    assert turnstile.opens_at(2.0) == 2.0


def test_a_thousand_clients_are_back_before_their_own_longest_pause_is_over() -> None:
    assert spread_seconds(1000) == 12.5
    assert spread_seconds(1) < 0.02
