"""``postcommit flush``: tries every due entry once, and prints what is left."""
from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from postcommit._cli import configuration
from postcommit._cli import logs
from postcommit._cli.configuration import Configuration
from postcommit._cli.output import is_terminal
from postcommit._cli.output import print_json
from postcommit._cli.output import printable
from postcommit._cli.progress import Progress
from postcommit._cli.progress import WatchedMailer
from postcommit._cli.service import check_queue
from postcommit._kinds.operators import open_operators
from postcommit._log import one_line
from postcommit._maildir.item import EntryState
from postcommit._processor import QueueProcessor
from postcommit.interfaces import Tally


_LEVEL = "warning"

# Entries that wait for another attempt, due or not.
_LEFT = (EntryState.WAITING, EntryState.DEFERRED, EntryState.BULK)


def arguments(parser: argparse.ArgumentParser) -> None:
    configuration.queue_arguments(parser)
    told = "print what became of it as a JSON object"
    parser.add_argument("--json", action="store_true", help=told)
    configuration.arguments(parser, level=_LEVEL)


def run(options: argparse.Namespace) -> int:
    """Try every due entry. Return 1 if any is left, and 130 if interrupted."""
    found = Configuration(options)
    mailer = found.mailer()
    check_queue(found.queue_path, create=options.create, adopt=options.adopt)
    logs.set_up(found.log_level(_LEVEL), found.log_format)
    total = _due(found.queue_path) if is_terminal(sys.stderr) else 0
    with Progress(total, sys.stderr) as progress:
        logs.before_each(progress.wipe)
        processor = found.processor(WatchedMailer(mailer, progress.note))
        with _interruptible(processor) as interrupted:
            tally = processor.flush()
        mailer.close()
    seen = open_operators(found.queue_path).survey(most_seconds=0.0)
    left = sum(seen.counts[state] for state in _LEFT)
    _print(tally, left, progress.failure, as_json=options.json)
    if seen.stopped is not None:
        text = f"the queue is {printable(str(seen.stopped))}; see 'postcommit resume'"
        print(text, file=sys.stderr)
    if interrupted:
        return 130
    return 1 if left else 0


@contextmanager
def _interruptible(processor: QueueProcessor) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM end the flush after the attempts in flight.

    Yields a list to which the numbers of the signals are added.
    """
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        processor.stop(0)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _due(queue_path: str) -> int:
    return open_operators(queue_path).survey().due


def _print(tally: Tally, left: int, failure: object, *, as_json: bool) -> None:
    if as_json:
        failed = None if failure is None else str(failure)
        print_json({**tally._asdict(), "left": left, "relay_failure": failed})
        return
    uncertain = f", {tally.uncertain} uncertain" if tally.uncertain else ""
    print(
        f"recipients: {tally.sent} sent, {tally.deferred} deferred,"
        f" {tally.rejected} rejected{uncertain}"
    )
    if failure is not None:
        said = one_line(str(failure))
        print(f"the relay failed: {said}; see 'postcommit test-relay'")
    if left:
        print(f"{left} left in the queue; see 'postcommit list'")
