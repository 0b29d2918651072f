"""What happens on a watch, as each end tells it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.fleet.accounts import Account
from appliance.fleet.renewing import RenewalAnswered, RenewalAsked
from appliance.tunnel.discovery import ServerAddress


class WatchEnd(enum.Enum):
    """Why a watch ended."""

    MALFORMED = "malformed"
    SILENT = "silent"
    REFUSED = "refused"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class NameserverGreeted:
    """At a server: the nameserver said who it is."""

    nameserver_id: str


@dataclass(frozen=True, slots=True)
class NamesKnown:
    """At a server: the nameserver knows these names, too; `complete` when it has now said all of them."""

    names: tuple[str, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class NamesForgotten:
    """At a server: the nameserver no longer knows these names."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerWithdrawn:
    """At a server: the nameserver has taken it out, as it drains; or not (`held`), for there is no other."""

    held: bool


@dataclass(frozen=True, slots=True)
class ServerGreeted:
    """At a nameserver: the tunnel server said who it is and which start of it this is."""

    server_id: str
    boot: str
    addresses: tuple[ServerAddress, ...]


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """At a nameserver: the names with a session there, and until when (Unix time) each one's certificate
    holds.
    """

    names: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ServingStarted:
    """At a nameserver: a name has a session there now, under a certificate that holds until `expires`."""

    name: str
    expires: float


@dataclass(frozen=True, slots=True)
class ServingStopped:
    """At a nameserver: a name has no session there any more."""

    name: str


@dataclass(frozen=True, slots=True)
class NameRefused:
    """At a nameserver: the server says it serves this name, or a challenge of it, but the certificate shown
    does not allow it.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class ChallengeSaid:
    """At a nameserver: a client there, who may, wants this value to be published for so many seconds, for the
    certificate of a name.
    """

    name: str
    value: str
    seconds: int


@dataclass(frozen=True, slots=True)
class ChallengeWithdrawn:
    """At a nameserver: nobody there wants that any more."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class AccountSaid:
    """At a nameserver: a client there, by its own signature, has this account at a CA."""

    account: Account


@dataclass(frozen=True, slots=True)
class AccountRefused:
    """At a nameserver: what the server says of an account is not believed."""

    text: str


@dataclass(frozen=True, slots=True)
class ServerDraining:
    """At a nameserver: the server has begun to drain; it will leave, and serves until then."""


@dataclass(frozen=True, slots=True)
class ServerLeft:
    """At a nameserver: the server goes away on purpose."""


@dataclass(frozen=True, slots=True)
class CrlBrought:
    """The other end gave its revocation list, which nobody has examined yet."""

    pem: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The watch is over; its connection is to be closed."""

    reason: WatchEnd
    text: str


ServerEvent = (
    NameserverGreeted
    | NamesKnown
    | NamesForgotten
    | ServerWithdrawn
    | CrlBrought
    | RenewalAsked
    | RenewalAnswered
    | Ended
)
ObserverEvent = (
    ServerGreeted
    | SnapshotTaken
    | ServingStarted
    | ServingStopped
    | NameRefused
    | ChallengeSaid
    | ChallengeWithdrawn
    | AccountSaid
    | AccountRefused
    | ServerDraining
    | ServerLeft
    | CrlBrought
    | RenewalAsked
    | RenewalAnswered
    | Ended
)
