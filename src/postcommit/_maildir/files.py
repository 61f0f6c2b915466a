"""Files and folders: opened, locked, written in few calls, durable, with clear errors.

A child of ``fork(2)`` inherits every descriptor of its parent. A copy of a locked entry
would keep the lock, and a copy of the wake-up pipe would look like a living processor.
Therefore each open file is an object that is known here, and a child closes its copies.

Another thread may fork between ``open(2)`` and the moment when the object is known. One
lock around both would prevent that, but then every thread that opens a file would wait
for the disk of all others. Instead a file is noted while it is opened or closed, and a
fork waits until no other thread has such a file. Its wait is limited, so that a dead
file server cannot block a fork forever: after one second, it goes on without the
guarantee.
"""
from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from weakref import ref

from postcommit import _forks as forks
from postcommit._log import Log
from postcommit.errors import QueueError


log = Log("postcommit.maildir.files")

CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC

# Flags to open the file of an entry for reading: never through a symbolic link, and
# without waiting for a pipe.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# Maximum number of bytes that are written in one call.
ONE_WRITE = 1 << 16

# Of <linux/stat.h>, <linux/fs.h> and <fcntl.h>.
_STATX_BTIME = 0x800
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100

# Errors of a kernel, a file system or a filter of system calls without renameat2.
_WITHOUT_RENAMEAT2 = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)

# Maximum number of seconds that a fork waits for other threads, and they for it.
_PATIENCE = 1.0

# Interval in seconds at which a fork looks at the other threads.
_LOOK = 0.0002


class OpenFile:
    """An open file; `descriptor` is -1 once it is closed, or in a forked child.

    An object that is dropped closes itself.
    """

    descriptor = -1
    _is_locked = False
    # Flags with which each file of the class is opened.
    _flags = os.O_CLOEXEC

    def __init__(self, path: str, flags: int = os.O_RDWR, mode: int = 0o600) -> None:
        """Open `path` as `os.open` does. Raises OSError."""
        guard = _guard
        try:
            guard.busy[self] = threading.get_ident()
            if guard.thread:
                guard.wait(self)
            self.descriptor = os.open(path, flags | self._flags, mode)
            guard.open[self.descriptor] = ref(self)
        finally:
            guard.busy.pop(self, None)

    def close(self) -> None:
        """Close the file, if it is open, and unlock it before. Raises OSError."""
        if self.descriptor == -1:
            return
        guard = _guard
        try:
            guard.busy[self] = threading.get_ident()
            if guard.thread:
                guard.wait(self)
            descriptor, self.descriptor = self.descriptor, -1
            try:
                if self._is_locked:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                os.close(descriptor)
        finally:
            guard.busy.pop(self, None)

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, AttributeError):
            # Somebody else has closed it, or the interpreter ends, and this module
            # is gone already.
            pass


class FileLock(OpenFile):
    """The open file `path`, to be locked by an exclusive ``flock(2)``.

    The kernel drops the lock when its holder dies, so a lock is never stale. A child
    that was forked in the meantime would share it. So the child closes its copies, and
    `close` unlocks before it closes, as does an object that is dropped. Raises OSError
    if the file cannot be opened.
    """

    # Without waiting, should it be a pipe; and never through a symbolic link, which
    # could lead anywhere. By default it is open for writing, too, because network file
    # systems want that for the lock.
    _flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock, if it is free. Return whether it was. Does not wait.

        A `shared` lock is for those who only look whether it is taken: they do
        not take each other for its holder.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._is_locked = True
        return True

    def release(self, *, removed: bool = False) -> None:
        """Close, but log what fails. May be called again.

        With `removed` the file was removed. Then the lock is left to the last
        copy of the descriptor, which saves a call.
        """
        try:
            self._is_locked &= not removed
            self.close()
        except OSError as error:
            # The work under the lock is done, and must not look as if it had
            # failed. The lock ends with this process at the latest.
            log.error("A lock cannot be given up: %s", error)


def open_pipe() -> tuple[OpenFile, OpenFile]:
    """Return the reading and the writing end of a pipe that never blocks."""
    reader, writer = OpenFile.__new__(OpenFile), OpenFile.__new__(OpenFile)
    guard = _guard
    try:
        guard.busy[reader] = threading.get_ident()
        if guard.thread:
            guard.wait(reader)
        reader.descriptor, writer.descriptor = os.pipe()
        for end in (reader, writer):
            guard.open[end.descriptor] = ref(end)
        os.set_blocking(reader.descriptor, False)
        os.set_blocking(writer.descriptor, False)
    finally:
        guard.busy.pop(reader, None)
    return reader, writer


class _Guard:
    """The open files of this process, and its forks.

    `open` has them by their descriptors, and closed files whose descriptors were not
    used again. `thread` forks now, or 0. `busy` has the files that are just opened or
    closed, and by which thread.
    """

    def __init__(self) -> None:
        self.open: dict[int, ref[OpenFile]] = {}
        self._begin()

    def _begin(self) -> None:
        self.thread = 0
        self.lock = threading.RLock()  # held during a fork
        self.busy: dict[OpenFile, int] = {}

    def wait(self, file: OpenFile) -> None:
        """Wait until no other thread forks; `file` is not opened or closed before.

        The thread that forks may wait for a lock that this one holds: that of
        `logging`, for example. So the wait is limited.
        """
        thread = threading.get_ident()
        until = time.monotonic() + _PATIENCE
        # First the note, then the look. A fork does it the other way round.
        while self.thread not in (0, thread) and time.monotonic() < until:
            del self.busy[file]
            self.lock.acquire(timeout=_PATIENCE)
            with suppress(RuntimeError):  # the fork takes longer
                self.lock.release()
            self.busy[file] = thread

    def before(self) -> None:
        """Have other threads open and close nothing until `after`."""
        self.lock.acquire(timeout=_PATIENCE)
        self.thread = thread = threading.get_ident()
        until = time.monotonic() + _PATIENCE
        while {*self.busy.copy().values()} - {thread} and time.monotonic() < until:
            time.sleep(_LOOK)

    def after(self) -> None:
        """Let other threads go on."""
        self.thread = 0
        with suppress(RuntimeError):  # another fork has kept the lock for too long
            self.lock.release()

    def in_child(self) -> None:
        """Close the copies of a child, in which no other thread runs."""
        self._begin()
        # The objects, not only their descriptors: a child gets the same numbers again.
        for known in list(self.open.values()):
            copy = known()
            if copy is not None:
                copy._is_locked = False  # the lock is the parent's
                with suppress(OSError):
                    copy.close()


_guard = _Guard()
forks.register(_guard, _Guard.in_child)
os.register_at_fork(before=_guard.before, after_in_parent=_guard.after)


@dataclass
class explained(AbstractContextManager[Any]):
    """Turns an OSError of the body into a `QueueError` that names `path`.

    `kind` is the class of the error. A `QueueError` stays as it is.
    """

    path: str
    doing: str
    kind: type[QueueError] = QueueError

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, QueueError):
            raise unable(self.path, self.doing, error, self.kind) from error


def optional(name: str) -> Any:
    """Return the module `name`, None if this Python does not have it."""
    try:
        return import_module(name)
    except ImportError:
        return None


# Imported now: a child that is forked during a later import would wait without end.
_ctypes = optional("ctypes")


def _of_libc(name: str) -> Any:
    """Return a function of the C library, or None if it or ctypes is missing."""
    try:
        library = _ctypes and _ctypes.CDLL(None, use_errno=True)
    except (OSError, MemoryError):
        return None
    return getattr(library, name, None)


_renameat2 = _of_libc("renameat2")


def unable(
    path: str, doing: str, error: OSError, kind: type[QueueError] = QueueError
) -> QueueError:
    """Return `error` as a `QueueError` of this `kind` that names `path`."""
    return kind(path, f"cannot {doing}: {error.strerror or error}", error)


def sync(path: str) -> None:
    """Have the folder at `path` written to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_to_owner(descriptor: int, folder: str) -> None:
    """Give a new file, still closed to others, to the owner of `folder`.

    Only if root has made it, in a folder of somebody else. A processor that runs as the
    owner could neither read nor lock it otherwise. Raises OSError.
    """
    if os.geteuid() == 0:
        found = os.stat(folder)
        if found.st_uid != 0:
            os.fchown(descriptor, found.st_uid, found.st_gid)


def birth_time(path: str) -> float | None:
    """Return when the file or folder at `path` was created, by ``statx(2)``.

    In seconds since the epoch. None if the system, the file system, or a Python whose
    ctypes is missing or forbidden does not say it.
    """
    statx = _of_libc("statx")
    if statx is None:
        return None
    answer = _ctypes.create_string_buffer(256)
    if statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, answer):
        return None
    [mask] = struct.unpack_from("=I", answer, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", answer, 80)
    return seconds + nanoseconds / 1e9 if mask & _STATX_BTIME else None


def rename(source: str, target: str) -> None:
    """Rename `source` to `target`, but never replace a file.

    Raises FileExistsError if `target` is taken, and another OSError if it fails.

    ``rename(2)`` replaces. A link to the new name and a removal of the old name would
    not, but a crash between them would leave an entry under two names, and it would be
    sent twice. So the kernel is asked not to replace (``renameat2``). Where it cannot
    do that, for example on NFS, we look first. Then another process could still take
    the name in between, but our names have 64 random bits.
    """
    failure = errno.ENOSYS
    if _renameat2 is not None:
        here, there = os.fsencode(source), os.fsencode(target)
        if not _renameat2(_AT_FDCWD, here, _AT_FDCWD, there, _RENAME_NOREPLACE):
            return
        failure = _ctypes.get_errno()
    if failure in _WITHOUT_RENAMEAT2:
        if not os.path.lexists(target):
            os.rename(source, target)
            return
        failure = errno.EEXIST
    raise OSError(failure, os.strerror(failure), source, None, target)


def remove(path: str) -> None:
    """Remove the file `path`, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def write(
    descriptor: int, pieces: Sequence[bytes | memoryview], checksum: int = 0
) -> int:
    """Write all of `pieces`, in few calls, and return the checksum with them."""
    if sum(map(len, pieces)) <= ONE_WRITE:
        pieces = (b"".join(pieces),)
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        written = os.write(descriptor, piece)
        while written < len(piece):
            written += os.write(descriptor, memoryview(piece)[written:])
    return checksum
