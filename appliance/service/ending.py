"""How SIGTERM ends a process: in order; a second one at once, as SIGINT always does.

Hides Twisted's own handler of SIGTERM, which stops the reactor at once: it is called when all is done, and
the process ends as it would have, by the signal. Ctrl-C is for a terminal, where nobody waits for visitors.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger


class Ending(Service):
    """Ends this process when `drain()` has fired, whoever called it first."""

    _log = Logger()

    def __init__(self, reactor: Any, drain: Callable[[], Deferred[None]]) -> None:
        self._reactor = reactor
        self._drain = drain
        self._before: Any = None
        self._has_begun = False
        self._is_over = False

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        # The reactor puts its own handler in place when it starts to run.
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._before is not None and not self._is_over:
            signal.signal(signal.SIGTERM, self._before)

    def begin(self) -> None:
        """End in order. Once is enough."""
        if not self._has_begun:
            self._has_begun = True
            self._log.info("ending in order; SIGTERM again ends it at once")
            self._drain().addCallback(lambda _: self._end())

    def _install(self) -> None:
        self._before = signal.signal(
            signal.SIGTERM, lambda number, frame: self._reactor.callFromThread(self._asked)
        )

    def _asked(self) -> None:
        if not self._has_begun:
            self.begin()
        elif not self._is_over:
            self._log.warn("SIGTERM again: ending at once")
            self._end()

    def _end(self) -> None:
        if self.running and not self._is_over:
            self._is_over = True
            self._before(signal.SIGTERM, None)
