from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.tunnel.certificates import SERVICE_NAME
from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import (
    MAX_FILE_CHARACTERS,
    AcmeKey,
    Enrolment,
    EnrolmentRefused,
    Following,
    Introduction,
    Invitation,
    InvitationRefused,
    NameserverKey,
    read_enrolment,
    read_invitation,
)
from tests.effort import examples
from tests.tunnel.authority import CA, CLIENT, NAMESERVER, OTHER_CA, SERVER

INVITATION = Invitation(
    client="c1",
    names=("www.example.org", "*.apps.example.org"),
    discovery="example.org",
    service_name=SERVICE_NAME,
    servers=(ServerAddress("192.0.2.1"), ServerAddress("2001:db8::1", 8443)),
    ca_pem=CA.certificate_pem(),
    credential_pem=CLIENT.pem(),
)
ENROLMENT = Enrolment(
    server_id="s1",
    service_name=SERVICE_NAME,
    addresses=(ServerAddress("192.0.2.1"), ServerAddress("2001:db8::1", 8443)),
    ca_pem=CA.certificate_pem(),
    credential_pem=SERVER.pem(),
)
FOLLOWING = Following(
    index=2,
    zones=("example.org", "example.net"),
    primary=(ServerAddress("192.0.2.53", 53), ServerAddress("2001:db8::53", 53)),
    servers=(ServerAddress("192.0.2.1"),),
    key_name="ns1.peer.internal",
    key_secret="AAECAwQFBgcICQoLDA0ODw==",
)
# A nameserver that is no tunnel server.
FURTHER = Enrolment(
    server_id="ns1",
    service_name=SERVICE_NAME,
    addresses=(),
    ca_pem=CA.certificate_pem(),
    credential_pem=b"",
    following=FOLLOWING,
    nameserver_pem=NAMESERVER.pem(),
)

KEY = AcmeKey("c1.5f.client.internal", (ServerAddress("192.0.2.53", 53),), "AAECAwQFBgcICQoLDA0ODw==")
INTRODUCTION = Introduction(
    "example.org",
    "s1.5f.server.internal",
    (
        NameserverKey("ns1", (ServerAddress("192.0.2.53", 53),), "AAECAwQFBgcICQoLDA0ODw=="),
        NameserverKey("ns2", (ServerAddress("2001:db8::53", 5353),), "ABECAwQFBgcICQoLDA0ODw=="),
    ),
)
ANNOUNCING = replace(ENROLMENT, introduction=INTRODUCTION)


def test_an_invitation_is_toml_for_humans() -> None:
    text = INVITATION.to_toml()
    assert text.startswith(
        "# An invitation of the tunnel client c1. It holds a private key: keep it secret.\n"
        'kind = "invitation"\n'
        "version = 1\n"
        'client = "c1"\n'
        'names = ["www.example.org", "*.apps.example.org"]\n'
        'discovery = "example.org"\n'
        'service_name = "tunnel-server.internal"\n'
        'servers = ["192.0.2.1:443", "[2001:db8::1]:8443"]\n'
        'ca = """\n'
        "-----BEGIN CERTIFICATE-----\n"
    )
    assert tomllib.loads(text)["credential"] == CLIENT.pem().decode()
    assert read_invitation(text) == INVITATION
    assert read_invitation(text + 'colour = "blue"\n') == INVITATION
    assert "PRIVATE KEY" not in repr(INVITATION)


def test_an_invitation_with_a_key_for_challenges() -> None:
    invitation = replace(INVITATION, acme_key=KEY)
    text = invitation.to_toml()
    assert text.endswith(
        "[acme_key]\n"
        'name = "c1.5f.client.internal"\n'
        'nameservers = ["192.0.2.53:53"]\n'
        'secret = "AAECAwQFBgcICQoLDA0ODw=="\n'
    )
    assert read_invitation(text) == invitation
    assert KEY.secret not in repr(invitation)


def test_an_enrolment_is_toml_for_humans() -> None:
    assert read_enrolment(ENROLMENT.to_toml()) == ENROLMENT
    assert read_enrolment(replace(ENROLMENT, addresses=()).to_toml()).addresses == ()
    assert "PRIVATE KEY" not in repr(ENROLMENT)


def test_an_enrolment_of_a_nameserver() -> None:
    assert read_enrolment(FURTHER.to_toml()) == FURTHER
    assert "PRIVATE KEY" not in repr(FURTHER)
    assert FOLLOWING.key_secret not in repr(FURTHER)
    assert "# The enrolment of the appliance ns1." in FURTHER.to_toml()


def test_an_enrolment_with_the_keys_for_announcements() -> None:
    text = ANNOUNCING.to_toml()
    assert read_enrolment(text) == ANNOUNCING
    assert text.endswith(
        "[introduction]\n"
        'zone = "example.org"\n'
        'key_name = "s1.5f.server.internal"\n'
        "[[introduction.nameservers]]\n"
        'id = "ns1"\n'
        'addresses = ["192.0.2.53:53"]\n'
        'secret = "AAECAwQFBgcICQoLDA0ODw=="\n'
        "[[introduction.nameservers]]\n"
        'id = "ns2"\n'
        'addresses = ["[2001:db8::53]:5353"]\n'
        'secret = "ABECAwQFBgcICQoLDA0ODw=="\n'
    )
    for one in INTRODUCTION.nameservers:
        assert one.secret not in repr(ANNOUNCING)
    both = replace(FURTHER, introduction=INTRODUCTION)
    assert read_enrolment(both.to_toml()) == both


def test_servers_may_be_left_to_the_dns() -> None:
    assert read_invitation(replace(INVITATION, servers=()).to_toml()).servers == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not an invitation"),
        ("kind = ", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
        (ENROLMENT.to_toml(), 'no line kind = "invitation"'),
        (INVITATION.to_toml().replace("version = 1", "version = 2"), "of version 2, not 1"),
        ("#" * (MAX_FILE_CHARACTERS + 1), "longer than"),
        (replace(INVITATION, client="c2").to_toml(), "that of tunnel-client:c1"),
        (replace(INVITATION, names=("www.example.org",)).to_toml(), r"grants www.example.org, \*.apps"),
        (replace(INVITATION, ca_pem=OTHER_CA.certificate_pem()).to_toml(), "not issued by the CA"),
        (replace(INVITATION, ca_pem=b"no").to_toml(), "not a certificate"),
        (replace(INVITATION, credential_pem=CLIENT.certificate_pem()).to_toml(), "not a private key"),
        (replace(INVITATION, credential_pem=SERVER.pem()).to_toml(), "that of tunnel-server:s1"),
        (replace(INVITATION, credential_pem=NAMESERVER.pem()).to_toml(), "that of tunnel-nameserver:ns1"),
        (INVITATION.to_toml().replace("192.0.2.1:443", "192.0.2.1:0"), "servers: 0 is not a TCP port"),
        (INVITATION.to_toml().replace('"*.apps.example.org"', "7"), "names: a list of texts is missing"),
        (INVITATION.to_toml().replace('"example.org"', '"exa mple"'), "discovery: 'exa mple' is not a host"),
        (INVITATION.to_toml().replace('"example.org"', '""'), "discovery"),
        (INVITATION.to_toml() + "acme_key = 7\n", "acme_key: is no table"),
        (INVITATION.to_toml() + "[acme_key]\n", "nameservers: a list of texts is missing"),
        (replace(INVITATION, acme_key=replace(KEY, secret="AAEC")).to_toml(), "secret: must be base64"),
    ],
)
def test_what_is_not_an_invitation(text: str, words: str) -> None:
    with pytest.raises(InvitationRefused, match=words):
        read_invitation(text)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvitationRefused) as caught:
        read_invitation('kind = "invitation"\nversion = 1\nnames = ["a b"]\nservers = ["x"]\n')
    assert str(caught.value).count(";") == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (INVITATION.to_toml(), "not an enrolment"),
        (replace(ENROLMENT, server_id="s2").to_toml(), "that of tunnel-server:s1"),
        (
            replace(ENROLMENT, service_name="x.example").to_toml(),
            "the certificate is for tunnel-server.internal",
        ),
        (replace(ENROLMENT, addresses=(ServerAddress("192.0.2.9"),)).to_toml(), "not for 192.0.2.9"),
        (replace(ENROLMENT, credential_pem=CLIENT.pem()).to_toml(), "that of tunnel-client:c1"),
        (replace(FURTHER, nameserver_pem=CLIENT.pem()).to_toml(), "that of tunnel-client:c1"),
        (replace(FURTHER, credential_pem=SERVER.pem()).to_toml(), "that of tunnel-server:s1"),
        (replace(FURTHER, addresses=ENROLMENT.addresses).to_toml(), "no credential of a tunnel server"),
        (FURTHER.to_toml().replace("index = 2", "index = 8"), "index: must be 0 to 7"),
        (FURTHER.to_toml().replace("index = 2", 'index = "2"'), "index: must be 0 to 7"),
        (FURTHER.to_toml().replace("AAECAwQFBgcICQoLDA0ODw==", "AAEC"), "key_secret: must be base64"),
        (FURTHER.to_toml().replace("AAECAwQFBgcICQoLDA0ODw==", "%"), "key_secret: must be base64"),
        (replace(FURTHER, following=replace(FOLLOWING, zones=())).to_toml(), "zones: there is none"),
        (replace(FURTHER, following=replace(FOLLOWING, primary=())).to_toml(), "primary: there is none"),
        (FURTHER.to_toml().replace('"example.net"', '"a b"'), "zones: 'a b' is not a host"),
        (ENROLMENT.to_toml() + "introduction = 7\n", "introduction: its nameservers are missing"),
        (ENROLMENT.to_toml() + "introduction = { nameservers = [] }\n", "nameservers are missing"),
        (ENROLMENT.to_toml() + "introduction = { nameservers = [7] }\n", "a nameserver is no table"),
        (ANNOUNCING.to_toml().replace("AAECAwQFBgcICQoLDA0ODw==", "AAEC"), "secret: must be base64"),
        (ANNOUNCING.to_toml().replace("s1.5f.server.internal", ""), "key_name: a text is missing"),
        (ANNOUNCING.to_toml().replace("192.0.2.53:53", "x"), "addresses: 'x' is not an IP"),
    ],
)
def test_what_is_not_an_enrolment(text: str, words: str) -> None:
    with pytest.raises(EnrolmentRefused, match=words):
        read_enrolment(text)


@given(st.text(max_size=80))
@settings(max_examples=examples(40), deadline=None)
def test_any_text_is_the_one_error(text: str) -> None:
    for kind in ("invitation", "enrolment"):
        for read in (read_invitation, read_enrolment):
            with pytest.raises(InvitationRefused):
                read(f'kind = "{kind}"\nversion = 1\n{text}')
