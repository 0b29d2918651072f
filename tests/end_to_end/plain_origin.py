"""A web server without TLS, as a program: a page, who asked, a WebSocket's echo, and one event."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

from tests.end_to_end.origins import Origin, Visited, answer
from tests.end_to_end.test_port_80 import websocket


def serve(visited: Visited) -> None:
    while head := visited.head():
        path = head.split(b" ")[1]
        if path == b"/socket":
            visited.taken = 0  # its server reads the head itself
            websocket(visited)
            return
        if path == b"/events":
            visited.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
                b"data: from the origin\n\n"
            )
            visited.read()
            return
        if path == b"/who":
            said = re.findall(rb"\r\nX-Forwarded-(?:Host|Proto): ([^\r]*)", head)
            visited.send(answer(b" ".join(said), "Content-Type: text/plain"))
        else:
            page = Path(sys.argv[1]).read_bytes()
            visited.send(answer(page, "Content-Type: text/html; charset=utf-8"))


if __name__ == "__main__":
    origin = Origin(serve)
    print(f"port {origin.port} is open", flush=True)
    threading.Event().wait()
