"""Session tickets that work across a restart; hides the file with the secret that their keys come from.

A visitor who was here comes back with a ticket and needs no certificate. Each name has keys of its own, so a
ticket of one is worth nothing at another. The secret is a day old at most: whoever steals it can read what
was said in TLS 1.2 meanwhile (TLS 1.3 agrees on new keys at each resumption, RFC 8446 2.2). A new secret
makes the tickets before it worthless: their visitors do a whole handshake once. There is no early data
(0-RTT), ever: what it asks for could be asked again by anybody.
"""

from __future__ import annotations

import json
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.service.client.libssl import TICKET_KEYS_OCTETS
from appliance.service.wholefile import replace_whole

FILE = "ticket-secret"
SECRET_DAYS = 1
_SECRET_OCTETS = 32
_INFO = b"tunnel-appliance session tickets of "


class Tickets:
    """The secret of a state directory. ``trouble`` is empty, or says why it is one for this run only."""

    def __init__(self, state: Path) -> None:
        self.trouble = ""
        self._path = state / FILE
        self._secret = b""
        self._made = datetime.min.replace(tzinfo=UTC)

    def renew(self, wall: datetime) -> bool:
        """Read the secret, or make a new one when it is too old; whether it is another than before."""
        if self._secret and self._is_good(wall):
            return False
        if not self._secret:
            self._read()
        if not self._secret or not self._is_good(wall):
            self._secret, self._made = secrets.token_bytes(_SECRET_OCTETS), wall
            self._write()
        return True

    def keys(self, name: str) -> bytes:
        """The keys of a name's tickets, for ``set_ticket_keys``. After ``renew()``."""
        made = HKDF(SHA256(), length=TICKET_KEYS_OCTETS, salt=None, info=_INFO + name.encode("ascii"))
        return made.derive(self._secret)

    def _is_good(self, wall: datetime) -> bool:
        """Whether it is not too old, nor made in the future by a clock that was wrong."""
        return timedelta(0) <= wall - self._made < timedelta(days=SECRET_DAYS)

    def _read(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with os.fdopen(descriptor, encoding="ascii") as file:
                os.fchmod(descriptor, 0o600)
                kept = json.loads(file.read(4096))
            secret, made = bytes.fromhex(kept["secret"]), datetime.fromisoformat(kept["made"])
        except (OSError, ValueError, TypeError, KeyError):  # none, or none that could be used
            return
        if len(secret) == _SECRET_OCTETS and made.tzinfo is not None:
            self._secret, self._made = secret, made

    def _write(self) -> None:
        kept = {"secret": self._secret.hex(), "made": self._made.isoformat()}
        self.trouble = ""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_whole(self._path, json.dumps(kept).encode("ascii") + b"\n")
        except OSError as error:
            self.trouble = f"{self._path} cannot be kept: {error.strerror}"
