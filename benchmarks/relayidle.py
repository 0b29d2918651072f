"""What waits: memory and descriptors of visitors who say nothing, and of clients without visitors."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from cryptography.x509 import load_pem_x509_certificate

from benchmarks.accounting import cpu_seconds, descriptors, private_kibibytes
from benchmarks.relaybench import Bench
from benchmarks.relaypeers import QUIET, ROOT, SHOWN, START_SECONDS, program
from benchmarks.relayresults import Row
from tests.end_to_end.programs import Process, free_port, wait_for
from tests.end_to_end.site import ZONE, Appliance, Ports, listens

VISITORS = 5_000
VISITORS_OF = ("ours", "haproxy", "frp", "frp_plain", "rathole")
CLIENTS = 2_000
REST_SECONDS = 180  # our own ping's interval above 500 clients, and six of frp's heartbeats
SETTLE_SECONDS = 30.0
RATHOLE_CLIENTS = 500
"""Each has a listener, a control channel and 8 data channels at the server: 2,000 would be 20,000
descriptors, and as many handshakes that it does one by one.
"""


def idlevisitors(bench: Bench, row: Row) -> None:
    """Each has done a TLS handshake and one request."""
    for number in range(bench.rounds):
        print(f" idle, round {number + 1} of {bench.rounds}", flush=True)
        for name in VISITORS_OF:
            # Fresh each time: what an allocator has once had, it keeps.
            with bench.tunnels([name], bench.origins) as tunnels:
                for tunnel in tunnels:
                    settled(lambda pids=tunnel.pids: descriptors(pids))  # type: ignore[misc]
                    memory, open_before = private_kibibytes(tunnel.pids), descriptors(tunnel.pids)
                    where = [str(tunnel.ports["www"]), f"www.{ZONE}", str(VISITORS)]
                    with visitors(bench.directory / f"visitors-{name}", "hold", *where):
                        settled(lambda pids=tunnel.pids: descriptors(pids))  # type: ignore[misc]
                        grown = private_kibibytes(tunnel.pids) - memory
                        opened = descriptors(tunnel.pids) - open_before
                    row.note("idle_visitor", "KiB", name, grown / VISITORS)
                    row.note("idle_visitor_descriptors", "descriptors", name, opened / VISITORS)


@contextmanager
def visitors(log: Path, *arguments: str) -> Iterator[Process]:
    """A process of `rawvisitors`, once all of it is there."""
    command = [sys.executable, "-m", "benchmarks.rawvisitors", *arguments]
    log.unlink(missing_ok=True)
    with Process(command, log, cwd=ROOT) as process:
        process.says("there", 120)
        yield process


def settled(count: Callable[[], int]) -> None:
    """Until a count stays the same for two seconds."""
    end = time.monotonic() + SETTLE_SECONDS
    last, since = count(), time.monotonic()
    while time.monotonic() < end and time.monotonic() - since < 2:
        time.sleep(0.25)
        now = count()
        if now != last:
            last, since = now, time.monotonic()


def idleclients(bench: Bench, row: Row) -> None:
    """One server's share of each client that it has. Once: it is long, and hardly varies.

    Ours: `tests.end_to_end.herd`, the product's links and lanes, many clients in one process. frp: its own
    client many times in one process (`frpmany`), one HTTPS proxy each. rathole over TLS: one client with many
    services, each of which has a control channel of its own.
    """
    makers: Mapping[str, Callable[[Path, Row], None]] = {
        "ours": _our_clients,
        "frp": _frp_clients,
        "rathole_tls": _rathole_clients,
    }
    for name, measure in makers.items():
        if bench.only and name not in bench.only:
            continue
        folder = bench.directory / f"clients-{name}"
        folder.mkdir()
        measure(folder, row)


def _measure(
    row: Row, name: str, server: Process, start: Callable[[], Process], each: int, count: int
) -> None:
    """``each``: descriptors at the server by which a client is known to be there."""
    settled(lambda: descriptors([server.pid]))
    memory, open_before = private_kibibytes([server.pid]), descriptors([server.pid])
    began = time.monotonic()
    with start():
        enough = open_before + each * count
        wait_for(lambda: descriptors([server.pid]) >= enough, 300, f"{count} clients of {name}", every=0.5)
        row.note("idle_clients_joined", "s", name, time.monotonic() - began)
        settled(lambda: descriptors([server.pid]))
        time.sleep(10)
        grown = private_kibibytes([server.pid]) - memory
        opened = descriptors([server.pid]) - open_before
        row.note("idle_client_descriptors", "descriptors", name, opened / count)
        spent = cpu_seconds([server.pid])
        time.sleep(REST_SECONDS)
        spent = cpu_seconds([server.pid]) - spent
    row.note("idle_clients", "clients", name, count)
    row.note("idle_client", "KiB", name, grown / count)
    row.note("idle_client_cpu", "us/s", name, spent / REST_SECONDS / count * 1e6)


def _our_clients(folder: Path, row: Row) -> None:
    appliance = Appliance(folder / "s1", Ports())
    try:
        server = appliance.start()
        where = [str(appliance.directory / "state"), f"127.0.0.1:{appliance.ports.tls}"]
        command = [sys.executable, "-m", "tests.end_to_end.herd", *where, str(CLIENTS), str(free_port("tcp"))]
        _measure(row, "ours", server, lambda: Process(command, folder / "herd.log", cwd=ROOT), 3, CLIENTS)
    finally:
        appliance.kill()


def _frp_clients(folder: Path, row: Row) -> None:
    frps, frpmany = program("frps"), program("frpmany")
    if frps is None or frpmany is None:
        print("skipped: frp's clients: no frps or frpmany (benchmarks/getpeers.sh)", flush=True)
        return
    port, vhost = free_port("tcp"), free_port("tcp")
    both = 'log.level = "error"\nauth.token = "abc"\n'
    (folder / "frps.toml").write_text(
        f'bindAddr = "127.0.0.1"\nbindPort = {port}\nvhostHTTPSPort = {vhost}\n{both}'
    )
    (folder / "frpc.toml").write_text(
        f'serverAddr = "127.0.0.1"\nserverPort = {port}\n{both}'
        f'[[proxies]]\nname = "n"\ntype = "https"\nlocalPort = 9\ncustomDomains = ["n.{ZONE}"]\n'
    )
    with Process([frps, "-c", folder / "frps.toml"], folder / "frps.log") as server:
        wait_for(lambda: listens(port), START_SECONDS, "frps")
        command = [frpmany, str(folder / "frpc.toml"), str(CLIENTS)]
        _measure(row, "frp", server, lambda: Process(command, folder / "frpmany.log"), 1, CLIENTS)


def _rathole_clients(folder: Path, row: Row) -> None:
    path = program("rathole")
    if path is None:
        print(f"skipped: {SHOWN['rathole_tls']}: no rathole (benchmarks/getpeers.sh)", flush=True)
        return
    count = RATHOLE_CLIENTS
    port, visible = free_port("tcp"), free_port("tcp")
    _write_identity(folder)
    server_text = f'[server]\nbind_addr = "127.0.0.1:{port}"\ndefault_token = "abc"\n'
    server_text += '[server.transport]\ntype = "tls"\n[server.transport.tls]\n'
    server_text += f'pkcs12 = "{folder}/server.p12"\npkcs12_password = "abc"\n'
    client_text = f'[client]\nremote_addr = "127.0.0.1:{port}"\ndefault_token = "abc"\n'
    client_text += '[client.transport]\ntype = "tls"\n[client.transport.tls]\nhostname = "localhost"\n'
    client_text += f'trusted_root = "{folder}/ca.pem"\n'
    for number in range(count):
        address = f"127.2.{number >> 8}.{number & 255}:{visible}"
        server_text += f'[server.services.n{number}]\nbind_addr = "{address}"\n'
        client_text += f'[client.services.n{number}]\nlocal_addr = "127.0.0.1:9"\n'
    (folder / "server.toml").write_text(server_text)
    (folder / "client.toml").write_text(client_text)
    with Process([path, "--server", folder / "server.toml"], folder / "server.log", env=QUIET) as server:
        wait_for(lambda: listens(port), START_SECONDS, "rathole's server")
        command = [path, "--client", str(folder / "client.toml")]
        log = folder / "client.log"
        _measure(row, "rathole_tls", server, lambda: Process(command, log, env=QUIET), 9, count)


def _write_identity(folder: Path) -> None:
    """A certificate as rathole wants it."""
    ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
    ca.cert_pem.write_to_path(folder / "ca.pem")
    issued = ca.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    certificate = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    octets = serialize_key_and_certificates(b"", key, certificate, None, BestAvailableEncryption(b"abc"))  # type: ignore[arg-type]
    (folder / "server.p12").write_bytes(octets)
