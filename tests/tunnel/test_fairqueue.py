"""The queue of links: whoever comes in masses waits behind himself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.fairqueue import FairQueue
from tests.effort import examples


def queue(*waiters: tuple[str, str]) -> FairQueue[str]:
    made: FairQueue[str] = FairQueue()
    for waiter, source in waiters:
        made.add(waiter, source)
    return made


def all_of(waiting: FairQueue[str]) -> list[str]:
    return [waiting.pop() for _ in range(len(waiting))]


def test_of_one_source_in_the_order_in_which_they_came() -> None:
    assert all_of(queue(("1", "a"), ("2", "a"), ("3", "a"))) == ["1", "2", "3"]


def test_a_source_with_many_waits_behind_itself() -> None:
    waiting = queue(("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b"))
    assert all_of(waiting) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_is_one_too_many() -> None:
    waiting = queue(("a1", "a"), ("a2", "a"), ("b1", "b"))
    assert waiting.newest_of_most() == "a2"
    waiting.remove("a2")
    assert "a2" not in waiting
    assert waiting.newest_of_most() == "b1"  # its turn is later
    assert all_of(waiting) == ["a1", "b1"]


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.sampled_from("abcd+-"), max_size=60))
def test_against_lists(steps: list[str]) -> None:
    """A letter is one more of that source, `+` the next one's turn, `-` one too many."""
    waiting: FairQueue[int] = FairQueue()
    model: list[tuple[str, list[int]]] = []
    for number, step in enumerate(steps):
        if step == "+" and model:
            source, (first, *rest) = model.pop(0)
            assert waiting.pop() == first
            if rest:
                model.append((source, rest))
        elif step == "-" and model:
            most = max(len(each) for _, each in model)
            source, each = [one for one in model if len(one[1]) == most][-1]
            assert waiting.newest_of_most() == each[-1]
            waiting.remove(each.pop())
            if not each:
                model.remove((source, each))
        elif step in "abcd":
            waiting.add(number, step)
            mine = [each for source, each in model if source == step]
            if mine:
                mine[0].append(number)
            else:
                model.append((step, [number]))
        assert len(waiting) == sum(len(each) for _, each in model)
        assert all(one in waiting for _, each in model for one in each)
