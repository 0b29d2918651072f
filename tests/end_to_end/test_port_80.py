"""Plain HTTP through the whole of it: which requests reach which origin, and what nobody may get through.

The client reaches the server through a tap that looks at all octets between the two.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h11
import pytest
import wsproto
from wsproto.events import AcceptConnection, CloseConnection, Event, Request, TextMessage
from wsproto.utilities import RemoteProtocolError

from tests.end_to_end.joined import Joined, rest_of
from tests.end_to_end.origins import Silent, Tap, Visited, keep_alive
from tests.end_to_end.programs import free_port, wait_for
from tests.end_to_end.site import ZONE, Nginx
from tests.ingress.test_httphead import PROBES

MARK = b"in-clear-it-would-show-4cf1"
"""In requests, pages and a header of every visitor: never on the wire between client and server."""
PLAIN_MARK = f"secure.{ZONE}".encode()
"""In the ClientHello of a passed-through visitor, so on the wire in clear: the tap does see."""
MEGABYTES = 50
HEAD_SECONDS = 10.0
BODY_OCTETS = 3 << 20
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing resets (socket(7))."""


def chunked_digest(visited: Visited) -> None:
    """Answer each request with a chunked body: the digest of its own (PUT), or `MEGABYTES` (GET)."""
    connection = h11.Connection(h11.SERVER)
    digest = hashlib.sha256()
    asked = b""

    def say(event: Any) -> None:
        octets = connection.send(event)
        if octets:
            visited.sock.sendall(octets)

    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(visited.sock.recv(1 << 16))
        elif isinstance(event, h11.Request):
            asked = event.method
            digest = hashlib.sha256()
        elif isinstance(event, h11.Data):
            digest.update(event.data)
        elif isinstance(event, h11.EndOfMessage):
            say(h11.Response(status_code=200, headers=[("Transfer-Encoding", "chunked")]))
            if asked == b"PUT":
                say(h11.Data(digest.hexdigest().encode()))
            else:
                for number in range(MEGABYTES):
                    say(h11.Data(block(number)))
            say(h11.EndOfMessage())
            connection.start_next_cycle()
        else:
            return


def block(number: int) -> bytes:
    """A megabyte that differs from the others."""
    return number.to_bytes(4) * (1 << 18)


def until_the_end(visited: Visited) -> None:
    """Read until the visitor ends his side, and only then answer with what came."""
    while visited.read():
        pass
    body = bytes(visited.octets)
    with contextlib.suppress(OSError):
        visited.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%d octets, then the end" % len(body))


def ends_first(visited: Visited) -> None:
    """Switch to another protocol, end this side at once, and go on reading."""
    visited.head()
    visited.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n")
    visited.sock.shutdown(socket.SHUT_WR)
    while visited.read():
        pass


def reads_and_resets(visited: Visited) -> None:
    """Accept, read some of the request, and break off without an answer."""
    visited.head()
    visited.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def websocket(visited: Visited) -> None:
    """Echo messages, after the handshake."""
    connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    while octets := bytes(visited.octets[visited.taken :]) or visited.read():
        visited.taken = len(visited.octets)
        try:
            connection.receive_data(octets)
        except RemoteProtocolError:
            visited.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return
        for event in connection.events():
            if isinstance(event, Request):
                visited.send(connection.send(AcceptConnection()))
            elif isinstance(event, TextMessage):
                visited.send(connection.send(TextMessage(event.data)))
            elif isinstance(event, CloseConnection):
                visited.send(connection.send(event.response()))
                return


class Site(Joined):
    """One appliance, two clients, and an origin for each thing that an origin can do."""

    def __init__(self, directory: Path) -> None:
        self.public = free_port("tcp")
        super().__init__(directory, public_port=self.public)
        self.nginx = Nginx(directory / "nginx", [f"www.{ZONE}", f"secure.{ZONE}"], self.ca)
        (self.nginx.root / "marked").write_bytes(MARK * 1000)
        self.tap = Tap(self.public, ("127.0.0.1", self.ports.tls), [MARK, PLAIN_MARK])
        self.running.callback(self.tap.close)
        self.script = self.origin(keep_alive("script"))
        self.other = self.origin(keep_alive("other"))
        self.patient = self.origin(until_the_end)
        self.resetting = self.origin(reads_and_resets)
        self.chunks = self.origin(chunked_digest)
        self.websocket = self.origin(websocket)
        self.ending = self.origin(ends_first)
        self.silent = Silent()
        self.running.callback(self.silent.close)
        self.refusing = free_port("tcp")

    def start(self) -> None:
        self.running.callback(self.nginx.kill)
        self.nginx.start()
        super().start()
        self.appliance.invite(f"gone.{ZONE}", client="gone")
        plain = {
            "www": self.nginx.http,
            "script": self.script.port,
            "half": self.patient.port,
            "ends": self.ending.port,
            "refusing": self.refusing,
            "silent": self.silent.port,
            "chunks": self.chunks.port,
            "ws": self.websocket.port,
            "two": self.refusing,
            "three": self.resetting.port,
            "four": self.silent.port,
        }
        home: dict[str, dict[str, int | bool | str]] = {
            label: {"http_origin": port} for label, port in plain.items()
        }
        home["tells-who"] = {"http_origin": self.script.port, "forwarded": "add"}
        self.join("home", {**home, "secure": {"tls_origin": self.nginx.tls}})
        self.join("second", {label: {"http_origin": self.other.port} for label in ("two", "three", "four")})

    def ask(self, octets: bytes, seconds: float = 20) -> bytes:
        """All that the server says to these octets, until it ends."""
        with self.visit(seconds) as sock:
            with contextlib.suppress(OSError):  # it may have refused before all was sent
                sock.sendall(octets)
            return rest_of(sock)

    def curl(self, url: str, *options: str | Path) -> str:
        return super().curl(url, "-H", f"X-Marked: {MARK.decode()}", *options)


def request(
    label: str, target: str = "/", *fields: str, method: str = "GET", close: bool = False, body: bytes = b""
) -> bytes:
    """One request for a name of the zone; the mark is in it."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {label}.{ZONE}", f"Cookie: s={MARK.decode()}", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "".join(line + "\r\n" for line in [*lines, ""]).encode() + body


def status_of(octets: bytes) -> int:
    """The status of the first answer."""
    assert octets.startswith(b"HTTP/1.1 "), octets[:100]
    return int(octets[9:12])


class Waits:
    """Visitors who have to wait for a time-out, all begun at once."""

    def __init__(self, site: Site) -> None:
        self._pool = ThreadPoolExecutor(8)
        self.gone = self._pool.submit(site.ask, request("gone", close=True))
        self.head_of_gone = self._pool.submit(site.ask, request("gone", method="HEAD", close=True))
        self.silent = self._pool.submit(site.ask, request("silent", close=True))
        self.post = self._pool.submit(site.ask, request("silent", method="POST", body=bytes(BODY_OCTETS)))
        self.slow = self._pool.submit(slow_head, site)

    def close(self) -> None:
        self._pool.shutdown()


def slow_head(site: Site) -> tuple[float, bytes]:
    """An octet of a head each time the server said nothing for a second; how long that went, and its end."""
    head = iter(request("script", "/slow"))
    with site.visit(1.0) as sock:
        began = time.monotonic()
        for octet in head:
            sock.sendall(bytes([octet]))
            try:
                first = sock.recv(1 << 16)
            except TimeoutError:
                continue
            return time.monotonic() - began, first + rest_of(sock)
    return time.monotonic() - began, b""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("port80"))
    with made.running:
        made.start()
        yield made


@pytest.fixture(scope="module")
def waits(site: Site) -> Iterator[Waits]:
    begun = Waits(site)
    yield begun
    begun.close()


@pytest.mark.parametrize(
    ("target", "leads_to"),
    [
        ("/", "/"),
        ("/a/b?c=%20d&e", "/a/b?c=%20d&e"),
        (f"http://secure.{ZONE}/absolute?x", "/absolute?x"),
        (f"http://secure.{ZONE}", "/"),
    ],
)
def test_a_name_without_an_http_origin_is_redirected(
    site: Site, waits: Waits, target: str, leads_to: str
) -> None:
    """To the published port, which here is not the one listened on."""
    del waits  # begun by the first test, so that the others run meanwhile
    page = site.ask(request("secure", target))
    assert status_of(page) == 308
    assert f"\r\nLocation: https://secure.{ZONE}:{site.public}{leads_to}\r\n".encode() in page
    assert b"\r\nConnection: close\r\n" in page


def test_curl_follows_the_redirect_to_the_page(site: Site) -> None:
    page = site.curl(
        f"http://secure.{ZONE}/who",
        *("-L", "--connect-to", f"secure.{ZONE}:{site.public}:127.0.0.1:{site.ports.tls}"),
        *("--data", "a=b"),
    )
    assert page == f"origin secure.{ZONE} https POST\n"


def test_a_name_with_an_http_origin_is_served(site: Site) -> None:
    assert site.curl(f"http://www.{ZONE}/who") == f"origin www.{ZONE} http GET\n"
    assert site.curl(f"http://www.{ZONE}/marked") == MARK.decode() * 1000


def test_hundreds_of_requests_on_one_connection(site: Site) -> None:
    output = site.directory / "many"
    stats = site.curl(
        f"http://www.{ZONE}/who?[1-300]", "-o", output, "-w", "%{num_connects} %{http_code}\n"
    ).splitlines()
    assert stats == ["1 200", *["0 200"] * 299]


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    before = len(site.script.visited)
    several = b"".join(request("script", f"/{number}") for number in range(50))
    got = site.ask(several + request("script", "/last", close=True))
    places = [got.index(b"script: /%d," % number) for number in range(50)] + [got.index(b"script: /last,")]
    assert places == sorted(places)
    (visited,) = site.script.visited[before:]
    assert bytes(visited.octets) == several + request("script", "/last", close=True)


@pytest.mark.parametrize("apart", [True, False], ids=["after the answer", "in one segment"])
def test_a_later_request_for_another_host_is_refused(site: Site, apart: bool) -> None:
    before = len(site.script.visited)
    first, second = request("script", "/first"), request("www", "/who", "X-Secret: 1")
    with site.visit() as sock:
        sock.sendall(first if apart else first + second)
        got = b""
        if apart:
            while b"script: /first, 0 octets" not in got:
                got += sock.recv(1 << 16)
            sock.sendall(second)
        got += rest_of(sock)
    answered, _, refused = got.partition(b"script: /first, 0 octets")
    assert status_of(answered) == 200
    assert status_of(refused) == 421
    (visited,) = site.script.visited[before:]
    wait_for(lambda: visited.ended, 5, "the end at the origin")
    assert bytes(visited.octets) == first


HOST = f"Host: script.{ZONE}\r\n"
REFUSED = {
    "no Host": "GET / HTTP/1.1\r\n\r\n",
    "no Host in HTTP/1.0": "GET / HTTP/1.0\r\n\r\n",
    "two Hosts": f"GET / HTTP/1.1\r\n{HOST}{HOST}\r\n",
    "two different Hosts": f"GET / HTTP/1.1\r\n{HOST}Host: www.{ZONE}\r\n\r\n",
    "an address for a Host": "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "an empty Host": "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "Host with user": f"GET / HTTP/1.1\r\nHost: a@script.{ZONE}\r\n\r\n",
    "Host with space": f"GET / HTTP/1.1\r\nHost : script.{ZONE}\r\n\r\n",
    "the target is on another host": f"GET http://www.{ZONE}/ HTTP/1.1\r\n{HOST}\r\n",
    "HTTP/0.9": "GET /\r\n",
    "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": f"GET / HTTP/1.2\r\n{HOST}\r\n",
    "CONNECT": f"CONNECT script.{ZONE}:80 HTTP/1.1\r\n{HOST}\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00",
    "an empty line in front": f"\r\nGET / HTTP/1.1\r\n{HOST}\r\n",
    "bare LF": f"GET / HTTP/1.1\n{HOST}\n",
    "bare CR": f"GET / HTTP/1.1\r\n{HOST}X: a\rContent-Length: 5\r\n\r\n",
    "NUL": f"GET / HTTP/1.1\r\n{HOST}X: \x00\r\n\r\n",
    "folded": f"GET / HTTP/1.1\r\n{HOST}X: a\r\n b\r\n\r\n",
    "h2c": f"GET / HTTP/1.1\r\n{HOST}Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    "Connection: Upgrade, HTTP2-Settings\r\n\r\n",
    "h2c behind websocket": f"GET / HTTP/1.1\r\n{HOST}Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n\r\n",
    "CL.TE": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "the same length twice": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 4, 4\r\n\r\nabcd",
    "length +4": f"POST / HTTP/1.1\r\n{HOST}Content-Length: +4\r\n\r\nabcd",
    "length 0x4": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 0x4\r\n\r\nabcd",
    "Content_Length": f"POST / HTTP/1.1\r\n{HOST}Content_Length: 4\r\n\r\nabcd",
    "TE.TE": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "TE xchunked": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE gzip, chunked": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE with a tab": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "TE with VT": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE in HTTP/1.0": f"POST / HTTP/1.0\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Connection takes Host away": f"GET / HTTP/1.1\r\n{HOST}Connection: close, Host\r\n\r\n",
    "a fragment": f"GET /#a HTTP/1.1\r\n{HOST}\r\n",
    "two spaces": f"GET  / HTTP/1.1\r\n{HOST}\r\n",
}


@pytest.mark.parametrize("label", ["script", "tells-who"])
@pytest.mark.parametrize("probe", REFUSED.values(), ids=REFUSED.keys())
def test_what_can_be_read_in_two_ways_reaches_no_origin(site: Site, probe: str, label: str) -> None:
    before = len(site.script.visited)
    octets = probe.replace(f"script.{ZONE}", f"{label}.{ZONE}").encode("latin-1")
    page = site.ask(octets + request(label, "/smuggled"))
    assert status_of(page) == 400
    assert b"\r\nConnection: close\r\n" in page
    assert page.count(b"<!DOCTYPE") == 1
    assert len(site.script.visited) == before


@pytest.mark.parametrize("label", ["script", "tells-who"])
def test_every_rule_on_heads_holds_at_the_port(site: Site, label: str) -> None:
    """The 25 probes of those that design 7 rests on, and the further ones: each before an octet goes on."""
    before = len(site.script.visited)
    for name, (octets, expected) in PROBES.items():
        if expected is not None:
            asked = octets.replace(b"www.example.org", f"{label}.{ZONE}".encode())
            page = site.ask(asked + request(label, "/smuggled"))
            assert status_of(page) == expected, name
            assert page.count(b"<!DOCTYPE") == 1, name
    assert len(site.script.visited) == before


def test_each_request_says_who_the_visitor_is(site: Site) -> None:
    """Every one of a connection, and what the visitor himself says of that is not in it."""
    before = len(site.script.visited)
    lies = ("X-Forwarded-For: 198.51.100.7", "x_forwarded_proto: https", "Forwarded: for=198.51.100.7")
    with site.visit() as sock:
        where = sock.getsockname()[0]
        sock.sendall(request("tells-who", "/0", *lies))
        sock.sendall(request("tells-who", "/1", *lies, method="POST", body=b"body"))
        sock.sendall(request("tells-who", "/2", *lies, close=True))
        got = rest_of(sock)
    assert [b"script: /%d," % number in got for number in range(3)] == [True] * 3
    (visited,) = site.script.visited[before:]
    octets = bytes(visited.octets)
    assert b"198.51.100.7" not in octets
    assert b"https" not in octets
    expected = (
        f"\r\nX-Forwarded-For: {where}\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: tells-who.{ZONE}\r\n"
        f"Forwarded: for={where};host=tells-who.{ZONE};proto=http\r\n\r\n"
    )
    assert octets.count(expected.encode()) == 3


@pytest.mark.parametrize("field", ["Connection: X-Forwarded-For", "Connection: close, Forwarded"])
def test_no_visitor_can_have_it_taken_away(site: Site, field: str) -> None:
    before = len(site.script.visited)
    assert status_of(site.ask(request("tells-who", "/", field))) == 400
    assert len(site.script.visited) == before


SMUGGLED = f"GET /smuggled HTTP/1.1\r\nHost: www.{ZONE}\r\n\r\n"
CHUNKS_REFUSED = {
    "bare LF behind a size": "4\nabcd\r\n0\r\n\r\n",
    "a size that overflows": "10000000000000004\r\nabcd\r\n0\r\n\r\n",
    "a size with 0x": "0x4\r\nabcd\r\n0\r\n\r\n",
    "a space behind a size": "4 \r\nabcd\r\n0\r\n\r\n",
    "CR in an extension": "4;a\rb\r\nabcd\r\n0\r\n\r\n",
    "LF in an extension": "4;a\nb\r\nabcd\r\n0\r\n\r\n",
    "no CRLF behind a chunk": "4\r\nabcdef\r\n0\r\n\r\n",
    "a negative size": "-4\r\nabcd\r\n0\r\n\r\n",
    "a trailer that is a length": "0\r\nContent-Length: 50\r\n\r\n",
    "a trailer that is a Host": f"0\r\nHost: www.{ZONE}\r\n\r\n",
}


@pytest.mark.parametrize("body", CHUNKS_REFUSED.values(), ids=CHUNKS_REFUSED.keys())
def test_a_chunked_body_that_can_be_read_in_two_ways(site: Site, body: str) -> None:
    """The head was let through, and what is in doubt is not: the origin sees a body that does not end."""
    before = len(site.patient.visited)
    head = request("half", "/", "Transfer-Encoding: chunked", method="POST")
    page = site.ask(head + body.encode() + SMUGGLED.encode())
    (visited,) = site.patient.visited[before:]
    wait_for(lambda: visited.ended, 5, "the end at the origin")
    assert visited.octets.startswith(head)
    behind = bytes(visited.octets[len(head) :])
    assert b"smuggled" not in behind
    assert not behind.endswith(b"0\r\n\r\n")
    assert b"HTTP/1.1 400 Bad Request\r\n" in page


def test_a_body_that_is_a_request_stays_a_body(site: Site) -> None:
    smuggled = SMUGGLED.encode()
    got = site.ask(request("script", "/one", method="POST", body=smuggled) + request("script", close=True))
    assert b"script: /one, %d octets" % len(smuggled) in got
    assert b"script: /, 0 octets" in got
    assert got.count(b"HTTP/1.1 200") == 2


def test_an_unknown_name_is_not_found(site: Site) -> None:
    assert status_of(site.ask(request("never"))) == 404
    page = site.ask(b"GET / HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
    assert status_of(page) == 404
    assert b"elsewhere" not in page
    head = site.ask(request("never", method="HEAD"))
    assert head.startswith(b"HTTP/1.1 404 ")
    assert head.endswith(b"\r\n\r\n")


def test_an_origin_that_refuses(site: Site) -> None:
    assert status_of(site.ask(request("refusing"))) == 502
    assert status_of(site.ask(request("refusing", method="POST", body=b"x" * 1000))) == 502


@pytest.mark.parametrize("label", ["two", "four"], ids=["refuses", "is silent"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_next_client_gets_what_the_first_ones_origin_does_not(
    site: Site, label: str, method: str
) -> None:
    """Whoever is first in turn, each request is answered by the one origin that can, and asked there once."""
    before = len(site.other.visited)
    body = MARK if method == "POST" else b""
    pool = ThreadPoolExecutor(4)
    asked = [request(label, f"/{number}", method=method, body=body, close=True) for number in range(4)]
    answers = list(pool.map(site.ask, asked))
    pool.shutdown()
    for number, page in enumerate(answers):
        assert f"other: /{number}, {len(body)} octets".encode() in page
    visits = sorted(bytes(visited.octets) for visited in site.other.visited[before:])
    assert visits == sorted(asked)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_is_repeated_after_the_join(site: Site, method: str) -> None:
    """An origin that took a request and broke off had it: nobody else gets it, and the visitor learns."""
    bad, good = len(site.resetting.visited), len(site.other.visited)
    asked = [
        request("three", f"/{number}", method=method, body=MARK * (method == "POST")) for number in range(4)
    ]
    answered = []
    for octets in asked:
        with site.visit() as sock:
            sock.sendall(octets)
            try:
                answered.append(sock.recv(1 << 16))
            except ConnectionResetError:
                answered.append(b"")
    at_bad = [bytes(visited.octets) for visited in site.resetting.visited[bad:]]
    at_good = [bytes(visited.octets) for visited in site.other.visited[good:]]
    assert len(at_bad) == len(at_good) == 2  # round robin
    for octets, page in zip(asked, answered, strict=True):
        assert (octets in at_good) == (status_of(page) == 200 if page else False)
        assert (octets in at_good) != any(octets.startswith(one[:60]) for one in at_bad)


def test_fifty_megabytes_in_chunks_each_way(site: Site) -> None:
    digest = hashlib.sha256()
    for number in range(MEGABYTES):
        digest.update(block(number))
    down = site.directory / "down"
    site.curl(f"http://chunks.{ZONE}/", "-o", down)
    assert hashlib.sha256(down.read_bytes()).hexdigest() == digest.hexdigest()
    said = site.curl(
        f"http://chunks.{ZONE}/", "-T", down, "-H", "Transfer-Encoding: chunked", "-H", "Expect:"
    )
    assert said == digest.hexdigest()
    down.unlink()


def test_half_close(site: Site) -> None:
    """A visitor who ends his side still gets the answer, and the origin sees the end."""
    asked = request("half", "/", close=True)
    with site.visit() as sock:
        sock.sendall(asked)
        sock.shutdown(socket.SHUT_WR)
        assert rest_of(sock).endswith(b"%d octets, then the end" % len(asked))


def test_half_close_by_the_origin(site: Site) -> None:
    """An origin that has ended its side goes on to read: all that the visitor sends after that arrives."""
    asked = request("ends", "/", "Upgrade: other", "Connection: Upgrade")
    body = MARK * 40_000
    with site.visit() as sock:
        sock.sendall(asked)
        assert status_of(rest_of(sock)) == 101
        sock.sendall(body)
        sock.shutdown(socket.SHUT_WR)
        (visited,) = site.ending.visited
        wait_for(lambda: visited.ended, 10, "the end at the origin")
    assert bytes(visited.octets) == asked + body


def test_a_reset_is_passed_on(site: Site) -> None:
    before = len(site.patient.visited)
    with site.visit() as sock:
        sock.sendall(request("half", "/", method="POST", body=b"x" * 1000)[:-1])
        wait_for(lambda: len(site.patient.visited) > before, 10, "the request at the origin")
        visited = site.patient.visited[before]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    wait_for(lambda: visited.sock.fileno() < 0, 10, "the end at the origin")
    assert not visited.ended  # not an end of stream, which would make a whole of a half request


def test_a_websocket(site: Site) -> None:
    connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    before = len(site.websocket.visited)
    with site.visit() as sock:
        sock.sendall(connection.send(Request(host=f"ws.{ZONE}", target="/chat")))

        def next_event() -> Event:
            while True:
                for event in connection.events():
                    return event
                connection.receive_data(sock.recv(1 << 16))

        assert isinstance(next_event(), AcceptConnection)
        # Blind from here on: what would be refused as HTTP/1 goes through.
        for text in (f"GET / HTTP/1.1\r\nHost: www.{ZONE}\r\n\r\n", "bare\nlines\n", MARK.decode()):
            sock.sendall(connection.send(TextMessage(text)))
            event = next_event()
            assert isinstance(event, TextMessage)
            assert event.data == text
        sock.sendall(connection.send(CloseConnection(code=1000)))
        assert isinstance(next_event(), CloseConnection)
        assert rest_of(sock) == b""
    assert len(site.websocket.visited) == before + 1


def test_no_upgrade_behind_another_request(site: Site) -> None:
    before = len(site.script.visited)
    first = request("script", "/first")
    got = site.ask(first + request("script", "/", "Upgrade: websocket", "Connection: Upgrade"))
    assert got.count(b"HTTP/1.1 200 OK") == 1
    assert b"HTTP/1.1 400 Bad Request" in got
    assert [bytes(visited.octets) for visited in site.script.visited[before:]] == [first]


def test_a_known_name_without_a_client(waits: Waits) -> None:
    page = waits.gone.result(20)
    assert status_of(page) == 503
    assert b"\r\nRetry-After: 5\r\n" in page
    head = waits.head_of_gone.result(20)
    assert status_of(head) == 503
    assert head.endswith(b"\r\n\r\n")


def test_an_origin_that_does_not_accept(site: Site, waits: Waits) -> None:
    """And the body of a POST that waits for it: neither there nor on the lane."""
    for page in (waits.silent.result(20), waits.post.result(20)):
        assert status_of(page) == 504
    assert site.silent.octets() == b""
    long_lanes = [octets for octets in site.tap.from_server if octets > BODY_OCTETS // 2]
    assert len(long_lanes) <= 1  # the fifty megabytes in chunks


def test_a_slow_head_is_cut_while_others_are_served(site: Site, waits: Waits) -> None:
    while not waits.slow.done():
        assert site.curl(f"http://www.{ZONE}/who") == f"origin www.{ZONE} http GET\n"
    seconds, page = waits.slow.result()
    assert status_of(page) == 408
    assert HEAD_SECONDS - 1 < seconds < HEAD_SECONDS + 2


def test_the_octets_between_client_and_server_are_sealed(site: Site) -> None:
    """A passed-through hello is not, so the tap does see; requests and pages of all tests before are."""
    assert site.curl(f"http://www.{ZONE}/marked") == MARK.decode() * 1000
    assert "origin" in site.curl(f"https://secure.{ZONE}/who")
    assert site.tap.seen == {PLAIN_MARK}
