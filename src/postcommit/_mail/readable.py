"""The header of a message as people read it: unfolded and decoded.

A message in a queue may be damaged, or not be a message at all. These functions never
raise, and return what they cannot decode as it is.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.header import decode_header
from email.header import make_header


# The line end before a continuation line (RFC 5322, 2.2.3).
_FOLD = re.compile(r"\r?\n[ \t]+")

# Number of characters of a field that are decoded. Each encoded word takes 50 us, and
# anybody may write a subject of 50,000 words.
_MOST_DECODED = 4000

_BLANK_LINE = re.compile(rb"^\r?\n", re.MULTILINE)


def header_of(message: bytes) -> str:
    """Return the header of `message`, as far as it is there. The lines are as they are.

    Bytes that are not UTF-8 are shown as escapes, such as ``\\xe4``.
    """
    blank = _BLANK_LINE.search(message)
    header = message[: blank.start()] if blank else message
    return header.decode("utf-8", "backslashreplace")


def fields_of_header(header: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each field, unfolded and decoded.

    A line without a colon, such as the first line of an mbox file, has the name "".
    """
    for name, value in _fields(header):
        yield name, decoded(value) if name else value


def field_of_header(header: str, name: str) -> str:
    """Return the text of the first field `name`, or '' if it is missing."""
    for found, value in _fields(header):
        if found.lower() == name.lower():
            return decoded(value)
    return ""


def _fields(header: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each field, unfolded, but not decoded."""
    # Other line ends are part of a field. A text after them could look like a field.
    for field in filter(None, re.split("\r?\n", _FOLD.sub(" ", header))):
        name, colon, value = field.partition(":")
        yield (name, value.strip()) if colon else ("", field)


def decoded(value: str) -> str:
    """Decode the encoded words in a field (RFC 2047), unless that fails.

    The end of a very long field is returned as it is.
    """
    if "=?" not in value:
        return value
    try:
        begin = str(make_header(decode_header(value[:_MOST_DECODED]))).strip()
    except (HeaderParseError, LookupError, ValueError):
        return value
    return begin + value[_MOST_DECODED:]
