"""What the children of ``tests.support.injected`` do, while calls fail."""
from __future__ import annotations

import gc
import json
import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from transaction import TransactionManager

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._drain import breaker
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from tests.support.outage import Telling
from tests.support.transactions import mail


Tell = Callable[..., None]

SENDER, GOOD = "shop@example.org", "good@example.org"


def send(tell: Tell, queue: str, transactions: int) -> None:
    """Commit transactions, of one message and two messages in turns."""
    manager = TransactionManager(explicit=True)
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    for number in range(transactions):
        wanted = [f"{number}.{n}@x.org" for n in range(1 + number % 2)]
        manager.begin()
        try:
            for message_id in wanted:
                delivery.send(SENDER, GOOD, mail(message_id))
            manager.commit()
        except PublishError as error:
            tell("unpublished", str(error), *wanted)
            manager.abort()
        except QueueError as error:
            tell("aborted", str(error), *wanted)
            manager.abort()
        else:
            tell("committed", *wanted)


class Hearing(Telling):
    """Tells of each recipient that it hears of, until there were so many `events`."""

    def __init__(self, tell: Tell, events: int) -> None:
        super().__init__(tell)
        self.all_told = threading.Event()
        self._left = events

    def notify(self, event: Any) -> None:
        for recipient in event.recipients or [""]:
            self._tell("told", type(event).__name__, event.messageId, recipient)
            self._left -= 1
        if not self._left:
            self.all_told.set()


def drain(tell: Tell, queue: str, events: int) -> None:
    """Drain the queue until so many recipients have been told of."""
    be_impatient()
    # This thread writes only to wake the processor, which is no call on a queue:
    # what is to be refused are the writes of the others.
    for _ in range(10):
        with suppress(OSError):
            os.write(1, b"")
    mailer = Hearing(tell, events)
    processor = QueueProcessor(queue, mailer, workers=1, pollingInterval=50)
    for _ in range(2):
        try:
            processor.start()
        except QueueError as error:
            tell("refused", str(error))
        else:
            break
    tell("done" if mailer.all_told.wait(30) else "hangs")
    processor.stop()


def be_impatient() -> None:
    """Let the pause of a queue in trouble be short."""
    breaker.FIRST_PAUSE, breaker.LONGEST_PAUSE = 0.01, 0.05


def drain_without_descriptors(queue: str, held: str, events: int) -> None:
    """Drain what is moved into the queue from the folder `held`; print the ledger.

    For a while no descriptor is left, until that was logged and looked for again.
    """
    be_impatient()
    ledger: list[tuple[str, ...]] = []
    noticed = threading.Event()

    class Noticing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ledger.append(("logged", record.levelname, record.getMessage()))
            noticed.set()

    log = logging.getLogger("postcommit")
    log.addHandler(Noticing(logging.WARNING))
    mailer = Hearing(lambda *words: ledger.append(words), events)
    processor = QueueProcessor(queue, mailer, workers=1, pollingInterval=50)
    processor.start()
    names = os.listdir(held)
    most, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, limit))
    taken: list[int] = []
    for _ in range(3):
        # What the processor has open meanwhile, it closes again.
        time.sleep(0.1)
        with suppress(OSError):
            while True:
                taken.append(os.dup(1))
    for name in names:
        os.rename(f"{held}/{name}", f"{queue}/new/{name}")
    noticed.wait(30)
    time.sleep(0.5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limit))
    for descriptor in taken:
        os.close(descriptor)
    ledger.append(("done" if mailer.all_told.wait(30) else "hangs",))
    processor.stop()
    print(json.dumps(ledger))


def start_without_descriptors(queue: str) -> None:
    """Start a processor until enough descriptors are left; print what is raised."""
    processor = QueueProcessor(queue, Hearing(lambda *words: None, 1), workers=1)
    processor.start()  # from now on, nothing is imported
    processor.stop()
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, limit))
    taken: list[int] = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(1))
    refused = []
    while not refused or refused[-1]:
        try:
            processor.start()
            refused.append("")
        except QueueError as error:
            refused.append(str(error))
        gc.collect()  # what one attempt has opened is not left to the next
        os.close(taken.pop())
    processor.stop()
    print(json.dumps(refused))
