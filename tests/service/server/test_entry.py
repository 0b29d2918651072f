"""The ports: who is told apart by which octets, and how long and how many strangers may stay."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from OpenSSL import SSL
from twisted.logger import ILogObserver, LogEvent, Logger
from zope.interface import provider

from appliance.ingress.clienthello import ClientHello
from appliance.ingress.httphead import RequestHead
from appliance.service.fewlines import FewLines
from appliance.service.readiness import Readiness
from appliance.service.server import entry as entry_module
from appliance.service.server.adoption import Adoption
from appliance.service.server.entry import Entry
from appliance.service.server.lanes import Lanes
from appliance.service.server.visitors import Visitors
from appliance.service.server.waitingline import WaitingLine
from appliance.service.tls import ServerTls
from tests.service.turning import Turning, turning

SERVICE = "tunnel-server.internal"
UNRECOGNIZED_NAME = bytes.fromhex("15030300020270")
DECODE_ERROR = bytes.fromhex("15030300020232")
UNEXPECTED_MESSAGE = bytes.fromhex("1503030002020a")


@dataclass
class Taken:
    """Everybody the entry hands over to: what came, and its socket."""

    seen: list[tuple[str, Any]] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    socks: list[socket.socket] = field(default_factory=list)

    def tls_arrived(self, sock: socket.socket, *what: Any) -> None:
        if isinstance(what[0], str):
            host, hello = cast(tuple[str, ClientHello], what)
            self._take("visitor", sock, (host, hello.octets))
        else:
            self._take("tls lane", sock, what[0])

    def http_arrived(self, sock: socket.socket, head: RequestHead, octets: bytes) -> None:
        self._take("http", sock, (head.host, octets))

    def plain_arrived(self, sock: socket.socket, preface: bytes, rest: bytes) -> None:
        self._take("lane", sock, (preface, rest))

    def adopt(self, sock: socket.socket, octets: bytes) -> None:
        self._take("watch", sock, octets)

    def join(self, sock: socket.socket, octets: bytes) -> None:
        self._take("link", sock, octets)

    def refuse(self, sock: socket.socket, octets: bytes) -> None:
        self.refused.append(octets)
        self.socks.append(sock)

    def connection(self) -> str:
        return "a TLS connection"

    def _take(self, kind: str, sock: socket.socket, what: Any) -> None:
        self.seen.append((kind, what))
        self.socks.append(sock)


@dataclass
class Ground:
    reactor: Turning
    entry: Entry
    taken: Taken
    lines: list[LogEvent]

    def connect(self, port: int = 0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.entry.ports[port]))


@pytest.fixture
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    default_name = getattr(request, "param", None)
    with turning() as (reactor, readiness):
        made = _ground(reactor, readiness, default_name)
        made.entry.startService()
        yield made
        made.entry.stopService()
        for sock in made.taken.socks:
            readiness.forget(sock)
            sock.close()


def _ground(reactor: Turning, readiness: Readiness, default_name: str | None) -> Ground:
    lines: list[LogEvent] = []
    log = Logger(observer=provider(ILogObserver)(lambda event: lines.append(event)))
    entry = Entry(
        reactor,
        readiness,
        tls_addresses=[("127.0.0.1", 0)],
        http_addresses=[("127.0.0.1", 0)],
        service_name=SERVICE,
        default_name=default_name,
        complaints=FewLines(reactor, log),
    )
    taken = Taken()
    entry.wire(
        visitors=cast(Visitors, taken),
        lanes=cast(Lanes, taken),
        adoption=cast(Adoption, taken),
        links=cast(WaitingLine, taken),
        tls=cast(ServerTls, taken),
    )
    return Ground(reactor, entry, taken, lines)


def hello(server_name: str | None, alpn: list[bytes]) -> bytes:
    connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    connection.set_connect_state()
    if server_name is not None:
        connection.set_tlsext_host_name(server_name.encode())
    if alpn:
        connection.set_alpn_protos(alpn)
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return bytes(connection.bio_read(65536))


@pytest.mark.parametrize(
    ("server_name", "alpn", "kind"),
    [
        ("www.example.com", [b"h2", b"http/1.1"], "visitor"),
        ("www.example.com", [], "visitor"),
        ("www.example.com", [b"tunnel/1"], "visitor"),  # a passed-through name may use any protocol
        (SERVICE, [b"tunnel/1"], "link"),
        (SERVICE, [b"watch/1"], "watch"),
        (SERVICE, [b"tunnel-lane/1"], "tls lane"),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_told_apart(ground: Ground, server_name: str, alpn: list[bytes], kind: str, cut: bool) -> None:
    octets = hello(server_name, alpn)
    with ground.connect() as sock:
        if cut:
            sock.send(octets[:100])
            for _ in range(3):
                ground.reactor.turn(1)
            assert ground.taken.seen == []
            sock.send(octets[100:])
        else:
            sock.send(octets)
        ground.reactor.until(lambda: ground.taken.seen)
    expected: Any = (server_name, octets) if kind == "visitor" else octets
    assert ground.taken.seen == [(kind, expected)]


def test_a_lane_by_its_preface(ground: Ground) -> None:
    preface = b"\xf5tunnel\x01" + bytes(32)
    with ground.connect() as sock:
        sock.send(preface)
        ground.reactor.until(lambda: ground.taken.seen)
    assert ground.taken.seen == [("lane", (preface, b""))]


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (hello(None, []), UNRECOGNIZED_NAME),
        (hello(SERVICE, [b"h2"]), UNRECOGNIZED_NAME),
        (hello("192.0.2.1", []), UNRECOGNIZED_NAME),
        (b"GET / HTTP/1.1\r\n\r\n", UNEXPECTED_MESSAGE),
        (b"\xf5tunnel\x02", DECODE_ERROR),
        (bytes(64), UNEXPECTED_MESSAGE),
    ],
)
def test_refused_on_the_tls_port(ground: Ground, octets: bytes, answer: bytes) -> None:
    with ground.connect() as sock:
        sock.send(octets)
        ground.reactor.until(lambda: ground.taken.refused)
    assert ground.taken.refused == [answer]


@pytest.mark.parametrize("ground", ["default.example.com"], indirect=True)
def test_without_sni_the_default_name(ground: Ground) -> None:
    octets = hello(None, [])
    with ground.connect() as sock:
        sock.send(octets)
        ground.reactor.until(lambda: ground.taken.seen)
    assert ground.taken.seen == [("visitor", ("default.example.com", octets))]


def test_http(ground: Ground) -> None:
    with ground.connect(1) as sock:
        sock.send(b"GET / HTTP/1.1\r\nHost: WWW.example.com\r\n")
        sock.send(b"\r\nmore")
        ground.reactor.until(lambda: ground.taken.seen)
    octets = b"GET / HTTP/1.1\r\nHost: WWW.example.com\r\n\r\nmore"
    assert ground.taken.seen == [("http", ("www.example.com", octets))]


def test_http_refused(ground: Ground) -> None:
    with ground.connect(1) as sock:
        sock.send(b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n")
        ground.reactor.until(lambda: ground.taken.refused)
    assert ground.taken.refused[0].startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("port", "octets", "seconds", "answer"),
    [(0, b"\x16\x03", 5, b""), (0, b"", 5, b""), (1, b"GET /", 10, b"HTTP/1.1 408 ")],
)
def test_the_slow_are_let_go(ground: Ground, port: int, octets: bytes, seconds: int, answer: bytes) -> None:
    """The limit is absolute: an octet now and then does not stretch it."""
    with ground.connect(port) as sock:
        sock.send(octets)
        ground.reactor.until(lambda: ground.entry._arrivals)
        ground.reactor.advance(seconds - 0.5)
        ground.reactor.turn(1)
        assert ground.taken.refused == []
        ground.reactor.advance(0.6)
        assert ground.taken.refused[0].startswith(answer)
        assert not ground.entry._arrivals


def test_who_leaves_is_forgotten(ground: Ground) -> None:
    for _ in range(3):
        with ground.connect() as sock:
            sock.send(b"\x16")
    ground.reactor.until(lambda: not ground.entry._arrivals and not ground.reactor.getDelayedCalls())


def test_the_oldest_of_too_many_goes(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_module, "_ARRIVALS_AT_MOST", 5)
    socks = [ground.connect() for _ in range(8)]
    socks[3].send(b"\x16")
    ground.reactor.until(lambda: len(ground.entry._arrivals) == 5)
    for sock in socks[:3]:
        assert sock.recv(1) == b""
    octets = hello("www.example.com", [])
    socks[7].send(octets)
    ground.reactor.until(lambda: ground.taken.seen)
    for sock in socks:
        sock.close()


def test_out_of_descriptors_it_waits_and_goes_on(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.accept
    full = True

    def accept(sock: socket.socket) -> Any:
        if full:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(sock)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with ground.connect() as sock:
        ground.reactor.until(lambda: ground.lines)
        full = False
        ground.reactor.advance(0.2)
        sock.send(hello("www.example.com", []))
        ground.reactor.until(lambda: ground.taken.seen)
    assert len(ground.lines) == 1


def test_one_that_fails_keeps_nobody_behind_him_waiting(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, logged_errors: list[LogEvent]
) -> None:
    """The listener's readiness is told once for all who are in its queue."""
    socks = [ground.connect() for _ in range(3)]
    for sock in socks:
        sock.send(hello(SERVICE, [b"watch/1"]))
    adopt = Taken.adopt

    def fails_once(taken: Taken, sock: socket.socket, octets: bytes) -> None:
        monkeypatch.setattr(Taken, "adopt", adopt)
        taken.socks.append(sock)
        raise RuntimeError("a fault")

    monkeypatch.setattr(Taken, "adopt", fails_once)
    ground.reactor.until(lambda: len(ground.taken.seen) == 2)
    assert len(logged_errors) == 1
    logged_errors.clear()
    for sock in socks:
        sock.close()
