"""The command as a process, beside a relay and a queue."""
from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.smtpd import ScriptedRelay


# Slow machines are slow.
PATIENCE = 60

COMMAND = [sys.executable, "-m", "tests.support.service"]

ROOT = Path(__file__).parent.parent.parent


def environment(**variables: str) -> dict[str, str]:
    """Return ours without what would configure the command, and `variables`."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("POSTCOMMIT_")}
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"):
        mine.pop(name, None)
    return {**mine, **variables}


def command(*argv: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``postcommit`` with `argv` to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, argv)],
        cwd=ROOT,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def to(relay: ScriptedRelay) -> list[str]:
    """Return the arguments that have a command use `relay`."""
    return ["--hostname", "127.0.0.1", "--port", str(relay.port)]


class Running:
    """``postcommit`` with `argv`, beside us; `log` is what it has logged so far."""

    def __init__(self, *argv: object, **variables: str) -> None:
        self.log = ""
        self._more = threading.Condition()
        self._process = subprocess.Popen(
            [*COMMAND, *map(str, argv)],
            cwd=ROOT,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Running:
        self._reader.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._more:
                self.log += line
                self._more.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until it has logged `text` so often."""
        with self._more:
            came = self._more.wait_for(lambda: self.log.count(text) >= times, PATIENCE)
        assert came, f"no {text!r} in the log:\n{self.log}"

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        """Wait until it has ended, and return the status."""
        status = self._process.wait(PATIENCE)
        self._reader.join()
        return status


@contextmanager
def logging_restored() -> Iterator[None]:
    """Have the log afterwards go where it went before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until `condition` holds."""
    waited = threading.Event()
    for _ in range(PATIENCE * 100):
        if condition():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come true")


if __name__ == "__main__":
    from postcommit._cli import output
    from postcommit._cli.main import main

    # A test does not wait until a search is long.
    output.PATIENCE = float(os.environ.pop("TEST_PATIENCE", output.PATIENCE))
    output.INTERVAL = min(output.INTERVAL, output.PATIENCE)
    sys.exit(main())
