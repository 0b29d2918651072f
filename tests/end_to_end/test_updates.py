"""UPDATE by the programs that people use for it: nsupdate, knsupdate, certbot, lego, external-dns."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.update
import pytest

from appliance.dns.serial import is_newer
from appliance.tunnel.names import normal
from tests.end_to_end.pebble import Pebble
from tests.end_to_end.programs import Process, free_port, need, wait_for
from tests.end_to_end.test_dns_tools import ZONE, Nameserver, run

SECRET = base64.b64encode(bytes(range(32))).decode()
ANSWER_SECONDS = 10
LOST_SECONDS = 0.5  # for an answer of a process that may have been killed
KEY_FILE = 'key "{}" {{ algorithm hmac-sha256; secret "{}"; }};\n'
TABLES = """
[[nameserver.keys]]
file = "all.key"
kind = "update"
[[nameserver.keys]]
file = "all.key"
kind = "transfer"
[[nameserver.keys]]
file = "acme.key"
kind = "acme"
names = ["www.demo.test", "*.demo.test"]
[[nameserver.keys]]
file = "texts.key"
kind = "update"
names = ["*.texts.demo.test"]
types = ["TXT"]
"""


class Updated(Nameserver):
    """A nameserver with a key that may change all, one for challenges, and one for some texts."""

    def start(self) -> None:
        if "keys" not in self.settings.read_text():
            for name in ("all", "acme", "texts", "nobodys"):
                path = self.base / f"{name}.key"
                path.write_text(KEY_FILE.format(name, SECRET))
                path.chmod(0o600)
            self.settings.write_text(self.settings.read_text() + TABLES)
        super().start()

    def nsupdate(
        self, *lines: str, key: str | None = "all", program: str = "nsupdate", tcp: bool = False
    ) -> str:
        """What the program says to these lines: nothing, when all is well."""
        arguments: list[str] = [need(program), "-t", "5"]
        if tcp:
            arguments.append("-v")
        if key is not None:
            text = (self.base / f"{key}.key").read_text()
            name, secret = re.findall(r'"(.*?)"', text)
            with_key = ["-k", str(self.base / f"{key}.key")], ["-y", f"hmac-sha256:{name}:{secret}"]
            arguments += with_key[program == "knsupdate"]  # whose key files are of another form
        script = "\n".join((f"server 127.0.0.1 {self.port}", "zone demo.test", *lines, "send", ""))
        done = subprocess.run(
            arguments,
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode == 0) == (done.stdout == ""), done
        return done.stdout

    def send(self, message: dns.message.Message, tcp: bool = False) -> str:
        ask = dns.query.tcp if tcp else dns.query.udp
        answer = ask(message, "127.0.0.1", ANSWER_SECONDS, self.port)
        return dns.rcode.to_text(answer.rcode())

    def update(self, *steps: tuple[object, ...], key: str = "all", tcp: bool = False) -> str:
        """The rcode of an update by dnspython: ("add", "www", 300, "A", "192.0.2.1") and so on."""
        return self.send(message(*steps, key=key), tcp)


def message(*steps: tuple[object, ...], key: str = "all", secret: str = SECRET) -> dns.update.UpdateMessage:
    made = dns.update.UpdateMessage("demo.test")
    for verb, *arguments in steps:
        getattr(made, str(verb))(*arguments)
    made.use_tsig(dns.tsig.Key(key, secret, "hmac-sha256"))
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Updated]:
    """One process for the tests that leave nothing behind."""
    nameserver = Updated(tmp_path_factory.mktemp("nameserver"))
    yield nameserver
    nameserver.process.kill()


@pytest.fixture
def nameserver(tmp_path: Path) -> Iterator[Updated]:
    """A process of its own for a test that restarts it, or changes its files."""
    nameserver = Updated(tmp_path)
    yield nameserver
    nameserver.process.kill()


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("program", ["nsupdate", "knsupdate"])
def test_what_nsupdate_does_is_there_when_it_ends(shared: Updated, program: str, tcp: bool) -> None:
    def update(*lines: str) -> str:
        return shared.nsupdate(*lines, program=program, tcp=tcp)

    before = shared.serial()
    assert update("prereq nxdomain new.demo.test", "update add new.demo.test 60 A 192.0.2.1") == ""
    assert shared.short("new.demo.test") == ["192.0.2.1"]
    assert is_newer(shared.serial(), before)
    assert "YXDOMAIN" in update("prereq nxdomain new.demo.test", "update delete new.demo.test")
    assert "NXRRSET" in update("prereq yxrrset new.demo.test AAAA", "update delete new.demo.test")
    assert "NXRRSET" in update("prereq yxrrset new.demo.test A 192.0.2.2", "update delete new.demo.test")
    assert update("prereq yxrrset new.demo.test A 192.0.2.1", "update add new.demo.test 60 A 192.0.2.2") == ""
    assert sorted(shared.short("new.demo.test")) == ["192.0.2.1", "192.0.2.2"]
    assert update("update delete new.demo.test A 192.0.2.1") == ""
    assert shared.short("new.demo.test") == ["192.0.2.2"]
    assert "REFUSED" in update("update add new.demo.test 60 TXT x", "update delete ns1.demo.test A")
    assert shared.short("new.demo.test", "TXT") == []
    assert update("update delete new.demo.test") == ""
    assert "status: NXDOMAIN" in shared.ask("new.demo.test")


@pytest.mark.parametrize("program", ["nsupdate", "knsupdate"])
def test_who_has_no_key_or_a_wrong_one(shared: Updated, program: str) -> None:
    line = "update add new.demo.test 60 A 192.0.2.1"
    assert "REFUSED" in shared.nsupdate(line, key=None, program=program)
    (shared.base / "bad.key").write_text(KEY_FILE.format("all", SECRET.replace("A", "B")))
    assert re.search("BADSIG|invalid signature", shared.nsupdate(line, key="bad", program=program))
    assert re.search("BADKEY|key is unknown", shared.nsupdate(line, key="nobodys", program=program))
    assert "status: NXDOMAIN" in shared.ask("new.demo.test")


def test_each_key_may_what_its_tables_say(shared: Updated) -> None:
    challenge = "update add _acme-challenge.www.demo.test 60 TXT token"
    assert shared.nsupdate(challenge, key="acme") == ""
    assert shared.short("_acme-challenge.www.demo.test", "TXT") == ['"token"']
    assert shared.nsupdate("update delete _acme-challenge.www.demo.test TXT", key="acme") == ""
    assert "REFUSED" in shared.nsupdate("update add www.demo.test 60 TXT token", key="acme")
    assert "REFUSED" in shared.nsupdate("update delete www.demo.test", key="acme")
    assert "REFUSED" in shared.nsupdate(challenge, key="texts")
    assert shared.nsupdate("update add a.texts.demo.test 60 TXT x", key="texts") == ""
    assert "REFUSED" in shared.nsupdate("update add a.texts.demo.test 60 A 192.0.2.1", key="texts")
    assert shared.nsupdate("update delete a.texts.demo.test", key="texts") == ""


@pytest.mark.parametrize("seconds", [-301, 301])
def test_a_wrong_clock_is_told_so(shared: Updated, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    octets = signed_at(time.time() + seconds, monkeypatch)
    answer = exchange(shared.port, octets)
    assert answer[3] & 0xF == dns.rcode.NOTAUTH
    assert answer[-10:-8] == b"\x00\x12"  # BADTIME, then what time it is here
    assert abs(int.from_bytes(answer[-6:], "big") - time.time()) < 5


def signed_at(wall: float, monkeypatch: pytest.MonkeyPatch, *steps: tuple[object, ...]) -> bytes:
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: wall)
        return message(*(steps or (("add", "new", 60, "A", "192.0.2.1"),))).to_wire()


def exchange(port: int, octets: bytes, seconds: float = ANSWER_SECONDS) -> bytes:
    """The answer to a datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(seconds)
        peer.connect(("127.0.0.1", port))
        peer.send(octets)
        return peer.recv(4096)


def test_a_replay_changes_nothing_not_even_after_a_restart(nameserver: Updated) -> None:
    octets = message(("add", "new", 60, "A", "192.0.2.1")).to_wire()
    answer = exchange(nameserver.port, octets)
    assert answer[3] & 0xF == dns.rcode.NOERROR
    assert nameserver.update(("delete", "new")) == "NOERROR"
    serial = nameserver.serial()
    assert exchange(nameserver.port, octets)[:12] == answer[:12]
    assert nameserver.serial() == serial
    nameserver.process.kill()
    nameserver.start()
    assert exchange(nameserver.port, octets)[:12] == answer[:12]
    assert nameserver.short("new.demo.test") == []


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_changes_outlive_the_process_and_the_file_is_not_touched(
    nameserver: Updated, end: signal.Signals
) -> None:
    assert (
        nameserver.nsupdate("update add new.demo.test 60 A 192.0.2.1", "update delete www.demo.test AAAA")
        == ""
    )
    nameserver.process.stop(end)
    nameserver.start()
    assert nameserver.short("new.demo.test") == ["192.0.2.1"]
    assert nameserver.short("www.demo.test", "AAAA") == []
    assert (nameserver.zones / "demo.zone").read_text() == ZONE


def test_an_edit_of_the_zone_file_and_what_was_changed_before(nameserver: Updated) -> None:
    lines = ("update add new.demo.test 60 A 192.0.2.1", "update add www.demo.test 300 A 192.0.2.81")
    assert nameserver.nsupdate(*lines) == ""
    nameserver.write(
        "demo.zone", ZONE.replace("www A 192.0.2.80", "www A 192.0.2.90") + "more A 192.0.2.91\n"
    )
    nameserver.reload()
    wait_for(lambda: nameserver.short("more.demo.test") == ["192.0.2.91"], 10, "the new record")
    assert nameserver.short("new.demo.test") == ["192.0.2.1"]
    assert nameserver.short("www.demo.test") == ["192.0.2.90"]
    nameserver.process.says("www.demo.test A is again as the zone file says")


# ACME


@pytest.fixture
def pebble(tmp_path: Path, shared: Updated) -> Iterator[tuple[str, Path]]:
    """An ACME server that asks the nameserver: the URL of its directory, and the certificate of its CA."""
    made = Pebble(tmp_path / "pebble", f"127.0.0.1:{shared.port}")
    try:
        made.start()
        yield made.url, made.ca
    finally:
        made.kill()


def test_certbot_gets_a_certificate(
    shared: Updated, pebble: tuple[str, Path], tmp_path: Path, start: Callable[..., Process]
) -> None:
    url, ca = pebble
    credentials = tmp_path / "credentials.ini"
    credentials.write_text(
        f"dns_rfc2136_server = 127.0.0.1\ndns_rfc2136_port = {shared.port}\ndns_rfc2136_name = acme\n"
        f"dns_rfc2136_secret = {SECRET}\ndns_rfc2136_algorithm = HMAC-SHA256\n"
    )
    credentials.chmod(0o600)
    certbot = start(
        *(need("certbot"), "certonly", "--non-interactive", "--agree-tos", "-m", "a@demo.test"),
        *("--server", url, "--dns-rfc2136", "--dns-rfc2136-credentials", credentials),
        *("--dns-rfc2136-propagation-seconds", "0", "-d", "demo.test", "-d", "*.demo.test"),
        *("--config-dir", tmp_path / "cb", "--work-dir", tmp_path / "cb", "--logs-dir", tmp_path / "cb"),
        env={"REQUESTS_CA_BUNDLE": str(ca)},
    )
    certbot.says("Successfully received certificate", 30)
    assert (tmp_path / "cb" / "live" / "demo.test" / "fullchain.pem").exists()
    assert "status: NXDOMAIN" in shared.ask("_acme-challenge.demo.test", "TXT")


def test_lego_gets_a_certificate(
    shared: Updated, pebble: tuple[str, Path], tmp_path: Path, start: Callable[..., Process]
) -> None:
    url, ca = pebble
    lego = start(
        *(
            need("lego"),
            "--path",
            tmp_path / "lego",
            "--server",
            url,
            "--accept-tos",
            "--email",
            "a@demo.test",
        ),
        *("--dns", "rfc2136", "--dns.resolvers", f"127.0.0.1:{shared.port}", "--dns.disable-cp"),
        *("--domains", "*.demo.test", "run"),
        env={
            "RFC2136_NAMESERVER": f"127.0.0.1:{shared.port}",
            "RFC2136_TSIG_KEY": "acme.",
            "RFC2136_TSIG_ALGORITHM": "hmac-sha256.",
            "RFC2136_TSIG_SECRET": SECRET,
            "RFC2136_SEQUENCE_INTERVAL": "1",
            "RFC2136_POLLING_INTERVAL": "1",
            "LEGO_CA_CERTIFICATES": str(ca),
        },
    )
    lego.says("Server responded with a certificate", 30)
    wait_for(lambda: lego.status is not None, 10, "the end of lego")
    assert lego.status == 0, lego.output
    assert list((tmp_path / "lego" / "certificates").glob("*.crt"))
    assert "status: NXDOMAIN" in shared.ask("_acme-challenge.demo.test", "TXT")


def test_the_messages_of_external_dns(shared: Updated) -> None:
    """What its rfc2136 provider sends: 50 changes a message, each record with its owner's TXT; a change is a
    removal and an addition of the same rrset."""

    def owner(name: str) -> tuple[str, str]:
        return (
            f"a-{name}",
            '"heritage=external-dns,external-dns/owner=test,external-dns/resource=ingress/x/y"',
        )

    names = [f"app{number}" for number in range(60)]
    for batch in (names[:25], names[25:50], names[50:]):
        steps: list[tuple[object, ...]] = []
        for name in batch:
            steps.append(("add", name, 300, "A", "192.0.2.1"))
            steps.append(("add", owner(name)[0], 300, "TXT", owner(name)[1]))
        assert shared.update(*steps, tcp=True) == "NOERROR"
    assert shared.short("app59.demo.test") == ["192.0.2.1"]
    changes = [
        *(("delete", "app1", "A", "192.0.2.1"), ("add", "app1", 60, "A", "192.0.2.2")),
        *(("delete", owner("app1")[0], "TXT", owner("app1")[1]), ("add", *_with_ttl(owner("app1")))),
    ]
    assert shared.update(*changes) == "NOERROR"
    assert shared.short("app1.demo.test") == ["192.0.2.2"]
    for batch in (names[:25], names[25:50], names[50:]):
        steps = []
        for name in batch:
            steps.append(("delete", name, "A", "192.0.2.2" if name == "app1" else "192.0.2.1"))
            steps.append(("delete", owner(name)[0], "TXT", owner(name)[1]))
        assert shared.update(*steps, tcp=True) == "NOERROR"
    assert "status: NXDOMAIN" in shared.ask("app59.demo.test")
    assert "status: NXDOMAIN" in shared.ask("a-app1.demo.test", "TXT")


def _with_ttl(owned: tuple[str, str]) -> tuple[object, ...]:
    return owned[0], 60, "TXT", owned[1]


# What must never happen


class Killed(Updated):
    """Nameserver and tunnel server in one, so that inviting a name is a live change."""

    def start(self) -> None:
        if "[server]" not in self.settings.read_text():
            tls, http = free_port("tcp"), free_port("tcp")
            listen = (
                f'addresses = ["127.0.0.1:{tls}"]\ntls = ["127.0.0.1:{tls}"]\nhttp = ["127.0.0.1:{http}"]\n'
            )
            more = f'private_addresses = true\n[server]\nid = "one"\n{listen}'
            self.settings.write_text(self.settings.read_text() + more)
        super().start()

    def invite(self, name: str) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(ANSWER_SECONDS)
            control.connect(str(self.base / "state" / "control"))
            control.sendall(json.dumps({"command": "invite", "names": [normal(name)]}).encode() + b"\n")
            control.recv(65536)


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Killed]:
    nameserver = Killed(tmp_path)
    yield nameserver
    nameserver.process.kill()


class Changing:
    """Changes everything that can be, all the time, and notes what was acknowledged and what was seen."""

    def __init__(self, nameserver: Killed) -> None:
        self.nameserver = nameserver
        self.acknowledged: set[int] = set()
        self.removed: set[int] = set()
        self.uncertain: set[int] = set()
        self.last_serial = nameserver.serial()
        self._number = 0
        self._edits = 0
        self._going = threading.Event()

    def until_killed(self, seconds: float) -> None:
        """Change things until the process is killed after `seconds`."""
        self._going.set()
        threads = [threading.Thread(target=one) for one in (self._update, self._reload, self._invite)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.nameserver.process.kill()
        self._going.clear()
        for thread in threads:
            thread.join()

    def _update(self) -> None:
        while self._going.is_set():
            self._number += 1
            number = self._number
            steps: list[tuple[object, ...]] = [("add", f"n{number}", 60, "TXT", str(number))]
            gone = None
            if self.acknowledged and number % 3 == 0:
                gone = random.choice(sorted(self.acknowledged))
                steps.append(("delete", f"n{gone}"))
                self.acknowledged.discard(gone)
                self.uncertain.add(gone)
            self.uncertain.add(number)
            try:
                answer = exchange(self.nameserver.port, message(*steps).to_wire(), LOST_SECONDS)
            except OSError:
                return
            assert answer[3] & 0xF == dns.rcode.NOERROR
            self.uncertain.discard(number)
            self.acknowledged.add(number)
            if gone is not None:
                self.uncertain.discard(gone)
                self.removed.add(gone)

    def _reload(self) -> None:
        while self._going.is_set():
            self._edits += 1
            text = ZONE + f"edited A 192.0.2.{self._edits % 250}\n"
            new = self.nameserver.zones / ".new"
            new.write_text(text)
            os.replace(new, self.nameserver.zones / "demo.zone")
            try:
                self.nameserver.reload()
                query = dns.message.make_query("demo.test", "SOA").to_wire()
                answer = exchange(self.nameserver.port, query, LOST_SECONDS)
            except OSError:
                return
            self.last_serial = int.from_bytes(answer[-20:-16], "big")
            time.sleep(random.random() * 0.02)

    def _invite(self) -> None:
        while self._going.is_set():
            try:
                self.nameserver.invite(f"live{random.randrange(50)}.demo.test")
            except OSError:
                return
            time.sleep(random.random() * 0.02)

    def texts(self) -> set[int]:
        """Which of our records there are. (Over TCP, for which no rate is limited.)"""
        found = set()
        with socket.create_connection(("127.0.0.1", self.nameserver.port), ANSWER_SECONDS) as peer:
            for number in sorted(self.acknowledged | self.removed | self.uncertain):
                query = dns.message.make_query(f"n{number}.demo.test", "TXT")
                dns.query.send_tcp(peer, query)
                answer, _ = dns.query.receive_tcp(peer, time.time() + ANSWER_SECONDS)
                assert answer.id == query.id
                assert answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
                if answer.answer:
                    found.add(number)
        return found


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_loses_no_acknowledged_change(killed: Killed, kills: int) -> None:
    changing = Changing(killed)
    for _ in range(kills):
        changing.until_killed(random.random() * 0.5)
        killed.start()  # which reads the journal
        serial = killed.serial()
        assert is_newer(serial, changing.last_serial)
        changing.last_serial = serial
        found = changing.texts()
        assert changing.acknowledged <= found
        assert not changing.removed & found
        for number in changing.uncertain:  # done or not, and so from now on
            (changing.acknowledged if number in found else changing.removed).add(number)
        changing.uncertain.clear()
        changing.removed = set(sorted(changing.removed)[-200:])
    assert len(changing.acknowledged) > kills


def test_a_full_disk_refuses_changes_and_answers_go_on(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(state)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    with ExitStack() as after:
        after.callback(lambda: subprocess.run(["umount", "-l", str(state)], check=True))
        nameserver = Updated(tmp_path)
        after.callback(lambda: nameserver.process.kill())
        assert nameserver.update(("add", "before", 60, "A", "192.0.2.1")) == "NOERROR"
        filling = state / "filling"
        with filling.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        rcodes = [nameserver.update(("add", f"n{number}", 60, "TXT", "x" * 250)) for number in range(30)]
        assert rcodes[-1] == "SERVFAIL"
        assert nameserver.short("n29.demo.test", "TXT") == []
        assert nameserver.short("www.demo.test") == ["192.0.2.80"]
        nameserver.process.says("was not written: database or disk is full")
        assert "Traceback" not in nameserver.process.output
        filling.unlink()
        assert nameserver.update(("add", "after", 60, "A", "192.0.2.2")) == "NOERROR"
        nameserver.process.kill()
        nameserver.start()
        for number, rcode in enumerate(rcodes):
            assert bool(nameserver.short(f"n{number}.demo.test", "TXT")) == (rcode == "NOERROR")
        assert nameserver.short("after.demo.test") == ["192.0.2.2"]


def test_hostile_octets_of_any_length(shared: Updated) -> None:
    """As UPDATE, with a signature that is not good; the questions of others are answered meanwhile."""
    chance = random.Random(4)
    good = message(*(("add", f"n{number}", 60, "TXT", "x" * 200) for number in range(50))).to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.connect(("127.0.0.1", shared.port))
        for size in (0, 1, 11, 12, 13, 30, 512, 1232, 4096, 65_507):
            for body in (good, b"\xc0\x0c" * 32768, bytes(65536), b"\x3f" * 65536, chance.randbytes(65536)):
                octets = bytearray((good[:12] + body[12:] + body)[:size])
                for _ in range(3):
                    peer.send(octets)
                    if size > 12:
                        octets[chance.randrange(12, len(octets))] ^= 1 << chance.randrange(8)
    for size in (1, 12, 512, 16_384, 16_385, 65_535):
        with socket.create_connection(("127.0.0.1", shared.port), ANSWER_SECONDS) as peer:
            octets = bytearray((good * 10)[:size])
            octets[size // 2] ^= 1
            try:
                peer.sendall(size.to_bytes(2, "big") + octets)
                peer.shutdown(socket.SHUT_WR)
                peer.recv(4096)
            except OSError:  # it had closed already
                pass
    assert shared.short("www.demo.test") == ["192.0.2.80"]
    assert shared.process.status is None
    assert (
        run(need("dig"), "@127.0.0.1", "-p", str(shared.port), "n1.demo.test", "TXT").count("NXDOMAIN") == 1
    )


# The same as BIND


NAMED = """
options {{
  directory "{base}"; pid-file none; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
  recursion no; dnssec-validation no; notify no;
}};
controls {{ }};
key "all" {{ algorithm hmac-sha256; secret "{secret}"; }};
zone "demo.test" {{
  type primary; file "demo.zone"; allow-update {{ key all; }}; allow-transfer {{ key all; }};
  check-names ignore; check-integrity no; check-mx ignore; check-mx-cname ignore;
}};
"""
SMALL_ZONE = """$ORIGIN demo.test.
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 86400 60
@ NS ns1
ns1 A 127.0.0.1
a A 192.0.2.1
a TXT "one"
b CNAME a
c MX 10 A
"""
RDATA = {
    "A": ("192.0.2.1", "192.0.2.2", "192.0.2.3"),
    "TXT": ("one", "two"),
    "CNAME": ("a.demo.test.", "A.Demo.test."),
    "MX": ("10 a.demo.test.", "10 A.demo.test.", "20 a.demo.test."),
    "NS": ("ns1.demo.test.", "NS.elsewhere.test.", "ns.elsewhere.test."),
    "TYPE65280": ("\\# 2 0a0b", "\\# 1 0a"),
}


def any_step(chance: random.Random) -> tuple[object, ...]:
    """One prerequisite or change, of those that a client can make."""
    name = chance.choice(["@", "a", "b", "c", "d", "x.d", "*.w"])
    rtype = chance.choice(sorted(RDATA))
    rdata = chance.choice(RDATA[rtype])
    ttl = chance.choice([60, 300])
    return chance.choice(
        [
            ("present", name),
            ("present", name, rtype),
            ("present", name, rtype, rdata),
            ("absent", name),
            ("absent", name, rtype),
            *[("add", name, ttl, rtype, rdata)] * 8,
            *[("delete", name, rtype, rdata)] * 4,
            *[("delete", name, rtype)] * 2,
            ("delete", name),
        ]
    )


class Small(Updated):
    def start(self) -> None:
        self.write("demo.zone", SMALL_ZONE)
        super().start()


def contents(port: int) -> set[str]:
    """Every record of the zone but the SOA, with its TTL; lower-cased."""
    text = run(
        *(need("dig"), "@127.0.0.1", "-p", str(port), "-y", f"hmac-sha256:all:{SECRET}"),
        *("demo.test", "AXFR", "+noall", "+answer"),
    )
    assert "demo.test." in text, text
    lines = {" ".join(line.lower().split()) for line in text.splitlines() if line}
    return {line for line in lines if " in soa " not in line}


@pytest.mark.parametrize("updates", [50, pytest.param(1500, marks=pytest.mark.slow)])
def test_any_update_ends_as_at_bind(tmp_path: Path, start: Callable[..., Process], updates: int) -> None:
    """The same messages to both: the same rcodes, and the same records at the end of each. What we refuse
    because no zone file may say it is left out; BIND would do it."""
    base = tmp_path / "named"
    base.mkdir()
    (base / "demo.zone").write_text(SMALL_ZONE)
    port = free_port("both")
    (base / "named.conf").write_text(NAMED.format(base=base, port=port, secret=SECRET))
    named = start(need("named"), "-g", "-n", "1", "-c", base / "named.conf")
    named.says("running", 20)
    with ExitStack() as after:
        nameserver = Small(tmp_path)
        after.callback(lambda: nameserver.process.kill())
        chance = random.Random(2136)
        rcodes: dict[str, int] = {}
        for _ in range(updates):
            steps = [any_step(chance) for _ in range(chance.randint(1, 4))]
            rcode = nameserver.update(*steps)
            rcodes[rcode] = rcodes.get(rcode, 0) + 1
            if rcode != "REFUSED":
                answer = dns.query.udp(message(*steps), "127.0.0.1", ANSWER_SECONDS, port)
                assert dns.rcode.to_text(answer.rcode()) == rcode, (steps, named.output[-500:])
                if rcode == "NOERROR":
                    assert contents(nameserver.port) == contents(port), steps
        assert rcodes["NOERROR"] > updates / 4
        assert rcodes.get("REFUSED", 0) < updates / 4
