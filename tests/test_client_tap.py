"""``twistd tunnel-client``: its options, what it says before it forks, and what it does with signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.application import service
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.python import usage
from zope.interface import provider

from appliance import client_tap
from appliance.addresses import Listen, Origin
from appliance.client_tap import EXIT_SETTINGS, Options, Signals, makeService, read
from appliance.service.client.joining import TunnelClient
from appliance.service.ending import Ending
from appliance.settingsfile import SettingsRefused
from appliance.tunnel.discovery import ServerAddress
from tests.service.client.fake_server import invitation


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "invitation.toml").write_text(invitation(ServerAddress("127.0.0.1", 9)).to_toml())
    return tmp_path


def parsed(*arguments: str) -> Options:
    options = Options()  # type: ignore[no-untyped-call]
    options.parseOptions(list(arguments))  # type: ignore[no-untyped-call]
    return options


@pytest.mark.usefixtures("here")
def test_options_become_settings() -> None:
    settings, read_in = read(
        parsed(
            *("--invitation", "invitation.toml", "--tls-origin", "127.0.0.1:8443"),
            *("--http-origin", "unix:/run/web.sock", "--http", "redirect", "--resolver", "127.0.0.1:5354"),
            *("--state", "kept", "--proxy-protocol"),
        )
    )
    assert read_in.names == ("www.example.com",)
    assert settings.tls_origin == Origin("127.0.0.1", 8443)
    assert settings.http_origin == Origin(path="/run/web.sock")
    assert settings.http == "redirect"
    assert settings.resolver == Listen("127.0.0.1", 5354)
    assert settings.state == Path("kept").absolute()
    assert settings.proxy_protocol


def test_options_lie_over_the_file(here: Path) -> None:
    (here / "mine.toml").write_text(
        'invitation = "invitation.toml"\ntls_origin = "127.0.0.1:1"\nproxy_protocol = true\n'
    )
    settings, _ = read(parsed("--config", "mine.toml", "--tls-origin", "127.0.0.1:2"))
    assert settings.tls_origin == Origin("127.0.0.1", 2)
    assert settings.proxy_protocol


def test_an_unknown_option_is_a_usage_error() -> None:
    with pytest.raises(usage.UsageError):
        parsed("--nonsense")


@pytest.mark.parametrize(
    ("file", "arguments", "words"),
    [
        ("", [], ["no invitation"]),
        ("", ["--invitation", "missing.toml", "--tls-origin", "127.0.0.1:1"], ["missing.toml"]),
        ("", ["--invitation", "invitation.toml"], ["no origin"]),
        ("", ["--invitation", "broken.toml", "--tls-origin", "127.0.0.1:1"], ["broken.toml"]),
        ("tls_origin = 7\nstate = 8\n", ["--invitation", "invitation.toml"], ["tls_origin", "state"]),
        (
            'names."other.example.com".tls_origin = "a:1"\nnames."x.example.com".tls_origin = "a:1"\n',
            ["--invitation", "invitation.toml"],
            ["other.example.com has settings", "x.example.com has settings"],
        ),
    ],
)
def test_everything_that_is_wrong_is_said_on_stderr(
    here: Path, capsys: pytest.CaptureFixture[str], file: str, arguments: list[str], words: list[str]
) -> None:
    (here / "client.toml").write_text(file)
    (here / "broken.toml").write_text("client = 7")
    with pytest.raises(SystemExit) as refused:
        makeService(parsed(*arguments))
    assert refused.value.code == EXIT_SETTINGS
    said = capsys.readouterr()
    assert not said.out
    assert all(line.startswith("tunnel-client: ") for line in said.err.splitlines())
    for each in words:
        assert each in said.err


def test_settings_of_a_name_below_a_granted_wildcard_are_fine(here: Path) -> None:
    (here / "invitation.toml").write_text(invitation(names=("*.apps.example.com",)).to_toml())
    (here / "client.toml").write_text(
        'invitation = "invitation.toml"\n[names."one.apps.example.com"]\ntls_origin = "127.0.0.1:1"\n'
    )
    settings, _ = read(parsed())
    assert "one.apps.example.com" in settings.names
    # But it alone makes no name to register.
    with pytest.raises(SystemExit):
        makeService(parsed())


def test_an_expired_invitation_is_still_read(here: Path) -> None:
    with pytest.raises(SettingsRefused):
        read(parsed("--invitation", str(here), "--tls-origin", "127.0.0.1:1"))


@pytest.mark.usefixtures("here")
def test_the_service_is_made_and_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    from twisted.internet import reactor

    monkeypatch.setattr(reactor, "seconds", reactor.seconds)
    made = makeService(parsed("--invitation", "invitation.toml", "--tls-origin", "127.0.0.1:1"))
    assert reactor.seconds is time.monotonic
    parts = list(service.IServiceCollection(made))
    assert [type(part) for part in parts] == [TunnelClient, Signals, Ending]
    assert not Path("client-state").exists()


@contextmanager
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: Any) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def test_sighup_is_passed_on_and_goes_back_to_what_it_was() -> None:
    class Threads(Clock):
        def callFromThread(self, call: Any) -> None:
            self.callLater(0, call)

    clock = Threads()
    before = signal.getsignal(signal.SIGHUP)
    calls: list[str] = []
    signals = Signals(clock, lambda: calls.append("read again"))
    signals.startService()
    signal.raise_signal(signal.SIGHUP)
    clock.advance(0)
    signals.stopService()
    assert calls == ["read again"]
    assert signal.getsignal(signal.SIGHUP) == before


TWISTD = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "tunnel-client"]


def test_the_real_command_refuses_with_status_2(here: Path) -> None:
    run = subprocess.run(TWISTD, cwd=here, capture_output=True, text=True, timeout=30)
    assert run.returncode == EXIT_SETTINGS
    assert run.stderr.startswith("tunnel-client: no invitation")
    assert "Traceback" not in run.stderr


def test_the_real_command_survives_sighup_and_ends_at_sigterm(here: Path) -> None:
    with socket.socket() as closed:  # bound and not listening: refused for as long as it is ours
        closed.bind(("127.0.0.1", 0))
        address = ServerAddress("127.0.0.1", closed.getsockname()[1])
        (here / "invitation.toml").write_text(invitation(address).to_toml())
        arguments = ["--invitation", "invitation.toml", "--tls-origin", "127.0.0.1:1"]
        arguments += ["--resolver", str(address)]
        with subprocess.Popen([*TWISTD, *arguments], cwd=here, stdout=subprocess.PIPE, text=True) as process:
            try:
                log = read_until(process, "cannot join the server at")
                process.send_signal(signal.SIGHUP)
                log += read_until(process, "nothing to reload")
                process.send_signal(signal.SIGTERM)
                log += process.communicate(timeout=20)[0]
            finally:
                process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in log
    assert "Unhandled" not in log
    assert (here / "client-state" / "instance").stat().st_mode & 0o777 == 0o600


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    log = ""
    while words not in log:
        line = process.stdout.readline()
        assert line, log
        log += line
    return log


def test_the_module_names_the_service_maker() -> None:
    assert client_tap.makeService is makeService
