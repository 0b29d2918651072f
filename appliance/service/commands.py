"""What each command of the control socket does to a running appliance.

Hides nothing but the shapes of the requests and results, which cli.py reads: strings, numbers, lists, maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from appliance.service.authority import Authority, NotIssued
from appliance.service.control import Command, CommandRefused
from appliance.service.store import Issued, StoreFailed
from appliance.tunnel.certificates import read_credential
from appliance.tunnel.discovery import BadServerAddress, ServerAddress, read_address
from appliance.tunnel.invitation import Enrolment, Following, Invitation
from appliance.tunnel.names import BadHostName, normal

Follow = Callable[[str, Sequence[ServerAddress], Sequence[ServerAddress]], "Deferred[Following]"]
"""Of an id, the addresses where it will answer DNS, and those of the primary (none: the MNAME's) what it
needs to follow us. May raise NotIssued."""


def commands(
    authority: Authority,
    *,
    invited: Callable[[Sequence[str], float], Deferred[None]],
    removed: Callable[[str], None],
    forget: Callable[[str], Deferred[bool]],
    reload: Callable[[], Deferred[list[str]]],
    drain: Callable[[], float],
    status: Callable[[], dict[str, Any]],
    follow: Follow | None = None,
) -> dict[str, Command]:
    """The commands by name.

    `invited(names, expires)` makes granted names known; `removed(id)` takes a revoked server
    out; `forget(name)` is whether it was known; `reload()`
    gives the errors of the zones that it could not take; `drain()` lets the process leave in order, and says
    in how many seconds at most; `status()` what json can write; `follow` makes a
    further nameserver's place among those of the zones.
    """

    def invite(request: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        client = _text(request, "client") if request.get("client") else None

        def told(invitation: Invitation) -> Deferred[dict[str, Any]]:
            result = {
                "client": invitation.client,
                "names": list(invitation.names),
                "invitation": invitation.to_toml(),
            }
            expires = read_credential(invitation.credential_pem).certificate.not_valid_after_utc
            known = invited(invitation.names, expires.timestamp())
            return known.addCallback(lambda _: result)

        if request.get("renew"):
            again = _text(request, "renew")
            return _refusing(lambda: authority.invite_again(again).addCallback(told))
        return _refusing(lambda: authority.invite(_texts(request, "names"), client).addCallback(told))

    def enroll(request: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        def told(enrolment: Enrolment) -> dict[str, Any]:
            return {
                "server": enrolment.server_id,
                "enrolment": enrolment.to_toml(),
                "announces": enrolment.introduction is not None,
            }

        addresses, server_id = _addresses(request, "addresses"), _text(request, "id")
        if "dns_port" not in request:
            return _refusing(lambda: authority.enroll(server_id, addresses)).addCallback(told)
        if follow is None:
            raise CommandRefused("this appliance has no nameserver, and so no zones that one could follow")
        dns_port = request["dns_port"]
        if type(dns_port) is not int or not 0 < dns_port < 65536:
            raise CommandRefused('"dns_port" must be a port')
        at = [ServerAddress(address.host, dns_port) for address in addresses]
        primary = _addresses(request, "primary")
        is_server = request.get("is_server") is True
        return _refusing(
            lambda: authority.enroll(
                server_id, addresses, following=lambda: follow(server_id, at, primary), is_server=is_server
            )
        ).addCallback(told)

    def revoke(request: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        def told(revoked: list[Issued]) -> dict[str, Any]:
            for server_id in {one.id for one in revoked if one.role in ("server", "nameserver")}:
                removed(server_id)
            return {
                "certificates": [
                    {"role": one.role, "id": one.id, "names": list(one.names)} for one in revoked
                ],
                "number": authority.revoked.number,
            }

        return _refusing(lambda: authority.revoke(_text(request, "id"))).addCallback(told)

    def forget_name(request: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        try:
            name = normal(_text(request, "name"))
        except BadHostName as error:
            raise CommandRefused(str(error)) from None

        def told(was_known: bool) -> dict[str, Any]:
            if not was_known:
                raise CommandRefused(f"{name} is not a known name")
            return {"name": name}

        return _refusing(lambda: forget(name)).addCallback(told)

    def reload_zones(_: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        return _refusing(reload).addCallback(lambda errors: {"errors": errors})

    return {
        "invite": invite,
        "enroll": enroll,
        "revoke": revoke,
        "forget": forget_name,
        "reload": reload_zones,
        "drain": lambda _: {"seconds": drain()},
        "status": lambda _: status(),
    }


def _refusing(ask: Callable[[], Deferred[Any]]) -> Deferred[Any]:
    """What is asked, with a refusal of the authority or the disk as the command's."""
    try:
        asked = ask()
    except NotIssued as error:
        raise CommandRefused(str(error)) from None

    def not_kept(failure: Any) -> None:
        failure.trap(StoreFailed, NotIssued)
        raise CommandRefused(str(failure.value))

    return asked.addErrback(not_kept)


def _text(request: Mapping[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise CommandRefused(f'"{key}" must be a string')
    return value


def _addresses(request: Mapping[str, Any], key: str) -> list[ServerAddress]:
    try:
        return [read_address(text) for text in _texts(request, key)]
    except BadServerAddress as error:
        raise CommandRefused(str(error)) from None


def _texts(request: Mapping[str, Any], key: str) -> list[str]:
    value = request.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CommandRefused(f'"{key}" must be a list of strings')
    return value
