"""Deep queues: what a processor does until it sends, and what it holds.

Told is how long until the first mail is sent, the rate of the first mails, the
memory, and what a poll costs when all entries are deferred. All contestants take a
few entries each from the same queue, which so stays as deep as it is; then whole
queues are drained.
``python -m tests.benchmarks.scale --help``; a million entries take 4 GB of disk.
"""
from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from tests.benchmarks.drain import fill
from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.measured import peak_memory
from tests.benchmarks.measured import processor_time
from tests.benchmarks.measured import tell
from tests.benchmarks.relays import sink


class Beginning:
    """Of a drain: its first mail and its first `count` mails."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._sent: SimpleQueue[float] = SimpleQueue()
        self._begin = time.perf_counter()

    def sent(self, event: object = None) -> None:
        self._sent.put(time.perf_counter())

    def wait(self) -> None:
        first = self._sent.get(timeout=600)
        for _ in range(self._count - 1):
            last = self._sent.get(timeout=600)
        tell(
            first_send=("ms", 1000 * (first - self._begin)),
            rate=("1/s", (self._count - 1) / (last - first)),
            peak_memory=("MiB", peak_memory()),
        )

    def sent_by_one_thread(self) -> None:
        """End the process with the last of them: what follows is not asked for."""
        self.sent()
        if self._sent.qsize() == self._count:
            self.wait()
            sys.stdout.flush()
            os._exit(0)


# The contestants, each in a process of its own


def postcommit(queue: str, port: int, count: int) -> None:
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    beginning = Beginning(count)
    mailer = SMTPMailer("127.0.0.1", port, notify=beginning.sent)
    processor = QueueProcessor(queue, mailer)
    processor.start()
    beginning.wait()
    processor.stop()


def zope(queue: str, port: int, count: int) -> None:
    from zope.sendmail.mailer import SMTPMailer
    from zope.sendmail.queue import QueueProcessorThread

    beginning = Beginning(count)

    class Mailer(SMTPMailer):  # type: ignore[misc]
        def send(self, *args: object) -> None:
            super().send(*args)
            beginning.sent_by_one_thread()

    thread = QueueProcessorThread()
    thread.setMailer(Mailer("127.0.0.1", port))
    thread.setQueuePath(queue)
    thread.run(forever=False)


def repoze(queue: str, port: int, count: int) -> None:
    from repoze.sendmail.mailer import SMTPMailer
    from repoze.sendmail.queue import QueueProcessor

    beginning = Beginning(count)

    class Mailer(SMTPMailer):  # type: ignore[misc]
        def send(self, *args: object) -> None:
            super().send(*args)
            beginning.sent_by_one_thread()

    QueueProcessor(Mailer("127.0.0.1", port), queue).send_messages()


def listing(queue: str, port: int, count: int) -> None:
    begin = time.perf_counter()
    with os.scandir(f"{queue}/new") as entries:
        found = sum(1 for _ in entries)
    assert found, queue
    tell(first_send=("ms", 1000 * (time.perf_counter() - begin)))


def polls(queue: str, port: int, count: int) -> None:
    """Nothing is due: `count` polls, a hundred in a second."""
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    mailer = SMTPMailer("127.0.0.1", port)
    processor = QueueProcessor(queue, mailer, pollingInterval=10)
    processor.start()
    while _busy():
        pass  # it looks at all of them once
    cpu, begin = processor_time(), time.perf_counter()
    time.sleep(0.01 * count)
    cpu, took = processor_time() - cpu, time.perf_counter() - begin
    processor.stop()
    tell(poll=("ms", 1000 * cpu / (took / 0.01)))
    left = sum(1 for _ in Path(queue, "cur").iterdir())
    assert left, "they were not idle: what is deferred was sent"


def whole(queue: str, port: int, count: int) -> None:
    """Drain all of it, `count`: is the end as quick as the beginning?"""
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    each = max(1, count // 100)
    number = itertools.count()
    marks: list[float] = []  # not one for each mail: it would be most of the memory

    def sent(event: object) -> None:
        if next(number) % each == 0:
            marks.append(time.perf_counter())

    begin = time.perf_counter()
    QueueProcessor(queue, SMTPMailer("127.0.0.1", port, notify=sent)).flush()
    took = time.perf_counter() - begin
    assert next(number) == count, count
    rates = [each / (b - a) for a, b in itertools.pairwise(marks)]
    fifth = len(rates) // 5
    tell(
        rate=("1/s", count / took),
        first_fifth=("1/s", statistics.median(rates[:fifth])),
        last_fifth=("1/s", statistics.median(rates[-fifth:])),
        peak_memory=("MiB", peak_memory()),
    )


def _busy() -> bool:
    cpu = processor_time()
    time.sleep(0.5)
    return processor_time() - cpu > 0.2


NAMES = {
    "postcommit": (postcommit, "postcommit", OURS),
    "zope": (zope, "zope.sendmail", PEER),
    "repoze": (repoze, "repoze.sendmail", PEER),
    "listing": (listing, "reading the folder once", LIMIT),
    "polls": (polls, "postcommit, idle", OURS),
    "whole": (whole, "postcommit, all of it", OURS),
}

_RACING = ("postcommit", "zope", "repoze", "listing")

# So many are sent in the rounds of whole queues together: the deepest has one.
_WHOLE = 300_000


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__)
    depths = [10_000, 100_000, 300_000, 1_000_000]
    made.add_argument("--depth", type=int, nargs="+", default=depths)
    made.add_argument("--count", type=int, default=500, help="mails of each")
    made.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    depths, count = options.depth, options.count
    if options.quick:
        depths, count = [40], 4
    rounds = 1 if options.quick else options.rounds
    results: list[Result] = []
    for depth in depths:
        with (
            tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
            sink() as port,
        ):
            deep = Deep(folder, port, depth, count)
            results += deep.begin(rounds)
            # The same entries from now on: those that are made when as many were
            # removed take ext4 long.
            results += deep.poll(rounds)
            results += deep.drain(min(rounds, max(1, _WHOLE // depth)))
    return results


class Deep:
    """A queue of `depth` entries; each method measures something with it.

    A contestant takes `count` of them in a round, if it does not take all.
    """

    def __init__(self, folder: str, port: int, depth: int, count: int) -> None:
        self._queue = Path(folder) / "queue"
        self._depth = depth
        self._count = count
        self._command = [sys.executable, "-m", "tests.benchmarks.scale"]
        self._command += ["--folder", folder, "--port", str(port)]
        self._fill()

    def begin(self, rounds: int) -> list[Result]:
        """How soon and how fast each of the contestants begins."""
        racing = [self._contestant(kind) for kind in _RACING]
        results = interleave("scale", racing, rounds)
        # The peers end before they remove the last of theirs.
        taken = self._depth - self._left()
        assert taken >= 3 * (self._count - 1) * rounds, taken
        if taken > self._depth / 10:
            self._fill()
        return results

    def poll(self, rounds: int) -> list[Result]:
        """What a poll costs, when all entries are deferred."""
        defer(self._queue)
        os.sync()
        results = interleave("scale", [self._contestant("polls")], rounds)
        accept(self._queue)
        os.sync()
        return results

    def drain(self, rounds: int) -> list[Result]:
        """How fast all of the entries are sent; new ones are made for each round."""

        def count() -> int:
            left = self._left()
            if not left:
                self._fill()
            return left or self._depth

        return interleave("scale", [self._contestant("whole", count)], rounds)

    def _left(self) -> int:
        return sum(1 for _ in self._queue.glob("new/[0-9]*"))

    def _fill(self) -> None:
        fill(self._queue, self._depth, 200, "both")  # what each of them reads
        os.sync()  # or the disk would write it while others are measured

    def _contestant(
        self, kind: str, count: Callable[[], int] | None = None
    ) -> Contestant:
        _, name, what = NAMES[kind]

        def prepare() -> list[str]:
            asked = self._count if count is None else count()
            return [*self._command, "--contestant", kind, "--count", str(asked)]

        return Contestant(name, prepare, what, {"depth": self._depth})


def defer(queue: Path) -> None:
    """Let all entries be deferred for an hour; the peers' claims go.

    Not for a day: what is due so far ahead is tried at once, see `Schedule`.
    """
    for claim in (queue / "new").glob(".sending-*"):
        claim.unlink()
    due = time.time() + 3600
    for name in os.listdir(queue / "new"):
        path = queue / "cur" / f"{name}:2,"
        os.rename(queue / "new" / name, path)
        os.utime(path, (due, due))
    # A folder that has just changed is read again for a while, see `Scan`.
    long_ago = time.time() - 60
    for name in ("new", "cur"):
        os.utime(queue / name, (long_ago, long_ago))


def accept(queue: Path) -> None:
    """Let all deferred entries be new again: that is quicker than to make others."""
    for name in os.listdir(queue / "cur"):
        os.rename(queue / "cur" / name, queue / "new" / name.partition(":")[0])


def contest(options: argparse.Namespace) -> None:
    work, _, _ = NAMES[options.contestant]
    work(str(Path(options.folder) / "queue"), options.port, options.count)


if __name__ == "__main__":
    program(parser(), run, contest)
