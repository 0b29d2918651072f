from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from appliance.tunnel.routes import Routes
from appliance.tunnel.session import Offer
from tests.effort import examples

BOTH, TLS_ONLY, HTTP_ONLY = Offer(True, "serve"), Offer(True, "redirect"), Offer(False, "serve")
WWW, APPS = "www.example.org", "*.apps.example.org"


def test_the_first_and_the_last_session_of_a_name() -> None:
    routes: Routes[str] = Routes()
    assert routes.add(WWW, "a", BOTH)
    assert not routes.add(WWW, "b", BOTH)
    assert not routes.add(WWW, "a", TLS_ONLY)
    assert routes.add(APPS, "a", BOTH)
    assert routes.names() == [WWW, APPS]
    assert (routes.sessions(WWW), routes.sessions(APPS)) == (["a", "b"], ["a"])
    assert not routes.remove(WWW, "a")
    assert not routes.remove(WWW, "a")
    assert not routes.remove("never.example", "a")
    assert routes.remove(WWW, "b")
    assert routes.names() == [APPS]
    assert routes.sessions(WWW) == []
    assert routes.pick(WWW, http=False) is None


def test_a_session_that_ends_takes_its_names_with_it() -> None:
    routes: Routes[str] = Routes()
    for name in (WWW, APPS, "b.example"):
        routes.add(name, "a", BOTH)
    routes.add(APPS, "b", BOTH)
    assert routes.remove_session("a") == [WWW, "b.example"]
    assert routes.remove_session("a") == []
    assert routes.names() == [APPS]
    assert routes.pick("x.apps.example.org", http=False) == "b"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (WWW, WWW),
        ("one.apps.example.org", "one.apps.example.org"),
        ("two.apps.example.org", APPS),
        ("x.two.apps.example.org", APPS),
        ("x.one.apps.example.org", APPS),
        ("x.deep.apps.example.org", "*.deep.apps.example.org"),
        ("apps.example.org", None),
        ("example.org", None),
        (APPS, None),
        ("*.x.apps.example.org", None),
        ("*.two.apps.example.org", None),
        ("org", None),
    ],
)
def test_the_exact_name_then_the_closest_wildcard(host: str, name: str | None) -> None:
    routes: Routes[str] = Routes()
    for served in (APPS, "*.deep.apps.example.org", "one.apps.example.org", WWW):
        routes.add(served, served, BOTH)
    assert routes.match(host) == name
    assert routes.pick(host, http=False) == name
    assert routes.offers(host) == ([] if name is None else [BOTH])


def test_each_kind_of_visitor_goes_to_who_takes_it() -> None:
    routes: Routes[str] = Routes()
    for session, offer in (("t", TLS_ONLY), ("h", HTTP_ONLY), ("b", BOTH)):
        routes.add(WWW, session, offer)
    assert [routes.pick(WWW, http=False) for _ in range(4)] == ["t", "b", "t", "b"]
    assert [routes.pick(WWW, http=True) for _ in range(4)] == ["h", "b", "h", "b"]
    routes.add(WWW, "b", TLS_ONLY)
    assert [routes.pick(WWW, http=True) for _ in range(2)] == ["h", "h"]
    assert routes.offers(WWW) == [TLS_ONLY, HTTP_ONLY, TLS_ONLY]


def test_turns_of_one_kind_do_not_disturb_the_other() -> None:
    routes: Routes[str] = Routes()
    for session, offer in (("a", BOTH), ("b", TLS_ONLY)):
        routes.add(WWW, session, offer)
    turns: Counter[str | None] = Counter()
    for _ in range(10):
        assert routes.pick(WWW, http=True) == "a"
        turns[routes.pick(WWW, http=False)] += 1
    assert turns == {"a": 5, "b": 5}


def test_who_failed_a_visitor_is_not_asked_again_and_keeps_its_turn() -> None:
    routes: Routes[str] = Routes()
    for session in "abc":
        routes.add(WWW, session, BOTH)
    assert routes.pick(WWW, http=False) == "a"
    assert routes.pick(WWW, http=False, excluding={"a"}) == "b"
    assert routes.pick(WWW, http=False, excluding={"a", "b"}) == "c"
    assert routes.pick(WWW, http=False, excluding=("a", "b", "c")) is None
    assert routes.pick(WWW, http=False, excluding={"a"}) == "b"
    assert routes.pick(WWW, http=False) == "a"


class TurnsAreEven(RuleBasedStateMachine):
    """While the sessions of a name stay the same, no two of them were picked more than one time apart."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: Routes[int] = Routes()
        self.offers: dict[int, Offer] = {}
        self.turns: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}

    @rule(session=st.integers(0, 5), offer=st.sampled_from([BOTH, TLS_ONLY, HTTP_ONLY]))
    def add(self, session: int, offer: Offer) -> None:
        assert self.routes.add(WWW, session, offer) is (not self.offers)
        self.offers[session] = offer
        self._count_anew()

    @rule(session=st.integers(0, 5))
    def remove(self, session: int) -> None:
        was = self.offers.pop(session, None)
        assert self.routes.remove(WWW, session) is (was is not None and not self.offers)
        self._count_anew()

    @rule(session=st.integers(0, 5))
    def end(self, session: int) -> None:
        was = self.offers.pop(session, None)
        assert self.routes.remove_session(session) == ([WWW] if was is not None and not self.offers else [])
        self._count_anew()

    @rule(http=st.booleans(), visitors=st.integers(1, 12))
    def visit(self, http: bool, visitors: int) -> None:
        takers = {s for s, offer in self.offers.items() if (offer.serves_http if http else offer.tls)}
        turns = self.turns[http]
        for _ in range(visitors):
            session = self.routes.pick(WWW, http=http)
            assert (session is None) is (not takers)
            if session is not None:
                assert session in takers
                turns[session] += 1
                counts = [turns[taker] for taker in takers]
                assert max(counts) - min(counts) <= 1

    def _count_anew(self) -> None:
        self.turns = {False: Counter(), True: Counter()}


def test_turns_are_even() -> None:
    run_state_machine_as_test(
        TurnsAreEven, settings=settings(max_examples=examples(50), stateful_step_count=30, deadline=None)
    )


def test_asking_for_another_uses_up_nobodys_turn() -> None:
    routes: Routes[str] = Routes()
    routes.add("www.example.com", "first", TLS_ONLY)
    assert not routes.has_other("www.example.com", http=False, excluding=["first"])
    routes.add("www.example.com", "second", TLS_ONLY)
    for _ in range(3):
        assert routes.has_other("www.example.com", http=False, excluding=["first"])
    assert not routes.has_other("www.example.com", http=True, excluding=[])
    assert not routes.has_other("other.example.com", http=False, excluding=[])
    assert [routes.pick("www.example.com", http=False) for _ in range(2)] == ["first", "second"]


def test_the_offer_of_one_session() -> None:
    routes: Routes[str] = Routes()
    routes.add("*.example.com", "a", BOTH)
    routes.add("*.example.com", "b", HTTP_ONLY)
    assert routes.offer("www.example.com", "a") == BOTH
    assert routes.offer("www.example.com", "b") == HTTP_ONLY
    assert routes.offer("www.example.com", "c") is None
    assert routes.offer("example.com", "a") is None
