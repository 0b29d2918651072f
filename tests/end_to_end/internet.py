"""A small internet on one machine: name servers above ours, a public machine, a home behind NAT, a visitor.

Hides the namespaces. A `Machine` has a network, processes and a host name of its own, and /etc, /opt, /srv,
/usr/local, /var and /tmp with its own changes laid over this machine's, in memory; /run is its own. The rest,
/dev for one, is this machine's: start no service manager there. It lives as long as a pipe from this process
is open, and all of it (processes, files, links) goes with it; nothing has a name that another run could meet.
All machines hang on one switch that has no other port, so no packet leaves.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trustme

from tests.end_to_end.namespaces import Namespaces, cable
from tests.end_to_end.programs import Process, need, wait_for

# 44.128.0.0/16 is the amateur radio network's for tests: globally routable in form, and routed by nobody.
ROOT_SERVER = "44.128.1.1"
ORG_SERVER = "44.128.2.1"
PUBLIC = "44.128.0.5"
HOME_ROUTER = "44.128.7.7"
ELSEWHERE = "44.128.9.9"
HOME_NETWORK = "192.168.1"

PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "nft", "nsd", "unbound", "nginx", "dig", "curl")
_PATHS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
HOME = "/srv/root"
"""The directory `~` of root on every machine: nothing of the real one is seen or touched."""
COMMAND_SECONDS = 120.0
START_SECONDS = 20.0
STOP_SECONDS = 10.0

# bash, as process 1 of the machine, also reaps what others leave; the end of its stdin is the machine's end.
INIT = """
set -e
read -r pid _ </proc/self/stat
mount -t tmpfs tmpfs {memory}
for directory in etc opt srv usr/local var tmp; do
  own={memory}/$directory
  mkdir -p $own/upper $own/work
  mount -t overlay -o lowerdir=/$directory,upperdir=$own/upper,workdir=$own/work overlay /$directory
done
mount -t tmpfs tmpfs /run
mount -t proc proc /proc
mkdir {home}
echo {name} >/proc/sys/kernel/hostname
ip link set lo up
echo $pid
while read -r _; do :; done
"""
ROUTER = """
table ip nat {
  chain postrouting {
    type nat hook postrouting priority 100;
    oifname "eth0" masquerade;
  }
}
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    iifname "eth1" accept;
    iifname "eth0" ct state established,related accept;
  }
  chain input {
    type filter hook input priority 0; policy accept;
    iifname "eth0" ct state new drop;
  }
}
"""
NSD = """
server:
  ip-address: {address}
  do-ip6: no
  server-count: 1
  username: ""
  zonesdir: "/srv"
  database: ""
  pidfile: "/run/nsd.pid"
  xfrdfile: "/run/nsd.xfrd"
  xfrdir: "/run"
  zonelistfile: "/run/nsd.zonelist"
remote-control:
  control-enable: no
zone:
  name: "{zone}"
  zonefile: "zone"
"""
UNBOUND = """
server:
  interface: 127.0.0.1
  do-ip6: no
  do-daemonize: no
  num-threads: 1
  username: ""
  chroot: ""
  directory: "/srv"
  pidfile: ""
  root-hints: "/srv/hints"
  module-config: "iterator"
  qname-minimisation: yes
  use-caps-for-id: yes
remote-control:
  control-enable: no
"""
ROOT_ZONE = f"""
$TTL 86400
. SOA a.root.example. nobody.example. 1 1800 900 604800 60
. NS a.root.example.
a.root.example. A {ROOT_SERVER}
org. NS a.nic.org.
a.nic.org. A {ORG_SERVER}
"""
ORG_ZONE = f"""
$TTL 3600
org. SOA a.nic.org. nobody.nic.org. {{serial}} 1800 900 604800 60
org. NS a.nic.org.
a.nic.org. A {ORG_SERVER}
"""
ROOT_HINTS = f"""
. 3600000 NS a.root.example.
a.root.example. 3600000 A {ROOT_SERVER}
"""


class Machine:
    """One machine; `run` is a command typed there, `start` a program that the machine's end ends."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir()
        self.working_directory = HOME
        self.environment = {
            "PATH": ":".join([f"{sys.base_prefix}/bin", *_PATHS]),
            "HOME": HOME,
            "USER": "root",
            "LANG": "C.UTF-8",
        }
        self._running = ExitStack()
        memory = self.directory / "memory"
        memory.mkdir()
        self._held = Namespaces(
            ("--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation=private"),
            INIT.format(memory=shlex.quote(str(memory)), name=name, home=HOME),
        )
        self.pid = self._held.pid

    def path(self, name: str) -> Path:
        """A file of the machine, as this process sees it."""
        return Path(f"/proc/{self.pid}/root") / name.lstrip("/")

    def write(self, name: str, text: str) -> None:
        """Make a file there, in place of whatever was (a symbolic link would lead out of the machine)."""
        path = self.path(name)
        self.run(f"mkdir -p {shlex.quote(str(Path(name).parent))} && rm -f {shlex.quote(name)}")
        path.write_text(text)

    def run(self, command: str, *, fails: bool = False) -> str:
        """Run a line of bash there, in the directory where the last one ended; what it said."""
        done = self.attempt(command)
        assert (done.returncode != 0) == fails, f"{self.name}: {command}\n{done.returncode}\n{done.stdout}"
        return done.stdout

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        where = shlex.quote(self.working_directory)
        script = f"cd {where}\n{command}\nstatus=$?\npwd >/run/pwd\nexit $status\n"
        done = subprocess.run(
            [*self._inside(), "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        self.working_directory = self.path("/run/pwd").read_text().strip()
        return done

    def start(self, name: str, script: str) -> Process:
        """Start a bash script that stays; its log is `name`.log."""
        arguments = [*self._inside(), "bash", "-c", script]
        log = self.directory / f"{name}.log"
        return self._running.enter_context(Process(arguments, log, env=self.environment))

    def resolve_with(self, nameserver: str) -> None:
        self.write("/etc/resolv.conf", f"nameserver {nameserver}\n")

    def links(self) -> set[str]:
        """The names of the network's interfaces."""
        return {link["ifname"] for link in json.loads(self.run("ip -json link"))}

    def end(self) -> None:
        self._held.end()
        self._running.close()
        assert not Path(f"/proc/{self.pid}").exists()

    def _inside(self) -> list[str]:
        return list(self._held.inside("--mount", "--net", "--uts", "--pid"))


class Internet:
    """The machines, wired."""

    def __init__(self, directory: Path, running: ExitStack) -> None:
        self.ca = trustme.CA()

        def machine(name: str) -> Machine:
            made = Machine(name, directory)
            running.callback(made.end)
            return made

        self.switch = machine("switch")
        self.root, self.org = machine("root"), machine("org")
        self.public, self.elsewhere = machine("public"), machine("elsewhere")
        self.router, self.home = machine("router"), machine("home")
        self._wire()
        self._org_serial = 0
        self._nameserver(self.root, ROOT_SERVER, ".", ROOT_ZONE)
        self._nameserver(self.org, ORG_SERVER, "org", ORG_ZONE.format(serial=0))
        for resolving in (self.home, self.elsewhere):
            resolving.write("/srv/hints", ROOT_HINTS)
            resolving.write("/srv/unbound.conf", UNBOUND)
            resolving.resolve_with("127.0.0.1")
            resolving.start("unbound", "exec unbound -c /srv/unbound.conf")
            # What the world trusts; and curl is as quiet in a pipe as it is at a terminal.
            resolving.write("/etc/ssl/certs/ca-certificates.crt", self.ca.cert_pem.bytes().decode())
            resolving.write(f"{HOME}/.curlrc", "silent\nshow-error\n")
        for resolving in (self.home, self.elsewhere):
            wait_for(partial(_resolves, resolving), START_SECONDS, f"a resolver {resolving.name}")

    @property
    def machines(self) -> dict[str, Machine]:
        every = (self.switch, self.root, self.org, self.public, self.elsewhere, self.router, self.home)
        return {machine.name: machine for machine in every}

    def delegate(self, lines: Sequence[str]) -> None:
        """What a registrar does with the lines for a parent zone, org: into it, as they are."""
        self._org_serial += 1
        zone = ORG_ZONE.format(serial=self._org_serial) + "".join(f"{line}\n" for line in lines)
        self.org.write("/srv/zone", zone)
        self.org.run("kill -HUP $(cat /run/nsd.pid)")

        def is_served() -> bool:
            answer = self.elsewhere.attempt(f"dig @{ORG_SERVER} org SOA +short +norecurse +tries=1").stdout
            return f" {self._org_serial} " in answer

        wait_for(is_served, START_SECONDS, "org's new zone")

    def _wire(self) -> None:
        self.switch.run("ip link add name switch type bridge && ip link set switch up")
        addresses = {
            self.root: ROOT_SERVER,
            self.org: ORG_SERVER,
            self.public: PUBLIC,
            self.router: HOME_ROUTER,
            self.elsewhere: ELSEWHERE,
        }
        for machine, address in addresses.items():
            cable(self.switch.pid, machine.name, machine.pid, "eth0")
            self.switch.run(f"ip link set {machine.name} master switch up")
            machine.run(
                f"ip address add {address}/32 dev eth0; ip link set eth0 up; ip route add default dev eth0"
            )
        cable(self.router.pid, "eth1", self.home.pid, "eth0")
        self.router.run(f"ip address add {HOME_NETWORK}.1/24 dev eth1; ip link set eth1 up")
        self.router.run("echo 1 >/proc/sys/net/ipv4/ip_forward")
        self.router.run(f"nft -f - <<'END'\n{ROUTER}\nEND")
        self.home.run(f"ip address add {HOME_NETWORK}.2/24 dev eth0; ip link set eth0 up")
        self.home.run(f"ip route add default via {HOME_NETWORK}.1")

    def _nameserver(self, machine: Machine, address: str, zone: str, text: str) -> None:
        machine.write("/srv/zone", text)
        machine.write("/srv/nsd.conf", NSD.format(address=address, zone=zone))
        machine.start("nsd", "exec nsd -d -c /srv/nsd.conf")


@contextmanager
def internet(directory: Path) -> Iterator[Internet]:
    """All of it, while the context lasts. Skips where namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program in PROGRAMS:
        need(program)
    with ExitStack() as running:
        yield Internet(directory, running)


def _resolves(machine: Machine) -> bool:
    return "a.nic.org." in machine.attempt("dig org NS +short +tries=1 +time=2").stdout
