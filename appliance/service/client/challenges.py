"""The challenges of ACME (dns-01) of this client: said over every link, and seen at every nameserver.

A link carries a challenge to its server, the server's watches to the nameservers. Whether they publish it is
asked of the nameservers themselves, from here, as the CA will ask them: no word of a server stands in for
that, and a nameserver that no server of ours speaks to (a secondary) counts as well.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred


class ChallengeNotPublished(Exception):
    """Not every nameserver answers with the challenge"""


class Challenges:
    """What is to be published for this client's names until it is withdrawn."""

    def publish(self, name: str, value: str) -> Deferred[None]:
        """Have the TXT record `_acme-challenge.NAME` say `value`, besides what others say there.

        `name` is that of the certificate: `*.example.org` is challenged at `_acme-challenge.example.org`.
        Fires when every nameserver of the zone has been seen to answer so. Fails with ChallengeNotPublished,
        whose text says which nameserver does not and why, after LIMIT_SECONDS; a failed one is withdrawn.
        Cancelled, it is withdrawn as well. Published again, it lives on.
        """
        raise NotImplementedError

    def withdraw(self, name: str, value: str) -> None:
        """Have it published no longer; nothing, where it is not."""
        raise NotImplementedError
