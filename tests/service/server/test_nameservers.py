"""The NS set of a zone, asked of a nameserver of ours and of one that knows nothing; over real sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore

from appliance.dns.responder import Responder
from appliance.service.nameserver.udp import UdpNameserver
from appliance.service.server import nameservers
from appliance.service.server.nameservers import Nameservers
from tests.dns.asking import zone

HEAD = """\
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 86400 300
@ NS ns1
@ NS ns2
@ NS ns.elsewhere.test.
@ NS nowhere.elsewhere.test.
ns1 A 192.0.2.1
ns1 AAAA 2001:db8::1
ns2 A 192.0.2.2
"""
EXPECTED = {
    "ns1.demo.test": ("192.0.2.1", "2001:db8::1"),
    "ns2.demo.test": ("192.0.2.2",),
    "ns.elsewhere.test": ("198.51.100.7",),
    "nowhere.elsewhere.test": (),
}


class Resolver:
    """In the place of the system's."""

    def resolveHostName(self, receiver: Any, name: str) -> None:
        receiver.resolutionBegan(None)
        if name == "ns.elsewhere.test":
            receiver.addressResolved(IPv4Address("TCP", "198.51.100.7", 0))
        receiver.resolutionComplete()


class Reactor:
    """The real one with another resolver."""

    nameResolver = Resolver()

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def reactor() -> IReactorCore:
    from twisted.internet import reactor

    return reactor


@pytest.fixture
def at(reactor: Any) -> Iterator[dict[str, tuple[str, int]]]:
    """Where one that serves the zone is, one that does not, and nobody."""
    serving = UdpNameserver(reactor, Responder([zone("", "demo.test", head=HEAD)]), "127.0.0.1", 0)
    empty = UdpNameserver(reactor, Responder(), "127.0.0.1", 0)
    gone = UdpNameserver(reactor, Responder(), "127.0.0.1", 0)
    for one in (serving, empty, gone):
        one.startService()
    gone.stopService()
    yield {
        name: ("127.0.0.1", one.port)
        for name, one in (("serving", serving), ("empty", empty), ("gone", gone))
    }
    serving.stopService()
    empty.stopService()


@pytest_twisted.ensureDeferred
async def test_addresses_of_every_nameserver(reactor: Any, at: dict[str, tuple[str, int]]) -> None:
    found: Deferred[Mapping[str, tuple[str, ...]]] = Deferred()
    asking = Nameservers(
        Reactor(reactor),
        "demo.test",
        lambda: [at["gone"], at["empty"], at["serving"]],
        found.callback,
    )
    asking.startService()
    assert await found == EXPECTED
    asking.stopService()


@pytest_twisted.ensureDeferred
async def test_a_look_up_that_fails_tells_nothing_and_comes_again(
    reactor: Any, at: dict[str, tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nameservers, "FAILED_AGAIN_SECONDS", 0.01)
    found: Deferred[Mapping[str, tuple[str, ...]]] = Deferred()
    places = [[at["empty"]], [], [at["gone"]], [at["serving"]]]
    asking = Nameservers(Reactor(reactor), "demo.test", lambda: places.pop(0), found.callback)
    asking.startService()
    assert await found == EXPECTED
    assert places == []
    asking.stopService()


@pytest_twisted.ensureDeferred
async def test_it_ends_in_the_middle(reactor: Any, at: dict[str, tuple[str, int]]) -> None:
    asking = Nameservers(Reactor(reactor), "demo.test", lambda: [at["serving"]], lambda _: None)
    asking.startService()
    asking.stopService()
    later: Deferred[None] = Deferred()
    reactor.callLater(0.05, later.callback, None)
    await later
