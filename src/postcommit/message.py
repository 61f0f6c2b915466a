"""Messages: anything sendable to bytes, with what `send` adds and removes.

`compose` is what the deliveries and mailers call. The header is looked at with
regular expressions, and changed by lines; the body is never copied or changed.
"""
from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from email.errors import MessageError as EmailError
from email.header import decode_header
from email.header import make_header
from email.message import Message
from email.utils import formatdate
from typing import Any

from postcommit.address import domain_in_ascii
from postcommit.address import header_addresses
from postcommit.address import needs_smtputf8
from postcommit.address import parse_address
from postcommit.address import parse_recipients
from postcommit.address import parse_sender
from postcommit.errors import AddressError
from postcommit.errors import MessageError
from postcommit.errors import MessageTypeError
from postcommit.errors import shown
from postcommit.flatten import flattened
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import Sendable


# In a Message-Id, where neither the sender nor From has a domain. The name of
# this host would need DNS, which may take long.
_NO_DOMAIN = "localhost.localdomain"

# Each of the three ends a line: what is not CRLF becomes so on the wire, and
# then no field may come to light that was none before.
_LINE_END = re.compile(rb"\r\n?|\n")

# No field's name is longer than a line may be (RFC 5322, 2.1.1).
_NAME = rb"[!-9;-~]{1,998}[ \t]*:"
_FOLDED = rb"[^\r\n]*(?:(?:\r\n?|\n)[ \t][^\r\n]*)*(?:\r\n?|\n|\Z)"
_HEADER = re.compile(rb"(?:" + _NAME + _FOLDED + rb")*")

# A header as most messages have it: each line ends with LF, up to the blank one.
_ORDINARY = re.compile(
    rb"((?:[!-9;-~]{1,998}:[^\r\n]*\n(?:[ \t][^\r\n]*\n)*)+)\n"
)

# The line before a message in a mailbox file, no part of the message.
_UNIX_FROM = re.compile(
    rb">?From \S* +(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[^\r\n]* \d\d?:\d\d[^\r\n]*"
    rb"(?:\r\n?|\n)(?=" + _NAME + rb")"
)

# In a header whose line ends are LF or CRLF: the rest of a field, that is its
# value, with the lines that are folded.
_VALUE = rb"[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)"
_MESSAGE_ID = re.compile(rb"^Message-Id" + _VALUE, re.IGNORECASE | re.MULTILINE)
_DATE = re.compile(rb"^Date[ \t]*:", re.IGNORECASE | re.MULTILINE)
_BCC = re.compile(rb"^(?:Resent-)?Bcc" + _VALUE, re.IGNORECASE | re.MULTILINE)
_END_OF_HEADER = re.compile(rb"\n\r?\n")

# The first one, as most messages have it.
_ORDINARY_ID = re.compile(
    rb"(?:(?!Message-Id)[^\r\n].*\n)*"
    rb"Message-Id:[ \t]*<([!-;=?-~]+)>[ \t]*\r?\n(?![ \t])",
    re.IGNORECASE,
)
_GOOD_ID = re.compile(r"<([^<>\s]+)>")


@dataclass(slots=True)
class Composed:
    """A message with its envelope, ready to be sent.

    `header` ends with the blank line. `body` is a view of what the caller gave,
    so that a large message is not copied.
    """

    sender: str
    recipients: tuple[str, ...]
    message_id: str
    header: bytes
    body: memoryview

    @property
    def chunks(self) -> tuple[bytes, memoryview]:
        """The message in pieces, in order."""
        return self.header, self.body

    def __bytes__(self) -> bytes:
        return b"".join(self.chunks)


def compose(
    fromaddr: Address | None, toaddrs: Addresses | None, message: Sendable
) -> Composed:
    """Return what `IMailDelivery.send` is to send; see there, also for errors."""
    data = _bytes(message)
    header, body, end_of_line = _split(data)
    sender = _sender(header) if fromaddr is None else parse_sender(fromaddr)
    recipients = _recipients(header) if toaddrs is None else parse_recipients(toaddrs)
    # A look for the letters is cheaper than one for a field.
    lowered = header.lower()
    if b"bcc" in lowered:
        header = _BCC.sub(b"", header)
    added = []
    message_id = _message_id(header) if b"message-id" in lowered else ""
    if not message_id:
        message_id = _new_message_id(sender, header)
        added += [b"Message-Id: <", message_id.encode(), b">", end_of_line]
    if b"\ndate:" not in lowered and not _DATE.search(header):
        added += [b"Date: ", formatdate(localtime=True).encode(), end_of_line]
    whole = b"".join((*added, header, end_of_line))
    return Composed(sender, recipients, message_id, whole, body)


# To bytes


def _bytes(message: Sendable) -> bytes:
    if isinstance(message, bytes):
        return message
    if isinstance(message, str):
        try:
            return message.encode()
        except UnicodeEncodeError as error:
            raise MessageError(f"the message is no text: {error}") from error
    if isinstance(message, Message):
        return _flattened(message)
    raise MessageTypeError(
        f"cannot send {shown(message)} of type {type(message).__name__};"
        " pass bytes, str or email.message.Message"
    )


def _flattened(message: Message) -> bytes:
    """Return a `Message` as bytes; it is not changed itself."""
    policy: Any = message.policy
    try:
        if any(map(_needs_utf8, message.values())):
            policy = policy.clone(utf8=True)
        return flattened(message, policy)
    except (EmailError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise MessageError(f"the message cannot be made bytes: {error}") from error


def _needs_utf8(value: Any) -> bool:
    """Tell whether a header field has addresses that RFC 2047 cannot encode."""
    addresses = getattr(value, "addresses", ())
    return any(needs_smtputf8(address.addr_spec) for address in addresses)


def _split(data: bytes) -> tuple[bytes, memoryview, bytes]:
    """Return the header's fields, the body, and the line end of the header.

    What does not begin with a header is all body; a body that follows the
    header without a blank line is one all the same.
    """
    ordinary = _ORDINARY.match(data)
    if ordinary:
        return ordinary[1], memoryview(data)[ordinary.end() :], b"\n"
    unix_from = _UNIX_FROM.match(data)
    start = unix_from.end() if unix_from else 0
    found = _HEADER.match(data, start)
    end = found.end() if found else start
    blank = _LINE_END.match(data, end)
    body = memoryview(data)[blank.end() if blank else end :]
    first = data.find(b"\n", start)
    end_of_line = b"\r\n" if data[start : first + 1].endswith(b"\r\n") else b"\n"
    header = data[start:end]
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


def message_id_of(data: bytes) -> str:
    """Return the id of a message, without brackets; ``''`` if it has none."""
    if data.startswith((b"\n", b"\r\n")):
        return ""  # there is no header
    ordinary = _ORDINARY_ID.match(data)
    if ordinary:
        return ordinary[1].decode()
    end = _END_OF_HEADER.search(data)
    found = _MESSAGE_ID.search(data, 0, end.end() if end else len(data))
    return _id_in(found[1]) if found else ""


def _message_id(header: bytes) -> str:
    """Return the id that the header has, ``''`` where it has none."""
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


def _id_in(value: bytes) -> str:
    """Return the id that a field's `value` is, ``''`` for anything else."""
    try:
        good = _GOOD_ID.fullmatch(value.strip(b" \t\r\n").decode())
    except UnicodeDecodeError:
        return ""
    return good[1] if good and good[1].isprintable() else ""


def _new_message_id(sender: str, header: bytes) -> str:
    """Return an id that is unique, and cannot be guessed (RFC 5322, 3.6.4)."""
    domain = domain_in_ascii(sender) or _domain_of_from(header) or _NO_DOMAIN
    return f"{time.time_ns()}.{secrets.token_hex(8)}@{domain}"


def _domain_of_from(header: bytes) -> str:
    try:
        return domain_in_ascii(parse_address(_mailboxes(header, b"From")[0]))
    except (AddressError, IndexError):
        return ""


# The envelope, from the header


def _sender(header: bytes) -> str:
    for name in (b"Sender", b"From"):
        found = _mailboxes(header, name)
        if len(found) > 1:
            # RFC 5322, 3.6.2: then there has to be a Sender.
            reason = f"{name.decode()} has several; pass fromaddr"
            raise AddressError(", ".join(found), reason)
        if found:
            return parse_address(found[0])
    raise AddressError(None, "the header has no Sender or From; pass fromaddr")


def _recipients(header: bytes) -> tuple[str, ...]:
    names = (b"To", b"Cc", b"Bcc")
    found = [mailbox for name in names for mailbox in _mailboxes(header, name)]
    if not found:
        raise AddressError(None, "nobody is in To, Cc or Bcc; pass toaddrs")
    return parse_recipients(found)


def _mailboxes(header: bytes, name: bytes) -> list[str]:
    """Return the mailboxes of the fields `name`, also those in groups."""
    field = re.compile(rb"^" + name + _VALUE, re.IGNORECASE | re.MULTILINE)
    found = []
    for value in field.findall(header):
        # A name that is no UTF-8 does no harm, as only the address is used.
        text = re.sub(r"\r?\n", "", value.decode("utf-8", "replace"))
        for mailbox in header_addresses(text):
            found += header_addresses(_decoded(mailbox))
    return found


def _decoded(mailbox: str) -> str:
    """Undo what `Message` does to all of a field that is not ASCII.

    An encoded word may only be part of a name (RFC 2047, 5), so where there is
    an address outside of it, it is left alone.
    """
    if "@" in mailbox or "=?" not in mailbox:
        return mailbox
    try:
        return str(make_header(decode_header(mailbox)))
    except (EmailError, LookupError, ValueError):
        return mailbox
