"""The command on a terminal: a pseudo-terminal of a given width, and an answer."""
from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

from tests.support.service import COMMAND
from tests.support.service import PATIENCE
from tests.support.service import ROOT
from tests.support.service import environment


def on_terminal(
    *argv: object, columns: int = 80, answer: str = "", **variables: str
) -> tuple[int, str]:
    """Run ``postcommit`` with `argv`, type `answer`; return status and screen."""
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    env = {k: v for k, v in environment().items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [*COMMAND, *map(str, argv)],
        cwd=ROOT,
        env={**env, "TERM": "xterm", **variables},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    screen = _read_all(ours)
    os.close(ours)
    return process.wait(PATIENCE), screen


def _read_all(terminal: int) -> str:
    parts = []
    while True:
        try:
            parts.append(os.read(terminal, 65536))
        except OSError:  # EIO: nobody has the other side any more
            return b"".join(parts).decode().replace("\r\n", "\n")


class Session:
    """A program on a terminal; what is typed waits until it has asked for it.

    It begins in `folder`, and has no other environment than that.
    """

    def __init__(
        self, argv: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            argv,
            cwd=folder,
            env=dict(environment),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._screen = ""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._ours)

    def wait_for(self, text: str) -> str:
        """Wait until it shows `text`, and return what it has shown before."""
        until = time.monotonic() + PATIENCE
        while text not in self._screen:
            left = until - time.monotonic()
            ready, _, _ = select.select([self._ours], [], [], max(0.0, left))
            assert ready, f"no {text!r} on the screen: {self._screen!r}"
            self._screen += os.read(self._ours, 65536).decode(errors="replace")
        before, _, self._screen = self._screen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())
