"""What ``run`` and ``flush`` have in common: a queue that may be drained."""
from __future__ import annotations

import errno
import time

from postcommit.errors import QueueError
from postcommit.maildir import Maildir
from postcommit.queue.item import young_claims
from postcommit.queue.store import Store


def check_queue(path: str, *, create: bool) -> None:
    """Raise `QueueError` unless the queue at `path` can be drained.

    It has to be there, unless it may be created, and no processor of another
    library may work on it: that knows nothing of our locks.
    """
    try:
        Maildir(path, create=create)
    except QueueError as error:
        if create or error.errno != errno.ENOENT:
            raise
        reason = "there is no such queue; --create makes it"
        raise QueueError(path, reason) from error
    for claim in young_claims(Store(path), time.time()):
        reason = (
            "a processor of another library works on it: stop that; if none"
            " runs any more, remove this file"
        )
        raise QueueError(claim, reason)
