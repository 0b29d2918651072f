"""The two ports that the public meets: who connects is read from his first octets, and handed to whoever it
is for.

On the TLS port come visitors, links, watches and lanes. A connection is ours by its SNI, the service name,
which no grant may cover; which of ours it is, its ALPN says. So a passed-through name may use any ALPN there
is.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import Service

from appliance.ingress import refusal
from appliance.ingress.clienthello import UNRECOGNIZED_NAME, ClientHello, HelloRefused
from appliance.ingress.httphead import HeadReader, HeadRefused
from appliance.ingress.limits import Over
from appliance.ingress.peek import LanePreface, Peek
from appliance.service import keepalive, ports
from appliance.service.deadlines import Deadlines
from appliance.service.fewlines import FewLines
from appliance.service.readiness import ENDING, READABLE, Readiness
from appliance.service.server.adoption import Adoption
from appliance.service.server.gate import Gate, Port, source_of
from appliance.service.server.lanes import Lanes
from appliance.service.server.visitors import Visitors
from appliance.service.server.waitingline import WaitingLine
from appliance.service.tls import ServerTls

ALPN_LINK = b"tunnel/1"
ALPN_WATCH = b"watch/1"
ALPN_LANE = b"tunnel-lane/1"

#: From accept to the whole ClientHello (HAProxy's usual inspect-delay), and to the whole head of a first
#: request. Absolute, not idle: an octet a second does not stretch it.
_HELLO_SECONDS = 5.0
_HEAD_SECONDS = 10.0
#: Connections before their hello; past it the oldest goes. A flood of silent ones keeps nobody out for longer
#: than it takes to send a hello.
_ARRIVALS_AT_MOST = 4096
#: Accepted in one go, before others get their turn.
_ACCEPTED_A_TURN = 64
#: After the descriptors ran out: long enough for some to come back, short enough that nobody's connect times
#: out.
_ACCEPT_PAUSE_SECONDS = 0.1
_READ_OCTETS = 1 << 16


Address = tuple[str, int]


class _Arrival(Protocol):
    """A connection of which it is not yet clear whose it is; ``over`` is why it has no room if it is a
    visitor's.
    """

    port: Port
    sock: socket.socket
    address: Address
    seconds: float
    over: Over | None
    gone: bool

    def ready(self, events: int, /) -> None:
        """The readiness: something came."""
        ...

    def feed(self, octets: bytes) -> bool:
        """Take octets; True when the connection has found its owner."""
        ...

    def late(self) -> bytes:
        """What to answer when the time is over."""
        ...


class TlsArrival:
    """A connection on the TLS port."""

    port = Port.TLS
    seconds = _HELLO_SECONDS
    gone = False

    def __init__(self, entry: Entry, sock: socket.socket, address: Address, over: Over | None) -> None:
        self.sock = sock
        self.address = address
        self.over = over
        self._entry = entry
        self._peek = Peek()

    def ready(self, events: int) -> None:
        if events & (READABLE | ENDING):
            self._entry.heard(self)

    def feed(self, octets: bytes) -> bool:
        try:
            seen = self._peek.feed(octets)
        except HelloRefused as refused:
            self._entry.refuse(self, refusal.alert(refused.alert), "bad_hello")
            return True
        if seen is None:
            return False
        if isinstance(seen, LanePreface):
            self._entry.lane_read(self, seen)
        else:
            self._entry.hello_read(self, seen)
        return True

    def late(self) -> bytes:
        return b""


class HttpArrival:
    """A connection on the HTTP port."""

    port = Port.HTTP
    seconds = _HEAD_SECONDS
    gone = False

    def __init__(self, entry: Entry, sock: socket.socket, address: Address, over: Over | None) -> None:
        self.sock = sock
        self.address = address
        self.over = over
        self._entry = entry
        self._reader = HeadReader()

    def ready(self, events: int) -> None:
        if events & (READABLE | ENDING):
            self._entry.heard(self)

    def feed(self, octets: bytes) -> bool:
        try:
            head = self._reader.feed(octets)
        except HeadRefused as refused:
            self._entry.refuse(self, refusal.http(refused.status, why=refused.text), "bad_request")
            return True
        if head is None:
            return False
        self.gone = True  # the ledger tells when
        self._entry.visitors.http_arrived(self.sock, self.address, head, bytes(self._reader.octets))
        return True

    def late(self) -> bytes:
        return refusal.http(408) if self._reader.octets else b""


class Entry(Service):
    """Listens, accepts, reads the first octets, and hands over."""

    def __init__(
        self,
        reactor: Any,
        readiness: Readiness,
        *,
        tls_addresses: list[tuple[str, int]],
        http_addresses: list[tuple[str, int]],
        service_name: str,
        default_name: str | None,
        gate: Gate,
        complaints: FewLines,
    ) -> None:
        """``default_name``: whose visitors those are that name nobody (no SNI), or None: they get
        ``unrecognized_name``.
        """
        self._gate = gate
        self._reactor = reactor
        self._readiness = readiness
        self._addresses: list[tuple[type[TlsArrival] | type[HttpArrival], str, int]] = [
            *((TlsArrival, host, port) for host, port in tls_addresses),
            *((HttpArrival, host, port) for host, port in http_addresses),
        ]
        self._service_name = service_name
        self._default_name = default_name
        self._complaints = complaints
        self._listeners: list[tuple[type[TlsArrival] | type[HttpArrival], socket.socket]] = []
        self._arrivals = {
            kind.port: Deadlines[_Arrival](reactor, kind.seconds, self._late)
            for kind in (TlsArrival, HttpArrival)
        }
        self._pauses: set[Any] = set()

    def wire(
        self, *, visitors: Visitors, lanes: Lanes, adoption: Adoption, links: WaitingLine, tls: ServerTls
    ) -> None:
        """Who takes over what arrives; before the service starts."""
        self.visitors = visitors
        self.lanes = lanes
        self._adoption = adoption
        self._links = links
        self._tls = tls

    @property
    def ports(self) -> list[int]:
        """The ports listened on, in the order of the addresses given: TLS first, then HTTP."""
        return [listener.getsockname()[1] for _, listener in self._listeners]

    def privilegedStartService(self) -> None:
        """Bind, while twistd still may."""
        for arrival, host, port in self._addresses:
            listener = ports.bind_tcp(host, port)
            keepalive.of_visitors(listener)
            self._listeners.append((arrival, listener))

    def startService(self) -> None:
        """Accept; the readiness has been started."""
        Service.startService(self)
        if not self._listeners:  # twist, and MultiService in tests, do not call privilegedStartService
            self.privilegedStartService()
        for arrival, listener in self._listeners:
            self._readiness.register(listener, self._acceptor(arrival, listener))

    def stopService(self) -> None:
        """Stop listening, and cut who has not said yet whom he wants."""
        Service.stopService(self)
        for _, listener in self._listeners:
            self._readiness.forget(listener)
            listener.close()
        self._listeners.clear()
        for arrivals in self._arrivals.values():
            for arrival in arrivals.all():
                self._close(arrival)
            arrivals.stop()
        for pause in self._pauses:
            pause.cancel()
        self._pauses.clear()

    def lane_read(self, arrival: TlsArrival, preface: LanePreface) -> None:
        """A lane's preface."""
        if self._has_room(arrival):
            self.lanes.plain_arrived(arrival.sock, preface.octets40, preface.rest)

    def hello_read(self, arrival: TlsArrival, hello: ClientHello) -> None:
        """A whole ClientHello: ours by its SNI, or a visitor's."""
        sock = arrival.sock
        host = hello.server_name or self._default_name
        if host is None:
            self.refuse(arrival, refusal.alert(UNRECOGNIZED_NAME), "no_name")
        elif host != self._service_name:
            if ALPN_LINK in hello.alpn or ALPN_WATCH in hello.alpn:
                what = f"wants a link to or a watch of {host}, and this server is {self._service_name}"
                # He may be a visitor all the same: a passed-through name may use any protocol.
                self._complaints.warn(arrival.address[0], what)
            if arrival.over is None:
                arrival.gone = True  # the ledger tells when
                self.visitors.tls_arrived(sock, arrival.address, host, hello)
            else:
                self._turn_away(arrival, arrival.over)
        elif ALPN_LANE in hello.alpn:
            if self._has_room(arrival):
                self.lanes.tls_arrived(sock, hello.octets + hello.rest, self._tls.connection())
        elif ALPN_LINK in hello.alpn:
            self._went(arrival)
            self._links.join(sock, hello.octets + hello.rest, source_of(arrival.address[0]))
        elif ALPN_WATCH in hello.alpn:
            self._went(arrival)
            self._adoption.adopt(sock, hello.octets + hello.rest)
        else:
            self.refuse(arrival, refusal.alert(UNRECOGNIZED_NAME), "no_protocol")

    def _has_room(self, arrival: TlsArrival) -> bool:
        """A lane is no visitor. The last descriptors are not for lanes: without room it is closed."""
        self._went(arrival)
        if arrival.sock.fileno() < self._gate.lanes_below:
            return True
        self._readiness.forget(arrival.sock)
        arrival.sock.close()
        return False

    def refuse(self, arrival: _Arrival, octets: bytes, why: str) -> None:
        """Answer a connection of which it never became clear what it wants, and let it go."""
        if arrival.over is not None:
            self._turn_away(arrival, arrival.over)
            return
        self._went(arrival)
        self.visitors.refuse(arrival.sock, octets, why)

    def _went(self, arrival: _Arrival) -> None:
        """The gate hears it once, even where whoever took the connection over failed."""
        if not arrival.gone:
            arrival.gone = True
            self._gate.went(arrival.address[0])

    def _turn_away(self, arrival: _Arrival, over: Over) -> None:
        self._readiness.forget(arrival.sock)
        self._went(arrival)
        self._gate.turn_away(arrival.sock, arrival.port, over, arrival.address[0])

    def _acceptor(self, arrival: type[TlsArrival] | type[HttpArrival], listener: socket.socket) -> Any:
        def accept(_events: int = READABLE) -> None:
            for _ in range(_ACCEPTED_A_TURN):
                try:
                    sock, address = listener.accept()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        self._pause(accept, error)
                        return
                    if listener.fileno() < 0:
                        return
                    continue  # ECONNABORTED and its like: he has left again (accept(2))
                sock.setblocking(False)
                try:
                    self._accepted(arrival, sock, address[:2])
                except Exception:
                    self._readiness.again(accept)  # nobody tells again of those who wait behind him
                    raise
            self._readiness.again(accept)

        return accept

    def _pause(self, accept: Callable[[], None], error: OSError) -> None:
        self._complaints.warn("entry", f"cannot accept for the moment: {error.strerror}")

        def go_on() -> None:
            self._pauses.discard(pause)
            accept()

        pause = self._reactor.callLater(_ACCEPT_PAUSE_SECONDS, go_on)
        self._pauses.add(pause)

    def _accepted(
        self, kind: type[TlsArrival] | type[HttpArrival], sock: socket.socket, address: Address
    ) -> None:
        gate = self._gate
        over = gate.take(address[0], sock.fileno())
        if over is not None:
            if kind.port is Port.HTTP or not gate.may_be_ours(address[0], over):
                gate.turn_away(sock, kind.port, over, address[0])
                return
            gate.came(address[0])
        self._arrived(kind(self, sock, address, over))

    def _arrived(self, arrival: _Arrival) -> None:
        sock = arrival.sock
        most = min(_ARRIVALS_AT_MOST, self._gate.silent_at_most)
        silent = self.silent
        if silent >= most or (silent and sock.fileno() >= self._gate.lanes_below):
            self._close(self._longest_silent())
        self._arrivals[arrival.port].add(arrival)
        self._readiness.register(sock, arrival.ready)  # what he has said already is an event as well

    @property
    def silent(self) -> int:
        """How many have not said yet whom they want."""
        return len(self._arrivals[Port.TLS]) + len(self._arrivals[Port.HTTP])

    def _longest_silent(self) -> _Arrival:
        return max(self._arrivals.values(), key=len).oldest()

    def heard(self, arrival: _Arrival) -> None:
        """Something can be read."""
        while True:
            try:
                octets = arrival.sock.recv(_READ_OCTETS)
            except BlockingIOError:
                return
            except OSError:
                octets = b""
            if not octets:
                self._close(arrival)
                return
            if arrival.feed(octets):
                self._arrivals[arrival.port].discard(arrival)
                return

    def _late(self, arrival: _Arrival) -> None:
        self.refuse(arrival, arrival.late(), "late")

    def _close(self, arrival: _Arrival) -> None:
        self._arrivals[arrival.port].discard(arrival)
        self._went(arrival)
        self._readiness.forget(arrival.sock)
        arrival.sock.close()
