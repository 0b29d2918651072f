"""One timer for many: everybody is late at his own time, and at no other."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from appliance.service.deadlines import Deadlines
from tests.effort import examples


@given(steps=st.lists(st.tuples(st.sampled_from(["add", "discard", "wait"]), st.integers(0, 7)), max_size=60))
@settings(max_examples=examples(200), deadline=None)
def test_as_a_timer_each(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    late: list[tuple[float, int]] = []
    expected: list[tuple[float, int]] = []
    due: dict[int, float] = {}
    deadlines = Deadlines[int](clock, 5, lambda one: late.append((clock.seconds(), one)))
    for step, number in [*steps, ("wait", 7), ("wait", 7)]:
        if step == "add" and number not in due:
            deadlines.add(number)
            due[number] = clock.seconds() + 5
        elif step == "discard":
            deadlines.discard(number)
            due.pop(number, None)
        elif step == "wait":
            for _ in range(number):  # whole seconds: everything is due at one of them
                clock.advance(1)
                over = [one for one, at in due.items() if at <= clock.seconds()]
                expected += [(clock.seconds(), one) for one in over]
                for one in over:
                    del due[one]
        assert deadlines.all() == list(due)
    assert late == expected
    assert not clock.getDelayedCalls()


def test_who_is_late_may_begin_again_and_end_others() -> None:
    clock = Clock()
    late: list[str] = []

    def again(one: str) -> None:
        late.append(one)
        if one == "first":
            deadlines.discard("second")
            deadlines.add("third")

    deadlines = Deadlines[str](clock, 5, again)
    deadlines.add("first")
    deadlines.add("second")
    clock.advance(5)
    assert (late, deadlines.oldest(), len(deadlines)) == (["first"], "third", 1)
    deadlines.add("fourth")
    assert (deadlines.oldest(), deadlines.newest()) == ("third", "fourth")
    deadlines.discard("fourth")
    clock.advance(5)
    assert late == ["first", "third"]


def test_stop_leaves_no_timer() -> None:
    clock = Clock()
    deadlines = Deadlines[str](clock, 5, lambda one: None)
    deadlines.add("one")
    deadlines.stop()
    deadlines.stop()
    assert not clock.getDelayedCalls()
    assert deadlines.all() == []
