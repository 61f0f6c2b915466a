"""The contracts of postcommit, and the defaults of all options.

How mail leaves an application:

- The application looks up an `IMailDelivery` utility and calls `send` inside
  a transaction. It gets a message id, by which it can follow the message in
  `IMailEvent` events.
- On commit, an `IDirectMailDelivery` hands the message to its mailer at once;
  an `IQueuedMailDelivery` accepts it into a queue, a Maildir on disk, where it
  survives restarts and crashes.
- An `IMailQueueProcessor`, a thread or a process of its own, drains the queue
  through an `IMailer`, which talks to the relay. It retries what failed for
  now and keeps what failed for good.
- The outcome of each recipient is in an `IDeliveryReport`, in events, in the log, and
  in what remains in the queue.

Deliveries publish the events of a commit when every resource has finished, each in a
transaction of its own.

An interface is an object, by which utilities are registered and found. The type for
annotations has its name without the "I", for example ``delivery: MailDelivery``. Such
a `typing.Protocol` is in this module, too. Where there is only one class of that name,
such as `SMTPMailer` or `MailSentEvent`, it is in `postcommit`.
"""
from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal

from zope.i18nmessageid import MessageFactory
from zope.interface import Attribute
from zope.interface import Interface
from zope.interface import taggedValue
from zope.schema import Bool
from zope.schema import Choice
from zope.schema import Field
from zope.schema import Float
from zope.schema import Int
from zope.schema import Object
from zope.schema import Password
from zope.schema import Text
from zope.schema import TextLine
from zope.schema import Tuple

from postcommit._types import Address as Address
from postcommit._types import Addresses as Addresses
from postcommit._types import AuthName as AuthName
from postcommit._types import Batch as Batch
from postcommit._types import BindableMailDelivery as BindableMailDelivery
from postcommit._types import ChangeStatus as ChangeStatus
from postcommit._types import DeliveryReport as DeliveryReport
from postcommit._types import MailDelivery as MailDelivery
from postcommit._types import Maildir as Maildir
from postcommit._types import MaildirFactory as MaildirFactory
from postcommit._types import MaildirMessageWriter as MaildirMessageWriter
from postcommit._types import Mailer as Mailer
from postcommit._types import MailErrorEvent as MailErrorEvent
from postcommit._types import MailEvent as MailEvent
from postcommit._types import MailQueueProcessor as MailQueueProcessor
from postcommit._types import Moment as Moment
from postcommit._types import Outcome as Outcome
from postcommit._types import Outgoing as Outgoing
from postcommit._types import Pipeline as Pipeline
from postcommit._types import PipelineMailer as PipelineMailer
from postcommit._types import ProtocolName as ProtocolName
from postcommit._types import QueueChange as QueueChange
from postcommit._types import QueueEntry as QueueEntry
from postcommit._types import QueueFinding as QueueFinding
from postcommit._types import QueuePage as QueuePage
from postcommit._types import QueuePause as QueuePause
from postcommit._types import QueueReason as QueueReason
from postcommit._types import QueueReception as QueueReception
from postcommit._types import QueueStatus as QueueStatus
from postcommit._types import QueueStop as QueueStop
from postcommit._types import RelayCheck as RelayCheck
from postcommit._types import Reply as Reply
from postcommit._types import ScheduledMailDelivery as ScheduledMailDelivery
from postcommit._types import Sendable as Sendable
from postcommit._types import Status as Status
from postcommit._types import SupportsSend as SupportsSend
from postcommit._types import Tally as Tally
from postcommit._types import TLSMode as TLSMode
from postcommit._types import TLSName as TLSName
from postcommit._types import TransactionManager as TransactionManager


if TYPE_CHECKING:
    from postcommit._maildir.item import EntryState


_ = MessageFactory("postcommit")


_PATH = r"(?![A-Za-z][\w+.-]+:/)[^\0\r\n\ud800-\udc7f\udd00-\udfff]*"
_DATABASE_URL = r"(?is:postgres(ql)?:/.*)"


#: Whether a text can be a path of the file system. A path is without line breaks and
#: NULs. Of the surrogates, it has only those that stand for bytes (PEP 383). A URL is
#: not a path. Its second slash may be missing: pathlib, for example, drops it.
can_be_path = re.compile(_PATH).fullmatch


#: Whether a text begins as the URL of a queue in PostgreSQL. Its second slash may be
#: missing, as in `can_be_path`.
is_database_url = re.compile(_DATABASE_URL).fullmatch


#: Whether a text can name a queue: by a path, or by a URL.
can_be_queue = re.compile(f"{_PATH}|{_DATABASE_URL}").fullmatch


#: Whether a text can be the schema of a queue: an identifier of small letters that is
#: not reserved for the server.
is_schema = re.compile(
    r"(?!pg_|information_schema\Z)[a-z_][a-z0-9_]{0,62}"
).fullmatch


def is_path(field: Field) -> bool:
    """Return whether the values of `field` are paths of the file system.

    Some may also be the URL of a queue.
    """
    return vars(field).get("constraint") in (can_be_path, can_be_queue)


def can_be_host(value: str) -> bool:
    """Return whether `value` can be a host's name or address, without a port or user.

    For example, a URL is not a host.
    """
    return value.isprintable() and not set(value) & set(" /@")


def is_ip_address(value: str) -> bool:
    """Return whether `value` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


#: Whether a text can be the path of a page of an application, such as ``/mail``.
is_page_path = re.compile(r"(/[A-Za-z0-9._~-]+)+/?").fullmatch


#: Whether a text can be the name or address of a host in a URL, without a port.
is_url_host = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
    r"|\[?[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%\w+)?\]?"
).fullmatch


# Outcomes of a message


class IReply(Interface):
    """The reply of an SMTP server (RFC 5321, 4.2).

    If the relay gave no reply, postcommit makes a reply that says what happened, with
    the `code` 0.
    """

    code = Int(
        title=_("Code"),
        description=_("Three digits; 0 where the text is not the relay's."),
        default=0,
    )
    enhanced = TextLine(
        title=_("Enhanced status code"),
        description=_("As in RFC 3463, like 4.2.0; empty where there is none."),
        default="",
    )
    text = Text(
        title=_("Text"),
        description=_("Without codes; several lines are joined by line feeds."),
        default="",
    )


class IOutcome(Interface):
    """The outcome of one recipient in one attempt."""

    recipient = TextLine(title=_("Recipient"), description=_("A bare address."))
    status = Choice(
        title=_("Status"),
        description=_("Sent, deferred, rejected or uncertain."),
        values=tuple(Status),
    )
    reply = Object(
        title=_("Reply"),
        description=_("The relay's reply about this recipient, or about all."),
        schema=IReply,
    )
    given_up = Bool(
        title=_("Given up"),
        description=_(
            "Whether an uncertain recipient is not tried again: it may have the"
            " message, and gets no further copy."
        ),
        default=False,
    )


class IDeliveryReport(Interface):
    """The outcomes of one message in one attempt.

    Usually each of the recipients has an outcome. If the relay itself was in trouble,
    `relay_failure` says so. Then only recipients that were decided before have an
    outcome, usually none, and the others do not have the message.
    """

    message_id = TextLine(
        title=_("Message id"), description=_("Without angle brackets.")
    )
    recipients = Tuple(
        title=_("Recipients"), description=_("All of the attempt, in its order.")
    )
    outcomes = Tuple(
        title=_("Outcomes"),
        description=_(
            "One `IOutcome` for each recipient, in the same order. If the relay"
            " failed, only for those that were decided before."
        ),
    )
    sent = Tuple(title=_("Sent"), description=_("The relay has them."))
    deferred = Tuple(title=_("Deferred"), description=_("Refused for now."))
    rejected = Tuple(title=_("Rejected"), description=_("Refused for good."))
    uncertain = Tuple(
        title=_("Uncertain"),
        description=_(
            "The connection was lost between the end of the message and the"
            " relay's reply to it: they may have the message or not."
        ),
    )
    relay_failure = Attribute(
        "The `RelayError` that says why the relay does not work: its text names each"
        " address that was tried, and its `reply` is the last `IReply`, or None without"
        " one. None where the relay is well."
    )
    failed_mid_message = Attribute(
        "True if the relay failed in the middle of this message, for example by"
        " answering 421 to a recipient. It may then be a poison message."
    )
    too_many_connections = Attribute(
        "True if the relay has refused one more connection while others of the mailer"
        " were in use; only with `relay_failure`."
    )

    def raise_for_failure() -> None:
        """Raise `DeliveryError` unless every recipient was sent."""

    def raise_as_smtplib() -> None:
        """Raise what smtplib would raise, unless at least one recipient was sent.

        For code that was written for smtplib.
        """


# Sending


class IMailDelivery(Interface):
    """A utility that sends mail when, and only when, the transaction commits."""

    def send(
        fromaddr: Address | None, toaddrs: Addresses | None, message: Sendable
    ) -> str:
        """Send `message` when the current transaction commits.

        `fromaddr` is the envelope's sender, str or bytes. A display name is
        allowed and dropped; ``''`` is the null sender; None means the header's
        Sender, or From.

        `toaddrs` is a str or bytes, or any iterable of them. A single str or bytes
        is one address. None means those of the header's To, Cc and Bcc.

        `message` is bytes, a str (sent as UTF-8) or an
        `email.message.Message`. A missing Message-Id or Date is added, Bcc is
        removed.

        Returns the message id, without angle brackets.

        Raises `AddressError` (a ValueError) for an address that can never
        work or no recipients, `MessageError` (a ValueError) for a malformed
        Message-Id, `MessageTypeError` (a TypeError) for a message of another
        type, and `QueueError` (an OSError) where the queue cannot be written.
        The transaction is then as it was.
        """


class IScheduledMailDelivery(IMailDelivery):
    """A delivery whose mail may wait, expire, step back or be called off.

    Deliveries into a queue provide it. A delivery that transmits during the commit does
    not.
    """

    def send(
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
        *,
        not_before: Moment | None = None,
        expires: Moment | None = None,
        bulk: bool = False,
    ) -> str:
        """Send `message` when the current transaction has committed, on these terms.

        The mail is not sent before `not_before`. A time in the past means at once.

        The mail is not sent after `expires`. Then it becomes a dead letter, and an
        `IMailRejectedEvent` says ``4.4.7 it expired before it was sent``.
        This also happens earlier, if an attempt fails for now and the next attempt
        would come after that time.

        With `bulk`, the mail is sent when nothing else is to be sent.

        A time is a `datetime.datetime` with a time zone, the seconds since the epoch,
        or a `datetime.timedelta` from now, for example ``timedelta(minutes=15)``.

        Other arguments, the result and errors are those of `IMailDelivery.send`. Also
        raises `OptionError` (a ValueError) for anything that is not a time, for a time
        more than 10 years ahead, and if `expires` is in the past or not after
        `not_before`.
        """

    def cancel(message_id: str) -> bool:
        """Call off a mail that has not been sent, when the transaction commits.

        `message_id` is what `send` returned, with or without angle brackets. The mail
        may wait for its time, for other mail, or for another attempt. It may also have
        been sent in this transaction. From now on no processor takes it. If the
        transaction aborts, or is rolled back to an earlier savepoint, the mail waits as
        before.

        Returns False if the mail is being sent, was sent or is unknown. If some of its
        recipients were sent before, it is called off for the others. If the process
        dies during the commit, the mail may still be sent. Raises `OptionError` for
        what is not a message id, and `QueueError` if the queue cannot be read.
        """


class IMailer(Interface):
    """Transmits one message now."""

    def send(
        fromaddr: Address | None, toaddrs: Addresses | None, message: Sendable
    ) -> IDeliveryReport:
        """Transmit `message`, and return an `IDeliveryReport`.

        The arguments are those of `IMailDelivery.send`.

        Raises nothing for a delivery problem: not for the network, a reply,
        TLS or authentication. Raises ValueError or TypeError for arguments
        that can never work.

        Announces the report at once: a line for each recipient in the log, and
        `IMailEvent` events. They are published in the transaction of the caller, if
        it has begun one, otherwise each in a transaction of its own.

        Deliveries and processors announce what a mailer reports when the commit is
        over, or the entry is settled. So a mailer that is written for them, and has
        no `IPipelineMailer.pipeline`, should not announce anything itself.
        """


class IPipeline(Interface):
    """Transmits messages one behind the other. For one thread, and one use.

    It reports, and its caller announces::

        with mailer.pipeline() as pipeline:
            for mail in mails:
                pipeline.offer(mail, key=mail)
                for mail, report in pipeline.completed():
                    ...
            for mail, report in pipeline.drain():
                ...

    No method raises for a delivery problem. An exception out of `offer` or `drain` is
    an error of the program. `completed` still returns the reports that exist, and also
    that of a message whose end may have left. A message without a report was not sent.

    After a relay failure, every further message fails alike and at once, with
    `failed_mid_message` false.
    """

    def __enter__() -> IPipeline:
        """Begin."""

    def __exit__(kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Close a connection that is in the middle of something."""

    def offer(mail: Outgoing, key: Any = None) -> None:
        """Transmit `mail`.

        Returns when the last of it is on the wire, except for its end, or when it has
        its report. May wait for replies to the messages before. `key` is anything, and
        comes back with the report.
        """

    def completed() -> Iterable[tuple[Any, IDeliveryReport]]:
        """Return (key, report) of each message that is done, in the order of `offer`.

        Does not wait. Each report is returned once, here or by `drain`. If it is the
        result of an iterator, what the caller has not taken comes with the next call.
        """

    def drain() -> Iterable[tuple[Any, IDeliveryReport]]:
        """Wait for all replies, and yield (key, report) as `completed`.

        Each report is there before the reply to the next message is waited for.
        """


class IPipelineMailer(IMailer):
    """A mailer that transmits several messages with less waiting.

    Deliveries and processors use `pipeline` if a mailer has it, and otherwise `send`.
    They also use `send` if it is defined closer to the mailer than `pipeline`, such as
    in a subclass of `SMTPMailer`, so that it is not bypassed. A mailer that wraps
    another should wrap its `pipeline`, too, because `send` waits for each message.
    """

    notify = Attribute("The function that the caller of `pipeline` announces with.")

    def pipeline() -> IPipeline:
        """Return a new `IPipeline`."""


class IRelayCheck(Interface):
    """A mailer that can check whether its relay answers."""

    def check() -> None:
        """Connect and log in, or raise `RelayError`. Sends nothing."""


class ITLSOptions(Interface):
    """How to prove the server's name, and ours, in TLS: to a relay or a broker."""

    cafile = TextLine(
        title=_("CA file"),
        description=_(
            "File with the certificates of the authorities to trust (PEM);"
            " none: the system's."
        ),
        required=False,
        constraint=can_be_path,
    )
    verify = Bool(
        title=_("Verify the certificate"),
        description=_(
            "Whether the server must prove its name. Without, anybody on the"
            " way can read the mail and the password."
        ),
        default=True,
    )
    certfile = TextLine(
        title=_("Client certificate"),
        description=_(
            "File with the certificate to show to the server, and those of its"
            " authorities (PEM); none: without."
        ),
        required=False,
        constraint=can_be_path,
    )
    keyfile = TextLine(
        title=_("Client key"),
        description=_(
            "File with the private key of the client certificate, without a"
            " passphrase (PEM); none: it is in the file of the certificate."
        ),
        required=False,
        constraint=can_be_path,
    )
    server_name = TextLine(
        title=_("Server name"),
        description=_(
            "Name that the server's certificate must have, and that is sent as SNI;"
            " none: the host name."
        ),
        required=False,
        min_length=1,
        constraint=can_be_host,
    )


class ISMTPMailer(IPipelineMailer, IRelayCheck, ITLSOptions):
    """Transmits through an SMTP relay (RFC 5321)."""

    hostname = TextLine(
        title=_("Host name"),
        description=_(
            "Name or address of the relay, or the path of a unix socket, such as"
            " /run/dovecot/lmtp."
        ),
        default="localhost",
        min_length=1,
    )
    port = Int(
        title=_("Port"),
        description=_("TCP port of the relay."),
        default=25,
        min=1,
        max=65535,
    )
    username = TextLine(
        title=_("User name"),
        description=_("For authentication; none: without."),
        required=False,
    )
    password = Password(
        title=_("Password"),
        description=_("For authentication; never sent in clear but to loopback."),
        required=False,
    )
    tls = Choice(
        title=_("TLS"),
        description=_(
            "auto: STARTTLS where offered; the certificate is verified if there is a"
            " login to another host. starttls: required. implicit: from the first"
            " byte, usually on port 465. none: never."
        ),
        values=tuple(mode.value for mode in TLSMode),
        default=TLSMode.AUTO.value,
    )
    auth = Choice(
        title=_("Login mechanism"),
        description=_(
            "Mechanism of AUTH (RFC 4954) to log in with; none: the best one that the"
            " relay offers."
        ),
        values=(
            "plain",
            "login",
            "cram-md5",
            "scram-sha-256",
            "oauthbearer",
            "xoauth2",
        ),
        required=False,
    )
    helo_name = TextLine(
        title=_("HELO name"),
        description=_(
            "Name of this host in EHLO, HELO or LHLO; none: its full name, or its"
            " address such as [192.0.2.1]."
        ),
        required=False,
        min_length=1,
        constraint=can_be_host,
    )
    source_address = TextLine(
        title=_("Source address"),
        description=_(
            "IP address of this host from which to connect; none: the system chooses."
        ),
        required=False,
        min_length=1,
        constraint=is_ip_address,
    )
    protocol = Choice(
        title=_("Protocol"),
        description=_(
            "smtp, or lmtp (RFC 2033) for a mail store such as Dovecot or Cyrus."
        ),
        values=("smtp", "lmtp"),
        default="smtp",
    )
    connect_timeout = Float(
        title=_("Time-out to connect"),
        description=_(
            "Seconds until the connection stands, for each address of the relay. The"
            " lookup of its name is not limited by it."
        ),
        default=30.0,
        min=0.001,
    )
    timeout = Float(
        title=_("Time-out"),
        description=_(
            "Seconds to wait for each reply but the last one of a message; none: as"
            " RFC 5321, 4.5.3.2 has it for each phase, two to five minutes."
        ),
        required=False,
        min=0.001,
    )
    final_timeout = Float(
        title=_("Time-out for the final reply"),
        description=_(
            "Seconds to wait for the reply to the end of a message. If it comes later,"
            " the message may be sent twice."
        ),
        default=600.0,
        min=0.001,
    )
    recipients_per_transaction = Int(
        title=_("Recipients for each transaction"),
        description=_(
            "Maximum number. A message with more recipients is transmitted several"
            " times over one connection, each time to others."
        ),
        default=50,
        min=1,
    )
    dsn = Bool(
        title=_("Delivery status notifications"),
        description=_(
            "Whether to ask for notifications with the header only, and with the"
            " message id as ENVID, where the relay offers DSN (RFC 3461)."
        ),
        default=False,
    )
    messages_per_connection = Int(
        title=_("Messages for each connection"),
        description=_("After so many a connection is closed."),
        default=100,
        min=1,
    )
    idle_timeout = Float(
        title=_("Idle time"),
        description=_("Seconds for which an unused connection is kept."),
        default=30.0,
        min=0.0,
    )
    pipelining = Bool(
        title=_("Pipelining"),
        description=_("Whether to use it where it is offered (RFC 2920)."),
        default=True,
    )
    token = Attribute(
        "A function that returns an OAuth access token, a fresh one each time, or"
        " raises OSError; None: the password is used."
    )
    ssl_context = Attribute(
        "The `ssl.SSLContext` to use, in place of `cafile`, `verify`, `certfile` and"
        " `keyfile`; None: one is made from these."
    )
    notify = Attribute(
        "The function that events are published with: `zope.event.notify`."
    )

    def close() -> None:
        """Close the connections. The next message opens another.

        They are those of all mailers with equal options in this process. One that
        another thread uses is closed after its message.
        """


class ISendmailMailer(IMailer):
    """Transmits through the ``sendmail`` command of the local mail system."""

    # Another mailer has the option `timeout`, too. In settings, this is
    # ``sendmail_timeout``.
    taggedValue("settings_prefix", "sendmail_")

    command = TextLine(
        title=_("Command"),
        description=_("Path of the program; its arguments are those of sendmail."),
        default="/usr/sbin/sendmail",
        min_length=1,
        constraint=can_be_path,
    )
    timeout = Float(
        title=_("Time-out"),
        description=_("Seconds until the program is killed."),
        default=600.0,
        min=0.001,
    )
    recipients_per_transaction = Int(
        title=_("Recipients for each call"),
        description=_(
            "Maximum number. With more recipients, the program is run several times."
        ),
        default=50,
        min=1,
    )
    notify = Attribute(
        "The function that events are published with: `zope.event.notify`."
    )


class IFileMailer(IMailer):
    """Writes each message into a file, for development. No message is sent."""

    folder = TextLine(
        title=_("Folder"),
        description=_("Where the files are; created where it is missing."),
        min_length=1,
        constraint=can_be_path,
    )
    notify = Attribute(
        "The function that events are published with: `zope.event.notify`."
    )


class IFailoverMailer(IPipelineMailer, IRelayCheck):
    """Transmits through the first of several mailers whose relay works.

    A message goes to the next mailer if the relay of the mailer before failed before
    the message had its turn: it cannot be reached, for example, or refuses a login.
    Recipients that were sent, deferred or rejected keep that outcome, and so do
    those that are uncertain. A relay that refuses one more connection while others are
    in use has not failed, and the next mailer takes the message. If no mailer is left,
    a direct delivery waits for one of the connections.
    """

    # In settings, an option of this mailer is ``failover_retry_after``, for example.
    taggedValue("settings_prefix", "failover_")

    retry_after = Float(
        title=_("Retry after"),
        description=_(
            "Seconds until a mailer whose relay failed is tried again, with one"
            " message. If all have failed, they are tried at once."
        ),
        default=60.0,
        min=0.0,
    )
    round_robin = Bool(
        title=_("Round robin"),
        description=_(
            "Whether the messages take turns among the mailers that work. If not, the"
            " first one that works gets them all."
        ),
        default=False,
    )
    mailers = Attribute(
        "A tuple of the mailers, in the order in which they are tried. They may be of"
        " any kind: a mailer without `IPipelineMailer.pipeline` is sent to one by one."
    )
    notify = Attribute(
        "The function that events are published with: `zope.event.notify`."
    )

    def check() -> None:
        """Return if the relay of at least one mailer answers, or raise `RelayError`.

        A mailer that cannot check its relay counts as a mailer whose relay answers.
        """

    def close() -> None:
        """Close the connections of all mailers. The next message opens another."""


class IBroker(ITLSOptions):
    """How to reach a RabbitMQ broker, and its queue."""

    # Other mailers have the option `timeout`, too. In settings, this is
    # ``amqp_timeout``.
    taggedValue("settings_prefix", "amqp_")

    url = TextLine(
        title=_("URL"),
        description=_(
            "amqps://USER@HOST:PORT/VHOST, or amqp:// without TLS, for a broker on this"
            " machine. Several hosts are separated by commas, and are tried in turn."
            " The login without a user is certfile, or guest."
        ),
        min_length=1,
    )
    queue = TextLine(
        title=_("Queue"),
        description=_("Name of the quorum queue on the broker."),
        default="postcommit",
        min_length=1,
        max_length=255,
    )
    password = Password(
        title=_("Password"),
        description=_(
            "For the user in the URL; none: the URL has it. Never sent in clear but to"
            " loopback."
        ),
        required=False,
    )
    connect_timeout = Float(
        title=_("Time-out to connect"),
        description=_("Seconds until the connection stands, for each host."),
        default=10.0,
        min=0.001,
    )
    timeout = Float(
        title=_("Time-out"),
        description=_("Seconds to wait for each answer of the broker."),
        default=30.0,
        min=0.001,
    )
    heartbeat = Int(
        title=_("Heartbeat"),
        description=_(
            "Seconds after which a silent connection is checked. It is given up when"
            " nothing came for twice as long."
        ),
        default=60,
        min=1,
        max=65535,
    )


class IAMQPMailer(IPipelineMailer, IRelayCheck, IBroker):
    """Hands messages over to a RabbitMQ broker (AMQP 0-9-1).

    A message is sent if the broker has confirmed it. Other mail nodes receive it with
    ``postcommit receive``. Everything else is the relay's failure.
    """

    window = Int(
        title=_("Window"),
        description=_("Maximum number of messages that wait for their confirm."),
        default=64,
        min=1,
    )
    max_size = Int(
        title=_("Maximal size"),
        description=_(
            "Bytes of an entry that the broker takes: its max_message_size. A larger"
            " message is rejected."
        ),
        default=134217728,
        min=1,
    )
    notify = Attribute(
        "The function that events are published with: `zope.event.notify`."
    )

    def close() -> None:
        """Close the idle connections. The next message opens another."""


class IQueueReceiver(IBroker):
    """Receives entries from a RabbitMQ broker into a queue on disk.

    The methods may be called from any thread.
    """

    # Not those of the mailer: a processor with its URL would send everything back.
    taggedValue("settings_prefix", "receive_")

    prefetch = Int(
        title=_("Prefetch"),
        description=_("Maximum number of entries that are received at a time."),
        default=128,
        min=1,
        max=65535,
    )
    queuePath = Attribute(
        "Folder of the queue, which must exist. A relative one is below the working"
        " directory of the moment when it is given."
    )

    def run() -> None:
        """Receive in this thread, until `stop`."""

    def stop() -> None:
        """Let `run` return after the entries that it is accepting. Does not wait."""

    def declare() -> None:
        """Create the quorum queue on the broker, if it is missing.

        Raises `RelayError`, also if there is a queue of another type.
        """


class IDefaultSender(Interface):
    """A delivery that has a sender for messages without a sender."""

    default_sender = TextLine(
        title=_("Default sender"),
        description=_(
            "Address, perhaps with a display name, from which a message is sent if"
            " `fromaddr` is None and the header has neither From nor Sender. It"
            " becomes the From field. none: such a message is refused."
        ),
        required=False,
        min_length=1,
    )


class IDirectMailDelivery(IMailDelivery, IDefaultSender):
    """Transmits while the transaction commits. The user waits.

    A delivery problem does not harm the commit: it is an event afterwards.
    """

    def send(
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
        *,
        not_before: None = None,
        expires: None = None,
        bulk: Literal[False] = False,
    ) -> str:
        """Transmit `message` when the current transaction commits.

        Arguments, the result and errors are those of `IMailDelivery.send`. Also raises
        `OptionError` (a ValueError) for the keywords of `IScheduledMailDelivery`,
        because only a delivery with a queue can let mail wait.
        """

    mailer = Object(
        title=_("Mailer"),
        description=_("Transmits the messages."),
        schema=IMailer,
    )
    check_relay = Attribute(
        "True if the vote asks the mailer whether its relay answers. The transaction"
        " aborts if it does not."
    )


class IQueuedMailDelivery(IScheduledMailDelivery, IDefaultSender):
    """Accepts messages into a queue, from which a processor sends them."""

    queuePath = TextLine(
        title=_("Queue path"),
        description=_(
            "Folder of the queue; created where it is missing. A relative one is below"
            " the working directory of the moment when it is given. Or the URL of a"
            " queue in PostgreSQL, such as postgresql://host/db."
        ),
        min_length=1,
        constraint=can_be_queue,
    )


class IOutboxMailDelivery(IScheduledMailDelivery, IDefaultSender):
    """Accepts messages into a queue in PostgreSQL, by the application's own session.

    The mail is a row of the application's own transaction, so the same COMMIT decides
    both. Nothing can be in doubt.
    """

    session = Attribute(
        "The session of SQLAlchemy, or the `scoped_session`, that inserts the rows."
    )
    schema = TextLine(
        title=_("Schema"),
        description=_("Schema of the queue, which 'postcommit migrate' has created."),
        default="postcommit",
        constraint=is_schema,
    )


class IMailQueueProcessor(Interface):
    """Drains a queue through a mailer.

    The methods may be called in any order, and again, from any thread.
    """

    queuePath = TextLine(
        title=_("Queue path"),
        description=_(
            "Folder of the queue; created where it is missing. A relative one is below"
            " the working directory of the moment when it is given. Or the URL of a"
            " queue in PostgreSQL, such as postgresql://host/db."
        ),
        min_length=1,
        constraint=can_be_queue,
    )
    pollingInterval = Int(
        title=_("Polling interval"),
        description=_(
            "Milliseconds between two looks into the queue, should a commit's"
            " wake-up not arrive."
        ),
        default=5000,
        min=1,
    )
    mailer = Object(
        title=_("Mailer"),
        description=_("Transmits the messages."),
        schema=IMailer,
    )
    workers = Int(
        title=_("Workers"),
        description=_(
            "Threads that transmit, each with a connection, at most. Fewer work"
            " where the relay is quick."
        ),
        default=4,
        min=1,
    )
    rate_limit = Float(
        title=_("Rate limit"),
        description=_("Messages per second; none: without limit."),
        required=False,
        min=0.0001,
    )
    min_backoff = Float(
        title=_("Minimal back-off"),
        description=_("Seconds until a deferred message is tried again, at least."),
        default=60.0,
        min=0.0,
    )
    max_backoff = Float(
        title=_("Maximal back-off"),
        description=_("Seconds until a deferred message is tried again, at most."),
        default=4000.0,
        min=0.0,
    )
    max_age = Float(
        title=_("Maximal age"),
        description=_(
            "Age in seconds from which the next failure of a message is its last. It is"
            " not an expiry: a message that waits is sent, however old it is."
        ),
        default=432000.0,
        min=0.0,
    )
    max_uncertain = Int(
        title=_("Maximal number of uncertain attempts"),
        description=_(
            "Attempts after which it is not known whether the message has arrived,"
            " as when the connection is lost before the last reply. Then it is given"
            " up, because each attempt may be one more copy."
        ),
        default=3,
        min=1,
    )

    def run() -> None:
        """Drain the queue in this thread, until `stop`.

        If it drains already because of `start`, wait for the end of that.
        """

    def start() -> None:
        """Drain the queue in a daemon thread, until `stop` or exit."""

    def stop(timeout: float | None = None) -> bool:
        """Let the attempts in flight finish, and wait for them.

        `timeout`, in seconds, bounds the wait; None does not. Returns whether
        all has come to rest. A thread that was made to call `run`, and has not got
        there, is not known yet; one of `start` is.
        """

    def flush() -> Tally:
        """Try once all that is due.

        Returns how many recipients were sent, deferred, rejected and given up.
        """

    is_running = Attribute(
        "True while `run`, `start` or `flush` of this object drains the queue. False"
        " before, after `stop`, and in a forked child. Whether a processor runs in any"
        " process is in `IMailQueue.status`."
    )


# Looking into a queue


class IMailQueue(Interface):
    """A queue, for support pages and scripts: what the commands can do, from Python.

    An entry is given by its id, which `list` returns, by the beginning of an id, by a
    message id, or as an object that `list`, `find` or `show` has returned. A method
    raises `ItemError` for an id without an entry, and `QueueError` if the queue is
    missing or in trouble. Any thread may call any method.
    """

    queuePath = TextLine(
        title=_("Queue path"),
        description=_(
            "Folder of the queue, which must exist. A relative one is below the working"
            " directory of the moment when it is given. Or the URL of a queue in"
            " PostgreSQL, such as postgresql://host/db."
        ),
        min_length=1,
        constraint=can_be_queue,
    )
    name = Attribute("`queuePath` for people: a path, or a URL without its password.")

    def status(most_seconds: float = 2.0) -> QueueStatus:
        """Count the entries, and return the state of the queue.

        Deferred entries are read for `most_seconds` at most.
        """

    def attention(
        status: QueueStatus,
        *,
        warn_age: float = 900.0,
        warn_paused: float = 300.0,
        warn_failed: int | None = None,
        needs_processor: bool = True,
    ) -> tuple[str, ...]:
        """Return a sentence, with advice, for each thing that needs attention.

        An entry may be due for `warn_age` seconds, and a bulk entry may wait for as
        long if no processor is running. The queue may pause for `warn_paused` seconds
        while something is due. There may be `warn_failed` dead letters, None is without
        limit. `needs_processor` is false if a timer runs ``postcommit flush``.
        """

    def check() -> Iterator[QueueFinding]:
        """Yield what is wrong with the queue. Changes nothing."""

    def list(
        *states: EntryState,
        recipient: str = "",
        sender: str = "",
        message_id: str = "",
        search: str = "",
        older: float | None = None,
        newer: float | None = None,
        start: int = 0,
        step: Callable[[], None] | None = None,
    ) -> Iterator[QueueEntry]:
        """Yield the entries in these `states`, or in all, as they are found.

        `recipient` and `sender` are an address, a domain such as ``@example.org``, or
        a pattern with ``*``. `message_id` has no angle brackets. `search` is a part of
        an address, of the message id or of the subject, in any case. An entry was
        accepted more than `older` and less than `newer` seconds ago.

        The first `start` entries are passed over. `step` is called once for each entry
        that is looked at, also for those that are passed over. An exception of `step`
        ends the search.
        """

    def find(*ids: str) -> tuple[QueueEntry, ...]:
        """Return the entries that `ids` mean, each once.

        A message id means every entry of that message.
        """

    def show(id: str) -> QueueEntry:
        """Return the one entry that `id` means.

        Raises `ItemError` if there are several. Its `ItemError.choices` are their ids.
        """

    def message(entry: str | QueueEntry, most: int | None = None) -> bytes:
        """Return the message of an entry, or its first `most` bytes.

        Of a file that is not an entry, return the file as it is.
        """

    def actions(entry: QueueEntry) -> tuple[str, ...]:
        """Return the names of the methods that can change an entry in this state."""

    def retry(*entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Make the entries due now, also dead letters. Return a result for each.

        Wakes a processor. Raises `QueueError`, before anything is changed, if another
        library's processor drains the queue, or if this is a mailbox.
        """

    def cancel(*entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Call off entries that wait, whatever they wait for. Return a result for each.

        They are removed, and not sent. A dead letter is refused, also if the entry has
        become one since it was listed. Raises `QueueError` as `retry` does.
        """

    def delete(*entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Delete the entries permanently. Return a result for each.

        Raises `QueueError` as `retry` does.
        """

    def hold(*entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Keep the entries from being tried until they are released.

        Returns a result for each. Raises `QueueError` as `retry` does.
        """

    def release(*entries: str | QueueEntry) -> tuple[QueueChange, ...]:
        """Let held entries be tried again, when they are due.

        Returns a result for each. Raises `QueueError` as `retry` does.
        """

    def recover(*entries: str | QueueEntry, send: bool) -> tuple[QueueChange, ...]:
        """Accept entries in doubt if `send` is true, or remove them.

        Returns a result for each. Raises `QueueError` as `retry` does.
        """


class IQueuePage(Interface):
    """The page for queues in a Pyramid application, see `postcommit.web.pyramid`."""

    taggedValue("settings_prefix", "web_")

    path = TextLine(
        title=_("Path"),
        description=_("Path of the page in the application, such as /mail."),
        constraint=is_page_path,
    )
    hosts = Tuple(
        title=_("Hosts"),
        description=_(
            "Names by which browsers reach the application, without a port. A text has"
            " blanks or commas between them. A request for any other host is refused."
        ),
        value_type=TextLine(constraint=is_url_host),
        default=("localhost", "127.0.0.1", "::1"),
        min_length=1,
    )
    insecure = Bool(
        title=_("Insecure"),
        description=_(
            "Whether everybody may see the page, and delete mail. For development only."
        ),
        default=False,
    )


# Events


class IMailEvent(Interface):
    """Something became of a message."""

    messageId = TextLine(
        title=_("Message id"),
        description=_("As `IMailDelivery.send` returned it."),
    )
    recipients = Tuple(
        title=_("Recipients"), description=_("Those that the event is about.")
    )


class IMailSentEvent(IMailEvent):
    """The relay has taken the message for these recipients."""


class IMailErrorEvent(IMailEvent):
    """An attempt failed for these recipients."""

    errorMessage = Text(
        title=_("Error message"), description=_("What happened, for a person to read.")
    )
    reply = Object(
        title=_("Reply"),
        description=_("What the relay said; None where it said nothing."),
        schema=IReply,
        required=False,
    )


class IMailDeferredEvent(IMailErrorEvent):
    """The attempt failed for now. A queue tries again, a direct delivery does not."""


class IMailRejectedEvent(IMailErrorEvent):
    """Final: the message is not tried again for these recipients."""


class IMailUncertainEvent(IMailErrorEvent):
    """Final: the message may have arrived, and is not tried again."""


# The Maildir


class IMaildirFactory(Interface):
    """Opens Maildir folders."""

    def __call__(dirname: str, create: bool = False) -> IMaildir:
        """Open the Maildir at the path `dirname`.

        A missing folder is created if `create` is true, and an OSError otherwise.
        A file, or a folder that is not a Maildir, raises `NotAMaildirError`, whatever
        `create` says.
        """


class IMaildir(Interface):
    """A Maildir folder (https://cr.yp.to/proto/maildir.html)."""

    def __iter__() -> Iterator[str]:
        """Iterate over the path names of the messages, new ones first."""

    def newMessage() -> IMaildirMessageWriter:
        """Create a file in ``tmp`` and return its `IMaildirMessageWriter`."""


class IMaildirMessageWriter(Interface):
    """Writes one message into a Maildir."""

    def write(data: bytes | memoryview | str) -> None:
        """Write bytes, or a str as UTF-8."""

    def writelines(lines: Iterable[bytes | memoryview | str]) -> None:
        """Write each of `lines`, an iterable. No separators are added."""

    def close() -> None:
        """Close the file, so that few are open. Calling it again is allowed."""

    def commit() -> None:
        """Make the message durable and move it from ``tmp`` to ``new``.

        Calling it again does nothing. After `abort` it raises ValueError.
        """

    def abort() -> None:
        """Remove the file. Calling it again, or after `commit`, does nothing."""


# Inside


class IBatch(Interface):
    """The work of one delivery in one transaction, as the data manager sees it.

    Only the batch looks into its items.
    """

    sort_key = Attribute(
        "A str: where among the resources it commits; see `IDataManager.sortKey`."
    )

    def prepare(items: Sequence[Any], *, alone: bool = False) -> None:
        """Do all that can fail, or raise to refuse the commit.

        `alone` says that no other resource takes part in the commit.
        """

    def publish(items: Sequence[Any]) -> Callable[[], None] | None:
        """Let the decided commit take effect. If `prepare` was called alone, decide it.

        May return a function that is called when the commit is over.
        """

    def discard(items: Sequence[Any]) -> None:
        """Undo all that was done for `items`. Never raises."""

    def abandon(items: Sequence[Any]) -> None:
        """End with `items` without knowing whether the transaction took place.

        Called after `prepare` or an interrupted `publish`. Keeps what can be kept, and
        logs what is left or lost. Never raises.
        """
