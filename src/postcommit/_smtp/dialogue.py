"""The SMTP dialogue as a state machine, without input and output.

Its driver passes to `Dialogue` the messages that are offered, the replies of the relay,
and the loss of a connection. `Dialogue` returns the bytes to send, the replies to wait
for, and one report for each message.

A message is transmitted to some of its recipients at a time. The rules for such a
`Transmission` are tables: `MOVES` for what is written, `REPLIES` and `FINALS` for what
the relay says, and `LOSSES` for a connection that is lost. They stand first, before the
code that follows them, and docs/dialogue.rst shows them as they are here.
"""
from __future__ import annotations

import enum
import re
import sys
from collections import deque
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from itertools import islice
from typing import Any
from typing import NamedTuple
from typing import Protocol

from postcommit._log import Log
from postcommit._mail.address import needs_smtputf8
from postcommit._mail.address import on_the_wire
from postcommit._mail.address import parse_address
from postcommit._mail.message import message_id_of
from postcommit._mail.message import to_crlf
from postcommit._mail.report import RELAY_CODES
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mail.report import Stage
from postcommit._smtp.sevenbit import to_seven_bits
from postcommit.errors import AddressError
from postcommit.errors import RelayError
from postcommit.errors import TooManyConnections
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status


log = Log("postcommit.smtp.dialogue")

# Maximum number of commands in one write (RFC 2920, 3.1). If the replies to them filled
# the windows of both sides, both sides would wait.
GROUP = 100

END_OF_DATA = b".\r\n"

# Three times as fast as the bytes' own search, because it has two bytes to look for.
_DOT = re.compile(rb"\n\.")

# A number of digits for SIZE (RFC 1870, 4) and for LIMITS (RFC 9422, 3).
_SIZE = re.compile(r"[0-9]{1,20}", re.ASCII)
_LIMIT = re.compile(r"(RCPTMAX|MAILMAX|RCPTDOMAINMAX)=([1-9][0-9]{0,5})")

# The text of a reply that is about the number of recipients, such as "Recipient count
# exceeds 50". It is not if the text is about something else, such as a rate.
_NUMBER = re.compile(
    r"\btoo many[\w ]{0,20}\b(?:recipient|rcpt|addressee)"
    r"|\b(?:recipient|rcpt)s?(?:'s)? (?:count|limit|number|exceed|maximum)"
    r"|\b(?:number|count|limit|maximum|max)"
    r"(?: (?:of|on|for|the|number|allowed|permitted|\d+))* (?:recipient|rcpt)",
    re.IGNORECASE,
)
_NOT_NUMBER = re.compile(
    r"mailbox|storage|size|space|full|quota|\brate|hour|minute|day|daily",
    re.IGNORECASE,
)

# Maximum number of characters of ENVID (RFC 3461, 4.4).
_MOST_OF_ENVID = 100
_NOT_XTEXT = re.compile(r"[^!-*,-<>-~]")

_NO_SMTPUTF8 = Reply(0, "5.6.7", "The address needs SMTPUTF8, the relay lacks it")
_NO_8BITMIME = "The message needs 8BITMIME, the relay lacks it"
_NO_MEMORY = Reply(0, "4.3.0", "Too little memory to do without 8BITMIME")


class State(enum.Enum):
    """Where a transmission is."""

    UPCOMING = "nothing of it is on the wire"
    OFFERED = "its envelope is on the wire, and it may still move to another connection"
    BOUND = "its envelope is on the wire, and it stays with this connection"
    ENDING = "its content is being written, the final dot has not left"
    ENDED = "its final dot has left: the relay may have the message"
    DONE = "accounted for"


class Kind(enum.Enum):
    """A reply, seen from the command that it answers."""

    YES = "2xx, or 354 to DATA"
    LATER = "4xx, 552 to RCPT, or 3xx other than 354 to DATA"
    NEVER = "5xx"
    TOO_MANY = "refused because of the number of recipients, and fewer are possible"
    RELAY = "421, 530, 534, 535, 538, a refused RSET, or no more recipients at all"
    ODD = "a reply that belongs to another command"


class Loss(enum.Enum):
    """Why a connection cannot be used any more."""

    CLOSED = "closed or reset"
    SILENT = "no reply in time"
    REFUSED = "the relay refuses to work at all"
    ENOUGH = "closed or refused by a relay that may only have enough recipients"
    OUT_OF_STEP = "a reply to another command, a stray one or no SMTP, with pipelining"
    CONFUSED = "the same without pipelining"
    NOT_REACHED = "the relay failed at the message before"


class Step(enum.Enum):
    """The meaning of a reply for the transmission."""

    GO_ON = "go on"
    ACCEPT = "accepted"
    DEFER_ONE = "this one deferred"
    REJECT_ONE = "this one rejected"
    LEAVE = "left for the next transmission"
    SPLIT = "split in two transmissions"
    CONTENT = "content welcome"
    DEFER_ALL = "all deferred"
    REJECT_ALL = "all rejected"
    SEND_ALL = "all sent"
    SEND_ONE = "this one sent"


class Fate(enum.Enum):
    """The meaning of a lost connection for the transmission."""

    STAY = "stays upcoming"
    AGAIN = "begins again on another connection; the outcomes so far are void"
    DEFERRED = "its recipients without an outcome are deferred"
    UNCERTAIN = "its recipients without an outcome are uncertain"
    RELAY = "the relay failed in the middle of this message"
    FAILED = "the relay failed, but not in the middle of this message"


# The moves of a transmission without a loss, with their occasions.
MOVES: dict[tuple[State, State], str] = {
    (State.UPCOMING, State.OFFERED): "envelope written, connection used before",
    (State.UPCOMING, State.BOUND): "envelope written, first message or has moved",
    (State.UPCOMING, State.DONE): "the relay lacks an extension that it needs",
    (State.OFFERED, State.BOUND): "reply to MAIL, RCPT or DATA",
    (State.BOUND, State.ENDING): "354: content, or a lone dot if all are refused",
    (State.BOUND, State.DONE): "refused; the next message begins with RSET",
    (State.ENDING, State.ENDED): "the final dot has left",
    (State.ENDED, State.DONE): "reply to the final dot",
}

# The reply to a command at a stage. `Stage.SESSION` is RSET here. "All" are the
# recipients of this transmission without an outcome. A `Loss` ends the connection.
REPLIES: dict[tuple[Stage, Kind], Step | Loss] = {
    (Stage.SESSION, Kind.YES): Step.GO_ON,
    (Stage.SESSION, Kind.RELAY): Loss.REFUSED,
    (Stage.SESSION, Kind.ODD): Loss.REFUSED,
    (Stage.MAIL, Kind.YES): Step.GO_ON,
    (Stage.MAIL, Kind.LATER): Step.DEFER_ALL,
    (Stage.MAIL, Kind.NEVER): Step.REJECT_ALL,
    (Stage.MAIL, Kind.RELAY): Loss.REFUSED,
    (Stage.MAIL, Kind.ODD): Loss.OUT_OF_STEP,
    (Stage.RCPT, Kind.YES): Step.ACCEPT,
    (Stage.RCPT, Kind.LATER): Step.DEFER_ONE,
    (Stage.RCPT, Kind.NEVER): Step.REJECT_ONE,
    (Stage.RCPT, Kind.TOO_MANY): Step.LEAVE,
    (Stage.RCPT, Kind.RELAY): Loss.REFUSED,
    (Stage.RCPT, Kind.ODD): Loss.OUT_OF_STEP,
    (Stage.DATA, Kind.YES): Step.CONTENT,
    (Stage.DATA, Kind.LATER): Step.DEFER_ALL,
    (Stage.DATA, Kind.NEVER): Step.REJECT_ALL,
    (Stage.DATA, Kind.TOO_MANY): Step.SPLIT,
    (Stage.DATA, Kind.RELAY): Loss.REFUSED,
    (Stage.DATA, Kind.ODD): Loss.OUT_OF_STEP,
    (Stage.END, Kind.YES): Step.SEND_ALL,
    (Stage.END, Kind.LATER): Step.DEFER_ALL,
    (Stage.END, Kind.NEVER): Step.REJECT_ALL,
    (Stage.END, Kind.TOO_MANY): Step.SPLIT,
    (Stage.END, Kind.RELAY): Loss.REFUSED,
    (Stage.END, Kind.ODD): Loss.OUT_OF_STEP,
}

# The replies to the final dot in LMTP: one for each recipient that was accepted, in
# their order (RFC 2033, 4.2). If the relay refuses to work at all, it says nothing
# about the recipients behind, and they are uncertain.
FINALS: dict[Kind, Step | Loss] = {
    Kind.YES: Step.SEND_ONE,
    Kind.LATER: Step.DEFER_ONE,
    Kind.NEVER: Step.REJECT_ONE,
    Kind.RELAY: Loss.REFUSED,
    Kind.ODD: Loss.OUT_OF_STEP,
}

# The loss of the connection in a state. What is not here cannot happen.
LOSSES: dict[tuple[State, Loss], Fate] = {
    (State.UPCOMING, Loss.CLOSED): Fate.STAY,
    (State.UPCOMING, Loss.SILENT): Fate.STAY,
    (State.UPCOMING, Loss.REFUSED): Fate.STAY,
    (State.UPCOMING, Loss.OUT_OF_STEP): Fate.STAY,
    (State.UPCOMING, Loss.CONFUSED): Fate.STAY,
    (State.UPCOMING, Loss.NOT_REACHED): Fate.FAILED,
    (State.OFFERED, Loss.CLOSED): Fate.AGAIN,
    (State.OFFERED, Loss.SILENT): Fate.RELAY,
    (State.OFFERED, Loss.REFUSED): Fate.AGAIN,
    (State.OFFERED, Loss.OUT_OF_STEP): Fate.AGAIN,
    (State.OFFERED, Loss.CONFUSED): Fate.RELAY,
    (State.OFFERED, Loss.NOT_REACHED): Fate.FAILED,
    (State.BOUND, Loss.CLOSED): Fate.DEFERRED,
    (State.BOUND, Loss.SILENT): Fate.RELAY,
    (State.BOUND, Loss.REFUSED): Fate.RELAY,
    (State.BOUND, Loss.ENOUGH): Fate.AGAIN,
    (State.BOUND, Loss.OUT_OF_STEP): Fate.AGAIN,
    (State.BOUND, Loss.CONFUSED): Fate.RELAY,
    (State.ENDING, Loss.CLOSED): Fate.DEFERRED,
    (State.ENDING, Loss.SILENT): Fate.RELAY,
    (State.ENDING, Loss.REFUSED): Fate.RELAY,
    (State.ENDED, Loss.CLOSED): Fate.UNCERTAIN,
    (State.ENDED, Loss.SILENT): Fate.UNCERTAIN,
    (State.ENDED, Loss.REFUSED): Fate.RELAY,
    (State.ENDED, Loss.OUT_OF_STEP): Fate.UNCERTAIN,
    (State.ENDED, Loss.CONFUSED): Fate.UNCERTAIN,
}


# A relay has these ways to say that it wants no more on a connection.
_ENDED_BY_RELAY = (Loss.CLOSED, Loss.REFUSED)


class Peer(Protocol):
    """The relay, as far as the dialogue knows it. `protocol` is smtp or lmtp."""

    @property
    def protocol(self) -> str: ...


class Link(Protocol):
    """A connection, as far as the dialogue knows it. It outlives the dialogue."""

    @property
    def relay(self) -> Peer:
        """The relay at its other end."""

    @property
    def extensions(self) -> Mapping[str, str]:
        """Extensions that the relay offers: keywords, upper case, to parameters."""

    pipelining: bool
    messages: int  # begun on this connection
    is_dirty: bool  # a mail transaction may be open: RSET comes first
    most_recipients: int  # that the relay accepts for one transmission


class Command(NamedTuple):
    """A command, with the step that its ordinary reply means.

    An `Enum` as a key of a dictionary costs a Python call for each lookup, 5 % of a
    whole drain. So the ordinary reply does not look into `REPLIES`.
    """

    stage: Stage
    line: str
    code: int  # of the ordinary reply
    step: Step | Loss
    recipient: int = 0  # its index


_RSET = Command(Stage.SESSION, "RSET\r\n", 250, REPLIES[Stage.SESSION, Kind.YES])
_DATA = Command(Stage.DATA, "DATA\r\n", 354, REPLIES[Stage.DATA, Kind.YES])
_ENDS = [Command(Stage.END, "", 250, REPLIES[Stage.END, Kind.YES])]
_FINAL_STEP = FINALS[Kind.YES]
_MAIL_STEP = REPLIES[Stage.MAIL, Kind.YES]
_RCPT_STEP = REPLIES[Stage.RCPT, Kind.YES]


class Account:
    """The account of a message that was offered: an outcome for each recipient.

    `key` is the caller's. `is_done` says that the account is complete, or that the
    relay failed: then `failure` is set, and only the recipients that were decided
    before have an outcome. Addresses that would be something else, or nothing, on the
    wire are rejected at once. With `dsn`, the relay is asked for notifications with the
    header only, and with the message id (RFC 3461).
    """

    __slots__ = (
        "dsn",
        "everybody",
        "extensions",
        "failed_mid_message",
        "failure",
        "fitted",
        "is_done",
        "is_plain",
        "key",
        "message",
        "message_id",
        "outcomes",
        "recipients",
        "sender",
        "stuffed",
    )

    def __init__(self, mail: Outgoing, key: Any = None, *, dsn: bool = False) -> None:
        self.key = key
        self.dsn = dsn
        self.message_id = message_id_of(mail.message)
        self.sender = mail.sender
        self.recipients = tuple(mail.recipients)
        self.message = complete(mail.message)
        self.everybody = range(len(self.recipients))
        self.outcomes: dict[int, Outcome] = {}
        self.failure: RelayError | None = None
        self.failed_mid_message = False
        self.is_done = not self.recipients
        self.is_plain = "".join((self.sender, *self.recipients)).isascii()
        self.extensions: Mapping[str, str] | None = None
        self.fitted: bytes | Reply = b""
        self.stuffed = b""
        envelope: list[tuple[Sequence[int], str]] = [
            ((index,), address) for index, address in enumerate(self.recipients)
        ]
        if self.sender:
            envelope.append((self.everybody, self.sender))
        # An address that would be something else on the wire is rejected now: a line
        # break in it, for example, would begin another command.
        for concerned, address in envelope:
            try:
                if parse_address(address) == address:
                    continue
                fault = f"Not a bare address: {address!r}"
            except AddressError as error:
                fault = str(error)
            self.settle(concerned, Status.REJECTED, Reply(0, "5.1.3", fault))

    def fit(self, extensions: Mapping[str, str]) -> bytes | Reply:
        """Return the message as a relay with `extensions` takes it, or why it cannot.

        Without 8BITMIME it is encoded in ASCII. With SIZE there is a limit of bytes. It
        is kept for all transmissions on a connection, also with its dots doubled
        (`stuffed`). Most messages are the same object in all three forms.
        """
        if self.extensions is extensions:
            return self.fitted
        fitted: bytes | Reply = self.message
        if not self.message.isascii() and "8BITMIME" not in extensions:
            try:
                fitted = complete(to_seven_bits(self.message))
            except MemoryError:
                fitted = _NO_MEMORY
            except Exception as error:
                # An error of any kind is about this message. The others go on.
                text = f"{_NO_8BITMIME}, and {type(error).__name__}: {error}"
                fitted = Reply(0, "5.6.3", text)
        limit = extensions.get("SIZE", "")
        is_limited = _SIZE.fullmatch(limit) is not None and int(limit) > 0
        if is_limited and isinstance(fitted, bytes) and len(fitted) > int(limit):
            text = f"The message has {len(fitted)} bytes, the relay takes {limit}"
            fitted = Reply(0, "5.3.4", text)
        self.extensions, self.fitted, self.stuffed = extensions, fitted, b""
        if isinstance(fitted, bytes):
            # Dots at the beginning of a line are doubled (RFC 5321, 4.5.2).
            stuffed = fitted
            if _DOT.search(stuffed):
                stuffed = stuffed.replace(b"\n.", b"\n..")
            if stuffed.startswith(b"."):
                stuffed = b"." + stuffed
            self.stuffed = stuffed
        return fitted

    def settle(self, indices: Sequence[int], status: Status, reply: Reply) -> None:
        """Give an outcome to those of `indices` that lack it."""
        for index in indices:
            if index not in self.outcomes:
                self.outcomes[index] = Outcome(self.recipients[index], status, reply)
        if len(self.outcomes) == len(self.recipients):
            self.is_done = True

    def reopen(self, indices: Sequence[int]) -> None:
        """Forget the outcomes of `indices`. The replies may have been about others."""
        for index in indices:
            self.outcomes.pop(index, None)
        self.is_done = False

    def fail(
        self, failure: RelayError, indices: Sequence[int], *, mid_message: bool
    ) -> None:
        """Account for a relay that failed while `indices` were transmitted to.

        The relay may hang up because of recipients of this message, and would do so
        each time. So if it failed in the middle of the message, and had replied to some
        of `indices` before, these outcomes stay and the others of `indices` are
        deferred. Recipients of other transmissions are not concerned.
        """
        outcomes = [self.outcomes[index] for index in indices if index in self.outcomes]
        if mid_message and any(map(_was_replied, outcomes)):
            reply = failure.reply
            said = reply if isinstance(reply, Reply) else _interrupted(failure)
            self.settle(indices, Status.DEFERRED, said)
        else:
            self.reopen(indices)
            # If the relay took others of the message before, the message itself is not
            # the cause. In the next attempt `indices` come first.
            is_first = not any(map(_was_replied, self.outcomes.values()))
            self.failure, self.failed_mid_message = failure, mid_message and is_first
            self.is_done = True


def _was_replied(outcome: Outcome) -> bool:
    """Return True unless the outcome is from us alone."""
    return outcome.reply.code != 0 or outcome.status is Status.UNCERTAIN


@dataclass(eq=False)
class Transmission:
    """A message and some of its recipients (`indices`), on one connection.

    `commands` are those of the envelope, and then the final dot, or in LMTP one for
    each reply to it. `accepted` are the recipients that the relay has accepted, `left`
    those that go into the next transmission. `refused` is the number of those that it
    has refused, unless that may be because of the number: some relays count these, too.
    `limit` is the number of both, if the relay has shown that it takes no more.
    `is_sure` says that the relay named it as its reason. Otherwise it is the `doubtful`
    limit of the next transmission: if a recipient that was left is accepted there, the
    number was the reason.
    `is_welcome` says that it waits for the content.
    """

    account: Account
    indices: Sequence[int]
    has_moved: bool = False
    accepted: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    # How each begins. Attributes of the class, so that a new one costs less.
    state: State = field(default=State.UPCOMING, init=False)
    commands: Sequence[Command] = field(default=(), init=False)
    written: int = field(default=0, init=False)  # number of commands
    answered: int = field(default=0, init=False)  # number of commands
    content: bytes = field(default=b"", init=False)
    refused: int = field(default=0, init=False)
    limit: int | None = field(default=None, init=False)
    is_sure: bool = field(default=False, init=False)
    doubtful: int | None = field(default=None, init=False)
    is_welcome: bool = field(default=False, init=False)

    def prepare(self, link: Link) -> bool:
        """Make the commands and the content for `link`.

        Return False if nothing is left to send, because the relay lacks what the
        message or the addresses need (SIZE, 8BITMIME, SMTPUTF8).
        """
        account, extensions = self.account, link.extensions
        message = account.fit(extensions)
        if isinstance(message, Reply):
            is_final = message.enhanced.startswith("5")
            status = Status.REJECTED if is_final else Status.DEFERRED
            account.settle(self.indices, status, message)
            return False
        sender = account.sender
        if account.is_plain:
            addresses = {index: account.recipients[index] for index in self.indices}
        else:
            sender, addresses = self._spell(extensions)
            if not addresses:
                return False
        parameters = f" SIZE={len(message)}" if "SIZE" in extensions else ""
        if not message.isascii():
            parameters += " BODY=8BITMIME"
        if not (account.is_plain or "".join((sender, *addresses.values())).isascii()):
            parameters += " SMTPUTF8"
        if account.dsn and "DSN" in extensions:
            parameters += f" RET=HDRS{envid(account.message_id)}"
        mail = f"MAIL FROM:<{sender}>{parameters}\r\n"
        self.commands = [
            *([_RSET] if link.is_dirty else ()),
            Command(Stage.MAIL, mail, 250, _MAIL_STEP),
            *[
                Command(Stage.RCPT, f"RCPT TO:<{address}>\r\n", 250, _RCPT_STEP, index)
                for index, address in addresses.items()
            ],
            _DATA,
        ]
        self.content = account.stuffed
        return True

    def _spell(self, extensions: Mapping[str, str]) -> tuple[str, dict[int, str]]:
        """Return sender and recipients as the relay takes them. Reject the others."""
        account, addresses = self.account, {}
        sender = spelled(account.sender, extensions)
        if isinstance(sender, Reply):
            account.settle(self.indices, Status.REJECTED, sender)
            return "", {}
        for index in self.indices:
            address = spelled(account.recipients[index], extensions)
            if isinstance(address, Reply):
                account.settle((index,), Status.REJECTED, address)
            else:
                addresses[index] = address
        return sender, addresses

    def next_group(self, size: int) -> bytes:
        """Return the next commands, at most `size`. All that is written has a reply.

        Empty if all are written, or if the rest is of no use, because every recipient
        has an outcome or is left.
        """
        decided = self.account.outcomes
        # The last one first, so that the time for many recipients stays linear.
        is_refused = self.indices[-1] in decided and all(
            index in decided for index in self.indices
        )
        rest = len(self.commands) - self.written
        if is_refused or not rest or (rest == 1 and not self.accepted):
            return b""
        group = self.commands[self.written : self.written + size]
        self.written += len(group)
        return "".join([command.line for command in group]).encode()

    def take(self, step: Step | Loss, index: int, reply: Reply) -> None:
        """Do what a cell of `REPLIES` says."""
        account = self.account
        if step is Step.GO_ON:
            return
        if step is Step.ACCEPT:
            if index not in account.outcomes:
                self.accepted.append(index)
                # A refusal before was not about the number.
                self.limit, self.is_sure = None, False
        elif step is Step.SEND_ALL:
            account.settle(self.indices, Status.SENT, reply)
        elif step is Step.CONTENT:
            self.is_welcome = True
        elif step is Step.SEND_ONE:
            account.settle((index,), Status.SENT, reply)
        elif step is Step.LEAVE:
            self.left.append(index)
            self.limit = self.tried
            if is_about_number(reply):
                self.is_sure = True
                self._stop()
        elif step in (Step.DEFER_ONE, Step.REJECT_ONE):
            status = Status.REJECTED if step is Step.REJECT_ONE else Status.DEFERRED
            account.settle((index,), status, reply)
            self.refused += not may_be_about_number(reply)
        elif step is Step.DEFER_ALL:
            account.settle(self._own(), Status.DEFERRED, reply)
        else:  # REJECT_ALL
            account.settle(self._own(), Status.REJECTED, reply)

    @property
    def tried(self) -> int:
        """The number of recipients whose replies were not about the number."""
        return len(self.accepted) + self.refused

    def _stop(self) -> None:
        """Leave the recipients that are not on the wire yet, too."""
        rest = self.commands[self.written :]
        if len(rest) > 1:
            self.left += [command.recipient for command in rest[:-1]]
            self.commands = [*self.commands[: self.written], _DATA]

    def _own(self) -> Sequence[int]:
        """Return the recipients that are not left for the next transmission."""
        if not self.left:
            return self.indices
        left = set(self.left)
        return [index for index in self.indices if index not in left]

    def cut(self, most: int) -> Transmission:
        """Keep the first `most` recipients, and return the transmission to the others.

        It takes no longer if there are many others.
        """
        rest = self.indices if isinstance(self.indices, deque) else deque(self.indices)
        self.indices = [rest.popleft() for _ in range(most)]
        return Transmission(self.account, rest)

    def within(self, most: int, domains: int) -> int:
        """Return how many of the first `most` recipients fit into `domains` domains."""
        seen = set()
        for count, index in enumerate(islice(self.indices, most)):
            seen.add(self.account.recipients[index].rpartition("@")[2].lower())
            if len(seen) > domains:
                return count
        return most

    def rest(self) -> Transmission:
        """Return the next transmission, with the recipients that are left."""
        left = set(self.left)
        rest = [index for index in self.indices if index in left]
        self.indices, self.left = self._own(), []
        return Transmission(self.account, rest)

    def split(self) -> list[Transmission]:
        """Return two transmissions, each to fewer recipients than this."""
        if self.left:
            rest = self.rest()
            return [Transmission(self.account, self.accepted), rest]
        middle = (len(self.accepted) + 1) // 2
        halves = self.accepted[:middle], self.accepted[middle:]
        return [Transmission(self.account, half) for half in halves]

    def again(self) -> Transmission:
        """Return the transmission as it was at first. Its outcomes are void."""
        self.account.reopen(self.indices)
        return Transmission(self.account, self.indices, has_moved=True)


@dataclass(eq=False, repr=False, kw_only=True)
class Dialogue:
    """The messages of one pipeline, over as many connections as they need.

    `messages` is the maximum number for one connection, `recipients` that for one
    transmission. The relay may announce less (LIMITS, RFC 9422). At most two
    transmissions are on the wire: the first is ending or has ended, the second is
    offered or bound.

    `link` is the connection in use, or None: then a driver opens one if something is
    `upcoming`. `most_messages` is the number that the relay takes on it (MAILMAX).
    `failure` is set when the relay failed: then nothing is tried any more. `pipelining`
    is False once the relay was out of step.
    """

    messages: int = sys.maxsize
    recipients: int = sys.maxsize
    link: Link | None = None
    failure: RelayError | None = None
    pipelining: bool = True
    upcoming: deque[Transmission] = field(default_factory=deque)
    most_messages: int = sys.maxsize
    _accounts: deque[Account] = field(default_factory=deque)
    _offered: Transmission | None = None
    _ended: Transmission | None = None
    # The last message that was sent, and the connection.
    _sent: tuple[Link, Account] | None = None
    # The connection on which a transmission was split last.
    _split_on: Link | None = None
    _dot: int = 0  # number of bytes of the last write up to the final dot in it

    # For the caller

    def offer(self, account: Account) -> None:
        """Transmit the message of `account` after all that was offered before."""
        self._accounts.append(account)
        indices = [i for i in account.everybody if i not in account.outcomes]
        if indices:
            self.upcoming.append(Transmission(account, indices))

    def completed(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Yield (key, report) of each message that is done, once, in order.

        If the caller fails at a report, the next reports are still there.
        """
        while self._accounts and self._accounts[0].is_done:
            account = self._accounts.popleft()
            outcomes, failure = account.outcomes, account.failure
            report = DeliveryReport(
                account.message_id,
                account.recipients,
                tuple(outcomes[index] for index in sorted(outcomes)),
                relay_failure=failure,
                failed_mid_message=account.failed_mid_message,
                too_many_connections=isinstance(failure, TooManyConnections),
            )
            yield account.key, report

    # For the driver

    def failed(self, failure: RelayError) -> None:
        """Give up: no connection is to be had."""
        self.failure = failure
        self._suffer_upcoming(Loss.NOT_REACHED, failure)

    def awaited(self) -> list[Stage]:
        """Return the stages of the commands that wait for a reply."""
        waiting = []
        if (ended := self._ended) is not None:
            waiting = [Stage.END] * (ended.written - ended.answered)
        if (offered := self._offered) is not None:
            unanswered = offered.commands[offered.answered : offered.written]
            waiting += [command.stage for command in unanswered]
        return waiting

    def receive(self, reply: Reply) -> None:
        """Take the reply to the oldest command that waits for it.

        Afterwards `link` is None if the connection cannot be used any more.
        """
        link, ended = self.link, self._ended
        transmission = self._offered if ended is None else ended
        if transmission is None or link is None:
            raise RuntimeError("no reply is awaited")
        command = transmission.commands[transmission.answered]
        stage, _, code, step, index = command
        if ended is not None:
            ended.state = State.ENDED
        if reply.code != code:
            step = self._meaning(command, reply, transmission, link)
            if isinstance(step, Loss):
                self.lost(_error(step, stage, reply))
                return
        if step is Step.SPLIT:
            self._split(transmission, link)
        else:
            transmission.take(step, index, reply)
        transmission.answered += 1
        if ended is not None:
            if transmission.answered == transmission.written:
                transmission.state = State.DONE
                self._ended = None
            if step is Step.SEND_ALL:
                self._sent = link, transmission.account
            else:
                link.is_dirty = True
        elif stage is not Stage.SESSION:
            transmission.state = State.BOUND

    def _split(self, transmission: Transmission, link: Link) -> None:
        """Have two smaller transmissions follow for the one that the relay refused."""
        self._split_on = link
        limit = transmission.limit
        first, second = transmission.split()
        if limit is None:
            limit = len(first.indices)
        link.most_recipients = min(link.most_recipients, limit)
        self.upcoming.extendleft((second, first))

    def _meaning(
        self, command: Command, reply: Reply, transmission: Transmission, link: Link
    ) -> Step | Loss:
        """Return what an unusual reply to `command` means."""
        kind = self._kind(command.stage, reply, transmission, link)
        if command.step is _FINAL_STEP:
            return FINALS[kind]
        return REPLIES[command.stage, kind]

    def _kind(
        self, stage: Stage, reply: Reply, transmission: Transmission, link: Link
    ) -> Kind:
        code = reply.code
        if code in RELAY_CODES or (stage is Stage.SESSION and code >= 400):
            return Kind.RELAY
        if code < 400:
            if (code >= 300) is not (stage is Stage.DATA):
                return Kind.ODD
            return Kind.YES if code < 300 or code == 354 else Kind.LATER
        if stage is Stage.MAIL and code == 503 and link.messages > 1:
            # "Nested MAIL": but the end of the message before, or RSET, made way.
            return Kind.ODD
        if _is_too_many(stage, reply, transmission):
            return Kind.TOO_MANY
        is_first = stage is Stage.RCPT and not transmission.tried
        if is_first and self._has_sent_on(link) and is_about_number(reply):
            return Kind.RELAY  # the limit is that of the connection
        if stage is Stage.RCPT and code == 552:
            return Kind.LATER  # RFC 5321, 4.5.3.1.10: too many recipients
        return Kind.LATER if code < 500 else Kind.NEVER

    def data_to_send(self) -> bytes:
        """Return the bytes to write now that no reply is awaited.

        With pipelining, the content of one transmission and the envelope of the next
        one leave in the same write.
        """
        link, leaving = self.link, self._offered
        if link is None:
            raise RuntimeError("there is no connection")
        size = GROUP if link.pipelining else 1
        content = dot = envelope = b""
        if leaving is not None:
            group = leaving.next_group(size)
            if group:
                return group
            is_lmtp = link.relay.protocol == "lmtp"
            if leaving.is_welcome:
                content, dot = leaving.content if leaving.accepted else b"", END_OF_DATA
                if is_lmtp and not leaving.accepted:
                    # The final dot has as many replies as recipients were accepted,
                    # and to stop here takes none.
                    leaving.state, self.link, self._offered = State.DONE, None, None
                    return b""
            link.is_dirty = not dot or not leaving.accepted
            self._offered = None
            if leaving.left or leaving.doubtful is not None:
                self._leave(leaving, link)
        if link.pipelining or not dot:
            # If this raises, nothing of the content has left: it is not ENDING yet.
            self._offered = self._next(link)
            if self._offered is not None:
                envelope = self._offered.next_group(size)
        if leaving is not None:
            if dot:
                leaving.state, self._ended = State.ENDING, leaving
                accepted = leaving.accepted
                leaving.commands = list(map(_final, accepted)) if is_lmtp else _ENDS
                leaving.answered, leaving.written = 0, len(leaving.commands)
                self._dot = len(content) + len(dot)
            else:
                leaving.state = State.DONE
        # One copy of the content, which may be large.
        return b"".join((content, dot, envelope))

    def _leave(self, leaving: Transmission, link: Link) -> None:
        """Have those follow who were left, and learn the limit of the relay."""
        if leaving.doubtful is not None and leaving.accepted:
            # Those who were left before are accepted now: it was about the number.
            link.most_recipients = min(link.most_recipients, leaving.doubtful)
        if leaving.left:
            rest = leaving.rest()
            if leaving.is_sure and leaving.limit is not None:
                link.most_recipients = leaving.limit
            else:
                rest.doubtful = leaving.limit
            self.upcoming.appendleft(rest)

    def _next(self, link: Link) -> Transmission | None:
        """Return the next transmission that `link` can take, ready to be written."""
        limits = limits_of(link.extensions) if "LIMITS" in link.extensions else {}
        self.most_messages = min(self.messages, limits.get("MAILMAX", self.messages))
        if "RCPTMAX" in limits:
            link.most_recipients = min(link.most_recipients, limits["RCPTMAX"])
        while self.upcoming and link.messages < self.most_messages:
            transmission = self.upcoming.popleft()
            most = min(self.recipients, link.most_recipients)
            if "RCPTDOMAINMAX" in limits:
                most = transmission.within(most, limits["RCPTDOMAINMAX"])
            if len(transmission.indices) > most:
                self.upcoming.appendleft(transmission.cut(most))
            if transmission.prepare(link):
                is_bound = transmission.has_moved or not link.messages
                transmission.state = State.BOUND if is_bound else State.OFFERED
                link.messages += 1
                return transmission
            transmission.state = State.DONE
        return None

    # When the connection is lost

    def ends_early(self, sent: int) -> bool:
        """Return True if a write that broke after `sent` bytes cut off a final dot."""
        return self._ended is not None and sent < self._dot

    def lost(
        self, error: OSError, sent: int | None = None, last: Reply | None = None
    ) -> None:
        """Account for what was on the connection, which cannot be used any more.

        `sent` is the number of bytes of the last write that have left, and None means
        all. `last` is what has come of the reply to a final dot: all of it if the relay
        replied before the dot had left, otherwise the beginning.
        """
        link, ended, offered = self.link, self._ended, self._offered
        if link is None:
            raise RuntimeError("there is no connection")
        self.link = self._ended = self._offered = None
        if ended is not None:
            if sent is None or sent >= self._dot:
                ended.state = State.ENDED
            error = self._lose_ended(ended, link, error, last)
        loss = behind = _loss(error, link)
        if ended is not None and loss is Loss.SILENT:
            behind = Loss.NOT_REACHED  # the relay has not come to what is offered
        if offered is not None:
            account = offered.account
            if account.is_done and ended is not None and ended.account is account:
                offered.state = State.DONE  # the message has its report
            else:
                if self._has_enough(offered, link, behind, error):
                    behind = Loss.ENOUGH
                self._suffer(offered, behind, error)
        elif ended is None and not link.messages:
            # A new connection, which failed before anything was offered. Another one
            # would fail, too.
            self.failure = _failure(error)
        if self.failure is not None:
            loss = Loss.NOT_REACHED
        self._suffer_upcoming(loss, error)

    def _lose_ended(
        self, ended: Transmission, link: Link, error: OSError, last: Reply | None
    ) -> OSError:
        """Account for the first transmission on a lost connection.

        The code of its last reply decides, also if the reply broke off in its text. An
        uncertain outcome would make the relay get the message again. Before the final
        dot has left, only a refusal can be about the message.

        Return the error as it is for the others.
        """
        if last is not None and (last.code >= 400 or ended.state is State.ENDED):
            command = ended.commands[ended.answered]
            step = self._meaning(command, last, ended, link)
            if isinstance(step, Loss):
                error = _error(step, Stage.END, last)
            else:
                if step is Step.SPLIT:
                    self._split(ended, link)
                else:
                    ended.take(step, command.recipient, last)
                ended.answered += 1
                if ended.answered == ended.written:
                    ended.state = State.DONE
                    return error
        loss, account = _loss(error, link), ended.account
        if ended.state is State.ENDED and loss is Loss.REFUSED:
            # In LMTP, those behind get no reply at all.
            behind = [c.recipient for c in ended.commands[ended.answered + 1 :]]
            account.settle(behind, Status.UNCERTAIN, _unanswered(error))
        self._suffer(ended, loss, error)
        return error

    def _has_enough(
        self, transmission: Transmission, link: Link, loss: Loss, error: OSError
    ) -> bool:
        """Return True if the relay may take the transmission on a new connection.

        It ended this one after it had taken an earlier transmission of the message, or
        had shown how many recipients it takes: Postfix, for example, says 421 after 20
        refusals. 421 itself may be about the number, too. The next transmission is to
        no more than that, so that this happens only as long as it becomes smaller.

        Or we end it, because it has sent something and takes no more recipients.
        """
        if transmission.state is not State.BOUND or loss not in _ENDED_BY_RELAY:
            return False
        limit, reply = transmission.limit, getattr(error, "reply", None)
        if limit is None and isinstance(reply, Reply) and is_about_number(reply):
            limit = transmission.tried or None
        if limit is None and self._split_on is link:
            limit = link.most_recipients
        if limit is not None and limit < self.recipients:
            self.recipients = limit
            return True
        if isinstance(reply, Reply) and reply.code != 421 and is_about_number(reply):
            return self._has_sent_on(link)
        return self._sent == (link, transmission.account)

    def _has_sent_on(self, link: Link) -> bool:
        return self._sent is not None and self._sent[0] is link

    def _suffer(self, transmission: Transmission, loss: Loss, error: OSError) -> None:
        """Do what a cell of `LOSSES` says."""
        fate, account = LOSSES[transmission.state, loss], transmission.account
        if fate is Fate.STAY:
            self.upcoming.append(transmission)
            return
        if fate is Fate.AGAIN:
            if loss is Loss.OUT_OF_STEP:
                log.warning("%s; from now on without pipelining", error)
                self.pipelining = False
            self.upcoming.appendleft(transmission.again())
            return
        transmission.state = State.DONE
        if fate is Fate.DEFERRED:
            account.settle(transmission.indices, Status.DEFERRED, _interrupted(error))
        elif fate is Fate.UNCERTAIN:
            account.settle(transmission.indices, Status.UNCERTAIN, _unanswered(error))
        elif not account.is_done:
            failure, mid_message = _failure(error), fate is Fate.RELAY
            account.fail(failure, transmission.indices, mid_message=mid_message)
            if account.failure is not None:
                self.failure = failure

    def _suffer_upcoming(self, loss: Loss, error: OSError) -> None:
        upcoming, self.upcoming = self.upcoming, deque()
        for transmission in upcoming:
            if transmission.account.is_done:  # by another transmission of it
                transmission.state = State.DONE
            else:
                self._suffer(transmission, loss, error)

    def broken(self, error: BaseException) -> None:
        """Account for an error of the program, or for a caller that gives up.

        A message that may have been sent to some of its recipients gets a report,
        because otherwise it would be sent again. The others count as not offered.
        """
        if self._ended is not None:
            indices = self._ended.indices
            self._ended.account.settle(indices, Status.UNCERTAIN, _unanswered(error))
        self.link = self._ended = self._offered = None
        self.upcoming.clear()
        for account in self._accounts:
            statuses = {outcome.status for outcome in account.outcomes.values()}
            if statuses & {Status.SENT, Status.UNCERTAIN}:
                account.settle(account.everybody, Status.DEFERRED, _interrupted(error))
        self._accounts = deque(a for a in self._accounts if a.is_done)


def _final(index: int) -> Command:
    """Return the final dot in LMTP, as far as it is about one recipient."""
    return Command(Stage.END, "", 250, _FINAL_STEP, index)


def _is_too_many(stage: Stage, reply: Reply, transmission: Transmission) -> bool:
    """Return True if a refusal is about the number, and fewer recipients are possible.

    To RCPT, there were others before: accepted, or refused for another reason, because
    some relays count these, too. To DATA or the final dot, more than one was accepted.
    503 to DATA after a refusal to RCPT says that the relay has given up the whole.
    """
    if stage is Stage.RCPT:
        index = transmission.commands[transmission.answered].recipient
        is_open = index not in transmission.account.outcomes
        return is_open and transmission.tried > 0 and may_be_about_number(reply)
    others = len(transmission.accepted)
    if stage is Stage.DATA and transmission.left and others:
        return reply.code == 503 or is_about_number(reply)
    is_whole = stage in (Stage.DATA, Stage.END)
    is_one_by_one = transmission.commands[-1].step is _FINAL_STEP
    return is_whole and others > 1 and not is_one_by_one and is_about_number(reply)


def may_be_about_number(reply: Reply) -> bool:
    """Return True if a refusal to RCPT names the number as its reason, or no reason.

    Without a reason, it is 452 or 552. For example, 452 4.2.2 is a full mailbox.
    """
    is_plain = reply.code in (452, 552) and reply.enhanced[1:3] in ("", ".0", ".5")
    if is_plain and not _NOT_NUMBER.search(reply.text):
        return True
    return is_about_number(reply)


def is_about_number(reply: Reply) -> bool:
    """Return True if a refusal names the number of recipients as its reason.

    The enhanced code x.5.3 is enough. Otherwise the text decides, except for a code
    about a mailbox (x.2.z) or about policy (x.7.z), such as "4.7.1 Error: too many
    recipients from 192.0.2.1", which is about a rate.
    """
    if reply.enhanced[1:] == ".5.3":
        return True
    if reply.enhanced[1:3] in (".2", ".7") or _NOT_NUMBER.search(reply.text):
        return False
    return _NUMBER.search(reply.text) is not None


def _error(loss: Loss, stage: Stage, reply: Reply) -> RelayError:
    if loss is Loss.REFUSED:
        return RelayError(str(reply), reply)
    command = "the final dot" if stage is Stage.END else stage.value
    return RelayError(f"the relay is out of step: {reply} to {command}")


def _loss(error: OSError, link: Link) -> Loss:
    if isinstance(error, TimeoutError):
        return Loss.SILENT
    if not isinstance(error, RelayError):
        return Loss.CLOSED
    if error.reply is not None:
        return Loss.REFUSED
    return Loss.OUT_OF_STEP if link.pipelining else Loss.CONFUSED


def _failure(error: OSError) -> RelayError:
    if isinstance(error, TimeoutError):
        return RelayError(f"the relay fell silent: {error}")
    return error if isinstance(error, RelayError) else RelayError(str(error))


def _unanswered(error: BaseException) -> Reply:
    return Reply(0, "4.4.2", f"No reply to the end of the message: {_text(error)}")


def _interrupted(error: BaseException) -> Reply:
    return Reply(0, "4.4.2", f"The dialogue was interrupted: {_text(error)}")


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


# A message and its envelope in the form that a relay takes: pure functions.
# `extensions` is what the relay offers: keywords, in upper case, to parameters.


def limits_of(extensions: Mapping[str, str]) -> dict[str, int]:
    """Return the limits that a relay announces (RFC 9422). Others are ignored."""
    words = extensions.get("LIMITS", "").upper().split()
    found = filter(None, map(_LIMIT.fullmatch, words))
    return {limit[1]: int(limit[2]) for limit in found}


def envid(message_id: str) -> str:
    """Return the parameter ENVID of MAIL for `message_id`, or '' if that is empty.

    It is encoded as xtext (RFC 3461, 4), and has at most 100 characters. A longer
    message id loses its end. ENVID is ASCII, so that ``\\xe9`` stands for an é.
    """
    text = ""
    for character in message_id.encode("ascii", "backslashreplace").decode():
        if _NOT_XTEXT.match(character):
            character = f"+{ord(character):02X}"
        if len(text) + len(character) > _MOST_OF_ENVID:
            break
        text += character
    return f" ENVID={text}" if text else ""


def spelled(address: str, extensions: Mapping[str, str]) -> str | Reply:
    """Return `address` as the relay takes it, or the reason why it cannot."""
    if needs_smtputf8(address) and "SMTPUTF8" not in extensions:
        return _NO_SMTPUTF8
    return on_the_wire(address)


def complete(message: bytes) -> bytes:
    """Return `message` with CRLF at the end of each line, including the last line.

    Its length is what SIZE counts (RFC 1870, 5). An empty message stays empty.
    """
    message = to_crlf(message)
    if message and not message.endswith(b"\n"):
        message += b"\r\n"
    return message
