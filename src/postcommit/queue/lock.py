"""A lock on an open file, which dies with the process that holds it.

An exclusive ``flock(2)``: the kernel drops it with its holder, so there are no
stale locks. Two things would keep it beyond that, and are seen to here: a
child that was forked in between shares the lock, so it closes its copies; and
the lock is released by name, not left to close().
"""
from __future__ import annotations

import fcntl
import os


_descriptors: set[int] = set()


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
        _descriptors.add(self.descriptor)

    def acquire(self) -> bool:
        """Take the lock, if nobody has it. Does not wait."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self, *, quickly: bool = False) -> None:
        """Give up the lock, if we have it, and close. May be called again.

        `quickly` will do where nobody else can come to want the lock.
        """
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor in _descriptors:  # not so in a child, or when called again
            _descriptors.discard(descriptor)
            if not quickly:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _close_copies() -> None:
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_close_copies)
