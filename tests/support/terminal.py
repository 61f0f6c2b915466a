"""The command on a terminal: a pseudo-terminal of a given width, and an answer."""
from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios

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
