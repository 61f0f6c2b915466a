"""The contestants that put mail into a queue, each in a process of its own.

``python -m tests.benchmarks.enqueuers KIND OPTIONS``, see
``tests.benchmarks.enqueue``.
"""
from __future__ import annotations

import argparse
import itertools
import os
import threading
from collections.abc import Callable

import transaction

from tests.benchmarks.measured import measured
from tests.benchmarks.message import MESSAGE


# What the limits write: a queue needs the envelope, too, and these few bytes more are
# a second block of the disk.
ENTRY = (
    b"X-Zope-From: sender@example.org\nX-Zope-To: recipient@example.org\n" + MESSAGE
)

# Puts so many messages into the queue, in one transaction.
Transact = Callable[[int], None]


def postcommit(queue: str) -> Transact:
    from postcommit import QueuedMailDelivery

    delivery = QueuedMailDelivery(queue)

    def transact(batch: int) -> None:
        for _ in range(batch):
            delivery.send("sender@example.org", "recipient@example.org", MESSAGE)
        transaction.commit()

    return transact


def zope(queue: str) -> Transact:
    from zope.sendmail.delivery import QueuedMailDelivery

    delivery = QueuedMailDelivery(queue)

    def transact(batch: int) -> None:
        for _ in range(batch):
            delivery.send("sender@example.org", ["recipient@example.org"], MESSAGE)
        transaction.commit()

    return transact


def repoze(queue: str) -> Transact:
    from email import message_from_bytes

    from repoze.sendmail.delivery import QueuedMailDelivery

    delivery = QueuedMailDelivery(queue)

    def transact(batch: int) -> None:
        for _ in range(batch):
            message = message_from_bytes(MESSAGE)
            delivery.send("sender@example.org", ["recipient@example.org"], message)
        transaction.commit()

    return transact


def minimal(queue: str) -> Transact:
    """The least that is durable: one folder sync for each transaction."""
    for name in ("tmp", "new"):
        os.makedirs(f"{queue}/{name}", exist_ok=True)
    numbers = itertools.count()

    def transact(batch: int) -> None:
        names = [str(next(numbers)) for _ in range(batch)]
        for name in names:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            descriptor = os.open(f"{queue}/tmp/{name}", flags, 0o600)
            os.write(descriptor, ENTRY)
            os.fsync(descriptor)
            os.close(descriptor)
        for name in names:
            os.rename(f"{queue}/tmp/{name}", f"{queue}/new/{name}")
        descriptor = os.open(f"{queue}/new", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    return transact


def bare(queue: str) -> Transact:
    """As little, by calls of `transaction`, and with a file that has no name at first.

    It checks nothing, and does not clean up: what a transaction costs, whatever the
    library.
    """
    for name in ("tmp", "new"):
        os.makedirs(f"{queue}/{name}", exist_ok=True)
    numbers = itertools.count()

    class Bare:
        transaction_manager = transaction.manager

        def __init__(self) -> None:
            flags = os.O_TMPFILE | os.O_WRONLY
            self._file = os.open(f"{queue}/tmp", flags, 0o600)
            os.write(self._file, ENTRY)

        def pass_by(self, transaction: object) -> None:
            """There is nothing to do."""

        tpc_begin = commit = tpc_abort = abort = pass_by

        def tpc_vote(self, transaction: object) -> None:
            os.fsync(self._file)

        def tpc_finish(self, transaction: object) -> None:
            source, name = f"/proc/self/fd/{self._file}", f"{queue}/new/{next(numbers)}"
            os.link(source, name, src_dir_fd=self._file)
            os.close(self._file)
            descriptor = os.open(f"{queue}/new", os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

        def sortKey(self) -> str:
            return "~bare"

    def transact(batch: int) -> None:
        assert batch == 1, batch
        transaction.get().join(Bare())
        transaction.commit()

    return transact


KINDS = {one.__name__: one for one in (postcommit, zope, repoze, minimal, bare)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    parent = os.path.join(options.folder, f"{options.kind}-{os.urandom(4).hex()}")
    os.mkdir(parent)
    queue = os.path.join(parent, "queue")
    transact = KINDS[options.kind](queue)
    transact(1)

    whole, rest = divmod(options.count, options.batch)
    sizes = [options.batch] * whole + ([rest] if rest else [])
    turns = iter(sizes)  # each thread takes the next

    def work() -> None:
        for size in turns:
            transact(size)

    threads = [threading.Thread(target=work) for _ in range(options.threads)]
    with measured(options.count):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    accepted = len(os.listdir(f"{queue}/new"))
    assert accepted == options.count + 1, accepted


if __name__ == "__main__":
    main()
