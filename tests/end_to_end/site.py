"""A whole installation on loopback with real processes: appliances, clients, and nginx as the origin.

Each machine has an address of its own in 127.0.0.0/8; all tunnel servers of a site share their port numbers,
so that a visitor may try the next address.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import trustme

from tests.end_to_end.programs import Process, free_port, need, wait_for

ZONE = "site.test"
BIN = Path(sys.executable).parent


class Ports:
    """The port numbers of every machine of a site: free ones, or those of the internet where each machine
    has a network of its own.
    """

    def __init__(self, *, of_the_internet: bool = False) -> None:
        self.dns = 53 if of_the_internet else free_port("both")
        self.tls = 443 if of_the_internet else free_port("tcp")
        self.http = 80 if of_the_internet else free_port("tcp")


class Appliance:
    """One appliance: nameserver and tunnel server, or (with an enrolment) a tunnel server only, or (without
    `server`) a nameserver only.
    """

    env: Mapping[str, str] = {}

    def __init__(
        self,
        directory: Path,
        ports: Ports,
        address: str = "127.0.0.1",
        *,
        servers: Sequence[str] = (),
        enrolment: Path | None = None,
        server: bool = True,
        zone: str = ZONE,
        public_port: int | None = None,
        program: Sequence[str | Path] = (BIN / "twistd",),
    ) -> None:
        """`public_port`: the published port for TLS, where that is not the one listened on (NAT, a tap).
        `program` is twistd, or words that run it elsewhere."""
        directory.mkdir()
        self.directory = directory
        self.program = program
        self.ports = ports
        self.address = address
        self.process: Process | None = None
        self._starts = 0
        lines = [f'state = "{directory}/state"']
        if enrolment is None:
            zones = directory / "zones"
            zones.mkdir()
            (zones / f"{zone}.zone").write_text(
                f"$ORIGIN {zone}.\n$TTL 300\n@ SOA ns1 hostmaster 1 7200 900 1209600 15\n"
                f" NS ns1\nns1 A {address}\nstatic A 192.0.2.80\n"
            )
            lines += [
                "[nameserver]",
                f'zones = "{zones}"',
                f'listen = ["{address}:{ports.dns}"]',
                "private_addresses = true",
                f"servers = [{', '.join(repr(f'{server}:{ports.tls}') for server in servers)}]",
            ]
        if not server:
            (directory / "appliance.toml").write_text("\n".join(lines) + "\n")
            return
        lines += [
            "[server]",
            f'id = "{directory.name}"' if enrolment is None else f'enrolment = "{enrolment}"',
            f'addresses = ["{address}:{public_port or ports.tls}"]',
            f'tls = ["{address}:{ports.tls}"]',
            f'http = ["{address}:{ports.http}"]',
        ]
        (directory / "appliance.toml").write_text("\n".join(lines) + "\n")

    def start(self, seconds: float = 10.0, *, waits: bool = True) -> Process:
        """Start it, and wait until it says that it is ready."""
        self._starts += 1
        self.process = Process(
            [*self.program, "-n", "--pidfile=", "tunnel-appliance", "--config", "appliance.toml"],
            self.directory / f"log.{self._starts}",
            cwd=self.directory,
            env=self.env,
        )
        if waits:
            self.process.says("ready", seconds)
        return self.process

    def answer(self, name: str, rtype: str, seconds: float = 0.2) -> dns.message.Message | None:
        """What it answers by UDP, quicker than a dig; None when it does not."""
        query = dns.message.make_query(name, rtype)
        try:
            return dns.query.udp(query, self.address, port=self.ports.dns, timeout=seconds)
        except (dns.exception.DNSException, OSError):
            return None

    def command(self, *arguments: str | Path, fails: bool = False) -> str:
        """Run ``tunnel-appliance`` beside it; its output."""
        done = subprocess.run(
            [BIN / "tunnel-appliance", "--config", "appliance.toml", *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def invite(self, *names: str, client: str = "home") -> Path:
        """An invitation, as a file."""
        path = self.directory / f"{client}-invitation.toml"
        self.command("invite", *names, "--client", client, "--output", path)
        return path

    def dig(self, name: str, rtype: str, *options: str) -> list[str]:
        """The short answer of dig, in order of text."""
        asked = [need("dig"), f"@{self.address}", "-p", str(self.ports.dns), name, rtype]
        done = subprocess.run(
            [*asked, "+short", "+tries=1", *options],
            capture_output=True,
            text=True,
            timeout=20,
        )
        return sorted(done.stdout.splitlines())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


class Client:
    """One tunnel client."""

    env: Mapping[str, str] = {}

    def __init__(
        self,
        directory: Path,
        invitation: Path,
        resolver: Appliance | str,
        *options: str,
        program: Sequence[str | Path] = (BIN / "twistd",),
    ) -> None:
        """`resolver` is a nameserver, or an address on port 53; `program` as an Appliance's."""
        if isinstance(resolver, Appliance):
            resolver = f"{resolver.address}:{resolver.ports.dns}"
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self._arguments: list[str | Path] = [
            *program,
            "-n",
            "--pidfile=",
            "tunnel-client",
            "--invitation",
            invitation,
            "--state",
            directory / "state",
            "--resolver",
            resolver,
            *options,
        ]
        self._starts = 0
        self.process: Process | None = None

    def start(self, *joins: str) -> Process:
        """Start it, and wait until it has joined each of these servers (ids)."""
        self._starts += 1
        log = self.directory / f"log.{self._starts}"
        self.process = Process(self._arguments, log, cwd=self.directory, env=self.env)
        for server in joins:
            self.process.says(f"joined server {server} ")
        return self.process

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


class Nginx:
    """A web server with TLS and plain HTTP that says who it is."""

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        ca: trustme.CA,
        *,
        says: str = "origin",
        inside: Sequence[str] = (),
    ) -> None:
        """`inside`: the words that start a command in a network of its own."""
        directory.mkdir()
        self.directory = directory
        self._inside = inside
        self.tls = free_port("tcp")
        self.http = free_port("tcp")
        self.says = says
        certificate = ca.issue_cert(*names)
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(directory / "cert.pem", append=True)
        self.root = directory / "root"
        self.root.mkdir()
        (self.root / "index.html").write_text(
            f"<!DOCTYPE html><html><head><title>{says}</title></head>"
            f"<body><h1 id='who'>{says}</h1></body></html>\n"
        )
        os.chmod(directory, 0o755)
        (directory / "nginx.conf").write_text(self._configuration())
        self.process: Process | None = None

    def _configuration(self) -> str:
        return f"""\
daemon off; pid {self.directory}/nginx.pid; error_log stderr info; worker_processes 1; master_process off;
events {{ worker_connections 4096; }}
http {{
  access_log {self.directory}/access.log;
  client_body_temp_path {self.directory}/body; proxy_temp_path {self.directory}/proxy;
  fastcgi_temp_path {self.directory}/fcgi; uwsgi_temp_path {self.directory}/uwsgi;
  scgi_temp_path {self.directory}/scgi;
  client_max_body_size 0; sendfile on; keepalive_requests 1000000; server_tokens off;
  default_type text/html;
  server {{
    listen 127.0.0.1:{self.tls} ssl http2;
    listen 127.0.0.1:{self.http};
    ssl_certificate {self.directory}/cert.pem; ssl_certificate_key {self.directory}/key.pem;
    ssl_early_data on;
    root {self.root};
    add_header X-Origin {self.says};
    location /upload {{ dav_methods PUT; create_full_put_path on; }}
    location /asked/ {{ return 200 "{self.says} $uri\n"; }}
    location = /who {{ return 200 "{self.says} $host $scheme $request_method\\n"; }}
  }}
}}
"""

    def start(self) -> Process:
        (self.directory / "nginx.pid").unlink(missing_ok=True)
        self.process = Process(
            [
                *(*self._inside, need("nginx")),
                *("-p", self.directory, "-e", "stderr", "-c", self.directory / "nginx.conf"),
            ],
            self.directory / "log",
        )
        # It is written when the ports are bound.
        wait_for((self.directory / "nginx.pid").exists, 10, "nginx")
        return self.process

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


def listens(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a connection to the port is taken."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def tls_context(ca: trustme.CA) -> ssl.SSLContext:
    """A visitor's context: verification on, this root trusted."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


def follower(primary: Appliance, directory: Path, address: str) -> Appliance:
    """A nameserver without a tunnel server, called as its directory, enrolled at `primary`; not started."""
    enrolment = directory.with_name(f"{directory.name}.toml")
    where = ("--nameserver", "--no-server", "--dns-port", str(primary.ports.dns))
    primary.command("enroll", *where, directory.name, address, "--output", enrolment)
    made = Appliance(directory, primary.ports, address, enrolment=enrolment, server=False)
    settings = directory / "appliance.toml"
    settings.write_text(
        settings.read_text() + f'[nameserver]\nenrolment = "{enrolment}"\n'
        f'private_addresses = true\nlisten = ["{address}:{primary.ports.dns}"]\n'
    )
    return made
