"""The deliveries: what an application looks up, and calls `send` of."""
from __future__ import annotations

import copy
import functools
import itertools
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import transaction
from transaction.interfaces import ITransactionManager
from zope.interface import implementer

from postcommit.attempt import Attempt
from postcommit.attempt import Transmission
from postcommit.attempt import announcements
from postcommit.attempt import attempt_all
from postcommit.datamanager import DataManager
from postcommit.errors import OptionError
from postcommit.event import Announcement
from postcommit.event import dispatch_events
from postcommit.event import events_of
from postcommit.event import log_report
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IBatch
from postcommit.interfaces import IDirectMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IQueuedMailDelivery
from postcommit.interfaces import IRelayCheck
from postcommit.interfaces import Sendable
from postcommit.log import Log
from postcommit.message import Composed
from postcommit.message import compose
from postcommit.options import checked_mailer
from postcommit.options import checked_manager
from postcommit.options import checked_queue_path
from postcommit.queue.store import Store
from postcommit.report import from_exception


log = Log(__name__)

_Self = TypeVar("_Self", bound="_MailDelivery")

_numbers = itertools.count(1)


class _MailDelivery(ABC):
    """What both deliveries do: compose, hand on, join the transaction."""

    def __init__(self, transaction_manager: ITransactionManager | None) -> None:
        if transaction_manager is None:
            transaction_manager = transaction.manager
        self.transaction_manager = checked_manager(transaction_manager)
        # With the copies that `bind` makes we share one data manager.
        self._owner = object()

    def bind(self: _Self, transaction_manager: ITransactionManager) -> _Self:
        """Return a copy that joins the transactions of another manager.

        Raises `OptionError` for what is none.
        """
        bound = copy.copy(self)
        bound.transaction_manager = checked_manager(transaction_manager)
        return bound

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
    ) -> str:
        """See `IMailDelivery`.

        Raises what `transaction` raises where it takes no more work, or where
        an explicit manager has not begun one.
        """
        composed = compose(fromaddr, toaddrs, message)
        manager = self.transaction_manager
        data_manager = DataManager.of(
            self._owner, manager.get(), self._batch, manager
        )
        data_manager.add(self._accept(composed, is_first=data_manager.is_empty))
        message_id: str = composed.message_id
        return message_id

    @abstractmethod
    def _accept(self, composed: Composed, *, is_first: bool) -> Any:
        """Return a message as an item for the batch; leave nothing if it fails."""

    @abstractmethod
    def _batch(self) -> IBatch:
        """Return a batch for one transaction."""


@implementer(IQueuedMailDelivery)
class QueuedMailDelivery(_MailDelivery):
    """See `IQueuedMailDelivery`.

    Raises `OptionError` for a path that can never be one. The folder is opened
    by the first `send`, and created where it is missing; a parent that is
    missing, a file or another folder there is a `QueueError`.
    """

    def __init__(
        self,
        queuePath: str,
        *,
        transaction_manager: ITransactionManager | None = None,
    ) -> None:
        super().__init__(transaction_manager)
        self.queuePath: str = checked_queue_path(IQueuedMailDelivery, queuePath)
        # Opened once, also for the copies that `bind` makes.
        self._store = functools.cache(functools.partial(Store, self.queuePath))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.queuePath}>"

    def _accept(self, composed: Composed, *, is_first: bool) -> Any:
        return self._store().stage(
            composed.sender, composed.recipients, composed.chunks, is_first=is_first
        )

    def _batch(self) -> IBatch:
        return self._store().batch()


@implementer(IDirectMailDelivery)
class DirectMailDelivery(_MailDelivery):
    """See `IDirectMailDelivery`.

    With `check_relay` the vote asks the mailer whether its relay answers, and
    the transaction aborts if not; the mailer has to provide `IRelayCheck`.
    """

    def __init__(
        self,
        mailer: IMailer,
        *,
        check_relay: bool = False,
        transaction_manager: ITransactionManager | None = None,
    ) -> None:
        super().__init__(transaction_manager)
        self.mailer = checked_mailer(mailer)
        self._check: Callable[[], None] | None = None
        if not isinstance(check_relay, bool):
            raise OptionError("check_relay", check_relay, "must be True or False")
        if check_relay:
            checker = IRelayCheck(mailer, None)
            if checker is None:
                raise OptionError("check_relay", True, f"{mailer!r} has no check()")
            self._check = checker.check
        self._number = next(_numbers)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.mailer!r}>"

    def _accept(self, composed: Composed, *, is_first: bool) -> Transmission:
        return Transmission(composed.sender, composed.recipients, bytes(composed))

    def _batch(self) -> IBatch:
        return _Transmitting(
            self.mailer,
            self._check,
            self.transaction_manager,
            # After `~mail:queued:`, so that entries do not stay in doubt for
            # as long as the dialogue with a relay takes.
            f"~mail:relayed:{self._number:08d}",
        )


@implementer(IBatch)
class _Transmitting:
    """See `IBatch`; the items are transmissions."""

    def __init__(
        self,
        mailer: IMailer,
        check: Callable[[], None] | None,
        transaction_manager: ITransactionManager,
        sort_key: str,
    ) -> None:
        self._mailer = mailer
        self._check = check
        self._transaction_manager = transaction_manager
        self.sort_key = sort_key

    def prepare(self, items: Sequence[Transmission], *, alone: bool = False) -> None:
        if items and self._check is not None:
            self._check()

    def publish(self, items: Sequence[Transmission]) -> Callable[[], None]:
        told: list[Announcement] = []
        done = 0
        try:
            for attempt in attempt_all(self._mailer, items):
                done += 1
                told += announcements(attempt, self._mailer, attempt.report)
        except Exception as error:
            # A mailer that keeps no contract; but the commit is decided.
            log.exception("%r failed", self._mailer)
            told += self._failed(items[done:], error)
        finally:
            # Now: a hook of another's that ends the transaction again would have
            # ours forgotten, and what became of the mail with it. Also where we
            # are interrupted, and there will be no hook.
            for announcement in told:
                log_report(announcement.report)
        return functools.partial(self._dispatch, told)

    def _failed(
        self, items: Sequence[Transmission], error: Exception
    ) -> Iterator[Announcement]:
        for item in items:
            report = from_exception(error, item.message_id, item.recipients)
            attempt = Attempt(report, ())
            yield from announcements(attempt, self._mailer, report)

    def _dispatch(self, told: Sequence[Announcement]) -> None:
        for announcement in told:
            dispatch_events(
                events_of(announcement.report),
                announcement.notify,
                self._transaction_manager,
            )

    def discard(self, items: Sequence[Transmission]) -> None:
        """Nothing has been done."""
