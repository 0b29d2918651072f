"""Which accounts at CAs the clients have: what CAA records are bound to.

Hides the bounds, and which of two that are said of one instance holds. An account is its client's until that
one's certificate is revoked or has ended. `wall` is Unix time in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from appliance.tunnel.account import MAX_OF_CLIENT

MAX_ACCOUNTS = 100_000
"""In all: of as many clients as one server may have names. About 60 MiB if there really are so many."""

Key = tuple[str, str]
"""Whose an account is: the client's id, and its instance."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account, by the word of a client whose certificate has this serial number, these names and this end.

    `issuers` are what its CA calls itself in CAA, as far as that is known; `at` is since when (Unix time).
    """

    client: str
    instance: str
    serial: int
    names: tuple[str, ...]
    expires: float
    url: str
    issuers: tuple[str, ...]
    at: int

    @property
    def key(self) -> Key:
        return self.client, self.instance


class TooManyAccounts(Exception):
    """There are too many accounts already"""


class Accounts:
    """The accounts that hold."""

    def __init__(self) -> None:
        self._accounts: dict[Key, Account] = {}
        self._of_client: dict[str, set[Key]] = {}
        self._of_name: dict[str, set[Key]] = {}

    def know(self, account: Account) -> list[Account] | None:
        """It holds from now on; those that it replaced. None: it changes nothing. Raises TooManyAccounts.

        Of one instance the account that was said last holds; of too many instances those that said one last.
        The same one is also taken from a clock that was set back, if it is under a certificate that lives
        longer: else it would end with the one before, though its client has renewed that.
        """
        before = self._accounts.get(account.key)
        if before is not None and (before.url, before.issuers) == (account.url, account.issuers):
            account = replace(account, at=max(before.at, account.at))
        if before is not None and (
            before == account or (before.at, before.expires) > (account.at, account.expires)
        ):
            return None
        of_client = self._of_client.get(account.client, set())
        gone = [] if before is None else [before]
        if before is None and len(of_client) >= MAX_OF_CLIENT:
            oldest = min((self._accounts[key] for key in of_client), key=lambda one: one.at)
            if oldest.at > account.at:
                return None
            gone.append(oldest)
        elif before is None and len(self._accounts) >= MAX_ACCOUNTS:
            raise TooManyAccounts(f"more than {MAX_ACCOUNTS} accounts")
        for one in gone:
            self._drop(one)
        self._accounts[account.key] = account
        self._of_client.setdefault(account.client, set()).add(account.key)
        for name in account.names:
            self._of_name.setdefault(name, set()).add(account.key)
        return gone

    def held(self, key: Key) -> Account:
        """The one of this instance, which there is."""
        return self._accounts[key]

    def revoke(self, serials: Collection[int]) -> list[Account]:
        """The certificates of these serial numbers are revoked; whose accounts hold no more."""
        return self._drop_all(one for one in self._accounts.values() if one.serial in serials)

    def expire(self, wall: float) -> list[Account]:
        """Those that hold no more, as the certificate has ended."""
        return self._drop_all(one for one in self._accounts.values() if one.expires <= wall)

    def forget(self, name: str, known: Callable[[str], bool]) -> list[Account]:
        """The name is not known any more; accounts of clients none of whose names is `known` hold no more."""
        of_name = [self._accounts[key] for key in self._of_name.get(name, ())]
        return self._drop_all(one for one in of_name if not any(map(known, one.names)))

    def of(self, name: str) -> list[Account]:
        """Of the clients that may serve exactly this name, in a lasting order."""
        return [self._accounts[key] for key in sorted(self._of_name.get(name, ()))]

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts.values())

    def __len__(self) -> int:
        return len(self._accounts)

    def _drop_all(self, accounts: Iterable[Account]) -> list[Account]:
        gone = list(accounts)
        for one in gone:
            self._drop(one)
        return gone

    def _drop(self, account: Account) -> None:
        key = account.key
        del self._accounts[key]
        for index, where in ((self._of_client, (account.client,)), (self._of_name, account.names)):
            for one in where:
                index[one].discard(key)
                if not index[one]:
                    del index[one]
