"""A delivery that adds a sender to messages without one."""
from __future__ import annotations

import re
from email.utils import quote
from email.utils import unquote
from typing import Any

from transaction.interfaces import ITransactionManager
from zope.interface import directlyProvides
from zope.interface import implementer
from zope.interface import providedBy

from postcommit.address import parse_address
from postcommit.field import utf8_field
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import Sendable
from postcommit.message import compose


# The characters that need quotes in a display name (RFC 5322, 3.2.3).
_SPECIALS = re.compile(r'[][\\()<>@,:;".]')

_FROM = re.compile(rb"^(?:From|Sender)[ \t]*:", re.IGNORECASE | re.MULTILINE)


def _as_field(sender: str) -> bytes:
    """Return the From field of `sender`: its display name quoted, or encoded."""
    address = parse_address(sender)
    if sender != address:
        name = unquote(sender.rpartition("<")[0].strip())
        if _SPECIALS.search(name):
            name = f'"{quote(name)}"'
        sender = f"{name} <{address}>".lstrip()
    return utf8_field("From", sender, "\n")


@implementer(IMailDelivery)
class DefaultSender:
    """Sends through `delivery`, from `sender` if a message has no sender.

    A message has no sender if `fromaddr` is None and its header has neither From nor
    Sender. It then gets a From field. `sender` may have a display name. Interfaces and
    attributes are those of `delivery`. Raises `AddressError` for a `sender` that cannot
    work.
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
        """Return a copy that joins the transactions of another manager.

        Returns itself if `delivery` has no ``bind()``.
        """
        if not hasattr(self._delivery, "bind"):
            return self
        return type(self)(self._delivery.bind(transaction_manager), self._sender)

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
    ) -> str:
        """Send `message` when the transaction commits, see `IMailDelivery.send`."""
        if fromaddr is None:
            composed = compose(self._sender, toaddrs, message)
            if toaddrs is not None:
                toaddrs = composed.recipients  # an iterator can be read only once
            if not _FROM.search(composed.header):
                fromaddr, toaddrs = self._sender, composed.recipients
                message = self._field + bytes(composed)
        message_id: str = self._delivery.send(fromaddr, toaddrs, message)
        return message_id
