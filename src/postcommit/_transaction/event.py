"""The events, and how they are dispatched.

`announce` logs a report and publishes its events, each in a transaction of its own.
Subscribers are unknown code, so nothing is announced in the middle of a commit, or
before an entry is settled. Mailers' pipelines only report, and their callers announce.
"""
from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Protocol

import zope.event
from transaction.interfaces import ITransactionManager
from transaction.interfaces import TransientError
from zope.interface import implementer

from postcommit._log import Log
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._transaction.datamanager import call_after_commit
from postcommit._transaction.repeats import repeat
from postcommit.interfaces import IMailDeferredEvent
from postcommit.interfaces import IMailErrorEvent
from postcommit.interfaces import IMailRejectedEvent
from postcommit.interfaces import IMailSentEvent
from postcommit.interfaces import IMailUncertainEvent
from postcommit.interfaces import MailEvent
from postcommit.interfaces import Status


log = Log("postcommit.event")


class Notify(Protocol):
    """Calls subscribers with an event, as `zope.event.notify` does.

    It is not a `Callable`, which type checkers take for a method in a class.
    """

    def __call__(self, event: Any, /) -> Any: ...


# The manager whose commit calls a mailer now. A mailer of an application may use one of
# ours, which does not know the delivery.
committing: ContextVar[ITransactionManager | None] = ContextVar(
    "committing", default=None
)


@implementer(IMailSentEvent)
@dataclass(eq=False, repr=False)
class MailSentEvent:
    """The relay has taken the message for `recipients`, see `IMailSentEvent`."""

    messageId: str
    recipients: tuple[str, ...] = field(default=(), kw_only=True)

    def __repr__(self) -> str:
        to = ", ".join(self.recipients)
        return f"<{type(self).__name__} {self.messageId} to {to}>"


@implementer(IMailErrorEvent)
@dataclass(eq=False, repr=False)
class MailErrorEvent:
    """An attempt failed for `recipients`, see `IMailErrorEvent`."""

    messageId: str
    errorMessage: str
    recipients: tuple[str, ...] = field(default=(), kw_only=True)
    reply: Reply | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        to = ", ".join(self.recipients)
        return f"<{type(self).__name__} {self.messageId} to {to}: {self.errorMessage}>"


@implementer(IMailDeferredEvent)
class MailDeferredEvent(MailErrorEvent):
    """The attempt failed for now, see `IMailDeferredEvent`."""


@implementer(IMailRejectedEvent)
class MailRejectedEvent(MailErrorEvent):
    """The attempt failed for good, see `IMailRejectedEvent`."""


@implementer(IMailUncertainEvent)
class MailUncertainEvent(MailErrorEvent):
    """Given up, and may have arrived, see `IMailUncertainEvent`."""


def events_of(report: DeliveryReport) -> Iterator[MailEvent]:
    """Yield the events of `report`, none if `IMailer.send` has published them.

    There is an event for each status and reply, with the recipients that share them. A
    relay failure defers the recipients without an outcome.
    """
    if report.announced:
        return
    message_id, failure = report.message_id, report.relay_failure
    groups: dict[tuple[Status, bool, Reply], list[Outcome]] = {}
    for outcome in report.outcomes:
        key = (outcome.status, outcome.given_up, outcome.reply)
        groups.setdefault(key, []).append(outcome)
    for (status, given_up, reply), alike in groups.items():
        recipients = tuple(outcome.recipient for outcome in alike)
        if status is Status.SENT:
            yield MailSentEvent(message_id, recipients=recipients)
            continue
        kind: type[MailErrorEvent] = MailDeferredEvent
        if status is Status.REJECTED:
            kind = MailRejectedEvent
        elif given_up:
            kind = MailUncertainEvent
        said = reply if reply.code else None
        yield kind(message_id, str(reply), recipients=recipients, reply=said)
    if failure is not None and report.undecided:
        said = failure.reply if isinstance(failure.reply, Reply) else None
        yield MailDeferredEvent(
            message_id, str(failure), recipients=report.undecided, reply=said
        )


def announce(
    report: DeliveryReport, notify: Notify, manager: ITransactionManager | None
) -> BaseException | None:
    """Log `report`, and publish its events as `dispatch_events` does. Never raises."""
    log_report(report)
    return dispatch_events(events_of(report), notify, manager)


def announce_to_caller(
    report: DeliveryReport, notify: Notify, manager: ITransactionManager
) -> BaseException | None:
    """Announce as `announce` does, if the caller may be in a transaction of `manager`.

    The caller may also be called by the commit of another manager, see `committing`.
    Another transaction of `manager` may not begin before that one ends: a connection of
    ZODB, for example, takes the beginning for the end of the work, and forgets what was
    changed. So the subscribers are called in the transaction of the caller. In the
    middle of its commit, they are called when the commit is over.
    """
    outer = committing.get()
    # An interrupt may have kept an earlier commit from resetting `committing`.
    if outer is not None and _status(_current(outer)) == "Committing":
        manager = outer
    current = _current(manager)
    status = _status(current)
    if status != "Committing":
        is_in_use = status in ("Active", "Doomed")
        return announce(report, notify, None if is_in_use else manager)

    def publish() -> None:
        interrupt = dispatch_events(events_of(report), notify, manager)
        if interrupt is not None:
            raise interrupt

    log_report(report)
    call_after_commit(current, publish)
    return None


def _current(manager: ITransactionManager) -> Any:
    """Return the transaction of `manager`, or None.

    Another implementation of a manager may begin a transaction here.
    """
    inner = getattr(manager, "manager", manager)
    return inner._txn if hasattr(inner, "_txn") else manager.get()


def _status(current: object) -> object:
    return getattr(current, "status", None)


def log_report(report: DeliveryReport) -> None:
    """Log one line for each recipient: message id, recipient, status, reply.

    The record also has them as attributes: `message_id`, `recipients`, `status` and
    `reply`. If the relay failed, `reply` is the `RelayError`, which has it. Nothing is
    logged if `IMailer.send` has announced the report.
    """
    if report.announced:
        return
    for outcome in report.outcomes:
        level = logging.WARNING
        if outcome.status is Status.SENT:
            level = logging.INFO
        elif outcome.status is Status.REJECTED or outcome.given_up:
            level = logging.ERROR
        if log.isEnabledFor(level):  # what follows costs more than this check
            status, more = outcome.status.value, ", given up" * outcome.given_up
            _log(level, report, outcome.recipient, status, more, outcome.reply)
    failure = report.relay_failure
    if failure is not None:
        for recipient in report.undecided:
            more = ": the relay failed"
            _log(logging.ERROR, report, recipient, "not sent", more, failure)


def _log(
    level: int,
    report: DeliveryReport,
    recipient: str,
    status: str,
    more: str,
    reply: object,
) -> None:
    log.log(
        level,
        "<%s> to %s: %s: %s",
        report.message_id,
        recipient,
        f"{status}{more}",
        reply,
        extra={
            "message_id": report.message_id,
            "recipients": (recipient,),
            "status": status,
            "reply": reply,
        },
    )


def dispatch_events(
    events: Iterable[MailEvent], notify: Notify, manager: ITransactionManager | None
) -> BaseException | None:
    """Publish `events`, each in a transaction of its own. Never raises.

    If `manager` is None, or not one of the package ``transaction``, the subscribers are
    called in the current transaction. One that raises is logged.

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
    if not hasattr(getattr(manager, "manager", manager), "_txn"):
        manager = None  # another implementation, see `own_transaction`
    interrupt = None
    for event in events:
        try:
            if manager is None:
                notify(event)
            else:
                repeat(functools.partial(_attempt, event, notify, manager))
        except BaseException as error:
            aborted = "" if manager is None else ", its transaction was aborted"
            log.exception("A subscriber failed%s: %r", aborted, event)
            if not isinstance(error, Exception):
                interrupt = error
    return interrupt


def _attempt(
    event: MailEvent,
    notify: Notify,
    manager: ITransactionManager,
    may_be_repeated: bool,
) -> bool:
    """Call the subscribers in a transaction. Return False if it is to be repeated."""
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

    A transaction that has just been committed is still the current transaction
    of its manager while the after-commit hooks run, and no new one can begin. It is set
    aside for the body, and put back, so that `transaction` finds what it
    expects. The attribute is private; ``tests/transactions/test_event.py`` notices a
    change of it.
    """

    failed_for_now = False
    _is_aside = False

    def __init__(self, manager: ITransactionManager) -> None:
        # The thread-local manager wraps another.
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
