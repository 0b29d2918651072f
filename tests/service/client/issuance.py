"""A CA whose answers the test says, and what else an attempt needs, without a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock

from appliance.dns.caa import Caa
from appliance.service.client.acmestate import AcmeState
from appliance.service.client.certifying import Issuing
from appliance.service.client.issuer import Seen
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.tickets import Tickets
from appliance.tunnel.certificaterequest import new_key

WWW = "www.example.com"
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
DAYS = 90
SIGNER: Any = load_pem_private_key(new_key().encode(), None)


def signed(name: str, key_pem: str, begins: datetime, days: float = DAYS) -> bytes:
    """A certificate as a CA would make it."""
    key: Any = load_pem_private_key(key_pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "A CA")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(SIGNER.public_key()), False)
    )
    return made.sign(SIGNER, SHA256()).public_bytes(Encoding.PEM)


class Calendar(Clock):
    """A clock on whose first second it is noon."""

    def wall(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds())


@dataclass
class ScriptedCa:
    """Takes every proof at the second look. ``fails[method]`` are raised, one at each call of it."""

    clock: Calendar
    fails: dict[str, list[Exception]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    orders: dict[str, Seen] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    told: tuple[tuple[datetime, datetime], float] | None = None
    account: str = "https://ca.test/account/1"
    caa_identities: tuple[str, ...] = ("ca.test",)
    replaced: list[str | None] = field(default_factory=list)
    days: float = DAYS

    def place(self, name: str, replaces: str | None) -> Seen:
        self._ask("place")
        self.replaced.append(replaces)
        url = f"https://ca.test/order/{len(self.orders) + 1}"
        self.names[url] = name
        self.orders[url] = Seen(url, "pending", value=f"value-{len(self.orders) + 1}", challenge="challenge")
        return self.orders[url]

    def look(self, url: str) -> Seen:
        self._ask("look")
        seen = self.orders[url]
        if not seen.challenge:
            self.looks[url] = self.looks.get(url, 0) + 1
        if seen.status == "pending" and self.looks.get(url, 0) >= 2:
            self.orders[url] = seen = replace(seen, status="ready")
        if seen.status == "processing":
            self.orders[url] = replace(seen, status="valid")
        return seen

    def answer(self, seen: Seen) -> None:
        self._ask("answer")
        self.orders[seen.url] = replace(seen, challenge="")

    def finalize(self, seen: Seen, name: str, key_pem: str) -> None:
        self._ask("finalize")
        assert self.names[seen.url] == name
        self.keys[seen.url] = key_pem
        self.orders[seen.url] = replace(seen, status="processing")

    def fetch(self, seen: Seen) -> bytes:
        self._ask("fetch")
        return signed(self.names[seen.url], self.keys[seen.url], self.clock.wall(), self.days)

    def window(self, certificate: str) -> tuple[tuple[datetime, datetime], float] | None:
        self._ask("window")
        return self.told

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.fails.get(what):
            raise self.fails[what].pop(0)


class Published:
    """Challenges that are published at once, or when the test says what becomes of them."""

    def __init__(self) -> None:
        self.live: list[tuple[str, str]] = []
        self.answers: list[Deferred[None]] = []
        self.records: tuple[Caa, ...] | Exception = ()

    def publish(self, name: str, value: str) -> Deferred[None]:
        self.live.append((name, value))
        return self.answers.pop(0) if self.answers else succeed(None)

    def withdraw(self, name: str, value: str) -> None:
        self.live.remove((name, value))


    def caa(self, name: str) -> Deferred[tuple[Caa, ...]]:
        return fail(self.records) if isinstance(self.records, Exception) else succeed(self.records)


class Heard:
    """What servers were told."""

    def __init__(self) -> None:
        self.accounts: list[tuple[str, tuple[str, ...]]] = []
        self.missing: dict[str, str] = {}

    def account(self, url: str, issuers: Sequence[str]) -> None:
        self.accounts.append((url, tuple(issuers)))

    def uncertified(self, name: str, why: str) -> None:
        self.missing[name] = why

    def certified(self, name: str) -> None:
        self.missing.pop(name, None)


class AtOnce:
    """No thread."""

    def __init__(self) -> None:
        self.stopped = False

    def call(self, what: Callable[[], Any]) -> Deferred[Any]:
        return maybeDeferred(what)

    def stop(self) -> None:
        self.stopped = True


def shared(directory: Path, clock: Calendar) -> tuple[Issuing, ScriptedCa, Published]:
    """All of it, for a client whose state is in the directory."""
    ca, published = ScriptedCa(clock), Published()
    state = AcmeState(directory, "https://ca.test/dir")
    tickets = Tickets(directory)
    tickets.renew(clock.wall())
    made = Issuing(
        clock, ca, state, published, Keypairs(tickets), AtOnce(), clock.wall, lambda low, high: high, Heard()
    )
    return made, ca, published


