"""`certificate` and `key` of a client's settings: where relative paths start, and where the two have no use.

Where a visitor's TLS ends is said by a `tls_origin`, which has a certificate of its own, by these, or by
`acme`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from appliance.settingsfile import SettingsFile

KEYPAIR = ("certificate", "key")
_ENDS = (("tls_origin",), KEYPAIR, ("acme",))

T = TypeVar("T")


def without_other_end(inherited: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a name inherits: where TLS ends not, if its own table says so in another way."""
    not_inherited: set[str] = set()
    for end in _ENDS:
        if any(own.get(key) for key in end):
            not_inherited.update(key for other in _ENDS if other is not end for key in other)
    return {key: value for key, value in inherited.items() if key not in not_inherited}


def with_paths(file: SettingsFile, key: tuple[str, ...], settings: T) -> T:
    """The settings at `key` with whole paths of certificate and key."""
    served: Any = settings
    paths: dict[str, Any] = {
        part: _directory(file, key, part) / path for part in KEYPAIR if (path := getattr(served, part))
    }
    evolved: T = attrs.evolve(served, **paths)
    return evolved


def wrong_keypair(file: SettingsFile, key: tuple[str, ...], name: Any) -> Iterator[str]:
    """An error for a certificate or key that has no use where it stands; `name` has the settings at `key`."""
    given = [part for part in KEYPAIR if getattr(name, part) is not None]
    if len(given) == 1:
        (other,) = set(KEYPAIR) - set(given)
        yield file.error((*key, given[0]), f"needs a {other}")
    elif given and name.tls_origin is not None:
        yield file.error((*key, "certificate"), "is of no use with a tls_origin, which has its own")
    elif given and name.http_origin is None:
        yield file.error((*key, "certificate"), "needs an http_origin")


def _directory(file: SettingsFile, key: tuple[str, ...], part: str) -> Path:
    """What a relative path starts from; one that a name inherited, from where the top has it."""
    inherited = key and file.value(*key, part) == file.value(part)
    return file.path(part) if inherited else file.path(*key, part)
