"""How an address to listen on, a public address and an origin are written, in files and on the command line.

Hides the brackets of IPv6 and which port is meant where none is written.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import attrs

from appliance.settingsfile import BadValue
from appliance.tunnel.discovery import BadServerAddress, ServerAddress


@attrs.frozen(order=True)
class Listen:
    """An address and port that one socket listens on, or that a resolver answers at."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class Origin:
    """The web server behind a client: `host` and `port`, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return str(Listen(self.host, self.port))


def split_host_port(text: str) -> tuple[str, int | None]:
    """("203.0.113.5", 443) of `203.0.113.5:443`; `[v6]:port`, a bare IPv6 address, and no port are fine."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d{1,5}))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, None
    if port is None:
        return host, None
    if not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise BadValue(f'"{text}" has no port from 0 to 65535')
    return host, int(port)


def read_listen(text: str, port: int = 0) -> Listen:
    """An IP address, and the port written or the given one. Raises BadValue."""
    host, written = split_host_port(text)
    try:
        return Listen(str(ipaddress.ip_address(host)), port if written is None else written)
    except ValueError:
        raise BadValue(f'"{text}" is not an IP address with or without a port') from None


def read_public(text: str, port: int) -> ServerAddress:
    """The address of a tunnel server, and the port written or the given one. Raises BadValue."""
    listen = read_listen(text, port)
    try:
        return ServerAddress(listen.host, listen.port)
    except BadServerAddress as error:
        raise BadValue(str(error)) from None


def read_origin(text: str, base: Path) -> Origin:
    """`HOST:PORT` or `unix:PATH`, the path from `base` where it is relative. Raises BadValue."""
    if text.startswith("unix:"):
        return Origin(path=str(base / text.removeprefix("unix:")))
    host, port = split_host_port(text)
    if not host or not port:
        raise BadValue(f'"{text}" is neither HOST:PORT nor unix:/PATH')
    return Origin(host, port)


def with_port(text: str, port: int) -> str:
    """`text` with the port that is meant where none is written; what is no address comes back as it is."""
    try:
        return str(read_listen(text, port))
    except BadValue:
        return text
