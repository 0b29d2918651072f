"""What the two ends of a link say to each other, and when: the server's side and the client's, without a
wire.

Both take octets and return events; what they want to send waits in `data_to_send`. `now` is monotonic
seconds. Nothing that the other end sends raises: it ends the session with a goodbye that says why, and an
`Ended`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from appliance.tunnel.certificates import MAX_NAMES, grants
from appliance.tunnel.challenge import may_be_challenged
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.crlparts import Crl, CrlExchange
from appliance.tunnel.liveness import HEARD_SLACK_SECONDS, Liveness
from appliance.tunnel.messages import (
    VERSION,
    Account,
    Certified,
    Challenge,
    ChallengeOver,
    ChallengeRefused,
    Draining,
    Goodbye,
    Hello,
    Lanes,
    Lines,
    Message,
    MessageError,
    Ping,
    Pong,
    Refused,
    Register,
    Registered,
    Renew,
    Renewed,
    RenewRefused,
    Uncertified,
    Unregister,
    Welcome,
    encode,
)
from appliance.tunnel.names import BadHostName, covers, normal

AGENT = "tunnel-appliance"
HELLO_SECONDS = 5.0
"""How long either end waits for the first message of the other: a few round trips of the slowest path."""
PING_SECONDS = 5.0
MAX_UNSENT_OCTETS = 256 * 1024
"""What may wait to be sent: 256 refusals with all their words. Who asks and does not read is ended."""


class State(enum.Enum):
    """Where a session is; the same at both ends but for what is on its way."""

    OPENING = "opening"
    OPEN = "open"
    CLIENT_DRAINING = "client draining"
    SERVER_DRAINING = "server draining"
    BOTH_DRAINING = "both draining"
    ENDED = "ended"


class Turn(enum.Enum):
    """What changes a session's state beside the messages that are received."""

    DRAIN = "this end drains"
    LEAVE = "this end says goodbye"
    FAIL = "the other end broke the protocol, or is dead"


Input = type[Message] | Turn
Rows = Mapping[tuple[State, Input], State]


def _rows(*rows: tuple[tuple[State, ...], tuple[Input, ...], State | None]) -> Rows:
    """States, inputs, and the state that follows (None: the same)."""
    return {
        (state, cause): state if after is None else after
        for states, causes, after in rows
        for state in states
        for cause in causes
    }


_BEGUN = (State.OPEN, State.CLIENT_DRAINING, State.SERVER_DRAINING, State.BOTH_DRAINING)
_ALIVE = (State.OPENING, *_BEGUN)

SERVER_ROWS: Rows = _rows(
    ((State.OPENING,), (Hello,), State.OPEN),
    ((State.OPEN, State.SERVER_DRAINING), (Register,), None),
    (
        _BEGUN,
        (Unregister, Challenge, ChallengeOver, Renew, Account, Uncertified, Certified, Crl, Ping, Pong),
        None,
    ),
    ((State.OPEN,), (Draining,), State.CLIENT_DRAINING),
    ((State.SERVER_DRAINING,), (Draining,), State.BOTH_DRAINING),
    ((State.OPEN,), (Turn.DRAIN,), State.SERVER_DRAINING),
    ((State.CLIENT_DRAINING,), (Turn.DRAIN,), State.BOTH_DRAINING),
    (_ALIVE, (Goodbye, Turn.LEAVE, Turn.FAIL), State.ENDED),
)
"""The server's side of a session. A message without a row here breaks the protocol."""

CLIENT_ROWS: Rows = _rows(
    ((State.OPENING,), (Welcome,), State.OPEN),
    (_BEGUN, (Registered, Refused, ChallengeRefused, Lanes, Crl, Ping, Pong), None),
    (_BEGUN, (Renewed, RenewRefused), None),
    ((State.OPEN,), (Draining,), State.SERVER_DRAINING),
    ((State.CLIENT_DRAINING,), (Draining,), State.BOTH_DRAINING),
    ((State.OPEN,), (Turn.DRAIN,), State.CLIENT_DRAINING),
    ((State.SERVER_DRAINING,), (Turn.DRAIN,), State.BOTH_DRAINING),
    (_ALIVE, (Goodbye, Turn.LEAVE, Turn.FAIL), State.ENDED),
)
"""The client's side of a session. A message without a row here breaks the protocol."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client takes for a name: visitors by TLS, and on port 80 (`serve`, or `redirect` to https).

    `forwarded`: whether requests on port 80 are to say who the visitor is.
    """

    tls: bool
    http: str
    forwarded: bool = False

    @property
    def serves_http(self) -> bool:
        return self.http == "serve"


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """At the server: the client began; it was welcomed at once. `instance`: 32 hexadecimal digits."""

    instance: str
    agent: str


@dataclass(frozen=True, slots=True)
class NameRegistered:
    """The client is sent visitors of this name from now on; or, again, its offer has changed."""

    name: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class NameUnregistered:
    """At the server: the client gets no more visitors of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class NameRefused:
    """This name is not served for this client, or no more; the link goes on. `text` is for humans."""

    name: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class ChallengeSaid:
    """At the server: what the client, who may, wants to be published for the certificate of a name."""

    name: str
    value: str
    seconds: int
    signature: str


@dataclass(frozen=True, slots=True)
class ChallengeWithdrawn:
    """At the server: the client does not need that to be published any more."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class ChallengeDenied:
    """That challenge goes no further than to the server. `text` is for humans."""

    name: str
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class RenewalAsked:
    """At the server: the client wants another certificate, for the key in the CSR `request`."""

    request: str
    signature: str


@dataclass(frozen=True, slots=True)
class AccountSaid:
    """At the server: the client's account at a CA, which nobody has examined yet."""

    url: str
    issuers: tuple[str, ...]
    at: int
    signature: str


@dataclass(frozen=True, slots=True)
class RenewalAnswered:
    """At the client: a certificate, which nobody has examined, or (`text`) why there is none."""

    certificate: str
    text: str


@dataclass(frozen=True, slots=True)
class CertificateMissed:
    """At the server: the client has got no certificate for a name. `text` is for humans."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class ClientDraining:
    """At the server: the client wants no new visitors; those that are joined go on."""


@dataclass(frozen=True, slots=True)
class Welcomed:
    """At the client: the server accepted the link. `session` is the 8 octets for the prefaces of lanes."""

    server: str
    boot: str
    session: bytes
    ping_seconds: float


@dataclass(frozen=True, slots=True)
class LanesAsked:
    """At the client: the idle lanes of a kind (plain, tls) at the server, and visitors waiting for one."""

    kind: str
    held: int
    waiting: int


@dataclass(frozen=True, slots=True)
class ServerDraining:
    """At the client: the server will leave, and is to be linked to again after so many seconds."""

    reconnect_in: float


@dataclass(frozen=True, slots=True)
class CrlBrought:
    """The other end gave its revocation list, which nobody has examined yet."""

    pem: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over; send what `data_to_send` still holds and close. `text` is for humans.

    Reasons of our own: `protocol`, `version`, `silent`, `no_hello`, `slow`. All others are the other end's,
    among them the values of `certificates.Reason`.
    """

    reason: str
    text: str


Event = (
    HelloReceived
    | NameRegistered
    | NameUnregistered
    | NameRefused
    | ChallengeSaid
    | ChallengeWithdrawn
    | ChallengeDenied
    | RenewalAsked
    | RenewalAnswered
    | AccountSaid
    | CertificateMissed
    | ClientDraining
    | Welcomed
    | LanesAsked
    | ServerDraining
    | CrlBrought
    | Ended
)


class _Session:
    """What both sides have in common: lines in, lines out, the table, and whether the other end lives."""

    def __init__(self, rows: Rows, nonce: Callable[[], str], now: float) -> None:
        self.state = State.OPENING
        self._rows = rows
        self._nonce = nonce
        self._lines = Lines()
        self._crl = CrlExchange()
        self._unsent = bytearray()
        self._hello_deadline = now + HELLO_SECONDS
        self._liveness: Liveness | None = None

    def receive(self, octets: bytes, now: float) -> list[Event]:
        """Takes octets from the other end. After the end nothing is read any more."""
        if self.state is State.ENDED:
            return []
        broken: str | None = None
        try:
            messages = self._lines.feed(octets)
        except MessageError as error:
            messages, broken = list(error.messages_before), str(error)
        events: list[Event] = []
        for message in messages:
            events += self._take(message, now)
            if self._is_over():
                return events
        if broken is not None:
            events += self._fail("protocol", broken)
        return events + self._check_unsent()

    def data_to_send(self) -> bytes:
        """What waits to be sent, once. Ask after every call, while the transport takes octets."""
        octets = bytes(self._unsent)
        self._unsent.clear()
        return octets

    def next_deadline(self) -> float | None:
        """When `tick` is to be called next."""
        if self.state is State.ENDED:
            return None
        return self._hello_deadline if self._liveness is None else self._liveness.next_deadline()

    def tick(self, now: float) -> list[Event]:
        """Does what is due: a ping, or the end of a session whose other end is silent."""
        if self.state is State.ENDED:
            return []
        if self._liveness is None:
            if now < self._hello_deadline:
                return []
            return self._fail("no_hello", f"no {self._awaited} came within {HELLO_SECONDS:g} seconds")
        if self._liveness.overdue(now):
            return self._fail("silent", "a ping was not answered in time")
        nonce = self._liveness.due(now)
        if nonce is not None:
            self._send(Ping(nonce, self._new_pace()))
        return self._check_unsent()

    def give(self, revoked: RevocationList) -> None:
        """Gives the other end this revocation list, unless the one that it holds is as new."""
        if self.state not in (State.OPENING, State.ENDED):
            for part in self._crl.to_give(revoked):
                self._send(part)

    def goodbye(self, reason: str, text: str) -> None:
        """Ends the session from this side: `reason` a word, `text` a sentence. Once is enough."""
        if self._turn(Turn.LEAVE):
            self._send(Goodbye(reason, text))

    _awaited = ""

    def _open(self, ping_seconds: float, now: float) -> None:
        self._liveness = Liveness(self._nonce, now, ping_seconds=ping_seconds)

    def _take(self, message: Message, now: float) -> list[Event]:
        before = self.state
        if not self._turn(type(message)):
            return self._fail("protocol", f"{type(message).__name__.lower()} came while {before.value}")
        match message:
            case Ping():
                self._keep_pace(message)
                if self._liveness is not None:
                    self._liveness.heard(now)
                self._send(Pong(message.nonce, self._new_pace()))
                return []
            case Pong():
                self._keep_pace(message)
                if self._liveness is None or not self._liveness.answered(message.nonce, now):
                    return self._fail("protocol", "a pong came for no ping")
                return []
            case Goodbye():
                return [Ended(message.reason, message.text)]
            case Crl():
                return self._take_crl(message)
            case _:
                return self._hear(message, now)

    def _new_pace(self) -> float | None:
        """What the other end has to be told of how often to ping."""
        return None

    def _keep_pace(self, message: Ping | Pong) -> None:
        """Hear how often to ping."""

    def _take_crl(self, part: Crl) -> list[Event]:
        try:
            pem = self._crl.take(part)
        except MessageError as error:
            return self._fail("protocol", str(error))
        return [] if pem is None else [CrlBrought(pem)]

    def _hear(self, message: Message, now: float) -> list[Event]:
        raise NotImplementedError

    def _turn(self, cause: Input) -> bool:
        after = self._rows.get((self.state, cause))
        if after is None:
            return False
        self.state = after
        return True

    def _is_over(self) -> bool:
        return self.state is State.ENDED

    def _fail(self, reason: str, text: str) -> list[Event]:
        self._turn(Turn.FAIL)
        self._send(Goodbye(reason, text))
        return [Ended(reason, text)]

    def _check_unsent(self) -> list[Event]:
        if len(self._unsent) <= MAX_UNSENT_OCTETS or self._is_over():
            return []
        self._unsent.clear()  # it ends in the middle of nothing: whole lines only were waiting
        return self._fail("slow", f"more than {MAX_UNSENT_OCTETS} octets waited for the other end to read")

    def _say(self, message: Message) -> None:
        """Sends it, unless there is no session yet or any more."""
        if self.state not in (State.OPENING, State.ENDED):
            self._send(message)

    def _send(self, message: Message) -> None:
        self._unsent += encode(message)


class ServerSession(_Session):
    """The server's side. `peer_names` is the client's grant, `session_id` has 8 random octets, `crl` is the
    number of the revocation list that is held.
    """

    _awaited = "hello"

    def __init__(
        self,
        *,
        peer_names: tuple[str, ...],
        server_id: str,
        boot: str,
        session_id: bytes,
        nonce: Callable[[], str],
        now: float,
        service_name: str,
        ping_seconds: float = PING_SECONDS,
        crl: int | None = None,
    ) -> None:
        super().__init__(SERVER_ROWS, nonce, now)
        self._granted = peer_names
        self._welcome = Welcome(server_id, boot, session_id.hex(), ping_seconds, crl)
        self._service_name = service_name
        self._offers: dict[str, Offer] = {}
        self._uncertified: dict[str, Uncertified] = {}
        self._lanes: dict[str, Lanes] = {}
        self._pace: float | None = None

    @property
    def offers(self) -> Mapping[str, Offer]:
        """The names that are registered now, and what is offered for each."""
        return self._offers

    @property
    def uncertified(self) -> Mapping[str, Uncertified]:
        """The names for which the client has got no certificate, by its own word."""
        return self._uncertified

    def data_to_send(self) -> bytes:
        for lanes in self._lanes.values():
            self._send(lanes)
        self._lanes.clear()
        return super().data_to_send()

    def lanes(self, kind: str, held: int, waiting: int) -> None:
        """Tells the client how many idle lanes of a kind are held; of several unsent only the last."""
        if self.state not in (State.OPENING, State.ENDED):
            self._lanes[kind] = Lanes(kind, held, waiting)

    def ping_every(self, ping_seconds: float) -> None:
        """Both ends are to ping so often from now on; the client hears it by the next word of this end."""
        if self._liveness is None:
            self._welcome = replace(self._welcome, ping_seconds=ping_seconds)
        else:
            self._pace = ping_seconds
            self._liveness.every(ping_seconds)

    def _new_pace(self) -> float | None:
        pace, self._pace = self._pace, None
        return pace

    def deny_challenge(self, name: str, value: str, text: str) -> None:
        """Tells the client that a challenge goes no further."""
        self._say(ChallengeRefused(name, value, text))

    def renewed(self, certificate: str) -> None:
        """Gives the client the certificate that it asked for."""
        self._say(Renewed(certificate))

    def refuse_renewal(self, text: str) -> None:
        """Tells the client why it gets none now."""
        self._say(RenewRefused(text))

    def doubt(self, now: float) -> None:
        """The client owes something for too long, so `tick` is due: it asks whether he lives."""
        if self._liveness is not None:
            self._liveness.doubt(now)

    def drain(self, reconnect_in: float) -> None:
        """Tells the client that this server will leave, and in how many seconds to come back."""
        if self._turn(Turn.DRAIN):
            self._send(Draining(reconnect_in))

    def _hear(self, message: Message, now: float) -> list[Event]:
        match message:
            case Hello():
                return self._begin(message, now)
            case Register():
                return self._register(message)
            case Unregister():
                name = message.name.lower()
                return [NameUnregistered(name)] if self._offers.pop(name, None) is not None else []
            case Challenge():
                return self._challenged(message)
            case ChallengeOver():
                return self._challenge_over(message)
            case Renew(request, signature):
                return [RenewalAsked(request, signature)]
            case Account(url, issuers, at, signature):
                return [AccountSaid(url, issuers, at, signature)]
            case Uncertified():
                return self._misses(message)
            case Certified():
                self._uncertified.pop(message.name.lower(), None)
                return []
            case Draining():
                return [ClientDraining()]
            case _:
                raise AssertionError(message)

    def _begin(self, hello: Hello, now: float) -> list[Event]:
        if hello.version != VERSION:
            text = f"this server speaks version {VERSION} of the protocol, the client version {hello.version}"
            return self._fail("version", text)
        self._open(self._welcome.ping_seconds, now)
        self._crl.theirs = hello.crl
        self._send(self._welcome)
        return [HelloReceived(hello.instance, hello.agent)]

    def _register(self, register: Register) -> list[Event]:
        offer = Offer(register.tls, register.http, register.forwarded is True)
        try:
            name = normal(register.name)
        except BadHostName as error:
            return self._refuse(register.name, "bad_name", str(error))
        if covers(name, self._service_name):
            return self._refuse(name, "service_name", f"{name} is the name of the tunnel servers themselves")
        if not grants(self._granted, name):
            held = ", ".join(self._granted[:10]) + (", …" if len(self._granted) > 10 else "")
            return self._refuse(
                name, "not_granted", f"the certificate does not grant {name}; it grants {held}"
            )
        if not offer.tls and not offer.serves_http:
            return self._refuse(name, "no_origin", f"{name} has no origin, neither by TLS nor by HTTP")
        if name not in self._offers and len(self._offers) >= MAX_NAMES:
            return self._refuse(name, "too_many_names", f"a session has at most {MAX_NAMES} names")
        self._offers[name] = offer
        self._send(Registered(name))
        return [NameRegistered(name, offer)]

    def _challenged(self, challenge: Challenge) -> list[Event]:
        text = f"the certificate does not grant {challenge.name}"
        try:
            name = normal(challenge.name)
            if may_be_challenged(self._granted, name):
                return [ChallengeSaid(name, challenge.value, challenge.seconds, challenge.signature)]
        except BadHostName as error:
            text = str(error)
        self.deny_challenge(challenge.name, challenge.value, text)
        return [ChallengeDenied(challenge.name, challenge.value, text)]

    def _challenge_over(self, challenge: ChallengeOver) -> list[Event]:
        try:
            return [ChallengeWithdrawn(normal(challenge.name), challenge.value)]
        except BadHostName:
            return []

    def _misses(self, message: Uncertified) -> list[Event]:
        """Of a name that it may have a certificate for; as many as there are names in a session."""
        name = message.name.lower()
        is_new = name not in self._uncertified
        if not may_be_challenged(self._granted, name) or (is_new and len(self._uncertified) >= MAX_NAMES):
            return []
        self._uncertified[name] = message
        return [CertificateMissed(name, message.text)]

    def _refuse(self, name: str, reason: str, text: str) -> list[Event]:
        self._send(Refused(name, reason, text))
        refused: list[Event] = [NameRefused(name, reason, text)]
        if self._offers.pop(name, None) is not None:  # it was registered, and is changed to what cannot be
            refused.insert(0, NameUnregistered(name))
        return refused


class ClientSession(_Session):
    """The client's side. It says hello at once, and registers its offers as soon as it is welcome."""

    _awaited = "welcome"

    def __init__(
        self,
        *,
        instance: str,
        offers: Mapping[str, Offer],
        nonce: Callable[[], str],
        now: float,
        agent: str = AGENT,
        crl: int | None = None,
    ) -> None:
        super().__init__(CLIENT_ROWS, nonce, now)
        self._offers = dict(offers)
        self._asked: set[str] = set()
        self._send(Hello(VERSION, instance, agent, crl))

    def register(self, name: str, offer: Offer) -> None:
        """Offers a name, or changes what is offered for it; before the welcome, from then on."""
        self._offers[name] = offer
        if self.state in (State.OPEN, State.SERVER_DRAINING):
            self._asked.add(name)
            self._send(Register(name, offer.tls, offer.http, offer.forwarded or None))

    def unregister(self, name: str) -> None:
        """Takes a name back: no new visitors of it."""
        if self._offers.pop(name, None) is not None:
            self._say(Unregister(name))

    def _keep_pace(self, message: Ping | Pong) -> None:
        if message.ping_seconds is not None and self._liveness is not None:
            # Behind the server's: pings that cross once would cross for ever.
            self._liveness.every(message.ping_seconds + HEARD_SLACK_SECONDS)

    def challenge(self, name: str, value: str, seconds: int, signature: str) -> None:
        """Asks for a challenge to be published for so long; before the welcome nothing is said."""
        self._say(Challenge(name, value, seconds, signature))

    def challenge_over(self, name: str, value: str) -> None:
        """Says that the challenge need not be published any more."""
        self._say(ChallengeOver(name, value))

    def renew(self, request: str, signature: str) -> None:
        """Asks for another certificate; before the welcome nothing is said."""
        self._say(Renew(request, signature))

    def account(self, url: str, issuers: tuple[str, ...], at: int, signature: str) -> None:
        """Says the client's account at a CA; before the welcome nothing is said."""
        self._say(Account(url, issuers, at, signature))

    def uncertified(self, name: str, text: str, since: int) -> None:
        """Says that there is no certificate for a name, and why."""
        self._say(Uncertified(name, text, since))

    def certified(self, name: str) -> None:
        """Says that there is one."""
        self._say(Certified(name))

    def drain(self) -> None:
        """Tells the server to send no new visitors. Once is enough."""
        if self._turn(Turn.DRAIN):
            self._send(Draining())

    def _hear(self, message: Message, now: float) -> list[Event]:
        match message:
            case Welcome():
                self._open(message.ping_seconds + HEARD_SLACK_SECONDS, now)
                self._crl.theirs = message.crl
                for name, offer in self._offers.items():
                    self.register(name, offer)
                session = bytes.fromhex(message.session)
                return [Welcomed(message.server, message.boot, session, message.ping_seconds)]
            case Registered() | Refused():
                return self._told(message)
            case ChallengeRefused(name, value, text):
                return [ChallengeDenied(name, value, text)]
            case Renewed(certificate):
                return [RenewalAnswered(certificate, "")]
            case RenewRefused(text):
                return [RenewalAnswered("", text)]
            case Lanes():
                return [LanesAsked(message.kind, message.held, message.waiting)]
            case Draining():
                return [ServerDraining(message.reconnect_in or 0.0)]
            case _:
                raise AssertionError(message)

    def _told(self, message: Registered | Refused) -> list[Event]:
        name = message.name
        if name not in self._asked:
            return self._fail("protocol", f"the server speaks of {name!r}, which was not registered")
        offer = self._offers.get(name)
        if offer is None:  # taken back while the answer was on its way
            return []
        if isinstance(message, Refused):
            return [NameRefused(name, message.reason, message.text)]
        return [NameRegistered(name, offer)]
