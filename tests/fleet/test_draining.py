"""A drain: what is waited for, and what is not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.fleet.draining import ANSWER_SECONDS, LAST_SECONDS, LOOK_SECONDS, Draining, DrainState
from tests.effort import examples

LIMIT = 30.0


def state(drain: Draining) -> DrainState:
    return drain.state


def run(drain: Draining, now: float, visitors: int = 0, until: float = 1000.0) -> float:
    """Tick at each deadline until it is over; when that was."""
    while (deadline := drain.next_deadline(now)) is not None and deadline <= until:
        now = deadline
        drain.tick(now, visitors)
    return now


def test_an_address_outlasts_the_caches_by_some_seconds() -> None:
    assert LAST_SECONDS == 20


def test_whom_nobody_watches_waits_for_his_visitors_only() -> None:
    drain = Draining([], LIMIT, 0.0)
    assert state(drain) is DrainState.FINISHING
    assert run(drain, 0.0) == LOOK_SECONDS
    drain = Draining([], LIMIT, 0.0)
    assert run(drain, 0.0, visitors=1) == LIMIT
    assert state(drain) is DrainState.OVER


def test_who_is_held_in_waits_for_no_cache() -> None:
    drain = Draining(["ns1"], LIMIT, 0.0)
    assert state(drain) is DrainState.TELLING
    drain.answered("ns1", True, 0.1)
    assert state(drain) is DrainState.FINISHING
    drain.tick(0.1, 0)
    assert drain.next_deadline(0.1) is None


def test_who_is_out_serves_until_the_caches_know() -> None:
    drain = Draining(["ns1", "ns2"], LIMIT, 0.0)
    drain.answered("ns1", False, 0.1)
    assert state(drain) is DrainState.TELLING
    drain.answered("ns2", True, 0.2)
    assert state(drain) is DrainState.LASTING
    assert drain.next_deadline(0.2) == 0.1 + LAST_SECONDS
    drain.answered("ns2", False, 5.0)  # another server has come, and a second answer with it
    assert drain.next_deadline(5.0) == 5.0 + LAST_SECONDS
    drain.tick(6.0, 0)
    assert state(drain) is DrainState.LASTING
    drain.tick(5.0 + LAST_SECONDS, 1)
    assert state(drain) is DrainState.FINISHING
    assert run(drain, 25.0, visitors=1) == 25.0 + LIMIT


def test_a_nameserver_that_does_not_answer_may_have_taken_it_out() -> None:
    drain = Draining(["ns1"], LIMIT, 0.0)
    assert drain.next_deadline(0.0) == ANSWER_SECONDS
    drain.tick(ANSWER_SECONDS, 0)
    assert state(drain) is DrainState.LASTING
    assert drain.deadline == ANSWER_SECONDS + LAST_SECONDS


def test_a_watch_that_ends_is_not_waited_for() -> None:
    drain = Draining(["ns1"], LIMIT, 0.0)
    drain.answered("ns1", None, 1.0)
    assert state(drain) is DrainState.FINISHING
    drain.answered("ns1 again", False, 2.0)
    assert state(drain) is DrainState.LASTING


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([True, False, None]), st.floats(0, 10))),
    st.integers(0, 3),
)
@settings(max_examples=examples(200), deadline=None)
def test_every_drain_ends_and_never_before_the_caches_know(
    answers: list[tuple[str, bool | None, float]], visitors: int
) -> None:
    drain, now, out_at = Draining("ab", LIMIT, 0.0), 0.0, None
    for watcher, held, seconds in answers:
        now = run(drain, now, visitors, until=now + seconds) if seconds else now
        if drain.state is DrainState.OVER:
            break
        drain.answered(watcher, held, now)
        out_at = now if held is False else out_at
    began = now
    over = run(drain, now, visitors)
    assert state(drain) is DrainState.OVER
    assert out_at is None or over >= out_at + LAST_SECONDS
    assert over <= began + ANSWER_SECONDS + LAST_SECONDS + LIMIT + 1e-6
