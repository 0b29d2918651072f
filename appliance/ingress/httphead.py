"""The head of one HTTP/1 request (RFC 9112 2 to 6), read strictly: whose site, and where the body ends.

A head is routed here and read again by the origin's web server; where the two could read it differently,
one visitor's octets become another's request. So nothing is repaired and nothing is guessed: what RFC 9112
lets a recipient forgive (bare LF, an empty line in front, folded lines, the same Content-Length twice) is
refused, for any of these is read in two ways by programs in use. There is one parse, and routing and
framing both follow it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from appliance.ingress.forwarded import is_forwarding
from appliance.ingress.hostname import host_name

HEAD_OCTETS_MAX = 16 * 1024
"""Request line and fields with the empty line. IIS and h11 have 16 KiB, Tomcat and nginx' buffers 8."""

REQUEST_LINE_OCTETS_MAX = 8 * 1024
"""RFC 9112 3: at least 8,000 octets; nginx and Apache have 8 KiB."""

FIELDS_MAX = 100
"""Apache's LimitRequestFields; browsers send 10 to 25."""

CONTENT_LENGTH_DIGITS_MAX = 18
"""The largest power of ten that every origin's signed 64-bit number holds."""

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%s) ([!-~]+) (HTTP/[0-9]\.[0-9])" % _TOKEN)
_FIELD_NAME = re.compile(_TOKEN)
_FIELD_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,%d}" % CONTENT_LENGTH_DIGITS_MAX)
_AUTHORITY = re.compile(rb"([^:@/?#\[\]]+)(?::([0-9]{1,5}))?")

# No control octet but HTAB, and CR and LF only as a pair. Looked for while the head is read, so that a
# visitor who speaks something else (TLS, say) is not waited for.
_LEGAL = re.compile(rb"(?:[\t -~\x80-\xff]++|\r\n)*+")

_PORTS = {"http": 80, "https": 443}
_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})

ROUTING_AND_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding"})
"""The fields that decide where a request goes and where it ends. Written with an underscore they are the
same field to a program that reads them as CGI variables, so those twins are refused.
"""


class HeadRefused(Exception):
    """The visitor's octets are no HTTP/1 request that can be passed on safely."""

    def __init__(self, status: int, text: str) -> None:
        """``status``: of the answer. ``text``: why, a sentence of ours without anything of the visitor's."""
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class RequestHead:
    """One request's head.

    ``target`` is as the visitor wrote it: visible ASCII without ``#``; ``host`` lower case without port or
    trailing dot; ``version`` "1.0" or "1.1". ``length`` is the body's octets, None for a chunked body.
    ``bodiless`` is a GET, HEAD or OPTIONS without a body, which may be repeated to another origin.
    ``upgrade``: another protocol was asked for (never h2c: that is refused). ``closing``: the visitor said
    that this is the last request of the connection. ``octets`` is the head as it came, and ``rest`` what
    followed it in the last ``feed``.
    """

    method: str
    target: str
    host: str
    version: str
    length: int | None
    bodiless: bool
    upgrade: bool
    closing: bool
    octets: bytes = field(repr=False)
    rest: bytes = field(repr=False)


class HeadReader:
    """Reads one head in any cut. Holds at most 16 KiB and what one ``feed`` brought."""

    def __init__(self, scheme: str = "http") -> None:
        """``scheme``: how the head came, "http" or "https"; a target that names a scheme must name this."""
        self.octets = bytearray()
        """Everything that was fed."""
        self._scheme = scheme
        self._legal = 0

    def feed(self, octets: bytes) -> RequestHead | None:
        """Take further octets; None while the head is not whole. Raises HeadRefused. Not to be fed after
        either.
        """
        self.octets += octets
        read = self.octets
        end = read.find(b"\r\n\r\n", max(0, self._legal - 2))
        stop = len(read) if end < 0 else end + 4
        one_line = read.find(b"\r\n", 0, REQUEST_LINE_OCTETS_MAX + 2) < 0
        bound = REQUEST_LINE_OCTETS_MAX + 2 if one_line else HEAD_OCTETS_MAX
        self._examine(min(stop, bound))
        if stop > bound:
            if one_line:
                raise HeadRefused(414, "The request line has more than 8 KiB.")
            raise HeadRefused(431, "The head has more than 16 KiB.")
        if end < 0:
            return None
        return _read_head(bytes(read[:stop]), bytes(read[stop:]), self._scheme)

    def _examine(self, stop: int) -> None:
        """Look at the octets before ``stop`` that were not looked at; a CR waits for what follows it."""
        read = self.octets
        match = _LEGAL.match(read, self._legal, stop)
        assert match is not None
        self._legal = match.end()
        if not b"!" <= (read[:1] or b"!") <= b"~" or bytes(read[self._legal : stop]) not in (b"", b"\r"):
            raise HeadRefused(400, "An octet is where HTTP/1 does not allow it.")


def read_field(line: bytes) -> tuple[bytes, bytes]:
    """Name in lower case and value of one field line (RFC 9112 5) without its CRLF. Raises HeadRefused."""
    if line[:1] in (b" ", b"\t"):
        raise HeadRefused(400, "A field is folded over several lines.")
    name, colon, value = line.partition(b":")
    if not colon or not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        raise HeadRefused(400, "A field line is malformed.")
    name = name.lower()
    if b"_" in name and name.replace(b"_", b"-") in ROUTING_AND_FRAMING:
        raise HeadRefused(400, "A field has the name of another one, but for an underscore.")
    if (
        b"\t" in value and name in ROUTING_AND_FRAMING
    ):  # a blank to RFC 9110 5.6.3, but a part of the value to nginx
        raise HeadRefused(400, "A tab is in a field that decides where a request goes or ends.")
    return name, value.strip(b" \t")


def _read_head(octets: bytes, rest: bytes, scheme: str) -> RequestHead:
    first, *lines = octets[:-4].split(b"\r\n")
    method, target, version = _read_request_line(first)
    if len(lines) > FIELDS_MAX:
        raise HeadRefused(431, f"The head has more than {FIELDS_MAX} fields.")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, value = read_field(line)
        fields.setdefault(name, []).append(value)
    host = _read_host(fields, target, method, scheme)
    length = _read_length(fields, version)
    connection = _listed(fields, b"connection")
    # RFC 9110 7.6.1: MUST NOT. Apache obeyed, and so took away who the visitor is (CVE-2022-31813).
    if not ROUTING_AND_FRAMING.isdisjoint(connection) or any(map(is_forwarding, connection)):
        raise HeadRefused(400, "Connection names a field that is for all recipients.")
    upgrade = _listed(fields, b"upgrade")
    if any(protocol.partition(b"/")[0] == b"h2c" for protocol in upgrade):
        raise HeadRefused(400, "HTTP/2 is not offered on this port.")
    return RequestHead(
        method=method.decode("ascii"),
        target=target.decode("ascii"),
        host=host,
        version=version.decode("ascii"),
        length=length,
        bodiless=method in _SAFE and length == 0,
        upgrade=bool(upgrade),
        closing=b"close" in connection or (version == b"1.0" and b"keep-alive" not in connection),
        octets=octets,
        rest=rest,
    )


def _read_request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target, version. The method CONNECT, and HTTP/2 with its preface (``PRI * HTTP/2.0``), are
    refused.
    """
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise HeadRefused(400, "The request line is malformed.")
    method, target, version = match.groups()
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise HeadRefused(400, "Only HTTP/1.0 and HTTP/1.1 are offered on this port.")
    if method.upper() in (b"CONNECT", b"PRI"):
        raise HeadRefused(400, "This is not a proxy.")
    if b"#" in target:  # CVE-2023-45539 of HAProxy: programs differ on where such a path ends
        raise HeadRefused(400, "The target holds a fragment.")
    return method, target, version.removeprefix(b"HTTP/")


def _read_host(fields: dict[bytes, list[bytes]], target: bytes, method: bytes, scheme: str) -> str:
    """The one host of Host, and of the target where that names one, too (RFC 9112 3.2)."""
    values = fields.get(b"host", [])
    if len(values) != 1:
        raise HeadRefused(400, "There must be exactly one Host.")
    host, port = _read_authority(values[0], scheme)
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return host
    before, mark, rest = target.partition(b"://")
    if not mark or before.lower() != scheme.encode("ascii"):
        raise HeadRefused(400, f"The target is neither a path nor an address that begins with {scheme}.")
    if _read_authority(re.split(rb"[/?]", rest, maxsplit=1)[0], scheme) != (host, port):
        raise HeadRefused(400, "The target is on another host than Host says.")
    return host


def _read_authority(octets: bytes, scheme: str) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(octets)
    host = host_name(match[1]) if match else None
    port = int(match[2] or _PORTS[scheme]) if match else 0
    if host is None or not 0 < port < 1 << 16:
        raise HeadRefused(400, "Host is not the name of a site.")
    return host, port


def _read_length(fields: dict[bytes, list[bytes]], version: bytes) -> int | None:
    """The body's octets, None if it is chunked (RFC 9112 6)."""
    codings = fields.get(b"transfer-encoding", [])
    lengths = fields.get(b"content-length", [])
    if codings:
        if lengths:
            raise HeadRefused(400, "Content-Length and Transfer-Encoding do not go together.")
        if version == b"1.0" or [coding.lower() for coding in codings] != [b"chunked"]:
            raise HeadRefused(400, "The only Transfer-Encoding is chunked, once, in HTTP/1.1.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0]):
        raise HeadRefused(400, "Content-Length is not one number.")
    return int(lengths[0])


def _listed(fields: dict[bytes, list[bytes]], name: bytes) -> set[bytes]:
    """The members of a list field (RFC 9110 5.6.1), in lower case; parameters stay with them."""
    members = b",".join(fields.get(name, [])).lower().split(b",")
    return {member.strip(b" \t") for member in members} - {b""}
