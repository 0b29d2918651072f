"""Certificates of a client, a server and a nameserver that renew themselves over a server that has no CA,
while visitors come; after an end by hand; and a client that is killed in the middle of it.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509

from appliance.service.renewed import RenewedFiles
from appliance.tunnel.certificates import Credential, read_certificate, read_credential
from appliance.tunnel.invitation import read_invitation
from tests.end_to_end.programs import wait_for
from tests.end_to_end.resolving import NoRetry
from tests.end_to_end.site import ZONE, Appliance, Client, Nginx, Ports, follower, tls_context
from tests.end_to_end.test_clock import LIBRARY, Clocks
from tests.end_to_end.visitors import fetch

NAME = f"www.{ZONE}"
NS1, NS2, T1 = "127.0.0.1", "127.0.0.2", "127.0.0.3"
SECONDS = 30.0
KILLS = 20


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    if not LIBRARY.exists():
        pytest.skip("libfaketime is not installed")
    made = Clocks(tmp_path)
    monkeypatch.setattr(Appliance, "env", made.env)
    monkeypatch.setattr(Client, "env", made.env)
    return made


def status(one: Appliance) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(one.command("status", "--json"))
    return found


def watched(nameserver: Appliance) -> list[str]:
    return [one["state"] for one in status(nameserver)["watches"]]


def day(after: int) -> str:
    return f"{datetime.now(UTC) + timedelta(days=after):%Y-%m-%d}"


class Site:
    """ns1 is a nameserver and has the CA; t1, which was enrolled there, is a tunnel server. Then a client is
    added, or ns2, a nameserver that was enrolled.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.ports = Ports()
        self.ca = trustme.CA()
        self.context = tls_context(self.ca)
        self.origin = Nginx(base / "origin", [NAME], self.ca, says="origin")
        self.ns1 = Appliance(base / "ns1", self.ports, NS1, server=False)
        self.enrolment = base / "t1.toml"
        self.running: list[Appliance | Client | Nginx] = [self.origin, self.ns1]
        self.ns2: Appliance
        self.t1: Appliance
        self.client: Client

    def start(self) -> None:
        self.ns1.start(SECONDS)
        self.ns1.command("enroll", "t1", f"{T1}:{self.ports.tls}", "--output", self.enrolment)
        self.t1 = Appliance(self.base / "t1", self.ports, T1, enrolment=self.enrolment)
        self.running.append(self.t1)
        self.t1.start(SECONDS)

    def serve(self) -> None:
        """Add a client and its origin."""
        self.origin.start()
        self.invitation = self.ns1.invite(NAME)
        self.client = Client(
            self.base / "client", self.invitation, self.ns1, "--tls-origin", f"127.0.0.1:{self.origin.tls}"
        )
        self.running.append(self.client)
        self.client.start("t1")
        self.wait_served()

    def follow(self) -> None:
        """Add ns2."""
        self.ns2 = follower(self.ns1, self.base / "ns2", NS2)
        self.running.append(self.ns2)
        self.ns2.start(SECONDS)

    def wait_listed(self, *, at: Appliance) -> None:
        listed = [f'"r=superprotocol;ip={T1};port={self.ports.tls}"']
        wait_for(lambda: at.dig(ZONE, "TXT") == listed, SECONDS, f"t1 in TXT at {at.address}")

    def wait_served(self) -> None:
        wait_for(lambda: self.ns1.dig(NAME, "A") == [T1], SECONDS, "t1 in A")
        assert fetch(self.context, T1, self.ports.tls, NAME, "/who")

    def shown(self) -> x509.Certificate:
        """What t1 shows who shakes hands with it now."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["tunnel/1"])
        with (
            socket.create_connection((T1, self.ports.tls), timeout=10) as sock,
            context.wrap_socket(sock, server_hostname="tunnel-server.internal") as tls,
        ):
            der = tls.getpeercert(True)
        assert der is not None
        return x509.load_der_x509_certificate(der)

    def kill(self) -> None:
        for one in reversed(self.running):
            one.kill()


@pytest.fixture
def site(tmp_path: Path, clocks: Clocks) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.mark.slow
def test_a_client_and_a_server_renew_themselves_where_the_ca_is_elsewhere(site: Site, clocks: Clocks) -> None:
    site.serve()
    assert site.client.process is not None
    assert site.t1.process is not None
    with NoRetry(site.context, NAME, site.ns1, site.ports.tls) as visitors:
        clocks.set("+70d")
        site.client.process.tell(signal.SIGHUP)
        site.client.process.says(f"renewed the certificate, until {day(160)}", SECONDS)
        wait_for(
            lambda: [one["expires"][:10] for one in status(site.t1)["sessions"]] == [day(160)],
            SECONDS,
            "the session under the new certificate",
        )
        site.t1.command("reload")
        site.t1.process.says(f"this server renewed the certificate, until {day(160)}", SECONDS)
        assert f"{site.shown().not_valid_after_utc:%Y-%m-%d}" == day(160)
        enough = len(visitors.visits) + 50
        wait_for(lambda: len(visitors.visits) > enough, SECONDS, "more visitors")
    print(f"measured renewal_lost {len(visitors.lost)} of {len(visitors.visits)} requests")
    assert not visitors.lost, visitors.lost[:5]
    assert "left server" not in site.client.process.output
    issued = [(one["role"], one["id"]) for one in status(site.ns1)["issued"]]
    assert sorted(issued) == [("client", "home")] * 2 + [("server", "t1")] * 2

    # What both were given has expired, and they start again.
    site.client.kill()
    site.t1.kill()
    clocks.set("+95d")
    site.t1.start(SECONDS)
    site.client.start("t1")
    site.wait_served()
    assert status(site.t1)["renewals"] == [
        {"what": "server", "expires": status(site.t1)["renewals"][0]["expires"], "not_renewed": ""}
    ]

    # Both were away for too long: by hand.
    site.client.kill()
    site.t1.kill()
    clocks.set("+200d")
    site.enrolment.unlink()
    site.ns1.command("enroll", "t1", f"{T1}:{site.ports.tls}", "--output", site.enrolment)
    site.t1.start(SECONDS)
    process = site.client.start()
    process.says("the certificate expired on", SECONDS)
    site.client.kill()
    site.invitation.unlink()
    site.ns1.command("invite", "--renew", "home", "--output", site.invitation)
    site.client.start("t1")
    site.wait_served()
    site.ns1.command("revoke", "home")
    assert "is revoked" in site.ns1.command("invite", "--renew", "home", fails=True)
    assert {one["id"] for one in status(site.ns1)["issued"] if one["revoked"] is None} == {"t1"}


@pytest.mark.slow
def test_a_nameserver_renews_itself_over_a_server_that_asks_on(site: Site, clocks: Clocks) -> None:
    site.follow()
    site.wait_listed(at=site.ns2)
    clocks.set("+70d")
    for one, called in ((site.ns2, "nameserver"), (site.t1, "server")):
        one.command("reload")
        assert one.process is not None
        one.process.says(f"this {called} renewed the certificate, until {day(160)}", SECONDS)
    issued = sorted((one["role"], one["id"]) for one in status(site.ns1)["issued"])
    assert issued == [("nameserver", "ns2")] * 2 + [("server", "t1")] * 2

    # What both were given has expired: each shows the other what it has in its place.
    clocks.set("+95d")
    site.t1.kill()
    wait_for(lambda: watched(site.ns2) != ["watching"], SECONDS, "the end of t1 at ns2")
    site.t1.start(SECONDS)
    wait_for(lambda: watched(site.ns2) == ["watching"], SECONDS, "ns2, which was not started again, at t1")
    site.ns2.kill()
    site.ns2.start(SECONDS)
    wait_for(lambda: watched(site.ns2) == ["watching"], SECONDS, "ns2, which was started again, at t1")
    site.wait_listed(at=site.ns2)
    (renewal,) = status(site.ns2)["renewals"]
    assert renewal == {"what": "nameserver", "expires": renewal["expires"], "not_renewed": ""}
    assert renewal["expires"][:10] == day(160)


@pytest.mark.slow
def test_a_client_that_is_killed_while_it_renews_never_loses_its_credential(
    tmp_path: Path, clocks: Clocks
) -> None:
    chance = random.Random(20261128)
    ports = Ports()
    s1 = Appliance(tmp_path / "s1", ports)
    running: list[Appliance | Client] = [s1]
    try:
        s1.start(SECONDS)
        invitation = s1.invite(NAME)
        given = read_invitation(invitation.read_text())
        client = Client(tmp_path / "client", invitation, s1, "--tls-origin", "127.0.0.1:1")
        running.append(client)
        files, first = RenewedFiles(tmp_path / "client" / "state"), read_credential(given.credential_pem)
        ca = read_certificate(given.ca_pem)
        held, days, renewals, unfinished = first, 70, 0, 0
        clocks.set(f"+{days}d")
        for _ in range(KILLS):
            process = client.start()
            if chance.random() < 0.8:
                process.says("joined server s1 ", SECONDS)
                pause = chance.uniform(0, 0.06)
            else:
                pause = chance.uniform(0, 1.0)
            end = time.monotonic() + pause
            wait_for(lambda end=end: time.monotonic() >= end, 5, "the moment", every=0.001)  # type: ignore[misc]
            client.kill()
            now = files.current(first, ca)
            assert is_whole(now, ca)
            assert now.certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=days)
            if now.certificate != held.certificate:
                held, renewals, days = now, renewals + 1, days + 65
                clocks.set(f"+{days}d")
            else:
                unfinished += 1
        print(f"measured kills {KILLS}: {renewals} renewals kept, {unfinished} not finished")
        process = client.start("s1")
        process.says("renewed the certificate", SECONDS)
        wait_for(
            lambda: files.current(first, ca).certificate != held.certificate, SECONDS, "the last renewal"
        )
        live = [one for one in status(s1)["issued"] if one["expires"] > time.time() + days * 86400]
        assert len(live) == 2, live  # the last two: whatever was asked twice was signed once
    finally:
        for one in reversed(running):
            one.kill()


def is_whole(credential: Credential, ca: x509.Certificate) -> bool:
    credential.certificate.verify_directly_issued_by(ca)
    return credential.certificate.public_key() == credential.key.public_key()
