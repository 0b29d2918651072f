"""The tunnels that are compared, each of two processes between a visitor and the same origins.

Every one is started by a function of the folder that it may use and of where its visitors are to be led; a
peer's programs are looked for in `.bench/bin` (where `benchmarks/getpeers.sh` puts them) and on PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import attrs

from appliance.settings import ServerSettings
from tests.end_to_end.programs import Process, free_port, wait_for
from tests.end_to_end.site import BIN, ZONE, Appliance, Client, Ports, listens

ROOT = Path(__file__).resolve().parent.parent
SEARCH = f"{ROOT}/.bench/bin:{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
START_SECONDS = 20.0
QUIET = {"RUST_LOG": "error"}
"""Of the log of rathole; frp's is told by its settings."""
HTTP = "http"
"""The label of the origin for plain HTTP; every other one is for TLS and is `LABEL.site.test`."""


@dataclass
class Tunnel:
    """Both ends, running; ``ports`` says where on 127.0.0.1 the visitors of each label connect."""

    name: str
    ports: Mapping[str, int]
    server: int
    client: int
    _kill: Callable[[], None]

    @property
    def pids(self) -> tuple[int, int]:
        return self.server, self.client

    def kill(self) -> None:
        self._kill()

    def url(self, label: str, path: str) -> str:
        """How a visitor who resolves every name to 127.0.0.1 writes it."""
        scheme, host = ("http", "www") if label == HTTP else ("https", label)
        return f"{scheme}://{host}.{ZONE}:{self.ports[label]}{path}"


def ours(directory: Path, origins: Mapping[str, int], inside: Sequence[str] = ()) -> Tunnel:
    """The product as it is installed: an appliance that is also the nameserver, and a client.

    ``inside``: the words that start a program in a network of its own.
    """
    ports = Ports()
    twistd: list[str | Path] = [*inside, BIN / "twistd"]
    appliance = Appliance(directory / "s1", ports, program=twistd)
    with (appliance.directory / "appliance.toml").open("a") as settings_file:
        settings_file.write(_limits())
    running = ExitStack()
    running.callback(appliance.kill)
    server = appliance.start()
    labels = [label for label in origins if label != HTTP]
    lines = []
    for label in labels:
        lines += [f'[names."{label}.{ZONE}"]', f'tls_origin = "127.0.0.1:{origins[label]}"']
        if label == "www" and HTTP in origins:
            lines.append(f'http_origin = "127.0.0.1:{origins[HTTP]}"')
    settings = directory / "client.toml"
    settings.write_text("\n".join(lines) + "\n")
    invitation = appliance.invite(*(f"{label}.{ZONE}" for label in labels))
    options = ("--config", str(settings))
    client = Client(directory / "client", invitation, appliance, *options, program=twistd)
    running.callback(client.kill)
    end = client.start("s1")
    where = {label: ports.http if label == HTTP else ports.tls for label in origins}
    return Tunnel("ours", where, server.pid, end.pid, running.close)


def _limits() -> str:
    """Limits are counted, as for visitors from elsewhere, and never reached: here all have one address."""
    known = {field.name for field in attrs.fields(ServerSettings)}
    if "source_exempt" not in known:
        return ""
    return "source_exempt = []\nsource_open = 1000000\nsource_new = 1000000\n"


def haproxy(directory: Path, origins: Mapping[str, int], options: str = "", name: str = "haproxy") -> Tunnel:
    """Two of one thread each in a row. Neither looks at the SNI."""
    ports = {label: (free_port("tcp"), free_port("tcp")) for label in origins}
    head = (
        "global\n  nbthread 1\n  maxconn 6000\ndefaults\n  mode tcp\n  timeout connect 5s\n"
        f"  timeout client 3600s\n  timeout server 3600s\n{options}"
    )
    first = [(label, one, two) for label, (one, two) in ports.items()]
    second = [(label, two, origins[label]) for label, (_, two) in ports.items()]
    processes = []
    for title, hops in (("second", second), ("first", first)):
        text = head
        for label, come, go in hops:
            text += f"listen {label}\n  bind 127.0.0.1:{come}\n  server s 127.0.0.1:{go}\n"
        (directory / f"{title}.cfg").write_text(text)
        processes.append(_started("haproxy", directory, title, "-db", "-f", directory / f"{title}.cfg"))
    return _peer(name, processes, {label: one for label, (one, _) in ports.items()})


def haproxy_spliced(directory: Path, origins: Mapping[str, int]) -> Tunnel:
    return haproxy(directory, origins, "  option splice-auto\n", "haproxy_splice")


FRP_PLAIN_SERVER = "transport.tcpMux = false\ntransport.maxPoolCount = 64\n"
FRP_PLAIN_CLIENT = "transport.tcpMux = false\ntransport.tls.enable = false\ntransport.poolCount = 32\n"


def frp(
    directory: Path, origins: Mapping[str, int], name: str = "frp", at_server: str = "", at_client: str = ""
) -> Tunnel:
    """As it comes: nothing is set but addresses, a token and the log's level."""
    port, vhost = free_port("tcp"), free_port("tcp")
    ports = {label: vhost if label == HTTP else free_port("tcp") for label in origins}
    both = 'log.level = "error"\nauth.token = "abc"\n'
    (directory / "frps.toml").write_text(
        f'bindAddr = "127.0.0.1"\nbindPort = {port}\nvhostHTTPPort = {vhost}\n{both}{at_server}'
    )
    text = f'serverAddr = "127.0.0.1"\nserverPort = {port}\n{both}{at_client}'
    for label, origin in origins.items():
        kind = (
            f'type = "http"\ncustomDomains = ["www.{ZONE}"]'
            if label == HTTP
            else f'type = "tcp"\nremotePort = {ports[label]}'
        )
        text += f'[[proxies]]\nname = "{label}"\n{kind}\nlocalIP = "127.0.0.1"\nlocalPort = {origin}\n'
    (directory / "frpc.toml").write_text(text)
    server = _started("frps", directory, "frps", "-c", directory / "frps.toml")
    wait_for(lambda: listens(port), START_SECONDS, "frps")
    client = _started("frpc", directory, "frpc", "-c", directory / "frpc.toml")
    return _peer(name, [server, client], ports)


def frp_plain(directory: Path, origins: Mapping[str, int]) -> Tunnel:
    """Without mux and TLS, and with connections ready in advance: the cheapest that it can be."""
    return frp(directory, origins, "frp_plain", FRP_PLAIN_SERVER, FRP_PLAIN_CLIENT)


def rathole(directory: Path, origins: Mapping[str, int]) -> Tunnel:
    """As it comes: plain TCP."""
    port = free_port("tcp")
    ports = {label: free_port("tcp") for label in origins if label != HTTP}
    server_text = f'[server]\nbind_addr = "127.0.0.1:{port}"\n'
    client_text = f'[client]\nremote_addr = "127.0.0.1:{port}"\n'
    for label, visible in ports.items():
        common = 'token = "abc"\nnodelay = true\n'
        server_text += f'[server.services.{label}]\n{common}bind_addr = "127.0.0.1:{visible}"\n'
        client_text += f'[client.services.{label}]\n{common}local_addr = "127.0.0.1:{origins[label]}"\n'
    (directory / "server.toml").write_text(server_text)
    (directory / "client.toml").write_text(client_text)
    server = _started("rathole", directory, "server", "--server", directory / "server.toml")
    wait_for(lambda: listens(port), START_SECONDS, "rathole's server")
    client = _started("rathole", directory, "client", "--client", directory / "client.toml")
    return _peer("rathole", [server, client], ports)


MAKERS: dict[str, tuple[str, Callable[[Path, Mapping[str, int]], Tunnel]]] = {
    "ours": ("", ours),
    "haproxy": ("haproxy", haproxy),
    "haproxy_splice": ("haproxy", haproxy_spliced),
    "frp": ("frps", frp),
    "frp_plain": ("frps", frp_plain),
    "rathole": ("rathole", rathole),
}
SHOWN = {
    "ours": "tunnel-appliance",
    "haproxy": "HAProxy twice",
    "haproxy_splice": "HAProxy twice, splice-auto",
    "frp": "frp as it comes",
    "frp_plain": "frp, no mux, no TLS",
    "rathole": "rathole",
    "rathole_tls": "rathole over TLS",
}


def program(name: str) -> str | None:
    return shutil.which(name, path=SEARCH)


def present(wanted: Sequence[str]) -> list[str]:
    """Those of them whose program there is; one line for each other."""
    found = []
    for name in wanted:
        needed = MAKERS[name][0]
        if needed and program(needed) is None:
            print(f"skipped: {SHOWN[name]}: no {needed} (benchmarks/getpeers.sh)", flush=True)
        else:
            found.append(name)
    return found


def start(name: str, directory: Path, origins: Mapping[str, int]) -> Tunnel:
    """Start it in a folder of its own, and wait until it takes visitors."""
    number = 0
    while (folder := directory / f"{name}-{number}").exists():
        number += 1
    folder.mkdir()
    tunnel = MAKERS[name][1](folder, origins)
    for port in set(tunnel.ports.values()):
        wait_for(lambda port=port: listens(port), START_SECONDS, f"{name} to listen")  # type: ignore[misc]
    return tunnel


def versions() -> dict[str, str]:
    """What each program says of itself."""
    asked = {
        "haproxy": ("haproxy", "-v"),
        "frp": ("frps", "--version"),
        "rathole": ("rathole", "--version"),
        "nginx": ("nginx", "-v"),
        "h2load": ("h2load", "--version"),
        "curl": ("curl", "--version"),
    }
    found = {"python": sys.version.split()[0]}
    for name, (binary, option) in asked.items():
        path = program(binary)
        if path is not None:
            done = subprocess.run([path, option], capture_output=True, text=True)
            number = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
            found[name] = number[0] if number else "?"
    return found


def _started(name: str, directory: Path, title: str, *arguments: str | Path) -> Process:
    path = program(name)
    assert path is not None, name
    return Process([path, *arguments], directory / f"{title}.log", env=QUIET)


def _peer(name: str, processes: Sequence[Process], ports: Mapping[str, int]) -> Tunnel:
    def kill() -> None:
        for process in processes:
            process.kill()

    return Tunnel(name, ports, processes[0].pid, processes[1].pid, kill)
