"""A real Dovecot as a mail store that speaks LMTP."""
from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from pathlib import Path


PROGRAM = shutil.which("dovecot", path="/usr/sbin:/usr/local/sbin")
_LMTP = Path("/usr/lib/dovecot/lmtp")

_CONFIGURATION = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols = lmtp
ssl = no
mail_location = maildir:{folder}/mail/%u
first_valid_uid = 1
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
service lmtp {{
  unix_listener {folder}/lmtp {{
    mode = 0666
  }}
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
}}
"""


def why_not() -> str:
    """Return why Dovecot cannot be started here; empty if it can."""
    if PROGRAM is None or not _LMTP.exists():
        return "Debian's packages dovecot-core and dovecot-lmtpd are not installed"
    return "" if os.geteuid() == 0 else "Dovecot can only be started by root"


class Dovecot:
    """A context manager.

    It listens with LMTP on 127.0.0.1 at `port`, and at the unix socket `path`. Its
    users are ann, bob and eve at example.org. The mailbox of eve cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "lmtp")
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            self.port: int = reserved.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Dovecot:
        assert PROGRAM is not None
        owner = pwd.getpwnam("nobody")
        (self.folder / "mail" / "eve@example.org").mkdir(0o700, parents=True)
        os.chown(self.folder / "mail", owner.pw_uid, owner.pw_gid)
        configuration = self.folder / "dovecot.conf"
        configuration.write_text(
            _CONFIGURATION.format(folder=self.folder, port=self.port)
        )
        rest = f"{owner.pw_uid}:{owner.pw_gid}::{self.folder}/mail::\n"
        users = "".join(f"{u}@example.org::{rest}" for u in ("ann", "bob", "eve"))
        (self.folder / "users").write_text(users)
        with (self.folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(
                [PROGRAM, "-F", "-c", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            self._wait_until(self._listens, "it does not listen")
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

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        except OSError:
            return False
        return Path(self.path).exists()

    def _wait_until(self, condition: Callable[[], bool], failure: str) -> None:
        until = time.monotonic() + 30
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < until, f"{failure}\n{self.log}"
            pause.wait(0.02)

    @property
    def log(self) -> str:
        """What it has logged."""
        paths = [self.folder / "errors", self.folder / "log"]
        return "\n".join(path.read_text() for path in paths if path.exists())

    def mailbox(self, user: str) -> list[Message]:
        """Return what was delivered to `user`."""
        folder = self.folder / "mail" / f"{user}@example.org" / "new"
        paths = sorted(folder.iterdir()) if folder.exists() else []
        return [message_from_bytes(path.read_bytes()) for path in paths]


@contextmanager
def starting() -> Iterator[Callable[[], Dovecot]]:
    """Yield a function that starts a Dovecot, which is stopped in the end."""
    with ExitStack() as stack:

        def start() -> Dovecot:
            folder = Path(tempfile.mkdtemp(prefix="postcommit-dovecot-"))
            stack.callback(shutil.rmtree, folder)
            folder.chmod(0o755)
            return stack.enter_context(Dovecot(folder))

        yield start
