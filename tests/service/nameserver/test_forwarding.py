from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from appliance.dns import names
from appliance.dns.followed import ForwardAsked
from appliance.dns.numbers import NOERROR, REFUSED, SERVFAIL
from appliance.service.nameserver.forwarding import ANSWER_SECONDS, MAX_FORWARDED, Forwarding

APEX = names.from_text("demo.test")
MESSAGE = b"\x12\x34\x28\x00\x00\x01" + bytes(6) + APEX + b"\x00\x06\x00\x01"
ASKED = ForwardAsked(APEX, MESSAGE, len(MESSAGE), None)


class Site:
    def __init__(self, *addresses: tuple[str, int]) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.changed: list[bytes] = []
        self.forwarding = Forwarding(self.reactor, addresses, self.changed.append)

    def forward(self) -> list[bytes]:
        answers: list[bytes] = []
        self.forwarding.forward(ASKED).addCallback(answers.append)
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
    first = [site.forward() for _ in range(MAX_FORWARDED)]
    assert not any(first)
    (answer,) = site.forward()
    assert answer[3] & 0xF == SERVFAIL
    site.forwarding.stopService()
    assert all(first)
    assert not site.reactor.getDelayedCalls()
