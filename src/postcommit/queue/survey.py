"""How a queue is, in a few numbers; within seconds, whatever its size."""
from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from postcommit.files import explained
from postcommit.queue.entry import accepted_at
from postcommit.queue.item import REJECTED
from postcommit.queue.item import SENDING
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.queue.item import details
from postcommit.queue.item import items
from postcommit.queue.item import young_claims
from postcommit.queue.mark import FAILED
from postcommit.queue.notice import Notice
from postcommit.queue.notice import posted
from postcommit.queue.store import Store
from postcommit.queue.wakeup import heartbeat


# When a deferred entry is due, only its file tells. So many seconds after the
# beginning no more files are asked; but for a quarter of that time some are, however
# long it took to count what waits.
_MOST_SECONDS = 2.0

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
    them is. For these two, `looked_at` of the deferred entries were asked, in no
    order: in a large queue not all. `deferred_reason` and `failed_reason` are
    the most common last replies. `foreign_claims` are those of another library's
    processor that are so young that it lives. `heartbeat` is the last sign of
    life of a living processor, `pause` why one pauses.
    """

    waiting: int
    deferred: int
    failed: int
    in_doubt: int
    due: int
    oldest_due: float | None
    looked_at: int
    deferred_reason: Reason | None
    failed_reason: Reason | None
    foreign_claims: int
    heartbeat: float | None
    pause: Notice | None


def survey(store: Store, now: float, most_seconds: float = _MOST_SECONDS) -> Survey:
    """Look at the whole queue; `now` is in seconds since the epoch.

    Counts names, and opens a few hundred files. Deferred entries are asked when
    they are due as long as there is time: `most_seconds` from now. Raises
    `QueueError`.
    """
    until = time.monotonic() + most_seconds
    with explained(store.path, "look through the queue"):
        hidden: Counter[str] = Counter()
        due = _new(store.maildir.folder("new"), hidden)
        waiting = due.count
        until = max(until, time.monotonic() + most_seconds / 4)
        deferred, looked_at = _deferred(store, hidden, now, due, until)
        failed = hidden[REJECTED]
        for name in ("new", "cur"):
            failed += sum(1 for _ in _names(f"{store.path}/{FAILED}/{name}", hidden))
        dead = items(store, [State.FAILED]) if failed else iter(())
        return Survey(
            waiting,
            deferred,
            failed,
            sum(1 for _ in items(store, [State.IN_DOUBT])),
            due.count,
            due.oldest,
            looked_at,
            _reason(_unsorted(store.maildir.folder("cur"))),
            _reason(dead),
            sum(1 for _ in young_claims(store, now)) if hidden[SENDING] else 0,
            heartbeat(store.path),
            posted(store.path),
        )


@dataclass
class _Due:
    count: int = 0
    oldest: float | None = None


def _names(folder: str, hidden: Counter[str]) -> Iterator[str]:
    """Yield the names of the entries; count what other libraries have hidden."""
    try:
        found = os.scandir(folder)
    except FileNotFoundError:
        return  # there are no dead letters yet
    with found:
        for entry in found:
            name = entry.name
            if not name.startswith("."):
                yield name
            else:
                hidden.update(p for p in (REJECTED, SENDING) if name.startswith(p))


def _new(folder: str, hidden: Counter[str]) -> _Due:
    """Return what is due in ``new``: all, and the first by its name since it came."""
    due, first = _Due(), ""
    for name in _names(folder, hidden):
        due.count += 1
        first = min(first or name, name)
    due.oldest = accepted_at(first)
    return due


def _deferred(
    store: Store, hidden: Counter[str], now: float, due: _Due, until: float
) -> tuple[int, int]:
    """Note what is due; return how many are deferred, and how many were asked."""
    path = store.maildir.folder("cur")
    count = looked_at = 0
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in _names(path, hidden):
            if looked_at == count and (count % 256 or time.monotonic() < until):
                looked_at += 1
                changed = _changed(name, folder)
                if changed <= now:
                    due.count += 1
                    if due.oldest is None or changed < due.oldest:
                        due.oldest = changed
            count += 1
    finally:
        os.close(folder)
    return count, looked_at


def _changed(name: str, folder: int) -> float:
    try:
        # By its name alone: half as much work as by the whole path.
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return math.inf  # it was sent meanwhile


def _unsorted(folder: str) -> Iterator[Item]:
    # In no order: a better sample than the oldest ones, and at once.
    for name in _names(folder, Counter()):
        yield Item(f"{folder}/{name}", State.DEFERRED)


def _reason(found: Iterator[Item]) -> Reason | None:
    """Return the most common reply of the first few hundred."""
    alike: Counter[str] = Counter()
    examples: dict[str, str] = {}
    reads = [read for read in map(details, islice(found, _SAMPLE)) if read]
    for read in reads:
        reply = read.last_reply or read.problem
        if reply:
            key = reply[:4] + _PARTICULAR.sub("*", reply[4:])
            alike[key] += 1
            examples.setdefault(key, reply)
    if not alike:
        return None
    [(key, count)] = alike.most_common(1)
    return Reason(examples[key], count, len(reads))
