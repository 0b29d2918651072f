"""``twistd tunnel-appliance``: options, what is checked before the fork, and signals.

Hides how twistd behaves: everything that is wrong is said at once on stderr, with exit status 2, before it
forks; what can only be known afterwards is one line. What the appliance is made of is service/appliance.py's.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NoReturn

from twisted.application import service
from twisted.logger import Logger
from twisted.python import usage

from appliance.addresses import Listen
from appliance.service.appliance import REFUSALS, Appliance
from appliance.service.ending import Ending
from appliance.service.ports import CannotListen, Transport, claim
from appliance.settings import ApplianceSettings, SettingsRefused, read_appliance

EXIT_SETTINGS = 2
"""A service manager need not try again (RestartPreventExitStatus=2)."""
EXIT_START = 1
STDERR = 2


class Options(usage.Options):
    """The options of ``twistd tunnel-appliance``; each lies over the same setting of the file."""

    synopsis = "[options]"
    longdesc = (
        "Authoritative DNS for the files in zones/, and a tunnel server for web servers without a public "
        "address. Without any option and file: both, for ./zones, at the addresses of the zones' nameservers."
    )
    optParameters = (
        ("config", "c", None, "Settings file (TOML). Default: appliance.toml, if there is one."),
        ("zones", "z", None, "Directory of zone files, *.zone. Default: zones beside the settings file."),
        ("state", "s", None, "Directory of keys, certificates and the database. Default: state beside it."),
    )

    optFlags = (
        ("private-addresses", None, "Publish addresses that are not globally routable, as in a laboratory."),
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lists: dict[str, list[str]] = {}

    def opt_public(self, address: str) -> None:
        """Public ADDRESS[:PORT] of this machine (repeatable). Default: the zones' NS glue that is ours."""
        self.lists.setdefault("server.addresses", []).append(address)

    def opt_dns(self, address: str) -> None:
        """ADDRESS[:PORT] for DNS (repeatable). Default: each non-loopback address, port 53."""
        self.lists.setdefault("nameserver.listen", []).append(address)

    def opt_tls(self, address: str) -> None:
        """ADDRESS[:PORT] for TLS visitors and clients (repeatable). Default: every address, port 443."""
        self.lists.setdefault("server.tls", []).append(address)

    def opt_http(self, address: str) -> None:
        """ADDRESS[:PORT] for plain HTTP (repeatable). Default: every address, port 80."""
        self.lists.setdefault("server.http", []).append(address)

    def overrides(self) -> dict[str, object]:
        """The settings given on the command line, by the keys of the settings file."""
        return {
            "state": self["state"],
            "nameserver.zones": self["zones"],
            "nameserver.private_addresses": True if self["private-addresses"] else None,
            **self.lists,
        }


def makeService(options: Options) -> service.IService:
    """The appliance, and what this process does with signals. Nothing is opened before the fork."""
    from twisted.internet import reactor

    settings = read(options)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Twisted's clock is the wall clock, and a step of it would hit every timer.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    parent = options.parent
    is_daemon = parent is not None and not parent.get("nodaemon", True)
    try:
        appliance = Appliance(reactor, settings)
    except REFUSALS as refused:
        _refuse(str(refused).splitlines())
    whole = Whole(is_daemon=is_daemon)
    appliance.setServiceParent(whole)  # type: ignore[no-untyped-call]
    Signals(reactor, appliance.reload).setServiceParent(whole)  # type: ignore[no-untyped-call]
    ending = Ending(reactor, appliance.drain)
    ending.setServiceParent(whole)  # type: ignore[no-untyped-call]
    appliance.asked_to_drain = ending.begin
    return whole


def read(options: Options) -> ApplianceSettings:
    """The settings, their ports free; or the end of the process, with everything that is wrong."""
    config = options["config"]
    try:
        settings = read_appliance(None if config is None else Path(config), options.overrides())
    except SettingsRefused as refused:
        _refuse(refused.errors)
    errors = taken(settings)
    if errors:
        _refuse(errors)
    return settings


def taken(settings: ApplianceSettings) -> list[str]:
    """Claim all that the appliance will listen on, together, and let go: what cannot be, one line each."""
    wanted: list[tuple[Transport, Listen]] = []
    if settings.nameserver is not None:
        wanted += [(transport, one) for one in settings.nameserver.listen for transport in Transport]
    if settings.server is not None:
        wanted += [(Transport.TCP, one) for one in (*settings.server.tls, *settings.server.http)]
    errors = []
    with ExitStack() as held:
        for number, (transport, one) in enumerate(wanted):
            try:
                held.enter_context(closing(claim(one.host, one.port, transport)))
            except CannotListen as error:
                errors.append(str(error))
                continue
            if one.port and (transport, one) in wanted[:number]:
                errors.append(f"{one.host} port {one.port} ({transport.value}) is asked for twice")
    return errors


def _refuse(errors: list[str]) -> NoReturn:
    for error in errors:
        print(f"tunnel-appliance: {error}", file=sys.stderr)
    raise SystemExit(EXIT_SETTINGS)


class StartRefused(Exception):
    """The appliance could not start; the log says why."""


class Whole(service.MultiService):
    """Everything, whose start either succeeds or ends the process with one line instead of a traceback."""

    def __init__(self, *, is_daemon: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._one_line = _OneLine(is_daemon)

    def privilegedStartService(self) -> None:
        with self._one_line:
            super().privilegedStartService()  # type: ignore[no-untyped-call]

    def startService(self) -> None:
        with self._one_line:
            super().startService()  # type: ignore[no-untyped-call]
        self._one_line.over()
        # What is there now stays; a garbage collection that walks it stops all answers for a while.
        gc.collect()
        gc.freeze()


class _OneLine:
    """Turns what an operator can mend into one line on the terminal and the end of the process."""

    _log = Logger()

    def __init__(self, is_daemon: bool) -> None:
        self._is_daemon = is_daemon
        self._terminal: int | None = None
        if is_daemon:
            # The fork closes stderr, and of what twistd itself hands over the terminal shows 98 octets.
            with suppress(OSError):
                self._terminal = os.dup(STDERR)

    def over(self) -> None:
        """The start is over: a daemon holds no terminal."""
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        if isinstance(error, REFUSALS):
            self._log.critical("{error}", error=error)
            self._say(f"tunnel-appliance: {error}")
        self.over()
        if isinstance(error, REFUSALS):
            if self._is_daemon:
                raise StartRefused("it could not start") from None  # twistd takes its pid file away
            raise SystemExit(EXIT_START)

    def _say(self, line: str) -> None:
        if self._terminal is not None:
            with suppress(OSError):
                os.write(self._terminal, f"{line}\n".encode())
        elif not self._is_daemon:
            # twistd has put its log in the place of sys.stderr.
            print(line, file=sys.__stderr__)


class Signals(service.Service):
    """SIGHUP, which kills by default, reads the zones again."""

    def __init__(self, reactor: Any, reload: Callable[[], object]) -> None:
        self._reactor = reactor
        self._reload = reload
        self._before: Any = None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._before = signal.signal(
            signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self._reload)
        )

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        signal.signal(signal.SIGHUP, self._before)
