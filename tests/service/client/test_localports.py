"""Local ports of real connections on loopback."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.service.client import localports
from appliance.service.client.localports import DRAWS, FEW, LocalPorts

LOW, HIGH = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())


def is_supported() -> bool:
    with socket.socket() as sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, localports.IP_LOCAL_PORT_RANGE, struct.pack("=I", 0))
        return True
    return False


needs_the_option = pytest.mark.skipif(not is_supported(), reason="needs IP_LOCAL_PORT_RANGE (Linux 6.3)")


class Listener:
    """Somebody to connect to, and those that are connected."""

    def __init__(self, family: socket.AddressFamily, host: str) -> None:
        self.family = family
        self.socks = [socket.socket(family)]
        self.socks[0].bind((host, 0))
        self.socks[0].listen(64)
        self.address: tuple[str, int] = self.socks[0].getsockname()[:2]

    def port(self, ports: LocalPorts) -> int:
        sock = socket.socket(self.family)
        self.socks.append(sock)
        number = ports.connect(sock, self.address)
        if number:
            raise OSError(number, "no connection")
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["4", "6"])
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    try:
        made = Listener(*request.param)
    except OSError:
        pytest.skip("no such address here")
    yield made
    for sock in made.socks:
        sock.close()


def drawing(monkeypatch: pytest.MonkeyPatch, *starts: int) -> list[int]:
    """What is drawn, in this order, and then the last again and again; how it is seen."""
    drawn: list[int] = []

    def choice(among: range) -> int:
        start = starts[min(len(drawn), len(starts) - 1)]
        assert start in among
        drawn.append(start)
        return start

    monkeypatch.setattr(random, "choice", choice)
    return drawn


@needs_the_option
@pytest.mark.parametrize("start", [LOW, LOW + 1001, HIGH - FEW + 1])
def test_one_of_the_few(listener: Listener, monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    drawing(monkeypatch, start)
    ports = LocalPorts()
    assert all(start <= listener.port(ports) < start + FEW for _ in range(8))


@needs_the_option
def test_others_are_drawn_when_the_few_are_taken(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localports, "FEW", 2)
    drawn = drawing(monkeypatch, LOW + 100, LOW + 100, LOW + 100, LOW + 200)
    ports = LocalPorts()
    got = [listener.port(ports) for _ in range(3)]
    assert sorted(got[:2]) == [LOW + 100, LOW + 101]
    assert got[2] in (LOW + 200, LOW + 201)
    assert drawn == [LOW + 100] * 3 + [LOW + 200]


@needs_the_option
def test_when_all_that_are_drawn_are_taken(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localports, "FEW", 1)
    drawn = drawing(monkeypatch, LOW + 100)
    ports = LocalPorts()
    assert listener.port(ports) == LOW + 100
    with pytest.raises(OSError) as none:  # noqa: PT011 - the number says it
        listener.port(ports)
    assert none.value.errno == errno.EADDRNOTAVAIL
    assert len(drawn) == 1 + DRAWS


class OldKernel(socket.socket):
    asked = 0

    def setsockopt(self, *args: object) -> None:
        OldKernel.asked += 1
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


def test_an_older_kernel_is_asked_once() -> None:
    listener = Listener(socket.AF_INET, "127.0.0.1")
    ports = LocalPorts()
    OldKernel.asked = 0
    for _ in range(3):
        old = OldKernel()
        listener.socks.append(old)
        assert ports.connect(old, listener.address) == 0
    assert OldKernel.asked == 1
    for sock in listener.socks:
        sock.close()


@pytest.mark.parametrize("text", ["", "what", f"1024 {1024 + FEW - 2}"])
def test_a_range_that_says_nothing_or_is_too_small(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text(text)
    monkeypatch.setattr(localports, "_RANGE", tmp_path / "range")
    listener = Listener(socket.AF_INET, "127.0.0.1")
    assert LOW <= listener.port(LocalPorts()) <= HIGH
    for sock in listener.socks:
        sock.close()
