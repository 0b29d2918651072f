"""What a visitor is told who cannot be served. Hides the octets: TLS alerts, HTTP pages, the redirect to
https.

Every answer ends its connection and says so. Nothing that a visitor sent is repeated but the name and the
target in ``Location``, both of which passed the strict reading of the head (CVE-2022-39348 and
CVE-2024-41810 of Twisted were hosts and targets repeated in pages).
"""

from __future__ import annotations

from html import escape

from appliance.ingress.hostname import host_name

RETRY_AFTER_SECONDS = 5
"""What a 503 asks for: a client that lost its link is back within a few seconds."""

HTTPS_PORT = 443

INTERNAL_ERROR = 80
"""RFC 8446 6.2: nothing to do with the peer; TLS has no alert that says "later"."""

_FATAL = 2

_PAGES = {
    400: ("Bad Request", "This request cannot be understood safely, so it was not passed on."),
    404: ("Not Found", "No site of this name is known here."),
    408: ("Request Timeout", "The request did not arrive in time."),
    414: ("URI Too Long", "The address in this request is too long."),
    421: ("Misdirected Request", "This connection belongs to another site. Ask again on a new one."),
    431: ("Request Header Fields Too Large", "The head of this request is too large."),
    502: ("Bad Gateway", "The site's web server refused the connection or broke it off."),
    503: ("Service Unavailable", "The site is known here, but it is not connected at the moment."),
    504: ("Gateway Timeout", "The site's web server did not answer in time."),
}
STATUSES = frozenset(_PAGES)
"""The statuses that there is a page for."""


def alert(description: int) -> bytes:
    """A fatal TLS alert (RFC 8446 6) in a record of its own; the version is what RFC 8446 5.1 has in every
    record.
    """
    return bytes((21, 3, 3, 0, 2, _FATAL, description))


def http(status: int, *, method: str = "GET", why: str = "") -> bytes:
    """A small page for ``status`` (one of STATUSES), to be followed by the end of the connection.

    ``method`` is the request's: HEAD gets the fields and no page. ``why`` is a further sentence of ours.
    """
    reason, sentence = _PAGES[status]
    fields = [f"Retry-After: {RETRY_AFTER_SECONDS}"] if status == 503 else []
    return _answer(status, reason, fields, f"{sentence} {why}".strip(), method)


def full() -> bytes:
    """503 for a visitor whom there is no room for, whatever he wants."""
    sentence = "There are too many visitors at the moment."
    return _answer(503, _PAGES[503][0], [f"Retry-After: {RETRY_AFTER_SECONDS}"], sentence, "GET")


def redirect(host: str, target: str, port: int = HTTPS_PORT, *, method: str = "GET") -> bytes:
    """308 (RFC 9110 15.4.9: method and body stay) to the same target of the same host by https.

    ``host`` and ``target`` are those of a RequestHead; anything else raises ValueError.
    """
    if host_name(host.encode("ascii")) != host or not all("!" <= char <= "~" for char in target):
        raise ValueError("neither host nor target may be taken from anywhere but a head that was read")
    authority = host if port == HTTPS_PORT else f"{host}:{port}"
    location = f"https://{authority}{_path(target)}"
    return _answer(
        308, "Permanent Redirect", [f"Location: {location}"], "This site is served by https.", method
    )


def _path(target: str) -> str:
    """Path and query: of origin-form as they are, of absolute-form (RFC 9112 3.2.2) what follows the
    authority.
    """
    if target.startswith("/"):
        return target
    path = target.partition("://")[2]
    cut = min((at for mark in "/?" if (at := path.find(mark)) >= 0), default=len(path))
    path = path[cut:]
    return path if path.startswith("/") else "/" + path


def _answer(status: int, reason: str, fields: list[str], sentence: str, method: str) -> bytes:
    title = f"{status} {reason}"
    page = (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body><h1>{title}</h1><p>{escape(sentence)}</p></body></html>\n"
    ).encode()
    head = [
        f"HTTP/1.1 {title}",
        *fields,
        "Content-Type: text/html; charset=utf-8",
        f"Content-Length: {len(page)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    octets = "".join(line + "\r\n" for line in [*head, ""]).encode("ascii")
    return octets if method == "HEAD" else octets + page
