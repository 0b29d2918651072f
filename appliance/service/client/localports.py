"""Which local ports a connection is dialled from; hides what connect(2) does to find one.

The kernel tries all ports of one parity before the first of the other, so from 14,000 connections to one
address and port (most of them over, in TIME_WAIT: 235 visitors a second are enough) each connect costs
milliseconds of CPU where it cost 60 us. A few ports of the range for each dial, drawn at random (RFC 6056,
3.3.2), leave it little to look through until nearly all are taken, and nothing to foresee.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
from pathlib import Path

IP_LOCAL_PORT_RANGE = 51
"""linux/in.h, Linux 6.3; `socket` of Python 3.11 does not name it. IPv6 sockets take it as well."""
FEW = 64
"""Ports at a time. When 97 % of all are taken, six draws of seven still have a free one."""
DRAWS = 8
"""Then there is none, or it is not for want of a port that the kernel refuses."""

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class LocalPorts:
    """The range of this network namespace; an older kernel looks through all of it, as ever."""

    def __init__(self) -> None:
        try:
            low, high = map(int, _RANGE.read_text().split())
        except (OSError, ValueError):
            low, high = 0, 0
        self._starts = range(low, high - FEW + 2)

    def connect(self, sock: socket.socket, address: tuple[str, int]) -> int:
        """Begin to connect; 0 or the errno of connect(2)."""
        for _ in range(DRAWS):
            self._draw(sock)
            number = sock.connect_ex(address)
            if number != errno.EADDRNOTAVAIL or not self._starts:
                break
        return number

    def _draw(self, sock: socket.socket) -> None:
        if not self._starts:
            return
        low = random.choice(self._starts)
        few = struct.pack("=I", (low + FEW - 1) << 16 | low)
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, few)
        except OSError:
            self._starts = range(0)
