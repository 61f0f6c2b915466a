"""A delivery for messages that do not say from whom they are."""
from __future__ import annotations

import re
from email.header import Header
from email.utils import unquote
from typing import Any

from transaction.interfaces import ITransactionManager
from zope.interface import directlyProvides
from zope.interface import implementer
from zope.interface import providedBy

from postcommit.address import parse_address
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import Sendable
from postcommit.message import compose


def _as_field(sender: str) -> str:
    """Return `sender` as a header field has it, its name encoded (RFC 2047)."""
    address = parse_address(sender)
    # A name is whatever comes before; `email.utils.parseaddr` understands fewer.
    name = sender.rpartition("<")[0].strip()
    if name.isascii() or sender == address:
        return sender
    return f"{Header(unquote(name), 'utf-8').encode(linesep='')} <{address}>"


_FROM = re.compile(rb"^(?:From|Sender)[ \t]*:", re.IGNORECASE | re.MULTILINE)


@implementer(IMailDelivery)
class DefaultSender:
    """Sends by `delivery`, in the name of `sender` where nobody else is named.

    That is, where `fromaddr` is None and the header has no From or Sender. The
    message then gets a From; `sender` may have a display name. Raises
    `AddressError` for one that can never work. Otherwise as `delivery`, which
    it also is as far as interfaces and attributes go.
    """

    def __init__(self, delivery: Any, sender: str) -> None:
        self._field = _as_field(sender)
        self._delivery = delivery
        self._sender = sender
        directlyProvides(self, providedBy(delivery))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._delivery, name)

    def bind(self, transaction_manager: ITransactionManager) -> DefaultSender:
        """Return a copy that joins the transactions of another manager."""
        return type(self)(self._delivery.bind(transaction_manager), self._sender)

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
    ) -> str:
        """See `IMailDelivery`."""
        if fromaddr is None:
            composed = compose(self._sender, toaddrs, message)
            if toaddrs is not None:
                toaddrs = composed.recipients  # they may be there to be read once
            if not _FROM.search(composed.header):
                fromaddr, toaddrs = self._sender, composed.recipients
                message = b"From: " + self._field.encode() + b"\n" + bytes(composed)
        message_id: str = self._delivery.send(fromaddr, toaddrs, message)
        return message_id
