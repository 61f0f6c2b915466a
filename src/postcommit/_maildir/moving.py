"""Entries that leave a queue on disk for another one, or come from there."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass

from zope.interface import Interface
from zope.interface import implementer

from postcommit._mail.entry import Entry
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.files import explained
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.mark import FAILED
from postcommit._maildir.store import Store
from postcommit.errors import EntryError


@dataclass(frozen=True)
class Moving:
    """An entry on its way from one queue to another.

    `name` stays the same, so an entry that is moved again after a crash is recognised.
    `due` is when a deferred entry is tried next, or when a dead letter was given up.
    """

    name: str
    state: EntryState
    accepted: float
    due: float
    entry: Entry


class IMoving(Interface):
    """A queue that entries leave, or come to."""

    def leaving(item: Item) -> AbstractContextManager[Moving | None]:
        """Claim the entry for the body, which keeps it elsewhere. Then remove it.

        None if it is gone, being sent, or cannot be moved: then it stays.
        """

    def arrive(moving: Moving) -> None:
        """Keep an entry, durably, unless it is here. Raises `QueueError`."""


@implementer(IMoving)
class MaildirMoving:
    """The queue at `path`, which is created if it is missing. Raises `QueueError`."""

    def __init__(self, path: str) -> None:
        self._store = Store(path)

    @contextmanager
    def leaving(self, item: Item) -> Iterator[Moving | None]:
        """Claim the entry for the body, which keeps it elsewhere. Then remove it.

        None if it is gone, being sent, or not an entry: then it stays.
        """
        with explained(item.place, "claim the entry"):
            claim = self._store.claim(item.place)
        if claim is None:
            yield None
            return
        is_removed = False
        try:
            try:
                entry = claim.read()
            except EntryError:
                yield None
                return
            yield Moving(item.name, item.state, claim.accepted, claim.changed, entry)
            self._store.finish(claim)
            is_removed = True
        finally:
            claim.release(removed=is_removed)

    def arrive(self, moving: Moving) -> None:
        """Keep an entry, durably, unless it is here. Raises `QueueError`."""
        paths = {
            EntryState.WAITING: f"new/{moving.name}",
            EntryState.DEFERRED: f"cur/{moving.name}:2,",
            EntryState.FAILED: f"{FAILED}/new/{moving.name}",
        }
        top = self._store.path
        if any(os.path.lexists(f"{top}/{path}") for path in paths.values()):
            return
        lines = [preamble_of(moving.entry), moving.entry.message]
        with explained(top, "keep an entry"), suppress(FileExistsError):
            self._store.add(paths[moving.state], lines, moving.due)
