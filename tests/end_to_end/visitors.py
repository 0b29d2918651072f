"""Visitors in numbers, and an oracle for them: what each asked, what he got, and who was asked for it.

`Crowd` asks from several threads until told to stop. Every request has a number of its own, which the origin
gives back and writes into its access log, so that it can be counted afterwards what was lost, what was
answered wrongly, and what was executed twice.
"""

from __future__ import annotations

import itertools
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.end_to_end.site import Nginx
from tests.end_to_end.threads import Threads

VISITOR_SECONDS = 10.0
"""No visitor waits longer for anything."""
_PAUSE_SECONDS = 0.01


class Broken(OSError):
    """The answer is not whole."""


def fetch(
    context: ssl.SSLContext,
    address: str,
    port: int,
    name: str,
    path: str,
    seconds: float = VISITOR_SECONDS,
) -> str:
    """The body of a GET on a connection of its own. Raises OSError when the visitor does not get it whole."""
    with (
        socket.create_connection((address, port), timeout=seconds) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while octets := tls.recv(65536):
            answer += octets
    head, separator, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if not separator or length is None or len(body) != int(length[1]) or b" 200 " not in head[:15]:
        raise Broken(f"{answer[:200]!r}")
    return body.decode()


@dataclass(slots=True)
class Visit:
    """One request: the addresses it was sent to, what went wrong there, and the body."""

    number: int
    began: float
    addresses: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    body: str = ""
    seconds: float = 0.0

    @property
    def origin(self) -> str:
        return self.body.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Losses:
    """How many requests there were; how many visitors would have lost who do not try again; and how many of
    those had a connection already, so that even a browser tries again only what it may repeat.
    """

    requests: int
    lost: int
    broken: int

    def __add__(self, other: Losses) -> Losses:
        return Losses(self.requests + other.requests, self.lost + other.lost, self.broken + other.broken)

    def __str__(self) -> str:
        return f"{self.lost} of {self.requests} requests, {self.broken} of them after the connect"


class Crowd(Threads):
    """Visitors of `name` who try the next of `addresses` when one fails, as browsers do."""

    _numbers = itertools.count(1)
    pause_seconds = _PAUSE_SECONDS
    patience_seconds = VISITOR_SECONDS
    """With one address, before the next is tried."""

    def __init__(
        self, context: ssl.SSLContext, name: str, addresses: Sequence[str], port: int, *, threads: int = 3
    ) -> None:
        self.visits: list[Visit] = []
        self._context = context
        self._name = name
        self._addresses = addresses
        self._port = port
        super().__init__(threading.Thread(target=self._come) for _ in range(threads))

    def since(self, when: float) -> list[Visit]:
        """The visits that began after `when` and are over."""
        return [visit for visit in list(self.visits) if visit.began > when]

    def _come(self) -> None:
        while not self.over.wait(self.pause_seconds):
            number = next(self._numbers)
            visit = Visit(number, time.monotonic())
            turn = number % len(self._addresses)
            for address in (*self._addresses[turn:], *self._addresses[:turn]):
                visit.addresses.append(address)
                try:
                    path = f"/asked/{number}"
                    visit.body = fetch(
                        self._context, address, self._port, self._name, path, self.patience_seconds
                    )
                    break
                except OSError as error:
                    visit.failures.append(f"{address}: {error!r}")
            visit.seconds = time.monotonic() - visit.began
            self.visits.append(visit)

    def check(self, origins: Iterable[Nginx]) -> Losses:
        """Every request answered, by whom it says, and executed once; or as often as it was tried."""
        executed: Counter[int] = Counter()
        names = set()
        for origin in origins:
            names.add(origin.says)
            log = (origin.directory / "access.log").read_text()
            executed.update(map(int, re.findall(r'"GET /asked/(\d+) HTTP', log)))
        assert self.visits
        for visit in self.visits:
            assert visit.origin in names, visit
            assert visit.body == f"{visit.origin} /asked/{visit.number}\n", visit
            assert "UNRECOGNIZED_NAME" not in str(visit.failures), visit  # there is such a name all the time
            assert 1 <= executed[visit.number] <= 1 + len(visit.failures), (visit, executed[visit.number])
        broken = sum(1 for visit in self.visits if any("Refused" not in text for text in visit.failures))
        return Losses(len(self.visits), sum(1 for visit in self.visits if visit.failures), broken)
