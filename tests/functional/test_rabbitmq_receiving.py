"""Receiving from a real RabbitMQ into a queue on disk, each entry once."""
from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import amqp
import pytest
from tests.functional.rabbitmq import Node
from tests.functional.rabbitmq import connected
from tests.functional.rabbitmq import messages
from tests.functional.rabbitmq import ready
from tests.functional.rabbitmq_children import die_before_the_acknowledgement
from tests.functional.rabbitmq_children import die_before_the_sync
from tests.support.children import running
from tests.support.queues import ENTRY
from tests.support.queues import MESSAGE
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import wait
from tests.support.service import eventually

from postcommit import AMQPMailer
from postcommit import QueueProcessor
from postcommit import QueueReceiver
from postcommit._mail.terms import Terms
from postcommit._maildir.maildir import unique_name
from postcommit._maildir.reception import receptions
from postcommit._maildir.store import Store
from postcommit.testing import RecordingMailer


@contextmanager
def receiving(receiver: QueueReceiver) -> Iterator[QueueReceiver]:
    """Receive in a thread."""
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.stop()
        thread.join(30)
        assert not thread.is_alive()


def publish(
    node: Node, queue: str, body: bytes = ENTRY, name: str | None = None
) -> str:
    """Publish as any other client may do; return the name."""
    name = unique_name() if name is None else name
    headers = {"postcommit-name": name} if name else {}
    with connected(node) as channel:
        message = amqp.Message(body, delivery_mode=2, application_headers=headers)
        channel.confirm_select()
        channel.basic_publish(message, routing_key=queue)
        channel.wait(amqp.spec.Basic.Ack)
    return name


def has_acknowledged(receiver: QueueReceiver) -> bool:
    """Return whether something was acknowledged since it began."""
    return any(r.last_acknowledged for r in receptions(receiver.queuePath))


def names(store: Store, *folder: str) -> list[str]:
    found = Path(store.path, *folder)
    return sorted(p.name for p in found.iterdir()) if found.is_dir() else []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "mail-node"))


@pytest.fixture
def receiver(node: Node, queue: str, store: Store) -> QueueReceiver:
    return QueueReceiver(node.url(), queue, store.path)


def test_entries_arrive_as_they_were_with_the_names_that_they_had(
    node: Node, queue: str, store: Store, receiver: QueueReceiver, tmp_path: Path
) -> None:
    web = Store(str(tmp_path / "web-node"))
    sent = sorted(wait(web) for _ in range(300))
    with receiving(receiver):
        QueueProcessor(web.path, AMQPMailer(node.url(), queue)).flush()
        eventually(lambda: names(store, "new") == sent)
    assert messages(node, queue) == []
    assert {Path(path).read_bytes() for path in store.maildir} == {ENTRY}
    assert names(store, "tmp") == []


def test_a_receiver_wakes_the_processor(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    mailer = RecordingMailer()
    processor = QueueProcessor(store.path, mailer, pollingInterval=600_000)
    processor.start()
    with receiving(receiver):
        publish(node, queue)
        eventually(lambda: len(mailer.outbox))
    processor.stop()


def test_terms_and_envelopes_arrive_as_they_were(
    node: Node, queue: str, store: Store, receiver: QueueReceiver, tmp_path: Path
) -> None:
    """Scheduled, bulk and expiring mail, the null sender, 8 bits and line ends."""
    web, now = Store(str(tmp_path / "web-node")), time.time()
    message = MESSAGE + "Grüße\r\nline\nend\r".encode("latin-1")
    for sender, recipients, terms in (
        (SENDER, RECIPIENTS, Terms(bulk=True)),
        (SENDER, RECIPIENTS, Terms(not_before=now - 10, bulk=True)),
        (SENDER, RECIPIENTS, Terms(not_before=now - 10, expires=now + 3600)),
        (SENDER, RECIPIENTS, Terms(expires=now + 60)),
        ("", ("a@x.org",), None),
        ("jörg@bücher.example", ("ü@x.org", "b@x.org"), None),
    ):
        web.stage(sender, recipients, [message], terms=terms).commit()
    before = contents(web)
    processor = QueueProcessor(web.path, AMQPMailer(node.url(), queue))
    eventually(lambda: processor.flush() and not contents(web))
    with receiving(receiver):
        eventually(lambda: len(contents(store)) == len(before))
    assert contents(store) == before
    assert len(names(store, ".Bulk", "new")) == 2
    assert len(names(store, "new")) == 4
    # A day later, two have expired.
    mailer = RecordingMailer()
    QueueProcessor(store.path, mailer, clock=lambda: now + 86400).flush()
    assert [m.recipients for m in mailer.outbox].count(RECIPIENTS) == 2
    assert len(mailer.outbox) == 4
    assert len(names(store, ".Failed", "new")) == 2


def contents(store: Store) -> dict[str, bytes]:
    """Return the bytes of each entry that waits, by its name."""
    return {
        path.name: path.read_bytes()
        for path in Path(store.path).rglob("*/[0-9]*")
        if path.parent.name != "tmp" and ".Failed" not in path.parts
    }


# Copies


def test_a_copy_is_recognised_while_the_entry_waits(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    name = wait(store)
    check_is_dropped(node, queue, receiver, name)
    assert names(store, "new") == [name]


def test_a_copy_is_recognised_while_the_entry_is_deferred(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    name = defer(store)
    check_is_dropped(node, queue, receiver, name)
    assert (names(store, "new"), names(store, "cur")) == ([], [f"{name}:2,"])


def test_a_copy_is_recognised_by_the_dead_letter_of_some_recipients(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    letter = bury(store)
    check_is_dropped(node, queue, receiver, letter.removesuffix(".R1"))
    assert names(store, "new") == []
    assert names(store, ".Failed", "new") == [letter]


@pytest.mark.parametrize("room", [".Failed/new", ".Failed/cur", ".Later/new"])
def test_a_copy_is_recognised_in_another_room(
    node: Node, queue: str, store: Store, receiver: QueueReceiver, room: str
) -> None:
    name = unique_name()
    place = Path(store.path, room)
    place.mkdir(parents=True)
    (place / (f"{name}:2," if room.endswith("cur") else name)).write_bytes(ENTRY)
    check_is_dropped(node, queue, receiver, name)
    assert names(store, "new") == []


def check_is_dropped(
    node: Node, queue: str, receiver: QueueReceiver, name: str
) -> None:
    """Publish a copy, and check that it is acknowledged, and not accepted."""
    publish(node, queue, name=name)
    with receiving(receiver):
        eventually(lambda: has_acknowledged(receiver))
        [reception] = receptions(receiver.queuePath)
        assert reception.received == 0
    assert messages(node, queue) == []


def test_copies_that_arrive_together(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    name = publish(node, queue)
    publish(node, queue, name=name)
    with receiving(receiver):
        eventually(lambda: has_acknowledged(receiver))
    assert names(store, "new") == [name]


def test_a_name_that_is_not_unique_on_all_machines_is_made_of_the_bytes(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    given = ["", "../../etc/passwd", "1700000000.P1Q1.web", "x"]
    for name in given:
        publish(node, queue, name=name)
        publish(node, queue, ENTRY + b"another", name=name)
        publish(node, queue, name=name)
    with receiving(receiver):
        eventually(lambda: len(names(store, "new")) == 8)
    assert messages(node, queue) == []
    seconds = Counter(name.split(".")[0] for name in names(store, "new"))
    assert seconds == {"1700000000": 2, "0000000000": 6}


# What is not an entry


def test_what_is_not_an_entry_becomes_a_dead_letter(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    bodies = [b"", b"hello", MESSAGE, b"X-Zope-From: \xff\n\n"]
    letters = {publish(node, queue, body): body for body in bodies}
    after = publish(node, queue)
    with receiving(receiver):
        eventually(lambda: names(store, "new") == [after])
    assert messages(node, queue) == []
    assert names(store, ".Failed", "new") == sorted(letters)
    for name, body in letters.items():
        data = Path(store.path, ".Failed", "new", name).read_bytes()
        assert data.startswith(b"X-Zope-Unreadable: ")
        assert data.endswith(b"\n" + body)


def test_large_messages_are_accepted_a_few_at_a_time(
    node: Node, queue: str, store: Store
) -> None:
    for _ in range(20):
        publish(node, queue, ENTRY + b"x" * 900_000)
    receiver = QueueReceiver(node.url(), queue, store.path, prefetch=20)
    largest = 0
    accept = receiver._accept

    def noting() -> None:
        nonlocal largest
        largest = max(largest, receiver._size)
        accept()

    receiver._accept = noting  # type: ignore[method-assign]
    with receiving(receiver):
        eventually(lambda: len(names(store, "new")) == 20)
    assert 0 < largest < 10_000_000


# Trouble


def test_a_queue_that_is_not_declared_is_waited_for(
    node: Node, store: Store
) -> None:
    receiver = QueueReceiver(node.url(), "not-yet", store.path)
    with receiving(receiver):
        eventually(lambda: any(r.problem for r in receptions(store.path)))
        [reception] = receptions(store.path)
        assert "postcommit receive --declare" in reception.problem
        assert not reception.connected
        receiver.declare()
        eventually(lambda: any(r.connected for r in receptions(store.path)))
    assert receptions(store.path) == []
    with connected(node) as channel:
        channel.queue_delete("not-yet")


def test_declaring_again_changes_nothing(
    node: Node, queue: str, receiver: QueueReceiver
) -> None:
    publish(node, queue)
    receiver.declare()
    assert len(messages(node, queue)) == 1


def test_a_queue_with_a_limit_is_a_quorum_queue_too(node: Node, store: Store) -> None:
    arguments = {"x-queue-type": "quorum", "x-max-length": 1000}
    with connected(node) as channel:
        channel.queue_declare(
            "limited", durable=True, auto_delete=False, arguments=arguments
        )
        receiver = QueueReceiver(node.url(), "limited", store.path)
        receiver.declare()
        assert AMQPMailer(node.url(), "limited").send(SENDER, RECIPIENTS, MESSAGE).sent
        with receiving(receiver):
            eventually(lambda: len(names(store, "new")) == 1)
        channel.queue_delete("limited")


def test_a_queue_that_is_deleted_while_it_is_received_from(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    with receiving(receiver):
        eventually(lambda: any(r.connected for r in receptions(store.path)))
        with connected(node) as channel:
            channel.queue_delete(queue)
        eventually(lambda: any(r.problem for r in receptions(store.path)))
        receiver.declare()
        eventually(lambda: any(r.connected for r in receptions(store.path)))


def test_a_disk_in_trouble_keeps_the_entries_with_the_broker(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    with receiving(receiver):
        eventually(lambda: any(r.connected for r in receptions(store.path)))
        os.rename(f"{store.path}/tmp", f"{store.path}/away")
        sent = sorted(publish(node, queue) for _ in range(3))
        eventually(lambda: any(r.problem for r in receptions(store.path)))
        assert receptions(store.path)[0].problem.startswith(f"{store.path}: cannot")
        assert names(store, "new") == []
        eventually(lambda: ready(node, queue) == 3)
        os.rename(f"{store.path}/away", f"{store.path}/tmp")
        eventually(lambda: has_acknowledged(receiver))
    assert names(store, "new") == sent
    assert messages(node, queue) == []


def test_a_disk_in_trouble_does_not_use_up_deliveries(
    node: Node, store: Store
) -> None:
    """RabbitMQ 4 drops a message after 20 deliveries, and this queue after 2."""
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1}
    with connected(node) as channel:
        channel.queue_declare(
            "impatient", durable=True, auto_delete=False, arguments=arguments
        )
    receiver = QueueReceiver(node.url(), "impatient", store.path)
    attempts = 0
    accept = receiver._accept

    def counting() -> None:
        nonlocal attempts
        attempts += 1
        accept()

    receiver._accept = counting  # type: ignore[method-assign]
    with receiving(receiver):
        eventually(lambda: any(r.connected for r in receptions(store.path)))
        os.rename(f"{store.path}/tmp", f"{store.path}/away")
        name = publish(node, "impatient")
        eventually(lambda: attempts > 3)
        os.rename(f"{store.path}/away", f"{store.path}/tmp")
        eventually(lambda: names(store, "new") == [name])
        eventually(lambda: has_acknowledged(receiver))
    with connected(node) as channel:
        channel.queue_delete("impatient")


def test_a_broker_that_starts_again_is_received_from(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    with receiving(receiver):
        first = publish(node, queue)
        eventually(lambda: names(store, "new") == [first])
        eventually(lambda: node.keeps(queue))
        node.stop()
        eventually(lambda: any(r.problem for r in receptions(store.path)))
        node.start_again()
        second = publish(node, queue)
        eventually(lambda: names(store, "new") == sorted([first, second]))


# Kills


@pytest.mark.parametrize(
    ("death", "accepted"),
    [(die_before_the_sync, 0), (die_before_the_acknowledgement, 1)],
)
def test_a_receiver_that_is_killed_leaves_each_entry_once(
    node: Node,
    queue: str,
    store: Store,
    receiver: QueueReceiver,
    death: Any,
    accepted: int,
) -> None:
    name = publish(node, queue)
    with running(death, node.url(), queue, store.path) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert len(names(store, "new")) == accepted
    eventually(lambda: ready(node, queue) == 1)
    assert receptions(store.path) == []  # the note of the dead one means nothing
    with receiving(receiver):
        eventually(lambda: has_acknowledged(receiver))
        assert receptions(store.path)[0].received == 1 - accepted
    assert messages(node, queue) == []
    assert names(store, "new") == [name]


def test_the_note_of_a_dead_receiver_is_removed_by_the_next(
    node: Node, queue: str, store: Store, receiver: QueueReceiver
) -> None:
    publish(node, queue)
    with running(
        die_before_the_acknowledgement, node.url(), queue, store.path
    ) as process:
        process.wait(30)
    [dead] = Path(store.path).glob(".receiver-*")
    with receiving(receiver):
        eventually(lambda: receptions(store.path))
        assert not dead.exists()
