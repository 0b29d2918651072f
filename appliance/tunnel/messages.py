"""The words of a link: every message between a tunnel client and a tunnel server, and the bound of each
field.

docs/reference/protocol.md says what each is for; `session` says when each may come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from appliance.tunnel.account import ISSUER_PATTERN, MAX_AT, MAX_ISSUERS, URL_PATTERN
from appliance.tunnel.challenge import LIFE_SECONDS, VALUE_PATTERN
from appliance.tunnel.crl import MAX_CRL_NUMBER
from appliance.tunnel.crlparts import Crl
from appliance.tunnel.lines import (
    LineReader,
    MessageError,
    Vocabulary,
    flag,
    hexadecimal,
    one_of,
    seconds,
    sentence,
    several,
    text,
    whole,
    word,
)
from appliance.tunnel.renewal import PEM_PATTERN
from appliance.tunnel.signature import SIGNATURE_PATTERN

__all__ = [
    "VERSION",
    "Account",
    "Certified",
    "Challenge",
    "ChallengeOver",
    "ChallengeRefused",
    "Crl",
    "Draining",
    "Goodbye",
    "Hello",
    "Lanes",
    "Lines",
    "Message",
    "MessageError",
    "Ping",
    "Pong",
    "Refused",
    "Register",
    "Registered",
    "Renew",
    "RenewRefused",
    "Renewed",
    "Uncertified",
    "Unregister",
    "Welcome",
    "encode",
]

VERSION = 1
MAX_NAME_CHARACTERS = 255
"""Longer than any name, so that a bad one is refused by name and the link goes on."""
MAX_LANES = 65535
"""Lanes that a server can hold for one client: there are no more ports."""
MAX_WHY_CHARACTERS = 300
"""Of why there is no certificate: as much as the client itself takes of a CA's words."""
MAX_RECONNECT_SECONDS = 3600.0
"""A server that wants to be left alone for longer than an hour says goodbye."""

_NAME = text(MAX_NAME_CHARACTERS)
_REASON = word("[a-z0-9_]{1,40}")
_TEXT = sentence(1000)
_NONCE = word("[!-~]{1,64}")
_CRL = whole(0, MAX_CRL_NUMBER)
_PING_SECONDS = seconds(1, 300)
_VALUE = word(VALUE_PATTERN)
_SIGNATURE = word(SIGNATURE_PATTERN)


@dataclass(frozen=True, slots=True)
class Hello:
    """Client: the first message. `instance` is random and kept: it tells two running clients apart.

    `crl` is the number of the revocation list that it holds (0: none yet); missing: it keeps none.
    """

    version: Annotated[int, whole(1, 65535)]
    instance: Annotated[str, hexadecimal(32)]
    agent: Annotated[str, sentence(100)]
    crl: Annotated[int | None, _CRL] = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """Server: the answer to hello. `boot` is new at each start of the server; `session` is for prefaces.

    `crl` as in a hello.
    """

    server: Annotated[str, word("[a-z0-9._-]{1,63}")]
    boot: Annotated[str, word("[!-~]{1,64}")]
    session: Annotated[str, hexadecimal(16)]
    ping_seconds: Annotated[float, _PING_SECONDS]
    crl: Annotated[int | None, _CRL] = None


@dataclass(frozen=True, slots=True)
class Register:
    """Client: send me visitors of this name. Sent again, it changes what is offered.

    `tls`: connections by TLS are passed on. `http`: on port 80, redirect to https or pass requests on; with
    `forwarded` each of those gets fields that say who the visitor is (missing: none does).
    """

    name: Annotated[str, _NAME]
    tls: Annotated[bool, flag]
    http: Annotated[str, one_of("redirect", "serve")]
    forwarded: Annotated[bool | None, flag] = None


@dataclass(frozen=True, slots=True)
class Registered:
    """Server: visitors of this name come from now on."""

    name: Annotated[str, _NAME]


@dataclass(frozen=True, slots=True)
class Refused:
    """Server: this name is not served for you; the link goes on."""

    name: Annotated[str, _NAME]
    reason: Annotated[str, _REASON]
    text: Annotated[str, _TEXT]


@dataclass(frozen=True, slots=True)
class Unregister:
    """Client: no more visitors of this name."""

    name: Annotated[str, _NAME]


@dataclass(frozen=True, slots=True)
class Challenge:
    """Client: for the certificate of this name, have a TXT record say this value, for so long at most."""

    name: Annotated[str, _NAME]
    value: Annotated[str, _VALUE]
    seconds: Annotated[int, whole(1, LIFE_SECONDS)]
    signature: Annotated[str, _SIGNATURE]


@dataclass(frozen=True, slots=True)
class ChallengeOver:
    """Client: that value need not be there any more."""

    name: Annotated[str, _NAME]
    value: Annotated[str, _VALUE]


@dataclass(frozen=True, slots=True)
class ChallengeRefused:
    """Server: that challenge goes no further; the link goes on."""

    name: Annotated[str, _NAME]
    value: Annotated[str, _VALUE]
    text: Annotated[str, _TEXT]


@dataclass(frozen=True, slots=True)
class Renew:
    """Client: get me a certificate for the key in this CSR, in the place of mine, whose key signs this."""

    request: Annotated[str, word(PEM_PATTERN)]
    signature: Annotated[str, _SIGNATURE]


@dataclass(frozen=True, slots=True)
class Account:
    """Client: its account at a CA, what the CA calls itself in CAA records (`issuers`, none: it does not
    say), and since when (Unix time).
    """

    url: Annotated[str, word(URL_PATTERN)]
    issuers: Annotated[tuple[str, ...], several(word(ISSUER_PATTERN), MAX_ISSUERS)]
    at: Annotated[int, whole(0, MAX_AT)]
    signature: Annotated[str, _SIGNATURE]


@dataclass(frozen=True, slots=True)
class Renewed:
    """Server: here it is."""

    certificate: Annotated[str, word(PEM_PATTERN)]


@dataclass(frozen=True, slots=True)
class RenewRefused:
    """Server: there is none now; the link goes on."""

    text: Annotated[str, _TEXT]


@dataclass(frozen=True, slots=True)
class Uncertified:
    """Client: it has got no certificate for this name, why, and since when (Unix time). Until `certified`."""

    name: Annotated[str, _NAME]
    text: Annotated[str, sentence(MAX_WHY_CHARACTERS)]
    since: Annotated[int, whole(0, MAX_AT)]


@dataclass(frozen=True, slots=True)
class Certified:
    """Client: that is mended."""

    name: Annotated[str, _NAME]


@dataclass(frozen=True, slots=True)
class Lanes:
    """Server: how many idle lanes of a kind it holds for this session, and how many visitors wait for one."""

    kind: Annotated[str, one_of("plain", "tls")]
    held: Annotated[int, whole(0, MAX_LANES)]
    waiting: Annotated[int, whole(0, MAX_LANES)]


@dataclass(frozen=True, slots=True)
class Draining:
    """This end will leave. From a client: no new visitors. From a server: come back in so many seconds."""

    reconnect_in: Annotated[float | None, seconds(0, MAX_RECONNECT_SECONDS)] = None


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last message of an end that ends the link, or never lets it begin: why, in a word and in words."""

    reason: Annotated[str, _REASON]
    text: Annotated[str, _TEXT]


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answer with the same nonce.

    `ping_seconds`, from a server: no longer what welcome said.
    """

    nonce: Annotated[str, _NONCE]
    ping_seconds: Annotated[float | None, _PING_SECONDS] = None


@dataclass(frozen=True, slots=True)
class Pong:
    """I am here: the nonce of your ping; `ping_seconds` as in a ping."""

    nonce: Annotated[str, _NONCE]
    ping_seconds: Annotated[float | None, _PING_SECONDS] = None


Message = (
    Hello
    | Welcome
    | Register
    | Registered
    | Refused
    | Unregister
    | Challenge
    | ChallengeOver
    | ChallengeRefused
    | Renew
    | Renewed
    | RenewRefused
    | Account
    | Uncertified
    | Certified
    | Lanes
    | Crl
    | Draining
    | Goodbye
    | Ping
    | Pong
)

_LINK: Vocabulary[Message] = Vocabulary(
    {
        "hello": Hello,
        "welcome": Welcome,
        "register": Register,
        "registered": Registered,
        "refused": Refused,
        "unregister": Unregister,
        "challenge": Challenge,
        "challenge_over": ChallengeOver,
        "challenge_refused": ChallengeRefused,
        "renew": Renew,
        "renewed": Renewed,
        "renew_refused": RenewRefused,
        "account": Account,
        "uncertified": Uncertified,
        "certified": Certified,
        "lanes": Lanes,
        "crl": Crl,
        "draining": Draining,
        "goodbye": Goodbye,
        "ping": Ping,
        "pong": Pong,
    }
)


def encode(message: Message) -> bytes:
    """The line of a message. Raises MessageError for one that the other end would not read."""
    return _LINK.encode(message)


class Lines(LineReader[Message]):
    """Reads the messages of a link: `feed(octets)` returns those that are complete."""

    def __init__(self) -> None:
        super().__init__(_LINK)
