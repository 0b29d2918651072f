"""What a server keeps of challenges, and says to nameservers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from appliance.fleet.events import ChallengeSaid, ChallengeWithdrawn, SnapshotTaken
from appliance.fleet.watch import MAX_CHALLENGES_OF_SERVER
from appliance.service.server import challenges
from appliance.service.server.challenges import ChallengeRefused
from appliance.service.server.watches import Watches
from appliance.tunnel.certificates import SERVICE_NAME, issue_client, read_peer
from appliance.tunnel.challenge import MAX_OF_CLIENT, sign
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import ServerAddress
from tests.service.server.test_watches import Watching
from tests.tunnel.authority import CA, CLIENT, WALL
from tests.tunnel.lists import KeptList

WWW, WILD = "www.example.org", "*.apps.example.org"
PEER = read_peer(CLIENT.certificate)
OTHER = read_peer(
    issue_client(CA, client_id="c2", names=[WWW], service_name=SERVICE_NAME, wall=WALL).certificate
)
ONE, TWO = "1" * 43, "2" * 43


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watches(clock: Clock) -> Iterator[Watches]:
    watches = Watches(
        clock,
        server_id="s1",
        boot="b1",
        addresses=[ServerAddress("192.0.2.1")],
        revocations=KeptList(CA),
        wall=WALL.timestamp,
    )
    watches.startService()  # type: ignore[no-untyped-call]
    yield watches
    watches.stopService()


def test_what_is_said_reaches_the_nameservers_of_now_and_of_later(watches: Watches, clock: Clock) -> None:
    first = Watching(watches, clock)
    first.turn()
    watches.challenges.say(PEER, WILD, ONE, 600, sign(CLIENT.key, WILD, ONE))
    assert first.turn() == [ChallengeSaid(WILD, ONE, 600)]
    clock.advance(2.5)
    later = Watching(watches, clock)
    assert later.turn()[1:] == [ChallengeSaid(WILD, ONE, 597), SnapshotTaken({})]
    assert watches.challenges.status() == [{"name": WILD, "value": ONE, "seconds": 598}]
    watches.challenges.withdraw(OTHER, WILD, ONE)
    assert first.turn() == []
    watches.challenges.withdraw(PEER, WILD, ONE)
    assert first.turn() == later.turn() == [ChallengeWithdrawn(WILD, ONE)]
    assert watches.challenges.status() == []


def test_what_is_not_withdrawn_ends_by_itself(watches: Watches, clock: Clock) -> None:
    watching = Watching(watches, clock)
    watches.challenges.say(PEER, WWW, ONE, 2, sign(CLIENT.key, WWW, ONE))
    watches.challenges.say(PEER, WWW, TWO, 1, sign(CLIENT.key, WWW, TWO))
    watches.challenges.say(PEER, WWW, TWO, 3, sign(CLIENT.key, WWW, TWO))  # said again
    assert len(watching.turn()) == 5
    clock.advance(1)
    assert watching.turn() == []
    clock.advance(1)
    assert watching.turn() == [ChallengeWithdrawn(WWW, ONE)]
    clock.advance(1)
    assert watching.turn() == [ChallengeWithdrawn(WWW, TWO)]


def test_two_clients_may_say_the_same(watches: Watches, clock: Clock) -> None:
    watching = Watching(watches, clock)
    watches.challenges.say(PEER, WWW, ONE, 600, sign(CLIENT.key, WWW, ONE))
    watches.challenges.say(OTHER, WWW, ONE, 600, sign(CLIENT.key, WWW, ONE))
    watching.turn()
    watches.challenges.withdraw(PEER, WWW, ONE)
    assert watching.turn() == []
    watches.challenges.withdraw(OTHER, WWW, ONE)
    assert watching.turn() == [ChallengeWithdrawn(WWW, ONE)]


def test_a_revoked_client_wants_nothing(watches: Watches, clock: Clock) -> None:
    watching = Watching(watches, clock)
    watches.challenges.say(PEER, WWW, ONE, 600, sign(CLIENT.key, WWW, ONE))
    watches.challenges.say(OTHER, WWW, TWO, 600, sign(CLIENT.key, WWW, TWO))
    watching.turn()
    watches.challenges.revoke(RevocationList(1, frozenset([PEER.serial, 5])))
    assert watching.turn() == [ChallengeWithdrawn(WWW, ONE)]


def test_there_is_a_bound_for_all_together(watches: Watches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenges, "MAX_IN_ALL", 2)
    watches.challenges.say(PEER, WWW, ONE, 600, "sig=")
    watches.challenges.say(OTHER, "n1.apps.example.org", ONE, 600, "sig=")
    with pytest.raises(ChallengeRefused, match="of all clients"):
        watches.challenges.say(PEER, WWW, TWO, 600, "sig=")
    watches.challenges.say(PEER, WWW, ONE, 700, "sig=")  # again, for longer
    watches.challenges.withdraw(OTHER, "n1.apps.example.org", ONE)
    watches.challenges.say(PEER, WWW, TWO, 600, "sig=")
    assert challenges.MAX_IN_ALL < MAX_CHALLENGES_OF_SERVER


def test_there_is_a_bound(watches: Watches) -> None:
    for number in range(MAX_OF_CLIENT):
        watches.challenges.say(PEER, f"n{number}.apps.example.org", ONE, 600, "sig=")
    with pytest.raises(ChallengeRefused, match=str(MAX_OF_CLIENT)):
        watches.challenges.say(PEER, WWW, ONE, 600, sign(CLIENT.key, WWW, ONE))
    watches.challenges.say(OTHER, WWW, ONE, 600, sign(CLIENT.key, WWW, ONE))
