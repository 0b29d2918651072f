"""The calls to a CA, against pebble: what is got, and how each thing that can be wrong is told."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
from acme.client import ClientNetwork
from acme.errors import ClientError, ConflictError
from acme.messages import Directory, Error

from appliance.acmesettings import AcmeSettings
from appliance.service.client import issuer as module
from appliance.service.client.acmestate import Account, AcmeState
from appliance.service.client.issuer import Issuer, IssuerFailed, IssuerRefused, IssuerSilent, Seen
from appliance.tunnel.certificaterequest import certificate_id, new_key
from appliance.tunnel.keypair import read_keypair
from tests.end_to_end.pebble import Pebble, Records

NAMES = ("www.example.test", "*.apps.example.test")


@dataclass
class Ca:
    directory: Path
    pebble: Pebble
    records: Records

    def issuer(self, state: str, **settings: str) -> tuple[Issuer, AcmeState]:
        kept = AcmeState(self.directory / state, self.pebble.url)
        contact = ("me@example.org",)
        return Issuer(AcmeSettings(True, self.pebble.url, contact, self.pebble.ca), kept), kept

    def decided(self, issuer: Issuer, seen: Seen, *undecided: str) -> Seen:
        until = time.monotonic() + 20
        while (seen := issuer.look(seen.url)).status in undecided:
            assert time.monotonic() < until
            time.sleep(0.02)
        return seen


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ca]:
    directory = tmp_path_factory.mktemp("ca")
    with Records() as records:
        pebble = Pebble(directory / "pebble", records.address)
        try:
            pebble.start(PEBBLE_WFE_NONCEREJECT="30")
            yield Ca(directory, pebble, records)
        finally:
            pebble.kill()


@pytest.mark.parametrize("name", NAMES)
def test_a_certificate(ca: Ca, name: str) -> None:
    """With three good nonces in ten rejected."""
    issuer, kept = ca.issuer("one")
    seen = issuer.place(name, None)
    assert seen.status == "pending"
    ca.records.txt[f"_acme-challenge.{name.removeprefix('*.')}"] = [seen.value]
    issuer.answer(seen)
    seen = ca.decided(issuer, seen, "pending")
    key = new_key()
    issuer.finalize(seen, name, key)
    seen = ca.decided(issuer, seen, "ready", "processing")
    pair = read_keypair(issuer.fetch(seen), key.encode())
    assert pair.names == (name,)
    assert certificate_id(pair.certificate_pem)
    assert issuer.window("a.b") is None
    account = kept.account()
    assert account is not None
    assert issuer.account == account.url


def test_an_account_is_made_once(ca: Ca) -> None:
    issuer, kept = ca.issuer("two")
    issuer.place(NAMES[0], None)
    account = kept.account()
    assert account is not None
    again, _ = ca.issuer("two")
    again.place(NAMES[0], None)
    assert again.account == account.url
    # As if the process had ended before the answer came.
    kept.put_account(Account(account.key_pem))
    again, _ = ca.issuer("two")
    again.place(NAMES[0], None)
    assert kept.account() == account


def test_what_the_ca_refuses(ca: Ca) -> None:
    issuer, _ = ca.issuer("one")
    with pytest.raises(IssuerRefused, match=r"the CA says: .*illegal character.* \(malformed\)"):
        issuer.place("under_score.example.test", None)
    placed = issuer.place("without.example.test", None)
    with pytest.raises(IssuerRefused, match="the CA answers with 404"):
        issuer.look(placed.url + "x")
    issuer.answer(placed)
    seen = ca.decided(issuer, placed, "pending")
    assert (seen.status, seen.words) == (
        "invalid",
        "No TXT records found for DNS challenge (unauthorized)",
    )


def test_a_ca_that_cannot_be_reached(ca: Ca, tmp_path: Path) -> None:
    kept = AcmeState(tmp_path, "https://localhost:1/dir")
    issuer = Issuer(AcmeSettings(True, "https://localhost:1/dir"), kept)
    with pytest.raises(IssuerSilent, match=r"the CA cannot be reached: .*Connection refused"):
        issuer.place(NAMES[0], None)
    account = kept.account()
    assert account is not None  # its key is there before anybody hears of it
    assert account.url == ""
    untrusted = Issuer(AcmeSettings(True, ca.pebble.url), AcmeState(tmp_path, ca.pebble.url))
    with pytest.raises(IssuerSilent, match="certificate verify failed"):
        untrusted.place(NAMES[0], None)


def test_a_state_directory_that_takes_nothing(ca: Ca, tmp_path: Path) -> None:
    (tmp_path / "acme").touch()
    issuer = Issuer(
        AcmeSettings(True, ca.pebble.url, (), ca.pebble.ca), AcmeState(tmp_path, ca.pebble.url)
    )
    with pytest.raises(IssuerSilent, match=r"Not a directory|File exists"):
        issuer.place(NAMES[0], None)


def test_a_ca_that_has_forgotten_the_account_gets_the_same_one_again(ca: Ca) -> None:
    issuer, kept = ca.issuer("three")
    issuer.place(NAMES[0], None)
    account = kept.account()
    assert account is not None
    kept.put_account(Account(account.key_pem, account.url + "f"))
    issuer, _ = ca.issuer("three")
    with pytest.raises(IssuerRefused, match="accountDoesNotExist"):
        issuer.place(NAMES[0], None)
    issuer.place(NAMES[0], None)
    assert kept.account() == account


def test_a_ca_that_wants_to_know_who_asks(tmp_path: Path) -> None:
    """External account binding (RFC 8555 7.3.4), with the right key, another, and none."""
    key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    pebble = Pebble(tmp_path / "pebble", "127.0.0.1:1")
    pebble.settings = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {"kid-1": key}}
    for name, text in (("right", key), ("wrong", "A" * 64)):
        (tmp_path / name).write_text(f"{text}\n")
    bound = AcmeSettings(True, pebble.url, (), pebble.ca, "kid-1", tmp_path / "right")
    wrong = AcmeSettings(True, pebble.url, (), pebble.ca, "kid-1", tmp_path / "wrong")
    unbound = AcmeSettings(True, pebble.url, (), pebble.ca)
    try:
        pebble.start()
        for settings in (wrong, unbound):
            with pytest.raises(IssuerRefused, match="xternal"):
                Issuer(settings, AcmeState(tmp_path, pebble.url)).place(NAMES[0], None)
        assert Issuer(bound, AcmeState(tmp_path, pebble.url)).place(NAMES[0], None).status == "pending"
    finally:
        pebble.kill()


class Windows(http.server.BaseHTTPRequestHandler):
    """RenewalInfo (RFC 9773 4.1, 4.2) for one certificate."""

    said: ClassVar[dict[str, bytes]] = {
        "/info/good.id": b'{"suggestedWindow":{"start":"2026-12-01T00:00:00Z","end":"2026-12-02T00:00:00Z"}}',
        "/info/bad.id": b'{"suggestedWindow":{}}',
    }

    def do_GET(self) -> None:
        body = self.said.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Retry-After", "21600")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """Nobody reads it here."""


@pytest.fixture
def windows() -> Iterator[str]:
    """Pebble of Debian has no RenewalInfo: the URL of a server that does."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Windows)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/info"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_window_of_a_renewal_and_what_it_replaces(
    ca: Ca, windows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer, _ = ca.issuer("one")
    posted: list[Any] = []
    post = ClientNetwork.post

    def seen(self: ClientNetwork, url: str, body: Any, **more: Any) -> Any:
        posted.append(body)
        return post(self, url, body, **more)

    monkeypatch.setattr(ClientNetwork, "post", seen)
    issuer.place(NAMES[0], "good.id")
    assert "replaces" not in posted[0].to_json()  # this CA would not know what that is
    issuer._directory._jobj["renewalInfo"] = windows
    first, last = datetime(2026, 12, 1, tzinfo=UTC), datetime(2026, 12, 2, tzinfo=UTC)
    assert issuer.window("good.id") == ((first, last), 21600.0)
    with pytest.raises(IssuerSilent, match="WindowRefused"):
        issuer.window("bad.id")
    with pytest.raises(IssuerRefused, match="404"):
        issuer.window("no.id")
    posted.clear()
    issuer.place(NAMES[0], "good.id")
    assert posted[0].to_json()["replaces"] == "good.id"

    def taken(self: ClientNetwork, url: str, body: Any, **more: Any) -> Any:
        if getattr(body, "replaces", None):
            raise ConflictError("https://ca.test/order/of/before")
        return post(self, url, body, **more)

    # An order was placed for it, and the process ended before it heard of that.
    monkeypatch.setattr(ClientNetwork, "post", taken)
    # "ready" where the CA takes the name for validated by an earlier test.
    assert issuer.place(NAMES[0], "good.id").status in ("pending", "ready")


class Answer:
    """Of a CA, with an order in it."""

    headers: ClassVar[dict[str, str]] = {"Location": "https://ca.test/order/1"}

    def json(self) -> dict[str, Any]:
        return {"status": "ready", "identifiers": [{"type": "dns", "value": NAMES[0]}], "authorizations": []}


class Network:
    """What takes the place of a connection to a CA: `error` answers orders that replace something."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.replaced: list[str | None] = []

    def post(self, url: str, body: Any, **_: Any) -> Answer:
        self.replaced.append(body.replaces)
        if body.replaces is not None:
            raise self.error
        return Answer()


def problem(code: str) -> Error:
    error: Error = Error.from_json({"type": f"urn:ietf:params:acme:error:{code}", "detail": "no"})
    return error


def status(code: int) -> ClientError:
    answer = requests.Response()
    answer.status_code = code
    return ClientError(answer)


def offline(tmp_path: Path, error: Exception) -> tuple[Issuer, Network]:
    """An issuer that has its account, with a CA that speaks ARI."""
    state = AcmeState(tmp_path, "https://ca.test/dir")
    issuer, network = Issuer(AcmeSettings(True, "https://ca.test/dir"), state), Network(error)
    issuer._account = Account(new_key(), "https://ca.test/account/2")
    places = ("newNonce", "newOrder", "renewalInfo")
    issuer._directory = Directory({place: f"https://ca.test/{place}" for place in places})
    issuer._net = network
    return issuer, network


@pytest.mark.parametrize(
    "error",
    [ConflictError("UNKNOWN-LOCATION"), problem("unauthorized"), problem("malformed"), status(403)],
    ids=["409", "unauthorized", "malformed", "403"],
)
def test_a_ca_that_refuses_what_is_replaced_is_asked_once_without_it(
    tmp_path: Path, error: Exception
) -> None:
    """Certificates of another account, say, since account.json was lost (RFC 9773 5)."""
    issuer, network = offline(tmp_path, error)
    assert issuer.place(NAMES[0], "old.id").status == "ready"
    assert network.replaced == ["old.id", None]


@pytest.mark.parametrize(
    "error",
    [problem("rateLimited"), problem("serverInternal"), status(429), status(503)],
    ids=["rateLimited", "serverInternal", "429", "503"],
)
def test_a_ca_that_has_no_time_is_not_asked_twice(tmp_path: Path, error: Exception) -> None:
    issuer, network = offline(tmp_path, error)
    with pytest.raises(IssuerSilent):
        issuer.place(NAMES[0], "old.id")
    assert network.replaced == ["old.id"]


def test_no_answer_is_too_long_for_a_log() -> None:
    assert len(str(IssuerFailed("x" * 10_000))) == module.MAX_WORDS


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 0.0), ("120", 120.0), ("soon", 0.0), ("Fri, 01 Jan 1999 00:00:00 GMT", 0.0)]
)
def test_retry_after(text: str, seconds: float) -> None:
    assert module._seconds(text) == seconds
    assert module._seconds("Fri, 01 Jan 2100 00:00:00 GMT") > 0
