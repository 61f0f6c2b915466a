"""Notices that a folder has changed, by one ``stat`` call."""
from __future__ import annotations

import os
import time


# Resolution of a folder's time of change, in seconds, with a margin. A folder that
# changed more recently may change again without a new time.
_COARSENESS = 3.0


class Watch:
    """The changes of the folder at `path`, as one reader has seen them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: tuple[float, int] | None = None

    def has_changed(self) -> bool:
        """Return whether the folder has changed since the last call.

        True at the first call. Raises OSError.
        """
        found = os.stat(self.path)
        state = found.st_mtime, found.st_ino  # another if the folder was replaced
        if state == self._seen:
            return False
        is_settled = time.time() - found.st_mtime > _COARSENESS
        self._seen = state if is_settled else None
        return True

    def forget(self) -> None:
        """Make the next call return True."""
        self._seen = None
