"""The one file that lets somebody join: an invitation for a tunnel client, an enrolment for a further
appliance, as a tunnel server, a nameserver, or both.

Both are TOML, and hold a private key: they are to be kept as secret as a password. What the file says must
agree with the certificate in it, so that a mistake of hand or of version is found where the file is read.
"""

from __future__ import annotations

import base64
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature

from appliance.tunnel.certificates import (
    CertificateRefused,
    CredentialRefused,
    Peer,
    Role,
    read_certificate,
    read_credential,
    read_peer,
)
from appliance.tunnel.discovery import BadServerAddress, ServerAddress, read_address
from appliance.tunnel.names import BadHostName, normal

VERSION = 1
MAX_INDEX = 7
"""The low three bits of a serial are the nameserver's index."""
MIN_SECRET_OCTETS = 16
MAX_FILE_CHARACTERS = 256 * 1024
"""256 names, once in the list and once in the certificate, have less than 150 KiB."""


class InvitationRefused(ValueError):
    """That is not an invitation, or it contradicts itself."""


class EnrolmentRefused(InvitationRefused):
    """That is not an enrolment, or it contradicts itself."""


_ERRORS = {"invitation": InvitationRefused, "enrolment": EnrolmentRefused}


@dataclass(frozen=True, slots=True)
class AcmeKey:
    """A key (TSIG, hmac-sha256, the secret in base64) that may change the challenges of the invitation's
    names by UPDATE, for an ACME client beside the web server; and where UPDATEs go.
    """

    name: str
    nameservers: tuple[ServerAddress, ...]
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a tunnel client needs: who it is, its grant, and where to find the servers.

    `discovery` is the name with the TXT of all servers; `servers` are addresses to start from without the
    DNS.
    """

    client: str
    names: tuple[str, ...]
    discovery: str
    service_name: str
    servers: tuple[ServerAddress, ...]
    ca_pem: bytes
    credential_pem: bytes = field(repr=False)
    acme_key: AcmeKey | None = None

    def to_toml(self) -> str:
        """The text of the file."""
        text = _write(
            "invitation",
            f"An invitation of the tunnel client {self.client}. It holds a private key: keep it secret.",
            {
                "client": self.client,
                "names": self.names,
                "discovery": self.discovery,
                "service_name": self.service_name,
                "servers": [str(server) for server in self.servers],
            },
            {"ca": self.ca_pem, "credential": self.credential_pem},
        )
        return text if self.acme_key is None else text + _acme_key_text(self.acme_key)


@dataclass(frozen=True, slots=True)
class Following:
    """What a further nameserver needs to follow its primary: the zones, where the primary answers DNS, the
    key (hmac-sha256, the secret in base64), its own index in the zones, and the tunnel servers to watch.
    """

    index: int
    zones: tuple[str, ...]
    primary: tuple[ServerAddress, ...]
    servers: tuple[ServerAddress, ...]
    key_name: str
    key_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NameserverKey:
    """A nameserver that a tunnel server announces itself to: where it answers DNS, and the secret (base64) of
    the key that the server has there.
    """

    id: str
    addresses: tuple[ServerAddress, ...]
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a tunnel server needs to announce itself: in which zone, what its keys are called (all alike), and
    the nameservers of when it was enrolled.
    """

    zone: str
    key_name: str
    nameservers: tuple[NameserverKey, ...]


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a further appliance needs: who it is, and where its tunnel server may be published (an empty
    credential: it has none) and is announced; and, if it is a nameserver, whom it follows, with the
    credential that it watches tunnel servers with.
    """

    server_id: str
    service_name: str
    addresses: tuple[ServerAddress, ...]
    ca_pem: bytes
    credential_pem: bytes = field(repr=False)
    following: Following | None = None
    nameserver_pem: bytes = field(default=b"", repr=False)
    introduction: Introduction | None = None

    def to_toml(self) -> str:
        """The text of the file."""
        what = "tunnel server" if self.following is None else "appliance"
        values: dict[str, object] = {
            "server": self.server_id,
            "service_name": self.service_name,
            "addresses": [str(address) for address in self.addresses],
        }
        pems = {"ca": self.ca_pem}
        if self.credential_pem:
            pems["credential"] = self.credential_pem
        if self.following is not None:
            following = self.following
            values |= {
                "index": following.index,
                "zones": following.zones,
                "primary": [str(address) for address in following.primary],
                "servers": [str(address) for address in following.servers],
                "key_name": following.key_name,
                "key_secret": following.key_secret,
            }
            pems["nameserver_credential"] = self.nameserver_pem
        text = _write(
            "enrolment",
            f"The enrolment of the {what} {self.server_id}. It holds a private key: keep it secret.",
            values,
            pems,
        )
        return text if self.introduction is None else text + _introduction_text(self.introduction)


def read_invitation(text: str) -> Invitation:
    """Reads what `Invitation.to_toml` wrote. Raises InvitationRefused with all that is wrong.

    Whether the certificate still holds is not asked: that depends on the day.
    """
    values = _read(text, "invitation")
    problems: list[str] = []
    invitation = Invitation(
        client=_text(values, "client", problems),
        names=_each(values, "names", normal, problems),
        discovery=_host(values, "discovery", problems),
        service_name=_host(values, "service_name", problems),
        servers=_each(values, "servers", read_address, problems),
        ca_pem=_pem(values, "ca", problems),
        credential_pem=_pem(values, "credential", problems),
        acme_key=_acme_key(values["acme_key"], problems) if "acme_key" in values else None,
    )
    if not problems:
        peer = _peer(invitation.ca_pem, invitation.credential_pem, Role.CLIENT, invitation.client, problems)
        if peer is not None and set(peer.names) != set(invitation.names):
            problems.append(f"names: the certificate grants {', '.join(peer.names)}")
    _raise("invitation", problems)
    return invitation


def read_enrolment(text: str) -> Enrolment:
    """Reads what `Enrolment.to_toml` wrote. Raises EnrolmentRefused with all that is wrong."""
    values = _read(text, "enrolment")
    problems: list[str] = []
    following = _following(values, problems) if "zones" in values else None
    has_server = following is None or "credential" in values
    enrolment = Enrolment(
        server_id=_text(values, "server", problems),
        service_name=_host(values, "service_name", problems),
        addresses=_each(values, "addresses", read_address, problems),
        ca_pem=_pem(values, "ca", problems),
        credential_pem=_pem(values, "credential", problems) if has_server else b"",
        following=following,
        nameserver_pem=_pem(values, "nameserver_credential", problems) if following else b"",
        introduction=_introduction(values["introduction"], problems) if "introduction" in values else None,
    )
    if not problems and following is not None:
        _peer(enrolment.ca_pem, enrolment.nameserver_pem, Role.NAMESERVER, enrolment.server_id, problems)
    if not problems and not has_server and enrolment.addresses:
        problems.append("addresses: there is no credential of a tunnel server")
    if not problems and has_server:
        peer = _peer(enrolment.ca_pem, enrolment.credential_pem, Role.SERVER, enrolment.server_id, problems)
        if peer is not None and enrolment.service_name not in peer.names:
            problems.append(f"service_name: the certificate is for {', '.join(peer.names) or 'no name'}")
        for address in enrolment.addresses:
            if peer is not None and address.host not in peer.addresses:
                problems.append(f"addresses: the certificate is not for {address.host}")
    _raise("enrolment", problems)
    return enrolment


def _following(values: Mapping[str, Any], problems: list[str]) -> Following:
    index = values.get("index")
    if type(index) is not int or not 0 <= index <= MAX_INDEX:
        problems.append(f"index: must be 0 to {MAX_INDEX}")
        index = 0
    following = Following(
        index=index,
        zones=_each(values, "zones", normal, problems),
        primary=_each(values, "primary", read_address, problems),
        servers=_each(values, "servers", read_address, problems),
        key_name=_host(values, "key_name", problems),
        key_secret=_text(values, "key_secret", problems),
    )
    for key in ("zones", "primary"):
        if not problems and not getattr(following, key):
            problems.append(f"{key}: there is none")
    _check_secret("key_secret", following.key_secret, problems)
    return following


def _check_secret(key: str, text: str, problems: list[str]) -> None:
    try:
        secret = base64.b64decode(text, validate=True)
    except ValueError:
        secret = b""
    if not problems and len(secret) < MIN_SECRET_OCTETS:
        problems.append(f"{key}: must be base64 of at least {MIN_SECRET_OCTETS} octets")


def _acme_key_text(key: AcmeKey) -> str:
    lines = [
        "",
        "# For certbot, lego or another ACME client beside the web server, by DNS UPDATE (RFC 2136): a key",
        "# (TSIG, hmac-sha256) that may change _acme-challenge of these names and nothing else.",
        "[acme_key]",
        f"name = {_toml(key.name)}",
        f"nameservers = {_toml([str(address) for address in key.nameservers])}",
        f"secret = {_toml(key.secret)}",
    ]
    return "\n".join(lines) + "\n"


def _acme_key(values: object, problems: list[str]) -> AcmeKey | None:
    if not isinstance(values, dict):
        problems.append("acme_key: is no table")
        return None
    key = AcmeKey(
        _text(values, "name", problems),
        _each(values, "nameservers", read_address, problems),
        _text(values, "secret", problems),
    )
    _check_secret("secret", key.secret, problems)
    return key


def _introduction_text(introduction: Introduction) -> str:
    lines = [
        "",
        "# To whom this server announces itself; the secrets are keys (TSIG, hmac-sha256).",
        "[introduction]",
        f"zone = {_toml(introduction.zone)}",
        f"key_name = {_toml(introduction.key_name)}",
    ]
    for one in introduction.nameservers:
        lines += [
            "[[introduction.nameservers]]",
            f"id = {_toml(one.id)}",
            f"addresses = {_toml([str(address) for address in one.addresses])}",
            f"secret = {_toml(one.secret)}",
        ]
    return "\n".join(lines) + "\n"


def _introduction(values: object, problems: list[str]) -> Introduction | None:
    tables = values.get("nameservers") if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(tables, list) or not tables:
        problems.append("introduction: its nameservers are missing")
        return None
    nameservers = []
    for table in tables:
        if not isinstance(table, dict):
            problems.append("introduction: a nameserver is no table")
            continue
        one = NameserverKey(
            _text(table, "id", problems),
            _each(table, "addresses", read_address, problems),
            _text(table, "secret", problems),
        )
        _check_secret("secret", one.secret, problems)
        nameservers.append(one)
    return Introduction(
        _host(values, "zone", problems), _text(values, "key_name", problems), tuple(nameservers)
    )


def _write(kind: str, comment: str, values: Mapping[str, object], pems: Mapping[str, bytes]) -> str:
    lines = [f"# {comment}", f"kind = {json.dumps(kind)}", f"version = {VERSION}"]
    lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    lines += [f'{key} = """\n{pem.decode("ascii")}"""' for key, pem in pems.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)  # names, ids and addresses: ASCII without control characters
    assert isinstance(value, list | tuple)
    return "[" + ", ".join(map(_toml, value)) + "]"


def _read(text: str, kind: str) -> dict[str, Any]:
    if len(text) > MAX_FILE_CHARACTERS:
        raise _ERRORS[kind](f"the {kind} is longer than {MAX_FILE_CHARACTERS} characters")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _ERRORS[kind](f"the {kind} is not TOML: {error}") from None
    if values.get("kind") != kind:
        raise _ERRORS[kind](f'the file is not an {kind} (it has no line kind = "{kind}")')
    if values.get("version") != VERSION:
        raise _ERRORS[kind](f"the {kind} is of version {values.get('version')!r}, not {VERSION}")
    return values


def _text(values: Mapping[str, Any], key: str, problems: list[str]) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        problems.append(f"{key}: a text is missing")
        return ""
    return value


def _host(values: Mapping[str, Any], key: str, problems: list[str]) -> str:
    value = _text(values, key, problems)
    try:
        return normal(value) if value else ""
    except BadHostName as error:
        problems.append(f"{key}: {error}")
        return ""


def _each(
    values: Mapping[str, Any], key: str, read: Callable[[str], Any], problems: list[str]
) -> tuple[Any, ...]:
    texts = values.get(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        problems.append(f"{key}: a list of texts is missing")
        return ()
    found = []
    for text in texts:
        try:
            found.append(read(text))
        except (BadHostName, BadServerAddress) as error:
            problems.append(f"{key}: {error}")
    return tuple(found)


def _pem(values: Mapping[str, Any], key: str, problems: list[str]) -> bytes:
    return _text(values, key, problems).encode()


def _peer(ca_pem: bytes, credential_pem: bytes, role: Role, peer_id: str, problems: list[str]) -> Peer | None:
    """Who the certificate in the file is for, if it goes with the rest."""
    try:
        ca = read_certificate(ca_pem)
        certificate = read_credential(credential_pem).certificate
        certificate.verify_directly_issued_by(ca)
        peer = read_peer(certificate)
    except (CredentialRefused, CertificateRefused) as error:
        problems.append(f"credential: {error}")
        return None
    except (ValueError, TypeError, InvalidSignature):
        problems.append("credential: the certificate was not issued by the CA in the file")
        return None
    if peer.role is not role or peer.id != peer_id:
        problems.append(f"credential: the certificate is that of {peer.role.value}:{peer.id}")
        return None
    return peer


def _raise(kind: str, problems: Iterable[str]) -> None:
    text = "; ".join(problems)
    if text:
        raise _ERRORS[kind](f"the {kind} cannot be used: {text}")
