"""One visitor, from the sealed header that came on a lane to the join with his origin.

Until the join this end reads what the server sends (a ClientHello, or the head of a request), brings it to
the origin, and answers with one status octet. For TLS ``JOINED`` waits for the origin's first octets and
goes in front of them, so that it means "the origin answers"; a visitor whose origin says nothing can still be
given to another client. For plain HTTP the origin owes no answer yet, and ``JOINED`` goes out at the
connect. So it does for TLS that ends here (:mod:`~appliance.service.client.terminating`), whose ClientHello
this end answers itself.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Protocol

from twisted.logger import Logger

from appliance.addresses import Origin
from appliance.service import keepalive
from appliance.service.client.complaints import Complaints
from appliance.service.client.dial import Dial, Dialling, Target
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.origins import Origins, Way, in_words, status_of
from appliance.service.client.terminating import Terminating
from appliance.service.deadlines import Deadlines
from appliance.service.readiness import ENDING, READABLE, WRITABLE, Readiness
from appliance.service.relay import Ended, Joined, Relay, Wire, socket_of
from appliance.service.tlsend import TlsEnd
from appliance.tunnel.lane import Status
from appliance.tunnel.proxyheader import Kind, ProxyHeader

#: An origin is beside its client; one that takes longer to accept is as good as gone, and the visitor waits.
CONNECT_SECONDS = 5.0
#: How long an origin may think about a ClientHello: what the server waits for at the last client of a name.
ANSWER_SECONDS = 10.0
#: How long a refused lane stays open for the server to read why. A close with octets unread would be a reset,
#: which overtakes the status octet.
LEAVE_SECONDS = 5.0
#: Held for the origin before the join. A ClientHello is at most 16 KiB and the server sends nothing behind
#: it; more is left in the socket.
MAX_EARLY_OCTETS = 1 << 16

#: Of the descriptors, what visitors leave to links that come back, to the resolver and to a log that rotates.
RESERVE_PART = 16
RESERVE_AT_MOST = 256

_READ_OCTETS = 1 << 16


class _Waiting(Protocol):
    """Whoever has a lane that is not joined: ``server`` is the serial number of its server's certificate."""

    server: int

    def end(self) -> None: ...


class Visits:
    """Everything that visitors of all lanes share: where origins are, and what joins two wires."""

    log = Logger()

    def __init__(
        self, reactor: Any, readiness: Readiness, relay: Relay, origins: Origins, keypairs: Keypairs
    ) -> None:
        self.reactor = reactor
        self.readiness = readiness
        self.relay = relay
        self.origins = origins
        self.keypairs = keypairs
        self.complaints = Complaints()
        self.waiting: set[_Waiting] = set()
        self.dialling = Dialling(readiness, reactor, CONNECT_SECONDS)
        self.unanswered = Deadlines[Visit](reactor, ANSWER_SECONDS, lambda visit: visit.silent())
        self.joined: dict[int, set[Joined]] = {}
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.origins_below = most - min(most // RESERVE_PART, RESERVE_AT_MOST)
        """From this descriptor on there are too many visitors: the kernel gives the lowest that is free
        (POSIX).
        """

    def begin(self, lane: Wire, header: ProxyHeader, early: bytes, server: int) -> None:
        """Take over a lane, registered with the readiness, whose header was opened; ``early`` came behind
        it. ``server`` is the serial number of the server's certificate.
        """
        Visit(self, lane, header, early, server).begin()

    def cut(self, servers: Collection[int]) -> None:
        """End everything that came from servers with these certificates."""
        for visit in [one for one in self.waiting if one.server in servers]:
            visit.end()
        for server in self.joined.keys() & set(servers):
            for joined in list(self.joined[server]):
                joined.abort()

    def join(
        self,
        lane: Wire,
        origin: Wire,
        server: int,
        *,
        to_lane: bytes,
        to_origin: bytes,
        ended: Callable[[Ended], None] | None = None,
    ) -> Joined:
        """Hand both to the relay, which calls ``ended`` when both are closed."""
        sock = socket_of(lane)
        if sock is not None:
            with suppress(OSError):  # already reset by its peer: the first read will tell
                keepalive.of_joined_lane(sock)
        among = self.joined.setdefault(server, set())
        return self.relay.join(lane, origin, to_a=to_lane, to_b=to_origin, among=among, ended=ended)

    def leave(self, lane: Wire, server: int, octets: bytes) -> None:
        """These octets are the last on a lane that is not joined."""
        _Leaving(self, lane, server, octets)

    def stop(self) -> None:
        """End the visits that are not joined yet; the relay has the others."""
        for visit in list(self.waiting):
            visit.end()
        self.dialling.stop()
        self.unanswered.stop()


class Visit:
    """The visitor until he is joined or refused."""

    __slots__ = (
        "_context",
        "_dial",
        "_early",
        "_header",
        "_lane",
        "_origin",
        "_over",
        "_visits",
        "_way",
        "server",
    )

    def __init__(self, visits: Visits, lane: Wire, header: ProxyHeader, early: bytes, server: int) -> None:
        self.server = server
        self._visits = visits
        self._lane = lane
        self._header = header
        self._early = early  # for the origin
        self._origin: socket.socket | None = None
        self._way: Way | None = None
        self._dial: Dial | None = None
        self._context: ssl.SSLContext | None = None  # where his TLS ends here
        self._over = False

    def begin(self) -> None:
        self._visits.waiting.add(self)
        self._visits.readiness.change(self._lane, self._lane_ready)
        self._way = self._visits.origins.way(self._header.authority, self._header.kind)
        if self._way is None or (self._way.terminated and not isinstance(self._lane, socket.socket)):
            # The name is a stranger's choice, so it is no part of what is new to say.
            what = "plain HTTP" if self._header.kind is Kind.HTTP else "TLS"
            self._refuse(Status.NO_ORIGIN, what, "there is no origin here for ", self._header.authority)
            return
        if self._way.terminated:
            self._context = self._visits.keypairs.context(self._header.authority)
            if self._context is None:  # the log knows: whoever brings certificates has said what is awaited
                self._refuse(Status.NO_CERTIFICATE, "", "")
                return
        self._lane_ready(READABLE)
        if not self._over:
            self._visits.origins.find(self._way.origin, self._found)

    def end(self) -> None:
        """Close whatever is open, without a word."""
        if self._drop():
            self._visits.readiness.forget(self._lane)
            self._lane.close()

    # The origin

    def _found(self, targets: list[Target]) -> None:
        if self._over:
            return
        if not targets:
            self._origin_failed(Status.ORIGIN_UNREACHABLE, "its host name has no address")
            return
        self._dial = self._visits.dialling.dial(targets, self._dialled)

    def _dialled(self, result: socket.socket | OSError) -> None:
        self._dial = None
        if self._over:
            return
        if isinstance(result, socket.socket) and result.fileno() >= self._visits.origins_below:
            self._visits.readiness.forget(result)
            result.close()
            result = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if isinstance(result, OSError):
            self._origin_failed(status_of(result), in_words(result))
            return
        assert self._way is not None
        self._origin = result
        if self._context is not None:
            self._terminate(self._context)
            return
        if self._way.proxy_protocol:
            self._early = self._header.for_origin().octets() + self._early
        if self._header.kind is Kind.HTTP:
            self._join(b"")
            return
        self._visits.unanswered.add(self)
        self._visits.readiness.change(result, self._origin_ready)
        self._origin_ready(READABLE | WRITABLE)

    def _origin_ready(self, events: int) -> None:
        if self._over:
            return
        assert self._origin is not None
        try:
            self._write_origin()
            octets = self._origin.recv(_READ_OCTETS)
        except BlockingIOError:
            return
        except OSError as error:
            self._origin_failed(Status.ORIGIN_REFUSED, f"it broke the connection off: {in_words(error)}")
            return
        if octets:
            self._join(octets)
        else:
            self._origin_failed(Status.ORIGIN_REFUSED, "it closed the connection without an answer")

    def _write_origin(self) -> None:
        """Give the origin what there is, as far as it takes it; what is left goes with the join."""
        assert self._origin is not None
        try:
            while self._early:
                self._early = self._early[self._origin.send(self._early) :]
        except BlockingIOError:
            pass

    def silent(self) -> None:
        """His origin's time is over."""
        self._origin_failed(
            Status.ORIGIN_SILENT, f"it accepted and said nothing to a ClientHello for {ANSWER_SECONDS:.0f} s"
        )

    def _origin_failed(self, status: Status, words: str) -> None:
        assert self._way is not None
        self._refuse(status, self._way.origin, words)

    # The lane

    def _lane_ready(self, events: int) -> None:
        if self._over or not events & (READABLE | ENDING):
            return
        try:
            while len(self._early) < MAX_EARLY_OCTETS:
                octets = self._lane.recv(_READ_OCTETS)
                if not octets:
                    self.end()  # the server has given this lane up, or the visitor has
                    return
                self._early += octets
        except BlockingIOError:
            pass
        except OSError:
            self.end()
            return
        if self._early and self._origin is not None:
            self._origin_ready(WRITABLE)

    # The end of it

    def _join(self, first: bytes) -> None:
        origin = self._answered()
        to_lane = bytes([Status.JOINED]) + first
        self._visits.join(self._lane, origin, self.server, to_lane=to_lane, to_origin=self._early)

    def _terminate(self, context: ssl.SSLContext) -> None:
        """The origin has accepted; the rest is between the visitor and this end."""
        assert self._way is not None
        origin = self._answered()
        assert isinstance(self._lane, socket.socket)
        wire = TlsEnd(self._lane, context, first=self._early, ahead=bytes([Status.JOINED]))
        proxy_protocol = self._way.proxy_protocol
        Terminating(self._visits, wire, origin, self._header, self.server, proxy_protocol).begin()

    def _answered(self) -> socket.socket:
        """The origin, which is whose this visit is handed to from here on."""
        assert self._origin is not None
        assert self._way is not None
        origin = self._origin
        self._origin = None
        self._drop()
        if self._visits.complaints.over(self._way.origin):
            self._visits.log.info("origin {origin}: answers again", origin=self._way.origin)
        return origin

    def _refuse(self, status: Status, about: Origin | str, words: str, details: str = "") -> None:
        """Tell the server, and the log if it does not know, why there is no join here."""
        if not self._drop():
            return
        visits = self._visits
        if about and visits.complaints.new(about, words):
            what = about if isinstance(about, str) else f"origin {about}"
            visits.log.warn("{about}: {words}{details}", about=what, words=words, details=details)
        visits.leave(self._lane, self.server, bytes([status]))

    def _drop(self) -> bool:
        """Let go of everything but the lane; False if that was done."""
        if self._over:
            return False
        self._over = True
        self._visits.waiting.discard(self)
        if self._dial is not None:
            self._dial.cancel()
        self._visits.unanswered.discard(self)
        if self._origin is not None:
            self._visits.readiness.forget(self._origin)
            self._origin.close()
        return True


class _Leaving:
    """A lane with its last octets, a status or an alert, and then until the server closes it."""

    def __init__(self, visits: Visits, lane: Wire, server: int, octets: bytes) -> None:
        self.server = server
        self._visits = visits
        self._lane = lane
        self._octets = octets
        self._over = False
        self._timer = visits.reactor.callLater(LEAVE_SECONDS, self.end)
        visits.waiting.add(self)
        visits.readiness.change(lane, self._ready)
        self._ready(READABLE | WRITABLE)

    def _ready(self, events: int) -> None:
        if self._over:
            return
        try:
            if self._octets:
                while self._octets:
                    self._octets = self._octets[self._lane.send(self._octets) :]
                self._lane.shutdown(socket.SHUT_WR)
            elif events & WRITABLE and hasattr(self._lane, "flush"):
                self._lane.flush()
            while self._lane.recv(_READ_OCTETS):
                pass
        except BlockingIOError:
            return
        except OSError:
            pass
        self.end()

    def end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._timer.active():
            self._timer.cancel()
        self._visits.waiting.discard(self)
        self._visits.readiness.forget(self._lane)
        self._lane.close()
