from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from twisted.application.service import Service
from twisted.internet.task import Clock
from twisted.python import usage

from appliance.service.store import StoreRefused
from appliance.settings import ApplianceSettings, Listen, NameserverSettings, ServerSettings
from appliance.tap import Options, Signals, StartRefused, Whole, read, taken
from tests.end_to_end.programs import free_port


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(*arguments: str) -> Options:
    parsed = Options()
    parsed.parseOptions(arguments)  # type: ignore[no-untyped-call]
    return parsed


def test_overrides() -> None:
    assert options().overrides() == {
        "state": None,
        "nameserver.zones": None,
        "nameserver.private_addresses": None,
    }
    given = options(
        *(
            "--zones",
            "z",
            "--state",
            "s",
            "--public",
            "192.0.2.1",
            "--public",
            "192.0.2.2",
            "--private-addresses",
        ),
        *("--dns", "192.0.2.1:5354", "--tls", "192.0.2.1:8443", "--http", "192.0.2.1:8080"),
    )
    assert given.overrides() == {
        "state": "s",
        "nameserver.zones": "z",
        "nameserver.private_addresses": True,
        "server.addresses": ["192.0.2.1", "192.0.2.2"],
        "nameserver.listen": ["192.0.2.1:5354"],
        "server.tls": ["192.0.2.1:8443"],
        "server.http": ["192.0.2.1:8080"],
    }


def test_help_names_every_option() -> None:
    text = str(options())
    for name in ("config", "zones", "state", "public", "dns", "tls", "http", "private-addresses"):
        assert f"--{name}" in text


def test_what_is_no_option() -> None:
    with pytest.raises(usage.UsageError):
        options("--nonsense")


def test_settings_errors_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(options("--public", "nowhere", "--dns", "nowhere"))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("tunnel-appliance: --") for line in lines)


ZONE = "$ORIGIN t.test.\n$TTL 9\n@ SOA ns1 h 1 2 3 4 5\n@ NS ns1\nns1 A 127.0.0.1\n"


def test_ports_that_are_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "zones").mkdir()
    (here / "zones" / "t.zone").write_text(ZONE)
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        taken_port = holder.getsockname()[1]
        listen = [f"--{name}=127.0.0.1:{taken_port}" for name in ("dns", "tls", "http")]
        with pytest.raises(SystemExit) as ended:
            read(options("--private-addresses", *listen))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(f"127.0.0.1 port {taken_port} (TCP)" in line for line in lines)
    assert not (here / "state").exists()


def test_two_settings_of_one_port() -> None:
    one = (Listen("127.0.0.1", free_port()),)
    errors = taken(
        ApplianceSettings(server=ServerSettings(tls=one, http=one), nameserver=NameserverSettings(listen=()))
    )
    assert len(errors) == 1


class Failing(Service):
    def startService(self) -> None:
        raise StoreRefused("the disk is full")


class Broken(Service):
    def startService(self) -> None:
        raise RuntimeError("bug")


@pytest.mark.parametrize("kind", [Failing, Broken])
def test_a_start_that_fails(kind: Callable[[], Service], capfd: pytest.CaptureFixture[str]) -> None:
    whole = Whole(is_daemon=False)
    kind().setServiceParent(whole)
    with pytest.raises(SystemExit if kind is Failing else RuntimeError):
        whole.startService()
    whole = Whole(is_daemon=True)
    kind().setServiceParent(whole)
    with pytest.raises(StartRefused if kind is Failing else RuntimeError):
        whole.startService()


class Threads(Clock):
    """A reactor whose callFromThread is a callLater."""

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.callLater(0, call)


@pytest.fixture
def hangup() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    assert signal.getsignal(signal.SIGHUP) is before


@pytest.mark.usefixtures("hangup")
def test_sighup_reloads() -> None:
    reactor, calls = Threads(), []
    signals = Signals(reactor, lambda: calls.append("reload"))
    signals.startService()
    signal.raise_signal(signal.SIGHUP)
    assert calls == []
    reactor.advance(0)
    assert calls == ["reload"]
    signals.stopService()
