"""ACME clients beside the web server: by DNS UPDATE with the key in the invitation (nsupdate, certbot, lego),
and by HTTP-01 and TLS-ALPN-01 through the tunnel as it is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.pebble import Pebble
from tests.end_to_end.programs import Process, free_port, need, wait_for
from tests.end_to_end.site import ZONE, Appliance, Client, Ports
from tests.end_to_end.test_introduction import SECONDS, Site

WWW, WILD = f"www.{ZONE}", f"*.apps.{ZONE}"


@pytest.fixture(scope="module")
def ns1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    made = Appliance(tmp_path_factory.mktemp("site") / "ns1", Ports())
    try:
        made.start(SECONDS)
        made.invite(WWW, WILD)
        yield made
    finally:
        made.kill()


def invitation(appliance: Appliance, client: str = "home") -> Path:
    return appliance.directory / f"{client}-invitation.toml"


def key(appliance: Appliance, form: str, path: Path, client: str = "home") -> Path:
    path.write_text(appliance.command("acme-key", invitation(appliance, client), "--for", form))
    path.chmod(0o600)
    return path


def nsupdate(appliance: Appliance, key: Path, *lines: str, address: str | None = None) -> str:
    """What it says: nothing when all is well."""
    where = f"server {address or appliance.address} {appliance.ports.dns}"
    done = subprocess.run(
        [need("nsupdate"), "-t", "10", "-k", key],
        input="\n".join((where, f"zone {ZONE}", *lines, "send", "")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return done.stdout


def test_it_changes_the_challenges_of_its_names_and_nothing_else(ns1: Appliance, tmp_path: Path) -> None:
    own = key(ns1, "nsupdate", tmp_path / "own.key")
    for name in (WWW, f"apps.{ZONE}", f"foo.apps.{ZONE}"):
        assert nsupdate(ns1, own, f"update add _acme-challenge.{name} 60 TXT x") == ""
        assert ns1.dig(f"_acme-challenge.{name}", "TXT") == ['"x"']
        assert nsupdate(ns1, own, f"update delete _acme-challenge.{name} TXT x") == ""
    for record in (
        f"_acme-challenge.{ZONE} 60 TXT x",
        f"_acme-challenge.bank.{ZONE} 60 TXT x",
        f'_acme-challenge.{WWW} 60 CAA 0 issue "a.test"',
        f"{WWW} 60 TXT x",
        f"{WWW} 60 A 192.0.2.1",
    ):
        assert "REFUSED" in nsupdate(ns1, own, f"update add {record}")


def test_a_revoked_clients_key_is_good_for_nothing(ns1: Appliance, tmp_path: Path) -> None:
    ns1.invite(WWW, client="other")
    other = key(ns1, "nsupdate", tmp_path / "other.key", "other")
    change = f"update add _acme-challenge.{WWW} 60 TXT other"
    assert nsupdate(ns1, other, change) == ""
    assert nsupdate(ns1, other, f"update delete _acme-challenge.{WWW}") == ""
    ns1.command("revoke", "other")
    assert "REFUSED" in nsupdate(ns1, other, change)
    forged = other.read_text().replace("other.", "home.")
    (tmp_path / "forged.key").write_text(forged)
    assert "BADSIG" in nsupdate(ns1, tmp_path / "forged.key", change)


def test_a_further_nameserver_passes_it_on(tmp_path: Path) -> None:
    site = Site(tmp_path)
    try:
        site.ns1.start(SECONDS)
        site.follow()
        site.ns1.invite(WWW)
        own = key(site.ns1, "nsupdate", tmp_path / "own.key")
        change = f"update add _acme-challenge.{WWW} 60 TXT x"
        assert nsupdate(site.ns1, own, change, address=site.ns2.address) == ""
        for one in (site.ns1, site.ns2):
            wait_for(lambda one=one: one.dig(f"_acme-challenge.{WWW}", "TXT") == ['"x"'], SECONDS, "it")  # type: ignore[misc]
    finally:
        site.kill()


@pytest.fixture
def pebble(tmp_path: Path, ns1: Appliance) -> Iterator[tuple[str, Path]]:
    """An ACME server that asks the nameserver: the URL of its directory, and the certificate of its CA."""
    made = Pebble(tmp_path / "pebble", f"127.0.0.1:{ns1.ports.dns}")
    made.settings = {"httpPort": ns1.ports.http, "tlsPort": ns1.ports.tls}
    try:
        made.start()
        yield made.url, made.ca
    finally:
        made.kill()


def test_certbot_gets_a_certificate(
    ns1: Appliance, pebble: tuple[str, Path], tmp_path: Path, start: Callable[..., Process]
) -> None:
    url, ca = pebble
    credentials = key(ns1, "certbot", tmp_path / "credentials.ini")
    certbot = start(
        *(need("certbot"), "certonly", "--non-interactive", "--agree-tos", "-m", "a@demo.test"),
        *("--server", url, "--dns-rfc2136", "--dns-rfc2136-credentials", credentials),
        *("--dns-rfc2136-propagation-seconds", "0", "-d", WWW, "-d", WILD),
        *("--config-dir", tmp_path / "cb", "--work-dir", tmp_path / "cb", "--logs-dir", tmp_path / "cb"),
        env={"REQUESTS_CA_BUNDLE": str(ca)},
    )
    certbot.says("Successfully received certificate", 50)
    assert (tmp_path / "cb" / "live" / WWW / "fullchain.pem").exists()
    assert ns1.dig(f"_acme-challenge.{WWW}", "TXT") == []


def test_lego_gets_a_certificate(
    ns1: Appliance, pebble: tuple[str, Path], tmp_path: Path, start: Callable[..., Process]
) -> None:
    url, ca = pebble
    text = key(ns1, "lego", tmp_path / "lego.env").read_text()
    lego = start(
        *(need("lego"), "--path", tmp_path / "lego", "--server", url, "--accept-tos"),
        *("--email", "a@demo.test", "--dns", "rfc2136", "--dns.disable-cp"),
        *("--dns.resolvers", f"127.0.0.1:{ns1.ports.dns}", "--domains", WILD, "run"),
        env={
            **dict(line.split("=", 1) for line in text.splitlines()),
            "RFC2136_SEQUENCE_INTERVAL": "1",
            "RFC2136_POLLING_INTERVAL": "1",
            "LEGO_CA_CERTIFICATES": str(ca),
        },
    )
    lego.says("Server responded with a certificate", 50)
    wait_for(lambda: lego.status is not None, 10, "the end of lego")
    assert lego.status == 0, lego.output


@pytest.mark.parametrize("challenge", ["http", "tls"])
def test_with_one_client_a_visit_of_the_ca_reaches_the_acme_client(
    ns1: Appliance, pebble: tuple[str, Path], tmp_path: Path, start: Callable[..., Process], challenge: str
) -> None:
    url, ca = pebble
    port = free_port("tcp")
    served = ("--http", "serve") if challenge == "http" else ()
    origin = (f"--{challenge}-origin", f"127.0.0.1:{port}", *served)
    client = Client(tmp_path / "client", invitation(ns1), ns1, *origin)
    try:
        client.start("ns1")
        lego = start(
            *(need("lego"), "--path", tmp_path / "lego", "--server", url, "--accept-tos"),
            *("--email", "a@demo.test", f"--{challenge}", f"--{challenge}.port", f"127.0.0.1:{port}"),
            *("--domains", WWW, "run"),
            env={"LEGO_CA_CERTIFICATES": str(ca)},
        )
        lego.says("Server responded with a certificate", 50)
    finally:
        client.kill()
