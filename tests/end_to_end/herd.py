"""A thousand tunnel clients in one process, on the real links: `python -m tests.end_to_end.herd`.

Its arguments are a directory with `ca.pem` (a CA and its key), a server's `HOST:PORT`, how many clients there
are, and the port of their one origin on loopback. Client 7 serves n7.site.test. It writes one line whenever
one of them is welcome (`back 7`) or has lost its link (`lost 7`).
"""

from __future__ import annotations

import os
import resource
import secrets
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import uniform
from typing import Any

from twisted.internet import reactor as _reactor

from appliance.addresses import Origin
from appliance.service.client.keypairs import Keypairs
from appliance.service.client.links import Client, Link
from appliance.service.client.origins import Origins
from appliance.service.client.revoked import Revoked
from appliance.service.client.tickets import Tickets
from appliance.service.client.tls import ClientTls
from appliance.service.client.visits import Visits
from appliance.service.readiness import Readiness
from appliance.service.relay import Relay
from appliance.settings import ClientSettings
from appliance.tunnel.certificates import SERVICE_NAME, issue_client, read_credential
from appliance.tunnel.discovery import read_address

reactor: Any = _reactor
NICE = 10
"""A tenth of what each other program gets while all want to run (nice 0: 1024, nice 10: 110)."""


def name(number: int) -> str:
    return f"n{number}.site.test"


class Member:
    """One client; keeps its one link."""

    def __init__(self, number: int) -> None:
        self.number = number

    def renewal_answered(self, link: Link, certificate: str, text: str) -> None:
        pass

    def denied(self, server_id: str, name: str, value: str, text: str) -> None:
        raise AssertionError("nothing was challenged")

    def may_join(self, link: Link, server_id: str) -> bool:
        return True

    def welcomed(self, link: Link, server_id: str) -> None:
        print(f"back {self.number}", flush=True)

    def parted(self, link: Link) -> None:
        print(f"lost {self.number}", flush=True)


def give_way() -> None:
    """Where sessions are groups to the scheduler, nice counts within one, and a group has a nice of its own
    (sched(7), autogroup).
    """
    os.nice(NICE)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # to wake up interrupts nobody
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))


def main(directory: Path, server: str, count: int, origin: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    give_way()
    reactor.seconds = time.monotonic
    ca = read_credential((directory / "ca.pem").read_bytes())
    readiness = Readiness(reactor)
    readiness.start()
    relay = Relay(readiness)
    kept = Revoked(directory / "nowhere", ca.certificate, lambda revoked: None)
    settings = ClientSettings(invitation=Path("none"), tls_origin=Origin("127.0.0.1", origin))
    now = datetime.now(UTC)
    for number in range(count):
        names = (name(number),)
        credential = issue_client(
            ca, client_id=f"c{number}", names=names, service_name=SERVICE_NAME, wall=now, days=30
        )
        origins = Origins(settings, names, reactor)
        visits = Visits(reactor, readiness, relay, origins, Keypairs(Tickets(Path("unused"))))
        tls = ClientTls(SERVICE_NAME, ca.certificate, credential, lambda: datetime.now(UTC))
        client = Client(reactor, visits, tls, secrets.token_hex(16), origins.offers(), uniform, kept)
        link = Link(client, read_address(server), Member(number))
        reactor.callLater(number / 60, link.startService)  # the first time: no herd
    reactor.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
