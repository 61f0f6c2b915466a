"""A delivery that fills an outbox, in the place of a delivery with a queue."""
from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import cast

from zope.interface import implementer_only

from postcommit._config.options import checked_message_id
from postcommit._delivery.direct import DirectMailDelivery
from postcommit._delivery.direct import Transmitting
from postcommit._mail.message import Composed
from postcommit._mail.message import compose
from postcommit._mail.terms import terms_of
from postcommit._transaction.datamanager import DataManager
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import Batch
from postcommit.interfaces import IDefaultSender
from postcommit.interfaces import IScheduledMailDelivery
from postcommit.interfaces import Moment
from postcommit.interfaces import Sendable
from postcommit.testing.mailer import RecordingMailer
from postcommit.testing.outbox import Mail


@dataclass(eq=False)
class _CalledOff:
    """An item of a batch: what is taken back when the transaction commits."""

    mails: list[Mail]
    composed: list[Composed]


@implementer_only(IScheduledMailDelivery, IDefaultSender)
class RecordingDelivery(DirectMailDelivery):
    """Puts mail into the outbox of `mailer` at once, with its times.

    A mail with `not_before` or `bulk` counts as one that waits, so `cancel` takes it
    out of the outbox again.
    """

    mailer: RecordingMailer

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
        """Record `message` when the transaction commits; return its message id.

        Arguments and errors are those of `IScheduledMailDelivery`.
        """
        terms = terms_of(not_before, expires, bulk, time.time())
        mail = compose(fromaddr, toaddrs, message, self.default_sender)
        mail.terms = terms
        return self._add(mail)

    def cancel(self, message_id: str) -> bool:
        """Take a mail that waits out of the outbox, when the transaction commits.

        Returns False if no such mail waits. See `IScheduledMailDelivery`.
        """
        wanted = checked_message_id(message_id)
        manager = self.transaction_manager
        data_manager = DataManager.of(self._owner, self._batch, manager)
        earlier = [i for i in data_manager.items if isinstance(i, _CalledOff)]
        gone = {id(mail) for item in earlier for mail in item.mails}
        waiting = (mail for mail in self.mailer.outbox if _waits(mail, wanted))
        item = _CalledOff(
            [mail for mail in waiting if id(mail) not in gone],
            [c for c in _accepted(data_manager.items) if c.message_id == wanted],
        )
        if not item.mails and not item.composed:
            return False
        data_manager.add(item)
        return True

    def _batch(self) -> Batch:
        return _Recording(
            self.mailer, self._check, self.transaction_manager, self._sort_key
        )


class _Recording(Transmitting):
    """The messages of one transaction, less those that are called off."""

    def prepare(self, items: Sequence[Any], *, alone: bool = False) -> None:
        super().prepare(_accepted(items), alone=alone)

    def publish(self, items: Sequence[Any]) -> Callable[[], None]:
        afterwards = super().publish(_accepted(items))
        outbox = cast(RecordingMailer, self._mailer).outbox
        for item in items:
            if isinstance(item, _CalledOff):
                for mail in item.mails:
                    outbox.remove(mail)
        return afterwards

    def abandon(self, items: Sequence[Any]) -> None:
        super().abandon(_accepted(items))


def _accepted(items: Sequence[Any]) -> list[Composed]:
    cancelled = (item for item in items if isinstance(item, _CalledOff))
    # The same message may be sent again after it was called off.
    called_off = {id(composed) for item in cancelled for composed in item.composed}
    messages = (item for item in items if isinstance(item, Composed))
    return [message for message in messages if id(message) not in called_off]


def _waits(mail: Mail, message_id: str) -> bool:
    is_waiting = mail.bulk or mail.not_before is not None
    return is_waiting and mail.message_id == message_id
