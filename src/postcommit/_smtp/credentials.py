"""Credentials for a relay, and the mechanisms of AUTH (RFC 4954) that use them.

A mechanism is a generator. Its first value is the initial response, or None if it
waits for a challenge. Each challenge that is sent into it gives the next response. None
is sent into it when the relay has accepted the login.
"""
from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from stringprep import in_table_b1
from stringprep import in_table_c12
from typing import Any
from typing import TypeAlias
from unicodedata import ucd_3_2_0

from postcommit._mail.report import Reply
from postcommit.errors import MISSING
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.errors import text_of


_Exchange: TypeAlias = Generator[bytes | None, bytes | None, None]
_Mechanism: TypeAlias = Callable[[str, str], _Exchange]
_Command: TypeAlias = Callable[[str], Reply]

# Maximum bytes of an initial response that is sent along with AUTH, so that the line
# stays within 512 bytes (RFC 4954, 4). base64 makes four bytes of three.
_MAX_INITIAL = 360

# Maximum number of iterations of SCRAM, about a second. The relay chooses the number.
_MOST_ITERATIONS = 2_000_000

# Minimum numbers of characters of a text that is masked in a reply, and of its parts.
_LEAST_MASKED = 4
_LEAST_PART = 6

_CANCEL = "*"

_NO_FUNCTION = "must be a function that returns one"

# Mechanisms that fail with 535 for a good password if the relay has another form of it.
_NEEDS_STORED_FORM = ("SCRAM-SHA-256", "CRAM-MD5")


@dataclass(frozen=True)
class Credentials:
    """A user name, with a password or with tokens.

    `token` is called for a fresh OAuth token. A token is kept when a relay has accepted
    it. `mechanism`, in lower case, is the only mechanism to use. Raises `OptionError`
    if a part is missing, or does not fit the others.
    """

    username: str
    password: str | None = field(default=None, repr=False)
    token: Callable[[], str] | None = field(default=None, repr=False)
    mechanism: str | None = None
    _kept: list[str] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def given(
        cls,
        username: str | None,
        password: str | None,
        token: Callable[[], str] | None,
        mechanism: str | None,
    ) -> Credentials:
        """Return the credentials. One of the arguments, at least, is given.

        Raises `OptionError` if neither the user name nor the token is.
        """
        if username or token is not None:
            return cls(username or "", password, token, mechanism)
        name, value = ("password", password) if password else ("auth", mechanism)
        raise OptionError(name, value, "has no effect without a username")

    def __post_init__(self) -> None:
        if not self.username:
            raise OptionError("username", self.username, "is needed with a token")
        if self.password is None and self.token is None:
            reason = "is needed with a username (or a token)"
            raise OptionError("password", MISSING, reason)
        if not (self.token is None or callable(self.token)):
            raise OptionError("token", self.token, _NO_FUNCTION)
        if self.token is not None and self.password:
            reason = "has no effect with a token; omit one of them"
            raise OptionError("password", self.password, reason)
        if self.mechanism is not None and self.mechanism.upper() not in self._table:
            reason = (
                "needs a token, which is an argument of SMTPMailer in Python"
                if self.token is None
                else "needs a password, and a token was given"
            )
            raise OptionError("auth", self.mechanism, reason)

    def mechanisms(self, *, encrypted: bool) -> Sequence[str]:
        """Return the names of the mechanisms that can be used, the best one first.

        Under TLS, PLAIN comes before CRAM-MD5. PLAIN works whatever form of the
        password the relay has stored, and CRAM-MD5 works only with the clear text.
        """
        if self.mechanism is not None:
            return [self.mechanism.upper()]
        names = list(self._table)
        if not encrypted and "CRAM-MD5" in names:
            names.remove("CRAM-MD5")
            names.insert(names.index("PLAIN"), "CRAM-MD5")
        return names

    def log_in(self, command: _Command, offered: Sequence[str]) -> Reply:
        """Log in by the first mechanism of `offered` that the relay accepts.

        `command` sends a line and returns the reply. Return the last reply: the code
        of a success is 235. Raises `RelayError` if the relay does not prove that it
        knows the password, where the mechanism asks for a proof.
        """
        reply = Reply()
        for name in offered:
            reply = self._exchange(command, name)
            if reply.code not in (235, 421) and self.token is not None:
                reply = self._exchange(command, name)  # the token may have expired
            if reply.code == 235:
                return reply
            is_wrong = reply.code == 535 and name not in _NEEDS_STORED_FORM
            if reply.code == 421 or is_wrong:
                break  # the other mechanisms would be refused, too
        return reply

    @property
    def _table(self) -> dict[str, _Mechanism]:
        return _WITH_PASSWORD if self.token is None else _WITH_TOKEN

    def _exchange(self, command: _Command, name: str) -> Reply:
        """Go through one exchange, and return the last reply.

        A token is kept only if the relay has accepted it. A relay may answer to an
        expired token by closing the connection, or not at all.
        """
        secret = self._secret()
        if self.token is None:
            return self._converse(command, name, secret)
        reply = Reply()
        try:
            reply = self._converse(command, name, secret)
        finally:
            if reply.code == 235:
                self._kept[:] = [secret]
            else:
                with suppress(ValueError):  # another thread may have a newer token
                    self._kept.remove(secret)
        return reply

    def _converse(self, command: _Command, name: str, secret: str) -> Reply:
        """Return the last reply of an exchange, without the secret and our responses.

        Some relays repeat a line that they refuse.
        """
        exchange = self._table[name](self.username, secret)
        hidden = [secret, _encode(_bytes(secret))]
        line = f"AUTH {name}"
        initial = waiting = next(exchange)
        if waiting is not None and len(waiting) <= _MAX_INITIAL:
            hidden.append(_encode(waiting))
            line, waiting = f"{line} {hidden[-1]}", None
        reply = _reply_to(line, command, name)
        if reply.code == 334 and initial and not _decode(reply.text):
            waiting = initial  # it has not taken what came with AUTH
        while reply.code == 334 and line != _CANCEL:
            if waiting is None:
                line = _respond(exchange, reply.text)
            else:
                line, waiting = _encode(waiting), None
            hidden.append(line)
            reply = _reply_to(line, command, name)
        if reply.code == 235:
            with suppress(StopIteration):
                exchange.send(None)
        return _without(hidden, reply)

    def _secret(self) -> str:
        """Return the password, or a token."""
        if self.token is None:
            return self.password or ""
        kept = self._kept[-1:]
        return kept[0] if kept else _called(self.token)


def _called(function: Callable[[], object]) -> str:
    """Return the token that `function` returns.

    Raises `RelayError` for whatever it raises, or if it returns no token: no message is
    to blame. The text of an OSError is for the log. That of another error is not shown,
    and neither are its frames, because they may have a secret.
    """
    failure: RelayError
    try:
        token = function()
    except OSError as error:
        failure = RelayError(f"the token function failed: {text_of(error)}")
        failure.__cause__ = error.with_traceback(None)
    except Exception as error:
        failure = RelayError(f"the token function raised {type(error).__name__}")
    else:
        if isinstance(token, str) and token:
            return token
        kind = "an empty str" if token == "" else type(token).__name__
        failure = RelayError(f"the token function returned {kind}, not a token")
    raise failure


def _reply_to(line: str, command: _Command, name: str) -> Reply:
    """Return the reply to a line of AUTH, in the mechanism `name`.

    Raises an OSError as `command` does, but without a quotation of the reply.
    """
    try:
        return command(line)
    except RelayError:
        pass  # it quotes what is not SMTP, and that may be the line
    raise RelayError(f"the reply to AUTH {name} is not SMTP")


def _without(hidden: Sequence[str], reply: Reply) -> Reply:
    """Return `reply` without the texts that are `hidden`, and without parts of them.

    A relay may quote a line as far as it has read it. What is shorter may be a part of
    any word.
    """
    parts = {one for one in hidden if _LEAST_MASKED <= len(one) < _LEAST_PART}
    for one in hidden:
        ends = range(_LEAST_PART, len(one) + 1)
        parts.update(one[end - _LEAST_PART : end] for end in ends)
    is_hidden = [False] * len(reply.text)
    for size in {len(part) for part in parts}:
        for end in range(size, len(reply.text) + 1):
            if reply.text[end - size : end] in parts:
                is_hidden[end - size : end] = [True] * size
    runs = groupby(zip(is_hidden, reply.text, strict=True), key=itemgetter(0))
    shown = ("***" if hides else "".join(c for _, c in run) for hides, run in runs)
    return replace(reply, text="".join(shown))


def _encode(response: bytes) -> str:
    """Return `response` for the wire. An empty response is an empty line."""
    return base64.b64encode(response).decode("ascii")


def _decode(challenge: str) -> bytes:
    """Return a challenge as sent. One that is not base64 counts as empty."""
    try:
        return base64.b64decode(challenge)
    except ValueError:
        return b""


def _respond(exchange: _Exchange, challenge: str) -> str:
    """Return the response of `exchange` to `challenge`, both as on the wire.

    `_CANCEL` if the relay asks for more than the mechanism has.
    """
    try:
        return _encode(exchange.send(_decode(challenge)) or b"")
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
    challenge = (yield None) or b""
    digest = hmac.new(_bytes(password), challenge, _md5).hexdigest()
    yield _bytes(f"{username} {digest}")


def _md5(data: bytes = b"") -> Any:
    # CRAM-MD5 needs MD5. Marked like this, it works on hosts in FIPS mode, too.
    return hashlib.md5(data, usedforsecurity=False)


def _scram_sha_256(username: str, password: str, nonce: str = "") -> _Exchange:
    """Prove that we know the password, and have the relay prove it, too.

    See RFC 5802 and RFC 7677. `nonce` is for tests. Raises `RelayError` if the relay
    cannot prove it: the password is then for another relay.
    """
    nonce = nonce or secrets.token_urlsafe(24)
    name = _prepared(username).replace("=", "=3D").replace(",", "=2C")
    first = f"n={name},r={nonce}"
    server_first = ((yield _bytes(f"n,,{first}")) or b"").decode("utf-8", "replace")
    if server_first.startswith("e="):  # it refuses, and 535 follows
        yield b""
        raise _unproven("has accepted a login that it had refused")
    fields = dict(part.partition("=")[::2] for part in server_first.split(","))
    salted = _salted(_prepared(password), fields, nonce)
    last = f"c=biws,r={fields['r']}"
    whole = _bytes(f"{first},{server_first},{last}")
    proof = _encode(_client_proof(salted, whole))
    server_last = (yield _bytes(f"{last},p={proof}")) or b""
    if server_last.startswith(b"e="):
        yield b""
        raise _unproven("has accepted a login that it had refused")
    signature = b"v=" + base64.b64encode(_server_signature(salted, whole))
    if not hmac.compare_digest(server_last.partition(b",")[0], signature):
        raise _unproven("does not prove that it knows the password")
    yield b""


def _salted(password: str, fields: dict[str, str], nonce: str) -> bytes:
    """Return the password with the relay's salt and iterations.

    Raises `RelayError` for fields that are not as RFC 5802 has them.
    """
    try:
        salt = base64.b64decode(fields.get("s", ""), validate=True)
        count = int(fields.get("i", ""))
    except ValueError:
        salt, count = b"", 0
    new = fields.get("r", "").removeprefix(nonce)
    if not salt or "m" in fields or new in ("", fields.get("r")):
        raise _unproven("does not answer as RFC 5802 has it")
    if not 0 < count <= _MOST_ITERATIONS:
        raise _unproven(f"wants {count} iterations")
    return hashlib.pbkdf2_hmac("sha256", _bytes(password), salt, count)


def _client_proof(salted: bytes, whole: bytes) -> bytes:
    key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(key).digest(), whole, "sha256")
    return bytes(a ^ b for a, b in zip(key, signature, strict=True))


def _server_signature(salted: bytes, whole: bytes) -> bytes:
    key = hmac.digest(salted, b"Server Key", "sha256")
    return hmac.digest(key, whole, "sha256")


def _unproven(what: str) -> RelayError:
    text = f"SCRAM-SHA-256: the relay {what}; auth can choose another mechanism"
    return RelayError(text)


def _prepared(text: str) -> str:
    """Return `text` by SASLprep (RFC 4013), but keep prohibited characters.

    A relay that has stored a password with such characters has kept them, too.
    """
    kept = (" " if in_table_c12(c) else c for c in text if not in_table_b1(c))
    return ucd_3_2_0.normalize("NFKC", "".join(kept))


def _oauthbearer(username: str, token: str) -> _Exchange:  # RFC 7628
    name = username.replace("=", "=3D").replace(",", "=2C")
    yield _bytes(f"n,a={name},\x01auth=Bearer {token}\x01\x01")
    yield b"\x01"  # the challenge has the reason, and this asks for the refusal


def _xoauth2(username: str, token: str) -> _Exchange:
    yield _bytes(f"user={username}\x01auth=Bearer {token}\x01\x01")
    yield b""


# In the order in which they are tried under TLS.
_WITH_PASSWORD: dict[str, _Mechanism] = {
    "SCRAM-SHA-256": _scram_sha_256,
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
}
_WITH_TOKEN: dict[str, _Mechanism] = {
    "OAUTHBEARER": _oauthbearer,
    "XOAUTH2": _xoauth2,
}
