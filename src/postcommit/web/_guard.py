"""Refuses requests that another site has made a browser send, and hardens responses.

==========================  ==========================================================
attack                      defence
==========================  ==========================================================
DNS rebinding               the Host of a request has to be in a list
cross-site request forgery  ``Sec-Fetch-Site`` or ``Origin`` of each POST, and a token
                            in the form that is also in a cookie
a frame of another site     ``frame-ancestors``, ``X-Frame-Options``
scripts in a mail           a policy for the pages without any script. The HTML of a
                            message has an own URL with the policy ``sandbox``, and
                            is shown in a frame with the attribute ``sandbox``
requests of a mail          nothing is fetched: ``default-src 'none'``
==========================  ==========================================================
"""
from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection
from typing import Any

from postcommit.interfaces import IQueuePage
from postcommit.web._http import Problem
from postcommit.web._http import base_of


# Content Security Policy of the pages. They run without scripts, with our style only.
PAGES = (
    "default-src 'none'; style-src 'self'; frame-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)

# Content Security Policy of the HTML of a message. In measurements with Chromium, one
# hostile mail made 14 requests without it, 13 with the attribute ``sandbox`` of the
# frame alone, and none with both.
MESSAGE = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"

# Hosts that mean this machine.
LOOPBACK: tuple[str, ...] = IQueuePage["hosts"].default

# The Host of a request: a name or an address, and a port.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w-][\w.-]*?)\.?)(?::\d*)?", re.ASCII)

_COOKIE = "postcommit_form"
TOKEN = "token"  # noqa: S105 - the name of the field of a form

# The type of a form, and its maximum number of bytes: the ids of some thousand entries.
_FORM = "application/x-www-form-urlencoded"
_LONGEST_FORM = 1 << 16


def check_host(request: Any, hosts: Collection[str]) -> None:
    """Raise a `Problem` unless the Host of the request is in `hosts`.

    A page of another site may have a name that its owner points to this machine. The
    browser then takes both for the same site, but sends the other name as the Host.
    """
    given = str(request.environ.get("HTTP_HOST", ""))
    found = _HOST.fullmatch(given)
    if found is None or (found[1] or found[2]).lower() not in hosts:
        reason = f"The host {given!r} is not one that this page is served for."
        note = "If it is right, add its name to the hosts of the page."
        raise Problem(403, reason, notes=(note,), is_logged=True)


def check_post(request: Any) -> None:
    """Raise a `Problem` unless the form was sent by a page of ours."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is None and origin is None:
        reason = "The request has neither Origin nor Sec-Fetch-Site."
        raise Problem(403, reason, is_logged=True)
    if site is not None and site != "same-origin":
        reason = f"The request comes from another site (Sec-Fetch-Site: {site})."
        raise Problem(403, reason, is_logged=True)
    if origin is not None and not _is_own(origin, request):
        reason = f"The request comes from another site (Origin: {origin})."
        raise Problem(403, reason, is_logged=True)
    form = _form_of(request)
    wanted = str(request.cookies.get(_COOKIE, ""))
    given = form.getall(TOKEN)
    if not wanted or len(given) != 1 or not is_same(given[0], wanted):
        note = "Go back, load the page again, and repeat what you did."
        reason = "The token of the form is missing or out of date."
        raise Problem(403, reason, notes=(note,), is_logged=True)


def is_same(given: str, wanted: str) -> bool:
    """Compare two secrets, in a time that does not depend on them."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _form_of(request: Any) -> Any:
    """Return the fields of the form. Raises a `Problem` for any other content.

    A file or another charset would only come from a program, so a form has neither.
    """
    if request.content_type != _FORM or request.charset.lower() != "utf-8":
        raise Problem(415, f"A form must be {_FORM} in UTF-8.")
    length = request.content_length
    if length is None:
        raise Problem(411, "A form must have a Content-Length.")
    if not 0 <= length <= _LONGEST_FORM:
        raise Problem(413, f"A form has {_LONGEST_FORM} bytes at most.")
    try:
        return request.POST
    except OSError:
        raise Problem(400, "The form has ended too early.") from None


def _is_own(origin: str, request: Any) -> bool:
    # A proxy may speak HTTPS with the browser, and HTTP with us.
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and rest == request.environ.get("HTTP_HOST")


def form_token(request: Any) -> str:
    """Return the token of the forms on a page, which `check_post` expects."""
    token = request.cookies.get(_COOKIE)
    if not token:
        token = request.environ.setdefault(
            "postcommit.web.token", secrets.token_urlsafe(24)
        )
    return str(token)


def harden(request: Any, response: Any) -> None:
    """Set the headers that each response has, and the cookie of the forms."""
    headers = response.headers
    headers.setdefault("Content-Security-Policy", PAGES)
    headers.setdefault("X-Frame-Options", "DENY")
    # With "no-referrer", a browser would send "Origin: null" with our own forms.
    headers.setdefault("Referrer-Policy", "same-origin")
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Cache-Control"] = "no-store"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["X-DNS-Prefetch-Control"] = "off"
    if token := request.environ.get("postcommit.web.token"):
        set_cookie(request, response, _COOKIE, token)


def set_cookie(request: Any, response: Any, name: str, value: str) -> None:
    """Set a cookie that scripts and other sites do not get, until the browser ends."""
    response.set_cookie(
        name,
        value,
        path=base_of(request) or "/",
        secure=request.scheme == "https",
        httponly=True,
        samesite="Strict",
    )
