"""A lock on an open file, which dies with the process that holds it.

The lock is an exclusive ``flock(2)``. The kernel drops it when its holder dies, so
there are no stale locks. A child that was forked in the meantime would share the lock:
it closes its copies (`OpenFile`), and `FileLock.release` unlocks before it closes.
"""
from __future__ import annotations

import fcntl
import os

from postcommit.log import Log
from postcommit.openfile import OpenFile


log = Log(__name__)


class FileLock(OpenFile):
    """The open file `path`, to be locked.

    Raises OSError if the file cannot be opened. A lock that is dropped without
    `release` is released.
    """

    _is_held = False

    def __init__(self, path: str) -> None:
        # For writing, because network file systems want it for the lock;
        # without waiting, should it be a pipe; and never through a symbolic
        # link, which could lead anywhere.
        super().__init__(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock, if it is free; return whether it was. Does not wait.

        A `shared` lock is for those who only look whether it is taken: they do
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
        """Release the lock, if it is held, and close. May be called again.

        `quickly` leaves the lock to the last copy of the descriptor: for a file
        that was removed.
        """
        if self.descriptor == -1:
            return  # called again, or our copy in a child
        try:
            try:
                if self._is_held and not quickly:
                    fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            finally:
                self.close()
        except OSError as error:
            # The work under the lock is done, and must not look as if it had
            # failed. The lock ends with this process at the latest.
            log.error("A lock cannot be given up: %s", error)

    def _drop(self) -> None:
        self.release()
