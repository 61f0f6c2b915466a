"""Publishers and receivers that tests kill, each in a process of its own."""
from __future__ import annotations

import os
import signal

from postcommit import AMQPMailer
from postcommit import QueueProcessor
from postcommit import QueueReceiver
from postcommit._amqp.link import Link
from postcommit._maildir.arrivals import Arrivals


def publish(url: str, queue: str, path: str) -> None:
    """Drain the queue at `path` to the broker, until it is killed."""
    mailer = AMQPMailer(url, queue, timeout=2.0)
    QueueProcessor(path, mailer, pollingInterval=100).run()


def receive(url: str, queue: str, path: str) -> None:
    """Receive into the queue at `path`, until it is killed."""
    QueueReceiver(url, queue, path).run()


def die_before_the_sync(url: str, queue: str, path: str) -> None:
    Arrivals._publish = _die  # type: ignore[assignment, method-assign]
    receive(url, queue, path)


def die_before_the_acknowledgement(url: str, queue: str, path: str) -> None:
    Link.acknowledge = _die  # type: ignore[assignment, method-assign]
    receive(url, queue, path)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
