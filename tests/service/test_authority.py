from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from appliance.service.authority import Authority, AuthorityRefused, Identity, NotIssued
from appliance.service.store import Store
from appliance.service.wholefile import replace_whole
from appliance.tunnel.certificates import (
    CertificateRefused,
    Reason,
    Role,
    examine,
    issue_server,
    make_authority,
    read_credential,
)
from appliance.tunnel.crl import CrlRefused, RevocationList, make_crl, read_crl
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import (
    Enrolment,
    Following,
    Introduction,
    NameserverKey,
    read_enrolment,
    read_invitation,
)

WALL = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
BOTH = Identity("s1", "ns-s1", (ServerAddress("203.0.113.5", 8443), ServerAddress("2001:db8::5")))


class Machine:
    """A state directory with a clock; `authority()` is what starts on it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.wall = WALL
        self.store = Store(state / "appliance.sqlite", Clock())
        self.store.open()
        self.revocations: list[RevocationList] = []
        self.introduction: Introduction | None = None

    def authority(self, identity: Identity = BOTH, days: int = 365) -> Authority:
        def discovery(names: Sequence[str]) -> str:
            return names[0].partition(".")[2]

        made = Authority(
            self.state,
            self.store,
            identity,
            days=days,
            wall=lambda: self.wall,
            discovery=discovery,
            servers=lambda: [ServerAddress("203.0.113.5")],
            introduction=lambda server_id, serial: self.introduction,
        )
        made.open()
        made.on_revoked(self.revocations.append)
        return made


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "state")
    yield made
    made.store.close()


def now(deferred: Deferred[Any]) -> Any:
    """The result of a Deferred that has fired: the store writes at once on a Clock."""
    results: list[Any] = []
    deferred.addCallback(results.append)
    assert results
    return results[0]


def failed(deferred: Deferred[Any]) -> BaseException:
    """What a Deferred has failed with."""
    failures: list[Failure] = []
    deferred.addErrback(failures.append)
    (failure,) = failures
    assert failure.value is not None
    return failure.value


def test_first_start(machine: Machine) -> None:
    authority = machine.authority()
    assert stat.S_IMODE(machine.state.stat().st_mode) == 0o700
    for name in ("ca.pem", "server.pem", "nameserver.pem"):
        assert stat.S_IMODE((machine.state / name).stat().st_mode) == 0o600
    assert not list(machine.state.glob("*.new"))
    assert authority.issues
    assert authority.server is not None
    assert authority.nameserver is not None
    server = examine(
        authority.server.certificate, role=Role.SERVER, ca=authority.ca, revoked=authority.revoked, wall=WALL
    )
    assert (server.id, set(server.addresses)) == ("s1", {"203.0.113.5", "2001:db8::5"})
    assert authority.service_name in server.names
    nameserver = examine(
        authority.nameserver.certificate, role=Role.NAMESERVER, ca=authority.ca, revoked=None, wall=WALL
    )
    assert nameserver.id == "ns-s1"


def test_second_start_changes_nothing(machine: Machine) -> None:
    first, second = machine.authority(), machine.authority()
    assert first.ca == second.ca
    assert first.server is not None
    assert second.server is not None
    assert first.server.certificate == second.server.certificate


def test_another_address_is_another_certificate(machine: Machine) -> None:
    first = machine.authority()
    second = machine.authority(Identity("s1", None, (ServerAddress("203.0.113.6"),)))
    assert second.ca == first.ca
    assert second.nameserver is None
    assert second.server is not None
    peer = examine(second.server.certificate, role=Role.SERVER, ca=first.ca, revoked=None, wall=WALL)
    assert peer.addresses == ("203.0.113.6",)
    third = machine.authority(Identity("s2", None, (ServerAddress("203.0.113.6"),)))
    assert third.server is not None
    assert third.server.certificate != second.server.certificate


def test_a_nameserver_alone(machine: Machine) -> None:
    authority = machine.authority(Identity(None, "ns1"))
    assert authority.server is None
    assert not (machine.state / "server.pem").exists()


def test_invite(machine: Machine) -> None:
    authority = machine.authority()
    invitation = now(authority.invite(["WWW.example.org", "*.apps.example.org"]))
    assert invitation == read_invitation(invitation.to_toml())
    assert invitation.client == "www.example.org"
    assert invitation.names == ("www.example.org", "*.apps.example.org")
    assert invitation.discovery == "example.org"
    assert invitation.servers == (ServerAddress("203.0.113.5"),)
    credential = read_credential(invitation.credential_pem)
    peer = examine(credential.certificate, role=Role.CLIENT, ca=authority.ca, revoked=None, wall=WALL)
    assert (peer.id, peer.names) == (invitation.client, invitation.names)
    assert peer.expires == WALL + timedelta(days=365)
    (issued,) = machine.store.issued()
    assert (issued.role, issued.id, issued.names) == ("client", "www.example.org", invitation.names)
    assert issued.serial == credential.certificate.serial_number


def test_ids_of_clients(machine: Machine) -> None:
    authority = machine.authority()
    ids = [now(authority.invite(["*.apps.test"])).client for _ in range(3)]
    assert ids == ["apps.test", "apps.test-2", "apps.test-3"]
    assert now(authority.invite(["b.test"], "apps.test")).client == "apps.test"
    long = ".".join(["a" * 30] * 4)
    assert [len(now(authority.invite([long])).client) for _ in range(2)] == [63, 63]


@pytest.mark.parametrize(
    ("names", "client", "text"),
    [
        ([], None, "at least one name"),
        (["a..b"], None, "label"),
        (["10.0.0.1"], None, "address"),
        (["a.test"], "No ID", "is not an id"),
        (["tunnel-server.internal"], None, "the name of the tunnel servers"),
        (["*.internal"], None, "the name of the tunnel servers"),
    ],
)
def test_what_is_not_invited(machine: Machine, names: list[str], client: str | None, text: str) -> None:
    with pytest.raises(NotIssued, match=text):
        machine.authority().invite(names, client)
    assert machine.store.issued() == []


def test_enroll(machine: Machine) -> None:
    authority = machine.authority()
    enrolment = now(authority.enroll("s2", [ServerAddress("203.0.113.9")]))
    assert read_enrolment(enrolment.to_toml()) == enrolment
    further = Machine(machine.state.parent / "further")
    enrolled = further.authority(Identity("s2", None, (ServerAddress("203.0.113.9"),), enrolment))
    assert enrolled.ca == authority.ca
    assert enrolled.server is not None
    peer = examine(enrolled.server.certificate, role=Role.SERVER, ca=authority.ca, revoked=None, wall=WALL)
    assert (peer.id, peer.addresses) == ("s2", ("203.0.113.9",))
    assert not enrolled.issues
    assert not (further.state / "ca.pem").exists()
    for refuse in (
        lambda: enrolled.invite(["a.test"]),
        lambda: enrolled.enroll("s3", [ServerAddress("203.0.113.9")]),
        lambda: enrolled.revoke("s2"),
    ):
        with pytest.raises(NotIssued, match="not here but at the appliance that enrolled"):
            refuse()
    further.store.close()


def test_the_keys_for_announcements_are_a_tunnel_servers(machine: Machine) -> None:
    key = NameserverKey("s1", (ServerAddress("203.0.113.5", 53),), "AAECAwQFBgcICQoLDA0ODw==")
    machine.introduction = Introduction("example.org", "s2.5f.server.internal", (key,))
    authority = machine.authority()
    places = (ServerAddress("203.0.113.9"),)
    assert now(authority.enroll("s2", places)).introduction == machine.introduction
    assert machine.store.enrolled() == {"s2": places}

    def follow() -> Deferred[Following]:
        return succeed(Following(1, ("example.org",), places, (), "s3.peer.internal", key.secret))

    alone = now(authority.enroll("s3", places, following=follow, is_server=False))
    assert alone.introduction is None
    assert set(machine.store.enrolled()) == {"s2"}


def test_what_is_not_enrolled(machine: Machine) -> None:
    authority = machine.authority()
    with pytest.raises(NotIssued, match="this appliance itself"):
        authority.enroll("s1", [ServerAddress("203.0.113.9")])
    with pytest.raises(NotIssued, match="at least one public address"):
        authority.enroll("s2", [])
    with pytest.raises(NotIssued, match="is not an id"):
        authority.enroll("S 2", [ServerAddress("203.0.113.9")])


def test_an_id_that_is_this_appliances_is_nobody_elses(machine: Machine) -> None:
    """`revoke` takes an id and no role: it could never take back what has this one."""
    authority = machine.authority()
    places = [ServerAddress("203.0.113.9")]
    for own in ("s1", "ns-s1"):
        with pytest.raises(NotIssued, match=f"{own} is this appliance itself"):
            authority.invite(["a.test"], own)
        with pytest.raises(NotIssued, match=f"{own} is this appliance itself"):
            authority.enroll(own, places, following=lambda: fail(AssertionError()))
        assert now(authority.invite([own])).client == f"{own}-2"
    with pytest.raises(NotIssued, match="s1 is this appliance itself"):
        authority.enroll("s1", places)


def test_a_tunnel_server_may_be_called_after_a_nameserver_alone_beside_it(machine: Machine) -> None:
    authority = machine.authority(Identity(None, "ns1"))
    now(authority.enroll("ns1", [ServerAddress("203.0.113.9")]))
    (revoked,) = now(authority.revoke("ns1"))
    assert revoked.role == "server"


def test_an_id_is_a_clients_or_a_servers(machine: Machine) -> None:
    authority = machine.authority()
    places = [ServerAddress("203.0.113.9")]
    following = Following(1, ("a.test",), tuple(places), (), "ns2.peer.internal", "A" * 43 + "=")

    def follow() -> Deferred[Following]:
        return succeed(following)

    now(authority.invite(["a.test"], "a"))
    now(authority.enroll("s2", places))
    now(authority.enroll("ns2", places, following=follow, is_server=False))
    for server in ("s2", "ns2"):
        with pytest.raises(NotIssued, match=f"{server} is the id of a server already: a client"):
            authority.invite(["b.test"], server)
    with pytest.raises(NotIssued, match="a is the id of a client already: a server needs another"):
        authority.enroll("a", places)
    with pytest.raises(NotIssued, match="a is the id of a client already"):
        authority.enroll("a", places, following=follow, is_server=False)
    now(authority.invite(["b.test"], "a"))
    now(authority.enroll("s2", places))
    now(authority.enroll("ns2", places, following=follow))
    now(authority.revoke("a"))
    now(authority.enroll("a", places))


def test_revoke(machine: Machine) -> None:
    authority = machine.authority()
    invited = [now(authority.invite(["a.test"], "a")) for _ in range(2)]
    other = now(authority.invite(["b.test"], "b"))
    revoked = now(authority.revoke("a"))
    serials = {read_credential(one.credential_pem).certificate.serial_number for one in invited}
    assert {one.serial for one in revoked} == serials
    assert machine.revocations == [RevocationList(1, frozenset(serials))]
    certificate = read_credential(invited[0].credential_pem).certificate
    with pytest.raises(CertificateRefused) as refused:
        examine(certificate, role=Role.CLIENT, ca=authority.ca, revoked=authority.revoked, wall=WALL)
    assert refused.value.reason is Reason.REVOKED
    now(authority.revoke("b"))
    serials.add(read_credential(other.credential_pem).certificate.serial_number)
    again = machine.authority()
    assert again.revoked == RevocationList(2, frozenset(serials))
    assert read_crl(again.revoked_pem, again.ca) == again.revoked
    with pytest.raises(NotIssued, match="is revoked already"):
        again.revoke("a")
    with pytest.raises(NotIssued, match="no certificate was issued"):
        again.revoke("c")
    with pytest.raises(NotIssued, match="this appliance itself"):
        again.revoke("s1")


def test_a_crash_between_the_database_and_the_list(machine: Machine) -> None:
    authority = machine.authority()
    now(authority.invite(["a.test"], "a"))
    (issued,) = machine.store.issued()
    machine.store.record_revoked(issued.serial, WALL.timestamp())
    again = machine.authority()
    assert again.revoked == RevocationList(1, frozenset({issued.serial}))


@pytest.mark.parametrize("others", [0, 1])
def test_a_list_that_the_disk_does_not_take_is_written_when_it_is_said_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """The database has it by then, so that nothing is left to revoke."""
    authority = machine.authority()
    held = read_credential(now(authority.invite(["b.test"], "b")).credential_pem).certificate
    before = [now(authority.invite(["a.test"], f"a{number}")).client for number in range(others)]
    for client in before:
        now(authority.revoke(client))
    full: list[OSError] = [OSError(ENOSPC, "No space left on device")]

    def write(path: Path, octets: bytes) -> None:
        if full:
            raise full[0]
        replace_whole(path, octets)

    monkeypatch.setattr("appliance.service.authority.replace_whole", write)
    for _ in range(2):
        refused = failed(authority.revoke("b"))
        assert isinstance(refused, NotIssued)
        assert str(refused) == (
            f"{machine.state / 'revoked.pem'} cannot be written: No space left on device."
            " Until it is, b is not kept out: make room, and revoke b again"
        )
        assert len(machine.revocations) == others
    for client in before:
        with pytest.raises(NotIssued, match="is revoked already"):
            authority.revoke(client)
    with pytest.raises(AuthorityRefused, match="cannot be written: No space left on"):
        machine.authority()
    full.clear()
    (revoked,) = now(authority.revoke("b"))
    assert (revoked.id, revoked.serial) == ("b", held.serial_number)
    with pytest.raises(CertificateRefused):
        authority.examine(held, Role.CLIENT)
    assert machine.revocations[-1] == authority.revoked == machine.authority().revoked
    assert len(machine.revocations) == others + 1
    with pytest.raises(NotIssued, match="is revoked already"):
        authority.revoke("b")


def test_an_expired_certificate_leaves_the_list(machine: Machine) -> None:
    authority = machine.authority(days=10)
    now(authority.invite(["a.test"], "a"))
    now(authority.revoke("a"))
    machine.wall += timedelta(days=11)
    now(authority.invite(["b.test"], "b"))
    (kept,) = now(authority.revoke("b"))
    assert authority.revoked == RevocationList(2, frozenset({kept.serial}))


def test_a_list_that_somebody_brings(machine: Machine) -> None:
    authority = machine.authority()
    key = read_credential((machine.state / "ca.pem").read_bytes())
    brought = make_crl(key, {7: WALL}, 5, WALL)
    assert authority.take(brought)
    assert authority.revoked == RevocationList(5, frozenset({7}))
    assert machine.revocations == [authority.revoked]
    assert not authority.take(brought)
    assert machine.authority().revoked == authority.revoked
    with pytest.raises(CrlRefused):
        authority.take(make_crl(make_authority("another", WALL), {}, 9, WALL))


def test_a_list_that_somebody_copied_here(machine: Machine) -> None:
    authority = machine.authority()
    assert authority.reload() == []
    key = read_credential((machine.state / "ca.pem").read_bytes())
    (machine.state / "revoked.pem").write_bytes(make_crl(key, {7: WALL}, 5, WALL))
    assert authority.reload() == []
    assert machine.revocations == [RevocationList(5, frozenset({7}))]
    (machine.state / "revoked.pem").write_text("nonsense")
    (error,) = authority.reload()
    assert error.startswith(f"{machine.state / 'revoked.pem'}: ")
    assert authority.revoked.number == 5


def test_warnings(machine: Machine) -> None:
    authority = machine.authority(days=40)
    now(authority.invite(["a.test"], "a"))
    now(authority.invite(["b.test"], "b"))
    assert authority.expiring() == []
    machine.wall += timedelta(days=33)  # a sixth of 40 days is left 33.3 days after
    assert authority.expiring() == []
    machine.wall += timedelta(days=1)
    now(authority.invite(["a.test"], "a"))
    assert [str(one) for one in authority.expiring()] == [
        "the certificate of client b expires on 2027-01-02",
    ]
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)  # type: ignore[arg-type]
    authority.warn()
    globalLogPublisher.removeObserver(events.append)  # type: ignore[arg-type]
    assert len(events) == 1
    now(authority.revoke("b"))
    assert authority.expiring() == []
    machine.wall = WALL + timedelta(days=3640)
    assert "the certificate of the CA expires on" in "\n".join(map(str, authority.expiring()))


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "revoked.pem"])
def test_a_damaged_file(machine: Machine, name: str) -> None:
    machine.authority()
    (machine.state / name).write_text("nonsense")
    with pytest.raises(AuthorityRefused, match=name):
        machine.authority()


def test_an_own_certificate_of_the_future(machine: Machine) -> None:
    machine.authority()
    machine.wall -= timedelta(days=1)
    with pytest.raises(AuthorityRefused, match="is a clock wrong"):
        machine.authority()


def test_an_enrolled_nameserver(machine: Machine) -> None:
    authority = machine.authority()
    following = Following(
        1, ("a.test",), (ServerAddress("192.0.2.1", 53),), (), "ns2.peer.internal", "A" * 43 + "="
    )
    made = authority.enroll(
        "ns2", [ServerAddress("203.0.113.9")], following=lambda: succeed(following), is_server=False
    )
    enrolment = now(made)
    assert read_enrolment(enrolment.to_toml()) == enrolment
    further = Machine(machine.state.parent / "further")
    enrolled = further.authority(Identity(None, "ns2", (), enrolment))
    assert enrolled.server is None
    assert enrolled.nameserver is not None
    examine(enrolled.nameserver.certificate, role=Role.NAMESERVER, ca=authority.ca, revoked=None, wall=WALL)


def test_an_enrolment_that_does_not_fit(machine: Machine) -> None:
    ca = make_authority("a CA", WALL)
    server = issue_server(ca, server_id="s2", service_name="x.internal", addresses=["203.0.113.9"], wall=WALL)
    enrolment = Enrolment(
        server_id="s2",
        service_name="x.internal",
        addresses=(ServerAddress("203.0.113.9"),),
        ca_pem=ca.certificate_pem(),
        credential_pem=server.certificate_pem(),
    )
    with pytest.raises(AuthorityRefused, match="the enrolment: "):
        machine.authority(Identity("s2", None, (), enrolment))
