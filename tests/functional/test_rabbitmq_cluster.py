"""A cluster of three nodes loses one, and a majority, while mail is handed over."""
from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.functional.rabbitmq import PASSWORD
from tests.functional.rabbitmq import Node
from tests.functional.rabbitmq import messages
from tests.functional.rabbitmq import three_nodes
from tests.functional.rabbitmq import why_no_broker
from tests.functional.rabbitmq_page import SECRET
from tests.functional.rabbitmq_page import Machines
from tests.functional.test_rabbitmq_receiving import receiving
from tests.support.queues import MESSAGE
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.queues import wait
from tests.support.service import Running
from tests.support.service import command
from tests.support.service import eventually

from postcommit import AMQPMailer
from postcommit import QueueProcessor
from postcommit import QueueReceiver
from postcommit._maildir.store import Store


pytestmark = pytest.mark.slow

QUEUE = "postcommit"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if reason := why_no_broker():
        pytest.skip(reason)
    with three_nodes() as nodes:
        machines = Machines(nodes, tmp_path_factory.mktemp("machines"))
        machines.set_up_the_broker()
        yield machines


@pytest.fixture(scope="module")
def nodes(machines: Machines) -> list[Node]:
    nodes = list(machines.nodes.values())
    QueueReceiver(url_of(nodes), QUEUE, "unused").declare()
    return nodes


@contextmanager
def cut_off(node: Node, others: list[Node]) -> Iterator[None]:
    """Have a partition of the network between `node` and `others`."""
    node.leave(others)
    try:
        yield
    finally:
        node.join(others)


def url_of(nodes: list[Node]) -> str:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return f"amqp://mail:{PASSWORD.replace(' ', '%20')}@{hosts}/"


def leader_of(nodes: list[Node]) -> Node:
    """Return the node that leads the queue, as one that lives says."""
    alive = next(node for node in nodes if node.is_running)
    words = ("list_queues", "--formatter", "json", "name", "leader")
    found = json.loads(alive.control(*words))
    [leader] = [row["leader"] for row in found if row["name"] == QUEUE]
    return next(node for node in nodes if node.name == leader)


def test_the_page_sets_up_a_cluster_a_mail_node_and_a_web_node(
    machines: Machines,
) -> None:
    web = Store(str(machines.homes["web1"] / "spool" / "shop"))
    entry = wait(web)
    machines.set_up("mail1")
    machines.set_up("web1")
    words = machines.words_of("mail1", "receive")
    with Running(*words) as receiver:
        receiver.wait_for("receives from the queue 'postcommit'")
        done = command(*machines.words_of("web1", "test-relay"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "handed over: 250 2.0.0 confirmed by the broker" in done.stdout
        mail = Store(str(machines.homes["mail1"] / "spool" / "shop"))
        done = command("flush", "--config", machines.homes["web1"] / "etc/shop.ini")
        assert done.stdout.startswith("recipients: 2 sent"), done.stderr
        eventually(lambda: len(list(mail.maildir)) == 2)
        assert entry in os.listdir(mail.maildir.new)
        done = command(*machines.words_of("mail1", "status"))
        assert "receiver  connected to amqps://post@localhost" in done.stdout
        receiver.signal(signal.SIGINT)
        assert receiver.ended() == 0
        assert SECRET not in receiver.log + done.stdout


def test_the_certificates_of_the_page_pass_the_strict_rules(
    machines: Machines,
) -> None:
    """They are the default since Python 3.13."""
    for name in machines.nodes:
        words = ["openssl verify -x509_strict -purpose sslserver"]
        words += ["-verify_hostname localhost -CAfile ca.pem etc/server.pem"]
        assert "OK" in machines.run(name, [" ".join(words)])


def test_the_leader_is_killed_under_load_and_nothing_is_lost(
    nodes: list[Node], tmp_path: Path
) -> None:
    url = url_of(nodes)
    for node in nodes:
        node.wait_until(lambda node=node: node.keeps(QUEUE), "no queue")
    store = Store(str(tmp_path / "web"))
    mailer = AMQPMailer(url, QUEUE, timeout=3.0)
    processor = QueueProcessor(store.path, mailer, pollingInterval=100)
    processor.start()
    count, leader = 600, leader_of(nodes)
    for number in range(count):
        message = b"Message-Id: <%d@x.org>\n\n" % number
        store.stage(SENDER, RECIPIENTS, [message]).commit()
        if number == count // 2:
            leader.stop()
    eventually(lambda: not list(store.maildir))
    processor.stop()
    alive = next(node for node in nodes if node is not leader)
    found = messages(alive, QUEUE)
    names = {message.headers["postcommit-name"] for message in found}
    ids = {message.properties["message_id"] for message in found}
    assert ids == {f"{number}@x.org" for number in range(count)}
    assert len(names) == count  # a copy has the name of the first one
    leader.start_again()


def test_without_a_majority_nothing_is_confirmed_and_nothing_is_lost(
    nodes: list[Node], tmp_path: Path
) -> None:
    url = url_of(nodes)
    store = Store(str(tmp_path / "web"))
    mailer = AMQPMailer(url, QUEUE, timeout=2.0)
    assert mailer.send(SENDER, RECIPIENTS, MESSAGE).sent
    stopped = nodes[1:]
    for node in stopped:
        node.stop()
    store.stage(SENDER, RECIPIENTS, [MESSAGE]).commit()
    report = mailer.send(SENDER, RECIPIENTS, MESSAGE)
    assert report.relay_failure is not None
    assert QueueProcessor(store.path, mailer).flush() == (0, 0, 0, 0)
    assert len(list(store.maildir)) == 1
    for node in stopped:
        node.start()
    for node in stopped:
        node.wait_until(node.listens, "it does not listen")
    eventually(lambda: QueueProcessor(store.path, mailer).flush().sent)
    assert not list(store.maildir)


def test_a_node_that_was_cut_off_confirms_nothing_and_the_others_go_on(
    nodes: list[Node], tmp_path: Path
) -> None:
    """The leader is cut off, and is the first host of the URL."""
    first = leader_of(nodes)
    others = [node for node in nodes if node is not first]
    messages(first, QUEUE)
    alone = AMQPMailer(url_of([first]), QUEUE, timeout=2.0)
    assert alone.send(SENDER, RECIPIENTS, MESSAGE).sent
    mail = Store(str(tmp_path / "mail"))
    store = Store(str(tmp_path / "web"))
    for number in range(20):
        message = b"Message-Id: <%d@x.org>\n\n" % number
        store.stage(SENDER, RECIPIENTS, [message]).commit()
    waiting = sorted(os.listdir(store.maildir.new))
    with cut_off(first, others):
        report = alone.send(SENDER, RECIPIENTS, MESSAGE)
        assert report.relay_failure is not None
        processor = QueueProcessor(store.path, alone)
        assert processor.flush() == (0, 0, 0, 0)
        assert sorted(os.listdir(store.maildir.new)) == waiting
        url = url_of([first, *others])
        all_of_them = AMQPMailer(url, QUEUE, timeout=2.0)
        eventually(lambda: QueueProcessor(store.path, all_of_them).flush().sent)
        assert not list(store.maildir)
    receiver = QueueReceiver(url_of([*others, first]), QUEUE, mail.path)
    with receiving(receiver):
        eventually(lambda: {*waiting} <= {*os.listdir(mail.maildir.new)})
