"""How messages are written on a connection: one JSON object a line, read with bounds.

A vocabulary is a set of dataclasses, one for each message; every field's annotation carries its reader:
`name: Annotated[str, text(253)]`. A field with a default may be missing on the wire, and is not written when
None. For what comes later: keys that a reader does not know are ignored, and so are whole messages of an
unknown type.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar

MAX_LINE_OCTETS = 64 * 1024
"""With the line feed. The longest message there is, a certificate with 256 names in PEM, has about 30 KiB."""

M = TypeVar("M")
Reader = Callable[[object], Any]


class MessageError(ValueError):
    """What arrived is not a message of the protocol."""

    def __init__(self, text: str, messages_before: tuple[Any, ...] = ()) -> None:
        super().__init__(text)
        self.messages_before = messages_before


def text(max_characters: int) -> Reader:
    """Any text that can be encoded, line feeds included."""

    def read(value: object) -> str:
        if not isinstance(value, str) or len(value) > max_characters or _SURROGATE.search(value):
            raise MessageError(f"is not a text of at most {max_characters} characters")
        return value

    return read


def sentence(max_characters: int) -> Reader:
    """Words for humans, who read them in a log: cut to the bound, what is not printable becomes `?`."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise MessageError("is not a text")
        return "".join(c if c.isprintable() else "?" for c in value[:max_characters])

    return read


def word(pattern: str) -> Reader:
    """A text that the regular expression matches whole."""
    compiled = re.compile(pattern, re.ASCII)

    def read(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise MessageError(f"does not match {pattern}")
        return value

    return read


def hexadecimal(digits: int) -> Reader:
    """Exactly that many lower-case hexadecimal digits."""
    return word(f"[0-9a-f]{{{digits}}}")


def one_of(*words: str) -> Reader:
    return word("|".join(map(re.escape, words)))


def whole(low: int, high: int) -> Reader:
    """An integer from `low` to `high`, both included."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise MessageError(f"is not an integer from {low} to {high}")
        return value

    return read


def seconds(low: float, high: float) -> Reader:
    """A number of seconds from `low` to `high`, both included."""

    def read(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise MessageError(f"is not a number from {low:g} to {high:g}")
        return float(value)

    return read


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise MessageError("is not true or false")
    return value


def several(reader: Reader, most: int) -> Reader:
    """A list of at most that many values, read as a tuple."""

    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise MessageError(f"is not a list of at most {most}")
        return tuple(map(reader, value))

    return read


class Vocabulary(Generic[M]):
    """The messages of one protocol: their types on the wire, and how the fields of each are read."""

    def __init__(self, messages: Mapping[str, type[M]]) -> None:
        self._types = {cls: word for word, cls in messages.items()}
        self._shapes = {word: (cls, dict(_readers(cls))) for word, cls in messages.items()}

    def encode(self, message: M) -> bytes:
        """One line. Raises MessageError for a message that the other end would not read."""
        kind = self._types[type(message)]
        names = self._shapes[kind][1]
        sent = self._build({"type": kind} | {name: getattr(message, name) for name in names})
        values = {name: getattr(sent, name) for name in names}
        fields = {"type": kind} | {name: value for name, value in values.items() if value is not None}
        line = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
        if len(line) > MAX_LINE_OCTETS:
            raise MessageError(f"a {kind} message of {len(line)} octets is too long")
        return line

    def decode(self, line: bytes) -> M | None:
        """The message of a line (without its line feed); None if its type is unknown. Raises MessageError."""
        try:
            fields = json.loads(
                line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
            )
        except MessageError:
            raise
        except (ValueError, RecursionError) as error:
            raise MessageError(f"a line is not JSON: {type(error).__name__}") from None
        if not isinstance(fields, dict):
            raise MessageError("a line is not a JSON object")
        return self._build(fields)

    def _build(self, fields: Mapping[str, object]) -> M | None:
        kind = fields.get("type")
        if not isinstance(kind, str):
            raise MessageError("a message has no type")
        if kind not in self._shapes:
            return None
        cls, readers = self._shapes[kind]
        values = {}
        for name, (reader, required) in readers.items():
            value = fields.get(name)
            if value is None:
                if required:
                    raise MessageError(f"{kind}: {name} is missing")
                continue
            try:
                values[name] = reader(value)
            except MessageError as error:
                raise MessageError(f"{kind}: {name} {error}") from None
        return cls(**values)


class LineReader(Generic[M]):
    """Cuts what arrives into lines and reads each as a message of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary[M]) -> None:
        self._vocabulary = vocabulary
        self._held = bytearray()
        self._searched = 0
        self._error: MessageError | None = None

    def feed(self, octets: bytes) -> list[M]:
        """The messages that these octets complete, in order.

        Raises MessageError at the first line that is not one, and at every later call; the messages that
        these octets completed before it are the error's `messages_before`.
        """
        if self._error is not None:
            raise MessageError(str(self._error))
        messages: list[M] = []
        try:
            for line in self._lines(octets):
                message = self._vocabulary.decode(line)
                if message is not None:
                    messages.append(message)
        except MessageError as error:
            self._held.clear()
            self._error = error
            raise MessageError(str(error), tuple(messages)) from None
        return messages

    def _lines(self, octets: bytes) -> Iterable[bytes]:
        self._held += octets
        while (end := self._held.find(b"\n", self._searched)) >= 0:
            if end >= MAX_LINE_OCTETS:
                break
            line = bytes(self._held[:end])
            del self._held[: end + 1]
            self._searched = 0
            yield line
        self._searched = len(self._held)
        if self._searched >= MAX_LINE_OCTETS:
            raise MessageError(f"a line is longer than {MAX_LINE_OCTETS} octets")


_SURROGATE = re.compile("[\ud800-\udfff]")


def _readers(cls: type[Any]) -> Iterable[tuple[str, tuple[Reader, bool]]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        (reader,) = hints[field.name].__metadata__
        yield field.name, (reader, field.default is dataclasses.MISSING)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise MessageError("a key is given twice")
    return fields


def _refuse_constant(constant: str) -> NoReturn:
    raise MessageError(f"{constant} is not JSON")
