"""An appliance whose nameserver has port 53 of an address of its own, pebble that asks it, and clients that
get certificates: what every test of ACME starts from. It takes root.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from appliance.service.client.acmestate import AcmeState
from tests.end_to_end.origins import Origin, keep_alive
from tests.end_to_end.pebble import Pebble
from tests.end_to_end.programs import wait_for
from tests.end_to_end.site import ZONE, Appliance, Client, Ports


def address_of_its_own() -> str:
    """A loopback address whose port 53 is free."""
    while True:
        address = f"127.53.{random.randint(1, 254)}.{random.randint(1, 254)}"
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 53))
            return address


class Certified:
    """`with` its `running`, `start()`, and `join()` clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running = contextlib.ExitStack()
        self.ports = Ports()
        self.ports.dns = 53
        self.appliance = Appliance(directory / "s1", self.ports, address_of_its_own())
        self.pebble = Pebble(directory / "pebble", f"{self.appliance.address}:53")
        self.origin = self.running.enter_context(Origin(keep_alive("plain")))

    def start(self, **env: str) -> None:
        """`env`: pebble's."""
        self.running.callback(self.appliance.kill)
        self.running.callback(self.pebble.kill)
        self.pebble.start(**env)
        self.appliance.start()

    def join(self, client: str, labels: Sequence[str], *, starts: bool = True) -> Client:
        """A client with a certificate for each of these names, which it has yet to get."""
        path = self.directory / f"{client}.toml"
        path.write_text(
            f'http_origin = "127.0.0.1:{self.origin.port}"\n[acme]\nterms_agreed = true\n'
            f'directory = "{self.pebble.url}"\nroot = "{self.pebble.ca}"\n'
        )
        invitation = self.appliance.invite(*(f"{label}.{ZONE}" for label in labels), client=client)
        made = Client(self.directory / client, invitation, self.appliance, "--config", str(path))
        self.running.callback(made.kill)
        if starts:
            made.start()
        return made

    def state(self, client: str) -> AcmeState:
        return AcmeState(self.directory / client / "state", self.pebble.url)

    def has(self, client: str, label: str) -> bool:
        return self.state(client).certificate(f"{label}.{ZONE}") is not None

    def wait(self, client: str, *labels: str, seconds: float = 40) -> None:
        """Until it has a certificate for each."""
        for label in labels:
            wait_for(lambda: self.has(client, label), seconds, f"a certificate for {label}")  # noqa: B023

    def context(self) -> ssl.SSLContext:
        """A visitor's, who believes pebble."""
        return ssl.create_default_context(cadata=self.pebble.root().decode("ascii"))

    def visit(self, label: str) -> ssl.SSLSocket:
        """His connection, verified."""
        raw = socket.create_connection((self.appliance.address, self.ports.tls), timeout=20)
        return self.context().wrap_socket(raw, server_hostname=f"{label}.{ZONE}")

    def orders(self) -> list[str]:
        """The places of all orders that pebble has taken."""
        return self.pebble.said(r'Added order "(\S+)" to the db')

    def accounts(self) -> int:
        return len(self.pebble.said(r"There are now \d+ accounts in memory"))


@contextlib.contextmanager
def certified(
    directory: Path, settings: Mapping[str, object] | None = None, *, rules: str = "", **env: str
) -> Iterator[Certified]:
    """One that runs; `settings` and `env` are pebble's, `rules` are more of the appliance's settings."""
    if os.geteuid() != 0:
        pytest.skip("not root: a nameserver that is confirmed has port 53")
    made = Certified(directory)
    made.pebble.settings.update(settings or {})
    with (made.appliance.directory / "appliance.toml").open("a") as more:
        more.write(rules)
    with made.running:
        made.start(**env)
        yield made
