"""What became of visitors, counted per name and client: connections, octets each way, durations, failures.

Numbers only, in a bounded number of accounts, added to when a visitor is joined and when he has gone: nothing
is counted while octets flow. ``prometheus`` and ``status`` read them (service/metrics.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

DURATION_SECONDS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)
"""Upper bounds of the histogram: a refused handshake, a page, a slow page, keep-alive (nginx: 75 s),
WebSockets, and what stays for hours."""

ACCOUNTS_AT_MOST = 4096
"""Pairs of a name and a client: 2,000 clients with two names each. About 1 KiB each."""

OTHERS = "(others)"
"""The name of the account for all that would be one too many."""

ENDED = "ended"
"""How a visitor's connection ends when nothing is wrong."""


class Account:
    """The visitors of one name that one client got; with the client "", those that no client got."""

    __slots__ = ("durations", "ends", "joined", "octets_in", "octets_out", "seconds")

    def __init__(self) -> None:
        self.joined = 0
        self.octets_in = 0
        """From visitors who have gone to the origin; ``octets_out`` came back."""
        self.octets_out = 0
        self.seconds = 0.0
        self.durations = [0] * (len(DURATION_SECONDS) + 1)
        """Visitors who have gone, by how long they were joined; the last is for all that were longer."""
        self.ends: Counter[str] = Counter()
        """Visitors who have gone, by how: ``ended``, or a failure's word."""

    @property
    def open(self) -> int:
        """Visitors who are joined now."""
        return self.joined - sum(self.durations)

    def went(self, octets_in: int, octets_out: int, seconds: float, how: str) -> None:
        """One who was joined has gone."""
        self.octets_in += octets_in
        self.octets_out += octets_out
        self.seconds += seconds
        self.durations[bisect_left(DURATION_SECONDS, seconds)] += 1
        self.ends[how] += 1

    def refused(self, why: str) -> None:
        """One was not joined."""
        self.ends[why] += 1


class Accounts:
    """All accounts of a process."""

    def __init__(self) -> None:
        self._accounts: dict[tuple[str, str], Account] = {}

    def of(self, name: str, client: str) -> Account:
        """The account of a name (or wildcard) that is served, or known, and a client."""
        account = self._accounts.get((name, client))
        if account is None:
            key = (name, client) if len(self._accounts) < ACCOUNTS_AT_MOST else (OTHERS, "")
            account = self._accounts.setdefault(key, Account())
        return account

    def __iter__(self) -> Iterator[tuple[str, str, Account]]:
        """Name, client, account, by name."""
        for (name, client), account in sorted(self._accounts.items()):
            yield name, client, account

    def __len__(self) -> int:
        return len(self._accounts)
