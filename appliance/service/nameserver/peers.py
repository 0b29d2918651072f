"""The nameservers that follow us, as they were enrolled: their keys, and that they are told of new versions.

Hides which index each has, how its key is called, and the disk that this is kept on. What they copy is
statics'.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from appliance.addresses import Listen
from appliance.dns import names
from appliance.dns.notify import Secondary
from appliance.dns.numbers import AAAA, A
from appliance.dns.responder import Responder
from appliance.dns.transfer import Grant, Receiver, Receivers
from appliance.dns.tsig import Key, Keys
from appliance.dns.zone import Zone
from appliance.service.nameserver.notifier import Notifier
from appliance.service.nameserver.statics import Statics
from appliance.service.store import EnrolledPeer, Store
from appliance.tunnel.discovery import ServerAddress

SECRET_OCTETS = 32
"""As long as the hash of hmac-sha256, the algorithm of every peer's key."""
MAX_NAMESERVERS = 8
"""As many as there are indices: the low three bits of a serial."""
_ALGORITHM = names.from_text("hmac-sha256")
_KEYS_BELOW = "peer.internal"


class NoPeer(ValueError):
    """This cannot be a further nameserver; the text says why."""


class Peers(service.Service):
    """The peers of this nameserver, which has the `index`. `responder` takes their keys beside `keys` and
    `receivers`, those of the settings, once the service has started. NOTIFY leaves from `hosts`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        store: Store,
        statics: Statics,
        responder: Responder,
        hosts: Sequence[str],
        *,
        index: int,
        random_octets: Callable[[int], bytes],
    ) -> None:
        self._reactor = reactor
        self._store = store
        self._statics = statics
        self._responder = responder
        self._hosts = hosts
        self._index = index
        self._random_octets = random_octets
        self._keys: Keys = responder.keys
        self._receivers: Receivers = responder.receivers
        self._notifiers: dict[str, tuple[EnrolledPeer, Notifier]] = {}

    @property
    def addresses(self) -> frozenset[str]:
        """Where the peers are."""
        return frozenset(address.host for peer in self._store.peers() for address in peer.addresses)

    def add(self, peer_id: str, addresses: Sequence[ServerAddress]) -> Deferred[EnrolledPeer]:
        """Make a peer of a new key, which answers DNS at these addresses; fires when the disk has it.

        Who had the id before keeps its index, and can no longer copy. Raises NoPeer.
        """
        try:
            name = _key_name(peer_id)
        except names.BadName as error:
            raise NoPeer(f"{peer_id}: {error}") from None
        if name in self._keys:
            raise NoPeer(f"the settings have a key {names.to_text(name)}")
        others = {peer.id: peer.index for peer in self._store.peers()}
        free = set(range(MAX_NAMESERVERS)) - {self._index, *others.values()}
        if peer_id not in others and not free:
            raise NoPeer(f"there are {MAX_NAMESERVERS} nameservers already")
        index = others[peer_id] if peer_id in others else min(free)
        peer = EnrolledPeer(peer_id, index, tuple(addresses), self._random_octets(SECRET_OCTETS))

        def kept(_: None) -> EnrolledPeer:
            self._follow_store()
            return peer

        return self._store.enrolled_peer(peer).addCallback(kept)

    def forget(self, peer_id: str) -> Deferred[None]:
        """It can no longer copy, and is told of nothing."""
        return self._store.forget_peer(peer_id).addCallback(lambda _: self._follow_store())

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._follow_store()

    def stopService(self) -> Deferred[Any]:
        super().stopService()  # type: ignore[no-untyped-call]
        notifiers, self._notifiers = self._notifiers, {}
        return gatherResults([maybeDeferred(one.stopService) for _, one in notifiers.values()])

    def status(self) -> list[dict[str, Any]]:
        """Of which version of each zone each peer has heard (None: of none since we started)."""
        return [
            {"peer": peer.id, "index": peer.index, **told}
            for peer, notifier in self._notifiers.values()
            for told in notifier.status()
        ]

    def _follow_store(self) -> None:
        """Let the keys and the notices be those of the peers that are kept."""
        if not self.running:
            return
        peers = {peer.id: peer for peer in self._store.peers()}
        keys = {peer.id: key_of(peer) for peer in peers.values()}
        self._responder.keys = {**{key.name: key for key in keys.values()}, **self._keys}
        copies = Receiver((Grant(),), is_peer=True)
        self._responder.receivers = {**{key.name: copies for key in keys.values()}, **self._receivers}
        for peer_id, (before, notifier) in list(self._notifiers.items()):
            if peers.get(peer_id) != before:
                del self._notifiers[peer_id]
                notifier.stopService()
        for peer in peers.values():
            if peer.id not in self._notifiers:
                at = [Secondary(one.host, one.port, keys[peer.id]) for one in peer.addresses]
                notifier = Notifier(self._reactor, self._statics, at, self._hosts)
                self._notifiers[peer.id] = peer, notifier
                notifier.startService()


def key_of(peer: EnrolledPeer) -> Key:
    """The key that it shares with us."""
    return Key(_key_name(peer.id), _ALGORITHM, peer.secret)


def key_texts(peer: EnrolledPeer) -> Mapping[str, str]:
    """Name and secret of its key, as an enrolment has them."""
    secret = base64.b64encode(peer.secret).decode()
    return {"key_name": names.to_text(_key_name(peer.id)), "key_secret": secret}


def key_from(key_name: str, key_secret: str) -> Key:
    """The reverse, at the peer."""
    return Key(names.from_text(key_name).lower(), _ALGORITHM, base64.b64decode(key_secret))


def primary_addresses(zones: Iterable[Zone], listen: Sequence[Listen]) -> tuple[ServerAddress, ...]:
    """Where we answer DNS: at the addresses of the SOA's MNAME, where zones have them, else as we listen."""
    port = listen[0].port
    found: dict[ServerAddress, None] = {}
    for zone in zones:
        soa = zone.soa.rdatas[0]
        node = zone.node(soa[: names.end_of(soa, 0)].lower())
        for rtype in (A, AAAA):
            for rdata in node[rtype].rdatas if rtype in node else ():
                found[ServerAddress(str(ip_address(rdata)), port)] = None
    return tuple(found) or tuple(ServerAddress(one.host, one.port) for one in listen)


def _key_name(peer_id: str) -> bytes:
    return names.from_text(f"{peer_id}.{_KEYS_BELOW}").lower()
