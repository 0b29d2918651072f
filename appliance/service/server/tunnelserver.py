"""The tunnel server as one service: what it is made of, and in which order it starts and stops."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.logger import Logger

from appliance.ingress.accessline import FORMATS, AccessLine
from appliance.ingress.limits import Limits
from appliance.service.accesslog import AccessLog
from appliance.service.fewlines import FewLines
from appliance.service.readiness import Readiness
from appliance.service.relay import Relay
from appliance.service.server.accounts import Accounts
from appliance.service.server.adoption import Adoption
from appliance.service.server.challenges import Challenges
from appliance.service.server.entry import ALPN_LANE, ALPN_LINK, ALPN_WATCH, Entry
from appliance.service.server.gate import Gate
from appliance.service.server.lanes import Lanes
from appliance.service.server.ledger import Ledger
from appliance.service.server.links import Links, Renew, Session
from appliance.service.server.parting import Parting
from appliance.service.server.visitors import Visitors
from appliance.service.server.waitingline import WaitingLine
from appliance.service.tls import ServerTls
from appliance.tunnel.certificates import Credential, Peer, Role
from appliance.tunnel.crl import RevocationList, Revocations
from appliance.tunnel.routes import Routes

_LIMITS = Limits()


class TunnelServer(Service):
    """Takes visitors, links, lanes and watches at its ports, and joins visitors to clients."""

    def __init__(
        self,
        reactor: Any,
        *,
        server_id: str,
        boot: str,
        service_name: str,
        tls_addresses: list[tuple[str, int]],
        http_addresses: list[tuple[str, int]],
        https_port: int,
        default_name: str | None,
        identity: Callable[[], tuple[Credential, x509.Certificate]],
        examine: Callable[[Any, Role, datetime], Peer],
        known: Callable[[str], bool],
        known_as: Callable[[str], str | None],
        revocations: Revocations,
        watch_for: Callable[[Peer], IProtocol],
        serving: Callable[[str, bytes], None],
        not_serving: Callable[[str], None],
        challenges: Challenges,
        renew: Renew,
        accounts: Accounts,
        limits: Limits = _LIMITS,
        access_log: Path | None = None,
        access_log_format: str = "plain",
        metrics: tuple[str, int] | None = None,
    ) -> None:
        """``identity()`` gives the server's credential and the CA, when the service starts; ``examine``
        judges a peer, ``revocations`` keeps the list of those who are no peers any more; ``known`` and
        ``known_as`` tell whether, and as what, a host was ever served;
        ``watch_for`` makes the protocol of a nameserver's watch; ``serving(name, certificate_pem)`` and
        ``not_serving(name)`` tell of a name's first and last session, ``challenges`` what is to be
        published for certificates, ``accounts`` whose they will be; ``renew`` is what clients ask that of.
        Without ``access_log`` there is none.
        """
        self._reactor = reactor
        self._identity = identity
        self._examine = examine
        self._watch_for = watch_for
        complaints = FewLines(reactor, Logger(namespace=__name__))
        self._complaints = complaints
        self._readiness = Readiness(reactor)
        self._relay = Relay(self._readiness)
        self._parting = Parting(self._readiness, reactor)
        self._routes: Routes[Session] = Routes()
        self._gate = Gate(
            reactor, limits, linked=lambda address: self._links.linked(address), complaints=complaints
        )
        self._access_log: AccessLog | None = None
        say: Callable[[AccessLine], None] | None = None
        if access_log is not None:
            self._access_log = log = AccessLog(reactor, access_log, complaints)
            form = FORMATS[access_log_format]

            def say(line: AccessLine) -> None:
                log.write(form(line))

        self._ledger = Ledger(reactor, time.time, self._gate, name_open=limits.name_open, say=say)
        self._metrics: Service | None = None
        if metrics is not None:
            from appliance.service.metrics import Counts, Metrics  # 4 MiB that only those pay who want it

            self._metrics = Metrics(reactor, *metrics, Counts(self._ledger.accounts, self._gate.status))
        self._visitors = Visitors(
            self._readiness,
            reactor,
            self._relay,
            self._parting,
            routes=self._routes,
            known=known,
            known_as=known_as,
            https_port=https_port,
            unique_id=lambda: os.urandom(16),
            ledger=self._ledger,
        )
        self._links = Links(
            reactor,
            self._readiness,
            server_id=server_id,
            boot=boot,
            service_name=service_name,
            routes=self._routes,
            serving=serving,
            not_serving=not_serving,
            challenges=challenges,
            accounts=accounts,
            registered=self._visitors.name_served,
            session_ended=self._visitors.session_ended,
            complaints=complaints,
            revocations=revocations,
            renew=renew,
        )
        self._lanes = Lanes(self._readiness, reactor, self._links.sessions)
        self._entry = Entry(
            reactor,
            self._readiness,
            tls_addresses=tls_addresses,
            http_addresses=http_addresses,
            service_name=service_name,
            default_name=default_name,
            gate=self._gate,
            complaints=complaints,
        )
        self._adoption: Adoption | None = None
        self._line: WaitingLine | None = None
        self._tls: ServerTls | None = None

    @property
    def ports(self) -> list[int]:
        """The ports listened on: those for TLS, then those for HTTP."""
        return self._entry.ports

    def privilegedStartService(self) -> None:
        """Bind, while twistd still may."""
        self._entry.privilegedStartService()

    def startService(self) -> None:
        """Read the credential, as the user that stays, and open. Raises CannotLog and CannotListen."""
        Service.startService(self)
        if self._access_log is not None:
            self._access_log.startService()
        if self._metrics is not None:
            self._metrics.startService()
        self._gate.measure()
        credential, _ = self._identity()
        self._tls = tls = ServerTls(credential, [ALPN_LINK, ALPN_WATCH, ALPN_LANE])
        self._adoption = Adoption(
            self._reactor,
            self._readiness,
            tls,
            self._links.shares,
            examine=self._examine,
            protocols={
                ALPN_LINK: (Role.CLIENT, self._links.protocol_for),
                ALPN_WATCH: (Role.NAMESERVER, self._watch_for),
            },
            complaints=self._complaints,
        )
        self._line = WaitingLine(self._reactor, self._readiness, self._adoption.adopt)
        self._entry.wire(
            visitors=self._visitors, lanes=self._lanes, adoption=self._adoption, links=self._line, tls=tls
        )
        self._readiness.start()
        self._entry.startService()

    def stopService(self) -> Deferred[None]:
        """Close everything: a farewell on the links, a reset for visitors under way."""
        Service.stopService(self)
        self._entry.stopService()
        if self._line is not None:
            self._line.stop()
        self._links.stop()
        self._lanes.stop()
        self._visitors.stop()
        self._relay.stop()
        self._parting.stop()
        self._readiness.stop()
        if self._access_log is not None:
            self._access_log.stopService()  # behind the lines of those who were cut
        if self._metrics is not None:
            self._metrics.stopService()
        assert self._adoption is not None, "stopService() before startService()"
        return self._adoption.stop()

    def drain(self) -> None:
        """Tell the clients that this server will leave. It goes on serving."""
        self._links.drain()

    def visitors_of_now(self) -> Callable[[], int]:
        """Counts, whenever it is called, the visitors of now that are still there."""
        waiting, joined = set(self._visitors.waiting), set(self._relay.joined)

        def left() -> int:
            if waiting:
                waiting.intersection_update(self._visitors.waiting)
                joined.update(self._relay.joined)  # among whom may be those who waited
            joined.intersection_update(self._relay.joined)
            return len(waiting) + len(joined)

        return left

    def use(self, credential: Credential) -> None:
        """Show this one in every handshake from now on."""
        if self._tls is not None:
            self._tls.use(credential)

    def revoke(self, revoked: RevocationList) -> None:
        """End what the list forbids, and give it to the others."""
        self._links.revoke(revoked)

    def status(self) -> dict[str, Any]:
        """Plain values for the operator."""
        log = self._access_log
        return {
            "sessions": self._links.status(),
            "joined": len(self._relay.joined),
            "challenges": self._links.challenges.status(),
            "uncertified": self._links.uncertified(),
            "entry": self._gate.status(),
            "visitors": self._ledger.status(),
            **({"access_log": {"written": log.written, "dropped": log.dropped}} if log else {}),
        }
