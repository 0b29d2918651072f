"""NSD, Knot and BIND as primaries of given zones, each a process, to be asked what our nameserver is asked.

One key may copy and (where the server knows UPDATE) change every zone; none limits its answers or adds what
was not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode

from tests.end_to_end.programs import Process, free_port, need, wait_for

START_SECONDS = 20.0
ASK_SECONDS = 1.0
KEY_FILE = 'key "{name}" {{ algorithm hmac-sha256; secret "{secret}"; }};\n'


class Primary:
    """One of the three, serving `zones` (texts by apex) at `address` and `port`.

    `wrapped` goes before its command, for a network of its own.
    """

    program: str
    options: tuple[str, ...] = ()

    def __init__(
        self,
        directory: Path,
        zones: Mapping[str, str],
        *,
        key: tuple[str, str] = ("none", "bm9uZQ=="),
        address: str = "127.0.0.1",
        port: int | None = None,
        wrapped: tuple[str, ...] = (),
    ) -> None:
        directory.mkdir()
        self.directory = directory
        self.address = address
        self.port = port or free_port("both")
        for apex, text in zones.items():
            (directory / f"zone.{apex}").write_text(text)
        names = {"directory": directory, "address": address, "port": self.port}
        names |= {"key": key[0], "secret": key[1]}
        text = self.preamble.format(**names)
        for apex in zones:
            text += self.zone.format(apex=apex, file=directory / f"zone.{apex}", key=key[0])
        (directory / "conf").write_text(text)
        arguments: list[str | Path] = [*wrapped, need(self.program), *self.options, directory / "conf"]
        self.process = Process(arguments, directory / "log")

    preamble: str
    zone: str

    def serves(self, apex: str) -> None:
        """Wait until it does. Only where this process is in the same network."""
        query = dns.message.make_query(apex, "SOA")

        def answers() -> bool:
            assert self.process.status is None, self.process.output
            try:
                answer = dns.query.udp(query, self.address, port=self.port, timeout=ASK_SECONDS)
            except (dns.exception.DNSException, OSError):
                return False
            return answer.rcode() == dns.rcode.NOERROR

        wait_for(answers, START_SECONDS, f"{apex} at {self.program}")

    def kill(self) -> None:
        self.process.kill()


class Nsd(Primary):
    program = "nsd"
    options = ("-d", "-c")
    preamble = """\
server:
    ip-address: {address}@{port}
    username: ""
    chroot: ""
    zonesdir: "{directory}"
    database: ""
    pidfile: "{directory}/pid"
    xfrdfile: "{directory}/xfrd.state"
    xfrdir: "{directory}"
    zonelistfile: "{directory}/zone.list"
    minimal-responses: yes
    rrl-ratelimit: 0
    server-count: 1
    hide-version: yes
    hide-identity: yes
remote-control:
    control-enable: no
key:
    name: "{key}"
    algorithm: hmac-sha256
    secret: "{secret}"
"""
    zone = """\
zone:
    name: "{apex}"
    zonefile: "{file}"
    provide-xfr: 0.0.0.0/0 {key}
"""


class Knot(Primary):
    program = "knotd"
    options = ("-c",)
    preamble = """\
server:
    listen: {address}@{port}
    rundir: "{directory}"
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: info
database:
    storage: "{directory}"
key:
  - id: "{key}"
    algorithm: hmac-sha256
    secret: "{secret}"
acl:
  - id: all
    key: "{key}"
    action: [transfer, update]
template:
  - id: default
    storage: "{directory}"
    zonefile-sync: -1
"""
    zone = """\
zone:
  - domain: "{apex}"
    file: "{file}"
    acl: all
"""


class Bind(Primary):
    program = "named"
    options = ("-g", "-n", "1", "-c")
    preamble = """\
options {{
    directory "{directory}";
    listen-on port {port} {{ {address}; }};
    listen-on-v6 {{ none; }};
    pid-file "{directory}/pid";
    session-keyfile "{directory}/session.key";
    recursion no;
    notify no;
    minimal-responses yes;
    version none;
    dnssec-validation no;
}};
controls {{ }};
key "{key}" {{ algorithm hmac-sha256; secret "{secret}"; }};
"""
    zone = """\
zone "{apex}" {{
    type primary;
    file "{file}";
    allow-transfer {{ key "{key}"; }};
    allow-update {{ key "{key}"; }};
}};
"""


ALL: tuple[Callable[..., Primary], ...] = (Nsd, Knot, Bind)
