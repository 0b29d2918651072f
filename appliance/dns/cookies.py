"""DNS cookies (RFC 7873): who brings back what we gave him can be reached at the address that he gives.

Hidden here: what a server cookie is made of, how old one may be, and which secret was in use when. A server
cookie has the form of RFC 9018 4: version, three reserved octets, the Unix time, eight octets of a keyed
hash over the client's cookie, those and his address. By default the hash is BLAKE2s, a fraction of the
cost of SipHash in Python, under a version number of the range for private use; nameservers of other
vendors understand only SIPHASH.

No two questions of one client need the hash twice: what was made of a cookie is remembered for a minute,
for at most MAX_REMEMBERED cookies (5 MB).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Sequence
from enum import Enum
from hmac import compare_digest
from typing import Final, NamedTuple

from appliance.dns.numbers import COOKIE
from appliance.dns.siphash import siphash

CLIENT_OCTETS: Final = 8
SECRET_OCTETS: Final = 16
MAX_SECRETS: Final = 8  # one that signs and those that it replaces

# RFC 9018 4.3, which BIND, NSD and Knot go by.
MAX_AGE_SECONDS: Final = 3600
MAX_AHEAD_SECONDS: Final = 300
RENEWAL_AGE_SECONDS: Final = 1800

# The secret that the hash is keyed with is made anew from the given one each day: no attacker has longer
# to search for it (RFC 7873 7.1), and nameservers with one secret need no word to each other.
PERIOD_SECONDS: Final = 86400

MAX_REMEMBERED: Final = 16_384
REMEMBERED_SECONDS: Final = 60.0

_SERVER_OCTETS: Final = 16
_SIZES: Final = frozenset({CLIENT_OCTETS, *range(CLIENT_OCTETS + 8, CLIENT_OCTETS + 33)})  # RFC 7873 4
_OPTION_HEAD: Final = COOKIE.to_bytes(2, "big") + (CLIENT_OCTETS + _SERVER_OCTETS).to_bytes(2, "big")
_RDLENGTH: Final = (len(_OPTION_HEAD) + CLIENT_OCTETS + _SERVER_OCTETS).to_bytes(2, "big")

OPTION_OCTETS: Final = len(_OPTION_HEAD) + CLIENT_OCTETS + _SERVER_OCTETS


class CookieSecretsRefused(Exception):
    """The text is not a list of cookie secrets: 32 hexadecimal digits a line, the one that signs first."""


class Function(Enum):
    """The keyed hash, and the version that tells it from others (RFC 9018 8.1)."""

    BLAKE2S = 240
    SIPHASH = 1


class Verdict(NamedTuple):
    """What a cookie is worth, and the answer to it: the RDLENGTH of an OPT record and its only option."""

    valid: bool
    rdata: bytes

    @property
    def option(self) -> bytes:
        """The option alone."""
        return self.rdata[len(_RDLENGTH) :]


class Cookies:
    """Makes and knows server cookies. Of `secrets`, 16 octets each, the first signs and all are believed."""

    def __init__(self, secrets: Sequence[bytes], function: Function = Function.BLAKE2S) -> None:
        self._secrets = _checked(secrets)
        self._version = bytes((function.value, 0, 0, 0))
        self._hash = _siphash if function is Function.SIPHASH else _Blake()
        self._remembered: dict[tuple[str, bytes], Verdict] = {}
        self._forget_at = float("-inf")

    def renew(self, secrets: Sequence[bytes]) -> None:
        """From now on these are the secrets."""
        self._secrets = _checked(secrets)
        self._remembered.clear()

    def __len__(self) -> int:
        """How many verdicts are remembered."""
        return len(self._remembered)

    def verdict(self, source: str, cookie: bytes, wall: float) -> Verdict:
        """What the `cookie`, as it came from the address `source` in a form that `is_cookie`, is worth."""
        if not self._forget_at - REMEMBERED_SECONDS <= wall < self._forget_at:
            self._remembered.clear()
            self._forget_at = wall + REMEMBERED_SECONDS
        found = self._remembered.get((source, cookie))
        if found is None:
            found = self._judge(source, cookie, int(wall))
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()  # only a flood of made-up ones gets there
            self._remembered[source, cookie] = found
        return found

    def _judge(self, source: str, cookie: bytes, wall: int) -> Verdict:
        client, server = cookie[:CLIENT_OCTETS], cookie[CLIENT_OCTETS:]
        is_valid, is_fresh = self._examine(source, client, server, wall)
        if not is_fresh:
            signed = self._version + (wall & 0xFFFF_FFFF).to_bytes(4, "big")
            server = signed + self._hash(self._secrets[0], client + signed, source)
        return Verdict(is_valid, _RDLENGTH + _OPTION_HEAD + client + server)

    def _examine(self, source: str, client: bytes, server: bytes, wall: int) -> tuple[bool, bool]:
        """Whether we, or a nameserver with our secrets, made `server` for him; and whether he may keep it."""
        if len(server) != _SERVER_OCTETS or server[0] != self._version[0]:
            return False, False
        age = (wall - int.from_bytes(server[4:8], "big")) & 0xFFFF_FFFF
        age -= (age & 0x8000_0000) << 1  # RFC 1982: the Unix time has more than 32 bits from 2106 on
        if not -MAX_AHEAD_SECONDS <= age <= MAX_AGE_SECONDS:
            return False, False
        for secret in self._secrets:
            # The reserved octets are not ours to judge, but they are signed.
            if compare_digest(server[8:], self._hash(secret, client + server[:8], source)):
                return True, age <= RENEWAL_AGE_SECONDS and secret is self._secrets[0]
        return False, False


def is_cookie(octets: bytes) -> bool:
    """Whether the content of a COOKIE option has one of the sizes that there are; others are FORMERR (RFC
    7873 5.2.2)."""
    return len(octets) in _SIZES


def read_secrets(text: str) -> tuple[bytes, ...]:
    """The secrets of a file as NSD and Knot share it. Raises CookieSecretsRefused; says no secret."""
    secrets: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        digits = line.partition("#")[0].strip()
        if not digits:
            continue
        if len(digits) != 2 * SECRET_OCTETS or not set(digits) <= set("0123456789abcdefABCDEF"):
            raise CookieSecretsRefused(f"{number}: not a secret: it must be 32 hexadecimal digits")
        secrets.append(bytes.fromhex(digits))
    if not 0 < len(secrets) <= MAX_SECRETS:
        raise CookieSecretsRefused(f"1: must hold 1 to {MAX_SECRETS} secrets, not {len(secrets)}")
    return tuple(secrets)


def _checked(secrets: Sequence[bytes]) -> tuple[bytes, ...]:
    if not 0 < len(secrets) <= MAX_SECRETS or any(len(secret) != SECRET_OCTETS for secret in secrets):
        raise ValueError("1 to 8 secrets of 16 octets")
    return tuple(secrets)


_Hash = Callable[[bytes, bytes, str], bytes]


def _siphash(secret: bytes, signed: bytes, source: str) -> bytes:
    return siphash(secret, signed + ipaddress.ip_address(source.partition("%")[0]).packed)


class _Blake:
    """BLAKE2s under the day's key. The address goes in as text: the kernel writes each in one way only, and
    to make octets of it costs three times the hash."""

    def __init__(self) -> None:
        self._keyed: dict[tuple[bytes, int], hashlib.blake2s] = {}

    def __call__(self, secret: bytes, signed: bytes, source: str) -> bytes:
        period = int.from_bytes(signed[-4:], "big") // PERIOD_SECONDS
        keyed = self._keyed.get((secret, period))
        if keyed is None:
            if len(self._keyed) >= 2 * MAX_SECRETS:  # days that are over
                self._keyed.clear()
            key = hashlib.blake2s(period.to_bytes(4, "big"), key=secret, person=b"cookies").digest()
            keyed = self._keyed[secret, period] = hashlib.blake2s(key=key, digest_size=8)
        hashed = keyed.copy()
        hashed.update(signed + source.encode())
        return hashed.digest()
