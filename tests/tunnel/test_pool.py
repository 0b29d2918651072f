from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.pool import LONGEST_BACK_OFF_SECONDS, QUIET_SECONDS, Pool
from tests.effort import examples


def filled(floor: int = 2, ceiling: int = 256) -> Pool:
    pool = Pool(floor, ceiling)
    fill(pool, 0.0)
    return pool


def fill(pool: Pool, now: float) -> int:
    dials = pool.to_dial(now)
    for _ in range(dials):
        pool.opened()
    return dials


def test_the_floor_is_kept() -> None:
    pool = Pool(2, 256)
    assert pool.to_dial(0.0) == 2
    assert pool.to_dial(0.0) == 0
    pool.opened()
    pool.opened()
    assert (pool.idle, pool.dialling) == (2, 0)
    pool.lost()
    assert pool.to_dial(1000.0) == 1


def test_lanes_on_demand_only() -> None:
    pool = Pool(0, 256)
    assert pool.to_dial(0.0) == 0
    assert pool.next_deadline() is None
    pool.asked(3, 1.0)
    assert fill(pool, 1.0) == 3
    pool.asked(3, 1.1)
    assert pool.to_dial(1.1) == 0
    for _ in range(3):
        pool.taken(1.2)
    assert fill(pool, 1.2) > 0
    assert pool.to_dial(1.2 + 10 * QUIET_SECONDS) == 0
    assert pool.aim == 0


def test_a_burst_doubles_the_aim_and_no_more() -> None:
    pool = filled()
    aims = []
    for _ in range(8):
        pool.taken(0.5)
        aims.append(pool.aim)
    assert aims == [4, 4, 8, 8, 8, 8, 16, 16]
    assert pool.to_dial(0.5) == 16


def test_lanes_that_are_replaced_in_time_are_enough() -> None:
    pool = filled()
    for second in range(600):
        pool.taken(float(second))
        fill(pool, second + 0.05)
        assert pool.aim <= 4


def test_the_ceiling_is_never_passed() -> None:
    pool = filled(2, 16)
    for _ in range(1000):
        pool.taken(0.0)
        fill(pool, 0.0)
    pool.asked(60000, 0.0)
    fill(pool, 0.0)
    assert pool.idle == pool.aim == 16


def test_quiet_halves_the_aim_and_closes_what_is_above_it() -> None:
    pool = filled()
    assert pool.next_deadline() is None
    pool.asked(100, 0.0)
    fill(pool, 0.0)
    assert pool.idle == 100
    pool.lost()
    assert fill(pool, QUIET_SECONDS - 0.1) == 1
    assert pool.to_close(QUIET_SECONDS - 0.1) == 0
    assert pool.next_deadline() == QUIET_SECONDS
    assert pool.to_close(QUIET_SECONDS) == 50
    assert (pool.aim, pool.idle, pool.to_dial(QUIET_SECONDS)) == (50, 50, 0)
    assert pool.to_close(QUIET_SECONDS) == 0
    assert pool.next_deadline() == 2 * QUIET_SECONDS
    pool.taken(QUIET_SECONDS + 1)
    assert pool.to_close(2 * QUIET_SECONDS) == 24
    assert pool.to_close(3600.0) == 23
    assert (pool.aim, pool.idle, pool.next_deadline()) == (2, 2, None)
    pool.lost()
    assert pool.to_dial(3600.0) == 1


def test_lanes_are_not_closed_while_visitors_come() -> None:
    pool = filled()
    pool.asked(100, 0.0)
    fill(pool, 0.0)
    for second in range(0, 600, 10):
        for _ in range(40):
            pool.taken(float(second))
            fill(pool, second + 0.01)
        assert pool.to_close(second + 0.02) == 0


def test_dials_that_fail_are_tried_again_alone_and_ever_later() -> None:
    pool = Pool(2, 256)
    now, waits = 0.0, []
    assert pool.to_dial(now) == 2
    pool.failed(now)
    pool.failed(now)
    assert pool.failures == 1
    for _ in range(9):
        deadline = pool.next_deadline()
        assert deadline is not None
        assert pool.to_dial(deadline - 0.01) == 0
        waits.append(round(deadline - now, 3))
        now = deadline
        assert pool.to_dial(now) == 1
        assert pool.to_dial(now) == 0
        assert pool.next_deadline() is None
        pool.failed(now)
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0, LONGEST_BACK_OFF_SECONDS]
    deadline = pool.next_deadline()
    assert deadline is not None
    assert pool.to_dial(deadline) == 1
    pool.opened()
    assert (pool.failures, pool.next_deadline()) == (0, None)
    assert pool.to_dial(deadline) == 1


def test_lanes_that_end_as_soon_as_they_are_open_are_as_dials_that_fail() -> None:
    pool, now, waits = Pool(1, 256), 0.0, []
    for _ in range(9):
        assert pool.to_dial(now) == 1
        pool.opened()
        pool.refused(now)
        assert pool.to_dial(now) == 0
        deadline = pool.next_deadline()
        assert deadline is not None
        waits.append(round(deadline - now, 3))
        now = deadline
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0]
    assert pool.failures == 0
    fill(pool, now)
    pool.taken(now)
    fill(pool, now)
    pool.refused(now)
    assert pool.next_deadline() == now + 0.2


def test_a_lane_that_opens_does_not_end_the_wait_after_one_that_was_refused() -> None:
    """Else two that end in turn, each as the other opens, would be dialled as fast as the way allows."""
    pool = Pool(2, 256)
    assert pool.to_dial(0.0) == 2
    pool.opened()
    pool.refused(0.0)
    pool.opened()
    assert pool.to_dial(0.1) == 0
    assert pool.next_deadline() == 0.2
    assert pool.to_dial(0.2) == 1
    pool.opened()
    pool.taken(0.3)  # so they are good for something
    pool.asked(8, 0.3)
    assert pool.to_dial(0.3) == 7


def test_there_may_be_less_room_than_is_wanted() -> None:
    pool = Pool(4, 256)
    assert pool.to_dial(0.0, room=3) == 3
    assert pool.to_dial(0.0, room=0) == 0
    assert pool.to_dial(0.0, room=-2) == 0
    assert pool.to_dial(0.0, room=5) == 1


HAPPENINGS = st.lists(st.tuples(st.sampled_from("olftacd"), st.floats(0, 40)), max_size=40)


@given(HAPPENINGS, st.integers(0, 4))
@settings(max_examples=examples(100), deadline=None)
def test_whatever_happens_the_counts_stay_sane(happenings: list[tuple[str, float]], floor: int) -> None:
    pool, now = Pool(floor, 32), 0.0
    for what, later in happenings:
        now += later
        if what == "d":
            assert pool.to_dial(now) >= 0
            assert pool.idle + pool.dialling <= max(32, pool.idle)
        elif what == "c":
            assert pool.to_close(now) >= 0
            assert pool.idle <= pool.aim
        elif what in "of" and pool.dialling:
            if what == "o":
                pool.opened()
            else:
                pool.failed(now)
        elif what == "l" and pool.idle:
            pool.lost()
        elif what == "t" and pool.idle:
            pool.taken(now)
        elif what == "a":
            pool.asked(int(later), now)
        assert floor <= pool.aim <= 32
        assert min(pool.idle, pool.dialling, pool.failures) >= 0
    deadline = pool.next_deadline()
    aim = pool.aim
    assert deadline is None or pool.to_dial(max(deadline, now)) == 1 or pool.aim < aim
