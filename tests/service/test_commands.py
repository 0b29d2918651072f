from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from appliance.service.authority import Authority, Identity
from appliance.service.commands import commands
from appliance.service.control import Command, CommandRefused
from appliance.service.store import Store, StoreFailed
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Following, read_enrolment, read_invitation

FOLLOWING = Following(
    index=1,
    zones=("a.test",),
    primary=(ServerAddress("192.0.2.1", 53),),
    servers=(),
    key_name="ns2.peer.internal",
    key_secret="AAECAwQFBgcICQoLDA0ODw==",
)
WALL = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Appliance:
    """The commands on a real authority, and everything else remembered."""

    def __init__(self, state: Path) -> None:
        self.store = Store(state / "appliance.sqlite", Clock())
        self.store.open()
        self.invited: list[tuple[tuple[str, ...], float]] = []
        self.removed: list[str] = []
        self.known = {"a.test"}
        self.authority = Authority(
            state,
            self.store,
            Identity("s1", None, (ServerAddress("192.0.2.1"),)),
            days=365,
            wall=lambda: WALL,
            discovery=lambda names: "test",
            servers=lambda: [ServerAddress("192.0.2.1")],
        )
        self.authority.open()
        self.commands: dict[str, Command] = commands(
            self.authority,
            invited=lambda names, expires: self._invited(names, expires),
            removed=self.removed.append,
            forget=lambda name: self._forget(name),
            reload=lambda: self._reload(),
            drain=lambda: 50.0,
            status=lambda: {"up": True},
            follow=self._follow,
        )
        self.followed: list[tuple[str, list[ServerAddress], list[ServerAddress]]] = []

    def _follow(
        self, peer_id: str, addresses: Sequence[ServerAddress], primary: Sequence[ServerAddress]
    ) -> Deferred[Following]:
        self.followed.append((peer_id, list(addresses), list(primary)))
        return succeed(FOLLOWING)

    def _forget(self, name: str) -> Deferred[bool]:
        return succeed(name in self.known)

    def _reload(self) -> Deferred[list[str]]:
        return succeed(["z:1: bad"])

    def _invited(self, names: Sequence[str], expires: float) -> Deferred[None]:
        self.invited.append((tuple(names), expires))
        return succeed(None)

    def ask(self, command: str, **request: object) -> Any:
        """The result; raises what the command raised or its Deferred failed with."""
        answer = self.commands[command](request)
        if not isinstance(answer, Deferred):
            return answer
        results: list[Any] = []
        answer.addBoth(results.append)
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        return results[0]


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    made = Appliance(tmp_path)
    yield made
    made.store.close()


def test_invite(appliance: Appliance) -> None:
    result = appliance.ask("invite", names=["www.a.test"], client=None)
    assert (result["client"], result["names"]) == ("www.a.test", ["www.a.test"])
    assert read_invitation(result["invitation"]).discovery == "test"
    assert appliance.invited == [(("www.a.test",), (WALL + timedelta(days=365)).timestamp())]
    assert appliance.ask("invite", names=["b.test"], client="b")["client"] == "b"


def test_enroll(appliance: Appliance) -> None:
    result = appliance.ask("enroll", id="s2", addresses=["192.0.2.2", "[2001:db8::2]:8443"])
    enrolment = read_enrolment(result["enrolment"])
    assert result["server"] == enrolment.server_id == "s2"
    assert result["announces"] is False  # no nameserver is here
    assert enrolment.addresses == (ServerAddress("192.0.2.2"), ServerAddress("2001:db8::2", 8443))


def test_enroll_a_nameserver(appliance: Appliance) -> None:
    asked: dict[str, Any] = {"id": "ns2", "addresses": ["192.0.2.2"], "primary": [], "is_server": False}
    result = appliance.ask("enroll", dns_port=5353, **asked)
    enrolment = read_enrolment(result["enrolment"])
    assert appliance.followed == [("ns2", [ServerAddress("192.0.2.2", 5353)], [])]
    assert enrolment.following == FOLLOWING
    assert (enrolment.credential_pem, enrolment.addresses) == (b"", ())
    assert [issued.role for issued in appliance.store.issued()] == ["nameserver"]
    both = {**asked, "is_server": True}
    enrolment = read_enrolment(appliance.ask("enroll", dns_port=53, **both)["enrolment"])
    assert enrolment.credential_pem
    assert enrolment.addresses == (ServerAddress("192.0.2.2"),)
    with pytest.raises(CommandRefused, match="must be a port"):
        appliance.ask("enroll", dns_port=0, **asked)
    appliance.ask("revoke", id="ns2")
    assert appliance.removed == ["ns2"]


def test_revoke(appliance: Appliance) -> None:
    appliance.ask("enroll", id="s2", addresses=["192.0.2.2"])
    appliance.ask("invite", names=["a.test"], client="a")
    result = appliance.ask("revoke", id="a")
    assert result == {"certificates": [{"role": "client", "id": "a", "names": ["a.test"]}], "number": 1}
    assert appliance.removed == []
    appliance.ask("revoke", id="s2")
    assert appliance.removed == ["s2"]


def test_the_rest(appliance: Appliance) -> None:
    assert appliance.ask("forget", name="A.test") == {"name": "a.test"}
    assert appliance.ask("reload") == {"errors": ["z:1: bad"]}
    assert appliance.ask("drain") == {"seconds": 50.0}
    assert appliance.ask("status") == {"up": True}


@pytest.mark.parametrize(
    ("command", "request_", "text"),
    [
        ("invite", {"names": []}, "at least one name"),
        ("invite", {"names": "a.test"}, '"names" must be a list of strings'),
        ("invite", {"names": [5]}, '"names" must be a list of strings'),
        ("invite", {"names": ["a..b"]}, "label"),
        ("invite", {"names": ["a.test"], "client": 5}, '"client" must be a string'),
        ("enroll", {"id": "s2", "addresses": ["x"]}, "is not an IP address"),
        ("enroll", {"addresses": ["192.0.2.2"]}, '"id" must be a string'),
        ("enroll", {"id": "s1", "addresses": ["192.0.2.2"]}, "this appliance itself"),
        ("revoke", {"id": "nobody"}, "no certificate was issued"),
        ("revoke", {}, '"id" must be a string'),
        ("forget", {"name": "b.test"}, "b.test is not a known name"),
        ("forget", {"name": "a..b"}, "label"),
    ],
)
def test_refusals(appliance: Appliance, command: str, request_: dict[str, object], text: str) -> None:
    with pytest.raises(CommandRefused, match=text):
        appliance.ask(command, **request_)


def test_a_disk_that_is_full(appliance: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    full: Callable[..., Deferred[None]] = lambda issued: fail(StoreFailed("the disk is full"))  # noqa: E731
    monkeypatch.setattr(appliance.store, "record_issued", full)
    with pytest.raises(CommandRefused, match="the disk is full"):
        appliance.ask("invite", names=["a.test"])
    assert appliance.invited == []


def test_a_disk_that_is_full_when_somebody_is_revoked(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it the database's or the list's; said again it is done, and a server leaves the DNS."""
    appliance.ask("enroll", id="s2", addresses=["192.0.2.2"])
    appliance.ask("enroll", id="s2", addresses=["192.0.2.2"])
    with monkeypatch.context() as patched:
        patched.setattr(appliance.store, "record_revoked", lambda *_: fail(StoreFailed("the disk is full")))
        with pytest.raises(CommandRefused, match=r"^the disk is full$"):
            appliance.ask("revoke", id="s2")
    with monkeypatch.context() as patched:
        patched.setattr(appliance.authority, "_write_crl", lambda: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(CommandRefused, match=r"revoked\.pem cannot be written: full"):
            appliance.ask("revoke", id="s2")
    assert appliance.removed == []
    assert len(appliance.ask("revoke", id="s2")["certificates"]) == 2
    assert appliance.removed == ["s2"]


@pytest.mark.parametrize(
    ("command", "asked", "request_"),
    [
        ("invite", "_invited", {"names": ["a.test"]}),
        ("forget", "_forget", {"name": "a.test"}),
        ("reload", "_reload", {}),
    ],
)
def test_a_disk_that_is_full_is_named_whatever_found_it(
    appliance: Appliance,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    asked: str,
    request_: dict[str, object],
) -> None:
    monkeypatch.setattr(appliance, asked, lambda *arguments: fail(StoreFailed("the disk is full")))
    with pytest.raises(CommandRefused, match="the disk is full"):
        appliance.ask(command, **request_)
