"""A relay in memory that follows a seed, and connections to it for a pipeline.

It disturbs some of its replies and some of the client's writes. Its record has what it
took: a recipient is accepted, and a message is taken, if its own reply to the command
has a code of 2xx, whatever becomes of this reply on its way.
"""
from __future__ import annotations

import random
from collections import Counter

from postcommit._mail.report import Reply
from postcommit._mail.report import Stage
from postcommit._smtp.connection import begun
from postcommit._smtp.connection import take
from postcommit.errors import RelayError
from tests.support.mailers import Taken


# Disturbances of a reply. After one of the first four, nothing more comes.
ENDINGS = ("close", "silent", "421", "half")
ANSWERS = ("4xx", "5xx", "503", "3xx", "334", "530", "what")

# A reply too many. Two of them in one dialogue could cancel each other.
STRAY = "two"

# Disturbances of a write: how the connection ends, or what the relay says before.
CUTS = ("close", "silent", "421", "450", "550", "250")

STAGES = {
    b"RSET": Stage.SESSION,
    b"MAIL": Stage.MAIL,
    b"RCPT": Stage.RCPT,
    b"DATA": Stage.DATA,
}

FORGOTTEN = b"503 5.5.1 Error: need RCPT command"

# Maximum number of connections that any dialogue needs.
_MOST_CONNECTIONS = 30


class Relay:
    """The relay of one dialogue, and the pool of connections to it.

    `taken` counts the messages by sender and recipient, `refused` has who was refused
    for good.
    """

    def __init__(self, seed: int) -> None:
        chance = self.random = random.Random(seed)
        self.protocol = chance.choice(["smtp", "smtp", "lmtp"])
        self.offers_pipelining = chance.random() < 0.7
        self.pipelining = True
        self.messages = chance.choice([100, 100, 2])
        self.recipients = chance.choice([1000, 1000, 2])  # of the client
        self.most = chance.choice([1000, 1000, 1, 2])  # of the relay
        self.too_many = chance.choice([b"452 4.5.3 Too many", b"452 Too many", b"552"])
        self.counts_at = chance.choice([None, None, None, Stage.DATA, Stage.END])
        self.most_at_all = chance.choice([1, 2])
        self.exceeds = chance.choice(
            [b"554 Transaction failed: Recipient count exceeds 2", b"452 4.5.3 Sorry"]
        )
        self.forgets = chance.random() < 0.2  # all, once one was too many
        self.rcptmax = chance.choice([None, None, None, 1, 2])
        self.mailmax = chance.choice([None, None, None, 1, 2])
        # Maximum number of refusals of one connection, and of its recipients.
        self.most_errors = chance.choice([None, None, None, 1, 2])
        self.most_named = chance.choice([None, None, None, 2, 4])
        self.idle: list[Connection] = []
        self.taken: Counter[tuple[str, str]] = Counter()
        self.refused: set[tuple[str, str]] = set()
        self.writes = self.replies = self.opened = 0
        kinds = ENDINGS + ANSWERS + ((STRAY,) if seed % 3 else ())
        self.tricks = {
            chance.randrange(18): chance.choice(kinds)
            for _ in range(chance.choice([1, 1, 2, 3]))
        }
        while list(self.tricks.values()).count(STRAY) > 1:
            self.tricks.popitem()
        self.cuts = {
            chance.randrange(8): (
                chance.choice(CUTS),
                chance.choice([0, 0.3, 0.5, 0.8, 0.95, 1]),
            )
            for _ in range(chance.choice([0, 0, 1]))
        }
        self.down = {chance.randrange(1, 4)} if chance.random() < 0.1 else set()
        self.mails = [self._mail(number) for number in range(chance.randint(1, 4))]

    def _mail(self, number: int) -> Taken:
        names = ["ok", "later", "never", "full", "im possible"]
        kinds = self.random.choices(
            names, [12, 1, 2, 1, 0.3], k=self.random.choice([1, 1, 2, 3, 5])
        )
        recipients = tuple(f"{kind}{n}@example.org" for n, kind in enumerate(kinds))
        head = b"Message-Id: <%d@example.org>\r\n\r\n" % number
        return Taken(f"s{number}@example.org", recipients, head + b"text\r\n" * 5)

    # The pool

    def checkout(self, *, fresh: bool = False) -> Connection:
        if self.idle and not fresh:
            return self.idle.pop()
        self.opened += 1
        assert self.opened <= _MOST_CONNECTIONS
        if self.opened in self.down:
            raise RelayError("down")
        return Connection(self)

    def checkin(self, connection: Connection, *, keep: bool = True) -> None:
        connection.assert_between_messages()
        if keep and connection.messages < self.messages and connection.end is None:
            self.idle.append(connection)

    def discard(self, connection: Connection, *, is_lost: bool = True) -> None:
        pass


class Connection:
    """One connection to a `Relay`, as `postcommit._smtp.connection.Connection`."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.extensions = {"PIPELINING": ""} if relay.offers_pipelining else {}
        limits = {"RCPTMAX": relay.rcptmax, "MAILMAX": relay.mailmax}
        words = [f"{name}={limit}" for name, limit in limits.items() if limit]
        if words:
            self.extensions["LIMITS"] = " ".join(words)
        self.pipelining = relay.offers_pipelining and relay.pipelining
        self.messages = 0
        self.is_dirty = False
        self.most_recipients = 1 << 30
        self.sent = 0
        self.end: OSError | None = None  # of the connection
        self.named = self.errors = 0
        self._coming = b""  # said, and not read
        self._seen = b""  # read, and not complete
        self._received = b""
        self._sender: str | None = None
        self._accepted: list[str] = []
        self._is_over = False
        self._content: list[bytes] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the relay waits for content."""
        return self._content is not None

    # For the client

    def write(self, data: bytes) -> None:
        assert data
        self.sent = len(data)
        cut = self.relay.cuts.get(self.relay.writes)
        self.relay.writes += 1
        if self.end is not None:
            self.sent = 0
            raise self.end
        if cut is None:
            self._process(data)
            return
        how, share = cut
        self.sent = int(len(data) * share)
        self._process(data[: self.sent])
        if self.end is None:
            self.end = _error(how)
            if how.isdecimal():
                self._coming += how.encode() + b" Said in the middle\r\n"
                self._refuse(int(how), self._recipients())
        raise self.end

    def read(self, stage: Stage | None, timeout: float | None = None) -> Reply:
        found = take(self._coming, 0)
        if found is None:
            self._seen = self._coming
            raise self.end or TimeoutError("nothing comes")
        self._coming = self._coming[found[1] :]
        return found[0]

    def assert_between_messages(self) -> None:
        is_clear = STRAY not in self.relay.tricks.values()
        assert not (is_clear and self.is_open), "in the middle of a message"

    def quit(self) -> None:
        self.assert_between_messages()
        self.end = ConnectionResetError("bye")

    def read_hastily(self) -> Reply:
        return self.read(None)

    @property
    def begun(self) -> Reply | None:
        return begun(self._seen, 0)

    @property
    def stray(self) -> str:
        found = take(self._coming, 0) if self._coming else None
        return str(found[0]) if found else self._coming.decode()

    # The relay

    def _process(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\r\n")
        for line in lines:
            if self.end is not None:
                return
            if self._content is None:
                self._command(line)
            elif line != b".":
                self._content.append(line)
            else:
                self._end_of_content()

    def _command(self, line: bytes) -> None:
        stage, address = STAGES[line[:4]], line.partition(b"<")[2].partition(b">")[0]
        usual = b"250 Ok"
        if stage in (Stage.SESSION, Stage.MAIL):
            self._accepted, self._is_over = [], False
            self._sender = address.decode() or None
        elif self._sender is None:
            usual = b"503 5.5.1 MAIL first"
        elif stage is Stage.RCPT:
            usual = self._answer(address)
        elif not self._accepted:
            usual = b"503 5.5.1 No valid recipients"
        elif self._exceeds(stage, len(self._accepted)):
            usual = self.relay.exceeds
        elif self._is_over and self.relay.forgets:
            usual = FORGOTTEN
        else:
            usual = b"354 Go on"
        code = self._say(stage, self._bounded(stage, usual))
        if stage is Stage.MAIL and code >= 400:
            self._refuse(code, self._recipients())
            self._sender = None
        elif stage is Stage.RCPT:
            if code < 400:
                self._accepted.append(address.decode())
            said_so = usual == self.relay.too_many and usual.startswith(b"%d" % code)
            self._is_over |= said_so and bool(self._accepted)
            self._refuse(code, [address.decode()])
        elif stage is Stage.DATA:
            self._content = [] if code == 354 else None
            is_number = usual in (self.relay.exceeds, FORGOTTEN)
            if not (is_number and usual.startswith(b"%d" % code)):
                self._refuse(code, self._recipients())

    def _bounded(self, stage: Stage, usual: bytes) -> bytes:
        """Return the reply, or 421 if the client has named or failed too often."""
        if stage is not Stage.RCPT:
            return usual
        self.named += 1
        self.errors += not usual.startswith(b"2")
        most_named, most_errors = self.relay.most_named, self.relay.most_errors
        if (most_named and self.named > most_named) or (
            most_errors and self.errors > most_errors
        ):
            self.end = ConnectionResetError("gone")
            return b"421 4.7.0 Too many"
        return usual

    def _answer(self, address: bytes) -> bytes:
        """Return the usual reply to RCPT."""
        if address.startswith(b"never"):
            return b"550 5.1.1 No such user"
        if address.startswith(b"later"):
            return b"450 4.2.0 Greylisted"
        if address.startswith(b"full"):
            return b"452 4.2.2 Mailbox full"
        is_over = len(self._accepted) >= self.relay.most
        return self.relay.too_many if is_over else b"250 Ok"

    def _end_of_content(self) -> None:
        has_content, self._content = bool(self._content), None
        is_taken = has_content and bool(self._accepted)
        usual = b"250 2.0.0 Taken" if is_taken else b"554 5.5.1 Nothing to take"
        if self.relay.protocol == "lmtp":
            assert is_taken
            for recipient in self._accepted:
                self._final(usual, recipient)
        else:
            self._final(usual, *self._accepted)
        self._sender, self._accepted = None, []

    def _final(self, usual: bytes, *recipients: str) -> None:
        """Reply to the final dot about `recipients`, if the connection still stands."""
        is_number = self._exceeds(Stage.END, len(recipients))
        if is_number:
            usual = self.relay.exceeds
        if self.end is None:
            code = self._say(Stage.END, usual)
        else:  # in LMTP, after the reply about another recipient
            code = self.relay.random.choice([250, 450])
        if is_number and usual.startswith(b"%d" % code) and self.end is None:
            return
        for recipient in recipients:
            if usual.startswith(b"2") and code < 400:
                self.relay.taken[self._sender or "", recipient] += 1
        self._refuse(code, list(recipients))

    def _exceeds(self, stage: Stage, count: int) -> bool:
        """Whether `count` recipients are too many for the whole message."""
        return stage is self.relay.counts_at and count > self.relay.most_at_all

    def _recipients(self) -> list[str]:
        """Return all recipients of the message."""
        for mail in self.relay.mails:
            if mail.sender == self._sender:
                return list(mail.recipients)
        return []

    def _refuse(self, code: int, recipients: list[str]) -> None:
        if code >= 500:
            sender = self._sender or ""
            self.relay.refused |= {(sender, recipient) for recipient in recipients}

    def _say(self, stage: Stage, usual: bytes) -> int:
        """Say the usual, or something else; return the code that the relay means."""
        trick = self.relay.tricks.get(self.relay.replies)
        self.relay.replies += 1
        reply = usual
        if trick == "421":
            reply = b"421 4.3.2 Bye"
            self.end = ConnectionResetError("gone")
        elif trick in ("close", "silent"):
            self.end = _error(trick)
            return int(usual[:3])
        elif trick == "half":
            self.end = _error(self.relay.random.choice(["close", "silent"]))
            self._coming += usual[: self.relay.random.randrange(len(usual))]
            return int(usual[:3])
        elif trick in ("4xx", "5xx", "503", "530", "334"):
            reply = {"4xx": b"450 4.2.0 Later", "5xx": b"550 5.7.1 No"}.get(
                trick, trick.encode() + b" Hm"
            )
        elif trick == "3xx":
            # An answer to another command. The relay means the usual, except that it
            # waits for no content.
            reply = b"250 Ok" if stage is Stage.DATA else b"354 Go on"
            self._coming += reply + b"\r\n"
            return 250 if stage is Stage.DATA else int(usual[:3])
        elif trick == "what":
            self._coming += b"what\r\n"
            return 250 if stage is Stage.DATA else int(usual[:3])
        elif trick == STRAY:
            self._coming += usual + b"\r\n"
        self._coming += reply + b"\r\n"
        code = int(reply[:3])
        if code == 334 and stage is not Stage.DATA:
            return int(usual[:3])  # no reply to this command: it was done
        return code


def _error(how: str) -> OSError:
    if how == "silent":
        return TimeoutError("timed out")
    return ConnectionResetError("gone")
