"""``twistd tunnel-client``: options, and the service made of them. Nothing is opened before the fork.

Everything that is wrong is said at once on stderr, and the exit status is 2, before twistd forks.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from twisted.application import service
from twisted.python import usage

from appliance.service.client.joining import TunnelClient
from appliance.service.ending import Ending
from appliance.settings import CLIENT_OPTIONS, ClientSettings, read_client
from appliance.settingsfile import SettingsRefused
from appliance.tunnel.certificates import CredentialRefused
from appliance.tunnel.invitation import Invitation, InvitationRefused, read_invitation
from appliance.tunnel.names import covers

#: What a usage or settings error exits with; a service manager need not try again (RestartPreventExitStatus).
EXIT_SETTINGS = 2


class Options(usage.Options):
    """The options of ``twistd tunnel-client``; each lies over the same setting of the file."""

    synopsis = "[options]"
    longdesc = (
        "Joins web servers without a public address to every tunnel server. What it needs is the invitation "
        "that `tunnel-appliance invite NAME` wrote, and where the web server is."
    )
    optParameters = (
        ("invitation", "i", None, "File that `tunnel-appliance invite` wrote."),
        ("config", "c", None, "Settings file (TOML). Default: client.toml, if there is one."),
        ("tls-origin", None, None, "Web server for TLS visitors, HOST:PORT or unix:/PATH."),
        ("http-origin", None, None, "Web server for plain HTTP visitors, HOST:PORT or unix:/PATH."),
        ("http", None, None, "What port 80 does: `redirect` to https, or `serve` from --http-origin."),
        ("resolver", None, None, "Resolver to find servers with, ADDRESS[:PORT]. Default: the system's."),
        ("certificate", None, None, "PEM file: end the TLS of visitors here, before --http-origin."),
        ("key", None, None, "PEM file with the key of --certificate."),
        ("state", None, None, "Directory of this client's instance id."),
    )
    optFlags = (
        ("proxy-protocol", None, "Send the origin a PROXY protocol v2 header with the visitor's address."),
    )

    def overrides(self) -> dict[str, object]:
        """The settings given on the command line by the keys of the settings file; None where not given."""
        given = {key: self[option.removeprefix("--")] for key, option in CLIENT_OPTIONS.items()}
        given["proxy_protocol"] = True if self["proxy-protocol"] else None
        return given


def read(options: Options) -> tuple[ClientSettings, Invitation]:
    """The settings and the invitation. Raises SettingsRefused with everything that is wrong."""
    config = options["config"]
    settings = read_client(None if config is None else Path(config), options.overrides())
    try:
        invitation = read_invitation(settings.invitation.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InvitationRefused) as error:
        raise SettingsRefused([f"{settings.invitation}: {error}"]) from None
    strangers = [
        f"{settings.invitation}: {name} has settings, and the invitation does not grant it"
        for name in settings.names
        if not any(covers(granted, name) for granted in invitation.names)
    ]
    if strangers:
        raise SettingsRefused(strangers)
    return settings, invitation


def makeService(options: Options) -> service.IService:
    """The tunnel client, and what this process does with signals."""
    from twisted.internet import reactor

    try:
        settings, invitation = read(options)
        client = TunnelClient(reactor, settings, invitation)
        if not client.origins.offers():
            names = ", ".join(invitation.names)
            raise SettingsRefused([f"no origin for any name of the invitation ({names}): give --tls-origin"])
    except SettingsRefused as refused:
        _refuse(refused.errors)
    except CredentialRefused as refused:
        _refuse([f"{settings.invitation}: {refused}"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:  # a visitor needs two descriptors, and the usual soft limit is 1,024
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Twisted's clock is the wall clock, and a step of it would hit every timer.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    whole = service.MultiService()
    client.setServiceParent(whole)  # type: ignore[no-untyped-call]
    Signals(reactor, client.read_again).setServiceParent(whole)  # type: ignore[no-untyped-call]
    Ending(reactor, client.drain).setServiceParent(whole)  # type: ignore[no-untyped-call]
    return whole


def _refuse(errors: list[str]) -> NoReturn:
    for error in errors:
        print(f"tunnel-client: {error}", file=sys.stderr)
    raise SystemExit(EXIT_SETTINGS)


class Signals(service.Service):
    """SIGHUP, which kills by default, and which operators send to say "read it again"."""

    def __init__(self, reactor: Any, read_again: Callable[[], None]) -> None:
        self._reactor = reactor
        self._read_again = read_again
        self._before: Any = None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._before = signal.signal(
            signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self._read_again)
        )

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        signal.signal(signal.SIGHUP, self._before)
