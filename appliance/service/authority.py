"""The appliance's own certificates: its CA, what the CA issues, and what it takes back.

Hides the files of the state directory: `ca.pem`, `server.pem`, `nameserver.pem` (each a key and its
certificate, mode 0600) and `revoked.pem` (the CRL). A CA's key exists only where the CA was made; a server
that was enrolled has its credential from the enrolment and can issue nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.defer import Deferred, FirstError, fail, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.service.renewed import RenewedFiles
from appliance.service.signing import Signer
from appliance.service.store import Issued, Renewed, Store
from appliance.service.wholefile import replace_whole
from appliance.tunnel.certificates import (
    SERVICE_NAME,
    CertificateNotIssued,
    CertificateRefused,
    Credential,
    CredentialRefused,
    Peer,
    Reason,
    Role,
    examine,
    issue_client,
    issue_nameserver,
    issue_server,
    make_authority,
    read_certificate,
    read_credential,
)
from appliance.tunnel.crl import CrlRefused, RevocationList, make_crl, read_crl
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import AcmeKey, Enrolment, Following, Introduction, Invitation
from appliance.tunnel.names import BadHostName, normal
from appliance.tunnel.renewal import RenewalRefused, Request, overdue_from

AUTHORITY_DAYS = 3650
"""The CA, and the credentials whose keys lie beside its key: a shorter life would protect nothing."""
WARNING_DAYS = 30
"""Before the end of what does not renew itself."""
OVERDUE_SHARE = 1 / 6
"""Of a lifetime, what is left of a certificate that should have renewed itself by now: half of the time that
it has for it is over.
"""
MAX_ID_CHARACTERS = 63

NO_REVOCATIONS = RevocationList(0, frozenset())


class AuthorityRefused(Exception):
    """The certificates in the state directory cannot be used; the text names the file and says why."""


class NotIssued(ValueError):
    """What was asked of the CA is not done; the text says why."""


@dataclass(frozen=True, slots=True)
class Expiring:
    """A certificate that ends soon, or has ended, and that no later one of the same id replaces; it should
    have renewed itself if it is one that can.
    """

    what: str
    id: str
    expires: datetime
    warned_from: datetime

    def __str__(self) -> str:
        whose = f"{self.what} {self.id}".strip()
        return f"the certificate of {whose} expires on {self.expires:%Y-%m-%d}"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this appliance is in its own certificates; a part that it does not run has no id."""

    server_id: str | None
    nameserver_id: str | None
    addresses: tuple[ServerAddress, ...] = ()
    enrolment: Enrolment | None = None


class Authority:
    """The CA, or what an enrolled server has instead.

    `open()` makes or reads everything; after it `ca`, `server`, `nameserver`, `revoked` and `service_name`
    hold. `wall` says the time, aware, `seconds` the monotonic one. `discovery` says the discovery name of a
    list of granted names, `servers` the addresses that a new client may start from. `introduction` says, of a
    tunnel server's id and its certificate's serial number, to whom it is to announce itself (and may raise
    NotIssued);
    `acme_key`, of a client's, with what key its own ACME client may answer challenges of its names.
    """

    _log = Logger()
    ca: x509.Certificate
    server: Credential | None = None
    nameserver: Credential | None = None
    revoked: RevocationList = NO_REVOCATIONS
    revoked_pem: bytes = b""
    service_name: str = SERVICE_NAME

    def __init__(
        self,
        state: Path,
        store: Store,
        identity: Identity,
        *,
        days: int,
        wall: Callable[[], datetime],
        discovery: Callable[[Sequence[str]], str],
        servers: Callable[[], Sequence[ServerAddress]],
        introduction: Callable[[str, int], Introduction | None] = lambda server_id, serial: None,
        acme_key: Callable[[str, int, Sequence[str]], AcmeKey | None] = lambda client_id, serial, names: None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._store = store
        self._identity = identity
        self._days = days
        self._wall = wall
        self._discovery = discovery
        self._servers = servers
        self._introduction = introduction
        self._acme_key = acme_key
        self._seconds = seconds
        self._key: Credential | None = None
        self._signer: Signer | None = None
        self._being_recorded: dict[int, Issued] = {}
        self._enrolled: dict[Role, Credential] = {}
        self._told: list[Callable[[RevocationList], None]] = []

    def open(self) -> None:
        """Make or read keys, certificates and the CRL; the store is open. Raises AuthorityRefused."""
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        enrolment = self._identity.enrolment
        try:
            if enrolment is not None:
                self.ca = read_certificate(enrolment.ca_pem)
                self._enrolled = self._read_enrolled(enrolment)
                self.server = self._renewed(Role.SERVER)
                self.nameserver = self._renewed(Role.NAMESERVER)
                self.service_name = enrolment.service_name
            else:
                self._key = self._read("ca.pem") or self._make_ca()
                self.ca = self._key.certificate
                self._open_own()
                self._signer = Signer(
                    self._store,
                    self._key,
                    days=self._days,
                    wall=self._wall,
                    seconds=self._seconds,
                    examine=self.examine,
                    record=self._record_renewed,
                )
        except CredentialRefused as error:
            where = "the enrolment" if enrolment is not None else str(self._state / "ca.pem")
            raise AuthorityRefused(f"{where}: {error}") from None
        self._open_revoked()

    @property
    def issues(self) -> bool:
        """Whether the CA's key is here."""
        return self._key is not None

    def examine(self, certificate: x509.Certificate | None, role: Role, wall: datetime | None = None) -> Peer:
        """Who presents this certificate. Raises CertificateRefused."""
        return examine(
            certificate,
            role=role,
            ca=self.ca,
            revoked=self.revoked,
            wall=wall or self._wall(),
            service_name=self.service_name,
        )

    def on_revoked(self, tell: Callable[[RevocationList], None]) -> None:
        """Call `tell` with every new revocation list."""
        self._told.append(tell)

    def granted(self, client_id: str, serial: int) -> tuple[str, ...]:
        """The names of that certificate of a client, if it was issued here and is not revoked: those that a
        certificate of the client's grants that is good today. That one's own end does not count: a key that
        goes with it goes with those that renew it.
        """
        held = self._store.issued_as(serial)
        if held is None or (held.role, held.id) != (Role.CLIENT.name.lower(), client_id) or held.revoked:
            return ()
        good = {name for one in self._good(held.role, client_id) for name in one.names}
        return tuple(name for name in held.names if name in good)

    def may_announce(self, server_id: str, serial: int) -> bool:
        """Whether the key that goes with that certificate of a tunnel server's is good: the certificate is
        not revoked, nor, where that can be known, are all of the server's over.
        """
        if serial in self.revoked.serials:
            return False
        return not self.issues or any(self._good(Role.SERVER.name.lower(), server_id))

    def _good(self, role: str, owner: str) -> Iterator[Issued]:
        now = self._wall().timestamp()
        for one in self._store.issued():
            if (one.role, one.id) == (role, owner) and one.revoked is None and one.expires > now:
                yield one

    # What the CA does

    def invite(self, names: Sequence[str], client_id: str | None = None) -> Deferred[Invitation]:
        """An invitation whose client may serve `names`, once it is recorded on disk. Raises NotIssued.

        Without a `client_id` the client is called after its first name.
        """
        ca = self._ca()
        try:
            granted = tuple(dict.fromkeys(normal(name) for name in names))
        except BadHostName as error:
            raise NotIssued(str(error)) from None
        if not granted:
            raise NotIssued("an invitation needs at least one name")
        chosen = client_id or self._free_id(granted[0].removeprefix("*."))
        self._check_id(chosen, Role.CLIENT)
        try:
            credential = issue_client(
                ca,
                client_id=chosen,
                names=granted,
                service_name=self.service_name,
                wall=self._wall(),
                days=self._days,
            )
        except CertificateNotIssued as error:
            raise NotIssued(str(error)) from None
        invitation = Invitation(
            client=chosen,
            names=granted,
            discovery=self._discovery(granted),
            service_name=self.service_name,
            servers=tuple(self._servers()),
            ca_pem=ca.certificate_pem(),
            credential_pem=credential.pem(),
            acme_key=self._acme_key(chosen, credential.certificate.serial_number, granted),
        )
        recorded = self._record(Role.CLIENT, chosen, granted, credential)
        return recorded.addCallback(lambda _: invitation)

    def invite_again(self, client_id: str) -> Deferred[Invitation]:
        """A new invitation of a client, for the names that its newest certificate has, be that expired.
        Raises NotIssued.
        """
        self._ca()
        of_it = [one for one in self._store.issued() if (one.role, one.id) == ("client", client_id)]
        held = [one for one in of_it if one.revoked is None]
        if not of_it:
            raise NotIssued(f"no client {client_id} was invited here")
        if not held:
            raise NotIssued(f"{client_id} is revoked: whoever is to serve its names needs a new invitation")
        return self.invite(max(held, key=lambda one: one.expires).names, client_id)

    def renew(self, request: Request) -> Deferred[str]:
        """What a holder of one of our certificates asks for in its place. Fails with RenewalRefused."""
        if self._signer is None:
            return fail(RenewalRefused("the CA's key is not here"))
        return self._signer.sign(request)

    def renewed(self, role: Role, credential: Credential) -> None:
        """The credential that this appliance was enrolled with has a follower, which is on disk."""
        if role is Role.SERVER:
            self.server = credential
        else:
            self.nameserver = credential

    def enrolled(self, role: Role) -> Credential | None:
        """What this appliance was enrolled with."""
        return self._enrolled.get(role)

    def enroll(
        self,
        server_id: str,
        addresses: Sequence[ServerAddress],
        *,
        following: Callable[[], Deferred[Following]] | None = None,
        is_server: bool = True,
    ) -> Deferred[Enrolment]:
        """The one file of a further appliance, once it is recorded on disk. Raises NotIssued.

        It is a nameserver when `following` makes what it needs for that (which may raise NotIssued), a tunnel
        server unless told otherwise.
        """
        ca = self._ca()
        if not addresses:
            raise NotIssued("a server needs at least one public address")
        self._check_id(server_id, Role.SERVER if following is None else Role.NAMESERVER)
        issued: dict[Role, Credential] = {}
        try:
            if is_server:
                issued[Role.SERVER] = issue_server(
                    ca,
                    server_id=server_id,
                    service_name=self.service_name,
                    addresses=[address.host for address in addresses],
                    wall=self._wall(),
                    days=self._days,
                )
            if following is not None:
                issued[Role.NAMESERVER] = issue_nameserver(
                    ca, nameserver_id=server_id, wall=self._wall(), days=self._days
                )
        except CertificateNotIssued as error:
            raise NotIssued(str(error)) from None

        def enrolled(followed: Following | None) -> Deferred[Enrolment]:
            pems = {role: credential.pem() for role, credential in issued.items()}
            introduction = None
            if is_server:
                serial = issued[Role.SERVER].certificate.serial_number
                introduction = self._introduction(server_id, serial)
            enrolment = Enrolment(
                server_id=server_id,
                service_name=self.service_name,
                addresses=tuple(addresses) if is_server else (),
                ca_pem=ca.certificate_pem(),
                credential_pem=pems.get(Role.SERVER, b""),
                following=followed,
                nameserver_pem=pems.get(Role.NAMESERVER, b""),
                introduction=introduction,
            )
            recorded = [self._record(role, server_id, (), one) for role, one in issued.items()]
            if is_server:
                recorded.append(self._store.enroll(server_id, tuple(addresses)))
            return _all_of(recorded).addCallback(lambda _: enrolment)

        if following is None:
            return enrolled(None)
        return following().addCallback(enrolled)

    def revoke(self, client_or_server_id: str) -> Deferred[list[Issued]]:
        """Take back every certificate of a client or server; everybody in `on_revoked` hears of it at once.

        Fires with what was revoked, once the disk has it. Raises NotIssued, or fails with it where the disk
        does not take the list: then it is to be said again.
        """
        self._ca()
        if client_or_server_id == self._identity.server_id:
            raise NotIssued(f"{client_or_server_id} is this appliance itself")
        of_it = [issued for issued in self._known() if issued.id == client_or_server_id]
        if not of_it:
            raise NotIssued(f"no certificate was issued to a client or server {client_or_server_id}")
        # What the database has and the list has not: the disk did not take the list when that was said first.
        unlisted = self._revoked_serials() - self.revoked.serials
        taken = [issued for issued in of_it if issued.revoked is None or issued.serial in unlisted]
        if not taken:
            raise NotIssued(f"{client_or_server_id} is revoked already")
        now = self._wall().timestamp()
        held = [issued for issued in taken if issued.revoked is None]
        done = _all_of([self._store.record_revoked(issued.serial, now) for issued in held])

        def publish(_: object) -> list[Issued]:
            try:
                self._write_crl()
            except OSError as error:
                raise NotIssued(
                    f"{self._state / 'revoked.pem'} cannot be written: {error.strerror or error}."
                    f" Until it is, {client_or_server_id} is not kept out: make room, and revoke"
                    f" {client_or_server_id} again"
                ) from None
            self._tell()
            return taken

        return done.addCallback(publish)

    def take(self, crl_pem: bytes, /) -> bool:
        """Take over a revocation list of our CA that somebody else brought; False if ours is as new.

        Raises CrlRefused.
        """
        brought = read_crl(crl_pem, self.ca)
        if brought.number <= self.revoked.number:
            return False
        replace_whole(self._state / "revoked.pem", crl_pem)
        self.revoked, self.revoked_pem = brought, crl_pem
        self._tell()
        return True

    def reload(self) -> list[str]:
        """Take over the revocation list that somebody put into the state directory; what is wrong with it."""
        path = self._state / "revoked.pem"
        try:
            self.take(path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, CrlRefused) as error:
            return [f"{path}: {error}"]
        return []

    def expiring(self) -> list[Expiring]:
        """Everything that ends soon: what renews itself if that is overdue, the rest a month before."""
        wall = self._wall()
        return [one for one in self._lifetimes() if one.warned_from < wall]

    def warn(self) -> None:
        """One log line for each certificate that ends soon."""
        for one in self.expiring():
            self._log.warn("{expiring}", expiring=one)

    # Files

    def _make_ca(self) -> Credential:
        name = f"tunnel-appliance CA {self._wall():%Y-%m-%d}"
        made = make_authority(name, self._wall(), AUTHORITY_DAYS)
        replace_whole(self._state / "ca.pem", made.pem())
        self._log.info("made a CA in {path}", path=self._state / "ca.pem")
        return made

    def _read_enrolled(self, enrolment: Enrolment) -> dict[Role, Credential]:
        held = {}
        if enrolment.credential_pem:
            held[Role.SERVER] = read_credential(enrolment.credential_pem)
        if enrolment.following is not None:
            held[Role.NAMESERVER] = read_credential(enrolment.nameserver_pem)
        return held

    def _renewed(self, role: Role) -> Credential | None:
        """What this appliance was enrolled with, or its follower on disk."""
        first = self._enrolled.get(role)
        return None if first is None else self.files(role).current(first, self.ca)

    def files(self, role: Role) -> RenewedFiles:
        """Where the followers of an enrolled credential are."""
        return RenewedFiles(self._state, f"{role.name.lower()}-")

    def _open_own(self) -> None:
        """The credentials of the parts that run here; made again when what they say is no longer so."""
        ca = self._ca()
        identity = self._identity
        if identity.server_id is not None:
            hosts = sorted(dict.fromkeys(address.host for address in identity.addresses))
            self.server = self._own("server.pem", Role.SERVER, identity.server_id, hosts)
            if self.server is None:
                self.server = issue_server(
                    ca,
                    server_id=identity.server_id,
                    service_name=self.service_name,
                    addresses=hosts,
                    wall=self._wall(),
                    days=AUTHORITY_DAYS,
                )
                replace_whole(self._state / "server.pem", self.server.pem())
        if identity.nameserver_id is not None:
            self.nameserver = self._own("nameserver.pem", Role.NAMESERVER, identity.nameserver_id, [])
            if self.nameserver is None:
                self.nameserver = issue_nameserver(
                    ca, nameserver_id=identity.nameserver_id, wall=self._wall(), days=AUTHORITY_DAYS
                )
                replace_whole(self._state / "nameserver.pem", self.nameserver.pem())

    def _own(self, filename: str, role: Role, own_id: str, hosts: list[str]) -> Credential | None:
        """What the file holds, if it still says who we are."""
        held = self._read(filename)
        if held is None:
            return None
        try:
            peer = examine(held.certificate, role=role, ca=self.ca, revoked=None, wall=self._wall())
        except CertificateRefused as refused:
            if refused.reason is Reason.NOT_YET_VALID:
                raise AuthorityRefused(f"{self._state / filename}: {refused.text}") from None
            return None
        return held if peer.id == own_id and sorted(peer.addresses) == hosts else None

    def _read(self, filename: str) -> Credential | None:
        path = self._state / filename
        try:
            return read_credential(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AuthorityRefused(f"{path}: cannot be read: {error.strerror}") from None
        except CredentialRefused as error:
            raise AuthorityRefused(f"{path}: {error}") from None

    def _open_revoked(self) -> None:
        path = self._state / "revoked.pem"
        if path.exists():
            try:
                self.revoked_pem = path.read_bytes()
                self.revoked = read_crl(self.revoked_pem, self.ca)
            except OSError as error:
                raise AuthorityRefused(f"{path}: cannot be read: {error.strerror}") from None
            except CrlRefused as error:
                raise AuthorityRefused(f"{path}: {error}") from None
        if self.issues and not self._revoked_serials() <= self.revoked.serials:
            try:
                self._write_crl()  # a crash came between the database and the list
            except OSError as error:
                raise AuthorityRefused(f"{path}: cannot be written: {error.strerror}") from None

    def _revoked_serials(self) -> frozenset[int]:
        now = self._wall().timestamp()
        held = self._store.issued()
        revoked = (one for one in held if one.revoked is not None)
        return frozenset(one.serial for one in revoked if one.expires > now or self._outlived(one))

    def _outlived(self, one: Issued) -> bool:
        """Whether a key goes with that certificate which does not end with it: that of a tunnel server's
        announcements, which nameservers that know no more than the list look up there.
        """
        return one.role == Role.SERVER.name.lower() and not self._store.is_renewal(one.serial)

    def _write_crl(self) -> None:
        wanted = self._revoked_serials()
        revoked = {
            one.serial: datetime.fromtimestamp(one.revoked, UTC)
            for one in self._store.issued()
            if one.serial in wanted and one.revoked is not None
        }
        pem = make_crl(self._ca(), revoked, self.revoked.number + 1, self._wall())
        replace_whole(self._state / "revoked.pem", pem)
        self.revoked, self.revoked_pem = read_crl(pem, self.ca), pem

    # The rest

    def _ca(self) -> Credential:
        if self._key is None:
            raise NotIssued("the CA's key is not here but at the appliance that enrolled this server")
        return self._key

    def _tell(self) -> None:
        for tell in self._told:
            tell(self.revoked)

    def _record(
        self, role: Role, owner: str, names: tuple[str, ...], credential: Credential
    ) -> Deferred[None]:
        certificate = credential.certificate
        expires = certificate.not_valid_after_utc.timestamp()
        issued = Issued(certificate.serial_number, role.name.lower(), owner, names, expires)
        return self._recording(issued, self._store.record_issued(issued))

    def _record_renewed(self, issued: Issued, renewed: Renewed, over: list[int]) -> Deferred[None]:
        return self._recording(issued, self._store.record_renewed(issued, renewed, over))

    def _recording(self, issued: Issued, recorded: Deferred[None]) -> Deferred[None]:
        """What is revoked before the disk has it is revoked as well: its row is there first."""
        self._being_recorded[issued.serial] = issued

        def done(result: Any) -> Any:
            del self._being_recorded[issued.serial]
            return result

        return recorded.addBoth(done)

    def _known(self) -> Iterator[Issued]:
        """What was issued, be it only on its way to the disk."""
        yield from self._store.issued()
        yield from self._being_recorded.values()

    def _check_id(self, wanted: str, role: Role) -> None:
        """Whether somebody of this role may have this id: `revoke` takes an id and no role. A nameserver and
        a tunnel server of one id may be one appliance, or two programs on one machine. Raises NotIssued.
        """
        own = self._identity
        if wanted == own.server_id or (wanted == own.nameserver_id and role is not Role.SERVER):
            raise NotIssued(f"{wanted} is this appliance itself")
        is_client = role is Role.CLIENT
        for one in self._known():
            if one.id == wanted and one.revoked is None and (one.role == "client") != is_client:
                held, needs = ("server", "client") if is_client else ("client", "server")
                raise NotIssued(f"{wanted} is the id of a {held} already: a {needs} needs another")

    def _free_id(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it that no certificate has."""
        taken = {issued.id for issued in self._known()}
        taken |= {self._identity.server_id or "", self._identity.nameserver_id or ""}
        count, chosen = 1, _cut(wanted, "")
        while chosen in taken:
            count += 1
            chosen = _cut(wanted, f"-{count}")
        return chosen

    def _lifetimes(self) -> Iterator[Expiring]:
        """What each certificate that still counts lives until."""
        a_month = timedelta(days=WARNING_DAYS)
        end = self.ca.not_valid_after_utc
        yield Expiring("the CA", "", end, end - a_month)
        for what, credential in (("this server", self.server), ("this nameserver", self.nameserver)):
            if credential is not None:
                end = credential.certificate.not_valid_after_utc
                yield Expiring(
                    what, "", end, end - a_month if self.issues else overdue_from(credential.certificate)
                )
        latest: dict[tuple[str, str], float] = {}
        for one in self._store.issued():
            if one.revoked is None:
                key = (one.role, one.id)
                latest[key] = max(latest.get(key, 0.0), one.expires)
        for (role, owner), expires in sorted(latest.items()):
            end = datetime.fromtimestamp(expires, UTC)
            yield Expiring(role, owner, end, end - timedelta(days=self._days) * OVERDUE_SHARE)


def first_failure(failure: Failure) -> Failure:
    """What was the first to fail of what gatherResults gathers."""
    assert isinstance(failure.value, FirstError)
    return failure.value.subFailure


def _all_of(recorded: list[Deferred[None]]) -> Deferred[Any]:
    """Fires when the disk has all of it; fails as the first of them does."""
    return gatherResults(recorded, consumeErrors=True).addErrback(first_failure)


def _cut(name: str, suffix: str) -> str:
    return name[: MAX_ID_CHARACTERS - len(suffix)].strip("._-") + suffix
