"""twistd, that writes down when each link handshake is begun: into the file that its first argument names."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.scripts.twistd import run

from appliance.service.server.waitingline import WaitingLine


def count_into(path: str) -> None:
    began = open(path, "a", buffering=1)  # noqa: SIM115 - as long as the process
    line: Any = WaitingLine
    make: Callable[..., None] = line.__init__

    def made(self: Any, clock: Any, readiness: Any, adopt: Callable[[socket.socket, bytes], None]) -> None:
        def adopted(sock: socket.socket, octets: bytes) -> None:
            began.write(f"{time.monotonic()}\n")
            adopt(sock, octets)

        make(self, clock, readiness, adopted)

    line.__init__ = made


if __name__ == "__main__":
    count_into(sys.argv.pop(1))
    run()
