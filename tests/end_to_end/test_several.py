"""Several servers and several clients of one name, while some of them die: nobody who visits may notice."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dns.rdatatype
import pytest
import trustme

from tests.end_to_end.programs import free_port, wait_for
from tests.end_to_end.site import ZONE, Appliance, Client, Nginx, Ports, tls_context
from tests.end_to_end.visitors import Crowd, Losses, fetch

NAME = f"www.{ZONE}"
S1, S2 = "127.0.0.1", "127.0.0.2"
OUT_SECONDS = 1.0
"""From the crash of a server until no answer of the nameserver names it."""
FAILOVER_SECONDS = 1.0
"""The server's patience with a client that says nothing, while another one is left."""
AROUND_SECONDS = 1.5
"""What everything around that may take on a small machine that runs other tests as well."""
BACK_SECONDS = 20.0
"""A client's longest pause before it dials again."""
TTL_SECONDS = 15
KILLS = 20
RELOOK_SECONDS = TTL_SECONDS * 1.25
"""A client looks servers up again at the TTL, and up to a quarter later."""


def measured(name: str, value: float, unit: str) -> None:
    print(f"measured {name} {value:.3f} {unit}")


def hosts(appliance: Appliance, name: str = NAME) -> set[str] | None:
    """The A set; None when there was no answer."""
    answer = appliance.answer(name, "A")
    if answer is None:
        return None
    return {rdata.to_text() for rrset in answer.answer for rdata in rrset}


def texts(appliance: Appliance, name: str = NAME) -> set[str] | None:
    """The addresses in the TXT set; None when there was no answer."""
    answer = appliance.answer(name, "TXT")
    if answer is None:
        return None
    found = [rdata.to_text().strip('"') for rrset in answer.answer for rdata in rrset]
    assert all(text.startswith("r=superprotocol;ip=") for text in found), found
    return {text.split(";")[1].removeprefix("ip=") for text in found}


def lists(appliance: Appliance, *addresses: str) -> bool:
    """Whether A and TXT hold these addresses and no others."""
    return hosts(appliance) == set(addresses) == texts(appliance)


def serial(appliance: Appliance) -> int | None:
    answer = appliance.answer(ZONE, "SOA")
    if answer is None or not answer.answer:
        return None
    assert answer.answer[0].rdtype == dns.rdatatype.SOA
    number: int = answer.answer[0][0].serial
    return number


def sessions(appliance: Appliance) -> list[dict[str, Any]]:
    """The sessions of clients at a server, by its own status."""
    found: list[dict[str, Any]] = json.loads(appliance.command("status", "--json"))["sessions"]
    return found


class Fleet:
    """s1 (nameserver, CA, server), s2 (server), and three clients of one name with an origin each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()
        self.context = tls_context(self.ca)
        self.ports = Ports()
        self.s1 = Appliance(directory / "s1", self.ports, S1, servers=[S2])
        self.s2: Appliance
        self.origins = [Nginx(directory / f"origin-{one}", [NAME], self.ca, says=one) for one in "abc"]
        self.clients: dict[str, Client] = {}

    def start(self) -> None:
        for origin in self.origins:
            origin.start()
        self.s1.start()
        enrolment = self.directory / "s2-enrolment.toml"
        self.s1.command("enroll", "s2", f"{S2}:{self.ports.tls}", "--output", enrolment)
        self.s2 = Appliance(self.directory / "s2", self.ports, S2, enrolment=enrolment)
        self.s2.start()
        # a and b are two instances of one grant, c has one of its own
        shared, own = self.s1.invite(NAME, client="home"), self.s1.invite(NAME, client="other")
        for origin, invitation in zip(self.origins, (shared, shared, own), strict=True):
            self.clients[origin.says] = self.client(origin.says, invitation, f"127.0.0.1:{origin.tls}")
            self.clients[origin.says].start()
        for client in self.clients.values():
            assert client.process is not None
            client.process.says("joined server s1 ")
            client.process.says("joined server s2 ")
        wait_for(lambda: lists(self.s1, S1, S2), 10, "the records of both servers")

    def client(self, called: str, invitation: Path, origin: str) -> Client:
        return Client(self.directory / called, invitation, self.s1, "--tls-origin", origin)

    def crowd(self, *addresses: str, threads: int = 3) -> Crowd:
        return Crowd(self.context, NAME, addresses or (S1, S2), self.ports.tls, threads=threads)

    def fetch(self, address: str, path: str = "/who") -> str:
        return fetch(self.context, address, self.ports.tls, NAME, path)

    def whole(self) -> bool:
        """Whether every client is linked to both servers."""
        return len(sessions(self.s1)) == len(sessions(self.s2)) == len(self.clients)

    def kill(self) -> None:
        for client in self.clients.values():
            client.kill()
        if hasattr(self, "s2"):
            self.s2.kill()
        self.s1.kill()
        for origin in self.origins:
            origin.kill()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test of the fleet finds and leaves it whole."""
    yield
    if "fleet" in request.fixturenames:
        fleet: Fleet = request.getfixturevalue("fleet")
        wait_for(fleet.whole, BACK_SECONDS + 5, "every client at both servers")


def joined_names(appliance: Appliance) -> set[tuple[str, ...]]:
    return {tuple(session["names"]) for session in sessions(appliance)}


def test_both_servers_are_listed_and_have_all_clients(fleet: Fleet) -> None:
    both = [f'"r=superprotocol;ip={address};port={fleet.ports.tls}"' for address in (S1, S2)]
    assert fleet.s1.dig(NAME, "TXT") == both
    assert fleet.s1.dig(NAME, "A", "+tcp") == [S1, S2]
    assert fleet.s1.dig(ZONE, "TXT") == both
    for appliance in (fleet.s1, fleet.s2):
        found = sessions(appliance)
        assert sorted(session["client"] for session in found) == ["home", "home", "other"]
        assert len({session["instance"] for session in found}) == 3
        assert joined_names(appliance) == {(NAME,)}


@pytest.mark.parametrize("address", [S1, S2])
def test_round_robin_is_even(fleet: Fleet, address: str) -> None:
    counted = Counter(fleet.fetch(address).split()[0] for _ in range(31))
    assert sorted(counted.values()) == [10, 10, 11], counted
    with ThreadPoolExecutor(6) as pool:  # at once, too: it is counted when they come, not when they are done
        counted = Counter(body.split()[0] for body in pool.map(fleet.fetch, [address] * 30))
    assert sum(counted.values()) == 30
    assert max(counted.values()) - min(counted.values()) <= 1, counted


def slowest(fleet: Fleet, count: int) -> float:
    """So many visitors at once at each server, all of whom get a page: the seconds of the slowest."""

    def visit(address: str) -> float:
        began = time.monotonic()
        assert fleet.fetch(address).split()[0] in "abc"
        return time.monotonic() - began

    with ThreadPoolExecutor(8) as pool:
        return max(pool.map(visit, [S1, S2] * count))


@contextlib.contextmanager
def another_client(fleet: Fleet, called: str, origin: str) -> Iterator[Client]:
    """A fourth client of the name, for a while."""
    client = fleet.client(called, fleet.s1.invite(NAME, client=called), origin)
    try:
        client.start("s1", "s2")
        yield client
    finally:
        client.kill()


def test_an_origin_that_refuses(fleet: Fleet) -> None:
    with another_client(fleet, "refusing", f"127.0.0.1:{free_port('tcp')}") as client:
        seconds = slowest(fleet, 8)
        measured("failover_origin_refuses", seconds, "s")
        assert seconds < AROUND_SECONDS
        assert client.process is not None
        client.process.says("refused")
        assert client.process.output.count("refused") == 1


def test_an_origin_that_is_silent(fleet: Fleet) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        another_client(fleet, "silent", f"127.0.0.1:{silent.getsockname()[1]}"),
    ):
        seconds = slowest(fleet, 8)
    measured("failover_origin_silent", seconds, "s")
    assert FAILOVER_SECONDS <= seconds < FAILOVER_SECONDS + AROUND_SECONDS


def test_a_client_that_is_stopped(fleet: Fleet) -> None:
    """Its kernel still takes what is sent to it."""
    process = fleet.clients["c"].process
    assert process is not None
    process.tell(signal.SIGSTOP)
    try:
        seconds = slowest(fleet, 8)
    finally:
        process.tell(signal.SIGCONT)
    measured("failover_client_stopped", seconds, "s")
    assert seconds < FAILOVER_SECONDS + AROUND_SECONDS
    wait_for(lambda: "c" in {fleet.fetch(S1).split()[0] for _ in range(3)}, 5, "the client after SIGCONT")


def kill_a_client(fleet: Fleet, called: str) -> Losses:
    """kill -9 while visitors come, and start it again."""
    client = fleet.clients[called]
    with fleet.crowd() as crowd:
        wait_for(lambda: called in {visit.origin for visit in crowd.visits}, 5, f"a page from {called}")
        client.kill()
        killed = time.monotonic()
        wait_for(lambda: len(crowd.since(killed)) > 60, 15, "60 visits after the kill")
        assert called not in {visit.origin for visit in crowd.since(killed + 0.5)}
        client.start("s1", "s2")
        again = time.monotonic()
        wait_for(lambda: called in {visit.origin for visit in crowd.since(again)}, 5, f"{called} again")
    return crowd.check(fleet.origins)


def test_a_client_is_killed(fleet: Fleet) -> None:
    print(f"measured client_killed_lost_without_retry {kill_a_client(fleet, 'a')}")


def out_of_the_records(fleet: Fleet, address: str, kill: Callable[[], None]) -> float:
    """Kill, and ask until neither A nor TXT has the address: the seconds from the kill's begin."""
    began = time.monotonic()
    kill()
    wait_for(lambda: lists(fleet.s1, S1), 5, f"{address} out of A and TXT")
    return time.monotonic() - began


def kill_a_server(fleet: Fleet) -> tuple[float, float, Losses]:
    """kill -9 of s2 while visitors come, and start it again.

    Seconds until it was out of the records, and until it was back with all clients. The visitors go on
    coming to both addresses all the time, as if the DNS had said nothing.
    """
    with fleet.crowd() as crowd:
        wait_for(lambda: len(crowd.visits) > 30, 10, "visitors")
        out = out_of_the_records(fleet, S2, fleet.s2.kill)
        killed = time.monotonic()
        wait_for(lambda: len(crowd.since(killed)) > 30, 10, "visitors after the kill")
        assert hosts(fleet.s1) == {S1}
        fleet.s2.start()
        began = time.monotonic()
        wait_for(lambda: lists(fleet.s1, S1, S2), 10, "s2 in the records again")
        wait_for(fleet.whole, BACK_SECONDS + 5, "every client at s2 again")
        back = time.monotonic() - began
    return out, back, crowd.check(fleet.origins)


def test_a_server_is_killed(fleet: Fleet) -> None:
    assert fleet.s1.process is not None
    before = {session["instance"]: session["address"] for session in sessions(fleet.s1)}
    output = len(fleet.s1.process.output)
    with (
        socket.create_connection((S1, fleet.ports.tls), timeout=20) as raw,
        fleet.context.wrap_socket(raw, server_hostname=NAME) as held,
    ):

        def ask_on_the_same_connection() -> None:
            held.sendall(f"GET /who HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert b" 200 " in held.recv(4096)

        ask_on_the_same_connection()
        out, back, losses = kill_a_server(fleet)
        ask_on_the_same_connection()
    measured("server_killed_out_of_the_records", out, "s")
    measured("server_back_with_all_clients", back, "s")
    print(f"measured server_killed_lost_without_retry {losses}")
    assert out < OUT_SECONDS
    assert {session["instance"]: session["address"] for session in sessions(fleet.s1)} == before
    assert "link of" not in fleet.s1.process.output[output:]  # … ended
    for client in fleet.clients.values():
        assert client.process is not None
        assert "left server s1" not in client.process.output
        assert client.process.output.count("left server s2") == 1
    assert fleet.fetch(S2).split()[0] in "abc"


@pytest.mark.slow
def test_twenty_kills_of_clients(fleet: Fleet) -> None:
    losses = sum((kill_a_client(fleet, "abc"[turn % 3]) for turn in range(KILLS)), Losses(0, 0, 0))
    print(f"measured client_killed_{KILLS}_times_lost_without_retry {losses}")


@pytest.mark.slow
def test_twenty_kills_of_a_server(fleet: Fleet) -> None:
    counted = [kill_a_server(fleet) for _ in range(KILLS)]
    outs, backs = sorted(one[0] for one in counted), sorted(one[1] for one in counted)
    measured(f"server_killed_{KILLS}_times_out_of_the_records_median", outs[KILLS // 2], "s")
    measured(f"server_killed_{KILLS}_times_out_of_the_records_worst", outs[-1], "s")
    measured(f"server_back_{KILLS}_times_worst", backs[-1], "s")
    losses = sum((one[2] for one in counted), Losses(0, 0, 0))
    print(f"measured server_killed_{KILLS}_times_lost_without_retry {losses}")
    assert outs[-1] < OUT_SECONDS


# A nameserver apart from the servers


class Apart:
    """ns (nameserver with the CA), t1 and t2 (servers only), one client."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()
        self.context = tls_context(self.ca)
        self.ports = Ports()
        self.ns = Appliance(directory / "ns", self.ports, "127.0.0.3", servers=[S1, S2], server=False)
        self.origin = Nginx(directory / "origin", [NAME], self.ca)
        self.servers: dict[str, Appliance] = {}
        self.client: Client

    def start(self) -> None:
        self.origin.start()
        self.ns.start()
        for called, address in (("t1", S1), ("t2", S2)):
            enrolment = self.directory / f"{called}-enrolment.toml"
            self.ns.command("enroll", called, f"{address}:{self.ports.tls}", "--output", enrolment)
            self.servers[called] = Appliance(
                self.directory / called, self.ports, address, enrolment=enrolment
            )
        self.servers["t1"].start()
        invitation = self.ns.invite(NAME)
        text = invitation.read_text()
        # The client is to learn of t2 by TXT, not from its invitation.
        assert f', "{S2}:{self.ports.tls}"' in text
        invitation.write_text(text.replace(f', "{S2}:{self.ports.tls}"', ""))
        self.client = Client(
            self.directory / "client", invitation, self.ns, "--tls-origin", f"127.0.0.1:{self.origin.tls}"
        )
        wait_for(lambda: lists(self.ns, S1), 10, "t1 in the records")

    def page(self, address: str) -> bool:
        return fetch(self.context, address, self.ports.tls, NAME, "/who").startswith("origin ")

    def heard(self, found: set[str] | None) -> bool:
        if found is not None:
            self.first = found
        return found is not None

    def restart_nameserver(self) -> set[str]:
        """kill -9 and start again; the TXT set of the first answer of all."""
        self.ns.kill()
        assert texts(self.ns) is None
        process = self.ns.start(waits=False)
        wait_for(lambda: self.heard(texts(self.ns)), 10, "an answer after the restart")
        process.says("ready")
        return self.first

    def kill(self) -> None:
        if hasattr(self, "client"):
            self.client.kill()
        for server in self.servers.values():
            server.kill()
        self.ns.kill()
        self.origin.kill()


class Watching:
    """Asks for A and SOA all the time: no answer may be empty, no serial lower than one before."""

    def __init__(self, appliance: Appliance) -> None:
        self.sets: list[set[str]] = []
        self.serials: list[int] = []
        self._appliance = appliance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._over.wait(0.02):
            found, number = hosts(self._appliance), serial(self._appliance)
            if found is not None:
                self.sets.append(found)
            if number is not None:
                self.serials.append(number)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Apart]:
    made = Apart(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.mark.slow
def test_the_nameserver_and_all_servers_die_in_turn(apart: Apart) -> None:
    t1, t2 = apart.servers.values()
    process = apart.client.start("t1")
    wait_for(lambda: apart.page(S1), 5, "a page")
    with Watching(apart.ns) as watching:
        # A new server: in the records when it has been met, and joined by the client at its next look-up.
        began = time.monotonic()
        t2.start()
        wait_for(lambda: texts(apart.ns) == {S1, S2}, 10, "t2 in the TXT records")
        assert hosts(apart.ns) == {S1}  # where the name has a session
        measured("new_server_in_the_records", time.monotonic() - began, "s")

        # The nameserver restarts while t2 says nothing: first it says what it said last.
        assert t2.process is not None
        t2.process.tell(signal.SIGSTOP)
        assert apart.restart_nameserver() == {S1, S2}
        wait_for(lambda: texts(apart.ns) == {S1}, 10, "the silent t2 out of the records")
        assert apart.page(S1)
        t2.process.tell(signal.SIGCONT)
        wait_for(lambda: texts(apart.ns) == {S1, S2}, 10, "t2 in the records again")
        process.says("joined server t2 ", RELOOK_SECONDS + BACK_SECONDS)
        measured("new_server_joined_by_clients", time.monotonic() - began, "s")
        wait_for(lambda: lists(apart.ns, S1, S2), 5, "t2 in the A records")
        assert apart.page(S2)
        assert "left server" not in process.output

        # The resolver dies: nothing changes for joined servers, even when there is something to look up.
        apart.ns.kill()
        assert apart.page(S1)
        t2.kill()
        process.says("servers already joined stay joined")
        assert apart.page(S1)
        assert "left server t1" not in process.output

        # The nameserver comes back, and finds nobody where t2 was.
        assert S1 in apart.restart_nameserver()
        wait_for(lambda: lists(apart.ns, S1), 10, "t2 out of the records")
        assert apart.page(S1)

        # The last server dies, and stays in the records, over a restart as well.
        t1.kill()
        process.says("left server t1")
        assert apart.restart_nameserver() == {S1}
        assert lists(apart.ns, S1)

        # All come back.
        t1.start()
        t2.start()
        wait_for(lambda: texts(apart.ns) == {S1, S2}, 15, "both servers in the records again")
        wait_for(lambda: process.output.count("joined server t1 ") == 2, BACK_SECONDS, "t1 joined again")
        assert apart.page(S1)
    assert set() not in watching.sets
    assert watching.serials == sorted(watching.serials)
    assert watching.serials[0] < watching.serials[-1]
