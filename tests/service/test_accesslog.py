"""Lines that are taken at once and written by a thread; a file that is moved away; what cannot be written."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, Logger
from zope.interface import provider

from appliance.service import accesslog
from appliance.service.accesslog import AccessLog, CannotLog
from appliance.service.fewlines import FewLines


class Reactor:
    """Calls from threads wait for the test."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.calls.append(call)

    def seconds(self) -> float:
        return 0.0

    def run(self) -> None:
        while self.calls:
            self.calls.pop(0)()


class Ground:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.reactor = Reactor()
        self.lines: list[LogEvent] = []
        log = Logger(observer=provider(ILogObserver)(lambda event: self.lines.append(event)))
        self.log = AccessLog(self.reactor, path, FewLines(self.reactor, log))

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            self.reactor.run()
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError("not within 10 s")


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.setattr(accesslog, "_PAUSE_SECONDS", 0.001)
    made = Ground(tmp_path / "access.log")
    yield made
    if made.log.running:
        made.log.stopService()
    assert not [thread for thread in threading.enumerate() if thread.name == "access log"]


def test_lines_are_written_in_order_behind_what_is_there(ground: Ground) -> None:
    ground.path.write_bytes(b"before\n")
    ground.log.startService()
    expected = [b"%d\n" % number for number in range(2000)]
    for line in expected:
        ground.log.write(line)
    ground.until(lambda: ground.log.written == 2000)
    assert ground.path.read_bytes() == b"before\n" + b"".join(expected)
    assert ground.path.stat().st_mode & 0o777 == 0o644  # as it was


def test_a_new_file_is_not_for_everybody(ground: Ground) -> None:
    ground.log.startService()
    assert ground.path.stat().st_mode & 0o027 == 0


def test_what_waits_is_written_at_the_end(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "_PAUSE_SECONDS", 0.3)
    ground.log.startService()
    for _ in range(100):
        ground.log.write(b"x\n")
    ground.log.stopService()
    assert ground.path.read_bytes() == b"x\n" * 100


@pytest.mark.parametrize("anew", [False, True])
def test_a_file_that_was_moved_away_is_opened_anew(ground: Ground, anew: bool) -> None:
    """By logrotate, which may have made the new one."""
    ground.log.startService()
    ground.log.write(b"one\n")
    ground.until(lambda: ground.log.written == 1)
    moved = ground.path.with_suffix(".1")
    ground.path.rename(moved)
    if anew:
        ground.path.touch()
    ground.log.write(b"two\n")
    ground.until(lambda: ground.log.written == 2)
    assert (moved.read_bytes(), ground.path.read_bytes()) == (b"one\n", b"two\n")


def test_a_disk_that_stands_still_costs_lines_and_nobody_waits(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accesslog, "_LINES_AT_MOST", 10)
    still, begun = threading.Event(), threading.Event()
    real = os.write

    def write(file: int, octets: bytes) -> int:
        begun.set()
        still.wait(10)
        return real(file, octets)

    monkeypatch.setattr(os, "write", write)
    ground.log.startService()
    ground.log.write(b"first\n")
    assert begun.wait(10)
    for number in range(25):
        ground.log.write(b"%d\n" % number)
    assert ground.log.dropped == 15
    (line,) = ground.lines
    assert line["source"] == "access log"
    still.set()
    ground.until(lambda: ground.log.written == 11)
    assert ground.path.read_bytes() == b"first\n" + b"".join(b"%d\n" % number for number in range(10))


def test_a_full_disk_is_said_once_and_the_log_goes_on(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.log.startService()
    full = True
    real = os.write

    def write(file: int, octets: bytes) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return real(file, octets)

    monkeypatch.setattr(os, "write", write)
    for count in (1, 2):
        ground.log.write(b"lost\n")
        ground.until(lambda count=count: ground.log.dropped == count)  # type: ignore[misc]
    full = False
    ground.log.write(b"kept\n")
    ground.until(lambda: ground.log.written == 1)
    assert ground.path.read_bytes() == b"kept\n"
    (line,) = ground.lines
    assert "No space left on device" in line["text"]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    ground = Ground(tmp_path / "nowhere" / "access.log")
    with pytest.raises(CannotLog, match=r"nowhere/access\.log: cannot be opened: No such file"):
        ground.log.startService()
    ground.log.stopService()
