"""The progress of a flush on a terminal."""
from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any
from typing import TextIO

from zope.interface import implementer

from postcommit._cli.output import Line
from postcommit._drain.worker import size_of
from postcommit._mail.report import DeliveryReport
from postcommit._mailers.base import Pipeline
from postcommit._mailers.foreign import notify_of
from postcommit._mailers.foreign import pipeline_of
from postcommit._transaction.event import Notify
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IPipelineMailer
from postcommit.interfaces import Mailer
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Sendable


@implementer(IPipelineMailer)
class WatchedMailer:
    """Calls `watch` with each report of `mailer`. Threads may share it."""

    def __init__(self, mailer: Mailer, watch: Callable[[Any], None]) -> None:
        self._mailer = mailer
        self._watch = watch

    @property
    def notify(self) -> Notify:
        """The function that the events of the mailer are published with."""
        return notify_of(self._mailer)

    @property
    def recipients_per_transaction(self) -> int | None:
        """How many recipients the mailer has in one transmission, if that is known."""
        return size_of(self._mailer)

    def send(
        self, fromaddr: Address | None, toaddrs: Addresses | None, message: Sendable
    ) -> Any:
        """Transmit `message`, and watch the report. See `IMailer`."""
        report = self._mailer.send(fromaddr, toaddrs, message)
        self._watch(report)
        return report

    def pipeline(self) -> Pipeline:
        """Return the pipeline of the mailer, watched. See `IPipelineMailer`."""
        return _Watched(pipeline_of(self._mailer), self._watch)


class _Watched(Pipeline):
    """A pipeline that calls `watch` with each of its reports."""

    def __init__(self, pipeline: Pipeline, watch: Callable[[Any], None]) -> None:
        self._pipeline = pipeline
        self._watch = watch

    def __enter__(self) -> _Watched:
        self._pipeline.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._pipeline.__exit__(kind, error, traceback)

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        self._pipeline.offer(mail, key)

    def completed(self) -> Iterator[tuple[Any, DeliveryReport]]:
        return self._watched(self._pipeline.completed())

    def drain(self) -> Iterator[tuple[Any, DeliveryReport]]:
        return self._watched(self._pipeline.drain())

    def _watched(
        self, reports: Iterable[tuple[Any, DeliveryReport]]
    ) -> Iterator[tuple[Any, DeliveryReport]]:
        for key, report in reports:
            self._watch(report)
            yield key, report


class Progress:
    """Counts messages up to `total`. Draws a bar on `stream` if it is a terminal.

    `failure` is the last failure of the relay, or None. Use it in a ``with`` block, at
    whose end the bar is wiped.
    """

    def __init__(self, total: int, stream: TextIO) -> None:
        self.failure: object = None
        self._total = total
        self._line = Line(stream)
        self._tried = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wipe()

    def wipe(self) -> None:
        """Make room for other lines. The next message draws the bar again."""
        self._line.wipe()

    def note(self, report: DeliveryReport) -> None:
        """Count the message of `report`, unless the relay failed."""
        with self._lock:
            if report.relay_failure is not None:
                self.failure = report.relay_failure
                return
            self._tried += 1
            if self._line.is_due:
                self._draw()

    def _draw(self) -> None:
        total = max(self._total, self._tried)
        told = f" {self._tried} of {total}"
        room = min(40, max(0, shutil.get_terminal_size().columns - len(told) - 3))
        full = room * self._tried // max(total, 1)
        self._line.write(f"[{'#' * full}{' ' * (room - full)}]{told}")
