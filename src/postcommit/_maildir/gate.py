"""Lets entries out of the waiting rooms and into the queue, when it is their turn.

The transition is one rename into ``new``. From then on an entry is like any other, so a
crash leaves it in one of the two places. The rename is not synced: after a power
failure the entry may be back in its room, as an entry that was sent may be back in the
queue.

The feeder calls this when the workers have found nothing more to do. Entries come in
portions, which are as large as the workers manage in some milliseconds. So a new mail
never waits for more than a portion, also if 100,000 entries are due in one minute.

The problem of a room with a million scheduled entries: a folder has no order, so the
next one is found only by reading all names, which takes a second. If this was done in
one piece whenever the folder has changed, new mail would wait for it. So the names are
read in slices, between which the workers look for new mail. The names that are due
first are kept in memory. After each look there is a rest, so that the looks take at
most a tenth of the time.
"""
from __future__ import annotations

import itertools
import math
import os
import re
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import TYPE_CHECKING

from postcommit._log import Log
from postcommit._maildir import rooms
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.files import rename
from postcommit._maildir.files import sync
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import Watch
from postcommit._maildir.maildir import another_name


if TYPE_CHECKING:
    from postcommit._maildir.store import Store


log = Log("postcommit.maildir.gate")

# Bounds of a portion, and the seconds that the workers spend on it. If they need less,
# the next portion is twice as large. If they need more, it is half as large.
_LEAST, _MOST = 2, 256
_SHORT, _LONG = 0.005, 0.015

# Maximum number of names of scheduled entries in memory, names that are read between
# two looks at the clock, and seconds of a slice.
_KEPT = 20_000
_CHUNK = 2000
_SLICE = 0.02

# Seconds of rest after a look, for each second that it took.
_REST = 9.0

# A name that begins with a time, in seconds since the epoch, until the year 2286.
_has_time = re.compile(r"\d{10}(?!\d)").match


class Gate:
    """The way out of the rooms of one queue. One thread may call it: the feeder.

    A consumer makes it when the queue has a room, so an ordinary queue does without.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._later = _Later(f"{store.path}/{rooms.LATER}/new", clock, monotonic)
        self._bulk = _Bulk(store.maildir)
        self._portion = _LEAST
        self._called = -math.inf
        self._troubles: dict[str, str] = {}  # what was logged last, by folder

    def let_in(self) -> bool:
        """Let the next portion in. Return True if there may be more to do at once.

        See `IConsumer`.
        """
        now = self._monotonic()
        seconds, self._called = now - self._called, now
        if seconds < _SHORT:
            self._portion = min(2 * self._portion, _MOST)
        elif seconds > _LONG:
            self._portion = max(self._portion // 2, _LEAST)
        is_more = self._attempt(self._later, self._let_scheduled_in)
        return is_more or self._attempt(self._bulk, self._let_bulk_in)

    def seconds_to_wait(self) -> float:
        """Return for how many seconds no scheduled entry is due, as far as is known."""
        return self._later.seconds_to_wait()

    def close(self) -> None:
        """Close the folders that are being read."""
        self._later.forget()
        self._bulk.forget()

    def _attempt(self, room: _Later | _Bulk, let_in: Callable[[], bool]) -> bool:
        """Call `let_in`. An error is logged once, and everything else goes on."""
        try:
            is_more = let_in()
        except OSError as error:
            room.forget()  # what was not let in is found again
            if self._troubles.get(room.folder) != str(error):
                self._troubles[room.folder] = str(error)
                text = "%s: what waits there is not sent: %s"
                log.error(text, room.folder, error)
            return False
        self._troubles.pop(room.folder, None)
        return is_more

    def _let_scheduled_in(self) -> bool:
        self._later.look()
        count, was_bulk = 0, False
        while count < self._portion and (path := self._later.next()):
            name = os.path.basename(path)
            # A bulk entry whose time has come waits on, among the other bulk entries.
            is_bulk = rooms.is_scheduled(name) and rooms.is_bulk(name)
            folder = self._store.subfolder(rooms.BULK) if is_bulk else self._maildir
            if _move(path, f"{folder.new}/{name}"):
                count, was_bulk = count + 1, was_bulk or is_bulk
                if not _has_time(name):
                    text = "%s: is sent now, its name does not begin with a time"
                    log.warning(text, path)
        if was_bulk:
            # Otherwise a power failure after the next rename could leave an entry at
            # the first of its three places, and at the last.
            sync(self._bulk.folder)
            sync(self._later.folder)
        return bool(count) or self._later.is_looking

    def _let_bulk_in(self) -> bool:
        count = 0
        while count < self._portion and (path := self._bulk.next()):
            count += _move(path, f"{self._maildir.new}/{os.path.basename(path)}")
        return bool(count)

    @property
    def _maildir(self) -> Maildir:
        return self._store.maildir


def _move(path: str, target: str) -> bool:
    """Rename an entry. Return False if it is gone: another processor was faster."""
    try:
        rename(path, target)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise  # the folder of the target is missing
        return False
    except FileExistsError:
        rename(path, another_name(target))
    return True


class _Later:
    """The scheduled entries in `folder`, in the order of their times."""

    def __init__(
        self,
        folder: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._monotonic = monotonic
        self._watch = Watch(folder)
        self.is_known = os.path.isdir(folder)  # or was
        self._is_stale = False
        # The names that are due first, in reverse order. If there are others, they come
        # after `_horizon`. Names without a time are apart.
        self._soon: list[str] = []
        self._horizon = ""
        self._odd: list[str] = []
        # The look that goes on, if any: names not read, names to keep, seconds so far.
        self._names: Iterator[str] | None = None
        self._kept: list[str] = []
        self._limit = ""
        self._spent = 0.0
        self._rest_until = -math.inf

    @property
    def is_looking(self) -> bool:
        """Whether a look has not come to its end."""
        return self._names is not None

    def look(self) -> None:
        """Learn for the time of a slice which entries are due first, if need be."""
        try:
            if self._watch.has_changed():
                self._is_stale = True
            self.is_known = True
            is_at_end = not self._soon and self._seconds_until(self._horizon) <= 0
            is_rested = self._monotonic() >= self._rest_until
            if self._names is None and (is_at_end or (self._is_stale and is_rested)):
                self._names = _names_in(self.folder)
                self._kept, self._limit = [], ""
                self._spent, self._is_stale = 0.0, False
            if self._names is not None:
                self._read_on(self._names)
        except FileNotFoundError:
            if self.is_known:
                raise
            # No entry was ever scheduled.

    def _read_on(self, names: Iterator[str]) -> None:
        began = self._monotonic()
        while chunk := list(itertools.islice(names, _CHUNK)):
            self._keep(chunk)
            if self._monotonic() - began > _SLICE:
                self._spent += self._monotonic() - began
                return
        self._names = None
        self._soon = sorted(self._kept, reverse=True)
        self._horizon, self._kept = self._limit, []
        self._spent += self._monotonic() - began
        self._rest_until = self._monotonic() + _REST * self._spent

    def _keep(self, chunk: list[str]) -> None:
        """Keep those names that are due before the others."""
        for name in chunk:
            if not _has_time(name):
                if len(self._odd) < _KEPT:
                    self._odd.append(name)
            elif not self._limit or name < self._limit:
                self._kept.append(name)
        if len(self._kept) > 2 * _KEPT:
            self._kept.sort()
            del self._kept[_KEPT:]
            self._limit = self._kept[-1]

    def next(self) -> str | None:
        """Return the path of the next entry that is due, or None."""
        if self._odd:
            return f"{self.folder}/{self._odd.pop()}"
        if self._soon and self._seconds_until(self._soon[-1]) <= 0:
            return f"{self.folder}/{self._soon.pop()}"
        return None

    def seconds_to_wait(self) -> float:
        """Return for how many seconds nothing is due, as far as is known."""
        if self.is_looking or self._odd:
            return 0.0
        wait = self._seconds_until(self._soon[-1] if self._soon else self._horizon)
        if self._is_stale:
            wait = min(wait, self._rest_until - self._monotonic())
        return max(0.0, wait)

    def _seconds_until(self, name: str) -> float:
        due = accepted_at(name)
        return math.inf if due is None else due - self._clock()

    def forget(self) -> None:
        """Forget what was read: the next look is a complete one."""
        self._names = None
        self._soon, self._odd, self._kept = [], [], []
        self._horizon = ""
        self._is_stale = False
        self._watch.forget()


def _names_in(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith("."):
                yield entry.name


class _Bulk:
    """The bulk entries of a queue, in the order of their names in each part."""

    def __init__(self, maildir: Maildir) -> None:
        self._maildir = maildir
        self.folder = maildir.folder(f"{rooms.BULK}/new")
        self._watch = Watch(self.folder)
        self.is_known = os.path.isdir(self.folder)  # or was
        self._parts: Iterator[list[str]] | None = None
        self._paths: list[str] = []  # of a part, in reverse order

    def next(self) -> str | None:
        """Return the path of the next entry, or None at the end of a look."""
        try:
            if self._parts is None:
                if not self._watch.has_changed():
                    return None
                self.is_known = True
                self._parts = self._maildir.parts(f"{rooms.BULK}/new")
            if not self._paths:
                self._paths = next(self._parts, [])[::-1]
        except FileNotFoundError:
            if self.is_known:
                raise
            return None  # there never was a bulk entry
        if not self._paths:
            self._parts = None
            return None
        return self._paths.pop()

    def forget(self) -> None:
        """Forget what was read."""
        self._parts = None
        self._paths = []
        self._watch.forget()
