"""`[[nameserver.keys]]`: which keys there are, and what each is good for.

Hides the files that the keys are in, and how names and types are written.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal

import attrs

from appliance.dns import names, rrtypes
from appliance.dns.keyfile import KeyFileError, read_keys
from appliance.dns.policy import Kind, Policy
from appliance.dns.tsig import Key
from appliance.settingsfile import BadValue, described

MAX_FILE_OCTETS = 65536
"""A key has some hundred."""


@attrs.frozen
class KeyTable:
    """`[[nameserver.keys]]`: keys (TSIG, RFC 8945) that may change records or copy zones. Several tables may
    name one file; what they allow adds up.
    """

    file: Path = described(
        "A file with a key, as `tsig-keygen NAME` writes it; others may not be able to read it.",
        "none: it must be given",
    )
    kind: Literal["update", "acme", "transfer", "peer"] = described(
        "What the key is good for: `update`, to change records (RFC 2136); `acme`, to change"
        " TXT records at `_acme-challenge` names only; `transfer`, to copy zones; `peer`, for a further"
        " appliance that is nameserver of the same zones.",
        "none: it must be given",
    )
    names: tuple[str, ...] = described(
        "For `update`: the names whose records may be changed, `*.` before a name for all below it. For"
        " `acme`: the names in certificates. For `transfer`: the zones.",
        "all",
        default=(),
    )
    types: tuple[str, ...] = described(
        'For `update`: the types of records that may be changed, as `"A"`.', "all", default=()
    )
    addresses: tuple[str, ...] = described(
        "For `transfer`: the addresses or networks that it is good from.", "everywhere", default=()
    )


@attrs.frozen
class KeySettings:
    """The keys of one table, read, and what they are good for; names in wire form."""

    keys: tuple[Key, ...]
    kind: Literal["update", "acme", "transfer", "peer"]
    names: tuple[bytes, ...] = ()
    types: tuple[int, ...] = ()
    addresses: tuple[IPv4Network | IPv6Network, ...] = ()


def read_table(table: KeyTable, base: Path) -> KeySettings:
    """What `table` says; a relative path starts from `base`. Raises BadValue."""
    for key, kinds in (("types", ("update",)), ("addresses", ("transfer",))):
        if getattr(table, key) and table.kind not in kinds:
            raise BadValue(f'{key} are only for keys of the kind "{kinds[0]}"')
    return KeySettings(
        _keys(base / table.file),
        table.kind,
        tuple(map(_name, table.names)),
        tuple(map(_type, table.types)),
        tuple(map(_network, table.addresses)),
    )


def all_keys(settings: Iterable[KeySettings]) -> dict[bytes, Key]:
    """All keys by name. Raises BadValue when a name stands for two."""
    found: dict[bytes, Key] = {}
    for one in settings:
        for key in one.keys:
            if found.setdefault(key.name, key) != key:
                raise BadValue(f"there are two different keys {names.to_text(key.name)}")
    return found


def policies(settings: Iterable[KeySettings]) -> dict[bytes, tuple[Policy, ...]]:
    """What each key may change; keys that may change nothing are left out."""
    found: dict[bytes, tuple[Policy, ...]] = {}
    for one in settings:
        if one.kind in ("update", "acme"):
            policy = Policy(Kind(one.kind), one.names, frozenset(one.types))
            for key in one.keys:
                found[key.name] = (*found.get(key.name, ()), policy)
    return found


def _keys(path: Path) -> tuple[Key, ...]:
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            octets = file.read(MAX_FILE_OCTETS)
    except OSError as error:
        raise BadValue(f"{path} cannot be read: {error.strerror}") from None
    if mode & stat.S_IROTH:
        raise BadValue(f"{path} can be read by everybody: chmod o-r {path}")
    try:
        return read_keys(octets.decode(), filename=str(path))
    except UnicodeDecodeError:
        raise BadValue(f"{path} is not a key file") from None
    except KeyFileError as error:
        raise BadValue(str(error)) from None


def _name(text: str) -> bytes:
    try:
        return names.from_text(text).lower()
    except names.BadName as error:
        raise BadValue(str(error)) from None


def _type(text: str) -> int:
    try:
        return rrtypes.from_text(text)
    except rrtypes.BadType as error:
        raise BadValue(str(error)) from None


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise BadValue(f"{text} is not an address or a network") from None
