from __future__ import annotations

import re

from appliance.tunnel.signature import SIGNATURE_PATTERN, is_signature, signature
from tests.tunnel.authority import CLIENT, SERVER


def test_only_who_has_the_key_can_sign() -> None:
    made = signature(CLIENT.key, b"octets")
    assert re.fullmatch(SIGNATURE_PATTERN, made)
    assert is_signature(CLIENT.certificate, b"octets", made)
    assert not is_signature(CLIENT.certificate, b"other octets", made)
    assert not is_signature(SERVER.certificate, b"octets", made)
    for wrong in ("", "=", "AAAA", made[:-4], made.swapcase()):
        assert not is_signature(CLIENT.certificate, b"octets", wrong)
