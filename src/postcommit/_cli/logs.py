"""The log on standard error, for people or for programs."""
from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from collections.abc import Mapping
from datetime import UTC
from datetime import datetime
from typing import Any

from postcommit._log import indented
from postcommit._log import printable
from postcommit.errors import RelayError
from postcommit.interfaces import IReply


_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up(level: str, form: str) -> None:
    """Log to standard error from `level` on, in the form ``text`` or ``json``.

    May be called again. Levels are those of `logging`, in lower case.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def before_each(call: Callable[[], None]) -> None:
    """Call `call` before each record is logged, until the next `set_up`."""

    def pass_on(record: logging.LogRecord) -> bool:
        call()
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(pass_on)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds")


class TextFormatter(logging.Formatter):
    """A line for each record. Times are UTC.

    A traceback has more lines, each of them indented, so that no line of another
    library's error can look like a record.
    """

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return indented(stack_info)


class JSONFormatter(logging.Formatter):
    """An object for each record, in one line.

    It has ``time`` (ISO 8601, UTC), ``level``, ``logger`` and ``message``. Where
    they are known, it has ``message_id``, ``recipients``, ``status``, ``reply``
    (``code``, ``enhanced``, ``text``) and ``traceback``.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= _known(vars(record))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True)


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    names = ("message_id", "recipients", "status")
    known = {name: attributes[name] for name in names if name in attributes}
    reply = attributes.get("reply")
    if isinstance(reply, RelayError):
        reply = reply.reply
    if IReply.providedBy(reply):
        parts = ("code", "enhanced", "text")
        known["reply"] = {part: getattr(reply, part) for part in parts}
    return known
