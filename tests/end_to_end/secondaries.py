"""NSD, Knot and BIND as secondaries of an appliance, each a process on loopback, and how they are asked."""

from __future__ import annotations

import base64
import json
import secrets
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.tsig
import dns.zone

from tests.end_to_end.programs import Process, free_port, need, wait_for
from tests.end_to_end.site import ZONE, Appliance, Ports

KEY_NAME = "transfer.site.test"
HOWTO = Path(__file__).resolve().parents[2] / "docs" / "howto" / "secondaries.md"
ASK_SECONDS = 5.0
Records = set[tuple[str, int, str]]


class Primary(Appliance):
    """An appliance with a key for transfers, which tells the secondaries at `told` (ports on loopback)."""

    def __init__(self, directory: Path, told: list[int], *, lines: str = "") -> None:
        super().__init__(directory, Ports())
        self.secret = base64.b64encode(secrets.token_bytes(32)).decode()
        key = directory / "transfer.key"
        key.write_text(f'key "{KEY_NAME}" {{ algorithm hmac-sha256; secret "{self.secret}"; }};\n')
        key.chmod(0o600)
        with (directory / "appliance.toml").open("a") as settings:
            settings.write(f'[[nameserver.keys]]\nfile = "{key}"\nkind = "transfer"\n')
            for port in told:
                settings.write(
                    f'[[nameserver.secondaries]]\naddress = "127.0.0.1:{port}"\nkey = "{KEY_NAME}"\n'
                )
        self.zonefile = directory / "zones" / f"{ZONE}.zone"
        self._static = self.zonefile.read_text() + lines
        self.zonefile.write_text(self._static)
        self._changes = 0

    @property
    def keyring(self) -> dict[dns.name.Name, dns.tsig.Key]:
        key = dns.tsig.Key(KEY_NAME, self.secret, "hmac-sha256")
        return {key.name: key}

    def records(self) -> Records:
        """The zone, by AXFR."""
        return records(self.ports.dns, self.keyring)

    def serial(self) -> int:
        return serial(self.ports.dns) or 0

    def ask(self, command: str, **arguments: Any) -> Any:
        """A command at the control socket."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(ASK_SECONDS)
            asking.connect(str(self.directory / "state" / "control"))
            asking.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            answer = json.loads(asking.makefile("rb").readline())
        assert "error" not in answer, answer
        return answer["result"]

    def transfers(self) -> dict[str, int]:
        found: dict[str, int] = self.ask("status")["transfers"]
        return found

    def live_change(self, number: int) -> None:
        """One more name with live records, or every third time one less; returns when that is published."""
        before = self.serial()
        if number % 3 == 2:
            self.ask("forget", name=f"live-{number - 1}.{ZONE}")
        else:
            self.ask("invite", names=[f"live-{number}.{ZONE}"], client=f"client-{number}")
        wait_for(lambda: self.serial() != before, 10, f"live change {number}")

    def reload(self, *lines: str) -> None:
        """Further lines in the zone file, and SIGHUP; returns when they are published."""
        before = self.serial()
        self._static += "".join(f"{line}\n" for line in lines)
        self.zonefile.write_text(self._static)
        assert self.process is not None
        self.process.tell(signal.SIGHUP)
        wait_for(lambda: self.serial() != before, 20, "the reloaded zone")


def serial(port: int) -> int | None:
    """The serial of the zone as the server at `port` says; None when it does not serve it (yet)."""
    query = dns.message.make_query(ZONE, "SOA")
    try:
        answer = dns.query.udp(query, "127.0.0.1", port=port, timeout=ASK_SECONDS)
    except (dns.exception.DNSException, OSError):
        return None
    if answer.rcode() != dns.rcode.NOERROR or not answer.answer:
        return None
    found: int = answer.answer[0][0].serial
    return found


def records(port: int, keyring: dict[dns.name.Name, dns.tsig.Key] | None = None) -> Records:
    """All records of the zone as an AXFR from the server at `port` gives them."""
    zone = dns.zone.Zone(dns.name.from_text(ZONE), relativize=False)
    query = dns.message.make_query(ZONE, "AXFR")
    if keyring is not None:
        query.use_tsig(keyring)
    dns.query.inbound_xfr("127.0.0.1", zone, query, port=port, timeout=30, lifetime=60)
    return {
        (f"{name.to_text().lower()} {rdata.rdtype}", ttl, rdata.to_text().lower())
        for name, ttl, rdata in zone.iterate_rdatas()
    }


class Secondary:
    """One of the three. `primary_port` is where it transfers from."""

    program: str
    language: str
    """Of its lines in the how-to."""
    ready: str

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.port = free_port("both")
        self.process: Process | None = None
        self._starts = 0

    preamble: str
    """What is only of the test: where it listens and keeps its files."""
    copying: tuple[str, str]
    """What in the documented lines is replaced by what, so that the test may copy the zone from it."""

    def configure(self, primary: Primary, primary_port: int | None = None) -> None:
        """The lines of the how-to, with our zone and addresses."""
        port = primary_port or primary.ports.dns
        text = HOWTO.read_text().partition(f"```{self.language}\n")[2].partition("```")[0]
        assert self.copying[0] in text
        for documented, ours in (
            self.copying,
            ("192.0.2.53@53", f"127.0.0.1@{port}"),
            ("192.0.2.53 port 53", f"127.0.0.1 port {port}"),
            ("192.0.2.53", "127.0.0.1"),
            ("example.org", ZONE),
            ("SECRET", primary.secret),
        ):
            text = text.replace(documented, ours)
        preamble = self.preamble.replace("<directory>", str(self.directory)).replace("<port>", str(self.port))
        (self.directory / "conf").write_text(preamble + text)

    def arguments(self) -> list[str | Path]:
        raise NotImplementedError

    def start(self) -> None:
        self._starts += 1
        self.process = Process(
            [need(self.program), *self.arguments()], self.directory / f"log.{self._starts}"
        )
        self.process.says(self.ready, 20)

    def stop(self) -> None:
        assert self.process is not None
        self.process.stop()
        self.process.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    @property
    def log(self) -> str:
        return "".join(
            (self.directory / f"log.{number}").read_text() for number in range(1, self._starts + 1)
        )

    def follows(self, primary: Primary, seconds: float) -> None:
        """Wait until it serves the primary's version."""
        try:
            wait_for(lambda: serial(self.port) == primary.serial(), seconds, f"{self.program} at our serial")
        except BaseException:
            print(self.program, serial(self.port), primary.serial(), self.log[-3000:])
            raise


class Nsd(Secondary):
    program = "nsd"
    language = "nsd"
    ready = "started"
    copying = ("request-xfr", "provide-xfr: 127.0.0.1 NOKEY\n    request-xfr")
    preamble = """\
server:
    ip-address: 127.0.0.1@<port>
    username: ""
    chroot: ""
    zonesdir: "<directory>"
    database: ""
    pidfile: "<directory>/pid"
    xfrdfile: "<directory>/xfrd.state"
    xfrdir: "<directory>"
    zonelistfile: "<directory>/zone.list"
    verbosity: 2
remote-control:
    control-enable: no
"""

    def arguments(self) -> list[str | Path]:
        return ["-d", "-c", self.directory / "conf"]


class Knot(Secondary):
    program = "knotd"
    language = "knot"
    ready = "server started"
    copying = ("[notify]", "[notify, copy]")
    preamble = """\
server:
    listen: 127.0.0.1@<port>
    rundir: "<directory>"
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: info
database:
    storage: "<directory>"
acl:
  - id: copy
    address: 127.0.0.1
    action: transfer
template:
  - id: default
    storage: "<directory>"
"""

    def arguments(self) -> list[str | Path]:
        return ["-c", self.directory / "conf"]


class Bind(Secondary):
    program = "named"
    language = "bind"
    ready = "running"
    copying = ("type secondary;", "type secondary;\n    allow-transfer { 127.0.0.1; };")
    preamble = """\
options {
    directory "<directory>";
    listen-on port <port> { 127.0.0.1; };
    listen-on-v6 { none; };
    pid-file "<directory>/pid";
    session-keyfile "<directory>/session.key";
    recursion no;
    notify no;
};
controls { };
"""

    def arguments(self) -> list[str | Path]:
        return ["-g", "-n", "1", "-c", self.directory / "conf"]


ALL: tuple[Callable[[Path], Secondary], ...] = (Nsd, Knot, Bind)
