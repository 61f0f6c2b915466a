"""What both deliveries have."""
from __future__ import annotations

import copy
from typing import Self

import transaction

from postcommit._config.options import checked_manager
from postcommit._config.options import checked_sender
from postcommit._config.readonly import ReadOnlyOptions
from postcommit.interfaces import TransactionManager


class BaseDelivery(ReadOnlyOptions):
    """The transaction's manager and a default sender."""

    transaction_manager: TransactionManager
    default_sender: str | None

    def __init__(
        self,
        default_sender: str | None,
        transaction_manager: TransactionManager | None,
    ) -> None:
        if transaction_manager is None:
            transaction_manager = transaction.manager
        self.transaction_manager = checked_manager(transaction_manager)
        self.default_sender = checked_sender(default_sender)
        # Shared with the copies that `bind` makes: one data manager for all of them.
        self._owner = object()

    def bind(self, transaction_manager: TransactionManager) -> Self:
        """Return a copy that joins the transactions of another manager.

        Raises `OptionError` if `transaction_manager` is not a transaction manager.
        """
        bound = copy.copy(self)
        bound.transaction_manager = checked_manager(transaction_manager)
        return bound
