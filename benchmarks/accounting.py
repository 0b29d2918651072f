"""What limits, accounting and the access log cost a visitor, in CPU of the server; nothing else runs.

`.venv/bin/python -m benchmarks.accounting` prints one line each: measured NAME VALUE us. The middle of five
runs. A new connection costs the server some hundred microseconds, so this cannot be seen from outside.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from appliance.ingress.accessline import FORMATS, AccessLine
from appliance.ingress.clienthello import ClientHello
from appliance.ingress.limits import Limits, Over
from appliance.service.accesslog import AccessLog
from appliance.service.fewlines import FewLines
from appliance.service.relay import Ended
from appliance.service.server.gate import Gate, Port
from appliance.service.server.ledger import Ledger
from appliance.service.server.visit import Visit

VISITORS = 50_000
RUNS = 5
A_BATCH = 10_000  # less than the access log lets wait
IPV4, IPV6 = "192.0.2.1", "2001:db8::1"


class Reactor:
    """What the parts here need of one."""

    def seconds(self) -> float:
        return time.monotonic()

    def callFromThread(self, call: Callable[[], object]) -> None:
        call()


def microseconds(once: Callable[[], object], pause: Callable[[], object] = lambda: None) -> float:
    """CPU of all threads for one call; `pause` lets a writer keep up, and counts as well."""
    found = []
    for _ in range(RUNS):
        began = time.process_time()
        for number in range(VISITORS):
            once()
            if number % A_BATCH == 0:
                pause()
        pause()
        found.append((time.process_time() - began) / VISITORS * 1e6)
    return statistics.median(found)


def main() -> None:
    reactor = Reactor()
    complaints = FewLines(reactor, Logger())
    limits = Limits(source_open=1 << 30, source_new=1 << 30, name_open=1 << 30)
    gate = Gate(reactor, limits, linked=lambda address: False, complaints=complaints)
    hello = ClientHello("www.example.org", (b"h2",), True, octets=bytes(500), rest=b"")

    def say(name: str, value: float) -> None:
        print(f"measured {name} {value:.2f} us", flush=True)

    def passed(address: str) -> None:
        gate.take(address, 50)
        gate.went(address)

    say("limits_ipv4", microseconds(lambda: passed(IPV4)))
    say("limits_ipv6", microseconds(lambda: passed(IPV6)))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        visit = Visit(sock, (IPV4, 50000), "www.example.org", hello, bytes(16))

    def visited(ledger: Ledger) -> None:
        gate.take(IPV4, 50)
        ledger.came(visit, "www.example.org")
        ledger.joined(visit, "home")(Ended(100, 200, None))

    counted = Ledger(reactor, time.time, gate, name_open=limits.name_open)
    say("limits_and_accounting", microseconds(lambda: visited(counted)))
    for form in FORMATS:
        with tempfile.TemporaryDirectory() as directory:
            log = AccessLog(reactor, Path(directory) / "access.log", complaints)
            log.startService()

            def line(one: AccessLine, log: AccessLog = log, form: str = form) -> None:
                log.write(FORMATS[form](one))

            def drained(log: AccessLog = log) -> None:
                while log._waiting:
                    time.sleep(0.01)

            logged = Ledger(reactor, time.time, gate, name_open=limits.name_open, say=line)
            say(f"with_{form}_log", microseconds(lambda logged=logged: visited(logged), drained))  # type: ignore[misc]
            log.stopService()
            assert log.dropped == 0

    def pair(*, turned_away: bool) -> None:
        far, near = socket.socketpair()
        if turned_away:
            near.setblocking(False)
            gate.turn_away(near, Port.TLS, Over.SOURCE_NEW, IPV4)
        near.close()
        far.close()

    without = microseconds(lambda: pair(turned_away=False))
    say("turned_away", microseconds(lambda: pair(turned_away=True)) - without)


if __name__ == "__main__":
    main()
