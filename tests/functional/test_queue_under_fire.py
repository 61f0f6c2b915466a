"""Queues that several processes drain, some of which are killed."""
from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.smtpd import ScriptedRelay
from transaction import TransactionManager

from postcommit import QueuedMailDelivery
from postcommit._mail.message import message_id_of


ANN, BOB = "ann@example.org", "bob@example.org"


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


def fill(queue: Path, numbers: range) -> None:
    manager = TransactionManager()
    delivery = QueuedMailDelivery(str(queue), transaction_manager=manager)
    with manager:
        for number in numbers:
            delivery.send(BOB, ANN, f"Message-Id: <{number}@x.org>\n\nx\n")


def touched(queue: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for folder in ("new", "cur"):
        for path in (queue / folder).iterdir():
            with suppress(FileNotFoundError):  # it was sent just now
                status = path.stat()
                found[str(path)] = status.st_ino, status.st_mtime_ns
    return found


DRAINER = """
import sys
from postcommit import QueueProcessor, SMTPMailer
mailer = SMTPMailer("127.0.0.1", int(sys.argv[2]))
print("begun", flush=True)
QueueProcessor(sys.argv[1], mailer, workers=4, pollingInterval=50).run()
"""


def test_four_processes_drain_a_queue_that_grows_and_two_are_killed(
    tmp_path: Path, relay: ScriptedRelay
) -> None:
    queue = tmp_path / "queue"
    count = int(os.environ.get("POSTCOMMIT_ENTRIES", "1500"))
    fill(queue, range(count // 2))
    command = [sys.executable, "-c", DRAINER, str(queue), str(relay.port)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    fill(queue, range(count // 2, count))
    dice = random.Random(count)
    in_flight = 0
    for process in processes[:2]:
        goal = dice.randrange(count // 10, count // 2)
        relay.wait_until(lambda goal=goal: len(relay.messages) > goal, 120)
        process.kill()
        process.wait()
        # Each of its workers had two messages between reply and removal, at most:
        # the relay may have taken the next before the one before was settled.
        in_flight += 2 * 4
    relay.wait_until(lambda: len(ids(relay)) == count, 240)
    until(lambda: not touched(queue))
    for process in processes:
        process.kill()
        process.communicate()
    times = Counter(ids(relay).values())
    # The second one to be killed may have just taken up what the first one left.
    assert set(times) <= {1, 2, 3}
    assert times[2] + 2 * times[3] <= in_flight


def ids(relay: ScriptedRelay) -> Counter[str]:
    return Counter(message_id_of(message.data) for message in list(relay.messages))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
