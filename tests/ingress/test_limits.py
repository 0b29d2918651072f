from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.ingress import limits
from appliance.ingress.limits import Over, Sources
from tests.effort import examples


def test_new_ones_a_second() -> None:
    sources = Sources(open_at_most=0, new_a_second=2)
    assert [sources.take("a", 5.1) for _ in range(3)] == [None, None, Over.SOURCE_NEW]
    assert sources.take("a", 5.9) is Over.SOURCE_NEW
    assert sources.take("b", 5.9) is None
    assert sources.take("a", 6.0) is None
    assert sources.open("a") == 3


def test_who_has_gone_counts_as_new_still() -> None:
    sources = Sources(open_at_most=0, new_a_second=1)
    assert sources.take("a", 1.0) is None
    sources.went("a")
    assert sources.take("a", 1.5) is Over.SOURCE_NEW
    assert (len(sources), sources.open("a")) == (0, 0)


def test_open_ones() -> None:
    sources = Sources(open_at_most=2, new_a_second=0)
    assert [sources.take("a", now) for now in (1.0, 2.0, 3.0)] == [None, None, Over.SOURCE_OPEN]
    sources.went("a")
    assert sources.take("a", 3.0) is None


def test_who_is_let_in_anyway_counts_as_open() -> None:
    sources = Sources(open_at_most=1, new_a_second=0)
    assert sources.take("a", 1.0) is None
    sources.came("a")
    sources.went("a")
    assert sources.take("a", 1.0) is Over.SOURCE_OPEN


def test_no_limit() -> None:
    sources = Sources(open_at_most=0, new_a_second=0)
    assert [sources.take("a", 1.0) for _ in range(5000)] == [None] * 5000


def test_sources_that_are_counted_in_a_second_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOURCES_A_SECOND", 3)
    sources = Sources(open_at_most=0, new_a_second=1)
    for source in range(10):
        assert sources.take(source, 1.0) is None
        sources.went(source)
    assert len(sources._new) == 3
    assert [sources.take(source, 1.0) for source in (0, 2, 3)] == [Over.SOURCE_NEW, Over.SOURCE_NEW, None]


OPEN, NEW = 3, 2


class AgainstAModel(RuleBasedStateMachine):
    """The model keeps every connection, open or not, with the second in which it came."""

    def __init__(self) -> None:
        super().__init__()
        self.sources = Sources(open_at_most=OPEN, new_a_second=NEW)
        self.now = 0.0
        self.all: list[tuple[str, int]] = []
        self.open: list[str] = []

    def expected(self, source: str) -> Over | None:
        if self.open.count(source) >= OPEN:
            return Over.SOURCE_OPEN
        return Over.SOURCE_NEW if self.all.count((source, int(self.now))) >= NEW else None

    @rule(seconds=st.floats(0, 2))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(source=st.sampled_from("abc"), anyway=st.booleans())
    def come(self, source: str, anyway: bool) -> None:
        expected = self.expected(source)
        assert self.sources.take(source, self.now) == expected
        if expected is None:
            self.all.append((source, int(self.now)))
        elif anyway:  # from an exempt source
            self.sources.came(source)
        if expected is None or anyway:
            self.open.append(source)

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        if self.open:
            source = data.draw(st.sampled_from(sorted(self.open)))
            self.open.remove(source)
            self.sources.went(source)

    @invariant()
    def holds_no_more_than_there_is(self) -> None:
        assert len(self.sources) == len(set(self.open))
        assert [self.sources.open(source) for source in "abc"] == [self.open.count(one) for one in "abc"]


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=examples(60), stateful_step_count=30, deadline=None)
