"""The timeline: what happens, as it happens, for a person to read."""
from __future__ import annotations

import os
import queue
import textwrap
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple
from typing import TextIO


WIDTH = 80

_MARGIN = 19  # of the text, behind time and actor

_COLOURS = {
    "bold": "1",
    "dim": "2",
    "bad": "1;31",
    "good": "32",
    "shop": "36",
    "queue": "33",
    "relay": "35",
    "event": "34",
}


class Note(NamedTuple):
    """Something that happened: when, to whom, and what."""

    seconds: float
    actor: str
    text: str


class Paint:
    """Colours, where `stream` is a terminal, and nobody has said NO_COLOR."""

    def __init__(self, stream: TextIO) -> None:
        refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self._on = stream.isatty() and not refused

    def __call__(self, colour: str, text: str) -> str:
        code = _COLOURS.get(colour)
        return f"\x1b[{code}m{text}\x1b[0m" if self._on and code else text


class Timeline:
    """Prints notes in their order, and whether expectations were met.

    Any thread may `note`; the one that made the timeline does the printing,
    in all other methods. So no line is torn, and a terminal that has gone
    away harms nobody else.
    """

    def __init__(self, stream: TextIO, *, seconds: float) -> None:
        self.met = 0
        self.failed = 0
        self._stream = stream
        self._paint = Paint(stream)
        self._thread = threading.current_thread()
        # Not a SimpleQueue: before Python 3.11, one may wait for ever where the
        # time-out is short.
        self._notes: queue.Queue[Note] = queue.Queue()
        self._start = time.monotonic()
        self._seconds = seconds

    @property
    def elapsed(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self._start

    def note(self, actor: str, text: str) -> None:
        """Note what happened; to be printed when its turn comes."""
        self._notes.put(Note(self.elapsed, actor, text))
        if threading.current_thread() is self._thread:
            self._print_notes()

    def teller(self, actor: str) -> Callable[[str], None]:
        """Return a function that notes what `actor` has to tell."""

        def tell(text: str) -> None:
            self.note(actor, text)

        return tell

    def chapter(self, title: str, plot: str) -> None:
        """Begin a chapter."""
        self._print()
        self._print(self._paint("bold", title))
        for line in textwrap.wrap(plot, WIDTH):
            self._print(self._paint("dim", line))

    def table(self, title: str, rows: Sequence[tuple[str, ...]]) -> None:
        """Print `rows` with their columns aligned."""
        self._print()
        self._print(self._paint("bold", f"{title}:" if rows else f"{title}: empty"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            self._print("  " + "  ".join(cells).rstrip())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Print what happens until `condition` holds, or the time is over.

        Does not tell which: what was waited for is to be an expectation.
        """
        while not condition() and self.elapsed < self._seconds:
            self._print_notes(wait=0.02)
        self._print_notes()

    def expect(self, what: str, seen: object, wanted: object) -> None:
        """Print whether `seen` is what was `wanted`."""
        self._print_notes()
        if seen == wanted:
            self.met += 1
            self._print_text(self._paint("good", "ok".rjust(_MARGIN - 2)), what)
            return
        self.failed += 1
        label = self._paint("bad", "FAILED".rjust(_MARGIN - 2))
        self._print_text(label, f"{what}: expected {wanted!r}, saw {seen!r}")

    def verdict(self) -> bool:
        """Print how it ended, and tell whether all expectations were met."""
        total = self.met + self.failed
        self._print()
        if self.failed:
            said = f"{self.failed} of {total} expectations failed"
        else:
            said = f"All {total} expectations were met"
        colour = "bad" if self.failed else "good"
        self._print(self._paint(colour, f"{said}, in {self.elapsed:.1f} s."))
        return not self.failed

    def _print_notes(self, wait: float = 0.0) -> None:
        for seconds, actor, text in self._pending(wait):
            label = self._paint("dim", f"{seconds:6.2f} s")
            self._print_text(f"{label}  {self._paint(actor, actor.ljust(7))}", text)

    def _pending(self, wait: float) -> Iterator[Note]:
        try:
            while True:
                yield self._notes.get(timeout=wait)
                wait = 0.0
        except queue.Empty:
            return

    def _print_text(self, label: str, text: str) -> None:
        first, *others = textwrap.wrap(text, WIDTH - _MARGIN) or [""]
        self._print(f"{label}  {first}")
        for line in others:
            self._print(f"{'':{_MARGIN}}{line}")

    def _print(self, line: str = "") -> None:
        print(line, file=self._stream, flush=True)
