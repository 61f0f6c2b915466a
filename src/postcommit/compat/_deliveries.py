"""The deliveries behind those of both libraries."""
from __future__ import annotations

import os
from abc import ABC
from abc import abstractmethod
from functools import lru_cache
from typing import Any

from postcommit._delivery.direct import DirectMailDelivery
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit.compat._relay import OlderMailer
from postcommit.interfaces import is_database_url


# Maximum number of queues that are kept open.
_MOST_QUEUES = 64


def queued_delivery(path: str) -> QueuedMailDelivery:
    """Return the delivery into the queue at `path`.

    It is the same for all callers, so that the mails of one transaction have one data
    manager, although an application makes a delivery for each of them. Another folder
    at this path is another queue. For example, a queue that was removed is created
    again.
    """
    if isinstance(path, str) and is_database_url(path):
        return _delivery_at(path, 0, 0)
    path = os.path.abspath(path)
    try:
        found = os.stat(path)
    except OSError:
        return QueuedMailDelivery(path)
    return _delivery_at(path, found.st_dev, found.st_ino)


@lru_cache(_MOST_QUEUES)
def _delivery_at(path: str, device: int, inode: int) -> QueuedMailDelivery:
    return QueuedMailDelivery(path)


class Direct(ABC):
    """The base of the direct deliveries. `mailer` may be set at any time."""

    def __init__(self, mailer: Any) -> None:
        self.mailer: Any = mailer
        self._kept: tuple[Any, DirectMailDelivery] | None = None

    @abstractmethod
    def _made(self, mailer: Any) -> DirectMailDelivery:
        """Return the delivery of ours that transmits through `mailer`."""

    def _direct(self) -> DirectMailDelivery:
        """Return the delivery of ours for the present mailer.

        It is the same as long as the mailer is the same, so that the mails of one
        transaction have one data manager.
        """
        mailer, kept = self.mailer, self._kept
        if kept is None or kept[0] is not mailer:
            kept = self._kept = mailer, self._made(mailer)
        return kept[1]

    def _check_mailer(self) -> None:
        """Raise for options of the mailer that can never work.

        The mail would be lost if they were noticed after the commit.
        """
        if isinstance(self.mailer, OlderMailer):
            self.mailer.check_options()
