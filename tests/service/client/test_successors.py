"""A link beside a link: by itself, and in a whole client whose certificate is renewed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import reactor as _reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import deferLater

from appliance.service.client.joining import TunnelClient
from appliance.service.client.successors import Successors
from appliance.tunnel.certificates import SERVICE_NAME, issue_again, issue_client
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.renewal import Request, judge
from appliance.tunnel.session import ClientDraining, RenewalAsked
from tests.service.client.fake_server import CA, NAMES, NOW, FakeLink, FakeServer, issued, until, visitor
from tests.service.client.test_joining import World, joined, world  # noqa: F401

reactor: Any = _reactor
AT = ServerAddress("192.0.2.1")


class Noted:
    """A link that notes what is done with it."""

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self.done: list[str] = []

    def startService(self) -> None:
        self.done.append("dialled")

    def retire(self) -> None:
        self.done.append("retired")


class Made:
    """Successors, the links that they made, and a link that they are for."""

    def __init__(self) -> None:
        self.links: list[Any] = []
        self.old: Any = Noted(AT)
        self.successors = Successors(self._make, lambda link: link.done.append("stopped"))  # type: ignore[attr-defined]

    def _make(self, address: ServerAddress) -> Any:
        self.links.append(Noted(address))
        return self.links[-1]


def test_one_successor_takes_the_place() -> None:
    made = Made()
    made.successors.call_for(made.old)
    made.successors.call_for(made.old)
    (link,) = made.links
    assert (link.address, link.done) == (AT, ["dialled"])
    assert made.successors.coming == [link]
    assert made.successors.predecessor(link) == made.old
    assert made.successors.predecessor(made.old) is None
    made.successors.take_place(link)
    assert made.old.done == ["retired"]
    assert (made.successors.coming, made.successors.retiring) == ([], [made.old])
    assert made.successors.predecessor(link) is None
    made.successors.call_for(made.old)
    assert made.links == [link], "whose place is taken needs no other"
    made.successors.parted(made.old)
    assert made.successors.retiring == []


def test_who_is_lost_first_needs_none() -> None:
    made = Made()
    other: Any = Noted(AT)
    for old in (made.old, other):
        made.successors.call_for(old)
    made.successors.parted(made.old)
    first, second = made.links
    assert first.done == ["dialled", "stopped"]
    assert made.successors.coming == [second]
    assert made.old.done == []
    made.successors.call_for(made.old)
    assert len(made.links) == 3, "it was dialled again, and is joined"


def test_all_are_forgotten() -> None:
    made = Made()
    made.successors.call_for(made.old)
    made.successors.forget()
    assert made.links[0].done == ["dialled", "stopped"]
    assert made.successors.coming == []
    made.successors.forget()
    assert made.links[0].done == ["dialled", "stopped"]


# In a client


class Calendar:
    """A date that a test sets."""

    def __init__(self) -> None:
        self.days = 0

    def __call__(self) -> datetime:
        return NOW + timedelta(days=self.days)


class Renewing:
    """A client that is joined to one server, and on a day on which its certificate is to be renewed."""

    def __init__(self, place: World, server: FakeServer, client: TunnelClient, calendar: Calendar) -> None:
        self.world = place
        self.server = server
        self.client = client
        self.calendar = calendar
        self.old: FakeLink

    @classmethod
    async def begin(cls, place: World) -> Renewing:
        server, calendar = place.server(), Calendar()
        made = cls(place, server, place.client(server.listen(), wall=calendar), calendar)
        made.old = await joined(server)
        return made

    async def asked(self, link: FakeLink | None = None) -> Request:
        """What the client asks for, over the link that it has."""
        on = link or self.old
        self.calendar.days = 300
        self.client.read_again()
        await until(reactor, lambda: requests(on), "a request")
        (request,) = requests(on)
        return Request(shown(on).public_bytes(Encoding.PEM).decode(), request.request, request.signature)

    async def renew(self, days: int = 500) -> None:
        answer(self.old, await self.asked(), days)

    def take(self, days: int) -> None:
        """Another certificate counts."""
        credential = issue_client(
            CA, client_id="c1", names=NAMES, service_name=SERVICE_NAME, wall=NOW, days=days
        )
        self.client._took(credential)

    async def come(self, number: int = 2) -> FakeLink:
        """The link of that number, when its hello has come."""
        await until(reactor, lambda: len(self.server.links) == number and self.server.links[-1].instance)
        return self.server.links[-1]

    def whole(self, link: FakeLink) -> bool:
        """Whether there is this link, and nothing beside it."""
        client = self.client
        return (
            len(client.joined) == len(client.links) == 1
            and not link.ended
            and not any(other is not link and not other.ended for other in self.server.links)
            and not client._successors.coming
            and not client._successors.retiring
            and list(client._claims.values()) == list(client._joined) == list(client.links.values())
        )


def requests(link: FakeLink) -> list[RenewalAsked]:
    return [event for event in link.events if isinstance(event, RenewalAsked)]


def shown(link: FakeLink) -> x509.Certificate:
    """What the client proved itself with on this link."""
    certificate: x509.Certificate = link.transport.getHandle().get_peer_certificate(as_cryptography=True)
    return certificate


def answer(link: FakeLink, request: Request, days: int) -> None:
    wanted = judge(request)
    renewed = issue_again(CA, wanted.peer.certificate, wanted.key, wall=NOW, days=days)
    link.session.renewed(renewed.public_bytes(Encoding.PEM).decode())
    link.send()


def days_of(link: FakeLink) -> int:
    return round((shown(link).not_valid_after_utc - NOW) / timedelta(days=1))


def replaced(link: FakeLink) -> None:
    """What a server does with the session of an instance that has come again."""
    link.session.goodbye("replaced", "the same client instance has come again")
    link.send()
    link.transport.loseConnection()


@pytest_twisted.ensureDeferred
async def test_the_new_link_takes_the_place_of_the_old_one_and_visitors_go_on(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    lane = one.old.lanes[0]
    lane.take(one.old, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections and world.origin.connections[0].octets)
    world.origin.connections[0].send(b"S")
    await until(reactor, lambda: lane.answer)
    await one.renew()
    new = await one.come()
    assert (days_of(one.old), days_of(new)) == (365, 500)
    assert new.instance == one.old.instance
    assert not one.old.ended
    replaced(one.old)
    assert await joined(one.server) is new
    await until(reactor, lambda: one.whole(new), "one link")
    world.origin.connections[0].send(b"more")
    await until(reactor, lambda: lane.answer.endswith(b"Smore"))
    assert len(one.server.links) == 2
    assert len(world.log.holding("joined server s1")) == 2
    assert not world.log.holding("left server")


@pytest_twisted.ensureDeferred
async def test_the_old_link_is_lost_before_the_new_one_is_up(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    request = await one.asked()
    one.server.hangs_up = True
    connections = one.server.connections
    answer(one.old, request, 500)
    await until(reactor, lambda: one.server.connections > connections)
    assert len(one.client._successors.coming) == 1
    assert one.client.joined, "it goes on"
    one.old.cut()
    await until(reactor, lambda: not one.client.joined and not one.client._successors.coming)
    one.server.hangs_up = False
    new = await joined(one.server)
    assert days_of(new) == 500
    await until(reactor, lambda: one.whole(new), "one link")


@pytest_twisted.ensureDeferred
async def test_the_server_cannot_be_reached_meanwhile(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    request = await one.asked()
    one.server.hangs_up = True
    connections = one.server.connections
    answer(one.old, request, 500)
    await until(reactor, lambda: one.server.connections > connections + 3, "some attempts")
    assert one.client.joined
    assert not one.old.ended
    one.server.hangs_up = False
    new = await one.come()
    replaced(one.old)
    await joined(one.server)
    await until(reactor, lambda: one.whole(new), "one link")
    assert len(world.log.holding("cannot join")) == 1


@pytest_twisted.ensureDeferred
async def test_the_next_renewal_is_not_asked_for_where_the_older_certificate_was_shown(
    world: World,  # noqa: F811
) -> None:
    one = await Renewing.begin(world)
    request = await one.asked()
    one.server.hangs_up = True
    connections = one.server.connections
    answer(one.old, request, 370)  # on that day it is to be renewed at once
    await until(reactor, lambda: one.server.connections > connections)
    await deferLater(reactor, 0.05)
    assert len(requests(one.old)) == 1, "the server would look for the signature of the key that it was shown"
    assert one.client.joined


@pytest_twisted.ensureDeferred
async def test_it_is_renewed_again_while_the_new_link_is_dialled(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    one.server.hangs_up = True
    connections = one.server.connections
    one.take(370)
    await until(reactor, lambda: one.server.connections > connections)
    one.take(500)
    assert len(one.client._successors.coming) == 1
    one.server.hangs_up = False
    new = await one.come()
    replaced(one.old)
    await joined(one.server)
    assert days_of(new) == 500
    await until(reactor, lambda: one.whole(new), "one link")


@pytest_twisted.ensureDeferred
async def test_it_is_renewed_again_between_the_hello_and_the_welcome(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    one.server.withholds = True
    one.take(370)
    second = await one.come()
    assert days_of(second) == 370
    one.take(500)
    replaced(one.old)
    await until(reactor, lambda: one.old.ended)
    one.server.withholds = False
    second.send()
    third = await one.come(3)
    replaced(second)
    assert await joined(one.server) is third
    assert days_of(third) == 500
    await until(reactor, lambda: one.whole(third), "one link")
    assert len(one.server.links) == 3


@pytest_twisted.ensureDeferred
async def test_the_new_link_breaks_before_its_welcome(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    one.server.withholds = True
    one.take(500)
    second = await one.come()
    second.cut()
    await until(reactor, lambda: second.ended)
    assert one.client.joined, "the server had not read the hello"
    third = await one.come(3)
    replaced(one.old)
    await until(reactor, lambda: one.old.ended)
    one.server.withholds = False
    third.send()
    assert await joined(one.server) is third
    await until(reactor, lambda: one.whole(third), "one link")
    assert not world.log.holding("left server")


@pytest_twisted.ensureDeferred
async def test_both_break_before_the_welcome_and_the_server_is_gone_for_good(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    one.server.withholds = True
    one.take(500)
    second = await one.come()
    replaced(one.old)
    await until(reactor, lambda: one.old.ended and not one.client.joined)
    (address,) = one.client.links
    assert one.client._joiner.is_linked(address), "its place is taken"
    await one.server.stop()
    await until(reactor, lambda: second.ended and not one.client._joiner.is_linked(address))
    assert list(one.client.links) == [address], "dialled again"
    assert not one.client._successors.retiring


@pytest_twisted.ensureDeferred
async def test_another_server_answers_at_the_address(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    other = issued("s2")
    one.server.shows(other)
    connections = one.server.connections
    one.take(500)
    await until(reactor, lambda: one.server.connections > connections + 1, "two attempts")
    assert not any(link.instance for link in one.server.links[1:]), "it was told nothing"
    assert one.client.joined
    one.old.cut()
    one.server.says_it_is = "s2"
    await until(reactor, lambda: "s2" in one.client._claims)
    new = await joined(one.server)
    await until(reactor, lambda: one.whole(new) and world.log.holding("joined server s2"), "one link")
    assert len(world.log.holding("joined server s2")) == 1


@pytest_twisted.ensureDeferred
async def test_a_drain_meanwhile(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    one.server.hangs_up = True
    connections = one.server.connections
    one.take(500)
    await until(reactor, lambda: one.server.connections > connections)
    lane = one.old.lanes[0]
    lane.take(one.old, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections)
    over: list[None] = []
    one.client.drain().addCallback(over.append)
    assert not one.client._successors.coming
    await until(reactor, lambda: ClientDraining() in one.old.events)
    one.server.hangs_up = False
    one.take(600)
    await deferLater(reactor, 0.05)
    assert not one.old.ended
    assert not over
    assert [link for link in one.server.links if link.instance] == [one.old], "nobody new comes"
    transport: Any = world.origin.connections[0].transport
    transport.abortConnection()
    await until(reactor, lambda: over)


@pytest_twisted.ensureDeferred
async def test_a_drain_between_the_hello_and_the_welcome(world: World) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    lane = one.old.lanes[0]
    lane.take(one.old, visitor(), b"ClientHello")
    await until(reactor, lambda: world.origin.connections)
    one.server.withholds = True
    one.take(500)
    second = await one.come()
    over: list[None] = []
    one.client.drain().addCallback(over.append)
    await until(reactor, lambda: second.ended and ClientDraining() in one.old.events)
    assert not one.old.ended
    assert not over
    transport: Any = world.origin.connections[0].transport
    transport.abortConnection()
    await until(reactor, lambda: over)


@pytest.mark.parametrize("is_dialling", [True, False])
@pytest_twisted.ensureDeferred
async def test_stopping_meanwhile_leaves_nothing_behind(world: World, is_dialling: bool) -> None:  # noqa: F811
    one = await Renewing.begin(world)
    one.server.withholds = not is_dialling
    one.server.hangs_up = is_dialling
    connections = one.server.connections
    one.take(500)
    await until(reactor, lambda: one.server.connections > connections)
    if not is_dialling:
        await one.come()
    await maybeDeferred(one.client.stopService)
    await until(reactor, lambda: all(link.ended for link in one.server.links))
    connections = one.server.connections
    await deferLater(reactor, 0.05)
    assert one.server.connections == connections
    assert not one.client._joined
    assert not one.client._claims
    assert not one.client._successors.retiring
    assert not one.client._successors.coming
    assert not one.client._stopping
