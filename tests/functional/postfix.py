"""A real Postfix, with a configuration, a queue and mailboxes of its own."""
from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

from tests.functional.servers import Server
from tests.functional.servers import public_folder


PROGRAM = shutil.which("postfix", path="/usr/sbin:/usr/local/sbin")

_SETTINGS = {
    "compatibility_level": "3.6",
    "queue_directory": "{folder}/spool",
    "data_directory": "{folder}/data",
    "command_directory": "{commands}",
    "daemon_directory": "/usr/lib/postfix/sbin",
    "mail_owner": "postfix",
    "setgid_group": "postdrop",
    "maillog_file": "{folder}/log",
    "maillog_file_prefixes": "{folder}",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "myhostname": "relay.example.org",
    "mydestination": "",
    "alias_maps": "",
    "local_recipient_maps": "",
    "smtpd_peername_lookup": "no",
    "smtpd_relay_restrictions": "reject_unauth_destination",
    "smtpd_recipient_restrictions": "reject_unlisted_recipient, permit",
    "smtpd_error_sleep_time": "0",
    "virtual_mailbox_domains": "example.org, xn--bcher-kva.example",
    "virtual_mailbox_base": "{folder}/mail",
    "virtual_mailbox_maps": "texthash:{folder}/mailboxes",
    "virtual_uid_maps": "static:{uid}",
    "virtual_gid_maps": "static:{gid}",
}

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
virtual   unix  - n n - - virtual
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""


def why_not() -> str:
    """Return why Postfix cannot be started here; nothing if it can."""
    if PROGRAM is None:
        return "Debian's package postfix is not installed"
    return "" if os.geteuid() == 0 else "Postfix can only be started by root"


class Postfix(Server):
    """A context manager; `port` is where it listens on 127.0.0.1.

    `folder` must be one that every user may enter. `settings` are for its
    ``main.cf``, beyond those above; `users` are those of example.org. With
    `implicit_tls` it speaks TLS from the first byte.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        users: tuple[str, ...] = ("ann", "bob"),
        *,
        implicit_tls: bool = False,
    ) -> None:
        super().__init__(folder)
        self.users = users
        self._settings = dict(settings or {})
        self._implicit_tls = implicit_tls

    def start(self) -> None:
        """Configure and start it."""
        self._configure()
        self._run("start")

    def stop(self) -> None:
        """Stop it, if it runs, and wait until none of its processes is left."""
        if not self.processes():
            return
        # Postfix's own `stop` lets daemons finish what they do for a while.
        self._run("abort")
        # The daemons end when they see that their master is gone.
        self.wait_until(lambda: not self.processes(), "it does not stop")

    def reload(self) -> None:
        """Have it read its configuration again."""
        self._run("reload")

    def _configure(self) -> None:
        owner = pwd.getpwnam("postfix")
        for name in ("etc", "spool", "data", "mail"):
            (self.folder / name).mkdir()
        for name in ("data", "mail"):
            os.chown(self.folder / name, owner.pw_uid, owner.pw_gid)
        assert PROGRAM is not None
        own = {
            name: value.format(
                folder=self.folder,
                commands=os.path.dirname(PROGRAM),
                uid=owner.pw_uid,
                gid=owner.pw_gid,
            )
            for name, value in _SETTINGS.items()
        }
        # Each setting stands once. Otherwise each process warns of those that stand
        # twice when it starts, also the one that writes the log, which then waits for
        # itself for ever if ten lines wait for it already.
        main = "".join(
            f"{name} = {value}\n" for name, value in (own | self._settings).items()
        )
        master = _MASTER.format(port=self.port)
        if self._implicit_tls:
            wrapped = "smtpd -o smtpd_tls_wrappermode=yes\n"
            master = master.replace("smtpd\n", wrapped, 1)
        mailboxes = "".join(f"{u}@example.org {u}/\n" for u in self.users)
        self._write("etc/main.cf", main)
        self._write("etc/master.cf", master)
        self._write("mailboxes", mailboxes)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        # Whatever of it reads a file that has just changed waits for a second or
        # two, and reads it again.
        minute_ago = time.time() - 60
        os.utime(path, (minute_ago, minute_ago))

    def _run(self, command: str) -> None:
        assert PROGRAM is not None
        done = subprocess.run(
            [PROGRAM, "-c", str(self.folder / "etc"), command],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr + self.log

    def processes(self) -> list[int]:
        """Return the ids of its processes: their working folder is its queue."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                folder = (process / "cwd").readlink()
            except OSError:  # it has just ended
                continue
            if folder.is_relative_to(self.folder):
                found.append(int(process.name))
        return found

    @property
    def log(self) -> str:
        """What it has logged."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def mailbox(self, user: str) -> list[bytes]:
        """Return what was delivered to `user`."""
        folder = self.folder / "mail" / user / "new"
        if not folder.exists():
            return []
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    def wait_for(self, user: str, count: int) -> list[Message]:
        """Wait until `user` has so many messages, and return them."""
        self.wait_until(
            lambda: len(self.mailbox(user)) >= count, f"no {count} messages for {user}"
        )
        return [message_from_bytes(data) for data in self.mailbox(user)]

    def empty_mailboxes(self) -> None:
        """Forget what was delivered."""
        for user in self.users:
            shutil.rmtree(self.folder / "mail" / user, ignore_errors=True)


@contextmanager
def starting() -> Iterator[Callable[..., Postfix]]:
    """Yield a function that starts a Postfix, which is stopped in the end."""
    with ExitStack() as stack:

        def start(settings: dict[str, str] | None = None, **options: Any) -> Postfix:
            folder = stack.enter_context(public_folder("postfix"))
            return stack.enter_context(Postfix(folder, settings, **options))

        yield start
