"""Who is idle: a processor, or nothing at all, in a process of its own.

Each yields what proves that it can still do its work: a mail is sent through it.
"""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import transaction

from tests.benchmarks.enqueuers import MESSAGE
from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.latency import Waiting


Proof = Callable[[], None]


@contextmanager
def postcommit(queue: str, port: int, polling: float | None) -> Iterator[Proof]:
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    waiting = Waiting()
    mailer = SMTPMailer("127.0.0.1", port, notify=waiting.notify)
    options: dict[str, Any] = {}
    if polling is not None:
        options["pollingInterval"] = int(1000 * polling)
    processor = QueueProcessor(queue, mailer, **options)
    processor.start()

    def send() -> None:
        from postcommit import QueuedMailDelivery

        QueuedMailDelivery(queue).send("a@x.org", "b@x.org", MESSAGE)
        transaction.commit()
        waiting.wait()

    try:
        yield send
    finally:
        processor.stop()


@contextmanager
def zope(queue: str, port: int, polling: float | None) -> Iterator[Proof]:
    from zope.sendmail.mailer import SMTPMailer
    from zope.sendmail.queue import QueueProcessorThread

    waiting = Waiting()

    class Mailer(SMTPMailer):  # type: ignore[misc]
        def send(self, *args: object) -> None:
            super().send(*args)
            waiting.notify(None)

    thread = QueueProcessorThread(*([] if polling is None else [polling]))
    thread.setMailer(Mailer("127.0.0.1", port))
    thread.setQueuePath(queue)
    thread.start()

    def send() -> None:
        from zope.sendmail.delivery import QueuedMailDelivery

        QueuedMailDelivery(queue).send("a@x.org", ["b@x.org"], MESSAGE)
        transaction.commit()
        waiting.wait()

    try:
        yield send
    finally:
        thread.stop()
        thread.join()


@contextmanager
def sleeper(queue: str, port: int, polling: float | None) -> Iterator[Proof]:
    yield lambda: None


@dataclass(frozen=True)
class Kind:
    """Who is idle, and how: `polling` in seconds, None for its own default."""

    work: Callable[[str, int, float | None], AbstractContextManager[Proof]]
    name: str
    what: str
    polling: float | None = None
    deferred: bool = False


KINDS = {
    "postcommit": Kind(postcommit, "postcommit", OURS),
    "deferred": Kind(postcommit, "postcommit, 10,000 deferred", OURS, deferred=True),
    "hour": Kind(postcommit, "postcommit, polling every hour", OURS, polling=3600),
    "zope": Kind(zope, "zope.sendmail", PEER),
    "zope-5": Kind(zope, "zope.sendmail, polling every 5 s", PEER, polling=5),
    "sleeper": Kind(sleeper, "a process that sleeps", LIMIT),
}
