"""Prints docs/reference/settings.md from the settings' own classes: `make docs`. A test says if stale."""

from __future__ import annotations

from typing import Any

import attrs

from appliance.acmesettings import AcmeSettings
from appliance.caasettings import CaaTable
from appliance.keysettings import KeyTable
from appliance.secondaries import SecondaryTable
from appliance.settings import (
    APPLIANCE_OPTIONS,
    CLIENT_OPTIONS,
    ApplianceSettings,
    ClientSettings,
    NameserverSettings,
    NameSettings,
    ServerSettings,
)

KINDS = {
    "Path": "a path",
    "str": "a string",
    "int": "a whole number",
    "bool": "`true` or `false`",
    "str | None": "a string",
    "Path | None": "a path",
    "Listen | None": '`"ADDRESS[:PORT]"`',
    "Origin | None": '`"HOST:PORT"` or `"unix:/PATH"`',
    "tuple[Listen, ...]": 'a list of `"ADDRESS[:PORT]"`',
    "tuple[str, ...]": "a list of strings",
    "Literal['update', 'acme', 'transfer', 'peer']": '`"update"`, `"acme"`, `"transfer"` or `"peer"`',
    'Literal["update", "acme", "transfer", "peer"]': '`"update"`, `"acme"`, `"transfer"` or `"peer"`',
    "tuple[ServerAddress, ...]": 'a list of `"ADDRESS[:PORT]"`',
    "Literal['redirect', 'serve']": '`"redirect"` or `"serve"`',
    "Literal['own', 'rfc9018', 'off']": '`"own"`, `"rfc9018"` or `"off"`',
    'Literal["own", "rfc9018", "off"]': '`"own"`, `"rfc9018"` or `"off"`',
    'Literal["redirect", "serve"]': '`"redirect"` or `"serve"`',
    "tuple[Network, ...]": 'a list of `"ADDRESS[/BITS]"`',
    "Literal['plain', 'json']": '`"plain"` or `"json"`',
    'Literal["plain", "json"]': '`"plain"` or `"json"`',
    "Literal['add', 'off']": '`"add"` or `"off"`',
    'Literal["add", "off"]': '`"add"` or `"off"`',
}

INTRODUCTION = """\
# Settings

<!-- Made from appliance/settings.py by `make docs`; not to be edited here. -->

Both programs read a TOML file, and options of the command line lie over it. Every error is told at once,
before anything starts, as `FILE:LINE: KEY: what`; the exit status is then 2. Relative paths in a file start
from its directory, those in options from the current one. An IPv6 address with a port is written
`"[2001:db8::5]:443"`.
"""
APPLIANCE = """
## The appliance: `appliance.toml`

`twistd tunnel-appliance` reads the file that `--config` names, else `appliance.toml` of the current directory
if there is one. An appliance runs the parts whose tables the file holds, `[nameserver]`, `[server]`, or both;
with neither, both.

"""
CLIENT = """
## The tunnel client: `client.toml`

`twistd tunnel-client` reads the file that `--config` names, else `client.toml` of the current directory if
there is one. {doc}

"""
NAMES = """
### `[names."www.example.org"]`

{doc} A table for a wildcard,
`[names."*.apps.example.org"]`, is for the names below it that have none of their own.

"""


def reference() -> str:
    parts = [INTRODUCTION, APPLIANCE, _table(ApplianceSettings, "", APPLIANCE_OPTIONS)]
    for key, cls in (
        ("nameserver", NameserverSettings),
        ("nameserver.keys", KeyTable),
        ("nameserver.secondaries", SecondaryTable),
        ("nameserver.caa", CaaTable),
        ("server", ServerSettings),
    ):
        parts += [f"\n### {_doc(cls)}\n\n", _table(cls, f"{key}.", APPLIANCE_OPTIONS)]
    parts += [
        CLIENT.format(doc=_doc(ClientSettings).partition(". ")[2]),
        _table(ClientSettings, "", CLIENT_OPTIONS),
    ]
    parts += [NAMES.format(doc=_doc(NameSettings)), _table(NameSettings, "names.", {})]
    parts += [f"\n### `[acme]`\n\n{_doc(AcmeSettings)}\n\n", _table(AcmeSettings, "acme.", {})]
    return "".join(parts)


def _doc(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split())


def _table(cls: Any, prefix: str, options: dict[str, str]) -> str:
    lines = ["| key | value | without it | option | meaning |", "|---|---|---|---|---|"]
    for field in attrs.fields(cls):
        if "doc" not in field.metadata:
            continue
        option = options.get(prefix + field.name)
        cells = [
            f"`{field.name}`",
            KINDS[str(field.type)],
            field.metadata["default"],
            f"`{option}`" if option else "",
            field.metadata["doc"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
