"""What passes through to an origin with TLS: HTTP/2, gRPC, WebSocket, server-sent events, a long poll."""

from __future__ import annotations

import os
import queue
import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    Request,
    TextMessage,
)

from tests.end_to_end.joined import Joined, rest_of
from tests.end_to_end.origins import Visited, answer
from tests.end_to_end.programs import need
from tests.end_to_end.site import ZONE, Nginx

PAGE_OCTETS = 1 << 20
MESSAGE_OCTETS = 10 << 20
STREAMS = 20
LONG_POLL_SECONDS = 65
GRPC_CALL = f"/{ZONE}.Counting/Count"


class H2Origin:
    """Serves HTTP/2: holds answers until `hold` requests of the connection are there, the last one first."""

    def __init__(self, hold: int) -> None:
        self._hold = hold
        self.most_at_once = 0

    def __call__(self, visited: Visited) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        paths: dict[int, str] = {}
        bodies: dict[int, bytes] = {}
        visited.send(connection.data_to_send())
        while octets := visited.read():
            for event in connection.receive_data(octets):
                if isinstance(event, h2.events.RequestReceived):
                    paths[event.stream_id] = dict(event.headers)[b":path"].decode()
                    bodies[event.stream_id] = b""
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    self.most_at_once = max(self.most_at_once, len(paths))
            if len(paths) >= self._hold:
                for stream in sorted(paths, reverse=True):
                    connection.send_headers(stream, [(":status", "200"), ("trailer", "x-octets")])
                    connection.send_data(stream, paths.pop(stream).encode())
                    octet_count = str(len(bodies.pop(stream)))
                    connection.send_headers(stream, [("x-octets", octet_count)], end_stream=True)
            visited.send(connection.data_to_send())


class Events:
    """Serves server-sent events: each one only when the test has put it into the queue."""

    def __init__(self) -> None:
        self.due: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.sent: list[str] = []

    def __call__(self, visited: Visited) -> None:
        visited.head()
        visited.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while event := self.due.get():
            visited.send(f"data: {event}\n\n".encode())
            self.sent.append(event)


def echo(visited: Visited) -> None:
    """A WebSocket that gives every message back, whole."""
    connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    text, octets = "", bytearray()
    while got := visited.read():
        visited.octets.clear()
        connection.receive_data(got)
        for event in connection.events():
            if isinstance(event, Request):
                visited.send(connection.send(AcceptConnection(subprotocol=event.subprotocols[0])))
            elif isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    visited.send(connection.send(TextMessage(text)))
                    text = ""
            elif isinstance(event, BytesMessage):
                octets += event.data
                if event.message_finished:
                    visited.send(connection.send(BytesMessage(bytes(octets))))
                    octets.clear()
            elif isinstance(event, Ping):
                visited.send(connection.send(event.response()))
            elif isinstance(event, CloseConnection):
                visited.send(connection.send(event.response()))
                return


class Patience:
    """Answers a request after a long time in which nothing is said."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __call__(self, visited: Visited) -> None:
        visited.head()
        self.over.wait(LONG_POLL_SECONDS)
        visited.send(answer(b"at last", "Connection: close"))


def count(first: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """As many messages as asked for, each of 100 kB; the trailers say whom it was for."""
    context.set_trailing_metadata((("x-sent", first.decode()),))
    for number in range(int(first)):
        yield b"%d " % number + bytes(100_000)


def add(numbers: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """After each number the sum; a number below 0 is an error with a status and details."""
    total = 0
    for number in numbers:
        if int(number) < 0:
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "below 0")
        total += int(number)
        yield b"%d" % total


class Site(Joined):
    """One appliance, one client, an origin for each protocol."""

    def start(self) -> None:
        super().start()
        self.nginx = Nginx(self.directory / "nginx", [f"www.{ZONE}"], self.ca)
        (self.nginx.root / "page").write_bytes(os.urandom(PAGE_OCTETS))
        self.running.callback(self.nginx.kill)
        self.nginx.start()
        self.h2 = H2Origin(STREAMS)
        self.events = Events()
        self.patience = Patience()
        self.running.callback(self.patience.over.set)
        tls = {
            "www": self.nginx.tls,
            "h2": self.origin(self.h2, "h2", alpn=["h2"]).port,
            "ws": self.origin(echo, "ws").port,
            "events": self.origin(self.events, "events").port,
            "poll": self.origin(self.patience, "poll").port,
            "grpc": self.grpc(),
        }
        self.plain_poll = self.origin(self.patience)
        self.join(
            "home",
            {label: {"tls_origin": port} for label, port in tls.items()}
            | {"slow": {"http_origin": self.plain_poll.port}},
        )

    def grpc(self) -> int:
        """The port of a gRPC server with TLS."""
        certificate = self.ca.issue_cert(f"grpc.{ZONE}")
        chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
        credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
        server = grpc.server(ThreadPoolExecutor(4))
        service, _, method = GRPC_CALL[1:].partition("/")
        methods = {
            method: grpc.unary_stream_rpc_method_handler(count),
            "Add": grpc.stream_stream_rpc_method_handler(add),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        port: int = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        self.running.callback(lambda: server.stop(None).wait(5))
        return port


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("protocols"))
    with made.running:
        made.start()
        yield made


def test_curl_multiplexes_http2(site: Site) -> None:
    said = site.curl(
        f"https://www.{ZONE}/page?[1-30]",
        *("--http2", "--parallel", "--parallel-max", "10", "-o", "/dev/null"),
        *("-w", "%{http_version} %{http_code} %{size_download} %{ssl_verify_result}\\n"),
    )
    assert said.splitlines() == [f"2 200 {PAGE_OCTETS} 0"] * 30


def test_nghttp(site: Site) -> None:
    """Several streams of one connection, with priorities, and their statistics."""
    program = need("nghttp")
    urls = [f"https://www.{ZONE}:{site.ports.tls}/page?{number}" for number in range(STREAMS)]
    done = subprocess.run(
        [program, "-n", "-s", "-t", "20", f"--header=:authority: www.{ZONE}", *with_address(site, urls)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r" 200 +1M /page\?", done.stdout)) == STREAMS, done.stdout


def with_address(site: Site, urls: list[str]) -> list[str]:
    """nghttp has no way to say where a name is: the address stands in the URL, and the name in SNI."""
    return [url.replace(f"www.{ZONE}", site.appliance.address) for url in urls]


def test_h2load(site: Site) -> None:
    program = need("h2load")
    done = subprocess.run(
        [
            *(program, "-n", "300", "-c", "10", "-m", "10", f"--connect-to=127.0.0.1:{site.ports.tls}"),
            f"https://www.{ZONE}/page",
        ],
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert "300 done, 300 succeeded, 0 failed" in done.stdout, done.stdout + done.stderr
    assert "Application protocol: h2" in done.stdout


def test_many_streams_at_once_and_trailers(site: Site) -> None:
    """The origin answers when all requests are there, so none waits for another; with trailers, as gRPC's."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    bodies: dict[int, bytes] = {}
    trailers: dict[int, list[tuple[bytes, bytes]]] = {}
    order: list[int] = []
    with site.visit_tls("h2", "h2", "http/1.1") as sock:
        assert sock.selected_alpn_protocol() == "h2"
        for number in range(STREAMS):
            stream = connection.get_next_available_stream_id()
            fields = [(":method", "POST"), (":scheme", "https"), (":authority", f"h2.{ZONE}")]
            connection.send_headers(stream, [*fields, (":path", f"/{number}"), ("te", "trailers")])
            connection.send_data(stream, bytes(number), end_stream=True)
        sock.sendall(connection.data_to_send())
        while len(order) < STREAMS:
            for event in connection.receive_data(sock.recv(1 << 16)):
                if isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers[event.stream_id] = [(bytes(name), bytes(value)) for name, value in event.headers]
                elif isinstance(event, h2.events.StreamEnded):
                    order.append(event.stream_id)
            sock.sendall(connection.data_to_send())
    assert site.h2.most_at_once == STREAMS
    assert order == sorted(order, reverse=True)
    for number in range(STREAMS):
        stream = 2 * number + 1
        assert bodies[stream] == b"/%d" % number
        assert trailers[stream] == [(b"x-octets", b"%d" % number)]


@pytest.fixture
def channel(site: Site) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials((site.directory / "ca.pem").read_bytes())
    options = [("grpc.ssl_target_name_override", f"grpc.{ZONE}"), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(f"127.0.0.1:{site.ports.tls}", credentials, options) as made:
        yield made


def test_grpc_stream_of_messages_and_trailers(channel: grpc.Channel) -> None:
    call = channel.unary_stream(GRPC_CALL)(b"100", timeout=20)
    got = list(call)
    assert got == [b"%d " % number + bytes(100_000) for number in range(100)]
    assert ("x-sent", "100") in [(key, value) for key, value in call.trailing_metadata()]
    assert call.code() is grpc.StatusCode.OK


def test_grpc_both_ways_in_turn(channel: grpc.Channel) -> None:
    """Each number goes out when the sum before it came back: nothing waits for more."""
    numbers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = channel.stream_stream(f"/{ZONE}.Counting/Add")(iter(numbers.get, None), timeout=20)
    for number, total in ((1, b"1"), (2, b"3"), (3, b"6")):
        numbers.put(b"%d" % number)
        assert next(call) == total
    numbers.put(b"-1")
    with pytest.raises(grpc.RpcError) as refused:
        next(call)
    error: Any = refused.value
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "below 0")
    numbers.put(None)


class WebSocket:
    """A visitor's end of a WebSocket."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._events: Iterator[Event] = iter(())

    def send(self, event: Event) -> None:
        self._sock.sendall(self._connection.send(event))

    def event(self) -> Event:
        while True:
            for event in self._events:
                return event
            self._connection.receive_data(self._sock.recv(1 << 16))
            self._events = self._connection.events()

    def message(self) -> str | bytes:
        """A whole message, which may come in parts."""
        parts = []
        while True:
            event = self.event()
            assert isinstance(event, Message)
            parts.append(event.data)
            if event.message_finished:
                whole: str | bytes = parts[0][:0].join(parts)
                return whole


def test_websocket(site: Site) -> None:
    with site.visit_tls("ws", "http/1.1") as sock:
        websocket = WebSocket(sock)
        websocket.send(Request(host=f"ws.{ZONE}", target="/echo", subprotocols=["chat"]))
        accepted = websocket.event()
        assert isinstance(accepted, AcceptConnection)
        assert accepted.subprotocol == "chat"
        websocket.send(TextMessage("grüß dich"))
        assert websocket.message() == "grüß dich"
        octets = os.urandom(MESSAGE_OCTETS)
        websocket.send(BytesMessage(octets))
        assert websocket.message() == octets
        websocket.send(Ping(b"still there?"))
        pong = websocket.event()
        assert isinstance(pong, Pong)
        assert pong.payload == b"still there?"
        websocket.send(CloseConnection(code=1000, reason="done"))
        closed = websocket.event()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1000
        assert rest_of(sock) == b""


def test_an_event_arrives_before_the_next_one_is_sent(site: Site) -> None:
    """Server-sent events are not collected anywhere: each is here while the origin waits to send the next."""
    with site.visit_tls("events", "http/1.1") as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: events.{ZONE}\r\n\r\n".encode())
        lines = sock.makefile("rb")
        while lines.readline() != b"\r\n":
            pass
        for number in range(5):
            site.events.due.put(f"event {number}")
            assert lines.readline() == f"data: event {number}\n".encode()
            assert lines.readline() == b"\n"
        site.events.due.put("")
        assert lines.read() == b""
    assert site.events.sent == [f"event {number}" for number in range(5)]


@pytest.mark.slow
def test_a_long_poll(site: Site) -> None:
    """65 s in which nobody says anything: longer than any usual idle time-out, at both ports at once."""

    def over_tls() -> bytes:
        with site.visit_tls("poll", "http/1.1", seconds=LONG_POLL_SECONDS + 20) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: poll.{ZONE}\r\n\r\n".encode())
            return rest_of(sock)

    def over_http() -> bytes:
        with site.visit(LONG_POLL_SECONDS + 20) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: slow.{ZONE}\r\n\r\n".encode())
            return rest_of(sock)

    visitors: list[Callable[[], bytes]] = [over_tls, over_http]
    with ThreadPoolExecutor(2) as pool:
        for page in [pool.submit(visitor) for visitor in visitors]:
            assert page.result().endswith(b"at last")
