"""Entries that leave a queue on disk for another one, or come from there."""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace

from zope.interface import Interface
from zope.interface import implementer

from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._mail.terms import Terms
from postcommit._maildir import rooms
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.files import explained
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.mark import FAILED
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store
from postcommit.errors import EntryError


@dataclass(frozen=True)
class Moving:
    """An entry on its way from one queue to another.

    `name` stays the same, so an entry that is moved again after a crash is recognised.
    `due` is when a deferred entry is tried next, or when a dead letter was given up.
    `is_deferred` is also true for a deferred entry that is held. `is_bulk` is whether
    it comes after all others.
    """

    name: str
    state: EntryState
    accepted: float
    due: float
    entry: Entry
    is_deferred: bool
    is_bulk: bool


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
            yield _moving(item, claim, entry)
            self._store.finish(claim)
            is_removed = True
        finally:
            claim.release(removed=is_removed)

    def arrive(self, moving: Moving) -> None:
        """Keep an entry, durably, unless it is here. Raises `QueueError`."""
        name, state = _name(moving), moving.state
        paths = {
            EntryState.WAITING: f"new/{name}",
            EntryState.SCHEDULED: f"{rooms.LATER}/new/{name}",
            EntryState.DEFERRED: f"cur/{name}:2,",
            EntryState.BULK: f"{rooms.BULK}/new/{name}",
            EntryState.HELD: f"{rooms.HELD}/new/{name}",
            EntryState.FAILED: f"{FAILED}/new/{name}",
        }
        held = f"{rooms.HELD}/cur/{name}:2,"
        top = self._store.path
        if any(os.path.lexists(f"{top}/{path}") for path in (*paths.values(), held)):
            return
        path = paths[state]
        if moving.is_deferred and state is EntryState.HELD:
            path = held
        lines = [preamble_of(moving.entry), moving.entry.message]
        with explained(top, "keep an entry"), suppress(FileExistsError):
            self._store.add(path, lines, moving.due)


def _moving(item: Item, claim: Claim, entry: Entry) -> Moving:
    """Return what a file is when it moves."""
    state = item.state
    may_be_deferred = state in (EntryState.DEFERRED, EntryState.HELD)
    return Moving(
        item.name,
        state,
        claim.accepted,
        claim.changed,
        replace(entry, not_before=_not_before(state, claim, entry)),
        is_deferred=may_be_deferred and claim.is_deferred,
        # A bulk entry in `new` has waited until all others were sent.
        is_bulk=rooms.is_bulk(item.name) and state is not EntryState.WAITING,
    )


def _not_before(state: EntryState, claim: Claim, entry: Entry) -> float | None:
    """Return the time of the entry, which its place may change."""
    if state is EntryState.SCHEDULED and entry.not_before is None:
        return claim.accepted  # the name says it
    if state is EntryState.WAITING and (entry.not_before or 0.0) > time.time():
        return None  # somebody has retried it, so that it is sent now
    return entry.not_before


def _name(moving: Moving) -> str:
    """Return the name of the file: with the time and the mark that its room needs."""
    entry = moving.entry
    terms = Terms(entry.not_before, entry.expires, moving.is_bulk)
    mark = rooms.mark(terms, message_id_of(entry.message))
    if entry.not_before is None or entry.not_before < moving.accepted:
        return moving.name + mark
    seconds, microseconds = divmod(int(entry.not_before * 1e6), 1_000_000)
    key = moving.name.rpartition(".")[2]
    return f"{seconds:010d}.M{microseconds:06d}.{key}{mark}"
