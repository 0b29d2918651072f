"""A challenge is published when every nameserver has been seen to answer so: on a clock, with a fake DNS."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from appliance.dns.caa import Caa
from appliance.service.client.challenges import LIMIT_SECONDS, ChallengeNotPublished, Challenges
from appliance.service.client.resolver import LookupFailed, Unreachable
from appliance.tunnel.challenge import LIFE_SECONDS

WWW, WILD, VALUE = "www.example.org", "*.example.org", "v" * 43


class Dns:
    """What the nameservers have: by address texts, or what goes wrong."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, ...]] | LookupFailed = {"ns1": ("192.0.2.1",), "ns2": ("192.0.2.2",)}
        self.there: dict[str, tuple[str, ...] | Exception] = {"192.0.2.1": (), "192.0.2.2": ()}
        self.looked_up: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.hangs = False

    async def nameservers(self, name: str) -> dict[str, tuple[str, ...]]:
        self.looked_up.append(name)
        if self.hangs:
            await Deferred[None]()
        if isinstance(self.found, LookupFailed):
            raise self.found
        return self.found

    async def texts(self, address: str, owner: str) -> tuple[str, ...]:
        self.asked.append((address, owner))
        there = self.there[address]
        if isinstance(there, Exception):
            raise there
        return there

    async def caa(self, name: str) -> tuple[Caa, ...]:
        return (Caa(0, "issue", name),)


class Link:
    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def challenge(self, name: str, value: str, seconds: int, signature: str) -> None:
        assert signature == f"{name} by us"
        self.said.append((name, value, seconds))

    def challenge_over(self, name: str, value: str) -> None:
        self.said.append((name, value))


class Ground:
    def __init__(self) -> None:
        self.clock, self.dns, self.link = Clock(), Dns(), Link()
        self.joined = ["s1"]
        self.challenges = Challenges(
            self.clock,
            links=lambda: [self.link],
            joined=lambda: self.joined,
            resolvers=list,
            sign=lambda name, value: f"{name} by us",
            asked=self.dns,
        )
        self.results: list[Any] = []

    def publish(self, name: str = WWW) -> Deferred[None]:
        publishing = self.challenges.publish(name, VALUE)
        publishing.addBoth(self.results.append)
        return publishing

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.clock.advance(0.5)

    @property
    def why(self) -> str:
        (failure,) = self.results
        failure.trap(ChallengeNotPublished)
        return str(failure.value)


@pytest.fixture
def ground() -> Ground:
    return Ground()


def test_it_is_published_when_every_nameserver_has_it(ground: Ground) -> None:
    ground.publish(WILD)
    assert ground.link.said == [(WILD, VALUE, LIFE_SECONDS)]
    ground.run(2)
    ground.dns.there["192.0.2.1"] = ("another", VALUE)
    ground.run(2)
    assert ground.results == []
    ground.dns.asked.clear()
    ground.dns.there["192.0.2.2"] = (VALUE,)
    ground.run(2)
    assert ground.results == [None]
    assert ground.dns.looked_up == ["example.org"]
    assert set(ground.dns.asked) == {("192.0.2.2", "_acme-challenge.example.org")}  # only who lacked it
    assert ground.link.said == [(WILD, VALUE, LIFE_SECONDS)]
    ground.challenges.withdraw(WILD, VALUE)
    ground.challenges.withdraw(WILD, VALUE)
    assert ground.link.said[1:] == [(WILD, VALUE)]
    assert not ground.clock.getDelayedCalls()


@pytest.mark.parametrize(
    ("there", "why"),
    [
        (LookupFailed("no answer"), "ns2: 192.0.2.2: no answer"),
        ((), f"ns2: 192.0.2.2 has nothing at _acme-challenge.{WWW}"),
        (("old",), f"ns2: 192.0.2.2 has other values at _acme-challenge.{WWW}"),
        (Unreachable("no answer: Network is unreachable"), "ns2: 192.0.2.2: no answer: Network is unreach"),
    ],
)
def test_it_says_which_nameserver_does_not_and_why(
    ground: Ground, there: tuple[str, ...] | Exception, why: str
) -> None:
    ground.dns.there = {"192.0.2.1": (VALUE,), "192.0.2.2": there}
    ground.publish()
    ground.run(LIMIT_SECONDS)
    assert f"{WWW} is not published: {why}" in ground.why
    assert "ns1" not in ground.why
    assert ground.link.said[-1] == (WWW, VALUE)  # withdrawn
    assert ground.link.said[1:-1] == [(WWW, VALUE, LIFE_SECONDS)] * int(LIMIT_SECONDS // 60)
    assert len(ground.dns.looked_up) == LIMIT_SECONDS // 30 + 1


def test_an_address_without_a_way_does_not_count_beside_one_that_answers(ground: Ground) -> None:
    ground.dns.found = {"ns1": ("2001:db8::1", "192.0.2.1")}
    ground.dns.there = {"2001:db8::1": Unreachable("no answer"), "192.0.2.1": (VALUE,)}
    ground.publish()
    assert ground.results == [None]


@pytest.mark.parametrize("second", [(), LookupFailed("no answer")])
def test_every_address_of_a_nameserver_counts(ground: Ground, second: Any) -> None:
    ground.dns.found = {"ns1": ("192.0.2.1", "192.0.2.2")}
    ground.dns.there = {"192.0.2.1": (VALUE,), "192.0.2.2": second}
    ground.publish()
    ground.run(5)
    assert ground.results == []
    ground.dns.there["192.0.2.2"] = (VALUE,)
    ground.run(1)
    assert ground.results == [None]


def test_a_nameserver_that_was_taken_out_is_waited_for_no_longer(ground: Ground) -> None:
    ground.dns.there = {"192.0.2.1": (VALUE,), "192.0.2.2": LookupFailed("no answer")}
    ground.publish()
    ground.run(20)
    ground.dns.found = {"ns1": ("192.0.2.1",)}
    ground.run(12)
    assert ground.results == [None]


def test_a_resolver_that_is_down_for_a_while(ground: Ground) -> None:
    found, ground.dns.found = ground.dns.found, LookupFailed("the resolver 192.0.2.9: no answer")
    ground.publish()
    ground.run(5)
    ground.dns.found = found
    ground.dns.there = {"192.0.2.1": (VALUE,), "192.0.2.2": (VALUE,)}
    ground.run(1)
    assert ground.results == [None]


def test_what_no_server_passes_on_does_not_wait(ground: Ground) -> None:
    ground.joined.append("s2")
    ground.publish()
    ground.challenges.denied("s1", WWW, VALUE, "not granted")
    ground.run(2)
    assert ground.results == []
    ground.challenges.denied("s2", WWW, VALUE, "not granted, either")
    ground.run(2)
    assert "; server s1: not granted; server s2: not granted, either" in ground.why


def test_without_a_server_it_says_so(ground: Ground) -> None:
    ground.joined.clear()
    ground.publish()
    ground.run(LIMIT_SECONDS)
    assert ground.why.endswith("; no server is joined")


def test_a_server_that_is_joined_later_is_told(ground: Ground) -> None:
    ground.publish()
    ground.run(30)
    later = Link()
    ground.challenges.welcomed(later)
    assert later.said == [(WWW, VALUE, LIFE_SECONDS - 30)]
    ground.dns.there = {"192.0.2.1": (VALUE,), "192.0.2.2": (VALUE,)}
    ground.run(1)
    ground.run(LIFE_SECONDS)
    too_late = Link()
    ground.challenges.welcomed(too_late)
    assert too_late.said == []


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("stops", [False, True])
def test_cancelled_it_is_withdrawn(ground: Ground, hangs: bool, stops: bool) -> None:
    ground.dns.hangs = hangs
    publishing = ground.publish()
    ground.run(1)
    if stops:
        ground.challenges.stop()
    else:
        publishing.cancel()
    (failure,) = ground.results
    assert failure.check(CancelledError)
    assert ground.link.said[-1] == (WWW, VALUE)
    assert not ground.clock.getDelayedCalls()


def test_the_records_of_a_ca_are_asked_for_on_the_same_way(ground: Ground) -> None:
    ground.challenges.caa(WWW).addCallback(ground.results.append)
    assert ground.results == [(Caa(0, "issue", WWW),)]
