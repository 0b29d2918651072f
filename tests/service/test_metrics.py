"""The page for Prometheus, read by its own parser."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from appliance.ingress.accounts import Accounts
from appliance.service.metrics import Counts, Metrics
from appliance.service.ports import CannotListen

GATE = {"open": 3, "sources": 2, "refused_source_new": 7, "refused_full": 1}


def counts() -> Counts:
    accounts = Accounts()
    account = accounts.of("www.example.org", "home")
    account.joined += 3
    account.went(10, 200, 0.05, "ended")
    account.went(1, 2, 7200.0, "reset")
    accounts.of("www.example.org", "").refused("no_client")
    return Counts(accounts, lambda: GATE)


def get(port: int, path: str) -> tuple[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.headers["content-type"], answer.read().decode()


@pytest_twisted.ensureDeferred
async def test_the_page() -> None:
    metrics = Metrics(reactor, "127.0.0.1", 0, counts())
    metrics.startService()
    try:
        kind, page = await deferToThread(get, metrics.port, "/metrics")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await deferToThread(get, metrics.port, "/")
    finally:
        stopped = metrics.stopService()
        assert stopped is not None
        await stopped
    assert kind.startswith("text/plain")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    home = (("client", "home"), ("name", "www.example.org"))
    nobody = (("client", ""), ("name", "www.example.org"))
    assert samples["tunnel_connections_open", ()] == 3
    assert samples["tunnel_limited_total", (("limit", "source_new"),)] == 7
    assert samples["tunnel_visitors_joined_total", home] == 3
    assert samples["tunnel_octets_total", tuple(sorted((*home, ("direction", "out"))))] == 202
    assert samples["tunnel_visitors_gone_total", tuple(sorted((*home, ("end", "reset"))))] == 1
    assert samples["tunnel_visitors_gone_total", tuple(sorted((*nobody, ("end", "no_client"))))] == 1
    bucket = "tunnel_visit_seconds_bucket"
    assert samples[bucket, tuple(sorted((*home, ("le", "0.01"))))] == 0
    assert samples[bucket, tuple(sorted((*home, ("le", "0.1"))))] == 1
    assert samples[bucket, tuple(sorted((*home, ("le", "3600.0"))))] == 1
    assert samples[bucket, tuple(sorted((*home, ("le", "+Inf"))))] == 2
    assert samples["tunnel_visit_seconds_sum", home] == 7200.05


@pytest_twisted.ensureDeferred
async def test_a_port_that_is_taken_is_named() -> None:
    first = Metrics(reactor, "127.0.0.1", 0, counts())
    first.startService()
    second = Metrics(reactor, "127.0.0.1", first.port, counts())
    with pytest.raises(CannotListen, match="metrics on 127"):
        second.startService()
    assert second.stopService() is None
    stopped = first.stopService()
    assert stopped is not None
    await stopped
