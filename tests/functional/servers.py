"""Real mail servers, each with a folder and a port of its own."""
from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import Self

from tests.support.ports import free_port


@contextmanager
def public_folder(name: str) -> Iterator[Path]:
    """Yield a folder for the server `name`, which is removed in the end.

    It is not below tmp_path, which other users, like that of the server, may not enter.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"postcommit-{name}-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


class Server(ABC):
    """A context manager; `port` is where the server listens on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until(self.listens, "it does not listen")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Configure and start it."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it, if it runs."""

    @property
    @abstractmethod
    def log(self) -> str:
        """What it has logged."""

    def listens(self) -> bool:
        """Return whether it takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        except OSError:
            return False
        return True

    def wait_until(self, condition: Callable[[], bool], failure: str) -> None:
        """Wait until `condition` holds, 30 seconds at most."""
        until = time.monotonic() + 30
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < until, f"{failure}\n{self.log}"
            pause.wait(0.02)


class Program(Server):
    """A server that is one process, a child of ours."""

    _process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[Any]:
        """Configure it, and return the command that starts it in the foreground."""

    def start(self) -> None:
        """Configure and start it."""
        command = self.command()
        with (self.folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def log(self) -> str:
        """What it has printed, and logged in ``log``, a file or a folder."""
        log = self.folder / "log"
        paths = [self.folder / "errors", log, *sorted(log.glob("*"))]
        return "\n".join(path.read_text() for path in paths if path.is_file())

    def listens(self) -> bool:
        """Return whether it takes connections; it must not have ended."""
        assert self._process is not None
        assert self._process.poll() is None, self.log
        return super().listens()

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None
