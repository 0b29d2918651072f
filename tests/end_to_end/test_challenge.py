"""A challenge from a client over a server into the zones of two nameservers, one of which may be down.

The client is in this process, the nameservers and the server are processes of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from appliance.addresses import Listen, Origin
from appliance.service.client import authoritative, challenges
from appliance.service.client.challenges import ChallengeNotPublished
from appliance.service.client.joining import TunnelClient
from appliance.settings import ClientSettings
from appliance.tunnel.invitation import read_invitation
from tests.end_to_end.site import ZONE
from tests.end_to_end.test_introduction import NS1, SECONDS, T1, Site

reactor: Any = _reactor
WWW, WILD, BELOW = f"www.{ZONE}", f"*.apps.{ZONE}", f"foo.apps.{ZONE}"
ONE, TWO = "1" * 43, "2" * 43
NS_RECORDS = f" NS ns1\n NS ns2\nns1 A {NS1}\nns2 A 127.0.0.2\n"


class Ground(Site):
    """The site with its two nameservers in its NS set, a server, and a client that has joined it."""

    client: TunnelClient

    def start(self) -> None:
        zone = self.ns1.directory / "zones" / f"{ZONE}.zone"
        text = zone.read_text()
        assert " NS ns1\nns1 A " in text
        zone.write_text(text.replace(f" NS ns1\nns1 A {NS1}\n", NS_RECORDS))
        self.ns1.start(SECONDS)
        self.follow()
        self.enroll("t1", T1).start(SECONDS)
        self.wait_listed(T1)
        self.invitation = self.ns1.invite(WWW, WILD)

    def join(self, state: Path) -> TunnelClient:
        settings = ClientSettings(
            invitation=self.invitation,
            state=state,
            resolver=Listen(NS1, self.ports.dns),
            tls_origin=Origin("127.0.0.1", 9),
        )
        self.client = TunnelClient(reactor, settings, read_invitation(self.invitation.read_text()))
        self.client.startService()
        return self.client

    def has(self, name: str, rtype: str = "TXT") -> list[list[str]]:
        """What each of the nameservers has."""
        return [one.dig(name, rtype) for one in (self.ns1, self.ns2)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    made = Ground(tmp_path_factory.mktemp("site"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest_twisted.async_yield_fixture
async def ground(site: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ground]:
    monkeypatch.setattr(authoritative, "DNS_PORT", site.ports.dns)
    client = site.join(tmp_path / "client-state")
    await until(lambda: client.joined)
    yield site
    await client.stopService()


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    end = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < end, "not reached in time"
        await deferLater(reactor, 0.05)


async def has(ground: Ground, name: str, rtype: str = "TXT") -> list[list[str]]:
    found: list[list[str]] = await deferToThread(ground.has, name, rtype)
    return found


@pytest_twisted.ensureDeferred
async def test_a_challenge_is_seen_at_both_nameservers_and_withdrawn(ground: Ground) -> None:
    for name in (WWW, BELOW):  # known at ns2 since the client serves them
        while await has(ground, name, "A") != [[T1], [T1]]:
            await deferLater(reactor, 0.1)
    publish, withdraw = ground.client.challenges.publish, ground.client.challenges.withdraw
    publishing = [publish(WWW, ONE), publish(f"{WWW}.", TWO), publish(WILD, ONE), publish(BELOW, TWO)]
    for each in publishing:
        await each
    both = [f'"{ONE}"', f'"{TWO}"']
    assert await has(ground, f"_acme-challenge.{WWW}") == [both, both]
    assert await has(ground, f"_acme-challenge.apps.{ZONE}") == [both[:1], both[:1]]
    assert await has(ground, f"_acme-challenge.{BELOW}") == [both[1:], both[1:]]
    for name in (BELOW, f"bar.apps.{ZONE}", WWW):  # served as before
        assert await has(ground, name, "A") == [[T1], [T1]]
    withdraw(WWW, ONE)
    withdraw(BELOW, TWO)
    for name, left in ((WWW, both[1:]), (BELOW, ground.listed(T1))):  # what the wildcard says
        while await has(ground, f"_acme-challenge.{name}") != [left, left]:
            await deferLater(reactor, 0.1)
    assert await has(ground, BELOW, "A") == [[T1], [T1]]


@pytest_twisted.ensureDeferred
async def test_a_nameserver_that_is_down_is_waited_for_and_named(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deferToThread(ground.ns2.kill)
    publishing: Deferred[None] = ground.client.challenges.publish(WWW, ONE)
    while (await deferToThread(ground.ns1.dig, f"_acme-challenge.{WWW}", "TXT")) != [f'"{ONE}"']:
        await deferLater(reactor, 0.1)
    assert not publishing.called
    await deferToThread(ground.ns2.start, SECONDS)  # and is told again, with the snapshot of its watch
    await publishing
    assert await has(ground, f"_acme-challenge.{WWW}") == [[f'"{ONE}"']] * 2

    await deferToThread(ground.ns2.kill)
    monkeypatch.setattr(challenges, "LIMIT_SECONDS", 2.0)
    with pytest.raises(ChallengeNotPublished) as failed:
        await ground.client.challenges.publish(WWW, TWO)
    await deferToThread(ground.ns2.start, SECONDS)
    assert str(failed.value) == (
        f"the challenge of {WWW} is not published: ns2.{ZONE}: 127.0.0.2: no answer: Connection refused"
    )
    while (await deferToThread(ground.ns1.dig, f"_acme-challenge.{WWW}", "TXT")) != [f'"{ONE}"']:
        await deferLater(reactor, 0.1)


@pytest_twisted.ensureDeferred
async def test_a_name_that_is_not_granted_goes_no_further_than_to_the_server(ground: Ground) -> None:
    strange = f"bank.{ZONE}"
    with pytest.raises(ChallengeNotPublished, match=f"server t1: the certificate does not grant {strange}"):
        await ground.client.challenges.publish(strange, ONE)
    assert await has(ground, f"_acme-challenge.{strange}") == [[], []]
