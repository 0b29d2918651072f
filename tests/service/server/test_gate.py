"""Who may still come in: by source, by descriptor, in all; and what the others are told."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger
from zope.interface import provider

from appliance.ingress.limits import Limits, Over
from appliance.service.fewlines import FewLines
from appliance.service.server.gate import Gate, Port, source_of
from tests.service.turning import tcp_pair

HOME, OTHER = "192.0.2.1", "198.51.100.1"


@dataclass
class Ground:
    limits: Limits
    descriptors: int = 1000
    linked: set[str] = field(default_factory=set)
    lines: list[LogEvent] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        log = Logger(observer=provider(ILogObserver)(lambda event: self.lines.append(event)))
        self.gate = Gate(
            self.clock,
            self.limits,
            linked=self.linked.__contains__,
            complaints=FewLines(self.clock, log),
            descriptors=lambda: self.descriptors,
        )

    def come(self, address: str, descriptor: int = 50) -> Over | None:
        return self.gate.take(address, descriptor)


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", bytes.fromhex("20010db800010002")),
        ("2001:db8:1:2::", bytes.fromhex("20010db800010002")),
        ("2001:db8:1:3::", bytes.fromhex("20010db800010003")),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_sources(address: str, source: str | bytes) -> None:
    assert source_of(address) == source


def test_a_source_that_is_full_keeps_nobody_else_out() -> None:
    ground = Ground(Limits(source_open=2, source_new=0))
    assert [ground.come(HOME) for _ in range(3)] == [None, None, Over.SOURCE_OPEN]
    assert ground.come(OTHER) is None
    ground.gate.went(HOME)
    assert ground.come(HOME) is None
    assert ground.gate.inside == 3


def test_a_site_by_ipv6_is_one_source() -> None:
    ground = Ground(Limits(source_open=1, source_new=0))
    assert ground.come("2001:db8::1") is None
    assert ground.come("2001:db8::2") is Over.SOURCE_OPEN
    assert ground.come("2001:db8:0:1::2") is None


def test_the_second_passes() -> None:
    ground = Ground(Limits(source_open=0, source_new=1))
    assert [ground.come(HOME), ground.come(HOME)] == [None, Over.SOURCE_NEW]
    ground.clock.advance(1)
    assert ground.come(HOME) is None


def test_exempt_sources() -> None:
    networks = (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32"))
    ground = Ground(Limits(source_open=1, source_new=1, exempt=networks))
    for address in (HOME, "2001:db8::1"):
        assert [ground.come(address) for _ in range(5)] == [None] * 5
    assert [ground.come(address) for address in (OTHER, OTHER)] == [None, Over.SOURCE_OPEN]
    assert [ground.come("fe80::1%a"), ground.come("fe80::1%a")] == [None, Over.SOURCE_OPEN]


def test_this_machine_is_exempt_unless_it_is_said() -> None:
    ground = Ground(Limits(source_open=1))
    assert [ground.come("127.0.0.9") for _ in range(3)] == [None] * 3
    assert [ground.come("::1") for _ in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("descriptors", "visitors", "lanes"),
    [(64, 48, 56), (1000, 900, 950), (1 << 20, (1 << 20) - 4096, (1 << 20) - 2048)],
)
def test_a_reserve_of_descriptors_is_kept(descriptors: int, visitors: int, lanes: int) -> None:
    ground = Ground(Limits(), descriptors)
    assert ground.come(HOME, visitors - 1) is None
    assert ground.come(HOME, visitors) is Over.FULL
    assert ground.gate.lanes_below == lanes
    assert ground.gate.silent_at_most == visitors // 2


def test_more_descriptors_than_when_it_was_made() -> None:
    """The limit is raised, and the user changed, between making a service and starting it."""
    ground = Ground(Limits(), 100)
    assert ground.come(HOME, 200) is Over.FULL
    ground.descriptors = 1000
    ground.gate.measure()
    assert ground.come(HOME, 200) is None


def test_full_in_all() -> None:
    ground = Ground(Limits(all_open=2))
    assert [ground.come(HOME), ground.come(OTHER), ground.come(HOME)] == [None, None, Over.FULL]
    ground.gate.went(OTHER)
    assert ground.come(HOME) is None


def test_a_flood_when_it_is_full_is_not_read() -> None:
    ground = Ground(Limits(source_new=2, source_open=0, all_open=1))
    assert ground.come(OTHER) is None
    assert [ground.come(HOME) for _ in range(4)] == [Over.FULL, Over.FULL, Over.SOURCE_NEW, Over.SOURCE_NEW]
    assert (ground.gate.inside, ground.gate.status()["sources"]) == (1, 1)


def test_who_may_be_ours_is_read() -> None:
    ground = Ground(Limits())
    ground.linked.add(HOME)
    assert ground.gate.may_be_ours(OTHER, Over.FULL)
    assert ground.gate.may_be_ours(HOME, Over.SOURCE_NEW)
    assert not ground.gate.may_be_ours(OTHER, Over.SOURCE_NEW)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tcp_pair()
    with near, far:
        near.setblocking(True)
        near.settimeout(5)
        yield near, far


@pytest.mark.parametrize(
    ("port", "told"), [(Port.TLS, b"\x15\x03\x03\0\2\2\x50"), (Port.HTTP, b"HTTP/1.1 503 ")]
)
def test_who_is_turned_away_is_told(
    pair: tuple[socket.socket, socket.socket], port: Port, told: bytes
) -> None:
    """And what he has sent already does not turn the answer into a reset."""
    near, far = pair
    near.send(b"a hello")
    ground = Ground(Limits())
    ground.gate.turn_away(far, port, Over.SOURCE_NEW, HOME)
    got = b""
    while octets := near.recv(4096):
        got += octets
    assert got.startswith(told)
    assert far.fileno() == -1


def test_one_line_a_source_and_half_a_minute() -> None:
    ground = Ground(Limits())
    for _ in range(100):
        ground.gate.turn_away(socket.socket(), Port.TLS, Over.SOURCE_OPEN, HOME)
        ground.gate.turn_away(socket.socket(), Port.TLS, Over.FULL, HOME)
    assert [line["source"] for line in ground.lines] == [HOME, "entry"]
    ground.clock.advance(31)
    ground.gate.turn_away(socket.socket(), Port.TLS, Over.SOURCE_OPEN, HOME)
    assert "99 more lines" in ground.lines[-1]["text"]
    assert ground.gate.status() == {
        "open": 0,
        "sources": 0,
        "refused_source_open": 101,
        "refused_source_new": 0,
        "refused_name_open": 0,
        "refused_full": 100,
    }
