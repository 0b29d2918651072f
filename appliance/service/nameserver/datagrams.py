"""Datagrams by the batch: what waits at a socket, and the answers to it, in two system calls.

Hidden here: recvmmsg and sendmmsg (Linux), which no module of Python's has. They are called through cffi's
ABI mode, so that nothing is compiled; where that does not work a batch is read and sent one by one. Half of
what an answer over UDP costs is the way into the kernel and back.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

BATCH_DATAGRAMS = 128  # a turn: at 8 us each 1 ms, after which timers and TCP have theirs
RECEIVE_OCTETS = 4096  # what a query or UPDATE may have over UDP; a longer datagram is cut and so malformed

# <bits/socket.h>, as it is on every 64-bit Linux.
_DECLARATIONS = """
struct iovec { void *iov_base; size_t iov_len; };
struct msghdr {
    void *msg_name; unsigned msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
    void *msg_control; size_t msg_controllen; int msg_flags;
};
struct mmsghdr { struct msghdr msg_hdr; unsigned msg_len; };
int recvmmsg(int, struct mmsghdr *, unsigned, int, void *);
int sendmmsg(int, struct mmsghdr *, unsigned, int);
"""
_NAME_OCTETS = 32  # a struct sockaddr_in has 16, a sockaddr_in6 28 (<netinet/in.h>)
_PORT_AT = slice(2, 4)
_ADDRESS_AT = {socket.AF_INET: slice(4, 8), socket.AF_INET6: slice(8, 24)}
_SCOPE_AT = slice(24, 28)
_HOSTS_REMEMBERED = 65_536  # 10 MB; texts of addresses, which cost 0.4 us each to make

Address = tuple[Any, ...]
"""As for sendto."""


class Datagrams(Protocol):
    """The datagrams of one bound socket that does not block. Errors, and what nobody can have sent, are
    counted."""

    def receive(self) -> list[tuple[bytes, str]]:
        """What waits, at most a batch: octets and the host they came from."""

    def address(self, index: int) -> Address:
        """Where the one with this index in the last batch came from."""

    def send(self, answers: Sequence[bytes | None]) -> None:
        """Answer the last batch, one each in its order; None: nothing."""


def datagrams(bound: socket.socket, counters: Counter[str]) -> Datagrams:
    """Those of `bound`, in the cheapest way there is here."""
    try:
        return ManyAtOnce(bound, counters)
    except (ImportError, OSError, AttributeError):
        return OneByOne(bound, counters)


class OneByOne:
    """With recvfrom and sendto."""

    def __init__(self, bound: socket.socket, counters: Counter[str]) -> None:
        self._socket = bound
        self._counters = counters
        self._addresses: list[Address] = []

    def receive(self) -> list[tuple[bytes, str]]:
        received: list[tuple[bytes, str]] = []
        self._addresses = addresses = []
        for _ in range(BATCH_DATAGRAMS):
            try:
                message, address = self._socket.recvfrom(RECEIVE_OCTETS)
            except BlockingIOError:
                break
            except OSError as problem:  # an ICMP error of an earlier answer: not about this socket
                self._counters[f"receive {problem.strerror}"] += 1
                continue
            if address[1] == 0:  # nobody can have sent it, and nobody would get the answer
                self._counters["source port 0"] += 1
                continue
            received.append((message, address[0]))
            addresses.append(address)
        return received

    def address(self, index: int) -> Address:
        return self._addresses[index]

    def send(self, answers: Sequence[bytes | None]) -> None:
        for answer, address in zip(answers, self._addresses, strict=True):
            if answer is not None:
                try:
                    self._socket.sendto(answer, address)
                except OSError as problem:  # a full buffer, a filter, no route: UDP may lose, we count
                    self._counters[f"send {problem.strerror}"] += 1


class ManyAtOnce:
    """With recvmmsg and sendmmsg. Raises ImportError, OSError or AttributeError where they cannot be
    called."""

    def __init__(self, bound: socket.socket, counters: Counter[str]) -> None:
        import cffi

        if sys.platform != "linux" or sys.maxsize < 1 << 32:
            raise OSError(errno.ENOSYS, "the structures are declared for 64-bit Linux")
        ffi = cffi.FFI()
        ffi.cdef(_DECLARATIONS)
        library: Any = ffi.dlopen(None)
        self._ffi, self._receive, self._send = ffi, library.recvmmsg, library.sendmmsg
        self._descriptor = bound.fileno()
        self._counters = counters
        self._address_at = _ADDRESS_AT[bound.family]
        self._is_ipv6 = bound.family == socket.AF_INET6
        self._hosts: dict[bytes, str] = {}
        self._slots: Sequence[int] = ()
        count = BATCH_DATAGRAMS
        octets = ffi.new("char[]", count * RECEIVE_OCTETS)
        names = ffi.new("char[]", count * _NAME_OCTETS)
        self._kept = [octets, names]  # what only pointers know
        self._octets = ffi.buffer(octets)
        self._names = ffi.buffer(names)
        # An answer goes from where its question was read, to where that came from.
        self._incoming, incoming_sizes = self._messages(octets, names)
        self._outgoing, self._sizes = self._messages(octets, names)
        incoming_sizes[:] = array("Q", [RECEIVE_OCTETS] * count)
        words = memoryview(ffi.buffer(self._incoming)).cast("B").cast("I")
        stride = ffi.sizeof("struct mmsghdr") // words.itemsize
        self._lengths = words[ffi.offsetof("struct mmsghdr", "msg_len") // words.itemsize :: stride]
        self._ports = memoryview(self._names).cast("B").cast("H")[_PORT_AT.start // 2 :: _NAME_OCTETS // 2]
        start, stop = self._address_at.start, self._address_at.stop
        self._places = [
            (at * RECEIVE_OCTETS, slice(at * _NAME_OCTETS + start, at * _NAME_OCTETS + stop))
            for at in range(count)
        ]
        if self._receive(self._descriptor, self._incoming, 0, socket.MSG_DONTWAIT, ffi.NULL) < 0:
            raise OSError(ffi.errno, os.strerror(ffi.errno))

    def receive(self) -> list[tuple[bytes, str]]:
        ffi = self._ffi
        count = self._receive(
            self._descriptor, self._incoming, BATCH_DATAGRAMS, socket.MSG_DONTWAIT, ffi.NULL
        )
        if count <= 0:
            if count < 0 and ffi.errno not in (errno.EAGAIN, errno.EINTR):
                # An ICMP error of an earlier answer: not about this socket.
                self._counters[f"receive {os.strerror(ffi.errno)}"] += 1
            return []
        octets, names, hosts = self._octets, self._names, self._hosts
        received = []
        for (begin, where), length in zip(self._places, self._lengths[:count].tolist(), strict=False):
            address = names[where]
            received.append((octets[begin : begin + length], hosts.get(address) or self._host(address)))
        ports = self._ports[:count].tolist()
        if 0 in ports:  # nobody can have sent it, and nobody would get the answer
            self._counters["source port 0"] += ports.count(0)
            self._slots = [at for at, port in enumerate(ports) if port]
            return [received[at] for at in self._slots]
        self._slots = range(count)
        return received

    def address(self, index: int) -> Address:
        at = self._slots[index] * _NAME_OCTETS
        name = self._names[at : at + _NAME_OCTETS]
        host, port = self._host(name[self._address_at]), int.from_bytes(name[_PORT_AT], "big")
        if self._is_ipv6:
            return host, port, 0, int.from_bytes(name[_SCOPE_AT], sys.byteorder)
        return host, port

    def send(self, answers: Sequence[bytes | None]) -> None:
        octets, places = self._octets, self._places
        sizes = array("Q", bytes(8 * (self._slots[-1] + 1) if answers else 0))
        for slot, answer in zip(self._slots, answers, strict=True):
            if answer is not None:
                begin = places[slot][0]
                sizes[slot] = size = len(answer)
                octets[begin : begin + size] = answer
        self._sizes[: len(sizes)] = sizes
        begin = 0
        for slot in (slot for slot, size in enumerate(sizes) if not size):
            self._send_all(begin, slot)  # those up to one that has no answer
            begin = slot + 1
        self._send_all(begin, len(sizes))

    def _send_all(self, begin: int, end: int) -> None:
        while begin < end:
            sent = self._send(self._descriptor, self._outgoing + begin, end - begin, socket.MSG_DONTWAIT)
            if sent < 0:  # of the first of them. A full buffer, a filter, no route: UDP may lose, we count
                self._counters[f"send {os.strerror(self._ffi.errno)}"] += 1
                sent = 1
            begin += sent

    def _messages(self, octets: Any, names: Any) -> tuple[Any, memoryview]:
        """A `struct mmsghdr` for each place of a batch, and how many octets each has."""
        ffi = self._ffi
        parts = ffi.new("struct iovec[]", BATCH_DATAGRAMS)
        messages = ffi.new("struct mmsghdr[]", BATCH_DATAGRAMS)
        self._kept.append(parts)
        for at in range(BATCH_DATAGRAMS):
            parts[at].iov_base = octets + at * RECEIVE_OCTETS
            head = messages[at].msg_hdr
            head.msg_name = names + at * _NAME_OCTETS
            head.msg_namelen = 28 if self._is_ipv6 else 16
            head.msg_iov = parts + at
            head.msg_iovlen = 1
        words = memoryview(ffi.buffer(parts)).cast("B").cast("Q")
        return messages, words[ffi.offsetof("struct iovec", "iov_len") // words.itemsize :: 2]

    def _host(self, address: bytes) -> str:
        host = self._hosts.get(address)
        if host is None:
            if len(self._hosts) >= _HOSTS_REMEMBERED:
                self._hosts.clear()
            host = socket.inet_ntop(socket.AF_INET6 if self._is_ipv6 else socket.AF_INET, address)
            self._hosts[address] = host
        return host
