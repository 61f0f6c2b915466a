"""A log that cannot fail.

What is done about a mail must not depend on the application's logging. A filter
that raises does so in the line that logs; there, a message that was sent would
look as if it was not, and would be sent again.
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

# It tells of an error as `logging` tells of those of a handler: on the standard
# error stream, unless ``logging.raiseExceptions`` is false.
_last_resort = logging.Handler()


class Log(_Adapter):
    """The logger `name`, but no method raises what a filter or a handler raises."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        try:
            # The line that the record names is our caller's.
            self.logger.log(level, msg, *args, stacklevel=2, **kwargs)
        except Exception:
            record = {"name": self.logger.name, "msg": msg, "args": args}
            with suppress(Exception):  # as where the error stream is closed
                _last_resort.handleError(logging.makeLogRecord(record))
