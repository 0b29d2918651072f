from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.settings import (
    ApplianceSettings,
    ClientSettings,
    Listen,
    NameSettings,
    Origin,
    SettingsRefused,
    read_appliance,
    read_client,
)
from appliance.tunnel.certificates import issue_nameserver, issue_server, make_authority
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import Enrolment, Following, Introduction, NameserverKey

ZONE = """\
$ORIGIN example.org.
$TTL 300
@ SOA ns1 hostmaster 1 3600 600 604800 15
@ NS ns1
ns1 A 198.41.0.5
"""
LOCAL = ("198.41.0.5", "10.0.0.1", "2001:500:2::c")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a zone, which is the current one."""
    (tmp_path / "zones").mkdir()
    (tmp_path / "zones" / "example.org.zone").write_text(ZONE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def appliance(
    text: str | None = None, local: tuple[str, ...] = LOCAL, **options: object
) -> ApplianceSettings:
    path = None
    if text is not None:
        path = Path("a.toml")
        path.write_text(text)
    overrides = {key.replace("__", "."): value for key, value in options.items()}
    return read_appliance(path, overrides, local_addresses=lambda: local, host_name=lambda: "box.example.org")


def refused(text: str | None = None, local: tuple[str, ...] = LOCAL, **options: object) -> list[str]:
    with pytest.raises(SettingsRefused) as refusal:
        appliance(text, local, **options)
    return refusal.value.errors


def test_no_settings_at_all(here: Path) -> None:
    settings = appliance()
    assert settings.state == here / "state"
    assert settings.days == 90
    assert settings.nameserver is not None
    assert settings.nameserver.zones == here / "zones"
    assert settings.nameserver.listen == tuple(
        Listen(host, 53) for host in ("198.41.0.5", "10.0.0.1", "2001:500:2::c")
    )
    assert settings.nameserver.discovery is None
    assert settings.server is not None
    assert settings.server.id == "box"
    assert settings.server.addresses == (ServerAddress("198.41.0.5", 443),)
    assert settings.server.tls[0] == Listen("0.0.0.0", 443)
    assert settings.server.http[0] == Listen("0.0.0.0", 80)
    assert settings.server.https_port == 443


def test_the_file_beside_is_found(here: Path) -> None:
    (here / "appliance.toml").write_text('state = "elsewhere"\n')
    assert appliance().state == here / "elsewhere"


def test_public_option_is_enough() -> None:
    settings = appliance(local=("10.0.0.1",), server__addresses=["192.5.5.241"])
    assert settings.server is not None
    assert settings.nameserver is not None
    assert settings.server.addresses == (ServerAddress("192.5.5.241", 443),)


def test_without_a_public_address() -> None:
    (error,) = refused(local=("10.0.0.1",))
    assert "no public address" in error
    assert "ns1.example.org 198.41.0.5" in error
    assert "10.0.0.1" in error
    assert "--public ADDRESS" in error


def test_an_address_that_would_not_be_published() -> None:
    errors = refused(
        '[nameserver]\nservers = ["10.0.0.7"]\n[server]\n', server__addresses=["10.0.0.8", "198.41.0.9"]
    )
    why = "is not globally routable; --private-addresses publishes it anyway"
    assert errors == [
        f"--public: 10.0.0.8 {why}",
        f"a.toml:2: nameserver.servers: 10.0.0.7 {why}",
    ]
    assert appliance(server__addresses=["10.0.0.8"], nameserver__private_addresses=True).server is not None


def test_only_loopback() -> None:
    errors = refused(local=())
    assert any("no address but loopback" in error for error in errors)


def test_only_one_part() -> None:
    assert appliance("[nameserver]\n").server is None
    settings = appliance('[server]\naddresses = ["198.41.0.9"]\n')
    assert settings.nameserver is None
    (error,) = refused('[server]\naddresses = ["198.41.0.9"]\n', nameserver__listen=["127.0.0.1:5354"])
    assert error == "--dns: a.toml has no [nameserver]"


def test_ports_that_are_not_said() -> None:
    settings = appliance(
        '[nameserver]\nprivate_addresses = true\nservers = ["198.41.0.6"]\n'
        'listen = ["127.0.0.1", "[::1]:54", "0.0.0.0:55"]\n'
        '[server]\ntls = ["127.0.0.1:8443"]\nhttp = ["127.0.0.1"]\naddresses = ["127.0.0.1", "::1"]\n'
    )
    assert settings.nameserver is not None
    assert settings.server is not None
    assert [str(listen) for listen in settings.nameserver.listen] == [
        "127.0.0.1:53",
        "[::1]:54",
        "198.41.0.5:55",
        "10.0.0.1:55",
    ]
    assert settings.nameserver.servers == (ServerAddress("198.41.0.6", 443),)
    assert settings.server.addresses == (ServerAddress("127.0.0.1", 8443), ServerAddress("::1", 8443))
    assert settings.server.https_port == 8443
    assert settings.server.http == (Listen("127.0.0.1", 80),)


def test_options_win(here: Path) -> None:
    settings = appliance(
        'state = "a"\n[nameserver]\nlisten = ["127.0.0.1:1"]\n[server]\n',
        state="b",
        nameserver__listen=["127.0.0.1:2"],
        server__tls=["127.0.0.1:3"],
    )
    assert settings.state == here / "b"
    assert settings.nameserver is not None
    assert settings.nameserver.listen == (Listen("127.0.0.1", 2),)
    assert settings.server is not None
    assert settings.server.addresses == (ServerAddress("198.41.0.5", 3),)


def test_paths_start_from_the_file(here: Path) -> None:
    sub = here / "etc"
    (sub / "z").mkdir(parents=True)
    (sub / "z" / "example.org.zone").write_text(ZONE)
    (sub / "a.toml").write_text('[nameserver]\nzones = "z"\n')
    settings = read_appliance(Path("etc/a.toml"), {}, local_addresses=lambda: LOCAL)
    assert settings.nameserver is not None
    assert settings.nameserver.zones == sub / "z"
    assert settings.state == sub / "state"


def test_every_error_at_once(here: Path) -> None:
    (here / "zones" / "bad.zone").write_text("nonsense\n")
    errors = refused(
        'stat = "x"\ndays = 0\n[nameserver]\nindex = 8\ndiscovery = "a..b"\n'
        '[server]\nid = "No"\ntls = ["x:1"]\n'
    )
    text = "\n".join(errors)
    assert "a.toml:1: stat: is not a setting; did you mean state?" in text
    assert "a.toml:4: nameserver.index: must be 0 to 7" in text
    assert "a.toml:5: nameserver.discovery: " in text
    assert 'a.toml:8: server.tls: "x:1" is not an IP address with or without a port' in text
    assert "bad.zone:" in text


def test_an_id_must_be_a_label() -> None:
    (error,) = refused('[server]\nid = "No"\n[nameserver]\n')
    assert error.startswith("a.toml:2: server.id: ")


def test_no_zone(here: Path) -> None:
    (here / "zones" / "example.org.zone").unlink()
    (error,) = refused()
    assert "holds no *.zone file; `tunnel-appliance init ZONE ADDRESS` writes one" in error


def test_a_missing_file() -> None:
    with pytest.raises(SettingsRefused, match=r"absent\.toml: cannot be read"):
        read_appliance(Path("absent.toml"), {})


FOLLOWING = Following(
    index=3,
    zones=("example.org",),
    primary=(ServerAddress("198.41.0.4", 53),),
    servers=(ServerAddress("198.41.0.4"), ServerAddress("198.41.0.9", 8443)),
    key_name="s2.peer.internal",
    key_secret="AAECAwQFBgcICQoLDA0ODw==",
)


INTRODUCTION = Introduction(
    "example.org",
    "s2.5f.server.internal",
    (NameserverKey("s1", (ServerAddress("198.41.0.4", 53),), "AAECAwQFBgcICQoLDA0ODw=="),),
)


def enrolment(
    here: Path,
    *,
    following: Following | None = None,
    is_server: bool = True,
    introduction: Introduction | None = None,
) -> Path:
    wall = datetime.now(UTC)
    ca = make_authority("a CA", wall)
    credential = issue_server(
        ca, server_id="s2", service_name="tunnel-server.internal", addresses=["198.41.0.9"], wall=wall
    )
    made = Enrolment(
        server_id="s2",
        service_name="tunnel-server.internal",
        addresses=(ServerAddress("198.41.0.9", 8443),) if is_server else (),
        ca_pem=ca.certificate_pem(),
        credential_pem=credential.pem() if is_server else b"",
        following=following,
        nameserver_pem=issue_nameserver(ca, nameserver_id="s2", wall=wall).pem() if following else b"",
        introduction=introduction,
    )
    path = here / "s2.toml"
    path.write_text(made.to_toml())
    return path


def test_an_enrolled_server(here: Path) -> None:
    path = enrolment(here)
    settings = appliance('[server]\nenrolment = "s2.toml"\n')
    assert settings.server is not None
    assert settings.server.enrolment == path
    assert settings.server.id == "s2"
    assert settings.server.addresses == (ServerAddress("198.41.0.9", 8443),)


def test_whom_an_enrolled_server_announces_itself_to(here: Path) -> None:
    listed = '[server]\nenrolment = "s2.toml"\nnameservers = ["198.41.0.4", "[2001:db8::53]:5353"]\n'
    enrolment(here, introduction=INTRODUCTION)
    settings = appliance(listed)
    assert settings.server is not None
    assert settings.server.nameservers == (
        ServerAddress("198.41.0.4", 53),
        ServerAddress("2001:db8::53", 5353),
    )
    enrolment(here)
    (error,) = refused(listed)
    assert error == (
        "a.toml:3: server.nameservers: only a server whose enrolment has the keys for it can announce itself"
    )


def test_an_enrolment_of_another(here: Path) -> None:
    enrolment(here)
    errors = refused('[server]\nenrolment = "s2.toml"\nid = "s3"\naddresses = ["198.41.0.8"]\n')
    assert errors == [
        'a.toml:3: server.id: the enrolment says "s2"',
        "a.toml:4: server.addresses: the enrolment is not for 198.41.0.8 but for 198.41.0.9",
    ]


@pytest.mark.parametrize("part", ["nameserver", "server"])
def test_an_enrolled_nameserver(here: Path, part: str) -> None:
    path = enrolment(here, following=FOLLOWING)
    tables = {"nameserver": 'servers = ["198.41.0.5"]\n', "server": ""}
    tables[part] += 'enrolment = "s2.toml"\n'
    settings = appliance("".join(f"[{name}]\n{text}" for name, text in tables.items()))
    assert settings.nameserver is not None
    assert settings.server is not None
    assert settings.nameserver.enrolment == settings.server.enrolment == path
    assert settings.nameserver.following == FOLLOWING
    assert settings.nameserver.index == 3
    assert settings.nameserver.servers == (ServerAddress("198.41.0.4"), ServerAddress("198.41.0.5"))
    assert settings.server.id == "s2"


def test_an_enrolled_nameserver_alone(here: Path) -> None:
    enrolment(here, following=FOLLOWING, is_server=False)
    settings = appliance('[nameserver]\nenrolment = "s2.toml"\n')
    assert settings.server is None
    assert settings.nameserver is not None
    assert settings.nameserver.servers == FOLLOWING.servers
    (error,) = refused('[nameserver]\nenrolment = "s2.toml"\n[server]\naddresses = ["198.41.0.9"]\n')
    assert error == "a.toml:3: server: the enrolment is not one of a tunnel server"


def test_what_an_enrolled_nameserver_cannot_be_told(here: Path) -> None:
    enrolment(here, following=FOLLOWING)
    errors = refused('[nameserver]\nenrolment = "s2.toml"\nzones = "zones"\nindex = 1\n')
    assert errors == [
        "a.toml:3: nameserver.zones: the enrolment says which zones are followed",
        "a.toml:4: nameserver.index: the enrolment says 3",
    ]
    (here / "other.toml").write_text((here / "s2.toml").read_text())
    (error,) = refused('[nameserver]\nenrolment = "s2.toml"\n[server]\nenrolment = "other.toml"\n')
    assert "an appliance has one enrolment" in error
    enrolment(here)
    (error,) = refused('[nameserver]\n[server]\nenrolment = "s2.toml"\n')
    assert "the enrolment is not one of a nameserver: `tunnel-appliance enroll --nameserver`" in error


def test_an_enrolment_that_is_none(here: Path) -> None:
    (here / "s2.toml").write_text("nonsense")
    (error,) = refused('[server]\nenrolment = "s2.toml"\n')
    assert error.startswith(f"a.toml:2: server.enrolment: {here / 's2.toml'}: ")
    (error,) = refused('[server]\nenrolment = "absent"\n')
    assert error.endswith("cannot be read: No such file or directory")


# A client


def client(text: str | None = None, **options: object) -> ClientSettings:
    path = None
    if text is not None:
        path = Path("c.toml")
        path.write_text(text)
    return read_client(path, options)


def client_refused(text: str | None = None, **options: object) -> list[str]:
    with pytest.raises(SettingsRefused) as refusal:
        client(text, **options)
    return refusal.value.errors


@pytest.fixture
def invitation(here: Path) -> str:
    (here / "i.toml").write_text("")
    return "i.toml"


def test_a_client_asks_for_its_invitation() -> None:
    (error,) = client_refused(tls_origin="localhost:443")
    assert error.startswith("no invitation: give --invitation FILE")


def test_a_client_by_options(here: Path, invitation: str) -> None:
    settings = client(invitation=invitation, tls_origin="localhost:8443")
    assert settings == ClientSettings(
        invitation=here / "i.toml", state=here / "client-state", tls_origin=Origin("localhost", 8443)
    )
    assert settings.for_name("x") == NameSettings(Origin("localhost", 8443), None, "redirect", False)


def test_an_http_origin_is_served(invitation: str) -> None:
    assert client(invitation=invitation, http_origin="unix:/run/web").http == "serve"
    assert client('http = "redirect"\n', invitation=invitation, http_origin="h:1").http == "redirect"


def test_names_of_a_client(invitation: str) -> None:
    settings = client(
        'resolver = "127.0.0.1"\ntls_origin = "h:1"\nproxy_protocol = true\n'
        '[names."WWW.example.org"]\nhttp_origin = "h:2"\n'
        '[names."*.apps.example.org"]\ntls_origin = "h:3"\nproxy_protocol = false\n',
        invitation=invitation,
    )
    assert settings.resolver == Listen("127.0.0.1", 53)
    assert dict(settings.names) == {
        "www.example.org": NameSettings(Origin("h", 1), Origin("h", 2), "serve", True),
        "*.apps.example.org": NameSettings(Origin("h", 3), None, "redirect", False),
    }
    assert settings.for_name("other.example.org") == NameSettings(Origin("h", 1), None, "redirect", True)


def test_errors_of_a_client(invitation: str) -> None:
    errors = client_refused(
        'htp_origin = "h:1"\nresolver = "x"\n[names."a..b"]\ntls_origin = "h"\n[names.w]\nhttp = "never"\n',
        invitation=invitation,
    )
    text = "\n".join(errors)
    assert "c.toml:1: htp_origin: is not a setting; did you mean http_origin?" in text
    assert 'c.toml:2: resolver: "x" is not an IP address with or without a port' in text
    assert 'c.toml:4: names."a..b".tls_origin: "h" is neither HOST:PORT nor unix:/PATH' in text
    assert 'c.toml:6: names.w.http: must be "redirect" or "serve", not "never"' in text


def test_how_long_a_drain_may_take(invitation: str) -> None:
    assert client("drain_seconds = 0\n", invitation=invitation, tls_origin="h:1").drain_seconds == 0
    (error,) = client_refused("drain_seconds = -1\n", invitation=invitation, tls_origin="h:1")
    assert error == "c.toml:1: drain_seconds: must be 0 to 86400 seconds"


def test_a_client_without_origin(invitation: str) -> None:
    (error,) = client_refused(invitation=invitation)
    assert "no origin: give --tls-origin or --http-origin" in error
    (error,) = client_refused('[names."a.test"]\nhttp = "serve"\ntls_origin = "h:1"\n', invitation=invitation)
    assert error == 'c.toml:2: names."a.test".http: "serve" needs an http_origin'
    errors = client_refused('[names."a..b"]\ntls_origin = "h:1"\n', invitation=invitation)
    assert errors[0].startswith('c.toml:1: names."a..b": ')


def test_an_invitation_that_is_not_there() -> None:
    (error,) = client_refused(invitation="absent", tls_origin="h:1")
    assert error.startswith("--invitation: ")
    assert error.endswith("absent does not exist")


KEY = f'key "{{}}" {{{{ algorithm hmac-sha256; secret "{"A" * 43}="; }}}};'


def test_secondaries_of_the_nameserver(here: Path) -> None:
    (here / "k1.key").write_text(KEY.format("k1"))
    (here / "k1.key").chmod(0o600)
    text = """
[[nameserver.keys]]
file = "k1.key"
kind = "{}"
[[nameserver.secondaries]]
address = "192.0.2.7"
key = "k1"
[[nameserver.secondaries]]
address = "[2001:db8::7]:5300"
[server]
"""
    nameserver = appliance(text.format("transfer")).nameserver
    assert nameserver is not None
    first, second = nameserver.secondaries
    assert (str(first.address), first.key) == ("192.0.2.7:53", b"\x02k1\x00")
    assert (str(second.address), second.key) == ("[2001:db8::7]:5300", None)
    (error,) = refused(text.format("update"))
    assert error == "a.toml:5: nameserver.secondaries: k1 is not a key of the kind transfer"


def test_who_may_issue(here: Path) -> None:
    text = """
[[nameserver.caa]]
names = ["www.example.org"]
issue = ["letsencrypt.org"]
account = "clients"
[server]
"""
    nameserver = appliance(text).nameserver
    assert nameserver is not None
    (rule,) = nameserver.caa
    assert (rule.names, rule.issue, rule.account) == (("www.example.org",), ("letsencrypt.org",), "clients")
    (error,) = refused(text.replace("www.example.org", "www.other.test"))
    assert error == "a.toml:2: nameserver.caa: www.other.test is in none of the zones"
    (error,) = refused(text.replace('"clients"', '"nobody"'))
    assert error.startswith('a.toml:2: nameserver.caa: account must be "clients" or the URL of')
    (error,) = refused(text.replace("account", "acount"))
    assert "did you mean nameserver.caa.account?" in error


def test_keys_of_the_nameserver(here: Path) -> None:
    for name in ("k1", "k2"):
        (here / f"{name}.key").write_text(KEY.format(name))
        (here / f"{name}.key").chmod(0o600)
    text = """
[[nameserver.keys]]
file = "k1.key"
kind = "acme"
names = ["*.example.org", "www.example.org"]
[[nameserver.keys]]
file = "k2.key"
kind = "update"
types = ["A"]
[server]
"""
    nameserver = appliance(text).nameserver
    assert nameserver is not None
    first, second = nameserver.keys
    assert (first.kind, len(first.names), second.types) == ("acme", 2, (1,))
    assert "AAAA" not in repr(nameserver)
    errors = refused(text.replace("k2.key", "k3.key").replace('"acme"', '"acem"'))
    assert len(errors) == 2
    assert all(error.startswith("a.toml:") and ": nameserver.keys" in error for error in errors), errors
    (error,) = refused(text.replace("www.example.org", "www.other.test"))
    assert error == "a.toml:2: nameserver.keys: www.other.test is in none of the zones"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('cookies = "rfc9018"', "nameserver.cookies: "),
        ('cookie_secrets = "nowhere"', "nameserver.cookie_secrets: "),
        ("rate_limit = -1", "nameserver.rate_limit: "),
        ("slip = -1", "nameserver.slip: "),
        ('nsid = ""', "nameserver.nsid: "),
        (f'nsid = "{"x" * 129}"', "nameserver.nsid: "),
    ],
)
def test_the_terms_of_answers_are_refused(line: str, error: str) -> None:
    (text,) = refused(f"[nameserver]\n{line}\n")
    assert text.startswith(f"a.toml:2: {error}")


def test_the_file_of_cookie_secrets_is_beside_the_settings(here: Path) -> None:
    (here / "secrets").write_text("00" * 16)
    settings = appliance('[nameserver]\ncookies = "rfc9018"\ncookie_secrets = "secrets"\n')
    assert settings.nameserver is not None
    assert settings.nameserver.cookie_secrets is not None
    assert settings.nameserver.cookie_secrets.samefile(here / "secrets")


def test_limits_and_where_visitors_are_told_of(here: Path) -> None:
    text = (
        "[server]\naddresses = ['198.41.0.5']\nsource_open = 10\nsource_new = 0\nname_open = 5\n"
        "all_open = 6\n"
        "source_exempt = ['192.0.2.1', '2001:db8::/48']\naccess_log = 'log/access'\n"
        "access_log_format = 'json'\nmetrics = '[::1]:9100'\n"
    )
    server = appliance(text).server
    assert server is not None
    assert (server.source_open, server.source_new, server.name_open, server.all_open) == (10, 0, 5, 6)
    assert [str(one) for one in server.source_exempt] == ["192.0.2.1/32", "2001:db8::/48"]
    assert (server.access_log, server.access_log_format) == (here / "log" / "access", "json")
    assert server.metrics == Listen("::1", 9100)
    server = appliance("[server]\naddresses = ['198.41.0.5']\nsource_exempt = []\n").server
    assert server is not None
    assert server.source_exempt == ()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("source_open = -1", "server.source_open: must be 0 (no limit) or more"),
        ("all_open = -1", "server.all_open: must be 0 (no limit) or more"),
        ("source_exempt = ['192.0.2.1/24']", "is neither an address nor a network"),
        ("source_exempt = ['home']", "is neither an address nor a network"),
        ("source_exempt = '192.0.2.1'", "must be a list"),
        ("access_log_format = 'xml'", 'must be "plain" or "json"'),
        ("metrics = '192.0.2.1:9100'", "must be a loopback address with a port"),
        ("metrics = '127.0.0.1'", "must be a loopback address with a port"),
    ],
)
def test_limits_that_are_refused(line: str, what: str) -> None:
    (error,) = refused(f"[server]\naddresses = ['198.41.0.5']\n{line}\n")
    assert error.startswith("a.toml:3: ")
    assert what in error


def test_what_requests_say_is_inherited_by_names(here: Path) -> None:
    (here / "c.toml").write_text(
        f'invitation = "{here}/zones/example.org.zone"\nhttp_origin = "h:1"\nforwarded = "add"\n'
        '[names."a.example.org"]\n[names."b.example.org"]\nforwarded = "off"\n'
    )
    settings = read_client(here / "c.toml", {})
    assert settings.for_name("x.example.org").forwarded == "add"
    assert settings.for_name("a.example.org").forwarded == "add"
    assert settings.for_name("b.example.org").forwarded == "off"
