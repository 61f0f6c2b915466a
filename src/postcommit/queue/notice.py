"""Why a queue pauses, for those outside of its processor.

A file ``.paused`` in the queue's folder, as long as the pause lasts: JSON, and the
file's time of modification is when the relay is tried next. Its processor has it
locked, and the kernel drops that lock with the processor; so what a dead one has
left behind, or a back-up has put back, says nothing.

It is no more than a note. No entry depends on it, and where it cannot be written
there is none.
"""
from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

from postcommit.errors import text_of
from postcommit.files import CREATE
from postcommit.files import remove
from postcommit.files import write
from postcommit.maildir import unique_name
from postcommit.openfile import OpenFile
from postcommit.queue.lock import FileLock


PAUSED = ".paused"

# A relay may give a reason of any length; so many characters tell enough.
_LONGEST = 1000


@dataclass(frozen=True)
class Notice:
    """A living processor pauses; times are in seconds since the epoch.

    `next_attempt` is when it tries one entry; where that has passed, it will with
    the first one that is due. `reason` is one line, `process` the processor's id.
    """

    since: float
    next_attempt: float
    reason: str
    process: int


def posted(queue_path: str) -> Notice | None:
    """Return why the queue pauses; None where it does not, or none can be read.

    Of several processors that pause, the one that has failed last is heard.
    """
    try:
        lock = FileLock(f"{queue_path}/{PAUSED}")
        try:
            if lock.acquire(shared=True):
                return None  # its processor is dead
            told = json.loads(os.read(lock.descriptor, 1 << 16))
            return Notice(
                float(told["since"]),
                os.fstat(lock.descriptor).st_mtime,
                str(told["reason"]),
                int(told["process"]),
            )
        finally:
            lock.release()
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Board:
    """Where one processor posts its notice; to be used by one thread at a time.

    Nothing here raises an OSError: a pause must not become worse by being told.
    """

    def __init__(self, queue_path: str) -> None:
        self._queue_path = queue_path
        self._path = f"{queue_path}/{PAUSED}"
        self._lock: FileLock | None = None
        self._reason = ""
        self._since: float | None = None

    def post(self, reason: object, seconds: float) -> None:
        """Tell that the queue pauses, for so many more `seconds`."""
        now = time.time()
        if self._since is None:
            self._since = now
        told = " ".join(text_of(reason).split())[:_LONGEST]
        try:
            lock = self._lock
            if lock is not None and told == self._reason and self._leads_to(lock):
                os.utime(lock.descriptor, (now, now + seconds))
            else:
                self._write(told, self._since, now + seconds)
        except OSError:
            self._withdraw()  # rather nothing than what is not true any more

    def clear(self) -> None:
        """Tell that it does not pause any more."""
        self._since = None
        self._withdraw()

    def clean(self) -> None:
        """Remove what a dead processor has left behind."""
        try:
            lock = FileLock(self._path)
            try:
                if lock.acquire(shared=True):
                    remove(self._path)
            finally:
                lock.release()
        except OSError:
            pass  # it says nothing, wherever it is

    def _write(self, reason: str, since: float, next_attempt: float) -> None:
        notice = {"since": since, "reason": reason, "process": os.getpid()}
        # In tmp, from where a processor removes what a crash has left.
        temporary = os.path.join(self._queue_path, "tmp", unique_name())
        try:
            with OpenFile(temporary, CREATE) as file:
                write(file.descriptor, [json.dumps(notice).encode(), b"\n"])
            lock = FileLock(temporary)
            try:
                # Before others can see it: unlocked, it would say nothing.
                lock.acquire()
                os.utime(lock.descriptor, (since, next_attempt))
                os.rename(temporary, self._path)
            except OSError:
                lock.release()
                raise
        except OSError:
            remove(temporary)
            raise
        if self._lock is not None:
            self._lock.release()
        self._lock, self._reason = lock, reason

    def _withdraw(self) -> None:
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            # Another processor may post its own just now, and lose it by this;
            # it posts it again when it fails again.
            if self._leads_to(lock):
                remove(self._path)
        except OSError:
            pass  # without the lock it says nothing
        lock.release()

    def _leads_to(self, lock: FileLock) -> bool:
        """Tell whether the file at our path is the one of `lock`."""
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(lock.descriptor))
