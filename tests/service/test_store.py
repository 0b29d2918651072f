from __future__ import annotations

import os
import queue
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from appliance.dns.amendments import Amendment
from appliance.dns.zone import RRset
from appliance.service.store import SCHEMA, EnrolledPeer, Issued, SeenServer, Store, StoreFailed, StoreRefused
from appliance.tunnel.discovery import ServerAddress

ZONE = b"\x04demo\x04test\x00"
OTHER = b"\x05other\x04test\x00"
RRSET = RRset(b"\x01a" + ZONE, 16, 60, (b"\x01x", b""))
AMENDMENT = Amendment(RRSET.name, 16, None, RRSET)
ISSUED = Issued(2**158 + 5, "client", "web-1", ("www.demo.test", "*.apps.demo.test"), 1.8e9)
PEER = EnrolledPeer("ns2", 1, (ServerAddress("192.0.2.53", 53),), bytes(32))
SERVER = SeenServer("s1", (ServerAddress("192.0.2.1"), ServerAddress("2001:db8::1", 8443)), "b00t")


@implementer(IReactorFromThreads)
class _Threads:
    """Takes calls from threads, and makes them when the test says so."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    def callFromThread(self, callable: Callable[..., Any], *arguments: object, **named: object) -> None:
        self._calls.put(partial(callable, *arguments, **named))

    def run_until(self, done: Deferred[None]) -> None:
        while not done.called:
            self._calls.get(timeout=10)()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "appliance.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path, Clock())
    opened.open()
    yield opened
    opened.close()


def _failure(done: Deferred[None]) -> str:
    failures: list[Failure] = []
    done.addErrback(failures.append)
    (failure,) = failures
    failure.trap(StoreFailed)
    return failure.getErrorMessage()


def _reopened(path: Path, store: Store) -> Store:
    store.close()
    again = Store(path, Clock())
    again.open()
    return again


def test_everything_is_there_after_a_restart(path: Path, store: Store) -> None:
    store.reserve(ZONE, 4294967295)
    store.reserve_now({OTHER: 7})
    store.loaded(ZONE, 2026112301)
    store.remember("www.demo.test", 1.5e9)
    store.remember("www.demo.test", 1.8e9)
    store.remember("gone.demo.test", 1.8e9)
    store.forget("gone.demo.test")
    store.saw(SeenServer("s1", (), "older"))
    store.saw(SERVER)
    store.saw(SeenServer("s2", (), "b"))
    store.forget_server("s2")
    store.record_issued(ISSUED)
    store.record_revoked(ISSUED.serial, 1.7e9)
    store.record_revoked(12345, 1.7e9)
    for each in (store, _reopened(path, store)):
        assert (each.reserved(ZONE), each.reserved(OTHER), each.reserved(b"\0")) == (4294967295, 7, None)
        assert (each.file_serial(ZONE), each.file_serial(OTHER)) == (2026112301, None)
        assert each.known() == {"www.demo.test": 1.8e9}
        assert each.servers() == [SERVER]
        (issued,) = each.issued()
        assert issued.revoked == 1.7e9
        assert (issued.serial, issued.names, issued.expires) == (2**158 + 5, ISSUED.names, 1.8e9)
    each.close()


def test_amendments_and_who_asked_for_them(path: Path, store: Store) -> None:
    gone = Amendment(RRSET.name, 1, RRset(RRSET.name, 1, 60, (bytes(4),)), None)
    store.amend(ZONE, {AMENDMENT.key: AMENDMENT, gone.key: gone}, (b"mac1", 1300), wall=1000)
    store.amend(OTHER, {AMENDMENT.key: AMENDMENT})
    store.amend(OTHER, {AMENDMENT.key: None, gone.key: None}, (b"mac2", 1700), wall=1400)
    for at_hand in (store, _reopened(path, store)):
        assert at_hand.amendments(ZONE) == {AMENDMENT.key: AMENDMENT, gone.key: gone}
        assert at_hand.amendments(OTHER) == {}
    again = Store(path, Clock())
    at_hand.close()
    again.open()
    assert again.accepted() == {b"mac2": 1700}
    again.close()


def test_a_state_file_of_an_older_schema_is_brought_to_this_one(path: Path, store: Store) -> None:
    store.reserve(ZONE, 7)
    store.close()
    with sqlite3.connect(path) as other:
        tables = ("amendments", "accepted", "copied", "confirmed", "peers")
        for table in (*tables, "own_secret", "enrolled", "introduced", "renewals", "accounts"):
            other.execute(f"DROP TABLE {table}")
        other.execute("PRAGMA user_version = 1")
    other.close()
    again = Store(path, Clock())
    again.open()
    assert again.reserved(ZONE) == 7
    again.amend(ZONE, {AMENDMENT.key: AMENDMENT})
    assert again.amendments(ZONE) == {AMENDMENT.key: AMENDMENT}
    again.close()


def test_the_file_is_the_owners_and_durable(path: Path, store: Store) -> None:
    store.reserve(ZONE, 1)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    connection = store._connection
    assert connection is not None
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_memory_shows_what_the_disk_has(path: Path) -> None:
    threads = _Threads()
    store = Store(path, threads)
    store.open()
    done = store.reserve(ZONE, 5)
    assert store.reserved(ZONE) is None
    threads.run_until(done)
    assert store.reserved(ZONE) == 5
    store.reserve(ZONE, 6)
    store.reserve_now({ZONE: 9})
    assert store.reserved(ZONE) == 9
    last = store.remember("www.demo.test", 1.0)
    closed = store.close()
    threads.run_until(closed)
    assert last.called
    assert store.reserved(ZONE) == 9
    again = Store(path, Clock())
    again.open()
    assert (again.reserved(ZONE), again.known()) == (9, {"www.demo.test": 1.0})
    again.close()


def test_a_thousand_writes_share_few_commits(path: Path) -> None:
    threads = _Threads()
    store = Store(path, threads)
    store.open()
    writes = [store.remember(f"n{number}.demo.test", 1.0) for number in range(1500)]
    threads.run_until(store.close())
    assert all(write.called for write in writes)
    assert len(store.known()) == 1500


def test_writes_after_the_end_fail(store: Store) -> None:
    store.close()
    assert "is not open" in _failure(store.reserve(ZONE, 1))
    with pytest.raises(StoreFailed, match="is not open"):
        store.reserve_now({ZONE: 1})


def test_a_full_disk_fails_the_change_and_not_the_store(store: Store) -> None:
    store.reserve(ZONE, 1)
    connection = store._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    large = "x" * 100_000
    assert "full" in _failure(store.remember(large, 1.0))
    assert store.known() == {}
    connection.execute("PRAGMA max_page_count = 100000")
    store.remember(large, 1.0)
    assert store.known() == {large: 1.0}


def test_a_change_that_fails_halfway_leaves_nothing(store: Store) -> None:
    statements = (("DELETE FROM serials", ()), ("INSERT INTO nowhere VALUES (1)", ()))
    store.reserve(ZONE, 1)
    assert "no such table" in _failure(store._change(lambda: None, statements).done)
    store.reserve(OTHER, 2)
    connection = store._connection
    assert connection is not None
    assert connection.execute("SELECT count(*) FROM serials").fetchone() == (2,)


def test_a_value_that_cannot_be_stored_ends_nothing(path: Path) -> None:
    threads = _Threads()
    store = Store(path, threads)
    store.open()
    impossible = store.remember("\udcff", 1.0)
    threads.run_until(impossible)
    assert "was not written" in _failure(impossible)
    store.reserve_now({ZONE: 1})
    threads.run_until(store.close())
    assert (store.known(), store.reserved(ZONE)) == ({}, 1)


def _refusal(path: Path) -> str:
    with pytest.raises(StoreRefused) as refused:
        Store(path, Clock()).open()
    text = str(refused.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_a_newer_schema_is_refused_and_left_alone(path: Path, store: Store) -> None:
    store.close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA + 6}")
    other.close()
    before = path.read_bytes()
    assert f"newer version of this program (schema {SCHEMA + 6}, this one knows {SCHEMA})" in _refusal(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    assert "another program" in _refusal(path)
    assert path.read_bytes() == before


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("serial = 5\n" * 1000)
    assert "is damaged (file is not a database); restore it" in _refusal(path)


def test_a_damaged_page_is_refused(path: Path, store: Store) -> None:
    for number in range(300):
        store.remember(f"name-{number}.demo.test", 1.0)
    store.close()
    octets = bytearray(path.read_bytes())
    for page in range(4096, len(octets), 4096):
        octets[page : page + 200] = b"\x5a" * 200
    path.write_bytes(octets)
    assert "is damaged" in _refusal(path)


def test_a_value_that_nobody_wrote_is_refused(path: Path, store: Store) -> None:
    store.close()
    with sqlite3.connect(path) as other:
        other.execute("INSERT INTO seen_servers VALUES ('s', '[[\"not an address\", 1]]', 'b')")
    other.close()
    assert "is damaged" in _refusal(path)


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    store = Store(path, Clock())
    store.open()
    assert store.reserved(ZONE) is None
    store.close()


def test_a_directory_that_is_missing_or_no_directory(tmp_path: Path) -> None:
    assert "cannot be opened: No such file" in _refusal(tmp_path / "a" / "b" / "appliance.db")
    (tmp_path / "file").touch()
    assert "cannot be opened" in _refusal(tmp_path / "file" / "appliance.db")


_CHILD = """
import sys
from pathlib import Path
from twisted.internet import reactor
from appliance.service.store import Store
store = Store(Path(sys.argv[1]), reactor)
store.open()
def go(number):
    print(number, flush=True)
    store.reserve(b"zone", number + 1).addCallback(lambda _: reactor.callLater(0, go, number + 1))
store.reserve(b"zone", (store.reserved(b"zone") or 0) + 1).addCallback(lambda _: go(store.reserved(b"zone")))
reactor.run()
"""


def test_two_processes_do_not_share_a_file(path: Path, store: Store) -> None:
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, path], capture_output=True, text=True, timeout=30, check=False
    )
    assert "is in use by another appliance" in child.stderr


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_never_loses_what_was_told(path: Path, kills: int) -> None:
    """The child says a number when the disk has it: after any kill the file has the last one said."""
    chance = random.Random(7)
    last_said = 0
    for _ in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", _CHILD, path], stdout=subprocess.PIPE, text=True, env=os.environ
        ) as child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 100)):
                said = child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            lines = [said, *child.stdout.read().splitlines()]
        store = Store(path, Clock())
        store.open()
        kept = store.reserved(b"zone")
        store.close()
        assert kept is not None
        assert int(lines[0]) > last_said
        last_said = int(lines[-1])
        assert kept >= last_said


def test_a_copied_zone_is_kept_and_changed(path: Path, store: Store) -> None:
    other = RRset(b"\x01b" + ZONE, 1, 60, (bytes(4), b"1234"))
    store.copy(ZONE, [((RRSET.name, 16), RRSET), ((other.name, 1), other)], 5.0, is_whole=True)
    store.copy(OTHER, [((RRSET.name, 16), RRSET)], 6.0, is_whole=True)
    store.copy(OTHER, [], 6.0, is_whole=True)
    assert store.confirmed(ZONE) == 5.0
    store.confirm(ZONE, 7.0)
    again = _reopened(path, store)
    assert sorted(again.copied(ZONE), key=lambda rrset: rrset.name) == [RRSET, other]
    assert (again.copied(OTHER), again.confirmed(ZONE), again.confirmed(OTHER)) == ([], 7.0, 6.0)
    again.copy(ZONE, [((RRSET.name, 16), None)], 8.0, is_whole=False)
    once_more = _reopened(path, again)
    assert once_more.copied(ZONE) == [other]
    once_more.close()


def test_peers_are_kept(path: Path, store: Store) -> None:
    store.enrolled_peer(PEER)
    assert store.peers() == [PEER]
    assert repr(PEER.secret) not in repr(PEER)
    again = _reopened(path, store)
    assert again.peers() == [PEER]
    again.forget_peer("ns2")
    once_more = _reopened(path, again)
    assert once_more.peers() == []
    once_more.close()


def test_the_own_secret_is_made_once(path: Path, store: Store) -> None:
    assert store.own_secret(lambda: bytes(32)) == bytes(32)
    assert store.own_secret(lambda: b"another") == bytes(32)
    again = _reopened(path, store)
    assert again.own_secret(lambda: b"another") == bytes(32)
    again.close()
    with pytest.raises(StoreFailed):
        Store(path, Clock()).own_secret(lambda: bytes(32))


def test_tunnel_servers_enrolled_and_introduced_are_kept(path: Path, store: Store) -> None:
    store.enroll("s2", (ServerAddress("192.0.2.2"),))
    store.enroll("s2", SERVER.addresses)
    store.enroll("s3", ())
    store.forget_enrolled("s3")
    store.introduce("s2", "one")
    store.introduce("s2", "two")
    store.introduce("s3", "x")
    store.forget_introduced("s3")
    for each in (store, _reopened(path, store)):
        assert each.enrolled() == {"s2": SERVER.addresses}
        assert each.introduced() == {"s2": "two"}
    each.close()


def test_accounts_are_kept(path: Path, store: Store) -> None:
    store.keep_account("c1", "i1", "one")
    store.keep_account("c1", "i1", "two")
    store.keep_account("c1", "i2", "three")
    store.forget_account("c1", "i2")
    store.forget_account("c2", "i1")
    for each in (store, _reopened(path, store)):
        assert each.accounts() == ["two"]
    each.close()
