"""The two ends of a watch, over a wire that cuts as it likes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import count

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.fleet import accounts, watch
from appliance.fleet.events import (
    AccountRefused,
    AccountSaid,
    ChallengeSaid,
    ChallengeWithdrawn,
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
    Account,
    Certificate,
    Challenge,
    Goodbye,
    Known,
    Leaving,
    NameserverHello,
    NotServing,
    Ping,
    Pong,
    ServerHello,
    Serving,
    SnapshotEnded,
    shown,
)
from appliance.fleet.watch import BURST_NAMES, BURST_OCTETS, Observer, WatchedServer, WatchState
from appliance.tunnel.account import sign as sign_account
from appliance.tunnel.certificates import SERVICE_NAME, Peer, Role, examine, issue_client
from appliance.tunnel.challenge import sign
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import ServerAddress
from tests.effort import examples
from tests.tunnel.authority import CA, CLIENT, OTHER_CA, SERVER, WALL

WWW, WILD = "www.example.org", "*.apps.example.org"
ADDRESSES = (ServerAddress("192.0.2.1"),)
SHOWN = shown(CLIENT.certificate)
EXPIRES = CLIENT.certificate.not_valid_after_utc.timestamp()
SECOND = issue_client(CA, client_id="c2", names=[WWW], service_name=SERVICE_NAME, wall=WALL)
STRANGER = issue_client(OTHER_CA, client_id="c1", names=[WWW], service_name=SERVICE_NAME, wall=WALL)
WHOLE = [10**9]
VALUE = "v" * 43
INSTANCE, URL = "0" * 32, "https://ca.test/1"


def signed(name: str, value: str = VALUE) -> str:
    return sign(CLIENT.key, name, value)


def account(certificate: Certificate, url: str = URL, at: int = 7) -> Account:
    made = sign_account(CLIENT.key, INSTANCE, at, url, ("ca.test",))
    return Account(INSTANCE, url, ("ca.test",), at, made, certificate.fingerprint)


def granted(certificate: x509.Certificate) -> Peer:
    return examine(certificate, role=Role.CLIENT, ca=CA.certificate, revoked=None, wall=WALL)


class Pair:
    """A server and an observer, and the octets between them."""

    def __init__(
        self,
        serving: dict[str, Certificate] | None = None,
        known: Sequence[str] = (),
        judge: Callable[[x509.Certificate], Peer] = granted,
    ) -> None:
        nonces = count()
        self.now = 0.0
        self.server = WatchedServer("s1", "b1", ADDRESSES, lambda: f"s{next(nonces)}", 0.0, serving or {})
        self.observer = Observer("ns1", lambda: f"o{next(nonces)}", 0.0, server_id="s1", examine=judge)
        self.observer.know(known)
        self.at_server: list[ServerEvent] = []
        self.at_observer: list[ObserverEvent] = []

    def speak(self, cuts: Sequence[int] = WHOLE) -> None:
        """Carry everything both ways until both have said all, in pieces of these sizes."""
        sizes = list(cuts) or WHOLE
        said = True
        while said:
            said = False
            while octets := self.server.data_to_send():
                said = True
                for piece in _cut(octets, sizes):
                    self.at_observer += self.observer.receive(piece, self.now)
            while octets := self.observer.data_to_send():
                said = True
                for piece in _cut(octets, sizes):
                    self.at_server += self.server.receive(piece, self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.at_server += self.server.tick(self.now)
        self.at_observer += self.observer.tick(self.now)


def _cut(octets: bytes, sizes: Sequence[int]) -> list[bytes]:
    pieces, turn = [], 0
    while octets:
        size = sizes[turn % len(sizes)]
        pieces.append(octets[:size])
        octets, turn = octets[size:], turn + 1
    return pieces


GREETED = ServerGreeted("s1", "b1", ADDRESSES)


@given(st.lists(st.integers(1, 3000), max_size=5))
@settings(max_examples=examples(50), deadline=None)
def test_a_snapshot_then_changes_in_any_cut(cuts: list[int]) -> None:
    pair = Pair({WWW: SHOWN, WILD: SHOWN}, known=["old.example.org"])
    pair.speak(cuts)
    assert pair.at_observer == [GREETED, SnapshotTaken({WWW: EXPIRES, WILD: EXPIRES})]
    assert pair.at_server == [NameserverGreeted("ns1"), NamesKnown(("old.example.org",), complete=True)]
    pair.at_observer.clear()
    pair.at_server.clear()
    pair.server.not_serving(WILD)
    pair.server.serving(WILD, SHOWN)
    pair.server.not_serving("never.example.org")
    pair.observer.know(["new.example.org"])
    pair.observer.forget(["old.example.org"])
    pair.speak(cuts)
    assert pair.at_observer == [ServingStopped(WILD), ServingStarted(WILD, EXPIRES)]
    assert pair.at_server == [
        NamesKnown(("new.example.org",), complete=True),
        NamesForgotten(("old.example.org",)),
    ]


def test_a_server_drains_is_withdrawn_and_leaves() -> None:
    pair = Pair({WWW: SHOWN})
    pair.speak()
    pair.at_observer.clear()
    pair.at_server.clear()
    pair.server.drain()
    pair.server.drain()
    pair.server.not_serving(WWW)
    pair.speak()
    assert pair.at_observer == [ServerDraining(), ServingStopped(WWW)]
    pair.observer.withdrawn(held=False)
    pair.speak()
    assert pair.at_server == [ServerWithdrawn(held=False)]
    pair.server.leave()
    pair.speak()
    assert pair.at_observer[2:] == [ServerLeft(), Ended(WatchEnd.LEFT, "the server left")]


def test_who_watches_a_draining_server_hears_it_before_its_names() -> None:
    pair = Pair()
    pair.server = WatchedServer("s1", "b1", ADDRESSES, lambda: "n", 0.0, {WWW: SHOWN}, draining=True)
    pair.server.drain()
    pair.speak()
    assert pair.at_observer == [GREETED, ServerDraining(), SnapshotTaken({WWW: EXPIRES})]


def test_nobody_is_withdrawn_who_does_not_drain() -> None:
    pair = Pair()
    pair.observer.withdrawn(held=True)
    pair.speak()
    assert pair.at_server[-1] == Ended(WatchEnd.MALFORMED, "withdrawn: this server does not drain")


def test_a_certificate_is_shown_once_while_a_name_is_under_it() -> None:
    pair = Pair()
    pair.speak()
    pair.server.serving(WWW, SHOWN)
    pair.server.serving(WILD, SHOWN)
    octets = pair.server.data_to_send()
    assert octets.count(b'"certificate"') == 1
    pair.observer.receive(octets, 0.0)
    pair.server.not_serving(WWW)
    pair.server.not_serving(WILD)
    pair.server.serving(WWW, SHOWN)
    octets = pair.server.data_to_send()
    assert octets.count(b'"certificate"') == 1
    assert pair.observer.receive(octets, 0.0) == [
        ServingStopped(WWW),
        ServingStopped(WILD),
        ServingStarted(WWW, EXPIRES),
    ]


def test_a_challenge_goes_to_the_nameserver_and_is_taken_back() -> None:
    pair = Pair({WWW: SHOWN})
    pair.server.challenge(WILD, VALUE, 600, signed(WILD), shown(CLIENT.certificate))  # in the snapshot
    pair.speak()
    assert pair.at_observer == [GREETED, ChallengeSaid(WILD, VALUE, 600), SnapshotTaken({WWW: EXPIRES})]
    pair.at_observer.clear()
    pair.server.not_serving(WWW)
    pair.server.challenge("a.apps.example.org", VALUE, 30, signed("a.apps.example.org"), SHOWN)
    pair.server.challenge(WILD, VALUE, 300, signed(WILD), SHOWN)
    pair.server.challenge_over(WILD, VALUE)
    pair.server.challenge_over(WILD, VALUE)
    pair.server.challenge_over("a.apps.example.org", VALUE)
    pair.server.challenge(WWW, VALUE, 1, signed(WWW), SHOWN)  # the certificate is shown anew
    octets = pair.server.data_to_send()
    assert octets.count(b'"certificate"') == 1
    assert pair.observer.receive(octets, 0.0) == [
        ServingStopped(WWW),
        ChallengeSaid("a.apps.example.org", VALUE, 30),
        ChallengeSaid(WILD, VALUE, 300),
        ChallengeWithdrawn(WILD, VALUE),
        ChallengeWithdrawn("a.apps.example.org", VALUE),
        ChallengeSaid(WWW, VALUE, 1),
    ]


def test_what_is_said_again_is_not_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("MAX_NAMES_OF_SERVER", "MAX_CHALLENGES_OF_SERVER"):
        monkeypatch.setattr(watch, bound, 1)
    monkeypatch.setattr(watch, "MAX_CERTIFICATES", 2)
    pair = Pair()
    pair.speak()
    for certificate in (SHOWN, shown(SECOND.certificate), SHOWN):
        pair.server.serving(WWW, certificate)
        pair.server.challenge(WWW, VALUE, 600, signed(WWW), SHOWN)
    pair.speak()
    assert not any(isinstance(event, Ended) for event in pair.at_observer)
    pair.server.serving(WILD, SHOWN)
    pair.speak()
    assert isinstance(pair.at_observer[-1], Ended)


def test_an_account_follows_the_snapshot_and_holds_no_certificate() -> None:
    pair = Pair({WWW: SHOWN})
    pair.server.account(account(SHOWN), SHOWN)
    octets = pair.server.data_to_send()
    assert octets.count(b'"certificate"') == 1
    serial = CLIENT.certificate.serial_number
    said = AccountSaid(
        accounts.Account("c1", INSTANCE, serial, (WWW, WILD), EXPIRES, URL, ("ca.test",), 7)
    )
    assert pair.observer.receive(octets, 0.0) == [GREETED, SnapshotTaken({WWW: EXPIRES}), said]
    pair.server.not_serving(WWW)
    for _ in range(2):
        pair.server.account(account(SHOWN), SHOWN)
    octets = pair.server.data_to_send()
    assert octets.count(b'"certificate"') == 2, "shown for each"
    assert pair.observer.receive(octets, 0.0) == [ServingStopped(WWW), said, said]
    assert pair.observer.receive(BY_SERVER.encode(account(SHOWN)), 0.0) == [
        Ended(WatchEnd.MALFORMED, "account: its certificate was not shown")
    ]


def test_a_nameserver_checks_itself_whose_an_account_is() -> None:
    pair = Pair()
    pair.speak()
    pair.at_observer.clear()
    stranger = shown(STRANGER.certificate)
    pair.server.account(account(stranger), stranger)
    pair.server.account(account(shown(SECOND.certificate)), shown(SECOND.certificate))  # c1 has signed it
    pair.server.account(dataclasses.replace(account(SHOWN), url="https://ca.test/thief"), SHOWN)
    pair.speak()
    first, *others = pair.at_observer
    assert isinstance(first, AccountRefused)
    assert others == [AccountRefused("c2 has not signed it"), AccountRefused("c1 has not signed it")]


def test_a_nameserver_checks_itself_whose_a_challenge_is() -> None:
    pair = Pair()
    pair.speak()
    pair.at_observer.clear()
    pair.server.challenge("example.org", VALUE, 600, signed("example.org"), SHOWN)
    pair.server.challenge(WWW, VALUE, 600, signed(WWW), shown(STRANGER.certificate))
    pair.speak()
    pair.server.challenge(WILD, VALUE, 600, signed(WWW), SHOWN)  # as a stolen server would have it
    pair.speak()
    assert pair.at_observer.pop() == NameRefused("_acme-challenge.apps.example.org", "c1 has not signed it")
    refused = [event for event in pair.at_observer if isinstance(event, NameRefused)]
    assert [event.name for event in refused] == ["_acme-challenge.example.org", f"_acme-challenge.{WWW}"]
    assert refused == pair.at_observer
    pair.at_observer += pair.observer.receive(
        BY_SERVER.encode(Challenge(WWW, VALUE, 600, "sig=", "0" * 64)), 0.0
    )
    assert pair.at_observer[-1] == Ended(WatchEnd.MALFORMED, f"{WWW}: its certificate was not shown")


def test_a_name_that_nobody_granted_is_refused_and_the_watch_goes_on() -> None:
    pair = Pair({"bank.example.org": SHOWN, WWW: SHOWN})
    pair.speak()
    assert pair.at_observer == [
        GREETED,
        NameRefused("bank.example.org", "c1's certificate does not grant it"),
        SnapshotTaken({WWW: EXPIRES}),
    ]
    pair.at_observer.clear()
    pair.server.serving("x.apps.example.org", SHOWN)  # a wildcard grants that wildcard only
    pair.server.not_serving("x.apps.example.org")
    pair.speak()
    assert pair.at_observer == [NameRefused("x.apps.example.org", "c1's certificate does not grant it")]


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (shown(STRANGER.certificate), "issued by another CA"),
        (shown(SERVER.certificate), "not of a tunnel client"),
    ],
)
def test_the_observer_judges_each_certificate_itself(certificate: Certificate, words: str) -> None:
    pair = Pair({WWW: certificate})
    pair.speak()
    refused = pair.at_observer[1]
    assert isinstance(refused, NameRefused)
    assert words in refused.text
    assert pair.at_observer[2] == SnapshotTaken({})


def test_a_revoked_certificate_serves_no_name() -> None:
    revoked = RevocationList(1, frozenset({CLIENT.certificate.serial_number}))

    def judge(certificate: x509.Certificate) -> Peer:
        return examine(certificate, role=Role.CLIENT, ca=CA.certificate, revoked=revoked, wall=WALL)

    pair = Pair({WWW: SHOWN}, judge=judge)
    pair.speak()
    assert isinstance(pair.at_observer[1], NameRefused)
    assert "revoked" in pair.at_observer[1].text


def test_what_was_said_under_a_certificate_holds_no_more_when_it_is_revoked() -> None:
    other = "other.example.org"
    second = issue_client(CA, client_id="c2", names=[other], service_name=SERVICE_NAME, wall=WALL)
    pair = Pair({WWW: SHOWN, other: shown(second.certificate)})
    pair.server.challenge(WILD, VALUE, 600, signed(WILD), SHOWN)
    pair.speak()
    pair.at_observer.clear()
    serials = frozenset({CLIENT.certificate.serial_number, 7})
    gone = [ServingStopped(WWW), ChallengeWithdrawn(WILD, VALUE)]
    assert pair.observer.revoke(serials) == gone
    assert pair.observer.revoke(serials) == []
    pair.server.serving(WILD, SHOWN)  # it goes on claiming
    pair.server.not_serving(WWW)
    pair.speak()
    (refused,) = pair.at_observer
    assert isinstance(refused, NameRefused)
    assert "revoked" in refused.text
    pair.at_observer.clear()
    pair.server.serving(other, shown(SECOND.certificate))
    pair.server.serving(WWW, shown(SECOND.certificate))
    pair.speak()
    assert pair.at_observer[-1] == ServingStarted(WWW, SECOND.certificate.not_valid_after_utc.timestamp())


def test_what_is_revoked_in_a_snapshot_is_not_in_it() -> None:
    pair = Pair({WWW: SHOWN})
    octets = pair.server.data_to_send()
    before, end = octets.rsplit(b"\n", 2)[0] + b"\n", octets.rsplit(b"\n", 2)[1] + b"\n"
    pair.observer.receive(before, 0.0)
    assert pair.observer.revoke(frozenset({CLIENT.certificate.serial_number})) == []
    assert pair.observer.receive(end, 0.0) == [SnapshotTaken({})]


def test_a_name_that_goes_on_under_another_certificate_is_judged_again() -> None:
    pair = Pair({WWW: SHOWN})
    pair.speak()
    pair.at_observer.clear()
    pair.server.serving(WWW, shown(SECOND.certificate))
    pair.server.serving(WWW, shown(STRANGER.certificate))
    pair.speak()
    started, stopped, refused = pair.at_observer
    assert started == ServingStarted(WWW, SECOND.certificate.not_valid_after_utc.timestamp())
    assert stopped == ServingStopped(WWW)
    assert isinstance(refused, NameRefused)


def test_pings_keep_a_quiet_watch_alive() -> None:
    pair = Pair()
    pair.speak()
    for _ in range(100):
        deadlines = [pair.server.next_deadline(), pair.observer.next_deadline()]
        pair.wait(min(filter(None, deadlines)) - pair.now)
        pair.speak()
    assert pair.now >= 50.0
    assert pair.at_observer == [GREETED, SnapshotTaken({})]
    assert pair.observer.state is pair.server.state is WatchState.WATCHING


def test_silence_ends_both_ends_within_five_seconds() -> None:
    pair = Pair()
    pair.speak()
    pair.wait(3.0)
    pair.speak()
    pair.wait(3.0)  # these pings are lost
    pair.wait(2.0)
    silent = Ended(WatchEnd.SILENT, "nothing was heard for 5 s")
    assert pair.at_observer[-1] == pair.at_server[-1] == silent
    assert pair.observer.next_deadline() is pair.server.next_deadline() is None
    assert pair.observer.tick(99.0) == []
    assert pair.server.tick(99.0) == []
    assert pair.observer.receive(b"x\n", 99.0) == []


def test_a_server_that_never_ends_its_snapshot_is_not_one() -> None:
    observer = Pair().observer
    observer.receive(BY_SERVER.encode(ServerHello(1, "s1", "b1", ())), 0.0)
    now = 0.0
    while now < 59.0:
        now += 1.0
        octets = BY_SERVER.encode(NotServing(WWW))
        while said := observer.data_to_send():
            for line in said.splitlines():
                if b'"ping"' in line:
                    octets += line.replace(b"ping", b"pong") + b"\n"
        observer.receive(octets, now)
        assert observer.tick(now) == []
    assert observer.next_deadline() == 60.0
    (ended,) = observer.tick(60.0)
    assert isinstance(ended, Ended)


def test_a_leave_and_a_goodbye_are_told_apart() -> None:
    pair = Pair()
    pair.speak()
    pair.server.leave()
    pair.server.serving(WWW, SHOWN)
    pair.speak()
    assert pair.at_observer[2:] == [ServerLeft(), Ended(WatchEnd.LEFT, "the server left")]
    pair = Pair()
    pair.speak()
    pair.server.goodbye("revoked", "the certificate was revoked")
    pair.speak()
    assert pair.at_observer[2:] == [Ended(WatchEnd.REFUSED, "the certificate was revoked (revoked)")]


def test_a_refusal_instead_of_a_hello() -> None:
    observer = Pair().observer
    assert observer.receive(BY_SERVER.encode(Goodbye("expired", "it has expired")), 0.0) == [
        Ended(WatchEnd.REFUSED, "it has expired (expired)")
    ]


HELLO = ServerHello(1, "s1", "b1", ())


@pytest.mark.parametrize(
    "said",
    [
        [Ping("a")],
        [SnapshotEnded()],
        [Leaving()],
        [ServerHello(1, "s2", "b1", ())],
        [ServerHello(2, "s1", "b1", ())],
        [HELLO, HELLO],
        [HELLO, Pong("a")],
        [HELLO, Serving(WWW, SHOWN.fingerprint)],
        [HELLO, Certificate(SHOWN.fingerprint, "no certificate")],
        [HELLO, Certificate("0" * 64, SHOWN.pem)],
        [HELLO, SnapshotEnded(), SnapshotEnded()],
        [HELLO, SHOWN, Serving(WWW, SHOWN.fingerprint), NotServing(WWW), Serving(WWW, SHOWN.fingerprint)],
    ],
)
def test_what_has_no_place_ends_the_watch_at_the_observer(said: list[ServerHello]) -> None:
    observer = Pair().observer
    events = observer.receive(b"".join(map(BY_SERVER.encode, said)), 0.0)
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert ended.reason is WatchEnd.MALFORMED
    assert observer.state is WatchState.ENDED


@pytest.mark.parametrize(
    "said",
    [
        [Ping("a")],
        [Known((), complete=True)],
        [NameserverHello(2, "ns1")],
        [NameserverHello(1, "ns1"), NameserverHello(1, "ns1")],
        [NameserverHello(1, "ns1"), Pong("a")],
    ],
)
def test_what_has_no_place_ends_the_watch_at_the_server(said: list[NameserverHello]) -> None:
    server = Pair().server
    events = server.receive(b"".join(map(BY_NAMESERVER.encode, said)), 0.0)
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert ended.reason is WatchEnd.MALFORMED


@given(st.binary(max_size=300))
@settings(max_examples=examples(100), deadline=None)
def test_random_octets_never_raise(octets: bytes) -> None:
    pair = Pair()
    pair.observer.receive(octets + b"\n", 0.0)
    pair.server.receive(octets + b"\n", 0.0)


def test_what_was_right_before_something_wrong_has_happened() -> None:
    observer = Pair().observer
    octets = BY_SERVER.encode(HELLO) + BY_SERVER.encode(SnapshotEnded()) + b"no\n"
    assert [type(event) for event in observer.receive(octets, 0.0)] == [ServerGreeted, SnapshotTaken, Ended]


def test_many_names_come_in_bursts_and_are_all_known() -> None:
    known = [f"n{number}.example.org" for number in range(5000)]
    pair = Pair(known=known)
    assert len(pair.observer.data_to_send()) < 2 * BURST_OCTETS
    pair = Pair(known=known)
    pair.speak()
    said = [event for event in pair.at_server if isinstance(event, NamesKnown)]
    assert [name for event in said for name in event.names] == known
    assert [event.complete for event in said] == [False] * (len(said) - 1) + [True]


def granting(served: dict[str, Certificate]) -> Pair:
    """A pair whose observer takes the certificate for one of all these names."""
    peer = granted(CLIENT.certificate)
    return Pair(served, judge=lambda _: dataclasses.replace(peer, names=(*served, WWW)))


def test_a_long_snapshot_is_made_little_by_little_and_gives_way() -> None:
    served = {f"n{number}.example.org": SHOWN for number in range(3 * BURST_NAMES)}
    pair = granting(served)
    hello = pair.server.data_to_send()
    assert hello.count(b"\n") <= BURST_NAMES + 3
    first, last, middle = next(iter(served)), list(served)[-1], list(served)[-2]
    assert first.encode() in hello
    assert last.encode() not in hello
    pair.at_observer += pair.observer.receive(hello, 0.0)
    pair.server.not_serving(first)  # said already
    pair.server.not_serving(last)  # not said yet: never
    pair.server.serving(middle, SHOWN)
    pair.server.serving(WWW, SHOWN)
    pair.wait(3.0)
    pair.server.receive(pair.observer.data_to_send(), 3.0)
    octets = pair.server.data_to_send()
    assert b'"pong"' in octets
    pair.at_observer += pair.observer.receive(octets, 0.0)
    assert not [event for event in pair.at_observer if isinstance(event, SnapshotTaken)]
    pair.speak()
    (taken,) = [event for event in pair.at_observer if isinstance(event, SnapshotTaken)]
    assert set(taken.names) == {*served, WWW} - {first, last}


def test_who_leaves_says_no_more_of_a_snapshot() -> None:
    pair = granting({f"n{number}.example.org": SHOWN for number in range(3 * BURST_NAMES)})
    pair.at_observer += pair.observer.receive(pair.server.data_to_send(), 0.0)
    pair.server.leave()
    pair.speak()
    assert pair.at_observer[-2:] == [ServerLeft(), Ended(WatchEnd.LEFT, "the server left")]
    assert not pair.server.data_to_send()


NAME = st.sampled_from([WWW, WILD, "bank.example.org"])
CERTIFICATE = st.sampled_from([SHOWN, shown(SECOND.certificate), shown(STRANGER.certificate)])


class Names(RuleBasedStateMachine):
    """Whatever is served and stopped in whatever order and cut: the observer has what the model has."""

    @initialize(serving=st.dictionaries(NAME, CERTIFICATE))
    def begin(self, serving: dict[str, Certificate]) -> None:
        self.pair = Pair(dict(serving))
        self.model = dict(serving)
        self.seen: dict[str, float] = {}

    @rule(name=NAME, certificate=CERTIFICATE)
    def serve(self, name: str, certificate: Certificate) -> None:
        self.pair.server.serving(name, certificate)
        self.model[name] = certificate

    @rule(name=NAME)
    def stop(self, name: str) -> None:
        self.pair.server.not_serving(name)
        self.model.pop(name, None)

    @rule(name=NAME, certificate=CERTIFICATE)
    def challenge(self, name: str, certificate: Certificate) -> None:
        self.pair.server.challenge(name, VALUE, 600, signed(name), certificate)

    @rule(certificate=CERTIFICATE)
    def account(self, certificate: Certificate) -> None:
        self.pair.server.account(account(certificate), certificate)

    @rule(name=NAME)
    def challenge_over(self, name: str) -> None:
        self.pair.server.challenge_over(name, VALUE)

    @rule(cuts=st.lists(st.integers(1, 500), max_size=3))
    def follow(self, cuts: list[int]) -> None:
        self.pair.speak(cuts)
        for event in self.pair.at_observer:
            match event:
                case SnapshotTaken(names):
                    self.seen = dict(names)
                case ServingStarted(name, expires):
                    self.seen[name] = expires
                case ServingStopped(name):
                    del self.seen[name]
        self.pair.at_observer.clear()
        right = {
            name
            for name, certificate in self.model.items()
            if (certificate == SHOWN and name in (WWW, WILD))
            or (certificate == shown(SECOND.certificate) and name == WWW)
        }
        assert set(self.seen) == right

    @invariant()
    def it_lives(self) -> None:
        assert self.pair.observer.state is not WatchState.ENDED


TestNames = Names.TestCase
TestNames.settings = settings(max_examples=examples(50), stateful_step_count=20, deadline=None)
