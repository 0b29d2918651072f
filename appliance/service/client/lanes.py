"""The lanes of one link: connections opened to its server before a visitor comes, one of which each visitor
takes.

Hides how many there are (:mod:`appliance.tunnel.pool` decides), their counters and their sockets. A lane is a
bare socket; one of kind ``tls`` has TLS of its own on it, resumed from a session of the link or of an earlier
lane. Once its header has come a lane is a visit's.
"""

from __future__ import annotations

import itertools
import socket
from dataclasses import dataclass
from typing import Any, Literal

from OpenSSL import SSL
from twisted.logger import Logger

from appliance.service import keepalive
from appliance.service.client.complaints import Complaints
from appliance.service.client.dial import Dial, Target
from appliance.service.client.origins import in_words
from appliance.service.client.tls import LANE_ALPN, ClientTls, ServerProof, ServerRefused
from appliance.service.client.visits import Visits
from appliance.service.fewlines import FewLines
from appliance.service.readiness import READABLE
from appliance.service.relay import Wire
from appliance.service.tlswire import TlsWire
from appliance.tunnel.lane import LaneError, LaneKeys, SealedHeader, read_preface, write_preface
from appliance.tunnel.pool import Pool
from appliance.tunnel.proxyheader import ProxyHeader, ProxyHeaderError, read_proxy_header

Kind = Literal["plain", "tls"]

#: Idle lanes kept at each server, by kind: the first visitor of a quiet name costs no round trip, and
#: plaintext visitors are few.
FLOORS: dict[Kind, int] = {"plain": 2, "tls": 0}
#: 256 idle lanes are a burst of 256 visitors within one round trip; beyond that the pool follows demand.
CEILING = 256
#: Idle and opening lanes of all kinds at one server.
MAX_LANES = 512
#: For the handshake of a TLS lane, once it is connected.
HANDSHAKE_SECONDS = 5.0
#: A lane that ends so soon after it was opened was refused: the next one waits as after a failed dial.
SOON_SECONDS = 1.0
#: A lane that was opened so long ago has arrived, if its way is not cut: a server that has visitors waiting
#: and does not hold it never will. It is doubted (replaced, and closed a little later), for its header may be
#: on the way here.
ARRIVED_SECONDS = 2.0
DOUBTED_SECONDS = 1.0

_READ_OCTETS = 1 << 16


@dataclass(frozen=True, slots=True)
class Session:
    """What a link gives its lanes: where the server is, whose lanes they are, and the keys. ``server`` is the
    serial number of its certificate.
    """

    target: Target
    session_id: bytes
    keys: LaneKeys
    tls: ClientTls
    resume: SSL.Session | None
    server: int


class Lanes:
    """The idle lanes of one session, from ``start()`` to ``stop()``. Those that were taken go on."""

    log = Logger()

    def __init__(self, reactor: Any, visits: Visits, session: Session, called: str) -> None:
        """``called``: the server in a log line."""
        self.reactor = reactor
        self.visits = visits
        self.session = session
        self.called = called
        self.resume = session.resume
        self.complaints = Complaints()
        self.few_lines = FewLines(reactor, self.log)
        self._counters = itertools.count(1)
        self._pools: dict[Kind, Pool] = {kind: Pool(floor, CEILING) for kind, floor in FLOORS.items()}
        self._lanes: set[_Lane] = set()
        self._timer: Any = None
        self._running = False
        self._to_review = False

    def start(self) -> None:
        """Open the first ones."""
        self._running = True
        self.review()

    def stop(self) -> None:
        """The session is over: its idle lanes are worth nothing."""
        self._running = False
        self._forget_timer()
        for lane in list(self._lanes):
            lane.close()
        self._lanes.clear()

    def asked(self, kind: Kind, held: int, waiting: int) -> None:
        """The server holds ``held`` idle lanes of a kind, and ``waiting`` visitors for whom it has none."""
        now = self.reactor.seconds()
        if waiting:
            arrived = [lane for lane in self._lanes if lane.arrived(kind, now)]
            for lane in sorted(arrived, key=lambda lane: lane.opened_at)[: max(0, len(arrived) - held)]:
                self._pools[kind].lost()
                lane.doubt()
        self._pools[kind].asked(waiting, now)
        self.review()

    def idle(self, kind: Kind) -> int:
        """How many lanes of a kind are open or being opened."""
        return sum(1 for lane in self._lanes if lane.kind == kind)

    def preface(self) -> bytes:
        """The preface of one more lane."""
        return write_preface(self.session.keys, self.session.session_id, next(self._counters))

    # What lanes tell

    def opened(self, lane: _Lane) -> None:
        self._pools[lane.kind].opened()
        self._review_soon()

    def failed(self, lane: _Lane, words: str) -> None:
        """It could not be opened."""
        self._lanes.discard(lane)
        self._pools[lane.kind].failed(self.reactor.seconds())
        self.complain(lane.kind, words)
        self._review_soon()

    def lost(self, lane: _Lane) -> None:
        """It was open, and is gone without a visitor."""
        self._lanes.discard(lane)
        now, pool = self.reactor.seconds(), self._pools[lane.kind]
        if lane.doubted:
            pass  # the pool has given it up already
        elif now - lane.opened_at < SOON_SECONDS:
            pool.refused(now)
        else:
            pool.lost()
        self._review_soon()

    def taken(self, lane: _Lane) -> None:
        """Its header has come."""
        self.complaints.over(lane.kind)
        self._spent(lane)

    def unread(self, lane: _Lane, error: ProxyHeaderError) -> None:
        """Its header has come from the server and is none to us: a visitor has brought that about, or the
        server is newer than we. Whatever a visitor brings about must not make the pool back off, for others
        wait for its lanes.
        """
        self.few_lines.warn(
            self.called, f"a {lane.kind} lane was closed, its visitor's header cannot be read: {error}"
        )
        self._spent(lane)

    def _spent(self, lane: _Lane) -> None:
        """A visitor has come on it."""
        self._lanes.discard(lane)
        if not lane.doubted:
            self._pools[lane.kind].taken(self.reactor.seconds())
        self._review_soon()

    def complain(self, kind: Kind, words: str, details: object = "") -> None:
        """Say once what is wrong with lanes of a kind; other ``details`` are no reason to say it again."""
        if self.complaints.new(kind, words):
            self.log.warn(
                "{kind} lane to {server}: {words}{details}",
                kind=kind,
                server=self.called,
                words=words,
                details=details,
            )

    def _review_soon(self) -> None:
        """Once for all that happens in this turn."""
        if not self._to_review:
            self._to_review = True
            self.visits.readiness.again(self.review)

    def review(self) -> None:
        """Open what the pools want, close what they do not, and look again when they say."""
        if not self._running:
            return
        self._to_review = False
        now = self.reactor.seconds()
        for kind, pool in self._pools.items():
            self._close_oldest(kind, pool.to_close(now))
            for _ in range(pool.to_dial(now, room=MAX_LANES - len(self._lanes))):
                lane = _Lane(self, kind)
                self._lanes.add(lane)
                lane.dial()
        self._forget_timer()
        # What is due already waits for a dial that is under way, and is looked at again when that has ended.
        deadlines = [
            at for pool in self._pools.values() if (at := pool.next_deadline()) is not None and at > now
        ]
        if deadlines:
            self._timer = self.reactor.callLater(min(deadlines) - now, self._tick)

    def _close_oldest(self, kind: Kind, count: int) -> None:
        """The server takes the newest first, so hardly ever is a visitor on his way to one of these; if he
        is, he gets another.
        """
        if not count:
            return
        idle = [lane for lane in self._lanes if lane.kind == kind and lane.idle]
        for lane in sorted(idle, key=lambda lane: lane.opened_at)[:count]:
            self._lanes.discard(lane)
            lane.close()

    def _tick(self) -> None:
        self._timer = None
        self.review()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Lane:
    """One lane, from the dial to its header."""

    __slots__ = ("_dial", "_header", "_lanes", "_proof", "_timer", "_wire", "doubted", "kind", "opened_at")

    def __init__(self, lanes: Lanes, kind: Kind) -> None:
        self.kind: Kind = kind
        self.opened_at = float("inf")
        self.doubted = False
        self._lanes = lanes
        self._dial: Dial | None = None
        self._wire: Wire | None = None
        self._proof: ServerProof | None = None
        self._timer: Any = None
        self._header: SealedHeader | None = None

    def dial(self) -> None:
        lanes = self._lanes
        self._dial = lanes.visits.dialling.dial([lanes.session.target], self._dialled)

    @property
    def idle(self) -> bool:
        """Whether it is open, and the pool counts it."""
        return self.opened_at < float("inf") and not self.doubted

    def arrived(self, kind: Kind, now: float) -> bool:
        """Whether the server must have it, if it is of this kind and its way is not cut."""
        return self.kind == kind and not self.doubted and now - self.opened_at >= ARRIVED_SECONDS

    def doubt(self) -> None:
        """The server does not seem to have it: close it, unless its header comes yet."""
        self.doubted = True
        self._timer = self._lanes.reactor.callLater(DOUBTED_SECONDS, self._lost)

    def close(self) -> None:
        """Close it, whatever it is doing, without a word."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._stop_timer()
        if self._wire is not None:
            self._lanes.visits.readiness.forget(self._wire)
            self._wire.close()
            self._wire = None

    def _dialled(self, result: socket.socket | OSError) -> None:
        self._dial = None
        if isinstance(result, OSError):
            self._lanes.failed(self, f"cannot be opened: {in_words(result)}")
            return
        lanes = self._lanes
        keepalive.of_idle_lane(result)
        if self.kind == "plain":
            self._wire = result
            self._open()
            return
        self._proof = lanes.session.tls.connection(LANE_ALPN)
        if lanes.resume is not None:
            self._proof.connection.set_session(lanes.resume)
        self._wire = TlsWire(result, self._proof.connection)
        self._timer = lanes.reactor.callLater(
            HANDSHAKE_SECONDS, self._fail, "cannot be opened: no end of the TLS handshake"
        )
        lanes.visits.readiness.change(result, self._handshake)
        self._handshake(READABLE)

    def _handshake(self, _events: int) -> None:
        assert isinstance(self._wire, TlsWire)
        assert self._proof is not None
        try:
            if not self._wire.handshake():
                return
            self._proof.check(self._lanes.session.tls)
        except (OSError, ServerRefused) as error:
            self._fail(f"cannot be opened: {self._proof.refusal or in_words(error)}")
            return
        self._stop_timer()
        self._open()

    def _open(self) -> None:
        assert self._wire is not None
        preface = self._lanes.preface()
        try:
            sent = self._wire.send(preface)
        except OSError as error:
            self._fail(f"cannot be opened: {in_words(error)}")
            return
        if sent < len(preface):  # the first octets of a fresh connection always fit
            self._fail("cannot be opened: its first octets do not go out")
            return
        self._header = SealedHeader(self._lanes.session.keys, read_preface(preface))
        self.opened_at = self._lanes.reactor.seconds()
        self._lanes.opened(self)
        self._lanes.visits.readiness.change(self._wire, self._ready)
        self._ready(READABLE)

    def _ready(self, events: int) -> None:
        if self._wire is None:
            return
        assert self._header is not None
        try:
            while True:
                octets = self._wire.recv(_READ_OCTETS)
                if not octets:
                    self._lost()
                    return
                opened = self._header.feed(octets)
                if opened is not None:
                    break
        except BlockingIOError:
            return
        except LaneError as error:
            self._lanes.complain(self.kind, "closed, its header is not the server's: ", error)
            self._lost()
            return
        except OSError:
            self._lost()
            return
        try:
            header = read_proxy_header(opened[0])
        except ProxyHeaderError as error:
            self.close()
            self._lanes.unread(self, error)
            return
        self._take(header, opened[1])

    def _take(self, header: ProxyHeader, early: bytes) -> None:
        assert self._wire is not None
        wire, self._wire = self._wire, None
        self._stop_timer()
        if self._proof is not None:
            self._lanes.resume = self._proof.connection.get_session()
        self._lanes.visits.begin(wire, header, early, self._lanes.session.server)
        self._lanes.taken(self)

    def _lost(self) -> None:
        self.close()
        self._lanes.lost(self)

    def _fail(self, words: str) -> None:
        self.close()
        self._lanes.failed(self, words)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
