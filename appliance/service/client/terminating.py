"""A visitor whose TLS ends here: his handshake, then every request of his examined on its way to a plain
origin.

The origin has accepted before the handshake begins, so that a visitor whose origin is dead is still given to
another client. From ``JOINED`` on, which goes out in front of the ServerHello, all that is to be said to him
is said inside TLS: that his request is for another site than his TLS (421), that it cannot be read in one way
only (400), that the origin ended without an answer (502) or gives none (504).

His requests reach the origin as HTTP/1.1 with who he is in fields that he cannot write himself
(``ingress/forwarded.py``); what the origin answers is passed on as it is, as it comes.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from appliance.ingress import refusal
from appliance.ingress.requests import Requests
from appliance.service.client.answering import Answering
from appliance.service.client.keypairs import ALPN
from appliance.service.examined import Examined
from appliance.service.readiness import READABLE
from appliance.service.relay import Ended, reset_on_close
from appliance.service.tlsend import TlsEnd
from appliance.tunnel.proxyheader import ProxyHeader

if TYPE_CHECKING:
    from appliance.service.client.visits import Visits

#: For a visitor's handshake: what a tunnel server gives a slow head.
HANDSHAKE_SECONDS = 10.0
#: How long an origin may think about the first request of a connection, once it has all of it: nginx'
#: proxy_read_timeout. Behind the first answer it is not known which request is waited for, and there is no
#: limit.
ANSWER_SECONDS = 60.0
_LOOKS = 4


class Terminating:
    """From the origin's accept to the join."""

    def __init__(
        self,
        visits: Visits,
        wire: TlsEnd,
        origin: socket.socket,
        header: ProxyHeader,
        server: int,
        proxy_protocol: bool,
    ) -> None:
        self.server = server
        self._visits = visits
        self._wire = wire
        self._origin = origin
        self._header = header
        self._proxy_protocol = proxy_protocol
        self._over = False
        self._timer = visits.reactor.callLater(HANDSHAKE_SECONDS, self.end)

    def begin(self) -> None:
        visits = self._visits
        visits.waiting.add(self)
        visits.readiness.change(self._origin, lambda events: None)  # whoever is joined to it will look
        visits.readiness.change(self._wire, self._ready)
        self._ready(READABLE)

    def end(self) -> None:
        """Close both ends, without a word."""
        if self._drop():
            self._close_origin()
            self._visits.readiness.forget(self._wire)
            self._wire.close()

    def _ready(self, _events: int) -> None:
        if self._over:
            return
        try:
            if not self._wire.handshake():
                return
        except OSError:
            self._fail()
            return
        self._join()

    def _join(self) -> None:
        self._drop()
        header = self._header
        requests = Requests(header.authority, "https")
        requests.forwarded_for = header.source[0]
        origin = Answering(self._origin)
        fault = _Fault(requests, origin)
        examined = Examined(self._wire, requests, self._visits.reactor, fault.page)
        to_origin = self._proxy_header() if self._proxy_protocol else b""
        joined = self._visits.join(
            examined, origin, self.server, to_lane=b"", to_origin=to_origin, ended=fault.ended
        )
        if joined in self._visits.relay.joined:
            examined.joined = joined
            fault.watch(self._visits.reactor, examined)

    def _proxy_header(self) -> bytes:
        """What the visitor offered first may have been h2; what the origin gets is not."""
        said = self._header
        spoken = ALPN.encode("ascii")
        return ProxyHeader(
            said.source, said.destination, said.authority, spoken, said.unique_id, None
        ).octets()

    def _fail(self) -> None:
        """The handshake has failed: the alert, if there is one, and the end."""
        self._drop()
        self._close_origin()
        self._visits.leave(self._wire.sock, self.server, self._wire.unsent())

    def _close_origin(self) -> None:
        reset_on_close(self._origin)
        self._visits.readiness.forget(self._origin)
        self._origin.close()

    def _drop(self) -> bool:
        if self._over:
            return False
        self._over = True
        self._visits.waiting.discard(self)
        if self._timer.active():
            self._timer.cancel()
        return True


class _Fault:
    """The page for a visitor whose origin did not answer his first request at all.

    Of later requests nobody knows here whether the origin has answered them, so nothing is said for it.
    """

    def __init__(self, requests: Requests, origin: Answering) -> None:
        self._requests = requests
        self._origin = origin
        self._status = 502
        self._examined: Examined | None = None
        self._clock: Any = None
        self._timer: Any = None
        self._looks = 0

    def page(self) -> bytes:
        """The page, or nothing where there is no fault."""
        if self._origin.answered or not self._requests.heads:
            return b""
        return refusal.http(self._status, method=self._requests.first_method)

    def watch(self, clock: Any, examined: Examined) -> None:
        """Look whether the origin answers in time, until it has, or the connection has ended."""
        self._clock = clock
        self._examined = examined
        self._wait()

    def ended(self, _: Ended) -> None:
        """The connection is over."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = self._clock.callLater(ANSWER_SECONDS / _LOOKS, self._look)

    def _look(self) -> None:
        assert self._examined is not None
        if self._origin.answered:
            return
        self._looks = self._looks + 1 if self._requests.whole else 0
        if self._looks <= _LOOKS:
            self._wait()
            return
        self._status = 504
        self._examined.end()
