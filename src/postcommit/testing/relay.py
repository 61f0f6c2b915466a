"""A small relay on a loopback port, for tests and for trying things out."""
from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from dataclasses import field
from email import message_from_bytes
from email import policy
from email.message import EmailMessage
from typing import Any

from postcommit.errors import MissingExtraError
from postcommit.interfaces import Mailer


try:
    from aiosmtpd.smtp import SMTP
    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session
except ModuleNotFoundError as _missing:
    raise MissingExtraError("demo", "aiosmtpd") from _missing


# Maximum number of seconds that the thread of the relay takes for a call.
_SECONDS = 5.0


@dataclass(frozen=True)
class Letter:
    """A message that the relay has accepted.

    `subject` is decoded, `recipients` are those of the envelope, and `message` is an
    `email.message.EmailMessage`.
    """

    subject: str
    recipients: tuple[str, ...]
    message: EmailMessage = field(
        default_factory=EmailMessage, repr=False, compare=False
    )

    def __str__(self) -> str:
        return f"{self.subject!r} for {', '.join(self.recipients)}"


class EmbeddedRelay:
    """A relay on 127.0.0.1 that accepts each recipient, unless `refuse` names it.

    It listens inside a ``with`` block, where it can go `down`, and `up` again. `port`
    is a free port, and `mailbox` has a `Letter` for each message that was accepted.
    `log` is called with a line about each event. Each message is also sent through the
    mailer `archive`, if it is set. It needs aiosmtpd, which the extra ``demo``
    installs. Raises `MissingExtraError` without it::

        with EmbeddedRelay() as relay:
            mailer = SMTPMailer("127.0.0.1", relay.port)
    """

    host = "127.0.0.1"

    def __init__(self, log: Callable[[str], object] = lambda line: None) -> None:
        self.port: int = 0
        self.mailbox: list[Letter] = []
        self.archive: Mailer | None = None
        self._log = log
        self._refusals: dict[str, list[str]] = {}
        self._connections: list[SMTP] = []
        self._server: asyncio.Server | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="demo-relay", daemon=True
        )

    def refuse(self, recipient: str, reply: str, *, times: int) -> None:
        """Answer with `reply` to RCPT for `recipient`, this number of times.

        For example, ``refuse("bob@example.org", "450 4.2.0 Greylisted", times=1)``.
        """
        self._refusals[recipient] = [reply] * times

    # Coming and going

    def __enter__(self) -> EmbeddedRelay:
        self._thread.start()
        self._started.wait()
        try:
            self.up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def up(self) -> None:
        """Listen, after `down` on the same port as before."""
        self._call(self._listen)
        self._log(f"listens on {self.host}:{self.port}")

    def down(self) -> None:
        """Refuse connections, and drop all open connections."""
        self._call(self._close)
        self._log("goes away")

    def _call(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` in the thread of the loop, and wait for it.

        The coroutine is made in that thread. If it were made here, Ctrl-C could leave
        it unawaited.
        """
        done: Future[asyncio.Future[None]] = Future()

        def begin() -> None:
            asyncio.ensure_future(work()).add_done_callback(done.set_result)

        self._loop.call_soon_threadsafe(begin)
        done.result(_SECONDS).result()

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._started.set()
        await self._ended.wait()

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            self._connection, self.host, self.port
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            if connection.transport is not None:
                connection.transport.close()
        self._connections.clear()

    def _connection(self) -> SMTP:
        # Without a host name, aiosmtpd would look it up in the DNS.
        made = SMTP(self, hostname="relay.example.org", loop=self._loop)
        self._connections.append(made)
        return made

    # Hooks of aiosmtpd

    async def handle_RCPT(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        refusals = self._refusals.get(address)
        if refusals:
            reply = refusals.pop(0)
            self._log(f"refuses {address}: {reply}")
            return reply
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        content = envelope.original_content or b""
        message = message_from_bytes(content, policy=policy.default)
        letter = Letter(str(message["Subject"]), tuple(envelope.rcpt_tos), message)
        self.mailbox.append(letter)
        if self.archive is not None:
            self.archive.send(envelope.mail_from, envelope.rcpt_tos, content)
        self._log(f"takes {letter}")
        return "250 2.0.0 Taken"
