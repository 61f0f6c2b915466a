"""Credentials for a relay, and the mechanisms of AUTH (RFC 4954) that use them.

A mechanism is a generator. Its first value is the initial response, or None if it
waits for a challenge. Each challenge that is sent into it gives the next response.
"""
from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import TypeAlias

from postcommit._mail.report import Reply
from postcommit.errors import OptionError


_Exchange: TypeAlias = Generator[bytes | None, bytes, None]
_Mechanism: TypeAlias = Callable[[str, str], _Exchange]
_Command: TypeAlias = Callable[[str], Reply]

# Maximum bytes of an initial response that is sent along with AUTH, so that the line
# stays within 512 bytes (RFC 4954, 4). base64 makes four bytes of three.
_MAX_INITIAL = 360

_CANCEL = "*"

_NO_FUNCTION = "must be a function that returns one"


@dataclass(frozen=True)
class Credentials:
    """A user name, with a password or with tokens.

    `token` is called for a fresh OAuth token, which is kept until a relay refuses it.
    Raises `OptionError` if one part is missing.
    """

    username: str
    password: str | None = field(default=None, repr=False)
    token: Callable[[], str] | None = field(default=None, repr=False)
    mechanism: str | None = None
    _kept: list[str] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.username:
            raise OptionError("username", self.username, "is needed with a token")
        if self.password is None and self.token is None:
            reason = "is needed with a username (or a token)"
            raise OptionError("password", None, reason)
        if not (self.token is None or callable(self.token)):
            raise OptionError("token", self.token, _NO_FUNCTION)

    @property
    def mechanisms(self) -> Sequence[str]:
        """The names of the mechanisms that can be used, the best one first."""
        return list(_WITH_PASSWORD if self.token is None else _WITH_TOKEN)

    def log_in(self, command: _Command, offered: Sequence[str]) -> Reply:
        """Log in by the first mechanism of `offered` that the relay accepts.

        `command` sends a line and returns the reply. Return the last reply: the code
        of a success is 235.
        """
        reply = Reply()
        for name in offered:
            reply = self._exchange(command, name)
            if reply.code not in (235, 421) and self.token is not None:
                self._kept.clear()  # the token may have expired
                reply = self._exchange(command, name)
            if reply.code == 235:
                return reply
            if reply.code == 421 or (reply.code == 535 and name != "CRAM-MD5"):
                break  # the others say the same in other words
        self._kept.clear()
        return reply

    def _exchange(self, command: _Command, name: str) -> Reply:
        mechanism = (_WITH_PASSWORD if self.token is None else _WITH_TOKEN)[name]
        exchange = mechanism(self.username, self._secret())
        line = f"AUTH {name}"
        waiting = next(exchange)
        if waiting is not None and len(waiting) <= _MAX_INITIAL:
            line, waiting = f"{line} {_encode(waiting)}", None
        reply = command(line)
        while reply.code == 334 and line != _CANCEL:
            if waiting is None:
                line = _respond(exchange, reply.text)
            else:
                line, waiting = _encode(waiting), None
            reply = command(line)
        return reply

    def _secret(self) -> str:
        """Return the password, or a token."""
        if self.token is None:
            return self.password or ""
        kept = self._kept[-1:]
        if not kept:
            kept = self._kept[:] = [self.token()]
        return kept[0]


def _encode(response: bytes) -> str:
    """Return `response` for the wire. An empty response is an empty line."""
    return base64.b64encode(response).decode("ascii")


def _respond(exchange: _Exchange, challenge: str) -> str:
    """Return the response of `exchange` to `challenge`, both as on the wire.

    `_CANCEL` if the relay asks for more than the mechanism has. A challenge that is not
    base64 counts as empty.
    """
    try:
        decoded = base64.b64decode(challenge)
    except ValueError:
        decoded = b""
    try:
        return _encode(exchange.send(decoded) or b"")
    except StopIteration:
        return _CANCEL


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _plain(username: str, password: str) -> _Exchange:  # RFC 4616
    yield _bytes(f"\0{username}\0{password}")


def _login(username: str, password: str) -> _Exchange:
    yield None
    yield _bytes(username)
    yield _bytes(password)


def _cram_md5(username: str, password: str) -> _Exchange:  # RFC 2195
    challenge = yield None
    digest = hmac.new(_bytes(password), challenge, _md5).hexdigest()
    yield _bytes(f"{username} {digest}")


def _md5(data: bytes = b"") -> Any:
    # CRAM-MD5 needs MD5. Marked like this, it works on hosts in FIPS mode, too.
    return hashlib.md5(data, usedforsecurity=False)


def _oauthbearer(username: str, token: str) -> _Exchange:  # RFC 7628
    name = username.replace("=", "=3D").replace(",", "=2C")
    yield _bytes(f"n,a={name},\x01auth=Bearer {token}\x01\x01")
    yield b"\x01"  # the challenge has the reason, and this asks for the refusal


def _xoauth2(username: str, token: str) -> _Exchange:
    yield _bytes(f"user={username}\x01auth=Bearer {token}\x01\x01")
    yield b""


# In the order in which they are tried.
_WITH_PASSWORD: dict[str, _Mechanism] = {
    "CRAM-MD5": _cram_md5,
    "PLAIN": _plain,
    "LOGIN": _login,
}
_WITH_TOKEN: dict[str, _Mechanism] = {
    "OAUTHBEARER": _oauthbearer,
    "XOAUTH2": _xoauth2,
}
