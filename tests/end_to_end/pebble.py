"""pebble, an ACME server for tests, and a resolver for it whose only records are the test's."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import dns.message
import dns.rrset
import trustme

from tests.end_to_end.programs import Process, free_port, need


class Pebble:
    """An ACME server that asks the resolver at `dns` (ADDRESS:PORT). `ca` is the root of its own https."""

    def __init__(self, directory: Path, dns: str, *, inside: Sequence[str] = ()) -> None:
        """`inside`: the words that start a command in a network of its own."""
        directory.mkdir()
        self.settings: dict[str, object] = {}
        """More of pebble's own, or others than it has here."""
        self._inside = inside
        self.directory = directory
        self.dns = dns
        self.ca = directory / "ca.pem"
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(self.ca)
        certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        self._port, self._management = free_port("tcp"), free_port("tcp")
        self.url = f"https://localhost:{self._port}/dir"
        self._starts = 0
        self.process: Process | None = None

    def start(self, **env: str) -> Process:
        """Start it; by default without sleeps and bad nonces, and with a proof for every order."""
        settings = {
            "listenAddress": f"127.0.0.1:{self._port}",
            "managementListenAddress": f"127.0.0.1:{self._management}",
            "certificate": str(self.directory / "cert.pem"),
            "privateKey": str(self.directory / "key.pem"),
            "httpPort": free_port("tcp"),
            "tlsPort": free_port("tcp"),
        } | self.settings
        (self.directory / "pebble.json").write_text(json.dumps({"pebble": settings}))
        usual = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
        self._starts += 1
        self.process = Process(
            [
                *(*self._inside, need("pebble")),
                *("-config", self.directory / "pebble.json", "-dnsserver", self.dns),
            ],
            self.directory / f"log.{self._starts}",
            env={**usual, **env},
        )
        self.process.says("ACME directory available")
        return self.process

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def root(self) -> bytes:
        """The root of what it issues: another one at every start."""
        url = f"https://127.0.0.1:{self._management}/roots/0"
        asked = [*self._inside, need("curl"), "-sS", "--max-time", "10", "--cacert", str(self.ca), url]
        return subprocess.run(asked, check=True, capture_output=True).stdout

    def said(self, pattern: str) -> list[str]:
        """What in the log of this start matches."""
        assert self.process is not None
        return re.findall(pattern, self.process.output)


class Answering:
    """Answers datagrams in a thread, `with` it."""

    def __init__(self, address: str, port: int = 0) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((address, port))
        self.address = f"{address}:{self._sock.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.sendto(b"", self._sock.getsockname())
        self._thread.join()
        self._sock.close()

    def answer(self, octets: bytes) -> bytes:
        """What a question gets."""
        raise NotImplementedError

    def _serve(self) -> None:
        while True:
            octets, source = self._sock.recvfrom(4096)
            if not octets:
                return
            self._sock.sendto(self.answer(octets), source)


class Records(Answering):
    """A resolver on a loopback port: TXT records by name, and nothing else."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1")
        self.txt: dict[str, list[str]] = {}

    def answer(self, octets: bytes) -> bytes:
        query = dns.message.from_wire(octets)
        answer = dns.message.make_response(query)
        asked = query.question[0]
        values = self.txt.get(asked.name.to_text(omit_final_dot=True).lower(), [])
        if values and asked.rdtype == dns.rdatatype.TXT:
            answer.answer.append(dns.rrset.from_text_list(asked.name, 1, "IN", "TXT", values))
        return answer.to_wire()
