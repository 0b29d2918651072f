"""Look-ups against a small nameserver on loopback, good and bad, and when they are repeated."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from dnslib import CNAME, QTYPE, RCODE, RR, TXT, A, DNSRecord
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.internet.task import Clock, deferLater
from twisted.protocols.basic import Int16StringReceiver

from appliance.service.client import resolver as module
from appliance.service.client.resolver import (
    Found,
    LookupFailed,
    NoServers,
    Resolver,
    look_up,
    read_resolv_conf,
)
from appliance.tunnel.discovery import ServerAddress

reactor: Any = _reactor

NAME = "demo.test"
TEN = ServerAddress("10.0.0.10")
Answer = Callable[[DNSRecord, bool], bytes | None]


class FakeNameserver:
    """Answers each query with what ``answer(query, tcp)`` returns, on UDP and TCP of one port."""

    def __init__(self) -> None:
        self.answer: Answer = lambda query, tcp: None
        self.asked: list[str] = []

    def listen(self) -> None:
        fake = self

        class Udp(DatagramProtocol):
            def datagramReceived(self, datagram: bytes, addr: Any) -> None:
                for octets in fake.reply(datagram, False):
                    self.transport.write(octets, addr)  # type: ignore[union-attr]

        class Tcp(Int16StringReceiver):
            def stringReceived(self, string: bytes) -> None:
                for octets in fake.reply(string, True):
                    self.sendString(octets)  # type: ignore[no-untyped-call]

        while True:
            self.udp = reactor.listenUDP(0, Udp(), interface="127.0.0.1")
            self.address = ("127.0.0.1", self.udp.getHost().port)
            try:
                self.tcp = reactor.listenTCP(self.address[1], Factory.forProtocol(Tcp), interface="127.0.0.1")
                break
            except CannotListenError:  # somebody's TCP connection has the number: another one, then
                self.udp.stopListening()

    def reply(self, octets: bytes, tcp: bool) -> list[bytes]:
        query = DNSRecord.parse(octets)
        self.asked.append("tcp" if tcp else "udp")
        answer = self.answer(query, tcp)
        return [] if answer is None else [answer]


@pytest_twisted.async_yield_fixture
async def fake() -> AsyncIterator[FakeNameserver]:
    nameserver = FakeNameserver()
    nameserver.listen()
    yield nameserver
    await nameserver.udp.stopListening()
    await nameserver.tcp.stopListening()
    await deferLater(reactor, 0)  # the closed TCP connections leave the reactor


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UDP_TIMEOUTS_SECONDS", (0.05, 0.05))
    monkeypatch.setattr(module, "_TCP_TIMEOUT_SECONDS", 0.2)


def txt(*texts: str | bytes, name: str = NAME, ttl: int = 15) -> Answer:
    def answer(query: DNSRecord, tcp: bool) -> bytes:
        reply = query.reply()
        for text in texts:
            reply.add_answer(RR(name, QTYPE.TXT, ttl=ttl, rdata=TXT(text)))
        return bytes(reply.pack())

    return answer


async def ask(fake: FakeNameserver, name: str = NAME) -> Found:
    return await look_up(reactor, [fake.address], name)


@pytest_twisted.ensureDeferred
async def test_servers_in_order_and_the_smallest_ttl(fake: FakeNameserver) -> None:
    fake.answer = txt(
        "v=spf1 -all",
        "r=superprotocol;ip=10.0.0.11;port=8443",
        "r=superprotocol;ip=10.0.0.10",
        "r=superprotocol",
    )
    found = await ask(fake)
    assert found == Found((TEN, ServerAddress("10.0.0.11", 8443)), 15.0)
    assert fake.asked == ["udp"]


@pytest_twisted.ensureDeferred
async def test_the_name_asked_for_in_any_case_and_by_alias(fake: FakeNameserver) -> None:
    def answer(query: DNSRecord, tcp: bool) -> bytes:
        reply = query.reply()
        reply.add_answer(RR("Demo.TEST", QTYPE.CNAME, ttl=7, rdata=CNAME("tunnels.other.test")))
        text = TXT("r=superprotocol;ip=10.0.0.10")
        reply.add_answer(RR("tunnels.OTHER.test", QTYPE.TXT, ttl=99, rdata=text))
        return bytes(reply.pack())

    fake.answer = answer
    assert await ask(fake) == Found((TEN,), 7.0)


@pytest_twisted.ensureDeferred
async def test_a_record_of_several_strings_is_one_text(fake: FakeNameserver) -> None:
    def answer(query: DNSRecord, tcp: bool) -> bytes:
        reply = query.reply()
        reply.add_answer(RR(NAME, QTYPE.TXT, ttl=1, rdata=TXT(["r=superprotocol;", "ip=10.0.0.10"])))
        return bytes(reply.pack())

    fake.answer = answer
    assert (await ask(fake)).servers == (TEN,)


@pytest_twisted.ensureDeferred
async def test_a_truncated_answer_is_asked_for_by_tcp(fake: FakeNameserver) -> None:
    many = [f"r=superprotocol;ip=10.0.1.{number}" for number in range(1, 101)]

    def answer(query: DNSRecord, tcp: bool) -> bytes | None:
        if tcp:
            return txt(*many)(query, tcp)
        reply = query.reply()
        reply.header.tc = 1
        return bytes(reply.pack())

    fake.answer = answer
    found = await ask(fake)
    assert fake.asked == ["udp", "tcp"]
    assert len(found.servers) == module.MAX_SERVERS


def rcode(code: int) -> Answer:
    def answer(query: DNSRecord, tcp: bool) -> bytes:
        reply = query.reply()
        reply.header.rcode = code
        return bytes(reply.pack())

    return answer


def for_another_question(query: DNSRecord, tcp: bool) -> bytes:
    other = DNSRecord.question("other.test", "TXT")
    other.header.id = query.header.id
    reply = other.reply()
    reply.add_answer(RR(NAME, QTYPE.TXT, ttl=15, rdata=TXT("r=superprotocol;ip=10.6.6.6")))
    return bytes(reply.pack())


def of_another_type(query: DNSRecord, tcp: bool) -> bytes:
    reply = query.reply()
    reply.add_answer(RR(NAME, QTYPE.A, ttl=15, rdata=A("10.6.6.6")))
    return bytes(reply.pack())


def always_truncated(query: DNSRecord, tcp: bool) -> bytes:
    reply = query.reply()
    reply.header.tc = 1
    return bytes(reply.pack())


def a_query(query: DNSRecord, tcp: bool) -> bytes:
    return bytes(query.pack())


def with_another_id(query: DNSRecord, tcp: bool) -> bytes:
    octets = txt("r=superprotocol;ip=10.6.6.6")(query, tcp)
    assert octets is not None
    return bytes([octets[0] ^ 1]) + octets[1:]


def garbage(query: DNSRecord, tcp: bool) -> bytes:
    return bytes(query.pack()[:2]) + b"\x84\x00\x00\x01\x00\xff" + b"\xc0\x0c" * 40


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "answer",
    [
        txt(),
        txt("r=superprotocol;ip=10.6.6.6", name="other.test"),
        txt("r=superprotocol;ip=999.1.1.1"),
        txt("hello"),
        rcode(RCODE.NXDOMAIN),
        rcode(RCODE.SERVFAIL),
        for_another_question,
        of_another_type,
        always_truncated,
        a_query,
        with_another_id,
        garbage,
        lambda query, tcp: None,
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_answer_fails(fake: FakeNameserver, answer: Answer) -> None:
    fake.answer = answer
    with pytest.raises(LookupFailed) as failed:
        await ask(fake)
    assert str(failed.value)


@pytest_twisted.ensureDeferred
async def test_a_guess_does_not_keep_the_answer_away(fake: FakeNameserver) -> None:
    guesses = [garbage, with_another_id, for_another_question, a_query, txt("r=superprotocol;ip=10.0.0.10")]
    fake.reply = lambda octets, tcp: [  # type: ignore[method-assign]
        reply for guess in guesses if (reply := guess(DNSRecord.parse(octets), tcp)) is not None
    ]
    assert (await ask(fake)).servers == (TEN,)


@pytest_twisted.ensureDeferred
async def test_a_port_where_nobody_listens_is_not_waited_for(fake: FakeNameserver) -> None:
    fake.answer = txt("r=superprotocol;ip=10.0.0.10")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()
    began = reactor.seconds()
    assert (await look_up(reactor, [nobody, fake.address], NAME)).servers == (TEN,)
    assert reactor.seconds() - began < 1.0


@pytest_twisted.ensureDeferred
async def test_an_answer_without_servers_is_an_answer(fake: FakeNameserver) -> None:
    fake.answer = txt()
    with pytest.raises(NoServers):
        await look_up(reactor, [fake.address, fake.address], NAME)
    assert fake.asked == ["udp"]


@pytest.mark.usefixtures("hasty")
@pytest_twisted.ensureDeferred
async def test_the_next_nameserver_is_asked(fake: FakeNameserver) -> None:
    fake.answer = txt("r=superprotocol;ip=10.0.0.10")
    dead = FakeNameserver()
    dead.listen()
    found = await look_up(reactor, [dead.address, fake.address], NAME)
    assert found.servers == (TEN,)
    assert dead.asked == ["udp"]
    await dead.udp.stopListening()
    await dead.tcp.stopListening()


def test_resolv_conf(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    assert read_resolv_conf(path) == [("127.0.0.1", 53)]
    path.write_text(
        "# comment\nsearch a.test\nnameserver 10.0.0.1\nnameserver\nnameserver ::1 # x\n"
        "nameserver 10.0.0.3\nnameserver 10.0.0.4\n"
    )
    assert read_resolv_conf(path) == [("10.0.0.1", 53), ("::1", 53), ("10.0.0.3", 53)]


class Lookups:
    """In place of the network: each look-up waits to be answered by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.found: list[tuple[ServerAddress, ...]] = []
        self.waiting: list[Deferred[Found]] = []
        monkeypatch.setattr(module, "look_up", self.look_up)
        self.resolver = Resolver(
            self.clock, NAME, self.found.append, nameserver=("127.0.0.1", 53), jitter=lambda low, high: low
        )

    async def look_up(self, reactor: object, nameservers: object, name: str) -> Found:
        waiting: Deferred[Found] = Deferred()
        self.waiting.append(waiting)
        return await waiting

    def answer(self, ttl: float) -> None:
        self.waiting.pop().callback(Found((TEN,), ttl))

    def fail(self) -> None:
        self.waiting.pop().errback(LookupFailed("no nameserver answered"))

    def pause(self) -> float:
        (call,) = self.clock.getDelayedCalls()
        return call.getTime() - self.clock.seconds()


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Lookups:
    return Lookups(monkeypatch)


@pytest.mark.parametrize(("ttl", "pause"), [(15, 11.25), (0, 5), (1, 5), (86400, 225), (300, 225)])
def test_asked_again_within_the_ttl_and_its_bounds(lookups: Lookups, ttl: float, pause: float) -> None:
    lookups.resolver.startService()
    lookups.answer(ttl)
    assert lookups.found == [(TEN,)]
    assert lookups.pause() == pause
    lookups.clock.advance(pause)
    assert len(lookups.waiting) == 1
    lookups.resolver.stopService()


def test_failures_tell_nothing_and_are_repeated_ever_later(lookups: Lookups) -> None:
    lookups.resolver.startService()
    pauses = []
    for _ in range(6):
        lookups.fail()
        pauses.append(lookups.pause())
        lookups.clock.advance(pauses[-1])
    assert pauses == [5, 7.5, 15, 30, 45, 45]
    assert not lookups.found
    lookups.answer(15)
    assert lookups.found == [(TEN,)]
    assert lookups.pause() == 11.25
    lookups.resolver.stopService()


def test_at_once_when_a_link_was_lost_but_once_a_second(lookups: Lookups) -> None:
    lookups.resolver.startService()
    lookups.resolver.look_up_now()  # one is under way
    assert len(lookups.waiting) == 1
    lookups.answer(300)
    lookups.resolver.look_up_now()
    assert lookups.pause() == 1.0
    lookups.clock.advance(5)
    lookups.answer(300)
    lookups.clock.advance(10)
    lookups.resolver.look_up_now()
    assert len(lookups.waiting) == 1
    lookups.resolver.stopService()


def test_stopping_leaves_nothing(lookups: Lookups) -> None:
    lookups.resolver.startService()
    lookups.resolver.stopService()
    assert not lookups.clock.getDelayedCalls()
    lookups.resolver.look_up_now()
    assert not lookups.clock.getDelayedCalls()
    lookups.resolver.startService()
    lookups.answer(15)
    lookups.resolver.stopService()
    assert not lookups.clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_stopping_in_the_middle_of_a_question(fake: FakeNameserver) -> None:
    resolver = Resolver(reactor, NAME, lambda servers: None, nameserver=fake.address)
    resolver.startService()
    await deferLater(reactor, 0)
    resolver.stopService()
    await deferLater(reactor, 0)
