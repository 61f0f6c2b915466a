"""What fails between a web node and a mail node, and what becomes of the mail.

The rows of the table on the page, one after the other. A test that kills nodes of a
cluster is in ``test_rabbitmq_cluster``, one that kills a receiver is in
``test_rabbitmq_receiving``.
"""
from __future__ import annotations

import logging
import random
import shutil
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import amqp
import pytest
import transaction
from tests.functional.rabbitmq import Node
from tests.functional.rabbitmq import connected
from tests.functional.rabbitmq import messages
from tests.functional.rabbitmq import ready
from tests.functional.test_rabbitmq_receiving import has_acknowledged
from tests.functional.test_rabbitmq_receiving import names
from tests.functional.test_rabbitmq_receiving import publish
from tests.functional.test_rabbitmq_receiving import receiving
from tests.support.proxy import LossyProxy
from tests.support.queues import ENTRY
from tests.support.queues import MESSAGE
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.queues import wait
from tests.support.service import eventually

from postcommit import AMQPMailer
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import QueueReceiver
from postcommit._mail.message import message_id_of
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.reception import receptions
from postcommit._maildir.store import Store
from postcommit.testing import RecordingMailer


# The beginning of the method basic.ack, which both sides send.
ACK = struct.pack(">HH", *amqp.spec.Basic.Ack)


@pytest.fixture
def web(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "web-node"))


@pytest.fixture
def mail(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "mail-node"))


@pytest.fixture
def proxy(node: Node) -> Iterator[LossyProxy]:
    with LossyProxy(node.port) as proxy:
        yield proxy


def through(proxy: LossyProxy, node: Node) -> str:
    """Return the URL of the node, by way of the proxy."""
    return node.url().replace(str(node.port), str(proxy.port))


def processor_of(web: Store, url: str, queue: str, **options: Any) -> QueueProcessor:
    mailer = AMQPMailer(url, queue, **options)
    return QueueProcessor(
        web.path, mailer, pollingInterval=100, min_backoff=0.1, max_backoff=0.5
    )


@contextmanager
def handing_over(processor: QueueProcessor) -> Iterator[QueueProcessor]:
    processor.start()
    try:
        yield processor
    finally:
        processor.stop()


def commit(delivery: QueuedMailDelivery, count: int) -> list[str]:
    """Send messages in a transaction, and return their ids."""
    _, _, without_id = MESSAGE.partition(b"\n")
    with transaction.manager:
        return [delivery.send(SENDER, RECIPIENTS, without_id) for _ in range(count)]


def ids(store: Store) -> Counter[str]:
    """Return how often each message id is among the entries of the queue."""
    return Counter(
        message_id_of(parse_entry(Path(path).read_bytes()).message)
        for path in store.maildir
    )


def test_the_broker_is_away_at_the_commit_and_stops_in_the_middle(
    node: Node, queue: str, web: Store, mail: Store
) -> None:
    delivery = QueuedMailDelivery(web.path)

    eventually(lambda: node.keeps(queue))
    receiver = QueueReceiver(node.url(), queue, mail.path)
    processor = processor_of(web, node.url(), queue, timeout=5.0, window=8)
    sent = commit(delivery, 100)
    with receiving(receiver), handing_over(processor):
        eventually(lambda: names(mail, "new"))
        node.stop()  # in the middle
        sent += commit(delivery, 5)  # it is away
        assert {id for id, _ in ids(web).items()} >= set(sent[-5:])
        node.start_again()
        eventually(lambda: len(ids(mail)) == len(sent))
        eventually(lambda: not names(web, "new"))
    assert ids(mail) == Counter(sent)
    assert ready(node, queue) == 0


def test_a_confirm_that_is_lost(
    node: Node, queue: str, web: Store, mail: Store, proxy: LossyProxy
) -> None:
    name = wait(web)
    proxy.lose_reply_to(b"<1@x.org>")
    with handing_over(processor_of(web, through(proxy, node), queue)):
        eventually(lambda: not names(web, "new"))
    assert proxy.losses == 1
    assert ready(node, queue) == 2  # it was published again
    receiver = QueueReceiver(node.url(), queue, mail.path)
    with receiving(receiver):
        eventually(lambda: names(mail, "new"))
        eventually(lambda: has_acknowledged(receiver))
    assert names(mail, "new") == [name]
    assert messages(node, queue) == []


def test_an_acknowledgement_that_is_lost(
    node: Node,
    queue: str,
    mail: Store,
    proxy: LossyProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    name = publish(node, queue)
    proxy.lose_request(ACK)
    receiver = QueueReceiver(through(proxy, node), queue, mail.path)
    with receiving(receiver):
        eventually(lambda: proxy.losses)
        assert names(mail, "new") == [name]
        eventually(lambda: f"{name}: is here already" in caplog.text)
        [reception] = receptions(mail.path)
        assert reception.received == 1
    assert names(mail, "new") == [name]
    assert messages(node, queue) == []


def test_a_network_that_is_away_for_the_receiver(
    node: Node, queue: str, mail: Store, proxy: LossyProxy
) -> None:
    receiver = QueueReceiver(through(proxy, node), queue, mail.path)
    with receiving(receiver):
        eventually(lambda: any(r.connected for r in receptions(mail.path)))
        proxy.go_away()
        eventually(lambda: any(r.problem for r in receptions(mail.path)))
        name = publish(node, queue)
        proxy.is_away = False
        eventually(lambda: names(mail, "new") == [name])


def test_a_confirm_of_which_only_a_part_comes(
    node: Node, queue: str, proxy: LossyProxy
) -> None:
    """A network that ends in the middle of a frame is noticed by the heartbeats."""
    proxy.freeze_in_reply(ACK)
    mailer = AMQPMailer(through(proxy, node), queue, heartbeat=1, timeout=60)
    report = mailer.send(SENDER, RECIPIENTS, MESSAGE)
    proxy.is_frozen = False
    assert "heartbeats missed" in str(report.relay_failure)


def test_a_message_of_which_only_a_part_comes(
    node: Node, queue: str, mail: Store, proxy: LossyProxy
) -> None:
    name = publish(node, queue, ENTRY + b"x" * 300_000)
    proxy.freeze_in_reply(b"xxxx")
    receiver = QueueReceiver(through(proxy, node), queue, mail.path, heartbeat=1)
    with receiving(receiver):
        eventually(lambda: proxy.is_frozen)
        eventually(lambda: any(r.problem for r in receptions(mail.path)))
        assert "heartbeats missed" in receptions(mail.path)[0].problem
        proxy.is_frozen = False
        eventually(lambda: names(mail, "new") == [name])


def test_a_host_whose_connection_was_lost_is_avoided(
    node: Node, queue: str, proxy: LossyProxy
) -> None:
    """Such as one to a node that was cut off, which confirms nothing."""
    url = node.url().replace("127.0.0.1:", f"127.0.0.1:{proxy.port},127.0.0.1:")
    mailer = AMQPMailer(url, queue)
    proxy.lose_reply_to(b"<1@x.org>")
    assert mailer.send(SENDER, RECIPIENTS, MESSAGE).relay_failure is not None
    proxy.lose_reply_to(b"<1@x.org>")
    assert mailer.send(SENDER, RECIPIENTS, MESSAGE).sent
    mailer.close()
    assert mailer.send(SENDER, RECIPIENTS, MESSAGE).sent  # not the first one again
    assert proxy.losses == 1


def test_the_disk_of_a_mail_node_is_lost(
    node: Node, queue: str, web: Store, mail: Store, tmp_path: Path
) -> None:
    """What was acknowledged and not sent is lost, and nothing else."""
    delivery = QueuedMailDelivery(web.path)

    def hand_over(count: int) -> list[str]:
        made = commit(delivery, count)
        tally = processor_of(web, node.url(), queue).flush()
        assert tally.sent == 2 * count
        return made

    relay = RecordingMailer()
    receiver = QueueReceiver(node.url(), queue, mail.path)
    gone = hand_over(10)
    with receiving(receiver):
        eventually(lambda: len(names(mail, "new")) == 10)
        eventually(lambda: ready(node, queue) == 0)
        QueueProcessor(mail.path, relay).flush()
        lost = hand_over(7)
        eventually(lambda: len(names(mail, "new")) == 7)
        eventually(lambda: has_acknowledged(receiver))
    kept = hand_over(5)  # the receiver is dead by now
    shutil.rmtree(mail.path)
    new = Store(str(tmp_path / "new-node"))
    with receiving(QueueReceiver(node.url(), queue, new.path)):
        eventually(lambda: len(names(new, "new")) == 5)
    QueueProcessor(new.path, relay).flush()
    sent = Counter(message.message_id for message in relay.outbox)
    assert sent == Counter(gone + kept)
    assert not sent.keys() & set(lost)


# What anybody may publish


def _table(kind: bytes, value: bytes, name: bytes = b"postcommit-name") -> bytes:
    """Return properties with one header."""
    item = bytes([len(name)]) + name + kind + value
    return struct.pack(">HI", 1 << 13, len(item)) + item


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"\1kF" + _text(inner)
    return _text(inner)


FOREIGN = {
    "no properties": bytes(2),
    "time in milliseconds": struct.pack(">HQ", 1 << 6, 1_700_000_000_000),
    "time in milliseconds in a header": _table(b"T", struct.pack(">Q", 10**12 * 2)),
    "time of no clock in a header": _table(b"T", b"\xff" * 8),
    "type that is not UTF-8": struct.pack(">H", 1 << 15) + b"\2\xff\xfe",
    "name that is not UTF-8": _table(b"S", _text(b"\xff\xfe")),
    "name that is bytes": _table(b"x", _text(b"ab")),
    "name that is a number": _table(b"I", bytes(4)),
    "name that is nothing": _table(b"V", b""),
    "name with a line end": _table(b"S", _text(b"1\n2")),
    "decimal": _table(b"D", b"\xff\x7f\xff\xff\xff"),
    "key that is not UTF-8": _table(b"t", b"\1", b"\xff"),
    "many tables": _table(b"F", _nested(4000)),
}


class _Foreign(amqp.Message):  # type: ignore[misc]
    raw: bytes

    def _serialize_properties(self) -> bytes:
        return self.raw


def test_foreign_properties_hold_nothing_up(
    node: Node, queue: str, mail: Store
) -> None:
    with connected(node) as channel:
        channel.confirm_select()
        for number, raw in enumerate(FOREIGN.values()):
            message = _Foreign(ENTRY + b"%d" % number)
            message.raw = raw
            channel.basic_publish(message, routing_key=queue)
            channel.wait(amqp.spec.Basic.Ack)
    last = publish(node, queue)
    with receiving(QueueReceiver(node.url(), queue, mail.path)):
        eventually(lambda: last in names(mail, "new"))
    assert len(names(mail, "new")) == len(FOREIGN) + 1
    assert messages(node, queue) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_speaks_nonsense(seed: int, mail: Store) -> None:
    """Every answer that is not AMQP is trouble of the broker, and ends nothing."""
    dice = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    body = dice.randbytes(dice.randrange(40))
                    if dice.random() < 0.5:  # the first method of a broker
                        body = struct.pack(">HHBB", 10, 10, 0, 9) + body
                    if dice.random() < 0.9:
                        kind = dice.choice([1, 1, 1, 2, 3, 8])
                        body = struct.pack(">BHI", kind, 0, len(body)) + body + b"\xce"
                    connection.sendall(body)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"amqp://127.0.0.1:{server.getsockname()[1]}/"
        mailer = AMQPMailer(url, connect_timeout=1, timeout=1)
        for _ in range(50):
            report = mailer.send(SENDER, RECIPIENTS, MESSAGE)
            assert report.relay_failure is not None
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
