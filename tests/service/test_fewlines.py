"""A flood of complaints makes a few lines."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent
from zope.interface import provider

from appliance.service.fewlines import FewLines


def test_one_line_per_source_and_what_was_left_out() -> None:
    events: list[LogEvent] = []
    clock = Clock()
    few = FewLines(clock, Logger(observer=provider(ILogObserver)(lambda event: events.append(event))))
    for _ in range(100):
        few.warn("192.0.2.1", "went wrong")
    few.warn("192.0.2.2", "too")
    assert [formatEvent(event) for event in events] == ["192.0.2.1: went wrong", "192.0.2.2: too"]
    clock.advance(31)
    few.warn("192.0.2.1", "again")
    assert formatEvent(events[-1]) == "192.0.2.1: again (99 more lines about this peer were left out)"


def test_many_sources_do_not_fill_the_memory() -> None:
    few = FewLines(Clock(), Logger(observer=provider(ILogObserver)(lambda event: None)))
    for number in range(10_000):
        few.warn(str(number), "x")
    assert len(few._last) <= 4096
