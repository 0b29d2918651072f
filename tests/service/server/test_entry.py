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
from appliance.ingress.limits import Limits
from appliance.service.fewlines import FewLines
from appliance.service.readiness import Readiness
from appliance.service.server import entry as entry_module
from appliance.service.server.adoption import Adoption
from appliance.service.server.entry import Entry
from appliance.service.server.gate import Gate
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

    readiness: Readiness
    seen: list[tuple[str, Any]] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    socks: list[socket.socket] = field(default_factory=list)

    def tls_arrived(self, sock: socket.socket, *what: Any) -> None:
        if isinstance(what[0], tuple):
            source, host, hello = cast(tuple[tuple[str, int], str, ClientHello], what)
            assert source[0] == "127.0.0.1"
            self._take("visitor", sock, (host, hello.octets))
        else:
            self._take("tls lane", sock, what[0])

    def http_arrived(
        self, sock: socket.socket, source: tuple[str, int], head: RequestHead, octets: bytes
    ) -> None:
        self._take("http", sock, (head.host, octets))

    def plain_arrived(self, sock: socket.socket, preface: bytes, rest: bytes) -> None:
        self._take("lane", sock, (preface, rest))

    def adopt(self, sock: socket.socket, octets: bytes) -> None:
        self._take("watch", sock, octets)

    def join(self, sock: socket.socket, octets: bytes, source: object) -> None:
        self._take("link", sock, octets)

    def refuse(self, sock: socket.socket, octets: bytes, why: str) -> None:
        self.refused.append(octets)
        self.reasons.append(why)
        self._own(sock)

    def connection(self) -> str:
        return "a TLS connection"

    def _take(self, kind: str, sock: socket.socket, what: Any) -> None:
        self.seen.append((kind, what))
        self._own(sock)

    def _own(self, sock: socket.socket) -> None:
        self.readiness.change(sock, lambda events: None)
        self.socks.append(sock)


@dataclass
class Ground:
    reactor: Turning
    entry: Entry
    taken: Taken
    gate: Gate
    linked: set[str]
    lines: list[LogEvent]

    def connect(self, port: int = 0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.entry.ports[port]))


@pytest.fixture
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    asked = getattr(request, "param", None)
    default_name = asked if isinstance(asked, str) else None
    limits = asked if isinstance(asked, Limits) else Limits()
    with turning() as (reactor, readiness):
        made = _ground(reactor, readiness, default_name, limits)
        made.entry.startService()
        yield made
        made.entry.stopService()
        for sock in made.taken.socks:
            readiness.forget(sock)
            sock.close()


def _ground(reactor: Turning, readiness: Readiness, default_name: str | None, limits: Limits) -> Ground:
    lines: list[LogEvent] = []
    log = Logger(observer=provider(ILogObserver)(lambda event: lines.append(event)))
    linked: set[str] = set()
    complaints = FewLines(reactor, log)
    gate = Gate(reactor, limits, linked=linked.__contains__, complaints=complaints)
    entry = Entry(
        reactor,
        readiness,
        tls_addresses=[("127.0.0.1", 0)],
        http_addresses=[("127.0.0.1", 0)],
        service_name=SERVICE,
        default_name=default_name,
        gate=gate,
        complaints=complaints,
    )
    taken = Taken(readiness)
    entry.wire(
        visitors=cast(Visitors, taken),
        lanes=cast(Lanes, taken),
        adoption=cast(Adoption, taken),
        links=cast(WaitingLine, taken),
        tls=cast(ServerTls, taken),
    )
    return Ground(reactor, entry, taken, gate, linked, lines)


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
        ground.reactor.until(lambda: ground.entry.silent)
        ground.reactor.advance(seconds - 0.5)
        ground.reactor.turn(1)
        assert ground.taken.refused == []
        ground.reactor.advance(0.6)
        assert ground.taken.refused[0].startswith(answer)
        assert not ground.entry.silent


def test_who_leaves_is_forgotten(ground: Ground) -> None:
    for _ in range(3):
        with ground.connect() as sock:
            sock.send(b"\x16")
    ground.reactor.until(lambda: not ground.entry.silent and not ground.reactor.getDelayedCalls())


def test_the_oldest_of_too_many_goes(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_module, "_ARRIVALS_AT_MOST", 5)
    socks = [ground.connect() for _ in range(8)]
    socks[3].send(b"\x16")
    ground.reactor.until(lambda: ground.entry.silent == 5)
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


# Limits

FULL = bytes.fromhex("15030300020250")
TWO_OPEN = Limits(source_open=2, source_new=0, exempt=())
ONE_A_SECOND = Limits(source_open=0, source_new=1, exempt=())


def answer(sock: socket.socket) -> bytes:
    """All that comes until the end; the entry has no other work to do meanwhile."""
    got = b""
    sock.settimeout(5)
    try:
        while octets := sock.recv(65536):
            got += octets
    except ConnectionResetError:
        pass
    return got


def has_ended(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False


def until_answered(ground: Ground, sock: socket.socket) -> bytes:
    before = sum(ground.gate.refused.values())
    ground.reactor.until(lambda: sum(ground.gate.refused.values()) > before)
    return answer(sock)


@pytest.mark.parametrize("ground", [TWO_OPEN], indirect=True)
@pytest.mark.parametrize(("port", "told"), [(0, FULL), (1, b"HTTP/1.1 503 ")])
def test_a_source_has_only_so_many_open(ground: Ground, port: int, told: bytes) -> None:
    held = [ground.connect() for _ in range(2)]
    ground.reactor.until(lambda: ground.gate.inside == 2)
    for _ in range(3):
        with ground.connect(port) as sock:
            assert until_answered(ground, sock).startswith(told)
    assert ground.gate.inside == 2
    (line,) = ground.lines
    assert line["source"] == "127.0.0.1"
    assert "source_open" in line["text"]
    held.pop().close()
    ground.reactor.until(lambda: ground.gate.inside == 1)
    with ground.connect() as sock:
        sock.send(hello("www.example.com", []))
        ground.reactor.until(lambda: ground.taken.seen)
    held.pop().close()


@pytest.mark.parametrize("ground", [ONE_A_SECOND], indirect=True)
def test_a_source_has_only_so_many_new_ones_a_second(ground: Ground) -> None:
    with ground.connect() as first, ground.connect() as second:
        assert until_answered(ground, second) == FULL
        ground.reactor.advance(1)
        with ground.connect():
            ground.reactor.until(lambda: ground.gate.inside == 2)
        first.close()
    ground.reactor.until(lambda: ground.gate.inside == 0)


@pytest.mark.parametrize("ground", [ONE_A_SECOND], indirect=True)
def test_where_a_client_is_linked_from_its_lanes_come_and_visitors_do_not(ground: Ground) -> None:
    ground.linked.add("127.0.0.1")
    preface = b"\xf5tunnel\x01" + bytes(32)
    for _ in range(5):
        with ground.connect() as sock:
            sock.send(preface)
            seen = len(ground.taken.seen)
            ground.reactor.until(lambda seen=seen: len(ground.taken.seen) > seen)  # type: ignore[misc]
    with ground.connect() as sock:
        sock.send(hello(SERVICE, [b"tunnel/1"]))
        ground.reactor.until(lambda: ground.taken.seen[-1][0] == "link")
    with ground.connect() as sock:
        sock.send(hello("www.example.com", []))
        assert until_answered(ground, sock) == FULL
    with ground.connect(1) as sock:  # no lane comes there
        assert until_answered(ground, sock).startswith(b"HTTP/1.1 503 ")
    assert ground.gate.inside == 0


@pytest.mark.parametrize("ground", [Limits(all_open=2)], indirect=True)
def test_when_it_is_full_what_is_ours_comes_in(ground: Ground) -> None:
    held = [ground.connect() for _ in range(2)]
    ground.reactor.until(lambda: ground.gate.inside == 2)
    with ground.connect(1) as sock:
        assert until_answered(ground, sock).startswith(b"HTTP/1.1 503 ")
    for octets, told in ((hello("www.example.com", []), FULL), (b"GET /", FULL)):
        with ground.connect() as sock:
            sock.send(octets)
            assert until_answered(ground, sock) == told
    for kind, alpn in (("watch", b"watch/1"), ("link", b"tunnel/1"), ("tls lane", b"tunnel-lane/1")):
        with ground.connect() as sock:
            sock.send(hello(SERVICE, [alpn]))
            ground.reactor.until(lambda kind=kind: kind in [one for one, _ in ground.taken.seen])  # type: ignore[misc]
    assert ground.taken.refused == []
    for sock in held:
        sock.close()
    ground.reactor.until(lambda: ground.gate.inside == 0)


def test_the_last_descriptors_are_not_for_lanes(ground: Ground) -> None:
    ground.gate.lanes_below = 0
    with ground.connect() as sock:
        sock.send(b"\xf5tunnel\x01" + bytes(32))
        sock.setblocking(False)
        ground.reactor.until(lambda: has_ended(sock))
    with ground.connect() as sock:
        sock.send(hello(SERVICE, [b"watch/1"]))
        ground.reactor.until(lambda: ground.taken.seen)
    assert [kind for kind, _ in ground.taken.seen] == ["watch"]


def test_among_the_last_descriptors_the_oldest_that_is_silent_goes(ground: Ground) -> None:
    with ground.connect() as oldest:
        ground.reactor.until(lambda: ground.gate.inside == 1)
        ground.gate.lanes_below = 0
        with ground.connect() as sock:
            sock.send(hello(SERVICE, [b"watch/1"]))
            ground.reactor.until(lambda: ground.taken.seen)
            assert answer(oldest) == b""


def test_each_reason_has_its_word(ground: Ground) -> None:
    for port, octets in enumerate((bytes(64), b"GET /\r\n\r\n")):
        with ground.connect(port) as sock:
            sock.send(octets)
            ground.reactor.until(lambda port=port: len(ground.taken.reasons) > port)  # type: ignore[misc]
    assert ground.taken.reasons == ["bad_hello", "bad_request"]
    assert ground.gate.inside == 0
