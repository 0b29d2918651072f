"""`tunnel-appliance`: what an operator types beside a running appliance, and `init` before the first start.

Hides the control socket's client side. No reactor; the work is done in the appliance (service/commands.py).
Exit status: 0 done, 1 refused or not reachable, 2 typed wrongly (click's own).
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from appliance import __version__
from appliance.acmekeyforms import FORMS, written
from appliance.addresses import read_listen, with_port
from appliance.service.control import SOCKET_NAME
from appliance.settings import DEFAULT_APPLIANCE_FILE
from appliance.settingsfile import BadValue, SettingsFile, SettingsRefused
from appliance.tunnel.invitation import InvitationRefused, read_invitation
from appliance.tunnel.names import BadHostName, normal

ANSWER_SECONDS = 60.0
"""More than the appliance takes for anything, so that it is the appliance that says what is wrong."""
TIMES = ("expires", "revoked")
"""Columns of times, Unix or ISO 8601, of which the day is shown."""
WIDE_COLUMNS = 10_000
"""No cell is cut: a name that is not whole cannot be copied."""

ZONE_TEXT = """\
; The operator's zone file: the appliance never writes it. The records of tunnel servers and of served names
; are live, laid over this file. After a change: tunnel-appliance reload
$ORIGIN {zone}.
$TTL 3600
@       SOA  ns1 hostmaster 1 7200 900 1209600 15
{records}"""

SETTINGS_TEXT = """\
# The settings of this appliance; docs/reference/settings.md has them all.

[nameserver]
zones = "zones"

[server]
addresses = [{addresses}]
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--state", type=click.Path(path_type=Path), help="The appliance's state directory.")
@click.option("--config", type=click.Path(path_type=Path), help="The appliance's settings, which name it.")
@click.pass_context
def main(context: click.Context, state: Path | None, config: Path | None) -> None:
    """Commands for a running tunnel appliance. Started with: twistd tunnel-appliance"""
    context.obj = (state, config)


@main.command()
@click.argument("zone")
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)
def init(zone: str, addresses: Sequence[str]) -> None:
    """Write zones/ZONE.zone and appliance.toml here, once, for a machine with these public addresses."""
    try:
        apex = normal(zone)
    except BadHostName as error:
        raise click.ClickException(str(error)) from None
    try:
        hosts = [read_listen(address).host for address in addresses]
    except BadValue as error:
        raise click.ClickException(str(error)) from None
    # One machine, two nameservers' names: many a parent zone takes no fewer (RFC 1034 4.1).
    names = [f"ns{number}" for number in (1, 2)]
    records = "".join(f"        NS   {name}\n" for name in names)
    glue = [(name, "AAAA" if ":" in host else "A", host) for name in names for host in hosts]
    records += "".join(f"{name:<7} {rtype:<4} {host}\n" for name, rtype, host in glue)
    zone_file = Path("zones") / f"{apex}.zone"
    quoted = ", ".join(f'"{host}"' for host in hosts)
    files = {
        zone_file: ZONE_TEXT.format(zone=apex, records=records),
        DEFAULT_APPLIANCE_FILE: SETTINGS_TEXT.format(addresses=quoted),
    }
    there = [str(path) for path in files if path.exists()]
    if there:
        raise click.ClickException(f"{' and '.join(there)} is here already; init overwrites nothing")
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        click.echo(f"wrote {path}", err=True)
    click.echo(
        f"\nGive these lines to whoever runs the parent zone (your registrar), for {apex}:\n", err=True
    )
    for name in names:
        click.echo(f"{apex}.  NS  {name}.{apex}.")
    for name, rtype, host in glue:
        click.echo(f"{name}.{apex}.  {rtype}  {host}")
    click.echo("\nThen start it:  twistd -n tunnel-appliance", err=True)


@main.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--client", metavar="ID", help="What the client is called; otherwise after its first name.")
@click.option("--renew", metavar="ID", help="No names: a new one for this client, as its last one was.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the invitation there, not to stdout.")
@click.pass_obj
def invite(
    where: Any, names: Sequence[str], client: str | None, renew: str | None, output: Path | None
) -> None:
    """Make the invitation of a client that may serve these names (*.apps.example.org is one).

    Clients renew their certificates themselves; --renew is for one that was away until its own had expired.
    """
    if renew is not None and (names or client is not None):
        raise click.UsageError("--renew ID goes without names and --client: they are those of the client")
    if renew is None and not names:
        raise click.UsageError("Missing argument 'NAME...'.")
    with _New(output) as file:
        wanted = {"names": list(names), "client": client} if renew is None else {"renew": renew}
        result = _ask(where, "invite", **wanted)
        file.write(result["invitation"])
    click.echo(f"client {result['client']} may serve {', '.join(result['names'])}", err=True)
    shown = output or "INVITATION"
    click.echo(
        f"Keep it secret. Beside the web server:"
        f"  twistd -n tunnel-client --invitation {shown} --tls-origin 127.0.0.1:443",
        err=True,
    )


@main.command(name="acme-key")
@click.argument("invitation", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--for", "form", type=click.Choice(FORMS), default="nsupdate", show_default=True)
def acme_key(invitation: Path, form: str) -> None:
    """Print the key of an invitation as an ACME client wants it that answers challenges by DNS UPDATE.

    It may change _acme-challenge of the invitation's names, and nothing else. No appliance need run here.
    """
    try:
        key = read_invitation(invitation.read_text(encoding="utf-8")).acme_key
    except (OSError, UnicodeDecodeError, InvitationRefused) as error:
        raise click.ClickException(f"{invitation}: {error}") from None
    if key is None:
        raise click.ClickException(f"{invitation}: none of its names is in a zone of the appliance's")
    click.echo(written(key, form), nl=False)


@main.command()
@click.argument("id")
@click.argument("addresses", metavar="ADDRESS[:PORT]...", nargs=-1, required=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the enrolment there, not to stdout.")
@click.option("--nameserver", is_flag=True, help="It is a nameserver of the zones here, too.")
@click.option("--no-server", is_flag=True, help="With --nameserver: it is no tunnel server.")
@click.option("--dns-port", default=53, show_default=True, help="With --nameserver: where it answers DNS.")
@click.option(
    "--primary",
    metavar="ADDRESS[:PORT]",
    multiple=True,
    help="With --nameserver: where it reaches the nameserver here, if not at the SOA's MNAME.",
)
@click.pass_obj
def enroll(
    where: Any,
    id: str,
    addresses: Sequence[str],
    output: Path | None,
    nameserver: bool,
    no_server: bool,
    dns_port: int,
    primary: Sequence[str],
) -> None:
    """Make the one file that a further tunnel server, with these public addresses, needs."""
    further: dict[str, Any] = {}
    if nameserver:
        at = [with_port(address, 53) for address in primary]
        further = {"dns_port": dns_port, "primary": at, "is_server": not no_server}
    elif no_server or primary:
        raise click.UsageError("--no-server and --primary go with --nameserver")
    with _New(output) as file:
        result = _ask(where, "enroll", id=id, addresses=list(addresses), **further)
        file.write(result["enrolment"])
    shown = ", ".join(f'"{address}"' for address in addresses)
    line = f'enrolment = "{(output or Path("enrolment.toml")).name}"'
    what = "nameserver" if no_server else "server"
    click.echo(f"{what} {result['server']}: keep the file secret, and put it on that machine, with", err=True)
    for table in ("nameserver",) * nameserver + ("server",) * (not no_server):
        click.echo(f"  [{table}]\n  {line}", err=True)
    click.echo("in its appliance.toml.", err=True)
    if not no_server and result["announces"]:
        click.echo("Nothing has to be changed here: it announces itself.", err=True)
    elif not no_server:
        click.echo(f"At the nameserver, add to [nameserver] and restart:  servers = [{shown}]", err=True)
    if nameserver:
        click.echo("Then give the zones an NS record for it, and its address (their parents, too).", err=True)


@main.command()
@click.argument("id")
@click.pass_obj
def revoke(where: Any, id: str) -> None:
    """Take back every certificate of a client or server; its links end at once."""
    result = _ask(where, "revoke", id=id)
    for one in result["certificates"]:
        of = f" for {', '.join(one['names'])}" if one["names"] else ""
        click.echo(f"revoked the {one['role']} certificate of {one['id']}{of}")


@main.command()
@click.pass_obj
def reload(where: Any) -> None:
    """Read the zone files again; a zone that cannot be read stays as it was."""
    errors = _ask(where, "reload")["errors"]
    for error in errors:
        click.echo(error, err=True)
    if errors:
        sys.exit(1)
    click.echo("reloaded")


@main.command()
@click.pass_obj
def drain(where: Any) -> None:
    """Leave the DNS, let visitors finish, and exit, as at SIGTERM; `status` says how far it is."""
    seconds = _ask(where, "drain")["seconds"]
    click.echo(f"draining: it exits when its visitors are gone, after {seconds:.0f} s at most")


@main.command()
@click.argument("name")
@click.pass_obj
def forget(where: Any, name: str) -> None:
    """No longer know a name that nobody serves: its records go, and its visitors get 404."""
    click.echo(f"forgot {_ask(where, 'forget', name=name)['name']}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def status(where: Any, as_json: bool) -> None:
    """What the appliance is doing."""
    result = _ask(where, "status")
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    console = Console(width=WIDE_COLUMNS)
    for heading, value in result.items():
        if not isinstance(value, list):
            console.print(f"{heading.replace('_', ' ')}: {value}", highlight=False, markup=False)
    for one in result.pop("uncertified", ()):
        since = datetime.fromtimestamp(one["since"], UTC)
        line = f"{one['name']}: no new certificate: {one['why']}"
        line += f" (client {one['client']}, since {since:%Y-%m-%d %H:%M} UTC)"
        console.print(line, highlight=False, markup=False)
    for heading, rows in result.items():
        if isinstance(rows, list) and rows:
            _table(console, heading, rows)


def _table(console: Console, heading: str, rows: list[Any]) -> None:
    if not isinstance(rows[0], dict):
        rows = [{"": row} for row in rows]
    table = Table(title=heading.replace("_", " "), title_justify="left", box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(column, value) for column, value in row.items()))
    console.print()
    console.print(table, markup=False)


def _cell(column: str, value: Any) -> str:
    if column in TIMES and isinstance(value, int | float):
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d}"
    if column in TIMES and isinstance(value, str):
        return value.partition("T")[0]
    if value is None:
        return ""
    if isinstance(value, dict):
        value = [f"{key} {count}" for key, count in value.items()]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class _New:
    """A file of mode 0600 that is not there yet, or stdout; an attempt that fails leaves none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> Any:
        if self._path is None:
            return sys.stdout
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise click.ClickException(f"{self._path} cannot be made: {error.strerror}") from None
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        return self._file

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._path is None:
            return
        self._file.close()
        if kind is None:
            click.echo(f"wrote {self._path}", err=True)
        else:
            self._path.unlink()


def _state_directory(state: Path | None, config: Path | None) -> Path:
    """Where the control socket is: as `twistd tunnel-appliance` with the same options would have it."""
    if state is not None:
        return state
    if config is None and DEFAULT_APPLIANCE_FILE.exists():
        config = DEFAULT_APPLIANCE_FILE
    try:
        file = SettingsFile(config)
    except SettingsRefused as error:
        raise click.ClickException(str(error)) from None
    named = file.value("state")
    return file.base / (named if isinstance(named, str) else "state")


def _ask(where: tuple[Path | None, Path | None], command: str, **arguments: Any) -> dict[str, Any]:
    """The appliance's result. Raises ClickException with what it refused, or why it cannot be reached."""
    path = _state_directory(*where) / SOCKET_NAME
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(ANSWER_SECONDS)
            asking.connect(str(path))
            asking.sendall(request)
            with asking.makefile("rb") as answers:
                line = answers.readline()
    except TimeoutError:
        raise click.ClickException(f"the appliance at {path} does not answer") from None
    except (FileNotFoundError, ConnectionRefusedError):
        what = f"no appliance is running at {path}; --state DIR or --config FILE says which"
        raise click.ClickException(what) from None
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        raise click.ClickException("the appliance ended before it answered") from None
    if "error" in answer:
        raise click.ClickException(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result
