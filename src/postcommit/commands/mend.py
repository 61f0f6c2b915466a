"""What ``retry`` and ``delete`` have in common: one entry after the other."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from collections.abc import Iterable

from postcommit.commands.meter import Meter
from postcommit.commands.output import entries
from postcommit.commands.output import printable
from postcommit.errors import EntryError
from postcommit.queue.item import Item


# Maximum number of entries that are named one by one.
_MOST_NAMED = 20

_SKIPPED = "skipped: it is gone, or a processor is sending it now"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Have `parser` take whether all entries are named."""
    told = f"name every entry, not just the first {_MOST_NAMED}"
    parser.add_argument("--verbose", action="store_true", help=told)


class Lines:
    """Prints the lines of a long list: all of them, or the first ones.

    Entries that were dealt with go to stdout, the others to stderr.
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


def each(
    chosen: Iterable[Item],
    act: Callable[[Item], bool],
    done: str,
    meter: Meter,
    *,
    verbose: bool,
) -> int:
    """Call `act` with each item, say what became of it, and return the status.

    Where `act` returns False, or raises `EntryError`, the entry is skipped: then the
    status is 1. The first entries are named, with `verbose` all; a line on stderr says
    at the end how many there were.
    """
    lines = Lines(meter, verbose=verbose)
    try:
        for item in chosen:
            try:
                is_done = act(item)
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
        told = f"{entries(lines.done)} {done}, {lines.skipped} skipped"
        print(told, file=sys.stderr)
    return 1 if lines.skipped else 0
