"""What becomes of a visitor: counted once, told to the gate once, said once."""

from __future__ import annotations

import errno

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger
from zope.interface import provider

from appliance.ingress.accessline import AccessLine
from appliance.ingress.clienthello import ClientHello
from appliance.ingress.limits import Limits, Over
from appliance.service.fewlines import FewLines
from appliance.service.relay import Ended
from appliance.service.server.gate import Gate
from appliance.service.server.ledger import Ledger
from appliance.service.server.visit import Visit
from tests.service.turning import tcp_pair

SOURCE = ("192.0.2.1", 50000)
NAME = "*.example.com"
HOST = "www.example.com"


class Ground:
    def __init__(self, name_open: int = 0) -> None:
        self.clock = Clock()
        complaints = FewLines(self.clock, Logger(observer=provider(ILogObserver)(lambda event: None)))
        self.gate = Gate(self.clock, Limits(), linked=lambda address: False, complaints=complaints)
        self.said: list[AccessLine] = []
        self.ledger = Ledger(
            self.clock, lambda: 99.5, self.gate, name_open=name_open, say=self.said.append
        )

    def visit(self) -> Visit:
        near, far = tcp_pair()
        near.close()
        with far:
            hello = ClientHello(HOST, (), True, octets=b"hello", rest=b"")
            visit = Visit(far, SOURCE, HOST, hello, b"id")
        self.gate.came(SOURCE[0])
        return visit


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "ended"),
        (OSError(errno.ECONNRESET, ""), "reset"),
        (OSError(errno.EPIPE, ""), "reset"),
        (OSError(errno.ETIMEDOUT, ""), "timed_out"),
        (OSError(errno.ECONNABORTED, ""), "cut"),
        (OSError("no number"), "failed"),
    ],
)
def test_joined_and_gone(error: OSError | None, how: str) -> None:
    ground = Ground()
    visit = ground.visit()
    assert ground.ledger.came(visit, NAME) is None
    ground.clock.advance(1)
    left = ground.ledger.joined(visit, "home")
    (row,) = ground.ledger.status()
    assert (row["open"], row["joined"], ground.gate.inside) == (1, 1, 1)
    ground.clock.advance(2)
    left(Ended(7, 30, error))
    assert ground.said == [AccessLine(99.5, HOST, SOURCE, "home", 12, 30, 3.0, how, b"id")]
    (row,) = ground.ledger.status()
    assert row == {
        "name": NAME,
        "client": "home",
        "open": 0,
        "joined": 1,
        "octets_in": 12,
        "octets_out": 30,
        "seconds": 3.0,
        "durations": [0, 0, 0, 1, 0, 0, 0, 0],
        "ends": {how: 1},
    }
    assert ground.gate.inside == 0


def test_refused() -> None:
    ground = Ground()
    visit = ground.visit()
    ground.ledger.came(visit, "")
    ground.clock.advance(5)
    ground.ledger.refused(visit, "never_known")
    assert ground.said == [AccessLine(99.5, HOST, SOURCE, "", 0, 0, 5.0, "never_known", b"id")]
    assert ground.gate.inside == 0
    ground.ledger.unclear("bad_hello")
    (row,) = ground.ledger.status()
    assert (row["name"], row["ends"]) == ("", {"never_known": 1, "bad_hello": 1})
    assert len(ground.said) == 1


def test_a_name_has_only_so_many_whichever_way_they_leave() -> None:
    ground = Ground(name_open=2)
    one, two, three = (ground.visit() for _ in range(3))
    assert [ground.ledger.came(visit, NAME) for visit in (one, two, three)] == [None, None, Over.NAME_OPEN]
    ground.ledger.refused(three, "name_open")
    ground.ledger.joined(one, "home")(Ended(0, 0, None))
    four, five = ground.visit(), ground.visit()
    assert [ground.ledger.came(visit, NAME) for visit in (four, five)] == [None, Over.NAME_OPEN]
    assert ground.gate.refused[Over.NAME_OPEN] == 2
    for visit in (two, four, five):
        ground.ledger.refused(visit, "left")
    assert ground.gate.inside == 0
    assert not ground.ledger._of_name


def test_strangers_names_share_no_limit() -> None:
    ground = Ground(name_open=1)
    assert [ground.ledger.came(ground.visit(), "") for _ in range(3)] == [None] * 3


def test_without_an_access_log() -> None:
    ground = Ground()
    ledger = Ledger(ground.clock, lambda: 0.0, ground.gate)
    for _ in range(2):
        ledger.came(visit := ground.visit(), NAME)
        ledger.joined(visit, "home")(Ended(0, 0, None))
    ledger.came(visit := ground.visit(), NAME)
    ledger.refused(visit, "left")
    assert ground.gate.inside == 0
