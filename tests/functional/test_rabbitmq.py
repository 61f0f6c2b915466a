"""Hand-over through a real RabbitMQ: each row of the tables in docs/rabbitmq.rst."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import amqp
import pytest
from tests.functional.rabbitmq import PASSWORD
from tests.functional.rabbitmq import Node
from tests.support.queues import ENTRY
from tests.support.queues import MESSAGE
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.queues import wait

from postcommit import AMQPMailer
from postcommit import QueueProcessor
from postcommit import QueueReceiver
from postcommit import RelayError
from postcommit.interfaces import IAMQPMailer
from postcommit._maildir.store import Store




@pytest.fixture
def queue(node: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a quorum queue that is there, and empty."""
    name = f"q-{request.node.name}"[:200]
    QueueReceiver(node.url(), name, "unused").declare()
    yield name
    with connected(node) as channel:
        channel.queue_delete(name)


@contextmanager
def connected(node: Node) -> Iterator[Any]:
    with amqp.Connection(
        f"127.0.0.1:{node.port}", userid="mail", password=PASSWORD
    ) as connection:
        channel = connection.channel()
        channel.auto_decode = False
        yield channel


def messages(node: Node, queue: str) -> list[Any]:
    """Take all messages of the queue."""
    found = []
    with connected(node) as channel:
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            found.append(message)
    return found


def test_a_confirmed_entry_is_sent_and_is_with_the_broker_as_it_was_in_its_file(
    node: Node, queue: str, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "queue"))
    names = [wait(store) for _ in range(5)]
    mailer = AMQPMailer(node.url(), queue)
    events: list[Any] = []
    mailer.notify = events.append
    tally = QueueProcessor(store.path, mailer).flush()
    assert tally == (10, 0, 0, 0)
    assert not list(store.maildir)
    found = messages(node, queue)
    assert [m.body for m in found] == [ENTRY] * 5
    assert {m.headers["postcommit-name"] for m in found} == set(names)
    assert {m.properties["message_id"] for m in found} == {"1@x.org"}
    assert {m.properties["delivery_mode"] for m in found} == {2}
    assert len(events) == 5


def test_the_reply_says_who_has_confirmed(node: Node, queue: str) -> None:
    report = AMQPMailer(node.url(), queue).send(SENDER, RECIPIENTS, MESSAGE)
    assert [str(o.reply) for o in report.sent] == [
        "250 2.0.0 confirmed by the broker"
    ] * 2
