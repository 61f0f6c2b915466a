"""Steps of a mail through a queue, for the tests of its contract."""
from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from typing import Any

from postcommit._drain.contract import IConsumer
from postcommit._drain.contract import IQueue
from postcommit._drain.contract import Terms
from postcommit._drain.schedule import Schedule
from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from tests.support.transactions import mail


SENDER = "shop@example.org"
ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.org"

SCHEDULE = Schedule(60.0, 4000.0, 5 * 86400.0)

_count = itertools.count(1)


def stage(
    queue: IQueue, *recipients: str, terms: Terms | None = None
) -> tuple[str, Any]:
    """Stage an entry; return its message id, and the item."""
    message_id = f"{os.getpid()}.{next(_count)}@x.org"
    recipients = recipients or (ANN,)
    item = queue.stage(SENDER, recipients, [mail(message_id)], terms=terms)
    return message_id, item


def accept(queue: IQueue, *recipients: str, terms: Terms | None = None) -> str:
    """Accept an entry, alone in its transaction; return its message id."""
    message_id, item = stage(queue, *recipients, terms=terms)
    batch = queue.batch()
    batch.prepare([item], alone=True)
    batch.publish([item])
    return message_id


def tried(entry: Entry, *recipients: str, reply: str = "450 4.2.0 Later") -> Entry:
    """Return `entry` after one more attempt, with these recipients."""
    return replace(
        entry, recipients=recipients, attempts=entry.attempts + 1, last_reply=reply
    )


class Clock:
    """The queue's time, which a test moves on."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def consume(queue: IQueue, clock: Clock | None = None) -> IConsumer:
    return queue.consumer(SCHEDULE, clock)


def take_all(consumer: IConsumer, most: int = 8, **options: Any) -> list[Any]:
    """Take until nothing is due; return the claims, with what was read."""
    claims: list[Any] = []
    while taken := consumer.take(most, **options):
        assert len(taken) <= most
        for claim in taken:
            claim.read()
        claims += taken
    return claims


def let_in(consumer: IConsumer) -> None:
    """Let in all scheduled and bulk entries whose turn it is, as a feeder would.

    A queue on disk may rest before it looks again, longer on a slow machine.
    """
    consumer.let_in()
    for _ in range(3):
        rest = consumer.seconds_to_wait()
        consumer.wait(rest if rest < 1 else 0.05)
        while consumer.let_in():
            pass
        if rest >= 1:
            break


def seconds_of_rest(consumer: IConsumer) -> float:
    """Return for how many seconds nothing becomes due, after looks that found nothing.

    A queue on disk that has rested looks once more, and on a slow machine the rest may
    be over before it is asked.
    """
    until = time.monotonic() + 60
    while not (seconds := consumer.seconds_to_wait()) and time.monotonic() < until:
        let_in(consumer)
        assert take_all(consumer) == []
    return seconds


def ids(claims: list[Any]) -> list[str]:
    """Return the message ids of claims, in their order."""
    return [message_id_of(claim.entry.message) for claim in claims]
