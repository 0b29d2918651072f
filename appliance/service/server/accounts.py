"""The accounts of this server's clients at CAs: said to every nameserver, now and when one begins to watch.

Hides nothing that lasts: an account is kept here for as long as its session, and by nameservers on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from appliance.fleet.messages import BY_SERVER, Account, Certificate, shown
from appliance.fleet.watch import WatchedServer
from appliance.tunnel.certificates import Peer
from appliance.tunnel.lines import MessageError
from appliance.tunnel.session import AccountSaid


class AccountRefused(Exception):
    """This account is not said to nameservers"""


class Accounts:
    """Those of the sessions of now. `watches()` gives the ends of all watches, `flush()` lets them say it."""

    def __init__(self, watches: Callable[[], Iterable[WatchedServer]], flush: Callable[[], None]) -> None:
        self._watches = watches
        self._flush = flush
        self._of_session: dict[Hashable, tuple[Account, Certificate]] = {}

    def say(self, session: Hashable, client: Peer, instance: str, said: AccountSaid) -> None:
        """A session's client has this account, in place of what it said before. Raises AccountRefused."""
        certificate = shown(client.certificate)
        account = Account(
            instance, said.url, said.issuers, said.at, said.signature, certificate.fingerprint
        )
        try:
            BY_SERVER.encode(certificate)
        except MessageError as error:
            raise AccountRefused(str(error)) from None
        self._of_session[session] = account, certificate
        for watch in self._watches():
            watch.account(account, certificate)
        self._flush()

    def over(self, session: Hashable) -> None:
        """The session is over."""
        self._of_session.pop(session, None)

    def say_all(self, watch: WatchedServer) -> None:
        """A new watch: what there is now."""
        for account, certificate in self._of_session.values():
            watch.account(account, certificate)
