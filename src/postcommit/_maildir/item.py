"""The operators' half of a queue: what they see of it, and what they can do to it.

`IOperators` is the contract. The commands use nothing else of a queue, so each kind of
queue can have an implementation; `postcommit._maildir.mending` has that of a Maildir.
"""
from __future__ import annotations

import enum
import hashlib
import os
import re
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING
from typing import BinaryIO
from typing import NamedTuple

from zope.interface import Attribute
from zope.interface import Interface

from postcommit._mail.message import message_id_of
from postcommit._mail.readable import field_of_header
from postcommit._mail.readable import header_of
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.rooms import is_scheduled


if TYPE_CHECKING:
    from postcommit._maildir.presence import Pause
    from postcommit._maildir.presence import Stopped
    from postcommit._maildir.reception import Reception


# Number of hexadecimal digits of an id.
DIGITS = 12

# Number of entries whose names are remembered, at least: some pages of a list.
_MOST_NAMES = 1000

# Called once for each entry that was looked at.
Step = Callable[[], None]


def no_step() -> None:
    """Do nothing: the default of a `Step`."""


def id_of(name: bytes) -> str:
    """Return the id of the entry that has this name on disk."""
    return hashlib.sha256(name).hexdigest()[:DIGITS]


def is_whole_id(text: str) -> bool:
    """Return whether `text` looks like a whole id of an entry."""
    return re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", text) is not None


class _Names:
    """The names of the entries whose ids were asked for last.

    The name of an entry determines its id, in every queue, but not the reverse. A name
    leads to the file at once, an id only by a look at all names of the queue. A page or
    a script has the ids that it gives to a method from a list, so the names are
    remembered. Any thread may call any method: in the worst case a name is forgotten.
    """

    def __init__(self) -> None:
        self._newer: dict[str, str] = {}
        self._older: dict[str, str] = {}

    def note(self, id: str, name: str) -> None:
        """Remember the name of an id, and forget those of a thousand ids before."""
        if len(self._newer) >= _MOST_NAMES:
            self._newer, self._older = {}, self._newer
        self._newer[id] = name

    def get(self, id: str) -> str | None:
        """Return the name that has this id, or None if it was forgotten."""
        return self._newer.get(id) or self._older.get(id)


known_names = _Names()


class EntryState(enum.Enum):
    """Where an entry is on its way through the queue, in the order of a list.

    `title` is for the number of such entries, `about` says which they are, and `advice`
    says what an operator can do. `key` is for programs, such as ``in_doubt``.
    """

    title: str
    about: str
    advice: str

    WAITING = (
        "waiting",
        "waiting, never tried",
        "those that were never tried",
        "a processor tries it next; 'postcommit flush' does so now",
    )
    SCHEDULED = (
        "scheduled",
        "scheduled for later",
        "those that wait for their time",
        "'postcommit retry' sends it now",
    )
    DEFERRED = (
        "deferred",
        "deferred",
        "those that are tried again",
        "'postcommit retry' makes it due now",
    )
    BULK = (
        "bulk",
        "bulk, sent after all others",
        "bulk mail that waits for all other mail",
        "'postcommit retry' sends it before other bulk mail",
    )
    HELD = (
        "held",
        "held",
        "those that a person holds",
        "'postcommit release' lets it be tried again",
    )
    FAILED = (
        "failed",
        "dead letters",
        "dead letters",
        "'postcommit retry' sends it, 'postcommit delete' removes it",
    )
    IN_DOUBT = (
        "in doubt",
        "in doubt",
        "what a crash has left between vote and finish",
        "'postcommit recover' sends or drops it",
    )

    def __new__(cls, value: str, title: str, about: str, advice: str) -> EntryState:
        state = object.__new__(cls)
        state._value_ = value
        state.title, state.about, state.advice = title, about, advice
        return state

    def title_of(self, count: int) -> str:
        """Return the title for a number of such entries: "dead letter" for one."""
        is_one = self is EntryState.FAILED and count == 1
        return "dead letter" if is_one else self.title

    @property
    def key(self) -> str:
        return str(self.value).replace(" ", "_")


class Item(NamedTuple):
    """An entry, as a list of the queue has it.

    An entry keeps its `name` while it is deferred again and again, as a dead letter,
    and when that is retried. `place` is where the entry was when we looked: a path, or
    a URL with the id.
    """

    name: str
    state: EntryState
    place: str

    @property
    def accepted(self) -> float | None:
        """When it was accepted, in seconds since the epoch, if the name says so.

        For a scheduled entry, it is the time when it is or was due.
        """
        return accepted_at(self.name)

    @property
    def id(self) -> str:
        """The id for operators, twelve hexadecimal digits that the name determines."""
        id = id_of(os.fsencode(self.name))
        known_names.note(id, self.name)
        return id


@dataclass(frozen=True)
class Details:
    """The content of an entry, without all of its message.

    Times are in seconds since the epoch. `due` is when it is tried next, None if it is
    not tried by itself; `changed` is when it was written last, which is when a dead
    letter was given up. `problem` is why this is not an entry. Then sender and
    recipients are unknown. `uncertain` is how many of the `attempts` may have
    transmitted the message. `head` is the beginning of the message, with its whole
    header. `expires` is when it becomes a dead letter, None if it does not.
    """

    item: Item
    size: int
    changed: float
    due: float | None = None
    sender: str = ""
    recipients: tuple[str, ...] = ()
    attempts: int = 0
    uncertain: int = 0
    last_reply: str = ""
    problem: str = ""
    head: bytes = field(default=b"", repr=False)
    expires: float | None = None

    @property
    def accepted(self) -> float | None:
        """When the entry was accepted, or None if that is unknown."""
        told = self.item.accepted
        if told is not None and is_scheduled(self.item.name):
            return min(told, self.changed)
        return told

    @property
    def id(self) -> str:
        """The id for operators, see `Item.id`."""
        return self.item.id

    @property
    def state(self) -> EntryState:
        """Where the entry was on its way when it was read."""
        return self.item.state

    @property
    def name(self) -> str:
        """The name, which stays the same as long as the entry lives."""
        return self.item.name

    @property
    def place(self) -> str:
        """Where the entry was: a path, or a URL with the id."""
        return self.item.place

    @property
    def header(self) -> str:
        """The header of the message as it is, as far as it was read."""
        return header_of(self.head)

    @property
    def subject(self) -> str:
        """The subject, decoded, or '' if it is missing."""
        return field_of_header(self.header, "Subject")

    @property
    def message_id(self) -> str:
        """The id of the message, without angle brackets, or '' if it is missing."""
        return message_id_of(self.head)


@dataclass(frozen=True)
class Reason:
    """A last reply, and how many of the entries that were `looked_at` have it.

    Replies that differ only in addresses and numbers count as the same.
    """

    reply: str
    count: int
    looked_at: int


@dataclass(frozen=True)
class Survey:
    """A queue in a few numbers. Times are in seconds since the epoch.

    `counts` has the number of entries in each state, `reasons` the most common last
    reply in a state, if any. `due` is the number of entries that are due now,
    `oldest_due` is when the first of them became due. For these two, only `looked_at`
    of the deferred entries were read. In a large queue these are not all.
    `foreign_claims` counts the entries that a processor of another library is sending.
    `heartbeat` is the last sign of life of a running processor, `pause` is the note of
    a processor that pauses, `receptions` are those of receivers from a broker.
    `mailbox` says why this is probably a person's mailbox. It is empty for a queue.
    `shortages` say what the disk has too little of. `next_scheduled` is when the next
    scheduled entry is due.
    `oldest_bulk` is when the first bulk entry began to wait for other mail. `stopped`
    says who has paused the queue by hand.
    """

    counts: Mapping[EntryState, int]
    reasons: Mapping[EntryState, Reason]
    due: int
    oldest_due: float | None
    looked_at: int
    foreign_claims: int
    heartbeat: float | None
    pause: Pause | None
    mailbox: str = ""
    shortages: tuple[str, ...] = ()
    next_scheduled: float | None = None
    stopped: Stopped | None = None
    receptions: tuple[Reception, ...] = ()
    oldest_bulk: float | None = None


@dataclass(frozen=True)
class Finding:
    """A problem at one `place` of a queue, and the `advice` how to solve it.

    A part of the advice between apostrophes is a command for a shell.
    """

    place: str
    problem: str
    advice: str


class IChanges(Interface):
    """Changes of entries by an operator. Entries that are being sent are not touched.

    A method raises `EntryError` for an entry that it cannot change, and `QueueError`
    if the queue is in trouble. The text of an `EntryError` calls the entry "it", and
    is shown behind its id.
    """

    def retry(item: Item) -> bool:
        """Make the entry due now. Return False if it is gone, or is being sent.

        A scheduled entry no longer waits for its time, a bulk entry for other mail.
        Raises `EntryError` for a held entry, and for a dead letter that is not an
        entry, that has expired, or that is in the queue already. Raises `QueueError`
        for an entry in doubt.
        """

    def cancel(item: Item) -> bool:
        """Remove an entry that waits. Return False if it is gone, or is being sent.

        Raises `EntryError` for a dead letter, and `QueueError` for an entry in doubt.
        """

    def delete(item: Item) -> bool:
        """Remove the entry. Return False if it is gone, or is being sent.

        Raises `QueueError` for an entry in doubt.
        """

    def hold(item: Item) -> bool:
        """Keep the entry from being tried until it is released.

        Returns False if it is gone, or is being sent. Raises `EntryError` for a dead
        letter, and `QueueError` for an entry in doubt.
        """

    def release(item: Item) -> bool:
        """Let a held entry be tried again, when it is due. False if it is gone.

        Raises `EntryError` for an entry that is not held.
        """

    def stop(who: str, reason: str = "") -> bool:
        """Pause the whole queue until `resume`. Return False if it was paused before.

        No entry is taken any more, by any processor. What is being sent is finished.
        """

    def resume() -> bool:
        """End a pause by `stop`. Return False if it was missing."""

    def recover(items: Iterable[Item], *, send: bool) -> Iterator[Item]:
        """Accept these entries in doubt, or remove them. Yield each when it is done.

        Entries that another process recovers at the same time are left out. Raises
        `QueueError` for an entry that is not in doubt.
        """


class IOperators(Interface):
    """A queue for operators. Each method may raise `QueueError`."""

    name = Attribute("The path, or the URL without password.")

    def items(
        states: Collection[EntryState], *, message_id: str = "", step: Step = no_step
    ) -> Iterator[Item]:
        """Iterate over the entries in these `states`, in the order of `EntryState`.

        Those of one message if a `message_id` is given, without angle brackets. `step`
        is called for each entry that was looked at.
        """

    def find(ids: Sequence[str]) -> list[Item]:
        """Return the entries that `ids` mean, in their order, each once.

        Each of `ids` is an id or its beginning, a name, a place, or a message
        id. A message id means every entry of that message: there are several if some
        recipients were rejected and others are tried again. Twelve hexadecimal digits
        are never a message id.

        Raises `ItemError` for an id that is too short, that means no entry of the
        queue, or that is the beginning of several.
        """

    def details(item: Item, addresses: Collection[str] = ()) -> Details | None:
        """Read the entry, or None if it is gone.

        The result may also be None if no address of the envelope matches one of the
        patterns `addresses`, for speed. Otherwise the caller compares the
        addresses.
        """

    def open(item: Item) -> BinaryIO:
        """Open the entry as its file in a Maildir would be. Raises OSError."""

    def survey(most_seconds: float = 2.0) -> Survey:
        """Count the entries. Read deferred entries for `most_seconds` at most."""

    def check() -> Iterator[Finding]:
        """Yield what is wrong with the queue. Changes nothing."""

    def changes() -> AbstractContextManager[IChanges]:
        """Begin to change entries. The end makes changes durable and wakes a processor.

        Raises `QueueError`, before anything is changed, if another library's processor
        drains the queue, and for a mailbox.
        """
