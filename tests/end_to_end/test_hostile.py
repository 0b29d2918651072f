"""Strangers at the TLS port, clients and servers who break the rules: a clear refusal, hardly a line in the
log, and everybody else is served as before.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from appliance.tunnel.certificates import Credential, read_credential
from appliance.tunnel.invitation import read_enrolment, read_invitation
from appliance.tunnel.lane import (
    EXPORTED_OCTETS,
    EXPORTER_LABEL,
    MAGIC,
    PREFACE_OCTETS,
    LaneKeys,
    Preface,
    Status,
    lane_keys,
    read_preface,
    seal_header,
    verify,
    write_preface,
)
from appliance.tunnel.proxyheader import Kind, ProxyHeader
from appliance.tunnel.session import ClientSession, NameRegistered, Offer, ServerSession, Welcomed
from tests.end_to_end.programs import wait_for
from tests.end_to_end.scripted import (
    JOINED,
    PATIENCE_SECONDS,
    Script,
    ScriptedSite,
    Scripts,
    echo,
    exactly,
    hello,
    reset,
    scripted_site,
    until_end,
)
from tests.end_to_end.site import ZONE, Client
from tests.ingress.hellos import message, record

FAKE = "127.0.0.2"
"""The address of the server that is enrolled and then breaks the rules."""
EVIL = f"evil.{ZONE}"
UNEXPECTED_MESSAGE, DECODE_ERROR, INTERNAL_ERROR, UNRECOGNIZED_NAME = 10, 50, 80, 112
PAGE_SECONDS = 1.0


def alert(description: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, 2, description))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedSite]:
    with scripted_site(tmp_path_factory.mktemp("hostile"), servers=(FAKE,)) as made:
        yield made


@pytest.fixture(autouse=True)
def _nobody_else_notices(site: ScriptedSite) -> Iterator[None]:
    """During every test of this file others get their pages, and no process has logged an error after it."""
    slowest, over = [site.page()], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            slowest.append(site.page())

    watching = threading.Thread(target=watch)
    watching.start()
    yield
    over.set()
    watching.join(PATIENCE_SECONDS)
    assert max(slowest) < PAGE_SECONDS
    for one in (site.appliance, site.client):
        assert one.process is not None
        assert one.process.status is None
        assert "Traceback" not in one.process.output
        assert "failed" not in one.process.output


class Lines:
    """How many lines a log has gained."""

    def __init__(self, one: Any) -> None:
        self._process = one.process
        self._before = len(self._process.output.splitlines())

    @property
    def new(self) -> list[str]:
        lines: list[str] = self._process.output.splitlines()[self._before :]
        return lines


# Strangers at the port


def said(site: ScriptedSite, octets: bytes, *, ends: bool = True) -> bytes:
    """What a visitor hears who sends this, and ends; a reset is an error."""
    with site.connect() as sock:
        sock.sendall(octets)
        if ends:
            sock.shutdown(socket.SHUT_WR)
        return until_end(sock)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: www.site.test\r\n\r\n", alert(UNEXPECTED_MESSAGE)),
        (b"\0" * 100, alert(UNEXPECTED_MESSAGE)),
        (b"\x80\x2e\x01\x03\x01" + b"\0" * 60, alert(UNEXPECTED_MESSAGE)),  # a hello of SSL 2
        (b"\x15\x03\x01\0\2\1\0", alert(UNEXPECTED_MESSAGE)),  # an alert
        (b"\x14\x03\x03\0\1\1" + hello(f"x.apps.{ZONE}"), alert(UNEXPECTED_MESSAGE)),
        (record(message(b"\x03\x03" + b"r" * 100, kind=2)), alert(UNEXPECTED_MESSAGE)),  # a server's hello
        (b"\x16\x05", alert(DECODE_ERROR)),
        (b"\x16\x03\x01\xff\xff", alert(DECODE_ERROR)),
        (record(message(b"short")), alert(DECODE_ERROR)),
        (record(b"\x01\xff\xff\xff"), alert(DECODE_ERROR)),
        (hello(f"x.apps.{ZONE}", octets=17_000, cuts=(9_000,)), alert(DECODE_ERROR)),
        (hello(f"x.apps.{ZONE}", cuts=tuple(range(1, 65))), alert(DECODE_ERROR)),
        (b"\xf5tunnel\x02" + b"\0" * 32, alert(DECODE_ERROR)),  # a lane of another version
        (b"\xf6" * 40, alert(UNEXPECTED_MESSAGE)),
        (hello(f"never.{ZONE}") + b"octets behind it", alert(UNRECOGNIZED_NAME)),
    ],
)
def test_what_is_no_visitor_gets_an_alert(
    site: ScriptedSite, octets: bytes, answer: bytes, ends: bool
) -> None:
    lines = Lines(site.appliance)
    assert said(site, octets, ends=ends) == answer
    assert not lines.new


@pytest.mark.parametrize("octets", [b"", b"\x16", hello(f"x.apps.{ZONE}")[:700], MAGIC, MAGIC + b"\0" * 31])
def test_half_of_something_and_the_end(site: ScriptedSite, octets: bytes) -> None:
    assert said(site, octets) == b""


def test_random_octets(site: ScriptedSite) -> None:
    """Many of them, of every first octet, some that end and some that reset: an alert or nothing."""
    dice = random.Random(11)
    lines = Lines(site.appliance)
    seen = set()
    for number in range(600):
        octets = bytes([number % 256]) + dice.randbytes(dice.randrange(1, 3000))
        if number >= 512:  # these get further
            whole = bytearray(hello(f"x.apps.{ZONE}"))
            for _ in range(dice.randrange(1, 4)):
                whole[dice.randrange(min(len(whole), 200))] = dice.randrange(256)
            octets = bytes(whole)
        with site.connect() as sock:
            sock.sendall(octets)
            if number % 3 == 0:
                reset(sock)
                continue
            sock.shutdown(socket.SHUT_WR)
            got = until_end(sock)
            assert len(got) in (0, 1, 7), octets
            if len(got) == 7:
                assert got[:6] == alert(0)[:6]
                seen.add(got[6])
            elif got:  # still a good hello for x, whom the wildcard covers; the origin has no script for it
                assert got == JOINED
    assert {UNEXPECTED_MESSAGE, DECODE_ERROR} <= seen
    assert len(lines.new) <= 1, lines.new


# A client that breaks the rules


def speaks_tls(credential: Credential) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(credential.certificate)
    context.use_privatekey(credential.key)
    return context


class Link:
    """A client's end of a link, with which lanes can be opened as one likes."""

    def __init__(self, site: ScriptedSite, invitation: Path, name: str) -> None:
        self._site = site
        invited = read_invitation(invitation.read_text())
        self._sock = site.connect()
        self._sock.settimeout(None)
        self._tls = SSL.Connection(speaks_tls(read_credential(invited.credential_pem)), self._sock)
        self._tls.set_tlsext_host_name(invited.service_name.encode())
        self._tls.set_alpn_protos([b"tunnel/1"])
        self._tls.set_connect_state()
        self._tls.do_handshake()
        self.keys = lane_keys(self._tls.export_keying_material(EXPORTER_LABEL, EXPORTED_OCTETS, b""))
        self.session_id = b""
        self._machine = ClientSession(
            instance=os.urandom(16).hex(),
            offers={name: Offer(tls=True, http="redirect")},
            nonce=lambda: os.urandom(8).hex(),
            now=time.monotonic(),
        )
        self._registered = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._registered.wait(PATIENCE_SECONDS)

    def _run(self) -> None:
        with contextlib.suppress(SSL.Error, OSError):
            while True:
                self._tls.sendall(self._machine.data_to_send())
                for event in self._machine.receive(self._tls.recv(65536), time.monotonic()):
                    if isinstance(event, Welcomed):
                        self.session_id = event.session
                    elif isinstance(event, NameRegistered):
                        self._registered.set()

    def lane(self, counter: int, behind: bytes = b"", **other: Any) -> socket.socket:
        """A lane, its preface just sent; with `keys` or `session_id` of somebody else."""
        sock = self._site.connect()
        keys, session_id = other.get("keys", self.keys), other.get("session_id", self.session_id)
        sock.sendall(write_preface(keys, session_id, counter) + behind)
        return sock

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)
        self._sock.close()


@pytest.fixture
def link(site: ScriptedSite) -> Iterator[Link]:
    made = Link(site, site.invite("evil", EVIL), EVIL)
    try:
        yield made
    finally:
        made.close()


def test_lanes_that_are_refused(site: ScriptedSite, link: Link) -> None:
    """Closed without a word and without a line; the ones that were true stay."""
    lines = Lines(site.appliance)
    true = [link.lane(counter) for counter in (7, 5)]
    wait_for(lambda: site.idle_lanes("evil") == 2, 5, "two lanes")
    other_keys = LaneKeys(os.urandom(32), link.keys.header)
    refused = [
        link.lane(7),  # used
        link.lane(5),
        link.lane(8, b"x"),  # octets behind it
        link.lane(9, keys=other_keys),  # forged
        link.lane(2**64 - 1, keys=other_keys),
        link.lane(10, session_id=os.urandom(8)),  # of nobody
    ]
    for sock in refused:
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        sock.close()
    # A forged counter moved nothing: what is true is still taken, and a refused one was not burnt.
    true += [link.lane(counter) for counter in (6, 9, 10)]
    wait_for(lambda: site.idle_lanes("evil") == 5, 5, "five lanes")
    too_early = true.pop()
    too_early.sendall(bytes([Status.JOINED]) + b"before anybody asked")
    with contextlib.suppress(ConnectionResetError):
        assert too_early.recv(1) == b""
    too_early.close()
    far = [link.lane(5000), link.lane(5000 - 4096)]
    with contextlib.suppress(ConnectionResetError):
        assert far[1].recv(1) == b""  # out of the window
    wait_for(lambda: site.idle_lanes("evil") == 5, 5, "four lanes, and one with a high counter")
    assert not lines.new
    for sock in (*true, *far):
        sock.close()
    wait_for(lambda: site.idle_lanes("evil") == 0, 5, "the end of all lanes")


def test_a_client_that_opens_lanes_without_end(site: ScriptedSite, link: Link) -> None:
    with contextlib.ExitStack() as open_ones:
        for counter in range(600):
            open_ones.enter_context(link.lane(counter))
        wait_for(lambda: site.idle_lanes("evil") == 512, 5, "as many lanes as may be")
    wait_for(lambda: site.idle_lanes("evil") == 0, 5, "the end of all lanes")


@pytest.mark.parametrize("answer", [b"", b"\0", b"\x07", b"\xff" * 1000, b"\x02", b"\x16\x03\x01"])
def test_a_client_that_answers_nonsense(site: ScriptedSite, link: Link, answer: bytes) -> None:
    """Its visitor is refused; nothing of what it said reaches him."""
    lines = Lines(site.appliance)
    counters = iter(range(100))
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with link.lane(next(counters)) as lane, contextlib.suppress(OSError):
                if lane.recv(65536):
                    lane.sendall(answer)
                    lane.shutdown(socket.SHUT_WR)
                    while lane.recv(65536):
                        pass

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        with site.visit(EVIL, joins=False) as visitor:
            assert until_end(visitor) == alert(INTERNAL_ERROR)
    finally:
        over.set()
        link.close()  # and with it the lane that still waits
        serving.join(PATIENCE_SECONDS)
    assert len(lines.new) <= 1, lines.new


# A server that breaks the rules


class FakeServer:
    """Enrolled, with a certificate of the CA; on its lanes a test writes what it likes."""

    def __init__(self, enrolment: Path, port: int, names: tuple[str, ...]) -> None:
        enrolled = read_enrolment(enrolment.read_text())
        self._service_name = enrolled.service_name
        self._names = names
        self._context = speaks_tls(read_credential(enrolled.credential_pem))
        self._context.set_alpn_select_callback(lambda _, offered: offered[0])
        self._listener = socket.create_server((FAKE, port), backlog=64)
        self._lanes: queue.Queue[tuple[socket.socket, Preface]] = queue.Queue()
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        # Of the client whose names they are: the others of the site come here as well.
        self.keys: LaneKeys
        self._session_id = b""
        self._machine: ServerSession
        self._tls: Any = None
        self.linked = threading.Event()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._socks.append(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, SSL.Error):
            if sock.recv(1, socket.MSG_PEEK) == MAGIC[:1]:
                self._lanes.put((sock, read_preface(exactly(sock, PREFACE_OCTETS))))
                return
            tls = SSL.Connection(self._context, sock)
            tls.set_accept_state()
            tls.do_handshake()
            if tls.get_alpn_proto_negotiated() != b"tunnel/1":
                sock.shutdown(socket.SHUT_RDWR)  # a watch: this server is not for the DNS
                return
            session_id = os.urandom(8)
            machine = ServerSession(
                peer_names=self._names,
                server_id="fake",
                boot="boot",
                session_id=session_id,
                nonce=lambda: os.urandom(8).hex(),
                now=time.monotonic(),
                service_name=self._service_name,
            )
            while octets := tls.recv(65536):
                machine.receive(octets, time.monotonic())
                tls.sendall(machine.data_to_send())
                if set(machine.offers) == set(self._names) and not self.linked.is_set():
                    self.keys = lane_keys(tls.export_keying_material(EXPORTER_LABEL, EXPORTED_OCTETS, b""))
                    self._session_id, self._tls, self._machine = session_id, tls, machine
                    self.linked.set()

    def ask(self, waiting: int) -> None:
        """Say that so many visitors wait for a lane."""
        self._machine.lanes("plain", 0, waiting)
        self._tls.sendall(self._machine.data_to_send())

    def lane(self, seconds: float = PATIENCE_SECONDS) -> tuple[socket.socket, Preface]:
        """A lane that waits for a visitor; raises queue.Empty."""
        while True:
            sock, preface = self._lanes.get(timeout=seconds)
            if preface.session_id == self._session_id:
                assert verify(self.keys, preface)
                return sock, preface

    def close(self) -> None:
        for sock in (self._listener, *self._socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        for sock in (self._listener, *self._socks):
            sock.close()


def header(name: str, kind: Kind = Kind.TLS) -> bytes:
    return ProxyHeader(("203.0.113.7", 50000), ("198.51.100.1", 443), name, None, b"visit", kind).octets()


@pytest.fixture
def fake(site: ScriptedSite, tmp_path: Path) -> Iterator[tuple[FakeServer, Client, Script]]:
    """The fake server, and a client of its own with a link to it and to the true one."""
    enrolment = tmp_path / "fake.toml"
    site.appliance.command("enroll", "fake", f"{FAKE}:{site.ports.tls}", "--output", enrolment)
    name = f"v0.wary.{ZONE}"
    scripts = Scripts(f"*.wary.{ZONE}")
    script = scripts.add(echo, name)
    server = FakeServer(enrolment, site.ports.tls, (name,))
    try:
        client = site.join("wary", {name: scripts.origin.port})
        assert server.linked.wait(PATIENCE_SECONDS)
        yield server, client, script
        client.kill()
    finally:
        server.close()
        scripts.origin.close()


def answered(lane: socket.socket) -> bytes:
    """What the client says to a header; a reset is as good as an end."""
    lane.settimeout(PATIENCE_SECONDS)
    with contextlib.suppress(ConnectionResetError):
        return until_end(lane)
    return b""


def test_headers_that_are_forged(site: ScriptedSite, fake: tuple[FakeServer, Client, Script]) -> None:
    """The client closes the lane, says so once, and serves on: those of the true server, and of this one."""
    server, client, script = fake
    keys, name = server.keys, script.name
    lines = Lines(client)
    others = LaneKeys(keys.preface, os.urandom(32))
    true = header(name) + hello(name)  # what comes behind a header is no part of it
    forged: list[Callable[[Preface], bytes]] = [
        lambda preface: seal_header(others, preface, header(name)),
        lambda preface: seal_header(keys, preface._replace(octets=bytes(40)), header(name)),
        lambda preface: seal_header(keys, preface._replace(counter=preface.counter + 1), header(name)),
        lambda preface: seal_header(keys, preface, header(name))[:-1] + b"x",
        lambda preface: b"\0\x0f" + bytes(15),
        lambda preface: b"\xff\xff" + bytes(3000),
        lambda preface: seal_header(keys, preface, b""),
        lambda preface: seal_header(keys, preface, header(name)[:-1]),
        lambda preface: seal_header(keys, preface, true),
        lambda preface: seal_header(keys, preface, header(f"*.wary.{ZONE}")),
        lambda preface: seal_header(keys, preface, b"GET / HTTP/1.1\r\n\r\n"),
        lambda preface: header(name),
        lambda preface: hello(name),
    ]
    wanted_lanes = len(forged) + 3
    server.ask(wanted_lanes)
    # All at once: after the first forged header they come slowly.
    lanes = [server.lane() for _ in range(wanted_lanes)]
    for forge in forged:
        lane, preface = lanes.pop()
        lane.sendall(forge(preface) + hello(name))
        assert answered(lane) == b""
    assert not script.visits, "an origin was asked"
    for wanted, kind in ((f"x.{ZONE}", Kind.TLS), (name, Kind.HTTP)):
        lane, preface = lanes.pop()
        lane.sendall(seal_header(keys, preface, header(wanted, kind)) + hello(name))
        assert exactly(lane, 1) == bytes([Status.NO_ORIGIN])
        lane.shutdown(socket.SHUT_RDWR)
    lane, preface = lanes.pop()
    lane.sendall(seal_header(keys, preface, header(name)) + hello(name))
    assert exactly(lane, 2) == bytes([Status.JOINED]) + JOINED
    lane.sendall(b"then this")
    lane.shutdown(socket.SHUT_WR)
    assert until_end(lane) == b"then this"
    assert script.result().endswith(b"then this")
    with site.visit(name, b"by the true server") as visitor:
        visitor.shutdown(socket.SHUT_WR)
        assert until_end(visitor) == b"by the true server"
    said_so = [line for line in lines.new if "not the server's" in line]
    assert len(said_so) == 1, lines.new
    assert len(lines.new) <= 4, lines.new


def test_a_server_that_cuts_its_lanes(fake: tuple[FakeServer, Client, Script]) -> None:
    """New ones come, with pauses that grow: not as fast as they can be cut."""
    server, client, _ = fake
    lines, count = Lines(client), 0
    end = time.monotonic() + 2.0
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            lane, _ = server.lane(left)
            reset(lane)
            count += 1
    assert 2 <= count <= 12
    assert len(lines.new) <= 1, lines.new
