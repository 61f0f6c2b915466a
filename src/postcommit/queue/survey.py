"""How a queue is, in a few numbers; within seconds, whatever its size."""
from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from postcommit.queue.entry import accepted_at
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.queue.item import details
from postcommit.queue.item import items
from postcommit.queue.store import Store
from postcommit.queue.wakeup import heartbeat


# When a deferred entry is due, only its file tells. No more time than this, in
# seconds, goes into looking.
_MOST_SECONDS = 3.0

# So many files are read to find the most common reply.
_SAMPLE = 300

# What differs between replies that mean the same: addresses, numbers, queue ids.
_PARTICULAR = re.compile(r"\S*@\S*|\S*\d\S*")


@dataclass(frozen=True)
class Reason:
    """A reply, as one entry has it, and how many of `looked_at` have one like it."""

    reply: str
    count: int
    looked_at: int


@dataclass(frozen=True)
class Survey:
    """How a queue is; times are in seconds since the epoch.

    `due` is how many entries are due now, `oldest_due` since when the first of
    them is. Where `is_partial`, not every deferred entry was looked at for these
    two. `deferred_reason` and `failed_reason` are the most common last replies.
    `heartbeat` is the last sign of life of a living processor.
    """

    waiting: int
    deferred: int
    failed: int
    in_doubt: int
    due: int
    oldest_due: float | None
    is_partial: bool
    deferred_reason: Reason | None
    failed_reason: Reason | None
    heartbeat: float | None


@dataclass
class _Due:
    count: int = 0
    oldest: float | None = None

    def note(self, since: float | None) -> None:
        self.count += 1
        if since is not None and (self.oldest is None or since < self.oldest):
            self.oldest = since


def survey(store: Store, now: float) -> Survey:
    """Look at the whole queue; `now` is in seconds since the epoch."""
    due = _Due()
    first = ""
    for name in _names(store.maildir.folder("new")):
        due.count += 1
        if not first or name < first:
            first = name
    waiting = due.count
    if waiting:
        due.oldest = accepted_at(first)
    deferred, is_partial = _deferred(store, now, due)
    return Survey(
        waiting,
        deferred,
        sum(1 for _ in items(store, [State.FAILED])),
        sum(1 for _ in items(store, [State.IN_DOUBT])),
        due.count,
        due.oldest,
        is_partial,
        _reason(_unsorted(store.maildir.folder("cur"), State.DEFERRED)),
        _reason(items(store, [State.FAILED])),
        heartbeat(store.path),
    )


def _names(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith("."):
                yield entry.name


def _deferred(store: Store, now: float, due: _Due) -> tuple[int, bool]:
    """Count what is deferred, and note what is due; tell if not all was looked at."""
    count, until, is_partial = 0, time.monotonic() + _MOST_SECONDS, False
    folder = os.open(store.maildir.folder("cur"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in _names(store.maildir.folder("cur")):
            count += 1
            if is_partial:
                continue
            is_partial = count % 1000 == 0 and time.monotonic() > until
            try:
                # By its name alone: half as much work as by the whole path.
                changed = os.stat(name, dir_fd=folder).st_mtime
            except FileNotFoundError:
                continue  # it was sent meanwhile
            if changed <= now:
                due.note(changed)
    finally:
        os.close(folder)
    return count, is_partial


def _unsorted(folder: str, state: State) -> Iterator[Item]:
    # In no order: a better sample than the oldest ones, and at once.
    return (Item(f"{folder}/{name}", state) for name in _names(folder))


def _reason(found: Iterator[Item]) -> Reason | None:
    """Return the most common reply of the first few hundred."""
    alike: Counter[str] = Counter()
    examples: dict[str, str] = {}
    looked_at = 0
    for item in islice(found, _SAMPLE):
        read = details(item)
        if read is None:
            continue
        looked_at += 1
        reply = read.last_reply or read.problem
        if reply:
            key = reply[:4] + _PARTICULAR.sub("*", reply[4:])
            alike[key] += 1
            examples.setdefault(key, reply)
    if not alike:
        return None
    [(key, count)] = alike.most_common(1)
    return Reason(examples[key], count, looked_at)
