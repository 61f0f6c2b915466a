"""An entry: one message with its envelope, as a file in the queue.

The first two lines are the envelope. Those of an entry that was tried are
followed by two more. Then comes the message, byte for byte::

    X-Zope-From: shop@example.org
    X-Zope-To: ann@example.org, bob@example.org
    X-Zope-Attempts: 2
    X-Zope-Reply: 450 4.2.0 Greylisted, come back later
    X-Zope-Expires: 1795435200.000000
    X-Zope-Not-Before:
    Message-Id: <...>

The last two are there if one of them has a value: seconds since the epoch. A message
that begins with ``X-Zope-`` itself always gets the first four lines, and all six if it
begins with the name of one of the last two. So none of its own lines can be taken for
ours. After uncertain attempts, their number
follows that of all: ``X-Zope-Attempts: 2 (1 uncertain)``. If it is not the same for
all recipients, theirs follow in order, the same ones together: ``X-Zope-Attempts:
3 (2 uncertain: 2*20 0*180)`` says that the first 20 were uncertain twice.
"""
from __future__ import annotations

import functools
import io
import itertools
import re

from postcommit._mail.address import parse_recipients
from postcommit._mail.address import parse_sender
from postcommit._mail.address import split_addresses
from postcommit._mail.entry import Entry
from postcommit._mail.terms import NO_TERMS
from postcommit._mail.terms import Terms
from postcommit._maildir import older
from postcommit.errors import AddressError
from postcommit.errors import EntryError


FROM = b"X-Zope-From: "
TO = b"X-Zope-To: "
ATTEMPTS = b"X-Zope-Attempts: "
REPLY = b"X-Zope-Reply: "
EXPIRES = b"X-Zope-Expires: "
NOT_BEFORE = b"X-Zope-Not-Before: "
UNREADABLE = b"X-Zope-Unreadable: "

# Number of bytes of a message that show whether it begins with one of these names.
PREFIX = len(NOT_BEFORE)

# Number of bytes in which nearly every envelope ends: enough for 100,000 recipients.
BEGINNING = 1 << 22

# Bytes that are read first to look at an entry. An envelope, the history and most
# headers fit in.
HEAD = 4096

# Bytes that are read at once after that, to find the end of the header.
_MORE = 1 << 16

# Maximum number of bytes that are read to find the end of a header.
_LONGEST_HEADER = 1 << 20

_END_OF_HEADER = re.compile(rb"\n\r?\n")

_PREAMBLE = re.compile(
    FROM.rstrip() + rb"(.*)\n" + TO.rstrip() + rb"(.*)\n"
    rb"(?:" + ATTEMPTS + rb"(\d{1,9})(?: \((\d{1,9}) uncertain(?::((?: "
    rb"\d{1,9}\*\d{1,9})+))?\))?\r?\n"
    rb"" + REPLY.rstrip() + rb"(.*)\n"
    rb"(?:" + EXPIRES.rstrip() + rb"(.*)\n" + NOT_BEFORE.rstrip() + rb"(.*)\n)?)?"
)

# In lower case: a message may begin with one of them.
_NAMES_OF_TIMES = (b"x-zope-expires:", b"x-zope-not-before:")

# A time in seconds since the epoch.
_TIME = re.compile(rb"\d{1,11}(?:\.\d{1,6})?")

# Most entries of a queue have the same sender.
_parse_sender = functools.lru_cache(256)(parse_sender)


def preamble_of(entry: Entry) -> bytes:
    """Return the lines before the message of `entry`."""
    return preamble(
        entry.sender,
        entry.recipients,
        entry.message[:PREFIX],
        entry.attempts,
        entry.last_reply,
        entry.uncertain,
        entry.doubts,
        Terms(entry.not_before, entry.expires),
    )


def preamble(
    sender: str,
    recipients: tuple[str, ...],
    beginning: bytes,
    attempts: int = 0,
    last_reply: str = "",
    uncertain: int = 0,
    doubts: tuple[int, ...] = (),
    terms: Terms = NO_TERMS,
) -> bytes:
    """Return the lines before a message with this `beginning`."""
    envelope = b"%b%b\n%b%b\n" % (
        FROM,
        sender.encode(),
        TO,
        ", ".join(recipients).encode(),
    )
    has_terms = terms.expires is not None or terms.not_before is not None
    is_like_ours = beginning.lower().startswith(b"x-zope-")
    if not (attempts or uncertain or last_reply or has_terms or is_like_ours):
        return envelope
    # A reply from a mailer written elsewhere may have halves of characters.
    one_line = " ".join(last_reply.split()).encode(errors="replace")
    number = f"{attempts}"
    if uncertain:
        number += f" ({uncertain} uncertain{_in_runs(doubts)})"
    history = b"%b%b\n%b%b\n" % (ATTEMPTS, number.encode(), REPLY, one_line)
    return envelope + history + _times(terms, beginning.lower())


def _times(terms: Terms, beginning: bytes) -> bytes:
    """Return the lines with the times of an entry, empty if they are not needed."""
    is_like_one = beginning.startswith(_NAMES_OF_TIMES)
    if terms.expires is None and terms.not_before is None and not is_like_one:
        return b""
    lines = (EXPIRES, _written(terms.expires), NOT_BEFORE, _written(terms.not_before))
    return b"%b%b\n%b%b\n" % lines


def _written(seconds: float | None) -> bytes:
    return b"" if seconds is None else b"%.6f" % seconds


def _parse_time(name: bytes, value: bytes) -> float | None:
    """Return the seconds since the epoch in a line, or None without a value."""
    text = value.strip()
    if not text:
        return None
    if not _TIME.fullmatch(text):
        shown = text.decode("utf-8", "replace")
        raise EntryError(f"{name.decode().strip()} {shown} is not a time")
    return float(text)


def _in_runs(doubts: tuple[int, ...]) -> str:
    """Return the numbers as they follow the largest one: ``: 2*20 0*180``."""
    runs = [f" {number}*{len(list(of))}" for number, of in itertools.groupby(doubts)]
    return f":{''.join(runs)}" if runs else ""


def _parse_runs(runs: bytes, count: int) -> tuple[int, ...]:
    """Return the numbers of `count` recipients.

    Empty if there are others than these: somebody has edited the recipients.
    """
    pairs = [run.split(b"*") for run in runs.split()]
    numbers = [(int(number), int(times)) for number, times in pairs]
    if sum(times for _, times in numbers) != count:
        return ()
    return tuple(number for number, times in numbers for _ in range(times))


def parse_entry(data: bytes) -> Entry:
    """Return the entry that a file with this `data` is.

    Raises `EntryError` for anything else.
    """
    if not data:
        raise EntryError("the file is empty")
    if data.startswith(UNREADABLE):
        reason = data[len(UNREADABLE) :].partition(b"\n")[0]
        said = reason.decode("utf-8", "replace").strip()
        raise EntryError(f"it was set aside before: {said}")
    history: tuple[bytes, ...] = (b"",) * 6
    if not data.startswith(FROM.rstrip()):
        sender, recipients, message = older.parse(data)
    else:
        sender, recipients, history, message = _split(data)
    attempts, uncertain, runs, reply, expires, not_before = history
    try:
        addresses = parse_recipients(
            split_addresses(recipients) if "," in recipients else recipients
        )
        return Entry(
            _parse_sender(sender),
            addresses,
            message,
            int(attempts or 0),
            reply.decode("utf-8", "replace").strip(),
            int(uncertain or 0),
            _parse_runs(runs, len(addresses)) if runs else (),
            _parse_time(NOT_BEFORE, not_before) if not_before else None,
            _parse_time(EXPIRES, expires) if expires else None,
        )
    except AddressError as error:
        raise EntryError(f"the envelope is damaged: {error}") from error


def _split(data: bytes) -> tuple[str, str, tuple[bytes, ...], bytes]:
    """Return sender and recipients, the values of the other lines, and the message."""
    found = _PREAMBLE.match(data)
    if found is None:
        title = TO if b"\n" in data else FROM
        raise EntryError(f"there is no whole line {title.decode().strip()}")
    message = data[found.end() :]
    if not message:
        raise EntryError("there is no message after the envelope")
    envelope, history = found.groups(b"")[:2], found.groups(b"")[2:]
    try:
        sender, recipients = (value.decode().strip() for value in envelope)
    except UnicodeDecodeError as error:
        title = FROM if error.object == envelope[0] else TO
        said = f"{title.decode().strip()} is no UTF-8: {error}"
        raise EntryError(said) from error
    return sender, recipients, history, message


def parse_beginning(file: io.FileIO, head: bytes = b"") -> Entry:
    """Return the entry in an open file, with the beginning of its message only.

    The message has its whole header, unless that is longer than 1 MiB. `head` was read
    already. Raises OSError, and `EntryError` if the file is not an entry.
    """
    head = head or file.read(HEAD) or b""
    while len(head) < _LONGEST_HEADER and not _END_OF_HEADER.search(head):
        piece = file.read(_MORE)
        if not piece:
            break
        head += piece
    try:
        return parse_entry(head)
    except EntryError:
        rest = file.read(-1 if may_go_on(head) else BEGINNING)
        if not rest:
            raise
        return parse_entry(head + rest)


def is_entry(head: bytes) -> bool:
    """Return whether a file that begins with `head` is an entry, perhaps damaged.

    It may be one of postcommit, zope.sendmail or repoze.sendmail.
    """
    if head.startswith((FROM.rstrip(), UNREADABLE)):
        return True
    header = older.header_of(head)
    return older.has_envelope(head if header is None else header)


def may_go_on(head: bytes) -> bool:
    """Return whether an envelope that begins with `head` may end after it."""
    return head.startswith(FROM.rstrip()) and b"\0" not in head


def accepted_at(name: str) -> float | None:
    """Return when the entry of this file name was accepted, None if it tells not.

    Names of other Maildir writers begin with the seconds, too. A longer number is
    something else: a date, or milliseconds.
    """
    match = re.match(r"(\d{9,11})(?!\d)(?:\.M(\d{1,6})(?!\d))?", name)
    if match is None:
        return None
    return int(match[1]) + int(match[2] or 0) / 1e6


def stem(path: str) -> str:
    """Return the name of an entry without the flags that it has in ``cur``."""
    return path.rpartition("/")[2].partition(":2,")[0]
