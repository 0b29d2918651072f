"""The fleet on its hosts: two nameservers, three tunnel servers, six clients with an origin each, a resolver.

Hides how they are enrolled and wired. Every program is the real one. Names that several clients serve, and
names of one client each; and, where it is asked for, thousands of names more, of many clients in one process.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import trustme

from appliance.service.control import SOCKET_NAME
from tests.end_to_end.namespaces import thread_in_network
from tests.end_to_end.programs import Process, need, wait_for
from tests.end_to_end.site import BIN, ZONE, Appliance, Client, Nginx, Ports, tls_context
from tests.lab.wires import Host, Wires

NAMESERVERS = ("ns1", "ns2")
SERVERS = ("s1", "s2", "s3")
SERVED: Mapping[str, Sequence[str]] = {
    "c1": ("www", "one"),
    "c2": ("www",),
    "c3": ("www", "app"),
    "c4": ("app",),
    "c5": ("app",),
    "c6": ("six",),
}
"""Which labels each client serves."""
NAMES = tuple(f"{label}.{ZONE}" for label in dict.fromkeys(sum(map(tuple, SERVED.values()), ())))
SHARED = (f"www.{ZONE}", f"app.{ZONE}")
"""Served by three clients each."""
NAMES_OF_A_CLIENT = 250
"""Of the many: as many as a certificate may hold, nearly."""
LISTED = True
"""Whether the nameserver's settings list the tunnel servers; else they introduce themselves."""
UNLIMITED = "rate_limit = 0"
"""Everybody here asks from one address."""
START_SECONDS = 30.0
WHOLE_SECONDS = 45.0
ANSWER_SECONDS = 2.0
MANY_SAMPLE = 50
"""One of so many is asked for before the fleet counts as whole."""
LOOK_SECONDS = 0.3
"""Between two looks at what costs a server a turn to say."""

ZONE_TEXT = """$ORIGIN {zone}.
$TTL 300
@ SOA ns1 hostmaster 1 7200 900 1209600 15
 NS ns1
 NS ns2
ns1 A {ns1}
ns2 A {ns2}
"""
UNBOUND = """
server:
  interface: {address}
  access-control: 0.0.0.0/0 allow
  do-ip6: no
  do-daemonize: no
  num-threads: 1
  username: ""
  chroot: ""
  directory: "{directory}"
  pidfile: ""
  module-config: "iterator"
  infra-keep-probing: yes
  local-zone: "." refuse
  local-zone: "{zone}." transparent
stub-zone:
  name: "{zone}"
  stub-addr: {ns1}
  stub-addr: {ns2}
remote-control:
  control-enable: no
"""


class Lab:
    """All of it; `running` ends it. `many` names more are served by clients that share a process."""

    def __init__(self, directory: Path, running: ExitStack, *, many: int = 0) -> None:
        self.directory = directory
        self._running = running
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(directory / "ca.pem")
        self.context = tls_context(self.ca)
        self.wires = Wires(directory, running)
        self.hosts: dict[str, Host] = {}
        for name in (*NAMESERVERS, *SERVERS, *SERVED, "resolver", "visitors"):
            self.hosts[name] = self.wires.host(name, slow=name == "s3")
        if many:
            self.hosts["many"] = self.wires.host("many")
        self.nameservers: dict[str, Appliance] = {}
        self.servers: dict[str, Appliance] = {}
        self.clients: dict[str, Client] = {}
        self.origins: dict[str, Nginx] = {}
        self.many_names = [f"n{number}.many.{ZONE}" for number in range(many)]
        self._many: Process | None = None
        self._ports = Ports(of_the_internet=True)

    # Making it

    def start(self) -> None:
        """Until every client is joined to every server, and all of it is in the records."""
        self._start_primary()
        self._start_others()
        self._start_resolver()
        for client, labels in SERVED.items():
            self._join(client, labels)
        for started in self.clients.values():
            assert started.process is not None
            for server in SERVERS:
                started.process.says(f"joined server {server} ", START_SECONDS)
        if self.many_names:
            self._join_many()
        self.be_whole()
        # Asked at their source first: the resolver would remember that a name is not there yet.
        with thread_in_network(self.hosts["visitors"].pid):
            for nameserver in NAMESERVERS:
                here = partial(self._lists_all, nameserver)
                wait_for(here, START_SECONDS, f"all in the records of {nameserver}", every=LOOK_SECONDS)

    def address(self, name: str) -> str:
        return self.hosts[name].address

    @property
    def appliances(self) -> dict[str, Appliance]:
        return {**self.nameservers, **self.servers}

    def _start_primary(self) -> None:
        listed = [self.address(server) for server in SERVERS] if LISTED else []
        primary = self._appliance("ns1", servers=listed, server=False)
        where = {name: self.address(name) for name in NAMESERVERS}
        (primary.directory / "zones" / f"{ZONE}.zone").write_text(ZONE_TEXT.format(zone=ZONE, **where))
        settings = primary.directory / "appliance.toml"
        settings.write_text(settings.read_text().replace("[nameserver]", f"[nameserver]\n{UNLIMITED}"))
        self.nameservers["ns1"] = primary
        primary.start(START_SECONDS)

    def _start_others(self) -> None:
        primary = self.nameservers["ns1"]
        for server in SERVERS:
            enrolment = self.directory / f"{server}.toml"
            primary.command("enroll", server, self.address(server), "--output", enrolment)
            self.servers[server] = self._appliance(server, enrolment=enrolment)
        enrolment = self.directory / "ns2.toml"
        which = ("enroll", "--nameserver", "--no-server", "ns2", self.address("ns2"), "--output", enrolment)
        primary.command(*which)
        second = self.nameservers["ns2"] = self._appliance("ns2", enrolment=enrolment, server=False)
        settings = second.directory / "appliance.toml"
        listen = f'listen = ["{self.address("ns2")}:53"]'
        settings.write_text(
            settings.read_text() + f'[nameserver]\nenrolment = "{enrolment}"\n{listen}\n{UNLIMITED}\n'
        )
        others = (*self.servers.values(), second)
        for appliance in others:
            appliance.start(waits=False)
        for appliance in others:
            assert appliance.process is not None
            appliance.process.says("ready", START_SECONDS)

    def _appliance(self, name: str, **how: Any) -> Appliance:
        turns = str(Path(__file__).with_name("turns.py"))
        program = (*self.hosts[name].inside, sys.executable, turns, str(self.directory / f"{name}.turns"))
        directory, address = self.directory / name, self.address(name)
        made = Appliance(directory, self._ports, address, program=program, **how)
        self._running.callback(made.kill)
        return made

    def _start_resolver(self) -> None:
        host = self.hosts["resolver"]
        where = {name: self.address(name) for name in NAMESERVERS}
        settings = UNBOUND.format(address=host.address, directory=self.directory, zone=ZONE, **where)
        path = self.directory / "unbound.conf"
        path.write_text(settings)
        command = [*host.inside, need("unbound"), "-c", str(path)]
        self._running.enter_context(Process(command, self.directory / "unbound.log"))

    def _join(self, client: str, labels: Sequence[str]) -> None:
        host = self.hosts[client]
        names = [f"{label}.{ZONE}" for label in labels]
        origin = Nginx(self.directory / f"o-{client}", names, self.ca, says=client, inside=host.inside)
        self.origins[client] = origin
        self._running.callback(origin.kill)
        origin.start()
        invitation = self.directory / f"{client}.toml"
        self._invite(invitation, client, names)
        made = self.clients[client] = Client(
            self.directory / client,
            invitation,
            f"{self.address('resolver')}:53",
            *("--tls-origin", f"127.0.0.1:{origin.tls}"),
            program=(*host.inside, BIN / "twistd"),
        )
        self._running.callback(made.kill)
        made.start()

    def _join_many(self) -> None:
        """Their origin is nobody: they are there to be served, and published."""
        directory = self.directory / "many"
        directory.mkdir()
        for first in range(0, len(self.many_names), NAMES_OF_A_CLIENT):
            names = self.many_names[first : first + NAMES_OF_A_CLIENT]
            self._invite(directory / f"{first}.toml", f"many-{first}", names)
        program = Path(__file__).with_name("many_clients.py")
        words = [str(directory), f"{self.address('resolver')}:53", "127.0.0.1:9"]
        command = [*self.hosts["many"].inside, sys.executable, str(program), *words]
        self._many = self._running.enter_context(Process(command, self.directory / "many.log"))

    def _invite(self, path: Path, client: str, names: Sequence[str]) -> None:
        made = asked(self.nameservers["ns1"], "invite", names=list(names), client=client)
        path.write_text(made["invitation"])

    # Looking at it

    def sessions(self, server: str) -> list[dict[str, Any]]:
        """The sessions of clients there, by its own status."""
        found: list[dict[str, Any]] = asked(self.servers[server], "status")["sessions"]
        return found

    def names_at(self, server: str) -> set[str]:
        """The names with a session there, by its own status; none where it does not answer."""
        try:
            return {name for session in self.sessions(server) for name in session["names"]}
        except OSError:
            return set()

    def is_whole(self) -> bool:
        """Whether every client serves all its names at every server."""
        names = len(NAMES) + len(self.many_names)
        clients = len(SERVED) + -(-len(self.many_names) // NAMES_OF_A_CLIENT)
        for server in SERVERS:
            try:
                sessions = self.sessions(server)
            except OSError:
                return False
            if len(sessions) != clients or len({n for one in sessions for n in one["names"]}) != names:
                return False
        return True

    def be_whole(self, seconds: float = WHOLE_SECONDS) -> None:
        """Wait until it is."""
        wait_for(self.is_whole, seconds, "every client at every server", every=LOOK_SECONDS)

    def _lists_all(self, nameserver: str) -> bool:
        everywhere = {self.address(server) for server in SERVERS}
        # The last of a client is registered last, so all of his are there when it is.
        last = self.many_names[NAMES_OF_A_CLIENT - 1 :: NAMES_OF_A_CLIENT]
        for name in (*NAMES, *last, *self.many_names[::MANY_SAMPLE]):
            query = dns.message.make_query(name, "A")
            try:
                answer = dns.query.udp(query, self.address(nameserver), timeout=ANSWER_SECONDS)
            except dns.exception.Timeout:
                return False
            if {rdata.to_text() for rrset in answer.answer for rdata in rrset} != everywhere:
                return False
        return True

    def turns(self, name: str, since: float) -> list[tuple[float, float, float]]:
        """The long turns of an appliance's reactor since then: when, how long, and how long it only waited
        for a processor."""
        path = self.directory / f"{name}.turns"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [tuple(map(float, line.split())) for line in lines]
        return [(when, seconds, waited) for when, seconds, waited in found if when - seconds >= since]


def asked(appliance: Appliance, command: str, **what: Any) -> dict[str, Any]:
    """What a command's socket answers: quicker than a process for the command. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(20)
        asking.connect(str(appliance.directory / "state" / SOCKET_NAME))
        asking.sendall(json.dumps({"command": command, **what}).encode() + b"\n")
        with asking.makefile("rb") as answers:
            answer: dict[str, Any] = json.loads(answers.readline() or b'{"error": "it ended"}')
    if "error" in answer:
        raise OSError(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result
