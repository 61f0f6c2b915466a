"""``retry``, ``delete``, ``hold``, ``pause``, ``recover``: change a queue."""
from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Literal

from postcommit._cli import arguments
from postcommit._cli import selection
from postcommit._cli.output import Meter
from postcommit._cli.output import printable
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import IChanges
from postcommit._maildir.item import IOperators
from postcommit._maildir.item import Item
from postcommit._maildir.item import Step
from postcommit._queue.queue import ACTIONS
from postcommit._queue.values import entries
from postcommit._queue.values import moment
from postcommit.errors import EntryError
from postcommit.errors import ItemError


# Maximum number of entries that are named.
_MOST_NAMED = 20

# The entries that can be retried, and those that can be held.
_RETRIED = [state for state, actions in ACTIONS.items() if "retry" in actions]
_HELD = [state for state, actions in ACTIONS.items() if "hold" in actions]

_SKIPPED = "skipped: it is gone, or a processor is sending it now"


def _verbose_argument(parser: argparse.ArgumentParser) -> None:
    text = f"name every entry, not just the first {_MOST_NAMED}"
    parser.add_argument("--verbose", action="store_true", help=text)


class _Lines:
    """Prints a line for each entry, or only for the first of many entries.

    Entries that were changed go to stdout, the others to stderr.
    """

    def __init__(self, meter: Meter, *, verbose: bool) -> None:
        self._meter = meter
        self._verbose = verbose
        self.done = 0
        self.skipped = 0

    def note_done(self, item: Item, done: str) -> None:
        self._meter.hit()
        self.done += 1
        if self._verbose or self.done <= _MOST_NAMED:
            self._meter.wipe()
            print(f"{item.id}  {done}  {printable(item.name)}")

    def note_skipped(self, item: Item, problem: str) -> None:
        self.skipped += 1
        if self._verbose or self.skipped <= _MOST_NAMED:
            self._meter.wipe()
            print(f"postcommit: {item.id}: {printable(problem)}", file=sys.stderr)

    def end(self) -> None:
        """Say how many entries were not named."""
        self._meter.wipe()
        for count, stream in ((self.done, sys.stdout), (self.skipped, sys.stderr)):
            if count > _MOST_NAMED and not self._verbose:
                more = count - _MOST_NAMED
                print(f"and {more} more; --verbose names all", file=stream)
        sys.stdout.flush()


def _change_each(
    items: Iterable[Item],
    change: Callable[[Item], bool],
    done: str,
    meter: Meter,
    *,
    verbose: bool,
) -> int:
    """Call `change` with each item, print the result, and return the exit status.

    If `change` returns False, or raises `EntryError`, the entry is skipped, and the
    status is 1. The first entries are named, with `verbose` all of them. At the end a
    line on stderr has their number.
    """
    lines = _Lines(meter, verbose=verbose)
    try:
        for item in items:
            try:
                is_done = change(item)
                problem = _SKIPPED
            except EntryError as error:
                is_done, problem = False, str(error)
            if is_done:
                lines.note_done(item, done)
            else:
                lines.note_skipped(item, problem)
        lines.end()
    finally:
        # Also if the reader of our output is gone.
        meter.wipe()
        text = f"{entries(lines.done)} {done}, {lines.skipped} skipped"
        print(text, file=sys.stderr)
    return 1 if lines.skipped else 0


# retry


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    selection.queue_argument(parser)
    _verbose_argument(parser)
    arguments.adopt(parser)
    selection.ids_argument(parser, "+", "every entry that the options below choose")
    selection.choice(parser, *_RETRIED, default="what is deferred")


def run_retry(options: argparse.Namespace) -> int:
    """Make the entries due. Return 1 if some were skipped."""
    queue = selection.operators(options)
    wanted = selection.chosen(options, EntryState.DEFERRED)
    with selection.meter(queue, wanted, "retried") as meter:
        items = selection.selected(
            queue, options, EntryState.DEFERRED, step=meter.step
        )
        with queue.changes() as changes:
            retry = _Retry(queue, changes)
            done, verbose = "will be retried", options.verbose
            status = _change_each(items, retry, done, meter, verbose=verbose)
    if retry.uncertain:
        text = f"{entries(retry.uncertain)} may have arrived already"
        print(f"{text}; a second copy may arrive", file=sys.stderr)
    return status


class _Retry:
    """Makes entries due, and counts dead letters that may have been transmitted."""

    def __init__(self, queue: IOperators, changes: IChanges) -> None:
        self._queue = queue
        self._changes = changes
        self.uncertain = 0

    def __call__(self, item: Item) -> bool:
        is_dead = item.state is EntryState.FAILED
        read = self._queue.details(item) if is_dead else None
        is_done = self._changes.retry(item)
        if is_done and read is not None and read.uncertain:
            self.uncertain += 1
        return is_done


# delete


def delete_arguments(parser: argparse.ArgumentParser) -> None:
    text = "ask nothing; without a terminal ALL needs it"
    parser.add_argument("--yes", action="store_true", help=text)
    _verbose_argument(parser)
    selection.queue_argument(parser)
    arguments.adopt(parser)
    selection.ids_argument(parser, "+", "every entry that the options below choose")
    states = (state for state in EntryState if state is not EntryState.IN_DOUBT)
    selection.choice(parser, *states, default="what waits or is deferred")


def run_delete(options: argparse.Namespace) -> int:
    """Remove the entries. Return 1 if some were skipped, or the user said no."""
    queue = selection.operators(options)
    states = (EntryState.WAITING, EntryState.DEFERRED)
    wanted = selection.chosen(options, *states)
    with selection.meter(queue, wanted, "deleted") as meter:
        items = selection.selected(queue, options, *states, step=meter.step)
        if not options.yes:
            # Only the entries that the question is about, not those that come later.
            counted = list(items)
            meter.wipe()
            if not _is_confirmed(len(counted), options):
                print("nothing deleted", file=sys.stderr)
                return 1
            meter = Meter(lambda: len(counted), "deleted", sys.stderr)
            items = _stepping(counted, meter.step)
        with queue.changes() as changes:
            delete, verbose = changes.delete, options.verbose
            return _change_each(items, delete, "deleted", meter, verbose=verbose)


def _stepping(items: Iterable[Item], step: Step) -> Iterator[Item]:
    for item in items:
        step()
        yield item


def _is_confirmed(count: int, options: argparse.Namespace) -> bool:
    if sys.stdin.isatty():
        question = f"Delete {entries(count)} permanently? [y/N] "
        print(question, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    if selection.ALL in options.ids:
        raise ItemError(selection.ALL, "needs --yes without a terminal")
    return True


# hold, release


def hold_arguments(parser: argparse.ArgumentParser) -> None:
    _all_arguments(parser, "entry", *_HELD, default="all that is to be sent")


def run_hold(options: argparse.Namespace) -> int:
    """Hold the entries. Return 1 if some were skipped."""
    return _move(options, "hold", "held", *_HELD)


def release_arguments(parser: argparse.ArgumentParser) -> None:
    _all_arguments(parser, "held entry", EntryState.HELD, default="all that is held")


def run_release(options: argparse.Namespace) -> int:
    """Release the entries. Return 1 if some were skipped."""
    return _move(options, "release", "released", EntryState.HELD)


def _all_arguments(
    parser: argparse.ArgumentParser, entry: str, *states: EntryState, default: str
) -> None:
    selection.queue_argument(parser)
    _verbose_argument(parser)
    arguments.adopt(parser)
    every = f"every {entry} that the options below choose; with no id, it is ALL"
    selection.ids_argument(parser, "*", every)
    selection.choice(parser, *states, default=default)


def _move(
    options: argparse.Namespace,
    method: Literal["hold", "release"],
    done: str,
    *states: EntryState,
) -> int:
    options.ids = options.ids or [selection.ALL]
    queue = selection.operators(options)
    wanted = selection.chosen(options, *states)
    with selection.meter(queue, wanted, done) as meter:
        # What is found is moved, so all is found before.
        items = list(selection.selected(queue, options, *states, step=meter.step))
        with queue.changes() as changes:
            change, verbose = getattr(changes, method), options.verbose
            return _change_each(items, change, done, meter, verbose=verbose)


# pause, resume


def pause_arguments(parser: argparse.ArgumentParser) -> None:
    selection.queue_argument(parser)
    text = "why, for 'postcommit status' and the log of the processor"
    parser.add_argument("--reason", metavar="TEXT", default="", help=text)


def run_pause(options: argparse.Namespace) -> int:
    """Stop all processors of the queue from sending, until it is resumed."""
    who = _user()
    queue = selection.operators(options)
    with queue.changes() as changes:
        is_done = changes.stop(who, options.reason)
    if is_done:
        print("the queue is paused; 'postcommit resume' ends that")
        return 0
    note = queue.survey(most_seconds=0.0).stopped
    since = "" if note is None else f" since {moment(note.since)}"
    print(f"nothing changed: the queue is {printable(str(note))}{since}")
    return 0


def _user() -> str:
    """Return the name of the user who runs the command, also by ``sudo``."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"user {uid}"
    return os.environ.get("SUDO_USER") or name


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    selection.queue_argument(parser)


def run_resume(options: argparse.Namespace) -> int:
    """Let the processors of the queue send again."""
    queue = selection.operators(options)
    with queue.changes() as changes:
        is_done = changes.resume()
    print("the queue is resumed" if is_done else "the queue was not paused by hand")
    return 0


# recover


def recover_arguments(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--send", action="store_true", help="the transactions did commit: send them"
    )
    choice.add_argument(
        "--drop", action="store_true", help="they did not commit: remove them"
    )
    selection.queue_argument(parser)
    arguments.adopt(parser)
    every = "all that is in doubt; with --send, so does no id"
    selection.ids_argument(parser, "*", every)
    parser.set_defaults(ids=[])


def run_recover(options: argparse.Namespace) -> int:
    """Send or drop the entries in doubt, and print each."""
    if not options.ids:
        if options.drop:
            needed = f"needs ids, or {selection.ALL} for all that is in doubt"
            raise ItemError("--drop", needed)
        options.ids = [selection.ALL]
    queue = selection.operators(options)
    ids = selection.given_ids(options)
    if ids is None:
        items = list(queue.items([EntryState.IN_DOUBT]))
    else:
        items = queue.find(ids)
        for item in items:
            if item.state is not EntryState.IN_DOUBT:
                raise ItemError(item.id, f"is not in doubt but {item.state.value}")
    done = "accepted" if options.send else "removed"
    count = 0
    with queue.changes() as changes:
        if not items:
            print("nothing is in doubt")
        for item in changes.recover(items, send=options.send):
            print(f"{done}  {selection.line(item)}")
            count += 1
    if count < len(items):
        skipped = entries(len(items) - count)
        print(f"{skipped} skipped: another command is recovering them now")
        return 1
    return 0
