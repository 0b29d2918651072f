from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.application.service import MultiService
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor, IWriteDescriptor
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from zope.interface import implementer
from zope.interface.verify import verifyObject

from appliance.dns.responder import Responder
from appliance.service.nameserver.datagrams import BATCH_DATAGRAMS
from appliance.service.nameserver.udp import RECEIVE_BUFFER_OCTETS, UdpNameserver, _Datagrams
from tests.service.nameserver.demo import answers_in, number_of, question, responder


@implementer(IReactorFDSet)
class _Readers(Clock):
    """The part of a reactor that the service needs, turned by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers.remove(reader)

    def addWriter(self, writer: IWriteDescriptor) -> None: ...

    def removeWriter(self, writer: IWriteDescriptor) -> None: ...

    def removeAll(self) -> list[Any]:
        return []

    def getReaders(self) -> list[Any]:
        return self.readers

    def getWriters(self) -> list[Any]:
        return []

    def turn(self) -> None:
        for reader in self.readers:
            reader.doRead()


@pytest.fixture
def readers() -> _Readers:
    return _Readers()


@pytest.fixture
def nameserver(readers: _Readers) -> Iterator[UdpNameserver]:
    nameserver = UdpNameserver(readers, responder(), "127.0.0.1", 0)
    nameserver.startService()
    yield nameserver
    nameserver.stopService()
    assert readers.readers == []


@pytest.fixture
def visitor(nameserver: UdpNameserver) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
        visitor.settimeout(5)
        visitor.connect(("127.0.0.1", nameserver.port))
        yield visitor


def test_a_question_is_answered(readers: _Readers, visitor: socket.socket) -> None:
    visitor.send(question(77))
    readers.turn()
    answer = visitor.recv(4096)
    assert (number_of(answer), answers_in(answer)) == (77, 1)
    assert verifyObject(IReadDescriptor, readers.readers[0])


def test_over_ipv6(readers: _Readers) -> None:
    nameserver = UdpNameserver(readers, responder(), "::1", 0)
    nameserver.startService()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as visitor:
        visitor.settimeout(5)
        visitor.sendto(question(), ("::1", nameserver.port))
        readers.turn()
        assert answers_in(visitor.recv(4096)) == 1
    nameserver.stopService()


def test_bound_before_or_at_the_start(readers: _Readers) -> None:
    bound = UdpNameserver(readers, responder(), "127.0.0.1", 0)
    bound.privilegedStartService()
    port = bound.port
    assert port != 0
    assert readers.readers == []  # nothing is answered before the start
    parent = MultiService()
    bound.setServiceParent(parent)  # type: ignore[no-untyped-call]
    parent.startService()
    assert bound.port == port
    parent.stopService()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))
    never_started = UdpNameserver(readers, responder(), "127.0.0.1", 0)
    never_started.privilegedStartService()
    never_started.stopService()


def test_a_turn_is_bounded_and_nothing_is_lost(readers: _Readers, visitor: socket.socket) -> None:
    for number in range(BATCH_DATAGRAMS + 50):
        visitor.send(question(number))
    readers.turn()
    for number in range(BATCH_DATAGRAMS):
        assert number_of(visitor.recv(4096)) == number
    visitor.setblocking(False)
    with pytest.raises(BlockingIOError):
        visitor.recv(4096)
    readers.turn()
    assert number_of(visitor.recv(4096)) == BATCH_DATAGRAMS


def test_what_is_no_question_gets_no_answer(readers: _Readers, visitor: socket.socket) -> None:
    response = bytearray(question())
    response[2] |= 0x80
    for message in (b"", b"x", bytes(response)):
        visitor.send(message)
    visitor.send(question(5))
    readers.turn()
    assert number_of(visitor.recv(4096)) == 5


def test_the_port_of_a_visitor_who_is_gone_ends_nothing(readers: _Readers, visitor: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.sendto(question(), visitor.getpeername())
    readers.turn()  # the kernel answers our answer with an ICMP error
    visitor.send(question(6))
    readers.turn()
    assert number_of(visitor.recv(4096)) == 6


def test_the_socket_is_set_for_bursts_and_against_forged_fragments(readers: _Readers) -> None:
    for host, level, option in (("127.0.0.1", socket.IPPROTO_IP, 10), ("::1", socket.IPPROTO_IPV6, 23)):
        nameserver = UdpNameserver(readers, responder(), host, 0)
        nameserver.privilegedStartService()
        assert nameserver._socket is not None
        assert nameserver._socket.getsockopt(level, option) == 5  # PMTUDISC_OMIT
        size = nameserver._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        with open("/proc/sys/net/core/rmem_max") as most:
            assert size >= min(RECEIVE_BUFFER_OCTETS, 2 * int(most.read()))
        nameserver.stopService()


class _Socket:
    """What a kernel may do to us: each step is a datagram or an error."""

    def __init__(
        self, *steps: tuple[bytes, tuple[str, int]] | OSError, sending: OSError | None = None
    ) -> None:
        self.steps = list(steps)
        self.sending = sending
        self.sent: list[bytes] = []

    def recvfrom(self, octets: int) -> tuple[bytes, tuple[str, int]]:
        if not self.steps:
            raise BlockingIOError
        step = self.steps.pop(0)
        if isinstance(step, OSError):
            raise step
        return step

    def sendto(self, answer: bytes, where: tuple[str, int]) -> None:
        if self.sending is not None:
            raise self.sending
        self.sent.append(answer)


def _read(fake: Any, answering: Any = None) -> Counter[str]:
    counters: Counter[str] = Counter()
    _Datagrams(fake, answering or responder(), counters, lambda: 0.0, lambda: 0.0).doRead()
    return counters


def test_source_port_0_is_dropped() -> None:
    fake = _Socket((question(1), ("192.0.2.1", 0)), (question(2), ("192.0.2.1", 1)))
    assert _read(fake) == {"source port 0": 1}
    assert [number_of(answer) for answer in fake.sent] == [2]


@pytest.mark.parametrize("error", [BlockingIOError(11, "again"), OSError(105, "No buffer space available")])
def test_an_answer_that_cannot_be_sent_is_counted(error: OSError) -> None:
    fake = _Socket((question(1), ("192.0.2.1", 9)), (question(2), ("192.0.2.1", 9)), sending=error)
    assert _read(fake) == {f"send {error.strerror}": 2}


def test_an_error_while_receiving_is_not_about_the_socket() -> None:
    fake = _Socket(ConnectionRefusedError(111, "Connection refused"), (question(2), ("192.0.2.1", 9)))
    assert _read(fake) == {"receive Connection refused": 1}
    assert len(fake.sent) == 1


def test_errors_for_ever_end_the_turn() -> None:
    fake = _Socket(*[OSError(5, "Input/output error")] * 1000)
    assert _read(fake) == {"receive Input/output error": BATCH_DATAGRAMS}


def test_one_question_does_not_end_the_service(logged_errors: list[LogEvent]) -> None:
    class Broken(Responder):
        def respond(self, message: bytes, *, udp: bool, source: str, now: float, wall: float) -> bytes:
            raise RuntimeError("a mistake of ours")

    fake = _Socket(*[(question(number), ("192.0.2.1", 9)) for number in range(3)])
    assert _read(fake, Broken()) == {"failed": 3}
    (event,) = logged_errors  # one line, however many
    assert event["message"] == question(0).hex()
    logged_errors.clear()
