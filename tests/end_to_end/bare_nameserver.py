"""A process that is only the nameserver: `python -m tests.end_to_end.bare_nameserver ZONES STATE PORT`.

It listens on 127.0.0.1 and ::1, prints `ready`, and reloads the zones on SIGHUP.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor as _reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from appliance.service.nameserver.tcp import TcpNameserver
from appliance.service.nameserver.udp import UdpNameserver
from appliance.service.nameserver.zonefiles import Zonefiles
from appliance.service.store import Store

reactor: Any = _reactor


def main(zones: str, state: str, port: str) -> None:
    reactor.seconds = time.monotonic
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    store = Store(Path(state), reactor)
    store.open()
    zonefiles = Zonefiles(Path(zones), store, reactor)
    zonefiles.load()
    services: Any = MultiService()
    services.addService(zonefiles)
    for host in ("127.0.0.1", "::1"):
        services.addService(UdpNameserver(reactor, zonefiles.responder, host, int(port)))
        services.addService(TcpNameserver(reactor, zonefiles.responder, host, int(port)))
    services.startService()
    reactor.addSystemEventTrigger("before", "shutdown", services.stopService)
    reactor.addSystemEventTrigger("during", "shutdown", store.close)
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(zonefiles.reload))
    reactor.callWhenRunning(print, "ready", flush=True)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
