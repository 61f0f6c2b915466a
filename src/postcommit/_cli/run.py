"""``postcommit run``: drains a queue until a signal arrives.

====================  ====================================================
signal                effect
====================  ====================================================
SIGTERM, SIGINT       The attempts in flight finish, then it ends with 0.
                      Further signals change nothing.
SIGHUP                The configuration is read again. If it is bad, this is
                      logged, and the old processor stays.
====================  ====================================================

A signal during the start waits until the service can handle it. A signal during the
exit changes nothing. In the first few hundredths of a second after exec(2), before
Python runs our code, a signal ends the process.
"""
from __future__ import annotations

import argparse
import logging
import signal
import threading
import time
from typing import NamedTuple

from postcommit._amqp.mailer import AMQPMailer
from postcommit._cli import configuration
from postcommit._cli import logs
from postcommit._cli.configuration import Configuration
from postcommit._cli.service import TAKEN
from postcommit._cli.service import Signals
from postcommit._cli.service import Supervisor
from postcommit._cli.service import check_queue
from postcommit._kinds.queue import name_of
from postcommit._maildir.mounts import REMOTE_ADVICE
from postcommit._maildir.mounts import remoteness
from postcommit._mailers.failover import FailoverMailer
from postcommit._processor import QueueProcessor
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import text_of
from postcommit.interfaces import is_database_url


log = logging.getLogger("postcommit.cli.run")

_LEVEL = "info"

_END = (signal.SIGTERM, signal.SIGINT)

# Seconds between two looks at the processor, and at a processor that ends.
_LOOK_SECONDS = 5.0
_LOOK_OFTEN = 0.1

# Seconds without a sign of life after which the watchdog gets no more messages. The
# processor gives a sign every ten seconds.
SILENT_AFTER = 30.0


def arguments(parser: argparse.ArgumentParser) -> None:
    configuration.queue_arguments(parser)
    configuration.arguments(parser, level=_LEVEL)


def run(options: argparse.Namespace) -> int:
    """Drain the queue. Return 0 after a signal, and 1 if the processor died."""
    with Signals(*TAKEN) as signals:
        return Service(options, signals, Supervisor()).run()


class Drainer(NamedTuple):
    """A processor and its mailer, made from one configuration."""

    processor: QueueProcessor
    mailer: SMTPMailer | FailoverMailer | AMQPMailer

    def is_alive(self, now: float) -> bool:
        """Return whether it gave a sign of life. `now` is a monotonic time."""
        last = self.processor.last_sign
        return last is not None and now - last < SILENT_AFTER

    def is_over(self) -> bool:
        """Ask it to stop, and return whether it has stopped."""
        if not self.processor.stop(0):
            return False
        self.mailer.close()
        return True


class Service:
    """The process that drains a queue.

    After a SIGHUP the new processor begins while the old processor finishes its
    attempts in flight, because a queue may have several. A further SIGHUP waits for the
    end of the old processor, so that there are never more than two.
    """

    def __init__(
        self, options: argparse.Namespace, signals: Signals, supervisor: Supervisor
    ) -> None:
        self._options = options
        self._signals = signals
        self._supervisor = supervisor
        self._retired: Drainer | None = None
        self._is_reload_due = False
        self._drainer = self._begin()

    def run(self) -> int:
        """Work until a signal ends it, and return the exit status."""
        self._supervisor.ready(self._status())
        status = self._work()
        self._supervisor.stopping()
        log.info("ending: waits for what is in flight")
        drainers = [d for d in (self._retired, self._drainer) if d is not None]
        while drainers := [d for d in drainers if not d.is_over()]:
            if self._signals.wait(_LOOK_OFTEN):
                log.info("still waits for what is in flight; SIGKILL does not")
        log.info("ended")
        return status

    def _work(self) -> int:
        while True:
            arrived = self._signals.wait(self._seconds_to_wait())
            if any(number in _END for number in arrived):
                return 0
            if self._retired is not None and self._retired.is_over():
                self._retired = None
            if signal.SIGHUP in arrived:
                self._is_reload_due = True
                if self._retired is not None:
                    log.info("reloads when the processor before this one has ended")
            if self._is_reload_due and self._retired is None:
                self._is_reload_due = False
                self._reload()
            if self._drainer.processor.last_sign is None:
                told = "the processor has died; this service ends, start it again"
                log.critical(told)
                return 1
            if self._drainer.is_alive(time.monotonic()):
                self._supervisor.alive()

    def _seconds_to_wait(self) -> float:
        watchdog = self._supervisor.watchdog_seconds
        longest = _LOOK_SECONDS if self._retired is None else _LOOK_OFTEN
        return longest if watchdog is None else min(longest, watchdog / 3)

    def _begin(self) -> Drainer:
        """Start a processor with the current configuration."""
        found = Configuration(self._options)
        mailer = found.mailer()
        processor = found.processor(mailer)
        check_queue(
            processor.queuePath,
            create=self._options.create,
            adopt=self._options.adopt,
        )
        logs.set_up(found.log_level(_LEVEL), found.log_format)
        threading.excepthook = log_death
        name = name_of(processor.queuePath)
        is_folder = not is_database_url(processor.queuePath)
        if is_folder and (problem := remoteness(processor.queuePath)):
            log.warning("%s: %s; %s", name, problem, REMOTE_ADVICE)
        processor.start()
        log.info("drains %s through %s", name, mailer)
        return Drainer(processor, mailer)

    def _status(self) -> str:
        processor, mailer = self._drainer
        return f"drains {name_of(processor.queuePath)} through {mailer}"

    def _reload(self) -> None:
        self._supervisor.reloading()
        try:
            new = self._begin()
        except Exception as error:  # no error may end the service
            expected = isinstance(error, ValueError | OSError)
            told = "the old configuration stays: %s"
            log.error(told, text_of(error), exc_info=None if expected else error)
        else:
            self._retired = None if self._drainer.is_over() else self._drainer
            self._drainer = new
        self._supervisor.ready(self._status())


def log_death(args: threading.ExceptHookArgs) -> None:
    log.critical("a thread has died", exc_info=args.exc_value)
