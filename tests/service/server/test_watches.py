"""What a server says on its watches, and what it learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import cast

import pytest
from cryptography import x509
from cryptography.x509 import load_pem_x509_certificate
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from appliance.fleet.events import (
    CrlBrought,
    Ended,
    ObserverEvent,
    ServerGreeted,
    ServerLeft,
    ServingStarted,
    ServingStopped,
    SnapshotTaken,
)
from appliance.fleet.watch import Observer
from appliance.service.server import watches as watches_module
from appliance.service.server.watches import MAX_WATCHES, MAX_WATCHES_OF_NAMESERVER, Watches, _showing
from appliance.service.watchwire import WatchWire
from appliance.tunnel.certificates import Role, examine, issue_nameserver, read_peer
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.renewal import Request
from tests.tunnel.authority import CA, CLIENT, NAMESERVER, OTHER_CA, WALL
from tests.tunnel.lists import KeptList, revoking

WWW, WILD = "www.example.org", "*.apps.example.org"
ADDRESS = ServerAddress("192.0.2.1")
PEM = CLIENT.certificate_pem()
EXPIRES = CLIENT.certificate.not_valid_after_utc.timestamp()
OTHER = issue_nameserver(CA, nameserver_id="ns2", wall=WALL)


class Watching:
    """A nameserver's end of a watch, over a fake wire."""

    def __init__(
        self,
        watches: Watches,
        clock: Clock,
        credential: object = NAMESERVER,
        *,
        crl: int | None = None,
    ) -> None:
        assert isinstance(credential, type(NAMESERVER))
        self.clock = clock
        peer = read_peer(credential.certificate)
        nonces = count()
        self.observer = Observer(
            peer.id,
            lambda: f"o{next(nonces)}",
            clock.seconds(),
            server_id="s1",
            examine=lambda certificate: examine(
                certificate, role=Role.CLIENT, ca=CA.certificate, revoked=None, wall=WALL
            ),
            crl=crl,
        )
        self.events: list[ObserverEvent] = []
        protocol = watches.protocol_for(peer)
        assert isinstance(protocol, WatchWire)
        self.protocol = protocol
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)  # type: ignore[no-untyped-call]

    def turn(self) -> list[ObserverEvent]:
        """Carry everything; what was heard since the last turn."""
        for _ in range(5):
            self.clock.advance(0)
            octets = self.transport.value()
            self.transport.clear()
            self.events += self.observer.receive(octets, self.clock.seconds())
            if not self.transport.disconnecting:
                self.protocol.dataReceived(self.observer.data_to_send())
        events, self.events = self.events, []
        return events

    def lose(self) -> None:
        self.protocol.connectionLost()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watches(clock: Clock) -> Iterator[Watches]:
    watches = Watches(
        clock,
        server_id="s1",
        boot="b1",
        addresses=[ADDRESS],
        revocations=KeptList(CA),
        wall=WALL.timestamp,
    )
    watches.startService()  # type: ignore[no-untyped-call]
    yield watches
    assert not clock.getDelayedCalls()


def test_a_watch_hears_the_snapshot_and_then_every_change(watches: Watches, clock: Clock) -> None:
    watches.serving(WWW, PEM)
    watch = Watching(watches, clock)
    assert watch.turn() == [ServerGreeted("s1", "b1", (ADDRESS,)), SnapshotTaken({WWW: EXPIRES})]
    watches.serving(WILD, PEM)
    watches.not_serving(WWW)
    watches.not_serving("never.example.org")
    assert watch.turn() == [ServingStarted(WILD, EXPIRES), ServingStopped(WWW)]
    assert watches.status() == [{"nameserver": "ns1"}]
    watch.lose()
    assert watches.status() == []


def test_no_name_is_called_unknown_before_a_nameserver_has_said_all(watches: Watches, clock: Clock) -> None:
    assert watches.may_be_known("a.example.org")
    watch = Watching(watches, clock)
    watch.turn()
    assert watches.may_be_known("a.example.org")
    watch.observer.know(["b.example.org"])
    watch.turn()
    assert not watches.may_be_known("a.example.org")
    assert watches.may_be_known("b.example.org")
    watch.lose()
    assert not watches.may_be_known("a.example.org")


def test_what_a_nameserver_knows_is_known_here_until_all_have_forgotten_it(
    watches: Watches, clock: Clock
) -> None:
    one, two = Watching(watches, clock), Watching(watches, clock, OTHER)
    one.observer.know(["a.example.org", WILD])
    two.observer.know(["a.example.org"])
    one.turn()
    two.turn()
    assert watches.known.knows("x.apps.example.org")
    one.observer.forget(["a.example.org", WILD])
    one.turn()
    assert watches.known.knows("a.example.org")
    assert not watches.known.knows("x.apps.example.org")
    two.observer.forget(["a.example.org"])
    two.turn()
    assert not watches.known.knows("a.example.org")
    one.lose()
    two.lose()


def test_a_lost_watch_forgets_nothing_and_the_next_one_is_the_truth(watches: Watches, clock: Clock) -> None:
    first = Watching(watches, clock)
    first.observer.know([f"n{number}.example.org" for number in range(500)])
    first.turn()
    first.lose()
    assert watches.known.knows("n499.example.org")
    second = Watching(watches, clock)
    second.turn()
    assert watches.known.knows("n499.example.org")
    second.observer.know(["n1.example.org"])
    second.turn()
    assert watches.known.knows("n1.example.org")
    assert not watches.known.knows("n499.example.org")
    second.lose()


def test_a_name_that_is_served_here_is_known_whatever_anybody_forgets(watches: Watches, clock: Clock) -> None:
    watches.serving(WWW, PEM)
    watch = Watching(watches, clock)
    watch.observer.know([WWW])
    watch.turn()
    watch.observer.forget([WWW])
    watch.turn()
    assert watches.known.expires(WWW) == EXPIRES
    watches.not_serving(WWW)
    assert watches.known.knows(WWW)
    watch.lose()


def test_a_revoked_nameserver_is_told_so(watches: Watches, clock: Clock) -> None:
    one, two = Watching(watches, clock), Watching(watches, clock, OTHER)
    one.turn()
    two.turn()
    watches.revoke(RevocationList(1, frozenset({NAMESERVER.certificate.serial_number})))
    (ended,) = one.turn()
    assert isinstance(ended, Ended)
    assert "the nameserver's certificate was revoked" in ended.text
    assert one.transport.disconnecting
    assert not two.transport.disconnecting
    one.lose()
    two.lose()


def test_a_server_that_stops_says_that_it_leaves(watches: Watches, clock: Clock) -> None:
    watch = Watching(watches, clock)
    watch.turn()
    watches.stopService()
    left, ended = watch.turn()
    assert left == ServerLeft()
    assert isinstance(ended, Ended)
    assert watch.transport.disconnecting
    watch.lose()


def test_a_silent_nameserver_is_cut(watches: Watches, clock: Clock) -> None:
    watch = Watching(watches, clock)
    watch.turn()
    clock.pump([0.5] * 10)
    assert watch.transport.disconnected
    watch.lose()


def test_nonsense_ends_the_watch_with_one_line(watches: Watches, clock: Clock) -> None:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(cast(ILogObserver, observe))
    for _ in range(3):
        watch = Watching(watches, clock)
        watch.protocol.dataReceived(b"GET / HTTP/1.1\r\n")
        assert watch.transport.disconnecting
        ended = watch.turn()[-1]
        assert isinstance(ended, Ended)
        assert ended.text == "a line is not JSON: JSONDecodeError (protocol)"
        watch.lose()
    globalLogPublisher.removeObserver(cast(ILogObserver, observe))
    assert len([line for line in lines if "its watch ended" in line]) == 1


def test_one_nameserver_cannot_take_all_watches(watches: Watches, clock: Clock) -> None:
    many = [Watching(watches, clock) for _ in range(MAX_WATCHES_OF_NAMESERVER)]
    one_more = Watching(watches, clock)
    assert one_more.transport.disconnecting
    other = Watching(watches, clock, OTHER)
    assert not other.transport.disconnecting
    for watch in (*many, one_more, other):
        watch.lose()


def test_watches_that_are_over_and_linger_keep_nobody_out(watches: Watches, clock: Clock) -> None:
    """Whoever does not close his end keeps the connection for a while."""
    many = [Watching(watches, clock) for _ in range(MAX_WATCHES_OF_NAMESERVER + MAX_WATCHES)]
    for watch in many[1:MAX_WATCHES_OF_NAMESERVER]:
        watch.protocol.dataReceived(b"GET / HTTP/1.1\r\n")
    assert [watch.transport.disconnecting for watch in many] == [False] + [True] * (len(many) - 1)
    assert watches.status() == [{"nameserver": "ns1"}]
    others = [Watching(watches, clock, one) for one in (OTHER, NAMESERVER)]
    assert not any(watch.transport.disconnecting for watch in others)
    assert watches.drain(lambda watch, held: None) == [one.protocol for one in (many[0], *others)]
    for watch in (*many, *others):
        watch.lose()


def test_a_nameserver_that_has_everything_renewed_leaves_room_for_others(watches: Watches) -> None:
    asked: list[Request] = []

    def renew(request: Request) -> Deferred[str]:
        asked.append(request)
        return succeed("a certificate")

    watches.on_renewals(renew, lambda: None)
    request = Request("certificate", "request", "signature")
    refused: list[str] = []
    for _ in range(20):
        answer = watches.asked_to_renew("ns1", request)
        answer.addErrback(lambda failure: refused.append(str(failure.value)))
    assert len(asked) == 10
    assert refused == 10 * ["more than 10 a second"]
    assert watches.asked_to_renew("ns2", request).result == "a certificate"


def test_a_name_too_many_is_not_published_and_ends_no_watch(
    watches: Watches, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches_module, "MAX_PUBLISHED", 1)
    watching = Watching(watches, clock)
    watching.turn()
    watches.serving("www.example.org", PEM)
    watches.serving("a.apps.example.org", PEM)
    assert watching.turn() == [ServingStarted("www.example.org", EXPIRES)]
    watches.serving("www.example.org", PEM)  # as with a certificate that lives longer
    assert watching.turn() == [ServingStarted("www.example.org", EXPIRES)]
    watches.not_serving("a.apps.example.org")
    watches.not_serving("www.example.org")
    assert watching.turn() == [ServingStopped("www.example.org")]
    watching.lose()


def test_the_end_in_the_same_process(watches: Watches, clock: Clock) -> None:
    end = watches.local()
    woken: list[bool] = []
    watches.serving(WWW, PEM)
    end.start(lambda: woken.append(True))
    observer = Observer(
        "ns1",
        lambda: "n",
        0.0,
        server_id=end.server_id,
        examine=lambda certificate: examine(
            certificate, role=Role.CLIENT, ca=CA.certificate, revoked=None, wall=WALL
        ),
    )
    observer.know(["a.example.org"])
    end.receive(observer.data_to_send())
    assert watches.known.knows("a.example.org")
    assert observer.receive(end.data_to_send(), 0.0) == [
        ServerGreeted("s1", "b1", (ADDRESS,)),
        SnapshotTaken({WWW: EXPIRES}),
    ]
    watches.not_serving(WWW)
    assert woken == [True]
    assert observer.receive(end.data_to_send(), 0.0) == [ServingStopped(WWW)]


def test_a_revocation_list_spreads_both_ways(clock: Clock) -> None:
    kept = KeptList(CA)
    watches = Watches(
        clock, server_id="s1", boot="b1", addresses=[ADDRESS], revocations=kept, wall=WALL.timestamp
    )
    kept.tell = watches.revoke
    first, second = Watching(watches, clock, crl=0), Watching(watches, clock, crl=0)
    gone = Watching(watches, clock, OTHER, crl=0)
    for watch in (first, second, gone):
        watch.turn()
    revoked = revoking(CA, [OTHER.certificate.serial_number], 2, WALL)
    first.observer.give(revoked)
    assert first.turn() == []
    assert second.turn() == [CrlBrought(revoked.pem)]
    (ended,) = gone.turn()
    assert isinstance(ended, Ended)
    assert "revoked" in ended.text
    assert kept.revoked == revoked
    late = Watching(watches, clock, crl=1)
    assert CrlBrought(revoked.pem) in late.turn()
    second.observer.give(revoking(OTHER_CA, [], 3, WALL))
    (ended,) = second.turn()
    assert isinstance(ended, Ended)
    assert "not signed by this CA" in ended.text
    for watch in (first, second, gone, late):
        watch.lose()
    assert not clock.getDelayedCalls()


def test_a_certificate_of_many_names_is_read_once(
    watches: Watches, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 250 names in it that is most of what a registration costs: 10,000 in one turn took 4.6 s."""
    module = "appliance.service.server.watches"
    reads = []

    def read(pem: bytes) -> x509.Certificate:
        reads.append(pem)
        return load_pem_x509_certificate(pem)

    monkeypatch.setattr(f"{module}.x509.load_pem_x509_certificate", read)
    _showing.cache_clear()
    watches.serving(WWW, PEM)
    watches.not_serving(WWW)
    watches.serving(WWW, PEM)
    watches.serving(WILD, PEM)
    assert reads == [PEM]
    watching = Watching(watches, clock)
    (snapshot,) = [event for event in watching.turn() if isinstance(event, SnapshotTaken)]
    assert snapshot.names == {WWW: EXPIRES, WILD: EXPIRES}
    watching.lose()
