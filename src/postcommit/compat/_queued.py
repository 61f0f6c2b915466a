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
    manager, although an application makes a delivery for each of them.
    """
    return _delivery_at(os.path.abspath(path))


_delivery_at = lru_cache(_MOST_QUEUES)(QueuedMailDelivery)
