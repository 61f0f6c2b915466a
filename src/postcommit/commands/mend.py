"""What ``retry`` and ``delete`` have in common: one entry after the other."""
from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Iterable

from postcommit.commands.output import printable
from postcommit.errors import EntryError
from postcommit.queue.item import Item


def each(chosen: Iterable[Item], act: Callable[[Item], bool], done: str) -> int:
    """Call `act` with each item, tell what became of it, and return the status.

    Where `act` returns False, or raises `EntryError`, the entry is left: then the
    status is 1. What was `done` goes to stdout, an id first; the rest to stderr.
    """
    count = left = 0
    try:
        for item in chosen:
            try:
                is_done = act(item)
                problem = "left alone: it is gone, or somebody works on it just now"
            except EntryError as error:
                is_done, problem = False, str(error)
            if is_done:
                count += 1
                print(f"{item.id}  {done}  {printable(item.name)}")
            else:
                left += 1
                print(f"postcommit: {item.id}: {printable(problem)}", file=sys.stderr)
        sys.stdout.flush()
    finally:
        # Also should the reader of our output be gone.
        print(f"{count} {done}, {left} left", file=sys.stderr)
    return 1 if left else 0
