"""Who the visitor is, in the words of the PROXY protocol, version 2 (HAProxy, doc/proxy-protocol.txt).

The server writes it into the sealed header of a lane; the client hands it, if it is told to, to the origin.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from appliance.tunnel.names import is_host

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_ALPN_OCTETS = 255
MAX_AUTHORITY_OCTETS = 255
MAX_UNIQUE_ID_OCTETS = 128
"""The bound of PP2_TYPE_UNIQUE_ID (doc/proxy-protocol.txt 2.2.5)."""

_VERSION_AND_PROXY = 0x21
_TCP_OVER_IPV4 = 0x11
_TCP_OVER_IPV6 = 0x21
_ADDRESSES = {_TCP_OVER_IPV4: struct.Struct("!4s4sHH"), _TCP_OVER_IPV6: struct.Struct("!16s16sHH")}
_ALPN = 0x01
_AUTHORITY = 0x02
_UNIQUE_ID = 0x05
_KIND = 0xE0  # the first of PP2_TYPE_MIN_CUSTOM to PP2_TYPE_MAX_CUSTOM
_OURS = {
    _ALPN: MAX_ALPN_OCTETS,
    _AUTHORITY: MAX_AUTHORITY_OCTETS,
    _UNIQUE_ID: MAX_UNIQUE_ID_OCTETS,
    _KIND: 1,
}
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2
_START = struct.Struct("!12sBBH")
_VALUE = struct.Struct("!BH")

#: Addresses and names that are kept in both forms: a busy server meets the same ones again and again.
_KEPT = 4096


class ProxyHeaderError(ValueError):
    """That is not the header of a visitor in the PROXY protocol, version 2."""


class Kind(enum.IntEnum):
    """What a visitor speaks: it decides which of a name's origins he is joined to."""

    TLS = 1
    HTTP = 2


_KINDS = {bytes([kind]): kind for kind in Kind}


class ProxyHeader(NamedTuple):
    """A visitor's connection: from where, to where (IP address as text, port), for which host name.

    `alpn` is the first protocol that his hello offers. `unique_id` has up to 128 octets and is the same in
    the logs of all ends. `kind` is None only in what an origin gets.
    """

    source: tuple[str, int]
    destination: tuple[str, int]
    authority: str
    alpn: bytes | None
    unique_id: bytes
    kind: Kind | None

    def octets(self) -> bytes:
        """The header as it is sent. An IPv4 end of a connection whose other end is IPv6 is written
        IPv4-mapped.

        Raises ProxyHeaderError for addresses, ports and values that it cannot hold.
        """
        family, body = self._addresses()
        values = [(_AUTHORITY, _name_octets(self.authority)), (_UNIQUE_ID, self.unique_id)]
        if self.alpn is not None:
            values.insert(0, (_ALPN, self.alpn))
        if self.kind is not None:
            values.append((_KIND, self.kind.to_bytes(1, "big")))
        for kind, value in values:
            if len(value) > _OURS[kind]:
                raise ProxyHeaderError(
                    f"the value 0x{kind:02x} has {len(value)} octets, at most {_OURS[kind]}"
                )
            body += _VALUE.pack(kind, len(value)) + value
        return _START.pack(SIGNATURE, _VERSION_AND_PROXY, family, len(body)) + body

    def for_origin(self) -> ProxyHeader:
        """The same without what only the two ends of a tunnel say to each other."""
        return self._replace(kind=None)

    def _addresses(self) -> tuple[int, bytes]:
        try:
            source, destination = _packed(self.source[0]), _packed(self.destination[0])
            ports = self.source[1], self.destination[1]
            if len(source) == len(destination) == 4:
                return _TCP_OVER_IPV4, _ADDRESSES[_TCP_OVER_IPV4].pack(source, destination, *ports)
            return _TCP_OVER_IPV6, _ADDRESSES[_TCP_OVER_IPV6].pack(_long(source), _long(destination), *ports)
        except (ValueError, struct.error) as error:
            raise ProxyHeaderError(f"not the ends of a TCP connection: {error}") from None


def read_proxy_header(octets: bytes) -> ProxyHeader:
    """Reads a header of exactly these octets. Raises ProxyHeaderError.

    Values of other types are ignored; one of ours that is given twice, and a header without an authority,
    are errors.
    """
    start = len(SIGNATURE) + 4
    if len(octets) < start or not octets.startswith(SIGNATURE):
        raise ProxyHeaderError("no signature of the PROXY protocol, version 2")
    command, family, length = struct.unpack_from("!BBH", octets, len(SIGNATURE))
    if command != _VERSION_AND_PROXY or family not in _ADDRESSES:
        raise ProxyHeaderError(f"not a TCP connection that is passed on: 0x{command:02x} 0x{family:02x}")
    addresses = _ADDRESSES[family]
    if len(octets) != start + length or length < addresses.size:
        raise ProxyHeaderError(f"a header of {len(octets)} octets that says {length}")
    source, destination, source_port, destination_port = addresses.unpack_from(octets, start)
    values: dict[int, bytes] = {}
    for kind, value in _values(octets[start + addresses.size :]):
        if kind in values and kind in _OURS:
            raise ProxyHeaderError(f"the value 0x{kind:02x} is given twice")
        values[kind] = value
    return ProxyHeader(
        (_text(source), source_port),
        (_text(destination), destination_port),
        _authority(values.get(_AUTHORITY)),
        values.get(_ALPN),
        values.get(_UNIQUE_ID, b""),
        _kind(values.get(_KIND)),
    )


def _values(octets: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(octets):
        if place + 3 > len(octets):
            raise ProxyHeaderError("a value is cut off")
        kind, length = _VALUE.unpack_from(octets, place)
        place += 3 + length
        if place > len(octets):
            raise ProxyHeaderError("a value is cut off")
        if length > _OURS.get(kind, length):
            raise ProxyHeaderError(f"the value 0x{kind:02x} has {length} octets")
        yield kind, octets[place - length : place]


@lru_cache(_KEPT)
def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


@lru_cache(_KEPT)
def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


def _long(address: bytes) -> bytes:
    return address if len(address) == 16 else _MAPPED + address


def _name_octets(authority: str) -> bytes:
    try:
        return authority.encode("ascii")
    except UnicodeEncodeError:
        raise ProxyHeaderError(f"the authority {authority!r} is not in A-label form") from None


@lru_cache(_KEPT)
def _authority(value: bytes | None) -> str:
    try:
        name = (value or b"").decode("ascii")
    except UnicodeDecodeError:
        name = ""
    if not is_host(name):
        raise ProxyHeaderError("the authority is not a host name")
    return name


def _kind(value: bytes | None) -> Kind | None:
    if value is None:
        return None
    try:
        return _KINDS[value]
    except KeyError:
        raise ProxyHeaderError("the kind of visitor is none that we know") from None
