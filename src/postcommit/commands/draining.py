"""What ``run`` and ``flush`` have in common: a queue that may be drained."""
from __future__ import annotations

import errno
import os
import time

from postcommit.errors import QueueError
from postcommit.maildir import Maildir
from postcommit.queue.store import FOREIGN_CLAIM_AGE


_CLAIM = ".sending-"


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
    for folder in ("new", "cur"):
        _check_claims(os.path.join(path, folder))


def _check_claims(folder: str) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_CLAIM) and _is_recent(entry):
                reason = (
                    "a processor of another library works on it: stop that; if none"
                    " runs any more, remove this file"
                )
                raise QueueError(entry.path, reason)


def _is_recent(entry: os.DirEntry[str]) -> bool:
    try:
        return time.time() - entry.stat().st_mtime < FOREIGN_CLAIM_AGE
    except FileNotFoundError:
        return False  # given up just now
