from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from appliance.dns import names
from appliance.dns.followed import ForwardAsked
from appliance.dns.numbers import NOERROR, REFUSED, SERVFAIL
from appliance.dns.tsig import Key, Signed
from appliance.service.nameserver.forwarding import (
    ANSWER_SECONDS,
    MAX_FORWARDED,
    MAX_UNCHECKED,
    MAX_UNCHECKED_OF_SOURCE,
    Forwarding,
)

APEX = names.from_text("demo.test")
MESSAGE = b"\x12\x34\x28\x00\x00\x01" + bytes(6) + APEX + b"\x00\x06\x00\x01"
SIGNED = Signed(Key(names.from_text("ours"), names.from_text("hmac-sha256"), bytes(32)), MESSAGE, b"", 0, 0)


class Site:
    def __init__(self, *addresses: tuple[str, int]) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.changed: list[bytes] = []
        self.forwarding = Forwarding(self.reactor, addresses, self.changed.append)

    def forward(self, source: str = "198.51.100.1", signed: Signed | None = None) -> list[bytes]:
        asked = ForwardAsked(APEX, MESSAGE, len(MESSAGE), source, signed)
        answers: list[bytes] = []
        self.forwarding.forward(asked).addCallback(answers.append)
        return answers

    def conversation(self, number: int = -1) -> Any:
        return self.reactor.tcpClients[number][2]

    def answer(self, message: bytes) -> None:
        protocol = self.conversation().buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        assert transport.value()[2:] == MESSAGE
        protocol.dataReceived(len(message).to_bytes(2, "big") + message)


@pytest.fixture
def site() -> Site:
    return Site(("192.0.2.1", 53), ("192.0.2.2", 5353))


@pytest.mark.parametrize("rcode", [NOERROR, REFUSED])
def test_the_answer_of_the_primary_comes_back_as_it_is(site: Site, rcode: int) -> None:
    answers = site.forward()
    answer = b"\x12\x34\xa8" + bytes((rcode,)) + b"whatever it says"
    site.answer(answer)
    assert answers == [answer]
    assert site.changed == ([APEX] if rcode == NOERROR else [])
    assert not site.reactor.getDelayedCalls()


def test_what_is_no_answer_is_waited_over(site: Site) -> None:
    answers = site.forward()
    site.answer(b"\x12\x35\xa8\x00" + bytes(8))
    site.answer(b"\x12\x34\x80\x00" + bytes(8))
    assert answers == []
    site.reactor.advance(ANSWER_SECONDS)


def test_what_is_no_answer_is_not_waited_over_for_ever(site: Site) -> None:
    answers = site.forward()
    while not answers and site.reactor.seconds() < 60:
        site.answer(b"\x12\x35\xa8\x00" + bytes(8))
        site.reactor.advance(ANSWER_SECONDS - 1)
    (answer,) = answers
    assert answer[3] & 0xF == SERVFAIL
    assert [client[:2] for client in site.reactor.tcpClients] == [("192.0.2.1", 53), ("192.0.2.2", 5353)]
    assert not site.reactor.getDelayedCalls()


def test_the_next_address_and_then_none(site: Site) -> None:
    answers = site.forward()
    site.conversation().clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    assert [client[:2] for client in site.reactor.tcpClients] == [("192.0.2.1", 53), ("192.0.2.2", 5353)]
    assert answers == []
    site.conversation().clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    (answer,) = answers
    assert (answer[:2], answer[3] & 0xF) == (MESSAGE[:2], SERVFAIL)
    assert site.forwarding.counters == {"not passed on": 1}


def test_only_so_many_at_once(site: Site) -> None:
    first = [site.forward(signed=SIGNED) for _ in range(MAX_FORWARDED)]
    assert not any(first)
    for signed in (SIGNED, None):
        (answer,) = site.forward(signed=signed)
        assert answer[3] & 0xF == SERVFAIL
    assert site.forwarding.counters == {"too many": 2}
    site.forwarding.stopService()
    assert all(first)
    assert not site.reactor.getDelayedCalls()


def test_who_may_be_anybody_takes_no_place_of_those_we_know(site: Site) -> None:
    sources = [f"203.0.113.{number}" for number in range(MAX_FORWARDED)]
    first = [site.forward(source) for source in sources]
    assert [bool(answers) for answers in first] == [n >= MAX_UNCHECKED for n in range(MAX_FORWARDED)]
    assert site.forwarding.counters == {"too many unchecked": MAX_FORWARDED - MAX_UNCHECKED}
    assert not site.forward(sources[0], SIGNED)
    site.forwarding.stopService()
    assert all(first)
    assert not site.forward(sources[-1]), "their places are free again"
    site.forwarding.stopService()


@pytest.mark.parametrize(
    ("source", "same", "another"),
    [
        ("203.0.113.1", "203.0.113.1", "203.0.113.2"),
        ("2001:db8::1", "2001:db8::2:1", "2001:db8:0:1::1"),
    ],
)
def test_one_source_leaves_places_for_others(site: Site, source: str, same: str, another: str) -> None:
    first = [site.forward(source) for _ in range(MAX_UNCHECKED)]
    assert [bool(answers) for answers in first] == [
        number >= MAX_UNCHECKED_OF_SOURCE for number in range(MAX_UNCHECKED)
    ]
    assert site.forward(same)
    assert not site.forward(another)
    assert not site.forward(same, SIGNED)
    site.forwarding.stopService()
