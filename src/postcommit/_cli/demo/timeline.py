"""The timeline of the demo: prints events while they happen, and expectations."""
from __future__ import annotations

import queue
import textwrap
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple
from typing import TextIO

from postcommit._cli.output import coloured


WIDTH = 80

_MARGIN = 19  # column of the text, behind time and actor

_COLOURS = {"shop": "cyan", "queue": "yellow", "relay": "magenta", "event": "blue"}


class Note(NamedTuple):
    """An event: the seconds since the beginning, the actor, and a sentence."""

    seconds: float
    actor: str
    text: str


class Timeline:
    """Prints notes in their order, and whether expectations were met.

    Any thread may call `note`. Only the thread that made the timeline prints, in all
    other methods. So no line is torn, and if the terminal goes away, only that thread
    fails.
    """

    def __init__(self, stream: TextIO, *, seconds: float) -> None:
        self.met = 0
        self.failed = 0
        self._stream = stream
        self._thread = threading.current_thread()
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._start = time.monotonic()
        self._seconds = seconds

    @property
    def elapsed(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self._start

    def note(self, actor: str, text: str) -> None:
        """Note an event. It is printed in its turn."""
        self._notes.put(Note(self.elapsed, actor, text))
        if threading.current_thread() is self._thread:
            self._print_notes()

    def teller(self, actor: str) -> Callable[[str], None]:
        """Return a function that notes a sentence of `actor`."""

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
        """Print events until `condition` holds, or the time is over.

        It does not return which of these happened, because an expectation follows.
        """
        while not condition() and self.elapsed < self._seconds:
            self._print_notes(wait=0.02)
        self._print_notes()

    def expect(self, what: str, seen: object, wanted: object) -> None:
        """Print whether `seen` is what was `wanted`."""
        self._print_notes()
        if seen == wanted:
            self.met += 1
            self._print_text(self._paint("green", "ok".rjust(_MARGIN - 2)), what)
            return
        self.failed += 1
        label = self._paint("red", "FAILED".rjust(_MARGIN - 2))
        self._print_text(label, f"{what}: expected {wanted!r}, saw {seen!r}")

    def verdict(self) -> bool:
        """Print the result, and return whether all expectations were met."""
        total = self.met + self.failed
        self._print()
        if self.failed:
            said = f"{self.failed} of {total} expectations failed"
        else:
            said = f"All {total} expectations were met"
        colour = "red" if self.failed else "green"
        self._print(self._paint(colour, f"{said}, in {self.elapsed:.1f} s."))
        return not self.failed

    def _print_notes(self, wait: float = 0.0) -> None:
        for seconds, actor, text in self._pending(wait):
            time = self._paint("dim", f"{seconds:6.2f} s")
            name = self._paint(_COLOURS.get(actor, "dim"), actor.ljust(7))
            self._print_text(f"{time}  {name}", text)

    def _pending(self, wait: float) -> Iterator[Note]:
        try:
            while True:
                yield self._notes.get(timeout=wait)
                wait = 0.0
        except queue.Empty:
            return

    def _paint(self, colour: str, text: str) -> str:
        return coloured(text, colour, self._stream)

    def _print_text(self, label: str, text: str) -> None:
        first, *others = textwrap.wrap(text, WIDTH - _MARGIN) or [""]
        self._print(f"{label}  {first}")
        for line in others:
            self._print(f"{'':{_MARGIN}}{line}")

    def _print(self, line: str = "") -> None:
        print(line, file=self._stream, flush=True)
