"""Who the visitor is, in the words of the PROXY protocol, version 2 (HAProxy, doc/proxy-protocol.txt).

The server writes it into the sealed header of a lane; the client hands it, if it is told to, to the origin.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass, replace

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


class ProxyHeaderError(ValueError):
    """That is not the header of a visitor in the PROXY protocol, version 2."""


class Kind(enum.IntEnum):
    """What a visitor speaks: it decides which of a name's origins he is joined to."""

    TLS = 1
    HTTP = 2


@dataclass(frozen=True, slots=True)
class ProxyHeader:
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
        tlvs = [(_AUTHORITY, self.authority.encode("ascii", "replace"), MAX_AUTHORITY_OCTETS)]
        if self.alpn is not None:
            tlvs.insert(0, (_ALPN, self.alpn, MAX_ALPN_OCTETS))
        tlvs.append((_UNIQUE_ID, self.unique_id, MAX_UNIQUE_ID_OCTETS))
        if self.kind is not None:
            tlvs.append((_KIND, bytes([self.kind]), 1))
        family, body = self._addresses()
        for kind, value, most in tlvs:
            if len(value) > most:
                raise ProxyHeaderError(f"the value 0x{kind:02x} has {len(value)} octets, at most {most}")
            body += struct.pack("!BH", kind, len(value)) + value
        return SIGNATURE + struct.pack("!BBH", _VERSION_AND_PROXY, family, len(body)) + body

    def for_origin(self) -> ProxyHeader:
        """The same without what only the two ends of a tunnel say to each other."""
        return replace(self, kind=None)

    def _addresses(self) -> tuple[int, bytes]:
        try:
            ends = [ipaddress.ip_address(host) for host, _ in (self.source, self.destination)]
            if ends[0].version == ends[1].version == 4:
                family, packed = _TCP_OVER_IPV4, [end.packed for end in ends]
            else:
                family, packed = _TCP_OVER_IPV6, [end.packed.rjust(16, b"\xff") for end in ends]
                packed = [p if p[:12] != b"\xff" * 12 else bytes(10) + b"\xff\xff" + p[12:] for p in packed]
            return family, _ADDRESSES[family].pack(*packed, self.source[1], self.destination[1])
        except (ValueError, struct.error) as error:
            raise ProxyHeaderError(f"not the ends of a TCP connection: {error}") from None
