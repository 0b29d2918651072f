from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.fleet.pace import Pace, Paces
from tests.effort import examples


def test_ten_at_once_then_ten_a_second() -> None:
    pace = Pace(10)
    assert [pace.allows(100.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert pace.allows(100.11)
    assert not pace.allows(100.15)
    assert [pace.allows(200.0) for _ in range(11)] == [True] * 10 + [False]
    assert not pace.allows(5.0)  # a clock that goes back gives nothing


def test_each_has_his_own() -> None:
    paces = Paces(2)
    assert [paces.allows("a", 1.0) for _ in range(3)] == [True, True, False]
    assert paces.allows("b", 1.0)
    paces.forget("a")
    assert paces.allows("a", 1.0)


@given(st.lists(st.floats(0, 0.5), max_size=200))
@settings(max_examples=examples(100), deadline=None)
def test_never_more_than_twice_the_rate_in_a_second(steps: list[float]) -> None:
    pace, now, allowed = Pace(10), 0.0, []
    for step in steps:
        now += step
        if pace.allows(now):
            allowed.append(now)
    for at in allowed:
        assert sum(at <= other < at + 1 for other in allowed) <= 20
