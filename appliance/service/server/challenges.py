"""The challenges of this server's clients: kept until they are over, and said to every nameserver.

Hides when they are over: withdrawn by the client, too old, or their client revoked. That a link has ended
says nothing: the client may be back at once, and the CA may be looking just now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from appliance.fleet.messages import Certificate, shown
from appliance.fleet.watch import WatchedServer
from appliance.tunnel.certificates import Peer
from appliance.tunnel.challenge import MAX_OF_CLIENT
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.lines import MessageError
from appliance.tunnel.noticeboard import EXPIRE_SECONDS, Challenge, Noticeboard, TooManyChallenges

MAX_IN_ALL = 8_000
"""Fewer than nameservers take from one server (MAX_CHALLENGES_OF_SERVER), for one too many ends the watch."""


class ChallengeRefused(Exception):
    """This challenge is not said to nameservers"""


class Challenges:
    """What stands now. `watches()` gives the ends of all watches, `flush()` lets them say what is new."""

    def __init__(
        self, reactor: Any, watches: Callable[[], Iterable[WatchedServer]], flush: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._watches = watches
        self._flush = flush
        self._board: Noticeboard[int] = Noticeboard(MAX_OF_CLIENT)  # by serial number of certificates
        self._proofs: dict[Challenge, tuple[str, Certificate]] = {}
        self._timer: Any = None

    def say(self, client: Peer, name: str, value: str, seconds: int, signature: str) -> None:
        """A client, whose certificate grants the name, wants this for so long. Raises ChallengeRefused."""
        now = self._reactor.seconds()
        if (name, value) not in self._proofs and len(self._proofs) >= MAX_IN_ALL:
            raise ChallengeRefused(f"more than {MAX_IN_ALL} challenges of all clients at a time")
        try:
            certificate = shown(client.certificate)
            self._board.say(client.serial, name, value, now + seconds)
        except (MessageError, TooManyChallenges) as error:
            raise ChallengeRefused(str(error)) from None
        self._proofs[name, value] = signature, certificate
        for watch in self._watches():
            watch.challenge(name, value, seconds, signature, certificate)
        self._flush()
        self._look_by(now + seconds)

    def withdraw(self, client: Peer, name: str, value: str) -> None:
        """This client does not need it any more."""
        if self._board.withdraw(client.serial, name, value):
            self._over([(name, value)])

    def revoke(self, revoked: RevocationList) -> None:
        """Whose certificate is on the list may not want anything any more, linked or not."""
        for serial in revoked.serials:
            self._over(self._board.withdraw_all(serial))

    def say_all(self, watch: WatchedServer) -> None:
        """A new watch: what stands now."""
        now = self._reactor.seconds()
        for name, value, until in self._board.standing():
            if until - now >= 1:
                watch.challenge(name, value, int(until - now), *self._proofs[name, value])

    def stop(self) -> None:
        """Change nothing any more: what is published is as old as it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def status(self) -> list[dict[str, Any]]:
        """Plain values for the operator."""
        now = self._reactor.seconds()
        return [
            {"name": name, "value": value, "seconds": round(until - now)}
            for name, value, until in self._board.standing()
        ]

    def _over(self, challenges: Iterable[Challenge]) -> None:
        gone = list(challenges)
        if not gone:
            return
        for challenge in gone:
            del self._proofs[challenge]
            for watch in self._watches():
                watch.challenge_over(*challenge)
        self._flush()

    def _look_by(self, due: float) -> None:
        if self._timer is None or due < self._timer.getTime():
            self.stop()
            self._timer = self._reactor.callLater(due - self._reactor.seconds(), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        self._over(self._board.expire(now))
        deadline = self._board.next_deadline()
        if deadline is not None:
            self._look_by(max(deadline, now + EXPIRE_SECONDS))
