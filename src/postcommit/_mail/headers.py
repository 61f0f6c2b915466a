"""The header fields of a message: the addresses in them, and their way to bytes.

The generator of the standard library damages fields when it folds or encodes them. A
name loses its quotes, and the addresses in it become recipients. Encoded words swallow
an address, or get into a domain. A line break in the value of an older `Message` begins
another field. So `FieldPolicy` decides for each field. ASCII that fits on a line is
left to the generator, and `utf8_field` writes everything else. A value that would
not become exactly one field is refused.
"""
from __future__ import annotations

import re
from binascii import a2b_base64
from email.errors import HeaderParseError
from email.header import Header
from email.message import Message
from email.policy import Policy
from email.quoprimime import header_decode
from email.utils import quote
from email.utils import unquote
from itertools import groupby
from typing import Any
from typing import cast

from postcommit._mail.address import header_addresses
from postcommit._mail.address import parse_address
from postcommit._mail.encodedword import encoded_words
from postcommit._mail.field import ADDRESS_FIELDS
from postcommit._mail.field import utf8_field
from postcommit.errors import AddressError
from postcommit.errors import MessageError


# Maximum octets of a line without its end (RFC 5322, 2.1.1).
_MOST_OCTETS = 998

# The rest of a field after its name, in a header whose line ends are LF or CRLF: its
# value with all folded lines.
VALUE: bytes = rb"[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)"

_LINE_END = re.compile(r"\r\n|\r|\n")
_FOLD = re.compile(r"\r?\n(?=[ \t])")
_NAME = re.compile("[!-9;-~]+")
_ONE_FIELD = re.compile(rb"[!-9;-~]+:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*\r?\n")

# An encoded word (RFC 2047, 2), perhaps with a language (RFC 2231, 5).
_ENCODED_WORD = re.compile(r"=\?([^?*\s]+)(?:\*[^?\s]*)?\?([BbQq])\?([^?\s]*)\?=")
_ENCODED_WORDS = re.compile(
    rf"{_ENCODED_WORD.pattern}(?:\s*{_ENCODED_WORD.pattern})*"
)

# The defects of header values of which the standard library has dropped a part.
_DROPPED = frozenset(
    {"invalid address in address-list", "invalid mailbox in mailbox-list"}
)

# Tokens whose text has marks around it, or marks inside quoted.
_OF_ONE_TEXT = ("bare-quoted-string", "comment", "domain-literal")

_BROKEN = "header field {!r} has a line break that would begin another field; remove it"

_SURROGATE = re.compile("[\ud800-\udfff]")

# The characters that need quotes in a display name (RFC 5322, 3.2.3).
_SPECIALS = re.compile(r'[][\\()<>@,:;".]')


# Addresses


def mailboxes_of(source: Message | bytes, name: str) -> list[str]:
    """Return the mailboxes of all fields `name`, in order.

    `source` is a message object, or a header whose line ends are LF or CRLF. Raises
    `AddressError` for text that is not a list of addresses. The standard library would
    drop a part of it, for example all after the semicolon in
    ``ann@example.org; bob@example.org``.
    """
    if isinstance(source, bytes):
        field = re.compile(rb"^" + name.encode() + VALUE, re.IGNORECASE | re.MULTILINE)
        # A display name that is not UTF-8 is harmless: only the address is used.
        values = (value.decode("utf-8", "replace") for value in field.findall(source))
        return [mailbox for value in values for mailbox in mailboxes_in(value)]
    found: list[str] = []
    for key, value in source.raw_items():
        if key.lower() != name.lower():
            continue
        addresses = getattr(value, "addresses", None)
        defects = set(map(str, getattr(value, "defects", ())))
        if addresses is None or defects & _DROPPED:
            # Bytes that are not ASCII are surrogates here.
            data = _source(value).encode("utf-8", "surrogateescape")
            found += mailboxes_in(data.decode("utf-8", "replace"))
            continue
        # An encoded word that begins in one quoted string and ends in another takes
        # the addresses between the two into the display name.
        if "whitespace inside encoded word" in defects and any(
            '"' in (address.display_name or "") for address in addresses
        ):
            reason = f"{name} has encoded words in quotes; pass Address objects"
            raise AddressError(str(value), reason)
        found += [address.addr_spec for address in addresses]
    return found


def _source(value: Any) -> str:
    """Return the text of a header value, with the encoded words that it needs.

    A `Header` that is not encoded as a whole has the name in encoded words and the
    address beside it, and `str` would make one text of both. The text of an address
    header lacks comments, and what the standard library does not understand.
    """
    text = str(value)
    if type(value) is str:
        return text
    if isinstance(value, Header) and not _SURROGATE.search(text):
        made = _FOLD.sub("", value.encode())
        return text if _ENCODED_WORDS.fullmatch(made.strip()) else made
    tree = getattr(value, "_parse_tree", None)
    if tree is None or not hasattr(value, "addresses"):
        return text
    tokens = [tree]
    for token in tokens:
        tokens += token if isinstance(token, list) else ()
    has_comment = "comment" in (token.token_type for token in tokens)
    is_partial = not _DROPPED.isdisjoint(map(str, getattr(value, "defects", ())))
    return _written(tree) if has_comment or is_partial else text


def _written(token: Any, before: str = "") -> str:
    """Return the text of a parsed `token`, after `before`, with encoded words."""
    kind: str = token.token_type
    if kind == "encoded-word":
        space = " " if before.endswith("?=") else ""
        return before + space + " ".join(encoded_words(str(token)))
    if kind in _OF_ONE_TEXT or not isinstance(token, list):
        return before + str(token)
    for one in token:
        before = _written(one, before)
    return before


def mailboxes_in(text: str) -> list[str]:
    """Return the mailboxes in the value of an address field, with their names.

    An older `Message` encodes a value that is not ASCII as a whole. Such a value, and
    no other, is decoded first. An encoded word beside an address is a display name.
    """
    text = _FOLD.sub("", text).strip(" \t\r\n")
    if text.startswith("=?") and _ENCODED_WORDS.fullmatch(text):
        text = _decoded(text)
    return header_addresses(text)


def from_field(sender: str, end_of_line: str) -> bytes:
    """Return the From field of `sender`, its display name quoted or encoded."""
    address = parse_address(sender)
    if sender != address:
        name = unquote(sender.rpartition("<")[0].strip())
        if _SPECIALS.search(name):
            name = f'"{quote(name)}"'
        sender = f"{name} <{address}>".lstrip()
    return utf8_field("From", sender, end_of_line)


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


# Message objects


def field_policy(policy: Policy) -> Policy:
    """Return `policy` with `FieldPolicy` before its own way to fold."""
    kind = type(policy)
    if kind not in _with_our_fields:
        _with_our_fields[kind] = type(kind.__name__, (FieldPolicy, kind), {})
    made: Any = object.__new__(_with_our_fields[kind])
    made.__dict__.update(vars(policy))
    # The generator does not damage a field that it does not fold.
    if 0 < (made.max_line_length or 0) < _MOST_OCTETS:
        made = made.clone(max_line_length=_MOST_OCTETS)
    return cast(Policy, made)


# The classes that `field_policy` has made, by those of the policies.
_with_our_fields: dict[type[Policy], type[Policy]] = {}


class FieldPolicy:
    """Mixed into the policy of a message object: writes its header fields.

    `fold_binary` raises `HeaderParseError` for a value that would not become exactly
    one field, for example because it has a line break.
    """

    linesep: str
    cte_type: str

    def fold_binary(self, name: str, value: Any) -> bytes:
        """Return the field `name` in bytes, with its line end."""
        if not _NAME.fullmatch(name):
            raise HeaderParseError(f"{name!r} is not the name of a header field")
        if not isinstance(value, str | Header) and not hasattr(value, "addr_spec"):
            problem = f"is of type {type(value).__name__}, not text"
            raise HeaderParseError(f"header field {name!r} {problem}; pass a str")
        field = self._own_field(name, value)
        if field is None:
            try:
                field = cast(bytes, super().fold_binary(name, value))  # type: ignore[misc]
            except (HeaderParseError, UnicodeError) as error:
                raise HeaderParseError(f"header field {name!r}: {error}") from error
        if not _ONE_FIELD.fullmatch(field):
            raise HeaderParseError(_BROKEN.format(name))
        return field

    def _own_field(self, name: str, value: Any) -> bytes | None:
        """Return the field as we write it, None if the generator may write it."""
        is_address = name.lower() in ADDRESS_FIELDS
        text = _source(value) if is_address else str(value)
        most = _MOST_OCTETS - len(name)
        fits = len(text) < most or max(map(len, text.split("\n"))) < most
        if text.isascii():
            is_folded = fits or not isinstance(value, str) or hasattr(value, "fold")
            if is_folded and not is_address:
                return None
            # A name with special characters is not quoted if it was an encoded word.
            is_quoted = hasattr(value, "addresses") and re.search(r'["(]', text)
            is_damaged = not fits or "=?" in text or bool(is_quoted)
        elif is_address:
            is_damaged = True
        else:
            # A `Header` has the charset that the application wants, and a header object
            # writes its own parameters, but not by the policy of an older message.
            has_params = hasattr(value, "params") and hasattr(self, "header_factory")
            is_own = isinstance(value, Header) or has_params
            is_damaged = not is_own and not getattr(self, "utf8", False)
        is_raw = _SURROGATE.search(text) is not None
        if is_raw and fits and self.cte_type == "8bit":
            return _as_read(name, text, self.linesep)
        if not is_raw and not is_damaged:
            return None
        try:
            unfolded = _FOLD.sub("", _decoded_text(text)).strip("\r\n")
            if _LINE_END.search(unfolded):
                raise HeaderParseError(_BROKEN.format(name))
            return utf8_field(name, unfolded, self.linesep)
        except MessageError:
            return None  # the generator encodes what is not an address


def _as_read(name: str, text: str, linesep: str) -> bytes:
    """Return a field that was read from bytes, with other line ends."""
    lines = _LINE_END.split(f"{name}: {text}")
    return "".join(line + linesep for line in lines).encode("utf-8", "surrogateescape")


def _decoded_text(text: str) -> str:
    """Return the value of a field, with its 8-bit bytes read as UTF-8 or Latin-1."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
