"""How a client learns which servers there are: the TXT format, both ways, and which of them to join.

The format is the one that Super Protocol's tunnels use: `r=superprotocol;ip=10.5.0.5`, one record per server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

HTTPS_PORT = 443
MARKER = "r=superprotocol"
MAX_TXT_CHARACTERS = 512
"""A record of ours has under 100; what is longer is not read (TXT at an apex may be 64 KiB of somebody
else's).
"""
MAX_SERVERS = 64
"""Addresses that a client deals with at once, so that a forged answer cannot make it dial the world."""
REDIAL_ABSENT_SECONDS = 600.0
"""How long a server that is no longer in the TXT goes on being dialled: longer than any nameserver's
restart.
"""


class BadServerAddress(ValueError):
    """That is not the address of a tunnel server: an IP address that can be dialled, and a port."""


@dataclass(frozen=True, slots=True, order=True)
class ServerAddress:
    """Where a tunnel server is reached: an IP address in its canonical text form, and a TCP port.

    Raises BadServerAddress for a host that is not an IP address (IPv6 without brackets and scope), for one
    that nobody can dial (unspecified, multicast, broadcast, IPv4-mapped), and for a port outside 1 to 65535.
    """

    host: str
    port: int = HTTPS_PORT

    def __post_init__(self) -> None:
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            raise BadServerAddress(f"{self.host!r} is not an IP address") from None
        if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
            raise BadServerAddress(f"{self.host} is an IPv6 address that only one machine understands")
        if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
            raise BadServerAddress(f"{self.host} is not the address of one machine")
        if not 1 <= self.port <= 65535:
            raise BadServerAddress(f"{self.port} is not a TCP port")
        object.__setattr__(self, "host", str(address))

    def __str__(self) -> str:
        """`10.5.0.5:443`, `[2001:db8::5]:443`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str) -> ServerAddress:
    """The reverse of `str(address)`; the port may be missing, and with it the brackets. Raises
    BadServerAddress.
    """
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise BadServerAddress(f"{text!r} is not an address and a port")
        port = port[1:] if port else str(HTTPS_PORT)
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, str(HTTPS_PORT)
    number = _port(port)
    if number is None:
        raise BadServerAddress(f"{text!r}: {port!r} is not a TCP port")
    return ServerAddress(host, number)


def write_txt(address: ServerAddress) -> str:
    """The text of the TXT record of a server: exactly `r=superprotocol;ip=…` on port 443, else `;port=…`
    behind it.
    """
    text = f"{MARKER};ip={address.host}"
    return text if address.port == HTTPS_PORT else f"{text};port={address.port}"


def read_txt(text: str) -> ServerAddress | None:
    """The server that a TXT record names; None for a record that is not ours or not usable (never an error).

    `text` is the record's character-strings joined. Keys after the marker may come in any order; unknown
    ones are ignored; spaces around a pair, upper case in a key and a last `;` do no harm; a key given twice
    makes it unusable.
    """
    if len(text) > MAX_TXT_CHARACTERS:
        return None
    marker, *pairs = (pair.strip(" \t") for pair in text.split(";"))
    if marker.lower() != MARKER:
        return None
    values: dict[str, str] = {}
    for pair in filter(None, pairs):
        key, _, value = pair.partition("=")
        key = key.rstrip().lower()
        if key in values:
            return None
        values[key] = value.strip()
    port = _port(values.get("port", str(HTTPS_PORT)))
    if port is None:
        return None
    try:
        return ServerAddress(values.get("ip", ""), port)
    except BadServerAddress:
        return None


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else None


class Joiner:
    """Plans which servers a client should have a link to. It dials nothing; `now` is monotonic seconds.

    A server may have several addresses. Which ones belong together is known once each was linked (`welcome`
    carries the server's id); from then on, while one of them is linked, the others are alternates and are
    left alone.
    """

    def __init__(self) -> None:
        self._given_up_at: dict[ServerAddress, float | None] = {}  # None: in the latest answer
        self._server_ids: dict[ServerAddress, str] = {}
        self._links: dict[str, ServerAddress] = {}  # by server id: the address of its newest link
        self._superseded: set[ServerAddress] = set()

    def found(self, addresses: Iterable[ServerAddress], now: float) -> None:
        """The latest answer: all servers that the DNS names. An empty or failed answer is not one: do not
        report it.

        At most 64 addresses are kept; those with a link first, then the answer in its order, then absent
        ones.
        """
        kept = dict.fromkeys(address for address in self._given_up_at if self.is_linked(address))
        answer = set()
        for address in addresses:
            if address in kept or len(kept) < MAX_SERVERS:
                kept[address] = None
                answer.add(address)
        for address in self._given_up_at:
            if len(kept) < MAX_SERVERS:
                kept[address] = None
        before = self._given_up_at
        self._given_up_at = {}
        for address in kept:
            if address in answer:
                self._given_up_at[address] = None
            else:
                deadline = before[address]
                self._given_up_at[address] = now + REDIAL_ABSENT_SECONDS if deadline is None else deadline
        self._forget(now)

    def linked(self, address: ServerAddress, server_id: str) -> None:
        """A link to this address was welcomed by that server.

        The newest link of a server is the one that counts, as it is at the server (the same instance
        replaces its old session): an older one by another address is then an alternate's, and no longer in
        `to_join`.
        """
        self._given_up_at.setdefault(address, None)
        self._server_ids[address] = server_id
        older = self._links.get(server_id)
        if older is not None and older != address:
            self._superseded.add(older)
        self._superseded.discard(address)
        self._links[server_id] = address

    def unlinked(self, address: ServerAddress, now: float) -> None:
        """The link to this address is gone. One that is absent from the DNS is redialled for ten minutes
        from now.
        """
        self._superseded.discard(address)
        server_id = self._server_ids.get(address)
        if server_id is not None and self._links.get(server_id) == address:
            del self._links[server_id]
        if self._given_up_at.get(address) is not None:
            self._given_up_at[address] = now + REDIAL_ABSENT_SECONDS

    def is_linked(self, address: ServerAddress) -> bool:
        """Whether this address has a link, by what was said."""
        return address in self._superseded or address in self._links.values()

    def to_join(self, now: float) -> list[ServerAddress]:
        """All addresses that should have a link now: those that have one and those to dial, at most 64, in
        order.

        A link to an address that is not in this list is an alternate's, to be closed.
        """
        self._forget(now)
        return [address for address in self._given_up_at if not self._is_alternate(address)]

    def _is_alternate(self, address: ServerAddress) -> bool:
        server_id = self._server_ids.get(address)
        return server_id is not None and self._links.get(server_id, address) != address

    def _forget(self, now: float) -> None:
        for address, given_up_at in list(self._given_up_at.items()):
            if given_up_at is not None and given_up_at <= now and not self.is_linked(address):
                del self._given_up_at[address]
                self._server_ids.pop(address, None)
