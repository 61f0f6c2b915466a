"""Transmits mail while the transaction commits."""
from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import cast

from zope.interface import implementer

from postcommit._config.options import checked_mailer
from postcommit._delivery.base import BaseDelivery
from postcommit._log import Log
from postcommit._mail.message import Composed
from postcommit._mail.message import compose
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._mailers.foreign import from_exception
from postcommit._mailers.foreign import notify_of
from postcommit._mailers.foreign import pipeline_of
from postcommit._transaction.datamanager import DataManager
from postcommit._transaction.event import committing
from postcommit._transaction.event import dispatch_events
from postcommit._transaction.event import events_of
from postcommit._transaction.event import log_report
from postcommit.errors import OptionError
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import Batch
from postcommit.interfaces import IBatch
from postcommit.interfaces import IDefaultSender
from postcommit.interfaces import IDirectMailDelivery
from postcommit.interfaces import IRelayCheck
from postcommit.interfaces import Sendable
from postcommit.interfaces import Status
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import TransactionManager


log = Log("postcommit.delivery")

_numbers = itertools.count(1)


@implementer(IDirectMailDelivery)
class DirectMailDelivery(BaseDelivery):
    """Transmits while the transaction commits, see `IDirectMailDelivery`.

    With `check_relay` the vote asks the mailer whether its relay answers, and the
    transaction aborts if it does not. A mailer that provides `IRelayCheck` is asked
    once. A mailer with ``vote(fromaddr, toaddrs, message)``, for example one of
    zope.sendmail, is asked about each message, and its ``abort()`` is called if the
    transaction aborts. Without `check_relay`, none of these methods is called. Raises
    `OptionError` for a mailer that has neither.
    """

    def __init__(
        self,
        mailer: SupportsSend,
        *,
        check_relay: bool = False,
        default_sender: str | None = IDefaultSender["default_sender"].default,
        transaction_manager: TransactionManager | None = None,
    ) -> None:
        super().__init__(default_sender, transaction_manager)
        self.mailer: SupportsSend = checked_mailer(mailer)
        if not isinstance(check_relay, bool):
            raise OptionError("check_relay", check_relay, "must be True or False")
        self.check_relay = check_relay
        self._check = _RelayCheck(self.mailer) if check_relay else None
        # After `~mail:queued:`, so that entries are not in doubt during the dialogue
        # with a relay.
        self._sort_key = f"~mail:relayed:{next(_numbers):08d}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.mailer!r}>"

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
        *,
        not_before: None = None,
        expires: None = None,
        bulk: Literal[False] = False,
    ) -> str:
        """Transmit `message` when the transaction commits; return its message id.

        `fromaddr` is the envelope's sender, for example ``"shop@example.org"``, and
        ``""`` is the null sender. `toaddrs` is one address or an iterable of them. None
        means the addresses of the header. `message` is an `EmailMessage`, bytes, or a
        str with header and body.

        Raises `AddressError` or `MessageError` for what cannot be sent. Raises
        `OptionError` for `not_before`, `expires` and `bulk`, because only a delivery
        with a queue can let mail wait. See `IMailDelivery`.
        """
        options: tuple[tuple[str, Any, Any], ...] = (
            ("not_before", not_before, None),
            ("expires", expires, None),
            ("bulk", bulk, False),
        )
        for name, value, default in options:
            if value is not default:
                reason = "needs a queue, and this delivery sends during the commit;"
                reason += " use a QueuedMailDelivery (in Pyramid: mail.queue_path)"
                raise OptionError(name, value, reason)
        return self._add(compose(fromaddr, toaddrs, message, self.default_sender))

    def _add(self, mail: Composed) -> str:
        """Add a message to the current transaction, and return its message id."""
        _ = mail.message  # copied now: when the commit is decided, nothing may fail
        manager = self.transaction_manager
        DataManager.of(self._owner, self._batch, manager).add(mail)
        return mail.message_id

    def _batch(self) -> Batch:
        return Transmitting(
            self.mailer, self._check, self.transaction_manager, self._sort_key
        )


class _RelayCheck:
    """Asks `mailer`, before the commit, whether its relay answers.

    Raises `OptionError` for a mailer that cannot say: it neither provides `IRelayCheck`
    nor has ``vote(fromaddr, toaddrs, message)``, which raises to abort the transaction,
    as the mailers of zope.sendmail.
    """

    def __init__(self, mailer: SupportsSend) -> None:
        self._mailer: Any = mailer
        # To mypy an adapter that may be missing is always there.
        self._check = cast(Any, IRelayCheck)(mailer, None)
        if self._check is None and not callable(getattr(mailer, "vote", None)):
            reason = f"{mailer!r} has neither check() nor vote()"
            raise OptionError("check_relay", True, reason)

    def ask(self, items: Sequence[Composed]) -> None:
        """Raise if the mailer cannot send `items`."""
        if self._check is not None:
            self._check.check()
        else:
            for item in items:
                self._mailer.vote(item.sender, item.recipients, item.message)

    def end(self) -> None:
        """Close what ``vote()`` may have opened; never raises."""
        if self._check is None and hasattr(self._mailer, "abort"):
            try:
                self._mailer.abort()
            except Exception:
                log.exception("%r failed to abort", self._mailer)


@implementer(IBatch)
class Transmitting:
    """The messages of one transaction, transmitted when it commits, see `IBatch`."""

    def __init__(
        self,
        mailer: SupportsSend,
        check: _RelayCheck | None,
        transaction_manager: TransactionManager,
        sort_key: str,
    ) -> None:
        self._mailer = mailer
        self._check = check
        self._transaction_manager = transaction_manager
        self.sort_key = sort_key
        # Number of items that the mailer was offered; the reports that exist, by the
        # number of the item; the number of reports in the log.
        self._offered = 0
        self._reports: dict[int, DeliveryReport] = {}
        self._logged = 0
        self._interrupt: BaseException | None = None

    def prepare(self, items: Sequence[Composed], *, alone: bool = False) -> None:
        """Ask whether the relay answers, if that is wanted, see `IBatch`."""
        if items and self._check is not None:
            self._check.ask(items)

    def publish(self, items: Sequence[Composed]) -> Callable[[], None]:
        """Transmit the messages, see `IBatch`. Never raises."""
        try:
            while self._offered < len(items):
                self._transmit(items)
        except BaseException as interrupt:
            # Other resources may still have to finish: it is raised after the commit.
            self._interrupt = interrupt
            self._note(self._interrupted(items, interrupt))
        finally:
            self._log()
        return self._publish_events

    def _transmit(self, items: Sequence[Composed]) -> None:
        """Transmit the messages that the mailer was not offered yet.

        If the mailer makes a mistake at one of them, it is offered those after it
        by the next call. If it makes it before the first, none can be transmitted.
        """
        first = self._offered
        try:
            self._offer(items, first)
        except Exception as error:
            # The mailer breaks its contract, but the commit is decided.
            log.exception("%r failed", self._mailer)
            if self._offered == first:
                self._offered = len(items)
            for number in range(first, self._offered):
                if number not in self._reports:
                    self._note([(number, from_exception(error, items[number]))])

    def _offer(self, items: Sequence[Composed], first: int) -> None:
        pipeline = pipeline_of(self._mailer)
        pipeline.waits = True
        before = committing.get()
        try:
            committing.set(self._transaction_manager)
            with pipeline:
                for number, item in enumerate(items[first:], first):
                    self._offered = number + 1
                    pipeline.offer(item, key=number)
                    self._note(pipeline.completed())
                self._note(pipeline.drain())
        finally:
            committing.set(before)  # also if an interrupt came as it was set
            self._note(pipeline.completed())
        if len(self._reports) < len(items):
            raise RuntimeError(f"{self._mailer!r} gave too few reports")

    def _note(self, reports: Iterable[tuple[int, DeliveryReport]]) -> None:
        """Keep `reports` for the events, and log each of them at once.

        Our hook is never called if another's hook ends the transaction again, or if an
        interrupt comes before it is added.
        """
        for number, report in reports:
            self._reports[number] = report
            self._log()

    def _log(self) -> None:
        for report in list(self._reports.values())[self._logged :]:
            log_report(report)
            self._logged += 1

    def _interrupted(
        self, items: Sequence[Composed], interrupt: BaseException
    ) -> Iterator[tuple[int, DeliveryReport]]:
        """Yield a report for each item that has not got its report.

        A message that the mailer was offered may have reached the relay.
        """
        by = f"interrupted by {type(interrupt).__name__}"
        for number, item in enumerate(items):
            status, text = Status.DEFERRED, f"Not sent: {by}"
            if number < self._offered:
                status, text = Status.UNCERTAIN, f"Perhaps not sent: {by}"
            if number not in self._reports:
                reply = Reply(0, "4.3.0", text)
                yield (
                    number,
                    DeliveryReport.alike(
                        item.message_id, item.recipients, status, reply
                    ),
                )

    def _publish_events(self) -> None:
        """Publish the events, then raise the interrupt that was kept, if any."""
        notify = notify_of(self._mailer)
        for _, report in sorted(self._reports.items()):
            interrupt = dispatch_events(
                events_of(report), notify, self._transaction_manager
            )
            if self._interrupt is None:
                self._interrupt = interrupt
        if self._interrupt is not None:
            raise self._interrupt

    def discard(self, items: Sequence[Composed]) -> None:
        """Forget the messages, see `IBatch`."""
        if self._check is not None:
            self._check.end()

    def abandon(self, items: Sequence[Composed]) -> None:
        """Log the messages without a report, see `IBatch`."""
        self.discard(items)
        self._log()
        for number, item in enumerate(items):
            if number not in self._reports:
                log.critical(
                    "<%s> to %s: the commit was interrupted, the mail is %s",
                    item.message_id,
                    ", ".join(item.recipients),
                    "not sent" if number >= self._offered else "perhaps not sent",
                )
