"""For `make run`: pebble, a CA for tests that speaks ACME, in front of the demonstration's nameserver."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

HOST = "127.0.0.1"
DNS_PORT = 53


def may_issue() -> bool:
    """Whether pebble is there, and port 53 to be had: who gets a certificate asks each nameserver there."""
    if shutil.which("pebble") is None:
        return False
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, DNS_PORT))
            except OSError:
                return False
    return True


class Pebble:
    """`with` it: `directory_url` is where it is, `ca` what its own https is verified with, `root` the file
    with the root of what it issues, once `has_root()`.
    """

    def __init__(self, directory: Path, resolver: str, web_tls: Callable[[Path, Path, str], object]) -> None:
        self.ca, self.root = directory / "pebble-ca.pem", directory / "pebble-root.pem"
        self._directory = directory
        self._resolver = resolver
        credential = directory / "pebble.pem"
        web_tls(self.ca, credential, "localhost")
        self._port, self._management = _free_port(), _free_port()
        self.directory_url = f"https://localhost:{self._port}/dir"
        settings = {
            "listenAddress": f"{HOST}:{self._port}",
            "managementListenAddress": f"{HOST}:{self._management}",
            "certificate": str(credential),
            "privateKey": str(credential),
            "httpPort": 5002,
            "tlsPort": 5001,
        }
        (directory / "pebble.json").write_text(json.dumps({"pebble": settings}))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Pebble:
        with (self._directory / "pebble.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["pebble", "-config", self._directory / "pebble.json", "-dnsserver", self._resolver],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PEBBLE_VA_NOSLEEP": "1"},
            )
        return self

    def has_root(self) -> bool:
        """Whether `root` is there; it is asked for if not."""
        if not self.root.exists():
            context = ssl.create_default_context(cafile=str(self.ca))
            url = f"https://localhost:{self._management}/roots/0"
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(url, timeout=5, context=context) as answer,
            ):
                self.root.write_bytes(answer.read())
        return self.root.exists()

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)  # it keeps nothing
        self._process.wait()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
