"""Composes what `send` is given into a message with its envelope.

Deliveries and mailers call `compose`. The header is read with regular expressions and
changed by lines. The body is neither copied nor changed. The addresses of a message
object come from its header values, never from its flattened bytes.
"""
from __future__ import annotations

import copy
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from email.errors import MessageError as EmailError
from email.generator import BytesGenerator
from email.message import Message
from email.policy import Policy
from email.utils import formatdate
from io import BytesIO
from typing import Any

from postcommit._mail.address import domain_in_ascii
from postcommit._mail.address import parse_address
from postcommit._mail.address import parse_recipients
from postcommit._mail.address import parse_sender
from postcommit._mail.headers import VALUE
from postcommit._mail.headers import field_policy
from postcommit._mail.headers import from_field
from postcommit._mail.headers import mailboxes_of
from postcommit._mail.terms import Terms
from postcommit.errors import AddressError
from postcommit.errors import MessageError
from postcommit.errors import MessageTypeError
from postcommit.errors import shown
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import Sendable


# Domain of a new Message-Id if neither the sender nor From has a domain. The name of
# this host would need DNS, which can take long.
_NO_DOMAIN = "localhost.localdomain"

# CR and LF also end a line, because each becomes CRLF on the wire. Otherwise a field
# could appear there that was not a field here.
_LINE_END = re.compile(rb"\r\n?|\n")

# The name of a field is not longer than a line may be (RFC 5322, 2.1.1).
_NAME = rb"[!-9;-~]{1,998}+[ \t]*+:"
_LINE = rb"[^\r\n]*+(?:\n|\r\n?|\Z)"
_FOLDED = _LINE + rb"(?:[ \t]" + _LINE + rb")*"

# The line before a message in a mailbox file. It is not a part of the message.
_UNIX_FROM = (
    rb">?From \S* +(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?=[^\r\n]* \d\d?:\d\d)"
    rb"[^\r\n]*+(?:\r\n?|\n)(?=" + _NAME + rb")"
)

# All before the body; its group is the header. Any data begins with it.
_HEADER = re.compile(
    rb"(?:" + _UNIX_FROM + rb")?((?:" + _NAME + _FOLDED + rb")*)(?:\n|\r\n?)?"
)

_MESSAGE_ID = re.compile(rb"^Message-Id" + VALUE, re.IGNORECASE | re.MULTILINE)
_DATE = re.compile(rb"^Date[ \t]*:", re.IGNORECASE | re.MULTILINE)
_RESENT = re.compile(rb"^Resent-Date[ \t]*:", re.IGNORECASE | re.MULTILINE)
_FROM = re.compile(rb"^(?:From|Sender)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_BCC = re.compile(rb"^(?:Resent-)?Bcc" + VALUE, re.IGNORECASE | re.MULTILINE)
_END_OF_HEADER = re.compile(rb"\n\r?\n")

_GOOD_ID = re.compile(r"<([^<>\s]+)>")


@dataclass
class Composed:
    """A message with its envelope, ready to be sent: an `Outgoing`.

    `header` ends with the blank line. `body` is a view of the caller's bytes, so that a
    large message is not copied. `terms` are those that were given to `send`, for tests
    of applications.
    """

    sender: str
    recipients: tuple[str, ...]
    message_id: str
    header: bytes
    body: memoryview
    terms: Terms | None = field(default=None, init=False, repr=False, compare=False)
    _whole: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def message(self) -> bytes:
        """The message in one piece, copied when it is asked for first."""
        # Not cached by functools, whose lock a fork may leave locked on Python 3.11.
        if not self._whole:
            self._whole = b"".join((self.header, self.body))
        return self._whole

    def __bytes__(self) -> bytes:
        return self.message


# Errors of the generator if parts of a message object contradict each other.
_NOT_FLATTENED = (
    *(EmailError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


def compose(
    fromaddr: Address | None,
    toaddrs: Addresses | None,
    message: Sendable,
    default_sender: str | None = None,
) -> Composed:
    """Return the message that `IMailDelivery.send` sends, with its envelope.

    Arguments and errors are those of `IMailDelivery.send`. For `default_sender`, see
    `IDefaultSender`.
    """
    data = _bytes(message)
    header, body, end_of_line = _split(data)
    added = []
    if fromaddr is None and default_sender is not None and not _FROM.search(header):
        fromaddr = default_sender
        added.append(from_field(default_sender, end_of_line.decode()))
    # Where the addresses are.
    source = message if isinstance(message, Message) else header
    # Searching for the letters is faster than searching for a field.
    lowered = header.lower()
    prefix = ""
    if (fromaddr is None or toaddrs is None) and b"resent-date" in lowered:
        prefix = _prefix(header)
    sender, recipients = _envelope(fromaddr, toaddrs, source, prefix)
    if b"bcc" in lowered:
        header = _BCC.sub(b"", header)
    message_id = _message_id(header) if b"message-id" in lowered else ""
    if not message_id:
        # Unique, and it cannot be guessed (RFC 5322, 3.6.4).
        domain = domain_in_ascii(sender) or _domain_of_from(source) or _NO_DOMAIN
        message_id = f"{time.time_ns()}.{secrets.token_hex(8)}@{domain}"
        added += [b"Message-Id: <", message_id.encode(), b">", end_of_line]
    if b"\ndate:" not in lowered and not _DATE.search(header):
        added += [b"Date: ", formatdate(localtime=True).encode(), end_of_line]
    whole = b"".join((*added, header, end_of_line))
    return Composed(sender, recipients, message_id, whole, body)


# To bytes


def _bytes(message: Sendable) -> bytes:
    if isinstance(message, bytes):
        data = message
    elif isinstance(message, str):
        try:
            data = message.encode()
        except UnicodeEncodeError as error:
            raise MessageError(f"the message is not text: {error}") from error
    elif isinstance(message, Message):
        try:
            data = flattened(message, field_policy(message.policy))
        except _NOT_FLATTENED as error:
            raise MessageError(f"the message cannot be made bytes: {error}") from error
    else:
        raise MessageTypeError(
            f"cannot send {shown(message)} of type {type(message).__name__};"
            " pass bytes, str or email.message.Message"
        )
    if b"\0" in data:
        # RFC 2045, 2.7 and 2.8. OpenSMTPD, for example, drops the rest of the line.
        raise MessageError(
            f"the message has a NUL character at byte {data.index(0)}, and relays may"
            " cut the line there; remove it, or encode the part as base64"
        )
    return data


# Message objects

# The generator of the standard library keeps the text of each part several times, and
# splits it into lines. An attachment of 10 MB takes 30 MB and 0.15 seconds. So the
# generator gets a copy of the object with a placeholder for each large text, and the
# texts are put into its output. The same attachment then takes 10 MB and 0.03 seconds.
# A whole run, from `send` to the relay, takes a third of the time for a file of 500 kB.

# Minimum characters of a large text, and of the blocks in which it is encoded.
_LARGE = 1 << 16


def flattened(message: Message, policy: Policy) -> bytes:
    """Return the bytes that the generator makes of `message`, which is not changed.

    Raises what the generator raises if parts of the object contradict each other.
    """
    large: dict[bytes, str] | None = {}
    while True:
        written = BytesIO()
        outline = _outline(message, large)
        BytesGenerator(written, mangle_from_=False, policy=policy).flatten(outline)
        if not large:
            return written.getvalue()
        whole = _filled_in(written.getvalue(), large, policy.linesep)
        if whole is not None:
            return whole
        # A subclass makes its text when the generator asks for it.
        large = None


def _outline(part: Message, large: dict[bytes, str] | None) -> Message:
    """Return a copy of `part` with placeholders, and put its large texts into `large`.

    The generator adds a missing boundary, so that it always gets a copy. If `large` is
    None, no placeholders are made.
    """
    made = copy.copy(part)
    if part.get_content_type() == "message/delivery-status":
        large = None  # the generator removes the last line end of its blocks
    # The method of a subclass may return another text than the generator writes.
    content: Any = Message.get_payload(part)
    if isinstance(content, list):
        Message.set_payload(made, [_outline(one, large) for one in content])
    elif (
        large is not None
        and isinstance(content, str)
        and len(content) > _LARGE
        and content.isascii()
        # The generator does not change the line ends of these.
        and part.get_content_maintype() not in ("message", "multipart")
    ):
        placeholder = secrets.token_hex(16)
        large[placeholder.encode()] = content
        Message.set_payload(made, placeholder)
    return made


def _filled_in(outline: bytes, large: dict[bytes, str], linesep: str) -> bytes | None:
    """Return `outline` with the large texts, None if a placeholder is missing."""
    written = BytesIO()
    # The buffer begins with its final size. Otherwise it would be copied as it grows.
    lines = sum(text.count("\n") for text in large.values())
    most = len(outline) + sum(map(len, large.values())) + lines * len(linesep)
    written.seek(most)
    written.write(b"\n")
    written.seek(0)
    done = 0
    for placeholder, text in large.items():
        found = outline.find(placeholder, done)
        if found < 0:
            return None
        written.write(memoryview(outline)[done:found])
        written.writelines(_encoded(text, linesep))
        done = found + len(placeholder)
    written.write(memoryview(outline)[done:])
    written.truncate()
    return written.getvalue()


def _encoded(text: str, linesep: str) -> Iterator[bytes]:
    """Yield an ASCII `text` in blocks of whole lines that end with `linesep`."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _LARGE) + 1 or len(text)
        block = text[start:end].replace("\r\n", "\n").replace("\r", "\n")
        yield block.replace("\n", linesep).encode("ascii")
        start = end


# The header


def _split(data: bytes) -> tuple[bytes, memoryview, bytes]:
    """Return the fields of the header, the body, and the line end of the header.

    A message that does not begin with a field is all body. The body begins at the first
    line that is not a field, even if no blank line stands before it.
    """
    found: Any = _HEADER.match(data)
    header, body, end_of_line = found[1], memoryview(data)[found.end() :], b"\n"
    if b"\r" in (found[0] or data):
        start = found.start(1)
        if data[start : data.find(b"\n", start) + 1].endswith(b"\r\n"):
            end_of_line = b"\r\n"
        if header.count(b"\r") != header.count(b"\r\n"):
            header = _LINE_END.sub(end_of_line, header)
    if header and not header.endswith(b"\n"):
        header += end_of_line
    return header, body, end_of_line


def to_crlf(data: bytes) -> bytes:
    """Return `data` with CRLF for each bare LF and bare CR (RFC 5321, 2.3.8)."""
    if b"\r" in data:
        ends = data.count(b"\r\n")
        if data.count(b"\n") == ends and data.count(b"\r") == ends:
            return data
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.replace(b"\n", b"\r\n")


# Message-Id


def bare_id(message_id: str) -> str:
    """Return a message id without its angle brackets, and without space around it."""
    return message_id.strip().removeprefix("<").removesuffix(">")


def message_id_of(data: bytes) -> str:
    """Return the id of a message without brackets, ``''`` if missing or malformed."""
    if data.startswith((b"\n", b"\r\n")):
        return ""  # no header
    end = _END_OF_HEADER.search(data)
    found = _MESSAGE_ID.search(data, 0, end.end() if end else len(data))
    return _id_in(found[1]) if found else ""


def _id_in(value: bytes) -> str:
    """Return the id in the value of a field, ``''`` if it is malformed."""
    try:
        good = _GOOD_ID.fullmatch(value.strip(b" \t\r\n").decode())
    except UnicodeDecodeError:
        return ""
    return good[1] if good and good[1].isprintable() else ""


def _message_id(header: bytes) -> str:
    """Return the id in a header, ``''`` if it is missing.

    Raises `MessageError` if there are several, or if it is malformed.
    """
    values = _MESSAGE_ID.findall(header)
    if not values:
        return ""
    if len(values) > 1:
        raise MessageError(f"the header has {len(values)} Message-Id fields, not one")
    found = _id_in(values[0])
    if not found:
        value = shown(values[0].decode("utf-8", "backslashreplace").strip())
        raise MessageError(f"malformed Message-Id {value}: it must be like <a@b>")
    return found


def _domain_of_from(source: Message | bytes) -> str:
    try:
        return domain_in_ascii(parse_address(mailboxes_of(source, "From")[0]))
    except (AddressError, IndexError):
        return ""


# The envelope, from the arguments or the header


def _envelope(
    fromaddr: Address | None,
    toaddrs: Addresses | None,
    source: Message | bytes,
    prefix: str,
) -> tuple[str, tuple[str, ...]]:
    """Return sender and recipients. Those that are None are in `source`.

    The names of their fields begin with `prefix`.
    """
    if fromaddr is None:
        name = f"{prefix}Sender"
        found = mailboxes_of(source, name)
        if not found:
            name = f"{prefix}From"
            found = mailboxes_of(source, name)
        if not found:
            reason = f"the header has no {prefix}Sender or {name}; pass fromaddr"
            raise AddressError(None, reason)
        if len(found) > 1:
            # RFC 5322, 3.6.2: such a message needs a Sender.
            reason = f"{name} has several addresses; pass fromaddr"
            raise AddressError(", ".join(found), reason)
        sender = parse_address(found[0])
    else:
        sender = parse_sender(fromaddr)
    if toaddrs is None:
        names = [f"{prefix}{name}" for name in ("To", "Cc", "Bcc")]
        toaddrs = [mailbox for name in names for mailbox in mailboxes_of(source, name)]
        if not toaddrs:
            reason = f"no address in {names[0]}, {names[1]} or {names[2]}; pass toaddrs"
            raise AddressError(None, reason)
    return sender, parse_recipients(toaddrs)


def _prefix(header: bytes) -> str:
    """Return what the names of the fields begin with that hold the envelope.

    A message that is sent again has fields for that (RFC 5322, 3.6.6). `smtplib` uses
    them, too. Raises `AddressError` if it was sent again several times.
    """
    times = len(_RESENT.findall(header))
    if times > 1:
        reason = f"the header has {times} Resent-Date fields; pass fromaddr and toaddrs"
        raise AddressError(None, reason)
    return "Resent-" if times else ""
