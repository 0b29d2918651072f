"""Renewals at an appliance: what is asked here is signed or passed on, and its own credentials are renewed.

An appliance with the CA's key signs. Another one, which was enrolled, asks a nameserver that watches its
server and says that it has that key; or, as it has a watch of its own on them, the tunnel servers. For itself
it does both.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail

from appliance.service.authority import Authority
from appliance.service.nameserver.watcher import Watcher
from appliance.service.renewer import Renewer
from appliance.service.server.watches import Watches
from appliance.tunnel.certificates import Credential, Role
from appliance.tunnel.renewal import RenewalRefused, Request


class Renewals(Service):
    """`took(role, credential)` hears of what new handshakes are to be made with."""

    def __init__(
        self,
        reactor: Any,
        authority: Authority,
        *,
        watches: Watches | None,
        watcher: Watcher | None,
        took: Callable[[Role, Credential], None],
        wall: Callable[[], datetime],
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._reactor = reactor
        self._authority = authority
        self._watches = watches
        self._watcher = watcher
        self._told = took
        self._wall = wall
        self._jitter = jitter
        self._renewers: dict[Role, Renewer] = {}
        if watches is not None:
            watches.on_renewals(self.renew, self.hurry)
        if watcher is not None:
            watcher.on_renewals(authority.renew, self.hurry)

    def startService(self) -> None:
        """Look after what this appliance was enrolled with; the authority is open."""
        super().startService()  # type: ignore[no-untyped-call]
        for role in (Role.SERVER, Role.NAMESERVER):
            given = self._authority.enrolled(role)
            if given is not None:
                self._renewers[role] = self._renewer(role, given)
        for renewer in self._renewers.values():
            renewer.start()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        for renewer in self._renewers.values():
            renewer.stop()

    def renew(self, request: Request) -> Deferred[str]:
        """What somebody on a link or a watch of this server's asks. Fails with RenewalRefused."""
        if self._authority.issues:
            return self._authority.renew(request)
        asked = self._watches.carrying.ask(request) if self._watches is not None else None
        if asked is None:
            return fail(RenewalRefused("no nameserver that watches this server has the CA's key"))
        return asked

    def hurry(self) -> None:
        """There is somebody new to ask."""
        for renewer in self._renewers.values():
            renewer.hurry()

    def status(self) -> list[dict[str, Any]]:
        """Plain values for the operator: what was enrolled here, and why it is not renewed, if it is due."""
        return [
            {
                "what": role.name.lower(),
                "expires": renewer.credential.certificate.not_valid_after_utc.isoformat(),
                "not_renewed": renewer.refusal,
            }
            for role, renewer in self._renewers.items()
        ]

    def _renewer(self, role: Role, given: Credential) -> Renewer:
        def took(credential: Credential) -> None:
            self._authority.renewed(role, credential)
            self._told(role, credential)

        return Renewer(
            self._reactor,
            self._authority.files(role),
            given,
            self._authority.ca,
            called=f"this {role.name.lower()}",
            ask=self._ask,
            took=took,
            wall=self._wall,
            jitter=self._jitter,
        )

    def _ask(self, request: Request) -> Deferred[str] | None:
        """Whoever can be asked for ourselves."""
        asked = self._watches.carrying.ask(request) if self._watches is not None else None
        if asked is None and self._watcher is not None:
            asked = self._watcher.carrying.ask(request)
        return asked
