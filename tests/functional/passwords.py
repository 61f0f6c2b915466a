"""Who checks passwords for a real Postfix, in place of Dovecot.

Postfix checks none itself: it asks Cyrus SASL or Dovecot. The latter's protocol
(dovecot.org, "Authentication Protocol v1.2") is a few lines of text, so nothing
has to be installed: Postfix offers AUTH, and its own replies are what we see.
"""
from __future__ import annotations

import base64
import os
import socketserver
import threading


_HELLO = (
    "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\n"
    "SPID\t{pid}\nCUID\t1\nCOOKIE\t{cookie}\nDONE\n"
)


class Passwords:
    """A context manager; `users` maps names to passwords."""

    def __init__(self, users: dict[str, str]) -> None:
        self.users = users
        passwords = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                hello = _HELLO.format(pid=os.getpid(), cookie="0" * 32)
                self.wfile.write(hello.encode())
                for line in self.rfile:
                    command, *arguments = line.decode().rstrip("\n").split("\t")
                    if command == "AUTH":
                        self.wfile.write(passwords.answer(arguments).encode())

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def settings(self) -> dict[str, str]:
        """For the ``main.cf`` of a Postfix that offers AUTH."""
        host, port = self._server.server_address
        return {
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_type": "dovecot",
            "smtpd_sasl_path": f"inet:{host!s}:{port}",
        }

    def __enter__(self) -> Passwords:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, arguments: list[str]) -> str:
        """Return the answer to a request: its number, mechanism and parameters."""
        number, mechanism, *parameters = arguments
        assert mechanism == "PLAIN"
        [response] = [p[5:] for p in parameters if p.startswith("resp=")]
        _, user, password = base64.b64decode(response).decode().split("\0")
        if self.users.get(user) == password:
            return f"OK\t{number}\tuser={user}\n"
        return f"FAIL\t{number}\tuser={user}\n"
