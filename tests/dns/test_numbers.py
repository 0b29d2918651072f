"""Our numbers are IANA's, as dnspython wrote them down."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from appliance.dns import numbers

FLAGS = {"QR", "AA", "TC", "RD"}
OPTIONS = {
    "UPDATE_LEASE": 2,  # RFC 9664 4, which dnspython has not
    "NSID": dns.edns.OptionType.NSID,
    "COOKIE": dns.edns.OptionType.COOKIE,
    "EXTENDED_ERROR": dns.edns.OptionType.EDE,
    "NOT_AUTHORITATIVE": dns.edns.EDECode.NOT_AUTHORITATIVE,
    "NOT_SUPPORTED": dns.edns.EDECode.NOT_SUPPORTED,
}
OPCODES = {"QUERY", "NOTIFY", "UPDATE"}
NAMES = sorted(name for name in vars(numbers) if name.isupper())


@pytest.mark.parametrize("name", NAMES)
def test_numbers(name: str) -> None:
    value = getattr(numbers, name)
    if name in FLAGS:
        assert value == dns.flags.Flag[name]
    elif name == "DO":
        assert value == dns.flags.DO
    elif name == "IN":
        assert value == dns.rdataclass.from_text(name)
    elif name in OPCODES:
        assert value == dns.opcode.from_text(name)
    elif name in OPTIONS:
        assert value == OPTIONS[name]
    elif name in dns.rcode.Rcode.__members__:
        assert value == dns.rcode.from_text(name)
    else:
        assert value == dns.rdatatype.from_text(name)
