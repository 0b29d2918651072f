"""How a TOML file and command-line options become attrs values, with every error at once and its place.

Hides cattrs, tomllib and the search for the line of a key. What the settings mean is settings.py's.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import (
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)

T = TypeVar("T")

Key = tuple[str, ...]
"""A setting by its place in the file: ("server", "tls")."""

NEAREST_KEY_CUTOFF_RATIO = 0.6
"""How alike a mistyped key and a known one must be to be proposed (difflib's own default)."""


class SettingsRefused(Exception):
    """These settings cannot be used."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class BadValue(ValueError):
    """This value does not say what the setting needs."""


def described(doc: str, shown: str, **more: Any) -> Any:
    """A field with its sentence and its default in words, for the settings reference."""
    return attrs.field(metadata={"doc": doc, "default": shown}, **more)


class SettingsFile:
    """One read TOML file (or none) with options laid over it.

    `tables` is the merged content; `place(key)` says "file:line" or the option that a key came from.
    `base` is the directory that relative paths in the file start from.
    """

    def __init__(self, path: Path | None) -> None:
        """Read `path`. Raises SettingsRefused when the file cannot be read or is no TOML."""
        self.filename = str(path) if path is not None else "settings"
        self.base = path.resolve().parent if path is not None else Path.cwd()
        self.tables: dict[str, Any] = {}
        self._lines: dict[Key, int] = {}
        self._options: dict[Key, str] = {}
        if path is not None:
            text = _text(path)
            try:
                self.tables = tomllib.loads(text)
            except tomllib.TOMLDecodeError as error:
                raise SettingsRefused([_toml_error(path, text, error)]) from error
            self._lines = key_lines(text)

    def lay(self, options: Mapping[str, object], names: Mapping[str, str]) -> None:
        """Lay `options` (dotted key -> value, None for not given) over the file.

        `names` says how each dotted key is typed on the command line. Raises SettingsRefused for an option
        whose table the file holds something else in.
        """
        for dotted, value in options.items():
            if value is None or value in ((), []):
                continue
            *tables, last = key = tuple(dotted.split("."))
            table = self.tables
            for name in tables:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise SettingsRefused([self.error((name,), f"must be a table: write [{name}]")])
            table[last] = value
            self._options[key] = names[dotted]

    def given(self, *key: str) -> bool:
        """Whether the file or an option sets this key (or holds this table)."""
        return self.value(*key) is not None

    def value(self, *key: str) -> Any:
        """The raw value of a key, or None."""
        found: Any = self.tables
        for name in key:
            if not isinstance(found, dict) or name not in found:
                return None
            found = found[name]
        return found

    def path(self, *key: str) -> Path:
        """The directory that a relative path at this key starts from."""
        return Path.cwd() if key in self._options else self.base

    def error(self, key: Key, what: str) -> str:
        """One error text: `file:line: section.key: what`, or `--option: what`."""
        if key in self._options:
            return f"{self._options[key]}: {what}"
        dotted = ".".join(name if "." not in name else f'"{name}"' for name in key)
        for length in range(len(key), 0, -1):
            if key[:length] in self._lines:
                return f"{self.filename}:{self._lines[key[:length]]}: {dotted}: {what}"
        return f"{self.filename}: {dotted}: {what}"

    def structure(self, converter: cattrs.Converter, cls: type[T], at: Key = (), without: Key = ()) -> T:
        """The table at `at`, `without` some keys, as a `cls`. Raises SettingsRefused."""
        table = self.value(*at) or {}
        if not isinstance(table, dict):
            raise SettingsRefused([self.error(at, f"must be a table: write [{'.'.join(at)}]")])
        table = {key: value for key, value in table.items() if key not in without}
        try:
            return converter.structure(table, cls)
        except cattrs.BaseValidationError as error:
            texts = [self.error(key, what) for key, what in _faults(error, at)]
            raise SettingsRefused(list(dict.fromkeys(texts))) from error


def converter() -> cattrs.Converter:
    """A converter that coerces nothing, forbids unknown keys and collects every error."""
    made = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, words in ((bool, "true or false"), (int, "a whole number"), (str, "a string")):
        made.register_structure_hook(kind, _exactly(kind, words))
    made.register_structure_hook_func(_made_of(tuple), lambda value, kind: _each(made, value, kind))
    made.register_structure_hook_func(_made_of(Literal), _one_of)
    return made


def _one_of(value: object, kind: Any) -> object:
    words = get_args(kind)
    if value not in words:
        raise BadValue(f"must be {' or '.join(map(_shown, words))}, not {_shown(value)}")
    return value


def _made_of(special: object) -> Callable[[Any], bool]:
    def is_one(kind: Any) -> bool:
        origin: object = get_origin(kind)
        return origin is special

    return is_one


def _exactly(kind: type, words: str) -> Any:
    def structure(value: object, _: type) -> object:
        if type(value) is not kind:
            raise BadValue(f"must be {words}, not {_shown(value)}")
        return value

    return structure


def _each(made: cattrs.Converter, value: object, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise BadValue(f"must be a list: write [{_shown(value)}]")
    results, errors = [], []
    for item in value:
        try:
            results.append(made.structure(item, get_args(kind)[0]))
        except Exception as error:
            errors.append(error)
    if errors:
        raise IterableValidationError("items", errors, kind)
    if len(set(results)) != len(results):
        raise BadValue("names the same thing twice")
    return tuple(results)


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def _faults(error: BaseException, key: Key) -> Iterator[tuple[Key, str]]:
    """Every (key, what) inside cattrs' nested groups."""
    if isinstance(error, ClassValidationError):
        named, others = error.group_exceptions()
        for inner, note in named:
            yield from _faults(inner, (*key, note.name))
        for other in others:
            yield from _faults(other, key)
    elif isinstance(error, BaseExceptionGroup):
        for item in error.exceptions:
            notes = (
                note for note in getattr(item, "__notes__", ()) if isinstance(note, IterableValidationNote)
            )
            names = [note.index for note in notes if isinstance(note.index, str)]
            yield from _faults(item, (*key, *names[:1]))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for name in sorted(error.extra_fields):
            yield (*key, name), _unknown(name, known, key)
    elif isinstance(error, KeyError):
        yield key, "is not given"
    else:
        yield key, str(error)


def _unknown(name: str, known: list[str], key: Key) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=NEAREST_KEY_CUTOFF_RATIO)
    if near:
        return f"is not a setting; did you mean {'.'.join((*key, near[0]))}?"
    return f"is not a setting; here are {', '.join(known)}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsRefused([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsRefused([f"{path}: is not UTF-8 text"]) from error


def _toml_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    """tomllib says "… (at line 3, column 5)": put the line where every other error has it."""
    what, _, at = str(error).rpartition(" (at ")
    line = at.removeprefix("line ").partition(",")[0]
    if not line.isdigit():
        line = str(len(text.splitlines()) or 1)
    return f"{path}:{line}: {what or error}"


def key_lines(text: str) -> dict[Key, int]:
    """The line of each table header and key of a TOML document that tomllib accepts.

    Only what is written one key a line is found; for the rest the error names the table's line.
    """
    lines: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        try:
            if stripped.startswith("["):
                table = _path_of(tomllib.loads(stripped))
                lines.setdefault(table, number)
            elif "=" in stripped and not stripped.startswith("#"):
                inner = _path_of(tomllib.loads(f"{stripped.partition('=')[0]}=0"))
                lines.setdefault((*table, *inner), number)
        except tomllib.TOMLDecodeError:
            continue
    return lines


def _path_of(parsed: dict[str, Any]) -> Key:
    """The only path of a document that holds one key or one empty table."""
    path: list[str] = []
    found: Any = parsed
    while isinstance(found, dict) and found:
        name, found = next(iter(found.items()))
        path.append(name)
        if isinstance(found, list):
            found = found[0]
    return tuple(path)
