"""How far a search is, in the last line of a terminal."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from postcommit.commands.output import is_terminal


# Seconds between two changes of what a terminal shows.
INTERVAL = 0.1

# Seconds until a terminal shows how far a search is.
PATIENCE = 0.5

# Entries that a search looks at between two looks at the clock.
_STRIDE = 64


class Line:
    """The last line of a terminal, which is written again and again.

    Where `stream` is not a terminal, nothing is written.
    """

    def __init__(self, stream: TextIO, first: float = 0.0) -> None:
        self._stream = stream
        self._is_shown = is_terminal(stream)
        self._is_written = False
        self._next = time.monotonic() + first

    @property
    def is_due(self) -> bool:
        """Whether it may change again."""
        return self._is_shown and time.monotonic() >= self._next

    def write(self, text: str) -> None:
        """Show `text` in place of what was there."""
        self._next = time.monotonic() + INTERVAL
        self._print(text)
        self._is_written = True

    def wipe(self) -> None:
        """Make room for other lines."""
        if self._is_written:
            self._is_written = False
            self._print("")

    def _print(self, text: str) -> None:
        if not self._is_shown:
            return
        try:
            # Back to the beginning of the line, and clear it.
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
        except OSError:
            # The terminal is gone, and what the command does must not suffer.
            self._is_shown = False


class Meter:
    """Counts the entries that a command has looked at; `done` is what it did to `hits`.

    A long search is shown on `stream` if it is a terminal. `total` returns how many
    entries there are; it is called when that is shown first. To be entered, so that the
    line is wiped at the end.
    """

    def __init__(self, total: Callable[[], int], done: str, stream: TextIO) -> None:
        self._line = Line(stream, PATIENCE)
        self._count_all = total
        self._total: int | None = None
        self._done = done
        self._looked_at = 0
        self.hits = 0

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wipe()

    def wipe(self) -> None:
        """Make room for other lines; it is drawn again soon."""
        self._line.wipe()

    def step(self) -> None:
        """Count an entry that was looked at."""
        self._looked_at += 1
        if not self._looked_at % _STRIDE and self._line.is_due:
            self._draw()

    def hit(self) -> None:
        """Count an entry that was found, or changed."""
        self.hits += 1

    def _draw(self) -> None:
        if self._total is None:
            self._total = self._count_all()
        total = max(self._total, self._looked_at)  # others add entries meanwhile
        done = f"{self.hits} {self._done}"
        self._line.write(f"{self._looked_at} of {total} entries, {done}")
