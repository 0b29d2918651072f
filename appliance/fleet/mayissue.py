"""Which CAA records follow from what the operator says of who may issue, and from the accounts of clients.

Hides where a CA looks. For a name that is at the name itself. For a wildcard `*.apps.example.org` it begins
at `apps.example.org` (RFC 8659 3), where its `issuewild` is; what the wildcard's client may have for a name
below it, a CA finds by the DNS wildcard, so there `issue` says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from appliance.dns.caa import ISSUE, ISSUEWILD, Caa, issue_value, write_caa
from appliance.dns.names import ROOT, parent, to_text
from appliance.dns.names import from_text as wire
from appliance.fleet.accounts import Account
from appliance.tunnel.names import is_wildcard, wildcards_over

CLIENTS = "clients"
IODEF = "iodef"


@dataclass(frozen=True)
class Issuers:
    """Which CAs may issue for some names, and how.

    `names` are normal names, wildcards (with all names below them) and zones (with all names in them);
    `account` is the URL of the only account that may, `CLIENTS` for those of each name's clients, or None for
    any; without `wildcards` no wildcard below the names may have a certificate.
    """

    names: tuple[str, ...]
    issue: tuple[str, ...]
    methods: tuple[str, ...] = ()
    account: str | None = None
    wildcards: bool = True
    iodef: str | None = None


class MayIssue:
    """What `rules` say of the known names in the zones of `apexes` (in wire form).

    `known(name)` is whether exactly this name or wildcard is; `accounts(name)` are those of its clients.
    """

    def __init__(
        self,
        rules: Iterable[Issuers],
        apexes: Collection[bytes],
        known: Callable[[str], bool],
        accounts: Callable[[str], list[Account]],
    ) -> None:
        self._rules = {name: rule for rule in rules for name in rule.names}
        self._apexes = apexes
        self._known = known
        self._accounts = accounts

    def owners(self, name: str) -> tuple[str, ...]:
        """Where the records are that follow from a known name."""
        if not self._rules:
            return ()
        return (name, name.removeprefix("*.")) if is_wildcard(name) else (name,)

    def records(self, owner: str) -> tuple[bytes, ...]:
        """The data of all that is at `owner`; nothing for what nothing is said of."""
        found: list[Caa] = []
        below = f"*.{owner}"
        wild = not is_wildcard(owner) and self._known(below)
        if self._known(owner) and (rule := self._rule(owner)) is not None:
            values = self._values(rule, owner)
            found += [Caa(0, ISSUE, value) for value in values]
            if values and not rule.wildcards and not wild:
                found.append(Caa(0, ISSUEWILD, ";"))
            found += _iodef(rule, values)
        if wild and (rule := self._rule(below)) is not None:
            values = self._values(rule, below)
            found += [Caa(0, ISSUEWILD, value) for value in values]
            found += _iodef(rule, values)
        return tuple(dict.fromkeys(map(write_caa, found)))

    def _rule(self, name: str) -> Issuers | None:
        """The one that is closest: of the name, of a wildcard over it, of the zone that it is in."""
        above = self._zone(name)
        if above is None:
            return None
        for one in (name, *wildcards_over(name)):
            if one in self._rules:
                return self._rules[one]
        return self._rules.get(above)

    def _zone(self, name: str) -> str | None:
        """The closest zone of ours that a name, and with a wildcard what it is of, is in."""
        above = wire(name.removeprefix("*."))
        while above not in self._apexes:
            if above == ROOT:
                return None
            above = parent(above)
        return to_text(above)

    def _values(self, rule: Issuers, name: str) -> list[str]:
        """Of `issue` or `issuewild`: none before the first account is known that they are to be bound to."""
        if rule.account != CLIENTS:
            return [issue_value(issuer, rule.methods, rule.account) for issuer in rule.issue]
        return list(dict.fromkeys(_bound(rule, self._accounts(name))))


def _bound(rule: Issuers, accounts: Iterable[Account]) -> Iterator[str]:
    for issuer in rule.issue:
        for account in accounts:
            if not account.issuers or issuer in account.issuers:
                yield issue_value(issuer, rule.methods, account.url)


def _iodef(rule: Issuers, values: list[str]) -> list[Caa]:
    return [Caa(0, IODEF, rule.iodef)] if rule.iodef is not None and values else []
