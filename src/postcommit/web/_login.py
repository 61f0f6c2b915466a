"""Who may see the page of ``postcommit web``: a token in the URL, or a password."""
from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from postcommit._log import Log
from postcommit.errors import MISSING
from postcommit.errors import ConfigError
from postcommit.web._guard import is_same
from postcommit.web._guard import set_cookie
from postcommit.web._http import Answer
from postcommit.web._http import Problem
from postcommit.web._http import Response
from postcommit.web._http import base_of
from postcommit.web._http import see_other


log = Log("postcommit.web")

_HINT = "Open the address that 'postcommit web' has printed."


class TokenLogin:
    """Lets in who has the `token`, which is in a URL, and then a cookie.

    The cookie is another secret, so the token is not in each request. `user` is the
    name of everybody who has the token.
    """

    def __init__(self, user: str) -> None:
        self.token = secrets.token_urlsafe(24)
        self._user = user
        self._session = secrets.token_urlsafe(24)
        # Cookies do not know ports, and two pages may run on this machine.
        self._cookie = f"postcommit_{secrets.token_hex(4)}"

    def __call__(self, request: Any) -> str:
        """Return the name of the user. Raises `Problem`, or `Answer` with a cookie."""
        given = request.GET.get("token")
        if given is not None and request.method == "GET":
            if not is_same(given, self.token):
                reason = "The token in the address is wrong."
                raise Problem(403, reason, notes=(_HINT,), is_logged=True)
            # One slash: a browser would take two for the beginning of a host.
            place = quote(request.path_info.lstrip("/"))
            response = see_other(f"{base_of(request)}/{place}")
            set_cookie(request, response, self._cookie, self._session)
            raise Answer(response)
        if not is_same(request.cookies.get(self._cookie, ""), self._session):
            reason = "You may not see this page."
            raise Problem(403, reason, notes=(_HINT,), is_logged=True)
        return self._user


class PasswordLogin:
    """Lets in who has one of the passwords, by name (RFC 7617)."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._passwords = passwords

    def __call__(self, request: Any) -> str:
        """Return the name of the user. Raises `Answer`, so that the browser asks."""
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        try:
            decoded = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, ValueError):
            decoded = ""
        name, _, password = decoded.partition(":")
        wanted = self._passwords.get(name, "")
        if kind.lower() == "basic" and wanted and is_same(password, wanted):
            return name
        if value:
            log.warning("A login from %s was refused", request.remote_addr or "unknown")
        text = "This page needs a name and a password.\n"
        response = Response(text=text, status=401, content_type="text/plain")
        challenge = 'Basic realm="postcommit", charset="UTF-8"'
        response.headers["WWW-Authenticate"] = challenge
        raise Answer(response)


def passwords_of(path: str) -> dict[str, str]:
    """Return the passwords by names in the file at `path`, a ``NAME:PASSWORD`` a line.

    Empty lines, and lines that begin with ``#``, are left out. Raises OSError, and
    `ConfigError` for another line. The error does not show the line.
    """
    passwords: dict[str, str] = {}
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        if os.fstat(file.fileno()).st_mode & 0o007:
            log.warning("%s: every user can read the passwords; chmod 640 it", path)
        for number, line in enumerate(file, 1):
            name, colon, password = line.strip().partition(":")
            if not name or name.startswith("#"):
                continue
            if not colon or not password:
                reason = f"line {number} is not NAME:PASSWORD"
                raise ConfigError(path, "", MISSING, reason)
            passwords[name] = password
    if not passwords:
        raise ConfigError(path, "", MISSING, "has no line NAME:PASSWORD")
    return passwords
