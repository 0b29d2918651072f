"""What a visitor sends behind his ClientHello reaches one origin, once, and not before this has answered.

A ClientHello may be repeated at another origin; TLS early data (RFC 8446 8) may not: it is a request already.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.end_to_end.origins import Origin, Visited
from tests.end_to_end.programs import free_port, need, wait_for
from tests.end_to_end.scripted import (
    JOINED,
    PATIENCE_SECONDS,
    RESET,
    Script,
    ScriptedSite,
    Scripts,
    exactly,
    hello,
    pid_of,
    rest,
    scripted_site,
    until_end,
)
from tests.end_to_end.site import ZONE, Client, Nginx

TWO = f"*.two.{ZONE}"
"""Two clients serve it: `failing`, and `sound`."""
REFUSING = f"v1000.two.{ZONE}"
"""A name at whose first origin nobody listens."""
NGINX = f"nginx.{ZONE}"
"""Two clients again, each with an nginx that takes early data."""
EARLY = (42, b"")
"""The extension that says that early data follows (RFC 8446 4.2.10)."""
QUIET_SECONDS = 0.3
INTERNAL_ERROR = b"\x15\x03\x03\0\2\2\x50"


class Site:
    """Two clients of one wildcard, each with an origin of its own."""

    def __init__(self, site: ScriptedSite) -> None:
        self.site = site
        self.failing = Scripts(TWO)
        self.sound = Scripts(TWO)
        self.clients = {
            "failing": site.join("failing", {TWO: self.failing.origin.port, **self._refusing()}),
            "sound": site.join("sound", {TWO: self.sound.origin.port, REFUSING: self.sound.origin.port}),
        }

    @staticmethod
    def _refusing() -> dict[str, int]:
        return {REFUSING: free_port("tcp")}

    def close(self) -> None:
        for scripts in (self.failing, self.sound):
            scripts.origin.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with scripted_site(tmp_path_factory.mktemp("early")) as made:
        both = Site(made)
        yield both
        both.close()


def nothing_more(visited: Visited) -> None:
    """Nothing comes behind the hello for a while."""
    before = len(visited.octets)
    visited.sock.settimeout(QUIET_SECONDS)
    with pytest.raises(TimeoutError):
        visited.read()
    visited.sock.settimeout(None)
    assert len(visited.octets) == before


def closes(visited: Visited) -> None:
    """Ends at once."""


def half_closes(visited: Visited) -> None:
    """Ends its own side and reads on."""
    visited.sock.shutdown(socket.SHUT_WR)
    rest(visited)


def resets(visited: Visited) -> None:
    visited.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def is_silent(visited: Visited) -> None:
    rest(visited)


def answers(visited: Visited) -> bytes:
    """The sound origin: looks that nothing came too soon, then answers."""
    nothing_more(visited)
    visited.send(JOINED)
    return rest(visited)


def hello_of(visited: Visited) -> bytes:
    """What a failing origin got: whatever it is, it should be a hello and no more."""
    return bytes(visited.octets)


def visit(site: Site, name: str, meanwhile: Callable[[], None] = lambda: None) -> tuple[bytes, bytes, bytes]:
    """A visitor with early data: what he sent as hello and behind it, and what he got to the end."""
    first, early = hello(name, EARLY), b"early" + os.urandom(4000)
    with site.site.connect() as sock:
        sock.sendall(first + early[:2000])
        sock.sendall(early[2000:])
        meanwhile()
        sock.shutdown(socket.SHUT_WR)
        return first, early, until_end(sock)


def pair(
    site: Site, fails: Callable[[Visited], object], then: Callable[[Visited], object]
) -> tuple[Script, Script]:
    first = site.failing.add(fails)
    return first, site.sound.add(then, first.name)


@pytest.mark.parametrize("fails", [closes, half_closes, resets, is_silent])
def test_a_first_origin_that_fails(site: Site, fails: Callable[[Visited], object]) -> None:
    """It gets the hello and nothing else; the second one gets the rest, once, when it has answered."""
    seen: list[Visited] = []

    def fail(visited: Visited) -> None:
        seen.append(visited)
        fails(visited)

    first, second = pair(site, fail, answers)
    for _ in range(2):  # one of two begins at the failing one
        sent, early, got = visit(site, first.name)
        assert got == JOINED
        assert second.result() == early
        if seen:
            break
    first.result()
    assert [hello_of(visited) for visited in seen] == [sent]
    assert not second.visits


def test_a_first_origin_that_refuses_the_connection(site: Site) -> None:
    second = site.sound.add(answers, REFUSING)
    for _ in range(2):
        _, early, got = visit(site, REFUSING)
        assert got == JOINED
        assert second.result() == early


@pytest.mark.parametrize("fails", [closes, half_closes, resets])
def test_all_origins_fail(site: Site, fails: Callable[[Visited], object]) -> None:
    seen: list[Visited] = []

    def fail(visited: Visited) -> None:
        seen.append(visited)
        fails(visited)

    first, second = pair(site, fail, fail)
    sent, _, got = visit(site, first.name)
    assert got == INTERNAL_ERROR
    first.result()
    second.result()
    assert [hello_of(visited) for visited in seen] == [sent, sent]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_first_client_that_dies(site: Site, number: signal.Signals) -> None:
    """While its origin thinks about the hello."""
    client = site.clients["failing"]
    seen: list[Visited] = []
    dead = threading.Event()

    def fail(visited: Visited) -> None:
        seen.append(visited)
        os.kill(pid_of(client), number)
        dead.set()
        rest(visited)

    first, second = pair(site, fail, answers)
    for _ in range(2):
        sent, early, got = visit(site, first.name)
        assert got == JOINED
        assert second.result() == early
        if dead.is_set():
            break
    if number == signal.SIGSTOP:
        os.kill(pid_of(client), signal.SIGCONT)
    first.result()
    assert [hello_of(visited) for visited in seen] == [sent]
    if number == signal.SIGKILL:
        client.kill()
        client.start("s1")


def test_the_visitor_goes_on_while_he_waits(site: Site) -> None:
    """What he sends up to the answer waits in the kernel, and arrives behind the hello, in order."""
    go = threading.Event()

    def waits(visited: Visited) -> bytes:
        nothing_more(visited)
        go.set()
        visited.send(JOINED)
        return rest(visited)

    script = site.site.script(waits)
    more = [os.urandom(50_000) for _ in range(10)]
    with site.site.visit(script.name, b"early", joins=False) as sock:
        for octets in more:
            sock.sendall(octets)
        assert go.wait(PATIENCE_SECONDS)
        assert exactly(sock, 1) == JOINED
        sock.shutdown(socket.SHUT_WR)
        assert script.result() == b"early" + b"".join(more)


# With OpenSSL and nginx


class EarlyNginx(Nginx):
    """Shares its session tickets with others, so that each takes the early data of the others' visitors."""

    tickets: Path

    def _configuration(self) -> str:
        takes = f"ssl_protocols TLSv1.3; ssl_early_data on; ssl_session_ticket_key {self.tickets};"
        return super()._configuration().replace("ssl_early_data on;", takes)

    def asked(self, path: str) -> int:
        """How many times it executed a request."""
        return len(re.findall(rf'"POST {path} ', (self.directory / "access.log").read_text()))


class Between:
    """In front of the first nginx: passes to it what comes, and its answers only while it is told to."""

    def __init__(self, port: int) -> None:
        self.fails = False
        self.failed = 0
        self._port = port
        self._to: set[socket.socket] = set()

    def serve(self, visited: Visited) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_SECONDS) as origin:
            back = threading.Thread(target=self._back, args=(origin, visited, self.fails))
            back.start()
            while octets := visited.read():
                origin.sendall(octets)
            origin.shutdown(socket.SHUT_WR)
            back.join(PATIENCE_SECONDS)

    def _back(self, origin: socket.socket, visited: Visited, fails: bool) -> None:
        self.failed += fails
        with contextlib.suppress(OSError):  # nginx may reset a visitor who has all that he asked for
            while octets := origin.recv(65536):
                if fails:  # it has answered, and its answer is lost: what it was sent it has executed
                    break
                visited.send(octets)
        with contextlib.suppress(OSError):
            visited.sock.shutdown(socket.SHUT_WR)


def s_client(site: Site, ca: Path, *options: str | Path, request: bytes = b"") -> str:
    """A visit by openssl."""
    port = site.site.ports.tls
    done = subprocess.run(
        [
            *(need("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NGINX),
            *("-CAfile", ca, "-tls1_3", "-ign_eof", *options),
        ],
        input=request,
        capture_output=True,
        timeout=10,
    )
    return (done.stdout + done.stderr).decode(errors="replace")


def post(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {NGINX}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def test_early_data_of_openssl_is_executed_once(site: Site, tmp_path: Path) -> None:
    """Both nginx take it, so whoever got it would execute it."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    EarlyNginx.tickets = tmp_path / "tickets"
    EarlyNginx.tickets.write_bytes(os.urandom(80))
    nginx = [EarlyNginx(tmp_path / says, [NGINX], ca, says=says) for says in ("one", "two")]
    for file in ("key.pem", "cert.pem"):  # nginx takes a ticket only with the certificate it was given for
        shutil.copy(nginx[0].directory / file, nginx[1].directory / file)
    clients: list[Client] = []
    between = Between(nginx[0].tls)
    front = Origin(between.serve)
    try:
        for one in nginx:
            one.start()
        clients += [
            site.site.join("one", {NGINX: front.port}),
            site.site.join("two", {NGINX: nginx[1].tls}),
        ]
        session, data = tmp_path / "session", tmp_path / "early"
        s_client(site, tmp_path / "ca.pem", "-sess_out", session, request=post("/asked/first"))
        visits = 6
        for number in range(visits):  # nginx takes a ticket many times
            between.fails = number >= 2
            data.write_bytes(post(f"/asked/early-{number}"))
            got = s_client(site, tmp_path / "ca.pem", "-sess_in", session, "-early_data", data)
            assert " 200 OK" in got, got
            assert "Early data was accepted" in got
        paths = [f"/asked/early-{number}" for number in range(visits)]
        # nginx writes its log after its answer.
        wait_for(lambda: sum(one.asked(path) for one in nginx for path in paths) >= visits, 5, "all lines")
        assert [sum(one.asked(path) for one in nginx) for path in paths] == [1] * visits
        assert all(any(one.asked(path) for path in paths) for one in nginx)
        assert between.failed >= 1
    finally:
        for client in clients:
            client.kill()
        for one in nginx:
            one.kill()
        front.close()
