"""The signs of a living processor, and how others wake or stop it.

Three files in the queue's folder:

============  =====================================================================
``.wakeup``   a named pipe. A commit writes a byte into it, and a processor sleeps
              until it is there. Without a reader, or without pipes in the file
              system, nothing happens: the polling interval remains. A processor
              lives if the pipe is open to read. The time of access is its last
              sign of life. Commits change the time of modification
``.paused``   why the queue pauses, as JSON. The time of modification is when the
              relay is tried next. The processor has it locked, and the kernel drops
              that lock with the processor, so a file without a lock means nothing
``.stopped``  a person has paused the queue: who, when and why, as JSON. While it is
              there, whatever its content, no processor takes an entry
============  =====================================================================

No entry depends on them. If one of the first two cannot be written, it is missing.
"""
from __future__ import annotations

import errno
import json
import math
import os
import select
import stat
import threading
import time
from contextlib import closing
from contextlib import suppress
from dataclasses import dataclass

from postcommit._log import Log
from postcommit._maildir.files import CREATE
from postcommit._maildir.files import READ_FLAGS
from postcommit._maildir.files import FileLock
from postcommit._maildir.files import OpenFile
from postcommit._maildir.files import explained
from postcommit._maildir.files import give_to_owner
from postcommit._maildir.files import open_pipe
from postcommit._maildir.files import remove
from postcommit._maildir.files import rename
from postcommit._maildir.files import sync
from postcommit._maildir.files import write
from postcommit._maildir.maildir import PROBE
from postcommit._maildir.maildir import unique_name
from postcommit.errors import text_of


log = Log("postcommit.maildir.presence")

WAKEUP = ".wakeup"
PAUSED = ".paused"
STOPPED = ".stopped"

# Maximum and minimum number of seconds between two signs of life.
_MOST_SECONDS = 10.0
_LEAST_SECONDS = 1.0

# Maximum length of a reason. A relay may give one of any length.
_LONGEST = 1000


# The pipe


def ring(queue_path: str) -> None:
    """Wake a processor of the queue, if any. Never raises."""
    path = f"{queue_path}/{WAKEUP}"
    if not os.access(path, os.F_OK):
        return  # this look costs less than a failure
    try:
        with closing(OpenFile(path, os.O_WRONLY | os.O_NONBLOCK)) as pipe:
            if stat.S_ISFIFO(os.fstat(pipe.descriptor).st_mode):
                os.write(pipe.descriptor, b"!")
    except OSError:
        # No pipe, or no reader, or the reader has just gone; or it is full, so the
        # reader wakes anyway.
        return


def heartbeat(queue_path: str) -> float | None:
    """Return when a running processor of the queue gave its last sign of life.

    In seconds since the epoch, or None if no processor is running. Raises OSError if
    that cannot be found out.
    """
    path = f"{queue_path}/{WAKEUP}"
    try:
        found = os.stat(path)
        if not stat.S_ISFIFO(found.st_mode):
            return None
        OpenFile(path, os.O_WRONLY | os.O_NONBLOCK).close()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return None
        raise
    return found.st_atime


def open_wakeup(queue_path: str) -> OpenFile:
    """Open the queue's pipe to read, and make it if it is missing. Raises OSError."""
    path = f"{queue_path}/{WAKEUP}"
    is_new = False
    try:
        os.mkfifo(path, 0o600)
        is_new = True
    except FileExistsError:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            raise
    # Also to write: a pipe without writers is at its end, which would always wake us.
    # A new pipe is not a link, unless the owner of the folder has just replaced it.
    follow = os.O_NOFOLLOW if is_new else 0
    pipe = OpenFile(path, os.O_RDWR | os.O_NONBLOCK | follow)
    # It may also have become the second name of another file of root's.
    if is_new and stat.S_ISFIFO(os.fstat(pipe.descriptor).st_mode):
        give_to_owner(pipe.descriptor, queue_path)
    return pipe


def lacks_pipes(folder: str) -> bool:
    """Return whether the file system of `folder`, a ``tmp``, lacks named pipes."""
    path = f"{folder}/{PROBE}-pipe"
    with suppress(OSError):
        os.unlink(path)
    try:
        os.mkfifo(path, 0o600)
    except OSError:
        # Only the pipe is the reason if a file is possible.
        with suppress(OSError), closing(OpenFile(path, CREATE)):
            return True
    finally:
        with suppress(OSError):
            os.unlink(path)
    return False


class Wakeup:
    """Wakes the thread that waits: from this process or, through the pipe, another.

    One thread waits and gives signs of life. Any may ring.
    """

    def __init__(self, queue_path: str) -> None:
        self._path = f"{queue_path}/{WAKEUP}"
        with explained(queue_path, "open a pipe"):
            self._inside = open_pipe()
        self._outside: list[OpenFile] = []
        self._lock = threading.RLock()  # a signal handler may ring
        self._trouble = self._missing = ""
        self.last_sign = -math.inf  # in `time.monotonic`
        self._found: os.stat_result | None = None
        self._open()
        self.give_sign()

    def _open(self) -> None:
        """Open the queue's pipe, in place of a pipe that no commit finds."""
        try:
            pipe = open_wakeup(os.path.dirname(self._path))
            found = os.fstat(pipe.descriptor)
        except OSError as error:
            if self._missing != str(error):
                self._missing = str(error)
                told = "%s: commits wake nobody, only polling: %s"
                log.warning(told, self._path, error)
            return
        with self._lock:
            if self._inside[1].descriptor == -1:
                pipe.close()  # it was closed in the meantime
                return
            self._found = found
            lost, self._outside = self._outside, [pipe]
            for old in lost:
                with suppress(OSError):
                    old.close()
        self._missing = ""
        if self.last_sign > -math.inf:
            log.warning("%s: is opened, it was replaced", self._path)
            self.ring()  # there may be work

    def close(self) -> None:
        """Close the pipe. After that, ringing does nothing."""
        # Asked without the lock: in a forked child, which keeps no open copy, a thread
        # that held it does not exist.
        if self._inside[1].descriptor == -1:
            return
        with self._lock:
            for end in (*self._inside, *self._outside):
                try:
                    end.close()
                except OSError as error:
                    log.warning("%s: cannot be closed: %s", self._path, error)

    def ring(self) -> None:
        """Wake the thread that waits, or will."""
        if self._inside[1].descriptor == -1:
            return
        with self._lock:
            try:
                os.write(self._inside[1].descriptor, b"!")
            except OSError:
                pass  # full, it was rung often enough; or closed a moment ago

    def give_sign(self) -> None:
        """Give a sign of life. Once a second is often enough."""
        now = time.monotonic()
        if now - self.last_sign >= _LEAST_SECONDS:
            self.last_sign = now
            # Commits do not find our pipe if somebody has replaced the folder, for
            # example by a copy.
            ours = self._found
            try:
                is_found = ours and os.path.samestat(os.stat(self._path), ours)
            except OSError:
                is_found = False
            if not is_found and self._inside[1].descriptor != -1:
                self._open()
            for pipe in self._outside:
                try:
                    os.utime(pipe.descriptor)
                    self._trouble = ""
                except OSError as error:
                    if self._trouble != str(error):
                        self._trouble = str(error)
                        log.warning("%s: no sign of life: %s", self._path, error)

    def wait(self, timeout: float) -> bool:
        """Sleep until the bell rings, `timeout` seconds at most. Return if they did."""
        deadline = time.monotonic() + max(0.0, timeout)
        while True:
            left = max(0.0, deadline - time.monotonic())
            poll = select.poll()
            for reader in (self._inside[0], *self._outside):
                poll.register(reader.descriptor, select.POLLIN)
            rung = poll.poll(min(left, _MOST_SECONDS) * 1000)
            for descriptor, _ in rung:
                with suppress(BlockingIOError):  # another processor may have read it
                    os.read(descriptor, 65536)
            self.give_sign()  # this may open the pipe again
            if rung or not left:
                return bool(rung)


# The pause


@dataclass(frozen=True)
class Pause:
    """A living processor pauses. Times are in seconds since the epoch.

    `next_attempt` is when it tries one entry. If that has passed, it tries the first
    that is due. `reason` is one line, `process` the processor's id.
    """

    since: float
    next_attempt: float
    reason: str
    process: int


def pause_of(queue_path: str) -> Pause | None:
    """Return why the queue pauses, or None if it does not, or nothing can be read.

    Of several processors that pause, it is that which failed last.
    """
    try:
        lock = FileLock(f"{queue_path}/{PAUSED}")
        try:
            if lock.acquire(shared=True):
                return None  # its processor is dead
            told = json.loads(os.read(lock.descriptor, 1 << 16))
            return Pause(
                float(told["since"]),
                os.fstat(lock.descriptor).st_mtime,
                str(told["reason"]),
                int(told["process"]),
            )
        finally:
            lock.release()
    except (OSError, ValueError, TypeError, KeyError):
        return None


# The pause by hand


@dataclass(frozen=True)
class Stopped:
    """A person has paused the queue. `since` is in seconds since the epoch.

    `who` and `reason` are empty if the note cannot be read.
    """

    since: float
    who: str = ""
    reason: str = ""

    def __str__(self) -> str:
        by = f" by {self.who}" if self.who else ""
        return f"paused by hand{by}{f': {self.reason}' if self.reason else ''}"


def stopped(queue_path: str) -> Stopped | None:
    """Return who has paused the queue, or None."""
    path = f"{queue_path}/{STOPPED}"
    try:
        since = os.lstat(path).st_mtime
    except OSError:
        return None
    try:
        with closing(OpenFile(path, READ_FLAGS)) as file:
            told = json.loads(os.read(file.descriptor, 1 << 16))
        return Stopped(float(told["since"]), str(told["who"]), str(told["reason"]))
    except (OSError, ValueError, TypeError, KeyError):
        return Stopped(since)


def stop(queue_path: str, who: str, reason: str) -> bool:
    """Pause the queue. Return False if it is paused already. Raises OSError."""
    note = {"since": time.time(), "who": who, "reason": " ".join(reason.split())}
    temporary = os.path.join(queue_path, "tmp", unique_name())
    try:
        with closing(OpenFile(temporary, CREATE)) as file:
            give_to_owner(file.descriptor, queue_path)
            write(file.descriptor, [json.dumps(note).encode(), b"\n"])
            os.fsync(file.descriptor)
        rename(temporary, f"{queue_path}/{STOPPED}")
    except FileExistsError:
        remove(temporary)
        return False
    except OSError:
        remove(temporary)
        raise
    sync(queue_path)
    return True


def resume(queue_path: str) -> bool:
    """End the pause. Return False if it was missing. Raises OSError."""
    try:
        os.unlink(f"{queue_path}/{STOPPED}")
    except FileNotFoundError:
        return False
    sync(queue_path)
    return True


# The note of a processor


@dataclass
class PauseNote:
    """The note of one processor that it pauses. One thread at a time may use it.

    Its methods raise no OSError: a pause must not become worse by being shown.
    """

    _queue_path: str
    lock: FileLock | None = None  # of the note, if any
    _reason: str = ""
    _since: float | None = None

    @property
    def _path(self) -> str:
        return f"{self._queue_path}/{PAUSED}"

    def post(self, reason: object, seconds: float) -> None:
        """Show that the queue pauses, for `seconds` more."""
        now = time.time()
        if self._since is None:
            self._since = now
        told = " ".join(text_of(reason).split())[:_LONGEST]
        try:
            lock = self.lock
            if lock is not None and told == self._reason and self._leads_to(lock):
                os.utime(lock.descriptor, (now, now + seconds))
            else:
                self._write(told, self._since, now + seconds)
        except OSError:
            self._withdraw()  # better than an outdated note

    def clear(self) -> None:
        """Show that it does not pause any more."""
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
            pass  # without a lock it means nothing

    def _write(self, reason: str, since: float, next_attempt: float) -> None:
        note = {"since": since, "reason": reason, "process": os.getpid()}
        # In tmp, from where a processor removes what a crash has left.
        temporary = os.path.join(self._queue_path, "tmp", unique_name())
        try:
            with closing(OpenFile(temporary, CREATE)) as file:
                give_to_owner(file.descriptor, self._queue_path)
                write(file.descriptor, [json.dumps(note).encode(), b"\n"])
            lock = FileLock(temporary)
            try:
                # Before others can see it: unlocked, it would mean nothing.
                lock.acquire()
                os.utime(lock.descriptor, (since, next_attempt))
                os.rename(temporary, self._path)
            except OSError:
                lock.release()
                raise
        except OSError:
            remove(temporary)
            raise
        if self.lock is not None:
            self.lock.release()
        self.lock, self._reason = lock, reason

    def _withdraw(self) -> None:
        lock, self.lock = self.lock, None
        if lock is None:
            return
        try:
            # Another processor may post its own note just now, and lose it by this;
            # it posts it again when it fails again.
            if self._leads_to(lock):
                remove(self._path)
        except OSError:
            pass  # without the lock it means nothing
        lock.release()

    def _leads_to(self, lock: FileLock) -> bool:
        """Return whether the file at our path is the one of `lock`."""
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(lock.descriptor))
