"""Two-phase commit around anything with prepare, publish and discard.

What one delivery does in one transaction is an `IBatch`; the items that it
works on are collected here while the transaction runs.

============  ==================  ============  =================================
phase         call                next phase    effect
============  ==================  ============  =================================
``JOINED``    ``add``             ``JOINED``    one more item
``JOINED``    savepoint rollback  ``JOINED``    the later items are discarded
``JOINED``    ``tpc_vote``        ``PREPARED``  `prepare`; raises to refuse
``PREPARED``  ``tpc_finish``      ``PUBLISHED`` `publish`
``PREPARED``  ``tpc_abort``, once ``PUBLISHED`` `publish`
              it is decided
both          ``abort``,          ``DISCARDED`` `discard`
              ``tpc_abort``
the others    ``abort``,          same          nothing
              ``tpc_abort``
============  ==================  ============  =================================

It is decided as soon as any data manager of ours is told to finish: all have voted,
and each resource before it has committed. If one fails then, the others' mail
belongs to a transaction that took place, whatever `transaction` tells them to do.

A child that is forked while the transaction runs gets a copy of all this, but
the items are its parent's: the copy discards nothing, and refuses to vote.
"""
from __future__ import annotations

import enum
import os
from collections.abc import Callable
from typing import Any

from transaction.interfaces import IDataManagerSavepoint
from transaction.interfaces import ISavepointDataManager
from transaction.interfaces import ITransaction
from transaction.interfaces import ITransactionManager
from zope.interface import implementer

from postcommit.errors import ForkedError
from postcommit.interfaces import IBatch


# Which process this is, in the line of those that were forked from each other.
_generation = 0


def _count_fork() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_count_fork)

# Under which a transaction keeps that it is decided.
_decided = object()


class Phase(enum.Enum):
    JOINED = "joined"
    PREPARED = "prepared"
    PUBLISHED = "published"
    DISCARDED = "discarded"


@implementer(ISavepointDataManager)
class DataManager:
    """See `ISavepointDataManager`; the table of the module has the phases."""

    def __init__(
        self,
        owner: object,
        batch: IBatch,
        transaction: ITransaction,
        transaction_manager: ITransactionManager,
    ) -> None:
        # `transaction` keeps data by the id() of its owner: while we are
        # there, no other object may get that id.
        self._owner = owner
        self._batch = batch
        # That it will join with its first item.
        self._transaction: ITransaction | None = transaction
        self._items: list[Any] = []
        self._phase = Phase.JOINED
        self._generation = _generation
        self.transaction_manager = transaction_manager

    @classmethod
    def of(
        cls,
        owner: object,
        transaction: ITransaction,
        make_batch: Callable[[], IBatch],
        transaction_manager: ITransactionManager,
    ) -> DataManager:
        """Return the data manager of `owner` in `transaction`.

        A new one joins when it has something to do: with its first item.
        """
        try:
            found = transaction.data(owner)
        except KeyError:
            found = None
        # Anything else was kept for an object that is gone, and had this id().
        if isinstance(found, cls) and found._takes_more:
            return found
        return cls(owner, make_batch(), transaction, transaction_manager)

    @property
    def _takes_more(self) -> bool:
        return self._phase is Phase.JOINED and self._is_no_copy

    @property
    def _is_no_copy(self) -> bool:
        return self._generation == _generation

    @property
    def is_empty(self) -> bool:
        return not self._items

    def add(self, item: Any) -> None:
        """Have `item` published when the transaction commits.

        Raises what `transaction.join` raises, when it takes no more work; then
        `item` is discarded.
        """
        if self._transaction is not None:
            try:
                self._join(self._transaction)
            except BaseException:
                self._batch.discard([item])
                raise
        self._items.append(item)

    def _join(self, transaction: ITransaction) -> None:
        transaction.join(self)
        transaction.set_data(self._owner, self)
        self._transaction = None

    def savepoint(self) -> Savepoint:
        return Savepoint(self, len(self._items))

    def _rollback(self, count: int) -> None:
        """Discard all items but the first `count`."""
        if self._phase is Phase.JOINED:
            dropped, self._items[count:] = self._items[count:], []
            self._discard(dropped)

    def _discard(self, items: list[Any]) -> None:
        if self._is_no_copy:
            self._batch.discard(items)

    def tpc_begin(self, transaction: ITransaction) -> None:
        """Nothing to do before the vote."""

    def commit(self, transaction: ITransaction) -> None:
        """Nothing to do before the vote."""

    def tpc_vote(self, transaction: ITransaction) -> None:
        if not self._is_no_copy:
            raise ForkedError("the transaction is that of the parent process")
        self._batch.prepare(self._items, alone=self._is_alone(transaction))
        self._phase = Phase.PREPARED

    def _is_alone(self, transaction: ITransaction) -> bool:
        """Tell whether this is all that takes part in the commit.

        Only a private attribute tells; without it, or where it names another one,
        which may have us among its own, we take it that there are more.
        """
        resources: Any = getattr(transaction, "_resources", ())
        return len(resources) == 1 and resources[0] is self

    def tpc_finish(self, transaction: ITransaction) -> None:
        transaction.set_data(_decided, True)
        # Before anything else the phase: should it fail half way, what is already
        # published must survive the tpc_abort that follows, and so must what is
        # not, for the other resources have committed.
        self._phase = Phase.PUBLISHED
        items, self._items = self._items, []
        afterwards = self._batch.publish(items)
        if afterwards is not None:
            transaction.addAfterCommitHook(_call, (afterwards,))

    def tpc_abort(self, transaction: ITransaction) -> None:
        """As `abort`, or as `tpc_finish` once it is decided.

        It comes in any phase, and even after a `tpc_finish` that succeeded,
        when another resource fails in its own.
        """
        if self._phase is Phase.PREPARED and _is_decided(transaction):
            self.tpc_finish(transaction)
        else:
            self.abort(transaction)

    def abort(self, transaction: ITransaction) -> None:
        if self._phase in (Phase.JOINED, Phase.PREPARED):
            # Last the phase: should this be interrupted, the next one does it again.
            self._discard(self._items)
            self._phase = Phase.DISCARDED
            self._items = []

    def sortKey(self) -> str:
        sort_key: str = self._batch.sort_key
        return sort_key


@implementer(IDataManagerSavepoint)
class Savepoint:
    """See `IDataManagerSavepoint`."""

    def __init__(self, data_manager: DataManager, count: int) -> None:
        self._data_manager = data_manager
        self._count = count

    def rollback(self) -> None:
        self._data_manager._rollback(self._count)


def _is_decided(transaction: ITransaction) -> bool:
    try:
        return bool(transaction.data(_decided))
    except KeyError:
        return False


def _call(committed: bool, afterwards: Callable[[], None]) -> None:
    """Call `afterwards`, also where the commit failed in another's finish."""
    afterwards()
