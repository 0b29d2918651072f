"""Which origin a visitor of a name is joined to, where that is, and what a failure there means for him.

Hides host names of origins: those are looked up by the system, not by the discovery's resolver, and kept for
a few seconds, so that a visitor does not wait for them.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IResolutionReceiver
from twisted.logger import Logger
from zope.interface import implementer

from appliance.addresses import Origin
from appliance.service.client.dial import Target
from appliance.settings import ClientSettings, NameSettings
from appliance.tunnel.lane import Status
from appliance.tunnel.names import covers, wildcards_over
from appliance.tunnel.proxyheader import Kind
from appliance.tunnel.session import Offer

#: How long the addresses of an origin's host name are used: a container that was made anew has a new one.
ADDRESS_SECONDS = 5.0
_WAYS_KEPT = 4096

_REFUSED = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT}  # ENOENT: a unix socket that nobody made
_BUSY = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


@dataclass(frozen=True, slots=True)
class Way:
    """The way of a visitor to his origin, whether a PROXY protocol header goes ahead of him, and whether his
    TLS ends here.
    """

    origin: Origin
    proxy_protocol: bool
    terminated: bool = False


class Origins:
    """The origins of the names that a client may serve: ``granted`` are the names of its invitation."""

    _log = Logger()

    def __init__(self, settings: ClientSettings, granted: Iterable[str], reactor: Any) -> None:
        self._settings = settings
        self._granted = tuple(granted)
        self._reactor = reactor
        self._ways: dict[tuple[str, Kind | None], Way | None] = {}
        self._fixed: dict[Origin, list[Target]] = {}
        self._known: dict[tuple[str, int], tuple[float, list[Target]]] = {}
        self._waiting: dict[tuple[str, int], list[Callable[[list[Target]], None]]] = {}

    def offers(self) -> Mapping[str, Offer]:
        """What is registered at every server: each granted name that has an origin."""
        offers: dict[str, Offer] = {}
        for name in self._granted:
            way = self._settings_of(name)
            if way.tls_origin is not None or way.http_origin is not None:
                added = way.forwarded == "add" and way.http == "serve"
                tls = way.tls_origin is not None or way.terminated
                offers[name] = Offer(tls=tls, http=way.http, forwarded=added)
        return offers

    def way(self, host: str, kind: Kind | None) -> Way | None:
        """The way of a visitor who wants ``host``; None where this client has none."""
        asked = (host, kind)
        if asked not in self._ways:
            if len(self._ways) >= _WAYS_KEPT:  # below a wildcard there are as many hosts as a stranger likes
                self._ways.clear()
            self._ways[asked] = self._find_way(host, kind)
        return self._ways[asked]

    def _find_way(self, host: str, kind: Kind | None) -> Way | None:
        if not any(covers(name, host) for name in self._granted):
            return None
        of_name = self._settings_of(host)
        terminated = kind is not Kind.HTTP and of_name.terminated
        origin = of_name.http_origin if kind is Kind.HTTP or terminated else of_name.tls_origin
        return None if origin is None else Way(origin, of_name.proxy_protocol, terminated)

    def terminated(self) -> dict[str, tuple[Path, Path]]:
        """The files of certificate and key of each name whose visitors' TLS ends here."""
        names = {name for name in self._settings.names if any(covers(over, name) for over in self._granted)}
        files: dict[str, tuple[Path, Path]] = {}
        for name in sorted(names.union(self._granted)):
            way = self._settings_of(name)
            if way.terminated and way.certificate is not None and way.key is not None:
                files[name] = (way.certificate, way.key)
        return files

    def certified(self) -> list[str]:
        """The granted names that certificates are got for: those whose own settings, or those of a name
        below, say so.
        """
        granted = sorted(self._granted)
        wanted = {name for name in granted if self._settings_of(name).certified}
        for name, own in self._settings.names.items():
            if own.certified and name not in granted:
                wanted.update([over for over in wildcards_over(name) if over in granted][:1])
        return sorted(wanted)

    def _settings_of(self, host: str) -> NameSettings:
        """A name's own settings, those of the closest wildcard over it, or those at the top."""
        for name in (host, *wildcards_over(host)):
            if name in self._settings.names:
                return self._settings.names[name]
        return self._settings.for_name(host)

    def find(self, origin: Origin, found: Callable[[list[Target]], None]) -> None:
        """Call ``found`` with the origin's addresses, the best first and none where there are none; at once
        if they are known.
        """
        fixed = self._fixed.get(origin)
        if fixed is None:
            fixed = self._fixed[origin] = _fixed(origin)
        if fixed:
            found(fixed)
            return
        key = (origin.host, origin.port)
        expires, targets = self._known.get(key, (float("-inf"), []))
        if expires > self._reactor.seconds():
            found(targets)
            return
        if key in self._waiting:
            self._waiting[key].append(found)
            return
        self._waiting[key] = [found]
        self._reactor.nameResolver.resolveHostName(_Resolution(self, key), origin.host, origin.port)

    def resolved(self, key: tuple[str, int], targets: list[Target]) -> None:
        """The system has answered (for ``find``)."""
        if targets:
            self._known[key] = (self._reactor.seconds() + ADDRESS_SECONDS, targets)
        for found in self._waiting.pop(key, ()):
            found(targets)


@implementer(IResolutionReceiver)
class _Resolution:
    """Twisted's way of telling addresses one by one."""

    def __init__(self, origins: Origins, key: tuple[str, int]) -> None:
        self._origins = origins
        self._key = key
        self._targets: list[Target] = []

    def resolutionBegan(self, resolution: object) -> None:
        pass

    def addressResolved(self, address: object) -> None:
        if isinstance(address, IPv4Address | IPv6Address):
            target = _literal(address.host, self._key[1])
            if target is not None and target not in self._targets:
                self._targets.append(target)

    def resolutionComplete(self) -> None:
        self._origins.resolved(self._key, self._targets)


def _fixed(origin: Origin) -> list[Target]:
    """Where an origin is that needs no looking up; empty for one that does."""
    if origin.path:
        return [Target(socket.AF_UNIX, origin.path)]
    target = _literal(origin.host, origin.port)
    return [] if target is None else [target]


def _literal(host: str, port: int) -> Target | None:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return Target(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))


def status_of(error: OSError) -> Status:
    """What to tell the server when an origin could not be connected to."""
    if error.errno in _REFUSED:
        return Status.ORIGIN_REFUSED
    if error.errno in _BUSY:
        return Status.BUSY
    # Not to accept in time is silence: a visitor of plain HTTP is told 504 (RFC 9110 15.6.5), not 502.
    return Status.ORIGIN_SILENT if error.errno == errno.ETIMEDOUT else Status.ORIGIN_UNREACHABLE


def in_words(error: OSError) -> str:
    """Why a dial failed, in words for a log."""
    match error.errno:
        case errno.EADDRNOTAVAIL:
            return (
                "no local port is left for another connection to it; "
                "widen net.ipv4.ip_local_port_range or set net.ipv4.tcp_tw_reuse to 1"
            )
        case errno.EMFILE | errno.ENFILE:
            return "no file descriptor is left; raise the limit of open files (LimitNOFILE)"
        case errno.ETIMEDOUT:
            return "it did not answer in time"
        case errno.ENOENT:
            return "there is no such socket"
    return (error.strerror or str(error)).lower()
