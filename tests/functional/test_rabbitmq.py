"""Hand-over to a real RabbitMQ: what becomes of each message."""
from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.functional.rabbitmq import LARGEST
from tests.functional.rabbitmq import PASSWORD
from tests.functional.rabbitmq import Node
from tests.functional.rabbitmq import connected
from tests.functional.rabbitmq import messages
from tests.support.ports import free_port
from tests.support.queues import ENTRY
from tests.support.queues import MESSAGE
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.queues import wait
from tests.support.service import eventually

from postcommit import AMQPMailer
from postcommit import DeliveryReport
from postcommit import QueueProcessor
from postcommit import QueueReceiver
from postcommit import RelayError
from postcommit._mail.entry import Entry
from postcommit._maildir.store import Store


def failure_of(report: DeliveryReport) -> str:
    """Return the relay's failure: no recipient may have an outcome."""
    assert report.relay_failure is not None, report
    assert not report.outcomes
    return str(report.relay_failure)


def send(mailer: AMQPMailer, message: bytes = MESSAGE) -> DeliveryReport:
    return mailer.send(SENDER, RECIPIENTS, message)


def numbered(number: int) -> Entry:
    return Entry(SENDER, RECIPIENTS, b"Message-Id: <%d@x.org>\n\nText.\n" % number)


# Confirmed


def test_a_confirmed_entry_is_with_the_broker_as_it_was_in_its_file(
    node: Node, queue: str, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "queue"))
    names = [wait(store) for _ in range(5)]
    events: list[Any] = []
    mailer = AMQPMailer(node.url(), queue, notify=events.append)
    tally = QueueProcessor(store.path, mailer).flush()
    assert tally == (10, 0, 0, 0)
    assert not list(store.maildir)
    found = messages(node, queue)
    assert [m.body for m in found] == [ENTRY] * 5
    assert {m.headers["postcommit-name"] for m in found} == set(names)
    assert {m.properties["message_id"] for m in found} == {"1@x.org"}
    assert {m.properties["delivery_mode"] for m in found} == {2}
    assert [event.recipients for event in events] == [RECIPIENTS] * 5


def test_the_reply_says_who_has_confirmed(node: Node, queue: str) -> None:
    report = send(AMQPMailer(node.url(), queue))
    replies = [str(outcome.reply) for outcome in report.sent]
    assert replies == ["250 2.0.0 confirmed by the broker"] * 2


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_reports_come_in_the_order_of_the_messages(
    node: Node, queue: str, window: int
) -> None:
    mailer = AMQPMailer(node.url(), queue, window=window)
    found: list[Any] = []
    with mailer.pipeline() as pipeline:
        for number in range(300):
            pipeline.offer(numbered(number), number)
            found += pipeline.completed()
            assert number - len(found) <= window
        found += pipeline.drain()
    assert [key for key, _ in found] == list(range(300))
    assert [r.message_id for _, r in found] == [f"{n}@x.org" for n in range(300)]
    assert all(len(report.sent) == 2 for _, report in found)
    assert len(messages(node, queue)) == 300


def test_threads_share_a_mailer_and_each_has_a_connection(
    node: Node, queue: str
) -> None:
    mailer = AMQPMailer(node.url(), queue, window=5)
    counts = []

    def work() -> None:
        with mailer.pipeline() as pipeline:
            for number in range(200):
                pipeline.offer(numbered(number))
            counts.append(sum(len(report.sent) for _, report in pipeline.drain()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == [400] * 4
    assert len(mailer._idle) == 4
    mailer.close()
    assert not mailer._idle


def test_a_connection_is_used_again(node: Node, queue: str) -> None:
    mailer = AMQPMailer(node.url(), queue)
    send(mailer)
    [link] = mailer._idle
    send(mailer)
    assert mailer._idle == [link]
    assert link.published == 2


def test_a_connection_that_was_idle_for_long_is_closed(node: Node, queue: str) -> None:
    mailer = AMQPMailer(node.url(), queue, heartbeat=1)
    send(mailer)
    assert mailer._idle
    mailer._sweep()
    assert mailer._idle  # it was idle for a moment only
    eventually(lambda: not mailer._idle)
    assert send(mailer).sent


def test_a_forked_child_does_not_use_the_connection_of_its_parent(
    node: Node, queue: str
) -> None:
    mailer = AMQPMailer(node.url(), queue)
    send(mailer)
    child = os.fork()
    if not child:
        os._exit(0 if not mailer._idle and send(mailer).sent else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert send(mailer).sent
    assert len(messages(node, queue)) == 3
    [link] = mailer._idle
    mailer._forget()  # as the child did
    assert not mailer._idle
    link.close()


def test_a_child_that_is_forked_in_the_middle_does_no_harm(
    node: Node, queue: str
) -> None:
    with AMQPMailer(node.url(), queue).pipeline() as pipeline:
        pipeline.offer(numbered(1))
        child = os.fork()
        if not child:
            pipeline._link.discard()  # type: ignore[attr-defined]
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        link = pipeline._link  # type: ignore[attr-defined]
        link.process = child
        link.discard()  # as the child did
        link.process = os.getpid()
        pipeline.offer(numbered(2))
        reports = [report for _, report in pipeline.drain()]
    assert [len(report.sent) for report in reports] == [2, 2]


def test_check_connects_and_sends_nothing(node: Node, queue: str) -> None:
    AMQPMailer(node.url(), queue).check()
    assert messages(node, queue) == []


# Too large


def test_a_message_over_the_limit_is_rejected_before_it_is_published(
    node: Node, queue: str
) -> None:
    mailer = AMQPMailer(node.url(), queue, max_size=len(ENTRY))
    with mailer.pipeline() as pipeline:
        pipeline.offer(Entry(SENDER, RECIPIENTS, MESSAGE), 1)
        pipeline.offer(Entry(SENDER, RECIPIENTS, MESSAGE + b"x"), 2)
        pipeline.offer(Entry(SENDER, RECIPIENTS, MESSAGE), 3)
        reports = [report for _, report in pipeline.drain()]
    assert [len(report.sent) for report in reports] == [2, 0, 2]
    assert {str(o.reply) for o in reports[1].rejected} == {
        f"5.3.4 {len(ENTRY) + 1} bytes, and the broker takes {len(ENTRY)}"
    }
    assert len(messages(node, queue)) == 2


def test_the_limit_of_the_broker_is_learnt(node: Node, queue: str) -> None:
    mailer = AMQPMailer(node.url(), queue)
    large = MESSAGE + b"x" * LARGEST
    assert "larger than configured max size" in failure_of(send(mailer, large))
    assert str(send(mailer, large).rejected[0].reply).startswith("5.3.4 1000")
    assert send(mailer).sent


# The relay's failures


def test_connection_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "queue"))
    name = wait(store)
    mailer = AMQPMailer(f"amqp://127.0.0.1:{free_port()}/")
    tally = QueueProcessor(store.path, mailer).flush()
    assert tally == (0, 0, 0, 0)
    assert [Path(path).name for path in store.maildir.paths("new")] == [name]
    assert "Connection refused" in failure_of(send(mailer))


def test_the_hosts_are_tried_in_turn(node: Node, queue: str) -> None:
    user, port = node.url().split("@")[0], free_port()
    mailer = AMQPMailer(f"{user}@127.0.0.1:{port},127.0.0.1:{node.port}/", queue)
    assert send(mailer).sent
    dead = AMQPMailer(f"{user}@127.0.0.1:{port},[::1]:{port}/", queue)
    text = failure_of(send(dead))
    assert f"127.0.0.1:{port}: ConnectionRefusedError" in text
    assert f"[::1]:{port}: " in text


def test_lost_before_publishing(node: Node, queue: str) -> None:
    mailer = AMQPMailer(node.url(), queue)
    send(mailer)
    [link] = mailer._idle
    link._connection.transport.sock.shutdown(2)
    assert send(mailer).sent  # by another connection


def test_lost_after_publishing(node: Node, queue: str) -> None:
    mailer = AMQPMailer(node.url(), queue)
    with frozen(node, mailer) as pipeline:
        for number in range(3):
            pipeline.offer(numbered(number))
        pipeline._link._connection.transport.sock.shutdown(2)
        reports = [report for _, report in pipeline.drain()]
    assert [failure_of(report)[:7] for report in reports] == ["listen:"] * 3
    assert not any(report.failed_mid_message for report in reports)


@contextmanager
def frozen(node: Node, mailer: AMQPMailer) -> Iterator[Any]:
    """Yield a pipeline with a connection to a broker that stands still by then."""
    mailer.check()
    node.freeze()
    try:
        with mailer.pipeline() as pipeline:
            yield pipeline
    finally:
        node.thaw()


def test_a_confirm_that_does_not_come_in_time(node: Node, queue: str) -> None:
    with frozen(node, AMQPMailer(node.url(), queue, timeout=0.3)) as pipeline:
        pipeline.offer(numbered(1))
        pipeline.offer(numbered(2))
        [(_, first), (_, second)] = pipeline.drain()
        pipeline.offer(numbered(3))
        [(_, third)] = pipeline.drain()
    assert "has confirmed nothing for 0.3 s" in failure_of(first)
    assert failure_of(first) == failure_of(second) == failure_of(third)


def test_a_single_message_may_be_what_the_broker_fails_at(
    node: Node, queue: str
) -> None:
    with frozen(node, AMQPMailer(node.url(), queue, timeout=0.2)) as pipeline:
        pipeline.offer(numbered(1))
        [(_, report)] = pipeline.drain()
    assert report.failed_mid_message


def test_the_window_waits_for_a_confirm_in_time(node: Node, queue: str) -> None:
    with frozen(node, AMQPMailer(node.url(), queue, timeout=0.2, window=2)) as pipeline:
        for number in range(3):
            pipeline.offer(numbered(number))
        reports = [report for _, report in pipeline.completed()]
    assert len(reports) == 3
    assert len({failure_of(report) for report in reports}) == 1


def test_a_broker_without_heartbeats_is_given_up(node: Node, queue: str) -> None:
    mailer = AMQPMailer(node.url(), queue, heartbeat=1)
    with frozen(node, mailer) as pipeline:
        began = time.monotonic()
        pipeline.offer(numbered(1))
        [(_, report)] = pipeline.drain()
    assert "heartbeats missed" in failure_of(report)
    assert time.monotonic() - began < 15


def test_an_interrupt_leaves_what_is_not_confirmed_to_the_next_attempt(
    node: Node, queue: str
) -> None:
    before = signal.signal(signal.SIGALRM, _interrupt)
    kept: list[Any] = []
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupted(node, AMQPMailer(node.url(), queue), kept)
    finally:
        signal.signal(signal.SIGALRM, before)
    [(_, report)] = kept[0].completed()
    assert "given up before the broker has confirmed" in failure_of(report)


def _interrupted(node: Node, mailer: AMQPMailer, kept: list[Any]) -> None:
    with frozen(node, mailer) as pipeline:
        kept.append(pipeline)
        pipeline.offer(numbered(1))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        list(pipeline.drain())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_blocked_connection(node: Node, queue: str) -> None:
    mailer = AMQPMailer(node.url(), queue)
    mailer.check()
    node.control("set_disk_free_limit", "100000GB")
    try:
        text = failure_of(send(mailer))
        assert "short of memory or disk" in text
        assert failure_of(send(mailer)) == text
    finally:
        node.control("set_disk_free_limit", "1MB")
    eventually(lambda: send(mailer).sent)


def test_an_unroutable_message(node: Node, queue: str) -> None:
    mailer = AMQPMailer(node.url(), queue)
    mailer.check()
    with connected(node) as channel:
        channel.queue_delete(queue)
    assert "no queue for the message" in failure_of(send(mailer))
    text = failure_of(send(mailer))
    assert "NOT_FOUND" in text
    assert "postcommit receive --declare" in text


def test_a_queue_that_is_missing(node: Node) -> None:
    text = failure_of(send(AMQPMailer(node.url(), "nowhere")))
    assert "queue 'nowhere'" in text
    assert "create it by: postcommit receive --declare" in text


def test_a_queue_of_another_type(node: Node) -> None:
    with connected(node) as channel:
        channel.queue_declare("classic", durable=True, auto_delete=False)
    mailer = AMQPMailer(node.url(), "classic")
    assert "is not a quorum queue" in failure_of(send(mailer))
    with pytest.raises(RelayError, match="is not a quorum queue"):
        QueueReceiver(node.url(), "classic", "unused").declare()


def test_a_full_queue(node: Node) -> None:
    arguments = {
        "x-queue-type": "quorum",
        "x-max-length": 1,
        "x-overflow": "reject-publish",
    }
    with connected(node) as channel:
        channel.queue_declare(
            "full", durable=True, auto_delete=False, arguments=arguments
        )
        try:
            mailer = AMQPMailer(node.url(), "full")
            failures: list[str] = []

            def is_refused() -> bool:
                report = send(mailer)
                if report.relay_failure:
                    failures.append(failure_of(report))
                return bool(failures)

            eventually(is_refused)
        finally:
            channel.queue_delete("full")
    assert "is the queue full?" in failures[0]


def test_a_refused_login_is_not_tried_at_another_host(node: Node) -> None:
    url = f"amqp://mail:wrong@127.0.0.1:{node.port},127.0.0.1:{free_port()}/"
    text = failure_of(send(AMQPMailer(url)))
    assert "login refused" in text
    assert "ACCESS_REFUSED" in text
    assert "Connection refused" not in text


def test_a_vhost_that_is_missing(node: Node) -> None:
    text = failure_of(send(AMQPMailer(f"{node.url()}elsewhere")))
    assert "vhost elsewhere not found" in text


def test_a_user_that_may_only_write(
    node: Node, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    node.control("add_user", "web", "pw")
    node.control("set_permissions", "web", "^$", f"^(amq.default|{queue})$", "^$")
    mailer = AMQPMailer(node.url("web:pw"), queue)
    with caplog.at_level(logging.INFO):
        assert send(mailer).sent
        mailer.close()
        assert send(mailer).sent
    assert caplog.text.count("cannot see whether the queue") == 1
    node.control("delete_user", "web")


def test_a_login_is_not_sent_in_clear_to_another_machine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        outside = probe.getsockname()[0]
    with socket.create_server((outside, 0)) as server:
        mailer = AMQPMailer(f"amqp://u:p@{outside}:{server.getsockname()[1]}/")
        text = failure_of(send(mailer))
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b""
    assert "a login is never sent in clear" in text
    assert "amqps://" in text


def test_a_server_that_is_not_a_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"220 mx.example.org ESMTP\r\n" * 10)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"amqp://127.0.0.1:{server.getsockname()[1]}/"
        report = send(AMQPMailer(url, connect_timeout=1))
        thread.join()
    failure_of(report)


def test_no_password_in_a_log_or_an_error(
    node: Node, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        mailer = AMQPMailer(node.url(), queue)
        assert send(mailer).sent
        told = [repr(mailer), str(mailer), caplog.text]
        told.append(failure_of(send(AMQPMailer(node.url("mail:its%20secret"), queue))))
    for text in told:
        assert "secret" not in text
        assert PASSWORD not in text
    assert repr(mailer) == f"<AMQPMailer amqp://mail@127.0.0.1:{node.port}/>"


# TLS


def test_tls_with_a_certificate_that_is_trusted(node: Node, queue: str) -> None:
    cafile = node.authority.cafile
    assert send(AMQPMailer(node.tls_url(), queue, cafile=cafile)).sent


def test_tls_with_a_certificate_that_is_not_trusted(node: Node, queue: str) -> None:
    text = failure_of(send(AMQPMailer(node.tls_url(), queue)))
    assert "certificate cannot be trusted" in text
    assert "set cafile" in text


def test_tls_with_another_name(node: Node, queue: str) -> None:
    cafile = node.authority.cafile
    url = node.tls_url(host="localhost")
    assert "cannot be trusted" in failure_of(
        send(AMQPMailer(url, queue, cafile=cafile))
    )
    named = AMQPMailer(url, queue, cafile=cafile, server_name="mq.example.org")
    assert send(named).sent


def test_tls_without_verification(
    node: Node, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert send(AMQPMailer(node.tls_url(), queue, verify=False)).sent
    assert "certificate is not verified" in caplog.text


def test_the_certificate_of_the_client_is_its_login(
    node: Node, queue: str, tmp_path: Path
) -> None:
    certfile, keyfile = node.authority.write_pair(tmp_path)
    options: Any = {"certfile": certfile, "keyfile": keyfile}
    mailer = AMQPMailer(
        node.tls_url(""), queue, cafile=node.authority.cafile, **options
    )
    assert "login refused" in failure_of(send(mailer))
    node.control("add_user", "client@example.org", "unused")
    node.control("set_permissions", "client@example.org", ".*", ".*", ".*")
    assert send(mailer).sent


def test_tls_to_a_port_without_it(node: Node) -> None:
    mailer = AMQPMailer(node.tls_url().replace(str(node.tls_port), str(node.port)))
    failure_of(send(mailer))
