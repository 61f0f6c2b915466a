"""A relay on a real socket that does as it is told, and remembers everything.

By default it is a decent relay::

    with ScriptedRelay() as relay:
        mailer = SMTPMailer("127.0.0.1", relay.port)
        mailer.send("a@example.org", "b@example.org", b"Subject: x\\r\\n\\r\\nx\\r\\n")
        [message] = relay.messages
        message.sender, message.recipients, message.data

It says something else where a rule has it, at a stage: CONNECT, EHLO, HELO,
STARTTLS, AUTH, MAIL, RCPT, DATA, END (the reply to the final dot), RSET, NOOP,
QUIT. ``address`` picks a recipient (or a sender at MAIL), ``times`` bounds
how often; rules that were added first win::

    relay.reply("RCPT", "450 4.2.0 Greylisted", address="b@example.org", times=1)
    relay.reply("MAIL", ["451-4.3.0 first line", "451 4.3.0 second line"])
    relay.reply("DATA", b"raw bytes, as they are")
    relay.drop("END")                    # close instead of replying
    relay.drop("QUIT", after="221 bye")  # say that, then close
    relay.cut(received=100)              # close when so many bytes have come in
    relay.cut(sent=30)                   # close when so many bytes have gone out
    hold = relay.hold("END")             # wait: hold.reached, hold.release()
    relay.trickle("EHLO", b"250 slow", every=0.01)  # a byte at a time

With a path as `host` it listens on a unix socket.

And `down` (or `refuse`) and `up` let the relay go away and come back on the
same port.

A message counts as taken, and is in `messages`, when the reply to its final
dot was 2xx, even if that reply got lost on its way; `completed` has those whose
final dot came in, whatever was said. `violations` has every breach of the
protocol; a test of a well-behaved client asserts that it is empty.
"""
from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from typing import Any

from tests.support.dialogue import Dialogue
from tests.support.dialogue import Received
from tests.support.script import Act
from tests.support.script import Hangup
from tests.support.script import Hold
from tests.support.script import Script
from tests.support.script import lines


EXTENSIONS = (
    "PIPELINING",
    "SIZE 10485760",
    "8BITMIME",
    "ENHANCEDSTATUSCODES",
    "SMTPUTF8",
)

# The one end of data there is (RFC 5321, 4.1.1.4), and what servers open to
# smuggling take for one as well.
STRICT_END = re.compile(rb"\r\n\.\r\n")
LENIENT_END = re.compile(rb"(?:\r\n|\r|\n)\.(?:\r\n|\r|\n)")


@dataclass
class Record:
    """What a relay remembers."""

    messages: list[Received] = field(default_factory=list)
    completed: list[Received] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    tls_errors: list[str] = field(default_factory=list)
    connections: int = 0
    most_open: int = 0


class ScriptedRelay(Record):
    """See the module.

    `extensions` are the lines of the reply to EHLO, less those named in
    `without`. `tls` is a server's context: STARTTLS is offered, or with
    `implicit_tls` TLS comes first. `users` maps names to passwords and
    `tokens` has the OAuth tokens that are good; with either, AUTH is offered
    with `mechanisms`. `end_of_data` is what ends a message.

    `groups` has the commands that came in between two waits, with "." for an
    end of data, `commands` has all of them.
    """

    def __init__(
        self,
        *,
        extensions: Iterable[str] = EXTENSIONS,
        without: Iterable[str] = (),
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        users: dict[str, str] | None = None,
        tokens: Iterable[str] = (),
        mechanisms: Iterable[str] = ("PLAIN", "LOGIN", "CRAM-MD5"),
        end_of_data: re.Pattern[bytes] = STRICT_END,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__()
        absent = set(without)
        self.extensions = [e for e in extensions if e.split()[0] not in absent]
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.users = dict(users or {})
        self.tokens = set(tokens)
        self.mechanisms = list(mechanisms)
        self.end_of_data = end_of_data
        self.host = host
        self.port = port
        self.script = Script()
        self.cuts: list[tuple[str, int]] = []
        self.stopping = threading.Event()
        self.changed = threading.Condition()
        self._holds: list[Hold] = []
        self._dialogues: set[Dialogue] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    # The script

    def reply(
        self,
        stage: str,
        reply: str | bytes | Iterable[str],
        *,
        address: str | None = None,
        times: int | None = None,
    ) -> None:
        """Say `reply` at `stage` instead of the usual."""
        said = lines(reply)

        def act(dialogue: Dialogue, usual: str) -> int:
            return dialogue.say(said)

        self.script.add(stage, act, address, times)

    def drop(
        self,
        stage: str,
        *,
        after: str | bytes | Iterable[str] | None = None,
        reset: bool = False,
        address: str | None = None,
        times: int | None = None,
    ) -> None:
        """Close the connection at `stage`, `after` a reply or instead of one.

        A 2xx to the final dot that is said `after` takes the message. With
        `reset` the connection is not closed in order.
        """
        said = b"" if after is None else lines(after)

        def act(dialogue: Dialogue, usual: str) -> int:
            code = dialogue.say(said)
            dialogue.closing = "reset" if reset else "close"
            return code

        self.script.add(stage, act, address, times)

    def hold(
        self,
        stage: str,
        *,
        address: str | None = None,
        times: int | None = 1,
        reply: str | bytes | Iterable[str] | None = None,
    ) -> Hold:
        """Wait at `stage` until the hold is released, then say the usual."""
        hold = Hold()
        self._holds.append(hold)

        def act(dialogue: Dialogue, usual: str) -> int:
            dialogue.flush()
            hold.wait()
            if self.stopping.is_set():
                raise Hangup
            return dialogue.say(lines(usual if reply is None else reply))

        self.script.add(stage, act, address, times)
        return hold

    def trickle(self, stage: str, reply: bytes, *, every: float = 0.01) -> None:
        """Say `reply` over and over, a byte at a time, `every` so many seconds."""

        def act(dialogue: Dialogue, usual: str) -> int:
            while True:
                for byte in reply:
                    dialogue.say(bytes([byte]))
                    dialogue.flush()
                    if self.stopping.wait(every):
                        raise Hangup

        self.script.add(stage, act, None, None)

    def on(self, stage: str, act: Act, *, times: int | None = None) -> None:
        """Call ``act(dialogue, usual)`` at `stage`; it returns the code it said."""
        self.script.add(stage, act, None, times)

    def cut(self, *, received: int | None = None, sent: int | None = None) -> None:
        """Close the next connection after so many bytes."""
        cut = ("received", received) if sent is None else ("sent", sent)
        self.cuts.append(cut)  # type: ignore[arg-type]

    # Waiting for what clients do

    def wait_until(self, condition: Callable[[], Any], timeout: float = 10.0) -> None:
        """Wait until `condition` holds; it is looked at whenever anything happens."""
        with self.changed:
            if not self.changed.wait_for(condition, timeout):
                raise AssertionError("the relay waited in vain")

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._dialogues)

    # Coming and going

    def __enter__(self) -> ScriptedRelay:
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        for hold in self._holds:
            hold.release()
        self.down()
        for thread in self._threads:
            thread.join(60)

    def up(self) -> None:
        """Listen, on the same port as before."""
        if self.host.startswith("/"):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(self.host)
            self.port = 25  # has no meaning
        else:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            self.port = listener.getsockname()[1]
        listener.listen(128)
        self._listener = listener
        self._spawn(self._accept, listener)

    def down(self) -> None:
        """Refuse connections, and hang up on those that are open."""
        self.refuse()
        self.hang_up()

    def refuse(self) -> None:
        """Refuse connections, but go on with those that are open."""
        if self._listener is not None:
            # A thread blocked in accept() is woken by shutdown, not by close.
            _shut(self._listener)
            self._listener = None

    def hang_up(self) -> None:
        """Close the connections that are open, and wait until they are."""
        for dialogue in list(self._dialogues):
            _shut(dialogue.socket)
        if threading.current_thread() not in self._threads:
            self.wait_until(lambda: not self._dialogues)

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.changed:
            self.connections += 1
            cut = self.cuts.pop(0) if self.cuts else None
            if cut is not None:
                # The system must not take all of a large message in our place.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            dialogue = Dialogue(self, connection, self.connections, cut)
            self._dialogues.add(dialogue)
            self.most_open = max(self.most_open, len(self._dialogues))
            self.changed.notify_all()
        self._spawn(self._serve, dialogue)

    def _serve(self, dialogue: Dialogue) -> None:
        try:
            dialogue.run()
        finally:
            with self.changed:
                self._dialogues.discard(dialogue)
                self.changed.notify_all()

    def _spawn(self, target: Callable[[Any], None], argument: object) -> None:
        thread = threading.Thread(target=target, args=(argument,), daemon=True)
        self._threads.append(thread)
        thread.start()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed already


@contextmanager
def well_treated() -> Iterator[Callable[..., ScriptedRelay]]:
    """Start relays; in the end they must not have seen a breach of the protocol.

    But those with ``provoked=True``, whose own script has led to one.
    """
    relays: list[ScriptedRelay] = []
    with ExitStack() as stack:

        def start(*, provoked: bool = False, **options: Any) -> ScriptedRelay:
            relay = stack.enter_context(ScriptedRelay(**options))
            if not provoked:
                relays.append(relay)
            return relay

        yield start
    assert [relay.violations for relay in relays] == [[] for _ in relays]
