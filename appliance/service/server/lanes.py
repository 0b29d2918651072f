"""The lanes that clients keep ready here: who may bring one, which are idle, and who waits for one.

A lane names its session and proves that it comes from there by the preface; one that does not is closed
without a word, for it is a stranger's. What arrives on an idle lane is a protocol error or its end: either
way it is dropped before a visitor gets it.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from OpenSSL import SSL

from appliance.service.readiness import ENDING, READABLE, Readiness
from appliance.service.relay import Wire
from appliance.service.tlswire import TlsWire
from appliance.tunnel.certificates import Peer
from appliance.tunnel.lane import (
    PREFACE_OCTETS,
    CounterWindow,
    LaneError,
    LaneKeys,
    Preface,
    read_preface,
    seal_header,
    verify,
)

PLAIN = "plain"
TLS = "tls"

#: Idle lanes that one session may hold of each kind: the ceiling that clients keep, and some for a burst in
#: flight.
_IDLE_AT_MOST = 512
#: The link says at most this often that visitors wait: never once per visitor.
_ASK_EVERY_SECONDS = 0.02
#: TLS handshake and preface of a lane, together; as a visitor's hello.
_PREFACE_SECONDS = 5.0
#: TLS lanes between their hello and their preface, of all sessions.
_ARRIVING_AT_MOST = 1024


class Lane:
    """A connection that a client opened in advance; it is whoever's took it, with the preface that seals its
    header.
    """

    __slots__ = ("_keys", "_preface", "wire")

    def __init__(self, wire: Wire, keys: LaneKeys, preface: Preface) -> None:
        self.wire = wire
        self._keys = keys
        self._preface = preface

    def seal(self, header: bytes) -> bytes:
        """The visitor's header, as only this lane's client opens it. Once a lane."""
        return seal_header(self._keys, self._preface, header)


class SessionLanes:
    """The lanes of one session: idle ones of each kind, and the visitors that wait for one."""

    def __init__(
        self, keys: LaneKeys, readiness: Readiness, clock: Any, ask: Callable[[str, int, int], None]
    ) -> None:
        """``ask(kind, held, waiting)`` tells the client that visitors wait."""
        self.keys = keys
        self._readiness = readiness
        self._clock = clock
        self._ask = ask
        self._window = CounterWindow()
        self._idle: dict[str, deque[Lane]] = {PLAIN: deque(), TLS: deque()}
        self._waiting: dict[str, deque[Callable[[Lane], None]]] = {PLAIN: deque(), TLS: deque()}
        self._asking: dict[str, Any] = {}
        self.closed = False

    def held(self, kind: str) -> int:
        """Idle lanes of a kind."""
        return len(self._idle[kind])

    def fresh(self, preface: Preface) -> bool:
        """Whether this preface is of this session's key and was never used."""
        return not self.closed and verify(self.keys, preface) and self._window.take(preface.counter)

    def add(self, lane: Lane, kind: str) -> None:
        """A lane has arrived, its socket registered: for the visitor who waits longest, or idle."""
        if self.closed or len(self._idle[kind]) >= _IDLE_AT_MOST:
            self._drop(lane)
            return
        waiting = self._waiting[kind]
        if waiting:
            waiting.popleft()(lane)
            return
        self._idle[kind].append(lane)
        self._readiness.change(lane.wire, lambda events: self._spoke_too_early(lane, kind, events))
        self._spoke_too_early(lane, kind, READABLE)

    def take(
        self, kind: str, taken: Callable[[Lane], None], *, fresh: bool = False
    ) -> Callable[[], None] | None:
        """Call ``taken`` with a lane: now, or when one comes (if ``fresh``, in any case); then the answer
        gives up the wait.
        """
        if self._idle[kind] and not fresh:
            # The newest: its way through NATs and the client itself were alive most recently.
            taken(self._idle[kind].pop())
            return None
        waiting = self._waiting[kind]
        waiting.append(taken)
        self._ask_soon(kind)

        def give_up() -> None:
            if taken in waiting:
                waiting.remove(taken)

        return give_up

    def close(self) -> None:
        """The session has ended: idle lanes are closed, nobody is served any more (waiting visitors time out
        or gave up).
        """
        self.closed = True
        for kind in (PLAIN, TLS):
            while self._idle[kind]:
                self._drop(self._idle[kind].pop())
            self._waiting[kind].clear()
        for call in self._asking.values():
            if call.active():
                call.cancel()

    def _ask_soon(self, kind: str) -> None:
        call = self._asking.get(kind)
        if call is not None and call.active():
            return
        self._ask(kind, len(self._idle[kind]), len(self._waiting[kind]))
        self._asking[kind] = self._clock.callLater(_ASK_EVERY_SECONDS, self._ask_again, kind)

    def _ask_again(self, kind: str) -> None:
        if self._waiting[kind]:
            self._ask_soon(kind)

    def _spoke_too_early(self, lane: Lane, kind: str, events: int) -> None:
        if not events & (READABLE | ENDING):
            return
        try:
            lane.wire.recv(1)
        except BlockingIOError:
            return
        except OSError:
            pass
        self._idle[kind].remove(lane)
        self._drop(lane)

    def _drop(self, lane: Lane) -> None:
        self._readiness.forget(lane.wire)
        lane.wire.close()


def _is_of(wire: TlsWire, peer: Peer) -> bool:
    """Whether the other end of a TLS lane showed (now, or in the session it resumes) its link's certificate.
    """
    return wire.connection.get_peer_certificate(as_cryptography=True) == peer.certificate


class HasLanes(Protocol):
    """A session, as far as lanes care."""

    @property
    def peer(self) -> Peer: ...

    @property
    def lanes(self) -> SessionLanes: ...


class Lanes:
    """Takes lanes in, at the port that visitors use as well."""

    def __init__(self, readiness: Readiness, clock: Any, sessions: Mapping[bytes, HasLanes]) -> None:
        self._readiness = readiness
        self._clock = clock
        self._sessions = sessions
        self._arriving: dict[TlsWire, Any] = {}

    def plain_arrived(self, sock: socket.socket, preface_octets: bytes, rest: bytes) -> None:
        """A bare connection that began with a lane's preface; ``rest`` came with it, and nothing should have.
        """
        if rest or not self._admit(sock, preface_octets, PLAIN):
            self._close(sock)

    def tls_arrived(self, sock: socket.socket, octets: bytes, connection: SSL.Connection) -> None:
        """A connection whose ClientHello asks for a TLS lane: its preface comes as first application data."""
        if len(self._arriving) >= _ARRIVING_AT_MOST:
            self._close(sock)
            return
        arriving = _Arriving(self, TlsWire(sock, connection, octets))
        self._arriving[arriving.wire] = self._clock.callLater(_PREFACE_SECONDS, self._given_up, arriving.wire)
        self._readiness.change(arriving.wire, arriving.ready)
        arriving.ready(READABLE)

    def stop(self) -> None:
        """Close the lanes that have not said whose they are. The others end with their sessions."""
        for wire in list(self._arriving):
            self._given_up(wire)

    def _preface_read(self, wire: TlsWire, octets: bytes) -> None:
        self._arriving.pop(wire).cancel()
        if not self._admit(wire, octets, TLS):
            self._close(wire)

    def _given_up(self, wire: TlsWire) -> None:
        timer = self._arriving.pop(wire)
        if timer.active():
            timer.cancel()
        self._close(wire)

    def _admit(self, wire: socket.socket | TlsWire, octets: bytes, kind: str) -> bool:
        try:
            preface = read_preface(octets)
        except LaneError:
            return False
        session = self._sessions.get(preface.session_id)
        if session is None or not session.lanes.fresh(preface):
            return False
        if isinstance(wire, TlsWire) and not _is_of(wire, session.peer):
            return False
        session.lanes.add(Lane(wire, session.lanes.keys, preface), kind)
        return True

    def _close(self, wire: Wire) -> None:
        self._readiness.forget(wire)
        wire.close()


class _Arriving:
    """A TLS lane before its preface."""

    def __init__(self, lanes: Lanes, wire: TlsWire) -> None:
        self._lanes = lanes
        self.wire = wire
        self._established = False
        self._octets = b""

    def ready(self, _events: int) -> None:
        try:
            if not self._established and not self.wire.handshake():
                return
            self._established = True
            while len(self._octets) < PREFACE_OCTETS:
                octets = self.wire.recv(PREFACE_OCTETS - len(self._octets))
                if not octets:
                    break
                self._octets += octets
        except BlockingIOError:
            return
        except OSError:
            self._lanes._given_up(self.wire)
            return
        self._lanes._preface_read(self.wire, self._octets)
