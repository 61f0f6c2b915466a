"""Entries that arrive from another machine, each with the name that it had there.

An entry may arrive more than once: the acknowledgement of the first copy was lost, for
example. A copy is recognised by its name, as long as the entry is in one of these
folders, whatever its flags and suffixes are:

=====================================  ==============================================
folder                                 the entry
=====================================  ==============================================
``new/``, ``cur/``                     waits, or is deferred
``.Failed/``                           is a dead letter, or some of its recipients are
``.NAME/`` with ``new/`` and ``cur/``  waits in another room
=====================================  ==============================================

Once it was sent, nothing is left of it, and a copy is sent again.

A bulk entry arrives in the room for these, by the mark of its name. A scheduled entry
was due before it was handed over, and does not wait again.
"""
from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from postcommit._log import Log
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.entry import stem
from postcommit._maildir.files import explained
from postcommit._maildir.files import remove
from postcommit._maildir.files import rename
from postcommit._maildir.files import sync
from postcommit._maildir.maildir import Staged
from postcommit._maildir.mark import FAILED
from postcommit._maildir.presence import ring
from postcommit._maildir.rooms import BULK
from postcommit._maildir.rooms import is_bulk
from postcommit._maildir.store import Store
from postcommit._maildir.store import do_all
from postcommit.errors import EntryError


log = Log("postcommit.maildir.arrivals")

# A name that is unique on all machines, because it has 64 random bits, as those of
# `unique_name`, perhaps with the mark of a room, or a UUID; perhaps of a part of an
# entry.
_UNIQUE = re.compile(
    r"\d{9,11}\.(?:M\d{6}P\d+Q\d+R[0-9a-f]{16}\.[\w.\\-]{1,60}"
    r"(?:,(?:L|B|LB)=[0-9a-f]{10})?"
    r"|[0-9a-f]{32}(?:\.P[0-9a-f]{8})?)",
    re.ASCII,
)

# What a dead letter's name may have after the entry's: see `Store.bury`.
_AFTER = r"(?:\.[RU]\d+)?(?:\.R?[0-9a-f]{16})?"
_LETTER = re.compile(rf"(?P<name>.*?){_AFTER}")

# The flags of a file that only our processors and a reader's look have changed.
_FLAGS = (":2,", ":2,S", "")


class Arrival(NamedTuple):
    """What has arrived: the `name` that it had, if it is known, and its bytes."""

    name: str
    data: bytes


class Arrivals:
    """Accepts entries into the queue `store`. One thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.path
        # The names of dead letters of a part of the recipients, and the time at which
        # their folder has changed.
        self._letters: set[str] = set()
        self._seen: tuple[int, ...] = ()

    def accept(self, arrivals: Sequence[Arrival]) -> int:
        """Make all of them durable, except for copies. Return the number of entries.

        What is not an entry becomes a dead letter. Raises `QueueError`: then some may
        have been accepted, and the same call may be repeated.
        """
        staged: dict[str, Staged] = {}
        with explained(self._path, "accept what has arrived"):
            rooms = self._rooms()
            try:
                for arrival in arrivals:
                    name = name_here(arrival)
                    if name in staged or self._has(name, rooms):
                        log.info("%s: is here already, a copy was dropped", name)
                    elif self._is_entry(name, arrival.data):
                        staged[name] = self._write(name, arrival.data)
                do_all([item.sync for item in staged.values()])
                self._publish(staged, any(is_bulk(a.name) for a in arrivals))
            except BaseException:
                for item in staged.values():
                    item.abort()
                raise
        if staged:
            ring(self._path)
        return len(staged)

    def _is_entry(self, name: str, data: bytes) -> bool:
        """Return whether `data` is an entry. Otherwise it is now a dead letter."""
        try:
            parse_entry(data)
        except EntryError as error:
            log.error("%s: is not an entry, and is a dead letter: %s", name, error)
            self._store.bury_bytes(name, data, str(error))
            return False
        return True

    def _write(self, name: str, data: bytes) -> Staged:
        maildir = self._store.maildir
        # In tmp under a name of its own: another receiver may write a copy.
        item = maildir.add([data])
        folder = self._store.subfolder(BULK) if is_bulk(name) else maildir
        item.target = f"{folder.new}/{name}"
        return item

    def _publish(self, staged: dict[str, Staged], has_bulk: bool) -> None:
        for item in staged.values():
            try:
                rename(item.path, item.target)
            except FileExistsError:  # another receiver was faster
                remove(item.path)
            item.path = item.target
        # Also for copies: the receiver of the first one may have been killed before.
        sync(self._store.maildir.new)
        for room in (FAILED, BULK) if has_bulk else (FAILED,):
            with suppress(FileNotFoundError):
                sync(f"{self._path}/{room}/new")

    # Copies

    def _has(self, name: str, rooms: Sequence[str]) -> bool:
        """Return whether the entry is in the queue, wherever it is.

        A processor moves it from ``new`` to ``cur``, and from there to the dead
        letters. An operator moves it back, so ``new`` is looked at again.
        """
        here = [f"{self._path}/new/{name}"]
        here += [f"{self._path}/cur/{name}{flags}" for flags in _FLAGS]
        for room in (*rooms, FAILED):
            here.append(f"{self._path}/{room}/new/{name}")
            here += [f"{self._path}/{room}/cur/{name}{flags}" for flags in _FLAGS]
        if any(os.path.lexists(path) for path in (*here, here[0], here[1])):
            return True
        return name in self._dead()

    def _rooms(self) -> list[str]:
        """Return the names of the queue's subfolders, without the dead letters."""
        with os.scandir(self._path) as found:
            return [
                entry.name
                for entry in found
                if entry.name.startswith(".")
                and entry.name != FAILED
                and entry.is_dir(follow_symlinks=False)
            ]

    def _dead(self) -> set[str]:
        """Return the names of entries of which a part is a dead letter."""
        folders = [f"{self._path}/{FAILED}/{name}" for name in ("new", "cur")]
        seen = tuple(_changed(folder) for folder in folders)
        if seen != self._seen:
            self._letters = {name for folder in folders for name in _parts(folder)}
            self._seen = seen
        return self._letters


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0


def _parts(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            for entry in found:
                name = stem(entry.name)
                letter = _LETTER.fullmatch(name)
                if letter is not None and letter["name"] != name:
                    yield letter["name"]
    except FileNotFoundError:
        return


def name_here(arrival: Arrival) -> str:
    """Return the name of an arrival in this queue.

    It is the name that it had, if that is unique on all machines. Otherwise it is made
    of the bytes, so it is the same for each copy. It begins with the time of the former
    name, or with zeros.
    """
    if _UNIQUE.fullmatch(arrival.name):
        return arrival.name
    digest = hashlib.blake2b(
        arrival.name.encode(errors="replace") + b"\n" + arrival.data, digest_size=16
    )
    seconds = accepted_at(arrival.name) or 0
    return f"{int(seconds):010d}.H{digest.hexdigest()}"
