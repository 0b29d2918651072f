"""Has a credential renewed in time: when it asks, again after a failure, and what it does with the answer.

Hides the clock. The key is on disk before anybody hears of it, and the answer before anybody is shown it; a
crash in between costs one more question, which gets the same answer. The calendar is looked at every hour: a
machine that slept, or a clock that was set, is noticed then.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.service.renewed import RenewedFiles
from appliance.tunnel.certificates import Credential
from appliance.tunnel.renewal import RenewalRefused, Request, ask, due_at, overdue_from, share_of, take

LOOK_SECONDS = 3600.0
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 60.0, 21_600.0
"""Between two attempts, doubled each time. Of 90 days 24 are left when the last of a fleet first asks: 96
attempts at six hours each."""
ANSWER_SECONDS = 60.0
"""For all the nameservers that a server may ask one after the other, and for all servers."""

Ask = Callable[[Request], "Deferred[str] | None"]
"""Fires with a certificate, PEM, or fails with RenewalRefused; None while there is nobody to ask."""


class Renewer:
    """Keeps the credential that the operator gave (`given`) good, from `start()` to `stop()`.

    `took(credential)` hears of each other one that counts from now on; the first, by `start()`, is what the
    files say. `share` (0 to 1) is this holder's part of the time over which a fleet asks. Who may not ask
    (`asks` false: the files are another process's) takes what that one gets.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        files: RenewedFiles,
        given: Credential,
        ca: x509.Certificate,
        *,
        called: str,
        ask: Ask,
        took: Callable[[Credential], None],
        wall: Callable[[], datetime],
        jitter: Callable[[float, float], float] = random.uniform,
        share: float | None = None,
        asks: bool = True,
    ) -> None:
        self.credential = given
        self.refusal = ""
        self._reactor = reactor
        self._files = files
        self._given = given
        self._ca = ca
        self._called = called
        self._ask = ask
        self._took = took
        self._wall = wall
        self._jitter = jitter
        self._share = share_of(f"{given.certificate.serial_number:x}") if share is None else share
        self._asks = asks
        self._failures = 0
        self._asked_at = float("-inf")
        self._asking: Deferred[str] | None = None
        self._timer: Any = None
        self._running = False

    @property
    def is_overdue(self) -> bool:
        """Whether somebody has to look after it."""
        return self._wall() >= overdue_from(self.credential.certificate)

    def start(self) -> None:
        """Take what is on disk, and look whether it is time."""
        self._running = True
        self._look()

    def stop(self) -> None:
        """Ask for nothing any more."""
        self._running = False
        self._forget_timer()
        if self._asking is not None:
            self._asking.cancel()

    def hurry(self) -> None:
        """There is somebody new to ask."""
        since = self._reactor.seconds() - self._asked_at
        if self._running and self._asking is None and since >= FIRST_PAUSE_SECONDS:
            self._look()

    def _look(self) -> None:
        self._forget_timer()
        self._take(self._files.current(self._given, self._ca))
        seconds = (due_at(self.credential.certificate, self._share) - self._wall()).total_seconds()
        if seconds > 0:
            self._failures = 0
            self._look_in(min(seconds, LOOK_SECONDS))
        elif self._asks:
            self._attempt()
        else:
            self._look_in(FIRST_PAUSE_SECONDS)

    def _attempt(self) -> None:
        try:
            key = self._files.key_for(self.credential)
        except OSError as error:
            self._failed(f"the new key cannot be kept: {error.strerror}")
            return
        held = self.credential
        asked = self._ask(ask(held, key))
        if asked is None:
            self._look_in(FIRST_PAUSE_SECONDS)
            return
        self._asked_at = self._reactor.seconds()
        self._asking = asked.addTimeout(ANSWER_SECONDS, self._reactor)
        asked.addCallback(lambda pem: self._keep(take(held.certificate, key, pem, self._ca)))
        asked.addErrback(self._refused)

    def _keep(self, renewed: Credential) -> None:
        self._files.keep(renewed, self._given)
        self._asking = None
        self.refusal = ""
        self._failures = 0
        self._log.info(
            "{called} renewed the certificate, until {expires:%Y-%m-%d}",
            called=self._called,
            expires=renewed.certificate.not_valid_after_utc,
        )
        if self._running:
            self._look_in(0)

    def _take(self, credential: Credential) -> None:
        if credential.certificate != self.credential.certificate:
            self.credential = credential
            self._took(credential)

    def _refused(self, failure: Failure) -> None:
        self._asking = None
        if not self._running and failure.check(CancelledError):
            return
        if failure.check(DeferredTimeoutError, CancelledError):
            self._failed("nobody answered in time")
        elif failure.check(RenewalRefused):
            self._failed(str(failure.value))
        elif failure.check(OSError):
            self._failed(f"the new certificate cannot be kept: {failure.getErrorMessage()}")
        else:
            self._log.failure("a renewal failed", failure)
            self._failed(failure.getErrorMessage())

    def _failed(self, words: str) -> None:
        self._asked_at = self._reactor.seconds()
        if words != self.refusal:
            self.refusal = words
            self._log.warn(
                "the certificate of {called}, which ends on {expires:%Y-%m-%d}, is not renewed yet: {words}",
                called=self._called,
                expires=self.credential.certificate.not_valid_after_utc,
                words=words,
            )
        most = min(MOST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 10))
        self._failures += 1
        if self._running:
            self._look_in(self._jitter(most / 2, most))

    def _look_in(self, seconds: float) -> None:
        self._forget_timer()
        self._timer = self._reactor.callLater(seconds, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._look()

    def _forget_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
