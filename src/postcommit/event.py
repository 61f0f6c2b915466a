"""The events, and how they are dispatched.

`announce` logs the report of a message and calls the subscribers. While a transaction
commits, that would run unknown code in the middle of it. There `hold` keeps the
announcements back, and `dispatch` publishes them afterwards, each event in a
transaction of its own.
"""
from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import zope.event
from transaction.interfaces import ITransactionManager
from transaction.interfaces import TransientError
from zope.interface import implementer

from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailDeferredEvent
from postcommit.interfaces import IMailErrorEvent
from postcommit.interfaces import IMailEvent
from postcommit.interfaces import IMailRejectedEvent
from postcommit.interfaces import IMailSentEvent
from postcommit.interfaces import IMailUncertainEvent
from postcommit.interfaces import IOutcome
from postcommit.interfaces import IReply
from postcommit.interfaces import Status
from postcommit.log import Log
from postcommit.repeats import repeat


log = Log(__name__)

Notify = Callable[[Any], Any]


@implementer(IMailSentEvent)
class MailSentEvent:
    """See `IMailSentEvent`."""

    def __init__(self, messageId: str, *, recipients: tuple[str, ...] = ()) -> None:
        self.messageId = messageId
        self.recipients = recipients

    def __repr__(self) -> str:
        to = ", ".join(self.recipients)
        return f"<{type(self).__name__} {self.messageId} to {to}>"


@implementer(IMailErrorEvent)
class MailErrorEvent:
    """See `IMailErrorEvent`."""

    def __init__(
        self,
        messageId: str,
        errorMessage: str,
        *,
        recipients: tuple[str, ...] = (),
        reply: IReply | None = None,
    ) -> None:
        self.messageId = messageId
        self.errorMessage = errorMessage
        self.recipients = recipients
        self.reply = reply

    def __repr__(self) -> str:
        to = ", ".join(self.recipients)
        return f"<{type(self).__name__} {self.messageId} to {to}: {self.errorMessage}>"


@implementer(IMailDeferredEvent)
class MailDeferredEvent(MailErrorEvent):
    """See `IMailDeferredEvent`."""


@implementer(IMailRejectedEvent)
class MailRejectedEvent(MailErrorEvent):
    """See `IMailRejectedEvent`."""


@implementer(IMailUncertainEvent)
class MailUncertainEvent(MailErrorEvent):
    """See `IMailUncertainEvent`."""


def events_of(report: IDeliveryReport) -> list[IMailEvent]:
    """Return the events of `report`.

    There is one for each status and reply, with the recipients that share them. A relay
    failure defers all recipients.
    """
    if report.relay_failure is not None:
        failure = report.relay_failure
        return [
            MailDeferredEvent(
                report.message_id,
                str(failure),
                recipients=report.recipients,
                reply=failure if IReply.providedBy(failure) else None,
            )
        ]
    if len(report.outcomes) == 1:
        [only] = report.outcomes
        return [_event(report.message_id, only, (only.recipient,))]
    groups: dict[tuple[Status, bool, IReply], list[IOutcome]] = {}
    for outcome in report.outcomes:
        key = (outcome.status, _is_given_up(outcome), outcome.reply)
        groups.setdefault(key, []).append(outcome)
    return [
        _event(report.message_id, alike[0], tuple(o.recipient for o in alike))
        for alike in groups.values()
    ]


def _event(
    message_id: str, outcome: IOutcome, recipients: tuple[str, ...]
) -> IMailEvent:
    """Return the event for `recipients`, who share this `outcome`."""
    reply = outcome.reply
    if outcome.status is Status.SENT:
        return MailSentEvent(message_id, recipients=recipients)
    kind: type[MailErrorEvent] = MailDeferredEvent
    if outcome.status is Status.REJECTED:
        kind = MailRejectedEvent
    elif _is_given_up(outcome):
        kind = MailUncertainEvent
    said = reply if reply.code else None
    return kind(message_id, str(reply), recipients=recipients, reply=said)


def _is_given_up(outcome: IOutcome) -> bool:
    # A mailer written elsewhere may announce outcomes that do not say so.
    return bool(getattr(outcome, "given_up", False))


def _level(outcome: IOutcome) -> int:
    if outcome.status is Status.SENT:
        return logging.INFO
    is_final = outcome.status is Status.REJECTED or _is_given_up(outcome)
    return logging.ERROR if is_final else logging.WARNING


def log_report(report: IDeliveryReport) -> None:
    """Log one line for each recipient: message id, recipient, status, reply.

    The record also has them as attributes: `message_id`, `recipients`, `status` and
    `reply`. If the relay failed without a reply, `reply` is the exception.
    """
    for outcome in report.outcomes:
        level = _level(outcome)
        if not log.isEnabledFor(level):
            continue  # the arguments cost more than this check
        log.log(
            level,
            "<%s> to %s: %s: %s",
            report.message_id,
            outcome.recipient,
            f"{outcome.status.value}{', given up' if _is_given_up(outcome) else ''}",
            outcome.reply,
            extra={
                "message_id": report.message_id,
                "recipients": (outcome.recipient,),
                "status": outcome.status.value,
                "reply": outcome.reply,
            },
        )
    if report.relay_failure is not None:
        for recipient in report.recipients:
            log.error(
                "<%s> to %s: not sent: the relay failed: %s",
                report.message_id,
                recipient,
                report.relay_failure,
                extra={
                    "message_id": report.message_id,
                    "recipients": (recipient,),
                    "status": "not sent",
                    "reply": report.relay_failure,
                },
            )


class Announcement(NamedTuple):
    """A report, and the function to publish its events with."""

    report: IDeliveryReport
    notify: Notify


class _Holds(threading.local):
    """The `hold` objects of this thread, the innermost last."""

    def __init__(self) -> None:
        self.entered: list[weakref.ref[hold]] = []

    def innermost(self) -> hold | None:
        while self.entered:
            found = self.entered[-1]()
            if found is not None:
                return found
            self.entered.pop()  # an interrupt has kept it from being left
        return None


_holds = _Holds()


class hold:
    """Keeps back what this thread announces; the list has it."""

    def __init__(self) -> None:
        self.announcements: list[Announcement] = []
        self._reference = weakref.ref(self)

    def __enter__(self) -> list[Announcement]:
        _holds.entered.append(self._reference)
        return self.announcements

    def __exit__(self, *exc_info: object) -> None:
        _holds.entered.remove(self._reference)


def announce(report: IDeliveryReport, notify: Notify) -> None:
    """Log `report` and call the subscribers: now, or later if it is held back.

    Raises what a subscriber raises, as `zope.event.notify`.
    """
    innermost = _holds.innermost()
    if innermost is not None:
        innermost.announcements.append(Announcement(report, notify))
        return
    log_report(report)
    for event in events_of(report):
        notify(event)


def dispatch(announcement: Announcement, manager: ITransactionManager) -> None:
    """Log the report of `announcement`, and publish its events. Never raises."""
    report, notify = announcement
    try:
        log_report(report)
        dispatch_events(events_of(report), notify, manager)
    except Exception:  # a report of a mailer written elsewhere may have anything in it
        log.exception("A report cannot be announced")


def dispatch_events(
    events: Iterable[IMailEvent], notify: Notify, manager: ITransactionManager
) -> BaseException | None:
    """Publish `events`, each in a transaction of its own; never raise.

    If a subscriber raises, its transaction is aborted, the exception is logged with
    its traceback, and the next event follows: the mail is settled, and the other
    messages have nothing to do with it. If its transaction fails with a
    `TransientError`, such as a ZODB conflict, all subscribers of the event are called
    again, up to three times.

    Returns the last interrupt that arrived in a subscriber, such as KeyboardInterrupt
    or SystemExit. The caller raises it when it cannot lose mail any more.
    """
    if notify is zope.event.notify and not zope.event.subscribers:
        return None
    interrupt = None
    for event in events:
        try:
            repeat(functools.partial(_attempt, event, notify, manager))
        except BaseException as error:
            log.exception("A subscriber failed, its transaction was aborted: %r", event)
            if not isinstance(error, Exception):
                interrupt = error
    return interrupt


def _attempt(
    event: IMailEvent,
    notify: Notify,
    manager: ITransactionManager,
    may_be_repeated: bool,
) -> bool:
    """Call the subscribers in a transaction; return False if it is to be repeated."""
    own = own_transaction(manager)
    try:
        with own:
            notify(event)
    except Exception:
        if not (own.failed_for_now and may_be_repeated):
            raise
        log.info("A subscriber's transaction failed for now, it is repeated: %r", event)
        return False
    finally:
        own.put_back()  # again: an interrupt may have kept `own` from doing it
    return True


class own_transaction:
    """Runs its body in a new transaction of `manager`.

    `failed_for_now` is true afterwards if the body or the commit raised an error that
    `transaction` calls retryable, for example a conflict.

    A transaction that has just been committed is still its manager's current
    one while the after-commit hooks run, and no new one can begin. It is set
    aside for the body, and put back, so that `transaction` finds what it
    expects. The attribute is private; ``tests/test_event.py`` notices a
    change of it.
    """

    failed_for_now = False
    _is_aside = False

    def __init__(self, manager: ITransactionManager) -> None:
        # The thread-local manager wraps another one.
        self._manager: Any = getattr(manager, "manager", manager)

    def __enter__(self) -> None:
        manager = self._manager
        self._ended = manager._txn
        self._is_aside = True
        manager._txn = None
        try:
            manager.begin()
        except BaseException:
            self.put_back()
            raise

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> None:
        manager = self._manager
        try:
            # The body may have ended the transaction itself.
            if error is None and manager._txn is not None:
                manager.commit()
        except Exception as failure:
            error = failure
            raise
        finally:
            try:
                # Before the abort, which forgets the resources that are asked.
                self.failed_for_now = self._is_for_now(error)
            finally:
                self.put_back()

    def _is_for_now(self, error: BaseException | None) -> bool:
        current = self._manager._txn
        return isinstance(error, TransientError) or (
            isinstance(error, Exception)
            and current is not None
            and bool(current.isRetryableError(error))
        )

    def put_back(self) -> None:
        """Put back the ended transaction, if that was not done yet."""
        if self._is_aside:
            manager = self._manager
            try:
                if manager._txn not in (None, self._ended):  # body or commit failed
                    manager.abort()
            finally:
                manager._txn, self._is_aside = self._ended, False
