"""The server's side of one SMTP connection, for `tests.support.smtpd`."""
from __future__ import annotations

import re
import socket
import ssl
import struct
from dataclasses import dataclass
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support import logins
from tests.support.script import Hangup
from tests.support.script import lines


if TYPE_CHECKING:
    from tests.support.smtpd import ScriptedRelay


_PATH = re.compile(r"(FROM|TO):<([^<>\r\n]*)>((?: [^ ]+)*)\Z", re.IGNORECASE)

# RFC 2920, 3.1: these end a group of commands.
_LAST = frozenset({"EHLO", "HELO", "LHLO", "DATA", "NOOP", "QUIT", "STARTTLS", "AUTH"})


@dataclass(frozen=True)
class Received:
    """A message whose final dot came in.

    `data` is without stuffed dots and final dot, `raw` is as on the wire with
    both. `parameters` are those of MAIL, `connection` counts from 1, `user` is
    who logged in.
    """

    sender: str
    recipients: tuple[str, ...]
    data: bytes
    raw: bytes
    parameters: dict[str, str]
    connection: int
    tls: bool = False
    user: str | None = None


class Dialogue:
    """One connection."""

    def __init__(
        self,
        relay: ScriptedRelay,
        connection: socket.socket,
        number: int,
        cut: tuple[str, int] | None,
    ) -> None:
        self.relay = relay
        self.socket = connection
        self.number = number
        self.cut = dict([cut] if cut else [])
        self.received = bytearray()
        self.pending = bytearray()
        self.total = {"received": 0, "sent": 0}
        self.group: list[str] | None = None
        self.closing = ""
        self.user: str | None = None
        self.tls = False
        self.is_lmtp = False
        self.reset()

    def reset(self) -> None:
        self.sender: str | None = None
        self.parameters: dict[str, str] = {}
        self.recipients: list[str] = []

    # Bytes

    def say(self, data: bytes) -> int:
        """Put `data` into the next write; return its code, 0 for none."""
        self.pending += data
        return int(data[:3]) if data[:3].isdigit() else 0

    def flush(self) -> None:
        data = bytes(self.pending)
        self.pending.clear()
        limit = self.cut.get("sent")
        if limit is not None and self.total["sent"] + len(data) >= limit:
            self.socket.sendall(data[: limit - self.total["sent"]])
            raise Hangup
        self.total["sent"] += len(data)
        if data:
            self.socket.sendall(data)

    def fill(self) -> None:
        """Send what is pending, and wait for more to come in."""
        self.flush()
        self.group = None
        size = 1 << 18
        limit = self.cut.get("received")
        if limit is not None:
            size = min(size, limit - self.total["received"])
            if not size:
                raise Hangup
        data = self.socket.recv(size)
        if not data:
            raise Hangup
        self.total["received"] += len(data)
        self.received += data

    def read_line(self, limit: int = 512) -> str:
        while b"\n" not in self.received:
            self.fill()
        line, _, rest = bytes(self.received).partition(b"\n")
        self.received[:] = rest
        if not line.endswith(b"\r"):
            self.breach(f"command with a bare LF: {line!r}")
        line = line.removesuffix(b"\r")
        if b"\r" in line:
            self.breach(f"command with a bare CR: {line!r}")
        if len(line) + 2 > limit:
            self.breach(f"command of {len(line)} bytes: {line[:40]!r}")
        return line.decode("utf-8", "surrogateescape")

    def read_data(self) -> bytes:
        """Return what came up to the end of data, with it."""
        # The CRLF that ended the line of DATA belongs to the sequence.
        self.received[:0] = b"\r\n"
        start = 0
        while True:
            found = self.relay.end_of_data.search(self.received, start)
            if found:
                break
            start = max(0, len(self.received) - 5)
            self.fill()
        raw = bytes(self.received[2 : found.end()])
        del self.received[: found.end()]
        return raw

    def breach(self, what: str) -> None:
        self.relay.violations.append(what)

    def note(self, command: str) -> None:
        """Remember `command` with the others that came in at the same time."""
        if self.group is None:
            self.group = []
            self.relay.groups.append(self.group)
        self.group.append(command)

    # The dialogue

    def run(self) -> None:
        try:
            if self.relay.implicit_tls:
                self.start_tls()
            code = self.answer("CONNECT", "220 relay.example ESMTP")
            while True:
                self.command(self.read_line(), greeted=code == 220)
        except (Hangup, OSError):
            pass
        finally:
            if self.closing == "reset":
                linger = struct.pack("ii", 1, 0)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.socket.close()

    def answer(
        self, stage: str, usual: str | list[str], address: str | None = None
    ) -> int:
        """Say what the script has, or the usual; return the code."""
        act = self.relay.script.take(stage, address)
        if act is None:
            return self.say(lines(usual))
        code = act(self, usual)  # type: ignore[arg-type]
        if self.closing and stage != "END":
            self.hang_up()
        return code

    def hang_up(self) -> None:
        self.flush()
        raise Hangup

    def command(self, line: str, greeted: bool) -> None:
        self.relay.commands.append(line)
        self.note(line)
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if self.received and (verb in _LAST or not self.offers("PIPELINING")):
            self.breach(f"more came along with {line!r}: {bytes(self.received[:40])!r}")
        if not greeted and verb != "QUIT":
            self.breach(f"{line!r} after a refusal to serve")
        handler = getattr(self, f"do_{verb}", None)
        if handler is None:
            self.breach(f"unknown command {line!r}")
            self.say(b"500 5.5.1 What?\r\n")
        else:
            handler(argument)
        with self.relay.changed:
            self.relay.changed.notify_all()

    def offers(self, extension: str) -> bool:
        return any(e.split()[0] == extension for e in self.relay.extensions)

    def do_EHLO(self, name: str) -> None:
        offered = list(self.relay.extensions)
        if self.relay.tls is not None and not self.tls:
            offered.append("STARTTLS")
        if self.relay.users or self.relay.tokens:
            offered.append(" ".join(["AUTH", *self.relay.mechanisms]))
        if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*|\[[^\]]+\]", name):
            self.breach(f"EHLO {name!r}")
        texts = ["relay.example", *offered]
        self.answer("EHLO", [f"250-{t}" for t in texts[:-1]] + [f"250 {texts[-1]}"])
        self.reset()

    def do_LHLO(self, name: str) -> None:
        """Speak LMTP (RFC 2033)."""
        self.is_lmtp = True
        self.do_EHLO(name)

    def do_HELO(self, name: str) -> None:
        self.answer("HELO", "250 relay.example")
        self.reset()

    def do_STARTTLS(self, argument: str) -> None:
        if self.answer("STARTTLS", "220 2.0.0 Go on") == 220:
            self.flush()
            self.received.clear()
            self.start_tls()

    def start_tls(self) -> None:
        assert self.relay.tls is not None
        try:
            self.socket = self.relay.tls.wrap_socket(self.socket, server_side=True)
        except (ssl.SSLError, OSError) as error:
            self.relay.tls_errors.append(str(error))
            raise
        self.tls = True
        self.reset()

    def do_AUTH(self, argument: str) -> None:
        user = logins.log_in(self, argument)
        good = "235 2.7.0 Welcome"
        bad = "535 5.7.8 Wrong credentials"
        if self.answer("AUTH", bad if user is None else good) == 235:
            self.user = user

    def do_MAIL(self, argument: str) -> None:
        found = _PATH.match(argument)
        if not found or found[1].upper() != "FROM":
            self.breach(f"MAIL {argument!r}")
            self.say(b"501 5.5.4 Syntax\r\n")
            return
        if self.sender is not None:
            self.breach("MAIL inside of a mail transaction")
            self.say(b"503 5.5.1 Nested MAIL\r\n")
            return
        pairs = (word.partition("=")[::2] for word in found[3].split())
        parameters = {name.upper(): value for name, value in pairs}
        self._check_parameters(parameters, found[2])
        if self.answer("MAIL", "250 2.1.0 Sender ok", found[2]) // 100 == 2:
            self.sender, self.parameters = found[2], parameters

    def _check_parameters(self, parameters: dict[str, str], sender: str) -> None:
        needs = {"SIZE": "SIZE", "BODY": "8BITMIME", "SMTPUTF8": "SMTPUTF8"}
        needs |= {"RET": "DSN", "ENVID": "DSN"}
        for name in parameters:
            if not self.offers(needs.get(name, "")):
                self.breach(f"parameter {name} was not offered")
        if not sender.isascii() and "SMTPUTF8" not in parameters:
            self.breach(f"sender {sender!r} without SMTPUTF8")

    def do_RCPT(self, argument: str) -> None:
        found = _PATH.match(argument)
        if not found or found[1].upper() != "TO":
            self.breach(f"RCPT {argument!r}")
            self.say(b"501 5.5.4 Syntax\r\n")
            return
        international = not found[2].isascii() and self.sender is not None
        if international and "SMTPUTF8" not in self.parameters:
            self.breach(f"recipient {found[2]!r} without SMTPUTF8")
        usual = "250 2.1.5 Recipient ok"
        if self.sender is None:
            usual = "503 5.5.1 MAIL first"
        if self.answer("RCPT", usual, found[2]) // 100 == 2 and self.sender is not None:
            self.recipients.append(found[2])

    def do_DATA(self, argument: str) -> None:
        usual = "354 Go on" if self.recipients else "554 5.5.1 No valid recipients"
        if self.is_lmtp and not self.recipients:
            usual = "503 5.5.1 No valid recipients"  # RFC 2033, 4.2
        if self.answer("DATA", usual) == 354:
            self.end(self.read_data())

    def end(self, raw: bytes) -> None:
        self.note(".")
        stuffed = re.sub(rb"\.(\r\n|\r|\n)\Z", b"", raw)
        data = re.sub(rb"(\A|\r\n)\.", rb"\1", stuffed)
        if re.search(rb"\r(?!\n)|(?<!\r)\n", raw):
            self.breach("bare CR or LF in data")
        if not raw.isascii() and self.parameters.get("BODY") != "8BITMIME":
            self.breach("8-bit data without BODY=8BITMIME")
        message = Received(
            self.sender or "",
            tuple(self.recipients),
            data,
            raw,
            self.parameters,
            self.number,
            self.tls,
            self.user,
        )
        self.relay.completed.append(message)
        if self.is_lmtp:
            self.end_for_each(message)
        else:
            self.end_for_all(message)
        self.reset()
        if self.closing:
            self.hang_up()

    def end_for_each(self, message: Received) -> None:
        """Reply once for each recipient, until the script has the connection closed."""
        if not self.recipients:
            self.breach("a final dot without recipients")
        taken = []
        for recipient in self.recipients:
            if not self.closing:
                code = self.answer("END", "250 2.0.0 Taken", recipient)
                if code // 100 == 2:
                    taken.append(recipient)
        if taken:
            self.relay.messages.append(replace(message, recipients=tuple(taken)))

    def end_for_all(self, message: Received) -> None:
        usual = "250 2.0.0 Taken" if self.recipients else "554 5.5.1 No recipients"
        code = self.answer("END", usual, self.sender)
        if code // 100 == 2:
            if not self.recipients:
                self.breach("a message without recipients")
            self.relay.messages.append(message)

    def do_RSET(self, argument: str) -> None:
        self.answer("RSET", "250 2.0.0 Reset")
        self.reset()

    def do_NOOP(self, argument: str) -> None:
        self.answer("NOOP", "250 2.0.0 Well")

    def do_QUIT(self, argument: str) -> None:
        self.answer("QUIT", "221 2.0.0 Bye")
        self.hang_up()
