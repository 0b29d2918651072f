"""Limits with real processes: a flood from one source, descriptors that run low, and who goes on anyway."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.tunnel.certificates import SERVICE_NAME
from tests.end_to_end.joined import Joined, rest_of
from tests.end_to_end.origins import keep_alive
from tests.end_to_end.programs import Process, wait_for
from tests.end_to_end.site import BIN, ZONE, tls_context
from tests.end_to_end.threads import Threads

FLOODER, QUIET = "127.0.0.66", "127.0.0.77"
FULL = bytes((21, 3, 3, 0, 2, 2, 80))
"""The alert internal_error: TLS has none that says "later"."""
SETTINGS = 'source_exempt = []\nsource_open = 40\nsource_new = 50\naccess_log = "access.log"\n\
access_log_format = "json"\n'
REQUEST = f"GET /a HTTP/1.1\r\nHost: plain.{ZONE}\r\n\r\n".encode()


class Site(Joined):
    """One appliance, and one client with an origin for TLS and one for plain HTTP."""

    def start(self) -> None:
        super().start()
        tls, plain = self.origin(keep_alive("www"), "www"), self.origin(keep_alive("plain"))
        self.join("home", {"www": {"tls_origin": tls.port}, "plain": {"http_origin": plain.port}})

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.appliance.command("status", "--json"))
        return found

    def connect(self, source: str, port: int, seconds: float = 20) -> socket.socket:
        where = self.appliance.address, port
        return socket.create_connection(where, timeout=seconds, source_address=(source, 0))

    def ask(self, sock: socket.socket) -> bytes:
        """One more request on a kept connection; the answer, or what there is in its place."""
        sock.sendall(REQUEST)
        got = b""
        while not got.endswith(b"octets"):
            octets = sock.recv(1 << 16)
            if not octets:
                break
            got += octets
        return got

    @property
    def log(self) -> str:
        assert self.appliance.process is not None
        return self.appliance.process.output


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("limits"), server=SETTINGS)
    with made.running:
        made.start()
        yield made


def first_flight(context: ssl.SSLContext, server_name: str) -> bytes:
    """A ClientHello."""
    hello = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname=server_name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return hello.read()


def waits(sock: socket.socket) -> bool:
    """Whether the other end has neither said anything nor closed."""
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


class Flood(Threads):
    """Connections from one source as fast as they can be made, each with a hello, until it is left."""

    def __init__(self, site: Site) -> None:
        self.answers: Counter[bytes] = Counter()
        self._site = site
        self._hello = first_flight(ssl.create_default_context(), f"www.{ZONE}")
        super().__init__(threading.Thread(target=self._run) for _ in range(3))

    def _run(self) -> None:
        while not self.over.is_set():
            with self._site.connect(FLOODER, self._site.ports.tls) as sock:
                got = b""
                with contextlib.suppress(OSError):
                    sock.sendall(self._hello)
                    got = sock.recv(len(FULL))
                self.answers[got] += 1


def test_a_flood_from_one_source_disturbs_nobody_else(site: Site) -> None:
    context = tls_context(site.ca)
    waits = []
    with site.connect(FLOODER, site.ports.http) as inside, Flood(site) as flood:
        assert b"plain: /a" in site.ask(inside)
        wait_for(lambda: flood.answers[FULL] > 100, 20, "refusals")
        for _ in range(20):
            began = time.monotonic()
            with (
                site.connect(QUIET, site.ports.tls) as raw,
                context.wrap_socket(raw, server_hostname=f"www.{ZONE}") as tls,
            ):
                tls.sendall(f"GET /quiet HTTP/1.1\r\nHost: www.{ZONE}\r\n\r\n".encode())
                assert b"www: /quiet" in tls.recv(1 << 16)
            waits.append(time.monotonic() - began)
            assert b"plain: /a" in site.ask(inside)
    assert max(waits) < 5
    assert flood.answers[FULL] > 100
    entry = site.status()["entry"]
    assert entry["refused_source_new"] >= flood.answers[FULL] // 2
    assert entry["refused_full"] == entry["refused_source_open"] == 0
    wait_for(lambda: site.status()["entry"]["open"] == 0, 10, "everybody gone")
    assert site.status()["entry"]["sources"] == 0
    assert site.log.count(f"{FLOODER}: ") <= 2
    assert QUIET not in site.log


def test_a_flood_of_links_from_one_source_keeps_no_client_out(tmp_path: Path) -> None:
    made = Site(tmp_path, server="source_open = 0\nsource_new = 0\n")
    context = ssl.create_default_context()
    context.set_alpn_protocols(["tunnel/1"])
    flooders: list[socket.socket] = []
    with made.running as held:
        made.start()
        for _ in range(800):  # 12 s of handshakes
            sock = held.enter_context(made.connect(FLOODER, made.ports.tls))
            sock.sendall(first_flight(context, SERVICE_NAME))
            sock.setblocking(False)
            flooders.append(sock)
        made.join("late", {"late": {"http_origin": 9}})
        assert sum(map(waits, flooders)) > 100
        assert made.log.count(FLOODER) <= 2


def test_a_source_has_only_so_many_open(site: Site) -> None:
    with contextlib.ExitStack() as held:
        first = held.enter_context(site.connect(FLOODER, site.ports.http))
        assert b"plain: /a" in site.ask(first)
        for _ in range(39):
            sock = held.enter_context(site.connect(FLOODER, site.ports.tls, seconds=0.05))
            with pytest.raises(TimeoutError):  # so it was let in; and there are not more than 20 a second
                sock.recv(1)
        wait_for(lambda: site.status()["entry"]["open"] == 40, 5, "all of them")
        with site.connect(FLOODER, site.ports.tls) as sock:
            assert rest_of(sock) == FULL
        with site.connect(FLOODER, site.ports.http) as sock:
            page = rest_of(sock)
        assert page.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n")
        with site.connect(QUIET, site.ports.http) as sock:
            assert b"plain: /a" in site.ask(sock)
        assert b"plain: /a" in site.ask(first)
        # The silent ones are let go after 5 s, and then there is room again.
        wait_for(lambda: site.status()["entry"]["open"] == 1, 10, "the silent ones gone")
        with site.connect(FLOODER, site.ports.http) as sock:
            assert b"plain: /a" in site.ask(sock)


def test_each_visitor_has_a_line_and_is_counted(site: Site) -> None:
    path = site.appliance.directory / "access.log"
    with site.connect(QUIET, site.ports.http) as sock:
        where = ":".join(map(str, sock.getsockname()))
        got = site.ask(sock) + site.ask(sock)

    def lines() -> list[dict[str, Any]]:
        return [one for one in map(json.loads, path.read_text().splitlines()) if one["visitor"] == where]

    (line,) = wait_for(lines, 10, "the line")
    assert (line["name"], line["client"], line["end"]) == (f"plain.{ZONE}", "home", "ended")
    assert (line["octets_in"], line["octets_out"]) == (2 * len(REQUEST), len(got))
    assert len(line["id"]) == 32
    (row,) = [one for one in site.status()["visitors"] if one["name"] == f"plain.{ZONE}" and one["client"]]
    assert row["joined"] >= sum(row["durations"]) == sum(row["ends"].values()) > 0
    assert row["octets_out"] >= len(got)
    assert site.status()["access_log"]["dropped"] == 0


# Descriptors


def few(number: int) -> list[str | Path]:
    """twistd, with so many descriptors."""
    return ["prlimit", f"--nofile={number}:{number}", BIN / "twistd"]


def fill(site: Site, held: contextlib.ExitStack, most: int) -> list[socket.socket]:
    """Visitors who ask and stay, until one is refused (or there are `most`)."""
    inside = []
    for _ in range(most):
        sock = held.enter_context(site.connect(QUIET, site.ports.http))
        with contextlib.suppress(ConnectionError):
            if b"plain: /a" in site.ask(sock):
                inside.append(sock)
                continue
        break
    return inside


def test_when_descriptors_run_low_those_inside_go_on(tmp_path: Path) -> None:
    site = Site(tmp_path, program=few(160))
    with site.running, contextlib.ExitStack() as held:
        site.start()
        inside = fill(site, held, 150)
        assert 30 < len(inside) < 150
        for port in (site.ports.http, site.ports.tls):
            began = time.monotonic()
            with site.connect(QUIET, port) as sock:
                if port == site.ports.tls:
                    context = tls_context(site.ca)
                    with pytest.raises(ssl.SSLError, match="internal"):
                        context.wrap_socket(sock, server_hostname=f"www.{ZONE}")
                else:
                    assert rest_of(sock).startswith(b"HTTP/1.1 503 ")
            assert time.monotonic() - began < 5
        # Links, DNS by TCP, the control socket and the database have what they need.
        assert site.appliance.dig(f"ns1.{ZONE}", "A", "+tcp") == [site.appliance.address]
        assert site.status()["entry"]["refused_full"] >= 2
        assert site.appliance.invite(f"new.{ZONE}", client="new").exists()
        site.join("second", {f"second{number}": {"http_origin": 1} for number in range(2)})
        for sock in inside:
            assert b"plain: /a" in site.ask(sock)
        for sock in inside[: len(inside) // 2]:
            sock.close()

        def again() -> bool:
            with site.connect(QUIET, site.ports.http) as sock, contextlib.suppress(ConnectionError):
                return b"plain: /a" in site.ask(sock)
            return False

        wait_for(again, 10, "room for a visitor")
        assert site.log.count("this server is full") == 1
        assert "Traceback" not in site.log


def test_a_client_without_descriptors_leaves_visitors_to_another(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.running, contextlib.ExitStack() as held:
        super(Site, site).start()
        origin = site.origin(keep_alive("plain"))
        small = site.join("small", {"plain": {"http_origin": origin.port}}, program=few(80))
        alone = fill(site, held, 80)
        assert 10 < len(alone) < 80
        site.join("large", {"plain": {"http_origin": origin.port}})
        assert len(fill(site, held, 60)) == 60
        for sock in alone:
            assert b"plain: /a" in site.ask(sock)
        process: Process | None = small.process
        assert process is not None
        assert "no file descriptor is left" in process.output
        assert "Traceback" not in process.output
