"""What ``run`` and ``flush`` have in common: a queue that may be drained."""
from __future__ import annotations

import errno

from postcommit.commands.owner import act_as_owner
from postcommit.errors import QueueError
from postcommit.maildir import Maildir
from postcommit.queue.item import refuse_young_claims
from postcommit.queue.store import Store


def check_queue(path: str, *, create: bool) -> None:
    """Raise `QueueError` unless the queue at `path` can be drained.

    It has to be there, unless it may be created, and no processor of another
    library may work on it. As root, act as its owner from now on.
    """
    act_as_owner(path, create=create)
    try:
        Maildir(path, create=create)
    except QueueError as error:
        if create or error.errno != errno.ENOENT:
            raise
        reason = "there is no such queue; --create makes it"
        raise QueueError(path, reason) from error
    refuse_young_claims(Store(path))
