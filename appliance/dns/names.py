"""A domain name is its wire form, lower-cased: ``b"\\x03www\\x04demo\\x04test\\x00"``.

Hidden here: how text and escapes become labels and back. Lower-casing the whole wire form is safe, for a
length octet is at most 63 and "A" is 65; and two names are equal (RFC 4343) exactly when these octets are.
"""

from __future__ import annotations

from typing import Final

ROOT: Final = b"\x00"
MAX_NAME_OCTETS: Final = 255  # RFC 1035 2.3.4, the root's octet included
MAX_LABEL_OCTETS: Final = 63

# What a master file would read as something else than a part of a label (RFC 1035 5.1).
_ESCAPED: Final = frozenset(b'."\\;()@$')


class BadName(ValueError):
    """This is not a domain name."""


def from_text(text: str) -> bytes:
    """The name that `text` writes, absolute with or without the final dot; "." is the root.

    Escapes are those of RFC 1035 5.1 (``\\.`` and ``\\DDD``). Raises BadName, which says what is wrong.
    """
    if text == ".":
        return ROOT
    if not text:
        raise BadName("a name cannot be empty (the root is written '.')")
    if not text.isascii():
        raise BadName(f"the name '{text}' has characters outside ASCII: {a_label_advice(text)}")
    found: list[bytes] = []
    label = bytearray()
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == ".":
            found.append(_label(label, text))
            label.clear()
        elif char == "\\":
            octet, at = _escape(text, at)
            label.append(octet)
        else:
            label.append(ord(char))
    if label or not text.endswith("."):
        found.append(_label(label, text))
    name = b"".join(found) + ROOT
    if len(name) > MAX_NAME_OCTETS:
        raise BadName(f"the name '{text[:40]}…' is longer than {MAX_NAME_OCTETS} octets")
    return name.lower()


def to_text(name: bytes) -> str:
    """How people write `name`: no final dot, the root is ".", odd octets escaped; from_text reads it back."""
    if name == ROOT:
        return "."
    return ".".join(_text_of(label) for label in labels(name))


def labels(name: bytes) -> tuple[bytes, ...]:
    """The labels of `name` from the left, the root's empty label left out."""
    found = []
    at = 0
    while length := name[at]:
        found.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return tuple(found)


def from_labels(parts: tuple[bytes, ...]) -> bytes:
    """The name of these labels (already valid; see labels)."""
    return b"".join(bytes((len(part),)) + part for part in parts) + ROOT


def parent(name: bytes) -> bytes:
    """`name` without its leftmost label. The root has no parent: ValueError."""
    if name == ROOT:
        raise ValueError("the root has no parent")
    return name[1 + name[0] :]


def is_at_or_below(name: bytes, apex: bytes) -> bool:
    """Whether `name` is `apex` or has it as an ancestor, by labels rather than by octets."""
    if not name.endswith(apex):
        return False
    # The octets may agree by chance in the middle of a label: walk until the lengths meet.
    while len(name) > len(apex):
        name = name[1 + name[0] :]
    return len(name) == len(apex)


def wildcard_of(name: bytes) -> bytes:
    """The wildcard directly below `name` (RFC 4592 2.1.1)."""
    return b"\x01*" + name


def is_wildcard(name: bytes) -> bool:
    """Whether the leftmost label is one asterisk (RFC 4592 2.1.1)."""
    return name.startswith(b"\x01*")


def end_of(octets: bytes, at: int) -> int:
    """Where the uncompressed name that begins at `at` in octets of our own (rdata, never a message) ends."""
    while length := octets[at]:
        at += 1 + length
    return at + 1


def a_label_advice(text: str) -> str:
    """What to write instead of a name with characters outside ASCII (RFC 5890 calls it the A-label)."""
    try:
        return f"write '{text.encode('idna').decode('ascii')}'"
    except UnicodeError:
        return "write its A-label form, 'xn--…'"


def _label(label: bytearray, text: str) -> bytes:
    if not label:
        raise BadName(f"the name '{text}' has an empty label")
    if len(label) > MAX_LABEL_OCTETS:
        start = label[:20].decode("ascii", "replace")
        raise BadName(f"the label '{start}…' is longer than {MAX_LABEL_OCTETS} octets")
    return bytes((len(label),)) + bytes(label)


def _escape(text: str, at: int) -> tuple[int, int]:
    digits = text[at : at + 3]
    if digits[:1].isdigit():
        if len(digits) == 3 and digits.isdigit() and int(digits) <= 255:
            return int(digits), at + 3
        raise BadName(f"the name '{text}' has a bad escape '\\{digits}' (three digits, at most 255)")
    if not digits:
        raise BadName(f"the name '{text}' ends in a backslash")
    return ord(digits[0]), at + 1


def _text_of(label: bytes) -> str:
    return "".join(
        f"\\{chr(octet)}" if octet in _ESCAPED else chr(octet) if 33 <= octet <= 126 else f"\\{octet:03d}"
        for octet in label
    )
