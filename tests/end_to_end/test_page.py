"""Step by step what a user does: a name, its records, a client, a page; with real programs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.end_to_end.programs import free_port, need, wait_for
from tests.end_to_end.site import ZONE, Appliance, Client, Nginx, Ports, listens, tls_context
from tests.end_to_end.visitors import fetch

NAME = f"www.{ZONE}"
MEGABYTES = 200


class Site:
    """One appliance, one client, one nginx."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(directory / "ca.pem")
        self.nginx = Nginx(directory / "nginx", [NAME, f"*.apps.{ZONE}"], self.ca)
        self.appliance = Appliance(directory / "s1", Ports())
        self.client: Client

    def start(self) -> None:
        self.nginx.start()
        self.appliance.start()
        invitation = self.appliance.invite(NAME, f"*.apps.{ZONE}")
        self.client = Client(
            self.directory / "client",
            invitation,
            self.appliance,
            "--tls-origin",
            f"127.0.0.1:{self.nginx.tls}",
            "--http-origin",
            f"127.0.0.1:{self.nginx.http}",
        )
        self.client.start("s1")
        wait_for(lambda: self.appliance.dig(NAME, "A"), 5, "the name's records")

    def kill(self) -> None:
        if hasattr(self, "client"):
            self.client.kill()
        self.appliance.kill()
        self.nginx.kill()

    def curl(self, url: str, *options: str | Path, status: int = 0) -> str:
        """curl as a visitor whose name server is ours; {tls} and {http} in the URL are the site's ports."""
        ports = self.appliance.ports
        full = url.format(tls=ports.tls, http=ports.http)
        resolve = [
            option
            for name in (NAME, f"x.apps.{ZONE}")
            for port in (ports.tls, ports.http)
            for option in ("--resolve", f"{name}:{port}:{','.join(self.appliance.dig(name, 'A'))}")
        ]
        trust = ["--cacert", str(self.directory / "ca.pem")]
        done = subprocess.run(
            [need("curl"), "-sS", "--max-time", "60", *trust, *resolve, *options, full],
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, (done.returncode, done.stderr)
        return done.stdout

    def visit(self, server_name: str = NAME) -> ssl.SSLSocket:
        """A TLS connection of a visitor."""
        raw = socket.create_connection((self.appliance.address, self.appliance.ports.tls), timeout=20)
        return tls_context(self.ca).wrap_socket(raw, server_hostname=server_name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


def test_the_records(site: Site) -> None:
    port = site.appliance.ports.tls
    assert site.appliance.dig(NAME, "TXT") == [f'"r=superprotocol;ip=127.0.0.1;port={port}"']
    assert site.appliance.dig(NAME, "A") == ["127.0.0.1"]
    assert site.appliance.dig(f"x.apps.{ZONE}", "A", "+tcp") == ["127.0.0.1"]
    assert site.appliance.dig(ZONE, "TXT") == [f'"r=superprotocol;ip=127.0.0.1;port={port}"']
    assert site.appliance.dig(ZONE, "A") == []
    assert site.appliance.dig(f"static.{ZONE}", "A") == ["192.0.2.80"]


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
@pytest.mark.parametrize("host", [NAME, f"x.apps.{ZONE}"])
def test_a_page_over_https(site: Site, option: str, host: str) -> None:
    page = site.curl(f"https://{host}:{{tls}}/", option)
    assert "<h1 id='who'>origin</h1>" in page


def test_hosts_that_a_stranger_makes_up_hold_up_nobody(site: Site) -> None:
    """A hyphen at an end of a label is no host name to RFC 1123 2.1, and browsers ask for it all the same."""
    unverified = ssl._create_unverified_context()
    for number in range(50):
        host = f"-{number}.apps.{ZONE}"
        with contextlib.suppress(OSError):
            fetch(unverified, site.appliance.address, site.appliance.ports.tls, host, "/who", 0.5)
    address, port = site.appliance.address, site.appliance.ports.tls
    assert fetch(tls_context(site.ca), address, port, NAME, "/who", 1.0).startswith("origin ")
    for label in ("-a", "a-", "_", "xn--a-"):
        host = f"{label}.apps.{ZONE}"
        assert fetch(unverified, address, port, host, "/who").startswith(f"origin {host} ")


def test_a_page_over_http(site: Site) -> None:
    assert "<h1 id='who'>origin</h1>" in site.curl(f"http://{NAME}:{{http}}/")


def test_two_hundred_megabytes_each_way(site: Site) -> None:
    big = site.directory / "big"
    with big.open("wb") as file:
        digest = hashlib.sha256()
        for _ in range(MEGABYTES):
            block = os.urandom(1 << 20)
            digest.update(block)
            file.write(block)
    os.link(big, site.nginx.root / "big")
    down = site.directory / "down"
    site.curl(f"https://{NAME}:{{tls}}/big", "-o", down)
    assert hashlib.sha256(down.read_bytes()).hexdigest() == digest.hexdigest()
    site.curl(f"https://{NAME}:{{tls}}/upload/big", "-T", big)
    uploaded = site.nginx.root / "upload" / "big"
    assert hashlib.sha256(uploaded.read_bytes()).hexdigest() == digest.hexdigest()
    site.curl(f"http://{NAME}:{{http}}/big", "-o", down)
    assert hashlib.sha256(down.read_bytes()).hexdigest() == digest.hexdigest()
    for path in (big, down, uploaded, site.nginx.root / "big"):
        path.unlink()


def test_unknown_names_and_none(site: Site) -> None:
    for server_name in (f"never.{ZONE}", "elsewhere.example"):
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            site.visit(server_name)
    raw = socket.create_connection((site.appliance.address, site.appliance.ports.tls), timeout=20)
    context = tls_context(site.ca)
    context.check_hostname = False
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        context.wrap_socket(raw)


def test_a_client_that_restarts_costs_the_visitor_a_wait(site: Site) -> None:
    """A known name without a session is parked: the visitor who comes meanwhile sees the page."""
    site.client.kill()
    pages: list[str] = []
    visitor = threading.Thread(target=lambda: pages.append(site.curl(f"https://{NAME}:{{tls}}/")))
    visitor.start()
    site.client.start("s1")
    visitor.join(30)
    assert "origin" in pages[0]


def test_an_origin_behind_a_unix_socket(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "origin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            site.ca.issue_cert(f"unix.{ZONE}").configure_cert(context)
            with context.wrap_socket(sock, server_side=True) as tls:
                tls.sendall(tls.recv(100).upper())

        thread = threading.Thread(target=serve)
        thread.start()
        invitation = site.appliance.invite(f"unix.{ZONE}", client="unix")
        client = Client(tmp_path / "client", invitation, site.appliance, "--tls-origin", f"unix:{path}")
        try:
            client.start("s1")
            with site.visit(f"unix.{ZONE}") as visitor:
                visitor.sendall(b"hello")
                assert visitor.recv(100) == b"HELLO"
            thread.join(10)
        finally:
            client.kill()


def test_ctrl_c_leaves_nothing(site: Site) -> None:
    """SIGTERM ends client and appliance in order, and they come back."""
    client, appliance = site.client.process, site.appliance.process
    assert client is not None
    assert appliance is not None
    assert client.stop() in (0, -15)
    wait_for(lambda: "link of home ended" in appliance.output, 10, "the end of the link in the log")
    assert appliance.stop() in (0, -15)
    assert not listens(site.appliance.ports.tls)
    site.appliance.start()
    site.client.start("s1")
    assert "origin" in site.curl(f"https://{NAME}:{{tls}}/")


def test_free_ports_are_not_given_twice() -> None:
    assert len({free_port("tcp") for _ in range(20)}) == 20
