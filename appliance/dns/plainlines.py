"""The lines of a master file that most files consist of, read ten times as fast as the whole grammar is.

Hidden here: which lines those are: one record on one line, in the plainest spelling. Whatever else a line may
be, and every mistake, is left to the whole grammar, so that there is one place that words errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.dns import names
from appliance.dns.numbers import AAAA, CNAME, MX, NS, PTR, TXT, A

_SRV: Final = 33
_CAA: Final = 257

# Owner (or none: the one before), TTL, class, type, data to the end of the line. With an escape, a
# parenthesis or a remark in it, it does not match.
_LINE: Final = re.compile(
    r"([A-Za-z0-9_*.@-]*)[ \t]+(?:(\d{1,9})[ \t]+)?(?:IN[ \t]+)?([A-Z]{1,10})[ \t]+"
    # Words, quoted texts, or (CAA) both; octets are printable ASCII.
    r"([!#-'*-:<-\[\]-~][\t !#-'*-:<-\[\]-~]*|(?:\"[ !#-\[\]-~]*\"(?:[ \t]+|(?=\n)))+"
    r"|\d{1,3}[ \t]+[a-z]+[ \t]+\"[ !#-\[\]-~]*\"[ \t]*)\n",
    re.ASCII,
)
_V4: Final = re.compile(r"(0|[1-9][0-9]{0,2})" + r"\.(0|[1-9][0-9]{0,2})" * 3).fullmatch
_V6: Final = re.compile(r"[0-9A-Fa-f:]{2,39}").fullmatch
_STRINGS: Final = re.compile(r'"([^"]*)"').findall
_CAA_DATA: Final = re.compile(r'(\d{1,3})[ \t]+([a-z]{1,15})[ \t]+"([^"]*)"[ \t]*').fullmatch
_LABELS: Final = re.compile(r"[A-Za-z0-9_*-]{1,63}(?:\.[A-Za-z0-9_*-]{1,63})*\.?").fullmatch

MAX_TEXT_OCTETS: Final = 255


class NotPlain(Exception):
    """This line is for the whole grammar."""


class Line(NamedTuple):
    """What a plain line says; `owner` and `ttl` are None where it says nothing."""

    owner: bytes | None
    ttl: int | None
    rtype: int
    rdata: bytes
    end: int


class PlainLines:
    """Reads plain lines of `text`. `learn` adds what the whole grammar made of a type and data."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._match = _LINE.match
        self._origin: bytes | None = None
        self._learnt: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._owner_text = ""
        self._owner: bytes | None = None

    def set_origin(self, origin: bytes | None) -> None:
        """Names without a final dot are below `origin` from now on, in wire form as written."""
        if origin != self._origin:
            self._origin = origin
            self._learnt.clear()
            self._owner_text = ""

    def learn(self, start: int, end: int, rtype: int, rdata: bytes) -> None:
        """The line from `start` to `end` was read by the whole grammar. Its data may come again: a few
        spellings of HTTPS or SOA are most of what a large file has of them."""
        match = self._match(self._text, start)
        if match is not None and match.end() == end and len(self._learnt) < MAX_LEARNT:
            self._learnt[match.group(3), match.group(4)] = rtype, rdata

    def read(self, at: int) -> Line | None:
        """The line that begins at `at`, if it is plain."""
        match = self._match(self._text, at)
        if match is None:
            return None
        owner_text, ttl, word, data = match.groups()
        try:
            known = _READERS.get(word)
            if known is not None:
                rtype, reader = known
                rdata = reader(data.rstrip(), self._origin)
            else:
                rtype, rdata = self._learnt[word, data]
            if not owner_text:
                owner = None
            elif owner_text == self._owner_text:
                owner = self._owner
            else:
                owner = _name(owner_text, self._origin).lower()
                self._owner_text, self._owner = owner_text, owner
        except (NotPlain, ValueError, KeyError):
            return None
        return Line(owner, None if ttl is None else int(ttl), rtype, rdata, match.end())


MAX_LEARNT: Final = 10_000


def _name(text: str, origin: bytes | None) -> bytes:
    if text == "@":
        if origin is None:
            raise NotPlain
        return origin
    if _LABELS(text) is None:
        raise NotPlain
    if text[-1] == ".":
        text, origin = text[:-1], names.ROOT
    elif origin is None:
        raise NotPlain
    octets = text.encode("ascii")
    if b"." in octets:
        wire = b"".join([bytes((len(label),)) + label for label in octets.split(b".")]) + origin
    else:
        wire = bytes((len(octets),)) + octets + origin
    if len(wire) > names.MAX_NAME_OCTETS:
        raise NotPlain
    return wire


def _v4(data: str, origin: bytes | None) -> bytes:
    match = _V4(data)
    if match is None:
        raise NotPlain
    return bytes(map(int, match.groups()))  # ValueError above 255


def _v6(data: str, origin: bytes | None) -> bytes:
    if _V6(data) is None:
        raise NotPlain
    before, gap, after = data.partition("::")
    head = before.split(":") if before else []
    tail = after.split(":") if after else []
    missing = 8 - len(head) - len(tail)
    parts = [*head, *("0",) * missing, *tail]
    if "" in parts or max(map(len, parts)) > 4 or (missing < 1 if gap else missing):
        raise NotPlain
    return bytes.fromhex("".join([part.rjust(4, "0") for part in parts]))


def _texts(data: str, origin: bytes | None) -> bytes:
    if (data[0] == '"') != ('"' in data):
        raise NotPlain  # some in quotes, others not
    found = _STRINGS(data) if data[0] == '"' else data.split()
    octets = [text.encode("ascii") for text in found]
    if max(map(len, octets)) > MAX_TEXT_OCTETS:
        raise NotPlain
    return b"".join([bytes((len(text),)) + text for text in octets])


def _target(data: str, origin: bytes | None) -> bytes:
    return _name(data, origin)


def _numbers(count: int) -> Callable[[str, bytes | None], bytes]:
    def read(data: str, origin: bytes | None) -> bytes:
        *numbers, target = data.split()
        if len(numbers) != count or not all(number.isdigit() for number in numbers):
            raise NotPlain
        try:
            return b"".join([int(number).to_bytes(2, "big") for number in numbers]) + _name(target, origin)
        except OverflowError:
            raise NotPlain from None

    return read


def _caa(data: str, origin: bytes | None) -> bytes:
    match = _CAA_DATA(data)
    if match is None:
        raise NotPlain
    flags, tag, value = match.groups()
    return bytes((int(flags), len(tag))) + tag.encode("ascii") + value.encode("ascii")


_READERS: Final[dict[str, tuple[int, Callable[[str, bytes | None], bytes]]]] = {
    "A": (A, _v4),
    "AAAA": (AAAA, _v6),
    "TXT": (TXT, _texts),
    "NS": (NS, _target),
    "CNAME": (CNAME, _target),
    "PTR": (PTR, _target),
    "MX": (MX, _numbers(1)),
    "SRV": (_SRV, _numbers(3)),
    "CAA": (_CAA, _caa),
}
