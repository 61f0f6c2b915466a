"""What an operator sees of a queue: an item for each entry, in each state.

An item has an id: twelve hexadecimal digits, made of the name of its file. An entry
keeps its id while it is deferred again and again, as a dead letter, and when that is
retried. Like those of git, an id may be shortened.
"""
from __future__ import annotations

import enum
import hashlib
import io
import os
import re
import stat
import time
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from functools import cached_property

from postcommit.errors import EntryError
from postcommit.errors import QueueError
from postcommit.message import message_id_of
from postcommit.queue.entry import BEGINNING
from postcommit.queue.entry import UNREADABLE
from postcommit.queue.entry import Entry
from postcommit.queue.entry import accepted_at
from postcommit.queue.entry import may_go_on
from postcommit.queue.entry import parse_entry
from postcommit.queue.entry import stem
from postcommit.queue.mark import FAILED
from postcommit.queue.staging import original_name
from postcommit.queue.store import FOREIGN_CLAIM_AGE
from postcommit.queue.store import Store


# What an older library has put aside, beside the entries.
REJECTED = ".rejected-"

# By what an older library's processor claims the entry of the same name.
SENDING = ".sending-"

# Bytes that are read at once. An envelope, the history and most headers fit in.
_HEAD = 1 << 16

# Maximum number of bytes that are read to find the end of a header.
_LONGEST_HEADER = 1 << 20

_END_OF_HEADER = re.compile(rb"\n\r?\n")

# Digits of an id.
DIGITS = 12

# Flags to open the file of an entry for reading: never through a symbolic link, and
# without waiting for a pipe.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class State(enum.Enum):
    """Where an entry is."""

    WAITING = "waiting"
    DEFERRED = "deferred"
    FAILED = "failed"
    IN_DOUBT = "in doubt"


@dataclass(frozen=True)
class Item:
    """The file of an entry. `path` is where it was when we looked."""

    path: str
    state: State

    @cached_property
    def name(self) -> str:
        """The name that the entry has, or had, or would have in ``new``."""
        if self.state is State.IN_DOUBT:
            return original_name(self.path)
        return stem(self.path).removeprefix(REJECTED)

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(os.fsencode(self.name)).hexdigest()[:DIGITS]

    @property
    def accepted(self) -> float | None:
        """When it was accepted, in seconds since the epoch, if the name tells."""
        return accepted_at(self.name)


@dataclass(frozen=True)
class Details:
    """What the file of an item says, without all of its message.

    `changed` is its time of modification, in seconds since the epoch. `problem`
    is why it is not an entry; then sender and recipients are unknown. `head` is how
    the message begins, with its whole header.
    """

    item: Item
    size: int
    changed: float
    sender: str = ""
    recipients: tuple[str, ...] = ()
    attempts: int = 0
    last_reply: str = ""
    problem: str = ""
    head: bytes = field(default=b"", repr=False)

    @cached_property
    def message_id(self) -> str:
        """The id of the message, without angle brackets; empty if it has none."""
        return message_id_of(self.head)

    @property
    def due(self) -> float | None:
        """When it is tried next; None where it never is by itself."""
        if self.item.state is State.WAITING:
            return self.item.accepted or self.changed
        return self.changed if self.item.state is State.DEFERRED else None


def items(store: Store, states: Iterable[State]) -> Iterator[Item]:
    """Iterate over the items in these `states`, in the order that State has.

    Reads no file, and holds only a few thousand names at a time.
    """
    wanted = set(states)
    for state in State:
        if state in wanted:
            yield from (Item(path, state) for path in _paths(store, state))


def _paths(store: Store, state: State) -> Iterator[str]:
    if state is State.WAITING:
        yield from store.maildir.paths("new")
    elif state is State.DEFERRED:
        yield from store.maildir.paths("cur")
    elif state is State.IN_DOUBT:
        yield from store.in_doubt()
    else:
        for folder in ("new", "cur"):
            yield from _beginning_with(f"{store.path}/{FAILED}/{folder}", "")
            yield from _beginning_with(store.maildir.folder(folder), REJECTED)


def foreign_claims(store: Store, now: float) -> Iterator[tuple[str, float]]:
    """Yield the claims of other libraries' processors, and their age in seconds."""
    for name in ("new", "cur"):
        for path in _beginning_with(store.maildir.folder(name), SENDING):
            try:
                yield path, max(0.0, now - os.stat(path).st_mtime)
            except FileNotFoundError:
                continue  # it was sent meanwhile


def young_claims(store: Store, now: float) -> Iterator[str]:
    """Yield the claims that are respected: whose processor may well be alive."""
    for path, age in foreign_claims(store, now):
        if age < FOREIGN_CLAIM_AGE:
            yield path


def refuse_young_claims(store: Store) -> None:
    """Raise `QueueError` where another library's processor drains the queue.

    It knows nothing of our locks, so nobody else may touch an entry.
    """
    for claim in young_claims(store, time.time()):
        reason = "another library's processor drains this queue: stop it first;"
        reason += " if it is stopped, remove this file"
        raise QueueError(claim, reason)


def _beginning_with(folder: str, prefix: str) -> Iterator[str]:
    """Yield the files with this `prefix`; without one, those that are not hidden."""
    try:
        with os.scandir(folder) as found:
            for entry in found:
                hidden = entry.name.startswith(".")
                if entry.name.startswith(prefix) and hidden == bool(prefix):
                    yield entry.path
    except FileNotFoundError:
        return  # there are no dead letters yet


def details(item: Item) -> Details | None:
    """Read the beginning of the file of `item`; None if it is gone.

    That it cannot be read is its `problem`.
    """
    try:
        with open_file(item) as file:
            return _details(item, file, os.fstat(file.fileno()))
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        return Details(item, 0, item.accepted or 0.0, problem=problem)


def open_file(item: Item) -> io.FileIO:
    """Open the file of `item` to read it. Raises OSError."""
    return io.FileIO(os.open(item.path, READ_FLAGS), "rb")


def _details(item: Item, file: io.FileIO, found: os.stat_result) -> Details:
    if not stat.S_ISREG(found.st_mode):
        return Details(item, 0, found.st_mtime, problem="is no regular file")
    head = file.read(_HEAD) or b""
    try:
        entry = _parse(head, file)
    except EntryError as error:
        problem = _problem(head, error)
        return Details(item, found.st_size, found.st_mtime, problem=problem)
    return Details(
        item,
        found.st_size,
        found.st_mtime,
        entry.sender,
        entry.recipients,
        entry.attempts,
        entry.last_reply,
        head=entry.message,
    )


def _parse(head: bytes, file: io.FileIO) -> Entry:
    while len(head) >= _HEAD and not _END_OF_HEADER.search(head):
        piece = file.read(_HEAD) if len(head) < _LONGEST_HEADER else b""
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


def _problem(head: bytes, error: EntryError) -> str:
    """Say why a file is no entry; one that was set aside says so itself."""
    if head.startswith(UNREADABLE):
        return head[len(UNREADABLE) :].split(b"\n")[0].decode("utf-8", "replace")
    return error.reason
