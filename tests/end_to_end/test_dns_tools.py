"""The nameserver and the tools of the people who will judge it: dig, kdig, dnsperf, unbound."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.programs import Process, free_port, need, wait_for

ZONE = """\
$ORIGIN demo.test.
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 86400 60
@ NS ns1
@ MX 10 www
ns1 A 127.0.0.1
www A 192.0.2.80
www AAAA 2001:db8::80
deep.below.empty A 192.0.2.81
*.apps A 192.0.2.82
alias CNAME hop
hop CNAME www
outside CNAME www.elsewhere.example.
large TXT {}
sub NS ns.sub
ns.sub A 192.0.2.99
""".format(" ".join(f'"{number:0200}"' for number in range(20)))
TOOL_SECONDS = 30


class Nameserver:
    """An appliance that is only a nameserver, as a process; its zones, and how the tools ask it."""

    def __init__(self, base: Path, more: str = "rate_limit = 0\n") -> None:
        """`more` are further lines of `[nameserver]`: dnsperf is one source that asks a few things often."""
        self.base = base
        self.zones = base / "zones"
        self.zones.mkdir()
        self.port = free_port("both")
        self._starts = 0
        self.write("demo.zone", ZONE)
        self.settings = base / "appliance.toml"
        self.settings.write_text(
            f'state = "{base}/state"\n[nameserver]\nzones = "{self.zones}"\n'
            f'listen = ["127.0.0.1:{self.port}", "[::1]:{self.port}"]\n{more}'
        )
        self.start()

    def start(self) -> None:
        self._starts += 1
        twistd = Path(sys.executable).parent / "twistd"
        arguments = (twistd, "-n", "--pidfile=", "tunnel-appliance", "--config", self.settings)
        self.process = Process(arguments, self.base / f"nameserver-{self._starts}.log", cwd=self.base)
        try:
            self.process.says("ready: DNS", seconds=30)
        except BaseException:
            self.process.kill()
            raise

    def write(self, filename: str, text: str) -> None:
        (self.zones / filename).write_text(text)

    def reload(self) -> None:
        self.process.tell(signal.SIGHUP)

    def ask(self, *arguments: str, host: str = "127.0.0.1") -> str:
        """The output of dig."""
        return run(need("dig"), f"@{host}", "-p", str(self.port), "+norecurse", *arguments)

    def short(self, name: str, rtype: str = "A") -> list[str]:
        return self.ask("+short", "+tries=1", name, rtype).split()

    def serial(self) -> int:
        return int(self.short("demo.test", "SOA")[2])


def run(*arguments: str) -> str:
    done = subprocess.run(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TOOL_SECONDS,
        check=False,
    )
    return done.stdout


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nameserver]:
    """One process for the tests that only ask."""
    nameserver = Nameserver(tmp_path_factory.mktemp("nameserver"))
    yield nameserver
    nameserver.process.kill()


@pytest.fixture
def nameserver(tmp_path: Path) -> Iterator[Nameserver]:
    """A process of its own for a test that changes something."""
    nameserver = Nameserver(tmp_path)
    yield nameserver
    nameserver.process.kill()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig_over_udp_and_tcp(shared: Nameserver, host: str, transport: str) -> None:
    text = shared.ask(transport, "www.demo.test", "A", host=host)
    assert "status: NOERROR" in text
    assert "flags: qr aa;" in text
    assert re.search(r"^www\.demo\.test\.\s+300\s+IN\s+A\s+192\.0\.2\.80$", text, re.MULTILINE)
    assert ("(TCP)" if transport == "+tcp" else "(UDP)") in text
    assert "WARNING" not in text


@pytest.mark.parametrize(
    ("name", "rtype", "status", "found"),
    [
        ("deep.below.empty.demo.test", "A", "NOERROR", "192.0.2.81"),
        ("below.empty.demo.test", "A", "NOERROR", "SOA"),
        ("www.demo.test", "HTTPS", "NOERROR", "SOA"),
        ("nosuch.demo.test", "A", "NXDOMAIN", "SOA"),
        ("any.thing.apps.demo.test", "A", "NOERROR", "192.0.2.82"),
        ("alias.demo.test", "A", "NOERROR", "192.0.2.80"),
        ("outside.demo.test", "A", "NOERROR", "www.elsewhere.example."),
        ("host.sub.demo.test", "A", "NOERROR", "192.0.2.99"),
        ("www.elsewhere.example", "A", "REFUSED", ""),
        ("demo.test", "ANY", "NOERROR", "ANSWER: 1,"),
    ],
)
def test_dig_gets_the_answer(shared: Nameserver, name: str, rtype: str, status: str, found: str) -> None:
    text = shared.ask(name, rtype)
    assert f"status: {status}" in text
    assert found in text
    assert "WARNING" not in text


def test_dig_edns(shared: Nameserver) -> None:
    with_edns = shared.ask("www.demo.test")
    assert "; EDNS: version: 0, flags:; udp: 1232" in with_edns
    assert "EDNS" not in shared.ask("+noedns", "www.demo.test")
    badvers = shared.ask("+edns=1", "+noednsneg", "www.demo.test")
    assert "status: BADVERS" in badvers
    assert "ANSWER: 0" in badvers
    unknown = shared.ask("+ednsopt=100:c0ffee", "+ednsflags=0x40", "+subnet=192.0.2.0/24", "www.demo.test")
    assert "status: NOERROR" in unknown
    assert "OPT=100" not in unknown


def test_dig_falls_back_to_tcp(shared: Nameserver) -> None:
    cut = shared.ask("+ignore", "+bufsize=4096", "large.demo.test", "TXT")
    assert " tc" in cut
    assert "ANSWER: 0" in cut
    whole = shared.ask("large.demo.test", "TXT")
    assert "Truncated, retrying in TCP mode" in whole
    assert f'"{19:0200}"' in whole


def test_dig_0x20(shared: Nameserver) -> None:
    text = shared.ask("wWw.DeMo.tEsT")
    assert ";wWw.DeMo.tEsT." in text
    assert re.search(r"^wWw\.DeMo\.tEsT\.\s+300", text, re.MULTILINE)
    assert "192.0.2.80" in text


def test_dig_keeps_a_tcp_connection_open(shared: Nameserver) -> None:
    text = shared.ask("+tcp", "+keepopen", "www.demo.test", "nosuch.demo.test", "deep.below.empty.demo.test")
    assert re.findall(r"status: (\w+)", text) == ["NOERROR", "NXDOMAIN", "NOERROR"]


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_kdig(shared: Nameserver, transport: str) -> None:
    kdig = (need("kdig"), "@127.0.0.1", "-p", str(shared.port), transport)
    asked = ("www.demo.test", "A", "www.demo.test", "AAAA", "nosuch.demo.test", "A", "sub.demo.test", "NS")
    text = run(*kdig, "+keepopen", "+norecurse", "+bufsize=1232", "+nsid", *asked)
    assert "WARNING" not in text
    assert re.findall(r"status: (\w+)", text) == ["NOERROR", "NOERROR", "NXDOMAIN", "NOERROR"]
    assert re.search(r"^www\.demo\.test\.\s+300\s+IN\s+AAAA\s+2001:db8::80$", text, re.MULTILINE)


def test_dnsperf_pipelines_over_one_tcp_connection(shared: Nameserver, tmp_path: Path) -> None:
    questions = tmp_path / "questions"
    asked = ("www.demo.test A", "nosuch.demo.test A", "large.demo.test TXT", "alias.demo.test A")
    questions.write_text("\n".join(asked * 250) + "\n")
    dnsperf = need("dnsperf")
    text = run(
        *(dnsperf, "-s", "127.0.0.1", "-p", str(shared.port), "-d", str(questions)),
        *("-m", "tcp", "-c", "1", "-q", "100", "-n", "1"),
    )
    assert re.search(r"Queries completed: +1000 \(100\.00%\)", text), text
    assert "NXDOMAIN 250 (25.00%)" in text
    assert re.search(r"Reconnections: +0", text)


@pytest.fixture
def unbound(shared: Nameserver, tmp_path: Path, start: Callable[..., Process]) -> Callable[..., str]:
    """Ask a strict resolver that finds demo.test at our nameserver."""
    port = free_port("both")
    configuration = tmp_path / "unbound.conf"
    configuration.write_text(
        f"""
server:
    directory: "{tmp_path}"
    pidfile: ""
    chroot: ""
    username: ""
    use-syslog: no
    verbosity: 3
    interface: 127.0.0.1
    port: {port}
    do-ip6: no
    do-not-query-localhost: no
    access-control: 127.0.0.0/8 allow
    module-config: "iterator"
    qname-minimisation: yes
    qname-minimisation-strict: yes
    use-caps-for-id: yes
    harden-below-nxdomain: yes
    harden-glue: yes
    harden-referral-path: no
    local-zone: "test." nodefault
stub-zone:
    name: "demo.test"
    stub-addr: 127.0.0.1@{shared.port}
remote-control:
    control-enable: no
"""
    )
    process = start(need("unbound"), "-d", "-c", configuration)
    process.says("start of service")

    def ask(name: str, rtype: str = "A", *options: str) -> str:
        text = run(need("dig"), "@127.0.0.1", "-p", str(port), *options, name, rtype)
        assert not re.search("capsforid|caps fallback", process.output, re.IGNORECASE)  # our case was right
        return text

    return ask


def test_unbound_resolves_through_us(unbound: Callable[..., str]) -> None:
    """Minimised names, random case, hard below NXDOMAIN: a wrong one at an empty name would show."""
    assert "status: NXDOMAIN" in unbound("nosuch.demo.test")
    for name, rtype, found in (
        ("deep.below.empty.demo.test", "A", "192.0.2.81"),
        ("www.demo.test", "A", "192.0.2.80"),
        ("www.demo.test", "AAAA", "2001:db8::80"),
        ("a.b.c.apps.demo.test", "A", "192.0.2.82"),
        ("alias.demo.test", "A", "192.0.2.80"),
        ("demo.test", "MX", "10 www.demo.test."),
        ("demo.test", "NS", "ns1.demo.test."),
    ):
        text = unbound(name, rtype)
        assert "status: NOERROR" in text, text
        assert found in text
    assert "ANSWER: 0" in unbound("below.empty.demo.test")
    assert "status: NXDOMAIN" in unbound("below.nosuch.demo.test")


def test_unbound_comes_back_over_tcp_for_what_is_large(unbound: Callable[..., str]) -> None:
    assert f'"{19:0200}"' in unbound("large.demo.test", "TXT", "+tcp")


def test_unbound_forgets_a_no_after_the_negative_ttl(unbound: Callable[..., str]) -> None:
    text = unbound("nosuch.demo.test")
    (ttl,) = re.findall(r"^demo\.test\.\s+(\d+)\s+IN\s+SOA", text, re.MULTILINE)
    assert int(ttl) <= 60


def test_sighup_reloads_and_a_bad_zone_keeps_the_old(nameserver: Nameserver) -> None:
    before = nameserver.serial()
    nameserver.write("demo.zone", ZONE + "new A 192.0.2.90\n")
    nameserver.write("more.zone", ZONE.replace("demo.test", "more.test"))
    nameserver.reload()
    wait_for(lambda: nameserver.short("new.demo.test") == ["192.0.2.90"], 10, "the new record")
    assert nameserver.short("www.more.test") == ["192.0.2.80"]
    assert nameserver.serial() > before

    nameserver.write("demo.zone", ZONE + "new A 192.0.2.91\nbad A 192.0.2.999\n")
    (nameserver.zones / "more.zone").unlink()
    nameserver.reload()
    line = len(ZONE.splitlines()) + 2
    nameserver.process.says(f"{nameserver.zones}/demo.zone:{line}: ")
    nameserver.process.says("demo.test stays as it was")
    assert nameserver.short("new.demo.test") == ["192.0.2.90"]
    wait_for(lambda: "status: REFUSED" in nameserver.ask("www.more.test"), 10, "the end of the removed zone")

    nameserver.write("demo.zone", ZONE + "new A 192.0.2.91\n")
    nameserver.reload()
    wait_for(lambda: nameserver.short("new.demo.test") == ["192.0.2.91"], 10, "the repaired zone")
    assert nameserver.process.status is None


def test_reloads_lose_no_query(nameserver: Nameserver, tmp_path: Path, start: Callable[..., Process]) -> None:
    questions = tmp_path / "questions"
    questions.write_text("www.demo.test A\nnosuch.demo.test A\nalias.demo.test A\n" * 100)
    perf = start(
        *(need("dnsperf"), "-s", "127.0.0.1", "-p", str(nameserver.port), "-d", questions),
        *("-l", "2", "-c", "2", "-q", "50", "-Q", "2000"),
    )
    reloads = 0
    while perf.status is None:
        reloads += 1
        nameserver.write("demo.zone", ZONE + f"reload A 192.0.2.{reloads % 250}\n")
        nameserver.reload()
        expected = [f"192.0.2.{reloads % 250}"]
        wait_for(lambda: nameserver.short("reload.demo.test") == expected, 10, "the reload")  # noqa: B023
    assert reloads >= 5
    assert re.search(r"Queries lost: +0 ", perf.output), perf.output
    assert re.search(r"Response codes: +NOERROR \d+ \([\d.]+%\), NXDOMAIN", perf.output), perf.output
    assert "SERVFAIL" not in perf.output


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_never_takes_the_serial_back(nameserver: Nameserver, kills: int) -> None:
    last = nameserver.serial()
    for number in range(kills):
        nameserver.write("demo.zone", ZONE + f"kill A 192.0.2.{number % 250}\n")
        nameserver.reload()
        if number % 2:
            wait_for(lambda: nameserver.serial() > last, 10, "the change")  # noqa: B023
            last = nameserver.serial()
        nameserver.process.kill()
        nameserver.start()
        again = nameserver.serial()
        assert again > last
        last = again


def test_sigterm_ends_it_at_once(nameserver: Nameserver) -> None:
    nameserver.short("www.demo.test")
    nameserver.process.stop()
    assert "Traceback" not in nameserver.process.output
