"""Connections by TCP and TLS 1.3 that never block, and AES-256-GCM, by ctypes from the system's libssl.

The standard library's `ssl` has no exporter (RFC 8446 7.5) and no AES-GCM. This hides OpenSSL's calling
conventions. A connection belongs to one thread; only `Stream.stop` may be called from another.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import select
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

_READ_OCTETS = 65536
_HANDSHAKE_SECONDS = 5.0

_TYPES: Mapping[str, Any] = {
    "v": None,
    "p": ctypes.c_void_p,
    "s": ctypes.c_char_p,
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "l": ctypes.c_long,
    "m": ctypes.c_ulong,
    "z": ctypes.c_size_t,
}
_FUNCTIONS = """
    TLS_client_method:p SSL_CTX_new:pp SSL_CTX_free:vp SSL_CTX_ctrl:lpilp SSL_CTX_set_verify:vpip
    SSL_CTX_set_verify_depth:vpi SSL_CTX_get_cert_store:pp SSL_CTX_use_certificate:ipp
    SSL_CTX_use_PrivateKey:ipp SSL_new:pp SSL_free:vp SSL_ctrl:lpilp SSL_set_fd:ipi SSL_set1_host:ips
    SSL_set_alpn_protos:ipsu SSL_get0_alpn_selected:vppp SSL_get0_verified_chain:pp SSL_get_error:ipi
    SSL_connect:ip SSL_read:ippi SSL_write:ippi SSL_shutdown:ip SSL_export_keying_material:ippzszszi
    ERR_clear_error:v ERR_get_error:m ERR_error_string_n:vmpz BIO_new_mem_buf:psi BIO_free:ip
    PEM_read_bio_X509:ppppp PEM_read_bio_PrivateKey:ppppp X509_STORE_add_cert:ipp
    X509_get_extended_key_usage:up X509_get_ext_d2i:ppipp X509_free:vp EVP_PKEY_free:vp
    EXTENDED_KEY_USAGE_free:vp OPENSSL_sk_num:ip OPENSSL_sk_value:ppi EVP_aes_256_gcm:p EVP_CIPHER_CTX_new:p
    EVP_CIPHER_CTX_free:vp EVP_CIPHER_CTX_ctrl:ipiip EVP_DecryptInit_ex:ipppss EVP_DecryptUpdate:ipppsi
    EVP_DecryptFinal_ex:ippp
"""  # name:types, that of the result first
# Numbers of openssl/ssl.h, evp.h, x509v3.h and obj_mac.h; macros and constants are in no library.
_SET_MIN_VERSION, _SET_SNI, _SET_MODE, _TLS_1_3, _PARTIAL_AND_MOVING = 123, 55, 33, 0x0304, 3
_ERROR_WANTS, _ERROR_ZERO_RETURN = (2, 3), 6  # read and write
_SET_TAG, _USAGE_SERVER, _NID_EXTENDED_KEY_USAGE = 0x11, 1, 126


class Unverified(Exception):
    """The server is not who the invitation says, or TLS failed: {0}"""


class Unsealable(Exception):
    """The key, the nonce or the additional octets are not those that it was sealed with."""


class Ended(Exception):
    """The connection ended"""


def library() -> dict[str, Callable[..., Any]] | None:
    """libssl's and libcrypto's functions by name; None where one of the libraries is not found."""
    paths = [ctypes.util.find_library(name) for name in ("ssl", "crypto")]
    if None in paths:
        return None
    libraries = [ctypes.CDLL(path) for path in paths]
    found = {}
    for name, types in (each.split(":") for each in _FUNCTIONS.split()):
        function = next((getattr(each, name) for each in libraries if hasattr(each, name)), None)
        if function is None:
            return None
        function.restype, *function.argtypes = (_TYPES[each] for each in types)
        found[name] = function
    return found


_SSL: dict[str, Callable[..., Any]] = library() or {}


class Stream:
    """A TCP connection that never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)

    def read(self, most: int = _READ_OCTETS) -> bytes | None:
        """What has come; None: nothing yet; empty: the direction has ended."""
        try:
            return self.socket.recv(most)
        except BlockingIOError:
            return None

    def write(self, octets: bytes) -> int:
        """How many of them were taken."""
        try:
            return self.socket.send(octets)
        except BlockingIOError:
            return 0

    def end(self) -> None:
        """End our direction."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def stop(self) -> None:
        """From another thread: whoever waits for this connection wakes and finds it ended."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def exactly(self, octets: int) -> bytes:
        got = b""
        while len(got) < octets:
            more = self.read(octets - len(got))
            if more == b"":
                raise Ended
            if more is None:
                wait({self: select.POLLIN})
            else:
                got += more
        return got

    def all(self, octets: bytes) -> None:
        while octets:
            taken = self.write(octets)
            octets = octets[taken:]
            if not taken:
                wait({self: select.POLLOUT})


class TlsStream(Stream):
    """A TLS connection to a tunnel server that has been verified."""

    def __init__(
        self, sock: socket.socket, ca: bytes, credential: bytes | None, service_name: str, alpn: bytes
    ) -> None:
        super().__init__(sock)
        with ExitStack() as held:
            context = _made("SSL_CTX", held, "SSL_CTX_new", _SSL["TLS_client_method"]())
            _SSL["SSL_CTX_ctrl"](context, _SET_MIN_VERSION, _TLS_1_3, None)
            _SSL["SSL_CTX_set_verify"](context, 1, None)
            _SSL["SSL_CTX_set_verify_depth"](context, 0)  # no intermediates
            root = _pem("X509", ca, held)
            assert _SSL["X509_STORE_add_cert"](_SSL["SSL_CTX_get_cert_store"](context), root)
            if credential is not None:
                mine, key = _pem("X509", credential, held), _pem("PrivateKey", credential, held)
                assert _SSL["SSL_CTX_use_certificate"](context, mine)
                assert _SSL["SSL_CTX_use_PrivateKey"](context, key)
            self._ssl: int | None = _SSL["SSL_new"](context)  # keeps the context
        name = service_name.encode()
        _SSL["SSL_ctrl"](self._ssl, _SET_SNI, 0, name)
        _SSL["SSL_ctrl"](self._ssl, _SET_MODE, _PARTIAL_AND_MOVING, None)
        assert _SSL["SSL_set1_host"](self._ssl, name)
        assert not _SSL["SSL_set_alpn_protos"](self._ssl, bytes([len(alpn)]) + alpn, len(alpn) + 1)
        assert _SSL["SSL_set_fd"](self._ssl, sock.fileno())
        try:
            while self._call("SSL_connect") is None:
                wait({self: select.POLLIN}, _HANDSHAKE_SECONDS)
            self._judge(alpn)
        except BaseException:
            self.close()
            raise

    def _judge(self, alpn: bytes) -> None:
        """What the handshake has not looked at: exactly serverAuth, and the protocol that was agreed on."""
        leaf = _SSL["OPENSSL_sk_value"](_SSL["SSL_get0_verified_chain"](self._ssl), 0)
        usage = _SSL["X509_get_ext_d2i"](leaf, _NID_EXTENDED_KEY_USAGE, None, None)
        usages = _SSL["OPENSSL_sk_num"](usage)
        _SSL["EXTENDED_KEY_USAGE_free"](usage)
        if usages != 1 or _SSL["X509_get_extended_key_usage"](leaf) != _USAGE_SERVER:
            raise Unverified("its certificate is not exactly for serverAuth")
        agreed, length = ctypes.c_void_p(), ctypes.c_uint()
        _SSL["SSL_get0_alpn_selected"](self._ssl, ctypes.byref(agreed), ctypes.byref(length))
        if not agreed.value or ctypes.string_at(agreed.value, length.value) != alpn:
            raise Unverified("it did not agree on the protocol")

    def exported(self, label: bytes, octets: int) -> bytes:
        """Keying material of RFC 8446 7.5, of an empty context."""
        out = ctypes.create_string_buffer(octets)
        assert _SSL["SSL_export_keying_material"](self._ssl, out, octets, label, len(label), b"", 0, 1) == 1
        return out.raw

    def _call(self, name: str, *arguments: Any) -> int | None:
        """None: not now; 0: the other end has ended its direction."""
        _SSL["ERR_clear_error"]()
        result: int = _SSL[name](self._ssl, *arguments)
        error = 0 if result > 0 else _SSL["SSL_get_error"](self._ssl, result)
        if error in _ERROR_WANTS:
            return None
        if error not in (0, _ERROR_ZERO_RETURN):
            text = ctypes.create_string_buffer(256)
            _SSL["ERR_error_string_n"](_SSL["ERR_get_error"](), text, 256)
            if name == "SSL_connect":
                raise Unverified(text.value.decode())
            raise ConnectionResetError(text.value.decode())
        return max(result, 0)

    def read(self, most: int = _READ_OCTETS) -> bytes | None:
        buffer = ctypes.create_string_buffer(most)
        got = self._call("SSL_read", buffer, most)
        return None if got is None else buffer.raw[:got]

    def write(self, octets: bytes) -> int:
        return self._call("SSL_write", octets, len(octets)) or 0

    def end(self) -> None:
        _SSL["SSL_shutdown"](self._ssl)  # a close_notify; TCP stays open, and the other direction with it

    def close(self) -> None:
        if self._ssl is not None:
            _SSL["SSL_free"](self._ssl)
            self._ssl = None
        super().close()


def _made(sort: str, held: ExitStack, by: str, *arguments: Any) -> int:
    made: int | None = _SSL[by](*arguments)
    assert made is not None, by
    held.callback(_SSL[f"{sort}_free"], made)
    return made


def _pem(sort: str, pem: bytes, held: ExitStack) -> int:
    bio = _made("BIO", held, "BIO_new_mem_buf", pem, len(pem))
    return _made(
        "EVP_PKEY" if sort == "PrivateKey" else sort, held, f"PEM_read_bio_{sort}", bio, None, None, None
    )


def wait(wanted: Mapping[Stream, int], seconds: float | None = None) -> None:
    """Until one of these connections can do what is wanted of it (poll's events)."""
    poll = select.poll()
    for stream, events in wanted.items():
        poll.register(stream.socket, events)
    if not poll.poll(None if seconds is None else max(seconds, 0) * 1000):
        raise TimeoutError


def unsealed(key: bytes, nonce: bytes, additional: bytes, sealed: bytes) -> bytes:
    """AES-256-GCM: the plaintext of what ends with its tag of 16 octets."""
    context, length = _SSL["EVP_CIPHER_CTX_new"](), ctypes.c_int()
    plain = ctypes.create_string_buffer(len(sealed))
    octets, tag = sealed[:-16], sealed[-16:]
    try:
        _SSL["EVP_DecryptInit_ex"](context, _SSL["EVP_aes_256_gcm"](), None, key, nonce)
        _SSL["EVP_DecryptUpdate"](context, None, ctypes.byref(length), additional, len(additional))
        _SSL["EVP_DecryptUpdate"](context, plain, ctypes.byref(length), octets, len(octets))
        _SSL["EVP_CIPHER_CTX_ctrl"](context, _SET_TAG, 16, tag)
        tail = ctypes.create_string_buffer(16)
        if _SSL["EVP_DecryptFinal_ex"](context, tail, ctypes.byref(length)) != 1:
            raise Unsealable
    finally:
        _SSL["EVP_CIPHER_CTX_free"](context)
    return plain.raw[: len(octets)]
