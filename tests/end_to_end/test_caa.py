"""Who may issue: CAA records of the accounts that clients have at pebble, at two nameservers, and the client
that asks no CA which these records forbid.

pebble looks at no CAA record and does not say what it is called in one, so the directory is another's: it
says what pebble's does, and a name.
"""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.end_to_end.certified import Certified, address_of_its_own, certified
from tests.end_to_end.programs import need, wait_for
from tests.end_to_end.site import ZONE, Appliance

CA = "ca.test"
WWW, APPS, WILD = f"www.{ZONE}", f"apps.{ZONE}", f"*.apps.{ZONE}"
RULES = f"""
[[nameserver.caa]]
names = ["{ZONE}"]
issue = ["{CA}"]
methods = ["dns-01"]
account = "clients"
wildcards = false

[[nameserver.caa]]
names = ["other.{ZONE}"]
issue = ["other.example"]
"""


class Directory:
    """pebble's directory, with a name for CAA, at a port of its own; `with` it."""

    def __init__(self, site: Certified) -> None:
        pebble = site.pebble
        asked = [need("curl"), "-sS", "--max-time", "10", "--cacert", str(pebble.ca), pebble.url]
        directory = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
        directory["meta"]["caaIdentities"] = [CA]
        octets = json.dumps(directory).encode()

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(octets)))
                self.end_headers()
                self.wfile.write(octets)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pebble.directory / "cert.pem", pebble.directory / "key.pem")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_address[1]}/dir"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Certified]:
    with certified(tmp_path, rules=RULES) as made, Directory(made) as directory:
        made.pebble.url = directory.url
        yield made


def status(one: Appliance) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(one.command("status", "--json"))
    return found


def account(site: Certified, client: str) -> str:
    kept = site.state(client).account()
    assert kept is not None
    return kept.url


def bound(tag: str, url: str) -> str:
    return f'0 {tag} "{CA}; accounturi={url}; validationmethods=dns-01"'


NO_WILDCARDS = '0 issuewild ";"'


def refused(site: Certified, label: str) -> None:
    """A client whose CA may not issue for the name says why, here and there, and begins nothing."""
    client = site.join(label, [label])
    why = f"CAA: issue 'other.example' is not for {CA}"
    assert client.process is not None
    client.process.says(f"{label}.{ZONE}: no certificate from localhost yet: {why}", 20)
    line = f"{label}.{ZONE}: no new certificate: {why} (client {label}, since "
    wait_for(lambda: line in site.appliance.command("status"), 10, "what status says")
    assert site.appliance.process is not None
    assert f"{label}: {label}.{ZONE}: no new certificate: {why}" in site.appliance.process.output
    assert site.appliance.dig(f"_acme-challenge.{label}.{ZONE}", "TXT") == []
    client.kill()
    wait_for(lambda: status(site.appliance)["uncertified"] == [], 10, "the end of its link")


def test_there_are_none_before_the_account_and_its_own_after_and_who_is_forbidden_says_so(
    site: Certified,
) -> None:
    ns1 = site.appliance
    ns1.invite(WWW, client="nobody")
    wait_for(lambda: ns1.dig(WWW, "A"), 10, "the name")
    assert ns1.dig(WWW, "CAA") == [], "nobody's account is known"
    site.join("home", ["www"])
    site.wait("home", "www")
    url = account(site, "home")
    of_home = sorted([bound("issue", url), NO_WILDCARDS])
    wait_for(lambda: ns1.dig(WWW, "CAA") == of_home, 10, f"the records, which are {ns1.dig(WWW, 'CAA')}")
    assert ns1.dig(f"static.{ZONE}", "CAA") == ns1.dig(ZONE, "CAA") == []
    assert [one["account"] for one in status(ns1)["accounts"]] == [url]
    refused(site, "other")


@pytest.mark.slow
def test_they_follow_the_accounts_of_clients_over_restarts_and_to_the_end(site: Certified) -> None:
    ns1 = site.appliance
    home = site.join("home", ["www", "*.apps"])
    site.wait("home", "www", "*.apps")
    url = account(site, "home")
    of_home = sorted([bound("issue", url), NO_WILDCARDS])
    wait_for(lambda: ns1.dig(WWW, "CAA") == of_home, 10, "the records")
    assert ns1.dig(APPS, "CAA") == [bound("issuewild", url)]
    assert ns1.dig(f"foo.apps.{ZONE}", "CAA") == of_home

    # Another client of the name: its account is let in, too, before it begins.
    second = site.join("second", ["www"])
    site.wait("second", "www")
    of_second = bound("issue", account(site, "second"))
    both = sorted([*of_home, of_second])
    assert ns1.dig(WWW, "CAA") == both

    # They are on disk: nobody says them again.
    home.kill()
    second.kill()
    ns1.kill()
    ns1.start()
    assert ns1.dig(WWW, "CAA") == both

    # A record in the zone file wins, and that is said.
    zone = ns1.directory / "zones" / f"{ZONE}.zone"
    with zone.open("a") as more:
        more.write('apps CAA 0 issuewild "by-hand.test"\n')
    ns1.command("reload")
    assert ns1.dig(APPS, "CAA") == ['0 issuewild "by-hand.test"']
    assert status(ns1)["conflicts"] == [f"{APPS} CAA: the zone file has a CAA here, which wins"]

    # Revoked, and forgotten.
    ns1.command("revoke", "home")
    only = sorted([of_second, NO_WILDCARDS])
    wait_for(lambda: ns1.dig(WWW, "CAA") == only, 10, "what is left")
    ns1.command("forget", WWW)
    wait_for(lambda: ns1.dig(WWW, "CAA") == [], 10, "nothing")
    assert status(ns1)["accounts"] == []


@pytest.mark.slow
def test_a_second_nameserver_has_the_same(site: Certified) -> None:
    ns1 = site.appliance
    address = address_of_its_own()
    enrolment = site.directory / "ns2.toml"
    ns1.command("enroll", "--nameserver", "--no-server", "ns2", address, "--output", enrolment)
    ns2 = Appliance(site.directory / "ns2", site.ports, address, enrolment=enrolment, server=False)
    settings = ns2.directory / "appliance.toml"
    settings.write_text(
        settings.read_text() + f'[nameserver]\nenrolment = "{enrolment}"\nprivate_addresses = true\n'
        f'listen = ["{address}:53"]\n{RULES}'
    )
    site.running.callback(ns2.kill)
    ns2.start()
    site.join("home", ["www", "*.apps"])
    site.wait("home", "www", "*.apps")
    url = account(site, "home")
    of_home = sorted([bound("issue", url), NO_WILDCARDS])
    for one in (ns1, ns2):
        wait_for(lambda: one.dig(WWW, "CAA") == of_home, 20, f"the records at {one.address}")  # noqa: B023
        assert one.dig(APPS, "CAA") == [bound("issuewild", url)]
    # Killed, and again: before it hears of anybody.
    ns1.kill()
    ns2.kill()
    ns2.start()
    assert ns2.dig(WWW, "CAA") == of_home
    ns1.start()
    ns1.command("revoke", "home")
    for one in (ns1, ns2):
        wait_for(lambda: one.dig(WWW, "CAA") == [], 30, f"nothing at {one.address}")  # noqa: B023
