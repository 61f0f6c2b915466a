"""The base of our mailers: compose, transmit, announce; and the simplest pipeline."""
from __future__ import annotations

from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import transaction
from zope.interface import implementer

from postcommit._config.readonly import ReadOnlyOptions
from postcommit._mail.message import Composed
from postcommit._mail.message import compose
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._transaction.event import Notify
from postcommit._transaction.event import announce_to_caller
from postcommit.errors import AddressError
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IPipeline
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Sendable
from postcommit.interfaces import Status


@implementer(IPipeline)
class Pipeline(AbstractContextManager["Pipeline"], ABC):
    """The base of our own pipelines, see `IPipeline`. Their reports are not checked.

    `waits` says to wait for a connection in use if the relay refuses one more. It is
    for a caller that cannot go on with fewer connections, as a processor can.
    """

    waits = False

    @abstractmethod
    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Close a connection that is in the middle of something."""

    @abstractmethod
    def offer(self, mail: Outgoing, key: Any = None) -> None:
        """Transmit `mail`; `key` comes back with its report."""

    @abstractmethod
    def completed(self) -> Iterable[tuple[Any, DeliveryReport]]:
        """Return (key, report) of each message that is done. Does not wait."""

    @abstractmethod
    def drain(self) -> Iterable[tuple[Any, DeliveryReport]]:
        """Wait for all replies, and yield (key, report) of each message."""


class OneByOne(Pipeline):
    """Transmits each message when it is offered, see `IPipeline`."""

    def __init__(self, transmit: Callable[[Outgoing], DeliveryReport]) -> None:
        self._transmit = transmit
        self._reports: list[tuple[Any, DeliveryReport]] = []

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Do nothing: no connection is left open."""

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        """Transmit `mail` to the end; `key` comes back with its report."""
        try:
            report = self._transmit(mail)
        except BaseException as error:
            # What was done before it must not be done again.
            known = self._known(getattr(error, "report", None), mail)
            if known is not None:
                self._reports.append((key, known))
            raise
        self._reports.append((key, report))

    def _known(
        self, report: DeliveryReport | None, mail: Outgoing
    ) -> DeliveryReport | None:
        """Return the report on `mail` that an error or interrupt has, if any."""
        return report

    def completed(self) -> list[tuple[Any, DeliveryReport]]:
        """Return (key, report) of the messages since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def drain(self) -> list[tuple[Any, DeliveryReport]]:
        """Return (key, report) of the messages since the last call."""
        return self.completed()


class BaseMailer(ReadOnlyOptions, ABC):
    """Has `IMailer.send` and `IPipelineMailer.pipeline`, around `_transmit`."""

    notify: Notify

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
    ) -> DeliveryReport:
        """Transmit `message` now, announce the report, and return it.

        `fromaddr` is the envelope's sender, and ``""`` is the null sender. `toaddrs` is
        one address or an iterable of them. None means the addresses of the header.
        `message` is an `EmailMessage`, bytes, or a str with header and body. Raises
        nothing for a delivery problem, and ValueError or TypeError for arguments that
        can never work. See `IMailer`.

        The events are published in the transaction of the caller, if there is one, or
        after its commit, if it is being committed. An interrupt in a subscriber, such
        as KeyboardInterrupt, is raised when all events are published.
        """
        report = self._transmit(compose(fromaddr, toaddrs, message))
        interrupt = announce_to_caller(report, self.notify, transaction.manager)
        report = replace(report, announced=True)
        if interrupt is not None:
            # For the pipeline around a mailer that delegates to this mailer: the
            # message must not be sent again because its report was lost.
            interrupt.report = report  # type: ignore[attr-defined]
            raise interrupt
        return report

    def pipeline(self) -> Pipeline:
        """Return a pipeline that transmits one message after the other.

        A message that `send` would refuse is rejected. For example, an address may
        have come from another library.
        """
        return OneByOne(self._transmit_checked)

    def _transmit_checked(self, mail: Outgoing) -> DeliveryReport:
        try:
            if not isinstance(mail, Composed):
                composed = compose(mail.sender, mail.recipients, mail.message)
                if composed.recipients != tuple(mail.recipients):
                    reason = "pass bare addresses, each of them once"
                    raise AddressError(mail.recipients, reason)
                mail = composed
        except ValueError as error:
            message_id = message_id_of(mail.message)
            reply = Reply(0, "5.6.0", f"{type(error).__name__}: {error}")
            rejected = Status.REJECTED
            return DeliveryReport.alike(message_id, mail.recipients, rejected, reply)
        return self._transmit(mail)

    def _transmit(self, mail: Outgoing) -> DeliveryReport:
        """Transmit `mail`, and report. Raises nothing, announces nothing.

        This is for a mailer with a pipeline of its own. Others override it.
        """
        with self.pipeline() as pipeline:
            pipeline.waits = True
            pipeline.offer(mail)
            reports = [report for _, report in pipeline.drain()]
        if not reports:
            raise RuntimeError(f"{self!r}: no report for a message")
        return reports[0]
