"""``postcommit web``: serves a page for queues and mailboxes on this machine."""
from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import pwd
import socket
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from postcommit._cli import logs
from postcommit._cli.owner import act_as_owner
from postcommit._kinds.operators import open_operators
from postcommit.errors import MISSING
from postcommit.errors import MissingExtraError
from postcommit.errors import OptionError
from postcommit.interfaces import is_database_url
from postcommit.interfaces import is_url_host


# Where the page is, unless told otherwise.
DEFAULT = "127.0.0.1:8025"

_THREADS = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "folder or URL of a queue; any number of them"
    parser.add_argument("queues", metavar="QUEUE", nargs="*", help=text)
    text = "folder of the messages that mailer 'file' has written; may be repeated"
    parser.add_argument(
        "--mailbox", metavar="FOLDER", action="append", default=[], help=text
    )
    text = f"address and port to listen at (default: {DEFAULT})"
    parser.add_argument("--listen", metavar="ADDRESS:PORT", default=DEFAULT, help=text)
    text = "file with a line NAME:PASSWORD for each user, needed to listen at an"
    text += " address that other machines can reach"
    parser.add_argument("--password-file", metavar="FILE", help=text)
    text = "a name by which browsers reach the page, if it is not the address; may be"
    text += " repeated"
    parser.add_argument(
        "--host", metavar="NAME", action="append", default=[], help=text
    )


def run(options: argparse.Namespace) -> int:
    """Serve the page until a signal arrives."""
    if not options.queues and not options.mailbox:
        raise OptionError("QUEUE", MISSING, "name a queue, or a --mailbox")
    address, port = _place(options.listen)
    if not _is_loopback(address) and options.password_file is None:
        reason = "can be reached by other machines, so it needs --password-file"
        raise OptionError("--listen", options.listen, reason)
    for host in options.host:
        if not is_url_host(host):
            reason = "must be a name or an address, without a port"
            raise OptionError("--host", host, reason)
    logs.set_up("info", "text")
    # A browser asks for several pages at once. That they wait is nothing to warn of.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    with Page(address, port, options.password_file, options.host) as page:
        for queue in options.queues:
            if not is_database_url(queue):
                act_as_owner(queue)
            open_operators(queue)  # raises if it is missing
        page.serve(options.queues, options.mailbox)
    return 0


def _place(listen: str) -> tuple[str, int]:
    """Return the address and the port of ``ADDRESS:PORT``."""
    reason = "must be ADDRESS:PORT, such as 127.0.0.1:8025 or [::1]:8025"
    try:
        parts = urlsplit(f"//{listen}")
        address, port = parts.hostname, parts.port
    except ValueError:
        address = port = None
    if not address or port is None or parts.netloc != listen:
        raise OptionError("--listen", listen, reason)
    return address, port


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class Page:
    """A page at an address, with the login for it. It listens from the beginning.

    A port below 1024 needs root, and so may the `password_file`. Both are opened
    before the process acts as the owner of the queue. `names` are further hosts.
    """

    def __init__(
        self,
        address: str,
        port: int,
        password_file: str | None = None,
        names: Sequence[str] = (),
    ) -> None:
        try:
            import waitress  # type: ignore[import-untyped]

            from postcommit.web import _guard
            from postcommit.web import _login
            from postcommit.web import make_app
        except ModuleNotFoundError as error:
            raise MissingExtraError("web", str(error.name)) from error
        self._make = make_app
        self._serve = waitress.serve
        self._hosts = (*_guard.LOOPBACK, address, *names)
        self._login: Callable[[Any], str]
        query = ""
        if password_file is None:
            login = _login.TokenLogin(_user())
            self._login, query = login, f"?token={login.token}"
        else:
            self._login = _login.PasswordLogin(_login.passwords_of(password_file))
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, port), family=family)
        port = self._socket.getsockname()[1]
        shown = f"[{address}]" if ":" in address else address
        self.url: str = f"http://{shown}:{port}/{query}"

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def serve(self, queues: Sequence[str], mailboxes: Sequence[str]) -> None:
        """Serve a page for these until Ctrl-C."""
        app = self._make(
            queues, authorize=self._login, mailboxes=mailboxes, hosts=self._hosts
        )
        print(f"The page is at {self.url}", flush=True)
        print("Ctrl-C ends it", flush=True)
        self._serve(
            app, sockets=[self._socket], threads=_THREADS, ident="", _quiet=True
        )


def _user() -> str:
    """Return the name of the user of this process, for the log."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"
