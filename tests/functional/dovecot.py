"""A real Dovecot as a mail store that speaks LMTP."""
from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

from tests.functional.servers import Program
from tests.functional.servers import public_folder


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


def configured(text: str) -> str:
    """Return a configuration of Dovecot 2.3 as the installed version has it."""
    command = [str(PROGRAM), "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True)
    if version.stdout.startswith("2.3."):
        return text
    passwords = " {\n  driver = passwd-file\n  args ="
    for before, now in [
        (passwords, " passwd-file {\n  passwd_file_path ="),
        ("mail_location = maildir:", "mail_driver = maildir\nmail_path = "),
        ("    address =", "    listen ="),
        ("%u", "%{user}"),
    ]:
        text = text.replace(before, now)
    return f"dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n{text}"


def why_not() -> str:
    """Return why Dovecot cannot be started here; empty if it can."""
    if PROGRAM is None or not _LMTP.exists():
        return "Debian's packages dovecot-core and dovecot-lmtpd are not installed"
    return "" if os.geteuid() == 0 else "Dovecot can only be started by root"


class Dovecot(Program):
    """A context manager.

    It listens with LMTP on 127.0.0.1 at `port`, and at the unix socket `path`. Its
    users are ann, bob and eve at example.org. The mailbox of eve cannot be written to.
    """

    @property
    def path(self) -> str:
        """The unix socket."""
        return str(self.folder / "lmtp")

    def command(self) -> list[Any]:
        """Configure it, and return the command that starts it in the foreground."""
        owner = pwd.getpwnam("nobody")
        (self.folder / "mail" / "eve@example.org").mkdir(0o700, parents=True)
        os.chown(self.folder / "mail", owner.pw_uid, owner.pw_gid)
        configuration = self.folder / "dovecot.conf"
        text = _CONFIGURATION.format(folder=self.folder, port=self.port)
        configuration.write_text(configured(text))
        rest = f"{owner.pw_uid}:{owner.pw_gid}::{self.folder}/mail::\n"
        users = "".join(f"{u}@example.org::{rest}" for u in ("ann", "bob", "eve"))
        (self.folder / "users").write_text(users)
        return [PROGRAM, "-F", "-c", configuration]

    def listens(self) -> bool:
        """Return whether it takes connections, in both ways."""
        return super().listens() and Path(self.path).exists()

    def mailbox(self, user: str) -> list[Message]:
        """Return what was delivered to `user`."""
        folder = self.folder / "mail" / f"{user}@example.org"
        paths = sorted([*folder.glob("new/*"), *folder.glob("cur/*")])
        return [message_from_bytes(path.read_bytes()) for path in paths]


@contextmanager
def starting() -> Iterator[Callable[[], Dovecot]]:
    """Yield a function that starts a Dovecot, which is stopped in the end."""
    with ExitStack() as stack:

        def start() -> Dovecot:
            folder = stack.enter_context(public_folder("dovecot"))
            return stack.enter_context(Dovecot(folder))

        yield start
