"""The settings of the appliance and of a client: what there is, what each means, what each is when not said.

Hides where a value came from: file, option, or derived from the zones and the machine's addresses. Every
service gets one small frozen value; nobody else reads TOML. How TOML becomes values is settingsfile.py's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import attrs
import cattrs

from appliance.acmesettings import AcmeSettings, with_whole_paths, wrong_acme
from appliance.addresses import (
    Listen,
    Origin,
    read_listen,
    read_origin,
    read_public,
    split_host_port,
    with_port,
)
from appliance.caasettings import CaaTable, read_caa_table, wrong_caa
from appliance.derived import (
    Zones,
    addresses_from_glue,
    everywhere,
    expanded,
    server_id,
    why_no_address,
)
from appliance.dns.names import is_at_or_below, is_wildcard, parent, to_text
from appliance.dns.ratelimit import RATE_DEFAULT, SLIP_DEFAULT
from appliance.fleet.mayissue import Issuers
from appliance.fleet.publish import may_be_published
from appliance.ingress.limits import NEW_A_SECOND, OPEN_AT_MOST, THIS_MACHINE, Network
from appliance.keypairsettings import with_paths, without_other_end, wrong_keypair
from appliance.keysettings import KeySettings, KeyTable, all_keys, read_table
from appliance.secondaries import SecondarySettings, SecondaryTable, read_secondary, wrong_secondaries
from appliance.service.ports import local_addresses
from appliance.settingsfile import BadValue, SettingsFile, SettingsRefused, converter, described
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Enrolment, Following, InvitationRefused, read_enrolment
from appliance.tunnel.names import BadHostName, normal

__all__ = [
    "ApplianceSettings", "ClientSettings", "Listen", "NameSettings", "NameserverSettings", "Origin",
    "ServerSettings", "SettingsRefused", "read_appliance", "read_client",
]  # fmt: skip

DNS_PORT = 53
TLS_PORT = 443
HTTP_PORT = 80
KEPT_ZONES_NAME = "zones"
"""The directory in the state directory for what was read of large zone files."""
DEFAULT_APPLIANCE_FILE = Path("appliance.toml")
DEFAULT_CLIENT_FILE = Path("client.toml")
MAX_NSID_OCTETS = 128
"""As much as BIND and Knot take; every answer to who asks is that much larger."""
MAX_SERIAL_INDEX = 7
"""The low three bits of a serial are the nameserver's index."""
CERTIFICATE_DAYS_DEFAULT = 90
DRAIN_SECONDS_DEFAULT = 30
"""cloudflared's grace-period. (Envoy drains for 600 s, Pomerium has it do so for 60.)"""
MAX_DRAIN_SECONDS = 86400

T = TypeVar("T")

_PARTS = ("nameserver", "server")
"""The tables that are structured by themselves, so that an error in one hides none in the other."""
_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

APPLIANCE_OPTIONS = {
    "state": "--state",
    "nameserver.zones": "--zones",
    "nameserver.listen": "--dns",
    "nameserver.private_addresses": "--private-addresses",
    "server.addresses": "--public",
    "server.tls": "--tls",
    "server.http": "--http",
}
"""How the settings that one types by hand are spelt on the command line of twistd tunnel-appliance."""

CLIENT_OPTIONS = {
    "invitation": "--invitation",
    "state": "--state",
    "resolver": "--resolver",
    "tls_origin": "--tls-origin",
    "http_origin": "--http-origin",
    "http": "--http",
    "proxy_protocol": "--proxy-protocol",
    "certificate": "--certificate",
    "key": "--key",
}
"""The same for twistd tunnel-client."""


@attrs.frozen
class NameserverSettings:
    """`[nameserver]`: authoritative DNS for the files in `zones`, and the live records over them."""

    zones: Path = described("The directory of zone files, `*.zone`.", '`"zones"`', default=Path("zones"))
    listen: tuple[Listen, ...] = described(
        "Addresses that DNS listens on, UDP and TCP. Without a port: 53. `0.0.0.0` and `::` stand for each"
        " non-loopback address of the machine: an answer has to leave from where it was asked.",
        "each non-loopback address, port 53",
        default=(),
    )
    index: int = described(
        "0 to 7, unique among the nameservers of a zone: the low three bits of every serial.",
        "`0`",
        default=0,
    )
    servers: tuple[ServerAddress, ...] = described(
        "Addresses of further tunnel servers to watch and to publish, besides those that announce themselves."
        " Without a port: 443.",
        "none",
        default=(),
    )
    discovery: str | None = described(
        "The name whose TXT records list every tunnel server.", "each zone's apex", default=None
    )
    private_addresses: bool = described(
        "Whether tunnel servers at addresses that are not globally routable are published. Without it such an"
        " address is an error.",
        "`false`",
        default=False,
    )
    cookies: Literal["own", "rfc9018", "off"] = described(
        "DNS cookies (RFC 7873): `own` are a fraction of the cost of `rfc9018`, which nameservers of other"
        " vendors of the same zones understand, given the same secrets.",
        '`"own"`',
        default="own",
    )
    cookie_secrets: Path | None = described(
        "The file of cookie secrets that the nameservers of the zones share: lines of 32 hexadecimal digits."
        " The first makes cookies, all are believed. Read again at a reload.",
        "none: one that is made at each start",
        default=None,
    )
    rate_limit: int = described(
        "How many identical answers a second go to one IPv4 address or IPv6 /56 over UDP without a cookie;"
        " 2.5 times as many at once, 40 times as many of all kinds together. `0` is no limit.",
        "`50`",
        default=RATE_DEFAULT,
    )
    slip: int = described(
        "Of the answers over the limit, every how many-th says `come by TCP` instead of being dropped; `0` is"
        " none, `1` is all.",
        "`2`",
        default=SLIP_DEFAULT,
    )
    nsid: str | None = described(
        "What this nameserver calls itself to who asks with NSID (RFC 5001).",
        "none: it says nothing",
        default=None,
    )
    extended_errors: bool = described("Whether errors say why (RFC 8914).", "`false`", default=False)
    rotate: bool = described(
        "Whether the records of an answer begin with another one each time. Resolvers do that by themselves.",
        "`false`",
        default=False,
    )
    enrolment: Path | None = described(
        "The file that `tunnel-appliance enroll --nameserver` wrote at the appliance that holds the CA. The"
        " zones are then followed from there, and `zones`, `index` and the tunnel servers to watch are as it"
        " says.",
        "the one of `[server]`, if there is one",
        default=None,
    )
    keys: tuple[KeySettings, ...] = ()
    secondaries: tuple[SecondarySettings, ...] = ()
    caa: tuple[Issuers, ...] = ()
    following: Following | None = None


@attrs.frozen
class ServerSettings:
    """`[server]`: the tunnel server, which takes visitors and hands them to tunnel clients."""

    id: str = described(
        "This server's name among the servers.", "the enrolment's, or the host name", default=""
    )
    addresses: tuple[ServerAddress, ...] = described(
        "Public addresses that visitors and clients reach this server at; behind a NAT they differ from those"
        " listened on. Without a port: the first one of `tls`.",
        "the enrolment's, or the glue of the zones' NS records that is an address of this machine",
        default=(),
    )
    tls: tuple[Listen, ...] = described(
        "Addresses for TLS visitors, links, lanes and watches. Without a port: 443.",
        "every address, port 443",
        default=(),
    )
    http: tuple[Listen, ...] = described(
        "Addresses for plain HTTP visitors. Without a port: 80.", "every address, port 80", default=()
    )
    enrolment: Path | None = described(
        "The file that `tunnel-appliance enroll` wrote at the appliance that holds the CA. Without it this"
        " appliance has a CA of its own.",
        "the one of `[nameserver]`, if there is one",
        default=None,
    )
    default_name: str | None = described(
        "The name that a TLS visitor without SNI is taken to want.", "none: he is refused", default=None
    )
    https_port: int = described(
        "The port that a visitor of plain HTTP is redirected to.",
        "the port of the first public address",
        default=0,
    )
    drain_seconds: int = described(
        "How long its visitors may go on when the server leaves (SIGTERM, or the command `drain`), once the"
        " caches have forgotten it.",
        "`30`",
        default=DRAIN_SECONDS_DEFAULT,
    )
    nameservers: tuple[ServerAddress, ...] = described(
        "Where an enrolled server announces itself by DNS UPDATE. Without a port: 53.",
        "the nameservers of the enrolment, and those in the NS records of its zone",
        default=(),
    )
    source_open: int = described(
        "How many connections one IPv4 address, or IPv6 /64, may have open as a visitor; `0` is no limit.",
        "`1024`",
        default=OPEN_AT_MOST,
    )
    source_new: int = described(
        "How many it may open in a second; `0` is no limit.", "`200`", default=NEW_A_SECOND
    )
    source_exempt: tuple[Network, ...] = described(
        "Networks whose addresses have neither limit: a proxy in front, a monitor.",
        '`["127.0.0.0/8", "::1"]`',
        default=THIS_MACHINE,
    )
    name_open: int = described(
        "How many visitors one name (or wildcard) may have at a time on this server; `0` is no limit.",
        "`0`",
        default=0,
    )
    all_open: int = described(
        "How many visitors there may be in all; `0` is as many as there are file descriptors for, less a"
        " reserve.",
        "`0`",
        default=0,
    )
    access_log: Path | None = described(
        "The file that gets a line of each visitor when he has gone.", "none", default=None
    )
    access_log_format: Literal["plain", "json"] = described(
        "What its lines are: fields with blanks between them, or JSON objects.", '`"plain"`', default="plain"
    )
    metrics: Listen | None = described(
        "The loopback address and port of a page for Prometheus, `/metrics`.", "none", default=None
    )


@attrs.frozen
class ApplianceSettings:
    """The appliance: the parts whose tables the file holds; without either table, both."""

    state: Path = described(
        "The directory of keys, certificates, the database and the control socket.",
        '`"state"`',
        default=Path("state"),
    )
    days: int = described(
        "Lifetime in days of the certificates that invitations and enrolments carry, and of those that these"
        " renew themselves by.",
        "`90`",
        default=CERTIFICATE_DAYS_DEFAULT,
    )
    nameserver: NameserverSettings | None = None
    server: ServerSettings | None = None


@attrs.frozen
class NameSettings:
    """How one name is served; what is not said here is as at the top of the file."""

    tls_origin: Origin | None = described("Where TLS visitors are joined to.", "none", default=None)
    http_origin: Origin | None = described("Where plain HTTP visitors are joined to.", "none", default=None)
    http: Literal["redirect", "serve"] = described(
        "What port 80 does: redirect to https, or serve from `http_origin`.",
        '`"serve"` with an `http_origin` and no certificate, else `"redirect"`',
        default="redirect",
    )
    proxy_protocol: bool = described(
        "Whether the origin gets a PROXY protocol v2 header with the visitor's address first.",
        "`false`",
        default=False,
    )
    forwarded: Literal["add", "off"] = described(
        "Whether each request on port 80 gets `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded`; what the"
        " visitor sent in these fields is then taken out.",
        '`"off"`',
        default="off",
    )
    certificate: Path | None = described(
        "A PEM file: the certificate of the name, and those between it and its root behind it. With it and"
        " `key`, and without a `tls_origin`, the client itself ends the TLS of visitors, and asks"
        " `http_origin`. A file that changes is read again; until it is there visitors get a TLS alert.",
        "none",
        default=None,
    )
    key: Path | None = described(
        "A PEM file: the key of `certificate`. Others may not be able to read it.", "none", default=None
    )
    acme: bool = described(
        "Whether a certificate for the name is got from the CA of `[acme]`, if it has an `http_origin` and"
        " neither a `certificate` nor a `tls_origin`.",
        "`true` with an `[acme]`",
        default=False,
    )

    @property
    def terminated(self) -> bool:
        """Whether the client ends the TLS of visitors."""
        has_one = self.certificate is not None or self.acme
        return self.tls_origin is None and self.http_origin is not None and has_one

    @property
    def certified(self) -> bool:
        """Whether the client gets a certificate for it."""
        return self.terminated and self.certificate is None


@attrs.frozen
class ClientSettings:
    """The tunnel client. The invitation is a file of its own, so that a new one overwrites nothing."""

    invitation: Path = described("The file that `tunnel-appliance invite` wrote.", "none: it must be given")
    state: Path = described(
        "The directory of this client's instance id, of the secret of its session tickets, and of the"
        " certificates that it got.",
        '`"client-state"`',
        default=Path("client-state"),
    )
    resolver: Listen | None = described(
        "The resolver that is asked for the servers. Without a port: 53.", "the system's", default=None
    )
    tls_origin: Origin | None = described(
        'Where TLS visitors are joined to: `"host:port"` or `"unix:/path"`.', "none", default=None
    )
    http_origin: Origin | None = described(
        'Where plain HTTP visitors are joined to: `"host:port"` or `"unix:/path"`.', "none", default=None
    )
    http: Literal["redirect", "serve"] = described(
        "What port 80 does: redirect to https, or serve from `http_origin`.",
        '`"serve"` with an `http_origin` and no certificate, else `"redirect"`',
        default="redirect",
    )
    proxy_protocol: bool = described(
        "Whether the origin gets a PROXY protocol v2 header with the visitor's address first.",
        "`false`",
        default=False,
    )
    certificate: Path | None = described(
        "A PEM file: the certificate of the name, and those between it and its root behind it. With it and"
        " `key`, and without a `tls_origin`, the client itself ends the TLS of visitors, and asks"
        " `http_origin`. A file that changes is read again; until it is there visitors get a TLS alert.",
        "none",
        default=None,
    )
    key: Path | None = described(
        "A PEM file: the key of `certificate`. Others may not be able to read it.", "none", default=None
    )
    forwarded: Literal["add", "off"] = described(
        "Whether each request on port 80 gets `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded`; what the"
        " visitor sent in these fields is then taken out.",
        '`"off"`',
        default="off",
    )
    drain_seconds: int = described(
        "How long its visitors may go on when the client ends (SIGTERM).",
        "`30`",
        default=DRAIN_SECONDS_DEFAULT,
    )
    names: Mapping[str, NameSettings] = attrs.field(factory=dict)
    acme: AcmeSettings | None = None

    def for_name(self, name: str) -> NameSettings:
        """How `name` is served: its own table, or what the top of the file says."""
        if name in self.names:
            return self.names[name]
        return NameSettings(
            self.tls_origin,
            self.http_origin,
            self.http,
            self.proxy_protocol,
            self.forwarded,
            certificate=self.certificate,
            key=self.key,
            acme=self.acme is not None,
        )


def read_appliance(
    path: Path | None,
    overrides: Mapping[str, object],
    *,
    local_addresses: Callable[[], Sequence[str]] = local_addresses,
    host_name: Callable[[], str] = socket.gethostname,
) -> ApplianceSettings:
    """The appliance's settings from a file (None: `./appliance.toml` if there is one) and overrides.

    `overrides` maps the dotted keys of APPLIANCE_OPTIONS to values as they would stand in the file; None
    means not given. Raises SettingsRefused with every error.
    """
    file = _open(path, DEFAULT_APPLIANCE_FILE)
    parts = [part for part in _PARTS if file.given(part)]
    if not parts:
        parts = list(_PARTS)
        file.tables |= {part: {} for part in parts}
    file.lay(overrides, APPLIANCE_OPTIONS)
    for key, port in (
        (("nameserver", "listen"), DNS_PORT),
        (("nameserver", "servers"), TLS_PORT),
        (("server", "nameservers"), DNS_PORT),
        (("server", "tls"), TLS_PORT),
        (("server", "http"), HTTP_PORT),
    ):
        _default_ports(file, key, port)
    _default_ports(file, ("server", "addresses"), _first_port(file))
    made = _converter(file)
    errors = [
        file.error((*key.split("."),), f"{file.filename} has no [{part}]")
        for part in _PARTS
        for key in APPLIANCE_OPTIONS
        if part not in parts and key.startswith(f"{part}.") and file.given(*key.split("."))
    ]
    settings = _structured(file, made, ApplianceSettings, (), errors) or ApplianceSettings()
    settings = attrs.evolve(settings, state=file.path("state") / settings.state)
    if settings.days < 1:
        errors.append(file.error(("days",), "must be at least 1"))
    zones: Zones = {}
    nameserver = _structured(file, made, NameserverSettings, ("nameserver",), errors)
    server = _structured(file, made, ServerSettings, ("server",), errors)
    path, enrolment = _the_enrolment(file, errors)
    if nameserver is not None:
        nameserver = attrs.evolve(nameserver, enrolment=path)
        if enrolment is not None:
            nameserver = _followed(file, nameserver, enrolment, errors)
        kept = settings.state / KEPT_ZONES_NAME
        nameserver, zones = _nameserver(file, nameserver, local_addresses(), kept, errors)
    if server is not None:
        server = attrs.evolve(server, enrolment=path)
        server = _server(file, server, enrolment, zones, local_addresses(), host_name, errors)
    if nameserver is not None:
        own = server.addresses if server is not None else ()
        errors += _unpublished(file, ("server", "addresses"), own, nameserver)
        errors += _unpublished(file, ("nameserver", "servers"), nameserver.servers, nameserver)
    if errors:
        raise SettingsRefused(errors)
    return attrs.evolve(settings, nameserver=nameserver, server=server)


def read_client(path: Path | None, overrides: Mapping[str, object]) -> ClientSettings:
    """A client's settings from a file (None: `./client.toml` if there is one) and overrides.

    `overrides` maps the dotted keys of CLIENT_OPTIONS to values. Raises SettingsRefused with every error.
    """
    file = _open(path, DEFAULT_CLIENT_FILE)
    file.lay(overrides, CLIENT_OPTIONS)
    errors: list[str] = []
    if not file.given("invitation"):
        errors.append("no invitation: give --invitation FILE, which `tunnel-appliance invite NAME` wrote")
        file.tables["invitation"] = "/dev/null"
    if not isinstance(file.tables.get("acme", {}), dict):
        errors.append(file.error(("acme",), "must be a table: write [acme]"))
        del file.tables["acme"]
    _default_ports(file, ("resolver",), DNS_PORT)
    _inherit(file)
    settings = _structured(file, _converter(file), ClientSettings, (), errors)
    if settings is None:
        raise SettingsRefused(errors)
    settings = attrs.evolve(
        settings,
        invitation=file.path("invitation") / settings.invitation,
        state=file.path("state") / settings.state,
        names={
            _name(file, ("names", name), name, errors): with_paths(file, ("names", name), own)
            for name, own in settings.names.items()
        },
    )
    settings = with_paths(file, (), settings)
    if settings.acme is not None:
        acme = with_whole_paths(file, settings.acme)
        settings = attrs.evolve(settings, acme=acme)
        errors += wrong_acme(file, acme)
    if not settings.invitation.exists():
        errors.append(file.error(("invitation",), f"{settings.invitation} does not exist"))
    _check_drain(file, ("drain_seconds",), settings.drain_seconds, errors)
    for key, name in _served(settings):
        if name.tls_origin is None and name.http_origin is None:
            errors.append(
                file.error(key, "no origin: give --tls-origin or --http-origin, HOST:PORT or unix:/PATH")
            )
        elif name.http == "serve" and name.http_origin is None:
            errors.append(file.error((*key, "http"), '"serve" needs an http_origin'))
        errors += wrong_keypair(file, key, name)
        if key and name.acme and settings.acme is None:
            errors.append(file.error((*key, "acme"), "needs [acme]: it says which CA"))
    if errors:
        raise SettingsRefused(errors)
    return settings


# Reading


def _open(path: Path | None, default: Path) -> SettingsFile:
    if path is None and default.exists():
        path = default
    return SettingsFile(path)


def _structured(
    file: SettingsFile, made: cattrs.Converter, cls: type[T], at: tuple[str, ...], errors: list[str]
) -> T | None:
    """The table at `at` as a `cls`; None when there is none, or when `errors` now says what is wrong."""
    if at and not file.given(*at):
        return None
    try:
        return file.structure(made, cls, at, without=() if at else _PARTS)
    except SettingsRefused as error:
        errors += error.errors
        return None


def _converter(file: SettingsFile) -> cattrs.Converter:
    made = converter()
    made.register_structure_hook(Path, lambda value, _: Path(_string(value)))
    made.register_structure_hook(Listen, lambda value, _: read_listen(_string(value)))
    made.register_structure_hook(Origin, lambda value, _: read_origin(_string(value), file.base))
    made.register_structure_hook(
        KeySettings, lambda value, _: read_table(made.structure(value, KeyTable), file.base)
    )
    made.register_structure_hook(
        SecondarySettings, lambda value, _: read_secondary(made.structure(value, SecondaryTable))
    )
    made.register_structure_hook(
        Issuers, lambda value, _: read_caa_table(made.structure(value, CaaTable))
    )
    made.register_structure_hook_func(
        lambda kind: kind == Network, lambda value, _: _network(_string(value))
    )
    made.register_structure_hook(ServerAddress, lambda value, _: read_public(_string(value), TLS_PORT))
    return made


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue(f"must be a string, not {value}")
    if not value:
        raise BadValue("must not be empty")
    return value


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        what = "is neither an address nor a network, as 192.0.2.1, 192.0.2.0/24 or 2001:db8::/48 are"
        raise BadValue(f'"{text}" {what}') from None


def _default_ports(file: SettingsFile, key: tuple[str, ...], port: int) -> None:
    """Write the port that is meant behind every address that has none, before the types are looked at."""
    value = file.value(*key)
    table = file.value(*key[:-1])
    if isinstance(value, str):
        table[key[-1]] = with_port(value, port)
    elif isinstance(value, list | tuple):
        table[key[-1]] = [with_port(item, port) if isinstance(item, str) else item for item in value]


def _first_port(file: SettingsFile) -> int:
    """The port of the first of `server.tls`."""
    tls = file.value("server", "tls")
    with contextlib.suppress(BadValue, TypeError, IndexError):
        return split_host_port(tls[0])[1] or TLS_PORT
    return TLS_PORT


def _nameserver(
    file: SettingsFile, settings: NameserverSettings, local: Sequence[str], kept: Path, errors: list[str]
) -> tuple[NameserverSettings, Zones]:
    """The settings with what they leave unsaid, and the zones; `kept` is what was read of large ones."""
    directory = file.path("nameserver", "zones") / settings.zones
    zones: Zones = {}
    if settings.enrolment is not None:
        pass  # its zones come from their primary
    elif not any(directory.glob("*.zone")):
        what = f"{directory} holds no *.zone file; `tunnel-appliance init ZONE ADDRESS` writes one"
        errors.append(file.error(("nameserver", "zones"), what))
    else:
        from appliance.service.nameserver.zonefiles import ZonesRefused, read_zones  # no client needs it

        try:
            zones = read_zones(directory, kept)
        except ZonesRefused as refused:
            errors += refused.errors
    listen = expanded(settings.listen or (Listen("0.0.0.0", DNS_PORT), Listen("::", DNS_PORT)), local)
    if not listen:
        what = "this machine has no address but loopback; say which one with --dns ADDRESS:PORT"
        errors.append(file.error(("nameserver", "listen"), what))
    if not 0 <= settings.index <= MAX_SERIAL_INDEX:
        errors.append(file.error(("nameserver", "index"), f"must be 0 to {MAX_SERIAL_INDEX}"))
    discovery = settings.discovery
    if discovery is not None:
        discovery = _name(file, ("nameserver", "discovery"), discovery, errors)
    errors += _wrong_keys(file, settings.keys, zones)
    for what in wrong_secondaries(settings.secondaries, settings.keys):
        errors.append(file.error(("nameserver", "secondaries"), what))
    for what in wrong_caa(settings.caa, {zone.apex for zone in zones.values()}):
        errors.append(file.error(("nameserver", "caa"), what))
    secrets = settings.cookie_secrets and file.path("nameserver", "cookie_secrets") / settings.cookie_secrets
    settings = attrs.evolve(
        settings, zones=directory, listen=listen, discovery=discovery, cookie_secrets=secrets
    )
    errors += _wrong_terms(file, settings)
    return settings, zones


def _wrong_terms(file: SettingsFile, settings: NameserverSettings) -> Iterator[str]:
    """An error for each of the settings that say on what terms answers go out."""
    if settings.cookies == "rfc9018" and settings.cookie_secrets is None:
        what = '"rfc9018" is for nameservers that share secrets: give cookie_secrets'
        yield file.error(("nameserver", "cookies"), what)
    if settings.cookie_secrets is not None and not settings.cookie_secrets.exists():
        yield file.error(("nameserver", "cookie_secrets"), f"{settings.cookie_secrets} does not exist")
    if settings.rate_limit < 0:
        yield file.error(("nameserver", "rate_limit"), "must be 0 (no limit) or more")
    if settings.slip < 0:
        yield file.error(("nameserver", "slip"), "must be 0 (none) or more")
    if settings.nsid is not None and not 0 < len(settings.nsid.encode()) <= MAX_NSID_OCTETS:
        yield file.error(("nameserver", "nsid"), f"must be 1 to {MAX_NSID_OCTETS} octets")


def _wrong_keys(file: SettingsFile, keys: Sequence[KeySettings], zones: Zones) -> Iterator[str]:
    """An error for each key that is there twice, and for each name that is in no zone."""
    place = ("nameserver", "keys")
    try:
        all_keys(keys)
    except BadValue as error:
        yield file.error(place, str(error))
    apexes = {zone.apex for zone in zones.values()}
    for name in {name for one in keys for name in one.names} if apexes else ():
        above = parent(name) if is_wildcard(name) else name
        if not any(is_at_or_below(above, apex) for apex in apexes):
            yield file.error(place, f"{to_text(name)} is in none of the zones")


def _server(
    file: SettingsFile,
    settings: ServerSettings,
    enrolment: Enrolment | None,
    zones: Zones,
    local: Sequence[str],
    host_name: Callable[[], str],
    errors: list[str],
) -> ServerSettings:
    """The settings with what they leave unsaid."""
    identifier, addresses = settings.id or server_id(host_name()), settings.addresses
    if enrolment:
        if not enrolment.credential_pem:
            errors.append(file.error(("server",), "the enrolment is not one of a tunnel server"))
        if settings.id not in ("", enrolment.server_id):
            errors.append(file.error(("server", "id"), f'the enrolment says "{enrolment.server_id}"'))
        identifier = enrolment.server_id
        enrolled = [address.host for address in enrolment.addresses]
        for address in addresses if enrolment.credential_pem else ():
            if address.host not in enrolled:
                what = f"the enrolment is not for {address.host} but for {', '.join(enrolled)}"
                errors.append(file.error(("server", "addresses"), what))
        addresses = addresses or enrolment.addresses
    elif not addresses and settings.enrolment is None:
        addresses = addresses_from_glue(zones, local, _first_port(file))
        if not addresses and not errors:
            errors.append(file.error(("server", "addresses"), why_no_address(zones, local)))
    if not _ID.fullmatch(identifier):
        errors.append(file.error(("server", "id"), "must be 1 to 63 of a-z, 0-9 and inner hyphens"))
    if settings.nameservers and (enrolment is None or enrolment.introduction is None):
        what = "only a server whose enrolment has the keys for it can announce itself"
        errors.append(file.error(("server", "nameservers"), what))
    default_name = settings.default_name
    if default_name is not None:
        default_name = _name(file, ("server", "default_name"), default_name, errors)
    _check_drain(file, ("server", "drain_seconds"), settings.drain_seconds, errors)
    errors += _wrong_limits(file, settings)
    if not 0 <= settings.https_port <= 65535:
        errors.append(file.error(("server", "https_port"), "must be 1 to 65535"))
    return attrs.evolve(
        settings,
        id=identifier,
        addresses=addresses,
        tls=settings.tls or everywhere(TLS_PORT),
        http=settings.http or everywhere(HTTP_PORT),
        default_name=default_name,
        access_log=settings.access_log and file.path("server", "access_log") / settings.access_log,
        https_port=settings.https_port or (addresses[0].port if addresses else TLS_PORT),
    )


def _wrong_limits(file: SettingsFile, settings: ServerSettings) -> Iterator[str]:
    """An error for each of the settings that say who may come in, and where that is told."""
    for key in ("source_open", "source_new", "name_open", "all_open"):
        if getattr(settings, key) < 0:
            yield file.error(("server", key), "must be 0 (no limit) or more")
    metrics = settings.metrics
    if metrics is not None and not (metrics.port and ipaddress.ip_address(metrics.host).is_loopback):
        what = "must be a loopback address with a port, as 127.0.0.1:9100 is"
        yield file.error(("server", "metrics"), what)


def _unpublished(
    file: SettingsFile,
    key: tuple[str, ...],
    addresses: Sequence[ServerAddress],
    nameserver: NameserverSettings,
) -> list[str]:
    """An error for each address that the nameserver would never publish: better said now than not found."""
    return [
        file.error(key, f"{address.host} is not globally routable; --private-addresses publishes it anyway")
        for address in addresses
        if not may_be_published(address, nameserver.private_addresses)
    ]


def _the_enrolment(file: SettingsFile, errors: list[str]) -> tuple[Path | None, Enrolment | None]:
    """The one file of both parts, and what it says; None where it cannot be read."""
    keys = [(part, "enrolment") for part in _PARTS if isinstance(file.value(part, "enrolment"), str)]
    paths = [file.path(*key) / file.value(*key) for key in keys]
    if not paths:
        return None, None
    if len(set(paths)) > 1:
        errors.append(file.error(keys[1], f"[{keys[0][0]}] has another one: an appliance has one enrolment"))
    path, key = paths[0], keys[0]
    try:
        return path, read_enrolment(path.read_text(encoding="utf-8"))
    except OSError as error:
        errors.append(file.error(key, f"{path} cannot be read: {error.strerror}"))
    except (InvitationRefused, UnicodeDecodeError) as error:
        errors.append(file.error(key, f"{path}: {error}"))
    return path, None


def _followed(
    file: SettingsFile, settings: NameserverSettings, enrolment: Enrolment, errors: list[str]
) -> NameserverSettings:
    """The settings with what the enrolment says."""
    following = enrolment.following
    if following is None:
        what = "the enrolment is not one of a nameserver: `tunnel-appliance enroll --nameserver` writes it"
        errors.append(file.error(("nameserver",), what))
        return settings
    if file.given("nameserver", "zones"):
        what = "the enrolment says which zones are followed"
        errors.append(file.error(("nameserver", "zones"), what))
    if file.given("nameserver", "index") and settings.index != following.index:
        errors.append(file.error(("nameserver", "index"), f"the enrolment says {following.index}"))
    servers = [one for one in following.servers if one not in enrolment.addresses]
    return attrs.evolve(
        settings,
        index=following.index,
        servers=tuple(dict.fromkeys((*servers, *settings.servers))),
        following=following,
    )


def _name(file: SettingsFile, key: tuple[str, ...], text: str, errors: list[str]) -> str:
    try:
        return normal(text)
    except BadHostName as error:
        errors.append(file.error(key, str(error)))
        return text


def _check_drain(file: SettingsFile, key: tuple[str, ...], seconds: int, errors: list[str]) -> None:
    if not 0 <= seconds <= MAX_DRAIN_SECONDS:
        errors.append(file.error(key, f"must be 0 to {MAX_DRAIN_SECONDS} seconds"))


# A client's names


_PER_NAME = tuple(field.name for field in attrs.fields(NameSettings))


def _inherit(file: SettingsFile) -> None:
    """Give every name what the top of the file says and it does not, and decide what port 80 does."""
    top = file.tables
    names = top.get("names")
    tables = [top]
    if isinstance(names, dict):
        for name in list(names):
            if isinstance(names[name], dict):
                inherited = {key: top[key] for key in _PER_NAME if key in top and key != "acme"}
                if "acme" in top:
                    inherited["acme"] = True
                names[name] = without_other_end(inherited, names[name]) | names[name]
                tables.append(names[name])
    for table in tables:
        terminated = ("certificate" in table or table.get("acme")) and "tls_origin" not in table
        if "http_origin" in table and not terminated:
            table.setdefault("http", "serve")


def _served(settings: ClientSettings) -> Iterator[tuple[tuple[str, ...], NameSettings]]:
    """Every way a name may be served, with its place; the top counts where some name may fall back on it."""
    top = settings.for_name("")
    if not settings.names or top.tls_origin is not None or top.http_origin is not None:
        yield (), top
    for name, own in settings.names.items():
        yield ("names", name), own
