"""Mixed load: threads enqueue while the processor drains, in one process.

An hour's worth in a minute: 18,000 mails, as an application sends in an hour that
sends five in a second. They come at random moments, whether or not the queue keeps
up. Told is how long ``send()`` and commit take the application's thread, and how
long it is from the commit to the relay's reply. repoze.sendmail has no processor
that runs by itself. ``python -m tests.benchmarks.mixed --help``.
"""
from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path

import transaction

from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.harness import versions
from tests.benchmarks.measured import peak_memory
from tests.benchmarks.measured import processor_time
from tests.benchmarks.measured import tell
from tests.benchmarks.relays import sink


_BODY = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\n" * 62

Send = Callable[[bytes], object]


class Times:
    """When each message was sent, committed, and taken by the relay."""

    def __init__(self, count: int) -> None:
        self.waiting = [0.0] * count
        self.committing = [0.0] * count
        self.taken = [0.0] * count
        self._left = threading.Semaphore(0)

    def sent(self, message_id: str) -> None:
        self.taken[int(message_id.partition("@")[0])] = time.monotonic()
        self._left.release()

    def wait(self) -> None:
        for _ in self.taken:
            assert self._left.acquire(timeout=120), "mails are missing"

    def spread(self, since: Sequence[float], until: Sequence[float]) -> list[float]:
        """101 quantiles of the milliseconds between."""
        taken = sorted(1000 * (b - a) for a, b in zip(since, until, strict=True))
        last = len(taken) - 1
        return [round(taken[last * n // 100], 3) for n in range(101)]


def postcommit(queue: str, port: int, times: Times) -> tuple[Send, Callable[[], None]]:
    from postcommit import QueuedMailDelivery
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    def notify(event: object) -> None:
        times.sent(event.messageId)  # type: ignore[attr-defined]

    delivery = QueuedMailDelivery(queue)
    mailer = SMTPMailer("127.0.0.1", port, notify=notify)
    processor = QueueProcessor(queue, mailer, pollingInterval=3_600_000)
    processor.start()
    send = delivery.send
    return lambda message: send("a@x.org", "b@x.org", message), processor.stop


def zope(
    queue: str, port: int, times: Times, polling: float = 3
) -> tuple[Send, Callable[[], None]]:
    from zope.sendmail.delivery import QueuedMailDelivery
    from zope.sendmail.mailer import SMTPMailer
    from zope.sendmail.queue import QueueProcessorThread

    class Mailer(SMTPMailer):  # type: ignore[misc]
        def send(self, fromaddr: str, toaddrs: list[str], message: bytes) -> None:
            super().send(fromaddr, toaddrs, message)
            found = re.search(rb"^Message-Id: <(\S+)>", message, re.MULTILINE)
            assert found
            times.sent(found[1].decode())

    delivery, thread = QueuedMailDelivery(queue), QueueProcessorThread(polling)
    thread.setMailer(Mailer("127.0.0.1", port))
    thread.setQueuePath(queue)
    thread.start()
    return lambda message: delivery.send("a@x.org", ["b@x.org"], message), thread.stop


def soon(queue: str, port: int, times: Times) -> tuple[Send, Callable[[], None]]:
    return zope(queue, port, times, polling=0.1)


Begin = Callable[[str, int, Times], tuple[Send, Callable[[], None]]]
NAMES: dict[str, tuple[Begin, str, str]] = {
    "postcommit": (postcommit, "postcommit", OURS),
    "zope": (zope, "zope.sendmail", PEER),
}


def load(send: Send, times: Times, threads: int, seconds: float) -> None:
    """Send the messages at random moments within `seconds`, and wait for all."""
    begin = time.monotonic()

    def work(first: int) -> None:
        numbers = range(first, len(times.taken), threads)
        moments = sorted(random.uniform(0, seconds) for _ in numbers)
        for number, moment in zip(numbers, moments, strict=True):
            time.sleep(max(0, begin + moment - time.monotonic()))
            head = f"Message-Id: <{number}@x.org>\nDate: x\nSubject: {number}\n\n"
            message = head.encode() + _BODY
            times.waiting[number] = time.monotonic()
            send(message)
            times.committing[number] = time.monotonic()
            transaction.commit()
            done[number] = time.monotonic()

    done = [0.0] * len(times.taken)
    working = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    cpu = processor_time()
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    times.wait()
    took = time.monotonic() - begin
    count = len(times.taken)
    tell(
        rate=("1/s", count / took),
        processor_time=("ms", 1000 * (processor_time() - cpu) / count),
        peak_memory=("MiB", peak_memory()),
        send_and_commit=("ms", times.spread(times.waiting, done)),
        latency=("ms", times.spread(times.committing, times.taken)),
    )


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__, rounds=3)
    made.add_argument("--count", type=int, default=18_000, help="messages")
    made.add_argument("--seconds", type=float, default=60, help="for all of them")
    made.add_argument("--threads", type=int, default=8)
    made.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    count, seconds = options.count, options.seconds
    if options.quick:
        count, seconds = 16, 0.1
    with sink() as port:
        command = [sys.executable, "-m", "tests.benchmarks.mixed"]
        command += ["--port", str(port), "--folder", options.folder]
        command += ["--count", str(count), "--seconds", str(seconds)]
        command += ["--threads", str(options.threads)]
        command += ["--quick"] if options.quick else []

        def contestant(kind: str) -> Contestant:
            _, name, what = NAMES[kind]
            case = {"threads": options.threads, "mails per s": count / seconds}
            order = [*command, "--contestant", kind]
            return Contestant(name, lambda: order, what, case)

        racing = [contestant(kind) for kind in NAMES]
        racing = versions(racing, options.against)
        return interleave("mixed", racing, 1 if options.quick else options.rounds)


def contest(options: argparse.Namespace) -> None:
    begin, _, _ = NAMES[options.contestant]
    if options.quick and begin is zope:
        begin = soon
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        queue, times = Path(folder) / "queue", Times(options.count)
        send, stop = begin(str(queue), options.port, times)
        load(send, times, options.threads, options.seconds)
        stop()
        # The relay has the last one, the processor may have to remove it still.
        until = time.monotonic() + 30
        while (left := list(queue.glob("new/*"))) and time.monotonic() < until:
            time.sleep(0.01)
        assert not left, f"{len(left)} entries were not sent"


if __name__ == "__main__":
    program(parser(), run, contest)
