"""What a tunnel server says of itself with an UPDATE (RFC 2136): the membership record, both ways.

    <id>._tunnel.<zone>  TXT  "boot=…;n=…;ip=…"

One record, so one datagram, however many names the server has. Hides the form of the record and of the
message. The nameserver leases it (RFC 9664) and does not serve it: what it publishes follows from the watch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import Struct

from appliance.dns import names
from appliance.dns.answer import opt_record
from appliance.dns.numbers import ANY, FORMERR, IN, REFUSED, SOA, TXT
from appliance.dns.numbers import UPDATE as OPCODE_UPDATE
from appliance.dns.question import Edns
from appliance.dns.update import Clause, Update, UpdateRefused
from appliance.dns.updatelease import lease_option
from appliance.tunnel.discovery import HTTPS_PORT, BadServerAddress, ServerAddress

MAX_ADDRESSES = 16
"""Of one server, as in the hello of a watch."""
MAX_CHARACTERS = 1200
"""16 IPv6 addresses with their ports and a boot of 64 characters have less."""
MAX_N = 2**63 - 1
_BELOW = "_tunnel"
_BOOT = re.compile(r"[!-:<-~]{1,64}")
"""A boot as in the hello of a watch; one with a semicolon in it cannot be announced."""
_MAX_STRING_OCTETS = 255
_CLASS_ANY = 255
_PAYLOAD_OCTETS = 1232
_HEADER = Struct("!HHHHHH")
_ZONE = Struct("!HH")
_RECORD = Struct("!HHIH")


class BadAnnouncement(ValueError):
    """The membership record does not say what one has to say."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """The start `boot` of a server is at these addresses; `n` counts what this start has announced."""

    boot: str
    n: int
    addresses: tuple[ServerAddress, ...]


def owner_of(server_id: str, apex: bytes) -> bytes:
    """Where the membership record of this server is in the zone `apex`. Raises BadName."""
    return names.from_text(f"{server_id}.{_BELOW}.{names.to_text(apex)}")


def write_text(announcement: Announcement) -> str:
    """The text of the record. A port other than 443 stands behind the address that it belongs to."""
    pairs = [f"boot={announcement.boot}", f"n={announcement.n}"]
    for address in announcement.addresses:
        pairs.append(f"ip={address.host}")
        if address.port != HTTPS_PORT:
            pairs.append(f"port={address.port}")
    return ";".join(pairs)


def read_text(text: str) -> Announcement:
    """The reverse of `write_text`; keys that are not known are passed over. Raises BadAnnouncement."""
    if len(text) > MAX_CHARACTERS:
        raise BadAnnouncement(f"more than {MAX_CHARACTERS} characters")
    once: dict[str, str] = {}
    places: list[tuple[str, str | None]] = []
    for pair in filter(None, text.split(";")):
        key, _, value = pair.partition("=")
        if key == "ip":
            places.append((value, None))
        elif key == "port":
            if not places or places[-1][1] is not None:
                raise BadAnnouncement("a port that belongs to no ip")
            places[-1] = places[-1][0], value
        elif key in once:
            raise BadAnnouncement(f"{key} is there twice")
        else:
            once[key] = value
    boot, n = once.get("boot", ""), _number(once.get("n", ""), MAX_N)
    if not _BOOT.fullmatch(boot):
        raise BadAnnouncement("boot is not 1 to 64 printable characters")
    if n is None:
        raise BadAnnouncement("n is not a number")
    if not 0 < len(places) <= MAX_ADDRESSES:
        raise BadAnnouncement(f"not 1 to {MAX_ADDRESSES} addresses")
    return Announcement(boot, n, tuple(dict.fromkeys(map(_address, places))))


def _address(place: tuple[str, str | None]) -> ServerAddress:
    host, port = place
    number = HTTPS_PORT if port is None else _number(port, 65535)
    try:
        return ServerAddress(host, number or 0)
    except BadServerAddress as error:
        raise BadAnnouncement(str(error)) from None


def _number(text: str, most: int) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        return None
    return int(text) if int(text) <= most else None


def read_update(update: Update, server_id: str) -> Announcement:
    """What this server announces with `update`, which is signed with its key: its own membership record, and
    nothing else, in place of the one before or beside it. Raises UpdateRefused.
    """
    owner = owner_of(server_id, update.apex)
    if update.prerequisites:
        raise UpdateRefused(REFUSED, "an announcement has no prerequisites")
    added: list[Clause] = []
    for clause in update.changes:
        if clause.name != owner or clause.rtype not in (TXT, ANY):
            raise UpdateRefused(REFUSED, f"the key of a tunnel server may not change {clause}")
        if clause.rclass == IN:
            added.append(clause)
    if len(added) != 1:
        raise UpdateRefused(REFUSED, "an announcement has exactly one membership record")
    try:
        return read_text(_joined(added[0].rdata).decode("ascii"))
    except (BadAnnouncement, UnicodeDecodeError) as error:
        raise UpdateRefused(FORMERR, f"the membership record: {error}") from None


def _joined(rdata: bytes) -> bytes:
    """The character-strings of TXT data that dnspython has read and written."""
    found = bytearray()
    at = 0
    while at < len(rdata):
        found += rdata[at + 1 : at + 1 + rdata[at]]
        at += 1 + rdata[at]
    return bytes(found)


def compose(
    message_id: int, apex: bytes, server_id: str, announcement: Announcement, lease_seconds: int
) -> bytes:
    """The UPDATE that announces this, not signed yet; the record before is replaced. Raises BadName."""
    owner = owner_of(server_id, apex)
    text = write_text(announcement).encode("ascii")
    strings = [text[at : at + _MAX_STRING_OCTETS] for at in range(0, len(text), _MAX_STRING_OCTETS)]
    rdata = b"".join(bytes((len(one),)) + one for one in strings)
    head = _HEADER.pack(message_id, OPCODE_UPDATE << 11, 1, 0, 2, 1)
    zone = apex + _ZONE.pack(SOA, IN)
    gone = owner + _RECORD.pack(TXT, _CLASS_ANY, 0, 0)
    there = owner + _RECORD.pack(TXT, IN, lease_seconds, len(rdata)) + rdata
    opt = opt_record(Edns(_PAYLOAD_OCTETS, 0, False), 0, lease_option(lease_seconds))
    return head + zone + gone + there + opt
