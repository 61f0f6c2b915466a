"""Envelope addresses: read what `send` is given, and refuse what cannot work.

After RFC 5321, 4.1.2, and RFC 6531 for what is not ASCII. Strict where a relay
could be made to understand something else (line breaks, spaces, brackets);
lenient where relays are, such as with dots in a local part.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import idna

from postcommit.errors import AddressError
from postcommit.errors import AddressTypeError
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses


# RFC 5321, 4.5.3.1.3: a path has 256 octets with its angle brackets.
_MOST_OCTETS = 254

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ATOM = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+"
_ORDINARY = re.compile(rf"{_ATOM}@{_LABEL}(?:\.{_LABEL})*")

_LOCAL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"\[(?:IPv6:)?[0-9A-Fa-f:.]+\]")

# Control characters, and what breaks a line for Unicode; and halves of
# characters, which cannot be encoded.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# «Ann <ann@example.org>», with a display name that may be quoted.
_NAMED = re.compile(r'((?:[^"<>,;\\]|"(?:[^"\\]|\\.)*")*)<([^<>]*)>')

_PIECE = re.compile(r'(?:"(?:[^"\\]|\\.)*"|\((?:[^()\\]|\\.)*\)|<[^>]*>|[^,])+')


def parse_address(value: Address) -> str:
    """Return the bare address of `value`, without a display name.

    Raises `AddressError`, which names `value` and says what is wrong.
    """
    text = _text(value)
    if _ORDINARY.fullmatch(text) and len(text) <= _MOST_OCTETS:
        return text
    if _CONTROL.search(text):
        raise AddressError(value, "it has a line break or a control character")
    text = text.strip(" ")
    named = _NAMED.fullmatch(text)
    if named:
        text = named[2]
    reason = _fault(text)
    if reason:
        raise AddressError(value, reason)
    return text


def _text(value: Address) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise AddressError(value, f"it is no UTF-8: {error}") from error
    if not isinstance(value, str):
        raise AddressTypeError(value, "it is no str and no bytes")
    return value


def _fault(address: str) -> str:
    """Return what is wrong with a bare address; nothing if it can work."""
    if not address:
        return "it is empty"
    if address.lower() == "postmaster":
        return ""  # RFC 5321, 4.5.1: the one that needs no domain
    quoted = _QUOTED.match(address)
    local = quoted[0] if quoted else address.rpartition("@")[0]
    at, domain = address[len(local) : len(local) + 1], address[len(local) + 1 :]
    if at != "@" or not local or not domain:
        return "it needs something before and after an @"
    if not quoted and re.search("[,;]", address):
        return "it looks like a list; pass a list of addresses"
    if any(character.isspace() for character in (domain if quoted else address)):
        return "it has a space"
    if not quoted and not _LOCAL.fullmatch(local):
        return "it has a character that only a quoted local part may have"
    if len(address.encode()) > _MOST_OCTETS:
        return f"it is longer than {_MOST_OCTETS} octets"
    return _domain_fault(domain)


def _domain_fault(domain: str) -> str:
    if domain.isascii():
        good = _LITERAL.fullmatch(domain) or _DOMAIN.fullmatch(domain)
        return "" if good else "what follows the @ is no domain"
    try:
        _a_labels(domain)
    except idna.IDNAError as error:
        return f"what follows the @ is no domain: {error}"
    return ""


def parse_sender(value: Address) -> str:
    """As `parse_address`, but ``''`` and ``'<>'`` are the null sender, ``''``."""
    if value in ("", b"", "<>", b"<>"):
        return ""
    return parse_address(value)


def parse_recipients(value: Addresses) -> tuple[str, ...]:
    """Return the bare addresses of `value`, each once, in order.

    A str or bytes is one address. Raises `AddressError` for one that cannot
    work, or where there is none.
    """
    if isinstance(value, str | bytes):
        return (parse_address(value),)
    if not isinstance(value, Iterable):
        raise AddressTypeError(value, "it is no str, no bytes and no list of them")
    addresses = tuple(dict.fromkeys(map(parse_address, value)))
    if not addresses:
        raise AddressError(value, "there are no recipients")
    return addresses


def split_addresses(text: str) -> list[str]:
    """Split `text` at its commas, but not at those within quotes or brackets."""
    pieces = _PIECE.findall(text) if set('"(<') & set(text) else text.split(",")
    return [piece.strip() for piece in pieces if piece.strip()]


def needs_smtputf8(address: str) -> bool:
    """Tell whether only a relay with SMTPUTF8 can take `address` (RFC 6531)."""
    return not address.rpartition("@")[0].isascii()


def on_the_wire(address: str) -> str:
    """Return `address` as a relay is told: its domain in ASCII where possible.

    Raises `AddressError` for a domain that cannot be encoded (RFC 5891).
    """
    if address.isascii() or needs_smtputf8(address):
        return address
    local, _, domain = address.rpartition("@")
    try:
        return f"{local}@{_a_labels(domain)}"
    except idna.IDNAError as error:
        raise AddressError(address, f"its domain cannot be encoded: {error}") from error


def domain_in_ascii(address: str) -> str:
    """Return the domain of a checked `address`, in ASCII; ``''`` without a name."""
    domain = address.rpartition("@")[2] if "@" in address else ""
    if not domain or domain.startswith("["):
        return ""
    return domain if domain.isascii() else _a_labels(domain)


@functools.lru_cache(1024)
def _a_labels(domain: str) -> str:
    return idna.encode(domain, uts46=True).decode("ascii")
