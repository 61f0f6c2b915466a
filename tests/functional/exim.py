"""A real Exim, with a configuration, a spool and a log of its own."""
from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import contextmanager
from pathlib import Path
from typing import Any


# Exim and Postfix exclude each other as packages. So the program may be unpacked below
# /opt, as .ci/run does it.
PROGRAM = shutil.which("exim4", path="/usr/sbin:/opt/exim4/usr/sbin")

USER = "Debian-exim"

_CONFIGURATION = """\
exim_path = {program}
exim_user = {user}
exim_group = {user}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%s
log_selector = +received_recipients
pid_file_path = {folder}/pid
primary_hostname = relay.example.org
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
keep_environment =
tls_advertise_hosts =
host_lookup =
rfc1413_hosts =
acl_smtp_rcpt = accept
acl_smtp_data = accept
queue_only = true
{settings}
begin acl
"""

_RECEIVED = re.compile(r"^.* <= .* for (.*)$", re.MULTILINE)


def why_not() -> str:
    """Return why Exim cannot be started here; empty if it can."""
    if PROGRAM is None:
        return "Exim is not installed; .ci/run shows how to unpack it"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"there is no user {USER}"
    return "" if os.geteuid() == 0 else "Exim can only be started by root"


class Exim:
    """A context manager; `port` is where it listens on 127.0.0.1.

    It accepts all recipients and keeps the messages in its queue. `settings` go into
    the main part of its configuration.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self._settings = "".join(f"{name} = {settings[name]}\n" for name in settings)
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            self.port: int = reserved.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Exim:
        assert PROGRAM is not None
        owner = pwd.getpwnam(USER)
        os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        configuration = self.folder / "configuration"
        text = _CONFIGURATION.format(
            program=PROGRAM,
            user=USER,
            folder=self.folder,
            port=self.port,
            settings=self._settings,
        )
        configuration.write_text(text)
        with (self.folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(
                [PROGRAM, "-C", str(configuration), "-bdf"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def _wait_until_it_listens(self) -> None:
        assert self._process is not None
        until = time.monotonic() + 30
        pause = threading.Event()
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except OSError:
                assert self._process.poll() is None, self.log
                assert time.monotonic() < until, self.log
            pause.wait(0.02)

    @property
    def log(self) -> str:
        """What it has logged."""
        paths = [self.folder / "errors", *sorted((self.folder / "log").glob("*"))]
        return "\n".join(path.read_text() for path in paths if path.exists())

    def received(self) -> list[list[str]]:
        """Return the recipients of each message that it has accepted."""
        log = self.folder / "log" / "main"
        text = log.read_text() if log.exists() else ""
        return [found.split() for found in _RECEIVED.findall(text)]


@contextmanager
def starting() -> Iterator[Callable[..., Exim]]:
    """Yield a function that starts an Exim, which is stopped in the end."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Exim:
            folder = Path(tempfile.mkdtemp(prefix="postcommit-exim-"))
            stack.callback(shutil.rmtree, folder)
            folder.chmod(0o755)
            return stack.enter_context(Exim(folder, settings))

        yield start
