"""One attempt: what is asked in which order, what is on disk before it, and every way for it to fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from appliance.dns.caa import Caa
from appliance.service.client.acmestate import AcmeState
from appliance.service.client.certifying import (
    CAA_SECONDS,
    DECISION_SECONDS,
    POLL_SECONDS,
    Certifying,
    Issuing,
)
from appliance.service.client.challenges import ChallengeNotPublished
from appliance.service.client.issuer import IssuerLimits, IssuerRefused, IssuerSilent, Seen
from appliance.service.client.resolver import LookupFailed
from appliance.tunnel.certificaterequest import certificate_id
from appliance.tunnel.issuance import (
    RATE_LIMITED_SECONDS,
    REFUSED_SECONDS,
    STOPPED_SECONDS,
    Issuance,
    State,
)
from appliance.tunnel.issuanceledger import Ledger
from appliance.tunnel.keypair import KeypairRefused
from tests.service.client.issuance import NOON, WWW, Calendar, Heard, Published, ScriptedCa, shared

ORDER = "https://ca.test/order/1"


class Attempt:
    """One, with all that it needs."""

    def __init__(self, directory: Path) -> None:
        self.clock = Calendar()
        self.shared: Issuing
        self.ca: ScriptedCa
        self.published: Published
        self.shared, self.ca, self.published = shared(directory, self.clock)
        assert isinstance(self.shared.telling, Heard)
        self.heard = self.shared.telling
        self.issuance = Issuance(Ledger(), None, 0.0)
        self.words = ""

    def run(self, seconds: int = 10) -> Deferred[None]:
        certifying = Certifying(self.shared, WWW, self.issuance)
        running = Deferred.fromCoroutine(certifying.run())
        for _ in range(seconds):
            if not running.called:
                self.clock.advance(POLL_SECONDS)
        self.words = certifying.words
        return running

    @property
    def kept(self) -> Ledger:
        kept = self.shared.state.ledger(WWW)
        assert kept is not None
        return kept


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


def test_a_certificate_in_the_order_of_the_rfc(attempt: Attempt) -> None:
    assert attempt.run().called
    assert attempt.words == ""
    asked = ["place", "answer", "look", "look", "finalize", "look", "look", "fetch"]
    assert attempt.ca.asked == asked
    assert attempt.published.live == []
    current = attempt.shared.keypairs.current[WWW]
    assert attempt.shared.state.certificate(WWW) == current
    assert attempt.kept == Ledger(begun=(NOON,))
    assert attempt.issuance.lifetime is not None
    assert attempt.issuance.lifetime.ends == current.expires
    assert attempt.ca.replaced == [None]


def test_a_renewal_has_another_key_and_says_what_it_replaces(attempt: Attempt) -> None:
    attempt.run()
    first = attempt.shared.keypairs.current[WWW]
    attempt.run()
    second = attempt.shared.keypairs.current[WWW]
    assert first.key_pem != second.key_pem
    assert attempt.ca.replaced == [None, certificate_id(first.certificate_pem)]


def test_what_is_asked_is_on_disk_before(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each question the ledger has what a restart needs to go on from there."""
    found: list[tuple[str, str]] = []
    ask = ScriptedCa._ask

    def look_at_disk(self: ScriptedCa, what: str) -> None:
        order = attempt.kept.order
        assert order is not None
        found.append((what, order.url))
        ask(self, what)

    monkeypatch.setattr(ScriptedCa, "_ask", look_at_disk)
    attempt.run()
    assert found[0] == ("place", "")
    assert {url for what, url in found[1:]} == {ORDER}


def test_the_place_of_an_order_is_kept_even_if_the_client_stops_in_the_middle(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread goes on for as long as the process lives; nobody waits for what it returns."""
    ask = attempt.shared.aside.call

    def unheard(what: Callable[[], Any]) -> Deferred[Any]:
        result = ask(what)
        return Deferred() if attempt.ca.asked else result

    monkeypatch.setattr(attempt.shared.aside, "call", unheard)
    running = attempt.run(1)
    running.cancel()
    running.addErrback(lambda failure: failure.trap(CancelledError) and None)
    assert attempt.ca.asked == ["place"]
    assert attempt.kept.order is not None
    assert attempt.kept.order.url == ORDER


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_killed_at_every_moment_there_is_one_order_and_no_key_is_lost(tmp_path: Path, done: bool) -> None:
    """Before or after each thing that is asked of the CA or written; then a restart finds what is on disk."""
    for moment in range(100):
        first = Attempt(tmp_path / f"{moment}")
        calls = 0
        ask = first.shared.aside.call

        def killed(
            what: Callable[[], Any], ask: Callable[..., Deferred[Any]] = ask, moment: int = moment
        ) -> Deferred[Any]:
            nonlocal calls
            calls += 1
            if calls <= moment or (done and calls == moment + 1):
                result = ask(what)
            return result if calls <= moment else Deferred()

        object.__setattr__(first.shared.aside, "call", killed)
        running = first.run()
        if running.called:
            break
        running.addErrback(lambda failure: failure.trap(CancelledError) and None)
        second = Attempt(tmp_path / f"{moment}")
        object.__setattr__(second.shared, "ca", first.ca)
        second.ca = first.ca
        ledger = second.shared.state.ledger(WWW) or Ledger()
        if ledger.order is not None or second.shared.state.certificate(WWW) is None:
            second.issuance = Issuance(ledger, None, 0.0)
            second.run()
        running.cancel()
        assert second.words == ""
        assert first.ca.asked.count("place") == 1, moment
        assert second.shared.state.certificate(WWW) is not None
    assert moment > 10


def test_a_certificate_is_on_disk_before_it_is_shown(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AcmeState, "put_certificate", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    attempt.run()
    assert attempt.words == "the state directory: full"
    assert not attempt.shared.keypairs.current


@pytest.mark.parametrize("at", ["place", "answer", "look", "finalize", "fetch"])
@pytest.mark.parametrize("kind", [IssuerSilent, IssuerLimits, IssuerRefused])
def test_every_question_may_fail_in_every_way(
    attempt: Attempt, at: str, kind: type[IssuerSilent | IssuerRefused]
) -> None:
    attempt.ca.fails[at] = [kind("why")]
    assert attempt.run().called
    assert attempt.words == "why"
    assert attempt.published.live == []
    assert attempt.issuance.state is State.WAITING
    kept = attempt.kept
    assert (kept.order is None) == (kind is IssuerRefused)
    pause = {
        IssuerSilent: STOPPED_SECONDS,
        IssuerLimits: RATE_LIMITED_SECONDS,
        IssuerRefused: REFUSED_SECONDS,
    }[kind]
    assert kept.pause_seconds == pause
    attempt.run()
    assert attempt.shared.keypairs.current[WWW]
    again = 2 if kind is IssuerRefused or at == "place" else 1
    assert attempt.ca.asked.count("place") == again


def test_retry_after_is_kept(attempt: Attempt) -> None:
    attempt.ca.fails["place"] = [IssuerLimits("why", 12345.0)]
    attempt.run()
    assert attempt.kept.pause_seconds == 12345.0


def test_a_challenge_that_is_not_at_every_nameserver_costs_no_order(attempt: Attempt) -> None:
    attempt.published.answers = [Deferred()]
    waiting = attempt.published.answers[0]
    running = attempt.run()
    assert not running.called
    assert attempt.ca.asked == ["place"]
    attempt.published.live.clear()
    waiting.errback(ChallengeNotPublished("ns2 does not answer"))
    assert running.called
    assert attempt.kept.order is not None
    assert attempt.kept.order.url == ORDER
    attempt.run()
    assert attempt.ca.asked.count("place") == 1
    assert attempt.shared.keypairs.current[WWW]


@pytest.mark.parametrize("status", ["pending", "ready", "processing", "valid"])
def test_a_restart_goes_on_with_the_order(attempt: Attempt, status: str) -> None:
    attempt.ca.fails["fetch"] = [IssuerSilent("killed")]
    attempt.run()
    order = attempt.kept.order
    assert order is not None
    seen = attempt.ca.orders[ORDER]
    challenge = "challenge" if status == "pending" else ""
    attempt.ca.orders[ORDER] = Seen(ORDER, status, value=seen.value, challenge=challenge)
    attempt.issuance = Issuance(attempt.kept, None, 0.0)
    attempt.run()
    assert attempt.ca.asked.count("place") == 1
    assert attempt.shared.keypairs.current[WWW].key_pem == order.key_pem.encode()


def test_an_order_that_became_invalid_is_given_up(attempt: Attempt) -> None:
    attempt.ca.fails["fetch"] = [IssuerSilent("killed")]
    attempt.run()
    attempt.ca.orders[ORDER] = Seen(ORDER, "invalid", words="no TXT record")
    attempt.run()
    assert attempt.words == "the CA says: no TXT record"
    assert attempt.kept.order is None


def test_a_ca_that_does_not_decide(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt.ca, "answer", lambda seen: None)
    assert attempt.run(int(DECISION_SECONDS) + 2).called
    assert attempt.words == "the CA has not decided within 120 s"
    assert attempt.kept.order is not None


def test_a_certificate_of_another_key_is_not_used(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.tunnel.certificaterequest import new_key
    from tests.service.client.issuance import signed

    monkeypatch.setattr(attempt.ca, "fetch", lambda seen: signed(WWW, new_key(), NOON))
    attempt.run()
    assert attempt.words == "what the CA gave is not the key of the first certificate"
    assert not attempt.shared.keypairs.current
    assert attempt.kept.order is None


@pytest.mark.parametrize("wrong", ["another name", "a weak key"])
def test_a_certificate_that_is_not_used_does_not_take_the_place_of_one_on_disk(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    from appliance.service.client import keypairs
    from tests.service.client.issuance import signed

    attempt.run()
    good = attempt.shared.keypairs.current[WWW]
    if wrong == "another name":
        keys = attempt.ca.keys
        monkeypatch.setattr(attempt.ca, "fetch", lambda seen: signed("b.test", keys[seen.url], NOON))
        words = f"what the CA gave is not for {WWW} but for b.test"
    else:  # what OpenSSL does not take
        refused = KeypairRefused("certificate", "is not taken by OpenSSL: too small")
        monkeypatch.setattr(keypairs, "_context", lambda keypair: (_ for _ in ()).throw(refused))
        words = "what the CA gave is not taken by OpenSSL: too small"
    attempt.run()
    assert attempt.words == words
    assert attempt.shared.keypairs.current[WWW] == good
    assert attempt.shared.state.certificate(WWW) == good
    assert attempt.kept.order is None


def test_a_ca_without_dns_01(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt.ca, "place", lambda name, replaces: Seen(ORDER, "pending"))
    attempt.run()
    assert attempt.words == "the CA offers no dns-01 challenge"


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ((Caa(0, "issue", "other.test"),), "CAA: issue 'other.test' is not for ca.test"),
        ((Caa(0, "issue", "ca.test; validationmethods=http-01"),), "is not for dns-01"),
        (LookupFailed("no resolver answers"), "CAA records cannot be looked up: no resolver answers"),
    ],
)
def test_caa_records_that_do_not_permit_it(
    attempt: Attempt, records: tuple[Caa, ...] | Exception, words: str
) -> None:
    """The challenge is not begun, the order stands; and once the records are right, it goes on."""
    attempt.published.records = records
    attempt.run()
    assert words in attempt.words
    assert attempt.ca.asked == ["place"]
    attempt.published.records = (Caa(0, "issue", "ca.test; accounturi=https://ca.test/account/1"),)
    attempt.run()
    assert attempt.ca.asked.count("place") == 1
    assert attempt.shared.keypairs.current[WWW]


def test_records_for_other_accounts_are_looked_at_again_for_a_while(attempt: Attempt) -> None:
    """The servers have been told of ours before, and nameservers may be about to publish it."""
    attempt.published.records = (Caa(0, "issue", "ca.test; accounturi=https://ca.test/account/2"),)
    attempt.run(1)
    assert attempt.heard.accounts == [("https://ca.test/account/1", ("ca.test",))]
    assert attempt.published.live == []
    ours = Caa(0, "issue", "ca.test; accounturi=https://ca.test/account/1")
    attempt.published.records = (*attempt.published.records, ours)
    attempt.clock.advance(POLL_SECONDS)
    assert attempt.published.live == [(WWW, "value-1")]


def test_records_that_stay_for_other_accounts_end_the_attempt(attempt: Attempt) -> None:
    attempt.published.records = (Caa(0, "issue", "ca.test; accounturi=https://ca.test/account/2"),)
    running = attempt.run(int(CAA_SECONDS / POLL_SECONDS) - 1)
    assert not running.called
    attempt.clock.pump([POLL_SECONDS] * 2)
    assert running.called
    attempt.run(int(CAA_SECONDS / POLL_SECONDS) + 1)
    assert "is not for the account https://ca.test/account/1" in attempt.words
    assert attempt.ca.asked == ["place", "look"]
    assert attempt.published.live == []


def test_a_ca_without_a_name_in_caa_records_looks_itself(attempt: Attempt) -> None:
    attempt.published.records = LookupFailed("not asked")
    attempt.ca.caa_identities = ()
    attempt.run()
    assert attempt.shared.keypairs.current[WWW]


def test_cancelled_it_withdraws(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt.ca, "answer", lambda seen: None)
    running = attempt.run(3)
    assert attempt.published.live == [(WWW, "value-1")]
    running.cancel()
    running.addErrback(lambda failure: failure.trap(CancelledError) and None)
    assert attempt.published.live == []
    assert not attempt.clock.getDelayedCalls()
    assert attempt.kept.order is not None
