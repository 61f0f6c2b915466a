"""Messages published to RabbitMQ, each confirmed, into a quorum queue of one node.

Beside pika and Celery, which wait for each confirm. ``python -m
tests.benchmarks.broker --help``.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.harness import versions
from tests.benchmarks.measured import measured


_HEADER = b"Message-Id: <1@x.org>\nSubject: x\n\n"
_QUEUE = "bench"

Work = Callable[[str, int, int, str], None]


def message(size: int) -> bytes:
    return _HEADER.ljust(size, b"x")


# The contestants, each in a process of its own: publish `count` messages of `size`


def mailer(url: str, size: int, count: int, folder: str) -> None:
    from postcommit import AMQPMailer
    from postcommit._mail.entry import Entry

    entry = Entry("a@x.org", ("b@x.org",), message(size))
    ours = AMQPMailer(url, _QUEUE)
    ours.check()
    sent = 0
    with measured(count), ours.pipeline() as pipeline:
        for _ in range(count):
            pipeline.offer(entry)
            sent += sum(len(report.sent) for _, report in pipeline.completed())
        sent += sum(len(report.sent) for _, report in pipeline.drain())
    assert sent == count


def drained(url: str, size: int, count: int, folder: str) -> None:
    """Hand over what waits in a queue on disk."""
    from postcommit import AMQPMailer
    from postcommit import QueueProcessor
    from postcommit._maildir.store import Store

    store = Store(f"{folder}/queue")
    for _ in range(count):
        store.stage("a@x.org", ("b@x.org",), [message(size)]).commit()
    with measured(count):
        tally = QueueProcessor(store.path, AMQPMailer(url, _QUEUE)).flush()
    assert tally.sent == count


def pika(url: str, size: int, count: int, folder: str) -> None:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(delivery_mode=2)
    data = message(size)
    with measured(count):
        for _ in range(count):
            channel.basic_publish("", _QUEUE, data, properties, mandatory=True)


def celery(url: str, size: int, count: int, folder: str) -> None:
    import celery

    app = celery.Celery(broker=f"{url}/")
    app.conf.broker_transport_options = {"confirm_publish": True}
    app.conf.task_default_queue = _QUEUE
    app.conf.task_default_queue_type = "quorum"
    app.conf.task_queue_max_priority = None
    data = message(size).decode()
    app.send_task("send_mail", ["a@x.org", ["b@x.org"], "connects"])
    with measured(count):
        for _ in range(count):
            app.send_task("send_mail", ["a@x.org", ["b@x.org"], data])


NAMES: dict[str, tuple[Work, str, str]] = {
    "mailer": (mailer, "postcommit", OURS),
    "drained": (drained, "postcommit, from a queue on disk", OURS),
    "pika": (pika, "pika, a confirm for each", PEER),
    "celery": (celery, "Celery, confirm_publish", PEER),
}


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__)
    made.add_argument("--count", type=int, default=2000, help="messages in a round")
    made.add_argument("--size", type=int, nargs="+", default=[4096, 102400])
    made.add_argument("--kinds", nargs="+", default=list(NAMES), choices=NAMES)
    made.add_argument("--url", help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    from postcommit import QueueReceiver
    from tests.functional.rabbitmq import connected
    from tests.functional.rabbitmq import one_node

    results: list[Result] = []
    with one_node() as node:
        QueueReceiver(node.url(), _QUEUE, "unused").declare()

        def prepare(kind: str, size: int) -> list[str]:
            with connected(node) as channel:
                channel.queue_purge(_QUEUE)
            count = 3 if options.quick else options.count // (1 if size < 50000 else 4)
            command = [sys.executable, "-m", "tests.benchmarks.broker", "--contestant"]
            command += [kind, "--url", node.url(), "--size", str(size)]
            return [*command, "--count", str(count), "--folder", options.folder]

        def contestant(kind: str, size: int) -> Contestant:
            _, name, what = NAMES[kind]
            return Contestant(name, lambda: prepare(kind, size), what, {"size": size})

        for size in options.size[: 1 if options.quick else None]:
            racing = [contestant(kind, size) for kind in options.kinds]
            racing = versions(racing, options.against)
            rounds = 1 if options.quick else options.rounds
            results += interleave("broker", racing, rounds)
    return results


def contest(options: argparse.Namespace) -> None:
    work, _, _ = NAMES[options.contestant]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        work(options.url, options.size[0], options.count, str(Path(folder)))


if __name__ == "__main__":
    program(parser(), run, contest)
