from __future__ import annotations

from ipaddress import ip_network

import pytest

from appliance.addresses import Listen
from appliance.dns import names
from appliance.dns.notify import Secondary
from appliance.dns.tsig import Key
from appliance.keysettings import KeySettings
from appliance.secondaries import (
    SecondarySettings,
    SecondaryTable,
    read_secondary,
    receivers,
    secondaries,
    wrong_secondaries,
)
from appliance.settingsfile import BadValue

KEY = Key(names.from_text("k1"), names.from_text("hmac-sha256"), bytes(32))
DEMO, OTHER = names.from_text("demo.test"), names.from_text("other.test")


def test_a_secondary_is_an_address_with_or_without_a_key() -> None:
    assert read_secondary(SecondaryTable("192.0.2.1")) == SecondarySettings(Listen("192.0.2.1", 53))
    with_key = read_secondary(SecondaryTable("[2001:db8::1]:5300", "K1"))
    assert with_key == SecondarySettings(Listen("2001:db8::1", 5300), KEY.name)
    assert secondaries([with_key], {KEY.name: KEY}) == (Secondary("2001:db8::1", 5300, KEY),)
    for table in (
        SecondaryTable("ns2.example.org"),
        SecondaryTable("192.0.2.1:0"),
        SecondaryTable("192.0.2.1", ".."),
    ):
        with pytest.raises(BadValue):
            read_secondary(table)


def test_its_key_must_be_one_for_transfers() -> None:
    secondary = SecondarySettings(Listen("192.0.2.1", 53), KEY.name)
    assert wrong_secondaries([secondary], [KeySettings((KEY,), "transfer")]) == []
    assert wrong_secondaries([SecondarySettings(Listen("192.0.2.1", 53))], []) == []
    (wrong,) = wrong_secondaries([secondary], [KeySettings((KEY,), "update")])
    assert wrong == "k1 is not a key of the kind transfer"


def test_what_keys_allow_adds_up() -> None:
    found = receivers(
        [
            KeySettings((KEY,), "transfer", names=(DEMO,)),
            KeySettings((KEY,), "transfer", names=(OTHER,), addresses=(ip_network("192.0.2.0/24"),)),
            KeySettings((Key(OTHER, KEY.algorithm, bytes(32)),), "update"),
        ]
    )
    assert set(found) == {KEY.name}
    receiver = found[KEY.name]
    assert receiver.may_have(DEMO, "203.0.113.1")
    assert receiver.may_have(OTHER, "192.0.2.9")
    assert not receiver.may_have(OTHER, "203.0.113.1")
    assert receivers([KeySettings((KEY,), "transfer")])[KEY.name].may_have(OTHER, "2001:db8::1")


def test_a_peer_copies_zones_without_live_records() -> None:
    found = receivers([KeySettings((KEY,), "peer", names=(DEMO,))])
    assert found[KEY.name].is_peer
    assert found[KEY.name].may_have(DEMO, "203.0.113.1")
    assert not found[KEY.name].may_have(OTHER, "203.0.113.1")
    assert not receivers([KeySettings((KEY,), "transfer")])[KEY.name].is_peer
