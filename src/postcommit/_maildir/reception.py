"""What a living receiver shows to others: a file ``.receiver-NAME`` for each.

It is JSON, and the receiver has it locked. The kernel drops that lock with the
receiver, so a file without a lock means nothing. No entry depends on it.
"""
from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from contextlib import suppress
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field

from postcommit._log import one_line
from postcommit._maildir.files import CREATE
from postcommit._maildir.files import FileLock
from postcommit._maildir.files import OpenFile
from postcommit._maildir.files import give_to_owner
from postcommit._maildir.files import remove
from postcommit._maildir.files import write
from postcommit._maildir.maildir import unique_name


PREFIX = ".receiver-"

# Number of bytes of a note. It always has as many, so that one write replaces it whole.
_SIZE = 4096

# Maximum number of characters of a reason and of a broker's URL.
_LONGEST = 500

# Seconds between two writes, if nothing but the counts has changed.
_EVERY = 1.0


@dataclass
class Reception:
    """The state of a receiver. Times are in seconds since the epoch.

    `received` is the number of entries since it began. `problem` says why it does not
    receive now, and is empty if it is `connected`.
    """

    broker: str
    queue: str
    process: int = field(default_factory=os.getpid)
    began: float = field(default_factory=time.time)
    connected: bool = False
    problem: str = ""
    received: int = 0
    last_acknowledged: float | None = None


class ReceptionNote:
    """The note of one receiver. One thread may use it. No method raises OSError."""

    def __init__(self, queue_path: str, reception: Reception) -> None:
        self.reception = reception
        self._path = queue_path
        self._lock: FileLock | None = None
        self._told: tuple[bool, str] | None = None
        self._written = 0.0

    def show(self, *, connected: bool, problem: str = "") -> None:
        """Write the note, unless that was done a moment ago and only counts differ."""
        now, told = time.monotonic(), (connected, problem)
        if told == self._told and now - self._written < _EVERY:
            return
        self.reception.connected = connected
        self.reception.problem = one_line(problem, _LONGEST)
        with suppress(OSError):
            if self._lock is None:
                self._lock = self._created()
            os.pwrite(self._lock.descriptor, self._data(), 0)
            self._told, self._written = told, now

    def _data(self) -> bytes:
        return json.dumps(asdict(self.reception)).encode().ljust(_SIZE - 1) + b"\n"

    def _created(self) -> FileLock:
        """Return the file, which is locked before others can see it."""
        name = unique_name()
        temporary = os.path.join(self._path, "tmp", name)
        try:
            with closing(OpenFile(temporary, CREATE)) as file:
                give_to_owner(file.descriptor, self._path)
                write(file.descriptor, [self._data()])
            lock = FileLock(temporary)
            lock.acquire()
            os.rename(temporary, f"{self._path}/{PREFIX}{name}")
        except OSError:
            remove(temporary)
            raise
        self._place = f"{self._path}/{PREFIX}{name}"
        return lock

    def close(self) -> None:
        """Remove the note."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with suppress(OSError):
                remove(self._place)
            lock.release()


def receptions(queue_path: str) -> list[Reception]:
    """Return the state of each living receiver of the queue, the oldest first."""
    return sorted(
        (found for _, found in _notes(queue_path) if found is not None),
        key=lambda found: found.began,
    )


def remove_dead(queue_path: str) -> None:
    """Remove the notes of receivers that are dead."""
    for path, found in _notes(queue_path):
        if found is None:
            with suppress(OSError):
                remove(path)


def _notes(queue_path: str) -> Iterator[tuple[str, Reception | None]]:
    """Yield the path of each note, and its content, or None if its receiver is dead."""
    try:
        names = [name for name in os.listdir(queue_path) if name.startswith(PREFIX)]
    except OSError:
        return
    for name in names:
        path = f"{queue_path}/{name}"
        with suppress(OSError, ValueError, TypeError):
            lock = FileLock(path, os.O_RDONLY)
            try:
                if lock.acquire(shared=True):
                    yield path, None
                else:
                    told = json.loads(os.pread(lock.descriptor, _SIZE, 0))
                    yield path, Reception(**told)
            finally:
                lock.release()
