"""Who follows our zones: `[[nameserver.secondaries]]`, and the keys of the kind "transfer".

Hides how a secondary is written in the settings, and which key goes with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from appliance.addresses import Listen, read_listen
from appliance.dns import names
from appliance.dns.notify import Secondary
from appliance.dns.transfer import Grant, Receiver
from appliance.dns.tsig import Key
from appliance.keysettings import KeySettings
from appliance.settingsfile import BadValue, described

DNS_PORT = 53


@attrs.frozen
class SecondaryTable:
    """`[[nameserver.secondaries]]`: a nameserver that follows our zones. It is told of every change (NOTIFY,
    RFC 1996); what it may copy is said by its key.
    """

    address: str = described(
        "Where it takes NOTIFY: `ADDRESS[:PORT]`. Without a port: 53.", "none: it must be given"
    )
    key: str | None = described(
        "The name of the key that NOTIFY is signed with, one of the keys of the kind `transfer`.",
        "none: it is not signed",
        default=None,
    )


@attrs.frozen
class SecondarySettings:
    """One secondary; the name of its key in wire form."""

    address: Listen
    key: bytes | None = None


def read_secondary(table: SecondaryTable) -> SecondarySettings:
    """What `table` says. Raises BadValue."""
    try:
        key = None if table.key is None else names.from_text(table.key).lower()
    except names.BadName as error:
        raise BadValue(str(error)) from None
    address = read_listen(table.address, DNS_PORT)
    if not address.port:
        raise BadValue(f'"{table.address}" has the port 0')
    return SecondarySettings(address, key)


def wrong_secondaries(settings: Iterable[SecondarySettings], keys: Sequence[KeySettings]) -> list[str]:
    """What is wrong with secondaries beside these keys."""
    known = receivers(keys)
    return [
        f"{names.to_text(one.key)} is not a key of the kind transfer"
        for one in settings
        if one.key is not None and one.key not in known
    ]


def secondaries(settings: Iterable[SecondarySettings], keys: Mapping[bytes, Key]) -> tuple[Secondary, ...]:
    """Each with its key."""
    return tuple(
        Secondary(one.address.host, one.address.port, None if one.key is None else keys[one.key])
        for one in settings
    )


def receivers(settings: Iterable[KeySettings]) -> dict[bytes, Receiver]:
    """What the holder of each key of the kinds "transfer" and "peer" may copy."""
    grants: dict[bytes, tuple[Grant, ...]] = {}
    peers: set[bytes] = set()
    for one in settings:
        if one.kind in ("transfer", "peer"):
            grant = Grant(frozenset(one.names) if one.names else None, one.addresses)
            for key in one.keys:
                grants[key.name] = (*grants.get(key.name, ()), grant)
                if one.kind == "peer":
                    peers.add(key.name)
    return {name: Receiver(allowed, name in peers) for name, allowed in grants.items()}
