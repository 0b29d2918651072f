"""The page for Prometheus: what the ledger and the gate of this process count, as they are when asked.

A page of our own on loopback, for nothing in it is for strangers: names, clients, how many visitors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.web.resource import Resource
from twisted.web.server import Site

from appliance.ingress.accounts import DURATION_SECONDS, Accounts
from appliance.service.ports import CannotListen

_LABELS = ("name", "client")


class Counts(Collector):
    """What there is to read; no registry of the process knows it, so that two appliances may be in one."""

    def __init__(self, accounts: Accounts, gate: Callable[[], Mapping[str, int]]) -> None:
        """``gate()`` gives ``open``, ``sources`` and a ``refused_…`` for each limit."""
        self._accounts = accounts
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        gate = self._gate()
        yield GaugeMetricFamily("tunnel_connections_open", "Connections let in.", value=gate["open"])
        yield GaugeMetricFamily("tunnel_sources_open", "Sources that have one open.", value=gate["sources"])
        limits = CounterMetricFamily("tunnel_limited", "Connections over a limit.", labels=["limit"])
        for key, count in gate.items():
            if key.startswith("refused_"):
                limits.add_metric([key.removeprefix("refused_")], count)
        yield limits
        yield from self._visitors()

    def _visitors(self) -> Iterator[Metric]:
        joined = CounterMetricFamily("tunnel_visitors_joined", "Visitors joined to one.", labels=_LABELS)
        octets = CounterMetricFamily(
            "tunnel_octets", "Octets of visitors who have gone.", labels=[*_LABELS, "direction"]
        )
        ends = CounterMetricFamily("tunnel_visitors_gone", "Visitors gone, by how.", labels=[*_LABELS, "end"])
        lasted = HistogramMetricFamily(
            "tunnel_visit_seconds", "How long visitors were there.", labels=_LABELS
        )
        bounds = [*map(str, DURATION_SECONDS), "+Inf"]
        for name, client, account in self._accounts:
            labels = [name, client]
            joined.add_metric(labels, account.joined)
            octets.add_metric([*labels, "in"], account.octets_in)
            octets.add_metric([*labels, "out"], account.octets_out)
            for end, count in account.ends.items():
                ends.add_metric([*labels, end], count)
            buckets = list(zip(bounds, accumulate(account.durations), strict=True))
            lasted.add_metric(labels, buckets, account.seconds)
        yield from (joined, octets, ends, lasted)


class _Page(Resource):
    isLeaf = True

    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def render_GET(self, request: Any) -> bytes:
        if request.path != b"/metrics":
            request.setResponseCode(404)
            return b"/metrics is the only page here\n"
        request.setHeader(b"content-type", CONTENT_TYPE_LATEST.encode())
        return generate_latest(self._counts)


class Metrics(Service):
    """Listens on a loopback address."""

    def __init__(self, reactor: Any, host: str, port: int, counts: Counts) -> None:
        self._reactor = reactor
        self._where = (host, port)
        self._site = Site(_Page(counts), reactor=reactor)
        self._site.noisy = False
        self._site.displayTracebacks = False
        self._port: Any = None

    def startService(self) -> None:
        """Raises CannotListen."""
        super().startService()  # type: ignore[no-untyped-call]
        host, port = self._where
        try:
            self._port = self._reactor.listenTCP(port, self._site, interface=host)
        except CannotListenError as error:
            why = error.socketError.strerror
            raise CannotListen(f"metrics on {host} port {port}: {why}") from None

    @property
    def port(self) -> int:
        """The port listened on."""
        number: int = self._port.getHost().port
        return number

    def stopService(self) -> Deferred[None] | None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._port is None:
            return None
        port, self._port = self._port, None
        stopped: Deferred[None] = port.stopListening()
        return stopped
