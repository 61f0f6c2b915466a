"""Header fields with ASCII characters only, by their kind (RFC 2047, 5).

There are fields with addresses, fields with parameters, and text. Fields such as
Date and Received are text with comments.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Sequence
from itertools import chain

from postcommit._mail.address import on_the_wire
from postcommit._mail.address import units
from postcommit._mail.encodedword import MAX_WORD
from postcommit._mail.encodedword import Word
from postcommit._mail.encodedword import encoded
from postcommit._mail.encodedword import folded
from postcommit._mail.encodedword import words_of
from postcommit._mail.parameter import Decode
from postcommit._mail.parameter import words_with_parameters
from postcommit.errors import AddressError
from postcommit.errors import MessageError
from postcommit.errors import shown


ADDRESS_FIELDS = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "resent-")
    for name in ("from", "sender", "reply-to", "to", "cc", "bcc")
) | {
    "apparently-to",
    "delivered-to",
    "disposition-notification-to",
    "envelope-to",
    "errors-to",
    "mail-followup-to",
    "mail-reply-to",
    "return-path",
    "return-receipt-to",
    "x-original-to",
}
PARAMETER_FIELDS = frozenset({"content-type", "content-disposition"})
_COMMENTED = frozenset(
    {
        "content-id",
        "content-transfer-encoding",
        "date",
        "in-reply-to",
        "message-id",
        "mime-version",
        "received",
        "references",
        "resent-date",
        "resent-message-id",
    }
)

# Kinds of units of an address list, by their first character. The others are text.
_KINDS = {'"': "quoted", "<": "angle", "(": "comment", **dict.fromkeys(",;:", "end")}

_WHOLE = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_IN_COMMENT = re.compile(r"\\.|[()]|[^()\\]++|\\", re.DOTALL)
_SPECIALS = re.compile(r'[][()<>@,:;\\"]')
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)

Token = tuple[str, Word]  # the kind, and the word


def ascii_field(name: str, value: bytes, decode: Decode) -> bytes:
    """Return the field `name` with ASCII characters only, and its line end, CRLF.

    `value` is what follows the colon, and `decode` makes text of its bytes. Raises
    `MessageError` for an address that cannot be encoded.
    """
    words = _words(name, value, decode)
    for word in words:
        if not word.text.isascii():
            address = shown(word.text.strip("<>"))
            raise MessageError(f"{name}: only SMTPUTF8 can carry {address}")
    return folded(name, words).encode("ascii")


def utf8_field(name: str, text: str, linesep: str) -> bytes:
    """Return the field `name`, which means `text`, in lines that end with `linesep`.

    It is as `ascii_field` makes it, but an address whose local part is not ASCII stays
    as it is (RFC 6531).
    """
    field = folded(name, _words(name, text.encode(), bytes.decode))
    return field.replace("\r\n", linesep).encode()


def _words(name: str, value: bytes, decode: Decode) -> list[Word]:
    unfolded = value.replace(b"\r\n", b"")
    kind = name.strip().lower()
    if kind in PARAMETER_FIELDS:
        return words_with_parameters(unfolded, decode)
    text = decode(unfolded)
    if kind in ADDRESS_FIELDS:
        return _addresses(name, text)
    if kind in _COMMENTED:
        return _with_comments(text)
    return encoded(words_of(text))


# Addresses (RFC 5322, 3.4)


def _addresses(field: str, text: str) -> list[Word]:
    """Return the words of an address field.

    It is a list of mailboxes, and of names of groups, which end with a colon.
    """
    words: list[Word] = []
    element: list[Token] = []
    for kind, word in _tokens(text):
        if kind == "end":
            words += _element(field, element)
            # RFC 2047, 5: there is white space around an encoded word in a phrase.
            space = " " if words and words[-1].is_encoded else word.space
            words.append(Word(space, word.text, word.content, is_separator=True))
            element = []
        else:
            element.append((kind, word))
    return words + _element(field, element)


def _element(field: str, tokens: Sequence[Token]) -> list[Word]:
    """Return the words of one mailbox, or of the name of a group."""
    if not any(word.is_foreign for _, word in tokens):
        return [word for _, word in tokens]
    kinds = [kind for kind, _ in tokens]
    if "angle" in kinds:
        angle = kinds.index("angle")
        words = _phrase(field, tokens[:angle])
        rest = [_in_mailbox(field, token) for token in tokens[angle:]]
        if words and not rest[0][0].space:
            rest[0] = [rest[0][0].apart()]
        return [*words, *chain(*rest)]
    if any(kind == "text" and "@" in word.text for kind, word in tokens):
        return list(chain(*(_in_mailbox(field, token) for token in tokens)))
    return _phrase(field, tokens)


def _phrase(field: str, tokens: Sequence[Token]) -> list[Word]:
    """Return the words of a name, and then its comments.

    The name is encoded as a whole, because encoded words and words in quotation
    marks beside each other are read in different ways.
    """
    name: list[Word] = []
    comments: list[Word] = []
    for kind, word in tokens:
        space = word.space
        if name or comments:
            space = " " if space else ""
        if kind == "comment":
            comments += _comment(space or " ", word.text)
        elif kind == "quoted":
            name += _quoted(field, space, word.text)
        else:
            name.append(Word(space, word.text, word.content))
    return encoded(name, whole=True) + comments


def _quoted(field: str, space: str, text: str) -> list[Word]:
    """Return the words of a quoted string: several if some were encoded before."""
    if not _WHOLE.fullmatch(text):
        raise MessageError(f"{field}: a quotation mark has no end: {shown(text)}")
    content = _QUOTED_PAIR.sub(r"\1", text[1:-1])
    words = words_of(content)
    # Without the quotation marks, special characters would separate addresses.
    has_specials = _SPECIALS.search(content) is not None
    if not has_specials and any(word.is_encoded for word in words):
        return [Word(space, words[0].text, words[0].content), *words[1:]]
    return [Word(space, text, content)]


def _in_mailbox(field: str, token: Token) -> list[Word]:
    """Return an address or what is behind it, but not the words of a name."""
    kind, word = token
    if kind == "comment":
        return _comment(word.space, word.text)
    if word.text.isascii():
        return [word]
    address = word.text
    if kind == "angle":
        if not address.endswith(">"):
            raise MessageError(f"{field}: a bracket has no end: {shown(address)}")
        address = address[1:-1].strip(" \t")
    try:
        text = on_the_wire(address) if "@" in address else address
    except AddressError as error:
        raise MessageError(f"{field}: {shown(address)}: {error.reason}") from error
    text = f"<{text}>" if kind == "angle" else text
    return [Word(word.space, text, text)]


# Comments and words


def _comment(space: str, text: str) -> list[Word]:
    """Return the words of a comment."""
    if text.isascii() and len(text) <= MAX_WORD:
        return [Word(space, text, text)]
    first, *rest = _with_comments(text)
    return [Word(space or " ", first.text, first.content, first.is_separator), *rest]


def _with_comments(text: str) -> list[Word]:
    """Return the words of a text with comments, which may hold other comments.

    There can be a line end before and behind each word, but if possible not behind
    the parenthesis that begins a comment.
    """
    words: list[Word] = []
    between: list[str] = []
    for found in _IN_COMMENT.finditer(text):
        if found[0] not in "()":
            between.append(found[0])
            continue
        content = "".join(between)
        words += _text_in_comment(content)
        space = content[len(content.rstrip(" \t")) :]
        before = words[-1] if words else Word("", "", "")
        if found[0] == "(" and before.is_encoded:
            space = space or " "
        may_break = found[0] == ")" or before.text == "("
        words.append(Word(space, found[0], found[0], is_separator=may_break))
        between = []
    return words + _text_in_comment("".join(between))


def _text_in_comment(text: str) -> list[Word]:
    words = [
        Word(word.space, word.text, _QUOTED_PAIR.sub(r"\1", word.text))
        for word in words_of(text)
    ]
    return [
        Word(word.space, word.text, word.content, is_separator=True)
        for word in encoded(words)
    ]


def _tokens(text: str) -> Iterator[Token]:
    """Yield the kinds and words of an address list."""
    space = ""
    for unit in units(text):
        kind = _KINDS.get(unit[0], "text")
        if kind != "text":
            yield kind, Word(space, unit, unit)
            space = ""
            continue
        for word in words_of(unit):
            yield kind, Word(space + word.space, word.text, word.content)
            space = ""
        space += unit[len(unit.rstrip(" \t")) :]
