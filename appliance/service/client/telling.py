"""What this client tells every server that it is joined to, and each that it joins later: its account at a
CA, and which names have no certificate.

Hides the links, and that the same thing is told again only to a server that has not heard it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Protocol

from appliance.tunnel.account import MAX_ISSUERS
from appliance.tunnel.lines import MessageError
from appliance.tunnel.messages import Account, encode
from appliance.tunnel.session import ClientSession

Said = Callable[[ClientSession], None]


class Speaker(Protocol):
    """A link over which something is said; it does nothing while it is not up."""

    def tell(self, say: Said) -> None: ...


class Telling:
    """`links()` are all links, `sign(at, url, issuers)` signs as this instance of the client."""

    def __init__(
        self,
        links: Callable[[], Iterable[Speaker]],
        sign: Callable[[int, str, Sequence[str]], str],
        wall: Callable[[], datetime],
    ) -> None:
        self._links = links
        self._sign = sign
        self._wall = wall
        self._account: Account | None = None
        self._uncertified: dict[str, tuple[str, int]] = {}

    def account(self, url: str, issuers: Sequence[str]) -> None:
        """This is our account, at a CA that calls itself so in CAA records. One that is not as the protocol
        has it, as no CA's is that could be written in such a record, is told to nobody.
        """
        said = tuple(dict.fromkeys(one.lower().removesuffix(".") for one in issuers))[:MAX_ISSUERS]
        before = self._account
        if not url or (before is not None and (before.url, before.issuers) == (url, said)):
            return
        at = int(self._wall().timestamp())
        if before is not None:
            at = max(at, before.at + 1)  # it is to count more than the one before
        account = Account(url, said, at, "unsigned")
        try:
            encode(account)
        except MessageError:
            return
        self._account = account
        self._tell(self._say_account)

    def uncertified(self, name: str, why: str) -> None:
        """There is no certificate for a name; since when is since it was said first."""
        before = self._uncertified.get(name)
        since = int(self._wall().timestamp()) if before is None else before[1]
        if before is None or before[0] != why:
            self._uncertified[name] = why, since
            self._tell(_missing(name, why, since))

    def certified(self, name: str) -> None:
        """There is one."""
        if self._uncertified.pop(name, None) is not None:
            self._tell(lambda session: session.certified(name))

    def welcomed(self, link: Speaker) -> None:
        """A server is joined: it is told all."""
        if self._account is not None:
            link.tell(self._say_account)
        for name, (why, since) in self._uncertified.items():
            link.tell(_missing(name, why, since))

    def _say_account(self, session: ClientSession) -> None:
        account = self._account
        assert account is not None
        signature = self._sign(account.at, account.url, account.issuers)
        session.account(account.url, account.issuers, account.at, signature)

    def _tell(self, say: Said) -> None:
        for link in self._links():
            link.tell(say)


def _missing(name: str, why: str, since: int) -> Said:
    return lambda session: session.uncertified(name, why, since)
