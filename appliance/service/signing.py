"""Renews certificates where the CA's key is: whose, when, how often; and what was signed is on disk first.

Who asks may be anybody on a link or a watch: what counts is the signature by the key of the certificate that
is to be renewed. A renewed certificate says what that one says, for the new key, and is one of the same id:
revoking the id revokes it. The same request again gets the same answer, from the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from appliance.fleet.pace import Pace
from appliance.service.store import Issued, Renewed, Store, StoreFailed
from appliance.tunnel.certificates import (
    CertificateNotIssued,
    CertificateRefused,
    Credential,
    Peer,
    Role,
    issue_again,
)
from appliance.tunnel.renewal import RenewalRefused, Request, Wanted, is_too_early, judge, renewable_from

PER_SECOND = 50.0
"""Requests that are looked at, of everybody together. One costs 0.5 ms; 10,000 clients that were invited on
one day ask over six."""
PER_SECOND_OF_ONE = 10.0
"""Of them, those that one server or nameserver asks for, so that no other has to wait for it."""
MAX_RENEWALS_OF_ONE = 16
"""Certificates that one is renewed by: as many as there may be instances with one invitation. Each has a key
of its own; and whoever stole the key cannot mint more of it."""


class Signer:
    """Signs with `ca` for `days`. `examine` is the authority's; `record` keeps what was issued, and what it
    renews, and no longer the serial numbers that it is given; `seconds` is monotonic.
    """

    _log = Logger()

    def __init__(
        self,
        store: Store,
        ca: Credential,
        *,
        days: int,
        wall: Callable[[], datetime],
        seconds: Callable[[], float],
        examine: Callable[[x509.Certificate, Role], Peer],
        record: Callable[[Issued, Renewed, list[int]], Deferred[None]],
    ) -> None:
        self._store = store
        self._ca = ca
        self._days = days
        self._wall = wall
        self._seconds = seconds
        self._examine = examine
        self._record = record
        self._pace = Pace(PER_SECOND)
        self._being_recorded: set[str] = set()

    def sign(self, request: Request) -> Deferred[str]:
        """Fires with the new certificate, PEM, when it is on disk. Fails with RenewalRefused."""
        try:
            if not self._pace.allows(self._seconds()):
                raise RenewalRefused("too many certificates are being renewed now")
            wanted = judge(request)
            self._examine(wanted.peer.certificate, wanted.peer.role)
            before = self._answered(wanted)
            return succeed(before) if before is not None else self._signed(wanted)
        except CertificateRefused as refused:
            return fail(RenewalRefused(refused.text))
        except CertificateNotIssued as refused:
            return fail(RenewalRefused(str(refused)))
        except RenewalRefused as refused:
            return fail(refused)

    def _answered(self, wanted: Wanted) -> str | None:
        """What this request got before. Raises RenewalRefused."""
        if wanted.digest in self._being_recorded:
            raise RenewalRefused("it is being renewed at this moment")
        before = self._store.renewed(wanted.digest)
        if before is None:
            return None
        one = self._store.issued_as(before.serial)
        if one is None or one.revoked is not None or before.was != wanted.peer.serial:
            raise RenewalRefused("that key has a certificate already, and not in the place of this one")
        return before.pem

    def _signed(self, wanted: Wanted) -> Deferred[str]:
        peer, wall = wanted.peer, self._wall()
        self._check(peer, wall)
        certificate = issue_again(self._ca, peer.certificate, wanted.key, wall=wall, days=self._days)
        role, expires = peer.role.name.lower(), certificate.not_valid_after_utc
        if expires <= peer.expires:
            raise RenewalRefused(self._no_later(expires, peer.expires))
        held = self._store.issued_as(peer.serial)
        assert held is not None  # _check has seen it
        issued = Issued(certificate.serial_number, role, peer.id, held.names, expires.timestamp())
        pem = certificate.public_bytes(Encoding.PEM).decode("ascii")
        self._being_recorded.add(wanted.digest)
        renewed = Renewed(wanted.digest, issued.serial, peer.serial, pem)
        recorded = self._record(issued, renewed, self._over(role, peer.id, wall.timestamp()))

        def done(result: object) -> object:
            self._being_recorded.discard(wanted.digest)
            return result

        def told(_: object) -> str:
            self._log.info(
                "renewed the certificate of {role} {id}, until {expires:%Y-%m-%d}",
                role=role,
                id=peer.id,
                expires=expires,
            )
            return pem

        return recorded.addBoth(done).addCallbacks(told, _not_kept)

    def _no_later(self, expires: datetime, held: datetime) -> str:
        """Why the next certificate would end, at `expires`, no later than the one that is held."""
        if expires == self._ca.certificate.not_valid_after_utc:
            return f"the CA itself ends on {expires:%Y-%m-%d}"
        return (
            f"certificates live {self._days} days now: this one, which lives longer, can be renewed"
            f" from {held - timedelta(days=self._days):%Y-%m-%d} on"
        )

    def _check(self, peer: Peer, wall: datetime) -> None:
        """Whether this certificate, which is good, may be renewed now. Raises RenewalRefused."""
        held = self._store.issued_as(peer.serial)
        if held is None or (held.role, held.id) != (peer.role.name.lower(), peer.id):
            raise RenewalRefused("this appliance has no record of that certificate")
        if held.revoked is not None:
            raise RenewalRefused("the certificate is revoked")
        if peer.role is Role.CLIENT and frozenset(held.names) != frozenset(peer.names):
            raise RenewalRefused("the certificate grants other names than were recorded")
        if peer.role is Role.SERVER:
            enrolled = {at.host for at in self._store.enrolled().get(peer.id, ())}
            if not enrolled.issuperset(peer.addresses):
                raise RenewalRefused(f"{peer.id} is not enrolled for these addresses any more")
        if is_too_early(peer.certificate, wall):
            raise RenewalRefused(f"it can be renewed from {renewable_from(peer.certificate):%Y-%m-%d} on")
        if self._store.renewals_of(peer.serial) >= MAX_RENEWALS_OF_ONE:
            raise RenewalRefused(f"it was renewed {MAX_RENEWALS_OF_ONE} times already")

    def _over(self, role: str, owner: str, now: float) -> list[int]:
        """Renewals of this owner that have ended and need not be remembered: no key was given out that goes
        with them, as with a first certificate.
        """
        return [
            one.serial
            for one in self._store.issued()
            if (one.role, one.id) == (role, owner)
            and one.expires <= now
            and one.revoked is None
            and self._store.is_renewal(one.serial)
        ]


def _not_kept(failure: Failure) -> str:
    failure.trap(StoreFailed)
    raise RenewalRefused("the appliance cannot write to its disk")
