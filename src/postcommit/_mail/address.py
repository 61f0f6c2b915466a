"""Envelope addresses: read what `send` is given, and refuse what cannot work.

The rules are those of RFC 5321, 4.1.2, and of RFC 6531 for addresses that are not
ASCII. They are strict where a relay could understand another address (line breaks,
spaces, brackets), and lenient where relays are, for example with dots in a local part.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from collections.abc import Iterator

import idna

from postcommit.errors import AddressError
from postcommit.errors import AddressTypeError
from postcommit.errors import shown
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

# Control characters except TAB, the line breaks of Unicode, and surrogates, which
# cannot be encoded.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# Ann <ann@example.org>, with a display name that may be quoted.
_NAMED = re.compile(r'((?:[^"<>,;\\]|"(?:[^"\\]|\\.)*")*)<([^<>]*)>')

# The characters that begin something in which a comma does not separate.
_HIDING = re.compile(r'["<(\[]')

# The units of an address list: a quoted string, an address in angle brackets, or a
# domain literal, even if its end is missing, a separator, or the text between them.
# Comments can be nested, so `_end_of_comment` finds their end.
_UNIT = re.compile(
    r'"(?:[^"\\]|\\.)*"?'
    r'|<(?:[^<>"]|"(?:[^"\\]|\\.)*"?)*>?'
    r'|\[[^][,;<>"()]*\]|\['
    r"|[,:;]"
    r'|[^"<([,:;]+',
    re.DOTALL,
)
_IN_COMMENT = re.compile(r"\\.|[()]|[^()\\]+|\\", re.DOTALL)

# RFC 5322, 4.4, allows white space and comments around the @ and the dots.
_AROUND_DOTS = re.compile(r"[ \t]*([@.])[ \t]*")


def parse_address(value: Address) -> str:
    """Return the bare address of `value`, without a display name.

    Raises `AddressError`, which names `value` and says what is wrong.
    """
    if isinstance(value, str):
        # A template's subclass of str would escape the brackets that we put around it.
        text = str.__str__(value)
    elif isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError as error:
            raise AddressError(value, f"it is not UTF-8: {error}") from error
    else:
        raise AddressTypeError(
            value, f"an address is a str or bytes, not {type(value).__name__}"
        )
    if _ORDINARY.fullmatch(text) and len(text) <= _MOST_OCTETS:
        return text
    if _CONTROL.search(text):
        raise AddressError(value, "it has a line break or a control character")
    text = text.strip(" \t")
    named = _NAMED.fullmatch(text)
    if named:
        text = named[2]
    elif text.endswith(">") and text.count("<") == 1:
        name = "a comma, semicolon, backslash or bracket in the name needs quotation"
        raise AddressError(value, f"{name} marks; email.utils.formataddr adds them")
    reason = _fault(text)
    if reason:
        raise AddressError(value, reason)
    return text


def _fault(address: str) -> str:
    """Return what is wrong with a bare address, or nothing if it can work."""
    if not address:
        return "it is empty"
    if "\N{REPLACEMENT CHARACTER}" in address:
        return "it has a character that was lost in decoding"
    if address.lower() == "postmaster":
        return ""  # RFC 5321, 4.5.1: it needs no domain
    quoted = _QUOTED.match(address)
    local = quoted[0] if quoted else address.rpartition("@")[0]
    at, domain = address[len(local) : len(local) + 1], address[len(local) + 1 :]
    if at != "@" or not local or not domain:
        return "it needs something before and after an @"
    if not quoted and re.search("[,;]", address):
        return "it looks like a list; pass a list of addresses, or quote the name"
    unquoted = domain if quoted else address
    if "\t" in address or any(character.isspace() for character in unquoted):
        return "it has a space"
    if not quoted and not _LOCAL.fullmatch(local):
        return "it has a character that only a quoted local part may have"
    if len(address.encode()) > _MOST_OCTETS:
        return f"it is longer than {_MOST_OCTETS} octets"
    return _domain_fault(domain)


def _domain_fault(domain: str) -> str:
    if domain.isascii():
        good = _LITERAL.fullmatch(domain) or _DOMAIN.fullmatch(domain)
        return "" if good else "the part after the @ is not a domain"
    try:
        encoded = _a_labels(domain)
    except idna.IDNAError as error:
        return f"the part after the @ is not a domain: {error}"
    # The idna package lets a final dot pass.
    return "" if _DOMAIN.fullmatch(encoded) else "the part after the @ is not a domain"


def parse_sender(value: Address) -> str:
    """Return the bare address of `value`; ``''`` for the null sender, ``'<>'``.

    Raises what `parse_address` raises.
    """
    null = (b"", b"<>") if isinstance(value, bytes) else ("", "<>")
    return "" if value in null else parse_address(value)


def parse_recipients(value: Addresses) -> tuple[str, ...]:
    """Return the bare addresses of `value`, each mailbox once, in order.

    A str or bytes is one address. Two addresses are the same mailbox if they differ
    only in the case or the encoding of the domain, for example ``a@Bücher.example``
    and ``a@xn--bcher-kva.example``. Raises `AddressError` for an address that cannot
    work, and if the list is empty.
    """
    if isinstance(value, str | bytes):
        return (parse_address(value),)
    if not isinstance(value, Iterable):
        raise AddressTypeError(value, "it is not a str, bytes or an iterable of them")
    mailboxes: dict[str, str] = {}
    for address in map(parse_address, value):
        local, at, domain = address.rpartition("@")
        encoded = domain if domain.isascii() else _a_labels(domain)
        # A text that is equal for all spellings. Only "postmaster" is without a domain.
        key = f"{local}@{encoded.lower()}" if at else address.lower()
        mailboxes.setdefault(key, address)
    if not mailboxes:
        raise AddressError(None, f"no recipients: toaddrs is {shown(value)}")
    return tuple(mailboxes.values())


def split_addresses(text: str) -> list[str]:
    """Split `text` at its commas, but not at those in quotes, comments, brackets."""
    if not _HIDING.search(text):
        return [piece for part in text.split(",") if (piece := part.strip())]
    pieces: list[list[str]] = [[]]
    for unit in units(text):
        if unit == ",":
            pieces.append([])
        else:
            pieces[-1].append(unit)
    return _joined(pieces)


def header_addresses(text: str) -> list[str]:
    """Return the addresses in the value of a header field (RFC 5322, 3.4).

    Display names and comments are dropped, and the members of groups are returned like
    the others. The addresses are not checked. Raises `AddressError` if the name of a
    group looks like an address: in ``ann@x.org: bob@x.org``, Ann would get no mail.
    """
    pieces: list[list[str]] = [[]]
    for unit in units(text):
        if unit in (",", ";"):
            pieces.append([])
        elif unit == ":":
            _check_group_name(pieces[-1])
            pieces[-1].clear()
        elif unit.startswith("("):
            pieces[-1].append(" ")
        else:
            pieces[-1].append(unit)
    return [address for piece in pieces if (address := _address_in(piece))]


def _check_group_name(units: list[str]) -> None:
    unquoted = "".join(unit for unit in units if not unit.startswith('"'))
    if "@" in unquoted or _CONTROL.search(unquoted):
        reason = "it stands before a colon, where only the name of a group may stand"
        raise AddressError("".join(units).strip(), reason)


def _address_in(units: list[str]) -> str:
    """Return the address of a mailbox without the white space around its dots."""
    text = "".join(units).strip()
    brackets = [unit for unit in units if unit.startswith("<")]
    if len(brackets) == 1 and text.endswith(brackets[0]) and text.endswith(">"):
        text = brackets[0][1:-1].strip() or "<>"
    return text if '"' in text else _AROUND_DOTS.sub(r"\1", text)


def _joined(pieces: list[list[str]]) -> list[str]:
    joined = ("".join(piece).strip() for piece in pieces)
    return [piece for piece in joined if piece]


def units(text: str) -> Iterator[str]:
    """Yield the units of an address list, see `_UNIT`, and its comments."""
    position = 0
    while position < len(text):
        found = _UNIT.match(text, position)
        end = found.end() if found else _end_of_comment(text, position)
        yield text[position:end]
        position = end


def _end_of_comment(text: str, position: int) -> int:
    """Return the end of the comment that begins at `position`."""
    depth = 0
    for found in _IN_COMMENT.finditer(text, position):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if not depth:
            return found.end()
    return len(text)


def needs_smtputf8(address: str) -> bool:
    """Return True if `address` needs a relay with SMTPUTF8 (RFC 6531)."""
    return not address.rpartition("@")[0].isascii()


def on_the_wire(address: str) -> str:
    """Return `address` as it is written in an envelope and a header.

    Its domain is in A-labels (RFC 5890) unless the local part is not ASCII either.

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
