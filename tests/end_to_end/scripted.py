"""Visitors and origins that speak no TLS: behind a ClientHello any octets pass, so a test can look at each.

`ScriptedSite` is one appliance, and a client of all names below one wildcard. `site.script(serve)` is a fresh
one of these names; whoever visits it is served by `serve`, and `Script.result()` waits for what that returned
or raised.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.end_to_end.origins import Origin, Visited
from tests.end_to_end.programs import wait_for
from tests.end_to_end.site import ZONE, Appliance, Client, Ports
from tests.ingress.hellos import alpn, body, message, records, server_name

WILDCARD = f"*.apps.{ZONE}"
PATIENCE_SECONDS = 20.0
POST_QUANTUM_OCTETS = 1216
"""The key share of X25519MLKEM768: with it a hello does not fit a segment."""
RESET = struct.pack("ii", 1, 0)
JOINED = b"J"
"""What an origin says first, so that the visitor knows that he is joined."""
_READ_OCTETS = 1 << 16
_SAME_SECONDS = 0.3

Serve = Callable[[Visited], object]


def hello(
    name: str, *more: tuple[int, bytes], octets: int = POST_QUANTUM_OCTETS, cuts: tuple[int, ...] = ()
) -> bytes:
    """A ClientHello with a key share of so many random octets, in a record, or cut into several."""
    share = (51, os.urandom(octets))
    return records(message(body(server_name(name.encode()), alpn(b"h2", b"http/1.1"), share, *more)), cuts)


def read_hello(visited: Visited) -> bytes:
    """The ClientHello that an origin gets first, all its records."""
    whole, content = b"", b""
    while len(content) < 4 or len(content) < 4 + int.from_bytes(content[1:4]):
        head = visited.take(5)
        record = visited.take(int.from_bytes(head[3:5]))
        if not record and len(head) < 5:
            raise ConnectionError("no ClientHello")
        whole, content = whole + head + record, content + record
    return whole


def rest(visited: Visited) -> bytes:
    """What comes up to the visitor's end."""
    while visited.read():
        pass
    taken, visited.taken = visited.taken, len(visited.octets)
    return bytes(visited.octets[taken:])


def until_end(sock: socket.socket) -> bytes:
    """What comes up to the other side's end."""
    got = bytearray()
    while octets := sock.recv(_READ_OCTETS):
        got += octets
    return bytes(got)


def exactly(sock: socket.socket, count: int) -> bytes:
    """So many octets; fewer at the other side's end."""
    got = bytearray()
    while len(got) < count and (octets := sock.recv(count - len(got))):
        got += octets
    return bytes(got)


def reset(sock: socket.socket) -> None:
    """Close it with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def wait_until_same(number: Callable[[], int], what: str) -> int:
    """Wait until a number has stopped to change."""
    seen = (number(), time.monotonic())

    def same() -> bool:
        nonlocal seen
        now = number()
        if now != seen[0]:
            seen = (now, time.monotonic())
        return time.monotonic() - seen[1] >= _SAME_SECONDS

    wait_for(same, PATIENCE_SECONDS, what)
    return seen[0]


def resident_octets(pid: int) -> int:
    """The memory that a process has in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def pid_of(one: Appliance | Client) -> int:
    assert one.process is not None
    return one.process.pid


class Script:
    """A name, and what its origin does for each visitor."""

    def __init__(self, name: str, serve: Serve) -> None:
        self.name = name
        self._serve = serve
        self._results: queue.Queue[object] = queue.Queue()

    def run(self, visited: Visited) -> None:
        try:
            result: object = self._serve(visited)
        except Exception as error:
            result = error
        visited.sock.close()
        self._results.put(result)

    def result(self, seconds: float = PATIENCE_SECONDS) -> Any:
        """What the next visit came to: what `serve` returned, or raised."""
        return self._results.get(timeout=seconds)

    @property
    def visits(self) -> int:
        """How many are over whose result nobody has asked for."""
        return self._results.qsize()


class Scripts:
    """The origin of all names of a wildcard: whom a visitor wants is read from his hello."""

    _numbers = itertools.count(1)

    def __init__(self, wildcard: str = WILDCARD) -> None:
        self._below = wildcard.removeprefix("*")
        self._wanted = re.compile(rb"v[0-9]+" + re.escape(self._below.encode()))
        self._scripts: dict[bytes, Script] = {}
        self.strangers: list[bytes] = []  # hellos for names that are not of this origin
        self.origin = Origin(self._run)

    def add(self, serve: Serve, name: str = "") -> Script:
        """With a `name` that another origin has as well, or a fresh one."""
        script = Script(name or f"v{next(self._numbers)}{self._below}", serve)
        self._scripts[script.name.encode()] = script
        return script

    def _run(self, visited: Visited) -> None:
        octets = read_hello(visited)
        found = self._wanted.search(octets)
        if found is None or found[0] not in self._scripts:
            self.strangers.append(octets)
            return
        self._scripts[found[0]].run(visited)


def echo(visited: Visited) -> bytes:
    """Answer at once, then give back what comes until the visitor ends; the hello and all that came."""
    visited.send(JOINED)
    while octets := visited.read():
        visited.send(octets)
    return bytes(visited.octets)


class ScriptedSite:
    """One appliance, a client of every name below `WILDCARD`, and its scripted origin."""

    def __init__(self, directory: Path, *, servers: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.running = contextlib.ExitStack()
        self.ports = Ports()
        self.appliance = Appliance(directory / "s1", self.ports, servers=servers)
        self.scripts = Scripts()
        self.running.callback(self.scripts.origin.close)
        self.client: Client

    def start(self) -> None:
        self.running.callback(self.appliance.kill)
        self.appliance.start()
        self.client = self.join("home", {WILDCARD: self.scripts.origin.port})
        self._page = self.script(echo)

    def join(self, called: str, origins: Mapping[str, int]) -> Client:
        """One more client: of these names, with the port of an origin for each."""
        invitation = self.invite(called, *origins)
        settings = self.directory / f"{called}.toml"
        settings.write_text(
            "".join(f'[names."{name}"]\ntls_origin = "127.0.0.1:{port}"\n' for name, port in origins.items())
        )
        client = Client(self.directory / called, invitation, self.appliance, "--config", str(settings))
        self.running.callback(client.kill)
        client.start("s1")
        return client

    def script(self, serve: Serve) -> Script:
        return self.scripts.add(serve)

    def connect(self) -> socket.socket:
        """A visitor who has not said anything."""
        sock = socket.create_connection((self.appliance.address, self.ports.tls), timeout=PATIENCE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def visit(self, name: str, more: bytes = b"", *, joins: bool = True) -> socket.socket:
        """A visitor who has sent a hello, and waits until he is joined."""
        sock = self.connect()
        sock.sendall(hello(name) + more)
        if joins:
            said = exactly(sock, 1)
            if said != JOINED:
                said += exactly(sock, 6)
                sock.close()
                raise AssertionError(f"not joined: {said.hex()}")
        return sock

    def page(self) -> float:
        """A visitor like all others, who gets what he should; the seconds that it took him."""
        began = time.monotonic()
        token = os.urandom(16)
        with self.visit(self._page.name, token) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert until_end(sock) == token
        assert self._page.result().endswith(token)
        return time.monotonic() - began

    def command(self, command: str, **arguments: object) -> dict[str, Any]:
        """What the appliance answers on its control socket: quicker than the program that asks there."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.connect(str(self.appliance.directory / "state" / "control"))
            sock.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as answers:
                result: dict[str, Any] = json.loads(answers.readline())["result"]
        return result

    def invite(self, client: str, *names: str) -> Path:
        """An invitation, as a file."""
        path = self.directory / f"{client}-invitation.toml"
        path.write_text(self.command("invite", client=client, names=names)["invitation"])
        return path

    def status(self) -> dict[str, Any]:
        return self.command("status")

    def idle_lanes(self, client: str = "home") -> int:
        """What the server holds of a client."""
        return sum(one["idle_lanes"] for one in self.status()["sessions"] if one["client"] == client)

    def stop(self) -> None:
        self.running.close()


@contextlib.contextmanager
def scripted_site(directory: Path, *, servers: tuple[str, ...] = ()) -> Iterator[ScriptedSite]:
    made = ScriptedSite(directory, servers=servers)
    try:
        made.start()
        yield made
    finally:
        made.stop()
