"""DNS over TCP (RFC 7766): messages with a length before them, as many on a connection as the peer likes.

Hides who is let in, how long a connection may idle or dawdle, and that nothing is read from a peer while
he does not read from us, or while a transfer goes to him.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IListeningPort,
    IPushProducer,
    IReactorSocket,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.dns.followed import ASKED
from appliance.dns.responder import Responder
from appliance.dns.transfer import TransferAsked
from appliance.service.nameserver.places import Places
from appliance.service.nameserver.transfers import Outgoing, Transfers
from appliance.service.nameserver.turns import Turns
from appliance.service.nameserver.updates import Update, refused
from appliance.service.ports import bind_tcp

IDLE_SECONDS = 10.0  # without a message, or without reading our answers; Knot's tcp-idle-timeout
MESSAGE_SECONDS = 2.0  # from the first octet of a message to its last; stalled ones are an attack
EARNING_SECONDS = 2.0  # to a first query, where a source has many connections without one
TRANSFER_WAIT_SECONDS = 60.0  # for a place among the transfers, ten of which are made at once
STOP_SECONDS = 1.0  # for answers under way when the service stops
MAX_MESSAGE_OCTETS = 16 * 1024  # a query has under 300, a large UPDATE some thousand
MAX_IN_FLIGHT = 16  # UPDATEs of one connection that wait for the disk; until then nothing is read


class TcpNameserver(service.Service):
    """Answers DNS over TCP on `host`; `port` is the real one once bound.

    `counters` say why connections were ended or refused and what failed; `connections` is how many are open.
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
        places: Places | None = None,
    ) -> None:
        """Without `transfers` there must be no keys that they could be asked for with. Those that listen on
        several addresses share `places`."""
        self.host = host
        self.port = port
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._socket: socket.socket | None = None
        self._listening: IListeningPort | None = None
        self._factory = _Connections(
            IReactorTime(reactor),
            responder,
            self.counters,
            wall,
            update,
            transfers,
            Places() if places is None else places,
        )

    @property
    def connections(self) -> int:
        return len(self._factory.open)

    def privilegedStartService(self) -> None:
        """Bind, while we may: twistd drops root after this. Raises CannotListen."""
        if self._socket is None and self._listening is None:
            self._socket = bind_tcp(self.host, self.port)
            self.port = self._socket.getsockname()[1]

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self.privilegedStartService()
        assert self._socket is not None
        adopt = IReactorSocket(self._reactor).adoptStreamPort
        self._listening = adopt(self._socket.fileno(), self._socket.family, self._factory)
        self._socket.close()  # the reactor has a duplicate
        self._socket = None

    def stopService(self) -> Deferred[list[tuple[bool, Any]]]:
        """Fires when nothing listens and no connection is left; answers under way have STOP_SECONDS."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        listening, self._listening = self._listening, None
        ends: list[Deferred[Any]] = [self._factory.end_all()]
        if listening is not None:
            ends.append(maybeDeferred(listening.stopListening))
        return DeferredList(ends)


class _Phase(Enum):
    OPEN = "messages may come"
    ENDED = "the peer sends no more; what he sent is answered, then we close"
    CLOSING = "the last answers are on their way, then the connection ends"


class _Connections(ServerFactory):
    """The open connections and their bounds."""

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        responder: Responder,
        counters: Counter[str],
        wall: Callable[[], float],
        update: Update,
        transfers: Transfers | None,
        places: Places,
    ) -> None:
        self.reactor = reactor
        self.responder = responder
        self.counters = counters
        self.wall = wall
        self.update = update
        self.transfers = transfers
        self.places = places
        self.turns = Turns(reactor)
        self.open: set[_DnsConnection] = set()
        self._all_gone: list[Deferred[None]] = []

    def logPrefix(self) -> str:
        return "dns-tcp"

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        return _DnsConnection(self, getattr(addr, "host", ""))

    def made(self, connection: _DnsConnection) -> None:
        self.places.take(connection)
        self.open.add(connection)

    def gone(self, connection: _DnsConnection) -> None:
        if connection not in self.open:
            return  # its place was given away already
        self.open.discard(connection)
        self.places.leave(connection)
        if not self.open:
            waiting, self._all_gone = self._all_gone, []
            for gone in waiting:
                gone.callback(None)

    def end_all(self) -> Deferred[None]:
        """Close every connection; fires when none is left."""
        gone: Deferred[None] = Deferred()
        if not self.open:
            gone.callback(None)
            return gone
        self._all_gone.append(gone)
        for connection in list(self.open):
            connection.close("ended: the nameserver stops", STOP_SECONDS)
        return gone


@implementer(IHalfCloseableProtocol, IPushProducer)
class _DnsConnection(Protocol):
    """One peer. As the producer of its own transport it learns when the peer does not read."""

    transport: Connection
    _log = Logger()

    def __init__(self, connections: _Connections, host: str) -> None:
        self.host = host
        self._all = connections
        self._phase = _Phase.OPEN
        self._received = bytearray()
        self._is_within_message = False
        self._has_answered = False
        self._had_time = False  # to earn its place
        self._is_unread = False  # the peer leaves our answers lying: the transport is full
        self._updating = 0  # UPDATEs that are being done
        self._outgoing: Outgoing | None = None  # the transfer to this peer: what he asks meanwhile waits
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._all.made(self)
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._expect_within(EARNING_SECONDS)

    def is_earning(self) -> bool:
        return self._has_answered and not self._is_unread

    def dataReceived(self, data: bytes) -> None:
        if self._phase is _Phase.OPEN:
            self._received += data
            self._answer()

    def readConnectionLost(self) -> None:
        """The peer has half-closed: his answers still go out."""
        if self._phase is _Phase.OPEN:
            self._phase = _Phase.ENDED
            self._is_within_message = False  # what he began will never be whole
            self._answer()

    def writeConnectionLost(self) -> None:
        """We never half-close."""

    def pauseProducing(self) -> None:
        if not self._is_unread:
            self._is_unread = True
            self._stop_reading(IDLE_SECONDS)
            if self._outgoing is not None:
                self._outgoing.pause()

    def resumeProducing(self) -> None:
        self._is_unread = False
        if self._phase is not _Phase.CLOSING:
            self._expect_within(IDLE_SECONDS)
            if self._outgoing is not None:
                self._outgoing.resume()
            self._answer()

    def stopProducing(self) -> None:
        """The transport ends: connectionLost follows."""

    def close(self, why: str, seconds: float = IDLE_SECONDS) -> None:
        """End the connection once the answers given so far are sent, or after `seconds` in any case."""
        self._expect_within(seconds)
        if self._phase is not _Phase.CLOSING:
            self._all.counters[why] += 1
            self._phase = _Phase.CLOSING
            self._all.turns.leave(self)
            self._end_transfer()
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self, why: str) -> None:
        """End the connection at once, and with it whatever it waits for."""
        self._all.counters[why] += 1
        self._phase = _Phase.CLOSING
        self._all.turns.leave(self)
        self._end_transfer()
        self._all.gone(self)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._phase = _Phase.CLOSING
        self._all.turns.leave(self)
        self._end_transfer()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._received.clear()
        self._all.gone(self)

    # A transfer to this peer (transfers.Sending)

    def send(self, message: bytes) -> None:
        self._expect_within(IDLE_SECONDS)
        self._all.places.moved(self)
        self.transport.write(len(message).to_bytes(2, "big") + message)

    def sent_all(self) -> None:
        self._outgoing = None
        self._answer()

    def cut(self) -> None:
        self._outgoing = None
        self.abort("aborted: a transfer failed")

    def _begin_transfer(self, asked: TransferAsked) -> None:
        assert self._all.transfers is not None
        self._stop_reading(TRANSFER_WAIT_SECONDS)
        self._outgoing = self._all.transfers.begin(asked, self)
        if self._is_unread:
            self._outgoing.pause()

    def _end_transfer(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.cancel()

    # One turn of many (turns.Waiting)

    def go_on(self) -> None:
        self._answer()

    def _answer(self) -> None:
        """Answer the messages that are whole, as many as one turn and the transport take."""
        if self._is_unread or self._outgoing is not None or self._all.turns.is_waiting(self):
            return
        try:
            answered = self._answer_some()
        except _BadLength:
            self.close("ended: impossible message length")
            return
        except Exception:  # one question must not end the service
            self._failed()
            return
        if answered:
            self._has_answered = True
            self._all.places.moved(self)
        if self._is_unread or self._outgoing is not None:
            return
        if self._updating >= MAX_IN_FLIGHT:
            self._stop_reading(IDLE_SECONDS)
        elif self._has_whole_message():
            self._stop_reading(IDLE_SECONDS)
            self._all.turns.wait(self)
        elif self._phase is _Phase.ENDED:
            if not self._updating:
                self.close("ended: by the peer")
        else:
            self._wait_for_more(answered)

    def _answer_some(self) -> int:
        """Answer one turn's worth of messages; how many it took. Raises _BadLength after answering."""
        respond = self._all.responder.respond
        host, now, wall = self.host, self._all.reactor.seconds(), self._all.wall()
        received = self._received
        answers: list[bytes] = []
        transfer: TransferAsked | None = None
        at = taken = octets = 0
        messages, room = self._all.turns.share()
        try:
            while taken < messages and (octets < room or not taken) and transfer is None:
                if self._updating >= MAX_IN_FLIGHT:
                    break
                end = _end_of_message(received, at)
                if end is None:
                    break
                answer = respond(bytes(received[at + 2 : end]), udp=False, source=host, now=now, wall=wall)
                at = end
                taken += 1
                if isinstance(answer, bytes):
                    octets += len(answer)
                    answers += (len(answer).to_bytes(2, "big"), answer)
                elif isinstance(answer, ASKED):
                    self._updating += 1
                    self._all.update(answer).addCallback(self._updated)
                elif isinstance(answer, TransferAsked):
                    transfer = answer
        finally:
            del received[:at]
            self._all.turns.used(taken, octets)
            if answers:
                self.transport.write(b"".join(answers))
        if transfer is not None:
            self._begin_transfer(transfer)
        return taken

    def _updated(self, answer: bytes) -> None:
        """An UPDATE is done. Other messages may have been answered meanwhile (RFC 7766 6.2.1.1)."""
        self._updating -= 1
        if self._phase is _Phase.CLOSING:
            return
        self.transport.write(len(answer).to_bytes(2, "big") + answer)
        if self._updating == MAX_IN_FLIGHT - 1:
            self._answer()
            return
        is_idle = not self._updating and self._outgoing is None and not self._has_whole_message()
        if self._phase is _Phase.ENDED and is_idle:
            self.close("ended: by the peer")

    def _has_whole_message(self) -> bool:
        try:
            return _end_of_message(self._received, 0) is not None
        except _BadLength:
            return True  # the next turn ends the connection

    def _wait_for_more(self, answered: int) -> None:
        was_within, self._is_within_message = self._is_within_message, bool(self._received)
        if self._is_within_message and (answered or not was_within):
            self._expect_within(MESSAGE_SECONDS)
        elif answered:
            self._expect_within(IDLE_SECONDS)
        self.transport.resumeProducing()

    def _stop_reading(self, seconds: float) -> None:
        """Until it is our turn again, or the peer's to read; `seconds` bound that."""
        self.transport.pauseProducing()
        self._is_within_message = False  # we do not read, so he is not slow
        self._expect_within(seconds)

    def _expect_within(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(seconds)
        else:
            self._timer = self._all.reactor.callLater(seconds, self._expired)

    def _expired(self) -> None:
        if self._phase is _Phase.CLOSING:
            self.abort("aborted: the last answers were not read")
        elif self._is_unread:
            self.abort("aborted: answers were not read")
        elif self._is_within_message:
            self.close("ended: a message took too long")
        elif not self._has_answered and not self._had_time:
            self._had_time = True
            if self._all.places.may_wait(self):
                self._expect_within(IDLE_SECONDS - EARNING_SECONDS)
            else:
                self.close("ended: no query, as many others of its source")
        elif self._updating:
            self._expect_within(IDLE_SECONDS)  # he waits for us; each UPDATE ends, if need be with SERVFAIL
        else:
            self.close("ended: idle")

    def _failed(self) -> None:
        """Count every failure, show the first: a stranger's message may not fill the log."""
        self._all.counters["failed"] += 1
        if self._all.counters["failed"] == 1:
            self._log.failure("no answer to a message over TCP; further ones are counted")
        self.close("ended: no answer was found")


class _BadLength(Exception):
    """The length before a message is 0, or more than anybody may send."""


def _end_of_message(octets: bytearray, at: int) -> int | None:
    """Where the message ends whose length is at `at`; None while it is not whole. Raises _BadLength."""
    if len(octets) < at + 2:
        return None
    length = octets[at] << 8 | octets[at + 1]
    if not 0 < length <= MAX_MESSAGE_OCTETS:
        raise _BadLength
    end = at + 2 + length
    return end if len(octets) >= end else None
