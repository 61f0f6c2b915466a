"""What the commands print: for people on a terminal, and for programs."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from typing import Any
from typing import TextIO


_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}

_UNITS = (("d", 86400, 1_000_000), ("h", 3600, 24), ("m", 60, 60), ("s", 1, 60))

# A column that is cut keeps at least so many characters.
_LEAST = 8


def printable(text: str) -> str:
    """Return `text` without what a terminal would obey.

    What a sender or a relay has written may contain anything.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """Return so many seconds as «3d4h», «12m» or «7s»: two units at most."""
    left = round(abs(seconds))
    parts = [(name, left // length % most) for name, length, most in _UNITS]
    while len(parts) > 1 and not parts[0][1]:
        parts.pop(0)
    told = "".join(f"{count}{name}" for name, count in parts[:2] if count)
    return ("-" if seconds < 0 else "") + (told or "0s")


def moment(seconds: float) -> str:
    """Return a time since the epoch as local date and time with its offset."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def timestamp(seconds: float | None) -> str | None:
    """Return a time since the epoch for programs: ISO 8601, UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def size(count: int) -> str:
    """Return so many bytes as «734», «12K» or «1.5M»."""
    if count < 1000:
        return str(count)
    number, power = count / 1024, 0
    while number >= 1000 and power < 2:
        number, power = number / 1024, power + 1
    return f"{number:.{1 if number < 10 else 0}f}{'KMG'[power]}"


def print_json(value: Any) -> None:
    """Print one line of JSON, at once."""
    print(json.dumps(value, ensure_ascii=True, allow_nan=False), flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Tell whether somebody looks at `stream`."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Return `text` in a colour, if `stream` is a terminal that may have one."""
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


@dataclass(frozen=True)
class Column:
    """`width` characters; what is longer is cut on a terminal, if `cut`."""

    title: str
    width: int
    cut: bool = False
    right: bool = False


class Table:
    """Prints rows as they come; on a terminal they fit its width.

    The columns that may be cut share the room that the others leave, in proportion
    to their widths.
    """

    def __init__(self, columns: Sequence[Column], stream: TextIO) -> None:
        self._columns = columns
        self._stream = stream
        self._widths = [column.width for column in columns]
        self._is_begun = False
        self._room = 0
        if is_terminal(stream):
            self._room = shutil.get_terminal_size().columns
            self._fit(self._room)

    def _fit(self, room: int) -> None:
        fixed = sum(column.width for column in self._columns if not column.cut)
        flexible = sum(column.width for column in self._columns if column.cut)
        spare = room - fixed - 2 * (len(self._columns) - 1)
        for n, column in enumerate(self._columns):
            if column.cut:
                self._widths[n] = max(_LEAST, spare * column.width // flexible)

    def row(self, cells: Sequence[str], colour: str = "") -> None:
        """Print a row, and the titles before the first one."""
        if not self._is_begun:
            self._is_begun = True
            titles = self._line([column.title for column in self._columns])
            print(coloured(titles, "bold", self._stream), file=self._stream)
        line = self._line(cells)
        shown = coloured(line, colour, self._stream) if colour else line
        # At once: the next one may be long in coming.
        print(shown, file=self._stream, flush=True)

    def _line(self, cells: Sequence[str]) -> str:
        parts = []
        for column, width, cell in zip(self._columns, self._widths, cells, strict=True):
            text = printable(cell)
            if self._room and column.cut and len(text) > width:
                text = text[: width - 1] + "…"
            parts.append(text.rjust(width) if column.right else text.ljust(width))
        line = "  ".join(parts).rstrip()
        return line[: self._room] if self._room else line


def addresses(recipients: Iterable[str]) -> str:
    """Return the first of the `recipients`, and how many there are besides."""
    first, *others = recipients or ("",)
    return f"{first} +{len(others)}" if others else first
