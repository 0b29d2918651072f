"""What is said on a watch about the renewal of certificates; the same in both directions.

A tunnel server asks a nameserver that has the CA's key, for a client or for itself; a nameserver asks a
server, which has that key or asks on. Answers name the CSR that they are for, so they may come in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from appliance.tunnel.lines import hexadecimal, sentence, word
from appliance.tunnel.renewal import DIGEST_DIGITS, PEM_PATTERN, Request
from appliance.tunnel.signature import SIGNATURE_PATTERN

_PEM = word(PEM_PATTERN)
_DIGEST = hexadecimal(DIGEST_DIGITS)


@dataclass(frozen=True, slots=True)
class Renew:
    """Either: somebody who holds this certificate wants another one, for the key in his CSR."""

    certificate: Annotated[str, _PEM]
    request: Annotated[str, _PEM]
    signature: Annotated[str, word(SIGNATURE_PATTERN)]


@dataclass(frozen=True, slots=True)
class Renewed:
    """Either: the certificate for the CSR of which this is the SHA-256."""

    request: Annotated[str, _DIGEST]
    certificate: Annotated[str, _PEM]


@dataclass(frozen=True, slots=True)
class RenewRefused:
    """Either: there is none for that CSR, and why; later there may be."""

    request: Annotated[str, _DIGEST]
    text: Annotated[str, sentence(1000)]


@dataclass(frozen=True, slots=True)
class RenewalAsked:
    """The other end wants this to be signed, or passed on to who signs."""

    request: Request


@dataclass(frozen=True, slots=True)
class RenewalAnswered:
    """The other end has an answer: a certificate, which nobody has examined, or why there is none."""

    digest: str
    certificate: str
    text: str


RenewalMessage = Renew | Renewed | RenewRefused
RenewalEvent = RenewalAsked | RenewalAnswered


class Renewals:
    """One end's part of it, to say with `say`."""

    def __init__(self, say: Callable[[RenewalMessage], None]) -> None:
        self._say = say

    def ask(self, request: Request) -> None:
        """Have the other end get a certificate for this request."""
        self._say(Renew(request.certificate, request.request, request.signature))

    def answer(self, digest: str, certificate: str) -> None:
        """The certificate for the request with that digest."""
        self._say(Renewed(digest, certificate))

    def refuse(self, digest: str, text: str) -> None:
        """There is none for that request, and why."""
        self._say(RenewRefused(digest, text))


def heard(message: RenewalMessage) -> RenewalEvent:
    """What a message means."""
    match message:
        case Renew(certificate, request, signature):
            return RenewalAsked(Request(certificate, request, signature))
        case Renewed(digest, certificate):
            return RenewalAnswered(digest, certificate, "")
        case RenewRefused(digest, text):
            return RenewalAnswered(digest, "", text)
