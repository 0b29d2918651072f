"""SipHash-2-4 (Aumasson, Bernstein 2012), which RFC 9018 makes server cookies with.

Twenty microseconds a cookie in plain Python: only for sets of nameservers of several vendors.
"""

from __future__ import annotations

from typing import Final

KEY_OCTETS: Final = 16

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_INITIAL: Final = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_AFTER_A_WORD: Final = 2
_AT_THE_END: Final = 4


def siphash(key: bytes, message: bytes) -> bytes:
    """The 8 octets, little-endian as in the paper, of `message` under a `key` of 16 octets."""
    first = int.from_bytes(key[:8], "little")
    second = int.from_bytes(key[8:], "little")
    state = (first ^ _INITIAL[0], second ^ _INITIAL[1], first ^ _INITIAL[2], second ^ _INITIAL[3])
    size = len(message)
    padded = message + bytes(7 - size % 8) + bytes((size & 0xFF,))
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        a, b, c, d = _rounds((state[0], state[1], state[2], state[3] ^ word), _AFTER_A_WORD)
        state = (a ^ word, b, c, d)
    a, b, c, d = _rounds((state[0], state[1], state[2] ^ 0xFF, state[3]), _AT_THE_END)
    return (a ^ b ^ c ^ d).to_bytes(8, "little")


def _rounds(state: tuple[int, int, int, int], count: int) -> tuple[int, int, int, int]:
    a, b, c, d = state
    for _ in range(count):
        a = (a + b) & _MASK
        b = ((b << 13 | b >> 51) & _MASK) ^ a
        a = (a << 32 | a >> 32) & _MASK
        c = (c + d) & _MASK
        d = ((d << 16 | d >> 48) & _MASK) ^ c
        a = (a + d) & _MASK
        d = ((d << 21 | d >> 43) & _MASK) ^ a
        c = (c + b) & _MASK
        b = ((b << 17 | b >> 47) & _MASK) ^ c
        c = (c << 32 | c >> 32) & _MASK
    return a, b, c, d
