"""The types of postcommit: one beside each interface, and the values that they share.

Applications import them from `postcommit.interfaces`. An interface is an object that
utilities are registered for. A type checker cannot use it as a type, so a `Protocol`
has the members of the interface with their types, and the interface's name without the
"I". The stub ``interfaces.pyi`` says which type belongs to which interface, and a test
compares both with the classes.

The docstrings are summaries. The contracts, units and defaults are those of the
interfaces.
"""
from __future__ import annotations

import enum
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from email.message import Message
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import Protocol
from typing import TypeAlias


if TYPE_CHECKING:
    from postcommit._maildir.item import EntryState
    from postcommit.errors import RelayError


# Arguments

Address: TypeAlias = str | bytes
Addresses: TypeAlias = Address | Iterable[Address]
Sendable: TypeAlias = bytes | str | Message
#: A datetime with a time zone, seconds since the epoch, or a timedelta from now.
Moment: TypeAlias = datetime | timedelta | float

# The values of options; a test compares them with the schema.
TLSName: TypeAlias = Literal["auto", "starttls", "implicit", "none"]
ProtocolName: TypeAlias = Literal["smtp", "lmtp"]
AuthName: TypeAlias = Literal[
    "plain",
    "login",
    "cram-md5",
    "scram-sha-256",
    "oauthbearer",
    "xoauth2",
]


# Values


class Status(enum.Enum):
    """The outcome of one recipient in one attempt."""

    SENT = "sent"
    DEFERRED = "deferred"
    REJECTED = "rejected"
    UNCERTAIN = "uncertain"


class TLSMode(enum.StrEnum):
    """How a mailer uses TLS towards its relay."""

    AUTO = "auto"
    STARTTLS = "starttls"
    IMPLICIT = "implicit"
    NONE = "none"


class ChangeStatus(enum.Enum):
    """The result of the change of one entry, see `QueueChange`."""

    #: The entry was changed.
    DONE = "done"
    #: A processor, or another person, works on the entry now. It was not changed.
    CLAIMED = "claimed"
    #: The entry is not in the queue any more: it was sent or deleted.
    GONE = "gone"
    #: The change is not possible for this entry. It was not changed.
    REFUSED = "refused"


class QueueChange(NamedTuple):
    """The result of a change of one entry by `MailQueue`.

    `id` is the entry's id. `problem` is a sentence that says why the entry was not
    changed, and '' if it was. `warning` says what to expect of a change that was done,
    for example that a second copy may arrive.
    """

    id: str
    status: ChangeStatus
    problem: str = ""
    warning: str = ""

    @property
    def done(self) -> bool:
        """Whether the entry was changed."""
        return self.status is ChangeStatus.DONE


class Tally(NamedTuple):
    """How many recipients were sent, are tried again, were rejected, or given up.

    `deferred` includes those that are uncertain and tried again, `uncertain` counts
    those that may have the message and are not tried again.
    """

    sent: int = 0
    deferred: int = 0
    rejected: int = 0
    uncertain: int = 0


# Outcomes of a message


class Reply(Protocol):
    """The reply of an SMTP server, see `IReply`."""

    @property
    def code(self) -> int: ...

    @property
    def enhanced(self) -> str: ...

    @property
    def text(self) -> str: ...


class Outcome(Protocol):
    """The outcome of one recipient in one attempt, see `IOutcome`."""

    @property
    def recipient(self) -> str: ...

    @property
    def status(self) -> Status: ...

    @property
    def reply(self) -> Reply: ...

    @property
    def given_up(self) -> bool: ...


class DeliveryReport(Protocol):
    """The outcomes of one message in one attempt, see `IDeliveryReport`."""

    @property
    def message_id(self) -> str: ...

    @property
    def recipients(self) -> tuple[str, ...]: ...

    @property
    def outcomes(self) -> tuple[Outcome, ...]: ...

    @property
    def sent(self) -> tuple[Outcome, ...]: ...

    @property
    def deferred(self) -> tuple[Outcome, ...]: ...

    @property
    def rejected(self) -> tuple[Outcome, ...]: ...

    @property
    def uncertain(self) -> tuple[Outcome, ...]: ...

    @property
    def relay_failure(self) -> RelayError | None: ...

    @property
    def failed_mid_message(self) -> bool: ...
    @property
    def too_many_connections(self) -> bool: ...

    def raise_for_failure(self) -> None:
        """Raise `DeliveryError` unless every recipient was sent."""

    def raise_as_smtplib(self) -> None:
        """Raise what smtplib would raise, unless at least one recipient was sent."""


# Sending


class TransactionManager(Protocol):
    """A transaction manager, such as ``transaction.manager`` or ``request.tm``."""

    def begin(self) -> Any:
        """Begin a transaction, and return it."""

    def get(self) -> Any:
        """Return the current transaction."""

    def commit(self) -> Any:
        """Commit the current transaction."""

    def abort(self) -> Any:
        """Abort the current transaction."""


class MailDelivery(Protocol):
    """Sends mail when, and only when, the transaction commits, see `IMailDelivery`."""

    def send(
        self, fromaddr: Address | None, toaddrs: Addresses | None, message: Sendable
    ) -> str:
        """Send `message` when the current transaction commits; return its message id.

        `fromaddr` is the envelope's sender, for example ``"shop@example.org"``, and
        ``""`` is the null sender. `toaddrs` is one address or an iterable of them. None
        means the addresses of the header. `message` is an `EmailMessage`, bytes, or a
        str with header and body.

        Raises `AddressError`, `MessageError` or `QueueError`. See `IMailDelivery`.
        """


class ScheduledMailDelivery(MailDelivery, Protocol):
    """Sends mail later, or calls it off, see `IScheduledMailDelivery`."""

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
        *,
        not_before: Moment | None = None,
        expires: Moment | None = None,
        bulk: bool = False,
    ) -> str:
        """Send `message` on these terms. See `IScheduledMailDelivery`."""

    def cancel(self, message_id: str) -> bool:
        """Call off a mail that waits, when the transaction commits."""


class BindableMailDelivery(MailDelivery, Protocol):
    """A delivery of postcommit, which can be bound to a transaction manager.

    `IMailDelivery` does not promise this, because an application or a test may register
    a delivery without it.
    """

    def bind(self, transaction_manager: TransactionManager) -> MailDelivery:
        """Return a delivery that joins the transactions of `transaction_manager`."""


class SupportsSend(Protocol):
    """A mailer as deliveries and processors call it, of postcommit or of your own.

    They pass bare addresses, of which there is at least one, and a complete message.
    ``send()`` returns a report, or the refused recipients as
    `smtplib.SMTP.sendmail` does, or None: then all were sent. Every exception is an
    outcome, too; those of smtplib are understood.
    """

    def send(
        self, fromaddr: str, toaddrs: tuple[str, ...], message: bytes, /
    ) -> DeliveryReport | Mapping[str, Any] | None:
        """Transmit `message`, or raise."""


class Mailer(Protocol):
    """Transmits one message now, see `IMailer`."""

    def send(
        self, fromaddr: Address | None, toaddrs: Addresses | None, message: Sendable
    ) -> DeliveryReport:
        """Transmit `message` now, and return a report for each recipient.

        `fromaddr` is the envelope's sender, for example ``"shop@example.org"``, and
        ``""`` is the null sender. `toaddrs` is one address or an iterable of them. None
        means the addresses of the header. `message` is an `EmailMessage`, bytes, or a
        str with header and body.

        Raises nothing for a delivery problem. See `IMailer`.
        """


class Outgoing(Protocol):
    """A message and its envelope, ready to be transmitted."""

    @property
    def sender(self) -> str:
        """Bare, checked address; ``''`` is the null sender."""

    @property
    def recipients(self) -> tuple[str, ...]:
        """Bare, checked addresses, at least one."""

    @property
    def message(self) -> bytes:
        """Header, which is complete, and body."""


class Pipeline(Protocol):
    """Transmits messages one behind the other, see `IPipeline`."""

    def __enter__(self) -> Pipeline:
        """Begin."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Close a connection that is in the middle of something."""

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        """Transmit `mail`; `key` comes back with its report."""

    def completed(self) -> Iterable[tuple[Any, DeliveryReport]]:
        """Return (key, report) of each message that is done. Does not wait."""

    def drain(self) -> Iterable[tuple[Any, DeliveryReport]]:
        """Wait for all replies, and yield (key, report) of each message."""


class PipelineMailer(Mailer, Protocol):
    """Transmits several messages with less waiting, see `IPipelineMailer`."""

    @property
    def notify(self) -> Callable[[Any], Any]: ...

    def pipeline(self) -> Pipeline:
        """Return a new pipeline."""


class RelayCheck(Protocol):
    """A mailer that can check whether its relay answers, see `IRelayCheck`."""

    def check(self) -> None:
        """Connect and log in, or raise `RelayError`. Sends nothing."""


class MailQueueProcessor(Protocol):
    """Drains a queue through a mailer, see `IMailQueueProcessor`."""

    @property
    def queuePath(self) -> str: ...

    @property
    def pollingInterval(self) -> int: ...

    @property
    def mailer(self) -> SupportsSend: ...

    @property
    def workers(self) -> int: ...

    @property
    def rate_limit(self) -> float | None: ...

    @property
    def min_backoff(self) -> float: ...

    @property
    def max_backoff(self) -> float: ...

    @property
    def max_age(self) -> float: ...

    @property
    def max_uncertain(self) -> int: ...

    def run(self) -> None:
        """Drain the queue in this thread, until `stop`."""

    def start(self) -> None:
        """Drain the queue in a daemon thread, until `stop` or exit."""

    def stop(self, timeout: float | None = None) -> bool:
        """Let the attempts in flight finish; return whether all has come to rest."""

    def flush(self) -> Tally:
        """Try once all that is due; return the counts of the recipients."""

    @property
    def is_running(self) -> bool: ...


# Looking into a queue


class QueueEntry(Protocol):
    """An entry of a queue, as it was when it was read.

    Times are in seconds since the epoch.
    """

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits, the same for as long as the entry lives."""

    @property
    def state(self) -> EntryState:
        """Where the entry is on its way through the queue."""

    @property
    def name(self) -> str:
        """The name of its file, without the folder."""

    @property
    def place(self) -> str:
        """The path of its file, or a URL with its id."""

    @property
    def accepted(self) -> float | None:
        """When it was accepted, or None if that is unknown."""

    @property
    def changed(self) -> float:
        """When it was written last. For a dead letter, this is when it was given up."""

    @property
    def due(self) -> float | None:
        """When it is tried next, or None if it is not tried by itself."""

    @property
    def expires(self) -> float | None:
        """When it becomes a dead letter, or None if it does not expire."""

    @property
    def size(self) -> int:
        """The number of bytes, with the envelope."""

    @property
    def sender(self) -> str:
        """The sender of the envelope. ``''`` is the null sender."""

    @property
    def recipients(self) -> tuple[str, ...]:
        """The recipients that are left."""

    @property
    def attempts(self) -> int:
        """How many times it was tried."""

    @property
    def uncertain(self) -> int:
        """How many of the attempts may have transmitted the message."""

    @property
    def last_reply(self) -> str:
        """The last reply of the relay, or ``""`` without a reply."""

    @property
    def problem(self) -> str:
        """Why this is not an entry, and cannot be sent. '' for an entry."""

    @property
    def message_id(self) -> str:
        """As `IMailDelivery.send` returned it, or ``""`` if it is missing."""

    @property
    def subject(self) -> str:
        """The subject, decoded, '' if it is missing."""

    @property
    def header(self) -> str:
        """The header of the message, as it is."""


class QueueReason(Protocol):
    """The most common last reply of the entries in one state."""

    @property
    def reply(self) -> str:
        """The reply. Replies that differ in addresses and numbers count as one."""

    @property
    def count(self) -> int:
        """How many of the entries that were looked at have it."""

    @property
    def looked_at(self) -> int:
        """How many entries were looked at."""


class QueuePage(Protocol):
    """The settings of a page for queues, see `IQueuePage`."""

    @property
    def path(self) -> str:
        """The path of the page in the application."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names by which browsers reach the application."""

    @property
    def insecure(self) -> bool:
        """Whether everybody may see the page."""


class QueuePause(Protocol):
    """The queue pauses. Times are in seconds since the epoch."""

    @property
    def since(self) -> float:
        """When the pause began."""

    @property
    def next_attempt(self) -> float:
        """When one entry is tried."""

    @property
    def reason(self) -> str:
        """The trouble of the relay or the disk, in one line."""

    @property
    def process(self) -> int:
        """The id of the process that pauses."""


class QueueStop(Protocol):
    """A person has paused the queue. Times are in seconds since the epoch."""

    @property
    def since(self) -> float:
        """When it was paused."""

    @property
    def who(self) -> str:
        """The name of the user, '' if it is unknown."""

    @property
    def reason(self) -> str:
        """The reason in one line, '' if none was given."""


class QueueReception(Protocol):
    """A receiver from a broker. Times are in seconds since the epoch."""

    @property
    def broker(self) -> str:
        """The URL of the broker, without a password."""

    @property
    def queue(self) -> str:
        """The name of the queue on the broker."""

    @property
    def process(self) -> int:
        """The id of the process that receives."""

    @property
    def began(self) -> float:
        """When it began."""

    @property
    def connected(self) -> bool:
        """Whether it is connected to the broker."""

    @property
    def problem(self) -> str:
        """Why it does not receive now, '' if it does."""

    @property
    def received(self) -> int:
        """How many entries it has received since it began."""

    @property
    def last_acknowledged(self) -> float | None:
        """When it acknowledged an entry last, or None."""


class QueueStatus(Protocol):
    """A queue in a few numbers. Times are in seconds since the epoch."""

    @property
    def counts(self) -> Mapping[EntryState, int]:
        """The number of entries in each state."""

    @property
    def reasons(self) -> Mapping[EntryState, QueueReason]:
        """The most common last reply in a state, if any."""

    @property
    def due(self) -> int:
        """The number of entries that are due now."""

    @property
    def oldest_due(self) -> float | None:
        """When the first of the due entries became due, or None if none is due."""

    @property
    def looked_at(self) -> int:
        """How many deferred entries were read for `due` and `oldest_due`.

        In a large queue these are not all.
        """

    @property
    def heartbeat(self) -> float | None:
        """The last sign of life of a running processor, or None if none runs."""

    @property
    def pause(self) -> QueuePause | None:
        """Why the queue pauses, or None if it does not."""

    @property
    def stopped(self) -> QueueStop | None:
        """Who has paused the queue by hand, or None."""

    @property
    def next_scheduled(self) -> float | None:
        """When the next scheduled entry is due, or None without one."""

    @property
    def oldest_bulk(self) -> float | None:
        """When the first bulk entry began to wait for other mail, or None."""

    @property
    def foreign_claims(self) -> int:
        """How many entries a processor of another library is sending."""

    @property
    def mailbox(self) -> str:
        """Why this is probably a person's mailbox, '' for a queue."""

    @property
    def shortages(self) -> tuple[str, ...]:
        """What the disk has too little of."""

    @property
    def receptions(self) -> Sequence[QueueReception]:
        """The living receivers from a broker."""


class QueueFinding(Protocol):
    """A problem of a queue."""

    @property
    def place(self) -> str:
        """The path of the file or folder."""

    @property
    def problem(self) -> str:
        """What is wrong with it."""

    @property
    def advice(self) -> str:
        """How to solve it. A part between apostrophes is a command for a shell."""


# Events


class MailEvent(Protocol):
    """Reports an outcome of a message, see `IMailEvent`."""

    @property
    def messageId(self) -> str: ...

    @property
    def recipients(self) -> tuple[str, ...]: ...


class MailErrorEvent(MailEvent, Protocol):
    """An attempt failed for these recipients, see `IMailErrorEvent`."""

    @property
    def errorMessage(self) -> str: ...

    @property
    def reply(self) -> Reply | None: ...


# The Maildir


class MaildirMessageWriter(Protocol):
    """Writes one message into a Maildir, see `IMaildirMessageWriter`."""

    def write(self, data: bytes | memoryview | str) -> None:
        """Write bytes, or a str as UTF-8."""

    def writelines(self, lines: Iterable[bytes | memoryview | str]) -> None:
        """Write each of `lines`; no separators are added."""

    def close(self) -> None:
        """Close the file, so that few are open."""

    def commit(self) -> None:
        """Make the message durable and move it from ``tmp`` to ``new``."""

    def abort(self) -> None:
        """Remove the file."""


class Maildir(Protocol):
    """A Maildir folder, see `IMaildir`."""

    def __iter__(self) -> Iterator[str]:
        """Iterate over the path names of the messages, new ones first."""

    def newMessage(self) -> MaildirMessageWriter:
        """Create a file in ``tmp`` and return its writer."""


class MaildirFactory(Protocol):
    """Opens Maildir folders, see `IMaildirFactory`."""

    def __call__(self, dirname: str, create: bool = False) -> Maildir:
        """Open the Maildir at the path `dirname`."""


# Inside


class Batch(Protocol):
    """The work of one delivery in one transaction, see `IBatch`."""

    @property
    def sort_key(self) -> str: ...

    def prepare(self, items: Sequence[Any], *, alone: bool = False) -> None:
        """Do all that can fail; raise to refuse the commit."""

    def publish(self, items: Sequence[Any]) -> Callable[[], None] | None:
        """Let the decided commit take effect."""

    def discard(self, items: Sequence[Any]) -> None:
        """Undo all that was done for `items`. Never raises."""

    def abandon(self, items: Sequence[Any]) -> None:
        """End with `items` without knowing whether the transaction took place."""
