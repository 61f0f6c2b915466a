"""``postcommit run``: drains a queue until it is told to stop.

====================  ====================================================
signal                effect
====================  ====================================================
SIGTERM, SIGINT       what is in flight finishes, then it ends with 0; more of
                      them change nothing
SIGHUP                the configuration is read again; a bad one is logged, and
                      what was goes on
====================  ====================================================

A signal that comes while the process starts waits until the service can take it; one
that comes while the process ends changes nothing. Only before Python has begun with
our code, a few hundredths of a second after exec(2), does the kernel end the process.
"""
from __future__ import annotations

import argparse
import logging
import signal
import threading
import time
from typing import NamedTuple

from postcommit._cli import configuration
from postcommit._cli import logs
from postcommit._cli.configuration import Configuration
from postcommit._cli.service import TAKEN
from postcommit._cli.service import Signals
from postcommit._cli.service import Supervisor
from postcommit._cli.service import check_queue
from postcommit._mailers.failover import FailoverMailer
from postcommit._processor import QueueProcessor
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import text_of


log = logging.getLogger("postcommit.cli.run")

_LEVEL = "info"

_END = (signal.SIGTERM, signal.SIGINT)

# So often it is looked at how the processor gets on, and one that ends.
_LOOK_SECONDS = 5.0
_LOOK_OFTEN = 0.1

# The processor gives a sign of life every ten seconds. If three are missing, the
# watchdog is not told that all is well.
SILENT_AFTER = 30.0


def arguments(parser: argparse.ArgumentParser) -> None:
    configuration.queue_arguments(parser)
    configuration.arguments(parser, level=_LEVEL)


def run(options: argparse.Namespace) -> int:
    """Drain the queue; 0 when told to end, 1 if the processor has died."""
    with Signals(*TAKEN) as signals:
        return Service(options, signals, Supervisor()).run()


class Drainer(NamedTuple):
    """A processor and its mailer, as one configuration has them."""

    processor: QueueProcessor
    mailer: SMTPMailer | FailoverMailer

    def is_alive(self, now: float) -> bool:
        """Tell whether it has given a sign of life; `now` is a monotonic time."""
        last = self.processor.last_beat
        return last is not None and now - last < SILENT_AFTER

    def is_over(self) -> bool:
        """Have it stop, which it may do later; tell whether it has."""
        if not self.processor.stop(0):
            return False
        self.mailer.close()
        return True


class Service:
    """The process that drains a queue.

    After a SIGHUP the new processor begins while the old one finishes what is
    in flight: a queue may have several. A further SIGHUP waits until that has
    ended, so that there are never more than two.
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
        """Work until a signal ends it; return the exit status."""
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
            if self._drainer.processor.last_beat is None:
                log.critical("the processor has died; this service ends, start it anew")
                return 1
            if self._drainer.is_alive(time.monotonic()):
                self._supervisor.alive()

    def _seconds_to_wait(self) -> float:
        watchdog = self._supervisor.watchdog_seconds
        longest = _LOOK_SECONDS if self._retired is None else _LOOK_OFTEN
        return longest if watchdog is None else min(longest, watchdog / 3)

    def _begin(self) -> Drainer:
        """Start what the configuration says."""
        found = Configuration(self._options)
        mailer = found.mailer()
        processor = found.processor(mailer)
        check_queue(
            processor.queuePath,
            create=self._options.create,
            adopt=self._options.adopt,
        )
        logs.set_up(found.log_level(_LEVEL), found.log_format)
        threading.excepthook = _log_death
        processor.start()
        log.info("drains %s through %s", processor.queuePath, mailer)
        return Drainer(processor, mailer)

    def _status(self) -> str:
        processor, mailer = self._drainer
        return f"drains {processor.queuePath} through {mailer}"

    def _reload(self) -> None:
        self._supervisor.reloading()
        try:
            new = self._begin()
        except Exception as error:  # whatever it is, it must not end the service
            expected = isinstance(error, ValueError | OSError)
            told = "the old configuration stays: %s"
            log.error(told, text_of(error), exc_info=None if expected else error)
        else:
            self._retired = None if self._drainer.is_over() else self._drainer
            self._drainer = new
        self._supervisor.ready(self._status())


def _log_death(args: threading.ExceptHookArgs) -> None:
    log.critical("a thread has died", exc_info=args.exc_value)
