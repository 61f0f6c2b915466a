"""A small shop: orders are booked, and confirmed by mail, in transactions."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from email.message import EmailMessage

from transaction import TransactionManager
from zope.interface import implementer

from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._transaction.datamanager import DataManager
from postcommit.interfaces import IBatch


SENDER = "shop@example.org"


class SoldOut(Exception):
    """The item that was ordered is sold out."""


@implementer(IBatch)
class OrderBook:
    """The database of the shop. It refuses to commit an item that is sold out."""

    sort_key = "orders"

    def __init__(self, sold_out: Sequence[str]) -> None:
        self.orders: list[str] = []
        self._sold_out = sold_out

    def prepare(self, items: Sequence[str], *, alone: bool = False) -> None:
        for item in items:
            if item in self._sold_out:
                raise SoldOut(f"the {item} is sold out")

    def publish(self, items: Sequence[str]) -> None:
        self.orders.extend(items)

    def discard(self, items: Sequence[str]) -> None:
        """Do nothing: nothing was written."""

    def abandon(self, items: Sequence[str]) -> None:
        """Do nothing: nothing was written."""


class Shop:
    """Takes orders. An order and its mail are in the same transaction.

    `tell` is called with a line about each step.
    """

    def __init__(
        self,
        delivery: QueuedMailDelivery,
        tell: Callable[[str], None],
        *,
        sold_out: Sequence[str] = (),
    ) -> None:
        self._transactions = TransactionManager(explicit=True)
        self._delivery = delivery.bind(self._transactions)
        self._tell = tell
        self._book = OrderBook(sold_out)

    @property
    def orders(self) -> list[str]:
        """The items that were ordered and committed."""
        return self._book.orders

    def order(self, item: str, *customers: str) -> None:
        """Book an order, and send the mail. Both wait for `commit`."""
        self._transactions.begin()
        self._tell(f"begin: an order for a {item}")
        book, manager = self._book, self._transactions
        DataManager.of(book, lambda: book, manager).add(item)
        self._delivery.send(SENDER, customers, _confirmation(item, customers))
        self._tell(f"send() to {', '.join(customers)}")

    def commit(self) -> bool:
        """Commit, or abort if the item is sold out. Return whether it committed."""
        try:
            self._transactions.commit()
        except SoldOut as refusal:
            self._transactions.abort()
            self._tell(f"abort: {refusal}")
            return False
        self._tell("commit")
        return True


def _confirmation(item: str, customers: Sequence[str]) -> EmailMessage:
    message = EmailMessage()
    message["From"] = f"The Shop <{SENDER}>"
    message["To"] = ", ".join(customers)
    message["Subject"] = f"Your {item}"
    message.set_content(f"Thank you for your order. The {item} is on its way.\n")
    return message
