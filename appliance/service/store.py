"""What must outlive the process, in one sqlite3 file: serials, known names, servers, certificates, updates.

Hides SQL, the disk and the thread that waits for it. Everything is read into memory by `open()`; a reading
method shows what is on disk, never what is only on its way there (commit, then tell). A writing method
returns a Deferred that fires when the disk has it. Writes that wait together share one commit.

With a reactor that takes calls from threads, one thread of its own writes; with any other (`task.Clock` in
tests) every write is made at once, in the caller's thread, and its Deferred has already fired.
"""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.dns.amendments import Amendment, decode, encode
from appliance.dns.zone import RRset
from appliance.tunnel.discovery import ServerAddress

APPLICATION_ID = 0x74756E6E  # "tunn" in the file's header: another program's database is not ours to change
_JOBS_PER_COMMIT = 1000  # a burst of writes is not one endless transaction

_Statement = tuple[str, tuple[object, ...]]

# Each entry leads from the schema before it to the next; one that was released never changes.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE serials (zone BLOB PRIMARY KEY, reserved INTEGER, file_serial INTEGER)",
        "CREATE TABLE known_names (name TEXT PRIMARY KEY, expires REAL NOT NULL)",
        "CREATE TABLE seen_servers (id TEXT PRIMARY KEY, addresses TEXT NOT NULL, boot TEXT NOT NULL)",
        # An X.509 serial has up to 159 bits, an INTEGER of sqlite3 only 63.
        """CREATE TABLE issued (serial TEXT PRIMARY KEY, role TEXT NOT NULL, id TEXT NOT NULL,
           names TEXT NOT NULL, expires REAL NOT NULL, revoked REAL)""",
    ),
    (
        """CREATE TABLE amendments (zone BLOB, name BLOB, rtype INTEGER, was BLOB, now BLOB,
           PRIMARY KEY (zone, name, rtype)) WITHOUT ROWID""",
        "CREATE TABLE accepted (mac BLOB PRIMARY KEY, good_until INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        """CREATE TABLE copied (zone BLOB, name BLOB, rtype INTEGER, rrset BLOB NOT NULL,
           PRIMARY KEY (zone, name, rtype)) WITHOUT ROWID""",
        "CREATE TABLE confirmed (zone BLOB PRIMARY KEY, wall REAL NOT NULL) WITHOUT ROWID",
        """CREATE TABLE peers (id TEXT PRIMARY KEY, place INTEGER NOT NULL, addresses TEXT NOT NULL,
           secret BLOB NOT NULL)""",
    ),
    (
        "CREATE TABLE own_secret (secret BLOB NOT NULL)",
        "CREATE TABLE enrolled (id TEXT PRIMARY KEY, addresses TEXT NOT NULL)",
        "CREATE TABLE introduced (id TEXT PRIMARY KEY, state TEXT NOT NULL)",
    ),
    (
        """CREATE TABLE accounts (client TEXT, instance TEXT, account TEXT NOT NULL,
           PRIMARY KEY (client, instance)) WITHOUT ROWID""",
    ),
    # `key` is the new key's digest, `was` the serial number of the certificate that was renewed.
    (
        """CREATE TABLE renewals (key TEXT PRIMARY KEY, serial TEXT NOT NULL, was TEXT NOT NULL,
           pem TEXT NOT NULL)""",
    ),
)
SCHEMA = len(_MIGRATIONS)

_RESERVE = (
    "INSERT INTO serials (zone, reserved) VALUES (?, ?)"
    " ON CONFLICT (zone) DO UPDATE SET reserved = excluded.reserved"
)
_LOADED = (
    "INSERT INTO serials (zone, file_serial) VALUES (?, ?)"
    " ON CONFLICT (zone) DO UPDATE SET file_serial = excluded.file_serial"
)


_AMEND = "INSERT OR REPLACE INTO amendments VALUES (?, ?, ?, ?, ?)"
_UNAMEND = "DELETE FROM amendments WHERE zone = ? AND name = ? AND rtype = ?"

_COPY = "INSERT OR REPLACE INTO copied VALUES (?, ?, ?, ?)"
_UNCOPY = "DELETE FROM copied WHERE zone = ? AND name = ? AND rtype = ?"

Amendments = Mapping[tuple[bytes, int], Amendment]
"""Amendments of one zone by name and type."""


class StoreRefused(Exception):
    """The state file cannot be used; the text names it, says why, and what can be done."""


class StoreFailed(Exception):
    """The disk did not take a change: it is not kept, and reading shows the state before it."""


@dataclass(frozen=True, slots=True)
class SeenServer:
    """A tunnel server that was verified and published once, and that nobody removed since."""

    id: str
    addresses: tuple[ServerAddress, ...]
    boot: str


@dataclass(frozen=True, slots=True)
class EnrolledPeer:
    """A further nameserver of our zones: its index, where it takes NOTIFY, and the secret of its key."""

    id: str
    index: int
    addresses: tuple[ServerAddress, ...]
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that this appliance's CA signed; `expires` and `revoked` are Unix times."""

    serial: int
    role: str
    id: str
    names: tuple[str, ...]
    expires: float
    revoked: float | None = None


@dataclass(frozen=True, slots=True)
class Renewed:
    """The certificate `serial`, as `pem`, of the key with the digest `key`, in the place of the one `was`."""

    key: str
    serial: int
    was: int
    pem: str


@dataclass(slots=True)
class _Job:
    """One change: statements for the disk, what memory does after them, and who waits."""

    statements: tuple[_Statement, ...]
    remember: Callable[[], None]
    done: Deferred[None] = field(default_factory=Deferred)
    finished: threading.Event = field(default_factory=threading.Event)
    failed: StoreFailed | None = None

    def tell(self) -> None:
        """In the reactor's thread: memory first, then whoever waits."""
        if self.failed is not None:
            self.done.errback(Failure(self.failed))
        else:
            self.remember()
            self.done.callback(None)


class Store:
    """The state file `path` (mode 0600, beside it its write-ahead log); one process at a time has it open."""

    _log = Logger()

    def __init__(self, path: Path, reactor: object) -> None:
        self._path = path
        self._reactor = IReactorFromThreads(reactor) if IReactorFromThreads.providedBy(reactor) else None
        self._connection: sqlite3.Connection | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._closed: Deferred[None] | None = None
        self._is_failing = False
        self._reserved: dict[bytes, int] = {}
        self._file_serials: dict[bytes, int] = {}
        self._known: dict[str, float] = {}
        self._servers: dict[str, SeenServer] = {}
        self._issued: dict[int, Issued] = {}
        self._renewals: dict[int, Renewed] = {}
        self._renewals_by_key: dict[str, Renewed] = {}
        self._amendments: dict[bytes, dict[tuple[bytes, int], Amendment]] = {}
        self._accepted: dict[bytes, int] = {}
        self._copied: dict[bytes, list[RRset]] = {}
        self._confirmed: dict[bytes, float] = {}
        self._peers: dict[str, EnrolledPeer] = {}
        self._own_secret: bytes | None = None
        self._enrolled: dict[str, tuple[ServerAddress, ...]] = {}
        self._introduced: dict[str, str] = {}
        self._accounts: dict[tuple[str, str], str] = {}

    def open(self) -> None:
        """Create the file, or bring it to this program's schema, and read it. Raises StoreRefused.

        Blocks for some milliseconds. To be called after the fork, by the user that stays.
        """
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(self._path)
            _prepare(connection)
            self._read(connection)
        except (sqlite3.Error, OSError, ValueError) as problem:
            if connection is not None:
                connection.close()
            raise StoreRefused(f"{self._path}: {_why(problem)}") from None
        self._connection = connection
        if self._reactor is not None:
            self._writer = threading.Thread(target=self._write, args=(connection,), name="store", daemon=True)
            self._writer.start()

    def close(self) -> Deferred[None]:
        """Fires when everything asked before is on disk and the file is closed. Later writes fail."""
        connection, self._connection = self._connection, None
        closed: Deferred[None] = Deferred()
        if connection is not None and self._writer is not None:
            self._closed = closed
            self._jobs.put(None)
        else:
            if connection is not None:
                connection.close()
            closed.callback(None)
        return closed

    # Serials: what is reserved may have been published, what is above it never was.

    def reserved(self, zone: bytes) -> int | None:
        """The highest serial that may have been published for the apex `zone`; None before the first."""
        return self._reserved.get(zone)

    def reserve(self, zone: bytes, upto: int) -> Deferred[None]:
        """Let serials of `zone` up to and including `upto` be published."""
        return self.reserve_all({zone: upto})

    def reserve_all(self, upto: Mapping[bytes, int]) -> Deferred[None]:
        """`reserve` for several zones in one commit."""
        return self._change(*self._reservation(upto)).done

    def reserve_now(self, upto: Mapping[bytes, int]) -> None:
        """`reserve_all`, but waits for the disk: for start and reload. Raises StoreFailed."""
        if upto:
            self._wait_for(self._change(*self._reservation(upto)))

    def _reservation(self, upto: Mapping[bytes, int]) -> tuple[Callable[[], None], tuple[_Statement, ...]]:
        return lambda: self._reserved.update(upto), tuple((_RESERVE, item) for item in upto.items())

    def file_serial(self, zone: bytes) -> int | None:
        """The serial in the zone file that was in service last; None before the first."""
        return self._file_serials.get(zone)

    def loaded(self, zone: bytes, file_serial: int) -> Deferred[None]:
        """A zone file with this serial is now in service."""
        return self._change(
            lambda: self._file_serials.update({zone: file_serial}), ((_LOADED, (zone, file_serial)),)
        ).done

    # Known names: a visitor of one never sees 404.

    def known(self) -> dict[str, float]:
        """Name -> the Unix time until which it is known."""
        return dict(self._known)

    def remember(self, name: str, expires: float) -> Deferred[None]:
        return self.remember_all({name: expires})

    def remember_all(self, names: Mapping[str, float]) -> Deferred[None]:
        """`remember` for several names in one commit: a server brings thousands at once."""
        insert = "INSERT OR REPLACE INTO known_names VALUES (?, ?)"
        statements = tuple((insert, item) for item in names.items())
        return self._change(lambda: self._known.update(names), statements).done

    def forget(self, name: str) -> Deferred[None]:
        return self._change(
            lambda: _drop(self._known, name), (("DELETE FROM known_names WHERE name = ?", (name,)),)
        ).done

    # Servers

    def servers(self) -> list[SeenServer]:
        return list(self._servers.values())

    def saw(self, server: SeenServer) -> Deferred[None]:
        """Keep `server`, in place of what was kept of its id."""
        addresses = _addresses_text(server.addresses)
        return self._change(
            lambda: self._servers.update({server.id: server}),
            (("INSERT OR REPLACE INTO seen_servers VALUES (?, ?, ?)", (server.id, addresses, server.boot)),),
        ).done

    def forget_server(self, server_id: str) -> Deferred[None]:
        return self._change(
            lambda: _drop(self._servers, server_id),
            (("DELETE FROM seen_servers WHERE id = ?", (server_id,)),),
        ).done

    # Certificates

    def issued(self) -> list[Issued]:
        return list(self._issued.values())

    def issued_as(self, serial: int) -> Issued | None:
        """The certificate with this serial number."""
        return self._issued.get(serial)

    def record_issued(self, issued: Issued) -> Deferred[None]:
        return self._change(
            lambda: self._issued.update({issued.serial: issued}), (_issuance(issued),)
        ).done

    def renewed(self, key: str) -> Renewed | None:
        """What was renewed for the key with this digest."""
        return self._renewals_by_key.get(key)

    def is_renewal(self, serial: int) -> bool:
        """Whether this certificate came in the place of another."""
        return serial in self._renewals

    def renewals_of(self, serial: int) -> int:
        """How many certificates came in the place of this one."""
        return sum(1 for one in self._renewals.values() if one.was == serial)

    def record_renewed(self, issued: Issued, renewed: Renewed, over: Iterable[int] = ()) -> Deferred[None]:
        """Keep a certificate and what it renews, and no longer the renewals `over`; all of it or nothing."""
        gone = tuple(over)
        row = renewed.key, f"{renewed.serial:x}", f"{renewed.was:x}", renewed.pem
        statements = [_issuance(issued), ("INSERT INTO renewals VALUES (?, ?, ?, ?)", row)]
        for serial in gone:
            statements.append(("DELETE FROM renewals WHERE serial = ?", (f"{serial:x}",)))
            statements.append(("DELETE FROM issued WHERE serial = ?", (f"{serial:x}",)))

        def keep() -> None:
            self._issued[issued.serial] = issued
            self._renewals[renewed.serial] = self._renewals_by_key[renewed.key] = renewed
            for serial in gone:
                self._issued.pop(serial, None)
                old = self._renewals.pop(serial, None)
                if old is not None:
                    self._renewals_by_key.pop(old.key, None)

        return self._change(keep, tuple(statements)).done

    def record_revoked(self, serial: int, wall: float) -> Deferred[None]:
        """The certificate is revoked since the Unix time `wall`; an unknown serial changes nothing."""

        def revoke() -> None:
            if serial in self._issued:
                self._issued[serial] = replace(self._issued[serial], revoked=wall)

        statement = "UPDATE issued SET revoked = ? WHERE serial = ?"
        return self._change(revoke, ((statement, (wall, f"{serial:x}")),)).done

    # What UPDATE made of the zone files

    def amendments(self, zone: bytes) -> Amendments:
        """Those of the zone `zone`."""
        return self._amendments.get(zone, {})

    def accepted(self) -> Mapping[bytes, int]:
        """As of the start: MAC of an update that changed something -> when its signature ceases to be good
        (Unix time)."""
        return self._accepted

    def amend(
        self,
        zone: bytes,
        changes: Mapping[tuple[bytes, int], Amendment | None],
        accepted: tuple[bytes, int] | None = None,
        *,
        wall: int = 0,
    ) -> Deferred[None]:
        """Keep these amendments of `zone`, and no longer those that are None; all of it or nothing.

        `accepted` is the MAC of the message that asked for it, and the Unix time until which it is good
        (those whose time was over at `wall` are forgotten).
        """
        statements: list[_Statement] = []
        for (name, rtype), one in changes.items():
            if one is None:
                statements.append((_UNAMEND, (zone, name, rtype)))
            else:
                was, now = (encode(rrset) if rrset is not None else None for rrset in (one.was, one.now))
                statements.append((_AMEND, (zone, name, rtype, was, now)))
        if accepted is not None:
            statements.append(("DELETE FROM accepted WHERE good_until < ?", (wall,)))
            statements.append(("INSERT OR REPLACE INTO accepted VALUES (?, ?)", accepted))

        def keep() -> None:
            kept = self._amendments.setdefault(zone, {})
            for key, one in changes.items():
                if one is None:
                    kept.pop(key, None)
                else:
                    kept[key] = one

        return self._change(keep, tuple(statements)).done

    # What was copied of zones that have their primary elsewhere

    def copied(self, zone: bytes) -> list[RRset]:
        """As of the start: all rrsets of the last version of `zone`; empty where there is none."""
        return self._copied.get(zone, [])

    def confirmed(self, zone: bytes) -> float | None:
        """When the primary last said that the copy of `zone` is the newest (Unix time)."""
        return self._confirmed.get(zone)

    def confirm(self, zone: bytes, wall: float) -> Deferred[None]:
        return self._change(lambda: self._confirmed.update({zone: wall}), (_confirmation(zone, wall),)).done

    def copy(
        self,
        zone: bytes,
        changes: Iterable[tuple[tuple[bytes, int], RRset | None]],
        wall: float,
        *,
        is_whole: bool,
    ) -> Deferred[None]:
        """Keep these rrsets of `zone`, and no longer those that are None, nor (`is_whole`) any other; all of
        it or nothing. The primary has said at `wall` that this is the newest version.
        """
        statements: list[_Statement] = [_confirmation(zone, wall)]
        if is_whole:
            statements.append(("DELETE FROM copied WHERE zone = ?", (zone,)))
        for (name, rtype), rrset in changes:
            if rrset is None:
                statements.append((_UNCOPY, (zone, name, rtype)))
            else:
                statements.append((_COPY, (zone, name, rtype, encode(rrset))))
        return self._change(lambda: self._confirmed.update({zone: wall}), tuple(statements)).done

    # Further nameservers of our zones

    def peers(self) -> list[EnrolledPeer]:
        return list(self._peers.values())

    def enrolled_peer(self, peer: EnrolledPeer) -> Deferred[None]:
        """Keep `peer`, in place of what was kept of its id."""
        addresses = _addresses_text(peer.addresses)
        row = peer.id, peer.index, addresses, peer.secret
        return self._change(
            lambda: self._peers.update({peer.id: peer}),
            (("INSERT OR REPLACE INTO peers VALUES (?, ?, ?, ?)", row),),
        ).done

    def forget_peer(self, peer_id: str) -> Deferred[None]:
        return self._change(
            lambda: _drop(self._peers, peer_id), (("DELETE FROM peers WHERE id = ?", (peer_id,)),)
        ).done

    # Tunnel servers: their enrolments here, and their introductions

    def own_secret(self, make: Callable[[], bytes]) -> bytes:
        """This nameserver's own secret; the first time `make` makes it. Waits for the disk. Raises
        StoreFailed.
        """
        if self._own_secret is None:
            secret = make()
            self._wait_for(
                self._change(lambda: None, (("INSERT INTO own_secret VALUES (?)", (secret,)),)),
            )
            self._own_secret = secret
        return self._own_secret

    def enrolled(self) -> Mapping[str, tuple[ServerAddress, ...]]:
        """Where the tunnel servers are that were enrolled here, by id."""
        return self._enrolled

    def enroll(self, server_id: str, addresses: tuple[ServerAddress, ...]) -> Deferred[None]:
        """Keep that this server is enrolled, for these addresses."""
        row = server_id, _addresses_text(addresses)
        return self._change(
            lambda: self._enrolled.update({server_id: addresses}),
            (("INSERT OR REPLACE INTO enrolled VALUES (?, ?)", row),),
        ).done

    def forget_enrolled(self, server_id: str) -> Deferred[None]:
        return self._change(
            lambda: _drop(self._enrolled, server_id), (("DELETE FROM enrolled WHERE id = ?", (server_id,)),)
        ).done

    def introduced(self) -> Mapping[str, str]:
        """What servers have announced here, by id, as fleet/introduced writes it."""
        return self._introduced

    def introduce(self, server_id: str, state: str) -> Deferred[None]:
        return self._change(
            lambda: self._introduced.update({server_id: state}),
            (("INSERT OR REPLACE INTO introduced VALUES (?, ?)", (server_id, state)),),
        ).done

    def forget_introduced(self, server_id: str) -> Deferred[None]:
        return self._change(
            lambda: _drop(self._introduced, server_id),
            (("DELETE FROM introduced WHERE id = ?", (server_id,)),),
        ).done

    # Accounts of clients at CAs

    def accounts(self) -> list[str]:
        """As the nameserver's accounts write them."""
        return list(self._accounts.values())

    def keep_account(self, client: str, instance: str, account: str) -> Deferred[None]:
        """Keep the account of a client's instance, in place of what was kept of it."""
        return self._change(
            lambda: self._accounts.update({(client, instance): account}),
            (("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?)", (client, instance, account)),),
        ).done

    def forget_account(self, client: str, instance: str) -> Deferred[None]:
        def forget() -> None:
            self._accounts.pop((client, instance), None)

        statement = "DELETE FROM accounts WHERE client = ? AND instance = ?"
        return self._change(forget, ((statement, (client, instance)),)).done

    # The way to the disk

    @staticmethod
    def _wait_for(job: _Job) -> None:
        """Stand still until the disk has it. Raises StoreFailed."""
        job.finished.wait()
        if job.failed is not None:
            job.done.addErrback(lambda failure: None)  # it is raised here instead
            raise job.failed
        job.remember()

    def _change(self, remember: Callable[[], None], statements: tuple[_Statement, ...]) -> _Job:
        job = _Job(statements, remember)
        if self._connection is None:
            job.failed = StoreFailed(f"{self._path} is not open")
            job.finished.set()
            job.tell()
        elif self._writer is None:
            self._commit(self._connection, [job])
            self._tell([job])
        else:
            self._jobs.put(job)
        return job

    def _write(self, connection: sqlite3.Connection) -> None:
        """The writing thread: waits for a job, takes along those behind it, commits, reports."""
        assert self._reactor is not None
        is_open = True
        while is_open:
            jobs, is_open = self._waiting()
            if jobs:
                self._commit(connection, jobs)
                self._reactor.callFromThread(self._tell, jobs)
        connection.close()
        self._reactor.callFromThread(self._ended)

    def _ended(self) -> None:
        assert self._writer is not None
        assert self._closed is not None
        self._writer.join()
        self._writer = None
        self._closed.callback(None)

    def _waiting(self) -> tuple[list[_Job], bool]:
        """The jobs of one commit, and whether more may come: False when the store was closed."""
        jobs: list[_Job] = []
        while len(jobs) < _JOBS_PER_COMMIT:
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for job in jobs:
                    for statement, values in job.statements:
                        connection.execute(statement, values)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except Exception as problem:  # also what sqlite3 cannot take as a value: the thread must live
            for job in jobs:
                job.failed = StoreFailed(f"{self._path} was not written: {problem}")
        for job in jobs:
            job.finished.set()

    def _tell(self, jobs: list[_Job]) -> None:
        """In the reactor's thread: one log line when writing begins to fail, one when it works again."""
        failed = jobs[0].failed
        if failed is not None and not self._is_failing:
            self._log.error("{failed}", failed=failed)
        elif failed is None and self._is_failing:
            self._log.info("{path} is written again", path=self._path)
        self._is_failing = failed is not None
        for job in jobs:
            job.tell()

    def _read(self, connection: sqlite3.Connection) -> None:
        for zone, reserved, file_serial in connection.execute("SELECT * FROM serials"):
            if reserved is not None:
                self._reserved[zone] = reserved
            if file_serial is not None:
                self._file_serials[zone] = file_serial
        self._known.update(connection.execute("SELECT name, expires FROM known_names"))
        for server_id, addresses, boot in connection.execute("SELECT id, addresses, boot FROM seen_servers"):
            self._servers[server_id] = SeenServer(server_id, _read_addresses(addresses), boot)
        for serial, role, id_, names, expires, revoked in connection.execute("SELECT * FROM issued"):
            number = int(serial, 16)
            self._issued[number] = Issued(number, role, id_, tuple(json.loads(names)), expires, revoked)
        for key, serial, was, pem in connection.execute("SELECT * FROM renewals"):
            one = Renewed(key, int(serial, 16), int(was, 16), pem)
            self._renewals[one.serial] = self._renewals_by_key[key] = one
        for zone, name, rtype, was, now in connection.execute("SELECT * FROM amendments"):
            before, after = (octets and decode(name, rtype, octets) for octets in (was, now))
            self._amendments.setdefault(zone, {})[name, rtype] = Amendment(name, rtype, before, after)
        self._accepted.update(connection.execute("SELECT mac, good_until FROM accepted"))
        for zone, name, rtype, octets in connection.execute("SELECT * FROM copied"):
            self._copied.setdefault(zone, []).append(decode(name, rtype, octets))
        self._confirmed.update(connection.execute("SELECT zone, wall FROM confirmed"))
        for peer_id, index, addresses, secret in connection.execute("SELECT * FROM peers"):
            self._peers[peer_id] = EnrolledPeer(peer_id, index, _read_addresses(addresses), secret)
        for (secret,) in connection.execute("SELECT secret FROM own_secret"):
            self._own_secret = secret
        for server_id, addresses in connection.execute("SELECT id, addresses FROM enrolled"):
            self._enrolled[server_id] = _read_addresses(addresses)
        self._introduced.update(connection.execute("SELECT id, state FROM introduced"))
        for client, instance, account in connection.execute("SELECT * FROM accounts"):
            self._accounts[client, instance] = account


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)


def _prepare(connection: sqlite3.Connection) -> None:
    """Check that the file is ours and whole, set it to WAL, bring it to our schema. Raises ValueError."""

    def value(pragma: str) -> object:
        return connection.execute(f"PRAGMA {pragma}").fetchone()[0]

    # Exclusive: a second appliance on the same state is told at once, and no shared-memory file is needed.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    version = value("user_version")
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    if value("application_id") != APPLICATION_ID and not is_empty:
        raise ValueError("is the database of another program")
    assert isinstance(version, int)
    if version > SCHEMA:
        raise ValueError(
            f"was written by a newer version of this program (schema {version}, this one knows {SCHEMA});"
            " run that version, or start with another state directory"
        )
    wrong = value("quick_check")
    if wrong != "ok":
        raise sqlite3.DatabaseError(wrong)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN EXCLUSIVE")
    for migration in _MIGRATIONS[version:]:
        for statement in migration:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.execute("COMMIT")


def _why(problem: Exception) -> str:
    if isinstance(problem, OSError):
        return f"cannot be opened: {problem.strerror}"
    if isinstance(problem, sqlite3.OperationalError):
        if problem.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            return "is in use by another appliance; each needs a state directory of its own"
        return f"cannot be used: {problem}"
    if isinstance(problem, sqlite3.DatabaseError):
        return (
            f"is damaged ({problem}); restore it from a backup, or move it away to begin with an empty one"
            " (issued certificates, known names, servers and updates are then forgotten)"
        )
    if type(problem) is ValueError:
        return str(problem)
    return f"is damaged ({problem})"


def _addresses_text(addresses: Iterable[ServerAddress]) -> str:
    return json.dumps([[address.host, address.port] for address in addresses])


def _read_addresses(text: str) -> tuple[ServerAddress, ...]:
    return tuple(ServerAddress(host, port) for host, port in json.loads(text))


def _issuance(issued: Issued) -> _Statement:
    serial, names = f"{issued.serial:x}", json.dumps(issued.names)
    row = serial, issued.role, issued.id, names, issued.expires, issued.revoked
    return "INSERT OR REPLACE INTO issued VALUES (?, ?, ?, ?, ?, ?)", row


def _confirmation(zone: bytes, wall: float) -> _Statement:
    return "INSERT OR REPLACE INTO confirmed VALUES (?, ?)", (zone, wall)


def _drop(kept: dict[str, Any], key: str) -> None:
    kept.pop(key, None)
