"""The visitor's address at the origin, by PROXY protocol v2, read by nginx, HAProxy and a parser of ours."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.end_to_end.joined import Joined, rest_of
from tests.end_to_end.origins import Visited, answer
from tests.end_to_end.programs import Process, free_port, need, wait_for
from tests.end_to_end.site import ZONE, Nginx, listens

VISITOR = "127.0.0.77"
"""Where visitors come from; nothing else does."""
ALPN, AUTHORITY, UNIQUE_ID = 0x01, 0x02, 0x05
FROM = "visitor $remote_addr:$remote_port server $proxy_protocol_server_addr:$proxy_protocol_server_port"


class ProxyNginx(Nginx):
    """nginx as docs/howto/set-up-the-origin.md has it, with the header and (another port) with fields."""

    def __init__(self, *arguments: Any) -> None:
        self.fields = free_port("tcp")
        super().__init__(*arguments)

    def _configuration(self) -> str:
        text = super()._configuration()
        server = f"""server {{
    listen 127.0.0.1:{self.fields};
    set_real_ip_from 127.0.0.1; real_ip_header X-Forwarded-For;
    location / {{ return 200 "$remote_addr $http_x_forwarded_proto $http_x_forwarded_host"; }}
  }}
"""
        text = re.sub(r"(listen [^;]+);", r"\1 proxy_protocol;", text)
        real = "set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;"
        text = text.replace(
            "    ssl_early_data on;", f'    {real}\n    location = /from {{ return 200 "{FROM}"; }}'
        )
        return text.removesuffix("}\n") + server + "}\n"


@dataclass
class Header:
    """A PROXY protocol v2 header, read by the letter of doc/proxy-protocol.txt 2.2."""

    source: tuple[str, int]
    destination: tuple[str, int]
    values: list[tuple[int, bytes]]


def read_header(visited: Visited) -> Header:
    """The header that a connection has to begin with."""
    assert visited.take(12) == b"\r\n\r\n\0\r\nQUIT\n"
    version_and_command, family, length = struct.unpack("!BBH", visited.take(4))
    assert version_and_command == 0x21
    rest = visited.take(length)
    addresses = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}[family]
    *hosts, source_port, destination_port = addresses.unpack_from(rest)
    source, destination = (str(ipaddress.ip_address(host)) for host in hosts)
    values, rest = [], rest[addresses.size :]
    while rest:
        kind, octets = struct.unpack_from("!BH", rest)
        assert len(rest) >= 3 + octets
        values.append((kind, rest[3 : 3 + octets]))
        rest = rest[3 + octets :]
    return Header((source, source_port), (destination, destination_port), values)


class Parser:
    """An origin that reads the header, speaks TLS behind it if it is to, and answers a request."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.headers: list[Header] = []
        self._context = context

    def __call__(self, visited: Visited) -> None:
        if self._context is None:
            self.headers.append(read_header(visited))
            while head := visited.head():
                visited.send(answer(head.split(b" ")[1]))
            return
        # Not an octet more than the header, for what follows is for TLS to read.
        octets = bytearray()
        while len(octets) < 16 or len(octets) < 16 + struct.unpack_from("!H", octets, 14)[0]:
            octets += visited.sock.recv(1)
        visited.octets += octets
        self.headers.append(read_header(visited))
        with self._context.wrap_socket(visited.sock, server_side=True) as tls:
            visited.sock = tls
            tls.recv(1 << 16)
            tls.sendall(answer(b"by TLS", "Connection: close"))


class Site(Joined):
    """One appliance, one client, and the origins."""

    def start(self) -> None:
        settings = self.appliance.directory / "appliance.toml"
        too = r'\1["\2:\3", "[::1]:\3"]'
        settings.write_text(re.sub(r'(?m)^((?:tls|http) = )\["(.*):(\d+)"\]', too, settings.read_text()))
        super().start()
        self.nginx = ProxyNginx(self.directory / "nginx", [f"www.{ZONE}"], self.ca)
        self.running.callback(self.nginx.kill)
        self.nginx.start()
        self.plain = Parser()
        self.bare_origin = self.origin(lambda visited: visited.send(visited.head()))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(f"parsed.{ZONE}").configure_cert(context)
        context.set_alpn_protocols(["http/1.1"])
        self.tls = Parser(context)
        origins = {
            "www": {"tls_origin": self.nginx.tls, "http_origin": self.nginx.http},
            "parsed": {
                "tls_origin": self.origin(self.tls).port,
                "http_origin": self.origin(self.plain).port,
            },
            "haproxy": {"tls_origin": free_port("tcp"), "http_origin": free_port("tcp")},
        }
        self.haproxy = origins["haproxy"]
        self.haproxy_fields = free_port("tcp")
        fields = {"nginx-fields": self.nginx.fields, "haproxy-fields": self.haproxy_fields}
        names: dict[str, dict[str, int | bool | str]] = {
            label: {**settings, "proxy_protocol": True} for label, settings in origins.items()
        }
        names |= {label: {"http_origin": port, "forwarded": "add"} for label, port in fields.items()}
        self.join("home", {**names, "bare": {"http_origin": self.bare_origin.port}})

    def visit_http(self, octets: bytes) -> tuple[tuple[str, int], bytes]:
        """Send octets from the visitor's address; where he was, and all that came."""
        with self.visit() as sock:
            sock.sendall(octets)
            return sock.getsockname(), rest_of(sock)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("proxy"), server='access_log = "access.log"\n')
    with made.running:
        made.start()
        yield made


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nginx_takes_a_visitor_by_ipv6(site: Site, scheme: str) -> None:
    port = site.ports.http if scheme == "http" else site.ports.tls
    where = ("-w", "|visitor %{local_ip}:%{local_port}")
    said = site.curl(f"{scheme}://www.{ZONE}/from", *by_ipv6(site), *where)
    got, _, expected = said.partition("|")
    assert got == f"{expected} server ::1:{port}"


def by_ipv6(site: Site) -> list[str]:
    """Options that have curl come over IPv6."""
    to = (f":80:[::1]:{site.ports.http}", f":443:[::1]:{site.ports.tls}")
    return [option for each in to for option in ("--connect-to", each)]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nginx_logs_the_visitor(site: Site, scheme: str) -> None:
    port = site.ports.http if scheme == "http" else site.ports.tls
    said = site.curl(
        f"{scheme}://www.{ZONE}/from?{scheme}",
        *("--interface", VISITOR, "-w", "|visitor %{local_ip}:%{local_port} server %{remote_ip}:"),
    )
    got, _, expected = said.partition("|")
    assert got == f"{expected}{port}"
    log = site.nginx.directory / "access.log"
    wait_for(lambda: f"/from?{scheme} HTTP" in log.read_text(), 5, "the line in the log")
    (line,) = [line for line in log.read_text().splitlines() if f"/from?{scheme} HTTP" in line]
    assert line.startswith(f"{VISITOR} - ")


def test_what_the_header_holds_for_a_visitor_by_tls(site: Site) -> None:
    before = len(site.tls.headers)
    where = []
    for _ in range(2):
        with site.visit_tls("parsed", "http/1.1", "h2") as sock:
            where.append(sock.getsockname())
            sock.sendall(f"GET / HTTP/1.1\r\nHost: parsed.{ZONE}\r\n\r\n".encode())
            assert rest_of(sock).endswith(b"by TLS")
    headers = site.tls.headers[before:]
    assert [header.source for header in headers] == where
    for header in headers:
        assert header.destination == (site.appliance.address, site.ports.tls)
        assert header.values[:2] == [(ALPN, b"http/1.1"), (AUTHORITY, f"parsed.{ZONE}".encode())]
        ((kind, unique),) = header.values[2:]
        assert kind == UNIQUE_ID
        assert 8 <= len(unique) <= 128
    assert headers[0].values[2] != headers[1].values[2]


def test_what_the_header_holds_for_a_visitor_by_http(site: Site) -> None:
    """Once a connection, in front of his first request."""
    before = len(site.plain.headers)
    asked = f"GET /one HTTP/1.1\r\nHost: parsed.{ZONE}\r\n\r\n".encode()
    with site.visit() as sock:
        where = sock.getsockname()
        for _ in range(3):
            sock.sendall(asked)
            assert sock.recv(1 << 16).endswith(b"/one")
    (header,) = site.plain.headers[before:]
    assert header.source == where
    assert header.destination == (site.appliance.address, site.ports.http)
    assert [kind for kind, _ in header.values] == [AUTHORITY, UNIQUE_ID]
    assert header.values[0][1] == f"parsed.{ZONE}".encode()
    log = site.appliance.directory / "access.log"

    def line() -> list[str]:
        end = f" {header.values[1][1].hex()}\n"
        return [one for one in log.read_text().splitlines(keepends=True) if one.endswith(end)]

    (said,) = wait_for(line, 10, "the visitor's line, with the id that the origin got")
    assert said.split()[1:4] == [f"parsed.{ZONE}", f"{where[0]}:{where[1]}", "home"]


def test_a_visitor_by_ipv6(site: Site) -> None:
    before = len(site.plain.headers)
    with socket.create_connection(("::1", site.ports.http), timeout=20) as sock:
        sock.sendall(f"GET /six HTTP/1.1\r\nHost: parsed.{ZONE}\r\n\r\n".encode())
        assert sock.recv(1 << 16).endswith(b"/six")
        where = sock.getsockname()[:2]
    (header,) = site.plain.headers[before:]
    assert (header.source, header.destination) == (where, ("::1", site.ports.http))


def test_a_post_goes_behind_the_header(site: Site) -> None:
    said = site.curl(f"http://www.{ZONE}/who", "--data", "x" * 100_000)
    assert said == f"origin www.{ZONE} http POST\n"


def test_a_name_without_the_option_gets_no_header(site: Site) -> None:
    asked = f"GET / HTTP/1.1\r\nHost: bare.{ZONE}\r\n\r\n".encode()
    assert site.visit_http(asked)[1] == asked


def test_a_visitor_cannot_bring_a_header_of_his_own(site: Site) -> None:
    """In front of a request it is no HTTP, in front of a ClientHello no TLS: neither reaches an origin."""
    before = len(site.plain.headers), len(site.tls.headers)
    forged = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2])
    asked = f"GET / HTTP/1.1\r\nHost: parsed.{ZONE}\r\n\r\n".encode()
    assert site.visit_http(forged + asked)[1].startswith(b"HTTP/1.1 400 ")
    assert site.visit_http(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + asked)[1].startswith(b"HTTP/1.1 400 ")
    with socket.create_connection((site.appliance.address, site.ports.tls), timeout=20) as sock:
        sock.sendall(forged)
        assert rest_of(sock) == bytes([21, 3, 3, 0, 2, 2, 10])  # the alert unexpected_message
    assert (len(site.plain.headers), len(site.tls.headers)) == before


@pytest.fixture(scope="module")
def haproxy(site: Site) -> Iterator[Process]:
    program = need("haproxy")
    directory = site.directory / "haproxy"
    directory.mkdir()
    certificate: trustme.LeafCert = site.ca.issue_cert(f"haproxy.{ZONE}")
    pem: Path = directory / "origin.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    tls, http = site.haproxy["tls_origin"], site.haproxy["http_origin"]
    settings = directory / "haproxy.cfg"
    settings.write_text(f"""\
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 5s
frontend origin
  bind 127.0.0.1:{tls} accept-proxy ssl crt {pem} alpn h2,http/1.1
  bind 127.0.0.1:{http} accept-proxy
  http-request return status 200 content-type text/plain lf-string \
"%[src]:%[src_port] to %[dst]:%[dst_port] for %[fc_pp_authority] id %[fc_pp_unique_id,hex] by %HV"
frontend fields
  bind 127.0.0.1:{site.haproxy_fields}
  http-request set-src req.hdr(x-forwarded-for)
  http-request return status 200 content-type text/plain lf-string \
"%[src] %[req.hdr(x-forwarded-proto)] %[req.hdr(x-forwarded-host)]"
""")
    checked = subprocess.run([program, "-c", "-f", settings], capture_output=True, text=True, timeout=20)
    assert checked.returncode == 0, checked.stderr
    with Process([program, "-db", "-f", settings], directory / "log") as process:
        wait_for(lambda: listens(tls) and listens(http), 10, "haproxy")
        yield process


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("scheme", "version"), [("http", "HTTP/1.1"), ("https", "HTTP/2.0")])
def test_haproxy_accepts_the_header(
    site: Site, haproxy: Process, scheme: str, version: str, family: int
) -> None:
    port = site.ports.http if scheme == "http" else site.ports.tls
    said = site.curl(
        f"{scheme}://haproxy.{ZONE}/",
        *(["--interface", VISITOR] if family == 4 else by_ipv6(site)),
        "-w",
        "|%{local_ip}:%{local_port} to %{remote_ip}",
    )
    got, _, expected = said.partition("|")
    assert re.fullmatch(
        re.escape(f"{expected}:{port} for haproxy.{ZONE} id ") + f"[0-9A-F]{{16,}} by {version}", got
    ), (got, expected)
    assert haproxy.status is None


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("program", ["nginx", "haproxy"])
def test_the_visitor_in_fields(site: Site, haproxy: Process, program: str, family: int) -> None:
    """For every request of a connection, whatever he says himself."""
    del haproxy  # it runs
    host = f"{program}-fields.{ZONE}"
    said = site.curl(
        f"http://{host}/[1-3]",
        *(["--interface", VISITOR] if family == 4 else by_ipv6(site)),
        *("-H", "X-Forwarded-For: 198.51.100.7", "-H", "X-Forwarded-Proto: https", "-w", "|"),
    )
    assert said == f"{VISITOR if family == 4 else '::1'} http {host}|" * 3
