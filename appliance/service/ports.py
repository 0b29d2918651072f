"""Listening sockets: how they are opened, and which one sentence says why one cannot be.

Hides /proc: who holds a port that is taken, and which addresses this machine has.
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

BACKLOG = 4096  # connections; what the kernel's own default of net.core.somaxconn lets through (Linux 5.4)
_SIOCGIFCONF = 0x8912  # <linux/sockios.h>: every IPv4 address of every interface
_IFREQ_OCTETS = 40  # struct ifreq of a 64-bit machine
_IFREQ_ADDRESS = slice(20, 24)  # its sockaddr_in's address
_MOST_ADDRESSES = 4096  # a machine with more is asked for them in its settings
_TENTATIVE_OR_FAILED = 0x48  # IFA_F_TENTATIVE | IFA_F_DADFAILED: bind would refuse them
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp
_RESOLVED = "systemd-resolve"  # comm is cut at 15 octets
_RESOLVED_STUBS = ("127.0.0.53", "127.0.0.54")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Transport(Enum):
    UDP = "UDP"
    TCP = "TCP"


class CannotListen(Exception):
    """An address cannot be listened on; the text names it, why, and who holds the port if that is known."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """A socket on a port: its address, the user it belongs to, and its process where /proc shows it."""

    address: str
    uid: int
    pid: int | None
    command: str | None

    def __str__(self) -> str:
        where = f" on {self.address}"
        if self.command == _RESOLVED or (self.pid is None and self.address in _RESOLVED_STUBS):
            return (
                f"systemd-resolved holds it{where}"
                " (DNSStubListener=no in /etc/systemd/resolved.conf frees it, or listen on another address)"
            )
        if self.pid is None:
            return f"a process of user id {self.uid} holds it{where}"
        return f"{self.command} (pid {self.pid}) holds it{where}"


def bind_udp(host: str, port: int) -> socket.socket:
    """A bound, non-blocking datagram socket; IPv6 ones take no IPv4. Raises CannotListen."""
    # No SO_REUSEADDR: with it a second process would bind the same UDP port and take half of the questions.
    return _bound(host, port, Transport.UDP)


def bind_tcp(host: str, port: int, backlog: int = BACKLOG) -> socket.socket:
    """A listening, non-blocking socket; IPv6 ones take no IPv4. Raises CannotListen."""
    bound = _bound(host, port, Transport.TCP)
    try:
        bound.listen(backlog)
    except OSError as problem:
        bound.close()
        raise CannotListen(_sentence(host, port, Transport.TCP, problem)) from None
    return bound


def claim(host: str, port: int, transport: Transport) -> socket.socket:
    """A socket that has the port and takes nothing from it, for the look before the fork. Raises
    CannotListen.

    It does not listen: whoever connected just then would be accepted by the kernel, and reset when it is
    closed. Where somebody listens it cannot be bound; two claims of one TCP port are no conflict.
    """
    return _bound(host, port, transport)


def local_addresses() -> list[str]:
    """The addresses of this machine that others may ask: no loopback, link-local or unusable ones.

    IPv4 before IPv6, each in the kernel's order.
    """
    found: list[_Address] = [*_ipv4_addresses(), *_ipv6_addresses()]
    chosen = [one for one in found if not (one.is_loopback or one.is_link_local or one.is_multicast)]
    return list(dict.fromkeys(str(one) for one in chosen))


def _bound(host: str, port: int, transport: Transport) -> socket.socket:
    try:
        ipaddress.ip_address(host)  # `bind` would look a name up, and wait for that
    except ValueError as problem:
        raise CannotListen(_sentence(host, port, transport, problem)) from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_DGRAM if transport is Transport.UDP else socket.SOCK_STREAM
    try:
        bound = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    except OSError as problem:
        raise CannotListen(_sentence(host, port, transport, problem)) from None
    try:
        if transport is Transport.TCP:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as problem:
        bound.close()
        raise CannotListen(_sentence(host, port, transport, problem)) from None
    return bound


def _sentence(host: str, port: int, transport: Transport, problem: Exception) -> str:
    """Host, port, transport and the reason in one line."""
    start = f"cannot listen on {host} port {port} ({transport.value}): "
    if not isinstance(problem, OSError):
        return start + "not an IP address and port"
    match problem.errno:
        case errno.EADDRINUSE:
            holders = _holders(host, port, transport)
            return start + ("; ".join(map(str, holders)) if holders else "another process holds it")
        case errno.EACCES | errno.EPERM:
            return start + "ports below 1024 need root or CAP_NET_BIND_SERVICE"
        case errno.EADDRNOTAVAIL:
            return start + "no interface of this machine has that address"
        case errno.EAFNOSUPPORT:
            return start + "this machine has no IPv6"
        case _:
            return start + (problem.strerror or str(problem)).lower()


def _holders(host: str, port: int, transport: Transport) -> list[_Holder]:
    """Who has a socket that keeps `host` `port` from being bound: those on the address or on all of them."""
    found = []
    processes: dict[str, tuple[int, str]] | None = None
    for address, uid, inode in _sockets(port, transport):
        if not _excludes(address, host):
            continue
        if processes is None:
            processes = _processes_by_inode()
        pid, command = processes.get(inode, (None, None))
        found.append(_Holder(str(address), uid, pid, command))
    return list(dict.fromkeys(found))


def _excludes(held: _Address, wanted: str) -> bool:
    try:
        asked = ipaddress.ip_address(wanted)
    except ValueError:
        return False
    if held.version != asked.version:  # a wildcard IPv6 socket that is not V6ONLY holds the IPv4 port, too
        return held.version == 6 and held.is_unspecified
    return held == asked or held.is_unspecified or asked.is_unspecified


def _sockets(
    port: int, transport: Transport
) -> list[tuple[_Address, int, str]]:
    """(address, user id, inode) of every socket on `port`: bound for UDP, listening for TCP (proc(5))."""
    found = []
    for table in (f"/proc/net/{transport.value.lower()}", f"/proc/net/{transport.value.lower()}6"):
        for line in _lines(Path(table))[1:]:
            fields = line.split()
            address, _, hex_port = fields[1].partition(":")
            if int(hex_port, 16) != port or (transport is Transport.TCP and fields[3] != _LISTENING):
                continue
            found.append((_from_proc(address), int(fields[7]), fields[9]))
    return found


def _from_proc(text: str) -> _Address:
    """/proc/net prints an address as hexadecimal words of 32 bits in the machine's own byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))


def _processes_by_inode() -> dict[str, tuple[int, str]]:
    """Socket inode -> (pid, command) of every process whose descriptors we may see."""
    found: dict[str, tuple[int, str]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        if inodes := _socket_inodes(process / "fd"):
            command = "".join(_lines(process / "comm")) or "a process"
            this = (int(process.name), command)
            for inode in inodes:
                # Of a family that shares the socket, the first process is the one to name.
                found[inode] = min(found.get(inode, this), this)
    return found


def _socket_inodes(descriptors: Path) -> list[str]:
    found = []
    try:
        numbers = os.listdir(descriptors)
    except OSError:  # another user's process, or one that has ended
        return []
    for number in numbers:
        try:
            link = os.readlink(descriptors / number)
        except OSError:  # closed meanwhile
            continue
        if link.startswith("socket:["):
            found.append(link[len("socket:[") : -1])
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _ipv4_addresses() -> list[ipaddress.IPv4Address]:
    room = array.array("B", bytes(_IFREQ_OCTETS * _MOST_ADDRESSES))
    address, _ = room.buffer_info()
    asked = struct.pack("@iP", len(room), address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        (used, _) = struct.unpack("@iP", fcntl.ioctl(any_socket, _SIOCGIFCONF, asked))
    records = (room[at : at + _IFREQ_OCTETS].tobytes() for at in range(0, used, _IFREQ_OCTETS))
    return [ipaddress.IPv4Address(record[_IFREQ_ADDRESS]) for record in records]


def _ipv6_addresses() -> list[ipaddress.IPv6Address]:
    """/proc/net/if_inet6: address, interface index, prefix length, scope, flags (hexadecimal), name."""
    found = []
    for line in _lines(Path("/proc/net/if_inet6")):
        address, _, _, _, flags, _ = line.split()
        if not int(flags, 16) & _TENTATIVE_OR_FAILED:
            found.append(ipaddress.IPv6Address(bytes.fromhex(address)))
    return found
