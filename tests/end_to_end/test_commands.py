"""What an operator types, and what twistd does with it: commands, settings, signals, files, privileges."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from appliance.tunnel.invitation import read_enrolment, read_invitation
from tests.end_to_end.programs import Process, free_port, need, wait_for
from tests.end_to_end.site import BIN, ZONE, Appliance, Client, Nginx, Ports, listens, tls_context
from tests.end_to_end.visitors import fetch

NAME = f"www.{ZONE}"
HOST = "127.0.0.1"
Run = Callable[..., Process]


def command(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`tunnel-appliance` in a directory."""
    return subprocess.run(
        [BIN / "tunnel-appliance", *arguments], cwd=directory, capture_output=True, text=True, timeout=30
    )


def twistd(*arguments: str | Path) -> list[str | Path]:
    return [BIN / "twistd", "-n", "--pidfile=", *arguments]


def modes(directory: Path) -> dict[str, int]:
    """The mode of a directory and of everything in it."""
    found = {".": directory, **{path.name: path for path in directory.rglob("*")}}
    return {name: stat.S_IMODE(path.lstat().st_mode) for name, path in found.items()}


# A running appliance


class Site:
    """An appliance with an origin and a client that it joins to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()
        self.appliance = Appliance(directory / "s1", Ports(), HOST)
        self.origin = Nginx(directory / "origin", [NAME], self.ca)

    def start(self) -> None:
        self.origin.start()
        self.appliance.start()
        invitation = self.appliance.invite(NAME)
        self.client = Client(
            self.directory / "client",
            invitation,
            self.appliance,
            "--tls-origin",
            f"{HOST}:{self.origin.tls}",
        )
        self.client.start("s1")

    def page(self) -> bool:
        port = self.appliance.ports.tls
        return fetch(tls_context(self.ca), HOST, port, NAME, "/who").startswith("origin ")

    def kill(self) -> None:
        if hasattr(self, "client"):
            self.client.kill()
        self.appliance.kill()
        self.origin.kill()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("commands"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


def test_init_and_start_from_its_files(tmp_path: Path, start: Run) -> None:
    """Step by step what the documents say, in an empty directory."""
    done = command(tmp_path, "init", "Example.Test", HOST)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "example.test.  NS  ns1.example.test.",
        "example.test.  NS  ns2.example.test.",
        f"ns1.example.test.  A  {HOST}",
        f"ns2.example.test.  A  {HOST}",
    ]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "appliance.toml",
        "example.test.zone",
        "zones",
    ]
    again = command(tmp_path, "init", "example.test", HOST)
    assert again.returncode == 1
    assert "init overwrites nothing" in again.stderr
    dns, tls, http = free_port("both"), free_port("tcp"), free_port("tcp")
    options = ["--dns", f"{HOST}:{dns}", "--tls", f"{HOST}:{tls}", "--http", f"{HOST}:{http}"]
    options += ["--public", f"{HOST}:{tls}", "--private-addresses"]
    process = start(*twistd("tunnel-appliance", *options), cwd=tmp_path)
    process.says("ready")
    asked = [need("dig"), f"@{HOST}", "-p", str(dns), "+short", "+tries=1"]
    for name, rtype, expected in (
        ("example.test", "NS", ["ns1.example.test.", "ns2.example.test."]),
        ("ns2.example.test", "A", [HOST]),
        ("example.test", "TXT", [f'"r=superprotocol;ip={HOST};port={tls}"']),
    ):
        answer = subprocess.run([*asked, name, rtype], capture_output=True, text=True, timeout=20)
        assert sorted(answer.stdout.splitlines()) == expected
    assert listens(tls)
    assert listens(http)
    invited = command(tmp_path, "invite", "www.example.test")
    assert read_invitation(invited.stdout).names == ("www.example.test",)
    assert read_invitation(invited.stdout).client == "www.example.test"
    assert "twistd -n tunnel-client --invitation" in invited.stderr
    assert process.stop() in (0, -signal.SIGTERM)


def test_invite(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "invitation.toml"
    said = site.appliance.command(
        "invite", "*.Apps.Site.Test", "custom.example", "--client", "shop", "--output", path
    )
    assert f"wrote {path}" in said
    assert "client shop may serve *.apps.site.test, custom.example" in said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    invitation = read_invitation(path.read_text())
    assert invitation.discovery == ZONE
    assert [str(server) for server in invitation.servers] == [f"{HOST}:{site.appliance.ports.tls}"]
    before = path.read_text()
    assert "File exists" in site.appliance.command("invite", NAME, "--output", path, fails=True)
    assert path.read_text() == before
    refused = tmp_path / "refused.toml"
    for names in (["no name"], ["tunnel-server.internal"], ["*.internal"], ["192.0.2.1"]):
        said = site.appliance.command("invite", *names, "--output", refused, fails=True)
        assert said.startswith("Error: "), said
        assert len(said.splitlines()) == 1, said
        assert not refused.exists()


def test_enroll(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "s2.toml"
    said = site.appliance.command("enroll", "s2", "192.0.2.7", "[2001:db8::7]:8443", "--output", path)
    assert "it announces itself" in said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    enrolment = read_enrolment(path.read_text())
    assert enrolment.server_id == "s2"
    assert list(map(str, enrolment.addresses)) == ["192.0.2.7:443", "[2001:db8::7]:8443"]
    for arguments in (["s2"], ["s2", "nowhere"], ["S 2", "192.0.2.7"], ["s1", "192.0.2.7"]):
        said = site.appliance.command("enroll", *arguments, "--output", tmp_path / "refused", fails=True)
        assert "Error: " in said
        assert not (tmp_path / "refused").exists()


def test_status(site: Site) -> None:
    status = json.loads(site.appliance.command("status", "--json"))
    assert status["server"] == "s1"
    assert [zone["zone"] for zone in status["zones"]] == [ZONE]
    assert [(one["id"], one["standing"], one["published"]) for one in status["servers"]] == [
        ("s1", "up", True)
    ]
    (session,) = status["sessions"]
    assert (session["client"], session["names"]) == ("home", [NAME])
    assert session["idle_lanes"] >= 1
    assert ("client", "home", [NAME], None) in [
        (one["role"], one["id"], one["names"], one["revoked"]) for one in status["issued"]
    ]
    text = site.appliance.command("status")
    for heading in ("version: ", "listening", "zones", "servers", "sessions", "issued"):
        assert heading in text
    assert NAME in text
    assert "PRIVATE" not in text + json.dumps(status)


def test_reload(site: Site) -> None:
    zone = site.directory / "s1" / "zones" / f"{ZONE}.zone"
    was = zone.read_text()
    try:
        zone.write_text(was.replace("static A 192.0.2.80", "static A 192.0.2.81"))
        assert site.appliance.command("reload") == "reloaded\n"
        assert site.appliance.dig(f"static.{ZONE}", "A") == ["192.0.2.81"]
        zone.write_text(was.replace("static A 192.0.2.80", "static A 192.0.2.82\nbad A 192.0.2.256"))
        said = site.appliance.command("reload", fails=True)
        assert f"{zone}:7: " in said
        assert site.appliance.dig(f"static.{ZONE}", "A") == ["192.0.2.81"]
        assert site.appliance.dig(NAME, "A") == [HOST]
        assert site.page()
        zone.write_text("nonsense")
        assert f"{zone}:1: " in site.appliance.command("reload", fails=True)
    finally:
        zone.write_text(was)
    assert site.appliance.command("reload") == "reloaded\n"
    assert site.appliance.dig(f"static.{ZONE}", "A") == ["192.0.2.80"]


def test_forget(site: Site) -> None:
    name = f"old.{ZONE}"
    site.appliance.command("invite", name, "--client", "old")
    wait_for(lambda: site.appliance.dig(name, "A") == [HOST], 5, "the records of a known name")
    assert site.appliance.command("forget", name) == f"forgot {name}\n"
    wait_for(lambda: site.appliance.dig(name, "A") == [], 5, "no records")
    assert "is not a known name" in site.appliance.command("forget", name, fails=True)


def test_sighup_kills_nobody(site: Site) -> None:
    zone = site.directory / "s1" / "zones" / f"{ZONE}.zone"
    was = zone.read_text()
    appliance, client = site.appliance.process, site.client.process
    assert appliance is not None
    assert client is not None
    try:
        zone.write_text(was.replace("192.0.2.80", "192.0.2.83"))
        appliance.tell(signal.SIGHUP)
        wait_for(lambda: site.appliance.dig(f"static.{ZONE}", "A") == ["192.0.2.83"], 5, "the new zone")
        zone.write_text(was + "bad A\n")
        appliance.tell(signal.SIGHUP)
        appliance.says(f"{zone}:7: ")
    finally:
        zone.write_text(was)
    appliance.tell(signal.SIGHUP)
    wait_for(lambda: site.appliance.dig(f"static.{ZONE}", "A") == ["192.0.2.80"], 5, "the old zone")
    for _ in range(3):
        client.tell(signal.SIGHUP)
    client.says("nothing to reload")
    assert appliance.status is None
    assert client.status is None
    assert site.page()


def test_nobody_else_reads_the_state(site: Site) -> None:
    found = modes(site.directory / "s1" / "state")
    assert found.pop(".") == 0o700
    assert {"ca.pem", "server.pem", "nameserver.pem", "control", "appliance.sqlite"} <= found.keys()
    assert {name: oct(mode) for name, mode in found.items() if mode != 0o600} == {}
    found = modes(site.directory / "client" / "state")
    assert found.pop(".") == 0o700
    assert {name: oct(mode) for name, mode in found.items() if mode != 0o600} == {}


def test_no_key_is_shown(site: Site) -> None:
    """In no argument, environment or log; not even a piece of one."""
    files = [*(site.directory / "s1" / "state").glob("*.pem"), site.directory / "s1" / "home-invitation.toml"]
    keys = [
        line
        for path in files
        for key in re.findall(r"BEGIN PRIVATE KEY-----\n(.*?)\n-----END", path.read_text(), re.DOTALL)
        for line in key.splitlines()[1:]  # the first says only that it is a P-256 key
    ]
    assert len(keys) >= 8
    shown = ""
    for process in (site.appliance.process, site.client.process):
        assert process is not None
        shown += process.output
        for what in ("cmdline", "environ"):
            shown += Path(f"/proc/{process.pid}/{what}").read_bytes().decode(errors="replace")
    assert [key for key in keys if key in shown] == []


def test_where_nobody_runs(tmp_path: Path) -> None:
    for arguments in (["status"], ["--state", tmp_path, "reload"], ["--config", "none.toml", "status"]):
        done = command(tmp_path, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: "), done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


# What is wrong before the start


def test_all_errors_of_the_settings_at_once(tmp_path: Path, start: Run) -> None:
    zones = tmp_path / "zones"
    zones.mkdir()
    (zones / "a.zone").write_text(
        "$ORIGIN a.test.\n@ 60 SOA ns1 h 1 2 3 4 5\n@ 60 NS ns1\nns1 60 A 192.0.2.300\n"
    )
    (zones / "b.zone").write_text("no zone at all\n")
    tls = free_port("tcp")
    (tmp_path / "appliance.toml").write_text(
        f'[nameserver]\nindex = 9\nlisten = ["nowhere"]\n\n[server]\nid = "S 1"\ntls = ["{HOST}:{tls}"]\n'
        'adresses = ["192.0.2.1"]\nhttps_port = "443"\n'
    )
    process = start(*twistd("tunnel-appliance"), cwd=tmp_path)
    assert wait_for(lambda: process.status, 10, "the end") == 2
    lines = process.output.splitlines()
    assert all(line.startswith("tunnel-appliance: ") for line in lines), lines
    for place in ("appliance.toml:3: nameserver.listen", "appliance.toml:8: server.adresses"):
        assert any(place in line for line in lines), (place, lines)
    assert any("server.addresses?" in line for line in lines)
    assert any("appliance.toml:9: server.https_port" in line for line in lines)
    assert not listens(tls)
    assert not (tmp_path / "state").exists()


def test_all_errors_of_the_zones_at_once(tmp_path: Path, start: Run) -> None:
    zones = tmp_path / "zones"
    zones.mkdir()
    (zones / "a.zone").write_text(
        "$ORIGIN a.test.\n@ 60 SOA ns1 h 1 2 3 4 5\n@ 60 NS ns1\nns1 60 A 192.0.2.300\n"
    )
    (zones / "b.zone").write_text("no zone at all\n")
    process = start(*twistd("tunnel-appliance", "--dns", f"{HOST}:0"), cwd=tmp_path)
    assert wait_for(lambda: process.status, 10, "the end") == 2
    assert f"{zones}/a.zone:4: " in process.output
    assert f"{zones}/b.zone:1: " in process.output


def test_the_clients_errors_at_once(tmp_path: Path, start: Run) -> None:
    process = start(*twistd("tunnel-client"), cwd=tmp_path)
    assert wait_for(lambda: process.status, 10, "the end") == 2
    assert len(process.output.splitlines()) == 2
    assert "no invitation" in process.output
    assert "no origin" in process.output


def test_a_port_in_use(site: Site, start: Run) -> None:
    """Started twice: a line for each port, and who holds it."""
    assert site.appliance.process is not None
    process = start(*twistd("tunnel-appliance", "--config", "appliance.toml"), cwd=site.directory / "s1")
    assert wait_for(lambda: process.status, 10, "the end") == 2
    ports = site.appliance.ports
    lines = process.output.splitlines()
    assert len(lines) == 4, lines
    for kind, port in (("UDP", ports.dns), ("TCP", ports.dns), ("TCP", ports.tls), ("TCP", ports.http)):
        (line,) = [line for line in lines if f"{kind}" in line and str(port) in line]
        assert f"(pid {site.appliance.process.pid}) holds it" in line, line
    assert site.page()


# As a daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Path]:
    """A directory in which daemons may be started: whoever has a pid file there is ended."""
    yield tmp_path
    for pid_file in tmp_path.glob("*.pid"):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def daemon_of(directory: Path, called: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """twistd without -n; when it comes back, the daemon has started or not."""
    files: list[str | Path] = [f"--pidfile={directory}/{called}.pid", f"--logfile={directory}/{called}.log"]
    return subprocess.run(
        [BIN / "twistd", *files, called, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_daemons(daemon: Path) -> None:
    appliance = Appliance(daemon / "s1", Ports(), HOST)
    arguments: list[str | Path] = ["--config", appliance.directory / "appliance.toml"]
    done = daemon_of(daemon, "tunnel-appliance", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = daemon / "tunnel-appliance.log"
    wait_for(lambda: log.exists() and "ready" in log.read_text(), 10, "the daemon's log")
    pid = int((daemon / "tunnel-appliance.pid").read_text())
    assert appliance.command("status").splitlines()[1] == "server: s1"
    assert daemon_of(daemon, "tunnel-appliance", *arguments).returncode != 0  # it runs already

    invitation = appliance.invite(NAME)
    options: list[str | Path] = ["--state", daemon / "client", "--resolver", f"{HOST}:{appliance.ports.dns}"]
    done = daemon_of(
        daemon, "tunnel-client", "--invitation", invitation, "--tls-origin", f"{HOST}:1", *options
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    client_log = daemon / "tunnel-client.log"
    wait_for(lambda: client_log.exists() and "joined server s1" in client_log.read_text(), 10, "the join")
    client = int((daemon / "tunnel-client.pid").read_text())

    os.kill(pid, signal.SIGHUP)
    os.kill(client, signal.SIGHUP)
    wait_for(lambda: "reloaded, 0 errors" in log.read_text(), 5, "the reload")
    wait_for(lambda: "nothing to reload" in client_log.read_text(), 5, "that there is nothing to reload")
    for one in (client, pid):
        os.kill(one, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{one}").exists(), 10, "the daemon's end")  # noqa: B023
    assert not list(daemon.glob("*.pid"))
    assert "Traceback" not in log.read_text() + client_log.read_text()


def test_a_daemon_that_cannot_start(daemon: Path) -> None:
    """What is found only after the fork is one line on the terminal as well."""
    appliance = Appliance(daemon / "s1", Ports(), HOST)
    (appliance.directory / "state").mkdir()
    (appliance.directory / "state" / "ca.pem").write_text("no key")
    done = daemon_of(daemon, "tunnel-appliance", "--config", appliance.directory / "appliance.toml")
    assert done.returncode == 1
    words = f"{appliance.directory}/state/ca.pem: not a private key with its certificate in PEM"
    said = done.stderr.splitlines()
    assert said[0].startswith(f"tunnel-appliance: {words}")
    assert said[1:] == [  # twistd's own last words
        "An error has occurred: b'appliance.tap.StartRefused: it could not start'",
        "Please look at log file for more information.",
    ]
    assert words in (daemon / "tunnel-appliance.log").read_text()
    # The daemon has told its parent, and ends after that: it removes the file, then its sockets go with it.
    wait_for(lambda: not (daemon / "tunnel-appliance.pid").exists(), 5, "the end of the file")
    wait_for(lambda: not listens(appliance.ports.tls), 5, "the end of the process")


def test_a_start_that_fails_in_the_foreground(tmp_path: Path, start: Run) -> None:
    appliance = Appliance(tmp_path / "s1", Ports(), HOST)
    (appliance.directory / "state").mkdir()
    (appliance.directory / "state" / "ca.pem").write_text("no key")
    process = start(*twistd("tunnel-appliance", "-c", "appliance.toml"), cwd=appliance.directory)
    assert wait_for(lambda: process.status, 10, "the end") == 1
    words = f"{appliance.directory}/state/ca.pem: not a private key with its certificate in PEM"
    assert f"tunnel-appliance: {words}" in process.output
    assert "Traceback" not in process.output


# Privileges


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network of its own, where the low ports are free."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a network namespace and drop privileges")
    ip = need("ip")
    name = f"tunnel-test-{os.getpid()}"
    subprocess.run([ip, "netns", "add", name], check=True)
    try:
        subprocess.run([ip, "-n", name, "link", "set", "lo", "up"], check=True)
        subprocess.run([ip, "-n", name, "address", "add", "192.0.2.1/32", "dev", "lo"], check=True)
        yield name
    finally:
        subprocess.run([ip, "netns", "delete", name], check=True)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """pytest's own directories are closed to nobody."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        (Path(directory) / "site").mkdir()
        yield Path(directory)


def test_low_ports_and_then_nobody(namespace: str, open_directory: Path, start: Run) -> None:
    """Bound as root, everything else as nobody, who can still reload and issue."""
    nobody = pwd.getpwnam("nobody")
    inside = [need("ip"), "netns", "exec", namespace]
    assert command(open_directory / "site", "init", ZONE, "192.0.2.1").returncode == 0
    os.chown(open_directory / "site", nobody.pw_uid, nobody.pw_gid)
    process = start(
        *(*inside, BIN / "twistd", "-n", "--pidfile=", "--uid=nobody", f"--gid={nobody.pw_gid}"),
        *("tunnel-appliance", "--private-addresses"),
        cwd=open_directory / "site",
    )
    process.says("ready: DNS 192.0.2.1:53")
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert re.findall(r"^[UG]id:.*", status, re.MULTILINE) == [
        "Uid:" + f"\t{nobody.pw_uid}" * 4,
        "Gid:" + f"\t{nobody.pw_gid}" * 4,
    ]
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    state = open_directory / "site" / "state"
    assert {path.stat().st_uid for path in (state, *state.iterdir())} == {nobody.pw_uid}
    assert modes(state).pop(".") == 0o700
    zone = open_directory / "site" / "zones" / f"{ZONE}.zone"
    zone.write_text(zone.read_text() + "new A 192.0.2.99\n")
    assert command(open_directory / "site", "reload").returncode == 0
    asked = [*inside, need("dig"), "@192.0.2.1", "+short", "+tries=1"]
    answer = subprocess.run([*asked, f"new.{ZONE}", "A"], capture_output=True, text=True, timeout=20)
    assert answer.stdout == "192.0.2.99\n"
    invited = command(open_directory / "site", "invite", NAME)
    assert read_invitation(invited.stdout).names == (NAME,), invited.stderr
    listening = subprocess.run([*inside, need("ss"), "-Hlntu"], capture_output=True, text=True, timeout=20)
    assert {":53", ":80", ":443"} <= set(re.findall(r":(?:53|80|443)\b", listening.stdout))
    assert process.stop() in (0, -signal.SIGTERM)
