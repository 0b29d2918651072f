"""Certificates by ACME, from nothing to a visitor who believes them: the client asks pebble, which asks our
nameserver.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.service.client.acmestate import Account
from appliance.tunnel.certificaterequest import new_key
from appliance.tunnel.keypair import read_keypair
from tests.end_to_end.certified import Certified, address_of_its_own, certified
from tests.end_to_end.joined import rest_of
from tests.end_to_end.pebble import Answering
from tests.end_to_end.programs import wait_for
from tests.end_to_end.site import ZONE
from tests.end_to_end.test_port_80 import request
from tests.service.client.issuance import signed

INTERNAL_ERROR = "(?i)internal.error"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certified]:
    """Three good nonces in ten are rejected, and so is a name."""
    blocked = {"domainBlocklist": [f"blocked.{ZONE}"]}
    with certified(tmp_path_factory.mktemp("acme"), blocked, PEBBLE_WFE_NONCEREJECT="30") as made:
        yield made


def ask(site: Certified, label: str) -> bytes:
    with site.visit(label) as tls:
        tls.sendall(request(label, close=True))
        return rest_of(tls)


def test_first_certificates_wildcards_too_and_a_second_client_of_a_name(site: Certified) -> None:
    home = site.join("home", ["www", "*.apps", "apps", "blocked"])

    def home_log() -> str:
        assert home.process is not None
        return home.process.output

    with pytest.raises(ssl.SSLError, match=INTERNAL_ERROR):
        wait_for(lambda: site.visit("www"), 10, "an alert")
    site.wait("home", "www", "*.apps", "apps")
    for label in ("www", "one.apps", "apps"):
        assert b"plain: /, 0 octets" in ask(site, label)
    second = site.join("second", ["www"])
    site.wait("second", "www")
    assert site.state("home").certificate(f"www.{ZONE}") != site.state("second").certificate(f"www.{ZONE}")
    assert len(site.orders()) == 4
    assert site.accounts() == 2
    wait_for(lambda: home_log().count("a certificate from localhost is in use") == 3, 10, "what it says")
    output = home_log()
    names = ", ".join(f"{label}.{ZONE}" for label in ("*.apps", "apps", "blocked", "www"))
    assert f"{names}: a certificate from localhost is awaited" in output
    assert f"blocked.{ZONE}: no certificate from localhost yet: the CA says: " in output
    assert output.count(f"blocked.{ZONE}: no certificate") == 1
    challenge = f"_acme-challenge.www.{ZONE}"
    wait_for(lambda: site.appliance.dig(challenge, "TXT") == [], 10, "the end of the challenge")
    # A restart of a client needs nobody for what it has.
    assert second.process is not None
    second.process.stop()
    second.start("s1")
    assert len(site.orders()) == 4


def test_a_certificate_of_which_less_than_a_third_is_left_is_renewed_at_the_start(site: Certified) -> None:
    """What was there is shown until then."""
    label, client = "old", site.join("old", ["old"], starts=False)
    key = new_key()
    begins = datetime.now(UTC) - timedelta(days=70)
    old = read_keypair(signed(f"{label}.{ZONE}", key, begins), key.encode("ascii"))
    site.state(label).put_certificate(f"{label}.{ZONE}", old)
    client.start("s1")

    def serial() -> int:
        kept = site.state(label).certificate(f"{label}.{ZONE}")
        assert kept is not None
        return kept.serial_number

    wait_for(lambda: serial() != old.serial_number, 30, "a new certificate")
    assert client.process is not None
    assert "is awaited" not in client.process.output
    wait_for(lambda: b"plain: /" in ask(site, label), 10, "a visitor who believes it")


class Forwarder(Answering):
    """What stands at an address on port 53 and passes questions on to a nameserver: one that has come up."""

    def __init__(self, address: str, nameserver: str) -> None:
        super().__init__(address, 53)
        self._nameserver = nameserver

    def answer(self, octets: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(2)
            asking.sendto(octets, (self._nameserver, 53))
            return asking.recv(4096)


@pytest.mark.slow
def test_a_nameserver_that_is_down_is_waited_for_with_one_order(tmp_path: Path) -> None:
    second = address_of_its_own()
    if os.geteuid() != 0:
        pytest.skip("not root: a nameserver that is confirmed has port 53")
    site = Certified(tmp_path)
    with site.running:
        with (tmp_path / "s1" / "zones" / f"{ZONE}.zone").open("a") as zone:
            zone.write(f"@ NS ns2\nns2 A {second}\n")
        site.start()
        client = site.join("home", ["www"])
        assert client.process is not None
        client.process.says(f"waits: ns2.{ZONE}: {second}: ", 30)
        # The challenge is given up, and begun again, with the order that there is.
        client.process.says(f"www.{ZONE}: no certificate from localhost yet: ", 240)
        assert f"ns2.{ZONE}" in client.process.output.partition("no certificate from localhost")[2]
        assert not site.has("home", "www")
        with Forwarder(second, site.appliance.address):
            site.wait("home", "www")
        assert len(site.orders()) == 1


@pytest.mark.slow
def test_twenty_names_with_a_ca_that_is_slow_and_rejects_nonces(tmp_path: Path) -> None:
    labels = [f"n{number}" for number in range(20)]
    slow = {"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "3", "PEBBLE_WFE_NONCEREJECT": "30"}
    with certified(tmp_path, None, **slow) as site:
        began = time.monotonic()
        site.join("home", labels)
        site.wait("home", *labels, seconds=180)
        print(f"20 names: {time.monotonic() - began:.1f} s")
        for label in labels:
            assert b"plain: /" in ask(site, label)
        assert len(site.orders()) == 20
        assert site.accounts() == 1


@pytest.mark.slow
def test_short_lived_certificates_are_renewed_and_no_visitor_notices(tmp_path: Path) -> None:
    """Of 30 seconds, so three renewals within a minute or so, some of which need no proof; a connection that
    was there before is there afterwards."""
    with certified(tmp_path, {"certificateValidityPeriod": 30}, PEBBLE_AUTHZREUSE="50") as site:
        site.join("home", ["www"])
        site.wait("home", "www")
        with site.visit("www") as long:
            serials: set[int] = set()
            while len(serials) < 4:
                assert b"plain: /" in ask(site, "www")
                kept = site.state("home").certificate(f"www.{ZONE}")
                assert kept is not None
                serials.add(kept.serial_number)
                long.sendall(request("www"))
                assert b"plain: /" in long.recv(1 << 16)
                time.sleep(0.2)
        assert len(site.orders()) == 4
        assert site.accounts() == 1


@pytest.mark.slow
def test_killed_at_thirty_random_moments(tmp_path: Path) -> None:
    """Six clients, five names and five kills each. No key is lost, no account is made twice, and an order is
    lost only where a kill came between the CA's having it and our having heard of it: one a kill at most.
    """
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    kills = 0
    with certified(tmp_path, None, PEBBLE_WFE_NONCEREJECT="15") as site:
        for number in range(6):
            labels = [f"c{number}n{name}" for name in range(5)]
            client = site.join(f"c{number}", labels, starts=False)
            accounts: set[str] = set()
            orders = len(site.orders())
            kills_before = kills
            moments = []
            while kills - kills_before < 5:
                client.start()
                moments.append(chance.uniform(1.0, 6.0))
                time.sleep(moments[-1])
                client.kill()
                kills += 1
                account: Account | None = site.state(f"c{number}").account()
                accounts.update([account.key_pem] if account else [])
            client.start()
            site.wait(f"c{number}", *labels, seconds=60)
            account = site.state(f"c{number}").account()
            assert account is not None
            assert accounts <= {account.key_pem}
            lost = len(site.orders()) - orders - len(labels)
            print(f"client {number}: killed after {[round(one, 2) for one in moments]} s, {lost} orders lost")
            assert 0 <= lost <= kills - kills_before, f"seed {seed}"
            for label in labels:
                assert b"plain: /" in ask(site, label)
            client.kill()
        assert site.accounts() == 6
