"""Both ways of reading and answering datagrams do the same, over real sockets."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from appliance.service.nameserver.datagrams import (
    BATCH_DATAGRAMS,
    RECEIVE_OCTETS,
    Datagrams,
    ManyAtOnce,
    OneByOne,
    datagrams,
)

Made = Callable[[socket.socket, Counter[str]], Datagrams]


class Site:
    """A bound socket, what reads it, and visitors."""

    def __init__(self, made: Made, host: str) -> None:
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.counters: Counter[str] = Counter()
        self.bound = socket.socket(self.family, socket.SOCK_DGRAM)
        self.bound.setblocking(False)
        self.bound.bind((host, 0))
        self.datagrams = made(self.bound, self.counters)
        self.visitors = [self.visitor() for _ in range(3)]

    def visitor(self) -> socket.socket:
        visitor = socket.socket(self.family, socket.SOCK_DGRAM)
        visitor.connect(self.bound.getsockname())
        visitor.settimeout(5)
        return visitor

    def close(self) -> None:
        for each in (self.bound, *self.visitors):
            each.close()


@pytest.fixture(params=[ManyAtOnce, OneByOne])
def made(request: pytest.FixtureRequest) -> Made:
    chosen: Made = request.param
    return chosen


@pytest.fixture(params=["127.0.0.1", "::1"])
def site(made: Made, request: pytest.FixtureRequest) -> Iterator[Site]:
    site = Site(made, request.param)
    yield site
    site.close()


def test_the_cheap_way_works_here() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        assert isinstance(datagrams(bound, Counter()), ManyAtOnce)


def test_without_it_there_is_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        monkeypatch.setitem(__import__("sys").modules, "cffi", None)
        assert isinstance(datagrams(bound, Counter()), OneByOne)


def test_each_gets_his_answer(site: Site) -> None:
    host = site.bound.getsockname()[0]
    messages = [b"", b"one", bytes(range(256)) * 10]
    for visitor, message in zip(site.visitors, messages, strict=True):
        visitor.send(message)
    assert site.datagrams.receive() == [(message, host) for message in messages]
    assert [site.datagrams.address(at) for at in range(3)] == [
        visitor.getsockname() for visitor in site.visitors
    ]
    site.datagrams.send([b"to the first", b"x" * 1232, b"to the third"])
    assert [visitor.recv(4096) for visitor in site.visitors] == [
        b"to the first",
        b"x" * 1232,
        b"to the third",
    ]
    assert site.datagrams.receive() == []
    assert not site.counters


@pytest.mark.parametrize("silent", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_who_gets_none(site: Site, silent: tuple[int, ...]) -> None:
    for visitor in site.visitors:
        visitor.send(b"asked")
    assert len(site.datagrams.receive()) == 3
    site.datagrams.send([None if at in silent else bytes((at,)) * (at + 1) for at in range(3)])
    for visitor in site.visitors:
        visitor.send(b"again")
    site.datagrams.receive()
    site.datagrams.send([b"last"] * 3)
    for at, visitor in enumerate(site.visitors):
        assert visitor.recv(4096) == (b"last" if at in silent else bytes((at,)) * (at + 1))


def test_a_batch_is_bounded_and_in_order(site: Site) -> None:
    for number in range(BATCH_DATAGRAMS + 5):
        site.visitors[0].send(str(number).encode() * (number % 7))
    expected = [str(number).encode() * (number % 7) for number in range(BATCH_DATAGRAMS + 5)]
    first = [message for message, _ in site.datagrams.receive()]
    assert first == expected[:BATCH_DATAGRAMS]
    site.datagrams.send([message + b"!" for message in first])
    assert [message for message, _ in site.datagrams.receive()] == expected[BATCH_DATAGRAMS:]
    assert [site.visitors[0].recv(4096) for _ in first] == [message + b"!" for message in first]


def test_what_is_too_long_is_cut(site: Site) -> None:
    site.visitors[0].send(b"x" * (RECEIVE_OCTETS + 1))
    site.visitors[1].send(b"y")
    assert [len(message) for message, _ in site.datagrams.receive()] == [RECEIVE_OCTETS, 1]


def test_an_answer_to_who_is_gone_is_counted_and_the_others_get_theirs(site: Site) -> None:
    gone = site.visitor()
    gone.send(b"asked")
    site.visitors[0].send(b"asked")
    assert len(site.datagrams.receive()) == 2
    gone.close()
    site.datagrams.send([b"nobody", b"answer"])
    assert site.visitors[0].recv(4096) == b"answer"
    site.visitors[0].send(b"more")
    received = [message for _ in range(2) for message, _ in site.datagrams.receive()]
    assert received == [b"more"]


def test_an_answer_that_cannot_be_sent_is_counted_and_the_others_get_theirs() -> None:
    site = Site(ManyAtOnce, "127.0.0.1")
    for visitor in site.visitors:
        visitor.send(b"asked")
    site.datagrams.receive()
    assert isinstance(site.datagrams, ManyAtOnce)
    site.datagrams._names[32 + 2 : 32 + 4] = b"\0\0"  # nothing can be sent to port 0
    site.datagrams.send([b"a", b"b", b"c"])
    assert (site.visitors[0].recv(9), site.visitors[2].recv(9)) == (b"a", b"c")
    assert site.counters == {"send Invalid argument": 1}
    site.close()


def test_nobody_can_have_sent_from_port_0(made: Made) -> None:
    site = Site(made, "127.0.0.1")
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("only root can send from port 0")
    port = site.bound.getsockname()[1]
    with raw:
        site.visitors[0].send(b"first")
        raw.sendto(struct.pack("!HHHH", 0, port, 8 + 5, 0) + b"forge", ("127.0.0.1", port))
        site.visitors[1].send(b"third")
    assert [message for message, _ in site.datagrams.receive()] == [b"first", b"third"]
    assert site.datagrams.address(1) == site.visitors[1].getsockname()
    site.datagrams.send([b"1st", b"3rd"])
    assert (site.visitors[0].recv(9), site.visitors[1].recv(9)) == (b"1st", b"3rd")
    assert site.counters == {"source port 0": 1}
    site.close()


def test_hosts_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.service.nameserver.datagrams._HOSTS_REMEMBERED", 2)
    site = Site(ManyAtOnce, "127.0.0.1")
    for number in range(1, 9):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
            visitor.bind((f"127.9.0.{number}", 0))
            visitor.sendto(b"asked", site.bound.getsockname())
        assert site.datagrams.receive() == [(b"asked", f"127.9.0.{number}")]
    assert isinstance(site.datagrams, ManyAtOnce)
    assert len(site.datagrams._hosts) <= 2
    site.close()
