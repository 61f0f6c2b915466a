"""New mail beside a million scheduled entries, and beside thousands of bulk mails.

``python -m tests.benchmarks.rooms --scheduled 1000000 --bulk 5000`` prints the seconds
until a new mail is at the relay, while the names of the scheduled entries are being
read, after that, and while bulk mail is sent; and the growth of the memory in MiB.
"""
from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._mail.terms import Terms
from postcommit._maildir.store import Store
from tests.benchmarks.relays import sink


_NEW = "new@x.org"


class Figures(NamedTuple):
    """Seconds, and MiB."""

    while_reading: float
    after_reading: float
    growth: float
    beside_bulk: float
    bulk_per_second: float


class Arrivals:
    """When a mail to `_NEW` was sent, and how many others."""

    def __init__(self) -> None:
        self.others = 0
        self._came = threading.Event()

    def notify(self, event: object) -> None:
        if getattr(event, "recipients", ()) == (_NEW,):
            self._came.set()
        else:
            self.others += 1

    def seconds_for(self, store: Store) -> float:
        """Send a mail, and return how long it takes to the relay."""
        self._came.clear()
        item = store.stage("", (_NEW,), [b"Subject: reset\n\n"])
        batch = store.batch()
        batch.prepare([item], alone=True)
        began = time.monotonic()
        batch.publish([item])
        assert self._came.wait(60)
        return time.monotonic() - began


@contextmanager
def processing(store: Store, port: int) -> Iterator[Arrivals]:
    arrivals = Arrivals()
    mailer = SMTPMailer("127.0.0.1", port, notify=arrivals.notify)
    processor = QueueProcessor(store.path, mailer)
    processor.start()
    yield arrivals
    processor.stop()
    mailer.close()


def schedule(store: Store, count: int) -> None:
    """Make links of one entry: their names are all that is read."""
    due = time.time() + 86400
    store.stage("", ("b@x.org",), [b"Subject: x\n\n"], terms=Terms(due)).commit()
    folder = Path(store.path, ".Later/new")
    [first] = folder.iterdir()
    part = first
    for number in range(1, count):
        if number % 60_000 == 0:  # a file has at most 65,000 names on ext4
            part = folder / f"{due + number:010.0f}.M000000P1Q{number}R0.x,L=0123456789"
            part.write_bytes(first.read_bytes())
            continue
        name = f"{due + number:010.0f}.M000000P1Q{number}R0.x,L=0123456789"
        os.link(part, folder / name)


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(folder: str, scheduled: int, bulk: int) -> Figures:
    with tempfile.TemporaryDirectory(dir=folder) as base, sink() as port:
        store = Store(f"{base}/scheduled")
        schedule(store, scheduled)
        with processing(Store(f"{base}/empty"), port) as arrivals:
            arrivals.seconds_for(Store(f"{base}/empty"))
        before = memory()
        with processing(store, port) as arrivals:
            reading = max(arrivals.seconds_for(store) for _ in range(20))
            time.sleep(2 + scheduled / 200_000)
            idle = statistics.median(arrivals.seconds_for(store) for _ in range(20))
        growth = memory() - before
        store = Store(f"{base}/bulk")
        for _ in range(bulk):
            terms = Terms(bulk=True)
            store.stage("", ("b@x.org",), [b"Subject: x\n\n"], terms=terms).commit()
        with processing(store, port) as arrivals:
            began = time.monotonic()
            seconds = []
            while arrivals.others < bulk * 0.8:
                seconds.append(arrivals.seconds_for(store))
                time.sleep(0.02)
            rate = arrivals.others / (time.monotonic() - began)
    return Figures(reading, idle, growth, statistics.median(seconds), rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheduled", type=int, default=1_000_000)
    parser.add_argument("--bulk", type=int, default=5000)
    parser.add_argument("--folder", default=".")
    options = parser.parse_args()
    figures = run(options.folder, options.scheduled, options.bulk)
    for name, value in figures._asdict().items():
        print(f"{name:16} {value:.4f}")


if __name__ == "__main__":
    main()
