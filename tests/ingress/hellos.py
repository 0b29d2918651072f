"""ClientHellos: written by hand, and by OpenSSL; and how to cut octets."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise

NAME = b"www.example.org"


def vector(length_octets: int, content: bytes) -> bytes:
    return len(content).to_bytes(length_octets) + content


def server_name(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    return 0, vector(2, b"".join(bytes((kind,)) + vector(2, name) for name in names))


def alpn(*protocols: bytes) -> tuple[int, bytes]:
    return 16, vector(2, b"".join(vector(1, protocol) for protocol in protocols))


def body(
    *extensions: tuple[int, bytes],
    session_id: bytes = b"s" * 32,
    suites: bytes = b"\x13\x01",
    compressions: bytes = b"\x00",
) -> bytes:
    listed = b"".join(kind.to_bytes(2) + vector(2, content) for kind, content in extensions)
    start = b"\x03\x03" + b"r" * 32 + vector(1, session_id) + vector(2, suites) + vector(1, compressions)
    return start + (vector(2, listed) if extensions else b"")


def message(content: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + vector(3, content)


def record(fragment: bytes, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    return bytes((kind,)) + version + vector(2, fragment)


def pieces(octets: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``octets`` cut at these places; two equal places make an empty piece."""
    places = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    return [octets[start:end] for start, end in pairwise(places)]


def records(content: bytes, cuts: Iterable[int]) -> bytes:
    return b"".join(record(piece) for piece in pieces(content, cuts))


def by_openssl(
    name: str | None,
    protocols: Sequence[str] = (),
    *,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ciphers: str | None = None,
    tickets: bool = True,
) -> bytes:
    """The handshake message of a hello that OpenSSL makes, without its record."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    visitor = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        visitor.do_handshake()
    octets = outgoing.read()
    assert octets[0] == 22
    assert int.from_bytes(octets[3:5]) == len(octets) - 5
    return octets[5:]
