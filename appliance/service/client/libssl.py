"""The one thing of OpenSSL that Python's ``ssl`` does not pass on: the keys that session tickets are sealed
with.

A context makes random ones, so no ticket outlives its process. ``SSL_CTX_set_tlsext_ticket_keys`` (a macro
over ``SSL_CTX_ctrl``) is called here in the very libssl that ``ssl`` uses. pyOpenSSL cannot be given keys at
all: cryptography's bindings do not have the call, and its libssl is linked in without a symbol to be found.
"""

from __future__ import annotations

import ctypes
import ssl
import sys
from functools import cache

TICKET_KEYS_OCTETS = 80
"""A name of 16 octets, an HMAC key of 32 and an AES key of 32 (SSL_CTX_set_tlsext_ticket_keys, since
OpenSSL 1.1.1).
"""

_SET_TICKET_KEYS = 59  # SSL_CTRL_SET_TLSEXT_TICKET_KEYS of openssl/ssl.h


def set_ticket_keys(context: ssl.SSLContext, octets: bytes) -> bool:
    """Seal and open tickets with these keys from now on; False where that cannot be done here."""
    if len(octets) != TICKET_KEYS_OCTETS:
        raise ValueError(f"ticket keys have {TICKET_KEYS_OCTETS} octets, not {len(octets)}")
    library = _library()
    if library is None:
        return False
    # PySSLContext begins with the SSL_CTX, right behind what every Python object begins with.
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    # So that an interpreter that does it otherwise is noticed here: both must know of the same options.
    if library.SSL_CTX_get_options(pointer) != int(context.options):
        return False
    return bool(library.SSL_CTX_ctrl(pointer, _SET_TICKET_KEYS, len(octets), octets) == 1)


@cache
def _library() -> ctypes.CDLL | None:
    """The libssl of ``ssl``; None where it cannot be reached, as in a Python that has it linked in."""
    if sys.implementation.name != "cpython":
        return None
    try:
        import _ssl

        library = ctypes.CDLL(_ssl.__file__)
        library.SSL_CTX_ctrl.restype = ctypes.c_long
        library.SSL_CTX_ctrl.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p)
        library.SSL_CTX_get_options.restype = ctypes.c_uint64
        library.SSL_CTX_get_options.argtypes = (ctypes.c_void_p,)
    except (ImportError, AttributeError, OSError):
        return None
    return library
