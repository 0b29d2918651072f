"""docs/reference/protocol.md suffices: a client written from it alone serves pages by a real appliance."""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.end_to_end import libssl, speclient
from tests.end_to_end.site import ZONE, Appliance, Nginx, Ports, tls_context
from tests.end_to_end.speclient import Address, Invitation, Offer, SpecClient

NAME, WILDCARD = f"www.{ZONE}", f"*.apps.{ZONE}"
SPECIFICATION = Path(__file__).parents[2] / "docs" / "reference" / "protocol.md"


@pytest.fixture(scope="module", autouse=True)
def _libssl() -> None:
    """Without the library the tests are skipped (they fail with `CI` set, as root)."""
    if libssl.library() is None:
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(
                "libssl 1.1.1 or newer is not installed, and CI as root may not skip it", pytrace=False
            )
        pytest.skip("libssl 1.1.1 or newer is not installed")


class Site:
    """One appliance, one nginx, one invitation."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.nginx = Nginx(directory / "nginx", [NAME, WILDCARD, f"*.deep.apps.{ZONE}"], self.ca)
        self.appliance = Appliance(directory / "s1", Ports())
        self.invitation: Invitation
        self.server: Address
        self.early: SpecClient

    def start(self) -> None:
        self.nginx.start()
        self.appliance.start()
        self.invitation = Invitation.read(self.appliance.invite(NAME, WILDCARD))
        records = self.appliance.dig(self.invitation.discovery, "TXT")
        (self.server,) = speclient.servers([re.sub('^"|" "|"$', "", record) for record in records])
        self.offer = Offer(("127.0.0.1", self.nginx.tls), ("127.0.0.1", self.nginx.http))
        self.early = self.client(offer=False)  # its first ping comes while other tests run

    def kill(self) -> None:
        if hasattr(self, "early"):
            self.early.close()
        self.appliance.kill()
        self.nginx.kill()

    def client(
        self, *, lanes: int = 2, instance: str | None = None, certificate: bool = True, offer: bool = True
    ) -> SpecClient:
        client = SpecClient(
            self.invitation, self.server, lanes=lanes, instance=instance, certificate=certificate
        )
        if offer:
            assert client.register(NAME, self.offer)["type"] == "registered"
        return client

    def connect(self, port: int = 0) -> socket.socket:
        return socket.create_connection((self.appliance.address, port or self.server[1]), timeout=20)

    def https(self, host: str = NAME) -> str:
        """The answer to a visitor who verifies the site's certificate."""
        with self.connect() as raw, tls_context(self.ca).wrap_socket(raw, server_hostname=host) as visitor:
            return asked(visitor, host)

    def http(self) -> str:
        with self.connect(self.appliance.ports.http) as visitor:
            return asked(visitor, NAME)


def asked(visitor: socket.socket, host: str) -> str:
    visitor.sendall(f"GET /who HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return b"".join(iter(lambda: visitor.recv(65536), b"")).decode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("specification"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


def block(kind: str) -> bytes:
    """The octets of a vector in the specification."""
    found = re.search(rf"```hex {kind}\n(.*?)```", SPECIFICATION.read_text(), re.DOTALL)
    assert found
    return bytes.fromhex(found[1])


def test_the_vectors() -> None:
    """This client reads them as they are meant."""
    preface_key, header_key = block("exported")[:32], block("exported")[32:]
    preface = speclient.preface(preface_key, "a1a2a3a4a5a6a7a8", 1)
    assert preface == block("preface")
    nonce, sealed = struct.pack(">IQ", 0, 1), block("sealed")
    header = libssl.unsealed(header_key, nonce, preface, sealed[2:])
    assert header == block("proxy")
    assert len(sealed) == 2 + int.from_bytes(sealed[:2])
    with pytest.raises(libssl.Unsealable):
        libssl.unsealed(header_key, nonce, preface, sealed[2:-1] + b"\0")
    unique = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert speclient.visitor_of(header) == speclient.Visitor(
        "192.0.2.7", 50000, "198.51.100.1", 443, "www.example.org", unique, True, b"h2"
    )
    assert speclient.visitor_of(block("proxy6")) == speclient.Visitor(
        "2001:db8::7", 50000, "2001:db8:1::1", 80, "shop.apps.example.org", unique, False, None
    )


def test_the_txt_records() -> None:
    found = re.findall(r"```text txt (\S+) (\d+)\n(.*?)\n```", SPECIFICATION.read_text())
    assert len(found) == 3
    assert speclient.servers([record for _, _, record in found]) == [(ip, int(port)) for ip, port, _ in found]


def test_a_page_over_https_and_another_by_the_next_lane(site: Site) -> None:
    with site.client(lanes=1) as client:
        for _ in range(2):
            assert site.https().endswith(f"origin {NAME} https GET\n")
        assert client.answers == [speclient.JOINED] * 2
        first, second = client.visitors
        assert (first.name, first.source, first.by_tls, first.alpn) == (NAME, "127.0.0.1", True, None)
        assert (first.destination, first.destination_port) == site.server
        assert first.unique_id != second.unique_id


def test_lanes_that_the_server_asks_for(site: Site) -> None:
    with site.client(lanes=0) as client:
        assert "origin" in site.https()
        assert client.hears("lanes")["kind"] == "plain"


def test_a_page_over_http(site: Site) -> None:
    with site.client() as client:
        assert site.http().endswith(f"origin {NAME} http GET\n")
        assert client.hears("lanes")["kind"] == "tls"
        assert not client.visitors[0].by_tls


def test_a_wildcard_takes_what_is_below_it_at_any_depth(site: Site) -> None:
    with site.client(offer=False) as client:
        assert client.register(WILDCARD, site.offer)["type"] == "registered"
        for host in (f"a.apps.{ZONE}", f"a.deep.apps.{ZONE}"):
            assert f"origin {host} https GET" in site.https(host)


def test_names_that_are_not_granted(site: Site) -> None:
    with site.client() as client:
        answer = client.register(f"a.apps.{ZONE}", site.offer)
        assert (answer["type"], answer["reason"]) == ("refused", "not_granted")
        assert "origin" in site.https()


def test_a_false_preface_is_closed_without_a_word(site: Site) -> None:
    with site.client(lanes=0) as client, site.connect() as held:
        used = client.counter()
        held.sendall(client.preface(used))
        for octets in (
            client.preface(client.counter())[:-1] + b"\0",
            speclient.preface(client.preface_key, "00" * 8, client.counter()),
            client.preface(client.counter()) + b"\x01",
            client.preface(used),
        ):
            with site.connect() as lane:
                lane.sendall(octets)
                assert lane.recv(1) == b""
        # The lane whose counter it was is none the worse: the next visitor comes by it.
        with site.connect() as visitor:
            visitor.sendall(client_hello())
            length = int.from_bytes(held.recv(2, socket.MSG_WAITALL))
            assert len(held.recv(length, socket.MSG_WAITALL)) == length
            # He leaves; else he would wait, and be the next client's visitor.
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_an_origin_that_refuses(site: Site) -> None:
    """The lane ends in order (`answers`), and the visitor hears why none came."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody: Address = listener.getsockname()
    with site.client(offer=False) as client:
        client.register(NAME, Offer(nobody, nobody))
        with pytest.raises(ssl.SSLError, match=r"(?i)internal.error"):
            site.https()
        assert site.http().startswith("HTTP/1.1 502 ")
        client.settles(lambda: client.answers == [speclient.REFUSED] * 2)


def test_a_kind_of_visitor_that_was_not_offered(site: Site) -> None:
    with site.client(offer=False) as client:
        client.register(NAME, Offer(tls=site.offer.tls))
        assert site.http().startswith("HTTP/1.1 308 ")
        assert "origin" in site.https()


@pytest.mark.parametrize("end", ["fin", "reset"])
def test_ends_are_passed_on(site: Site, end: str) -> None:
    with ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = held.enter_context(site.client(offer=False))
        client.register(NAME, Offer(tls=listener.getsockname()))
        visitor = held.enter_context(site.connect())
        visitor.sendall(client_hello())
        origin = held.enter_context(listener.accept()[0])
        origin.settimeout(20)
        origin.sendall(b"answer")
        assert visitor.recv(6, socket.MSG_WAITALL) == b"answer"
        assert origin.recv(65536)[0] == 22  # a handshake record: the visitor's ClientHello
        if end == "reset":
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            visitor.close()
            with pytest.raises(ConnectionResetError):
                origin.recv(1)
            return
        visitor.shutdown(socket.SHUT_WR)
        assert origin.recv(1) == b""
        origin.sendall(b"late")
        assert visitor.recv(4, socket.MSG_WAITALL) == b"late"
        origin.shutdown(socket.SHUT_WR)
        assert visitor.recv(1) == b""


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_server_that_is_not_the_one_of_the_invitation(site: Site) -> None:
    for other in (
        replace(site.invitation, ca=trustme.CA().cert_pem.bytes()),
        replace(site.invitation, service_name="other.internal"),
    ):
        with pytest.raises(libssl.Unverified):
            SpecClient(other, site.server)


def test_goodbyes(site: Site) -> None:
    with site.client(certificate=False, offer=False) as refused:
        assert refused.hears("goodbye")["reason"] == "no_certificate"
    with site.client() as older, site.client(instance=older.instance):
        assert older.hears("goodbye")["reason"] == "replaced"
        assert "origin" in site.https()
    with site.client() as client:
        client.say({"type": "sunshine"})
        client.say({"type": "pong", "nonce": "of-no-ping"})
        assert client.hears("goodbye")["reason"] == "protocol"


def test_pings(site: Site) -> None:
    """This end pings and is answered, so the other need not, and the session goes on."""
    site.early.hears("pong")
    assert site.early.register(NAME, site.offer)["type"] == "registered"
    assert "origin" in site.https()
    assert not site.early.ended.is_set()
