"""From the commit to the relay's reply, on an idle queue, without polling.

``python -m tests.benchmarks.latency``: in the same process, and from another one.
"""
from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import transaction

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from tests.benchmarks.relays import sink


_MESSAGE = b"Message-Id: <1@x.org>\r\nDate: x\r\nSubject: x\r\n\r\nx\r\n"

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
    """Waits for the event that a mail was sent."""

    def __init__(self) -> None:
        self._sent = threading.Event()
        self._at = 0.0

    def notify(self, event: object) -> None:
        self._at = time.monotonic()
        self._sent.set()

    def wait(self) -> float:
        assert self._sent.wait(30)
        self._sent.clear()
        return self._at


def here(queue: str, waiting: Waiting) -> float:
    QueuedMailDelivery(queue).send("a@x.org", "b@x.org", _MESSAGE)
    started = time.monotonic()
    transaction.commit()
    return waiting.wait() - started


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as folder, sink() as port:
        queue, waiting = str(Path(folder) / "queue"), Waiting()
        mailer = SMTPMailer("127.0.0.1", port, notify=waiting.notify)
        processor = QueueProcessor(queue, mailer, pollingInterval=3_600_000)
        processor.start()
        command = [sys.executable, "-c", _SENDER, queue]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
            taken: dict[str, list[float]] = {"same process": [], "another": []}
            for _ in range(100):
                taken["same process"].append(here(queue, waiting))
                print(file=other.stdin, flush=True)
                sent = waiting.wait()
                taken["another"].append(sent - float(other.stdout.readline()))
        processor.stop()
    for name, seconds in taken.items():
        milliseconds = [1000 * s for s in seconds]
        deciles = statistics.quantiles(milliseconds, n=10)
        print(f"{name:13} median {deciles[4]:.2f} ms, nine of ten {deciles[8]:.2f} ms")


if __name__ == "__main__":
    main()
