"""From the commit to the relay's reply, on an idle queue, without polling.

In the same process, and from another one; beside zope.sendmail, which polls every
three seconds, and beside one thread that writes durably and sends at once, which is
the limit. ``python -m tests.benchmarks.latency --help``.
"""
from __future__ import annotations

import argparse
import random
import smtplib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transaction

from tests.benchmarks import enqueuers
from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.harness import versions
from tests.benchmarks.measured import tell
from tests.benchmarks.relays import sink


_SENDER = """
import sys, time, transaction
from postcommit import QueuedMailDelivery
delivery = QueuedMailDelivery(sys.argv[1])
for line in sys.stdin:
    delivery.send("a@x.org", "b@x.org", "Subject: x\\n\\nx\\n")
    started = time.monotonic()
    transaction.commit()
    print(started, flush=True)
"""


class Waiting:
    """Waits until a mail was sent."""

    def __init__(self) -> None:
        self._sent = threading.Event()
        self._at = 0.0

    def notify(self, event: object) -> None:
        self._at = time.monotonic()
        self._sent.set()

    def wait(self) -> float:
        assert self._sent.wait(60)
        self._sent.clear()
        return self._at


# The contestants, each in a process of its own: seconds for each of `count` mails


@contextmanager
def _processor(queue: str, port: int) -> Iterator[Waiting]:
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    waiting = Waiting()
    mailer = SMTPMailer("127.0.0.1", port, notify=waiting.notify)
    processor = QueueProcessor(queue, mailer, pollingInterval=3_600_000)
    processor.start()
    yield waiting
    processor.stop()


def here(queue: str, port: int, count: int) -> list[float]:
    from postcommit import QueuedMailDelivery

    delivery, taken = QueuedMailDelivery(queue), []
    with _processor(queue, port) as waiting:
        for _ in range(count):
            delivery.send("a@x.org", "b@x.org", enqueuers.MESSAGE)
            started = time.monotonic()
            transaction.commit()
            taken.append(waiting.wait() - started)
    return taken


def another(queue: str, port: int, count: int) -> list[float]:
    command, taken = [sys.executable, "-c", _SENDER, queue], []
    with (
        _processor(queue, port) as waiting,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        for _ in range(count):
            print(file=other.stdin, flush=True)
            sent = waiting.wait()
            taken.append(sent - float(other.stdout.readline()))
        other.stdin.close()
    return taken


def zope(queue: str, port: int, count: int, polling: float = 3) -> list[float]:
    from zope.sendmail.delivery import QueuedMailDelivery
    from zope.sendmail.mailer import SMTPMailer
    from zope.sendmail.queue import QueueProcessorThread

    waiting, taken = Waiting(), []

    class Mailer(SMTPMailer):  # type: ignore[misc]
        def send(self, *args: object) -> None:
            super().send(*args)
            waiting.notify(None)

    delivery, thread = QueuedMailDelivery(queue), QueueProcessorThread(polling)
    thread.setMailer(Mailer("127.0.0.1", port))
    thread.setQueuePath(queue)
    thread.start()
    for _ in range(count):
        # Else each would come right after a poll.
        time.sleep(random.uniform(0, polling))
        delivery.send("a@x.org", ["b@x.org"], enqueuers.MESSAGE)
        started = time.monotonic()
        transaction.commit()
        taken.append(waiting.wait() - started)
    return taken


def minimal(queue: str, port: int, count: int) -> list[float]:
    transact, taken = enqueuers.minimal(queue), []
    with smtplib.SMTP("127.0.0.1", port) as connection:
        for _ in range(count):
            started = time.monotonic()
            transact(1)
            connection.sendmail("a@x.org", ["b@x.org"], enqueuers.MESSAGE)
            taken.append(time.monotonic() - started)
    return taken


def soon(queue: str, port: int, count: int) -> list[float]:
    return zope(queue, port, count, polling=0.1)


Work = Callable[[str, int, int], list[float]]
NAMES: dict[str, tuple[Work, str, str]] = {
    "here": (here, "postcommit, same process", OURS),
    "another": (another, "postcommit, from another process", OURS),
    "zope": (zope, "zope.sendmail, polling every 3 s", PEER),
    "minimal": (minimal, "one thread, fsync and smtplib", LIMIT),
}


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__)
    made.add_argument("--count", type=int, default=100, help="mails in a round")
    made.add_argument("--kinds", nargs="+", default=list(NAMES), choices=NAMES)
    made.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    with sink() as port:
        command = [sys.executable, "-m", "tests.benchmarks.latency"]
        command += ["--port", str(port), "--folder", options.folder]

        def contestant(kind: str) -> Contestant:
            _, name, what = NAMES[kind]
            count = min(options.count, 6) if kind == "zope" else options.count
            count = 1 if options.quick else count
            order = ["--count", str(count), "--contestant", kind]
            order += ["--quick"] if options.quick else []
            return Contestant(name, lambda: [*command, *order], what)

        racing = [contestant(kind) for kind in options.kinds]
        racing = versions(racing, options.against)
        return interleave("latency", racing, 1 if options.quick else options.rounds)


def contest(options: argparse.Namespace) -> None:
    work, _, _ = NAMES[options.contestant]
    if options.quick and work is zope:
        work = soon
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        taken = work(str(Path(folder) / "queue"), options.port, options.count)
    assert len(taken) == options.count
    tell(latency=("ms", [round(1000 * seconds, 3) for seconds in taken]))


if __name__ == "__main__":
    program(parser(), run, contest)
