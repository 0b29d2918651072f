"""The files of a credential that renews itself: a key that waits for its certificate, and the last renewal.

Hides which credential counts. A renewal comes in the place of the one file that the operator gave (an
invitation, an enrolment), and beside it is kept the certificate that was in that file: an operator who gives
another one, issued later, means that one.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.logger import Logger

from appliance.service.wholefile import replace_whole
from appliance.tunnel.certificates import Credential, CredentialRefused, read_credential
from appliance.tunnel.renewal import is_of_same, new_key

RENEWED, WAITING = "renewed.pem", "renewing.pem"


class RenewedFiles:
    """In the directory `state`, each file's name behind `prefix`. Both are written whole, mode 0600."""

    _log = Logger()

    def __init__(self, state: Path, prefix: str = "") -> None:
        self._renewed = state / f"{prefix}{RENEWED}"
        self._waiting = state / f"{prefix}{WAITING}"

    def current(self, given: Credential, ca: x509.Certificate) -> Credential:
        """What counts now: the last renewal, or the credential that the operator gave, in these cases: it was
        issued later than the one that was renewed, is another holder's, has other names, or lives longer.
        """
        try:
            pem = self._renewed.read_bytes()
            renewed = read_credential(pem)
            certificates = x509.load_pem_x509_certificates(pem)
            renewed.certificate.verify_directly_issued_by(ca)
        except FileNotFoundError:
            return given
        except (OSError, CredentialRefused, ValueError, TypeError, InvalidSignature) as error:
            self._log.error("{path} is not used: {error}", path=self._renewed, error=error)
            return given
        first = certificates[-1]
        is_newer = given.certificate.not_valid_before_utc > first.not_valid_before_utc
        ends = renewed.certificate.not_valid_after_utc
        if (
            not is_of_same(renewed.certificate, given.certificate)
            or (is_newer and first != given.certificate)
            or ends < given.certificate.not_valid_after_utc
        ):
            return given
        return renewed

    def key_for(self, held: Credential) -> ec.EllipticCurvePrivateKey:
        """The key that the certificate after `held` is to have, on disk: the same one until there is that
        certificate, so that what was signed for it and did not get here is got by asking again. Raises
        OSError.
        """
        with suppress(OSError, ValueError, TypeError):
            waiting = self._waiting.read_bytes()
            key = serialization.load_pem_private_key(waiting, None)
            is_for_held = x509.load_pem_x509_certificate(waiting) == held.certificate
            if isinstance(key, ec.EllipticCurvePrivateKey) and is_for_held:
                return key
        key = new_key()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        replace_whole(self._waiting, pem + held.certificate_pem())
        return key

    def keep(self, renewed: Credential, given: Credential) -> None:
        """Keep what renews the credential that the operator gave. Raises OSError."""
        replace_whole(self._renewed, renewed.pem() + given.certificate_pem())
        self._waiting.unlink(missing_ok=True)
