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
    # Other line ends are part of a field. A text after them could look like a field.
    for field in filter(None, re.split("\r?\n", _FOLD.sub(" ", header))):
        name, colon, value = field.partition(":")
        yield (name, decoded(value.strip())) if colon else ("", field)


def field_of_header(header: str, name: str) -> str:
    """Return the text of the first field `name`, or '' if it is missing."""
    for found, text in fields_of_header(header):
        if found.lower() == name.lower():
            return text
    return ""


def decoded(value: str) -> str:
    """Decode the encoded words in a field (RFC 2047), unless that fails."""
    if "=?" not in value:
        return value
    try:
        return str(make_header(decode_header(value))).strip()
    except (HeaderParseError, LookupError, ValueError):
        return value
