"""Open files that a forked child does not keep.

A child of ``fork(2)`` inherits every descriptor of its parent. A copy of a locked
entry would keep the lock, and a copy of the wake-up pipe would look like a living
processor. Therefore each open file is an object that is registered here, and a child
closes its copies.

Another thread may fork between ``open(2)`` and the registration. One lock around both
would prevent that, but then every thread that opens a file would wait for the disk of
all others. Instead a file is noted while it is opened or closed, and a fork waits
until no other thread has such a file. Its wait is limited, so that a dead file server
cannot block a fork for ever: after one second, it goes on without the guarantee.
"""
from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from types import TracebackType
from weakref import ReferenceType
from weakref import ref


# Maximum number of seconds that a fork waits for other threads, and they for it.
_PATIENCE = 1.0

# Interval in seconds at which a fork looks at the other threads.
_LOOK = 0.0002


class OpenFile:
    """An open file; `descriptor` is -1 once it is closed, or in a forked child.

    A context manager that closes it. An object that is dropped closes itself.
    """

    descriptor = -1

    def __init__(self, path: str, flags: int, mode: int = 0o600) -> None:
        """Open `path` as `os.open` does. Raises OSError."""
        forks = _forks
        try:
            forks.busy[self] = threading.get_ident()
            if forks.thread:
                forks.wait(self)
            self.descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
            _open[id(self)] = ref(self)
        finally:
            forks.busy.pop(self, None)

    def close(self) -> None:
        """Close the file, if it is open. Raises OSError."""
        if self.descriptor == -1:
            return
        forks = _forks
        try:
            forks.busy[self] = threading.get_ident()
            if forks.thread:
                forks.wait(self)
            _open.pop(id(self), None)
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)
        finally:
            forks.busy.pop(self, None)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _drop(self) -> None:
        """Close an object that nobody refers to."""
        self.close()

    def __del__(self) -> None:
        try:
            self._drop()
        except (OSError, AttributeError):
            # Somebody else has closed it, or the interpreter ends, and this module
            # is gone already.
            pass


class _End(OpenFile):
    """One end of a pipe, opened by `open_pipe`."""

    def __init__(self) -> None:
        pass


def open_pipe() -> tuple[OpenFile, OpenFile]:
    """Return the reading and the writing end of a pipe that never blocks."""
    reader, writer = _End(), _End()
    forks = _forks
    try:
        forks.busy[reader] = threading.get_ident()
        if forks.thread:
            forks.wait(reader)
        reader.descriptor, writer.descriptor = os.pipe()
        for end in (reader, writer):
            _open[id(end)] = ref(end)
            os.set_blocking(end.descriptor, False)
    finally:
        forks.busy.pop(reader, None)
    return reader, writer


_open: dict[int, ReferenceType[OpenFile]] = {}


class _Forks:
    """The forks of this process; `thread` is the one that forks now, or 0.

    `busy` has the files that are just opened or closed, and by which thread.
    """

    def __init__(self) -> None:
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


_forks = _Forks()


def _after_in_child() -> None:
    global _forks
    _forks = _Forks()
    # The objects, not only their descriptors: a child gets the same numbers again.
    copies = [reference() for reference in list(_open.values())]
    for copy in filter(None, copies):
        with suppress(OSError):
            copy.close()


os.register_at_fork(
    before=lambda: _forks.before(),
    after_in_parent=lambda: _forks.after(),
    after_in_child=_after_in_child,
)
