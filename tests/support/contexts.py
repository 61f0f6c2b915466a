"""The exception that is being handled around a test."""
from __future__ import annotations

import sys


def outer_exception() -> BaseException | None:
    """Return what becomes the context of each exception that is raised now.

    It should be None. On Python 3.11, an interrupt at the last line of an ``except``
    block, as ``tests/functional/test_interrupts.py`` raises it, leaves the exception of
    the block behind for the rest of the thread.
    """
    return sys.exc_info()[1]
