"""Accepts mail into a queue on disk, durably.

Beside a minimal loop in Python (open, write, fsync, rename, fsync the folder),
which is the limit for one message at a time, and beside zope.sendmail, which
does not sync. ``python -m tests.benchmarks.enqueue [--count N] [--folder DIR]``
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import transaction

from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import compare
from tests.benchmarks.harness import measured


MESSAGE = (
    b"From: sender@example.org\r\nTo: recipient@example.org\r\nSubject: x\r\n"
    b"Message-Id: <1@example.org>\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n\r\n"
) + b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n" * 60


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def minimal(folder: Path, count: int) -> None:
    for name in ("tmp", "new"):
        (folder / name).mkdir()
    new = str(folder / "new")
    with measured(count):
        for n in range(count):
            path = f"{folder}/tmp/{n}"
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.write(descriptor, MESSAGE)
            os.fsync(descriptor)
            os.close(descriptor)
            os.rename(path, f"{new}/{n}")
            sync(new)


def postcommit(folder: Path, count: int) -> None:
    _postcommit(folder, count, 1)


def eight_threads(folder: Path, count: int) -> None:
    _postcommit(folder, count, 8)


def _postcommit(folder: Path, count: int, threads: int) -> None:
    from postcommit import QueuedMailDelivery

    delivery = QueuedMailDelivery(str(folder / "queue"))

    def work() -> None:
        for _ in range(count // threads):
            delivery.send("sender@example.org", "recipient@example.org", MESSAGE)
            transaction.commit()

    delivery.send("sender@example.org", "recipient@example.org", MESSAGE)
    transaction.commit()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    with measured(count):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def one_transaction(folder: Path, count: int) -> None:
    from postcommit import QueuedMailDelivery

    delivery = QueuedMailDelivery(str(folder / "queue"))
    with measured(count):
        for _ in range(count):
            delivery.send("sender@example.org", "recipient@example.org", MESSAGE)
        transaction.commit()


def zope(folder: Path, count: int) -> None:
    from zope.sendmail.delivery import QueuedMailDelivery

    delivery = QueuedMailDelivery(str(folder / "queue"))
    with measured(count):
        for _ in range(count):
            delivery.send("sender@example.org", ["recipient@example.org"], MESSAGE)
            transaction.commit()


CONTESTANTS: dict[str, Callable[[Path, int], None]] = {
    "minimal loop": minimal,
    "postcommit": postcommit,
    "postcommit, 8 threads": eight_threads,
    "postcommit, one transaction": one_transaction,
    "zope.sendmail, no sync": zope,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=".", help="on the disk to measure")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            CONTESTANTS[options.contestant](Path(folder), options.count)
        return
    command = [sys.executable, "-m", "tests.benchmarks.enqueue"]
    command += ["--count", str(options.count), "--folder", options.folder]

    def contestant(name: str) -> Contestant:
        return Contestant(name, lambda: [*command, "--contestant", name])

    compare([contestant(name) for name in CONTESTANTS], options.rounds)


if __name__ == "__main__":
    main()
