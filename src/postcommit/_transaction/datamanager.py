"""Two-phase commit around anything with prepare, publish, discard and abandon.

The work of one delivery in one transaction is an `IBatch`. The data manager collects
the items of the batch while the transaction runs.

=============  ======================  =============  =============================
phase          call                    next phase     effect
=============  ======================  =============  =============================
``JOINED``     ``add``                 ``JOINED``     one more item
``JOINED``     savepoint rollback      ``JOINED``     the later items are discarded
``JOINED``     ``tpc_vote``            ``PREPARED``   `prepare`; raises to refuse
``PREPARED``   ``tpc_finish``          ``FINISHING``  `publish`
``FINISHING``  `publish` ends          ``ENDED``      its function becomes an
                                                      after-commit hook
``JOINED``     abort                   ``ENDED``      `discard`
``PREPARED``   abort                   ``ENDED``      `discard`
``PREPARED``   abort, once decided     ``FINISHING``  `publish`
``PREPARED``   abort, in doubt         ``ENDED``      `abandon`
``FINISHING``  abort                   ``ENDED``      `abandon`
``ENDED``      abort                   ``ENDED``      nothing
=============  ======================  =============  =============================

Here abort means both ``abort`` and ``tpc_abort``. `transaction` calls them in any
phase, more than once, and ``tpc_abort`` even after our ``tpc_finish``, if another
resource fails to finish.

The commit is *decided* as soon as any data manager of ours is told to finish: all
resources have voted, and each resource before it has committed. If one fails then, the
mail of the others belongs to a transaction that took place, so they publish it although
`transaction` tells them to abort.

The commit is *in doubt* if an interrupt (Ctrl-C, ``sys.exit`` in a signal handler,
``gevent.Timeout``, MemoryError) arrives after all have voted and before any of ours
is told to finish, or during the vote of zope.sqlalchemy, which comes last and
commits. Another resource may have committed already, and `transaction` does not say
whether it has. An ordinary exception in that moment comes from the resource that
could not finish, so it counts as an abort.

A child process that is forked while the transaction runs gets a copy of all this, but
the items belong to its parent. The vote of the copy raises `ForkedError`, and all other
calls do nothing.
"""
from __future__ import annotations

import enum
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from typing import Any

from transaction.interfaces import IDataManagerSavepoint
from transaction.interfaces import ISavepointDataManager
from transaction.interfaces import ITransaction
from transaction.interfaces import ITransactionManager
from zope.interface import implementer

from postcommit.errors import ForkedError
from postcommit.interfaces import Batch


# Key of the transaction's data that says whether it is decided.
_decided = object()


class Phase(enum.Enum):
    JOINED = "joined"
    PREPARED = "prepared"
    FINISHING = "finishing"
    ENDED = "ended"


@implementer(ISavepointDataManager)
@dataclass(eq=False, repr=False)
class DataManager:
    """Two-phase commit of one batch, see `ISavepointDataManager`.

    The table of the module has the phases.
    """

    # `transaction` keeps data by the id() of its owner. As long as this data manager
    # refers to the owner, no other object can get the same id.
    _owner: object
    _batch: Batch
    # The transaction to join with the first item; None: it was joined.
    _transaction: ITransaction | None
    transaction_manager: ITransactionManager
    items: list[Any] = field(default_factory=list)
    _phase: Phase = Phase.JOINED
    # A forked child has a copy, and another id. The system is asked each time: uWSGI,
    # for example, forks without Python's hooks, and other hooks may come before ours.
    _process: int = field(default_factory=os.getpid)

    @classmethod
    def of(
        cls,
        owner: object,
        make_batch: Callable[[], Batch],
        transaction_manager: ITransactionManager,
    ) -> DataManager:
        """Return the data manager of `owner` in the current transaction.

        A new one joins the transaction with its first item.
        """
        transaction = transaction_manager.get()
        try:
            found = transaction.data(owner)
        except KeyError:
            found = None
        # Other data belongs to an object that was deleted and had the same id().
        if (
            isinstance(found, cls)
            and found._phase is Phase.JOINED
            and found._process == os.getpid()
        ):
            return found
        return cls(owner, make_batch(), transaction, transaction_manager)

    def add(self, item: Any) -> None:
        """Publish `item` when the transaction commits.

        Raises what `transaction.join` raises if it takes no more work. Then `item` is
        discarded.
        """
        count = len(self.items)
        try:
            self.items.append(item)
            if self._transaction is not None:
                # None at first: an interrupt that the application survives must not
                # make us join twice. If joining fails, `of` does not find us again.
                joined, self._transaction = self._transaction, None
                joined.join(self)
                joined.set_data(self._owner, self)
        except BaseException:
            del self.items[count:]
            self._batch.discard([item])
            raise

    def savepoint(self) -> Savepoint:
        """Return a savepoint that keeps the items of now."""
        return Savepoint(self, len(self.items))

    def _rollback(self, count: int) -> None:
        """Discard all items but the first `count`."""
        if self._phase is Phase.JOINED and self._process == os.getpid():
            # The list is cut last: after an interrupt, the abort discards them again.
            self._batch.discard(self.items[count:])
            del self.items[count:]

    def tpc_begin(self, transaction: ITransaction) -> None:
        """Nothing to do before the vote."""

    commit = tpc_begin  # the same holds for it

    def tpc_vote(self, transaction: ITransaction) -> None:
        """Prepare the items, or raise to refuse the commit."""
        if self._process != os.getpid():
            raise ForkedError("the transaction is that of the parent process")
        # Only a private attribute says whether other resources take part. If it is
        # missing, or names another (which may drive us), there may be others.
        resources: Any = getattr(transaction, "_resources", ())
        is_alone = len(resources) == 1 and resources[0] is self
        self._batch.prepare(self.items, alone=is_alone)
        self._phase = Phase.PREPARED

    def tpc_finish(self, transaction: ITransaction) -> None:
        """Publish the items."""
        if self._process != os.getpid():
            return
        # The phase comes first: whatever is interrupted from here on, the other
        # resources have committed, and the `tpc_abort` that follows must not discard.
        self._phase = Phase.FINISHING
        transaction.set_data(_decided, True)
        try:
            afterwards = self._batch.publish(self.items)
        except BaseException as error:
            if not _is_interrupt(error):  # the batch failed, and has logged how
                self._phase, self.items = Phase.ENDED, []
            raise
        if afterwards is not None:
            call_after_commit(transaction, afterwards)
        self._phase, self.items = Phase.ENDED, []

    def tpc_abort(self, transaction: ITransaction) -> None:
        """As `abort`."""
        self.abort(transaction)

    def abort(self, transaction: ITransaction) -> None:
        """Discard the items, or what the table of the module says. In any phase."""
        if self._process != os.getpid():
            return
        if self._phase is Phase.PREPARED and _is_decided(transaction):
            self.tpc_finish(transaction)
            return
        if self._phase is Phase.FINISHING or (
            self._phase is Phase.PREPARED and _is_in_doubt(transaction)
        ):
            self._batch.abandon(self.items)
        elif self._phase is not Phase.ENDED:
            self._batch.discard(self.items)
        # Set when the work is done: after an interrupt, the next abort does it again.
        self._phase, self.items = Phase.ENDED, []

    def sortKey(self) -> str:
        """Return the position among the resources, see `IDataManager`."""
        sort_key: str = self._batch.sort_key
        return sort_key


@implementer(IDataManagerSavepoint)
class Savepoint:
    """The first `count` items of a data manager, see `IDataManagerSavepoint`."""

    def __init__(self, data_manager: DataManager, count: int) -> None:
        self._data_manager = data_manager
        self._count = count

    def rollback(self) -> None:
        """Discard the later items."""
        self._data_manager._rollback(self._count)


# The state of the commit


def _is_decided(transaction: ITransaction) -> bool:
    try:
        return bool(transaction.data(_decided))
    except KeyError:
        return False


def _is_in_doubt(transaction: ITransaction) -> bool:
    """Return whether another resource may have committed.

    It may have if all have voted. Two cases are certain: all resources are ours, and
    none of them was told to finish; or a resource has raised because it cannot finish.
    """
    error = sys.exc_info()[1]
    if error is not None and not _is_interrupt(error):
        return False
    resources: Any = getattr(transaction, "_resources", ())
    voted = getattr(transaction, "_voted", ())
    others = [r for r in resources if not isinstance(r, DataManager)]
    have_all_voted = all(id(r) in voted or _commits_in_its_vote(r) for r in resources)
    return have_all_voted and bool(others)


def _commits_in_its_vote(resource: Any) -> bool:
    """Return whether `resource` is of zope.sqlalchemy, which votes after all others."""
    return str(resource.sortKey()).startswith("~sqlalchemy:")


def _is_interrupt(error: BaseException) -> bool:
    """Return whether `error` can come from anywhere, not just from a resource."""
    return not isinstance(error, Exception) or isinstance(
        error, MemoryError | RecursionError
    )


# After the commit


def call_after_commit(
    transaction: ITransaction, afterwards: Callable[[], object]
) -> None:
    """Call `afterwards` when the commit of `transaction` is over, or has failed.

    An error that it raises is logged. An interrupt, such as KeyboardInterrupt, is
    raised by the commit.
    """
    transaction.addAfterCommitHook(_call, (afterwards, transaction))


def _call(
    committed: bool, afterwards: Callable[[], object], transaction: ITransaction
) -> None:
    """Call `afterwards`, also if the commit failed in the finish of another."""
    try:
        afterwards()
    except BaseException as error:
        if isinstance(error, Exception):
            raise  # `transaction` logs it
        _raise_at_the_end(transaction, error)


def _raise_at_the_end(transaction: Any, interrupt: BaseException) -> None:
    """Raise `interrupt` from the ``commit()`` or ``abort()`` that ends `transaction`.

    `transaction` calls after-commit hooks in turn. It catches and logs all
    that they raise, also KeyboardInterrupt and SystemExit. To raise in a
    synchronizer instead would skip the hooks of others, and leave the manager with a
    transaction that has ended. So the interrupt is raised where the last step is
    done: ``_free()`` has taken the transaction from its manager. For the application
    it is as if the interrupt had come right after the commit. The method is private;
    ``tests/transactions/test_datamanager.py`` notices a change of it.
    """
    free = transaction._free

    def free_and_raise() -> None:
        transaction.__dict__.pop("_free", None)
        free()
        raise interrupt

    transaction._free = free_and_raise
