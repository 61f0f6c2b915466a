"""What is the matter with entries: the log hears of each once, not at every look."""
from __future__ import annotations

import errno
import time
from collections.abc import Callable

from postcommit.errors import QueueError
from postcommit.errors import text_of
from postcommit.files import unable
from postcommit.log import Log


log = Log(__name__)

# So many files that make trouble are remembered, and for so many seconds.
_MOST = 1000
_REMEMBERED = 3600.0

# What every other file would fare alike with: all descriptors in use, a disk that
# cannot be written to, a file system that has no locks.
_OF_ALL = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.EROFS,
        errno.ENOLCK,
        errno.EOPNOTSUPP,
    }
)


class Troubles:
    """The files of the queue at `queue_path` that make trouble.

    Several threads may use it. `clock` returns seconds that only ever grow.
    """

    def __init__(
        self, queue_path: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue_path = queue_path
        self._clock = clock
        self._told: dict[str, str] = {}
        self._is_full = False
        self._since = clock()

    def of_all(self, error: Exception) -> QueueError | None:
        """Return the trouble of the whole queue that `error` is, if it is one.

        It names the queue: whichever entry meets it, it is one and the same.
        """
        if isinstance(error, OSError) and error.errno in _OF_ALL:
            return unable(self._queue_path, "work on the entries", error)
        return None

    def log(self, path: str, error: Exception) -> None:
        """Log what is the matter with `path`, unless it was already."""
        if self._clock() - self._since > _REMEMBERED:
            self._told.clear()
            self._is_full = False
            self._since = self._clock()
        text = text_of(error)
        if self._told.get(path) == text:
            return
        if path in self._told or len(self._told) < _MOST:
            self._told[path] = text
            log.error("%s: left in the queue", path, exc_info=error)
        elif not self._is_full:
            self._is_full = True
            log.error(
                "%s: more than %d entries are left in the queue; no more are named",
                self._queue_path,
                _MOST,
            )

    def forget(self, path: str) -> None:
        """It was dealt with: the next trouble with `path` is news."""
        self._told.pop(path, None)
