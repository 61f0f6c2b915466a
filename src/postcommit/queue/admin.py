"""A queue in an operator's hands: what is in it, and what is in doubt."""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from postcommit.maildir import Maildir
from postcommit.maildir import explained
from postcommit.maildir import remove
from postcommit.maildir import sync
from postcommit.queue.entry import accepted_at
from postcommit.queue.staging import original_name
from postcommit.queue.store import FAILED
from postcommit.queue.store import Store
from postcommit.queue.wakeup import ring


@dataclass(frozen=True)
class Counts:
    """How many entries are in which state."""

    waiting: int
    deferred: int
    failed: int
    in_doubt: int


@dataclass(frozen=True)
class Doubt:
    """A prepared file whose transaction is dead.

    `name` is the one that its entry would have; `accepted` is when it was
    sent, in seconds since the epoch, None if the name does not tell.
    """

    path: str
    name: str
    accepted: float | None


class Admin:
    """Looks after the queue at `path`, which must exist.

    Raises `QueueError` for a path that is no queue.
    """

    def __init__(self, path: str) -> None:
        Maildir(path)  # which is not created here
        self._store = Store(path)
        self.path = path

    def counts(self) -> Counts:
        """Count the entries; those that are claimed count where they are."""
        maildir = self._store.maildir
        dead = (f"{self.path}/{FAILED}/{name}" for name in ("new", "cur"))
        return Counts(
            waiting=_count(maildir.folder("new")),
            deferred=_count(maildir.folder("cur")),
            failed=sum(map(_count, dead)),
            in_doubt=sum(1 for _ in self.in_doubt()),
        )

    def in_doubt(self) -> Iterator[Doubt]:
        """Yield what a crash has left between vote and finish."""
        for path in self._store.in_doubt():
            name = original_name(path)
            yield Doubt(path, name, accepted_at(name))

    def send(self, doubt: Doubt) -> None:
        """Accept the entry: its transaction did commit."""
        new = self._store.maildir.folder("new")
        with explained(doubt.path, "accept the entry"):
            os.rename(doubt.path, f"{new}/{doubt.name}")
            sync(new)
        ring(self.path)

    def drop(self, doubt: Doubt) -> None:
        """Remove the entry: its transaction did not commit."""
        with explained(doubt.path, "remove the entry"):
            remove(doubt.path)


def _count(folder: str) -> int:
    try:
        with os.scandir(folder) as found:
            return sum(1 for entry in found if not entry.name.startswith("."))
    except FileNotFoundError:
        return 0  # there are no dead letters yet
