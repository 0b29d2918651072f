"""Which announcements count: the rules one by one, and against a model that knows what really came when."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.fleet.announcement import Announcement
from appliance.fleet.introduced import (
    MAX_OVER,
    MAX_STARTS,
    REMEMBER_SECONDS,
    Introduced,
    Verdict,
    announced,
    decode,
    encode,
    greeted,
)
from appliance.tunnel.discovery import ServerAddress
from tests.effort import examples

A, B, C = (ServerAddress(f"192.0.2.{number}") for number in (1, 2, 3))
NOBODY = Introduced("s2", 0)


def say(before: Introduced, boot: str, n: int, *at: ServerAddress, until: float = 60.0) -> Introduced:
    verdict, after = announced(before, Announcement(boot, n, at or (A,)), 7, until)
    assert verdict is Verdict.TAKEN
    return after


def refused(before: Introduced, boot: str, n: int, verdict: Verdict = Verdict.LATE) -> None:
    found, after = announced(before, Announcement(boot, n, (C,)), 8, 1e9)
    assert (found, after) == (verdict, before)


def test_the_first_announcement_makes_its_addresses_be_watched() -> None:
    one = say(NOBODY, "b1", 1, A, B)
    assert one.addresses(59.9) == {A, B}
    assert one.addresses(60.0) == frozenset()
    assert (one.serial, one.met) == (7, "")


def test_within_a_start_the_higher_number_is_the_later_one() -> None:
    one = say(say(NOBODY, "b1", 5, A), "b1", 6, B, until=100.0)
    assert one.addresses(0.0) == {B}
    refused(one, "b1", 5)
    refused(one, "b1", 6, Verdict.AGAIN)  # and lengthens nothing
    later = say(one, "b1", 900, A, until=200.0)  # one that lost all between is taken as well
    assert later.addresses(150.0) == {A}


def test_a_lease_that_has_ended_still_says_what_is_late() -> None:
    one = say(NOBODY, "b1", 5, until=60.0)
    refused(one, "b1", 4)
    assert not one.is_done(60.0 + REMEMBER_SECONDS - 1)
    assert one.is_done(60.0 + REMEMBER_SECONDS)


def test_a_start_that_nobody_met_is_dialled_beside_the_others() -> None:
    one = say(greeted(say(NOBODY, "b1", 1, A), "b1"), "b2", 1, B)
    assert one.met == "b1"
    assert one.addresses(0.0) == {A, B}


def test_the_watch_says_which_start_is_the_present_one() -> None:
    one = say(say(NOBODY, "b9", 7, A), "b1", 1, B)
    met = greeted(one, "b9")
    assert met.addresses(0.0) == {A, B}  # the other one may be the next
    now = greeted(met, "b1")
    assert (now.met, now.over) == ("b1", ("b9",))
    assert now.addresses(0.0) == {B}
    refused(now, "b9", 8)
    assert greeted(now, "b1") is now
    back = greeted(now, "b9")  # the very same start, alive
    assert (back.met, back.over) == ("b9", ("b1",))
    say(back, "b9", 8)


def test_who_is_met_before_he_announced_anything() -> None:
    met = greeted(NOBODY, "b1")
    assert met.addresses(0.0) == frozenset()
    assert met.is_done(0.0)
    assert say(met, "b1", 1, A).addresses(0.0) == {A}


def test_what_is_remembered_is_bounded() -> None:
    one = greeted(say(NOBODY, "b0", 1), "b0")
    for number in range(100, 120):
        one = say(one, f"x{number}", 1)
    assert len(one.leases) == MAX_STARTS
    assert one.lease_of("b0") is not None
    assert one.lease_of("x119") is not None
    for number in range(1, 40):
        one = greeted(one, f"b{number}")
    assert len(one.over) == MAX_OVER
    assert one.over[0] == "b38"


def test_what_the_disk_keeps() -> None:
    one = greeted(say(say(NOBODY, "b1", 5, A, ServerAddress("2001:db8::1", 8443)), "b2", 2**63 - 1), "b0")
    one = greeted(one, "b1")
    assert decode("s2", encode(one, 1000.0), 1000.0) == one
    assert decode("s2", encode(one, 1000.0), 0.0, 50.0).leases[0].until == 50.0  # not for longer than that


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '["g","",[],[]]', '["7","",[[1]],[]]'])
def test_what_the_disk_does_not_keep(text: str) -> None:
    with pytest.raises(ValueError, match="server s2 announced"):
        decode("s2", text)


class Schedules(RuleBasedStateMachine):
    """Starts of one server one after the other; whatever a start has announced may arrive at any time, in any
    order, as often as it likes, or never. The model knows which start is the later one; a nameserver does
    not. What must hold: the record of the start that was met never goes back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = NOBODY
        self.start = 0
        self.n = 0
        self.sent: list[tuple[int, Announcement]] = []
        self.seen = (0, 0)

    @rule()
    def the_server_starts(self) -> None:
        self.start += 1
        self.n = 0

    @precondition(lambda self: self.start)
    @rule()
    def it_announces(self) -> None:
        self.n += 1
        said = Announcement(f"b{(self.start * 7919) % 104729}", self.n, (A,))
        self.sent.append((self.start, said))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 10**6))
    def one_arrives(self, which: int) -> None:
        _, said = self.sent[which % len(self.sent)]
        met = self.state.met
        _, self.state = announced(self.state, said, 7, 1e9)
        assert self.state.met == met

    @precondition(lambda self: self.start)
    @rule()
    def a_watch_meets_the_present_start(self) -> None:
        self.state = greeted(self.state, f"b{(self.start * 7919) % 104729}")

    @rule()
    def the_nameserver_restarts(self) -> None:
        self.state = decode("s2", encode(self.state, 5.0), 5.0)

    @invariant()
    def nothing_goes_back(self) -> None:
        lease = self.state.lease_of(self.state.met)
        starts = {f"b{(number * 7919) % 104729}": number for number in range(1, self.start + 1)}
        now = (starts.get(self.state.met, 0), lease.said.n if lease is not None else 0)
        assert now >= self.seen
        self.seen = now


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=examples(200), stateful_step_count=40, deadline=None)
