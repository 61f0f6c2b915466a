"""An entry: one message with its envelope, as a file in the queue.

The first two lines are the envelope. Those of an entry that was tried are
followed by two more. Then comes the message, byte for byte::

    X-Zope-From: shop@example.org
    X-Zope-To: ann@example.org, bob@example.org
    X-Zope-Attempts: 2
    X-Zope-Reply: 450 4.2.0 Greylisted, come back later
    Message-Id: <...>

A message that begins with ``X-Zope-`` itself always gets all four, so that
none of its own lines can be taken for ours. After uncertain attempts, their number
follows that of all: ``X-Zope-Attempts: 2 (1 uncertain)``. If it is not the same for
all recipients, theirs follow in order, the same ones together: ``X-Zope-Attempts:
3 (2 uncertain: 2*20 0*180)`` says that the first 20 were uncertain twice.
"""
from __future__ import annotations

import functools
import itertools
import re

from postcommit._mail.address import parse_recipients
from postcommit._mail.address import parse_sender
from postcommit._mail.address import split_addresses
from postcommit._mail.entry import Entry
from postcommit._maildir import older
from postcommit.errors import AddressError
from postcommit.errors import EntryError


FROM = b"X-Zope-From: "
TO = b"X-Zope-To: "
ATTEMPTS = b"X-Zope-Attempts: "
REPLY = b"X-Zope-Reply: "
UNREADABLE = b"X-Zope-Unreadable: "

# Number of bytes in which nearly every envelope ends: enough for 100,000 recipients.
BEGINNING = 1 << 22

_PREAMBLE = re.compile(
    FROM.rstrip() + rb"(.*)\n" + TO.rstrip() + rb"(.*)\n"
    rb"(?:" + ATTEMPTS + rb"(\d{1,9})(?: \((\d{1,9}) uncertain(?::((?: "
    rb"\d{1,9}\*\d{1,9})+))?\))?\r?\n"
    rb"" + REPLY.rstrip() + rb"(.*)\n)?"
)

# Most entries of a queue have the same sender.
_parse_sender = functools.lru_cache(256)(parse_sender)


def preamble_of(entry: Entry) -> bytes:
    """Return the lines before the message of `entry`."""
    return preamble(
        entry.sender,
        entry.recipients,
        entry.message[: len(b"X-Zope-")],
        entry.attempts,
        entry.last_reply,
        entry.uncertain,
        entry.doubts,
    )


def preamble(
    sender: str,
    recipients: tuple[str, ...],
    beginning: bytes,
    attempts: int = 0,
    last_reply: str = "",
    uncertain: int = 0,
    doubts: tuple[int, ...] = (),
) -> bytes:
    """Return the lines before a message with this `beginning`."""
    envelope = b"%b%b\n%b%b\n" % (
        FROM,
        sender.encode(),
        TO,
        ", ".join(recipients).encode(),
    )
    is_plain = not beginning.lower().startswith(b"x-zope-")
    if is_plain and not (attempts or uncertain or last_reply):
        return envelope
    # A reply from a mailer written elsewhere may have halves of characters.
    one_line = " ".join(last_reply.split()).encode(errors="replace")
    number = f"{attempts}"
    if uncertain:
        number += f" ({uncertain} uncertain{_in_runs(doubts)})"
    return b"%b%b%b\n%b%b\n" % (envelope, ATTEMPTS, number.encode(), REPLY, one_line)


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
    attempts = uncertain = runs = reply = b""
    if not data.startswith(FROM.rstrip()):
        sender, recipients, message = older.parse(data)
    else:
        found = _PREAMBLE.match(data)
        if found is None:
            title = TO if b"\n" in data else FROM
            raise EntryError(f"there is no whole line {title.decode().strip()}")
        message = data[found.end() :]
        if not message:
            raise EntryError("there is no message after the envelope")
        *envelope, attempts, uncertain, runs, reply = found.groups(b"")
        try:
            sender, recipients = (value.decode().strip() for value in envelope)
        except UnicodeDecodeError as error:
            title = FROM if error.object == envelope[0] else TO
            said = f"{title.decode().strip()} is no UTF-8: {error}"
            raise EntryError(said) from error
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
        )
    except AddressError as error:
        raise EntryError(f"the envelope is damaged: {error}") from error


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
