from __future__ import annotations

import base64

import pytest

from appliance.dns import names
from appliance.fleet.serverkeys import key_of
from appliance.service.nameserver.introducing import everywhere, introduction_of, zone_for
from appliance.service.store import EnrolledPeer
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Introduction, NameserverKey

APEX = names.from_text("demo.test")
S1 = EnrolledPeer("s1", 0, (ServerAddress("192.0.2.1", 53),), bytes(32))
S2 = EnrolledPeer("s2", 1, (ServerAddress("192.0.2.2", 5353),), bytes(range(32)))


def secret(peer: EnrolledPeer, server_id: str) -> str:
    return base64.b64encode(key_of(peer.secret, server_id, 7).secret).decode()


def test_a_server_has_a_key_at_every_nameserver_but_itself() -> None:
    at_s1 = NameserverKey("s1", S1.addresses, secret(S1, "s3"))
    at_s2 = NameserverKey("s2", S2.addresses, secret(S2, "s3"))
    made = introduction_of("s3", 7, zone=APEX, own=S1, peers=(S2,))
    assert made == Introduction("demo.test", "s3.7.server.internal", (at_s1, at_s2))
    own = introduction_of("s2", 7, zone=APEX, own=S1, peers=(S2,))
    assert [one.id for one in own.nameservers] == ["s1"]
    assert at_s1.secret not in repr(made)


def test_an_id_that_is_no_name_has_no_key() -> None:
    with pytest.raises(names.BadName):
        introduction_of("s3..x", 7, zone=APEX, own=S1, peers=())


def test_the_zone_is_that_of_the_discovery_name() -> None:
    apexes = [names.from_text(text) for text in ("zz.test", "longer.test", "deep.longer.test")]
    assert zone_for(apexes, None) == apexes[0]
    assert zone_for(apexes, "tunnels.deep.longer.test") == apexes[2]
    assert zone_for(apexes, "longer.test") == apexes[1]
    assert zone_for(apexes, "elsewhere.test") == apexes[0]


def test_who_comes_later_is_told_of_all_before() -> None:
    a, b, c = (ServerAddress(f"192.0.2.{number}") for number in (1, 2, 3))
    assert everywhere([a, b], [(b, c), ()]) == (a, b, c)
