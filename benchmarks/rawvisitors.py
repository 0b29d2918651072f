"""Visitors in a process of their own: `python -m benchmarks.rawvisitors WHAT PORT HOST COUNT`.

`hold` keeps so many connections idle, each after a real TLS handshake and a request; `stare` asks for the
large file and reads none of it; `stream` takes endless streams from `raworigin` as fast as they come, and
throws the octets away in the kernel. Each says `there` when all are there.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time

from benchmarks.raworigin import ENDLESS, FLIGHT, record

SOURCES = 64
"""Addresses that idle visitors come from: an office has fewer of them behind one."""


def hello(host: str) -> bytes:
    """A real ClientHello for the host."""
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=host)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def source(number: int) -> tuple[str, int]:
    """An address of loopback for a visitor to come from."""
    return f"127.1.0.{number % SOURCES + 1}", 0


def tls_visitor(host: str, port: int, number: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=source(number))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(sock, server_hostname=host)


def hold(port: int, host: str, count: int) -> list[ssl.SSLSocket]:
    context = _careless()
    held = []
    for number in range(count):
        visitor = tls_visitor(host, port, number, context)
        visitor.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        if not visitor.recv(4096).startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"visitor {number} was not served")
        held.append(visitor)
    return held


def stare(port: int, host: str, count: int) -> list[ssl.SSLSocket]:
    context = _careless()
    held = []
    for number in range(count):
        visitor = tls_visitor(host, port, number, context)
        visitor.sendall(f"GET /files/big HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        held.append(visitor)
    time.sleep(1)  # until every buffer on the way is full
    return held


def stream(port: int, host: str, count: int) -> list[threading.Thread]:
    octets = hello(host)
    there = threading.Barrier(count + 1)

    def one() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(octets)
            left = len(FLIGHT)
            while left:
                left -= len(sock.recv(left))
            sock.sendall(record(ENDLESS))
            buffer = bytearray(1 << 20)
            there.wait()
            while sock.recv_into(buffer, len(buffer), socket.MSG_TRUNC):
                pass

    threads = [threading.Thread(target=one, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    there.wait(60)
    return threads


def _careless() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


if __name__ == "__main__":
    _, what, port, host, count = sys.argv
    kept = {"hold": hold, "stare": stare, "stream": stream}[what](int(port), host, int(count))
    print("there", flush=True)
    while True:
        time.sleep(3600)
