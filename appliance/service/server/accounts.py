"""The accounts of this server's clients at CAs: said to every nameserver, now and when one begins to watch.

Hides nothing that lasts: an account is kept here for as long as its session, and by nameservers on disk. Of
several that a session says in one second the last is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from appliance.fleet.messages import Account, Certificate, shown
from appliance.fleet.watch import WatchedServer
from appliance.tunnel.certificates import Peer
from appliance.tunnel.lines import MessageError
from appliance.tunnel.session import AccountSaid

PAUSE_SECONDS = 1.0
"""Between two that are passed on for a session. Each costs every nameserver a signature to verify and a
commit to its disk; a client says one when it joins and another when it changes its CA.
"""


class AccountRefused(Exception):
    """This account is not said to nameservers"""


@dataclass(slots=True)
class _Said:
    """What a session said last, and when something that it said was passed on."""

    account: Account
    certificate: Certificate
    passed_on_at: float = float("-inf")
    timer: Any = None


class Accounts:
    """Those of the sessions of now. `watches()` gives the ends of all watches, `flush()` lets them say it."""

    def __init__(
        self, reactor: Any, watches: Callable[[], Iterable[WatchedServer]], flush: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._watches = watches
        self._flush = flush
        self._of_session: dict[Hashable, _Said] = {}

    def say(self, session: Hashable, client: Peer, instance: str, said: AccountSaid) -> None:
        """A session's client has this account, in place of what it said before. Raises AccountRefused."""
        before = self._of_session.get(session)
        try:
            certificate = shown(client.certificate) if before is None else before.certificate
        except MessageError as error:
            raise AccountRefused(str(error)) from None
        account = Account(
            instance, said.url, said.issuers, said.at, said.signature, certificate.fingerprint
        )
        if before is None:
            before = self._of_session[session] = _Said(account, certificate)
        elif account.at < before.account.at:
            return  # no nameserver would take it in the place of that one
        before.account = account
        if before.timer is not None:
            return
        wait = before.passed_on_at + PAUSE_SECONDS - self._reactor.seconds()
        if wait > 0:
            before.timer = self._reactor.callLater(wait, self._pass_on, before)
        else:
            self._pass_on(before)

    def over(self, session: Hashable) -> None:
        """The session is over; what it said last is not lost."""
        said = self._of_session.pop(session, None)
        if said is not None and said.timer is not None:
            said.timer.cancel()
            self._pass_on(said)

    def stop(self) -> None:
        """Pass nothing on any more."""
        for said in self._of_session.values():
            if said.timer is not None:
                said.timer.cancel()
                said.timer = None

    def say_all(self, watch: WatchedServer) -> None:
        """A new watch: what there is now."""
        for said in self._of_session.values():
            watch.account(said.account, said.certificate)

    def _pass_on(self, said: _Said) -> None:
        said.timer = None
        said.passed_on_at = self._reactor.seconds()
        for watch in self._watches():
            watch.account(said.account, said.certificate)
        self._flush()
