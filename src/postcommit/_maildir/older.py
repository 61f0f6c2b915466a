"""The older libraries' part in a queue: files of zope.sendmail and repoze.sendmail.

Their queues are taken over in place, and their senders and processors may go on working
on one while we do.

====================  ============================================================
file                  meaning
====================  ============================================================
``.sending-NAME``     a link to the entry ``NAME`` that one of their processors
                      claims; one that died leaves it behind
``.rejected-NAME``    an entry that they have put aside
====================  ============================================================

An entry of zope.sendmail is like ours. One of repoze.sendmail has its envelope in two
fields at the end of the message's header: ``X-Actually-From`` and ``X-Actually-To``.
"""
from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from email.errors import HeaderParseError
from email.header import decode_header
from email.header import make_header

from postcommit.errors import EntryError


SENDING = ".sending-"
REJECTED = ".rejected-"

# Number of seconds for which a claim of theirs is respected.
CLAIM_AGE = 3 * 3600.0

# One field among the header lines of the message, with its folded lines.
_ACTUALLY = re.compile(
    rb"^X-Actually-(From|To):[ \t]*(.*(?:\r?\n[ \t].*)*)(?:\r?\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_BLANK_LINE = re.compile(rb"^\r?$", re.MULTILINE)


def claimed_until(path: str) -> float | None:
    """Return until when a processor of theirs has claimed the entry at `path`.

    In seconds since the epoch, or None if no processor has. The link of a claim that is
    too old is removed, as their processors do it. Otherwise it would stay forever.
    """
    folder, name = os.path.split(path)
    link = f"{folder}/{SENDING}{name}"
    try:
        found = os.lstat(link)
    except FileNotFoundError:
        return None
    if time.time() - found.st_mtime < CLAIM_AGE:
        return found.st_mtime + CLAIM_AGE
    with suppress(OSError):  # `check` reports a link that stays
        if os.path.samestat(found, os.lstat(path)):
            os.unlink(link)
    return None


def header_of(data: bytes) -> bytes | None:
    """Return the header of the message `data`, or None if it does not end in `data`."""
    blank = _BLANK_LINE.search(data)
    return None if blank is None else data[: blank.start()]


def has_envelope(header: bytes) -> bool:
    """Return whether a message with this `header` has its envelope in it."""
    names = {name.lower() for name, _ in _ACTUALLY.findall(header)}
    return names == {b"from", b"to"}


def parse(data: bytes) -> tuple[str, str, bytes]:
    """Return the sender, the recipients and the message of an entry of repoze.sendmail.

    Raises `EntryError` if it is not a message.
    """
    header = header_of(data)
    header = data if header is None else header
    if not has_envelope(header):
        raise EntryError("there is no envelope")
    found = {name.lower(): value for name, value in _ACTUALLY.findall(header)}
    message = _ACTUALLY.sub(b"", header) + data[len(header) :]
    return _decoded(found[b"from"]), _decoded(found[b"to"]), message


def _decoded(value: bytes) -> str:
    """Decode a header field's value (RFC 2047)."""
    try:
        text = re.sub(r"\r?\n(?=[ \t])", "", value.decode())
        return str(make_header(decode_header(text))).strip()
    except (ValueError, LookupError, HeaderParseError) as error:
        raise EntryError(f"the envelope is damaged: {error}") from error
