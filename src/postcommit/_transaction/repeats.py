"""Transactions that are repeated because they failed for now, each alone.

The events of a processor's workers often change the same object, so the transactions
of their subscribers conflict. To repeat a transaction at once is not enough: while it
runs, the others commit, and it fails again. With four workers and a subscriber of 5
ms, 82 of 300 rejections were lost after three repeats. So only one transaction is
repeated at a time, and new ones wait until it has ended.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from postcommit import _forks as forks


# Maximum number of repeats.
_REPEATS = 3

# Maximum number of seconds to wait for the repeats of another thread.
_PATIENCE = 5.0


class _Turn:
    """Held by a thread during its repeats.

    The thread that holds it may come here again: a subscriber sends mail, for example,
    which has subscribers of its own.
    """

    def __init__(self) -> None:
        self.renew()
        forks.register(self, _Turn.renew)  # the holder may be a thread of the parent

    def renew(self) -> None:
        """Replace the lock: its holder will not release it."""
        self.lock: Any = threading.RLock()

    def acquired(self) -> Any:
        """Return the lock, acquired.

        Its holder may take long, wait for something that this thread does, or have been
        interrupted before it released the lock. Then there is a new lock for all.
        """
        lock = self.lock
        while not lock.acquire(timeout=_PATIENCE):
            if self.lock is lock:  # no other thread has replaced it
                self.renew()
            lock = self.lock
        return lock


_turn = _Turn()


def repeat(attempt: Callable[[bool], bool]) -> None:
    """Call `attempt` until it returns True, up to four times.

    `attempt` returns False if it failed for now. Its argument is whether it is called
    again then. If not, it raises. Raises what `attempt` raises.
    """
    _turn.acquired().release()
    if attempt(True):
        return
    lock = _turn.acquired()
    left = _REPEATS - 1
    try:
        while not attempt(left > 0):
            left -= 1
    finally:
        lock.release()
