"""Certificates by ACME: every name that wants one has an Issuance, and is woken when it is its turn.

Hides the timers, that only a few names are at the CA at a time, and when the CA is asked about renewals.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.service.client.certifying import Certifying, Issuing
from appliance.service.client.complaints import Complaints
from appliance.service.client.issuer import IssuerFailed
from appliance.tunnel.certificaterequest import certificate_id, lifetime_of
from appliance.tunnel.issuance import Issuance, share_of
from appliance.tunnel.issuanceledger import Ledger
from appliance.tunnel.keypair import KeypairRefused

#: Names at the CA at a time. Each waits for nameservers and for the CA's looks, mostly.
AT_ONCE = 4
#: Between two looks at the calendar, for a clock may be set.
LOOK_SECONDS = 3600.0
#: Between two questions for the window of a renewal where the CA does not say: RFC 9773 4.3.3.
WINDOW_SECONDS = 6 * 3600.0
#: RFC 9773 4.3.2: within limits of the client's own, a minute and a day are proposed.
WINDOW_SECONDS_MIN, WINDOW_SECONDS_MAX = 60.0, 86400.0


class Issuances:
    """Of ``names``, from ``start()`` to ``stop()``. ``ca`` is what the log calls the CA."""

    log = Logger()

    def __init__(self, shared: Issuing, names: Iterable[str], instance: str, ca: str) -> None:
        self._shared = shared
        self._ca = ca
        self._names = {name: _Name(self, shared, name, share_of(instance, name)) for name in names}
        self._busy: set[_Name] = set()
        self._queue: list[_Name] = []
        self._running = False
        self.complaints = Complaints()

    def start(self, hindrance: str = "") -> None:
        """Show the certificates that are there, and see to the others unless there is a hindrance."""
        awaited = [name for name, one in self._names.items() if not one.read()]
        if hindrance:
            self.log.error("certificates are neither got nor renewed: {why}", why=hindrance)
            for name in awaited:
                self._shared.telling.uncertified(name, hindrance)
            return
        self._running = True
        if awaited:
            self.log.info(
                "{names}: a certificate from {ca} is awaited; until then visitors by TLS get an alert",
                names=", ".join(awaited),
                ca=self._ca,
            )
        for one in self._names.values():
            one.sleep()

    def stop(self) -> None:
        """Let go of everything; orders that were begun are taken up again by the next start."""
        self._running = False
        self._queue.clear()
        for one in self._names.values():
            one.stop()
        self._shared.aside.stop()

    def hurry(self) -> None:
        """Somebody says that what was wrong is right now: try at once what waits after a failure."""
        hurried = [one.name for one in self._names.values() if one.hurry()]
        if hurried:
            self.log.info("{names}: trying to get a certificate at once", names=", ".join(hurried))

    # For the names

    def wants(self, one: _Name) -> None:
        """It is this name's turn, as soon as there is room."""
        self._queue.append(one)
        self._next()

    def done(self, one: _Name) -> None:
        """This name's attempt is over."""
        self._busy.discard(one)
        self._next()

    def failed(self, name: str, words: str, pause: float, expires: object) -> None:
        """Say why there is no certificate, once."""
        self._shared.telling.uncertified(name, words)
        if self.complaints.new(name, words):
            self.log.warn(
                "{name}: no certificate from {ca} yet: {words}; trying again in {pause}, {meanwhile}",
                name=name,
                ca=self._ca,
                words=words,
                pause=_span(pause),
                meanwhile=f"the certificate before it is good until {expires:%Y-%m-%d}"
                if expires
                else "until then visitors by TLS get an alert",
            )

    def issued(self, name: str, expires: object) -> None:
        """Say that there is one."""
        self.complaints.over(name)
        self._shared.telling.certified(name)
        self.log.info(
            "{name}: a certificate from {ca} is in use, good until {expires:%Y-%m-%d}",
            name=name,
            ca=self._ca,
            expires=expires,
        )

    def _next(self) -> None:
        while self._running and self._queue and len(self._busy) < AT_ONCE:
            one = self._queue.pop(0)
            self._busy.add(one)
            one.certify()


class _Name:
    """One name: its timer, or its attempt."""

    def __init__(self, all_names: Issuances, shared: Issuing, name: str, share: float) -> None:
        self.name = name
        self._all = all_names
        self._shared = shared
        self._share = share
        self._issuance = Issuance(Ledger(), None, share)
        self._timer: Any = None
        self._attempt: Deferred[None] | None = None
        self._asking: Deferred[Any] | None = None
        self._ask_at = 0.0

    def read(self) -> bool:
        """Read what was kept; whether there is a certificate, which is now in use."""
        state = self._shared.state
        keypair = state.certificate(self.name)
        lifetime = None
        if keypair is not None:
            try:
                self._shared.keypairs.put(self.name, keypair)
                lifetime = lifetime_of(keypair.certificate_pem)
            except KeypairRefused:
                pass
        self._issuance = Issuance(state.ledger(self.name) or Ledger(), lifetime, self._share)
        return lifetime is not None

    def sleep(self) -> None:
        """Until the deadline, or a while if that is far."""
        wall = self._shared.wall()
        left = (self._issuance.next_deadline(wall) - wall).total_seconds()
        self._timer = self._shared.reactor.callLater(min(max(0.0, left), LOOK_SECONDS), self._look)
        if left > 0 and self._issuance.lifetime is not None:
            self._ask_window()

    def stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for waiting in (self._attempt, self._asking):
            if waiting is not None:
                waiting.cancel()

    def hurry(self) -> bool:
        if self._timer is None or not self._timer.active() or not self._issuance.hurry():
            return False
        self._timer.cancel()
        self.sleep()
        return True

    def certify(self) -> None:
        certifying = Certifying(self._shared, self.name, self._issuance)
        self._attempt = Deferred.fromCoroutine(certifying.run())
        self._attempt.addCallbacks(lambda _: self._over(certifying.words), self._broken)

    def _look(self) -> None:
        wall = self._shared.wall()
        if self._issuance.next_deadline(wall) <= wall:
            self._all.wants(self)
        else:
            self.sleep()

    def _over(self, words: str) -> None:
        self._attempt = None
        lifetime = self._issuance.lifetime
        if words:
            wall = self._shared.wall()
            pause = (self._issuance.next_deadline(wall) - wall).total_seconds()
            self._all.failed(self.name, words, pause, lifetime and lifetime.ends)
        elif lifetime is not None:
            self._ask_at = 0.0
            self._all.issued(self.name, lifetime.ends)
        self.sleep()
        self._all.done(self)

    def _broken(self, failure: Failure) -> None:
        """An end that is no failure of the CA's: this client stops, or there is a fault in it."""
        self._attempt = None
        if not failure.check(CancelledError):
            self._all.log.failure("{name}: fault", failure, name=self.name)
            self.read()
            self._timer = self._shared.reactor.callLater(LOOK_SECONDS, self._look)
        self._all.done(self)

    # The CA's opinion (ARI)

    def _ask_window(self) -> None:
        keypair = self._shared.keypairs.current.get(self.name)
        if self._asking is not None or keypair is None or self._shared.reactor.seconds() < self._ask_at:
            return
        identity = certificate_id(keypair.certificate_pem)
        if identity is not None:
            self._asking = self._shared.aside.call(lambda: self._shared.ca.window(identity))
            self._asking.addCallbacks(self._told, self._not_told)

    def _told(self, answer: tuple[Any, float] | None) -> None:
        self._asking = None
        ca, lifetime = self._shared.ca, self._issuance.lifetime
        self._shared.telling.account(ca.account, ca.caa_identities)
        pause = WINDOW_SECONDS
        if answer is not None and lifetime is not None:
            window, retry_after = answer
            self._issuance.lifetime = replace(lifetime, window=window)
            if retry_after:
                pause = min(max(retry_after, WINDOW_SECONDS_MIN), WINDOW_SECONDS_MAX)
        self._ask_at = self._shared.reactor.seconds() + pause
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
            self.sleep()

    def _not_told(self, failure: Failure) -> None:
        self._asking = None
        self._ask_at = self._shared.reactor.seconds() + WINDOW_SECONDS
        if not failure.check(CancelledError, IssuerFailed):
            self._all.log.failure("{name}: fault", failure, name=self.name)


def _span(seconds: float) -> str:
    """For people."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{round(seconds / length)} {unit}"
    return f"{max(1, round(seconds))} s"
