"""A log that never raises, and whose lines cannot be forged.

An application's logging must not decide whether a mail is sent again. If a filter
raised in the line that logs a message as sent, the entry would stay in the queue.

File names, addresses and texts of relays come from outside. In a log or on a terminal
they could begin a new line, move the cursor, or turn the direction of the text.
"""
from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING
from typing import Any


if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

# Prints an error as `logging` prints those of a handler: on the standard error stream,
# unless ``logging.raiseExceptions`` is false.
_last_resort = logging.Handler()


def printable(text: str, instead: str = "") -> str:
    """Return `text` in one line, without characters that control a terminal.

    Each character that cannot be printed is escaped, such as ESC to ``\\x1b`` and a
    line feed to ``\\n``, or is replaced by `instead`. These are also the bidi controls,
    and the lone surrogates, which cannot be encoded.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else instead or _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str, most: int = 4000, instead: str = "") -> str:
    """Return `text` as `printable` does, with any white space as one space.

    A text of more than `most` characters is cut, and ends in three dots.
    """
    line = printable(" ".join(text[: 2 * most].split()), instead)
    return line if len(line) <= most else f"{line[:most]}..."


def indented(text: str) -> str:
    """Return the lines of a traceback as `printable` does, each indented.

    An error's text may have several lines, and none may look like a line of ours.
    """
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


class _Printable:
    """An argument of a log record, whose text is one line."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return printable(repr(self._value))


def _argument(value: object) -> object:
    """Return an argument of a record so that it cannot begin another line."""
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, int | float) else _Printable(value)


class Log(_Adapter):
    """The logger `name`, without the exceptions of its filters and handlers.

    Each argument of a record is shown in one line. The message is ours and is kept.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        args = tuple(map(_argument, args))
        try:
            # The line that the record names is our caller's.
            self.logger.log(level, msg, *args, stacklevel=2, **kwargs)
        except Exception:
            record = {"name": self.logger.name, "msg": msg, "args": args}
            with suppress(Exception):  # as where the error stream is closed
                _last_resort.handleError(logging.makeLogRecord(record))
