"""The file of a TSIG key, as tsig-keygen writes it and `nsupdate -k` reads it:

    key "name" { algorithm hmac-sha256; secret "base64"; };

Hidden here: that grammar, its comments, and which keys are too weak to be taken.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from appliance.dns import names
from appliance.dns.tsig import ALGORITHMS, Key

# Half of what tsig-keygen makes. A shorter secret can be found by who has seen one signed message.
MIN_SECRET_OCTETS: Final = 16

_SKIPPED: Final = re.compile(r"(?:\s+|//[^\n]*|#[^\n]*|/\*.*?\*/)+", re.DOTALL)
_WORD: Final = re.compile(r'"([^"\n]*)"|([{};])|([^\s"{};]+)')
_FIELDS: Final = {"algorithm", "secret"}


class KeyFileError(Exception):
    """The key file cannot be used; the text is `file:line: what`."""


def read_keys(text: str, *, filename: str) -> tuple[Key, ...]:
    """The keys that `text` holds, at least one; `filename` is for the error text. Raises KeyFileError."""
    words = _Words(text, filename)
    keys: dict[bytes, Key] = {}
    while words.are_left:
        words.expect("key")
        key = _key(words)
        if key.name in keys:
            raise words.wrong(f"the key {names.to_text(key.name)} is here twice")
        keys[key.name] = key
    if not keys:
        raise words.wrong('there is no key here (write: key "name" { algorithm hmac-sha256; secret "…"; };)')
    return tuple(keys.values())


def _key(words: _Words) -> Key:
    text = words.take("the name of the key")
    try:
        name = names.from_text(text).lower()
    except names.BadName as error:
        raise words.wrong(str(error)) from None
    words.expect("{")
    found: dict[str, str] = {}
    while (field := words.take("'algorithm', 'secret' or '}'")) != "}":
        if field not in _FIELDS or field in found:
            raise words.wrong(f"'{field}' is not expected here")
        found[field] = words.take(f"the {field}")
        if field == "algorithm":
            algorithm = _algorithm(found[field], words)
        else:
            secret = _secret(found[field], words)
        words.expect(";")
    words.expect(";")
    if len(found) < len(_FIELDS):
        raise words.wrong(f"the key {text} needs an algorithm and a secret")
    return Key(name, algorithm, secret)


def _algorithm(text: str, words: _Words) -> bytes:
    try:
        name = names.from_text(text).lower()
    except names.BadName:
        name = names.ROOT
    if name not in ALGORITHMS:
        known = ", ".join(names.to_text(one) for one in ALGORITHMS)
        raise words.wrong(f"the algorithm '{text}' is not one of {known}")
    return name


def _secret(text: str, words: _Words) -> bytes:
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise words.wrong("the secret is not base64") from None  # and is not shown
    if len(secret) < MIN_SECRET_OCTETS:
        raise words.wrong(
            f"the secret has only {len(secret)} octets; make one with `tsig-keygen NAME`, which has 32"
        )
    return secret


class _Words:
    """The words of a file, and in which line we are."""

    def __init__(self, text: str, filename: str) -> None:
        self._text = text
        self._filename = filename
        self._at = self._last = 0
        self._skip()

    @property
    def are_left(self) -> bool:
        return self._at < len(self._text)

    def take(self, what: str) -> str:
        self._last = self._at
        match = _WORD.match(self._text, self._at)
        if match is None:
            raise self.wrong(f"{what} is missing here")
        self._at = match.end()
        self._skip()
        return str(match[match.lastindex or 0])

    def expect(self, word: str) -> None:
        if self.take(f"'{word}'") != word:
            raise self.wrong(f"'{word}' is expected here")

    def wrong(self, what: str) -> KeyFileError:
        line = self._text.count("\n", 0, self._last) + 1
        return KeyFileError(f"{self._filename}:{line}: {what}")

    def _skip(self) -> None:
        if (match := _SKIPPED.match(self._text, self._at)) is not None:
            self._at = match.end()
