"""AUTH, the server's side of it (RFC 4954), for `tests.support.smtpd`."""
from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from tests.support.dialogue import Dialogue


def usual(dialogue: Dialogue, mechanism: str, initial: str) -> str | None:
    """Go through the exchange of `mechanism`, as `log_in` does by default."""
    return _MECHANISMS[mechanism](dialogue, initial)


def log_in(dialogue: Dialogue, argument: str) -> str | None:
    """Go through one exchange; return who logged in, None where it failed.

    A test may have set `exchange` of the relay to a function that does it instead.
    """
    mechanism, _, initial = argument.partition(" ")
    mechanism = mechanism.upper()
    if mechanism not in dialogue.relay.mechanisms:
        dialogue.breach(f"AUTH {mechanism} was not offered")
        return None
    exchange = getattr(dialogue.relay, "exchange", None) or _MECHANISMS[mechanism]
    return exchange(dialogue, initial)


def _ask(dialogue: Dialogue, challenge: bytes) -> str:
    dialogue.say(b"334 " + base64.b64encode(challenge) + b"\r\n")
    answer = dialogue.read_line(limit=12288)  # RFC 4954, 4
    return base64.b64decode(answer, validate=True).decode("utf-8")


def _initial(dialogue: Dialogue, initial: str) -> str:
    if initial:
        return base64.b64decode(initial, validate=True).decode("utf-8")
    return _ask(dialogue, b"")


def _known(dialogue: Dialogue, user: str, password: str) -> str | None:
    return user if dialogue.relay.users.get(user) == password else None


def _plain(dialogue: Dialogue, initial: str) -> str | None:
    _, user, password = _initial(dialogue, initial).split("\0")
    return _known(dialogue, user, password)


def _login(dialogue: Dialogue, initial: str) -> str | None:
    user = _initial(dialogue, initial) if initial else _ask(dialogue, b"User Name")
    return _known(dialogue, user, _ask(dialogue, b"Password"))


def _cram_md5(dialogue: Dialogue, initial: str) -> str | None:
    challenge = b"<1.2@relay.example>"
    user, _, digest = _ask(dialogue, challenge).rpartition(" ")
    password = dialogue.relay.users.get(user)
    if password is None:
        return None
    good = hmac.new(password.encode("utf-8"), challenge, "md5").hexdigest()
    return user if digest == good else None


def _scram_sha_256(dialogue: Dialogue, initial: str) -> str | None:  # RFC 7677
    first = _initial(dialogue, initial).removeprefix("n,,")
    fields = dict(part.split("=", 1) for part in first.split(","))
    user = fields["n"].replace("=2C", ",").replace("=3D", "=")
    salt, iterations = b"of the sea", 4096
    nonce = f"{fields['r']}its-half"
    encoded = base64.b64encode(salt).decode("ascii")
    challenge = f"r={nonce},s={encoded},i={iterations}"
    final, _, proof = _ask(dialogue, challenge.encode()).rpartition(",p=")
    password = dialogue.relay.users.get(user)
    if password is None or final != f"c=biws,r={nonce}":
        return None
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    signed = f"{first},{challenge},{final}".encode()
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    signature = hmac.digest(stored, signed, "sha256")
    key = bytes(a ^ b for a, b in zip(signature, base64.b64decode(proof), strict=True))
    if hashlib.sha256(key).digest() != stored:
        return None
    own = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
    _ask(dialogue, b"v=" + base64.b64encode(own))
    return user


def _xoauth2(dialogue: Dialogue, initial: str) -> str | None:
    user, token, *_ = _initial(dialogue, initial).split("\x01")
    return _bearer(dialogue, user.removeprefix("user="), token)


def _oauthbearer(dialogue: Dialogue, initial: str) -> str | None:
    header, *pairs = _initial(dialogue, initial).split("\x01")
    token = next(pair for pair in pairs if pair.startswith("auth="))
    user = header.split(",")[1].removeprefix("a=")
    return _bearer(dialogue, user, token)


def _bearer(dialogue: Dialogue, user: str, token: str) -> str | None:
    if token.removeprefix("auth=Bearer ") in dialogue.relay.tokens:
        return user
    # RFC 7628, 3.2.3: why, and the client answers with a dummy.
    _ask(dialogue, b'{"status":"401"}')
    return None


_MECHANISMS = {
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
    "SCRAM-SHA-256": _scram_sha_256,
    "XOAUTH2": _xoauth2,
    "OAUTHBEARER": _oauthbearer,
}
