"""Which records may stand together: verdicts on whole files, as nsd-checkzone and named-checkzone give
them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.dns.zonefile import ZoneFileError
from tests.dns.asking import HEAD, valid_zone, zone, zone_lines

LINES = HEAD.count("\n")

FINE = {
    "delegation with glue": "sub NS ns.sub\nns.sub A 192.0.2.1",
    "delegation to names elsewhere": "sub NS ns.invalid.",
    "delegation to a name in another child zone": "sub NS ns.sub2\nsub2 NS ns.invalid.",
    "DS at a delegation": "sub NS ns.invalid.\nsub DS 1 13 2 " + "ab" * 32,
    "nameserver with AAAA only": "sub NS n6\nn6 AAAA 2001:db8::1",
    "nameserver under a wildcard": "sub NS x.w\n*.w A 192.0.2.1",
    "nameserver under a wildcard far above": "sub NS x.y\n* A 192.0.2.1\nb.a A 192.0.2.2",
    "glue beside other records": "sub NS ns.sub\nns.sub A 192.0.2.1\nns.sub TXT t",
    "CNAME twice the same": "c CNAME x\nc CNAME x",
    "DNAME beside other types": "d DNAME x\nd TXT t",
    "names below a CNAME": "c CNAME x\na.c A 192.0.2.1",
    "names below a wildcard": "*.w A 192.0.2.1\na.*.w A 192.0.2.1",
    "MX to a CNAME": "@ MX 10 c\nc CNAME x",
    "occluded names": "sub NS ns.invalid.\na.sub TXT t",
}

# What is written behind the head, the line of it, what is said.
FAULTY = {
    "out of zone": ("www.other.test. A 192.0.2.1", 1, "www.other.test is outside the zone example.test"),
    "parent": ("test. A 192.0.2.1", 1, "outside"),
    "alike in octets only": ("xexample.test. A 192.0.2.1", 1, "outside"),
    "CNAME and A": ("c CNAME x\nc A 192.0.2.1", 2, "c.example.test has a CNAME record"),
    "A and CNAME": ("c A 192.0.2.1\n\nc CNAME x", 3, "c.example.test has a CNAME record"),
    "CNAME at the apex": ("@ CNAME x", 1, "has a CNAME record"),
    "two CNAMEs": ("c CNAME x\nc CNAME y", 2, "more than one CNAME"),
    "two DNAMEs": ("d DNAME x\nd DNAME y", 2, "more than one DNAME"),
    "CNAME and DNAME": ("d CNAME x\nd DNAME y", 2, "has a CNAME record"),
    "two SOAs": ("@ SOA a b 1 2 3 4 5", 1, "more than one SOA"),
    "SOA twice the same": ("@ SOA ns1 hostmaster 7 7200 3600 1209600 60", 1, "more than one SOA"),
    "SOA below the apex": ("x SOA a b 1 2 3 4 5", 1, "an SOA record at x.example.test"),
    "name below a DNAME": ("d DNAME x\na.b.d A 192.0.2.1", 2, "below the DNAME record at d.example.test"),
    "DNAME and NS": ("d DNAME x\nd NS ns.invalid.", 1, "both DNAME and NS"),
    "wildcard NS": ("* NS ns.invalid.", 1, "cannot have NS"),
    "wildcard DNAME": ("*.w DNAME x", 1, "cannot have DNAME"),
    "nameserver without address": ("@ NS ns2", 1, "ns2.example.test is in this zone and has no A or AAAA"),
    "nameserver that is a CNAME": ("sub NS c\nc CNAME ns1", 1, "is a CNAME"),
    "nameserver under a wildcard CNAME": ("sub NS x.w\n*.w CNAME ns1", 1, "is a CNAME"),
    "missing glue": ("sub NS ns.sub", 1, "has no A or AAAA"),
    "glue hidden from a wildcard": ("sub NS a.w.y\n*.y A 192.0.2.1\nw.y TXT t", 1, "has no A or AAAA"),
    "glue hidden by an empty non-terminal": (
        "sub NS ns.a\n* A 192.0.2.1\nb.a A 192.0.2.2",
        1,
        "has no A or AAAA",
    ),
    "a nameserver that is an empty non-terminal": (
        "sub NS a\n* A 192.0.2.1\nb.a A 192.0.2.2",
        1,
        "has no A or AAAA",
    ),
    "DS at the apex": ("@ DS 1 13 2 " + "ab" * 32, 1, "belongs into the parent"),
    "DNSKEY elsewhere": ("k DNSKEY 256 3 13 aGVsbG8=", 1, "not the zone's apex"),
    "RRSIG": ("w RRSIG A 13 2 60 20300101000000 20200101000000 1 x. aGVsbG8=", 1, "signed zones"),
    "NSEC": ("w NSEC x A", 1, "signed zones"),
    "an rrset for no message": (
        "\n".join(f'w TXT "{n:03}{"x" * 250}"' for n in range(250)),
        250,
        "too many for one answer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINE)
def test_fine(case: str) -> None:
    zone(FINE[case])


@pytest.mark.parametrize("case", FAULTY)
def test_faulty(case: str) -> None:
    text, line, what = FAULTY[case]
    with pytest.raises(ZoneFileError, match=what) as caught:
        zone(text)
    assert caught.value.line == LINES + line


def checker(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(f"{name} is not installed, and CI must have it")
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("program", ["named-checkzone", "nsd-checkzone"])
def test_what_we_take_the_checkers_of_others_take(program: str, tmp_path: Path) -> None:
    found = checker(program)
    choose = random.Random(5)
    lines = [HEAD + text + "\n" for text in FINE.values()]
    lines += [valid_zone(zone_lines(choose), "example.test")[1] for _ in range(25)]
    refused = []
    for number, text in enumerate(lines):
        path = tmp_path / f"{number}.zone"
        path.write_text(text)
        arguments = ["example.test", str(path)]
        if program == "named-checkzone":
            arguments = ["-i", "local", *arguments]
        done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            refused.append(f"{done.stdout}{done.stderr}\n{text}")
    assert not refused, f"{len(refused)} of {len(lines)}: " + "\n".join(refused[:3])
