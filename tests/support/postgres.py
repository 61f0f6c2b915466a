"""A PostgreSQL server of our own, in a temporary folder, and queues in it."""
from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from postcommit._config.database import parse_database_url
from postcommit._postgres.schema import migrate
from tests.support.ports import free_port


# Debian does not put the server into the path.
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

# Number of processes that are killed in all tests together, and of servers among them.
KILLS = int(os.environ.get("POSTCOMMIT_POSTGRES_KILLS", "500"))
SERVER_KILLS = KILLS // 25

_USER = "postgres"

_numbers = itertools.count(1)


def why_not() -> str:
    """Return why no server can be started; empty if one can."""
    return "" if PROGRAMS else "PostgreSQL is not installed"


def as_postgres(*command: Any) -> list[str]:
    """Return `command` so that it does not run as root, which the server refuses."""
    words = [str(word) for word in command]
    if os.geteuid():
        return words
    ids = ["--reuid", _USER, "--regid", _USER, "--init-groups"]
    return ["setpriv", *ids, *words]


class Cluster:
    """A server. It can be killed, and started again, on the same port."""

    def __init__(self, *, is_durable: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postcommit-postgres-"))
        if not os.geteuid():
            shutil.chown(self.folder, _USER, _USER)
        self.port = free_port()
        self.data = self.folder / "data"
        self._is_durable = is_durable
        self._process: subprocess.Popen[bytes] | None = None
        trust = ["--auth", "trust", "--username", _USER, "--encoding", "UTF8"]
        self.run("initdb", "--no-sync", "--locale", "C", *trust, "-D", self.data)

    def run(self, program: str, *arguments: Any) -> None:
        """Run one of the programs of PostgreSQL."""
        command = as_postgres(PROGRAMS[-1] / program, *arguments)
        done = subprocess.run(command, capture_output=True, cwd="/", text=True)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "on" if self._is_durable else "off",
            "max_connections": 1000,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        command = as_postgres(PROGRAMS[-1] / "postgres", "-D", self.data, *options)
        until = time.monotonic() + 60
        self._process = None
        while True:
            # It ends at once while a process of a server that was killed is left.
            if self._process is None or self._process.poll() is not None:
                with (self.folder / "log").open("ab") as log:
                    self._process = subprocess.Popen(
                        command,
                        cwd="/",
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
            try:
                psycopg.connect(self.conninfo).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < until, (self.folder / "log").read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill all its processes, as the death of the machine does."""
        assert self._process is not None
        pid = self._process.pid
        # It must not fork meanwhile: a child that is left keeps the next server out.
        os.kill(pid, signal.SIGSTOP)
        while _state(pid) not in "TZ":
            time.sleep(0.001)
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        children = [int(child) for child in text.split()]
        for each in (pid, *children):
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(60)
        until = time.monotonic() + 60
        while any(_state(child) not in "Z" for child in children):
            assert time.monotonic() < until
            time.sleep(0.001)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop it and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown
            self._process.wait(60)
        shutil.rmtree(self.folder)

    @property
    def conninfo(self) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres"

    def url(self, schema: str = "postcommit", port: int | None = None) -> str:
        """Return the URL of a queue, by another `port` if one is given."""
        place = self.conninfo.replace(f":{self.port}/", f":{port or self.port}/")
        return f"{place}?postcommit_schema={schema}"

    def new_queue(self) -> str:
        """Create the tables of a new queue, and return its URL."""
        url = self.url(f"queue{next(_numbers)}")
        migrate(parse_database_url(url))
        return url

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection that commits each statement."""
        return psycopg.connect(self.conninfo, autocommit=True)


def _state(pid: int) -> str:
    """Return the state of a process, such as T if it is stopped, or Z if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


@functools.cache
def cluster() -> Cluster:
    """Return the server of this process, which is stopped at exit, or skip the test."""
    if reason := why_not():
        pytest.skip(reason)
    process = os.getpid()
    made = Cluster()

    def stop() -> None:
        if os.getpid() == process:
            made.stop()

    atexit.register(stop)
    made.start()
    return made
