"""`MailQueue`: a queue for support pages and scripts."""
from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Literal
from typing import TypeAlias

from zope.interface import implementer

from postcommit._config.options import checked_queue_path
from postcommit._config.readonly import ReadOnlyOptions
from postcommit._kinds.operators import open_operators
from postcommit._kinds.queue import name_of
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.files import explained
from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Finding
from postcommit._maildir.item import IChanges
from postcommit._maildir.item import IOperators
from postcommit._maildir.item import Item
from postcommit._maildir.item import Survey
from postcommit._maildir.item import is_whole_id
from postcommit._maildir.item import no_step
from postcommit._queue.attention import Limits
from postcommit._queue.attention import attention
from postcommit._queue.selection import Selection
from postcommit.errors import EntryError
from postcommit.errors import ItemError
from postcommit.interfaces import ChangeStatus
from postcommit.interfaces import IMailQueue
from postcommit.interfaces import QueueChange
from postcommit.interfaces import QueueEntry
from postcommit.interfaces import QueueStatus
from postcommit.interfaces import is_database_url


# The methods that can change an entry in each state. The commands take the same.
ACTIONS: dict[EntryState, tuple[str, ...]] = {
    EntryState.WAITING: ("hold", "cancel", "delete"),
    EntryState.SCHEDULED: ("retry", "hold", "cancel", "delete"),
    EntryState.DEFERRED: ("retry", "hold", "cancel", "delete"),
    EntryState.BULK: ("retry", "hold", "cancel", "delete"),
    EntryState.HELD: ("release", "cancel", "delete"),
    EntryState.FAILED: ("retry", "delete"),
    EntryState.IN_DOUBT: ("recover",),
}

_Action: TypeAlias = Literal["retry", "cancel", "delete", "hold", "release"]

_CLAIMED = "a processor is sending it now"
_GONE = "it is not in the queue any more; it was sent or deleted"

# Warnings about an entry that may have been transmitted before.
_SECOND_COPY = "it may have arrived already; a second copy may arrive"
_ARRIVED = "it may have arrived already"

# Bytes that are read beyond the first bytes of a message: room for the envelope.
_ENVELOPE = 1 << 16


@implementer(IMailQueue)
class MailQueue(ReadOnlyOptions):
    """Looks into a queue, and changes its entries, see `IMailQueue`.

    `queuePath` is the folder of the queue, or its URL. With `adopt` a folder is a
    queue, even if it looks like a person's mailbox. The constructor raises
    `OptionError` for a path that can never work. The queue is opened by each method,
    which raises `QueueError` if the queue is missing.
    """

    queuePath: str

    def __init__(self, queuePath: str, *, adopt: bool = False) -> None:
        self.queuePath = checked_queue_path(IMailQueue, queuePath)
        self._adopt = adopt
        self._kept: IOperators | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def name(self) -> str:
        """The path, or the URL without its password."""
        return name_of(self.queuePath)

    @property
    def _operators(self) -> IOperators:
        if self._kept is not None:
            return self._kept
        operators = open_operators(self.queuePath, adopt=self._adopt)
        if is_database_url(self.queuePath):
            self._kept = operators  # with its connections
        return operators

    # Looking

    def status(self, most_seconds: float = 2.0) -> Survey:
        """Count the entries, and return the state of the queue. See `IMailQueue`."""
        return self._operators.survey(most_seconds)

    def attention(
        self,
        status: QueueStatus,
        *,
        warn_age: float = 900.0,
        warn_paused: float = 300.0,
        warn_failed: int | None = None,
        needs_processor: bool = True,
    ) -> tuple[str, ...]:
        """Return a sentence for each thing that needs attention. See `IMailQueue`."""
        limits = Limits(warn_age, warn_paused, warn_failed, needs_processor)
        return tuple(attention(status, time.time(), limits))

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong with the queue. See `IMailQueue`."""
        return self._operators.check()

    def list(
        self,
        *states: EntryState,
        recipient: str = "",
        sender: str = "",
        message_id: str = "",
        search: str = "",
        older: float | None = None,
        newer: float | None = None,
        start: int = 0,
        step: Callable[[], None] | None = None,
    ) -> Iterator[Details]:
        """Yield the entries in these `states`, or in all. See `IMailQueue`."""
        selection = Selection(
            states or tuple(EntryState),
            recipient=recipient,
            sender=sender,
            message_id=message_id,
            search=search,
            older=older,
            newer=newer,
        )
        return selection.details(self._operators, step or no_step, start)

    def find(self, *ids: str) -> tuple[Details, ...]:
        """Return the entries that `ids` mean, each once. See `IMailQueue`."""
        operators = self._operators
        return tuple(_read(operators, item) for item in operators.find(ids))

    def show(self, id: str) -> Details:
        """Return the one entry that `id` means. See `IMailQueue`."""
        operators = self._operators
        return _read(operators, _only(operators, id))

    def message(self, entry: str | QueueEntry, most: int | None = None) -> bytes:
        """Return the message of an entry, or its first bytes. See `IMailQueue`."""
        operators = self._operators
        length = -1 if most is None else most + _ENVELOPE
        id = entry if isinstance(entry, str) else entry.id
        data = None
        if isinstance(entry, Details):
            data = _data_of(operators, entry.item, length)
        if data is None:  # also if the entry has moved in the queue
            item = _only(operators, id)
            data = _data_of(operators, item, length)
            if data is None:
                raise _gone(item)
        try:
            data = parse_entry(data).message
        except EntryError:
            pass  # the file as it is shows best what is wrong with it
        return data[:most]

    def actions(self, entry: QueueEntry) -> tuple[str, ...]:
        """Return the names of the methods for this state. See `IMailQueue`."""
        return ACTIONS[entry.state]

    # Changing

    def retry(self, *entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Make the entries due now, also dead letters. See `IMailQueue`."""
        return self._change(entries, "retry")

    def cancel(self, *entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Call off entries that wait. They are removed. See `IMailQueue`."""
        return self._change(entries, "cancel")

    def delete(self, *entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Delete the entries permanently. See `IMailQueue`."""
        return self._change(entries, "delete")

    def hold(self, *entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Keep the entries from being tried. See `IMailQueue`."""
        return self._change(entries, "hold")

    def release(self, *entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Let held entries be tried again. See `IMailQueue`."""
        return self._change(entries, "release")

    def recover(
        self, *entries: str | QueueEntry, send: bool
    ) -> tuple[QueueChange, ...]:
        """Accept entries in doubt, or remove them. See `IMailQueue`."""
        operators = self._operators
        found = _found(operators, entries)
        doubtful = [
            item for item in found.values() if item and _is_in_doubt(item)
        ]
        with operators.changes() as changes:
            done = {item.id for item in changes.recover(doubtful, send=send)}
        return tuple(_recovered(id, item, done) for id, item in found.items())

    def _change(
        self, entries: tuple[str | QueueEntry, ...], action: _Action
    ) -> tuple[QueueChange, ...]:
        operators = self._operators
        found = _found(operators, entries)
        with operators.changes() as changes:
            one = _OneChange(operators, changes, action)
            return tuple(one(id, item) for id, item in found.items())


class _OneChange:
    """Applies `action` to one entry, and returns the result."""

    def __init__(
        self,
        operators: IOperators,
        changes: IChanges,
        action: _Action,
    ) -> None:
        self._operators = operators
        self._name = action
        self._action: Callable[[Item], bool] = getattr(changes, action)

    def __call__(self, id: str, item: Item | None) -> QueueChange:
        if item is None:
            return QueueChange(id, ChangeStatus.GONE, _GONE)
        if _is_in_doubt(item):
            problem = "it is in doubt, so it can only be recovered"
            return QueueChange(id, ChangeStatus.REFUSED, problem)
        warning = self._warning(item)
        try:
            if self._action(item):
                return QueueChange(id, ChangeStatus.DONE, warning=warning)
        except EntryError as error:
            return QueueChange(id, ChangeStatus.REFUSED, error.reason)
        now = _found(self._operators, (id,))[id]
        if now == item:
            return QueueChange(id, ChangeStatus.CLAIMED, _CLAIMED)
        return self(id, now)  # a processor has moved it in the meantime

    def _warning(self, item: Item) -> str:
        warning = ""
        if self._name == "retry" and item.state is EntryState.FAILED:
            warning = _SECOND_COPY
        elif self._name == "cancel":
            warning = _ARRIVED
        read = self._operators.details(item) if warning else None
        return warning if read is not None and read.uncertain else ""


def _recovered(id: str, item: Item | None, done: set[str]) -> QueueChange:
    if item is None:
        return QueueChange(id, ChangeStatus.GONE, _GONE)
    if not _is_in_doubt(item):
        problem = f"it is not in doubt but {item.state.value}"
        return QueueChange(id, ChangeStatus.REFUSED, problem)
    if id in done:
        return QueueChange(id, ChangeStatus.DONE)
    problem = "somebody else is recovering it now"
    return QueueChange(id, ChangeStatus.CLAIMED, problem)


def _is_in_doubt(item: Item) -> bool:
    return item.state is EntryState.IN_DOUBT


# Entries that are given by id or as objects


def _found(
    operators: IOperators, entries: tuple[str | QueueEntry, ...]
) -> dict[str, Item | None]:
    """Return the item of each entry by its id; None if the entry is gone.

    An entry counts as gone if its whole id is not in the queue. Raises `ItemError` for
    anything else that means no entry.
    """
    given = [entry if isinstance(entry, str) else entry.id for entry in entries]
    try:
        return {item.id: item for item in operators.find(given)}
    except ItemError as error:
        if error.choices or not all(map(is_whole_id, given)):
            raise
    there: dict[str, Item | None] = dict.fromkeys(given)
    for item in operators.items(tuple(EntryState)) if len(there) > 1 else ():
        if item.id in there:
            there[item.id] = item
    return there


def _only(operators: IOperators, id: str) -> Item:
    first, *others = operators.find([id])
    if others:
        ids = tuple(item.id for item in (first, *others))
        reason = f"has {len(ids)} entries, give one: {', '.join(ids)}"
        raise ItemError(id, reason, ids)
    return first


def _data_of(operators: IOperators, item: Item, length: int) -> bytes | None:
    """Return the first bytes of an entry, or None if it is not at this place."""
    with explained(item.place, "read the entry"):
        try:
            with operators.open(item) as file:
                return file.read(length)
        except FileNotFoundError:
            return None


def _read(operators: IOperators, item: Item) -> Details:
    read = operators.details(item)
    if read is None:
        raise _gone(item)
    return read


def _gone(item: Item) -> ItemError:
    return ItemError(item.id, "is gone: it was sent, or deleted, just now")
