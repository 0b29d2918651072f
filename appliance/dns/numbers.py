"""The numbers that IANA assigned and that code here speaks of by name.

Plain integers, not enums: they are compared for every query, and an unknown one is as good as a known one.
"""

from __future__ import annotations

from typing import Final

# Types (RFC 1035 3.2.2 and later)
A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
MX: Final = 15
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
DNAME: Final = 39
OPT: Final = 41
DS: Final = 43
RRSIG: Final = 46
NSEC: Final = 47
DNSKEY: Final = 48
NSEC3: Final = 50
NSEC3PARAM: Final = 51
TLSA: Final = 52
SVCB: Final = 64
HTTPS: Final = 65
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255
CAA: Final = 257

# Classes
IN: Final = 1

# Opcodes
QUERY: Final = 0
NOTIFY: Final = 4
UPDATE: Final = 5

# Response codes (RFC 1035 4.1.1, RFC 2136 2.2, RFC 6891 9)
NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
YXDOMAIN: Final = 6
YXRRSET: Final = 7
NOTAUTH: Final = 9
BADVERS: Final = 16
BADCOOKIE: Final = 23

# EDNS options (RFC 9664, RFC 5001, RFC 7873, RFC 8914), and the codes of the last one
UPDATE_LEASE: Final = 2
NSID: Final = 3
COOKIE: Final = 10
EXTENDED_ERROR: Final = 15
NOT_AUTHORITATIVE: Final = 20
NOT_SUPPORTED: Final = 21

# Bits of the header's second word (RFC 1035 4.1.1)
QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100

# The DO bit among the flags of an OPT record (RFC 3225)
DO: Final = 0x8000
