"""Places for a queue: what tests need of an implementation beyond its contract.

A further implementation adds a class with these methods to `PLACES`.
"""
from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from typing import NamedTuple
from typing import Protocol

from postcommit._drain.contract import IConsumer
from postcommit._drain.contract import IQueue
from postcommit._mail.message import message_id_of
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.item import EntryState
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Store


class Seen(NamedTuple):
    """One entry, as it is kept. `due` is 0 for one that was not deferred."""

    message_id: str
    recipients: tuple[str, ...]
    attempts: int = 0
    uncertain: int = 0
    last_reply: str = ""
    due: float = 0.0


class Look(NamedTuple):
    """All entries of a queue, by their state, in any order."""

    queued: list[Seen]
    failed: list[Seen]
    in_doubt: list[Seen]


class Place(Protocol):
    """Where one queue is. Any number of objects may be made for it."""

    def make(self) -> IQueue:
        """Return a new object for the queue, as another process has it."""

    def look(self) -> Look:
        """Return all entries, without any help of the implementation."""

    def die_with_batch(self, batch: Any) -> None:
        """Leave a prepared batch as the death of its process does."""

    def die_with_claims(self, consumer: IConsumer) -> None:
        """Leave a consumer as the death of its process does."""

    def let_leases_end(self) -> None:
        """Make as if all consumers of dead processes had been dead for long."""

    def age(self, seconds: float) -> None:
        """Make as if nothing had been written for so long."""

    def end(self) -> None:
        """Remove the queue."""


# The folders in which entries wait, for whatever it is.
WAITING = ("new", "cur", ".Later/new", ".Bulk/new", ".Held/new", ".Held/cur")


_NOT_DEAD = [state for state in EntryState if state is not EntryState.FAILED]


class MaildirPlace:
    """A queue on disk."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postcommit-"))
        self.path = self._folder / "queue"

    def make(self) -> Store:
        return Store(str(self.path))

    def look(self) -> Look:
        in_doubt = list(Store(str(self.path), to_look=True).in_doubt())
        return Look(
            [seen for folder in WAITING for seen in self._seen(folder)],
            self._seen(".Failed/new"),
            [_seen(Path(path)) for path in in_doubt],
        )

    def _seen(self, folder: str) -> list[Seen]:
        below = self.path / folder
        return [_seen(path) for path in below.iterdir()] if below.exists() else []

    def die_with_batch(self, batch: Any) -> None:
        batch._release()

    def die_with_claims(self, consumer: Any) -> None:
        for lock in list(consumer._locks.values()):
            lock.release()

    def let_leases_end(self) -> None:
        """Do nothing: the kernel drops the locks of a dead process."""

    def age(self, seconds: float) -> None:
        then = time.time() - seconds
        for path in (self.path / "tmp").iterdir():
            os.utime(path, (then, then))

    def hold(self, message_id: str) -> None:
        """Hold or release the entry, as an operator does."""
        queue = MaildirOperators(str(self.path))
        [item] = [i for i in queue.find([message_id]) if i.state in _NOT_DEAD]
        with queue.changes() as changes:
            is_held = item.state is EntryState.HELD
            assert (changes.release if is_held else changes.hold)(item)

    def end(self) -> None:
        shutil.rmtree(self._folder)


def _seen(path: Path) -> Seen:
    entry = parse_entry(path.read_bytes())
    return Seen(
        message_id_of(entry.message),
        entry.recipients,
        entry.attempts,
        entry.uncertain,
        entry.last_reply,
        path.stat().st_mtime if path.parent.name == "cur" else 0.0,
    )


PLACES: list[type[Place]] = [MaildirPlace]
