"""An entry: one message with its envelope, as a file in the queue.

The first two lines are the envelope; those of an entry that was tried are
followed by two more. Then comes the message, byte for byte::

    X-Zope-From: shop@example.org
    X-Zope-To: ann@example.org, bob@example.org
    X-Zope-Attempts: 2
    X-Zope-Reply: 450 4.2.0 Greylisted, come back later
    Message-Id: <...>

A message that begins with ``X-Zope-`` itself always gets all four, so that
none of its own lines can be taken for ours. After uncertain attempts, their number
follows that of all: ``X-Zope-Attempts: 2 (1 uncertain)``.
"""
from __future__ import annotations

import functools
import itertools
import os
import re
import stat
from collections.abc import Iterator
from collections.abc import MutableSet
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from email.errors import HeaderParseError
from email.header import decode_header
from email.header import make_header

from postcommit.address import parse_recipients
from postcommit.address import parse_sender
from postcommit.address import split_addresses
from postcommit.errors import AddressError
from postcommit.errors import EntryError
from postcommit.errors import QueueError
from postcommit.queue.lock import FileLock


FROM = b"X-Zope-From: "
TO = b"X-Zope-To: "
ATTEMPTS = b"X-Zope-Attempts: "
REPLY = b"X-Zope-Reply: "
UNREADABLE = b"X-Zope-Unreadable: "

# Number of bytes in which nearly every envelope ends: enough for 100,000 recipients.
BEGINNING = 1 << 22

_PREAMBLE = re.compile(
    FROM.rstrip() + rb"(.*)\n" + TO.rstrip() + rb"(.*)\n"
    rb"(?:" + ATTEMPTS + rb"(\d{1,9})(?: \((\d{1,9}) uncertain\))?\r?\n"
    rb"" + REPLY.rstrip() + rb"(.*)\n)?"
)

# One field among the header lines of the message, with its folded lines.
_ACTUALLY = re.compile(
    rb"^X-Actually-(From|To):[ \t]*(.*(?:\r?\n[ \t].*)*)(?:\r?\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_BLANK_LINE = re.compile(rb"^\r?$", re.MULTILINE)


# Most entries of a queue have the same one.
_parse_sender = functools.lru_cache(256)(parse_sender)


@dataclass(slots=True)
class Entry:
    """What the file of an entry says."""

    sender: str
    recipients: tuple[str, ...]
    message: bytes = field(repr=False)
    attempts: int = 0
    last_reply: str = ""
    uncertain: int = 0

    def preamble(self) -> bytes:
        """Return the lines before the message."""
        return preamble(
            self.sender,
            self.recipients,
            self.message[: len(b"X-Zope-")],
            self.attempts,
            self.last_reply,
            self.uncertain,
        )


def preamble(
    sender: str,
    recipients: tuple[str, ...],
    beginning: bytes,
    attempts: int = 0,
    last_reply: str = "",
    uncertain: int = 0,
) -> bytes:
    """Return the lines before a message with this `beginning`."""
    envelope = b"%b%b\n%b%b\n" % (
        FROM,
        sender.encode(),
        TO,
        ", ".join(recipients).encode(),
    )
    if not (attempts or last_reply or beginning.lower().startswith(b"x-zope-")):
        return envelope
    # What a mailer written elsewhere says may have halves of characters.
    one_line = " ".join(last_reply.split()).encode(errors="replace")
    number = f"{attempts} ({uncertain} uncertain)" if uncertain else f"{attempts}"
    return b"%b%b%b\n%b%b\n" % (envelope, ATTEMPTS, number.encode(), REPLY, one_line)


def parse_entry(data: bytes) -> Entry:
    """Return the entry that a file with this `data` is.

    Raises `EntryError` for anything else.
    """
    if not data:
        raise EntryError("the file is empty")
    if not data.startswith(FROM.rstrip()):
        return _parse_foreign(data)
    found = _PREAMBLE.match(data)
    if found is None:
        title = TO if b"\n" in data else FROM
        raise EntryError(f"there is no whole line {title.decode().strip()}")
    message = data[found.end() :]
    if not message:
        raise EntryError("there is no message after the envelope")
    sender, recipients, attempts, uncertain, last_reply = found.groups()
    return _entry(
        _text(FROM, sender),
        _text(TO, recipients),
        message,
        int(attempts or 0),
        (last_reply or b"").decode("utf-8", "replace").strip(),
        int(uncertain or 0),
    )


def _text(name: bytes, value: bytes) -> str:
    try:
        return value.decode().strip()
    except UnicodeDecodeError as error:
        title = name.decode().strip()
        raise EntryError(f"{title} is no UTF-8: {error}") from error


def _entry(
    sender: str,
    recipients: str,
    message: bytes,
    attempts: int = 0,
    reply: str = "",
    uncertain: int = 0,
) -> Entry:
    listed = split_addresses(recipients) if "," in recipients else recipients
    try:
        return Entry(
            _parse_sender(sender),
            parse_recipients(listed),
            message,
            attempts,
            reply,
            uncertain,
        )
    except AddressError as error:
        raise EntryError(f"the envelope is damaged: {error}") from error


def _parse_foreign(data: bytes) -> Entry:
    """Read an entry of repoze.sendmail: the envelope is among the header fields."""
    if data.startswith(UNREADABLE):
        reason = data[len(UNREADABLE) :].partition(b"\n")[0]
        said = reason.decode("utf-8", "replace").strip()
        raise EntryError(f"it was set aside before: {said}")
    blank = _BLANK_LINE.search(data)
    end = blank.start() if blank else len(data)
    header, rest = data[:end], data[end:]
    found = {name.lower(): value for name, value in _ACTUALLY.findall(header)}
    if found.keys() != {b"from", b"to"}:
        raise EntryError("there is no envelope")
    message = _ACTUALLY.sub(b"", header) + rest
    return _entry(_decoded(found[b"from"]), _decoded(found[b"to"]), message)


def is_entry(head: bytes) -> bool:
    """Tell whether a file that begins with `head` is an entry, perhaps damaged.

    It may be one of postcommit, zope.sendmail or repoze.sendmail.
    """
    if head.startswith((FROM.rstrip(), UNREADABLE)):
        return True
    blank = _BLANK_LINE.search(head)
    header = head[: blank.start()] if blank else head
    names = {name.lower() for name, _ in _ACTUALLY.findall(header)}
    return names == {b"from", b"to"}


def has_whole_header(head: bytes) -> bool:
    """Tell whether the header of a message ends in `head`."""
    return _BLANK_LINE.search(head) is not None


def may_go_on(head: bytes) -> bool:
    """Tell whether an envelope that begins with `head` may end behind it."""
    return head.startswith(FROM.rstrip()) and b"\0" not in head


def _decoded(value: bytes) -> str:
    """Decode a header field's value (RFC 2047)."""
    try:
        text = re.sub(r"\r?\n(?=[ \t])", "", value.decode())
        return str(make_header(decode_header(text))).strip()
    except (ValueError, LookupError, HeaderParseError) as error:
        raise EntryError(f"the envelope is damaged: {error}") from error


def accepted_at(name: str) -> float | None:
    """Return when the entry of this file name was accepted, None if it tells not.

    Names of other Maildir writers begin with the seconds, too. A longer number is
    something else: a date, or milliseconds.
    """
    match = re.match(r"(\d{9,11})(?!\d)(?:\.M(\d{1,6})(?!\d))?", name)
    if match is None:
        return None
    return int(match[1]) + int(match[2] or 0) / 1e6


class Claim:
    """An entry that is being worked on, by this thread and no other.

    `path` is where it is, `links` how many names it has, `changed` its time of
    modification when it was claimed. No claim outlives the process that took it.
    """

    def __init__(self, path: str, lock: FileLock, status: os.stat_result) -> None:
        self.path = path
        self.links = status.st_nlink
        self.changed = status.st_mtime
        self._size = status.st_size
        self._lock = lock

    @classmethod
    def take(cls, path: str, locks: MutableSet[FileLock] | None = None) -> Claim | None:
        """Claim the entry at `path`; None if it is claimed, or gone.

        Its lock is in `locks` before it is taken, so that no claim can be lost.
        Raises OSError for what cannot be opened, or is no regular file.
        """
        try:
            lock = FileLock(path)
        except FileNotFoundError:
            return None
        claim = None
        try:
            if locks is not None:
                locks.add(lock)
            if lock.acquire():
                status = os.fstat(lock.descriptor)
                claim = cls(path, lock, status) if _is_still(status, path) else None
        finally:
            if claim is None:
                lock.release()
        return claim

    @property
    def is_large(self) -> bool:
        """Whether the file has more than `BEGINNING` bytes."""
        return self._size > BEGINNING

    @property
    def stem(self) -> str:
        """The file's name without the flags that it has in ``cur``."""
        return stem(self.path)

    def find(self, folders: Sequence[str]) -> bool:
        """Tell whether the file is still there, and follow it to where it is now.

        A Maildir reader moves what it has seen from ``new`` to ``cur``, and changes
        the flags of its name. What is in none of `folders` any more was removed.
        Raises OSError where that cannot be told: where one of them is gone, it may
        come back, and the file in it.
        """
        locked = os.fstat(self._lock.descriptor)
        for path in itertools.chain((self.path,), self._namesakes(folders)):
            try:
                is_here = os.path.samestat(os.lstat(path), locked)
            except FileNotFoundError:
                continue
            if is_here:
                self.path = path
                return True
        return False

    def _namesakes(self, folders: Sequence[str]) -> Iterator[str]:
        own = stem(self.path)
        for folder in folders:
            for name in os.listdir(folder):
                if stem(name) == own:
                    yield f"{folder}/{name}"

    def read(self) -> Entry:
        """Read the entry. Raises `EntryError` if the file is not an entry.

        Reads no more than the beginning of such a file, however large it is.
        """
        if self.is_large:
            head = self.beginning()
            if not may_go_on(head):
                parse_entry(head)
        return parse_entry(self.read_bytes())

    def beginning(self) -> bytes:
        """Read the first `BEGINNING` bytes of the file."""
        return os.pread(self._lock.descriptor, BEGINNING, 0)

    def read_bytes(self) -> bytes:
        """Read the file as it is."""
        # One byte more: that it is missing tells that this is all, in one call.
        data = piece = os.pread(self._lock.descriptor, self._size + 1, 0)
        while piece and len(data) != self._size:
            piece = os.pread(self._lock.descriptor, self._size + 1, len(data))
            data += piece
        return data

    def release(self, *, removed: bool = False) -> None:
        """Let others claim what is left of the entry. May be called again.

        With `removed` nothing is left.
        """
        self._lock.release(quickly=removed)


def stem(path: str) -> str:
    """Return the name of an entry without the flags that it has in ``cur``."""
    return os.path.basename(path).partition(":2,")[0]


def _is_still(locked: os.stat_result, path: str) -> bool:
    """Tell whether the file that we have `locked` is the one at `path`.

    Between our opening and locking it, its holder may have settled the entry:
    then ours was removed, or replaced by another file.
    """
    if not stat.S_ISREG(locked.st_mode):
        raise QueueError(path, "is no regular file; remove it from the queue")
    try:
        return os.path.samestat(os.stat(path), locked)
    except FileNotFoundError:
        return False
