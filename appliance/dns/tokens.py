"""The tokens of a master file, the line that each is in, and what is wrong with them in words.

Hidden here: what dnspython's tokenizer leaves to be wished for: it counts lines one late, turns U-labels
into A-labels unasked, and says "Text input is malformed." of most mistakes.
"""

from __future__ import annotations

from typing import Final

import dns.exception
import dns.name
import dns.tokenizer

from appliance.dns import names

# What dnspython says when it has nothing to say: the bare docstrings of its error classes.
_MUTE: Final = frozenset(
    (
        "",
        "Text input is malformed.",
        "An incorrect number of arguments were given.",
        "list index out of range",
    )
)
_TOO_EARLY: Final = frozenset(("Text input ended unexpectedly.", "expecting another identifier"))


class Wrong(dns.exception.SyntaxError):
    """Something in the entry that is being read is wrong; the text says what."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[no-untyped-call]


class OnlyAscii(dns.name.IDNACodec):
    """Refuses U-labels. Called by dnspython only for names that hold a character outside ASCII."""

    def encode(self, label: str) -> bytes:
        if label.isascii():
            return label.encode("ascii")
        raise Wrong(f"the name part '{label}' has characters outside ASCII: {names.a_label_advice(label)}")


class Tokens(dns.tokenizer.Tokenizer):
    """dnspython's tokenizer, which counts a line as read when it has looked at its newline: one too late."""

    def __init__(self, text: str) -> None:
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        self.text = text
        super().__init__(text, idna_codec=OnlyAscii())  # type: ignore[no-untyped-call]
        self.line = 1  # of the token that was read last, or where reading it failed
        self.last = dns.tokenizer.Token(dns.tokenizer.EOL)
        self._last_char = ""

    def _get_char(self) -> str:
        self._last_char = super()._get_char()
        return self._last_char

    def get(self, want_leading: bool = False, want_comment: bool = False) -> dns.tokenizer.Token:
        try:
            token = super().get(want_leading, want_comment)
        except dns.exception.DNSException:
            if self._last_char == ")":
                raise Wrong("a ')' without its '('") from None
            if self.quoting:
                raise Wrong("a quoted text does not end in its line: a quote is missing") from None
            if self.multiline:
                raise Wrong("a '(' is never closed") from None
            raise Wrong("a line cannot end in a backslash") from None
        finally:
            # A newline that was looked at, and not passed, has been counted already.
            self.line = self.line_number - (self._last_char == "\n")
        self.last = token
        return token

    def unget(self, token: dns.tokenizer.Token) -> None:
        super().unget(token)
        self._last_char = "\n" if token.is_eol() else self._last_char

    def line_starts_at(self) -> int | None:
        """Where in `text` the next line begins, if nothing of it is read and it is not within an entry."""
        place: int = self.file.tell()
        if (
            self.multiline
            or self.quoting
            or self.ungotten_token is not None
            or self.ungotten_char is not None
        ):
            return None
        return place if place == 0 or self.text[place - 1] == "\n" else None

    def go_to(self, place: int, line: int) -> None:
        """Read on from `place` in `text`, where this line begins."""
        self.file.seek(place)
        self.line_number = line
        self._last_char = ""

    def skip_line(self) -> bool:
        """Go to the next line after a mistake. False inside parentheses: nobody knows where that would be."""
        if self.multiline or self.last.is_eof():
            return False
        self.ungotten_token = None
        self.quoting = False
        self.delimiters = dns.tokenizer._DELIMITERS
        if self._last_char == "\n" and self.ungotten_char is None:
            return True  # the mistake was, or came to light, at the end of its line
        while (char := self._get_char()) not in ("\n", ""):
            pass
        return char == "\n"


def plain(text: str, tokens: Tokens, what: str) -> str:
    """What dnspython meant by `text`, in words that say what to change."""
    token = tokens.last
    shown = token.value if isinstance(token.value, str) else repr(token.value)
    if "expected EOL or EOF" in text:
        hint = " (a '(' before it is still open)" if tokens.multiline else ""
        return f"unexpected '{shown}' after the end of this {what}{hint}"
    if text in _TOO_EARLY or (
        token.is_eol_or_eof() and (text in _MUTE or text.startswith(("expect", "not enough")))
    ):
        return f"this {what} ends too early"
    if text in _MUTE:
        kinds = {"A record": "an IPv4 address", "AAAA record": "an IPv6 address"}
        if what in kinds:
            return f"'{shown}' is not {kinds[what]}"
        return f"'{shown}' cannot be read in this {what}" if shown else f"this {what} cannot be read"
    if text == "expecting an integer":
        return f"'{shown}' is not a number, and this {what} needs one here"
    if text == "expecting an identifier":
        return f"'{shown}' is quoted, and this {what} needs a plain word here"
    if text == "string too long":
        return f"a text in this {what} is longer than 255 octets: write it as several, each in its quotes"
    return first_lower(text).rstrip(".") if text else f"this {what} cannot be read"


def first_lower(text: str) -> str:
    """A sentence of dnspython's as the second half of one of ours; "DNS" and "A" stay as they are."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
