"""How an accepted bare socket, whose ClientHello was read, becomes a TLS connection to a peer that is known.

The handshake lets everybody through (:mod:`appliance.service.tls`); here his certificate is judged, and who
is refused hears the reason in words before the connection ends. Who is not goes to the protocol of his kind.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, IProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Server
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementedBy, implementer
from zope.interface.declarations import Provides

from appliance.service import keepalive
from appliance.service.fewlines import FewLines
from appliance.service.readiness import Readiness
from appliance.service.server.gate import source_of
from appliance.service.shares import Shares
from appliance.service.tls import ServerTls
from appliance.tunnel.certificates import CertificateRefused, Peer, Role
from appliance.tunnel.messages import Goodbye, encode

#: From the hello to the end of the handshake; OpenSSH gives 120 s to people, this is between programs.
_HANDSHAKE_SECONDS = 5.0
#: For the last words of a server that stops.
_FAREWELL_SECONDS = 1.0
#: For the end of a connection: Twisted's waits for the peer's close_notify, and a stranger need not send one.
#: As long as `parting` gives a refusal.
_CLOSE_SECONDS = 2.0
#: Handshakes at once. Each costs about a millisecond of CPU and 60 KiB; refusing early is cheaper than
#: dragging all along.
_HANDSHAKES_AT_MOST = 512
#: Of them, those of one source: nobody has proved yet who he is, and a stranger who never finishes his leaves
#: room for the others. A site of a thousand clients that come back begins 67 a second.
_OF_ONE_SOURCE = 256


class Adoption:
    """Turns bare sockets into links and watches."""

    def __init__(
        self,
        reactor: Any,
        readiness: Readiness,
        tls: ServerTls,
        shares: Shares,
        *,
        examine: Callable[[Any, Role, datetime], Peer],
        protocols: dict[bytes, tuple[Role, Callable[[Peer], IProtocol]]],
        complaints: FewLines,
    ) -> None:
        """``shares``: the turns that the octets of all of them take. ``protocols``: for each ALPN its peers'
        role and what makes the protocol for one of them.

        ``examine(certificate, role, wall)`` answers with the peer or raises CertificateRefused.
        """
        self._reactor = reactor
        self._readiness = readiness
        self._tls = tls
        self._shares = shares
        self._examine = examine
        self._protocols = protocols
        self._complaints = complaints
        self._open: set[_Doorstep] = set()
        self._handshakes: Counter[Hashable] = Counter()
        self._stopped: Deferred[None] | None = None
        self._cut: Any = None

    def adopt(self, sock: socket.socket, octets: bytes) -> None:
        """Own ``sock``, registered with the readiness, of which ``octets`` have been read."""
        self._readiness.forget(sock)
        try:
            # Asked first: Twisted asks behind a duplicate that it would leave open.
            source = source_of(sock.getpeername()[0])
            if not self._has_room(source):
                return
            doorstep = _Doorstep(self, source)
            tls = TLSMemoryBIOFactory(self._tls, False, _Once(doorstep))
            made = partial(_TlsInTurns, self._reactor, self._shares)
            tls.protocol = made  # type: ignore[assignment] # called, no more
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keepalive.of_link(sock)
            self._reactor.adoptStreamConnection(sock.fileno(), sock.family, tls)
        except OSError:  # reset meanwhile: it has no peer any more
            return
        finally:
            sock.close()  # the reactor has its own duplicate
        # The TLS protocol has not seen what was read before it existed.
        transport: Any = doorstep.transport
        transport.dataReceived(octets)

    def _has_room(self, source: Hashable) -> bool:
        handshakes = self._handshakes
        return handshakes.total() < _HANDSHAKES_AT_MOST and handshakes[source] < _OF_ONE_SOURCE

    def stop(self) -> Deferred[None]:
        """Close every connection, and after a second cut those that are still open; fires when none is."""
        for doorstep in list(self._open):
            doorstep.leave()
        stopped: Deferred[None] = Deferred()
        if self._open:
            self._stopped = stopped
            self._cut = self._reactor.callLater(_FAREWELL_SECONDS, self._cut_all)
        else:
            stopped.callback(None)
        return stopped

    def _cut_all(self) -> None:
        for doorstep in list(self._open):
            doorstep.cut()

    def _closed(self, doorstep: _Doorstep) -> None:
        self._open.discard(doorstep)
        if self._stopped is not None and not self._open:
            if self._cut.active():
                self._cut.cancel()
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)


class _Once(Factory):
    """Builds the one protocol that it was made for."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> Protocol:
        return self._protocol


class _TlsInTurns(BufferingTLSTransport):
    """TLS whose octets are heard in turns: each half of a handshake takes a millisecond or two, and where a
    herd comes back the visitors have theirs in between.

    Whoever does not take part in its end is cut soon.
    """

    def __init__(self, reactor: Any, shares: Shares, *made: Any) -> None:
        super().__init__(*made)
        self._reactor = reactor
        self._cut: Any = None
        self._share = shares.share(super().dataReceived, self)

    def dataReceived(self, data: bytes) -> None:
        self._share.received(data)

    def loseConnection(self) -> None:
        super().loseConnection()
        if self._cut is None:
            self._cut = self._reactor.callLater(_CLOSE_SECONDS, self.abortConnection)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._share.finish()
        super().connectionLost(reason)
        if self._cut is not None and self._cut.active():  # last: what is heard here may still close it
            self._cut.cancel()


_PROVIDED = [Provides(_TlsInTurns, each) for each in implementedBy(Server)]  # type: ignore[no-untyped-call]
"""What Twisted says of every connection, one after the other. zope makes such a declaration anew when nobody
holds one, and that was a third of what it costs to adopt a connection.
"""


@implementer(IHandshakeListener)
class _Doorstep(Protocol):
    """A connection until its peer is known; then it only passes on to the protocol of the peer's kind."""

    def __init__(self, adoption: Adoption, source: Hashable) -> None:
        self._adoption = adoption
        self._source = source
        self._inner: IProtocol | None = None
        self._timer: Any = None

    def connectionMade(self) -> None:
        adoption = self._adoption
        adoption._open.add(self)
        adoption._handshakes[self._source] += 1
        self._timer = adoption._reactor.callLater(_HANDSHAKE_SECONDS, self.cut)

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        adoption = self._adoption
        self._handshake_over()
        adoption._readiness.look()  # that was a millisecond, and this is another
        alpn = transport.negotiatedProtocol
        if alpn not in adoption._protocols:
            self.cut()
            return
        role, make = adoption._protocols[alpn]
        certificate = transport.getHandle().get_peer_certificate(as_cryptography=True)
        try:
            peer = adoption._examine(certificate, role, datetime.now(UTC))
        except CertificateRefused as refused:
            adoption._complaints.warn(transport.getPeer().host, f"{alpn.decode()} refused: {refused.text}")
            transport.write(encode(Goodbye(refused.reason.value, refused.text)))
            transport.loseConnection()
            return
        self._inner = make(peer)
        self._inner.makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None and isinstance(reason.value, SSL.Error):
            self._handshake_failed(reason.value)
        self._handshake_over()
        if self._inner is not None:
            self._inner.connectionLost(reason)
        self._adoption._closed(self)

    def leave(self) -> None:
        """End the connection when what was written is out."""
        transport: Any = self.transport
        transport.loseConnection()

    def cut(self) -> None:
        """End the connection now."""
        transport: Any = self.transport
        transport.abortConnection()

    def _handshake_failed(self, error: SSL.Error) -> None:
        """Mostly an alert: this server's certificate is not one that the other end expects there."""
        transport: Any = self.transport
        words = ", ".join(str(entry[-1]) for entry in error.args[0]) if error.args else "closed"
        what = "the other end does not take this server's certificate" if "alert" in words else "no handshake"
        alpn = transport.getHandle().get_alpn_proto_negotiated().decode("ascii") or "no protocol"
        self._adoption._complaints.warn(transport.getPeer().host, f"{alpn}: {what} ({words})")

    def _handshake_over(self) -> None:
        if self._timer is not None:
            self._adoption._handshakes -= Counter((self._source,))  # and forget who has none
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
