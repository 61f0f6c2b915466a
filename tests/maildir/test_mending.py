"""Changing entries of a queue on disk: retry, delete, recover."""
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from postcommit._drain.schedule import Schedule
from postcommit._maildir.consumer import Scan
from postcommit._maildir.files import FileLock
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.looking import foreign_claims
from postcommit._maildir.mending import MaildirChanges
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.staging import leader_of
from postcommit._maildir.store import Store
from postcommit.errors import EntryError
from postcommit.errors import NotAMaildirError
from postcommit.errors import QueueError
from tests.support.faults import without_privileges
from tests.support.queues import bury
from tests.support.queues import fill
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.queues import write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def queue(store: Store) -> MaildirOperators:
    return MaildirOperators(store.path)


@pytest.fixture
def changes(store: Store) -> MaildirChanges:
    return MaildirChanges(store)


def only(queue: MaildirOperators, state: EntryState) -> Item:
    [item] = queue.items([state])
    return item


def test_a_path_that_is_no_queue_is_refused_and_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="missing"):
        MaildirOperators(str(tmp_path / "missing"))
    with pytest.raises(NotAMaildirError):
        MaildirOperators(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# Retrying


def test_what_is_deferred_becomes_due(store: Store, queue: MaildirOperators) -> None:
    fill(store)
    # Long enough ago that its time alone says whether the folder has changed.
    os.utime(store.maildir.folder("cur"), (1700000000, 1700000000))
    uptime = 0.0
    schedule = Schedule(60, 4000, 432000)
    scan = Scan(store.maildir, schedule, monotonic=lambda: uptime)
    assert len(list(iter(scan.next, None))) == 1
    item = only(queue, EntryState.DEFERRED)
    uptime += 1  # the rest that follows a look at deferred entries
    with queue.changes() as changes:
        assert changes.retry(item)
    assert item.place in list(iter(scan.next, None))


def test_a_dead_letter_goes_back(store: Store, queue: MaildirOperators) -> None:
    bury(store)
    dead = only(queue, EntryState.FAILED)
    with queue.changes() as changes:
        assert changes.retry(dead)
    assert only(queue, EntryState.WAITING).id == dead.id
    assert list(queue.items([EntryState.FAILED])) == []


def test_what_waits_is_due_already(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    wait(store)
    item = only(queue, EntryState.WAITING)
    assert changes.retry(item)
    os.unlink(item.place)
    assert not changes.retry(item)


def test_nothing_is_changed_while_another_library_drains(
    store: Store, queue: MaildirOperators
) -> None:
    bury(store)
    for number in (1, 2):
        write(store, f"new/.sending-170000000{number}.M1P1Q1.web")
    before = os.stat(f"{store.path}/cur").st_mtime_ns
    with pytest.raises(QueueError, match="stop it first"), queue.changes() as changes:
        changes.retry(only(queue, EntryState.FAILED))
    assert [item.state for item in queue.items(EntryState)] == [EntryState.FAILED]
    assert os.stat(f"{store.path}/cur").st_mtime_ns == before


def test_claims_that_go_while_we_look(store: Store) -> None:
    for number in (1, 2):
        write(store, f"new/.sending-170000000{number}.M1P1Q1.web")
    count = 0
    for _ in foreign_claims(store, time.time()):
        count += 1
        for path in Path(store.path, "new").iterdir():
            path.unlink()
    assert count == 1


def test_a_processor_is_woken(store: Store, queue: MaildirOperators) -> None:
    wakeup = Wakeup(store.path)
    with queue.changes():
        pass
    wakeup.wait(3600)
    wakeup.close()


def test_a_dead_letter_that_is_no_entry_stays_one(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    bury(store)
    dead = only(queue, EntryState.FAILED)
    Path(dead.place).write_bytes(b"X-Zope-Unreadable: too odd\nx")
    with pytest.raises(EntryError, match=r"^it cannot be sent: too odd"):
        changes.retry(dead)
    assert only(queue, EntryState.FAILED) == dead


def test_a_dead_letter_replaces_no_entry(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    bury(store)
    dead = only(queue, EntryState.FAILED)
    for place in (f"new/{dead.name}", f"cur/{dead.name}:2,"):
        there = write(store, place, b"another")
        with pytest.raises(EntryError, match="in the queue already"):
            changes.retry(dead)
        assert there.read_bytes() == b"another"
        there.unlink()
    assert only(queue, EntryState.FAILED) == dead


def test_a_dead_letter_that_cannot_be_moved_is_an_error(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    bury(store)
    dead = only(queue, EntryState.FAILED)
    os.rmdir(f"{store.path}/new")
    with pytest.raises(QueueError, match="cannot move the dead letter"):
        changes.retry(dead)
    assert os.path.exists(dead.place)


def test_a_dead_letter_that_has_gone_meanwhile(
    store: Store,
    queue: MaildirOperators,
    changes: MaildirChanges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bury(store)
    dead = only(queue, EntryState.FAILED)
    monkeypatch.setattr("postcommit._maildir.looking.details", lambda item: None)
    with pytest.raises(EntryError, match="it is gone"):
        changes.retry(dead)


@pytest.mark.parametrize("state", [EntryState.DEFERRED, EntryState.FAILED])
@pytest.mark.parametrize("change", ["retry", "delete"])
def test_what_somebody_works_on_or_has_gone_is_not_touched(
    store: Store,
    queue: MaildirOperators,
    changes: MaildirChanges,
    state: EntryState,
    change: str,
) -> None:
    fill(store)
    item = only(queue, state)
    lock = FileLock(item.place)
    assert lock.acquire()
    before = os.stat(item.place)
    assert not getattr(changes, change)(item)
    assert os.stat(item.place) == before
    lock.release()
    os.unlink(item.place)
    assert not getattr(changes, change)(item)


@pytest.mark.parametrize("change", ["retry", "delete"])
def test_what_is_in_doubt_is_only_recovered(
    store: Store, queue: MaildirOperators, changes: MaildirChanges, change: str
) -> None:
    leave_in_doubt(store, 1)
    item = only(queue, EntryState.IN_DOUBT)
    with pytest.raises(QueueError, match="is in doubt; use 'postcommit recover"):
        getattr(changes, change)(item)
    assert os.path.exists(item.place)


# Deleting


@pytest.mark.parametrize(
    "state", [EntryState.WAITING, EntryState.DEFERRED, EntryState.FAILED]
)
def test_entries_are_deleted(
    store: Store, queue: MaildirOperators, state: EntryState
) -> None:
    fill(store)
    item = only(queue, state)
    with queue.changes() as changes:
        assert changes.delete(item)
    assert item not in list(queue.items(EntryState))
    assert len(list(queue.items(EntryState))) == 3


def test_what_cannot_be_deleted_is_an_error(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    wait(store)
    item = only(queue, EntryState.WAITING)
    os.chmod(store.maildir.folder("new"), 0o500)

    def delete() -> None:
        with pytest.raises(QueueError, match="cannot remove the entry"):
            changes.delete(item)

    without_privileges(delete)
    assert only(queue, EntryState.WAITING) == item


# What is in doubt


def test_what_a_living_transaction_holds_is_not_in_doubt(
    store: Store, queue: MaildirOperators
) -> None:
    batch = store.batch()
    items = [store.stage("", ("a@x.org",), [b"x"]) for _ in range(2)]
    batch.prepare(items)
    assert list(queue.items([EntryState.IN_DOUBT])) == []
    batch.discard(items)


@pytest.mark.parametrize(("send", "left"), [(True, 3), (False, 0)])
def test_what_is_in_doubt_is_sent_or_dropped(
    store: Store, queue: MaildirOperators, send: bool, left: int
) -> None:
    names = leave_in_doubt(store, 2) + leave_in_doubt(store, 1)
    doubts = list(queue.items([EntryState.IN_DOUBT]))
    with queue.changes() as changes:
        assert set(changes.recover(doubts, send=send)) == set(doubts)
    assert sorted(os.listdir(f"{store.path}/new")) == sorted(names)[:left]
    assert os.listdir(f"{store.path}/tmp") == []


def test_what_is_in_doubt_replaces_no_entry_of_its_name(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    [name] = leave_in_doubt(store, 1)
    taken = write(store, f"new/{name}", b"another")
    doubt = only(queue, EntryState.IN_DOUBT)
    written = Path(doubt.place).read_bytes()
    assert list(changes.recover([doubt], send=True)) == [doubt]
    assert taken.read_bytes() == b"another"
    [other] = set(taken.parent.iterdir()) - {taken}
    assert other.read_bytes() == written


def test_the_leader_goes_last_and_its_lock_is_held(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    leave_in_doubt(store, 3)
    doubts = sorted(queue.items([EntryState.IN_DOUBT]), key=lambda item: item.name)
    leader = leader_of(doubts[0].place)
    for item in changes.recover(doubts, send=True):
        assert os.path.exists(leader) == (item.place != leader)
        assert list(queue.items([EntryState.IN_DOUBT])) == []
        if item.place != leader:
            assert list(changes.recover(doubts, send=False)) == []


def test_the_rest_of_a_transaction_can_be_recovered_later(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    leave_in_doubt(store, 2)
    doubts = list(queue.items([EntryState.IN_DOUBT]))
    [leader] = [item for item in doubts if leader_of(item.place) == item.place]
    assert list(changes.recover([leader], send=True)) == [leader]
    other = only(queue, EntryState.IN_DOUBT)
    assert list(changes.recover([other], send=False)) == [other]


def test_what_somebody_else_has_sent_meanwhile_is_an_error(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    leave_in_doubt(store, 1)
    doubt = only(queue, EntryState.IN_DOUBT)
    assert list(changes.recover([doubt], send=True)) == [doubt]
    with pytest.raises(QueueError, match="cannot accept the entry"):
        list(changes.recover([doubt], send=True))


def test_what_is_not_in_doubt_is_not_recovered(
    store: Store, queue: MaildirOperators, changes: MaildirChanges
) -> None:
    wait(store)
    with pytest.raises(QueueError, match="is not in doubt"):
        list(changes.recover([only(queue, EntryState.WAITING)], send=False))
    assert only(queue, EntryState.WAITING)
