"""The accounts of clients at CAs, as servers tell of them: kept on disk, for CAA records bound to them.

Hides when they end: with their client's certificate, or when that is revoked, or none of its names is known
any more. What is published is on disk before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.fleet.accounts import Account, TooManyAccounts
from appliance.fleet.accounts import Accounts as KnownAccounts
from appliance.service.fewlines import FewLines
from appliance.service.store import Store, StoreFailed
from appliance.tunnel.crl import RevocationList

TEND_SECONDS = 60.0
"""How often it is looked whether a certificate has ended: they last for days at least."""


class Accounts(Service):
    """What holds now. `changed(names)` hears of which names it is no longer what it was."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        store: Store,
        changed: Callable[[Iterable[str]], None],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._changed = changed
        self._wall = wall
        self._known = KnownAccounts()
        self._complaints = FewLines(reactor, self._log)
        self._tending = LoopingCall(self._tend)
        self._tending.clock = reactor

    def load(self, revoked: RevocationList) -> None:
        """Read what was kept, less what is over."""
        for text in self._store.accounts():
            fields = json.loads(text)
            fields |= {key: tuple(fields[key]) for key in ("names", "issuers")}
            self._known.know(Account(**fields))
        self.revoke(revoked)
        self._tend()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._tending.start(TEND_SECONDS, now=False)

    def stopService(self) -> None:
        """Change nothing any more: what is published stays published."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._tending.stop()

    def of(self, name: str) -> list[Account]:
        """Of the clients that may serve exactly this name."""
        return self._known.of(name)

    def said(self, account: Account) -> None:
        """A server says so, and its client has signed it."""
        try:
            gone = self._known.know(account)
        except TooManyAccounts as error:
            self._complaints.warn(account.client, f"an account is not published: {error}")
            return
        if gone is None:
            return
        held = self._known.held(account.key)
        kept = self._store.keep_account(*account.key, json.dumps(asdict(held)))
        kept.addCallback(lambda _: self._changed(account.names)).addErrback(_already_told)
        self._gone([one for one in gone if one.key != account.key])

    def revoke(self, revoked: RevocationList) -> None:
        """Whose certificate is on the list has no say any more."""
        self._gone(self._known.revoke(revoked.serials))

    def forgotten(self, name: str, known: Callable[[str], bool]) -> None:
        """The name is not known any more; `known` tells which are."""
        self._gone(self._known.forget(name, known))

    def status(self) -> list[dict[str, Any]]:
        """Plain values for the operator."""
        return [
            {
                "client": one.client,
                "instance": one.instance,
                "account": one.url,
                "issuers": list(one.issuers),
                "expires": one.expires,
            }
            for one in self._known
        ]

    def _tend(self) -> None:
        self._gone(self._known.expire(self._wall()))

    def _gone(self, accounts: Iterable[Account]) -> None:
        """Out of the DNS at once; from the disk as soon as it can be, and a restart looks again."""
        for one in accounts:
            self._changed(one.names)
            self._store.forget_account(*one.key).addErrback(_already_told)


def _already_told(failure: Failure) -> None:
    """The store has logged that the disk fails."""
    failure.trap(StoreFailed)
