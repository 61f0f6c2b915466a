"""A relay on a real socket that misbehaves by a plan, and records what it took.

It serves one connection after the other, and answers a group of commands in one write
(RFC 2920). Whatever it says instead of the usual, its record has what it means: a
recipient is accepted, and a message is taken, if the relay's own reply to that command
has a code of 2xx. If its reply has no code at all, chance decides.
"""
from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field

from tests.fuzzer.plan import CODES
from tests.fuzzer.plan import DRESSES
from tests.fuzzer.plan import STEPS
from tests.fuzzer.plan import Plan


_PATH = re.compile(rb"(?:FROM|TO):<([^>]*)>")


class Over(Exception):
    """This connection is over."""


@dataclass
class Record:
    """What the relay took, and refused for ever, by message and recipient.

    A message is known by its sender. `contents` has each content that was taken.
    """

    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: set[tuple[str, str]] = field(default_factory=set)
    contents: dict[str, list[bytes]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    transcript: list[str] = field(default_factory=list)


class Relay:
    """Serves the connections of one dialogue after another; `begin` sets the plan."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._own = ("", 0)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()

    def begin(self, plan: Plan) -> Record:
        """Follow `plan` from now on; return its record."""
        self._plan = plan
        self._record = Record()
        self._replies = 0
        self._connections = 0
        return self._record

    def wait(self) -> None:
        """Wait until all connections have been served that were made so far.

        A client that has given up does not wait for what is in the relay's buffers. The
        listener is a queue, so we make a connection of our own and wait for its turn.
        """
        with socket.socket() as ours:
            ours.bind(("127.0.0.1", 0))
            self._own = ours.getsockname()
            ours.settimeout(60)
            ours.connect(("127.0.0.1", self.port))
            ours.recv(1)

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            if peer == self._own:
                connection.close()
                continue
            connection.settimeout(20)
            self._connections += 1
            _Connection(self, connection).run()

    def next_trick(self) -> str:
        """Count a reply, and return how it is to be given."""
        self._replies += 1
        return self._plan.tricks.get(self._replies - 1, "")


class _Connection:
    def __init__(self, relay: Relay, connection: socket.socket) -> None:
        self._relay = relay
        self._plan = relay._plan
        self._chance = relay._plan.random
        self._record = relay._record
        self._context = relay._tls
        self._socket = connection
        self._cut = relay._plan.cuts.get(relay._connections, ("", 0))
        self._total = {"received": 0, "sent": 0}
        self._received = b""
        self._replies: list[bytes] = []
        self._is_encrypted = False
        self._resets = False
        self._reset()

    def _reset(self) -> None:
        self._sender: str | None = None
        self._recipients: list[str] = []

    # Bytes

    def run(self) -> None:
        try:
            if self._plan.tls == "implicit":
                self._start_tls()
            self._answer("CONNECT", 220)
            while True:
                self._command(self._read_until(b"\r\n"))
        except (Over, OSError):
            pass
        except Exception as error:
            self._record.faults.append(f"the relay failed: {error!r}")
        finally:
            if self._resets:
                linger = struct.pack("ii", 1, 0)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._socket.close()

    def _start_tls(self) -> None:
        self._socket = self._context.wrap_socket(self._socket, server_side=True)
        self._is_encrypted = True
        self._received = b""

    def _read_until(self, end: bytes) -> bytes:
        while end not in self._received:
            self._flush()
            self._fill()
        line, self._received = self._received.split(end, 1)
        return line

    def _fill(self) -> None:
        way, limit = self._cut
        size = 1 << 16
        if way == "received":
            size = min(size, limit - self._total["received"])
        if size <= 0:
            raise Over
        data = self._socket.recv(size)
        if not data:
            raise Over
        self._total["received"] += len(data)
        self._received += data

    def _flush(self) -> None:
        data, self._replies = b"".join(self._replies), []
        self._send(data)

    def _send(self, data: bytes) -> None:
        way, limit = self._cut
        if way == "sent" and self._total["sent"] + len(data) >= limit:
            data = data[: limit - self._total["sent"]]
            self._socket.sendall(data)
            self._note(b"< ", data + b" (cut)")
            raise Over
        self._total["sent"] += len(data)
        if data:
            self._note(b"< ", data)
            self._socket.sendall(data)

    def _note(self, way: bytes, data: bytes) -> None:
        self._record.transcript.append(repr(way + data[:300]))

    # Commands

    def _command(self, line: bytes) -> None:
        self._note(b"> ", line)
        verb = line[:4].decode("ascii", "replace").upper()
        answer: Callable[[bytes], None] | None = getattr(self, f"_do_{verb}", None)
        if answer is None:
            self._record.faults.append(f"unknown command {line[:60]!r}")
            raise Over
        answer(line)

    def _do_EHLO(self, line: bytes) -> None:
        offers = [b"relay.example", b"8BITMIME", b"SIZE 100000000"]
        if self._plan.pipelining:
            offers.append(b"PIPELINING")
        if self._plan.tls == "starttls" and not self._is_encrypted:
            offers.append(b"STARTTLS")
        lines = [b"250-%s\r\n" % offer for offer in offers[:-1]]
        self._answer("EHLO", 250, b"".join(lines) + b"250 %s\r\n" % offers[-1])
        self._reset()

    _do_LHLO = _do_EHLO

    def _do_STAR(self, line: bytes) -> None:
        if self._answer("STARTTLS", 220) == 220:
            self._flush()
            self._start_tls()

    def _do_MAIL(self, line: bytes) -> None:
        if self._sender is not None:
            self._record.faults.append("MAIL inside of a transaction")
        sender = self._path(line)
        [everybody] = [m.recipients for m in self._plan.mails if m.sender == sender]
        if 200 <= self._answer("MAIL", 250, about=(sender, everybody)) <= 299:
            self._sender = sender

    def _do_RCPT(self, line: bytes) -> None:
        recipient = self._path(line)
        usual = {"ok": 250, "la": 450, "ne": 550}[recipient[:2]]
        if self._sender is None:
            self._answer("RCPT", 503)
            return
        about = (self._sender, [recipient])
        if 200 <= self._answer("RCPT", usual, about=about) <= 299:
            self._recipients.append(recipient)

    def _do_DATA(self, line: bytes) -> None:
        usual = 354
        if self._sender is None or not (self._recipients or self._plan.welcomes_nobody):
            usual = 554
        about = (self._sender or "", self._recipients)
        if self._answer("DATA", usual, about=about) == 354:
            self._received = b"\r\n" + self._received
            self._end(self._read_until(b"\r\n.\r\n")[2:])

    def _end(self, stuffed: bytes) -> None:
        sender, recipients = self._sender or "", self._recipients
        content = re.sub(rb"(?m)(\A|(?<=\r\n))\.", b"", stuffed)
        if stuffed:
            content += b"\r\n"
        self._note(b"> ", b"(%d bytes)" % len(content))
        self._reset()
        if self._plan.protocol == "smtp":
            self._final(sender, recipients, content)
        for recipient in recipients if self._plan.protocol == "lmtp" else ():
            self._final(sender, [recipient], content)

    def _final(self, sender: str, recipients: list[str], content: bytes) -> None:
        """Reply to the final dot about `recipients`."""
        trick = self._relay.next_trick()
        if self._plan.protocol == "lmtp" and trick in STEPS:
            trick = ""  # nobody can tell which of two replies is about which recipient
        code = self._code(250 if recipients else 554, trick)
        # Decided before it is said: the reply may get lost, or have no code.
        told = 200 <= code <= 599 and code // 100 != 3
        is_taken = code // 100 == 2 if told else self._chance.random() < 0.5
        if is_taken and recipients:
            self._record.contents.setdefault(sender, []).append(content)
            self._record.taken.update((sender, recipient) for recipient in recipients)
        self._refuse(code, sender, recipients)
        self._say("END", code, trick)

    def _do_RSET(self, line: bytes) -> None:
        self._answer("RSET", 250)
        self._reset()

    def _do_QUIT(self, line: bytes) -> None:
        self._answer("QUIT", 221)
        self._flush()
        raise Over

    def _path(self, line: bytes) -> str:
        found = _PATH.search(line)
        if found is None:
            self._record.faults.append(f"no path: {line[:60]!r}")
            raise Over
        return found[1].decode()

    def _refuse(self, code: int, sender: str, recipients: Iterable[str]) -> None:
        if 500 <= code <= 599:
            self._record.refused.update((sender, each) for each in recipients)

    # Replies

    def _answer(
        self,
        stage: str,
        usual: int,
        whole: bytes = b"",
        about: tuple[str, Iterable[str]] = ("", ()),
    ) -> int:
        """Reply about a sender and recipients; return the code that is meant."""
        trick = self._relay.next_trick()
        code = self._code(usual, trick)
        self._refuse(code, *about)
        self._say(stage, code, trick, whole if code == usual else b"")
        return code

    def _code(self, usual: int, trick: str) -> int:
        if trick == "4xx":
            return 450
        if trick == "5xx":
            return 554
        if trick == "421":
            return 421
        if trick == "odd":
            return self._chance.choice(CODES)
        if trick == "what":
            return 0
        return usual

    def _say(self, stage: str, code: int, trick: str, whole: bytes = b"") -> None:
        line = whole or b"%d Said to %s\r\n" % (code, stage.encode())
        stray = b"%d Stray\r\n" % self._chance.choice([250, 354, 450, 550])
        if trick == "what":
            line = self._chance.choice([b"what?\r\n", b"\r\n", b"25\r\n", b"\0\xff\n"])
        elif trick == "dressed" and not whole:
            dress = self._chance.choice(DRESSES)
            words = (b"%d" % code, b"text", b"%d" % code)
            line = dress % words[: dress.count(b"%s")]
        elif trick == "several" and not whole:
            line = b"%d-Several\r\n%s" % (self._chance.choice(CODES), line)
        elif trick == "stray after":
            line += stray
        elif trick == "stray before":
            # Without pipelining, nobody can tell which of the two is the answer.
            first = self._plan.pipelining and stage != "END"
            line = stray + line if first else line + stray
        elif trick == "endless":
            line = b"%d-Endless\r\n" % code
        elif trick == "flood":
            line = b"%d-%s" % (code, b"x" * 70_000)
        elif trick.startswith("part"):
            line = line[: self._chance.randrange(1, len(line))]
        self._replies.append(line)
        if trick == "swap" and code == 354 and len(self._replies) > 1:
            self._replies[-2:] = reversed(self._replies[-2:])
        self._afterwards(trick)

    def _afterwards(self, trick: str) -> None:
        if trick in ("close", "reset", "silent"):
            self._replies.pop()
        if trick in ("split", "dribble"):
            data, self._replies = b"".join(self._replies), []
            step = 1 if trick == "dribble" else self._chance.randint(1, len(data))
            data, rest = data[:100], data[100:]
            for start in range(0, len(data), step):
                self._send(data[start : start + step])
                time.sleep(0)
            self._send(rest)
        if trick in ("silent", "part silent", "endless", "flood"):
            self._flush()
            while True:  # until the client gives up
                self._received = b""
                self._fill()
        if trick in ("close", "reset", "421", "part", "leave"):
            if trick != "reset" or self._chance.random() < 0.5:
                self._flush()
            if self._is_encrypted and self._chance.random() < 0.3:
                self._tear()
            self._resets = trick == "reset"
            raise Over

    def _tear(self) -> None:
        """Send something that is not a TLS record."""
        garbage = self._chance.randbytes(20)
        plain = socket.socket(fileno=self._socket.detach())
        try:
            plain.sendall(garbage)
        finally:
            self._socket = plain
