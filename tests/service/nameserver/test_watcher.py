"""When an address is dialled, and what follows from each answer: on a clock, with a fake network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError, NoRouteError
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from appliance.dns.names import from_text
from appliance.service.nameserver.dials import Meeting
from appliance.service.nameserver.watcher import Watcher
from appliance.service.server.watches import Watches
from appliance.tunnel.certificates import (
    SERVICE_NAME,
    CertificateRefused,
    Credential,
    Reason,
    Role,
    examine,
    issue_server,
    read_peer,
)
from appliance.tunnel.challenge import sign
from appliance.tunnel.crl import RevocationList
from appliance.tunnel.discovery import ServerAddress, read_txt
from tests.service.nameserver.bench import YEAR, A, B, Bench, C
from tests.tunnel.authority import CA, CLIENT, NAMESERVER, WALL
from tests.tunnel.lists import KeptList, revoking

WWW = "www.example.org"
PEM = CLIENT.certificate_pem()
VALUE = "v" * 43


def credential_of(server_id: str, address: ServerAddress) -> Credential:
    return issue_server(
        CA, server_id=server_id, service_name=SERVICE_NAME, addresses=[address.host], wall=WALL
    )


CREDENTIALS = {at: credential_of(name, at) for name, at in (("a", A), ("b", B), ("c", C))}


class Tcp(StringTransport):
    """A transport with TLS on it: what `dials` asks of one."""

    negotiatedProtocol = b"watch/1"

    def __init__(self, certificate: x509.Certificate | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.certificate = certificate
        self.transport = self  # below the TLS

    def getHandle(self) -> Any:
        return self

    family = None

    def get_peer_certificate(self, *, as_cryptography: bool) -> x509.Certificate | None:
        assert as_cryptography
        return self.certificate


class Connection:
    """One that was made: a nameserver's and a server's end, and whether octets still pass."""

    def __init__(self, network: Network, near: Any, watches: Watches, certificate: x509.Certificate) -> None:
        self.network = network
        self.near, self.near_transport = near, Tcp(certificate)
        far = watches.protocol_for(read_peer(NAMESERVER.certificate))
        self.far: Any = far
        self.far_transport = StringTransport()
        self.watches = watches
        self.is_open = True
        network.connections.append(self)
        self.near.makeConnection(self.near_transport)
        self.far.makeConnection(self.far_transport)
        self.near.handshakeCompleted()

    def carry(self) -> bool:
        said: tuple[bytes, bytes] = (
            self.near_transport.value(),  # type: ignore[no-untyped-call]
            self.far_transport.value(),
        )
        self.near_transport.clear()  # type: ignore[no-untyped-call]
        self.far_transport.clear()
        if said[0] and not self.near_transport.disconnecting:
            self.far.dataReceived(said[0])
        if said[1] and not self.near_transport.disconnecting:
            self.near.dataReceived(said[1])
        if self.near_transport.disconnecting or self.far_transport.disconnecting:
            self.close()
            return True
        return any(said)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.network.connections.remove(self)
            for end in (self.near, self.far):
                end.connectionLost(Failure(ConnectionDone()))


class Network(Meeting):
    """Answers dials; `up` are the servers that run, everybody else is refused, `deaf` ones do not answer."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(
            bench.clock,
            nameserver_id="ns1",
            service_name=SERVICE_NAME,
            identity=lambda: (NAMESERVER, CA.certificate),
            revocations=KeptList(CA),
            wall=lambda: WALL,
        )
        self.clock = bench.clock
        self.up: dict[ServerAddress, Watches] = {}
        self.deaf: set[ServerAddress] = set()
        self.credentials = dict(CREDENTIALS)
        self.error: Exception | None = None
        self.connections: list[Connection] = []
        self.waiting: list[Deferred[Any]] = []
        self.dials: list[tuple[float, ServerAddress]] = []
        self.boots = 0

    def start(self, address: ServerAddress) -> Watches:
        self.boots += 1
        server_id = read_peer(self.credentials[address].certificate).id
        watches = Watches(
            self.clock,
            server_id=server_id,
            boot=f"boot{self.boots}",
            addresses=[address],
            revocations=KeptList(CA),
            wall=WALL.timestamp,
        )
        self.up[address] = watches
        return watches

    def kill(self, address: ServerAddress) -> None:
        watches = self.up.pop(address)
        for connection in [one for one in self.connections if one.watches is watches]:
            connection.close()

    def connect(self, address: ServerAddress, factory: Factory) -> Deferred[Any]:
        self.dials.append((self.clock.seconds(), address))
        connected: Deferred[Any] = Deferred()
        if address in self.deaf:
            self.waiting.append(connected)
        elif self.error is not None:
            connected.errback(Failure(self.error))
        elif address not in self.up:
            connected.errback(Failure(ConnectionRefusedError()))
        else:
            self.clock.callLater(0.001, self._make, connected, address, factory)
        return connected

    def _make(self, connected: Deferred[Any], address: ServerAddress, factory: Factory) -> None:
        if connected.called:  # given up meanwhile
            return
        if address not in self.up:
            connected.errback(Failure(ConnectionRefusedError()))
            return
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        certificate = self.credentials[address].certificate
        connected.callback(protocol)
        Connection(self, protocol, self.up[address], certificate)

    def carry(self) -> None:
        for _ in range(1000):
            said = [one.carry() for one in list(self.connections) if not self._is_cut(one)]
            if not any(said):
                return

    def _is_cut(self, connection: Connection) -> bool:
        return connection.watches in [self.up.get(address) for address in self.deaf]


class World:
    """A registry, a watcher and a network on one clock."""

    def __init__(
        self, directory: Path, addresses: tuple[ServerAddress, ...] = (A, B, C), **more: Any
    ) -> None:
        self.bench = Bench(directory)
        self.clock = self.bench.clock
        self.network = Network(self.bench)
        self.watcher = Watcher(
            self.clock, self.bench.registry, addresses, self.network, jitter=lambda low, most: most, **more
        )

    def start(self) -> None:
        self.watcher.startService()
        self.run(0.1)

    def run(self, seconds: float) -> None:
        """Let time pass in steps of 50 ms, with the network carrying all along."""
        for _ in range(round(seconds / 0.05)):
            self.network.carry()
            self.clock.advance(0.05)
        self.network.carry()

    def stop(self) -> None:
        self.watcher.stopService()
        self.network.carry()
        for connection in list(self.network.connections):
            connection.close()
        self.bench.stop()

    def txt(self) -> list[ServerAddress | None]:
        return self.bench.txt()

    def standing(self) -> dict[str, str]:
        return {one["id"]: one["standing"] for one in self.bench.registry.status()["servers"]}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.stop()


@pytest.fixture
def three(world: World) -> World:
    """A world in which all three servers run and are watched."""
    for address in (A, B, C):
        world.network.start(address)
    world.start()
    world.run(1.1)
    assert world.txt() == [A, B, C]
    return world


def test_a_server_that_answers_is_published_with_its_names(world: World) -> None:
    watches = world.network.start(A)
    watches.serving(WWW, PEM)
    world.start()
    world.run(1)
    assert world.txt() == [A]
    assert world.bench.registry.knows(WWW)
    watches.serving("*.apps.example.org", PEM)
    world.run(0.1)
    assert world.bench.registry.knows("x.apps.example.org")
    world.run(60)
    assert world.standing() == {"a": "up"}
    assert len([at for _, at in world.network.dials if at == A]) == 1


def test_known_names_go_to_the_servers(world: World) -> None:
    watches = world.network.start(A)
    world.bench.registry.know("old.example.org", YEAR)
    world.start()
    assert watches.known.knows("old.example.org")
    world.bench.registry.know("new.example.org", YEAR)
    world.bench.registry.forget("old.example.org")
    world.run(0.1)
    assert watches.known.knows("new.example.org")
    assert not watches.known.knows("old.example.org")


def test_a_killed_server_is_out_in_the_next_turn(three: World) -> None:
    killed_at = three.clock.seconds()
    three.network.kill(A)
    three.clock.advance(0)
    assert three.txt() == [B, C]
    assert three.bench.lays[-1] == killed_at
    three.network.kill(B)
    three.network.kill(C)
    three.run(10)
    assert three.txt() == [C]


def test_a_killed_server_whose_port_still_answers_for_a_moment_is_out_within_a_second(three: World) -> None:
    three.network.error = NoRouteError()  # or a reset: nothing that proves anything
    three.network.kill(A)
    three.clock.advance(0)
    assert three.txt() == [A, B, C]
    three.network.error = None
    three.run(0.5)
    assert three.txt() == [B, C]


def test_a_lost_connection_to_a_server_that_lives_changes_nothing(three: World) -> None:
    lays = len(three.bench.lays)
    for connection in list(three.network.connections):
        connection.close()
    three.run(2)
    assert three.standing() == {"a": "up", "b": "up", "c": "up"}
    assert three.txt() == [A, B, C]
    assert len(three.network.connections) == 3
    assert {tuple(three.bench.zonefiles.laid[at][1]) for at in range(lays - 1, len(three.bench.lays))} == {
        tuple(three.bench.zonefiles.laid[-1][1])
    }


def test_another_boot_at_the_same_address_is_the_end_of_the_old_one(world: World, lines: list[str]) -> None:
    world.network.start(A).serving(WWW, PEM)
    world.network.start(B).serving(WWW, PEM)
    world.start()
    world.run(1.1)
    network = world.network
    old = network.up[A]
    network.start(A)
    for connection in [one for one in network.connections if one.watches is old]:
        connection.close()
    world.run(1.1)
    servers = {one["id"]: one for one in world.bench.registry.status()["servers"]}
    assert [line for line in lines if " a at " in line] == [
        "server a at 192.0.2.1:443 is up",
        "server a at 192.0.2.1:443: is dead, was up",
        "server a at 192.0.2.1:443 is up",
    ]
    assert servers["a"]["boot"] == "boot3"
    assert servers["a"]["names"] == 0
    assert servers["b"]["names"] == 1


def test_a_silent_server_is_out_within_eight_seconds(three: World) -> None:
    three.run(2.9)
    silent_at = three.clock.seconds()
    three.network.deaf.add(A)
    while three.txt() == [A, B, C]:
        three.run(0.1)
    assert three.clock.seconds() - silent_at <= 8.0
    assert three.standing()["a"] == "silent"
    three.network.deaf.add(B)
    three.run(12)
    assert three.txt() == [A, B, C]  # too few would remain
    three.network.deaf.clear()
    three.run(10)
    assert three.txt() == [A, B, C]
    assert set(three.standing().values()) == {"up"}


def test_three_dials_half_a_second_apart(three: World) -> None:
    three.network.deaf.add(A)
    three.network.dials.clear()
    connection = next(one for one in three.network.connections if one.watches is three.network.up[A])
    began = three.clock.seconds()
    connection.close()
    three.run(2.4)
    assert [round(when - began, 2) for when, at in three.network.dials if at == A] == [0.0, 0.5, 1.0]
    assert three.standing()["a"] == "up"
    three.run(0.2)
    assert three.standing()["a"] == "silent"


def test_a_nameserver_that_was_asleep_removes_nobody(three: World) -> None:
    three.clock.advance(30)  # stopped and continued
    assert three.txt() == [A, B, C]
    three.network.deaf.add(A)
    three.run(1)
    three.clock.advance(3)  # again, in the middle of the check
    three.run(0.1)
    assert three.txt() == [A, B, C]
    three.network.deaf.clear()
    three.run(5)
    assert three.txt() == [A, B, C]
    assert set(three.standing().values()) == {"up"}


def test_a_server_that_comes_back_is_found_within_five_seconds(three: World) -> None:
    three.network.kill(A)
    three.run(60)
    assert three.txt() == [B, C]
    gaps = [
        later - earlier
        for (earlier, _), (later, _) in zip(
            [dial for dial in three.network.dials if dial[1] == A][1:-1],
            [dial for dial in three.network.dials if dial[1] == A][2:],
            strict=True,
        )
    ]
    assert max(gaps) <= 4.1
    three.network.start(A)
    three.run(5)
    assert three.txt() == [A, B, C]


def test_only_a_server_with_the_address_dialled_in_its_certificate_is_published(world: World) -> None:
    world.network.credentials[A] = credential_of("a", B)
    world.network.start(A)
    world.start()
    world.run(5)
    assert world.txt() == []
    assert "is for other addresses (192.0.2.2) than 192.0.2.1" in world.watcher.status()[0]["problem"]


def test_a_server_that_calls_itself_otherwise_than_its_certificate_is_none(world: World) -> None:
    world.network.start(A).server_id = "b"
    world.start()
    world.run(5)
    assert world.txt() == []
    assert "calls itself b" in world.watcher.status()[0]["problem"]


def test_a_revoked_server_goes_out_even_as_the_last_one(tmp_path: Path) -> None:
    world = World(tmp_path, (A,))
    world.network.start(A)
    world.start()
    world.run(1.1)
    assert world.txt() == [A]
    serial = CREDENTIALS[A].certificate.serial_number
    world.network.revocations.revoked = RevocationList(1, frozenset({serial}))
    world.watcher.revoke(world.network.revocations.revoked)
    world.run(0.1)
    assert world.txt() == []
    world.run(20)
    assert world.txt() == []
    assert "was revoked" in world.watcher.status()[0]["problem"]
    world.stop()


def test_a_revoked_server_that_is_not_heard_goes_out_as_well(tmp_path: Path) -> None:
    world = World(tmp_path, (A,))
    world.network.start(A)
    world.start()
    world.network.deaf.add(A)
    world.run(20)
    assert world.txt() == [A]
    world.watcher.revoke(RevocationList(1, frozenset({CREDENTIALS[A].certificate.serial_number})))
    world.run(0.1)
    assert world.txt() == []
    world.stop()


def test_a_server_that_leaves_goes_out_at_once(three: World) -> None:
    three.network.up[A].stopService()
    three.network.carry()
    three.clock.advance(0)
    three.network.kill(A)
    assert three.txt() == [B, C]
    assert three.standing()["a"] == "left"


def test_a_watch_that_never_lasts_is_not_begun_in_a_circle(world: World) -> None:
    world.network.start(A)
    world.start()
    for _ in range(400):
        for connection in list(world.network.connections):
            connection.far_transport.write(b"no\n")
        world.run(0.05)
    assert len([at for _, at in world.network.dials if at == A]) < 60


def test_a_server_that_flaps_is_held_down_for_five_seconds_at_most(world: World) -> None:
    """Each watch ends as soon as it is there, the server lives; then the network is well again."""
    world.network.start(A)
    world.start()
    without, longest = 0.0, 0.0
    for turn in range(1200):
        for connection in list(world.network.connections) if turn < 1000 else ():
            connection.close()
        world.run(0.05)
        without = 0.0 if world.watcher.status()[0]["state"] == "watching" else without + 0.05
        longest = max(longest, without)
    assert longest <= 5.0
    assert world.watcher.status()[0]["state"] == "watching"
    assert len([at for _, at in world.network.dials if at == A]) < 300  # nor dialled in a circle
    assert world.txt() == [A]


def test_a_server_that_dies_while_it_is_held_down_is_out_soon(world: World) -> None:
    for address in (A, B):
        world.network.start(address)
    world.start()
    for _ in range(10):
        for connection in [one for one in world.network.connections if one.watches is world.network.up[A]]:
            connection.close()
        world.run(0.1)
    world.network.kill(A)
    world.run(1)
    assert world.txt() == [B]
    assert world.standing()["a"] == "dead"


def test_after_a_restart_the_first_answer_holds_until_the_check_is_over(tmp_path: Path) -> None:
    world = World(tmp_path)
    for address in (A, B, C):
        world.network.start(address)
    world.start()
    world.run(1.1)
    world.stop()
    again = World(tmp_path)
    again.network.start(B)
    again.network.deaf.add(C)
    assert again.txt() == [A, B, C]
    again.start()
    assert again.txt() == [B, C]
    assert again.standing() == {"a": "dead", "b": "up", "c": "restored"}
    again.run(3)
    assert again.txt() == [B, C]  # C would leave one of three
    assert again.standing()["c"] == "silent"
    again.stop()


def test_private_addresses_are_not_even_dialled(tmp_path: Path) -> None:
    bench = Bench(tmp_path, private_addresses=False)
    network = Network(bench)
    watcher = Watcher(bench.clock, bench.registry, [A], network)
    watcher.startService()
    assert network.dials == []
    watcher.stopService()
    bench.stop()


def test_the_server_in_this_process_is_watched_without_a_wire(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    network = Network(bench)
    watches = Watches(
        bench.clock, server_id="a", boot="1", addresses=[A], revocations=KeptList(CA), wall=WALL.timestamp
    )
    bench.registry.know("old.example.org", YEAR)
    watcher = Watcher(bench.clock, bench.registry, [A, B], network, local=watches.local())
    watcher.startService()
    bench.clock.advance(0)
    assert watches.known.knows("old.example.org")
    bench.clock.advance(1)
    assert bench.txt() == [A]
    watches.serving(WWW, PEM)
    bench.registry.know("new.example.org", YEAR)
    bench.registry.forget("old.example.org")
    bench.clock.advance(0)
    assert bench.registry.knows(WWW)
    assert watches.known.knows("new.example.org")
    assert not watches.known.knows("old.example.org")
    bench.clock.advance(3600)
    assert bench.txt() == [A]
    assert A not in [at for _, at in network.dials]
    watches.not_serving(WWW)
    watcher.stopService()
    watches.serving(WWW, PEM)
    bench.stop()


def test_challenges_are_heard_of_a_server_here_and_of_others_and_again_on_the_next_watch(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    network = Network(bench)
    own = Watches(
        bench.clock, server_id="a", boot="1", addresses=[A], revocations=KeptList(CA), wall=WALL.timestamp
    )
    heard: list[tuple[object, ...]] = []
    watcher = Watcher(bench.clock, bench.registry, [A, B], network, local=own.local())
    watcher.on_challenges(lambda *said: heard.append(said), lambda *over: heard.append(("over", *over)))
    other = network.start(B)
    client = read_peer(CLIENT.certificate)
    signature = sign(CLIENT.key, WWW, VALUE)
    other.challenges.say(client, WWW, VALUE, 600, signature)
    watcher.startService()

    def run() -> list[tuple[object, ...]]:
        for _ in range(4):
            bench.clock.advance(0.5)
            network.carry()
        found, heard[:] = heard[:], []
        return found

    (said,) = run()
    assert said[:3] == ("b", WWW, VALUE)
    own.challenges.say(client, WWW, VALUE, 30, signature)
    own.challenges.withdraw(client, WWW, VALUE)
    other.challenges.withdraw(client, WWW, VALUE)
    assert set(run()) == {("a", WWW, VALUE, 30), ("over", "a", WWW, VALUE), ("over", "b", WWW, VALUE)}
    other.challenges.say(client, WWW, VALUE, 600, signature)
    run()
    for connection in list(network.connections):
        connection.close()
    (again,) = run()
    assert again[:3] == ("b", WWW, VALUE)
    own.challenges.stop()
    other.challenges.stop()
    watcher.stopService()
    for connection in list(network.connections):
        connection.close()
    bench.stop()


def test_the_examination_is_the_tunnels(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    meeting = Network(bench)
    with pytest.raises(CertificateRefused) as refused:
        meeting.server_at(A, CLIENT.certificate)
    assert refused.value.reason is Reason.WRONG_USAGE
    with pytest.raises(CertificateRefused):
        meeting.server_at(A, None)
    peer = examine(CREDENTIALS[A].certificate, role=Role.SERVER, ca=CA.certificate, revoked=None, wall=WALL)
    assert meeting.server_at(A, CREDENTIALS[A].certificate) == peer
    bench.stop()


def test_a_server_that_drains_is_out_and_hears_it(three: World) -> None:
    said: list[bool | None] = []
    watches = three.network.up[B]
    assert len(watches.drain(lambda watch, held: said.append(held))) == 1
    three.run(0.2)
    assert three.txt() == [A, C]
    assert said == [False]
    assert three.standing()["b"] == "draining"
    lays = len(three.bench.lays)
    three.network.connections[[one.watches for one in three.network.connections].index(watches)].close()
    assert said == [False, None]
    three.run(1)  # the next watch finds it draining, and it is never in again
    assert three.txt() == [A, C]
    assert said == [False, None, False]
    assert B not in {at for _, laid in three.bench.zonefiles.laid[lays:] for at in _listed(laid)}
    watches.stopService()
    three.run(0.1)
    assert three.standing()["b"] == "left"


def _listed(laid: Any) -> list[ServerAddress | None]:
    rrset = laid.get((from_text("demo.test"), 16))
    return [] if rrset is None else [read_txt(rdata[1:].decode()) for rdata in rrset.rdatas]


def test_the_last_server_that_drains_stays(world: World) -> None:
    watches = world.network.start(A)
    world.start()
    world.run(1)
    said: list[bool | None] = []
    watches.drain(lambda watch, held: said.append(held))
    world.run(0.2)
    assert world.txt() == [A]
    assert said == [True]


def test_a_server_that_goes_on_under_a_revoked_certificate_is_not_believed(three: World) -> None:
    three.network.up[A].serving(WWW, PEM)
    three.run(0.1)
    revoked = revoking(CA, [CLIENT.certificate.serial_number], 2, WALL)
    three.network.revocations.revoked = revoked
    names = [{one["id"]: one["names"] for one in three.bench.registry.status()["servers"]}["a"]]
    three.watcher.revoke(revoked)
    names.append({one["id"]: one["names"] for one in three.bench.registry.status()["servers"]}["a"])
    assert names == [1, 0]
    assert three.standing() == dict.fromkeys("abc", "up")


def test_a_revocation_list_goes_from_one_server_to_the_others_and_takes_one_out(three: World) -> None:
    three.network.revocations.tell = three.watcher.revoke  # type: ignore[attr-defined]
    revoked = revoking(CA, [CREDENTIALS[C].certificate.serial_number], 2, WALL)
    first, second = (three.network.up[at] for at in (A, B))
    first.revocations.take(revoked.pem)
    first.revoke(revoked)
    three.run(0.3)
    assert three.txt() == [A, B]
    assert second.revocations.revoked == revoked
    assert "was revoked" in three.watcher.status()[2]["problem"]
    three.network.kill(B)
    later = three.network.start(B)  # another one, that was away and has none
    three.run(5)
    assert later.revocations.revoked == revoked
