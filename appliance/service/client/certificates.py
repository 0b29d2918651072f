"""The certificates of the names whose TLS ends at this client: where they come from, and where they are.

``keypairs`` has the ones in use; whoever gets one puts it there. Here it is files that somebody else writes;
``issuing`` gets them from a CA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from appliance.service.client.keypairfiles import KeypairFiles
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.tickets import Tickets

#: Between two looks at the age of the tickets' secret, which is to be a day.
TICKETS_SECONDS = 300.0


class Certificates:
    """From ``start()`` to ``stop()``. ``files``: those of certificate and key of each name; ``wall()`` is the
    time now, aware; ``issued``: there are names with certificates of another source.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        state: Path,
        files: Mapping[str, tuple[Path, Path]],
        wall: Callable[[], datetime],
        *,
        issued: bool = False,
    ) -> None:
        self._reactor = reactor
        self._wall = wall
        self._needed = bool(files) or issued
        self._brought = bool(files)
        self._tickets = Tickets(state)
        self.keypairs = Keypairs(self._tickets)
        self._files = KeypairFiles(reactor, self.keypairs, files)
        self._timer: Any = None

    def start(self) -> None:
        """Read what there is, and watch it."""
        if not self._needed:
            return
        self._renew_tickets()
        self._files.start()
        if not self.keypairs.lasting_tickets:
            self.log.info("session tickets end with this process: Python's OpenSSL takes no keys here")

    def stop(self) -> None:
        """Watch no more."""
        self._files.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def read_again(self) -> None:
        """Somebody says that there is something new (SIGHUP)."""
        self._files.read_now()
        if self._brought:
            self.log.info("certificates and keys were read again; settings and invitation are not")
        else:
            self.log.info(
                "nothing to reload: a tunnel client reads its settings and invitation when it starts"
            )

    def _renew_tickets(self) -> None:
        self._timer = self._reactor.callLater(TICKETS_SECONDS, self._renew_tickets)
        if not self._tickets.renew(self._wall()):
            return
        self.keypairs.renew_tickets()
        if self._tickets.trouble:
            self.log.warn("{trouble}; session tickets end with this process", trouble=self._tickets.trouble)
