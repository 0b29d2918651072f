"""A web server without TLS, as a program: a page, who asked, a WebSocket's echo, and one event.

A browser takes a page for loaded when its images are there: one of them, `/hold`, comes when the page has
said that it saw all the rest.
"""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

from tests.end_to_end.origins import Origin, Visited, answer
from tests.end_to_end.test_port_80 import websocket

HOLD_SECONDS = 20.0
SEEN = {path: threading.Event() for path in (b"/seen-who", b"/seen-echo", b"/seen-event")}


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
        if path == b"/hold":
            for seen in SEEN.values():
                seen.wait(HOLD_SECONDS)
            visited.send(answer(b"all"))
        elif path in SEEN:
            SEEN[path].set()
            visited.send(answer(b"so be it"))
        elif path == b"/who":
            said = re.findall(rb"\r\nX-Forwarded-(?:Host|Proto): ([^\r]*)", head)
            visited.send(answer(b" ".join(said), "Content-Type: text/plain"))
        else:
            page = Path(sys.argv[1]).read_bytes()
            visited.send(answer(page, "Content-Type: text/html; charset=utf-8"))


if __name__ == "__main__":
    origin = Origin(serve)
    print(f"port {origin.port} is open", flush=True)
    threading.Event().wait()
