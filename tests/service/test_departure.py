"""Who is told when an appliance leaves, and when it is over: on a clock, with a real Watches."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.task import Clock

from appliance.fleet.draining import LAST_SECONDS
from appliance.service.departure import Departure
from appliance.service.server.tunnelserver import TunnelServer
from appliance.service.server.watches import Watches
from appliance.tunnel.discovery import ServerAddress
from tests.service.server.test_watches import Watching
from tests.tunnel.authority import CA
from tests.tunnel.lists import KeptList


class Server:
    """A tunnel server with so many visitors."""

    def __init__(self) -> None:
        self.visitors = 0
        self.drained = 0

    def drain(self) -> None:
        self.drained += 1

    def visitors_of_now(self) -> Any:
        return lambda: self.visitors


class Leaving:
    def __init__(self, *, finish_seconds: float = 30) -> None:
        self.clock = Clock()
        self.server = Server()
        self.watches = Watches(
            self.clock,
            server_id="s1",
            boot="b1",
            addresses=[ServerAddress("192.0.2.1")],
            revocations=KeptList(CA),
        )
        server = cast(TunnelServer, self.server)
        self.departure = Departure(self.clock, self.watches, server, finish_seconds=finish_seconds)
        self.over: list[float] = []

    def watch(self) -> Watching:
        watching = Watching(self.watches, self.clock)
        watching.turn()
        return watching

    def begin(self) -> None:
        self.departure.begin().addCallback(lambda _: self.over.append(self.clock.seconds()))

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)


def test_nobody_watches_and_nobody_visits() -> None:
    leaving = Leaving()
    leaving.begin()
    assert leaving.over == [0.0]
    assert leaving.server.drained == 1
    leaving.begin()
    assert leaving.over == [0.0, 0.0]
    assert leaving.server.drained == 1
    assert not leaving.clock.getDelayedCalls()


def test_an_appliance_without_a_server_has_nothing_to_drain() -> None:
    clock, over = Clock(), list[None]()
    Departure(clock, None, None, finish_seconds=0).begin().addCallback(over.append)
    assert over == [None]


def test_taken_out_it_serves_on_until_the_caches_know_and_then_its_last_visitors() -> None:
    leaving = Leaving()
    watching = leaving.watch()
    leaving.server.visitors = 1
    leaving.begin()
    assert leaving.departure.status()["draining"]["state"] == "telling the nameservers"
    watching.turn()
    watching.observer.withdrawn(held=False)
    watching.turn()
    assert leaving.departure.status() == {
        "draining": {
            "state": "out of the DNS, and serving whoever still comes",
            "seconds": LAST_SECONDS,
            "visitors": 0,
        }
    }
    watching.lose()
    leaving.run(LAST_SECONDS)
    assert leaving.departure.status()["draining"]["visitors"] == 1
    leaving.run(5)
    assert leaving.over == []
    leaving.server.visitors = 0
    leaving.run(0.15)
    assert leaving.over == [pytest.approx(LAST_SECONDS + 5.1, abs=0.1)]


def test_the_only_server_waits_for_its_visitors_up_to_a_limit() -> None:
    leaving = Leaving(finish_seconds=2)
    watching = leaving.watch()
    leaving.server.visitors = 1
    leaving.begin()
    watching.turn()
    watching.observer.withdrawn(held=True)
    watching.turn()
    leaving.run(2.1)
    assert leaving.over == [pytest.approx(2, abs=0.1)]
    watching.lose()


def test_it_can_be_stopped_at_any_time() -> None:
    leaving = Leaving()
    watching = leaving.watch()
    leaving.server.visitors = 1
    leaving.begin()
    leaving.departure.stop()
    watching.lose()  # as the watches are stopped behind it
    assert not leaving.clock.getDelayedCalls()
    assert leaving.over == []
