"""Envelope addresses: read what `send` is given, and refuse what cannot work.

After RFC 5321, 4.1.2, and RFC 6531 for what is not ASCII. Strict where a relay
could be made to understand something else (line breaks, spaces, brackets);
lenient where relays are, such as with dots in a local part.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from collections.abc import Iterator

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
_LITERAL = re.compile(r"\[(?:IPv6:)?[0-9A-Fa-f:.]+\]", re.IGNORECASE)

# Control characters, and what breaks a line for Unicode; and halves of
# characters, which cannot be encoded.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# «Ann <ann@example.org>», with a display name that may be quoted.
_NAMED = re.compile(r'((?:[^"<>,;\\]|"(?:[^"\\]|\\.)*")*)<([^<>]*)>')

# What can hide a comma.
_HIDING = re.compile(r'["<(\[]')

# What hides a comma, whole, even where its end is missing; what separates; and
# what is between. A comment may hold another one, see `_end_of_comment`.
_UNIT = re.compile(
    r'"(?:[^"\\]|\\.)*"?'
    r'|<(?:[^<>"]|"(?:[^"\\]|\\.)*"?)*>?'
    r'|\[[^][,;<>"()]*\]|\['
    r"|[,:;]"
    r'|[^"<([,:;]+',
    re.DOTALL,
)
_IN_COMMENT = re.compile(r"\\.|[()]|[^()\\]+|\\", re.DOTALL)


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
    if type(value) is str:
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise AddressError(value, f"it is no UTF-8: {error}") from error
    if not isinstance(value, str):
        raise AddressTypeError(value, "it is no str and no bytes")
    # A template's kind of str would escape the brackets that we put around it.
    return str.__str__(value)


def _fault(address: str) -> str:
    """Return what is wrong with a bare address; nothing if it can work."""
    if not address:
        return "it is empty"
    if "\N{REPLACEMENT CHARACTER}" in address:
        return "it has a character that was lost in decoding"
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
        encoded = _a_labels(domain)
    except idna.IDNAError as error:
        return f"what follows the @ is no domain: {error}"
    # The idna package lets a final dot pass.
    return "" if _DOMAIN.fullmatch(encoded) else "what follows the @ is no domain"


def parse_sender(value: Address) -> str:
    """As `parse_address`, but ``''`` and ``'<>'`` are the null sender, ``''``."""
    return "" if _text(value) in ("", "<>") else parse_address(value)


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
    """Split `text` at its commas, but not at those in quotes, comments, brackets."""
    if not _HIDING.search(text):
        return [piece for part in text.split(",") if (piece := part.strip())]
    pieces: list[list[str]] = [[]]
    for unit in _units(text):
        if unit == ",":
            pieces.append([])
        else:
            pieces[-1].append(unit)
    return _joined(pieces)


def header_addresses(text: str) -> list[str]:
    """Return the addresses in a header field's value (RFC 5322, 3.4).

    As `split_addresses`; comments are dropped, groups are opened.
    """
    pieces: list[list[str]] = [[]]
    for unit in _units(text):
        if unit in (",", ";"):
            pieces.append([])
        elif unit == ":":
            pieces[-1].clear()  # that was the name of a group
        else:
            pieces[-1].append(" " if unit.startswith("(") else unit)
    return _joined(pieces)


def _joined(pieces: list[list[str]]) -> list[str]:
    joined = ("".join(piece).strip() for piece in pieces)
    return [piece for piece in joined if piece]


def _units(text: str) -> Iterator[str]:
    """Yield `text` in parts: what hides a comma, a separator, or neither."""
    position = 0
    while position < len(text):
        found = _UNIT.match(text, position)
        end = found.end() if found else _end_of_comment(text, position)
        yield text[position:end]
        position = end


def _end_of_comment(text: str, position: int) -> int:
    """Return where the comment ends that begins at `position`."""
    depth = 0
    for found in _IN_COMMENT.finditer(text, position):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    return len(text)


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
