"""A watch: how a nameserver knows that a tunnel server lives, and which names have a session there.

Hides what is said in which order, and what counts as silence. Two machines that know no wire: octets and
monotonic seconds in; events, octets and the next deadline out. A tunnel server says its id and boot, a
snapshot of its names, then each change; a name comes with the certificate of the client that serves it, and
the nameserver checks that one itself, so that a stolen server cannot publish a name that nobody granted.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from cryptography import x509

from appliance.fleet import accounts
from appliance.fleet.events import (
    AccountRefused,
    AccountSaid,
    ChallengeSaid,
    ChallengeWithdrawn,
    CrlBrought,
    Ended,
    NameRefused,
    NameserverGreeted,
    NamesForgotten,
    NamesKnown,
    ObserverEvent,
    ServerDraining,
    ServerEvent,
    ServerGreeted,
    ServerLeft,
    ServerWithdrawn,
    ServingStarted,
    ServingStopped,
    SnapshotTaken,
    WatchEnd,
)
from appliance.fleet.messages import (
    BY_NAMESERVER,
    BY_SERVER,
    MAX_NAMES_IN_MESSAGE,
    VERSION,
    Account,
    Certificate,
    Challenge,
    ChallengeOver,
    Draining,
    Forgotten,
    FromNameserver,
    FromServer,
    Goodbye,
    Known,
    Leaving,
    Message,
    NameserverHello,
    NameserverLines,
    NotServing,
    Ping,
    Pong,
    ServerHello,
    ServerLines,
    Serving,
    SnapshotEnded,
    Withdrawn,
    fingerprint_of,
)
from appliance.fleet.pulse import Pulse
from appliance.fleet.renewing import Renew, Renewals, Renewed, RenewRefused, heard
from appliance.tunnel.account import is_signed as is_account_signed
from appliance.tunnel.certificates import (
    CertificateRefused,
    CredentialRefused,
    Peer,
    grants,
    read_certificate,
)
from appliance.tunnel.challenge import is_signed, may_be_challenged, owner_of
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.crlparts import Crl, CrlExchange
from appliance.tunnel.discovery import ServerAddress, read_address
from appliance.tunnel.lines import LineReader, MessageError, Vocabulary

SNAPSHOT_SECONDS = 60.0
"""10,000 certificates take about 3 s to check."""
MAX_NAMES_OF_SERVER = 100_000
MAX_CHALLENGES_OF_SERVER = 10_000
"""At a time: of a thousand clients that renew a certificate of ten names in the same ten minutes."""
MAX_CERTIFICATES = 100_000
"""Held of one server: a client per name at the most."""
BURST_OCTETS = 65_536
"""Given out at once, so that a snapshot of 10,000 names does not hold the reactor for longer than 20 ms."""
BURST_NAMES = 500
"""So many fill a burst: of a snapshot no more is made into messages at a time."""


class WatchState(enum.Enum):
    """How far a watch is. A server's end has no SNAPSHOT: it says its snapshot with its hello."""

    GREETING = "greeting"
    SNAPSHOT = "snapshot"
    WATCHING = "watching"
    ENDED = "ended"


_AT_SERVER: Mapping[tuple[WatchState, type[Message]], WatchState] = {
    (WatchState.GREETING, NameserverHello): WatchState.WATCHING,
    (WatchState.WATCHING, Known): WatchState.WATCHING,
    (WatchState.WATCHING, Forgotten): WatchState.WATCHING,
    (WatchState.WATCHING, Withdrawn): WatchState.WATCHING,
    (WatchState.WATCHING, Crl): WatchState.WATCHING,
    (WatchState.WATCHING, Renew): WatchState.WATCHING,
    (WatchState.WATCHING, Renewed): WatchState.WATCHING,
    (WatchState.WATCHING, RenewRefused): WatchState.WATCHING,
    (WatchState.WATCHING, Ping): WatchState.WATCHING,
    (WatchState.WATCHING, Pong): WatchState.WATCHING,
}
_AT_NAMESERVER: Mapping[tuple[WatchState, type[Message]], WatchState] = {
    (WatchState.GREETING, ServerHello): WatchState.SNAPSHOT,
    (WatchState.GREETING, Goodbye): WatchState.ENDED,
    (WatchState.SNAPSHOT, Certificate): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Serving): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, NotServing): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Challenge): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, ChallengeOver): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Account): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Ping): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Pong): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Crl): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Renew): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Renewed): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, RenewRefused): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Draining): WatchState.SNAPSHOT,
    (WatchState.SNAPSHOT, Leaving): WatchState.ENDED,
    (WatchState.SNAPSHOT, Goodbye): WatchState.ENDED,
    (WatchState.SNAPSHOT, SnapshotEnded): WatchState.WATCHING,
    (WatchState.WATCHING, Certificate): WatchState.WATCHING,
    (WatchState.WATCHING, Serving): WatchState.WATCHING,
    (WatchState.WATCHING, NotServing): WatchState.WATCHING,
    (WatchState.WATCHING, Challenge): WatchState.WATCHING,
    (WatchState.WATCHING, ChallengeOver): WatchState.WATCHING,
    (WatchState.WATCHING, Account): WatchState.WATCHING,
    (WatchState.WATCHING, Ping): WatchState.WATCHING,
    (WatchState.WATCHING, Pong): WatchState.WATCHING,
    (WatchState.WATCHING, Crl): WatchState.WATCHING,
    (WatchState.WATCHING, Renew): WatchState.WATCHING,
    (WatchState.WATCHING, Renewed): WatchState.WATCHING,
    (WatchState.WATCHING, RenewRefused): WatchState.WATCHING,
    (WatchState.WATCHING, Draining): WatchState.WATCHING,
    (WatchState.WATCHING, Leaving): WatchState.ENDED,
    (WatchState.WATCHING, Goodbye): WatchState.ENDED,
}

M = TypeVar("M", bound=Message)


class _ToSay(Generic[M]):
    """Messages that wait to become octets."""

    def __init__(self, vocabulary: Vocabulary[M]) -> None:
        self._vocabulary = vocabulary
        self._waiting: deque[M] = deque()

    def say(self, message: M) -> None:
        self._waiting.append(message)

    def __len__(self) -> int:
        return len(self._waiting)

    def octets(self) -> bytes:
        burst = bytearray()
        while self._waiting and len(burst) < BURST_OCTETS:
            burst += self._vocabulary.encode(self._waiting.popleft())
        return bytes(burst)


class WatchedServer:
    """The tunnel server's end. `nonce` gives a new random text each time; `now` is monotonic seconds.

    `serving` holds the names that have a session when the watch begins; the other end gets them as its
    snapshot, which is said little by little: what else there is to say goes ahead of it. `draining`: whether
    the server has begun to drain; `crl`: the number of its revocation list.
    """

    def __init__(
        self,
        server_id: str,
        boot: str,
        addresses: tuple[ServerAddress, ...],
        nonce: Callable[[], str],
        now: float,
        serving: Mapping[str, Certificate],
        *,
        draining: bool = False,
        crl: int | None = None,
    ) -> None:
        self.state = WatchState.GREETING
        self._is_draining = False
        self._crl = CrlExchange()
        self._lines = NameserverLines()
        self._pulse = Pulse(nonce, now)
        self._under: dict[str, str] = {}
        self._challenges: dict[tuple[str, str], str] = {}
        self._shown: Counter[str] = Counter()  # fingerprint -> how much was said under it
        self._to_say = _ToSay(BY_SERVER)
        self.renewals = Renewals(self._say)
        self.other_renews = False
        self._say(ServerHello(VERSION, server_id, boot, tuple(map(str, addresses)), crl))
        if draining:
            self.drain()
        self._unsaid = dict(reversed(list(serving.items())))  # of the snapshot; the last one comes first
        self._accounts: list[tuple[Account, Certificate]] = []  # behind it: then their certificates are shown
        self._is_snapshot_said = False

    def serving(self, name: str, certificate: Certificate) -> None:
        """The name has a session here now, of a client with this certificate."""
        self._unsaid.pop(name, None)
        fingerprint = certificate.fingerprint
        self._show(certificate)
        before = self._under.get(name)
        if before is not None:
            _drop(self._shown, before)
        self._under[name] = fingerprint
        self._say(Serving(name, fingerprint))

    def not_serving(self, name: str) -> None:
        """The name has no session here any more. A certificate is forgotten with its last name, at both
        ends.
        """
        self._unsaid.pop(name, None)
        fingerprint = self._under.pop(name, None)
        if fingerprint is not None:
            _drop(self._shown, fingerprint)
            self._say(NotServing(name))

    def challenge(
        self, name: str, value: str, seconds: int, signature: str, certificate: Certificate
    ) -> None:
        """A client with this certificate wants a challenge to be published, for so long from now on."""
        self._show(certificate)
        before = self._challenges.get((name, value))
        if before is not None:
            _drop(self._shown, before)
        self._challenges[name, value] = certificate.fingerprint
        self._say(Challenge(name, value, seconds, signature, certificate.fingerprint))

    def challenge_over(self, name: str, value: str) -> None:
        """Nobody here wants that any more."""
        fingerprint = self._challenges.pop((name, value), None)
        if fingerprint is not None:
            _drop(self._shown, fingerprint)
            self._say(ChallengeOver(name, value))

    def account(self, account: Account, certificate: Certificate) -> None:
        """A client with this certificate has this account; behind the names of the snapshot."""
        if not self._is_snapshot_said:
            self._accounts.append((account, certificate))
            return
        self._show(certificate)
        self._say(account)
        _drop(self._shown, account.fingerprint)

    def _show(self, certificate: Certificate) -> None:
        """Before something is said under it."""
        if not self._shown[certificate.fingerprint]:
            self._say(certificate)
        self._shown[certificate.fingerprint] += 1

    def drain(self) -> None:
        """This server will leave, and serves until then. Once is enough."""
        if not self._is_draining:
            self._is_draining = True
            self._say(Draining())

    def give(self, revoked: RevocationList) -> None:
        """Gives the other end this revocation list, unless the one that it holds is as new."""
        for part in self._crl.to_give(revoked):
            self._say(part)

    def leave(self) -> None:
        """This server goes away on purpose."""
        self._say(Leaving())
        self.state = WatchState.ENDED

    def goodbye(self, reason: str, text: str) -> None:
        """This server ends the watch: one word, and a sentence for the other end's log."""
        self._say(Goodbye(reason, text))
        self.state = WatchState.ENDED

    def receive(self, octets: bytes, now: float) -> list[ServerEvent]:
        """What these octets mean. After an Ended nothing more comes."""
        events: list[ServerEvent] = []
        messages, error = _feed(self._lines, octets)
        try:
            for message in messages:
                if self.state is not WatchState.ENDED:
                    events += self._heard(message, now)
            if error is not None:
                raise error
        except MessageError as malformed:
            events += self._malformed(malformed)
        return events

    def tick(self, now: float) -> list[ServerEvent]:
        """To be called at `next_deadline` or later."""
        if self.state is WatchState.ENDED:
            return []
        silence = self._pulse.silence(now)
        if silence is not None:
            self.state = WatchState.ENDED
            return [Ended(WatchEnd.SILENT, silence)]
        ping = self._pulse.ping(now)
        if ping is not None:
            self._say(ping)
        return []

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return None if self.state is WatchState.ENDED else self._pulse.next_deadline()

    def data_to_send(self) -> bytes:
        """The next octets, at most about 64 KiB: to be asked again until there are none."""
        if not self._is_snapshot_said and self.state is not WatchState.ENDED:
            self._go_on_with_the_snapshot()
        return self._to_say.octets()

    def _go_on_with_the_snapshot(self) -> None:
        while self._unsaid and len(self._to_say) < BURST_NAMES:
            self.serving(*self._unsaid.popitem())
        if not self._unsaid:
            self._say(SnapshotEnded())
            self._is_snapshot_said = True
            accounts, self._accounts = self._accounts, []
            for one in accounts:
                self.account(*one)

    def _heard(self, message: FromNameserver, now: float) -> Iterator[ServerEvent]:
        self.state = _next(_AT_SERVER, self.state, message)
        self._pulse.heard(now)
        match message:
            case NameserverHello(version, nameserver_id, crl):
                _check_version(version)
                self._crl.theirs = crl
                self.other_renews = message.renews is True
                yield NameserverGreeted(nameserver_id)
            case Known(names, complete):
                yield NamesKnown(names, complete)
            case Forgotten(names):
                yield NamesForgotten(names)
            case Withdrawn(held):
                if not self._is_draining:
                    raise MessageError("withdrawn: this server does not drain")
                yield ServerWithdrawn(held)
            case Crl():
                yield from _brought(self._crl, message)
            case Renew() | Renewed() | RenewRefused():
                yield heard(message)
            case Ping(nonce):
                self._say(Pong(nonce))
            case Pong(nonce):
                self._pulse.answered(nonce)

    def _malformed(self, error: MessageError) -> Iterator[Ended]:
        if self.state is not WatchState.ENDED:
            self.goodbye("protocol", str(error))
            yield Ended(WatchEnd.MALFORMED, str(error))

    def _say(self, message: FromServer) -> None:
        if self.state is not WatchState.ENDED:
            self._to_say.say(message)


class Observer:
    """The nameserver's end.

    `server_id` is the one in the certificate met on this connection; a hello with another ends the watch.
    `examine` judges a client's certificate (raises CertificateRefused). The first `know` says all that this
    nameserver knows. `crl` is the number of its revocation list; `renews`: whether the CA's key is here.
    """

    def __init__(
        self,
        nameserver_id: str,
        nonce: Callable[[], str],
        now: float,
        *,
        server_id: str,
        examine: Callable[[x509.Certificate], Peer],
        crl: int | None = None,
        renews: bool = False,
    ) -> None:
        self.state = WatchState.GREETING
        self._server_id = server_id
        self._examine = examine
        self._crl = CrlExchange()
        self._lines = ServerLines()
        self._pulse = Pulse(nonce, now)
        self._snapshot_by = now + SNAPSHOT_SECONDS
        self._certificates: dict[str, Peer | str] = {}  # by fingerprint; a text is why it was refused
        self._under: dict[str, str] = {}  # every name said -> fingerprint, the refused ones too
        self._challenges: dict[tuple[str, str], str] = {}  # every one said -> fingerprint, likewise
        self._names_under: Counter[str] = Counter()  # and challenges
        self._serving: dict[str, float] = {}
        self._to_say = _ToSay(BY_NAMESERVER)
        self.renewals = Renewals(self._say)
        self._say(NameserverHello(VERSION, nameserver_id, crl, renews or None))

    def know(self, names: Iterable[str]) -> None:
        """This nameserver knows these names, too."""
        chunks = list(_chunks(tuple(names))) or [()]
        for chunk in chunks[:-1]:
            self._say(Known(chunk, complete=False))
        self._say(Known(chunks[-1], complete=True))

    def forget(self, names: Iterable[str]) -> None:
        """This nameserver no longer knows these names."""
        for chunk in _chunks(tuple(names)):
            self._say(Forgotten(chunk))

    def give(self, revoked: RevocationList) -> None:
        """Gives the other end this revocation list, unless the one that it holds is as new."""
        for part in self._crl.to_give(revoked):
            self._say(part)

    def revoke(self, serials: Collection[int]) -> list[ObserverEvent]:
        """Certificates of these serial numbers are revoked: what was said under them holds no more. An honest
        server takes it back itself, a stolen one does not.
        """
        revoked = {
            fingerprint: f"the certificate {peer.serial:x} was revoked"
            for fingerprint, peer in self._certificates.items()
            if isinstance(peer, Peer) and peer.serial in serials
        }
        self._certificates |= revoked
        events: list[ObserverEvent] = []
        for name in [name for name, fingerprint in self._under.items() if fingerprint in revoked]:
            events += self._no_longer_served(name)
        for said in [said for said, fingerprint in self._challenges.items() if fingerprint in revoked]:
            events.append(ChallengeWithdrawn(*said))
        return events

    def withdrawn(self, *, held: bool) -> None:
        """The draining server is out of what is published; or not, for there is no other (`held`)."""
        self._say(Withdrawn(held))

    def receive(self, octets: bytes, now: float) -> list[ObserverEvent]:
        """What these octets mean. After an Ended nothing more comes."""
        events: list[ObserverEvent] = []
        messages, error = _feed(self._lines, octets)
        try:
            for message in messages:
                if self.state is not WatchState.ENDED:
                    events += self._heard(message, now)
            if error is not None:
                raise error
        except MessageError as malformed:
            events += self._malformed(malformed)
        return events

    def tick(self, now: float) -> list[ObserverEvent]:
        """To be called at `next_deadline` or later."""
        if self.state is WatchState.ENDED:
            return []
        silence = self._pulse.silence(now)
        if self.state is WatchState.SNAPSHOT and now >= self._snapshot_by:
            silence = f"the names took more than {SNAPSHOT_SECONDS:g} s to say"
        if silence is not None:
            self.state = WatchState.ENDED
            return [Ended(WatchEnd.SILENT, silence)]
        ping = self._pulse.ping(now)
        if ping is not None:
            self._say(ping)
        return []

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        if self.state is WatchState.ENDED:
            return None
        deadline = self._pulse.next_deadline()
        return min(deadline, self._snapshot_by) if self.state is WatchState.SNAPSHOT else deadline

    def data_to_send(self) -> bytes:
        """The next octets, at most about 64 KiB: to be asked again until there are none."""
        return self._to_say.octets()

    def _heard(self, message: FromServer, now: float) -> Iterator[ObserverEvent]:
        self.state = _next(_AT_NAMESERVER, self.state, message)
        self._pulse.heard(now)
        match message:
            case ServerHello():
                yield self._greeted(message)
            case Certificate():
                self._shown(message)
            case Serving(name, fingerprint):
                yield from self._started(name, fingerprint)
            case NotServing(name):
                yield from self._stopped(name)
            case Challenge():
                yield self._challenged(message)
            case ChallengeOver(name, value):
                yield from self._challenge_over(name, value)
            case Account():
                yield self._account_said(message)
            case SnapshotEnded():
                yield SnapshotTaken(dict(self._serving))
            case Crl():
                yield from _brought(self._crl, message)
            case Renew() | Renewed() | RenewRefused():
                yield heard(message)
            case Draining():
                yield ServerDraining()
            case Leaving():
                yield ServerLeft()
                yield Ended(WatchEnd.LEFT, "the server left")
            case Goodbye(reason, text):
                yield Ended(WatchEnd.REFUSED, f"{text} ({reason})")
            case Ping(nonce):
                self._say(Pong(nonce))
            case Pong(nonce):
                self._pulse.answered(nonce)

    def _greeted(self, hello: ServerHello) -> ServerGreeted:
        _check_version(hello.version)
        self._crl.theirs = hello.crl
        if hello.id != self._server_id:
            raise MessageError(f"the server calls itself {hello.id}, its certificate {self._server_id}")
        return ServerGreeted(hello.id, hello.boot, tuple(map(read_address, hello.addresses)))

    def _shown(self, shown: Certificate) -> None:
        if shown.fingerprint not in self._certificates and len(self._certificates) >= MAX_CERTIFICATES:
            raise MessageError(f"more than {MAX_CERTIFICATES} certificates")
        try:
            certificate = read_certificate(shown.pem.encode("ascii"))
        except CredentialRefused as refusal:
            raise MessageError(f"certificate: {refusal}") from None
        if fingerprint_of(certificate) != shown.fingerprint:
            raise MessageError("certificate: the fingerprint is another one's")
        try:
            self._certificates[shown.fingerprint] = self._examine(certificate)
        except CertificateRefused as refusal:
            self._certificates[shown.fingerprint] = refusal.text

    def _started(self, name: str, fingerprint: str) -> Iterator[ObserverEvent]:
        peer = self._under_which(fingerprint, name)
        if name not in self._under and len(self._under) >= MAX_NAMES_OF_SERVER:
            raise MessageError(f"more than {MAX_NAMES_OF_SERVER} names")
        self._names_under[fingerprint] += 1  # before the old one is dropped: it may be the same
        before = self._under.get(name)
        if before is not None:
            self._drop(before)
        self._under[name] = fingerprint
        if isinstance(peer, Peer) and grants(peer.names, name):
            self._serving[name] = peer.expires.timestamp()
            if self.state is WatchState.WATCHING:
                yield ServingStarted(name, self._serving[name])
            return
        yield from self._no_longer_served(name)
        yield _refused(name, peer)

    def _stopped(self, name: str) -> Iterator[ObserverEvent]:
        fingerprint = self._under.pop(name, None)
        if fingerprint is not None:
            self._drop(fingerprint)
            yield from self._no_longer_served(name)

    def _challenged(self, said: Challenge) -> ChallengeSaid | NameRefused:
        peer = self._under_which(said.fingerprint, said.name)
        is_new = (said.name, said.value) not in self._challenges
        if is_new and len(self._challenges) >= MAX_CHALLENGES_OF_SERVER:
            raise MessageError(f"more than {MAX_CHALLENGES_OF_SERVER} challenges")
        self._names_under[said.fingerprint] += 1
        before = self._challenges.get((said.name, said.value))
        if before is not None:
            self._drop(before)
        self._challenges[said.name, said.value] = said.fingerprint
        if isinstance(peer, Peer) and may_be_challenged(peer.names, said.name):
            if not is_signed(peer.certificate, said.name, said.value, said.signature):
                return NameRefused(owner_of(said.name), f"{peer.id} has not signed it")
            return ChallengeSaid(said.name, said.value, said.seconds)
        return _refused(owner_of(said.name), peer)

    def _challenge_over(self, name: str, value: str) -> Iterator[ChallengeWithdrawn]:
        fingerprint = self._challenges.pop((name, value), None)
        if fingerprint is not None:
            self._drop(fingerprint)
            yield ChallengeWithdrawn(name, value)

    def _account_said(self, said: Account) -> AccountSaid | AccountRefused:
        """It holds nothing: a certificate that is shown for it alone is forgotten with it, at both ends."""
        peer = self._under_which(said.fingerprint, "account")
        if said.fingerprint not in self._names_under:
            del self._certificates[said.fingerprint]
        if isinstance(peer, str):
            return AccountRefused(peer)
        if not is_account_signed(
            peer.certificate, said.instance, said.at, said.url, said.issuers, said.signature
        ):
            return AccountRefused(f"{peer.id} has not signed it")
        of_client = peer.id, said.instance, peer.serial, peer.names, peer.expires.timestamp()
        return AccountSaid(accounts.Account(*of_client, said.url, said.issuers, said.at))

    def _under_which(self, fingerprint: str, name: str) -> Peer | str:
        """Whose certificate something is said under, or why it was refused."""
        peer = self._certificates.get(fingerprint)
        if peer is None:
            raise MessageError(f"{name}: its certificate was not shown")
        return peer

    def _no_longer_served(self, name: str) -> Iterator[ObserverEvent]:
        if self._serving.pop(name, None) is not None and self.state is WatchState.WATCHING:
            yield ServingStopped(name)

    def _drop(self, fingerprint: str) -> None:
        _drop(self._names_under, fingerprint)
        if fingerprint not in self._names_under:
            del self._certificates[fingerprint]

    def _malformed(self, error: MessageError) -> Iterator[Ended]:
        if self.state is not WatchState.ENDED:
            self.state = WatchState.ENDED
            yield Ended(WatchEnd.MALFORMED, str(error))

    def _say(self, message: FromNameserver) -> None:
        if self.state is not WatchState.ENDED:
            self._to_say.say(message)


def _refused(name: str, peer: Peer | str) -> NameRefused:
    return NameRefused(name, peer if isinstance(peer, str) else f"{peer.id}'s certificate does not grant it")


def _next(
    table: Mapping[tuple[WatchState, type[Message]], WatchState], state: WatchState, message: Message
) -> WatchState:
    following = table.get((state, type(message)))
    if following is None:
        raise MessageError(f"a {type(message).__name__} has no place while {state.value}")
    return following


def _check_version(version: int) -> None:
    if version != VERSION:
        raise MessageError(f"hello: version {version} of the watch protocol, this is version {VERSION}")


def _brought(exchange: CrlExchange, part: Crl) -> Iterator[CrlBrought]:
    pem = exchange.take(part)
    if pem is not None:
        yield CrlBrought(pem)


def _feed(lines: LineReader[M], octets: bytes) -> tuple[tuple[M, ...], MessageError | None]:
    """What these octets complete, and what was wrong behind it."""
    try:
        return tuple(lines.feed(octets)), None
    except MessageError as error:
        return error.messages_before, error


def _drop(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _chunks(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for at in range(0, len(names), MAX_NAMES_IN_MESSAGE):
        yield names[at : at + MAX_NAMES_IN_MESSAGE]
