"""The check that the end of a watch starts: is this start of the server dead, or is it only not heard?

Hides the three dials. The end of a watch proves nothing (a network may reset a connection), nor does one
answer that is missing (it may be lost): so three dials are begun 0.5 s apart, each with TLS and the server's
hello, and the first one that says something decides. `now` is monotonic seconds; the caller dials.
"""

from __future__ import annotations

import enum

DIALS = 3
DIAL_INTERVAL_SECONDS = 0.5
SILENT_SECONDS = 2.5
"""After the first dial. A lost SYN is sent again after 1 s (RFC 6298), so the first two dials try twice."""


class Verdict(enum.Enum):
    """What a check found."""

    SAME_BOOT = "same boot"
    OTHER_BOOT = "another boot"
    REFUSED = "refused"
    SILENT = "silent"


class Check:
    """One check of one address, from `now` on. `boot` is the start of the server whose watch ended; None if
    nobody was ever met there.
    """

    def __init__(self, boot: str | None, now: float) -> None:
        self.boot = boot
        self.verdict: Verdict | None = None
        self.began = now
        self._dialled = 0

    def dials_due(self, now: float) -> int:
        """How many further dials to begin now."""
        if self.verdict is not None:
            return 0
        passed = 1 + int((now - self.began) / DIAL_INTERVAL_SECONDS + 1e-6)
        due = max(0, min(passed, DIALS) - self._dialled)
        self._dialled += due
        return due

    def refused(self) -> None:
        """The kernel there said that nobody listens: with the watch gone as well, that is proof."""
        self._found(Verdict.REFUSED)

    def answered(self, boot: str) -> None:
        """A dial met this start of the server. Where nobody was known before, it is no other one."""
        self._found(Verdict.SAME_BOOT if self.boot in (None, boot) else Verdict.OTHER_BOOT)

    def tick(self, now: float, lagged: bool) -> None:
        """To be called at `next_deadline`. `lagged`: the caller itself did not run for a while since the
        check began, so that it cannot tell silence from its own deafness: the check then begins anew.
        """
        if self.verdict is None and now >= self.began + SILENT_SECONDS - 1e-6:
            if lagged:
                self.began = now
                self._dialled = 0
            else:
                self._found(Verdict.SILENT)

    def next_deadline(self) -> float | None:
        """When a dial or the end is due."""
        if self.verdict is not None:
            return None
        if self._dialled < DIALS:
            return self.began + self._dialled * DIAL_INTERVAL_SECONDS
        return self.began + SILENT_SECONDS

    def _found(self, verdict: Verdict) -> None:
        if self.verdict is None:
            self.verdict = verdict
