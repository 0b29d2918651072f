"""Links that are refused: each says why, at both ends, in words and in one line; everybody else goes on."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from appliance.tunnel.certificates import (
    SERVICE_NAME,
    Credential,
    issue_client,
    issue_nameserver,
    issue_server,
    make_authority,
    read_credential,
)
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Enrolment, Invitation, read_invitation
from appliance.tunnel.messages import Hello, Register, encode
from tests.end_to_end.programs import Process, wait_for
from tests.end_to_end.site import BIN, ZONE, Appliance, Client, Nginx, Ports, tls_context
from tests.end_to_end.visitors import fetch

NAME = f"www.{ZONE}"
S1, S3 = "127.0.0.1", "127.0.0.3"
NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=10)


class Site:
    """An appliance, a client that is in order, and what it takes to forge others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.web_ca = trustme.CA()
        self.context = tls_context(self.web_ca)
        self.origin = Nginx(directory / "origin", [NAME, f"gone.{ZONE}"], self.web_ca)
        self.s1 = Appliance(directory / "s1", Ports(), S1)
        self.good: Client

    def start(self) -> None:
        self.origin.start()
        self.s1.start()
        self.ca = read_credential((self.directory / "s1" / "state" / "ca.pem").read_bytes())
        self.invitation = read_invitation(self.s1.invite(NAME, client="good").read_text())
        self.good = self.client(self.invitation)
        self.good.start("s1")
        wait_for(lambda: self.s1.dig(NAME, "A"), 5, "the name's records")

    @property
    def log(self) -> str:
        assert self.s1.process is not None
        return self.s1.process.output

    def client(self, invitation: Invitation, called: str | None = None) -> Client:
        called = called or invitation.client
        path = self.directory / f"{called}.toml"
        path.write_text(invitation.to_toml())
        return Client(self.directory / called, path, self.s1, "--tls-origin", f"127.0.0.1:{self.origin.tls}")

    def forged(self, client: str, credential: Credential, *names: str) -> Invitation:
        """An invitation that this client's certificate goes with, whatever the appliance thinks of it."""
        return replace(
            self.invitation, client=client, names=names or (NAME,), credential_pem=credential.pem()
        )

    def page(self, name: str = NAME) -> bool:
        return fetch(self.context, S1, self.s1.ports.tls, name, "/who").startswith("origin ")

    def kill(self) -> None:
        if hasattr(self, "good"):
            self.good.kill()
        self.s1.kill()
        self.origin.kill()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("refusals"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(autouse=True)
def _the_rest_goes_on(site: Site) -> Iterator[None]:
    """Whatever was refused, the client that is in order serves its page before and after, and undisturbed."""
    assert site.page()
    yield
    assert site.page()
    assert site.good.process is not None
    assert site.good.process.output.count("joined server") == 1
    assert "Traceback" not in site.log
    assert "Unhandled" not in site.log


# Refused by the server


def client_context(site: Site, credential: Credential | None, directory: Path) -> ssl.SSLContext:
    """A link's TLS, without a word from our own client."""
    context = ssl.create_default_context(cadata=site.ca.certificate_pem().decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["tunnel/1"])
    if credential is not None:
        pem = directory / "link.pem"
        pem.write_bytes(credential.pem())
        context.load_cert_chain(pem)
    return context


def link(context: ssl.SSLContext, site: Site, source: str, *messages: bytes) -> list[dict[str, object]]:
    """What the server says on a link from this source address, until it ends it or 0.5 s have passed."""
    raw = socket.create_connection((S1, site.s1.ports.tls), timeout=5, source_address=(source, 0))
    heard = b""
    with context.wrap_socket(raw, server_hostname=SERVICE_NAME) as tls:
        tls.settimeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for message in messages:
                tls.sendall(message)
            while octets := tls.recv(65536):
                heard += octets
    return [json.loads(line) for line in heard.splitlines()]


OTHER_CA = make_authority("somebody else's CA", NOW)


def credentials(site: Site) -> dict[str, tuple[Credential | None, str]]:
    """Each certificate that is no grant, and the words that are expected for it."""
    names = {"names": [NAME], "service_name": SERVICE_NAME}
    return {
        "no_certificate": (None, "no certificate was presented"),
        "another_ca": (
            issue_client(OTHER_CA, client_id="good", wall=NOW, **names),  # type: ignore[arg-type]
            "was issued by another CA (CN=somebody else's CA)",
        ),
        "expired": (
            issue_client(site.ca, client_id="good", wall=LONG_AGO, days=2, **names),  # type: ignore[arg-type]
            f"the certificate expired on {LONG_AGO + timedelta(days=2):%Y-%m-%d}",
        ),
        "not_yet_valid": (
            issue_client(site.ca, client_id="good", wall=NOW + timedelta(days=2), **names),  # type: ignore[arg-type]
            "is not valid before",
        ),
        "wrong_usage": (
            issue_server(site.ca, server_id="s9", service_name=SERVICE_NAME, addresses=[S1], wall=NOW),
            "the certificate is that of a tunnel server (s9), not of a tunnel client",
        ),
        "wrong_usage as a nameserver's": (
            issue_nameserver(site.ca, nameserver_id="n9", wall=NOW),
            "the certificate is that of a nameserver (n9), not of a tunnel client",
        ),
    }


REASONS = [
    "no_certificate",
    "another_ca",
    "expired",
    "not_yet_valid",
    "wrong_usage",
    "wrong_usage as a nameserver's",
]


@pytest.mark.parametrize(("number", "reason"), list(enumerate(REASONS)))
def test_a_certificate_that_is_no_grant(site: Site, tmp_path: Path, number: int, reason: str) -> None:
    credential, words = credentials(site)[reason]
    source = f"127.0.1.{number + 1}"
    context = client_context(site, credential, tmp_path)
    for _ in range(5):
        said = link(context, site, source, encode(Hello(1, "0" * 32, "test")))
        assert [(one["type"], one["reason"]) for one in said] == [("goodbye", reason.split()[0])]
        assert words in str(said[0]["text"])
    lines = [line for line in site.log.splitlines() if source in line]
    assert len(lines) == 1
    assert f"{source}: tunnel/1 refused: " in lines[0]
    assert words in lines[0]


def test_a_name_that_is_not_granted(site: Site, tmp_path: Path) -> None:
    """The link stays, for the names that are; the others are named at both ends."""
    grant = issue_client(
        site.ca, client_id="greedy", names=[f"own.{ZONE}"], service_name=SERVICE_NAME, wall=NOW
    )
    names = [f"own.{ZONE}", NAME, f"*.{ZONE}"]
    registers = b"".join(encode(Register(name, tls=True, http="redirect")) for name in names)
    said = link(
        client_context(site, grant, tmp_path),
        site,
        "127.0.1.20",
        encode(Hello(1, "1" * 32, "test")) + registers,
    )
    assert [one["type"] for one in said] == ["welcome", "registered", "refused", "refused"]
    assert [one["name"] for one in said[1:]] == names
    assert all("grant" in str(one["text"]) for one in said[2:])
    lines = [line for line in site.log.splitlines() if "greedy" in line and "refused" in line]
    assert len(lines) == 1  # of the same client within half a minute
    assert f"greedy: {NAME} refused: " in lines[0]


def test_a_client_says_why_it_is_refused(site: Site) -> None:
    """The real client, whose grant has expired: one line at each end, however often it tries."""
    credential, words = credentials(site)["expired"]
    assert credential is not None
    client = site.client(site.forged("good", credential), "expired")
    try:
        process = client.start()
        process.says("cannot join the server at")
        began = time.monotonic()
        wait_for(lambda: time.monotonic() > began + 2, 5, "the time of a few more tries")
    finally:
        client.kill()
    refused = [line for line in process.output.splitlines() if "cannot join" in line]
    assert len(refused) == 1
    # The server's lines are by address, and this address is that of all clients here.
    assert site.log.count("127.0.0.1: tunnel/1 refused: ") == 1
    assert words in refused[0]
    assert f"the certificate expired on {LONG_AGO + timedelta(days=2):%Y-%m-%d}" in process.output


@pytest.mark.parametrize("reason", ["another_ca", "wrong_usage"])
def test_an_invitation_that_cannot_be_one(site: Site, tmp_path: Path, reason: str) -> None:
    """What the client itself can see is an error before it starts."""
    credential, _ = credentials(site)[reason]
    assert credential is not None
    path = tmp_path / "invitation.toml"
    path.write_text(site.forged("good", credential).to_toml())
    with Process(
        [BIN / "twistd", "-n", "--pidfile=", "tunnel-client", "--invitation", path, "--tls-origin", "h:1"],
        tmp_path / "log",
        cwd=tmp_path,
    ) as process:
        assert wait_for(lambda: process.status, 10, "the end") == 2
    (line,) = process.output.splitlines()
    assert "the invitation cannot be used: credential: " in line
    assert {"another_ca": "not issued by the CA", "wrong_usage": "tunnel-server:s9"}[reason] in line


def test_a_client_is_revoked(site: Site) -> None:
    """Its link ends at once, and so do its visitors; then it is refused. Nobody else notices."""
    name = f"gone.{ZONE}"
    invitation = read_invitation(site.s1.invite(name, client="gone").read_text())
    client = site.client(invitation)
    try:
        process = client.start("s1")
        with (
            socket.create_connection((S1, site.s1.ports.tls), timeout=10) as raw,
            site.context.wrap_socket(raw, server_hostname=name) as visitor,
        ):
            visitor.sendall(f"GET /who HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert b"200" in visitor.recv(4096)
            began = time.monotonic()
            assert f"revoked the client certificate of gone for {name}" in site.s1.command("revoke", "gone")
            commanded = time.monotonic() - began
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                assert visitor.recv(4096) == b""
            cut = time.monotonic() - began
        process.says("left server s1")
        left = time.monotonic() - began
        process.says("cannot join the server at")
        print(f"measured revoke_command {commanded:.3f} s")
        print(f"measured revoke_visitor_cut {cut:.3f} s")
        print(f"measured revoke_link_ended {left:.3f} s")
        assert cut - commanded < 0.5
    finally:
        client.kill()
    assert "left server s1" in process.output
    assert re.search(r"left server s1 at .*: .*the client's certificate was revoked", process.output)
    assert re.search(r"cannot join the server at .*: .*the certificate [0-9a-f]+ was revoked", process.output)
    assert site.log.count("gone: link ended: the client's certificate was revoked") == 1
    assert "gone is revoked already" in site.s1.command("revoke", "gone", fails=True)
    assert "no certificate was issued" in site.s1.command("revoke", "nobody", fails=True)


# Refused by the client


@dataclass
class FalseServer:
    """A TLS server that shows this certificate to whoever dials, and keeps what OpenSSL says of the end."""

    credential: Credential
    directory: Path

    def __enter__(self) -> FalseServer:
        self.heard: list[str] = []
        self.got = b""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["tunnel/1"])
        pem = self.directory / "false.pem"
        pem.write_bytes(self.credential.pem())
        context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(context,))
        self._thread.start()
        return self

    def _serve(self, context: ssl.SSLContext) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(5)
            try:
                with context.wrap_socket(sock, server_side=True) as tls:
                    self.got += tls.recv(65536)
            except OSError as error:
                self.heard.append(str(error))

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def false_servers(site: Site) -> dict[str, tuple[Credential, str]]:
    server = {"server_id": "s9", "addresses": ["127.0.0.1"]}
    return {
        "a grant": (
            issue_client(site.ca, client_id="x", names=[NAME], service_name=SERVICE_NAME, wall=NOW),
            "the certificate is that of a tunnel client (x), not of a tunnel server",
        ),
        "another service": (
            issue_server(site.ca, service_name="other.internal", wall=NOW, **server),  # type: ignore[arg-type]
            "the server's certificate is for another name (other.internal), not for tunnel-server.internal",
        ),
        "another CA": (
            issue_server(OTHER_CA, service_name=SERVICE_NAME, wall=NOW, **server),  # type: ignore[arg-type]
            "was issued by another CA (CN=somebody else's CA)",
        ),
        "expired": (
            issue_server(site.ca, service_name=SERVICE_NAME, wall=LONG_AGO, days=2, **server),  # type: ignore[arg-type]
            "the certificate expired on",
        ),
    }


def test_false_servers(site: Site, tmp_path: Path) -> None:
    """The client says why, once for each, tells them nothing, and is joined to the true server meanwhile."""
    with contextlib.ExitStack() as serving:
        false: dict[str, FalseServer] = {}
        for number, (what, (credential, _)) in enumerate(false_servers(site).items()):
            directory = tmp_path / str(number)
            directory.mkdir()
            false[what] = serving.enter_context(FalseServer(credential, directory))
        dialled = tuple(ServerAddress("127.0.0.1", one.port) for one in false.values())
        invitation = replace(site.invitation, servers=(*site.invitation.servers, *dialled))
        client = site.client(invitation, "seeing-false-servers")
        try:
            process = client.start("s1")
            wait_for(lambda: all(len(one.heard) > 1 for one in false.values()), 15, "two tries at each")
        finally:
            client.kill()
    for what, (_, words) in false_servers(site).items():
        assert false[what].got == b""
        assert all("alert" in text.lower() for text in false[what].heard), false[what].heard
        where = f"cannot join the server at 127.0.0.1:{false[what].port}: "
        (line,) = [line for line in process.output.splitlines() if where in line]
        assert words in line


@pytest.mark.parametrize("what", ["another service", "another CA"])
def test_a_server_hears_that_a_client_does_not_believe_it(site: Site, what: str) -> None:
    """A tunnel server of ours that is in order by itself, but none of ours: a line in its own log as well."""
    ports, called = Ports(), f"s3-{what.replace(' ', '-')}"
    ca, service = (OTHER_CA, SERVICE_NAME) if what == "another CA" else (site.ca, "other.internal")
    credential = issue_server(ca, server_id="s3", service_name=service, addresses=[S3], wall=NOW)
    enrolment = Enrolment(
        server_id="s3",
        service_name=service,
        addresses=(ServerAddress(S3, ports.tls),),
        ca_pem=ca.certificate_pem(),
        credential_pem=credential.pem(),
    )
    path = site.directory / f"{called}.toml"
    path.write_text(enrolment.to_toml())
    s3 = Appliance(site.directory / called, ports, S3, enrolment=path)
    invitation = replace(site.invitation, servers=(*site.invitation.servers, ServerAddress(S3, ports.tls)))
    client = site.client(invitation, f"seeing-{called}")
    words, heard = {
        "another service": (
            "it is not a server of the service that the invitation names",
            f"127.0.0.1: wants a link to or a watch of {SERVICE_NAME}, and this server is other.internal",
        ),
        "another CA": (
            "was issued by another CA (CN=somebody else's CA)",
            "127.0.0.1: tunnel/1: the other end does not take this server's certificate (",
        ),
    }[what]
    try:
        server = s3.start()
        process = client.start("s1")
        process.says("cannot join the server at")
        assert words in process.output
        server.says(heard)
        assert len([line for line in server.output.splitlines() if "127.0.0.1: " in line]) == 1
    finally:
        client.kill()
        s3.kill()
