"""A real Exim, with a configuration, a spool and a log of its own."""
from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.functional.servers import Program
from tests.functional.servers import public_folder


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
acl_smtp_rcpt = ${{if match{{$local_part}}{{^nobody}}{{deny}}{{accept}}}}
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


class Exim(Program):
    """A context manager; `port` is where it listens on 127.0.0.1.

    It accepts all recipients but ``nobody...``, and keeps the messages in its queue.
    `settings` go into the main part of its configuration.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        super().__init__(folder)
        self._settings = "".join(f"{name} = {settings[name]}\n" for name in settings)

    def command(self) -> list[Any]:
        """Configure it, and return the command that starts it in the foreground."""
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
        return [PROGRAM, "-C", configuration, "-bdf"]

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
            folder = stack.enter_context(public_folder("exim"))
            return stack.enter_context(Exim(folder, settings))

        yield start
