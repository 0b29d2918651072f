"""A visitor, from his first octets to the join or the refusal: which client, which lane, and what if it
fails.

Until a client has said ``joined`` the server still holds all that the visitor sent and reads no more of him,
so the same visitor can go to the next client of the name: what was sent ahead (a ClientHello, the head of a
request without a body) may be repeated, the rest goes out after ``joined`` only. Nothing is repeated after
it.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Collection
from typing import Any

from appliance.ingress import refusal
from appliance.ingress.clienthello import UNRECOGNIZED_NAME, ClientHello
from appliance.ingress.httphead import RequestHead
from appliance.ingress.limits import Over
from appliance.ingress.requests import Requests
from appliance.service.examined import Examined
from appliance.service.readiness import ENDING, FAILED, READABLE, WRITABLE, Readiness
from appliance.service.relay import Relay, Wire, reset_on_close
from appliance.service.server.gate import Port
from appliance.service.server.lanes import Lane
from appliance.service.server.ledger import Ledger
from appliance.service.server.links import Session
from appliance.service.server.parting import Parting
from appliance.service.server.visit import Outcome, Request, Visit
from appliance.tunnel.lane import Status
from appliance.tunnel.proxyheader import Kind, ProxyHeader
from appliance.tunnel.routes import Routes

#: No status octet in this time while another client of the name is left: he gets the visitor.
_TRY_SECONDS = 1.0
#: The last client may take as long as a slow origin takes to answer a ClientHello.
_LAST_TRY_SECONDS = 10.0
#: Clients that one visitor is offered to: a name whose origins all fail should say so soon.
_CLIENTS_AT_MOST = 3
#: Octets sent on a lane and not acknowledged after this are a lane that is dead: twice the round trip around
#: the world.
_UNACKNOWLEDGED_SECONDS = 0.3
#: Lanes of one client that one visitor is put on, for those that died unnoticed.
_LANES_AT_MOST = 3
#: A known name without a session here: a client that reconnects is back within this, and a browser that is
#: refused does not try the next address.
_PARK_SECONDS = 5.0
_PARKED_AT_MOST = 1024
#: Visitors who are not joined yet, parked or with a client: each holds his hello (16 KiB) and a descriptor.
_WAITING_AT_MOST = 4096
#: How often the times above are looked at, in one sweep over all who wait.
_SWEEP_SECONDS = 0.1
_READ_OCTETS = 1 << 16

_OUTCOMES: dict[int, Outcome] = {
    Status.ORIGIN_REFUSED: Outcome.ORIGIN_FAILED,
    Status.ORIGIN_UNREACHABLE: Outcome.ORIGIN_FAILED,
    Status.ORIGIN_SILENT: Outcome.ORIGIN_SILENT,
    Status.NO_ORIGIN: Outcome.ORIGIN_FAILED,
    Status.BUSY: Outcome.NO_CLIENT,
    Status.NO_CERTIFICATE: Outcome.ORIGIN_FAILED,
}


class Visitors:
    """All visitors who are not joined yet; the relay has the others."""

    def __init__(
        self,
        readiness: Readiness,
        clock: Any,
        relay: Relay,
        parting: Parting,
        *,
        routes: Routes[Session],
        known: Callable[[str], bool],
        known_as: Callable[[str], str | None],
        https_port: int,
        unique_id: Callable[[], bytes],
        ledger: Ledger,
    ) -> None:
        """``known(host)``: a name that was served once, and may be again; ``known_as(host)``: the name or
        wildcard that it is known by. ``https_port``: where a redirect leads.
        """
        self._readiness = readiness
        self._clock = clock
        self._relay = relay
        self._parting = parting
        self._routes = routes
        self._known = known
        self._known_as = known_as
        self._https_port = https_port
        self._unique_id = unique_id
        self._ledger = ledger
        self._waiting: dict[Visit, None] = {}
        self._parked = 0
        self._sweep: Any = None

    @property
    def waiting(self) -> Collection[object]:
        """Who is not joined yet."""
        return self._waiting.keys()

    def tls_arrived(
        self, sock: socket.socket, source: tuple[str, int], host: str, hello: ClientHello
    ) -> None:
        """A visitor on the TLS port, his whole ClientHello read; ``sock`` is registered with the readiness.
        """
        self._admit(Visit(sock, source, host, hello, self._unique_id()))

    def http_arrived(
        self, sock: socket.socket, source: tuple[str, int], head: RequestHead, octets: bytes
    ) -> None:
        """A visitor on the HTTP port: the head of his first request, and all ``octets`` that were read."""
        requests = Requests(head.host)
        requests.from_visitor(head.octets)
        rest = octets[len(head.octets) :]
        visit = Request(sock, source, head, rest, requests, self._unique_id(), self._clock)
        self._admit(visit, requests.refusal)

    def name_served(self, name: str) -> None:
        """A name has one more session now: who was parked for it goes on, or waits for one that serves his
        port.
        """
        if not self._parked:
            return
        for visit in list(self._waiting):
            if visit.parked and self._routes.match(visit.host) == name and self._is_served(visit.host):
                self._unpark(visit)
                self._begin(visit)

    def session_ended(self, session: Session) -> None:
        """Who waits for this session goes to the next; where it was the only one, he waits for its client,
        who may be about to register its names in a new one.
        """
        for visit in list(self._waiting):
            if visit.session is session:
                self._drop_lane(visit)
                self._next_client(visit, may_wait=True)

    def refuse(self, sock: socket.socket, octets: bytes, why: str) -> None:
        """Answer a visitor of whom nothing else is known, and let him go."""
        self._ledger.unclear(why)
        self._parting.part(sock, octets)

    def stop(self) -> None:
        """Cut all who wait."""
        for visit in list(self._waiting):
            self._cancel(visit)
        if self._sweep is not None and self._sweep.active():
            self._sweep.cancel()

    def _admit(self, visit: Visit, page: bytes | None = None) -> None:
        """``page``: what he is refused with, though his first head could be read."""
        over = self._ledger.came(visit, self._routes.match(visit.host) or self._known_as(visit.host) or "")
        if page is not None:
            self._part(visit, page, "bad_request")
            return
        if over is None and len(self._waiting) >= _WAITING_AT_MOST:
            over = Over.FULL
        if over is not None:
            self._part(visit, (Port.TLS if visit.head is None else Port.HTTP).value, over.value)
            return
        self._waiting[visit] = None
        self._readiness.change(visit.sock, lambda events: self._visitor_ready(visit, events))
        if self._sweep is None or not self._sweep.active():
            self._sweep = self._clock.callLater(_SWEEP_SECONDS, self._look)
        self._begin(visit)

    def _begin(self, visit: Visit) -> None:
        if visit.head is not None:
            offers = self._routes.offers(visit.host) if self._is_served(visit.host) else []
            if offers and all(offer.http != "serve" for offer in offers):
                host, target, method = visit.head.host, visit.head.target, visit.head.method
                page = refusal.redirect(host, target, self._https_port, method=method)
                self._part(visit, page, "redirected")
                return
        self._next_client(visit)

    def _next_client(self, visit: Visit, *, may_wait: bool = False) -> None:
        http = visit.head is not None
        session = None
        if len(visit.tried) < _CLIENTS_AT_MOST and self._is_served(visit.host):
            session = self._routes.pick(visit.host, http=http, excluding=visit.tried)
        if session is not None:
            visit.tried.append(session)
            visit.session = session
            visit.lanes_tried = 0
            visit.since = self._clock.seconds()
            self._take_lane(visit, session)
        elif visit.tried and not may_wait:
            self._refuse(visit, visit.outcome)
        elif not self._known(visit.host):
            self._refuse(visit, Outcome.NEVER_KNOWN)
        elif self._parked >= _PARKED_AT_MOST:
            self._refuse(visit, Outcome.NO_CLIENT)
        else:
            visit.parked = True
            visit.since = self._clock.seconds()
            self._parked += 1

    def _is_served(self, host: str) -> bool:
        """Whether the host's own clients are here. Those of a wildcard are not, where it is known more
        closely.

        A name that exists hides the wildcard over it (RFC 4592 3.3.1): while its client is away its visitors
        wait for him, and are not another client's.
        """
        served_as = self._routes.match(host)
        known_as = self._known_as(host)
        if served_as is None or known_as is None or served_as in (host, known_as):
            return served_as is not None
        return known_as != host and len(served_as) > len(known_as)

    def _unpark(self, visit: Visit) -> None:
        visit.parked = False
        self._parked -= 1

    def _take_lane(self, visit: Visit, session: Session, *, fresh: bool = False) -> None:
        visit.lanes_tried += 1
        give_up = session.lanes.take(
            visit.kind, lambda lane: self._lane_taken(visit, session, lane), fresh=fresh
        )
        # None: he got a lane, and may have lost it, waited for the next and gone on to another client since.
        if give_up is not None:
            visit.give_up = give_up

    def _lane_taken(self, visit: Visit, session: Session, lane: Lane) -> None:
        header = ProxyHeader(
            source=visit.source,
            destination=visit.destination,
            authority=visit.host,
            alpn=visit.alpn,
            unique_id=visit.unique_id,
            kind=Kind.TLS if visit.head is None else Kind.HTTP,
        )
        visit.give_up = None
        visit.lane = lane
        visit.lane_since = self._clock.seconds()
        visit.checked = False
        if visit.head is not None:
            offer = self._routes.offer(visit.host, session)
            if offer is None:  # taken back while he waited; nobody says how to write the head
                self._drop_lane(visit)
                self._next_client(visit)
                return
            visit.going_to(forwarded=offer.forwarded)
        visit.unsent = lane.seal(header.octets()) + visit.ahead
        self._readiness.change(lane.wire, lambda events: self._lane_ready(visit, lane, events))
        self._lane_ready(visit, lane, WRITABLE)  # nothing can have come yet

    def _lane_ready(self, visit: Visit, lane: Lane, events: int) -> None:
        if visit.lane is not lane:
            return
        try:
            if visit.unsent and events & (WRITABLE | ENDING):
                while visit.unsent:
                    visit.unsent = visit.unsent[lane.wire.send(visit.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._lane_died(visit)
            return
        if not isinstance(lane.wire, socket.socket):
            lane.wire.flush()  # type: ignore[attr-defined]
        if events & (READABLE | ENDING):
            self._read_status(visit, lane)

    def _read_status(self, visit: Visit, lane: Lane) -> None:
        try:
            octets = lane.wire.recv(_READ_OCTETS)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._lane_died(visit)
        elif octets[0] == Status.JOINED:
            self._join(visit, lane, octets[1:])
        else:
            self._drop_lane(visit)
            visit.outcome = _OUTCOMES.get(octets[0], Outcome.ORIGIN_FAILED)
            self._next_client(visit)

    def _lane_died(self, visit: Visit) -> None:
        """The lane is at fault, not yet its client: another lane of his first. Where there is no other
        client, at last one that he opens now: if he has lost his link as well, to ask him for it will tell.
        """
        self._drop_lane(visit)
        session = visit.session
        fresh = visit.lanes_tried == _LANES_AT_MOST and not self._others_left(visit)
        if session is not None and not session.lanes.closed and (visit.lanes_tried < _LANES_AT_MOST or fresh):
            self._take_lane(visit, session, fresh=fresh)
        else:
            visit.outcome = Outcome.NO_CLIENT
            self._next_client(visit)

    def _join(self, visit: Visit, lane: Lane, to_visitor: bytes) -> None:
        session = visit.session
        assert session is not None
        del self._waiting[visit]
        visit.lane = None
        joined = self._relay.join(
            visit.wire,
            lane.wire,
            among=session.joined,
            ended=self._ledger.joined(visit, session.peer.id),
            to_a=to_visitor,
            to_b=visit.unsent + visit.behind(),
        )
        if isinstance(visit.wire, Examined):  # it books the relay's next read
            visit.wire.joined = joined

    def _visitor_ready(self, visit: Visit, events: int) -> None:
        """While he waits, all that matters of a visitor is whether he was reset; his end of stream is read
        after the join.
        """
        if events & FAILED and visit in self._waiting:
            self._cancel(visit)

    def _look(self) -> None:
        """The sweep: who has waited too long, and whose lane takes nothing."""
        now = self._clock.seconds()
        for visit in list(self._waiting):
            if visit not in self._waiting:
                continue
            waited = now - visit.since
            if visit.parked:
                if waited >= _PARK_SECONDS:
                    self._unpark(visit)
                    self._refuse(visit, Outcome.NO_CLIENT)
            elif waited >= _LAST_TRY_SECONDS or (waited >= _TRY_SECONDS and self._others_left(visit)):
                visit.outcome = Outcome.NO_CLIENT if visit.lane is None else Outcome.ORIGIN_SILENT
                silent = visit.session
                self._drop_lane(visit)
                self._next_client(visit)
                if silent is not None:  # last: it may be known to be dead by now, and then its visitors move
                    silent.doubt()
            elif (
                visit.lane is not None
                and not visit.checked
                and now - visit.lane_since >= _UNACKNOWLEDGED_SECONDS
            ):
                visit.checked = True
                if _unacknowledged(visit.lane.wire):
                    self._lane_died(visit)
        if self._waiting:
            self._sweep = self._clock.callLater(_SWEEP_SECONDS, self._look)

    def _others_left(self, visit: Visit) -> bool:
        return len(visit.tried) < _CLIENTS_AT_MOST and self._routes.has_other(
            visit.host, http=visit.head is not None, excluding=visit.tried
        )

    def _refuse(self, visit: Visit, outcome: Outcome) -> None:
        why = outcome.name.lower()
        if visit.head is not None:
            self._part(visit, refusal.http(outcome.value, method=visit.head.method), why)
        elif outcome is Outcome.NEVER_KNOWN:
            self._part(visit, refusal.alert(UNRECOGNIZED_NAME), why)
        else:
            self._part(visit, refusal.alert(refusal.INTERNAL_ERROR), why)

    def _part(self, visit: Visit, octets: bytes, why: str) -> None:
        self._waiting.pop(visit, None)
        self._ledger.refused(visit, why)
        self._parting.part(visit.sock, octets)

    def _cancel(self, visit: Visit) -> None:
        self._waiting.pop(visit, None)
        if visit.parked:
            self._unpark(visit)
        self._drop_lane(visit)
        self._ledger.refused(visit, "left")
        self._close(visit.sock)

    def _drop_lane(self, visit: Visit) -> None:
        """Give up the lane, or the wait for one. A reset, so that the client stops at once what it began."""
        if visit.give_up is not None:
            visit.give_up()
            visit.give_up = None
        if visit.lane is not None:
            reset_on_close(visit.lane.wire)
            self._close(visit.lane.wire)
            visit.lane = None
        visit.unsent = b""

    def _close(self, wire: Wire) -> None:
        self._readiness.forget(wire)
        wire.close()


def _unacknowledged(wire: Wire) -> bool:
    """Whether the peer's kernel has not yet taken all that was sent (SIOCOUTQ, tcp(7))."""
    (octets,) = struct.unpack("i", fcntl.ioctl(wire.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    return bool(octets)
