"""The queued deliveries behind those of both libraries."""
from __future__ import annotations

import os
from functools import lru_cache

from postcommit._delivery import QueuedMailDelivery


# Maximum number of queues that are kept open.
_MOST_QUEUES = 64


def queued_delivery(path: str) -> QueuedMailDelivery:
    """Return the delivery into the queue at `path`.

    It is the same for all callers, so that the mails of one transaction have one data
    manager, although an application makes a delivery for each of them. Another folder
    at this path is another queue. For example, a queue that was removed is created
    again.
    """
    path = os.path.abspath(path)
    try:
        found = os.stat(path)
    except OSError:
        return QueuedMailDelivery(path)
    return _delivery_at(path, found.st_dev, found.st_ino)


@lru_cache(_MOST_QUEUES)
def _delivery_at(path: str, device: int, inode: int) -> QueuedMailDelivery:
    return QueuedMailDelivery(path)
