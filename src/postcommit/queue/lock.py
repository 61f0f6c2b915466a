"""A lock on an open file, which dies with the process that holds it.

An exclusive ``flock(2)``: the kernel drops it with its holder, so there are no
stale locks. Two things would keep it beyond that, and are seen to here: a
child that was forked in between shares the lock, so it closes its copies; and
the lock is released by name, not left to close().
"""
from __future__ import annotations

import fcntl
import os

from postcommit.log import Log


log = Log(__name__)

_open: set[FileLock] = set()


class FileLock:
    """The open file `path`, to be locked.

    Raises OSError where it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        # For writing, because network file systems want it for the lock;
        # without waiting, should it be a pipe; and never through a symbolic
        # link, which could lead anywhere.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self.descriptor = os.open(path, flags)
        self._is_held = False
        _open.add(self)

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock, if nobody has it. Does not wait.

        A `shared` one is for those who only look whether it is taken: they do
        not take each other for its holder.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._is_held = True
        return True

    def release(self, *, quickly: bool = False) -> None:
        """Give up the lock, if we have it, and close. May be called again.

        `quickly` will do where nobody else can come to want the lock.
        """
        try:
            _open.remove(self)
        except KeyError:
            return  # called again, or our copy in a child
        descriptor, self.descriptor = self.descriptor, -1
        try:
            try:
                if self._is_held and not quickly:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                os.close(descriptor)
        except OSError as error:
            # What the lock was for is done, and must not look as if it had
            # failed. At the latest, the lock goes with this process.
            log.error("A lock cannot be given up: %s", error)


def _close_copies() -> None:
    # The objects, not just their descriptors: a child may get the same numbers
    # for files of its own.
    while _open:
        copy = _open.pop()
        descriptor, copy.descriptor = copy.descriptor, -1
        os.close(descriptor)


os.register_at_fork(after_in_child=_close_copies)
