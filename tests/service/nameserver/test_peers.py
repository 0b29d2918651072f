from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from appliance.dns import names
from appliance.dns.responder import Responder
from appliance.dns.tsig import Key
from appliance.service.nameserver.peers import NoPeer, Peers, key_from, key_of, key_texts
from appliance.service.nameserver.statics import Statics
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import EnrolledPeer, Store
from appliance.tunnel.discovery import ServerAddress
from tests.service.nameserver.test_notifier import _Network
from tests.service.nameserver.test_statics import TEXT

AT = [ServerAddress("192.0.2.9", 53)]
OWN = Key(names.from_text("own"), names.from_text("hmac-sha256"), bytes(32))


class Site:
    def __init__(self, directory: Path) -> None:
        (directory / "demo.zone").write_text(TEXT)
        self.network = _Network()
        self.store = Store(directory / "state", self.network)
        self.store.open()
        self.responder = Responder()
        self.responder.keys = {OWN.name: OWN}
        self.zonefiles = Zonefiles(directory, self.store, Clock(), index=1, responder=self.responder)
        statics = Statics(self.zonefiles, 1)
        self.zonefiles.load()
        self.peers = Peers(
            self.network,
            self.store,
            statics,
            self.responder,
            [],
            index=1,
            random_octets=lambda count: bytes(count),
        )
        self.peers.startService()

    def add(self, peer_id: str) -> EnrolledPeer:
        found: list[EnrolledPeer] = []
        self.peers.add(peer_id, AT).addCallback(found.append)
        return found[0]

    def stop(self) -> None:
        self.peers.stopService()
        self.store.close()
        assert not self.network.getDelayedCalls()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


def test_a_peer_has_a_key_an_index_and_is_told(site: Site) -> None:
    peer = site.add("ns2")
    assert peer == EnrolledPeer("ns2", 0, tuple(AT), bytes(32))
    key = key_of(peer)
    assert key_from(**key_texts(peer)) == key
    assert site.responder.keys == {OWN.name: OWN, key.name: key}
    assert site.responder.receivers[key.name].is_peer
    assert site.peers.addresses == {"192.0.2.9"}
    site.network.advance(0)
    assert [address for _, address in site.network.sent] == [("192.0.2.9", 53)]
    told = {"secondary": "192.0.2.9:53", "zone": "demo.test", "serial": None}
    assert site.peers.status() == [{"peer": "ns2", "index": 0, **told}]


def test_indices_are_each_nameservers_own(site: Site) -> None:
    indices = [site.add(f"ns{number}").index for number in range(2, 9)]
    assert indices == [0, 2, 3, 4, 5, 6, 7]
    with pytest.raises(NoPeer, match="8 nameservers already"):
        site.add("ns9")
    assert site.add("ns4").index == 3
    site.peers.forget("ns4")
    assert site.add("ns9").index == 3


def test_who_is_forgotten_can_copy_no_longer(site: Site) -> None:
    site.add("ns2")
    site.peers.forget("ns2")
    assert site.responder.keys == {OWN.name: OWN}
    assert site.responder.receivers == {}
    assert site.peers.addresses == frozenset()
    assert site.network.interfaces[-1:] == ["stopped"]


@pytest.mark.parametrize("peer_id", ["x" * 64, "a..b"])
def test_what_is_no_name_of_a_peer(site: Site, peer_id: str) -> None:
    with pytest.raises(NoPeer):
        site.add(peer_id)


def test_a_key_of_the_settings_is_not_replaced(site: Site) -> None:
    taken = key_of(EnrolledPeer("ns2", 0, (), bytes(32)))
    site.peers._keys = {taken.name: taken}
    with pytest.raises(NoPeer, match="have a key ns2"):
        site.add("ns2")
