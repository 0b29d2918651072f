"""`[[nameserver.caa]]`: which CAs may issue certificates for the names of the zones, and to which accounts.

Hides how that is written; what is published for it is fleet/mayissue.py's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

import attrs

from appliance.dns.caa import BadCaa, issue_value
from appliance.dns.names import from_text, is_at_or_below
from appliance.fleet.mayissue import CLIENTS, Issuers
from appliance.settingsfile import BadValue, described
from appliance.tunnel.account import ISSUER_PATTERN, URL_PATTERN
from appliance.tunnel.names import BadHostName, normal

_IODEF = re.compile(r"mailto:[!-~]+@[!-~]+|https?://[!-~]+")
MAX_IODEF_CHARACTERS = 255


@attrs.frozen
class CaaTable:
    """`[[nameserver.caa]]`: who may issue certificates for served names, said in CAA records (RFC 8659)."""

    names: tuple[str, ...] = described(
        "What it is for: a zone, which stands for each served name in it; a name; or a wildcard, which stands"
        " for each served name below as well. For a name the closest entry counts. A CAA record in the zone"
        " file wins over it.",
        "none: it must be given",
    )
    issue: tuple[str, ...] = described(
        'The CAs that may, each by what it calls itself in CAA records, as `"letsencrypt.org"`. No other one'
        " may.",
        "none: it must be given",
    )
    methods: tuple[str, ...] = described(
        'How control of the name may be proved, as `"dns-01"`: no other way is good enough'
        " (`validationmethods`).",
        "all",
        default=(),
    )
    account: str | None = described(
        'Whose request it may be (`accounturi`): `"clients"` are the accounts that the clients of the name'
        " have got by `[acme]`, each known from the client itself, and no record is there before the first"
        " is known; or the URL of an account.",
        "anybody's",
        default=None,
    )
    wildcards: bool = described(
        "Whether there may be certificates for wildcards below the names. (For a wildcard that is served"
        " there may be, all the same.)",
        "`true`",
        default=True,
    )
    iodef: str | None = described(
        "Where a CA tells of requests that it has refused: `mailto:ADDRESS`, or an `https://` URL.",
        "none",
        default=None,
    )


def read_caa_table(table: CaaTable) -> Issuers:
    """What `table` says. Raises BadValue."""
    try:
        names = tuple(map(normal, table.names))
    except BadHostName as error:
        raise BadValue(str(error)) from None
    for key, texts in (("names", names), ("issue", table.issue)):
        if not texts:
            raise BadValue(f"{key} must hold at least one")
        if len(set(texts)) != len(texts):
            raise BadValue(f"{key} names the same thing twice")
    for one in table.issue:
        if not re.fullmatch(ISSUER_PATTERN, one):
            raise BadValue(f'"{one}" is not what a CA calls itself, as "letsencrypt.org" is')
    account = table.account
    if account not in (None, CLIENTS) and not re.fullmatch(URL_PATTERN, account or ""):
        raise BadValue(f'account must be "{CLIENTS}" or the URL of an account, not "{account}"')
    if table.iodef is not None and (
        len(table.iodef) > MAX_IODEF_CHARACTERS or not _IODEF.fullmatch(table.iodef)
    ):
        raise BadValue(f'iodef must be mailto:ADDRESS or an https:// URL, not "{table.iodef}"')
    try:
        for one in table.issue:
            issue_value(one, table.methods)
    except BadCaa as error:
        raise BadValue(str(error)) from None
    return Issuers(names, table.issue, table.methods, account, table.wildcards, table.iodef)


def wrong_caa(settings: Iterable[Issuers], apexes: Collection[bytes]) -> Iterator[str]:
    """What is wrong with these beside each other, and beside the zones (if any are known)."""
    counted = Counter(name for one in settings for name in one.names)
    for name, count in counted.items():
        if count > 1:
            yield f"{name} is in several entries"
        host = from_text(name.removeprefix("*."))
        if apexes and not any(is_at_or_below(host, apex) for apex in apexes):
            yield f"{name} is in none of the zones"
