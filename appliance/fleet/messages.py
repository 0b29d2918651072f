"""The words of a watch: every message between a tunnel server and a nameserver, and the bound of each field.

They are written as those of a link are (`tunnel.lines`). docs/reference/protocol.md says what each is for;
`watch` says when each may come.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.fleet.renewing import Renew, Renewed, RenewRefused
from appliance.tunnel.account import ISSUER_PATTERN, MAX_AT, MAX_ISSUERS, URL_PATTERN
from appliance.tunnel.challenge import LIFE_SECONDS, VALUE_PATTERN
from appliance.tunnel.crl import MAX_CRL_NUMBER
from appliance.tunnel.crlparts import Crl
from appliance.tunnel.discovery import BadServerAddress, read_address
from appliance.tunnel.lines import (
    LineReader,
    MessageError,
    Vocabulary,
    flag,
    hexadecimal,
    sentence,
    several,
    text,
    whole,
    word,
)
from appliance.tunnel.names import BadHostName, normal
from appliance.tunnel.signature import SIGNATURE_PATTERN

VERSION = 1
MAX_NAMES_IN_MESSAGE = 200
"""200 names of 253 octets, quoted, are 51 KiB: they always fit a line."""
MAX_ADDRESSES = 16
"""Of one server: an IPv4 and an IPv6 address are what one has."""
MAX_PEM_CHARACTERS = 64_000
"""A client's certificate with 256 names of usual length has about 12,000."""


def _name(value: object) -> str:
    try:
        if isinstance(value, str):
            return normal(value)
    except BadHostName:
        pass
    raise MessageError("is not a host name")


def _address(value: object) -> str:
    try:
        if isinstance(value, str) and len(value) < 100:
            return str(read_address(value))
    except BadServerAddress:
        pass
    raise MessageError("is not the address of a server")


_ID = word("[a-z0-9._-]{1,63}")
_TOKEN = word("[!-~]{1,64}")
_FINGERPRINT = hexadecimal(64)
_VALUE = word(VALUE_PATTERN)
_SIGNATURE = word(SIGNATURE_PATTERN)
_CRL = whole(0, MAX_CRL_NUMBER)


@dataclass(frozen=True, slots=True)
class ServerHello:
    """Server: the first message. `boot` is new at each start; `addresses` are the public ones, as `host:port`
    or `[v6]:port`; `crl` is the number of the revocation list that it holds.
    """

    version: Annotated[int, whole(1, 65535)]
    id: Annotated[str, _ID]
    boot: Annotated[str, _TOKEN]
    addresses: Annotated[tuple[str, ...], several(_address, MAX_ADDRESSES)]
    crl: Annotated[int | None, _CRL] = None


@dataclass(frozen=True, slots=True)
class NameserverHello:
    """Nameserver: the first message. `crl` as in the server's; `renews`: whether the CA's key is there."""

    version: Annotated[int, whole(1, 65535)]
    id: Annotated[str, _ID]
    crl: Annotated[int | None, _CRL] = None
    renews: Annotated[bool | None, flag] = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """Server: a client's certificate, before the first name that is served under it.

    `fingerprint` is the SHA-256 of its DER. Both ends forget it with the last name and challenge under it.
    """

    fingerprint: Annotated[str, _FINGERPRINT]
    pem: Annotated[str, text(MAX_PEM_CHARACTERS)]


@dataclass(frozen=True, slots=True)
class Serving:
    """Server: a name has a session here now, of a client with that certificate."""

    name: Annotated[str, _name]
    fingerprint: Annotated[str, _FINGERPRINT]


@dataclass(frozen=True, slots=True)
class NotServing:
    """Server: a name has no session here any more."""

    name: Annotated[str, _name]


@dataclass(frozen=True, slots=True)
class Challenge:
    """Server: a client with that certificate wants to have a certificate of this name, and a TXT record to
    say this value for so long. Said again, it is that much longer.
    """

    name: Annotated[str, _name]
    value: Annotated[str, _VALUE]
    seconds: Annotated[int, whole(1, LIFE_SECONDS)]
    signature: Annotated[str, _SIGNATURE]
    fingerprint: Annotated[str, _FINGERPRINT]


@dataclass(frozen=True, slots=True)
class ChallengeOver:
    """Server: nobody here wants that any more."""

    name: Annotated[str, _name]
    value: Annotated[str, _VALUE]


@dataclass(frozen=True, slots=True)
class Account:
    """Server: an instance of the client with that certificate has this account at a CA, as on a link."""

    instance: Annotated[str, hexadecimal(32)]
    url: Annotated[str, word(URL_PATTERN)]
    issuers: Annotated[tuple[str, ...], several(word(ISSUER_PATTERN), MAX_ISSUERS)]
    at: Annotated[int, whole(0, MAX_AT)]
    signature: Annotated[str, _SIGNATURE]
    fingerprint: Annotated[str, _FINGERPRINT]


@dataclass(frozen=True, slots=True)
class SnapshotEnded:
    """Server: every name that had a session when the watch began has been said; only changes follow."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Server: it will leave, and serves until then. Once."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Server: it goes away on purpose."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Server: it ends this watch, or does not let it begin, and why, as on a link."""

    reason: Annotated[str, word("[a-z0-9_]{1,40}")]
    text: Annotated[str, sentence(1000)]


@dataclass(frozen=True, slots=True)
class Known:
    """Nameserver: it knows these names, besides those said before on this watch.

    So a visitor of one is told 503 and not 404. `complete`: with these it has said all of them (false in all
    but the last message of a long list).
    """

    names: Annotated[tuple[str, ...], several(_name, MAX_NAMES_IN_MESSAGE)]
    complete: Annotated[bool, flag]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Nameserver: it no longer knows these names."""

    names: Annotated[tuple[str, ...], several(_name, MAX_NAMES_IN_MESSAGE)]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Nameserver: the answer to draining, once what follows is published.

    `held`: the server is published all the same, for there is no other.
    """

    held: Annotated[bool, flag]


@dataclass(frozen=True, slots=True)
class Ping:
    """Either: answer with the same nonce. A kernel acknowledges octets for a process that is stopped."""

    nonce: Annotated[str, _TOKEN]


@dataclass(frozen=True, slots=True)
class Pong:
    """Either: the answer to the ping with that nonce."""

    nonce: Annotated[str, _TOKEN]


FromServer = (
    ServerHello
    | Certificate
    | Serving
    | NotServing
    | Challenge
    | ChallengeOver
    | Account
    | SnapshotEnded
    | Crl
    | Renew
    | Renewed
    | RenewRefused
    | Draining
    | Leaving
    | Goodbye
    | Ping
    | Pong
)
FromNameserver = (
    NameserverHello
    | Known
    | Forgotten
    | Withdrawn
    | Crl
    | Renew
    | Renewed
    | RenewRefused
    | Ping
    | Pong
)
Message = FromServer | FromNameserver

BY_SERVER: Vocabulary[FromServer] = Vocabulary(
    {
        "hello": ServerHello,
        "certificate": Certificate,
        "serving": Serving,
        "not_serving": NotServing,
        "challenge": Challenge,
        "challenge_over": ChallengeOver,
        "account": Account,
        "snapshot_ended": SnapshotEnded,
        "crl": Crl,
        "renew": Renew,
        "renewed": Renewed,
        "renew_refused": RenewRefused,
        "draining": Draining,
        "leaving": Leaving,
        "goodbye": Goodbye,
        "ping": Ping,
        "pong": Pong,
    }
)
BY_NAMESERVER: Vocabulary[FromNameserver] = Vocabulary(
    {
        "hello": NameserverHello,
        "known": Known,
        "forgotten": Forgotten,
        "withdrawn": Withdrawn,
        "crl": Crl,
        "renew": Renew,
        "renewed": Renewed,
        "renew_refused": RenewRefused,
        "ping": Ping,
        "pong": Pong,
    }
)


class ServerLines(LineReader[FromServer]):
    """Reads what a tunnel server says on a watch."""

    def __init__(self) -> None:
        super().__init__(BY_SERVER)


class NameserverLines(LineReader[FromNameserver]):
    """Reads what a nameserver says on a watch."""

    def __init__(self) -> None:
        super().__init__(BY_NAMESERVER)


def shown(certificate: x509.Certificate) -> Certificate:
    """The message that shows a client's certificate. Raises MessageError: it is too long."""
    pem = certificate.public_bytes(Encoding.PEM).decode("ascii")
    message = Certificate(fingerprint_of(certificate), pem)
    BY_SERVER.encode(message)
    return message


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
