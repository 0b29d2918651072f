"""DNS over UDP: one socket, read by a descriptor of our own, every batch of datagrams answered in one call.

Hides the socket's options and which of its errors mean nothing. One socket per address, so that an answer
leaves from the address that was asked.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable

from twisted.application import service
from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.dns.followed import ASKED
from appliance.dns.responder import Responder
from appliance.dns.transfer import TransferAsked
from appliance.service.nameserver.datagrams import Address, datagrams
from appliance.service.nameserver.transfers import Transfers
from appliance.service.nameserver.updates import Update, refused
from appliance.service.ports import bind_udp

RECEIVE_BUFFER_OCTETS = 4 << 20  # thousands of queries wait while one turn is long; the default holds 250

# Not in the socket module: <linux/in.h>, <linux/in6.h>. OMIT ignores path MTUs that were learned from ICMP:
# by a forged one our answers would be cut into fragments, whose second halves can be forged (RFC 9715).
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_PMTUDISC_OMIT = 5
_SO_RCVBUFFORCE = 33  # past net.core.rmem_max, for root (CAP_NET_ADMIN)


class UdpNameserver(service.Service):
    """Answers DNS over UDP on `host`; `port` is the real one once bound. `counters` say what was dropped.

    `update` does what an UPDATE asks for, and gives its answer. Without `transfers` there must be no keys
    that they could be asked for with.
    """

    def __init__(
        self,
        reactor: object,
        responder: Responder,
        host: str,
        port: int,
        *,
        wall: Callable[[], float] = time.time,
        update: Update = refused,
        transfers: Transfers | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.counters: Counter[str] = Counter()
        self._reactor = IReactorFDSet(reactor)
        self._clock = IReactorTime(reactor)
        self._responder = responder
        self._wall = wall
        self._update = update
        self._transfers = transfers
        self._socket: socket.socket | None = None
        self._datagrams: _Datagrams | None = None

    def privilegedStartService(self) -> None:
        """Bind, while we may: twistd drops root after this. Raises CannotListen."""
        if self._socket is None:
            self._socket = bind_udp(self.host, self.port)
            _set_options(self._socket)
            self.port = self._socket.getsockname()[1]

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self.privilegedStartService()
        assert self._socket is not None
        now = self._clock.seconds
        self._datagrams = _Datagrams(
            self._socket, self._responder, self.counters, now, self._wall, self._update, self._transfers
        )
        self._reactor.addReader(self._datagrams)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._datagrams is not None:
            self._reactor.removeReader(self._datagrams)
            self._datagrams = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@implementer(IReadDescriptor)
class _Datagrams:
    """What the reactor sees of the socket."""

    _log = Logger()

    def __init__(
        self,
        bound: socket.socket,
        responder: Responder,
        counters: Counter[str],
        now: Callable[[], float],
        wall: Callable[[], float],
        update: Update = refused,
        transfers: Transfers | None = None,
    ) -> None:
        self._socket = bound
        self._datagrams = datagrams(bound, counters)
        self._responder = responder
        self._counters = counters
        self._now = now
        self._wall = wall
        self._update = update
        self._transfers = transfers

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "dns-udp"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives the descriptor up: only when it was closed behind our back."""

    def doRead(self) -> None:
        """Answer what waits, at most one batch; the reactor calls again while something does."""
        received = self._datagrams.receive()
        if not received:
            return
        respond = self._responder.respond
        now, wall = self._now(), self._wall()  # a turn is too short for the time to pass
        answers: list[bytes | None] = []
        for message, host in received:
            try:
                answer = respond(message, udp=True, source=host, now=now, wall=wall)
            except Exception:  # one question must not end the service
                self._failed(message)
                answer = None
            if answer.__class__ is not bytes:
                answer = self._other(answer, len(answers))
            answers.append(answer)
        self._datagrams.send(answers)

    def _other(self, answer: object, index: int) -> bytes | None:
        """What goes out at once where the responder has no answer."""
        if isinstance(answer, ASKED):
            self._update(answer).addCallback(self._send, self._datagrams.address(index))
        elif isinstance(answer, TransferAsked) and self._transfers is not None:
            return self._transfers.datagram(answer)
        return None

    def _send(self, answer: bytes, source: Address) -> None:
        """The answer to an UPDATE, now that it is done."""
        try:
            self._socket.sendto(answer, source)
        except OSError as problem:  # among them: we have stopped meanwhile, and the socket is closed
            self._counters[f"send {problem.strerror}"] += 1

    def _failed(self, message: bytes) -> None:
        """Count every failure, show the first: a stranger's packet may not fill the log."""
        self._counters["failed"] += 1
        if self._counters["failed"] == 1:
            text = "no answer to a message over UDP; further ones are counted: {message}"
            self._log.failure(text, message=message[:512].hex())


def _set_options(bound: socket.socket) -> None:
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT)
    else:
        bound.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_OMIT)
    try:
        bound.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_OCTETS)
    except PermissionError:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_OCTETS)
