"""The TLS ClientHello: which name, which protocols. Hides how TLS records and segments cut it.

A ClientHello with a post-quantum key share is larger than a segment, and browsers cut it into several
records on purpose, so one read is never taken for the whole. What is decided about records (RFC 8446 5.1;
OpenSSL agrees but for the numbers):

- the record's version is not looked at beyond its first octet, 3 (RFC 8446: "MUST be ignored for all
  purposes");
- an empty handshake record is let through (OpenSSL does), and counts as one of the 64;
- anything but a handshake record before the hello is whole (an alert, ChangeCipherSpec first) is
  unexpected_message;
- octets of a further message in the hello's last record are unexpected_message: RFC 8446 5.1 wants the
  ClientHello to end with its record.

The hello of ECH is read like any other: its outer name decides.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from appliance.ingress.hostname import host_name

HELLO_OCTETS_MAX = 16 * 1024
"""The message with its 4 octets of header. Hellos that once broke programs (tldr.fail) have 1.5 to 2 KiB: 8
times that.
"""

HELLO_RECORDS_MAX = 64
"""A browser uses 1 or 2. One octet per record is legal, too, but nobody who wants to be served does it."""

RECORD_OCTETS_MAX = 16 * 1024
"""RFC 8446 5.1: the fragment of a plaintext record."""

UNEXPECTED_MESSAGE = 10
DECODE_ERROR = 50
UNRECOGNIZED_NAME = 112
"""Alert descriptions: RFC 8446 6, RFC 6066 3."""

_RECORD_HEADER_OCTETS = 5
_MESSAGE_HEADER_OCTETS = 4
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_RANDOM_OCTETS = 32
_SESSION_ID_OCTETS_MAX = 32
_HOST_NAME = 0

_FIRST_OCTETS = struct.Struct("!BBxHBBH")
_U16 = struct.Struct("!H")
_EXTENSION_HEADER = struct.Struct("!HH")
_SERVER_NAME, _ALPN, _EARLY_DATA = 0, 16, 42


class HelloRefused(Exception):
    """The visitor's first octets are no ClientHello that can be routed."""

    def __init__(self, alert: int, text: str) -> None:
        """``alert``: the TLS alert description to answer with. ``text``: why, for a log line; nothing of
        the visitor's is in it.
        """
        super().__init__(text)
        self.alert = alert
        self.text = text


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a visitor asked for.

    ``server_name`` is lower case without a trailing dot, or None if he named no host: it is for the caller
    to decide what then (``UNRECOGNIZED_NAME``, or a default). ``alpn`` is in the visitor's order.
    ``octets`` are those of the records that carried the hello, as they came, and may be repeated to another
    client; ``rest`` is what came behind them, and may not: with ``early_data`` it is the first of the
    visitor's request.
    """

    server_name: str | None
    alpn: tuple[bytes, ...]
    early_data: bool
    octets: bytes = field(repr=False)
    rest: bytes = field(repr=False)


class HelloReader:
    """Reads one ClientHello in any cut. Holds at most 16 KiB, 64 record headers, and what one ``feed``
    brought.
    """

    def __init__(self) -> None:
        self.octets = bytearray()
        """Everything that was fed."""
        self._message = bytearray()
        self._at = 0
        self._records = 0

    def feed(self, octets: bytes) -> ClientHello | None:
        """Take further octets; None while the hello is not whole. Raises HelloRefused. Not to be fed after
        either.
        """
        if not self.octets and (body := _whole_in_one(octets)) is not None:
            return ClientHello(*_read_body(body), octets=octets, rest=b"")
        self.octets += octets
        while not self._is_whole():
            fragment = self._next_fragment()
            if fragment is None:
                return None
            self._message += fragment
        if len(self._message) > self._message_octets():
            raise HelloRefused(UNEXPECTED_MESSAGE, "the ClientHello does not end with its record")
        server_name, alpn, early_data = _read_body(bytes(self._message[_MESSAGE_HEADER_OCTETS:]))
        return ClientHello(
            server_name,
            alpn,
            early_data,
            octets=bytes(self.octets[: self._at]),
            rest=bytes(self.octets[self._at :]),
        )

    def _next_fragment(self) -> bytearray | None:
        """The next record's fragment, once all of it is there. Its header is judged octet by octet as it
        comes.
        """
        header = self.octets[self._at : self._at + _RECORD_HEADER_OCTETS]
        if header[:1] and header[0] != _HANDSHAKE:
            raise HelloRefused(UNEXPECTED_MESSAGE, "not a TLS handshake")
        if header[1:2] and header[1] != 3:
            raise HelloRefused(DECODE_ERROR, "not a version of TLS")
        if len(header) < _RECORD_HEADER_OCTETS:
            return None
        start = self._at + _RECORD_HEADER_OCTETS
        length = int.from_bytes(header[3:])
        if length > RECORD_OCTETS_MAX:
            raise HelloRefused(DECODE_ERROR, "a TLS record of more than 16 KiB")
        if self._records == HELLO_RECORDS_MAX:
            raise HelloRefused(DECODE_ERROR, "a ClientHello in more than 64 records")
        if len(self.octets) < start + length:
            return None
        self._records += 1
        self._at = start + length
        return self.octets[start : self._at]

    def _is_whole(self) -> bool:
        message = self._message
        if message and message[0] != _CLIENT_HELLO:
            raise HelloRefused(UNEXPECTED_MESSAGE, "the first TLS message is not a ClientHello")
        if len(message) < _MESSAGE_HEADER_OCTETS:
            return False
        if self._message_octets() > HELLO_OCTETS_MAX:
            raise HelloRefused(DECODE_ERROR, "a ClientHello of more than 16 KiB")
        return len(message) >= self._message_octets()

    def _message_octets(self) -> int:
        return _MESSAGE_HEADER_OCTETS + int.from_bytes(self._message[1:_MESSAGE_HEADER_OCTETS])


def _whole_in_one(octets: bytes) -> bytes | None:
    """The body of a hello that is one record, and all that was sent: most are. None: it has to be read with
    care.
    """
    size = len(octets)
    start = _RECORD_HEADER_OCTETS + _MESSAGE_HEADER_OCTETS
    if size <= start or size > HELLO_OCTETS_MAX:
        return None
    kind, version, length, message, high, low = _FIRST_OCTETS.unpack_from(octets)
    if kind != _HANDSHAKE or version != 3 or message != _CLIENT_HELLO:
        return None
    if length != size - _RECORD_HEADER_OCTETS or (high << 16) + low != size - start:
        return None
    return octets[start:]


def _vector(octets: bytes, at: int, length_octets: int) -> tuple[bytes, int]:
    """The content of a vector (RFC 8446 3.4) that begins at ``at``, and where it ends."""
    start = at + length_octets
    end = start + int.from_bytes(octets[at:start])
    # A length that is cut off gives too small a number, so both ends are looked at.
    if start > len(octets) or end > len(octets):
        raise HelloRefused(DECODE_ERROR, "a length in the ClientHello runs past its end")
    return octets[start:end], end


def _only_vector(octets: bytes, length_octets: int) -> bytes:
    """The content of a vector that these octets are and nothing else."""
    content, end = _vector(octets, 0, length_octets)
    if end != len(octets):
        raise HelloRefused(DECODE_ERROR, "a part of the ClientHello is longer than its content")
    return content


def _read_body(body: bytes) -> tuple[str | None, tuple[bytes, ...], bool]:
    """Server name, ALPN and whether early data follows (RFC 8446 4.1.2); the extensions may be missing (TLS
    1.2).
    """
    try:
        at = 2 + _RANDOM_OCTETS
        if body[at] > _SESSION_ID_OCTETS_MAX:
            raise HelloRefused(DECODE_ERROR, "a session id of more than 32 octets")
        at += 1 + body[at]
        (suites,) = _U16.unpack_from(body, at)
        if not suites or suites % 2:
            raise HelloRefused(DECODE_ERROR, "no list of cipher suites")
        at += 2 + suites
        if not body[at]:
            raise HelloRefused(DECODE_ERROR, "no list of compression methods")
        at += 1 + body[at]
        extensions = {} if at == len(body) else _read_extensions(body, at)
    except (IndexError, struct.error):
        raise HelloRefused(DECODE_ERROR, "a length in the ClientHello runs past its end") from None
    server_name = _read_server_name(extensions[_SERVER_NAME]) if _SERVER_NAME in extensions else None
    alpn = _read_alpn(extensions[_ALPN]) if _ALPN in extensions else ()
    return server_name, alpn, _EARLY_DATA in extensions


def _read_extensions(body: bytes, at: int) -> dict[int, bytes]:
    """The extensions, which begin at ``at`` and end with the body. Raises struct.error where it ends too
    soon.
    """
    size = len(body)
    (listed,) = _U16.unpack_from(body, at)
    at += 2
    if at + listed > size:
        raise struct.error
    if at + listed < size:
        raise HelloRefused(DECODE_ERROR, "a part of the ClientHello is longer than its content")
    extensions: dict[int, bytes] = {}
    while at < size:
        kind, length = _EXTENSION_HEADER.unpack_from(body, at)
        start = at + 4
        at = start + length
        if kind in extensions:
            raise HelloRefused(DECODE_ERROR, "a TLS extension twice")  # RFC 8446 4.2: MUST NOT
        extensions[kind] = body[start:at]
    if at > size:
        raise struct.error
    return extensions


def _read_server_name(content: bytes) -> str:
    """RFC 6066 3, and what all implementations made of it: exactly one name, and it is a host_name."""
    names = _only_vector(content, 2)
    if names[:1] and names[0] != _HOST_NAME:
        raise HelloRefused(DECODE_ERROR, "a server_name that is not a host_name")
    octets = _only_vector(names[1:], 2)
    if not octets:
        raise HelloRefused(DECODE_ERROR, "an empty server_name")
    name = host_name(octets)
    if name is None:
        raise HelloRefused(UNRECOGNIZED_NAME, "a server_name that cannot be the name of a host")
    return name


def _read_alpn(content: bytes) -> tuple[bytes, ...]:
    """RFC 7301 3.1."""
    listed = _only_vector(content, 2)
    protocols = []
    at = 0
    while at < len(listed):
        protocol, at = _vector(listed, at, 1)
        protocols.append(protocol)
    if not protocols or not all(protocols):
        raise HelloRefused(DECODE_ERROR, "an empty name or list of protocols")
    return tuple(protocols)
