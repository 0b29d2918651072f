"""Rate limiting against a model that counts everything: never below the limit, never far above it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dns import ratelimit
from appliance.dns.ratelimit import Limited, RateLimit
from tests.effort import examples

SOURCE = "192.0.2.1"


def passed(limit: RateLimit, count: int, now: float, source: str = SOURCE, identity: bytes = b"a") -> int:
    """How many of `count` answers go out at `now`."""
    return sum(limit.limited(source, identity, now) is None for _ in range(count))


def test_a_burst_and_then_the_rate() -> None:
    limit = RateLimit()
    assert passed(limit, 1000, 10.0) == 125
    assert [passed(limit, 1000, 10.0 + second) for second in range(1, 9)] == [50] * 8


def test_many_answers_to_one_resolver_are_no_attack() -> None:
    """250 live names, their A, AAAA and HTTPS, every 15 s."""
    limit = RateLimit()
    for turn in range(10):
        for name in range(250):
            for rtype in b"abc":
                assert limit.limited(SOURCE, b"%d%c" % (name, rtype), 15.0 * turn) is None


def test_a_busy_resolver_is_not_limited() -> None:
    limit = RateLimit()
    for step in range(20_000):  # 1,900 a second, each answer 19 times
        assert limit.limited(SOURCE, b"%d" % (step % 100), step / 1900) is None


def test_all_answers_of_a_source_are_limited() -> None:
    limit = RateLimit()
    for second in range(5):
        assert sum(limit.limited(SOURCE, b"%d" % n, 10.0 + second) is None for n in range(5000)) == 2000


@pytest.mark.parametrize(("slip", "of_a_hundred"), [(0, 0), (1, 100), (2, 50), (3, 33), (10, 10)])
def test_slip(slip: int, of_a_hundred: int) -> None:
    limit = RateLimit(slip=slip)
    passed(limit, 125, 10.0)
    found = [limit.limited(SOURCE, b"a", 10.0) for _ in range(100)]
    assert found.count(Limited.SLIPPED) == of_a_hundred
    assert found.count(Limited.DROPPED) == 100 - of_a_hundred


def test_sources() -> None:
    """An IPv4 address is one; an IPv6 /56 is one, however its addresses are written."""
    limit = RateLimit()
    passed(limit, 1000, 10.0)
    assert passed(limit, 1000, 10.0, "192.0.2.2") == 125
    assert passed(limit, 1000, 10.0, "2001:db8:0:100::1") == 125
    assert passed(limit, 1000, 10.0, "2001:db8:0:1ff:ffff::2") == 0
    assert passed(limit, 1000, 10.0, "2001:db8:0:200::1") == 125
    assert passed(limit, 1000, 10.0, "fe80::1%eth0") == 125
    assert passed(limit, 1000, 10.0, "fe80::2") == 0


def test_other_settings() -> None:
    limit = RateLimit(rate=10, slip=0)
    assert passed(limit, 1000, 10.0) == 25
    assert passed(limit, 1000, 11.0) == 10
    for rate, slip in ((0, 2), (50, -1)):
        with pytest.raises(ValueError, match="at least"):
            RateLimit(rate, slip)


def test_nothing_is_left_when_it_is_over() -> None:
    limit = RateLimit()
    for number in range(100):
        passed(limit, 200, 10.0, f"192.0.2.{number}")
    assert limit.sizes[2:] == (100, 100)
    passed(limit, 1, 20.0)
    assert limit.sizes == (1, 0, 0, 0)


def test_a_flood_of_sources_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "MAX_SOURCES", 100)
    monkeypatch.setattr(ratelimit, "MAX_BUCKETS", 100)
    limit = RateLimit(rate=2)
    for number in range(5000):
        for source in (f"10.0.{number >> 8}.{number & 255}", f"2001:db8:{number:x}::1"):
            for _ in range(10):
                limit.limited(source, b"%d" % number, 10.0 + number / 1000)
            assert max(limit.sizes) <= 101


class _Model:
    """A leaky bucket for each source and answer, that looks at every one: 2.5 s of the rate is its size."""

    def __init__(self, rate: int, size: float) -> None:
        self.rate, self.size = rate, size
        self.levels: dict[tuple[str, bytes], tuple[float, float]] = {}

    def takes(self, source: str, identity: bytes, now: float) -> bool:
        level, then = self.levels.get((source, identity), (0.0, now))
        level = max(0.0, level - (now - then) * self.rate)
        if level + 1 > self.size + 1e-6:
            self.levels[source, identity] = (level, now)
            return False
        self.levels[source, identity] = (level + 1, now)
        return True


STEPS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from((b"a", b"b", b"c")), st.floats(0, 1.5)), max_size=40
)


@settings(max_examples=examples(200), deadline=None)
@given(STEPS)
def test_never_more_than_a_bucket_of_the_burst_and_what_was_not_looked_at(
    steps: list[tuple[int, bytes, float]],
) -> None:
    """At worst two seconds' worth was not looked at: the end of one window and the begin of the next."""
    rate = 10
    limit, most = RateLimit(rate), _Model(rate, 25 + 2 * rate)
    now = 100.0
    for count, identity, step in steps:
        now += step
        for _ in range(count):
            if limit.limited(SOURCE, identity, now) is None:
                assert most.takes(SOURCE, identity, now)


@settings(max_examples=examples(200), deadline=None)
@given(STEPS)
def test_who_stays_below_the_rate_is_never_limited(steps: list[tuple[int, bytes, float]]) -> None:
    """Below 1.5 s of the rate in a bucket: what was not looked at is taken to be one answer, for a second."""
    rate = 10
    limit, sender = RateLimit(rate), _Model(rate, 1.5 * rate)
    now = 100.0
    for count, identity, step in steps:
        now += step
        for _ in range(count):
            if sender.takes(SOURCE, identity, now):
                assert limit.limited(SOURCE, identity, now) is None
