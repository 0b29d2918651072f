"""The three dials: what each answer proves, and what silence proves to whom."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.fleet.check import DIALS, Check, Verdict
from tests.effort import examples


def test_three_dials_half_a_second_apart_and_then_silence() -> None:
    check = Check("b1", 100.0)
    dialled = {}
    while (deadline := check.next_deadline()) is not None:
        due = check.dials_due(deadline)
        check.tick(deadline, lagged=False)
        if due:
            dialled[deadline] = due
        last = deadline
    assert dialled == {100.0: 1, 100.5: 1, 101.0: 1}
    assert last == 102.5
    assert check.verdict is Verdict.SILENT


def test_a_late_caller_begins_all_dials_that_are_due() -> None:
    check = Check("b1", 0.0)
    assert check.dials_due(0.7) == 2
    assert check.dials_due(0.8) == 0
    assert check.dials_due(9.0) == 1
    assert check.dials_due(9.0) == 0


def test_one_refusal_is_proof() -> None:
    check = Check("b1", 0.0)
    assert check.dials_due(0.0) == 1
    check.refused()
    assert check.verdict is Verdict.REFUSED
    assert check.dials_due(0.5) == 0
    assert check.next_deadline() is None


def test_boots_are_told_apart() -> None:
    for asked, met, verdict in (
        ("b1", "b1", Verdict.SAME_BOOT),
        ("b1", "b2", Verdict.OTHER_BOOT),
        (None, "b1", Verdict.SAME_BOOT),
    ):
        check = Check(asked, 0.0)
        check.answered(met)
        assert check.verdict is verdict


def test_the_first_word_decides() -> None:
    check = Check("b1", 0.0)
    check.answered("b1")
    check.refused()
    check.tick(9.0, lagged=False)
    assert check.verdict is Verdict.SAME_BOOT


def test_an_observer_that_lagged_begins_anew() -> None:
    check = Check("b1", 0.0)
    check.dials_due(9.0)
    check.tick(9.0, lagged=True)
    assert check.verdict is None
    assert check.next_deadline() == 9.0
    assert check.dials_due(9.0) == 1
    check.dials_due(10.0)
    check.tick(11.5, lagged=False)
    assert check.verdict is Verdict.SILENT


@given(st.floats(0, 1e9), st.lists(st.floats(0, 1), max_size=20))
@settings(max_examples=examples(100), deadline=None)
def test_whatever_the_clock_does_a_check_dials_three_times_and_ends(now: float, steps: list[float]) -> None:
    check = Check("b1", now)
    began = now
    dials = check.dials_due(now)
    for step in steps:
        now += step
        dials += check.dials_due(now)
        check.tick(now, lagged=False)
    for _ in range(10):
        deadline = check.next_deadline()
        if deadline is None:
            break
        now = max(now, deadline)
        dials += check.dials_due(now)
        check.tick(now, lagged=False)
    assert check.verdict is Verdict.SILENT
    assert now - began >= 2.4
    assert dials <= DIALS
