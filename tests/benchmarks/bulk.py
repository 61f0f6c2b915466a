"""A newsletter: many messages in one transaction, until the relay has the last.

From the first ``send()``. postcommit's processor runs meanwhile, in the same process;
the peers' drains after the commit. Beside smtplib without any queue, which waits for
the relay in the transaction. ``python -m tests.benchmarks.bulk --help``.
"""
from __future__ import annotations

import argparse
import smtplib
import sys
import tempfile
import threading
from pathlib import Path

from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.harness import versions
from tests.benchmarks.measured import measured
from tests.benchmarks.relays import sink


# The contestants, each in a process of its own


def postcommit(queue: str, port: int, count: int) -> None:
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer
    from tests.benchmarks import enqueuers

    left = threading.Semaphore(0)

    def notify(event: object) -> None:
        left.release()

    transact = enqueuers.postcommit(queue)
    mailer = SMTPMailer("127.0.0.1", port, notify=notify)
    processor = QueueProcessor(queue, mailer, pollingInterval=3_600_000)
    processor.start()
    with measured(count):
        transact(count)
        for _ in range(count):
            assert left.acquire(timeout=60)
    processor.stop()


def zope(queue: str, port: int, count: int) -> None:
    from zope.sendmail.mailer import SMTPMailer
    from zope.sendmail.queue import QueueProcessorThread

    from tests.benchmarks import enqueuers

    transact = enqueuers.zope(queue)
    thread = QueueProcessorThread()
    thread.setMailer(SMTPMailer("127.0.0.1", port))
    thread.setQueuePath(queue)
    with measured(count):
        transact(count)
        thread.run(forever=False)


def repoze(queue: str, port: int, count: int) -> None:
    from repoze.sendmail.mailer import SMTPMailer
    from repoze.sendmail.queue import QueueProcessor

    from tests.benchmarks import enqueuers

    transact = enqueuers.repoze(queue)
    processor = QueueProcessor(SMTPMailer("127.0.0.1", port), queue)
    with measured(count):
        transact(count)
        processor.send_messages()


def library(queue: str, port: int, count: int) -> None:
    from tests.benchmarks.enqueuers import MESSAGE

    with measured(count), smtplib.SMTP("127.0.0.1", port) as connection:
        for _ in range(count):
            connection.sendmail("sender@example.org", ["recipient@x.org"], MESSAGE)


NAMES = {
    "postcommit": (postcommit, "postcommit", OURS),
    "zope": (zope, "zope.sendmail", PEER),
    "repoze": (repoze, "repoze.sendmail", PEER),
    "library": (library, "smtplib, no queue", LIMIT),
}


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__)
    made.add_argument("--count", type=int, default=5000, help="messages")
    made.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    count = 10 if options.quick else options.count
    with sink() as port:
        command = [sys.executable, "-m", "tests.benchmarks.bulk"]
        command += ["--port", str(port), "--folder", options.folder]
        command += ["--count", str(count), "--contestant"]

        def contestant(kind: str) -> Contestant:
            _, name, what = NAMES[kind]
            case: dict[str, float | str] = {"in a transaction": count}
            return Contestant(name, lambda: [*command, kind], what, case)

        racing = [contestant(kind) for kind in NAMES]
        racing = versions(racing, options.against)
        return interleave("bulk", racing, 1 if options.quick else options.rounds)


def contest(options: argparse.Namespace) -> None:
    work, _, _ = NAMES[options.contestant]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        queue = Path(folder) / "queue"
        work(str(queue), options.port, options.count)
        left = list(queue.glob("new/*"))
        assert not left, f"{len(left)} entries were not sent"


if __name__ == "__main__":
    program(parser(), run, contest)
