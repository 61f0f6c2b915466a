"""Prints for people on a terminal, and for programs: values, tables, progress."""
from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import TextIO

from postcommit._log import printable as printable


_COLOURS = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}

# Minimum number of columns, however narrow a terminal is.
_FEWEST_COLUMNS = 2

_GAP = "  "

# From this rank on, a column is shown only if all others are whole in each row.
EXTRA = 6

# Fraction of the rows for which a column is wide enough.
_MOST = 0.75

# Minimum number of characters of a cell that is cut.
_LEAST = 8

# Maximum number of rows that decide on the columns of a table, and maximum number of
# seconds that the first row waits for the others.
_SAMPLE = 100
_ROWS_WAIT = 0.2

# Seconds between two changes of a line that is written again and again.
INTERVAL = 0.1

# Seconds until a terminal shows how far a search is.
PATIENCE = 0.5

# Entries that a search looks at between two looks at the clock.
_STRIDE = 64


def print_json(value: Any) -> None:
    """Print one line of JSON, at once."""
    print(json.dumps(value, ensure_ascii=True, allow_nan=False), flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Return `text` in a colour, if `stream` is a terminal with colours."""
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


@dataclass(frozen=True)
class Column:
    """A column of a table, at least `width` characters wide.

    On a terminal that is too narrow, the columns with a low `rank` are shown. Only a
    column that `may_be_cut` is cut there.
    """

    title: str
    width: int
    rank: int
    may_be_cut: bool = False
    right: bool = False


class Table:
    """Prints rows as they come. On a terminal they fit its width, unless `wide`.

    The width of the cells decides which columns fit. So the first rows on a terminal
    are collected, for at most a fifth of a second. A longer cell takes the room of the
    next cell, or gets its own line. `before` is called before anything is printed. Use
    it in a ``with`` block, at whose end the rest is printed.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        stream: TextIO,
        *,
        wide: bool = False,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._columns = columns
        self._stream = stream
        self._before = before
        self._shown = list(range(len(columns)))
        self._widths = [max(column.width, len(column.title)) for column in columns]
        self._is_begun = False
        self._waiting: list[tuple[list[str], str]] = []
        self._until = 0.0
        is_narrow = is_terminal(stream) and not wide
        self._room = shutil.get_terminal_size().columns if is_narrow else 0

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._waiting:
            self._begin()

    def row(self, cells: Sequence[str], colour: str = "") -> None:
        """Print a row. Before the first row, print the titles."""
        if not self._waiting:
            self._until = time.monotonic() + _ROWS_WAIT
        self._waiting.append(([printable(cell) for cell in cells], colour))
        if self._is_begun or not self._room or len(self._waiting) == _SAMPLE:
            self._begin()
        else:
            self.look()

    def look(self) -> None:
        """Print the rows that wait, if they have waited long enough."""
        if self._waiting and time.monotonic() >= self._until:
            self._begin()

    def _begin(self) -> None:
        self._before()
        if not self._is_begun:
            self._is_begun = True
            if self._room:
                self._fit()
            [titles] = self._lines([column.title for column in self._columns])
            print(coloured(titles, "bold", self._stream), file=self._stream)
        for cells, colour in self._waiting:
            for line in self._lines(cells):
                shown = coloured(line, colour, self._stream) if colour else line
                print(shown, file=self._stream)
        self._waiting.clear()
        # Without delay, because the next row may come much later.
        self._stream.flush()

    def _fit(self) -> None:
        """Choose the columns and their widths by the rows that wait."""
        longer = [0] * len(self._columns)  # excess of the longest cell
        for n, column in enumerate(self._columns):
            if not column.may_be_cut:
                lengths = sorted(len(cells[n]) for cells, _ in self._waiting)
                usual = lengths[int(_MOST * (len(lengths) - 1))]
                self._widths[n] = max(self._widths[n], usual)
                longer[n] = max(0, lengths[-1] - self._widths[n])
        by_rank = sorted(self._shown, key=lambda n: self._columns[n].rank)
        self._shown = by_rank[:_FEWEST_COLUMNS]
        for n in by_rank[_FEWEST_COLUMNS:]:
            is_extra = self._columns[n].rank >= EXTRA
            spare = self._spare() - is_extra * sum(longer[m] for m in self._shown)
            if spare >= self._widths[n] + len(_GAP):
                self._shown.append(n)
        self._shown.sort()
        for n in self._shown:
            if self._columns[n].may_be_cut:
                self._widths[n] += self._spare()

    def _spare(self) -> int:
        gaps = len(_GAP) * (len(self._shown) - 1)
        return self._room - gaps - sum(self._widths[n] for n in self._shown)

    def _lines(self, cells: Sequence[str]) -> list[str]:
        """Return the line of a row, or two if a cell needs its own line."""
        if not self._room:
            return [self._line(cells)]
        room = self._spare()
        excess = {}
        for n in self._shown:
            if self._columns[n].may_be_cut:
                room += self._widths[n] - _LEAST
            else:
                excess[n] = len(cells[n]) - self._widths[n]
        longest = max(excess, key=lambda n: excess[n])
        if excess[longest] <= max(0, room):
            return [self._line(cells)[: self._room]]
        others = ["" if n == longest else cell for n, cell in enumerate(cells)]
        own = min(self._widths[self._shown[0]], self._room - len(cells[longest]) - 2)
        lines = self._line(others), " " * own + _GAP + cells[longest]
        return [_cut(line, self._room) for line in lines]

    def _line(self, cells: Sequence[str]) -> str:
        parts = []
        too_long = 0  # characters that the cells before took from the others
        for n in self._shown:
            column, cell, width = self._columns[n], cells[n], self._widths[n]
            if self._room and column.may_be_cut:
                cell = _cut(cell, width - too_long)
            too_long += max(0, len(cell) - width)
            parts.append(cell.rjust(width) if column.right else cell.ljust(width))
        return _GAP.join(parts).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def addresses(recipients: Iterable[str]) -> str:
    """Return the first of the `recipients`, and the number of the others."""
    first, *others = recipients or ("",)
    return f"{first} +{len(others)}" if others else first


class Line:
    """The last line of a terminal, which is overwritten with each change.

    If `stream` is not a terminal, nothing is written.
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
    """Counts the entries that a command has looked at, and the `hits` among them.

    If `stream` is a terminal, a long search is shown there. `done` is the word for the
    hits, such as "found". `total` returns the number of entries, and is called when the
    line is first drawn. Use it in a ``with`` block, at whose end the line is wiped.
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
        """Make room for other lines. The line is drawn again soon."""
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
        total = max(self._total, self._looked_at)  # entries may be added
        done = f"{self.hits} {self._done}"
        self._line.write(f"{self._looked_at} of {total} entries, {done}")
