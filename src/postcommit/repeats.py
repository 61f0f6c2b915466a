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


# Maximum number of repeats.
_REPEATS = 3

# Held during the repeats. The one who holds it may come here again: a subscriber sends
# mail, for example, which has subscribers of its own.
_repeating = threading.RLock()

# Maximum number of seconds to wait for the repeats of another thread. They may take
# long, or wait for something that this thread does.
_PATIENCE = 5.0


def _forget_the_parent() -> None:
    """Replace the lock: another thread of the parent may have held it."""
    global _repeating
    _repeating = threading.RLock()


os.register_at_fork(after_in_child=_forget_the_parent)


def repeat(attempt: Callable[[bool], bool]) -> None:
    """Call `attempt` until it returns True, up to four times.

    `attempt` returns False if it failed for now. Its argument is whether it is called
    again then; if not, it raises. Raises what `attempt` raises.
    """
    if _repeating.acquire(timeout=_PATIENCE):
        _repeating.release()
    if attempt(True):
        return
    repeating = _repeating
    is_alone = repeating.acquire(timeout=_PATIENCE)
    try:
        for left in reversed(range(_REPEATS)):
            if attempt(left > 0):
                return
    finally:
        if is_alone:
            repeating.release()
