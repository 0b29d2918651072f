"""A log that a stranger cannot fill: one line per source in 30 seconds, and what was left out is counted."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

#: Knot logs a repeated remote fault once in 30 s as well.
_QUIET_SECONDS = 30.0
#: Sources remembered; past it the oldest is forgotten, so memory is bounded and a flood of sources shares one
#: line each.
_SOURCES_AT_MOST = 4096


class FewLines:
    """Warnings about peers, at most one per source and 30 s."""

    def __init__(self, clock: Any, log: Logger) -> None:
        self._clock = clock
        self._log = log
        self._last: dict[str, tuple[float, int]] = {}

    def warn(self, source: str, text: str) -> None:
        """Log ``text`` about ``source`` (an address, or an id), unless a line about it is younger than 30 s.
        """
        now = self._clock.seconds()
        since, left_out = self._last.pop(source, (None, 0))
        if since is not None and now - since < _QUIET_SECONDS:
            self._last[source] = (since, left_out + 1)
            return
        if len(self._last) >= _SOURCES_AT_MOST:
            del self._last[next(iter(self._last))]
        self._last[source] = (now, 0)
        if left_out:
            text = f"{text} ({left_out} more lines about this peer were left out)"
        self._log.warn("{source}: {text}", source=source, text=text)
