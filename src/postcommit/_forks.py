"""State that a forked child forgets: it takes no part in its parent's work.

A child of ``fork(2)`` gets a copy of each object, but none of the other threads. A copy
of an open file would keep the lock of an entry, a copy of a connection would write into
the parent's dialogue, and a lock that another thread held would never be released. So
an object that must not go on in a child is registered here, with the function that
makes its copy harmless::

    forks.register(self, Pool.forget)

The functions are called in the child in the order of the registrations, before
``os.fork`` returns there. One that raises is logged, and the others are called.
"""
from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from postcommit._log import Log


log = Log("postcommit.forks")

_registered: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()

# ``register(thing, in_child)`` has ``in_child(thing)`` called in each forked child, as
# long as `thing` lives. It is referred to weakly and found by its hash. A second
# registration replaces the first, in its place in the order.
register = _registered.__setitem__


def _after_in_child() -> None:
    for thing, in_child in list(_registered.items()):
        try:
            in_child(thing)
        except Exception:
            log.exception("%r cannot be forgotten in a forked child", thing)


os.register_at_fork(after_in_child=_after_in_child)
