"""Who is asked for what, over real sockets on loopback, with a nameserver that says what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import pytest_twisted
from dnslib import DNSRecord
from twisted.internet import reactor as _reactor

from appliance.dns.caa import Caa
from appliance.service.client import authoritative
from appliance.service.client.authoritative import Authoritative
from appliance.service.client.resolver import LookupFailed, Unreachable
from tests.service.client.test_resolver import FakeNameserver

reactor: Any = _reactor

SOA = "example.org. 60 IN SOA ns1. host. 1 2 3 4 5"
NOTHING = (SOA,)
OWNER = "_acme-challenge.www.example.org"


class Ground:
    """A nameserver that is the resolver as well. What it has no answer to is SERVFAIL."""

    def __init__(self) -> None:
        self.fake = FakeNameserver()
        self.fake.answer = self._answer
        self.fake.listen()
        self.says: dict[str, tuple[str, ...] | str] = {}
        self.asked: list[tuple[str, bool]] = []
        self.dns = Authoritative(reactor, lambda: [self.fake.address])

    def _answer(self, record: DNSRecord, tcp: bool) -> bytes:
        query = dns.message.from_wire(bytes(record.pack()))
        (question,) = query.question
        key = f"{question.name.to_text(omit_final_dot=True)} {dns.rdatatype.to_text(question.rdtype)}"
        self.asked.append((key, bool(query.flags & dns.flags.RD)))
        answer = dns.message.make_response(query)
        says = self.says.get(key, "SERVFAIL")
        if isinstance(says, str):
            answer.set_rcode(dns.rcode.from_text(says))
            says = NOTHING if says == "NXDOMAIN" else ()
        for text in says:
            owner, ttl, _, rtype, rdata = text.split(" ", 4)
            is_denial = rtype == "SOA" and not key.endswith(" SOA")
            is_denial |= rtype == "SOA" and owner.rstrip(".") != key.partition(" ")[0]
            section = answer.authority if is_denial else answer.answer
            section.append(dns.rrset.from_text(owner, int(ttl), "IN", rtype, rdata))
        return answer.to_wire()


@pytest_twisted.async_yield_fixture
async def ground(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ground]:
    made = Ground()
    monkeypatch.setattr(authoritative, "DNS_PORT", made.fake.address[1])
    yield made
    await made.fake.udp.stopListening()
    await made.fake.tcp.stopListening()


@pytest_twisted.ensureDeferred
async def test_the_nameservers_of_the_zone_that_a_name_is_in(ground: Ground) -> None:
    ground.says = {
        "a.www.example.org SOA": "NXDOMAIN",
        "example.org NS": ("example.org. 60 IN NS ns1.example.org.", "example.org. 60 IN NS ns.other.test."),
        "ns1.example.org A": ("ns1.example.org. 60 IN A 192.0.2.1",),
        "ns1.example.org AAAA": ("ns1.example.org. 60 IN AAAA 2001:db8::1",),
        "ns.other.test A": ("ns.other.test. 60 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.3"),
        "ns.other.test AAAA": "NXDOMAIN",
    }
    assert await ground.dns.nameservers("a.www.example.org") == {
        "ns1.example.org": ("192.0.2.1", "2001:db8::1"),
        "ns.other.test": ("192.0.2.3",),
    }
    assert {recursive for _, recursive in ground.asked} == {True}


@pytest_twisted.ensureDeferred
async def test_what_an_alias_stands_for_is_in_another_zone(ground: Ground) -> None:
    ground.says = {
        "www.example.org SOA": ("www.example.org. 60 IN CNAME b.test.", "test. 60 IN SOA a. b. 1 2 3 4 5"),
        "example.org SOA": (SOA,),
        "example.org NS": ("example.org. 60 IN NS ns1.example.org.",),
        "ns1.example.org A": ("ns1.example.org. 60 IN A 192.0.2.1",),
        "ns1.example.org AAAA": NOTHING,
    }
    assert await ground.dns.nameservers("www.example.org") == {"ns1.example.org": ("192.0.2.1",)}


@pytest_twisted.ensureDeferred
async def test_a_resolver_that_fails_says_so(ground: Ground) -> None:
    with pytest.raises(LookupFailed, match=r"SOA: the resolver 127\.0\.0\.1 answers SERVFAIL"):
        await ground.dns.nameservers("www.example.org")
    ground.says = {"www.example.org SOA": (SOA,), "example.org NS": NOTHING}
    with pytest.raises(LookupFailed, match=r"no nameservers of example\.org"):
        await ground.dns.nameservers("www.example.org")


@pytest.mark.parametrize(
    ("says", "texts"),
    [
        ((f'{OWNER}. 15 IN TXT "one"', f'{OWNER}. 15 IN TXT "tw" "o"'), {"one", "two"}),
        (NOTHING, set()),
        ("NXDOMAIN", set()),
        ((f'b.{OWNER}. 15 IN TXT "of another"',), set()),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_a_nameserver_has(ground: Ground, says: tuple[str, ...] | str, texts: set[str]) -> None:
    ground.says = {f"{OWNER} TXT": says}
    assert set(await ground.dns.texts("127.0.0.1", OWNER)) == texts
    assert ground.asked == [(f"{OWNER} TXT", False)]


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("REFUSED", "it answers REFUSED"),
        ((f"{OWNER}. 15 IN CNAME b.test.",), f"{OWNER} is an alias of b.test there"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_why_a_nameserver_has_it_not(ground: Ground, says: tuple[str, ...] | str, why: str) -> None:
    ground.says = {f"{OWNER} TXT": says}
    with pytest.raises(LookupFailed) as failed:
        await ground.dns.texts("127.0.0.1", OWNER)
    assert str(failed.value) == why


@pytest_twisted.ensureDeferred
async def test_nobody_is_there(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authoritative, "DNS_PORT", 9)
    with pytest.raises(LookupFailed, match="no answer: Connection refused"):
        await ground.dns.texts("127.0.0.1", OWNER)
    monkeypatch.setattr(authoritative, "_NO_ROUTE", {"no answer: Connection refused"})
    with pytest.raises(Unreachable):  # as an address is of a family that is not here
        await ground.dns.texts("127.0.0.1", OWNER)


@pytest_twisted.ensureDeferred
async def test_what_is_no_message(ground: Ground) -> None:
    ground.fake.answer = lambda query, tcp: bytes(query.pack())[:2] + b"\x80" + bytes(11)
    with pytest.raises(LookupFailed, match=r"another question|not a DNS message"):
        await ground.dns.texts("127.0.0.1", OWNER)


@pytest_twisted.ensureDeferred
async def test_the_records_of_a_ca_are_those_of_the_closest_name_that_has_some(ground: Ground) -> None:
    ground.says = {
        "a.example.org CAA": NOTHING,
        "example.org CAA": ('example.org. 60 IN CAA 0 issue "letsencrypt.org"',),
        "org CAA": ('org. 60 IN CAA 0 issue ";"',),
    }
    assert await ground.dns.caa("*.a.example.org") == (Caa(0, "issue", "letsencrypt.org"),)
    ground.says["example.org CAA"] = ground.says["org CAA"] = "NXDOMAIN"
    assert await ground.dns.caa("a.example.org") == ()
    ground.says["example.org CAA"] = "SERVFAIL"
    with pytest.raises(LookupFailed):
        await ground.dns.caa("a.example.org")
