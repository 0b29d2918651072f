"""Visitors, and what became of each request: every one is counted exactly once.

A visitor looks the name up at a resolver with a cache, as everybody does, connects to its addresses in turn,
to the next one when a connect fails or has taken 250 ms (RFC 8305 5), and asks once. He never tries again:
what fails after the connect is lost. What was under way at the moment of a fault is counted apart.
"""

from __future__ import annotations

import errno
import itertools
import random
import re
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import dns.exception
import dns.message
import dns.query

from tests.end_to_end.namespaces import enter_network
from tests.end_to_end.threads import Threads
from tests.lab.lab import SERVED, Lab

NEXT_SECONDS = 0.25
VISITOR_SECONDS = 12.0
"""A server gives a visitor's last client 10 s."""
RESOLVER_SECONDS, RESOLVER_TRIES = 2.0, 4
"""A stub resolver asks again, as glibc's does."""


class Void(Exception):
    """The run proves nothing: too little load, or the fault did not happen."""


class Broken(OSError):
    """The answer is not whole, or not the one that was asked for."""


@dataclass(slots=True)
class Visit:
    """One request of one visitor. `client` is who answered; `failure` why nobody did."""

    number: int
    name: str
    began: float
    connected: float = 0.0
    ended: float = 0.0
    address: str = ""
    client: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of all requests. `apart` failed, and were under way at the moment of a fault; `twice` were
    executed more than once, `unseen` answered by nobody's log."""

    asked: int
    answered: int
    failed: tuple[Visit, ...]
    apart: int
    under_way: int
    twice: int
    unseen: int
    by_client: Counter[str]

    def __str__(self) -> str:
        return (
            f"{self.asked} asked, {self.answered} answered, {len(self.failed)} failed; {self.under_way} were"
            f" under way at a fault, {self.apart} of them lost; {self.twice} executed twice"
        )


class Visitors(Threads):
    """`with` it they come, `threads` of them at a time, each `pause` seconds after his last answer on the
    average; to `addresses`, or to what the resolver says.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        lab: Lab,
        names: Sequence[str],
        *,
        threads: int = 4,
        pause: float = 0.1,
        addresses: Sequence[str] = (),
    ) -> None:
        self.visits: list[Visit] = []
        self._lab = lab
        self._names = names
        self._pause = pause
        self._given = addresses
        self._faults: list[tuple[float, float]] = []
        super().__init__(threading.Thread(target=self._come) for _ in range(threads))

    @contextmanager
    def fault(self) -> Iterator[None]:
        """The fault happens inside: what is under way then counts apart."""
        began = time.monotonic()
        yield
        self._faults.append((began, time.monotonic()))

    def since(self, when: float) -> list[Visit]:
        """The visits that began after `when` and are over."""
        return [visit for visit in list(self.visits) if visit.began > when]

    def tally(self, least: int) -> Tally:
        """To be asked when they are gone. Raises Void when there were fewer than `least`."""
        visits = self.visits
        if len(visits) < least:
            raise Void(f"{len(visits)} requests, and {least} were to be")
        failed = [visit for visit in visits if visit.failure]
        under_way = [visit for visit in visits if self._was_under_way(visit)]
        lost = [visit for visit in under_way if visit.failure]
        executed = self._executed()
        answered = [visit for visit in visits if not visit.failure]
        return Tally(
            asked=len(visits),
            answered=len(answered),
            failed=tuple(visit for visit in failed if not self._was_under_way(visit)),
            apart=len(lost),
            under_way=len(under_way),
            twice=sum(1 for visit in visits if executed[visit.number] > 1),
            unseen=sum(1 for visit in answered if not executed[visit.number]),
            by_client=Counter(visit.client for visit in answered),
        )

    def _was_under_way(self, visit: Visit) -> bool:
        return any(visit.began <= end and visit.ended >= begin for begin, end in self._faults)

    def _executed(self) -> Counter[int]:
        """How often each request stands in the origins' own logs."""
        counted: Counter[int] = Counter()
        for origin in self._lab.origins.values():
            log = (origin.directory / "access.log").read_text()
            counted.update(map(int, re.findall(r'"GET /asked/(\d+) HTTP', log)))
        return counted

    # Coming

    def _come(self) -> None:
        enter_network(self._lab.hosts["visitors"].pid)
        while not self.over.wait(random.uniform(0.0, 2 * self._pause)):
            visit = Visit(next(self._numbers), random.choice(self._names), time.monotonic())
            try:
                visit.client = self._visit(visit)
            except OSError as error:
                visit.failure = repr(error)
            visit.ended = time.monotonic()
            self.visits.append(visit)

    def _visit(self, visit: Visit) -> str:
        addresses = list(self._given) or self._resolve(visit.name)
        raw = connect(addresses, 443)
        visit.connected = time.monotonic()
        with raw:
            visit.address = raw.getpeername()[0]
            with self._lab.context.wrap_socket(raw, server_hostname=visit.name) as tls:
                path = f"/asked/{visit.number}"
                client, asked = _ask(tls, visit.name, path)
        if asked != path or visit.name.partition(".")[0] not in _labels(client):
            raise Broken(f"{client} answered {asked}")
        return client

    def _resolve(self, name: str) -> list[str]:
        answer = answer_of(self._lab.address("resolver"), name, "A")
        if answer is None:
            raise Broken("the resolver does not answer")
        found = [rdata.to_text() for rrset in answer.answer for rdata in rrset]
        if not found:
            raise Broken(f"no address of {name}: {answer.rcode()}")
        random.shuffle(found)
        return found


def answer_of(server: str, name: str, rtype: str) -> dns.message.Message | None:
    """What a server says, in the network of this thread; None when it says nothing."""
    query = dns.message.make_query(name, rtype)
    for _ in range(RESOLVER_TRIES):
        try:
            return dns.query.udp(query, server, timeout=RESOLVER_SECONDS)
        except (dns.exception.DNSException, OSError):
            continue
    return None


def connect(addresses: Sequence[str], port: int) -> socket.socket:
    """The first connection that is made. Raises OSError when none is."""
    waiting: dict[int, socket.socket] = {}
    left = list(addresses)
    end = time.monotonic() + VISITOR_SECONDS
    problem: OSError = TimeoutError("no address answered in time")
    poll = select.poll()
    try:
        while (left or waiting) and time.monotonic() < end:
            if left:
                sock = socket.socket()
                sock.setblocking(False)
                code = sock.connect_ex((left.pop(0), port))
                if code in (0, errno.EINPROGRESS):
                    waiting[sock.fileno()] = sock
                    poll.register(sock, select.POLLOUT)
                else:
                    sock.close()
                    problem = OSError(code, errno.errorcode[code])
                    continue
            seconds = NEXT_SECONDS if left else end - time.monotonic()
            for descriptor, _ in poll.poll(max(0.0, seconds) * 1000):
                sock = waiting.pop(descriptor)
                poll.unregister(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    sock.settimeout(VISITOR_SECONDS)
                    return sock
                sock.close()
                problem = OSError(code, errno.errorcode[code])
    finally:
        for sock in waiting.values():
            sock.close()
    raise problem


def _ask(tls: ssl.SSLSocket, name: str, path: str) -> tuple[str, str]:
    """Who answered, and what he says was asked."""
    tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while octets := tls.recv(65536):
        answer += octets
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if length is None or len(body) != int(length[1]) or b" 200 " not in head[:15]:
        raise Broken(f"{answer[:200]!r}")
    client, _, asked = body.decode().rstrip("\n").partition(" ")
    return client, asked


def _labels(client: str) -> Sequence[str]:
    return SERVED.get(client, ())
