"""``postcommit receive``: receives mail from a RabbitMQ broker until a signal arrives.

SIGTERM and SIGINT end it with 0 after the entries that are being accepted. Options are
read at the start only.
"""
from __future__ import annotations

import argparse
import logging
import signal
import threading
import time

from postcommit._amqp.receiver import QueueReceiver
from postcommit._cli import arguments as args
from postcommit._cli import configuration
from postcommit._cli import logs
from postcommit._cli.configuration import Configuration
from postcommit._cli.run import SILENT_AFTER
from postcommit._cli.run import log_death
from postcommit._cli.service import TAKEN
from postcommit._cli.service import Signals
from postcommit._cli.service import Supervisor
from postcommit._cli.service import check_queue
from postcommit.interfaces import IQueueReceiver


log = logging.getLogger("postcommit.cli.receive")

_LEVEL = "info"

# Seconds between two looks at the receiver.
_LOOK_SECONDS = 1.0


def arguments(parser: argparse.ArgumentParser) -> None:
    told = "URL of the broker without a password; the option receive_url elsewhere"
    parser.add_argument("receive_url", metavar="URL", nargs="?", help=told)
    told = "folder of the queue; the option queue_path elsewhere is the same"
    parser.add_argument("queue_path", metavar="QUEUE", nargs="?", help=told)
    told = "create the queue on disk where it is missing; its parent must be there"
    parser.add_argument("--create", action="store_true", help=told)
    args.adopt(parser)
    told = "create the quorum queue on the broker where it is missing"
    parser.add_argument("--declare", action="store_true", help=told)
    title = "broker"
    configuration.broker_arguments(parser, title, IQueueReceiver, "receive_url")
    group = parser.add_argument_group("configuration")
    told = "ini file with more options, in its section [postcommit]"
    group.add_argument("--config", metavar="FILE", help=told)
    configuration.log_arguments(parser, level=_LEVEL)


def run(options: argparse.Namespace) -> int:
    """Receive. Return 0 after a signal, and 1 if the receiver died."""
    with Signals(*TAKEN) as signals:
        found = Configuration(options)
        receiver = found.receiver()
        check_queue(
            receiver.queuePath, create=options.create, adopt=options.adopt
        )
        logs.set_up(found.log_level(_LEVEL), found.log_format)
        threading.excepthook = log_death
        if options.declare:
            receiver.declare()
        return _receive(receiver, signals, Supervisor())


def _receive(receiver: QueueReceiver, signals: Signals, supervisor: Supervisor) -> int:
    thread = threading.Thread(target=receiver.run, name="postcommit-receiver")
    thread.daemon = True
    thread.start()
    text = f"receives from {receiver.name} into {receiver.queuePath}"
    log.info("%s", text)
    supervisor.ready(text)
    watchdog = supervisor.watchdog_seconds
    wait = _LOOK_SECONDS if watchdog is None else min(_LOOK_SECONDS, watchdog / 3)
    while not {signal.SIGTERM, signal.SIGINT} & {*signals.wait(wait)}:
        if not thread.is_alive():
            log.critical("the receiver has died; this service ends, start it again")
            return 1
        if time.monotonic() - receiver.last_sign < SILENT_AFTER:
            supervisor.alive()
    supervisor.stopping()
    log.info("ending")
    receiver.stop()
    thread.join()
    log.info("ended")
    return 0
