"""A queue in an operator's hands: looking up, and what may be done to entries."""
from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest

from postcommit.errors import EntryError
from postcommit.errors import ItemError
from postcommit.errors import NotAMaildirError
from postcommit.errors import QueueError
from postcommit.queue.admin import Admin
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.queue.item import foreign_claims
from postcommit.queue.lock import FileLock
from postcommit.queue.scan import Scan
from postcommit.queue.schedule import Schedule
from postcommit.queue.staging import leader_of
from postcommit.queue.store import Store
from postcommit.queue.wakeup import Bell
from tests.support.faults import without_privileges
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.queues import write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def admin(store: Store) -> Admin:
    return Admin(store.path)


def only(admin: Admin, state: State) -> Item:
    [item] = admin.items(state)
    return item


def test_a_path_that_is_no_queue_is_refused_and_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="missing"):
        Admin(str(tmp_path / "missing"))
    with pytest.raises(NotAMaildirError):
        Admin(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# Items


def test_there_is_an_item_for_each_entry_in_each_state(
    store: Store, admin: Admin
) -> None:
    fill(store)
    assert [item.state for item in admin.items(*State)] == list(State)
    assert [item.state for item in admin.items(State.FAILED)] == [State.FAILED]
    assert list(admin.items()) == []


def test_what_other_libraries_have_put_aside_is_a_dead_letter(
    store: Store, admin: Admin
) -> None:
    write(store, "new/.rejected-1700000000.M1P1Q1.web")
    write(store, "new/.sending-1700000000.M1P1Q2.web")
    item = only(admin, State.FAILED)
    assert item.name == "1700000000.M1P1Q1.web"
    assert item.accepted == 1700000000.000001
    assert list(admin.items(State.WAITING)) == []


def test_an_entry_keeps_its_id(store: Store, admin: Admin) -> None:
    wait(store)
    before = only(admin, State.WAITING).id
    defer(store)
    after = only(admin, State.DEFERRED)
    assert after.id == before
    assert len(before) == 12
    assert after.path.endswith(":2,")


def test_an_entry_in_doubt_has_the_id_that_it_will_have(
    store: Store, admin: Admin
) -> None:
    [name] = leave_in_doubt(store, 1)
    doubt = only(admin, State.IN_DOUBT)
    assert doubt.name == name
    assert list(admin.recover([doubt], send=True)) == [doubt]
    assert only(admin, State.WAITING).id == doubt.id


# Details


def test_details(store: Store, admin: Admin) -> None:
    fill(store)
    for item in admin.items(*State):
        read = admin.details(item)
        assert read is not None
        assert (read.sender, read.recipients) == ("s@x.org", ("a@x.org", "b@x.org"))
        assert read.head.startswith(b"Message-Id")
        assert read.size == os.path.getsize(item.path)
        assert not read.problem
        if item.state is State.WAITING:
            assert read.due == item.accepted
        elif item.state is State.DEFERRED:
            assert read.due == pytest.approx(time.time() + 60, abs=30)
            assert (read.attempts, read.last_reply) == (1, "450 4.2.0 Later")
        else:
            assert read.due is None


def test_a_name_that_tells_no_time_is_due_since_its_file_changed(
    store: Store, admin: Admin
) -> None:
    path = write(store, "new/odd")
    os.utime(path, (5, 7))
    read = admin.details(only(admin, State.WAITING))
    assert read is not None
    assert read.due == 7


def test_details_of_what_has_gone(store: Store, admin: Admin) -> None:
    wait(store)
    item = only(admin, State.WAITING)
    os.unlink(item.path)
    assert admin.details(item) is None


def test_an_envelope_larger_than_what_is_read_at_first(
    store: Store, admin: Admin
) -> None:
    many = ", ".join(f"recipient.number.{n}@example.org" for n in range(3000))
    write(store, "new/1", f"X-Zope-From: \nX-Zope-To: {many}\n\nText\n".encode())
    read = admin.details(only(admin, State.WAITING))
    assert read is not None
    assert len(read.recipients) == 3000


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"x" * 70_000, "there is no envelope"),
        (b"X-Zope-Unreadable: it is \xff bad\nx", "it is \ufffd bad"),
    ],
)
def test_details_of_what_is_no_entry(
    store: Store, admin: Admin, data: bytes, problem: str
) -> None:
    write(store, "new/1", data)
    read = admin.details(only(admin, State.WAITING))
    assert read is not None
    assert read.problem == problem
    assert read.recipients == ()


def test_details_of_what_is_no_file(store: Store, admin: Admin) -> None:
    os.mkfifo(f"{store.path}/new/1")
    read = admin.details(only(admin, State.WAITING))
    assert read is not None
    assert read.problem == "is no regular file"


def test_details_that_cannot_be_read(store: Store, admin: Admin) -> None:
    os.symlink("/etc/passwd", f"{store.path}/new/1")
    read = admin.details(only(admin, State.WAITING))
    assert read is not None
    assert read.problem.startswith("cannot be read: Too many levels of symbolic links")


# Looking up


def test_ids_may_be_shortened_and_names_will_do(store: Store, admin: Admin) -> None:
    fill(store)
    for item in admin.items(*State):
        for given in (item.id, item.id[:8], item.name, os.path.basename(item.path)):
            assert admin.find([given]) == [item]
        assert admin.find([item.id, item.name, item.id]) == [item]


def test_ids_are_found_in_the_order_in_which_they_are_given(
    store: Store, admin: Admin
) -> None:
    fill(store)
    items = list(admin.items(*State))[::-1]
    assert admin.find([item.id for item in items]) == items
    assert admin.find([]) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "is not an id"),
        (" ", "is not an id"),
        ("..", "is too short"),
        ("a/b", "is too short"),
        ("<a>", "is too short"),
        ("../new/x", "is not in this queue"),
        ("abcd\0", "is not in this queue"),
        ("abc", "is too short, give at least 4 digits"),
        ("0000", "is not in this queue; it may have been sent or deleted"),
        ("1700000000.M1.web", "is not in this queue"),
        ("0123456789abcdef", "is not in this queue"),
        ("2@x.org", "is not in this queue"),
        ("1@X.org", "is not in this queue"),
        ("\ud800abc@x", "is not in this queue"),
    ],
)
def test_an_id_that_means_nothing_is_refused(
    store: Store, admin: Admin, given: str, told: str
) -> None:
    fill(store)
    with pytest.raises(ItemError, match=told) as caught:
        admin.find([given])
    assert caught.value.id == given


def test_an_ambiguous_id_is_refused_and_says_between_what(
    store: Store, admin: Admin
) -> None:
    wait(store)
    item = only(admin, State.WAITING)
    write(store, f"cur/{item.name}:2,")
    with pytest.raises(ItemError, match=r"give the path: .*new.* and .*cur") as one:
        admin.find([item.name])
    assert item.path in str(one.value)
    assert admin.find([item.path]) == [item]
    # Several thousand names have two that begin alike.
    for n in range(3000):
        write(store, f".Failed/new/1600000000.M{n:06d}P1Q1.web")
    ids = [item.id[:4] for item in admin.items(State.FAILED)]
    twice = next(given for given in ids if ids.count(given) > 1)
    with pytest.raises(ItemError, match=f"'{twice}' is ambiguous"):
        admin.find([twice])


# Retrying


def test_what_is_deferred_becomes_due(store: Store, admin: Admin) -> None:
    fill(store)
    seconds = itertools.count(0.0)  # a clock that never waits for a scan to be over
    schedule = Schedule(60, 4000, 432000)
    scan = Scan(store.maildir, schedule, monotonic=seconds.__next__)
    assert len(list(scan.due())) == 1
    scan._seen["cur"] = os.stat(store.maildir.folder("cur")).st_mtime
    item = only(admin, State.DEFERRED)
    with admin.changes():
        assert admin.retry(item)
    assert item.path in list(scan.due())


def test_a_dead_letter_goes_back(store: Store, admin: Admin) -> None:
    bury(store)
    dead = only(admin, State.FAILED)
    with admin.changes():
        assert admin.retry(dead)
    assert only(admin, State.WAITING).id == dead.id
    assert list(admin.items(State.FAILED)) == []


def test_what_waits_is_due_already(store: Store, admin: Admin) -> None:
    wait(store)
    item = only(admin, State.WAITING)
    assert admin.retry(item)
    os.unlink(item.path)
    assert not admin.retry(item)


def test_nothing_is_changed_while_another_library_drains(
    store: Store, admin: Admin
) -> None:
    bury(store)
    for number in (1, 2):
        write(store, f"new/.sending-170000000{number}.M1P1Q1.web")
    before = os.stat(f"{store.path}/cur").st_mtime_ns
    with pytest.raises(QueueError, match="stop it first"), admin.changes():
        admin.retry(only(admin, State.FAILED))
    assert [item.state for item in admin.items(*State)] == [State.FAILED]
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


def test_a_processor_is_woken(store: Store, admin: Admin) -> None:
    bell = Bell(store.path)
    with admin.changes():
        pass
    bell.wait(3600)
    bell.close()


def test_a_dead_letter_that_is_no_entry_stays_one(store: Store, admin: Admin) -> None:
    bury(store)
    dead = only(admin, State.FAILED)
    Path(dead.path).write_bytes(b"X-Zope-Unreadable: too odd\nx")
    with pytest.raises(EntryError, match=f"{dead.id} cannot be sent: too odd"):
        admin.retry(dead)
    assert only(admin, State.FAILED) == dead


def test_a_dead_letter_replaces_no_entry(store: Store, admin: Admin) -> None:
    bury(store)
    dead = only(admin, State.FAILED)
    for place in (f"new/{dead.name}", f"cur/{dead.name}:2,"):
        there = write(store, place, b"another")
        with pytest.raises(EntryError, match="in the queue already"):
            admin.retry(dead)
        assert there.read_bytes() == b"another"
        there.unlink()
    assert only(admin, State.FAILED) == dead


def test_a_dead_letter_that_has_gone_meanwhile(
    store: Store, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(store)
    dead = only(admin, State.FAILED)
    monkeypatch.setattr("postcommit.queue.admin.details", lambda item: None)
    with pytest.raises(EntryError, match="it is gone"):
        admin.retry(dead)


@pytest.mark.parametrize("state", [State.DEFERRED, State.FAILED])
@pytest.mark.parametrize("change", ["retry", "delete"])
def test_what_somebody_works_on_or_has_gone_is_not_touched(
    store: Store, admin: Admin, state: State, change: str
) -> None:
    fill(store)
    item = only(admin, state)
    lock = FileLock(item.path)
    assert lock.acquire()
    before = os.stat(item.path)
    assert not getattr(admin, change)(item)
    assert os.stat(item.path) == before
    lock.release()
    os.unlink(item.path)
    assert not getattr(admin, change)(item)


@pytest.mark.parametrize("change", ["retry", "delete"])
def test_what_is_in_doubt_is_only_recovered(
    store: Store, admin: Admin, change: str
) -> None:
    leave_in_doubt(store, 1)
    item = only(admin, State.IN_DOUBT)
    with pytest.raises(QueueError, match="is in doubt; use 'postcommit recover"):
        getattr(admin, change)(item)
    assert os.path.exists(item.path)


# Deleting


@pytest.mark.parametrize("state", [State.WAITING, State.DEFERRED, State.FAILED])
def test_entries_are_deleted(store: Store, admin: Admin, state: State) -> None:
    fill(store)
    item = only(admin, state)
    with admin.changes():
        assert admin.delete(item)
    assert item not in list(admin.items(*State))
    assert len(list(admin.items(*State))) == 3


def test_what_cannot_be_deleted_is_an_error(store: Store, admin: Admin) -> None:
    wait(store)
    item = only(admin, State.WAITING)
    os.chmod(store.maildir.folder("new"), 0o500)

    def delete() -> None:
        with pytest.raises(QueueError, match="cannot remove the entry"):
            admin.delete(item)

    without_privileges(delete)
    assert only(admin, State.WAITING) == item


# What is in doubt


def test_what_a_living_transaction_holds_is_not_in_doubt(
    store: Store, admin: Admin
) -> None:
    batch = store.batch()
    items = [store.stage("", ("a@x.org",), [b"x"]) for _ in range(2)]
    batch.prepare(items)
    assert list(admin.items(State.IN_DOUBT)) == []
    batch.discard(items)


@pytest.mark.parametrize(("send", "left"), [(True, 3), (False, 0)])
def test_what_is_in_doubt_is_sent_or_dropped(
    store: Store, admin: Admin, send: bool, left: int
) -> None:
    names = leave_in_doubt(store, 2) + leave_in_doubt(store, 1)
    doubts = list(admin.items(State.IN_DOUBT))
    with admin.changes():
        assert set(admin.recover(doubts, send=send)) == set(doubts)
    assert sorted(os.listdir(f"{store.path}/new")) == sorted(names)[:left]
    assert os.listdir(f"{store.path}/tmp") == []


def test_the_leader_goes_last_and_its_lock_is_held(store: Store, admin: Admin) -> None:
    leave_in_doubt(store, 3)
    doubts = sorted(admin.items(State.IN_DOUBT), key=lambda item: item.name)
    leader = leader_of(doubts[0].path)
    for item in admin.recover(doubts, send=True):
        assert os.path.exists(leader) == (item.path != leader)
        assert list(admin.items(State.IN_DOUBT)) == []
        if item.path != leader:
            assert list(admin.recover(doubts, send=False)) == []


def test_the_rest_of_a_transaction_can_be_recovered_later(
    store: Store, admin: Admin
) -> None:
    leave_in_doubt(store, 2)
    doubts = list(admin.items(State.IN_DOUBT))
    [leader] = [item for item in doubts if leader_of(item.path) == item.path]
    assert list(admin.recover([leader], send=True)) == [leader]
    other = only(admin, State.IN_DOUBT)
    assert list(admin.recover([other], send=False)) == [other]


def test_what_somebody_else_has_sent_meanwhile_is_an_error(
    store: Store, admin: Admin
) -> None:
    leave_in_doubt(store, 1)
    doubt = only(admin, State.IN_DOUBT)
    assert list(admin.recover([doubt], send=True)) == [doubt]
    with pytest.raises(QueueError, match="cannot accept the entry"):
        list(admin.recover([doubt], send=True))


def test_what_is_not_in_doubt_is_not_recovered(store: Store, admin: Admin) -> None:
    wait(store)
    with pytest.raises(QueueError, match="is not in doubt"):
        list(admin.recover([only(admin, State.WAITING)], send=False))
    assert only(admin, State.WAITING)
