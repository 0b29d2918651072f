"""How a running appliance leaves in order: its server's drain, told to nameservers and clients, on a clock.

Hides who is told what, and when; the order and the times are `fleet.draining`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from appliance.fleet.draining import LAST_SECONDS, Draining, DrainState
from appliance.service.server.tunnelserver import TunnelServer
from appliance.service.server.watches import Watches


class Departure:
    """The one drain of a process. An appliance without a tunnel server has nothing to drain."""

    _log = Logger()

    def __init__(
        self, reactor: Any, watches: Watches | None, server: TunnelServer | None, *, finish_seconds: float
    ) -> None:
        """`finish_seconds`: what the last visitors get."""
        self._reactor = reactor
        self._watches = watches
        self._server = server
        self._finish_seconds = finish_seconds
        self._draining: Draining | None = None
        self._visitors: Callable[[], int] = lambda: 0
        self._told: DrainState | None = None
        self._timer: Any = None
        self._is_stopped = False
        self._over: list[Deferred[None]] = []

    def begin(self) -> Deferred[None]:
        """Begin, unless it has begun; fires when nobody is waited for any more."""
        over: Deferred[None] = Deferred()
        self._over.append(over)
        if self._draining is None:
            watchers = [] if self._watches is None else self._watches.drain(self._withdrawn)
            self._draining = Draining(watchers, self._finish_seconds, self._reactor.seconds())
            if self._server is not None:
                self._server.drain()
        self._go_on()
        return over

    def stop(self) -> None:
        """Wait for nobody any more."""
        self._is_stopped = True
        self._forget_timer()

    def status(self) -> dict[str, Any]:
        """Plain values for the operator; nothing while it has not begun."""
        drain = self._draining
        if drain is None:
            return {}
        seconds = round(max(0.0, drain.deadline - self._reactor.seconds()))
        return {"draining": {"state": drain.state.value, "seconds": seconds, "visitors": self._visitors()}}

    @property
    def most_seconds(self) -> float:
        """No drain that has been answered takes longer."""
        return LAST_SECONDS + self._finish_seconds

    def _withdrawn(self, watch: object, held: bool | None) -> None:
        if self._draining is None or self._is_stopped:
            return  # one of those that are just being told, or it matters no more
        self._draining.answered(watch, held, self._reactor.seconds())
        self._go_on()

    def _tick(self) -> None:
        self._timer = None
        assert self._draining is not None
        visitors = self._visitors() if self._told is DrainState.FINISHING else 0
        self._draining.tick(self._reactor.seconds(), visitors)
        self._go_on()

    def _go_on(self) -> None:
        """Look at once, then when the machine says."""
        drain = self._draining
        assert drain is not None
        if drain.state is not self._told:
            self._entered(drain)
        self._forget_timer()
        deadline = drain.next_deadline(self._reactor.seconds())
        if deadline is not None:
            self._timer = self._reactor.callLater(max(0.0, deadline - self._reactor.seconds()), self._tick)
        over = self._over if drain.state is DrainState.OVER else []
        if over:
            self._over = []
        for told in over:
            told.callback(None)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _entered(self, drain: Draining) -> None:
        if drain.state is DrainState.FINISHING:
            self._visitors = self._server.visitors_of_now() if self._server is not None else lambda: 0
            drain.tick(self._reactor.seconds(), self._visitors())
        self._told = drain.state
        if drain.state is not DrainState.OVER or self._server is not None:
            self._log.info(
                "draining: {state}; at most {seconds:.0f} s more of that",
                state=drain.state.value,
                seconds=max(0.0, drain.deadline - self._reactor.seconds()),
            )
