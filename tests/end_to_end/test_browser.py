"""A browser asks our name server, gets the tunnel server's address, and shows a hidden web server's page.

Everything stands in a network of the test's own, on the ports that the world uses: only so does a browser
take a name from DNS, and https for granted. Its resolver is unbound, as strict as it can be.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.end_to_end.programs import HEADLESS, Process, need, wait_for
from tests.end_to_end.site import BIN, ZONE, Appliance, Nginx, Ports

NAME = f"www.{ZONE}"
ADDRESS = "198.51.100.5"
DEAD_ADDRESS = "198.51.100.4"
"""Published as the server's second address, and nothing listens there."""
SCREENSHOTS = Path(__file__).parent / "screenshots"
BROWSER_SECONDS = 30
CONNECTION_REFUSED = -102  # net/base/net_error_list.h
# Without it a browser asks https itself where it was told http.
BROWSER_FEATURES_OFF = "HttpsUpgrades,HttpsFirstBalancedMode,HttpsFirstBalancedModeAutoEnable"
PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>A page through the tunnel</title>
<style>body { font: 32px sans-serif; background: #eef6ee; padding: 1em } h1 { color: #175c17 }</style></head>
<body><h1>A page through the tunnel</h1><p>You are at <b id="where">nowhere</b>.</p>
<p id="fetched">Nothing was fetched.</p>
<script>
const put = (place, text) => document.getElementById(place).textContent = text;
put("where", location.href);
fetch("/who").then(answer => answer.text()).then(text => put("fetched", text));
</script></body></html>
"""
UNBOUND = """\
server:
    directory: "{directory}"
    pidfile: ""
    chroot: ""
    username: ""
    use-syslog: no
    verbosity: 2
    interface: 127.0.0.1
    do-ip6: no
    access-control: 127.0.0.0/8 allow
    module-config: "iterator"
    qname-minimisation: yes
    qname-minimisation-strict: yes
    use-caps-for-id: yes
    harden-below-nxdomain: yes
    rrset-roundrobin: no
    local-zone: "." refuse
    local-zone: "{zone}." transparent
stub-zone:
    name: "{zone}"
    stub-addr: {address}
remote-control:
    control-enable: no
"""


class Network:
    """A network and mounts of our own, in which there are an appliance, its client, nginx and unbound."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running = ExitStack()
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(directory / "ca.pem")
        (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        (directory / "nsswitch.conf").write_text("hosts: files dns\n")
        self._inside: list[str] = []
        self._browsers = 0

    def start(self) -> None:
        set_up = [f"ip address add {address}/32 dev lo" for address in (ADDRESS, DEAD_ADDRESS)]
        set_up += [
            f"mount --bind {self.directory}/{file} /etc/{file}" for file in ("resolv.conf", "nsswitch.conf")
        ]
        script = "; ".join(["set -e", *set_up, "ip link set lo up", "echo there it is", "sleep infinity"])
        home = self.run("network", need("unshare"), "--net", "--mount", "bash", "-c", script)
        home.says("there it is")
        self._inside = [need("nsenter"), "-t", str(home.pid), "--net", "--mount"]
        self._start_unbound()
        self._start_appliance()
        nginx = Nginx(self.directory / "nginx", [NAME], self.ca)
        (nginx.root / "index.html").write_text(PAGE)
        self.access_log = nginx.directory / "access.log"
        self.run("nginx", need("nginx"), "-p", nginx.directory, "-c", nginx.directory / "nginx.conf")
        invitation = self.appliance.invite(NAME)
        client = self.run(
            "client",
            *(BIN / "twistd", "-n", "--pidfile=", "tunnel-client", "--invitation", invitation),
            *("--state", self.directory / "client", *self.served_from(nginx)),
        )
        client.says("joined server s1 ")
        # Asked at its source first: the resolver would remember that the name is not there yet.
        both = [DEAD_ADDRESS, ADDRESS]
        wait_for(lambda: self.resolve(NAME, ADDRESS) == both, 5, "both addresses of the name")
        assert self.resolve(NAME, "127.0.0.1") == both

    def served_from(self, nginx: Nginx) -> list[str | Path]:
        """The client's options for the name."""
        return ["--tls-origin", f"127.0.0.1:{nginx.tls}"]

    def _start_unbound(self) -> None:
        configuration = self.directory / "unbound.conf"
        configuration.write_text(UNBOUND.format(directory=self.directory, zone=ZONE, address=ADDRESS))
        self.unbound = self.run("unbound", need("unbound"), "-d", "-c", configuration)
        self.unbound.says("start of service")

    def _start_appliance(self) -> None:
        ports = Ports()
        ports.dns, ports.tls, ports.http = 53, 443, 80
        self.appliance = Appliance(self.directory / "s1", ports, ADDRESS)
        settings = self.appliance.directory / "appliance.toml"
        both = f'addresses = ["{ADDRESS}", "{DEAD_ADDRESS}"]'
        settings.write_text(re.sub("(?m)^addresses = .*", both, settings.read_text()))
        twistd = (BIN / "twistd", "-n", "--pidfile=", "tunnel-appliance", "--config", settings)
        self.run("appliance", *twistd).says("ready")

    def run(self, name: str, *arguments: str | Path) -> Process:
        """Start a program in the network, until the end."""
        process = Process([*self._inside, *arguments], self.directory / f"{name}.log", cwd=self.directory)
        return self.running.enter_context(process)

    def resolve(self, name: str, server: str) -> list[str]:
        """A records as this name server or resolver gives them, in order of text."""
        done = subprocess.run(
            [*self._inside, need("dig"), "+short", "+tries=1", f"@{server}", name, "A"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        return sorted(done.stdout.split())

    def browse(
        self,
        url: str,
        screenshot: Path | None = None,
        *,
        waits: Sequence[str] = ("--virtual-time-budget=5000",),
    ) -> tuple[str, str]:
        """The DOM of a page in a browser that was never used before, and its log of the network.

        `waits`: for what beside the page's load.
        """
        self._browsers += 1
        home = self.directory / f"browser-{self._browsers}"
        database = home / ".pki" / "nssdb"
        database.mkdir(parents=True)
        for told in (
            ("-N", "--empty-password"),
            ("-A", "-n", "test", "-t", "C,,", "-i", self.directory / "ca.pem"),
        ):
            subprocess.run([need("certutil"), "-d", f"sql:{database}", *told], check=True, timeout=20)
        log = home / "net.json"
        options: list[str | Path] = [
            *HEADLESS,
            f"--disable-features={BROWSER_FEATURES_OFF}",
            f"--user-data-dir={home / 'profile'}",
            f"--log-net-log={log}",
            "--timeout=10000",
            *waits,
            "--dump-dom",
        ]
        if screenshot is not None:
            screenshot.parent.mkdir(exist_ok=True)
            screenshot.unlink(missing_ok=True)
            options += [f"--screenshot={screenshot}", "--window-size=900,500"]
        done = subprocess.run(
            [*self._inside, need("chromium"), *options, url],
            env={**os.environ, "HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=BROWSER_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, log.read_text()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("not root: a network of its own and ports 53, 80 and 443 need it")
    for program in ("unshare", "nsenter", "ip", "unbound", "nginx", "certutil", "chromium", "dig"):
        need(program)
    made = Network(tmp_path_factory.mktemp("browser"))
    with made.running:
        made.start()
        yield made


def test_a_browser_shows_the_page(network: Network) -> None:
    screenshot = SCREENSHOTS / "page.png"
    dom, _ = network.browse(f"https://{NAME}/", screenshot)
    assert "<h1>A page through the tunnel</h1>" in dom
    assert f'<b id="where">https://{NAME}/</b>' in dom
    assert f'<p id="fetched">origin {NAME} https GET' in dom
    assert screenshot.stat().st_size > 5_000
    assert '"GET / HTTP/2.0" 200' in network.access_log.read_text()
    assert "Capsforid" not in network.unbound.output  # it never had to give up its odd case


def test_http_leads_to_https(network: Network) -> None:
    dom, log = network.browse(f"http://{NAME}/?from=80")
    assert f'<b id="where">https://{NAME}/?from=80</b>' in dom
    assert "HTTP/1.1 308 Permanent Redirect" in log


def test_a_dead_address_costs_nothing(network: Network) -> None:
    """The browser was at the dead one first, was refused, and went on to the other."""
    dom, log = network.browse(f"https://{NAME}/?dead")
    attempts = re.findall(rf'"address":"({re.escape(ADDRESS[:-1])}[45]):443"', log)
    assert attempts[0] == DEAD_ADDRESS
    assert ADDRESS in attempts
    assert f'"net_error":{CONNECTION_REFUSED}' in log
    assert f'<b id="where">https://{NAME}/?dead</b>' in dom
