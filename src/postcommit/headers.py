"""The header fields of a message: the addresses in them, and their way to bytes.

The generator of the standard library damages fields when it folds or encodes them. A
name loses its quotes, and the addresses in it become recipients. Encoded words swallow
an address, or get into a domain. A line break in the value of an older `Message` begins
another field. So `FieldPolicy` decides for each field. ASCII that fits on a line is
left to the generator, and `encoded_field` writes everything else. A value that would
not become exactly one field is refused.
"""
from __future__ import annotations

import functools
import re
from binascii import a2b_base64
from binascii import b2a_base64
from email.errors import HeaderParseError
from email.header import Header
from email.message import Message
from email.policy import Policy
from email.quoprimime import header_decode
from email.utils import unquote
from itertools import groupby
from typing import Any
from typing import cast

from postcommit.address import header_addresses
from postcommit.address import on_the_wire
from postcommit.address import units
from postcommit.errors import AddressError


# Maximum octets of a line without its end (RFC 5322, 2.1.1), and the usual number.
MOST_OCTETS = 998
_USUAL_OCTETS = 76

# The fields whose value is a list of addresses (RFC 5322, 3.6; RFC 8098, 2.1).
ADDRESS_FIELDS = frozenset(
    {
        *("from", "sender", "reply-to", "to", "cc", "bcc"),
        *("resent-from", "resent-sender", "resent-to", "resent-cc", "resent-bcc"),
        *("return-path", "disposition-notification-to", "mail-followup-to"),
        *("mail-reply-to", "errors-to", "return-receipt-to", "delivered-to"),
    }
)

# The fields whose value has parameters (RFC 2231).
_PARAMETER_FIELDS = frozenset({"content-type", "content-disposition"})

_FOLD = re.compile(r"\r?\n(?=[ \t])")
_NAME = re.compile("[!-9;-~]+")
_ONE_FIELD = re.compile(rb"[!-9;-~]+:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*\r?\n")

# A word with the white space before it. The spaces of Unicode are letters here. In an
# address field, a quoted string is a part of a word, so that it is not folded.
_WORD = re.compile(r"([ \t]*)([^ \t]+)")
_ADDRESS_WORD = re.compile(r'([ \t]*)((?:"(?:[^"\\]|\\.)*"|[^ \t"]|")+)')

# An encoded word (RFC 2047, 2), perhaps with a language (RFC 2231, 5).
_ENCODED_WORD = re.compile(r"=\?([^?*\s]+)(?:\*[^?\s]*)?\?([BbQq])\?([^?\s]*)\?=")
_ENCODED_WORDS = re.compile(
    rf"{_ENCODED_WORD.pattern}(?:\s*{_ENCODED_WORD.pattern})*"
)

# The defects of header values of which the standard library has dropped a part.
_DROPPED = ("invalid address in address-list", "invalid mailbox in mailbox-list")

_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)

# The bytes that stand for themselves in an encoded word, also within a display name
# (RFC 2047, 5 (3)).
_PLAIN = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/"
)


# Addresses


def mailboxes_of(message: Message, name: str) -> list[str]:
    """Return the mailboxes of all fields `name` of a message object, in order.

    Raises `AddressError` for text that is not a list of addresses. The standard library
    would drop a part of it, for example all after the semicolon in
    ``ann@example.org; bob@example.org``.
    """
    found: list[str] = []
    for key, value in message.raw_items():
        if key.lower() != name.lower():
            continue
        addresses = getattr(value, "addresses", None)
        if addresses is None:
            # Bytes that are not ASCII are surrogates here.
            data = str(value).encode("utf-8", "surrogateescape")
            found += mailboxes_in(data.decode("utf-8", "replace"))
            continue
        for defect in map(str, getattr(value, "defects", ())):
            if defect in _DROPPED:
                raise AddressError(str(value), f"{name} is not a list: {defect}")
        found += [address.addr_spec for address in addresses]
    return found


def mailboxes_in(text: str) -> list[str]:
    """Return the mailboxes in the value of an address field, with their names.

    An older `Message` encodes a value that is not ASCII as a whole. Such a value, and
    no other, is decoded first. An encoded word beside an address is a display name.
    """
    text = _FOLD.sub("", text).strip(" \t\r\n")
    if text.startswith("=?") and _ENCODED_WORDS.fullmatch(text):
        text = _decoded(text)
    return header_addresses(text)


# Encoded words


def _decoded(words: str) -> str:
    """Return the text of encoded words in a row.

    A character may be split between two words of one charset. The time is proportional
    to the length, unlike that of `email.header.decode_header`.
    """
    by_charset = groupby(_ENCODED_WORD.findall(words), key=lambda word: word[0].lower())
    try:
        return "".join(
            b"".join(map(_bytes_of, group)).decode(charset, "replace")
            for charset, group in by_charset
        )
    except (LookupError, ValueError):
        return words  # an unknown charset, or damaged base64


def _bytes_of(word: tuple[str, str, str]) -> bytes:
    _, encoding, encoded = word
    if encoding in "Bb":
        return a2b_base64(encoded + "=" * (-len(encoded) % 4))
    return header_decode(encoded).encode("latin-1")


def _with_decoded_words(text: str) -> str:
    return _ENCODED_WORDS.sub(lambda found: _decoded(found[0]), text)


def _encoded(text: str) -> str:
    """Return `text` as encoded words of at most 75 characters each (RFC 2047, 2)."""
    plain = sum(map(str.isascii, text)) * 2 > len(text)
    encode, most = (_quoted_printable, 63) if plain else (_base64, 45)
    words, length, start = [], 0, 0
    for position, character in enumerate(text):
        data = character.encode("utf-8", "replace")
        cost = len(_quoted_printable(data)) if plain else len(data)
        if length + cost > most:
            words.append(text[start:position])
            start, length = position, 0
        length += cost
    words.append(text[start:])
    kind = "q" if plain else "b"
    return " ".join(
        f"=?utf-8?{kind}?{encode(word.encode('utf-8', 'replace'))}?=" for word in words
    )


def _quoted_printable(data: bytes) -> str:
    return "".join(
        chr(byte) if byte in _PLAIN else "_" if byte == 32 else f"={byte:02X}"
        for byte in data
    )


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


# Fields in ASCII


def encoded_field(name: str, text: str, linesep: str) -> bytes:
    """Return a header field in ASCII whose value means `text`, folded.

    In an address field, display names and comments become encoded words (RFC 2047),
    and domains A-labels (RFC 5890). An address whose local part is not ASCII stays as
    it is, because nothing can encode it (RFC 6531). Every other field is unstructured:
    the words from the first to the last one that is not ASCII are encoded as one text.
    """
    text = _FOLD.sub("", text)
    if name.lower() in ADDRESS_FIELDS:
        words = _ADDRESS_WORD.findall(_address_list(text))
    else:
        words = _WORD.findall(_unstructured(text))
    lines = [f"{name}:"]
    for space, word in words:
        if len(lines[-1]) + len(space) + len(word) > _USUAL_OCTETS:
            lines.append("")
        lines[-1] += (space or " ") + word
    return "".join(line + linesep for line in lines).encode("utf-8", "replace")


def _is_plain(text: str) -> bool:
    return text.isascii() and len(text) <= _USUAL_OCTETS


def _unstructured(text: str) -> str:
    words = _WORD.findall(text)
    encode = [
        number
        for number, (_, word) in enumerate(words)
        if not _is_plain(word) or _ENCODED_WORD.search(word)
    ]
    if not encode:
        return text
    first, last = encode[0], encode[-1] + 1
    run = "".join(map("".join, words[first:last])).lstrip(" \t")
    words[first:last] = [(" ", _encoded(_with_decoded_words(run)))]
    return "".join(map("".join, words))


def _address_list(text: str) -> str:
    parts: list[str] = []
    phrase: list[str] = []
    for unit in (*units(text), ""):
        if unit and unit[0] not in ",:;<(":
            phrase.append(unit)
            continue
        is_name = unit.startswith(("<", ":"))
        parts.append(_phrase(phrase, is_name=is_name))
        phrase = []
        if unit.startswith("("):
            parts.append(_comment(unit))
        elif unit.startswith("<"):
            parts.append(f"<{_ascii_address(unit.strip('<> '))}>")
        else:
            parts.append(f"{unit} ")  # a list can be folded after its separators
    return "".join(parts)


def _phrase(parts: list[str], *, is_name: bool) -> str:
    """Return a display name, the name of a group, or a bare address, in ASCII."""
    text = "".join(parts)
    if all(map(_is_plain, parts)):
        return text
    if not is_name and any("@" in part for part in parts if part[0] != '"'):
        return re.sub(r"[^ \t]+", lambda found: _ascii_address(found[0]), text)
    decoded = [
        unquote(part) if part[0] == '"' else _with_decoded_words(part) for part in parts
    ]
    return f" {_encoded(''.join(decoded).strip())} "


def _comment(text: str) -> str:
    if _is_plain(text):
        return text
    inner = _with_decoded_words(text[1:].removesuffix(")"))
    return f"({_encoded(_QUOTED_PAIR.sub(lambda found: found[1], inner))})"


def _ascii_address(address: str) -> str:
    try:
        return on_the_wire(address)
    except AddressError:
        return address


# Message objects


def field_policy(policy: Policy) -> Policy:
    """Return `policy` with `FieldPolicy` before its own way to fold."""
    made: Any = object.__new__(_with_our_fields(type(policy)))
    made.__dict__.update(vars(policy))
    # What is not folded is not damaged.
    if 0 < (made.max_line_length or 0) < MOST_OCTETS:
        made = made.clone(max_line_length=MOST_OCTETS)
    return cast(Policy, made)


@functools.cache
def _with_our_fields(kind: type[Policy]) -> type[Policy]:
    return type(kind.__name__, (FieldPolicy, kind), {})


class FieldPolicy:
    """Mixed into the policy of a message object: writes its header fields.

    `fold_binary` raises `HeaderParseError` for a value that would not become exactly
    one field, for example because it has a line break.
    """

    linesep: str

    def fold_binary(self, name: str, value: Any) -> bytes:
        if not _NAME.fullmatch(name):
            raise HeaderParseError(f"{name!r} is not the name of a header field")
        if self._damages(name, value):
            folded = encoded_field(name, _text(value), self.linesep)
        else:
            try:
                folded = super().fold_binary(name, value)  # type: ignore[misc]
            except HeaderParseError as error:
                raise HeaderParseError(f"header field {name!r}: {error}") from error
        if not _ONE_FIELD.fullmatch(folded):
            problem = "a line break that would begin another field; remove it"
            raise HeaderParseError(f"header field {name!r} has {problem}")
        return folded

    def _damages(self, name: str, value: Any) -> bool:
        """Return True if the standard library would damage this field."""
        text, is_address = str(value), name.lower() in ADDRESS_FIELDS
        if text.isascii() and not is_address:
            return False
        is_long = len(name) + 2 + max(map(len, text.split("\n"))) > MOST_OCTETS
        if text.isascii():
            return is_long or "=?" in text
        if name.lower() in _PARAMETER_FIELDS:
            return False
        if _SURROGATE.search(text):
            return is_long  # otherwise it is written as it was read
        # A `Header` has the charset that the application wants.
        keeps = isinstance(value, Header) or getattr(self, "utf8", False)
        return is_address or not keeps


def _text(value: Any) -> str:
    """Return the value of a field as text, its 8-bit bytes read as UTF-8 or Latin-1."""
    data = str(value).encode("utf-8", "surrogateescape")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
