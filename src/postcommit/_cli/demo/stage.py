"""The stage: shop, queue, processor and relay, and their events and logs."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from tempfile import TemporaryDirectory

import zope.event

from postcommit._cli.demo.shop import Shop
from postcommit._cli.demo.timeline import Timeline
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._maildir.mending import MaildirOperators
from postcommit._mailers.file import FileMailer
from postcommit._processor import QueueProcessor
from postcommit._smtp.mailer import SMTPMailer
from postcommit.interfaces import IMailErrorEvent
from postcommit.interfaces import IMailEvent
from postcommit.testing.relay import EmbeddedRelay


MakeRelay = Callable[[Callable[[str], None]], EmbeddedRelay]

# Names of loggers: ours, aiosmtpd's, and that of transaction, which logs when Ctrl-C
# interrupts a commit.
LOGGERS = ("postcommit", "mail.log", "txn")

_SECONDS = 5.0


@dataclass
class Events:
    """A subscriber that notes and remembers the events."""

    tell: Callable[[str], None]
    seen: list[tuple[str, str]] = field(default_factory=list)  # name, recipient

    def __call__(self, event: object) -> None:
        if IMailEvent.providedBy(event):
            name, to = type(event).__name__, ", ".join(event.recipients)
            text = f"{name} for {to}"
            if IMailErrorEvent.providedBy(event):
                text += f": {event.errorMessage}"
            self.tell(text)
            self.seen += [(name, recipient) for recipient in event.recipients]


class TimelineLog(logging.Handler):
    """Notes log records without an event: pauses, and unexpected errors."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(logging.INFO)
        self.pauses = 0
        self._timeline = timeline

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "postcommit.drain.breaker":
            self.pauses += record.levelno == logging.ERROR
            self._timeline.note("queue", record.getMessage().partition(": ")[2])
        elif record.exc_info:
            self._timeline.note("log", f"{record.getMessage()}: {record.exc_info[1]!r}")
        elif record.levelno >= logging.WARNING and record.name != "postcommit.event":
            self._timeline.note("log", record.getMessage())


@dataclass(frozen=True)
class Scene:
    """The parts of a story."""

    timeline: Timeline
    relay: EmbeddedRelay
    shop: Shop
    queue: MaildirOperators
    mailbox: str
    events: Events
    log: TimelineLog


@contextmanager
def stage(timeline: Timeline, make_relay: MakeRelay) -> Iterator[Scene]:
    """Yield the scene, and remove everything of it afterwards."""
    with ExitStack() as stack:
        temporary = TemporaryDirectory(prefix="postcommit-demo-")
        folder = stack.enter_context(temporary)
        path, mailbox = os.path.join(folder, "queue"), os.path.join(folder, "mailbox")
        log = stack.enter_context(_logging(timeline))
        events = stack.enter_context(_subscribed(Events(timeline.teller("event"))))
        relay = stack.enter_context(make_relay(timeline.teller("relay")))
        # Its events are not those of the shop.
        relay.archive = FileMailer(mailbox, notify=lambda event: None)
        mailer = SMTPMailer(relay.host, relay.port, timeout=_SECONDS)
        stack.callback(mailer.close)
        processor = QueueProcessor(path, mailer, workers=1, min_backoff=1.5)
        processor.start()
        stack.callback(processor.stop)
        timeline.note("queue", f"in {path}; a processor drains it")
        delivery = QueuedMailDelivery(path)
        shop = Shop(delivery, timeline.teller("shop"), sold_out=["samovar"])
        queue = MaildirOperators(path)
        yield Scene(timeline, relay, shop, queue, mailbox, events, log)


@contextmanager
def _subscribed(events: Events) -> Iterator[Events]:
    zope.event.subscribers.append(events)
    try:
        yield events
    finally:
        zope.event.subscribers.remove(events)


@contextmanager
def _logging(timeline: Timeline) -> Iterator[TimelineLog]:
    """Write the logs of all parts to the timeline only."""
    handler = TimelineLog(timeline)
    with ExitStack() as stack:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(setattr, logger, "propagate", logger.propagate)
            stack.callback(logger.setLevel, logger.level)
            stack.callback(logger.removeHandler, handler)
            logger.propagate = False
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)
        yield handler
