"""The appliance as one service: what it is made of, how the parts know each other, in which order they start.

Ports are bound in privilegedStartService (or in startService where nobody calls that); the database, the keys
and the control socket are made in startService, as the user that stays.
"""

from __future__ import annotations

import os
import secrets
import socket
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance import __version__
from appliance.addresses import Listen
from appliance.derived import server_id
from appliance.dns.followed import Asked, ForwardAsked
from appliance.dns.names import BadName, from_text, is_at_or_below, to_text
from appliance.dns.responder import Responder
from appliance.dns.update import UpdateAsked
from appliance.fleet.clientkeys import ClientKeys, ClientPolicies
from appliance.fleet.clientkeys import key_of as key_of_client
from appliance.fleet.serverkeys import SECRET_OCTETS, ServerKeys
from appliance.ingress.limits import Limits
from appliance.keysettings import all_keys, policies
from appliance.secondaries import receivers, secondaries
from appliance.service.accesslog import CannotLog
from appliance.service.authority import Authority, AuthorityRefused, Identity, NotIssued, first_failure
from appliance.service.commands import commands
from appliance.service.control import CannotControl, Command, CommandRefused, Control
from appliance.service.departure import Departure
from appliance.service.nameserver.accounts import Accounts
from appliance.service.nameserver.challenges import Challenges
from appliance.service.nameserver.counting import counted
from appliance.service.nameserver.dials import Meeting
from appliance.service.nameserver.following import Following, Primary
from appliance.service.nameserver.forwarding import Forwarding
from appliance.service.nameserver.gating import SecretsUnreadable, gate_of, reload_secrets
from appliance.service.nameserver.introducing import everywhere, introduction_of, zone_for
from appliance.service.nameserver.introductions import Introductions
from appliance.service.nameserver.notifier import Notifier
from appliance.service.nameserver.peers import NoPeer, Peers, key_from, key_texts, primary_addresses
from appliance.service.nameserver.places import Places
from appliance.service.nameserver.registry import Registry
from appliance.service.nameserver.statics import Statics
from appliance.service.nameserver.tcp import TcpNameserver
from appliance.service.nameserver.transfers import Transfers
from appliance.service.nameserver.udp import UdpNameserver
from appliance.service.nameserver.updates import Updates
from appliance.service.nameserver.watcher import Watcher
from appliance.service.nameserver.zonefiles import Zonefiles, ZonesRefused
from appliance.service.ports import CannotListen
from appliance.service.renewals import Renewals
from appliance.service.server.announcer import Announcer
from appliance.service.server.tunnelserver import TunnelServer
from appliance.service.server.watches import LocalEnd, Watches
from appliance.service.store import EnrolledPeer, Store, StoreFailed, StoreRefused
from appliance.settings import KEPT_ZONES_NAME, ApplianceSettings, NameserverSettings, ServerSettings
from appliance.tunnel.certificates import SERVICE_NAME, Credential, Role
from appliance.tunnel.challenge import may_be_challenged, owner_of
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import AcmeKey, Enrolment, Introduction, read_enrolment
from appliance.tunnel.invitation import Following as EnrolledFollowing

STORE_NAME = "appliance.sqlite"
WARNING_SECONDS = 86400.0
"""Once a day is said what expires within a month."""
BOOT_OCTETS = 16


class Nameserving:
    """The nameserver: zones, the fleet's records over them, and who answers for both."""

    def __init__(
        self,
        reactor: Any,
        settings: NameserverSettings,
        store: Store,
        authority: Authority,
        *,
        nameserver_id: str,
        service_name: str,
        own: Sequence[ServerAddress],
        local: LocalEnd | None,
        kept: Path,
    ) -> None:
        """`own` are the addresses of the tunnel server in this process, `local` its end of a watch; in the
        directory `kept` is what was read of large zone files."""
        self._store = store
        self._authority = authority
        self._settings = settings
        self._gate = gate_of(settings)
        responder = Responder(gate=self._gate, rotate=settings.rotate)
        directory = settings.zones if settings.following is None else None
        self.zonefiles = Zonefiles(
            directory, store, reactor, index=settings.index, responder=responder, kept=kept
        )
        statics = Statics(self.zonefiles, settings.index)
        self.registry = Registry(
            reactor,
            store,
            self.zonefiles,
            listed=(*own, *settings.servers),
            introduced=lambda server_id: self.introductions.introduced(server_id),
            discovery=settings.discovery,
            private_addresses=settings.private_addresses,
            issuers=settings.caa,
            accounts=lambda name: self.accounts.of(name),
        )
        self.accounts = Accounts(reactor, store, self.registry.accounts_changed)
        meeting = Meeting(
            reactor,
            nameserver_id=nameserver_id,
            service_name=service_name,
            identity=lambda: (_made(authority.nameserver), authority.ca),
            revocations=authority,
            renews=lambda: authority.issues,
        )
        self.use_new_identity = meeting.forget_identity
        self.watcher = Watcher(reactor, self.registry, settings.servers, meeting, local=local)
        self.challenges = Challenges(reactor, self.zonefiles)
        self.watcher.on_challenges(self.challenges.said, self.challenges.withdrawn)
        self.watcher.on_accounts(self.accounts.said)
        self.introductions = Introductions(
            reactor, store, self.registry, self.watcher, may_announce=authority.may_announce
        )
        self.updates = Updates(
            reactor, store, self.zonefiles, ClientPolicies(policies(settings.keys), authority.granted)
        )
        responder.keys = all_keys(settings.keys)
        responder.receivers = receivers(settings.keys)
        hosts = [listen.host for listen in settings.listen]
        self.peers = Peers(
            reactor, store, statics, responder, hosts, index=settings.index, random_octets=os.urandom
        )
        self.following: Following | None = None
        self.forwarding: Forwarding | None = None
        if settings.following is not None:
            self._follow(reactor, settings.following, responder)
        self.transfers = transfers = Transfers(reactor, self.zonefiles, statics=statics)
        self.notifier = Notifier(
            reactor,
            self.zonefiles,
            secondaries(settings.secondaries, responder.keys),
            hosts,
        )
        update = self._update
        self._listed = {address.host for address in (*own, *settings.servers)}
        self._listed |= {one.address.host for one in settings.secondaries}
        self._places = Places(self._is_ours)
        self.listening: list[UdpNameserver | TcpNameserver] = []
        for listen in settings.listen:
            where = listen.host, listen.port
            self.listening.append(
                UdpNameserver(reactor, responder, *where, update=update, transfers=transfers)
            )
            self.listening.append(
                TcpNameserver(
                    reactor, responder, *where, update=update, transfers=transfers, places=self._places
                )
            )

    def _follow(self, reactor: Any, enrolled: EnrolledFollowing, responder: Responder) -> None:
        """Let the zones be those of our primary."""
        apexes = tuple(from_text(zone) for zone in enrolled.zones)
        addresses = tuple((address.host, address.port) for address in enrolled.primary)
        primary = Primary(apexes, addresses, key_from(enrolled.key_name, enrolled.key_secret))
        responder.followed = dict.fromkeys(apexes, primary.key)
        self.following = Following(
            reactor,
            self._store,
            self.zonefiles,
            primary,
            message_id=lambda: secrets.randbits(16),
            zones_changed=self.registry.zones_changed,
        )
        self.forwarding = Forwarding(reactor, addresses, self.following.ask)

    def _update(self, asked: Asked) -> Deferred[bytes]:
        if isinstance(asked, UpdateAsked):
            key = asked.signed.key
            is_introduction = self.zonefiles.responder.introducers.get(key.name) == key
            return self.introductions.update(asked) if is_introduction else self.updates.update(asked)
        assert self.following is not None
        assert self.forwarding is not None
        if isinstance(asked, ForwardAsked):
            return self.forwarding.forward(asked)
        self.following.heard(asked)
        return succeed(asked.octets)

    @property
    def parts(self) -> list[Service]:
        """What runs besides the sockets, in the order of starting; `load` comes before."""
        following = [part for part in (self.following, self.forwarding) if part is not None]
        return [self.zonefiles, self.registry, self.accounts, *following]

    def load(self) -> None:
        """Serve what is on the disk. Raises ZonesRefused or StoreFailed."""
        self.zonefiles.responder.introducers = ServerKeys(self._own_secret())
        if self.following is None:  # else they are known where the CA is, and we pass on what they sign
            self.zonefiles.responder.clients = ClientKeys(self._own_secret())
        self.introductions.load()
        self.accounts.load(self._authority.revoked)
        self.zonefiles.load()
        if self.following is not None:
            self.following.load()

    def _own_secret(self) -> bytes:
        """What the keys of tunnel servers at this nameserver are derived from. Where the CA is they must be
        known as well: of a further nameserver it is the secret that its enrolment shares with that place.
        """
        following = self._settings.following
        if following is not None:
            return key_from(following.key_name, following.key_secret).secret
        return self._store.own_secret(lambda: os.urandom(SECRET_OCTETS))

    def forget(self, name: str) -> Deferred[bool]:
        """The name is not known any more, until a client serves it again. Fires with whether it was."""

        def forgotten(was_known: bool) -> bool:
            self.accounts.forgotten(name, self.registry.is_known)
            return was_known

        return self.registry.forget(name).addCallback(forgotten)

    def introduction(self, nameserver_id: str, server_id: str, serial: int) -> Introduction | None:
        """To whom a tunnel server that is enrolled here announces itself: to us, who are called
        `nameserver_id`, and to every further nameserver but itself. None where no zone is served. Raises
        NotIssued.
        """
        zones = self.zonefiles.zones
        if not zones:
            return None
        settings = self._settings
        places = primary_addresses(zones.values(), settings.listen)
        own = EnrolledPeer(nameserver_id, settings.index, places, self._own_secret())
        zone = zone_for(zones, settings.discovery)
        try:
            return introduction_of(server_id, serial, zone=zone, own=own, peers=self._store.peers())
        except BadName as error:
            raise NotIssued(f"{server_id}: {error}") from None

    def acme_key(self, client_id: str, serial: int, granted: Sequence[str]) -> AcmeKey | None:
        """The key that a client which is invited here has for its challenges; None where it would be good for
        nothing.
        """
        zones = self.zonefiles.zones
        owners = (from_text(owner_of(name)) for name in granted if may_be_challenged((name,), name))
        if not any(is_at_or_below(owner, apex) for owner in owners for apex in zones):
            return None
        try:
            key = key_of_client(self._own_secret(), client_id, serial)
        except BadName:
            return None
        secret = b64encode(key.secret).decode("ascii")
        return AcmeKey(to_text(key.name), primary_addresses(zones.values(), self._settings.listen), secret)

    def follow(
        self,
        peer_id: str,
        addresses: Sequence[ServerAddress],
        primary: Sequence[ServerAddress],
        servers: Sequence[ServerAddress],
    ) -> Deferred[EnrolledFollowing]:
        """What a further nameserver, which will answer DNS at `addresses`, needs. Raises NotIssued."""
        zones = self.zonefiles.zones
        at = tuple(primary) or primary_addresses(zones.values(), self._settings.listen)

        def added(peer: EnrolledPeer) -> EnrolledFollowing:
            texts = tuple(sorted(map(to_text, zones)))
            return EnrolledFollowing(peer.index, texts, at, tuple(servers), **key_texts(peer))

        try:
            return self.peers.add(peer_id, addresses).addCallback(added)
        except NoPeer as error:
            raise NotIssued(str(error)) from None

    def _is_ours(self, host: str) -> bool:
        """Whether a tunnel server, a peer or a secondary of ours is at `host`."""
        servers = self._store.servers()
        if host in self.peers.addresses:
            return True
        return host in self._listed or any(one.host == host for each in servers for one in each.addresses)

    def reload(self) -> Deferred[list[str]]:
        """Read the zone files again; fires with what is wrong in those that stay as they were."""

        def reloaded(errors: list[str]) -> list[str]:
            if self.following is not None:
                self.following.ask_all()
            self.registry.zones_changed()
            return errors + reload_secrets(self._gate, self._settings)

        def failed(failure: Failure) -> list[str]:
            failure.trap(StoreFailed)
            return [str(failure.value)]

        return self.zonefiles.reload_soon().addCallbacks(reloaded, failed)

    def status(self) -> dict[str, Any]:
        zones = self.zonefiles.responder.zones.values()
        return {
            "zones": [
                {
                    "zone": to_text(zone.apex),
                    "serial": zone.serial,
                    "amended": len(self._store.amendments(zone.apex)),
                }
                for zone in zones
            ],
            "updates": dict(self.updates.counters),
            "tcp": {"connections": len(self._places), "sources": self._places.sources},
            "dns": counted(self.zonefiles.responder, (each.counters for each in self.listening)),
            "transfers": dict(self.transfers.counters),
            "notices": dict(self.notifier.counters),
            "secondaries": self.notifier.status(),
            "peers": self.peers.status(),
            **(self._followed() if self.following is not None else {}),
            **self.registry.status(),
            "watches": self.watcher.status(),
            "introduced": self.introductions.status(),
            "accounts": self.accounts.status(),
            "announcements_heard": dict(self.introductions.counters),
        }

    def _followed(self) -> dict[str, Any]:
        assert self.following is not None
        assert self.forwarding is not None
        counters = {**self.following.counters, **self.forwarding.counters}
        return {"followed": counters, "followed_zones": self.following.status()}


class Appliance(Service):
    """The parts that `settings` hold, on one reactor.

    Reads the enrolment and the cookie secrets at once, as the user that starts (EnrolmentUnreadable,
    SecretsUnreadable). Starting raises REFUSALS. `asked_to_drain` is what the command `drain` does: whoever
    ends the process in order puts that there.
    """

    _log = Logger()

    def __init__(self, reactor: Any, settings: ApplianceSettings) -> None:
        self._settings = settings
        identity = _identity(settings)
        own_id = identity.server_id or identity.nameserver_id or ""
        service_name = identity.enrolment.service_name if identity.enrolment else SERVICE_NAME
        self.store = Store(settings.state / STORE_NAME, reactor)
        self.authority = Authority(
            settings.state,
            self.store,
            identity,
            days=settings.days,
            wall=lambda: datetime.now(UTC),
            discovery=self._discovery,
            servers=self._servers,
            introduction=self._introduction,
            acme_key=self._acme_key,
            seconds=reactor.seconds,
        )
        self._own_id = own_id
        self.server: TunnelServer | None = None
        self.watches: Watches | None = None
        self.announcer: Announcer | None = None
        if settings.server is not None:
            boot = os.urandom(BOOT_OCTETS).hex()
            self.announcer = _announcer(reactor, settings, identity, boot)
            addresses = settings.server.addresses
            self.watches = Watches(
                reactor, server_id=own_id, boot=boot, addresses=addresses, revocations=self.authority
            )
            self.server = _server(
                reactor, settings.server, self.authority, self.watches, boot=boot, service_name=service_name
            )
            self.authority.on_revoked(self.server.revoke)
            self.authority.on_revoked(self.watches.revoke)
        self.nameserver: Nameserving | None = None
        if settings.nameserver is not None:
            self.nameserver = Nameserving(
                reactor,
                settings.nameserver,
                self.store,
                self.authority,
                nameserver_id=own_id,
                service_name=service_name,
                own=identity.addresses,
                local=self.watches.local() if self.watches else None,
                kept=settings.state / KEPT_ZONES_NAME,
            )
            self.authority.on_revoked(self.nameserver.watcher.revoke)
            self.authority.on_revoked(self.nameserver.introductions.revoke)
            self.authority.on_revoked(self.nameserver.accounts.revoke)
        self.renewals = Renewals(
            reactor,
            self.authority,
            watches=self.watches,
            watcher=self.nameserver.watcher if self.nameserver else None,
            took=self._renewed,
            wall=lambda: datetime.now(UTC),
        )
        self.asked_to_drain: Callable[[], object] = self.drain
        self._departure = Departure(
            reactor,
            self.watches,
            self.server,
            finish_seconds=settings.server.drain_seconds if settings.server else 0,
        )
        self._control = Control(reactor, settings.state, self._commands())
        self._warning = LoopingCall(self.authority.warn)
        self._warning.clock = reactor
        self._started: list[Service] = []

    @property
    def _ports(self) -> list[Service]:
        """Everything that listens on a port."""
        listening: list[Service] = list(self.nameserver.listening) if self.nameserver else []
        return [*listening, self.server] if self.server else listening

    def privilegedStartService(self) -> None:
        """Bind the ports, while we may. Raises CannotListen."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        for one in self._ports:
            one.privilegedStartService()

    def startService(self) -> None:
        """Make or read what is on the disk, and open. Raises one of REFUSALS."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreRefused(f"{self._settings.state}: cannot be made: {error.strerror}") from None
        self.store.open()
        self.authority.open()
        parts: list[Service | None] = [self.watches, self.server]
        if self.nameserver is not None:
            self.nameserver.load()
            parts = [*self.nameserver.parts, *parts]
            parts += [self.nameserver.watcher, self.nameserver.introductions, *self.nameserver.listening]
            parts += [self.nameserver.notifier, self.nameserver.peers]
        parts += [self.announcer, self.renewals]
        for part in (*parts, self._control):
            if part is not None:
                part.startService()
                self._started.append(part)
        self._warning.start(WARNING_SECONDS)
        self._log.info("ready: {listening}", listening=", ".join(self.listening()))

    def stopService(self) -> Deferred[Any]:
        """Stop everything, the last started first; fires when the database is closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._warning.running:
            self._warning.stop()
        self._departure.stop()
        # What is published stays published: the records must not follow our own clients' links down. And the
        # watches say that the server leaves before it closes them.
        started, self._started = self._started, []
        nameserver = self.nameserver
        first: list[Service] = []
        if nameserver is not None:
            nameserver.challenges.stop()
            first = [nameserver.introductions, nameserver.watcher, nameserver.registry]
        order = [part for part in (self.announcer, *first, self.watches) if part in started]
        order += [part for part in reversed(started) if part not in order]
        stopped = gatherResults([maybeDeferred(part.stopService) for part in order], consumeErrors=True)
        return stopped.addBoth(self._closed)

    def _closed(self, result: Any) -> Deferred[Any]:
        return self.store.close().addCallback(lambda _: result)

    def drain(self) -> Deferred[None]:
        """Leave the DNS, and serve until nobody comes any more; fires when the process may end."""
        if self.announcer is not None and self.announcer in self._started:
            self._started.remove(self.announcer)
            self.announcer.stopService()  # who leaves is not introduced again
        return self._departure.begin()

    def reload(self) -> Deferred[list[str]]:
        """Read the zones and the revocation list again, and look whether a certificate is to be renewed.

        Fires with what is wrong in those that stay as they were, which is logged as well."""
        self.renewals.hurry()
        errors = self.authority.reload()
        for error in errors:
            self._log.error("{error}", error=error)

        def told(zone_errors: list[str]) -> list[str]:
            self._log.info("reloaded, {count} errors", count=len(errors) + len(zone_errors))
            return errors + zone_errors

        nothing: list[str] = []
        zones = succeed(nothing) if self.nameserver is None else self.nameserver.reload()
        return zones.addCallback(told)

    def listening(self) -> list[str]:
        """What is listened on, in words."""
        found = []
        if self.nameserver is not None:
            found += [f"DNS {_shown(one.host, one.port)}" for one in self.nameserver.listening[::2]]
        if self.server is not None and self._settings.server is not None:
            listens = [("TLS", one) for one in self._settings.server.tls]
            listens += [("HTTP", one) for one in self._settings.server.http]
            ports = self.server.ports
            found += [
                f"{kind} {_shown(one.host, port)}" for (kind, one), port in zip(listens, ports, strict=True)
            ]
        return found

    def status(self) -> dict[str, Any]:
        """Plain values for the operator."""
        issued = [
            {
                "role": one.role,
                "id": one.id,
                "names": list(one.names),
                "expires": one.expires,
                "revoked": one.revoked,
            }
            for one in self.store.issued()
        ]
        return {
            "version": __version__,
            "server": self._settings.server.id if self._settings.server else "",
            "listening": self.listening(),
            **self._departure.status(),
            **(self.nameserver.status() if self.nameserver else {}),
            **(self.server.status() if self.server else {}),
            **({"announcements": self.announcer.status()} if self.announcer else {}),
            "renewals": self.renewals.status(),
            "issued": issued,
            "expiring": [str(one) for one in self.authority.expiring()],
        }

    # What the parts ask each other

    def _commands(self) -> dict[str, Command]:
        return commands(
            self.authority,
            invited=self._invited,
            removed=self._removed,
            forget=self._forget,
            reload=self.reload,
            drain=self._drain_asked,
            status=self.status,
            follow=None if self.nameserver is None else self._follow,
        )

    def _follow(
        self, peer_id: str, addresses: Sequence[ServerAddress], primary: Sequence[ServerAddress]
    ) -> Deferred[EnrolledFollowing]:
        assert self.nameserver is not None
        enrolled = [places for one, places in self.store.enrolled().items() if one != peer_id]
        return self.nameserver.follow(peer_id, addresses, primary, everywhere(self._servers(), enrolled))

    def _introduction(self, server_id: str, serial: int) -> Introduction | None:
        if self.nameserver is None:
            return None
        return self.nameserver.introduction(self._own_id, server_id, serial)

    def _acme_key(self, client_id: str, serial: int, granted: Sequence[str]) -> AcmeKey | None:
        return None if self.nameserver is None else self.nameserver.acme_key(client_id, serial, granted)

    def _renewed(self, role: Role, credential: Credential) -> None:
        """New handshakes are made with this."""
        if role is Role.SERVER and self.server is not None:
            self.server.use(credential)
        elif role is Role.NAMESERVER and self.nameserver is not None:
            self.nameserver.use_new_identity()

    def _drain_asked(self) -> float:
        self.asked_to_drain()
        return self._departure.most_seconds

    def _invited(self, names: Sequence[str], expires: float) -> Deferred[Any]:
        if self.nameserver is None:
            return succeed(None)
        registry = self.nameserver.registry
        known = gatherResults([registry.know(name, expires) for name in names], consumeErrors=True)
        return known.addErrback(first_failure)

    def _removed(self, removed_id: str) -> None:
        self.store.forget_enrolled(removed_id).addErrback(lambda failure: failure.trap(StoreFailed))
        if self.nameserver is not None:
            self.nameserver.peers.forget(removed_id).addErrback(lambda failure: failure.trap(StoreFailed))
            for server in self.store.servers():
                for address in server.addresses if server.id == removed_id else ():
                    self.nameserver.registry.removed(address)

    def _forget(self, name: str) -> Deferred[bool]:
        if self.nameserver is None:
            raise CommandRefused("this appliance has no nameserver, and so no known names")
        return self.nameserver.forget(name)

    def _discovery(self, names: Sequence[str]) -> str:
        """The configured name, or the apex of the zone that the first name in a zone of ours is in.

        Custom domains alone: any apex of ours lists the servers.
        """
        settings = self._settings.nameserver
        if settings is not None and settings.discovery is not None:
            return settings.discovery
        apexes = sorted(self.nameserver.zonefiles.apexes, key=len, reverse=True) if self.nameserver else []
        for name in names:
            for apex in apexes:
                if is_at_or_below(from_text(name), apex):
                    return to_text(apex)
        return to_text(apexes[-1]) if apexes else names[0].removeprefix("*.")

    def _servers(self) -> tuple[ServerAddress, ...]:
        """Every server that a new client may start from: ours, those listed, those seen."""
        settings = self._settings
        known = [*(settings.server.addresses if settings.server else ())]
        known += settings.nameserver.servers if settings.nameserver else ()
        known += [address for server in self.store.servers() for address in server.addresses]
        return tuple(dict.fromkeys(known))


class EnrolmentUnreadable(Exception):
    """The enrolment cannot be read; the text names the file and says why."""


def _identity(settings: ApplianceSettings) -> Identity:
    server, nameserver = settings.server, settings.nameserver
    path = (server and server.enrolment) or (nameserver and nameserver.enrolment)
    enrolment: Enrolment | None = None
    if path:
        try:
            enrolment = read_enrolment(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EnrolmentUnreadable(f"{path}: {error}") from None
    if server is not None:
        own_id = server.id
    else:
        own_id = enrolment.server_id if enrolment else server_id(socket.gethostname())
    return Identity(
        server_id=own_id if server else None,
        nameserver_id=own_id if settings.nameserver else None,
        addresses=server.addresses if server else (),
        enrolment=enrolment,
    )


def _server(
    reactor: Any,
    settings: ServerSettings,
    authority: Authority,
    watches: Watches,
    *,
    boot: str,
    service_name: str,
) -> TunnelServer:
    return TunnelServer(
        reactor,
        server_id=settings.id,
        boot=boot,
        service_name=service_name,
        tls_addresses=[(listen.host, listen.port) for listen in settings.tls],
        http_addresses=[(listen.host, listen.port) for listen in settings.http],
        https_port=settings.https_port,
        default_name=settings.default_name,
        identity=lambda: (_made(authority.server), authority.ca),
        examine=authority.examine,
        revocations=authority,
        known=watches.may_be_known,
        known_as=watches.known.known_as,
        watch_for=watches.protocol_for,
        serving=watches.serving,
        not_serving=watches.not_serving,
        challenges=watches.challenges,
        renew=watches.renew_for,
        accounts=watches.accounts,
        limits=Limits(
            source_open=settings.source_open,
            source_new=settings.source_new,
            name_open=settings.name_open,
            all_open=settings.all_open,
            exempt=settings.source_exempt,
        ),
        access_log=settings.access_log,
        access_log_format=settings.access_log_format,
        metrics=(settings.metrics.host, settings.metrics.port) if settings.metrics else None,
    )


def _announcer(
    reactor: Any, settings: ApplianceSettings, identity: Identity, boot: str
) -> Announcer | None:
    """What makes this server known, where its enrolment has the keys for it."""
    introduction = identity.enrolment.introduction if identity.enrolment else None
    if introduction is None or settings.server is None or identity.server_id is None:
        return None
    addresses = settings.server.addresses
    own: list[str] = []
    if settings.nameserver is not None:
        own = [one.host for one in settings.nameserver.listen] + [one.host for one in addresses]
    return Announcer(
        reactor,
        server_id=identity.server_id,
        boot=boot,
        addresses=addresses,
        introduction=introduction,
        nameservers=settings.server.nameservers,
        own=own,
    )


def _made(credential: Credential | None) -> Credential:
    assert credential is not None, "the authority is open before anybody shows a certificate"
    return credential


def _shown(host: str, port: int) -> str:
    return str(Listen(host, port))


REFUSALS = (
    AuthorityRefused,
    CannotControl,
    CannotListen,
    CannotLog,
    EnrolmentUnreadable,
    SecretsUnreadable,
    StoreFailed,
    StoreRefused,
    ZonesRefused,
)
"""What an operator can mend when the appliance does not start: one line each, no traceback."""
