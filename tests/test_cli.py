from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.cli import main
from appliance.dns.zonefile import read_zone
from appliance.settings import read_appliance
from appliance.tunnel.discovery import ServerAddress
from tests.tunnel.test_invitation import INVITATION, KEY


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Callable[[Any], list[Any]]]:
    """`appliance(answer)` answers one command so, on ./state/control; the list gets the request."""
    (tmp_path / "state").mkdir()
    threads = []
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "state" / "control"))
        listening.listen()

        def begin(answer: Any) -> list[Any]:
            requests: list[Any] = []

            def serve() -> None:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as lines:
                    requests.append(json.loads(lines.readline()))
                    if answer is not None:
                        connection.sendall(json.dumps(answer).encode() + b"\n")

            threads.append(threading.Thread(target=serve))
            threads[-1].start()
            return requests

        yield begin
        for thread in threads:
            thread.join()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_acme_key(here: Path) -> None:
    (here / "bare.toml").write_text(INVITATION.to_toml())
    assert "none of its names is in a zone" in run("acme-key", "bare.toml").output
    (here / "with.toml").write_text(replace(INVITATION, acme_key=KEY).to_toml())
    result = run("acme-key", "with.toml", "--for", "lego")
    assert result.exit_code == 0
    assert f"RFC2136_TSIG_SECRET={KEY.secret}\n" in result.output
    (here / "no.toml").write_text("x")
    assert "is not TOML" in run("acme-key", "no.toml").output


def test_init(here: Path) -> None:
    result = run("init", "Example.org", "198.41.0.4", "2001:500:2::c")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "example.org.  NS  ns1.example.org.",
        "example.org.  NS  ns2.example.org.",
        "ns1.example.org.  A  198.41.0.4",
        "ns1.example.org.  AAAA  2001:500:2::c",
        "ns2.example.org.  A  198.41.0.4",
        "ns2.example.org.  AAAA  2001:500:2::c",
    ]
    assert "wrote zones/example.org.zone" in result.stderr
    assert "twistd -n tunnel-appliance" in result.stderr
    read_zone((here / "zones" / "example.org.zone").read_text(), filename="z")
    settings = read_appliance(None, {}, local_addresses=lambda: ["10.0.0.1"])
    assert settings.server is not None
    assert settings.server.addresses == (ServerAddress("198.41.0.4"), ServerAddress("2001:500:2::c"))


def test_init_overwrites_nothing(here: Path) -> None:
    (here / "appliance.toml").write_text("mine")
    result = run("init", "example.org", "203.0.113.5")
    assert result.exit_code == 1
    assert result.stderr == "Error: appliance.toml is here already; init overwrites nothing\n"
    assert (here / "appliance.toml").read_text() == "mine"
    assert not (here / "zones").exists()


@pytest.mark.parametrize(
    "arguments", [("a..b", "203.0.113.5"), ("example.org", "here"), ("203.0.113.5", "x")]
)
def test_init_with_what_is_no_zone_or_address(arguments: tuple[str, str]) -> None:
    result = run("init", *arguments)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


INVITED = {"result": {"client": "www", "names": ["www.example.org"], "invitation": "the = 'text'\n"}}


def test_invite(here: Path, appliance: Callable[[Any], list[Any]]) -> None:
    requests = appliance(INVITED)
    result = run("invite", "www.example.org", "--client", "www", "--output", "i.toml")
    assert result.exit_code == 0, result.stderr
    assert requests == [{"command": "invite", "names": ["www.example.org"], "client": "www"}]
    assert (here / "i.toml").read_text() == "the = 'text'\n"
    assert stat.S_IMODE((here / "i.toml").stat().st_mode) == 0o600
    assert result.stdout == ""
    assert "client www may serve www.example.org" in result.stderr
    assert "twistd -n tunnel-client --invitation i.toml" in result.stderr


def test_invite_again(here: Path, appliance: Callable[[Any], list[Any]]) -> None:
    requests = appliance(INVITED)
    result = run("invite", "--renew", "www", "--output", "i.toml")
    assert result.exit_code == 0, result.stderr
    assert requests == [{"command": "invite", "renew": "www"}]
    assert (here / "i.toml").read_text() == "the = 'text'\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "Missing argument"),
        (("--renew", "www", "www.example.org"), "without names"),
        (("--renew", "www", "--client", "www"), "without names"),
    ],
)
def test_invite_typed_wrongly(here: Path, arguments: tuple[str, ...], why: str) -> None:
    result = run("invite", *arguments)
    assert result.exit_code == 2
    assert why in result.stderr


def test_invite_to_stdout(appliance: Callable[[Any], list[Any]]) -> None:
    appliance(INVITED)
    assert run("invite", "www.example.org").stdout == "the = 'text'\n"


def test_invite_overwrites_nothing(here: Path) -> None:
    (here / "i.toml").write_text("mine")
    result = run("invite", "www.example.org", "--output", "i.toml")
    assert (result.exit_code, result.stderr) == (1, "Error: i.toml cannot be made: File exists\n")
    assert (here / "i.toml").read_text() == "mine"


def test_a_refusal_leaves_no_file(here: Path, appliance: Callable[[Any], list[Any]]) -> None:
    appliance({"error": "not today"})
    result = run("invite", "www.example.org", "--output", "i.toml")
    assert (result.exit_code, result.stderr) == (1, "Error: not today\n")
    assert not (here / "i.toml").exists()


@pytest.mark.parametrize("announces", [True, False])
def test_enroll(here: Path, appliance: Callable[[Any], list[Any]], announces: bool) -> None:
    requests = appliance({"result": {"server": "s2", "enrolment": "e", "announces": announces}})
    result = run("enroll", "s2", "203.0.113.9", "--output", "s2.toml")
    assert result.exit_code == 0
    assert requests == [{"command": "enroll", "id": "s2", "addresses": ["203.0.113.9"]}]
    assert (here / "s2.toml").read_text() == "e"
    assert 'enrolment = "s2.toml"' in result.stderr
    assert ("Nothing has to be changed here" in result.stderr) is announces
    assert ('servers = ["203.0.113.9"]' in result.stderr) is not announces


def test_enroll_a_nameserver(here: Path, appliance: Callable[[Any], list[Any]]) -> None:
    requests = appliance({"result": {"server": "s2", "enrolment": "e", "announces": False}})
    arguments = ("--nameserver", "--no-server", "--primary", "192.0.2.1", "--output", "s2.toml")
    result = run("enroll", "s2", "203.0.113.9", *arguments)
    assert result.exit_code == 0
    asked = {"dns_port": 53, "primary": ["192.0.2.1:53"], "is_server": False}
    assert requests == [{"command": "enroll", "id": "s2", "addresses": ["203.0.113.9"], **asked}]
    assert "[nameserver]" in result.stderr
    assert "[server]" not in result.stderr
    assert "servers =" not in result.stderr


def test_enroll_options_that_need_a_nameserver(here: Path) -> None:
    result = run("enroll", "s2", "203.0.113.9", "--no-server")
    assert result.exit_code == 2
    assert "go with --nameserver" in result.stderr


def test_revoke(appliance: Callable[[Any], list[Any]]) -> None:
    certificates = [
        {"role": "client", "id": "www", "names": ["www.example.org"]},
        {"role": "server", "id": "www", "names": []},
    ]
    requests = appliance({"result": {"certificates": certificates, "number": 1}})
    result = run("revoke", "www")
    assert requests == [{"command": "revoke", "id": "www"}]
    assert result.stdout.splitlines() == [
        "revoked the client certificate of www for www.example.org",
        "revoked the server certificate of www",
    ]


def test_reload(appliance: Callable[[Any], list[Any]]) -> None:
    appliance({"result": {"errors": []}})
    assert run("reload").stdout == "reloaded\n"
    appliance({"result": {"errors": ["z:1: bad"]}})
    result = run("reload")
    assert (result.exit_code, result.stderr) == (1, "z:1: bad\n")


def test_drain(appliance: Callable[[Any], list[Any]]) -> None:
    requests = appliance({"result": {"seconds": 50.0}})
    assert run("drain").stdout == "draining: it exits when its visitors are gone, after 50 s at most\n"
    assert requests == [{"command": "drain"}]


def test_forget(appliance: Callable[[Any], list[Any]]) -> None:
    requests = appliance({"result": {"name": "a.test"}})
    assert run("forget", "A.test").stdout == "forgot a.test\n"
    assert requests == [{"command": "forget", "name": "A.test"}]


STATUS = {
    "server": "s1",
    "zones": ["demo.test", "[b]"],
    "clients": [{"id": "www", "names": ["a", "b"], "lanes": 2, "expires": 1826994840.5}],
    "sessions": [{"expires": "2027-11-23T19:08:50+00:00", "revoked": None}],
    "visitors": [{"name": "a", "ends": {"ended": 5, "reset": 1}}],
    "nothing": [],
}


def test_status(appliance: Callable[[Any], list[Any]]) -> None:
    appliance({"result": STATUS})
    text = run("status").stdout
    assert "server: s1" in text
    assert "a, b" in text
    assert "ended 5, reset 1" in text
    assert "[b]" in text
    assert text.count("2027-11-23") == 2
    assert "T19" not in text
    assert "nothing" not in text
    appliance({"result": STATUS})
    assert json.loads(run("status", "--json").stdout) == STATUS


def test_nobody_is_there(here: Path) -> None:
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: no appliance is running at {here}/state/control; --state DIR or --config FILE says which\n"
    )


def test_an_appliance_that_ends(appliance: Callable[[Any], list[Any]]) -> None:
    appliance(None)
    assert run("status").stderr == "Error: the appliance ended before it answered\n"


def test_where_it_is(here: Path) -> None:
    (here / "etc").mkdir()
    (here / "etc" / "a.toml").write_text('state = "st"\n')
    assert str(here / "etc" / "st" / "control") in run("--config", "etc/a.toml", "status").stderr
    assert "elsewhere/control" in run("--state", "elsewhere", "status").stderr
    (here / "appliance.toml").write_text('state = "mine"\n')
    assert str(here / "mine" / "control") in run("status").stderr
    (here / "appliance.toml").write_text("nonsense")
    assert "appliance.toml:1:" in run("status").stderr


def test_typed_wrongly() -> None:
    assert run("invite").exit_code == 2
    assert run("nonsense").exit_code == 2
