"""Many tunnel clients in one process: `many_clients.py DIRECTORY RESOLVER ORIGIN`.

There is one for each DIRECTORY/*.toml, an invitation; each keeps its state beside it. Everything in them is
what `twistd tunnel-client` runs; only the process is shared.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor as twisted_reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from appliance.client_tap import Options, read
from appliance.service.client.joining import TunnelClient


def main() -> None:
    directory, resolver, origin = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    reactor: Any = twisted_reactor
    reactor.seconds = time.monotonic
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    clients = MultiService()
    for invitation in sorted(directory.glob("*.toml")):
        options: Any = Options()  # type: ignore[no-untyped-call]
        files = ["--invitation", str(invitation), "--state", str(invitation.with_suffix(""))]
        options.parseOptions([*files, "--resolver", resolver, "--tls-origin", origin])
        TunnelClient(reactor, *read(options)).setServiceParent(clients)  # type: ignore[no-untyped-call]
    reactor.callWhenRunning(clients.startService)
    reactor.addSystemEventTrigger("before", "shutdown", clients.stopService)
    reactor.run()


if __name__ == "__main__":
    main()
