"""Accepts mail into a queue when the transaction commits.

A process that only does this imports neither `smtplib` nor `ssl`, which take 2 MB.
"""
from __future__ import annotations

import functools
import time

from zope.interface import implementer

from postcommit._config.options import checked_message_id
from postcommit._config.options import checked_queue_path
from postcommit._delivery.base import BaseDelivery
from postcommit._kinds.queue import name_of
from postcommit._kinds.queue import open_queue
from postcommit._mail.message import compose
from postcommit._mail.terms import terms_of
from postcommit._transaction.datamanager import DataManager
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IDefaultSender
from postcommit.interfaces import IQueuedMailDelivery
from postcommit.interfaces import Moment
from postcommit.interfaces import Sendable
from postcommit.interfaces import TransactionManager


@implementer(IQueuedMailDelivery)
class QueuedMailDelivery(BaseDelivery):
    """Accepts messages into a queue, see `IQueuedMailDelivery`.

    Raises `OptionError` for a text that can never be a path or a URL. The first `send`
    opens the queue. It creates a folder that is missing, and raises `QueueError` if the
    parent is missing, or if the path is a file or another folder. A queue in a database
    must be there.
    """

    def __init__(
        self,
        queuePath: str,
        *,
        default_sender: str | None = IDefaultSender["default_sender"].default,
        transaction_manager: TransactionManager | None = None,
    ) -> None:
        super().__init__(default_sender, transaction_manager)
        self.queuePath: str = checked_queue_path(IQueuedMailDelivery, queuePath)
        # Opened once, also for the copies that `bind` makes.
        queue = functools.cache(functools.partial(open_queue, self.queuePath))
        self._queue, self._batch = queue, lambda: queue().batch()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {name_of(self.queuePath)}>"

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
        *,
        not_before: Moment | None = None,
        expires: Moment | None = None,
        bulk: bool = False,
    ) -> str:
        """Send `message` when the transaction has committed; return its message id.

        The mail waits until `not_before`. It becomes a dead letter if it was not sent
        before `expires`. With `bulk` it comes after all other mail. A time is an aware
        datetime, the seconds since the epoch, or a timedelta from now.

        `fromaddr` is the envelope's sender, for example ``"shop@example.org"``, and
        ``""`` is the null sender. `toaddrs` is one address or an iterable of them. None
        means the addresses of the header. `message` is an `EmailMessage`, bytes, or a
        str with header and body.

        Raises `AddressError`, `MessageError` or `QueueError` for what cannot be sent,
        and `OptionError` for times at which it never could be. See `IMailDelivery` and
        `IScheduledMailDelivery`.
        """
        terms = None  # those of an ordinary mail
        if not_before is not None or expires is not None or bulk is not False:
            terms = terms_of(not_before, expires, bulk, time.time())
        mail = compose(fromaddr, toaddrs, message, self.default_sender)
        manager = self.transaction_manager
        data_manager = DataManager.of(self._owner, self._batch, manager)
        item = self._queue().stage(
            mail.sender,
            mail.recipients,
            (mail.header, mail.body),
            terms=terms,
            is_first=not data_manager.items,
        )
        data_manager.add(item)
        return mail.message_id

    def cancel(self, message_id: str) -> bool:
        """Call off a mail that has not been sent, when the transaction commits.

        `message_id` is what `send` returned. Returns False if the mail is being sent,
        was sent, or is unknown. See `IScheduledMailDelivery`.
        """
        wanted = checked_message_id(message_id)
        manager = self.transaction_manager
        data_manager = DataManager.of(self._owner, self._batch, manager)
        item = self._queue().cancel(wanted, data_manager.items)
        if item is None:
            return False
        data_manager.add(item)
        return True
