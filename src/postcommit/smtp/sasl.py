"""The mechanisms of AUTH (RFC 4954): what is said to each challenge.

A mechanism is a generator. Its first value is the initial response, None for
one that waits for a challenge; each challenge that is sent into it gives the
next response.
"""
from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from collections.abc import Generator
from typing import Any
from typing import TypeAlias


Exchange: TypeAlias = Generator[bytes | None, bytes, None]
Mechanism: TypeAlias = Callable[[str, str], Exchange]


# RFC 4954, 4: an initial response goes along with the command where the line
# stays within 512 bytes; base64 makes four bytes of three.
MAX_INITIAL = 360

CANCEL = "*"


def encode(response: bytes) -> str:
    """Return `response` for the wire; an empty one is an empty line there."""
    return base64.b64encode(response).decode("ascii")


def respond(exchange: Exchange, challenge: str) -> str:
    """Return what `exchange` has to say to `challenge`, both as on the wire.

    `CANCEL` where the relay asks for more than the mechanism has.
    """
    try:
        return encode(exchange.send(_decode(challenge)) or b"")
    except StopIteration:
        return CANCEL


def _decode(challenge: str) -> bytes:
    """Return a challenge; what is no base64 counts as empty."""
    try:
        return base64.b64decode(challenge)
    except ValueError:
        return b""


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _plain(username: str, password: str) -> Exchange:  # RFC 4616
    yield _bytes(f"\0{username}\0{password}")


def _login(username: str, password: str) -> Exchange:
    yield None
    yield _bytes(username)
    yield _bytes(password)


def _cram_md5(username: str, password: str) -> Exchange:  # RFC 2195
    challenge = yield None
    digest = hmac.new(_bytes(password), challenge, _md5).hexdigest()
    yield _bytes(f"{username} {digest}")


def _md5(data: bytes = b"") -> Any:
    # The mechanism has no other; said so, it works on hosts in FIPS mode too.
    return hashlib.md5(data, usedforsecurity=False)


def _oauthbearer(username: str, token: str) -> Exchange:  # RFC 7628
    name = username.replace("=", "=3D").replace(",", "=2C")
    yield _bytes(f"n,a={name},\x01auth=Bearer {token}\x01\x01")
    yield b"\x01"  # the challenge says what is wrong; this asks for the refusal


def _xoauth2(username: str, token: str) -> Exchange:
    yield _bytes(f"user={username}\x01auth=Bearer {token}\x01\x01")
    yield b""


# In the order in which they are tried.
WITH_PASSWORD: dict[str, Mechanism] = {
    "CRAM-MD5": _cram_md5,
    "PLAIN": _plain,
    "LOGIN": _login,
}
WITH_TOKEN: dict[str, Mechanism] = {
    "OAUTHBEARER": _oauthbearer,
    "XOAUTH2": _xoauth2,
}
