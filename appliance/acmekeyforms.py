"""The key of an invitation (`acme_key`) as the programs want it that answer ACME challenges by DNS UPDATE."""

from __future__ import annotations

from appliance.tunnel.discovery import ServerAddress
from appliance.tunnel.invitation import AcmeKey

FORMS = ("nsupdate", "certbot", "lego", "caddy")


def written(key: AcmeKey, form: str) -> str:
    """The text of the file that the program reads, for the first of the nameservers."""
    at = key.nameservers[0]
    match form:
        case "nsupdate":
            return f'key "{key.name}" {{\n  algorithm hmac-sha256;\n  secret "{key.secret}";\n}};\n'
        case "certbot":  # --dns-rfc2136-credentials FILE
            return (
                f"dns_rfc2136_server = {at.host}\ndns_rfc2136_port = {at.port}\n"
                f"dns_rfc2136_name = {key.name}.\ndns_rfc2136_secret = {key.secret}\n"
                "dns_rfc2136_algorithm = HMAC-SHA256\n"
            )
        case "lego":  # the environment, --dns rfc2136
            return (
                f"RFC2136_NAMESERVER={_with_port(at)}\nRFC2136_TSIG_KEY={key.name}.\n"
                f"RFC2136_TSIG_ALGORITHM=hmac-sha256.\nRFC2136_TSIG_SECRET={key.secret}\n"
            )
        case "caddy":  # with the module caddy-dns/rfc2136
            return (
                "tls {\n  dns rfc2136 {\n"
                f'    server "{_with_port(at)}"\n    key_name "{key.name}."\n'
                f'    key_alg "hmac-sha256"\n    key "{key.secret}"\n'
                "  }\n}\n"
            )
    raise AssertionError(form)


def _with_port(at: ServerAddress) -> str:
    return f"[{at.host}]:{at.port}" if ":" in at.host else f"{at.host}:{at.port}"
