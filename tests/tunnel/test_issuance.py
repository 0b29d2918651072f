"""When certificates are ordered: the table, the pauses, the bounds, and that a restart changes none of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.tunnel.issuance import (
    FIRST_SECONDS,
    ORDERS_AN_HOUR,
    REFUSED_CEILING_SECONDS,
    REFUSED_SECONDS,
    STOPPED_SECONDS,
    Event,
    Issuance,
    Issued,
    Lifetime,
    OutOfTurn,
    Placed,
    Proved,
    Refused,
    State,
    Stopped,
    Validated,
    Woken,
    share_of,
)
from appliance.tunnel.issuanceledger import Ledger, Order, read_ledger

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
DAY = timedelta(days=1)
URL = "https://ca.test/order/1"
LIFETIME = Lifetime(NOON, NOON + 90 * DAY)
ALL = (Woken("key"), Placed(URL), Proved(), Validated(URL), Issued(LIFETIME), Stopped(), Refused())
TURNS = {
    State.WAITING: (Woken,),
    State.ORDERING: (Placed, Validated, Stopped, Refused),
    State.PROVING: (Proved, Stopped, Refused),
    State.VALIDATING: (Validated, Stopped, Refused),
    State.ISSUING: (Issued, Stopped, Refused),
}
WAY = {
    State.WAITING: ALL[:0],
    State.ORDERING: ALL[:1],
    State.PROVING: ALL[:2],
    State.VALIDATING: ALL[:3],
    State.ISSUING: ALL[:4],
}


def after(*events: Event, ledger: Ledger | None = None, lifetime: Lifetime | None = None) -> Issuance:
    made = Issuance(ledger or Ledger(), lifetime, 0.0)
    for event in events:
        made.receive(event, NOON)
    return made


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", ALL, ids=lambda event: type(event).__name__)
def test_every_row_of_the_table(state: State, event: Event) -> None:
    made = after(*WAY[state])
    assert made.state is state
    if type(event) in TURNS[state]:
        made.receive(event, NOON)
        assert (made.state is State.WAITING) == isinstance(event, Issued | Stopped | Refused)
    else:
        with pytest.raises(OutOfTurn):
            made.receive(event, NOON)


def test_the_first_is_ordered_at_once_each_client_at_its_moment() -> None:
    assert after().next_deadline(NOON) == NOON
    late = Issuance(Ledger(), None, 0.5)
    assert late.next_deadline(NOON) == NOON + timedelta(seconds=FIRST_SECONDS / 2)
    assert late.next_deadline(NOON + DAY) == NOON + timedelta(seconds=FIRST_SECONDS / 2)


def test_renewed_when_a_third_is_left() -> None:
    for days in (90, 45, 6):
        lifetime = Lifetime(NOON, NOON + days * DAY)
        assert lifetime.renewal(0.0) == NOON + days * DAY * 2 / 3
        assert lifetime.renewal(1.0) == NOON + days * DAY * 19 / 30
    assert after(lifetime=LIFETIME).next_deadline(NOON) == NOON + 60 * DAY
    assert after(*WAY[State.ISSUING], Issued(LIFETIME)).next_deadline(NOON) == NOON + 60 * DAY


def test_the_window_of_the_ca_goes_before() -> None:
    window = (NOON + DAY, NOON + 3 * DAY)
    assert Lifetime(NOON, NOON + 90 * DAY, window).renewal(0.5) == NOON + 2 * DAY


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (NOON + 91 * DAY, NOON + 92 * DAY),
        (NOON + 89 * DAY, NOON + 90 * DAY),
        (NOON + 80 * DAY, NOON + 80 * DAY),
        (NOON + 80 * DAY, datetime.max.replace(tzinfo=UTC)),
    ],
    ids=["behind the end", "at the end", "in the last sixth", "for ever"],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_window_of_the_ca_that_leaves_no_time_does_not_count(
    first: datetime, last: datetime, share: float
) -> None:
    assert replace(LIFETIME, window=(first, last)).renewal(share) == LIFETIME.renewal(share)


def test_a_window_of_the_ca_may_be_later_than_ours() -> None:
    """Let's Encrypt's is about the moment when a third is left."""
    window = (NOON + 59 * DAY, NOON + 75 * DAY)
    for share in (0.0, 0.25, 1.0):
        assert replace(LIFETIME, window=window).renewal(share) == window[0] + 16 * DAY * share
    # One that begins in the past, for all at once, and is wide: those who are to go early do.
    window = (NOON - DAY, NOON + 99 * DAY)
    assert replace(LIFETIME, window=window).renewal(0.1) == NOON + 9 * DAY


def test_the_key_is_in_the_ledger_before_the_order_and_the_order_before_the_proof() -> None:
    made = after(Woken("key"))
    assert made.ledger == Ledger(order=Order("key"), begun=(NOON,))
    made.receive(Placed(URL), NOON)
    assert made.ledger == Ledger(order=Order("key", URL), begun=(NOON,))


def test_an_order_that_was_begun_is_taken_up_again() -> None:
    again = after(ledger=Ledger(order=Order("key", URL), begun=(NOON,)))
    assert again.next_deadline(NOON + DAY) == NOON + DAY
    again.receive(Woken("other"), NOON + DAY)
    assert again.ledger == Ledger(order=Order("key", URL), begun=(NOON,))


def test_an_order_whose_place_was_never_heard_of_counts() -> None:
    ledger = Ledger(order=Order("key"), begun=(NOON,))
    for number in range(1, ORDERS_AN_HOUR):
        made = after(ledger=ledger)
        assert made.next_deadline(NOON) == NOON, number
        made.receive(Woken("other"), NOON)
        ledger = made.ledger
        assert ledger.order == Order("key")
    made = after(ledger=ledger)
    assert made.next_deadline(NOON) == NOON + timedelta(hours=1)
    assert made.next_deadline(NOON + timedelta(hours=1)) == NOON + timedelta(hours=1)


def test_a_refused_order_is_gone_and_a_stopped_one_is_not() -> None:
    for state in (State.ORDERING, State.PROVING, State.VALIDATING, State.ISSUING):
        assert after(*WAY[state], Refused()).ledger.order is None
        stopped = after(*WAY[state], Stopped()).ledger.order
        assert stopped is not None
        assert stopped.key_pem == "key"


def test_pauses_double_up_to_a_ceiling_and_chance_halves_them_at_most() -> None:
    ledger, pauses = Ledger(order=Order("key", URL)), []
    for _ in range(20):
        made = after(Woken("key"), ledger=ledger)
        made.receive(Refused(), NOON)
        ledger = made.ledger
        pauses.append(ledger.pause_seconds)
    assert pauses[:3] == [REFUSED_SECONDS, 2 * REFUSED_SECONDS, 4 * REFUSED_SECONDS]
    assert pauses[-1] == REFUSED_CEILING_SECONDS
    made = after(*WAY[State.PROVING])
    made.receive(Stopped(), NOON, chance=0.0)
    assert made.ledger.pause_seconds == STOPPED_SECONDS / 2
    assert made.next_deadline(NOON) == NOON + timedelta(seconds=STOPPED_SECONDS / 2)


def test_retry_after_is_waited_for() -> None:
    made = after(*WAY[State.ORDERING], Refused(retry_after=7 * 86400.0))
    assert made.next_deadline(NOON) == NOON + 7 * DAY


@pytest.mark.parametrize("seconds", [7 * 86400.0 + 1, 1e9, 1e300, float("inf")])
def test_but_not_for_longer_than_a_week(seconds: float) -> None:
    for failure in (Refused, Stopped):
        made = after(*WAY[State.ORDERING], failure(retry_after=seconds))
        assert made.next_deadline(NOON) == NOON + 7 * DAY
        again = after(ledger=read_ledger(made.ledger.octets()))
        assert again.next_deadline(NOON) == NOON + 7 * DAY


def test_a_failure_is_forgotten_when_it_went_well() -> None:
    made = after(*WAY[State.PROVING], Stopped(), Woken("other"), Validated(URL), Issued(LIFETIME))
    assert made.ledger == Ledger(begun=(NOON,))


def test_hurried_it_waits_no_longer_but_for_the_bound() -> None:
    ledger = Ledger()
    for number in range(ORDERS_AN_HOUR):
        made = after(Woken("key"), Placed(URL), Refused(), ledger=ledger)
        assert made.hurry()
        assert not made.hurry()
        ledger = made.ledger
        assert (made.next_deadline(NOON) == NOON) == (number < ORDERS_AN_HOUR - 1)
    assert ledger.failures == ORDERS_AN_HOUR
    assert not after(Woken("key")).hurry()


def test_what_a_wrong_clock_wrote_does_not_count() -> None:
    future = NOON + 9999 * DAY
    ledger = Ledger(begun=(future,) * ORDERS_AN_HOUR, failed=future, pause_seconds=60.0, failures=3)
    assert after(ledger=ledger).next_deadline(NOON) == NOON


@given(st.lists(st.sampled_from(["refused", "stopped", "killed"]), max_size=40), st.floats(0, 1))
def test_never_more_orders_an_hour_than_the_bound(fates: list[str], chance: float) -> None:
    """Whatever happens to each, with a restart in between that finds what the ledger's file holds."""
    ledger, wall = Ledger(), NOON
    orders: list[datetime] = []
    for fate in fates:
        made = Issuance(read_ledger(ledger.octets()), None, 0.0)
        wall = max(wall, made.next_deadline(wall))
        made.receive(Woken("key"), wall)
        assert made.ledger.order is not None
        if not made.ledger.order.url:
            orders.append(wall)
        if fate != "killed":
            made.receive(Placed(URL), wall)
            made.receive(Refused() if fate == "refused" else Stopped(), wall, chance)
        ledger = made.ledger
    for first, last in pairwise([orders[at] for at in range(0, len(orders), ORDERS_AN_HOUR)]):
        assert last - first >= timedelta(hours=1)


def test_clients_of_a_name_have_places_of_their_own() -> None:
    places = {share_of(f"{number:032x}", "www.example.com") for number in range(16)}
    assert len(places) == 16
    assert all(0 <= place < 1 for place in places)
    assert share_of("a", "x.test") == share_of("a", "x.test")
