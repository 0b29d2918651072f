"""A visitor who is not joined yet: what he has sent, what of it goes to a client when, and where he is."""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable

from appliance.ingress.clienthello import ClientHello
from appliance.ingress.httphead import RequestHead
from appliance.ingress.requests import Requests
from appliance.service.examined import Examined
from appliance.service.relay import Wire
from appliance.service.server.lanes import PLAIN, TLS, Lane
from appliance.service.server.links import Session


class Outcome(enum.Enum):
    """Why a visitor is refused; the values are the HTTP statuses."""

    NEVER_KNOWN = 404
    ORIGIN_FAILED = 502
    NO_CLIENT = 503
    ORIGIN_SILENT = 504


class Visit:
    """A visitor on the TLS port; one on the HTTP port is a Request."""

    __slots__ = (
        "ahead",
        "alpn",
        "came",
        "checked",
        "destination",
        "give_up",
        "host",
        "lane",
        "lane_since",
        "lanes_tried",
        "name",
        "outcome",
        "parked",
        "rest",
        "session",
        "since",
        "sock",
        "source",
        "tried",
        "unique_id",
        "unsent",
        "wire",
    )
    kind = PLAIN
    head: RequestHead | None = None

    def __init__(
        self,
        sock: socket.socket,
        source: tuple[str, int],
        host: str,
        hello: ClientHello | None,
        unique_id: bytes,
    ) -> None:
        """``source``: as accept gave it; who was reset meanwhile has no address any more."""
        self.sock = sock
        self.wire: Wire = sock
        self.host = host
        self.ahead = hello.octets if hello else b""  # to every client that is tried
        self.rest = hello.rest if hello else b""  # to the one that joined him
        self.alpn = hello.alpn[0] if hello and hello.alpn else None
        self.source = source
        self.destination = sock.getsockname()[:2]
        self.unique_id = unique_id  # in the logs of all ends
        self.came = 0.0
        self.name = ""  # or wildcard, that the host belongs to
        self.parked = False
        self.since = 0.0  # parked, or with this client
        self.tried: list[Session] = []
        self.outcome = Outcome.NO_CLIENT
        self.session: Session | None = None
        self.give_up: Callable[[], None] | None = None  # while waiting for a lane
        self.lane: Lane | None = None
        self.lane_since = 0.0  # he may have waited for it
        self.lanes_tried = 0
        self.checked = False  # that the lane's octets were acknowledged
        self.unsent = b""

    def going_to(self, *, forwarded: bool) -> None:
        """The next client has his turn; ``forwarded`` as in its offer."""

    def behind(self) -> bytes:
        """What follows ``joined``; asked for once."""
        return self.rest


class Request(Visit):
    """A visitor on the HTTP port: the head of his first request was read, and what follows it was not."""

    __slots__ = ("_requests", "head")
    kind = TLS

    def __init__(
        self,
        sock: socket.socket,
        source: tuple[str, int],
        head: RequestHead,
        rest: bytes,
        requests: Requests,
        unique_id: bytes,
        clock: object,
    ) -> None:
        """``requests`` has let the head through; ``rest`` is what was read behind it."""
        super().__init__(sock, source, head.host, None, unique_id)
        self.wire = Examined(sock, requests, clock)
        self.head: RequestHead = head
        self.rest = rest
        self._requests = requests

    def going_to(self, *, forwarded: bool) -> None:
        """A head without a body goes ahead, and may be repeated; any other waits for ``joined``."""
        self._requests.forwarded_for = self.source[0] if forwarded else None
        self.ahead = self._requests.written(self.head) if self.head.bodiless else b""

    def behind(self) -> bytes:
        rest = self._requests.from_visitor(self.rest)
        return rest if self.head.bodiless else self._requests.written(self.head) + rest
