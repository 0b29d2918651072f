"""Says in the log, once a day, that the certificate of the invitation ends soon and was not renewed, or has
ended.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from appliance.service.renewer import Renewer

DAY_SECONDS = 86400.0


class Expiring:
    """Looks at what `renewer` has, which is the certificate of `client`."""

    _log = Logger()

    def __init__(self, reactor: Any, renewer: Renewer, client: str, wall: Callable[[], datetime]) -> None:
        self._renewer = renewer
        self._client = client
        self._wall = wall
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def start(self) -> None:
        """Look now, and every day."""
        self._looking.start(DAY_SECONDS)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        if not self._renewer.is_overdue:
            return
        expires = self._renewer.credential.certificate.not_valid_after_utc
        days = (expires - self._wall()).days
        if days < 0:
            self._log.error(
                "the certificate expired on {expires:%Y-%m-%d}; ask for a new invitation"
                " (tunnel-appliance invite --renew {client})",
                expires=expires,
                client=self._client,
            )
        else:
            self._log.warn(
                "the certificate expires on {expires:%Y-%m-%d}, in {days} days, and was not renewed: {why}",
                expires=expires,
                days=days,
                why=self._renewer.refusal or "no server is joined",
            )
