"""What the holder of a key may change: which names, which types, or only the challenges of ACME.

Hidden here: how a name is compared with the names of a policy. What nobody may change by UPDATE, whatever his
key, is update's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from appliance.dns import names
from appliance.dns.numbers import TXT

CHALLENGE_LABEL: Final = b"\x0f_acme-challenge"  # RFC 8555 8.4


class Kind(Enum):
    """What a key may change; the value is the word of the settings."""

    UPDATE = "update"
    ACME = "acme"


@dataclass(frozen=True, slots=True)
class Policy:
    """What one key may change. Several policies of a key add up.

    `names`: a name allows itself, a wildcard all that is below it; none at all allows every name. Of the kind
    ACME they are the names in certificates: the challenge of a name is below it, that of a wildcard below its
    parent. `types`: none at all allows every type.
    """

    kind: Kind
    names: tuple[bytes, ...] = ()
    types: frozenset[int] = frozenset()

    def allows(self, name: bytes, rtype: int) -> bool:
        """Whether records of `rtype` at `name` may be changed."""
        if self.types and rtype not in self.types:
            return False
        if self.kind is Kind.UPDATE:
            return not self.names or any(_matches(name, one) for one in self.names)
        if rtype != TXT or not name.startswith(CHALLENGE_LABEL):
            return False
        certified = names.parent(name)
        return not self.names or any(
            _matches(certified, one) or (names.is_wildcard(one) and certified == names.parent(one))
            for one in self.names
        )


def allowed(policies: Iterable[Policy], name: bytes, rtype: int) -> bool:
    """Whether one of `policies` allows it."""
    return any(policy.allows(name, rtype) for policy in policies)


def _matches(name: bytes, allowed_name: bytes) -> bool:
    if not names.is_wildcard(allowed_name):
        return name == allowed_name
    above = names.parent(allowed_name)
    return name != above and names.is_at_or_below(name, above)
