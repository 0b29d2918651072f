"""Looking for octets where they must not be: in the memory of a process, and in packets on loopback."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Self

import pytest

_ETH_P_ALL = 3
_PIECE_OCTETS = 1 << 24
_BUFFER_OCTETS = 64 << 20
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


def in_memory(pid: int, mark: bytes) -> int:
    """How often `mark` is in what a process can read and write."""
    count = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found is None:
                continue
            place, end = int(found[1], 16), int(found[2], 16)
            tail = b""
            while place < end:
                try:
                    octets = os.pread(memory.fileno(), min(_PIECE_OCTETS, end - place), place)
                except OSError:  # such as [vvar]
                    break
                if not octets:
                    break
                count += (tail + octets).count(mark)
                tail = octets[-(len(mark) - 1) :]
                place += len(octets)
    return count


class Capture:
    """Every packet of loopback from or to a TCP port; `seen` counts marks.

    A mark that is cut by the end of a packet is not found: it has to be there many times.
    """

    def __init__(self, port: int, marks: Sequence[bytes]) -> None:
        if os.geteuid() != 0:
            pytest.skip("not root: packets cannot be captured")
        self.seen: Counter[bytes] = Counter()
        self.packets = 0
        self._marks = marks
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_OCTETS)
        _filter(self._sock, port)
        self._sock.bind(("lo", _ETH_P_ALL))
        self._sock.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._capture, daemon=True)

    def _capture(self) -> None:
        while True:
            try:
                packet = self._sock.recv(1 << 17)
            except TimeoutError:
                if self._over.is_set():
                    return
                continue
            self.packets += 1
            for mark in self._marks:
                self.seen[mark] += packet.count(mark)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # what is there is read to its end
        self._thread.join(20)
        self._sock.close()
        assert not self._thread.is_alive()


def _filter(sock: socket.socket, port: int) -> None:
    """Have the kernel pass TCP over IPv4 without options, from or to `port` (bpf(4), on Ethernet)."""
    load_half, load_octet, equal, give = 0x28, 0x30, 0x15, 0x06
    program = (
        (load_half, 0, 0, 12),
        (equal, 0, 6, 0x0800),
        (load_octet, 0, 0, 23),
        (equal, 0, 4, socket.IPPROTO_TCP),
        (load_half, 0, 0, 34),
        (equal, 3, 0, port),
        (load_half, 0, 0, 36),
        (equal, 1, 0, port),
        (give, 0, 0, 0),
        (give, 0, 0, 0xFFFFFFFF),
    )
    octets = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(octets))
    )
