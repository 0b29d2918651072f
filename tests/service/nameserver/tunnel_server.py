"""A tunnel server in a process of its own, for tests that kill it.

Its argument is a directory with `ca.pem` (a certificate) and `server.pem` (a credential); it serves one name,
under the client's certificate in `client.pem`, and prints its port.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor as chosen

from appliance.service.server.tunnelserver import TunnelServer
from appliance.service.server.watches import Watches
from appliance.tunnel.certificates import (
    SERVICE_NAME,
    Role,
    examine,
    read_certificate,
    read_credential,
    read_peer,
)
from appliance.tunnel.discovery import ServerAddress
from tests.tunnel.lists import KeptList


def main(directory: Path) -> None:
    reactor: Any = chosen
    ca = read_certificate((directory / "ca.pem").read_bytes())
    credential = read_credential((directory / "server.pem").read_bytes())
    client = (directory / "client.pem").read_bytes()
    (host,) = read_peer(credential.certificate).addresses

    def judge(certificate: Any, role: Role, wall: datetime) -> Any:
        return examine(certificate, role=role, ca=ca, revoked=None, wall=wall)

    boot = datetime.now(UTC).strftime("%H%M%S%f")
    kept = KeptList(credential)  # a list of nobody, that nobody replaces
    watches = Watches(
        reactor, server_id="s1", boot=boot, addresses=[ServerAddress(host)], revocations=kept
    )
    server = TunnelServer(
        reactor,
        server_id="s1",
        boot=boot,
        service_name=SERVICE_NAME,
        tls_addresses=[(host, 0)],
        http_addresses=[],
        https_port=443,
        default_name=None,
        identity=lambda: (credential, ca),
        examine=judge,
        revocations=kept,
        known=watches.known.knows,
        known_as=watches.known.known_as,
        watch_for=watches.protocol_for,
        serving=watches.serving,
        not_serving=watches.not_serving,
        challenges=watches.challenges,
        renew=watches.renew_for,
        accounts=watches.accounts,
    )
    server.startService()
    (name, *_) = read_peer(read_certificate(client)).names
    reactor.callWhenRunning(partial(watches.serving, name, client))
    reactor.callWhenRunning(partial(print, server.ports[0], flush=True))
    reactor.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
