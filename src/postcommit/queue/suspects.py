"""Entries that may be what the relay fails at: not it is in trouble, but they.

A relay may say 421, or nothing, to one recipient only, and do well with all others.
Whether it is the relay or the message, the others tell: so an entry in whose middle
the relay failed comes after them, and if they fare better, and it does not, the failure
is its own.
"""
from __future__ import annotations

import threading

from postcommit.queue.entry import stem


# So many are remembered; of more, the oldest are not suspected any more.
_MOST = 1000


class Suspects:
    """The suspects of one queue; may be used by several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers = 0
        # How many answers there had been when the relay failed at an entry.
        self._failed: dict[str, int] = {}

    def __contains__(self, path: str) -> bool:
        return bool(self._failed) and stem(path) in self._failed

    def __bool__(self) -> bool:
        return bool(self._failed)

    def answered(self, path: str) -> None:
        """Learn that the relay had an answer to the entry at `path`."""
        self._answers += 1  # should one be lost among threads, others follow
        if path in self:
            with self._lock:
                self._failed.pop(stem(path), None)

    def failed(self, path: str) -> bool:
        """Learn that the relay failed in the middle of the entry at `path`.

        Return whether the entry is to blame: for it was so before, and then others
        had an answer.
        """
        name = stem(path)
        with self._lock:
            before = self._failed.pop(name, self._answers)
            self._failed[name] = before
            if len(self._failed) > _MOST:
                del self._failed[next(iter(self._failed))]
            return self._answers > before
