"""Was this process itself asleep?"""

from __future__ import annotations

from twisted.internet.task import Clock

from appliance.service.nameserver.lag import LoopLag


def test_a_clock_that_runs_has_no_lag() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    lag.start()
    clock.pump([0.25] * 40)
    assert not lag.lagged_since(0.0)
    lag.stop()
    lag.stop()
    assert not clock.getDelayedCalls()


def test_a_late_beat_is_remembered_for_what_began_before_it() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    lag.start()
    clock.advance(1.2)  # 0.95 s late
    assert not lag.lagged_since(0.0)
    clock.advance(2.0)
    assert lag.lagged_since(0.0)
    assert lag.lagged_since(3.2)
    assert not lag.lagged_since(3.3)
    lag.stop()


def test_a_beat_that_is_late_now_counts_before_it_comes() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    lag.start()
    clock.rightNow += 2.0  # the loop has not turned yet
    assert lag.lagged_since(1.9)
    lag.stop()
