"""What a request tells the origin about its visitor: X-Forwarded-For, -Proto and -Host, and Forwarded (RFC
7239).

An origin that is told to believe these fields believes whatever stands there, so what the visitor himself
sent in any of them is taken out, not added to. Nothing else of the head is altered.
"""

from __future__ import annotations

import re

# Written with underscores they are the same fields to a program that reads CGI variables.
_NAME = rb"(?:forwarded|x[-_]forwarded[-_][^:\r]*)"
_FORWARDING = re.compile(_NAME, re.IGNORECASE)
_FORWARDING_LINE = re.compile(rb"\r\n%s:[^\r]*" % _NAME, re.IGNORECASE)
_HOST_LINE = re.compile(rb"\r\nhost:[ \t]*([^\r]*?)[ \t]*\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"


def is_forwarding(name: bytes) -> bool:
    """Whether a field of this name says who a visitor is: Forwarded, and all that begin with X-Forwarded-.

    All of them, and not only the three that are added: some programs believe -Port, -Prefix and -Ssl as well.
    """
    return _FORWARDING.fullmatch(name) is not None


def forwarded(octets: bytes, *, source: str, proto: str) -> bytes:
    """A head whose fields say that it came from `source` (an IP address) by `proto`: "http" or "https".

    ``octets`` is a whole head as ``httphead`` has read it (RequestHead.octets), so it has one Host, and no
    CR but those of its line ends.
    """
    found = _HOST_LINE.search(octets)
    assert found is not None, "a head that was not read"
    host = found[1].decode("ascii")
    node = f'"[{source}]"' if ":" in source else source
    # RFC 7239 4: a value with a colon is not a token, so it is quoted (as a Host with a port, and IPv6, are).
    authority = f'"{host}"' if ":" in host else host
    fields = (
        f"\r\nX-Forwarded-For: {source}\r\nX-Forwarded-Proto: {proto}\r\nX-Forwarded-Host: {host}"
        f"\r\nForwarded: for={node};host={authority};proto={proto}"
    )
    kept = _FORWARDING_LINE.sub(b"", octets)
    return kept.removesuffix(_END) + fields.encode("ascii") + _END
