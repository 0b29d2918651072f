"""Stock secondaries behind an appliance: NSD, Knot and BIND follow it, and dig copies its zone."""

from __future__ import annotations

import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from tests.end_to_end.programs import free_port, need, wait_for
from tests.end_to_end.secondaries import ALL, KEY_NAME, Bind, Knot, Nsd, Primary, Secondary, records, serial
from tests.end_to_end.site import ZONE

FOLLOW_SECONDS = 20.0
LOAD_SECONDS = 120.0
PADDING = "".join(f"padding-{number} A 192.0.2.1\n" for number in range(300))
"""So that a change is less than half of the zone."""


class Set:
    """A primary and its secondaries."""

    def __init__(self, directory: Path) -> None:
        self.secondaries: list[Secondary] = [made(directory / made.__name__.lower()) for made in ALL]
        self.primary = Primary(directory / "primary", [one.port for one in self.secondaries], lines=PADDING)

    def start(self) -> None:
        self.primary.start()
        wait_for(lambda: "superprotocol" in str(self.primary.records()), 10, "live records")
        for one in self.secondaries:
            one.configure(self.primary)
            one.start()
        for one in self.secondaries:
            one.follows(self.primary, FOLLOW_SECONDS)

    def kill(self) -> None:
        for one in self.secondaries:
            one.kill()
        self.primary.kill()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Set]:
    found = Set(tmp_path)
    try:
        found.start()
        yield found
    finally:
        found.kill()


def _equal(running: Set) -> None:
    """Serials and contents of all are the same."""
    for one in running.secondaries:
        one.follows(running.primary, FOLLOW_SECONDS)
    ours = running.primary.records()
    assert any("superprotocol" in text for _, _, text in ours), "live records are in it"
    for one in running.secondaries:
        theirs = records(one.port)
        assert theirs == ours, (one.program, theirs ^ ours)


@pytest.mark.parametrize("changes", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_they_follow_live_changes_by_ixfr(running: Set, changes: int) -> None:
    _equal(running)
    whole = running.primary.transfers()["AXFR"]  # ours among them
    bind = next(one for one in running.secondaries if isinstance(one, Bind))
    for number in range(changes):
        if number == changes // 2:
            bind.stop()
        if number == changes // 2 + 2:
            bind.start()
        running.primary.live_change(number)
    _equal(running)
    found = running.primary.transfers()
    print(found, running.primary.ask("status")["notices"])
    assert found["AXFR"] == whole + 1, "the one that compared"
    assert found.get("AXFR instead of IXFR", 0) == 0
    assert found["IXFR"] >= changes
    told = running.primary.ask("status")["secondaries"]
    wait_for(
        lambda: (
            {one["serial"] for one in running.primary.ask("status")["secondaries"]}
            == {running.primary.serial()}
        ),
        FOLLOW_SECONDS,
        f"answers to NOTIFY by all of {told}",
    )


def test_a_reload_is_told_and_followed(running: Set) -> None:
    running.primary.reload("from-a-reload A 192.0.2.77")
    _equal(running)
    assert ("from-a-reload.site.test. 1", 300, "192.0.2.77") in running.primary.records()


def test_a_secondary_that_lost_everything_gets_the_whole_zone(running: Set) -> None:
    nsd = next(one for one in running.secondaries if isinstance(one, Nsd))
    nsd.stop()
    for path in (*nsd.directory.glob("xfrd.state*"), *nsd.directory.glob("*.zone")):
        path.unlink()
    running.primary.live_change(0)
    nsd.start()
    _equal(running)


# A transfer that is cut


class CuttingProxy:
    """Between a secondary and its primary: UDP passes, and of each TCP connection `allowed` octets of
    what the primary says (None: all)."""

    def __init__(self, port: int, allowed: int | None) -> None:
        self._to = ("127.0.0.1", port)
        self.allowed = allowed
        self.cuts = 0
        self.port = free_port("both")
        self._closing = ExitStack()
        self._tcp = self._closing.enter_context(socket.create_server(("127.0.0.1", self.port)))
        self._udp = self._closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind(("127.0.0.1", self.port))
        for target in (self._datagrams, self._accept):
            threading.Thread(target=target, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)
        self._closing.close()

    def _datagrams(self) -> None:
        with suppress(OSError):
            while True:
                query, source = self._udp.recvfrom(65535)
                if not query:
                    return
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                    asking.settimeout(2)
                    asking.sendto(query, self._to)
                    with suppress(TimeoutError):
                        self._udp.sendto(asking.recv(65535), source)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._tcp.accept()
                threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._to) as far, suppress(OSError):
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()
            left = self.allowed
            while octets := far.recv(65536):
                near.sendall(octets if left is None else octets[:left])
                if left is not None:
                    left -= len(octets)
                    if left <= 0:
                        self.cuts += 1
                        near.shutdown(socket.SHUT_RDWR)
                        return

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while octets := near.recv(65536):
                far.sendall(octets)
            far.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    "made", [Bind, pytest.param(Nsd, marks=pytest.mark.slow), pytest.param(Knot, marks=pytest.mark.slow)]
)
def test_a_cut_transfer_is_not_taken_for_a_whole_one(made: type[Secondary], tmp_path: Path) -> None:
    secondary = made(tmp_path / "secondary")
    lines = "".join(f"host-{number} A 192.0.2.1\n" for number in range(4000))
    primary = Primary(tmp_path / "primary", [secondary.port], lines=lines)
    proxy = CuttingProxy(primary.ports.dns, 40_000)
    try:
        primary.start()
        secondary.configure(primary, proxy.port)
        secondary.start()
        wait_for(lambda: proxy.cuts, FOLLOW_SECONDS, "a cut transfer")
        primary.reload("again A 192.0.2.9")  # told by NOTIFY: it tries again, in vain
        assert serial(secondary.port) is None, "it serves a part of the zone"
        proxy.allowed = None

        def follows() -> bool:
            if serial(secondary.port) == primary.serial():
                return True
            primary.ask("invite", names=[f"live-{time.monotonic_ns()}.{ZONE}"], client="again")
            time.sleep(1)
            return False

        wait_for(follows, 40, f"the whole zone at {secondary.program}")
        assert records(secondary.port) == primary.records()
    finally:
        secondary.kill()
        primary.kill()
        proxy.close()


# dig


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    primary = Primary(tmp_path / "primary", [], lines=PADDING)
    try:
        primary.start()
        yield primary
    finally:
        primary.kill()


def _dig(primary: Primary, *arguments: str, key: str | None = None) -> str:
    signing = ["-y", key] if key else []
    asked = [need("dig"), "@127.0.0.1", "-p", str(primary.ports.dns), "+tries=1", *signing, *arguments]
    return subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout


def test_dig(primary: Primary) -> None:
    good = f"hmac-sha256:{KEY_NAME}:{primary.secret}"
    text = _dig(primary, ZONE, "AXFR", key=good)
    assert text.count("\tSOA\t") == 2, text
    assert "padding-299.site.test." in text
    assert "XFR size: " in text
    assert "WARNING" not in text
    first = primary.serial()
    primary.live_change(0)
    for transport in ("+tcp", "+notcp"):
        text = _dig(primary, transport, ZONE, f"IXFR={first}", key=good)
        assert text.count("\tSOA\t") == 4, text
        assert "live-0.site.test." in text
        assert "padding" not in text
    text = _dig(primary, ZONE, f"IXFR={primary.serial()}", key=good)
    assert text.count("\tSOA\t") == 1
    text = _dig(primary, ZONE, f"IXFR={first - 100_000}", key=good)
    assert "padding-299.site.test." in text, "not in the journal: the whole zone"
    assert primary.transfers()["AXFR instead of IXFR"] == 1


def test_dig_without_the_right_key(primary: Primary) -> None:
    other = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IDEyMzQ="
    for key in (None, f"hmac-sha256:{KEY_NAME}:{other}", f"hmac-sha256:unknown:{primary.secret}"):
        for kind in ("AXFR", "IXFR=1"):
            text = _dig(primary, ZONE, kind, key=key)
            assert "padding" not in text
            assert "Transfer failed" in text or "NOTAUTH" in text, text
    assert not primary.transfers().get("AXFR")


def test_an_old_time(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    query = dns.message.make_query(ZONE, "AXFR")
    query.use_tsig(primary.keyring)
    long_ago = time.time() - 3600
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: long_ago)
        octets = query.to_wire()
    with socket.create_connection(("127.0.0.1", primary.ports.dns), timeout=5) as peer:
        peer.sendall(len(octets).to_bytes(2, "big") + octets)
        answer = peer.recv(65535)[2:]
    assert answer[3] & 0xF == dns.rcode.NOTAUTH
    assert b"\x00\x12\x00\x06" in answer, "BADTIME, with our time"


@pytest.mark.slow
def test_a_transfer_of_50000_records_stalls_nobody(tmp_path: Path) -> None:
    lines = "".join(f"host-{number} A 192.0.2.{number % 250}\n" for number in range(50_000))
    primary = Primary(tmp_path / "primary", [], lines=lines)
    try:
        primary.start(LOAD_SECONDS)
        idle = _latencies(primary, lambda: False, 2.0)
        transfers: list[subprocess.Popen[bytes]] = []
        good = f"hmac-sha256:{KEY_NAME}:{primary.secret}"
        asked = [need("dig"), "@127.0.0.1", "-p", str(primary.ports.dns), "-y", good, ZONE, "AXFR", "+noall"]
        began = time.monotonic()
        for _ in range(3):
            transfers.append(subprocess.Popen(asked, stdout=subprocess.DEVNULL))
        busy = _latencies(primary, lambda: all(one.poll() is not None for one in transfers), 30.0)
        took = time.monotonic() - began
        for one in transfers:
            assert one.wait(30) == 0
        assert primary.transfers()["AXFR"] == 3
        for name, found in (("idle", idle), ("three transfers", busy)):
            centiles = statistics.quantiles(found, n=100)
            print(f"{name}: p50 {centiles[49]:.2f} ms, p99 {centiles[98]:.2f} ms, max {max(found):.2f} ms")
        print(f"three transfers of 50,000 records took {took:.2f} s")
        assert statistics.quantiles(busy, n=100)[98] < 50
    finally:
        primary.kill()


def _latencies(primary: Primary, ended: Callable[[], bool], seconds: float) -> list[float]:
    """Milliseconds of queries over UDP, one after the other, until `ended` or for `seconds`."""
    found: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(5)
        asking.connect(("127.0.0.1", primary.ports.dns))
        end = time.monotonic() + seconds
        while not ended() and time.monotonic() < end:
            # Names in turn: identical answers are limited.
            query = dns.message.make_query(f"host-{len(found) % 40_000}.{ZONE}", "A").to_wire()
            began = time.monotonic()
            asking.send(query)
            asking.recv(4096)
            found.append((time.monotonic() - began) * 1000)
            time.sleep(0.001)
    return found
