"""Transactions that are repeated because they failed for now, one at a time.

The events of a processor's workers often change the same object, so the transactions
of their subscribers conflict. To repeat a transaction at once is not enough: while it
runs, the others commit, and it fails again. With four workers and a subscriber of 5
ms, 82 of 300 rejections were lost after three repeats. So only one transaction is
repeated at a time, and new ones wait until it has ended.
"""
from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any


# Maximum number of repeats.
_REPEATS = 3

# Held during the repeats. The one who holds it may come here again: a subscriber sends
# mail, for example, which has subscribers of its own.
_repeating = threading.RLock()

# Maximum number of seconds to wait for the repeats of another thread.
_PATIENCE = 5.0


def _replace(lock: Any) -> None:
    """Replace `lock`, if that was not done yet: its holder will not release it."""
    global _repeating
    _repeating = threading.RLock() if _repeating is lock else _repeating


# The holder may be a thread of the parent.
os.register_at_fork(after_in_child=lambda: _replace(_repeating))


def repeat(attempt: Callable[[bool], bool]) -> None:
    """Call `attempt` until it returns True, up to four times.

    `attempt` returns False if it failed for now. Its argument is whether it is called
    again then; if not, it raises. Raises what `attempt` raises.
    """
    _acquired().release()
    if attempt(True):
        return
    repeating = _acquired()
    left = _REPEATS - 1
    try:
        while not attempt(left > 0):
            left -= 1
    finally:
        repeating.release()


def _acquired() -> Any:
    """Return the lock, acquired.

    Its holder may take long, wait for something that this thread does, or have been
    interrupted before it released the lock. Then there is a new lock for all.
    """
    lock = _repeating
    while not lock.acquire(timeout=_PATIENCE):
        _replace(lock)
        lock = _repeating
    return lock
