"""https for plain origins, through the whole of it: the client has the certificate, and ends the TLS.

What nobody but client and origin may see is looked for in the server's memory and in every packet on the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.end_to_end.joined import Joined, rest_of
from tests.end_to_end.origins import Silent, Visited, keep_alive
from tests.end_to_end.programs import free_port, wait_for
from tests.end_to_end.site import ZONE, Nginx
from tests.end_to_end.test_port_80 import (
    chunked_digest,
    ends_first,
    reads_and_resets,
    websocket,
)

IDENTITY = [b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"Forwarded"]


def sse(visited: Visited) -> None:
    """Server-sent events, the next one when the test says so by the file's name in the first line."""
    head = visited.head()
    gate = Path(head.split(b" ")[1].decode())
    visited.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(3):
        event = b"data: %d\n\n" % number
        visited.send(b"%x\r\n%s\r\n" % (len(event), event))
        wait_for((gate.parent / f"{gate.name}{number}").exists, 20, "the test")
    visited.send(b"0\r\n\r\n")


def continues(visited: Visited) -> None:
    """Ask for the body only when the head is here."""
    head = visited.head()
    assert b"expect: 100-continue" in head.lower()
    visited.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = visited.take(5)
    visited.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)
    visited.read()


def odd_answers(visited: Visited) -> None:
    """Answers without a body: to HEAD, 204, 304."""
    while head := visited.head():
        if head.startswith(b"HEAD"):
            visited.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        else:
            visited.send(b"HTTP/1.1 %s X\r\nETag: \"a\"\r\n\r\n" % head.split(b" ")[1][1:])


class Site(Joined):
    """One appliance, two clients, and an origin for each thing that an origin can do."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.nginx = Nginx(directory / "nginx", [f"unused.{ZONE}"], self.ca)
        self.script = self.origin(keep_alive("script"))
        self.other = self.origin(keep_alive("other"))
        self.chunks = self.origin(chunked_digest)
        self.websocket = self.origin(websocket)
        self.events = self.origin(sse)
        self.continuing = self.origin(continues)
        self.odd = self.origin(odd_answers)
        self.ending = self.origin(ends_first)
        self.resetting = self.origin(reads_and_resets)
        self.silent = Silent()
        self.running.callback(self.silent.close)
        self.refusing = free_port("tcp")

    def issue(self, label: str, *names: str) -> dict[str, Path]:
        """A certificate for names (that of the label, if none is said) in files of its own."""
        files = {part: self.directory / f"{label}.{part}" for part in ("certificate", "key")}
        write_pair(self.ca.issue_cert(*(names or (f"{label}.{ZONE}",))), files)
        return files

    def start(self) -> None:
        self.running.callback(self.nginx.kill)
        self.nginx.start()
        super().start()
        origins = {
            "www": self.nginx.http,
            "script": self.script.port,
            "chunks": self.chunks.port,
            "ws": self.websocket.port,
            "events": self.events.port,
            "continues": self.continuing.port,
            "odd": self.odd.port,
            "ends": self.ending.port,
            "resets": self.resetting.port,
            "refusing": self.refusing,
            "two": self.refusing,
        }
        self.files = {label: self.issue(label) for label in origins}
        names: dict[str, dict[str, int | bool | Path]] = {
            label: {"http_origin": port, **self.files[label]} for label, port in origins.items()
        }
        self.awaited = {part: self.directory / f"awaited.{part}" for part in ("certificate", "key")}
        names["awaited"] = {"http_origin": self.nginx.http, **self.awaited}
        names["*.apps"] = {"http_origin": self.nginx.http, **self.issue("apps", f"*.apps.{ZONE}")}
        names["passed"] = {"tls_origin": self.nginx.tls}
        self.home = self.join("home", names)
        self.join("second", {"two": {"http_origin": self.other.port, **self.files["two"]}})

    @property
    def log(self) -> str:
        assert self.home.process is not None
        return self.home.process.output

    def ask(self, label: str, octets: bytes) -> bytes:
        """All that is said to these octets, inside TLS, until the end."""
        with self.visit_tls(label) as tls:
            with contextlib.suppress(OSError):
                tls.sendall(octets)
            return rest_of(tls)


def write_pair(certificate: trustme.LeafCert, files: dict[str, Path]) -> None:
    pems = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    for part, octets in (("certificate", pems), ("key", certificate.private_key_pem.bytes())):
        new = files[part].with_suffix(".new")
        new.touch(0o600)
        new.write_bytes(octets)
        new.rename(files[part])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("https"))
    with made.running:
        made.start()
        yield made


def test_a_page(site: Site) -> None:
    assert site.curl(f"https://www.{ZONE}/who") == f"origin www.{ZONE} http GET\n"
