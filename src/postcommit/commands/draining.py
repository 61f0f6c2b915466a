"""What ``run`` and ``flush`` have in common: a queue that may be drained."""
from __future__ import annotations

import errno

from postcommit.commands.owner import act_as_owner
from postcommit.errors import QueueError
from postcommit.maildir import Maildir
from postcommit.queue import mark
from postcommit.queue.item import refuse_young_claims
from postcommit.queue.store import Store


def check_queue(path: str, *, create: bool, adopt: bool) -> None:
    """Raise `QueueError` unless the queue at `path` can be drained.

    It must exist, unless `create` is true. It must not be a mailbox, unless `adopt`
    is true. No processor of another library may work on it. As root, act as its owner
    from now on.
    """
    act_as_owner(path, create=create)
    try:
        Maildir(path, create=create)
    except QueueError as error:
        if create or error.errno != errno.ENOENT:
            raise
        reason = "there is no such queue; --create makes it"
        raise QueueError(path, reason) from error
    if adopt:
        mark.adopt(path)
    refuse_young_claims(Store(path))
