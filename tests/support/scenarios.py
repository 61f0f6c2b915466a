"""What the children of ``tests.support.zygote`` do, until they are killed."""
from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from transaction import TransactionManager

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from tests.support import rooms
from tests.support.transactions import AFTER
from tests.support.transactions import Partner


Tell = Callable[..., None]


def send(tell: Tell, queue: str, transactions: int) -> None:
    """Send one to three messages in each transaction; each third one aborts.

    In each fourth a message is taken back by a savepoint, in each second there is
    another resource, which comes after the queue.
    """
    manager = TransactionManager(explicit=True)
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    for number in range(transactions):
        manager.begin()
        wanted = [f"{number}.{n}@example.org" for n in range(number % 3 + 1)]
        for message_id in wanted:
            _send(delivery, message_id)
        if number % 4 == 3:
            savepoint = manager.savepoint()
            tell("aborted", f"{number}.x@example.org")
            _send(delivery, f"{number}.x@example.org")
            savepoint.rollback()
        if number % 2:
            manager.get().join(Partner(AFTER))
        if number % 3 == 2:
            tell("aborted", *wanted)
            manager.abort()
        else:
            tell("committing", *wanted)
            manager.commit()
            tell("committed", *wanted)


def _send(delivery: QueuedMailDelivery, message_id: str) -> None:
    message = f"Message-Id: <{message_id}>\r\nSubject: x\r\n\r\nText.\r\n"
    delivery.send("shop@example.org", "ann@example.org", message)


def drain_later(tell: Tell, queue: str, port: int) -> None:
    """Try what is due a day later, and two, and three."""
    mailer = SMTPMailer("127.0.0.1", port)
    for days in range(1, 4):
        clock = partial(float, time.time() + days * 86400)
        QueueProcessor(queue, mailer, workers=1, clock=clock).flush()
    mailer.close()


def drain(tell: Tell, queue: str, port: int, workers: int) -> None:
    """Try once what is due."""
    mailer = SMTPMailer("127.0.0.1", port)
    processor = QueueProcessor(queue, mailer, workers=workers, min_backoff=0)
    tell("tally", *map(str, processor.flush()))


def act(tell: Tell, queue: str, action: str) -> None:
    """Do something to mail that waits in a room."""
    rooms.act(tell, queue, action)
