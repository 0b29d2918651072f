from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.service import ports
from appliance.service.ports import CannotListen, Transport, bind_tcp, bind_udp, claim, local_addresses


def _refusal(host: str, port: int, transport: Transport) -> str:
    with pytest.raises(CannotListen) as refused:
        claim(host, port, transport)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_sockets_are_bound_and_do_not_block(host: str) -> None:
    with bind_udp(host, 0) as udp, bind_tcp(host, 0) as tcp:
        assert udp.getsockname()[0] == tcp.getsockname()[0] == host
        assert not udp.getblocking()
        assert not tcp.getblocking()
        with socket.create_connection(tcp.getsockname()[:2]):
            pass


def test_a_restart_need_not_wait_for_old_connections() -> None:
    with bind_tcp("127.0.0.1", 0) as first:
        address = first.getsockname()
        with socket.create_connection(address) as visitor:
            first.setblocking(True)
            first.accept()[0].close()  # the side that closes first keeps the port in TIME_WAIT
            assert visitor.recv(1) == b""
    with bind_tcp(*address):
        pass


def test_ipv6_takes_no_ipv4() -> None:
    with bind_udp("::", 0) as six, bind_udp("0.0.0.0", six.getsockname()[1]):
        pass


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_names_its_holder(transport: Transport, host: str) -> None:
    with (bind_udp if transport is Transport.UDP else bind_tcp)(host, 0) as taken:
        port = taken.getsockname()[1]
        text = _refusal(host, port, transport)
        assert text.startswith(f"cannot listen on {host} port {port} ({transport.value}): ")
        assert f"(pid {os.getpid()}) holds it on {host}" in text


def test_another_process_is_named() -> None:
    script = (
        "import socket, sys; listening = socket.create_server(('127.0.0.1', 0));"
        "print(listening.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        text = _refusal("127.0.0.1", int(other.stdout.readline()), Transport.TCP)
        other.stdin.close()
    assert f"(pid {other.pid}) holds it on 127.0.0.1" in text


def test_a_wildcard_is_kept_out_by_one_address_and_the_other_way_round() -> None:
    with bind_udp("127.0.0.1", 0) as taken:
        assert "holds it on 127.0.0.1" in _refusal("0.0.0.0", taken.getsockname()[1], Transport.UDP)
    with bind_tcp("0.0.0.0", 0) as taken:
        assert "holds it on 0.0.0.0" in _refusal("127.0.0.1", taken.getsockname()[1], Transport.TCP)


def test_a_dual_stack_socket_holds_the_ipv4_port() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        assert "holds it on ::" in _refusal("127.0.0.1", taken.getsockname()[1], Transport.TCP)


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("203.0.113.4", 5353, "no interface of this machine has that address"),
        ("ns1.example.org", 5353, "not an IP address and port"),
        ("127.0.0.1", 70000, "not an IP address and port"),
    ],
)
def test_what_cannot_be_bound_is_said(host: str, port: int, why: str) -> None:
    assert _refusal(host, port, Transport.UDP) == f"cannot listen on {host} port {port} (UDP): {why}"


def test_a_low_port_without_the_right_to_it() -> None:
    refused = PermissionError(13, "Permission denied")
    assert ports._sentence("0.0.0.0", 53, Transport.UDP, refused) == (
        "cannot listen on 0.0.0.0 port 53 (UDP): ports below 1024 need root or CAP_NET_BIND_SERVICE"
    )


@pytest.fixture
def _proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc in which systemd-resolved listens as Debian's does."""
    (tmp_path / "net").mkdir()
    header = "sl local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode\n"
    stub = "1: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 101 0 4711 2\n"
    (tmp_path / "net/udp").write_text(header + stub)
    real = Path

    def elsewhere(path: str) -> Path:
        return tmp_path / path.removeprefix("/proc/") if path.startswith("/proc") else real(path)

    monkeypatch.setattr(ports, "Path", elsewhere)


@pytest.mark.usefixtures("_proc")
@pytest.mark.parametrize("visible", [True, False])
def test_systemd_resolved_is_named(tmp_path: Path, visible: bool) -> None:
    if visible:
        (tmp_path / "200/fd").mkdir(parents=True)
        (tmp_path / "200/comm").write_text("systemd-resolve\n")
        (tmp_path / "200/fd/12").symlink_to("socket:[4711]")
    text = ports._sentence("0.0.0.0", 53, Transport.UDP, OSError(98, "Address already in use"))
    assert text.startswith(
        "cannot listen on 0.0.0.0 port 53 (UDP): systemd-resolved holds it on 127.0.0.53 (DNSStubListener=no"
    )


@pytest.mark.usefixtures("_proc")
def test_a_process_that_we_may_not_see_is_named_by_its_user(tmp_path: Path) -> None:
    table = tmp_path / "net/udp"
    table.write_text(table.read_text().replace("3500007F", "0100007F"))
    text = ports._sentence("127.0.0.1", 53, Transport.UDP, OSError(98, "Address already in use"))
    assert text.endswith("a process of user id 101 holds it on 127.0.0.1")


def test_local_addresses_are_those_that_others_may_ask() -> None:
    for address in local_addresses():
        assert not address.startswith(("127.", "169.254.", "fe80:"))
        assert address != "::1"
        with bind_udp(address, 0):
            pass


def test_a_claim_takes_no_visitor() -> None:
    with claim("127.0.0.1", 0, Transport.TCP) as claimed, pytest.raises(ConnectionRefusedError):
        socket.create_connection(claimed.getsockname(), timeout=5)
