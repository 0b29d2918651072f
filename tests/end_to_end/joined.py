"""One appliance, and clients whose names have an origin each: what a test of origins starts from."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trustme

from tests.end_to_end.origins import Origin, Visited
from tests.end_to_end.programs import need
from tests.end_to_end.site import BIN, ZONE, Appliance, Client, Ports, tls_context


class Joined:
    """`with` it, make origins, `start()`, and `join()` clients; everything ends at the end."""

    def __init__(
        self,
        directory: Path,
        *,
        public_port: int | None = None,
        server: str = "",
        program: Sequence[str | Path] = (BIN / "twistd",),
    ) -> None:
        """`server`: further lines of the appliance's [server]; `program` as an Appliance's."""
        self.directory = directory
        self.running = contextlib.ExitStack()
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(directory / "ca.pem")
        self.ports = Ports()
        self.appliance = Appliance(directory / "s1", self.ports, public_port=public_port, program=program)
        with (self.appliance.directory / "appliance.toml").open("a") as settings:
            settings.write(server)

    def origin(self, serve: Callable[[Visited], None], *labels: str, alpn: list[str] | None = None) -> Origin:
        """An origin of the test's own; for names (`labels` of the zone) over TLS."""
        context = None
        if labels:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.ca.issue_cert(*(f"{label}.{ZONE}" for label in labels)).configure_cert(context)
            context.set_alpn_protocols(alpn or ["http/1.1"])
        return self.running.enter_context(Origin(serve, context))

    def start(self) -> None:
        self.running.callback(self.appliance.kill)
        self.appliance.start()

    def join(
        self,
        client: str,
        names: Mapping[str, Mapping[str, int | bool | str | Path]],
        program: Sequence[str | Path] = (BIN / "twistd",),
    ) -> Client:
        """Start a client with these settings of each name; an origin is a port, a word is itself."""
        lines = []
        for label, settings in names.items():
            lines.append(f'[names."{label}.{ZONE}"]')
            for key, value in settings.items():
                written = f'"127.0.0.1:{value}"' if type(value) is int else f'"{value}"'
                if isinstance(value, bool):
                    written = str(value).lower()
                lines.append(f"{key} = {written}")
        path = self.directory / f"{client}.toml"
        path.write_text("\n".join(lines) + "\n")
        invitation = self.appliance.invite(*(f"{label}.{ZONE}" for label in names), client=client)
        made = Client(
            self.directory / client, invitation, self.appliance, "--config", str(path), program=program
        )
        self.running.callback(made.kill)
        made.start("s1")
        return made

    def visit(self, seconds: float = 20) -> socket.socket:
        """A visitor's connection to the HTTP port."""
        return socket.create_connection((self.appliance.address, self.ports.http), timeout=seconds)

    def visit_tls(self, label: str, *alpn: str, seconds: float = 20) -> ssl.SSLSocket:
        """A visitor's connection to a name, verified."""
        raw = socket.create_connection((self.appliance.address, self.ports.tls), timeout=seconds)
        context = tls_context(self.ca)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context.wrap_socket(raw, server_hostname=f"{label}.{ZONE}")

    def curl(self, url: str, *options: str | Path) -> str:
        """curl, for which every name's ports 80 and 443 are those of the appliance."""
        done = subprocess.run(
            [
                *(need("curl"), "-sS", "--max-time", "50", "--cacert", self.directory / "ca.pem", *options),
                *("--connect-to", f":80:{self.appliance.address}:{self.ports.http}"),
                *("--connect-to", f":443:{self.appliance.address}:{self.ports.tls}", url),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.returncode, done.stderr)
        return done.stdout


def rest_of(sock: socket.socket) -> bytes:
    """All that comes until the end, or a reset."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while octets := sock.recv(1 << 16):
            got += octets
    return got
