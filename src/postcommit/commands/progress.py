"""How far a flush is, on a terminal."""
from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TextIO

from zope.interface import implementer

from postcommit.commands.output import Line
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IBatchMailer
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import Sendable


@implementer(IBatchMailer)
class WatchedMailer:
    """Tells `watch` of each report of `mailer`; threads may share it."""

    def __init__(
        self, mailer: IBatchMailer, watch: Callable[[IDeliveryReport], None]
    ) -> None:
        self._mailer = mailer
        self._watch = watch
        self.notify = mailer.notify

    def send(
        self, fromaddr: Address | None, toaddrs: Addresses | None, message: Sendable
    ) -> IDeliveryReport:
        """See `IMailer`."""
        report = self._mailer.send(fromaddr, toaddrs, message)
        self._watch(report)
        return report

    def send_batch(
        self, messages: Iterable[tuple[str, Sequence[str], bytes]]
    ) -> Iterator[IDeliveryReport]:
        """See `IBatchMailer`."""
        for report in self._mailer.send_batch(messages):
            self._watch(report)
            yield report


class Progress:
    """Counts messages up to `total`; draws a bar on `stream` if it is a terminal.

    `failure` is the relay's last one, or None. To be entered, so that the bar is
    wiped at the end.
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
        """Make room for other lines; the bar is drawn again with the next message."""
        self._line.wipe()

    def note(self, report: IDeliveryReport) -> None:
        """Count the message of `report`, unless it was the relay that failed."""
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
