"""What a child does while its calls are recorded, a queue for each part of it."""
from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit.interfaces import IDeliveryReport
from tests.support.mailers import ScriptedMailer
from tests.support.transactions import AFTER
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import explicit
from tests.support.transactions import fail
from tests.support.transactions import mail


# How many states of the disk are looked at, at each moment.
MOST = int(os.environ.get("POSTCOMMIT_DISK_STATES", "12"))

GOOD, LATER, NEVER = "good@example.org", "later@example.org", "never@example.org"

Tell = Callable[..., None]


def _commit(queue: str, tell: Tell, count: int) -> None:
    manager = explicit()
    manager.begin()
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    for number in range(count):
        delivery.send("shop@example.org", GOOD, mail(f"{number}@x.org"))
    manager.get().join(Partner(AFTER, tpc_vote=lambda: tell("voted")))
    manager.commit()
    tell("committed")


def _commit_alone(queue: str, tell: Tell, count: int) -> None:
    """As `_commit`, where no other resource takes part."""
    manager = explicit()
    manager.begin()
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    for number in range(count):
        delivery.send("shop@example.org", GOOD, mail(f"{number}@x.org"))
    tell("committing")
    manager.commit()
    tell("committed")


def _abort(queue: str, tell: Tell) -> None:
    manager = explicit()
    manager.begin()
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    delivery.send("shop@example.org", GOOD, mail("0@x.org"))
    manager.get().join(Partner(AFTER, tpc_vote=fail))
    try:
        manager.commit()
    except PartnerFailed:
        manager.abort()
    tell("aborted")


class Telling(ScriptedMailer):
    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def send(
        self, fromaddr: str, toaddrs: Sequence[str], message: bytes
    ) -> IDeliveryReport:
        report = super().send(fromaddr, toaddrs, message)
        for outcome in report.sent:
            self._tell("sent", report.message_id, outcome.recipient)
        return report

    def notify(self, event: Any) -> None:
        self._tell("settled", event.messageId)


def _drain(queue: str, tell: Tell, workers: int) -> None:
    QueueProcessor(queue, Telling(tell), workers=workers).flush()
    tell("drained")


SENDERS: dict[str, tuple[Callable[..., None], int]] = {
    "first": (_commit, 1),
    "one": (_commit, 1),
    "two": (_commit, 2),
    "many": (_commit, 3 if MOST < 100 else 8),
    "alone": (_commit_alone, 1),
    "two alone": (_commit_alone, 2),
    "aborted": (_abort, 0),
}

# The recipients of the entries that are drained, in each queue.
DRAINED: dict[str, list[tuple[str, ...]]] = {
    "finish": [(GOOD,)],
    "defer": [(GOOD, LATER)],
    "defer again": [(GOOD, LATER)],
    "bury": [(NEVER,)],
    "all": [(GOOD, LATER, NEVER)],
    "several": [(GOOD,), (GOOD, LATER), (LATER, NEVER)] * (1 if MOST < 100 else 3),
    "unreadable": [],
}


def everything(base: str) -> None:
    for name, (function, count) in SENDERS.items():
        tell = _telling(name)
        function(f"{base}/{name}/queue", tell, *([count] if count else []))
    for name in DRAINED:
        _drain(f"{base}/{name}/queue", _telling(name), 2 if name == "several" else 1)


def _telling(name: str) -> Tell:
    def tell(*words: str) -> None:
        # In one call of write, however the output is buffered.
        os.write(1, "|".join([name, *words, "\n"]).encode())

    return tell
