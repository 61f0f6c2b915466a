"""Two-phase commit, with the real `transaction` and partners that fail."""
from __future__ import annotations

import ctypes
import gc
import inspect
import os
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import pytest
from transaction import Transaction
from transaction import TransactionManager
from transaction.interfaces import DoomedTransaction
from transaction.interfaces import IDataManagerSavepoint
from transaction.interfaces import InvalidSavepointRollbackError
from transaction.interfaces import ISavepointDataManager
from transaction.interfaces import NoTransaction
from transaction.interfaces import TransactionFailedError
from zope.interface import implementer
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

from postcommit._transaction.datamanager import DataManager
from postcommit._transaction.datamanager import Savepoint
from postcommit.errors import ForkedError
from postcommit.interfaces import IBatch
from tests.support import children
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import MANAGERS
from tests.support.transactions import STAGES
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import begun
from tests.support.transactions import explicit
from tests.support.transactions import failing


class Item:
    """Something to publish; unlike a str, it can be referred to weakly."""

    def __init__(self, name: str) -> None:
        self.name = name


@implementer(IBatch)
class Batch:
    """Writes down what it is asked to do."""

    def __init__(self, sort_key: str = "~mail:test") -> None:
        self.sort_key = sort_key
        self.done: list[str] = []
        self.alone: list[bool] = []
        self.refusal: Exception | None = None
        self.failure: BaseException | None = None
        self.interrupts = 0  # so many times, it cannot discard

    def _note(self, what: str, items: Sequence[Item]) -> None:
        self.done.append(" ".join([what, *(item.name for item in items)]))

    def prepare(self, items: Sequence[Item], *, alone: bool = False) -> None:
        self._note("prepare", items)
        self.alone.append(alone)
        if self.refusal:
            raise self.refusal

    def publish(self, items: Sequence[Item]) -> Callable[[], None] | None:
        self._note("publish", items)
        if self.failure:
            raise self.failure
        return (lambda: self.done.append("afterwards")) if items else None

    def discard(self, items: Sequence[Item]) -> None:
        self._note("discard", items)
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt

    def abandon(self, items: Sequence[Item]) -> None:
        self._note("abandon", items)


class Sender:
    """The smallest thing that has a data manager."""

    def __init__(self, manager: Any, batch: Batch | None = None) -> None:
        self.manager = manager
        self.batch = batch or Batch()
        self.done = self.batch.done

    @property
    def data_manager(self) -> DataManager:
        return DataManager.of(self, lambda: self.batch, self.manager)

    def send(self, name: str) -> None:
        self.data_manager.add(Item(name))


@pytest.fixture(params=MANAGERS)
def manager(request: pytest.FixtureRequest) -> Iterator[Any]:
    with begun(request.param) as manager:
        yield manager


@pytest.fixture
def sender(manager: Any) -> Sender:
    return Sender(manager)


# The ordinary ways


def test_the_contracts_are_kept(sender: Sender) -> None:
    verifyClass(ISavepointDataManager, DataManager)
    verifyObject(ISavepointDataManager, sender.data_manager)
    verifyClass(IDataManagerSavepoint, Savepoint)
    verifyObject(IDataManagerSavepoint, sender.data_manager.savepoint())
    verifyObject(IBatch, sender.batch)


def test_a_commit_prepares_then_publishes_all_items(sender: Sender) -> None:
    sender.send("a")
    sender.send("b")
    assert sender.done == []
    sender.manager.commit()
    assert sender.done == ["prepare a b", "publish a b", "afterwards"]


def test_a_batch_learns_whether_it_is_alone(sender: Sender) -> None:
    sender.send("a")
    sender.manager.commit()
    sender.manager.begin()
    sender.send("b")
    sender.manager.get().join(Partner(AFTER))
    sender.manager.commit()
    assert sender.batch.alone == [True, False]


def test_what_another_resource_drives_is_not_alone(sender: Sender) -> None:
    class Composite:
        _resources = (object(),)

    sender.data_manager.tpc_vote(Composite())
    assert sender.batch.alone == [False]


def test_of_a_transaction_that_does_not_tell_nobody_is_alone(sender: Sender) -> None:
    sender.data_manager.tpc_vote(object())
    assert sender.batch.alone == [False]


def test_an_abort_discards_all_items(sender: Sender) -> None:
    sender.send("a")
    sender.send("b")
    sender.manager.abort()
    assert sender.done == ["discard a b"]


def test_each_transaction_has_its_own_data_manager(sender: Sender) -> None:
    sender.send("a")
    first = sender.data_manager
    assert sender.data_manager is first
    sender.manager.commit()
    sender.manager.begin()
    assert sender.data_manager is not first


def test_each_owner_has_its_own_data_manager(manager: Any) -> None:
    one, two = Sender(manager, Batch("~mail:1")), Sender(manager, Batch("~mail:2"))
    one.send("a")
    two.send("b")
    one.send("c")
    manager.commit()
    assert one.done == ["prepare a c", "publish a c", "afterwards"]
    assert two.done == ["prepare b", "publish b", "afterwards"]


def test_the_batch_tells_the_sort_key_and_the_caller_the_manager(
    sender: Sender,
) -> None:
    assert sender.data_manager.sortKey() == "~mail:test"
    assert sender.data_manager.transaction_manager is sender.manager


def test_a_doomed_transaction_takes_items_and_discards_them(sender: Sender) -> None:
    sender.manager.doom()
    sender.send("a")
    with pytest.raises(DoomedTransaction):
        sender.manager.commit()
    sender.manager.abort()
    assert sender.done == ["discard a"]


def test_without_a_transaction_an_explicit_manager_refuses() -> None:
    sender = Sender(explicit())
    with pytest.raises(NoTransaction):
        sender.send("a")


# Failures


@pytest.mark.parametrize("sort_key", [BEFORE, AFTER])
@pytest.mark.parametrize("stage", STAGES)
def test_whichever_stage_a_partner_fails_in_items_end_once(
    sender: Sender, stage: str, sort_key: str
) -> None:
    sender.send("a")
    sender.manager.get().join(failing(stage, sort_key))
    with pytest.raises(PartnerFailed):
        sender.manager.commit()
    at_failure = list(sender.done)
    sender.manager.abort()
    assert sender.done == at_failure, "the application's abort did it again"
    if (stage, sort_key) == ("tpc_finish", AFTER):
        assert sender.done == ["prepare a", "publish a", "afterwards"]
    elif (stage, sort_key) in (("tpc_finish", BEFORE), ("tpc_vote", AFTER)):
        assert sender.done == ["prepare a", "discard a"]
    else:
        assert sender.done == ["discard a"]


def test_what_refuses_to_be_prepared_aborts_the_transaction(sender: Sender) -> None:
    sender.send("a")
    sender.batch.refusal = OSError("full")
    partner = Partner(BEFORE)
    sender.manager.get().join(partner)
    with pytest.raises(OSError, match="full"):
        sender.manager.commit()
    sender.manager.abort()
    assert sender.done == ["prepare a", "discard a"]
    assert "tpc_finish" not in partner.calls


def test_what_fails_to_be_published_is_not_discarded(sender: Sender) -> None:
    sender.send("a")
    sender.batch.failure = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        sender.manager.commit()
    sender.manager.abort()
    assert sender.done == ["prepare a", "publish a"]


def test_afterwards_comes_after_the_last_resource(sender: Sender) -> None:
    sender.send("a")
    sender.manager.get().join(
        Partner(AFTER, tpc_finish=lambda: sender.done.append("partner"))
    )
    sender.manager.commit()
    assert sender.done == ["prepare a", "publish a", "partner", "afterwards"]


def test_abort_may_come_again_in_every_phase(sender: Sender) -> None:
    for endings in (["abort"], ["tpc_abort", "abort", "tpc_abort"]):
        one, other = TransactionManager().get(), TransactionManager().get()
        joined = DataManager(sender, sender.batch, one, sender.manager)
        prepared = DataManager(sender, sender.batch, one, sender.manager)
        prepared.tpc_vote(one)
        published = DataManager(sender, sender.batch, other, sender.manager)
        published.tpc_vote(other)
        published.tpc_finish(other)
        sender.done.clear()
        for data_manager in (joined, prepared):
            for ending in endings:
                getattr(data_manager, ending)(one)
        for ending in endings:
            getattr(published, ending)(other)
        assert sender.done == ["discard", "discard"]


def two_senders(manager: Any) -> tuple[Sender, Sender]:
    """Return two that have sent, in one transaction; the first one ends first."""
    one, two = Sender(manager, Batch("~mail:1")), Sender(manager, Batch("~mail:2"))
    one.send("a")
    two.send("b")
    return one, two


def test_once_one_of_ours_has_to_finish_all_of_them_do(manager: Any) -> None:
    one, two = two_senders(manager)
    one.batch.failure = OSError("gone")
    partner = Partner(BEFORE)
    manager.get().join(partner)
    with pytest.raises(OSError, match="gone"):
        manager.commit()
    manager.abort()
    assert "tpc_finish" in partner.calls
    assert one.done == ["prepare a", "publish a"]
    assert two.done == ["prepare b", "publish b", "afterwards"]


def test_a_partner_that_fails_between_two_of_ours_stops_neither(manager: Any) -> None:
    one, two = two_senders(manager)
    manager.get().join(failing("tpc_finish", "~mail:15"))
    with pytest.raises(PartnerFailed):
        manager.commit()
    manager.abort()
    assert one.done == ["prepare a", "publish a", "afterwards"]
    assert two.done == ["prepare b", "publish b", "afterwards"]


def test_what_an_interrupt_has_left_the_next_abort_discards(sender: Sender) -> None:
    sender.send("a")
    sender.batch.interrupts = 1
    sender.manager.get().join(failing("tpc_vote", AFTER))
    with pytest.raises(KeyboardInterrupt):
        sender.manager.commit()
    sender.manager.abort()
    assert sender.done == ["prepare a", "discard a", "discard a"]


INTERRUPTS = [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, RecursionError]


@pytest.mark.parametrize("error", INTERRUPTS)
def test_an_interrupt_after_the_vote_of_all_leaves_the_items_in_doubt(
    sender: Sender, error: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise error

    # Whether the database has committed before the interrupt, it does not say.
    sender.manager.get().join(Partner(BEFORE, tpc_finish=interrupt))
    sender.send("a")
    with pytest.raises(error):
        sender.manager.commit()
    sender.manager.abort()
    assert sender.done == ["prepare a", "abandon a"]


@pytest.mark.parametrize(
    ("sort_key", "ending"), [("~sqlalchemy:1", "abandon a"), (AFTER, "discard a")]
)
def test_an_interrupt_in_a_vote_leaves_doubt_if_that_vote_commits(
    sender: Sender, sort_key: str, ending: str
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    sender.send("a")
    sender.manager.get().join(Partner(sort_key, tpc_vote=interrupt))
    with pytest.raises(KeyboardInterrupt):
        sender.manager.commit()
    sender.manager.abort()
    assert sender.done == ["prepare a", ending]


def test_a_transaction_that_does_not_tell_leaves_no_doubt(sender: Sender) -> None:
    class Silent:
        def data(self, owner: object) -> object:
            raise KeyError

    data_manager = sender.data_manager
    data_manager.tpc_vote(Silent())
    data_manager.tpc_abort(Silent())
    assert sender.done == ["prepare", "discard"]


def test_an_interrupt_where_all_resources_are_ours_leaves_no_doubt(
    manager: Any,
) -> None:
    class Interrupted(Batch):
        def publish(self, items: Sequence[Item]) -> Any:
            raise AssertionError("nothing was decided")

    def interrupt(committing: Any) -> None:
        raise KeyboardInterrupt

    one, two = Sender(manager, Interrupted("~mail:1")), Sender(manager)
    one.send("a")
    two.send("b")
    # An interrupt at the beginning of the call, before the first line of it.
    one.data_manager.tpc_finish = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    manager.abort()
    assert one.done == ["prepare a", "discard a"]
    assert two.done == ["prepare b", "discard b"]


def test_an_abort_that_comes_late_publishes_what_is_decided(manager: Any) -> None:
    """An interrupt in `transaction` may keep ``tpc_abort`` from coming at all."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    one, two = two_senders(manager)
    one.batch.failure = OSError("gone")
    manager.get().join(Partner(BEFORE, tpc_abort=interrupt))
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    assert two.done == ["prepare b"]
    manager.abort()
    assert one.done == ["prepare a", "publish a"]
    assert two.done == ["prepare b", "publish b"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError()])
def test_what_is_interrupted_while_it_is_published_is_abandoned(
    sender: Sender, failure: Any
) -> None:
    sender.send("a")
    sender.batch.failure = failure
    with pytest.raises(type(failure)):
        sender.manager.commit()
    sender.manager.abort()
    assert sender.done == ["prepare a", "publish a", "abandon a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_after_the_commit_is_raised_when_all_is_done(
    manager: Any, error: type[BaseException]
) -> None:
    class Interrupted(Batch):
        def publish(self, items: Sequence[Item]) -> Callable[[], None]:
            super().publish(items)
            return self.afterwards

        def afterwards(self) -> None:
            self.done.append("afterwards")
            raise error(self.sort_key)

    one = Sender(manager, Interrupted("~mail:1"))
    two = Sender(manager, Interrupted("~mail:2"))
    one.send("a")
    two.send("b")
    hooks: list[Any] = []
    current = manager.get()
    current.addAfterCommitHook(hooks.append)
    with pytest.raises(error):
        manager.commit()
    current.abort()  # it is not raised again
    assert one.done == ["prepare a", "publish a", "afterwards"]
    assert two.done == ["prepare b", "publish b", "afterwards"]
    assert hooks == [True]
    # The manager has no transaction, as after any commit.
    manager.begin()
    three = Sender(manager)
    three.send("c")
    manager.commit()
    assert three.done == ["prepare c", "publish c", "afterwards"]


def test_an_error_after_the_commit_is_left_to_transaction(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_afterwards() -> None:
        raise RuntimeError("afterwards")

    sender.batch.publish = lambda items: fail_afterwards  # type: ignore[method-assign]
    sender.send("a")
    sender.manager.commit()
    assert "RuntimeError: afterwards" in caplog.text


def test_an_interrupt_after_a_commit_that_fails_is_raised_by_the_abort(
    sender: Sender,
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    sender.batch.publish = lambda items: interrupt  # type: ignore[method-assign]
    sender.send("a")
    sender.manager.get().join(failing("tpc_finish", AFTER))
    with pytest.raises(PartnerFailed):
        sender.manager.commit()
    with pytest.raises(KeyboardInterrupt):
        sender.manager.abort()
    sender.manager.begin()


def test_transaction_still_ends_where_we_raise_what_came_late() -> None:
    """If this fails, look at `_transaction.datamanager._raise_at_the_end` again."""
    for end in (Transaction.commit, Transaction.abort):
        assert "self._free()" in inspect.getsource(end)
    assert "_free_manager()" in inspect.getsource(Transaction._free)


def test_an_interrupt_while_joining_does_not_make_us_join_twice(
    sender: Sender,
) -> None:
    data_manager, current = sender.data_manager, sender.manager.get()

    class Interrupted:
        data = staticmethod(current.data)
        join = staticmethod(current.join)

        def set_data(self, *args: object) -> None:
            current.set_data(*args)
            raise KeyboardInterrupt

    data_manager._transaction = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        data_manager.add(Item("a"))
    sender.send("b")
    sender.manager.commit()
    assert sender.done == ["discard a", "prepare b", "publish b", "afterwards"]


def test_a_synchronizer_that_fails_after_the_commit_undoes_nothing(
    sender: Sender,
) -> None:
    class Synchronizer:
        def beforeCompletion(self, transaction: object) -> None: ...

        def newTransaction(self, transaction: object) -> None: ...

        def afterCompletion(self, transaction: object) -> None:
            sender.manager.unregisterSynch(self)
            raise PartnerFailed

    synchronizer = Synchronizer()
    sender.manager.registerSynch(synchronizer)
    sender.send("a")
    with pytest.raises(PartnerFailed):
        sender.manager.commit()
    sender.manager.abort()
    assert sender.done == ["prepare a", "publish a"]


# Items at odd times


def test_a_before_commit_hook_may_add(sender: Sender) -> None:
    sender.manager.get().addBeforeCommitHook(sender.send, ("a",))
    sender.manager.commit()
    assert sender.done == ["prepare a", "publish a", "afterwards"]


def test_what_is_added_before_our_vote_is_published(sender: Sender) -> None:
    sender.send("a")
    sender.manager.get().join(Partner(BEFORE, tpc_vote=lambda: sender.send("b")))
    sender.manager.commit()
    assert sender.done == ["prepare a b", "publish a b", "afterwards"]


@pytest.mark.parametrize("stage", ["tpc_vote", "tpc_finish"])
def test_what_comes_after_our_vote_is_refused(sender: Sender, stage: str) -> None:
    def late() -> None:
        with pytest.raises(ValueError, match="expected txn status"):
            sender.send("b")
        sender.done.append("refused")

    sender.send("a")
    sender.manager.get().join(Partner(AFTER, **{stage: late}))
    sender.manager.commit()
    assert sorted(sender.done) == [
        "afterwards",
        "discard b",
        "prepare a",
        "publish a",
        "refused",
    ]


def test_a_commit_that_runs_can_not_be_joined_first(sender: Sender) -> None:
    sender.manager.get().join(Partner(BEFORE, tpc_begin=lambda: sender.send("a")))
    with pytest.raises(ValueError, match="expected txn status"):
        sender.manager.commit()
    assert sender.done == ["discard a"]


def test_a_failed_transaction_is_refused(sender: Sender) -> None:
    sender.manager.get().join(failing("commit", BEFORE))
    sender.send("a")
    with pytest.raises(PartnerFailed):
        sender.manager.commit()
    with pytest.raises(TransactionFailedError):
        sender.send("b")
    assert sender.done == ["discard a", "discard b"]


@pytest.mark.parametrize("when", ["Before", "After"])
def test_what_an_abort_hook_adds_is_discarded(sender: Sender, when: str) -> None:
    add_hook = getattr(sender.manager.get(), f"add{when}AbortHook")
    add_hook(sender.send, ("a",))
    sender.manager.abort()
    assert sender.done == ["discard a"]


def test_what_an_after_commit_hook_adds_is_refused(sender: Sender) -> None:
    def hook(committed: bool) -> None:
        with pytest.raises(ValueError, match="expected txn status"):
            sender.send("b")
        sender.done.append("refused")

    sender.send("a")
    sender.manager.get().addAfterCommitHook(hook)
    sender.manager.commit()
    assert sender.done == [
        "prepare a",
        "publish a",
        "discard b",
        "refused",
        "afterwards",
    ]


# Savepoints


def test_a_rollback_discards_exactly_the_later_items(sender: Sender) -> None:
    sender.send("a")
    savepoint = sender.manager.savepoint()
    sender.send("b")
    sender.send("c")
    savepoint.rollback()
    assert sender.done == ["discard b c"]
    sender.send("d")
    sender.manager.commit()
    assert sender.done[1:] == ["prepare a d", "publish a d", "afterwards"]


def test_a_rollback_may_be_repeated(sender: Sender) -> None:
    sender.send("a")
    savepoint = sender.manager.savepoint()
    for name in ("b", "c"):
        sender.send(name)
        savepoint.rollback()
    savepoint.rollback()
    sender.manager.commit()
    assert sender.done == [
        "discard b",
        "discard c",
        "discard",
        "prepare a",
        "publish a",
        "afterwards",
    ]


def test_savepoints_nest(sender: Sender) -> None:
    sender.send("a")
    outer = sender.manager.savepoint()
    sender.send("b")
    inner = sender.manager.savepoint()
    sender.send("c")
    inner.rollback()
    sender.send("d")
    outer.rollback()
    with pytest.raises(InvalidSavepointRollbackError):
        inner.rollback()
    sender.send("e")
    sender.manager.commit()
    assert sender.done[:3] == ["discard c", "discard b d", "prepare a e"]


def test_a_savepoint_from_before_the_first_item_drops_all(sender: Sender) -> None:
    savepoint = sender.manager.savepoint()
    for name in ("a", "b"):
        sender.send(name)
        inner = sender.manager.savepoint()
        sender.send(f"{name}{name}")
        inner.rollback()
        savepoint.rollback()
    sender.send("c")
    sender.manager.commit()
    assert sender.done == [
        "discard aa",
        "discard a",
        "discard bb",
        "discard b",
        "prepare c",
        "publish c",
        "afterwards",
    ]


def test_a_savepoint_from_before_the_first_item_may_leave_nothing(
    sender: Sender,
) -> None:
    savepoint = sender.manager.savepoint()
    sender.send("a")
    savepoint.rollback()
    sender.manager.commit()
    assert sender.done == ["discard a"]


def test_an_optimistic_savepoint_beside_a_partner_without_any(
    sender: Sender,
) -> None:
    sender.send("a")
    sender.manager.get().join(Partner(BEFORE))
    sender.manager.savepoint(optimistic=True)
    sender.send("b")
    sender.manager.commit()
    assert sender.done == ["prepare a b", "publish a b", "afterwards"]


def test_a_batch_of_which_nothing_is_left_needs_no_afterwards(sender: Sender) -> None:
    data_manager = sender.data_manager
    savepoint = data_manager.savepoint()
    data_manager.add(Item("a"))
    savepoint.rollback()
    sender.manager.commit()
    assert sender.done == ["discard a", "prepare", "publish"]


def test_a_savepoint_that_a_partner_refuses_discards_all(sender: Sender) -> None:
    sender.send("a")
    sender.manager.get().join(Partner(BEFORE))
    with pytest.raises(TypeError):
        sender.manager.savepoint()
    with pytest.raises(TransactionFailedError):
        sender.send("b")
    sender.manager.abort()
    assert sender.done == ["discard a", "discard b"]


def test_a_partner_that_cannot_roll_back_leaves_nothing(sender: Sender) -> None:
    sender.send("a")
    sender.manager.get().join(Partner(BEFORE))
    savepoint = sender.manager.savepoint(optimistic=True)
    sender.send("b")
    with pytest.raises(TypeError):
        savepoint.rollback()
    with pytest.raises(TransactionFailedError):
        sender.manager.commit()
    sender.manager.abort()
    assert sorted(sender.done) in (["discard a", "discard b"], ["discard a b"])


def test_a_savepoint_is_of_no_effect_after_the_commit(sender: Sender) -> None:
    sender.send("a")
    kept = sender.data_manager.savepoint()
    sender.manager.commit()
    kept.rollback()
    assert sender.done == ["prepare a", "publish a", "afterwards"]


# Memory


@pytest.mark.parametrize("ending", ["commit", "abort"])
def test_nothing_is_left_of_a_transaction_that_ended(
    manager: Any, ending: str
) -> None:
    gc.disable()
    try:
        sender = Sender(manager)
        sender.send("a")
        savepoint = sender.data_manager.savepoint()
        known = [weakref.ref(sender.data_manager), weakref.ref(sender)]
        item = weakref.ref(sender.data_manager.items[0])
        getattr(manager, ending)()
        assert item() is None, "the savepoint keeps the message"
        del savepoint, sender
        assert [ref() for ref in known] == [None, None]
    finally:
        gc.enable()


def test_the_owner_lives_as_long_as_its_items(manager: Any) -> None:
    # If not, another owner could get its id(), and with it its data manager.
    batch = Batch()
    owner = weakref.ref(sender := Sender(manager, batch))
    sender.send("a")
    del sender
    assert owner() is not None
    manager.commit()
    assert batch.done == ["prepare a", "publish a", "afterwards"]
    assert owner() is None


def test_data_of_an_object_that_had_our_id_does_no_harm(sender: Sender) -> None:
    sender.manager.get().set_data(sender, "not ours")
    sender.send("a")
    sender.send("b")
    sender.manager.commit()
    assert sender.done == ["prepare a b", "publish a b", "afterwards"]


# Forks


def _fork_and_end(ending: str, has_hooks: bool) -> None:
    sender = Sender(explicit())
    sender.manager.begin()
    sender.send("a")
    savepoint = sender.manager.savepoint()
    sender.send("b")
    # A server may fork in C, without the hooks of `os.register_at_fork`.
    child = os.fork() if has_hooks else ctypes.PyDLL(None).fork()
    if not child:
        if ending == "rollback":
            savepoint.rollback()
        elif ending == "commit":
            with pytest.raises(ForkedError, match="parent"):
                sender.manager.commit()
        else:
            sender.send("c")  # in a data manager of its own
            sender.manager.abort()
        expected = ["discard c"] if ending == "abort" else []
        assert sender.done == expected, sender.done
        return
    assert os.waitpid(child, 0)[1] == 0
    sender.manager.commit()
    assert sender.done == ["prepare a b", "publish a b", "afterwards"]


def _fork_in_the_finish(interrupted: bool) -> None:
    sender = Sender(explicit())
    sender.manager.begin()
    sender.send("a")
    parents: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child:
            parents.append(child)
        elif interrupted:
            raise KeyboardInterrupt

    sender.manager.get().join(Partner(BEFORE, tpc_finish=fork))
    try:
        sender.manager.commit()
    except KeyboardInterrupt:
        sender.manager.abort()
    if not parents:
        assert sender.done == ["prepare a"], sender.done
        return
    assert os.waitpid(parents[0], 0)[1] == 0
    assert sender.done == ["prepare a", "publish a", "afterwards"]


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_child_that_is_forked_in_the_commit_leaves_it_to_its_parent(
    interrupted: bool,
) -> None:
    children.call(_fork_in_the_finish, interrupted)


@pytest.mark.parametrize("has_hooks", [True, False])
@pytest.mark.parametrize("ending", ["abort", "commit", "rollback"])
def test_a_forked_child_touches_nothing_of_its_parent(
    ending: str, has_hooks: bool
) -> None:
    children.call(_fork_and_end, ending, has_hooks)
