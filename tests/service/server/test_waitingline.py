"""The line of links: in order, at the rate of the turnstile, without those who left."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from appliance.service.readiness import ENDING, Readiness
from appliance.service.server import waitingline
from appliance.service.server.waitingline import WaitingLine
from appliance.tunnel.herd import PAUSE_SECONDS


class Doors(Readiness):
    """Remembers who watches a socket."""

    def __init__(self) -> None:
        self.watching: dict[socket.socket, object] = {}
        self.looks = 0

    def look(self) -> None:
        self.looks += 1

    def change(self, wire: object, ready: object) -> None:
        assert isinstance(wire, socket.socket)
        self.watching[wire] = ready

    def forget(self, wire: object) -> None:
        assert isinstance(wire, socket.socket)
        self.watching.pop(wire, None)


class Line:
    def __init__(self) -> None:
        self.clock = Clock()
        self.doors = Doors()
        self.adopted: list[tuple[float, int]] = []
        self.line = WaitingLine(self.clock, self.doors, self._adopt)
        self.made: list[socket.socket] = []
        self.breaks: set[int] = set()

    def _adopt(self, sock: socket.socket, octets: bytes) -> None:
        self.doors.forget(sock)
        if int(octets) in self.breaks:
            raise RuntimeError("a bug")
        self.adopted.append((self.clock.seconds(), int(octets)))

    def come(self, *numbers: int, source: str = "192.0.2.1") -> None:
        for number in numbers:
            sock = socket.socket()
            self.made.append(sock)
            self.line.join(sock, b"%d" % number, source)


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.line.stop()
    assert not made.clock.getDelayedCalls()
    for sock in made.made:
        sock.close()


def test_each_in_his_turn(line: Line) -> None:
    line.come(*range(25))
    assert not line.adopted  # each has a turn of the reactor of its own
    line.clock.advance(0)
    assert line.adopted == [(0.0, 0)]
    assert line.doors.looks == 1  # visitors first
    line.clock.advance(PAUSE_SECONDS / 2)
    assert len(line.adopted) == 1
    line.clock.pump([PAUSE_SECONDS / 4] * 4 * 24)
    assert [number for _, number in line.adopted] == list(range(25))
    line.clock.advance(PAUSE_SECONDS)
    line.come(25)
    line.clock.advance(0)
    assert line.adopted[-1] == (line.clock.seconds(), 25)


def test_one_that_breaks_does_not_stop_the_line(line: Line) -> None:
    line.breaks.add(1)
    line.come(*range(3))
    line.clock.advance(0)
    with pytest.raises(RuntimeError):
        line.clock.advance(PAUSE_SECONDS)
    line.clock.pump([0, PAUSE_SECONDS])
    assert [number for _, number in line.adopted] == [0, 2]


def test_who_leaves_takes_nobodys_turn(line: Line) -> None:
    line.come(*range(4))
    line.clock.advance(0)
    ready = line.doors.watching[line.made[2]]
    ready(ENDING)  # type: ignore[operator]
    assert len(line.line) == 2
    line.clock.pump([PAUSE_SECONDS] * 2)
    assert [number for _, number in line.adopted] == [0, 1, 3]
    assert line.made[2].fileno() < 0


def test_a_flood_waits_behind_itself(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waitingline, "WAITING_AT_MOST", 5)
    line.come(*range(5), source="192.0.2.66")
    line.come(7, 8, source="192.0.2.1")
    assert [sock.fileno() < 0 for sock in line.made] == [False] * 3 + [True] * 2 + [False] * 2
    line.clock.pump([0, *[PAUSE_SECONDS] * 5])
    assert [number for _, number in line.adopted] == [0, 7, 1, 8, 2]


def test_a_line_that_is_too_long_sends_away(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waitingline, "WAITING_AT_MOST", 2)
    line.come(0)
    line.clock.advance(0)
    line.come(1, 2, 3)
    assert line.made[3].fileno() < 0
    assert line.made[2].fileno() >= 0
    line.line.stop()
    assert {sock.fileno() for sock in line.made[1:]} == {-1}
    line.clock.advance(1)
    assert line.adopted == [(0.0, 0)]
