"""Transitions of an entry whose time, name or place is not the usual one."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from postcommit._mail.entry import Entry
from postcommit._maildir.files import birth_time
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store
from postcommit.errors import QueueError
from tests.support.queues import MESSAGE
from tests.support.queues import wait
from tests.support.queues import write


DAY = 86400.0
LEFT = Entry("s@x.org", ("b@x.org",), MESSAGE, 2, "450 Later")

# A time before any queue of this test was created.
LONG_AGO = 1234567890


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


def claimed(store: Store, name: str, mtime: float | None = None) -> Claim:
    path = write(store, name)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    claim = store.claim(str(path))
    assert claim is not None
    return claim


def names(store: Store, folder: str) -> list[str]:
    return sorted(os.listdir(f"{store.path}/{folder}"))


# When an entry was accepted


def born(store: Store) -> float:
    """Return when the queue was created, if the file system says it."""
    seconds = birth_time(store.path)
    if seconds is None:
        pytest.skip("this file system does not say when a folder was created")
    return seconds


def test_the_name_says_when_an_entry_was_accepted_whatever_its_file_says(
    store: Store,
) -> None:
    told = int(born(store)) - 3600
    claim = claimed(store, f"new/{told}.x", told + 600)
    assert store.accepted(claim, told + 7200) == told
    claim.release()


@pytest.mark.parametrize("name", [f"{LONG_AGO}.x", "no-time.x"])
def test_the_file_says_it_if_the_name_is_older_than_the_queue_or_says_nothing(
    store: Store, name: str
) -> None:
    changed = int(born(store)) + 600
    claim = claimed(store, f"new/{name}", changed)
    assert store.accepted(claim, changed + 60) == changed
    claim.release()


def test_a_name_may_be_almost_a_day_older_than_the_queue(store: Store) -> None:
    """The clocks of two machines may differ, but not by more."""
    for seconds, is_believed in [(DAY - 60, True), (DAY + 60, False)]:
        told, now = int(born(store) - seconds), int(born(store)) + 60.0
        claim = claimed(store, f"new/{told}.x", LONG_AGO)
        assert store.accepted(claim, now) == (told if is_believed else now)
        claim.release()


def test_an_entry_whose_name_and_file_are_too_old_was_accepted_now(
    store: Store,
) -> None:
    now = born(store) + 60
    claim = claimed(store, f"new/{LONG_AGO}.x", LONG_AGO + 1)
    assert store.accepted(claim, now) == now
    assert store.accepted(claim) == pytest.approx(time.time(), abs=60)
    claim.release()


@pytest.mark.parametrize(
    ("name", "seconds"), [(f"{LONG_AGO}.x", LONG_AGO), ("no-time.x", LONG_AGO + 1)]
)
def test_while_the_clock_is_wrong_the_name_or_else_the_file_says_it(
    store: Store, name: str, seconds: float
) -> None:
    born(store)
    claim = claimed(store, f"new/{name}", LONG_AGO + 1)
    assert store.accepted(claim, LONG_AGO + 2) == seconds
    claim.release()


# Where an entry is


@pytest.mark.parametrize("flags", ["", "S"])
def test_an_entry_that_a_maildir_reader_has_moved_is_removed_when_it_was_sent(
    store: Store, flags: str
) -> None:
    name = wait(store)
    claim = store.claim(f"{store.path}/new/{name}")
    assert claim is not None
    os.rename(claim.path, f"{store.path}/cur/{name}:2,{flags}")
    store.finish(claim)
    claim.release(removed=True)
    assert list(store.maildir) == []


def test_an_entry_that_was_removed_meanwhile_is_finished(store: Store) -> None:
    claim = claimed(store, "new/1.x")
    os.unlink(claim.path)
    store.finish(claim)
    claim.release(removed=True)


def test_where_a_folder_is_missing_it_is_not_known_whether_an_entry_is_left(
    store: Store,
) -> None:
    claim = claimed(store, "new/1.x")
    os.unlink(claim.path)
    os.rmdir(f"{store.path}/cur")
    with pytest.raises(QueueError, match="cannot look for the entry"):
        store.finish(claim)
    claim.release()


# Names


def test_a_deferred_entry_gets_the_time_when_it_was_accepted(store: Store) -> None:
    accepted = int(time.time()) - 50
    for by_writing in (True, False):
        claim = claimed(store, f"new/{LONG_AGO}.x")
        if by_writing:
            store.defer(claim, LEFT, time.time() + 60, accepted)
        else:
            store.postpone(claim, time.time() + 60, accepted)
        claim.release()
        assert names(store, "cur") == [f"{accepted}.{LONG_AGO}.x:2,"]
        assert names(store, "new") == []
        os.unlink(claim.path)


def _defer(store: Store, claim: Claim) -> None:
    store.defer(claim, LEFT, time.time() + 60)


def _postpone(store: Store, claim: Claim) -> None:
    store.postpone(claim, time.time() + 60)


@pytest.mark.parametrize("by", [_defer, _postpone])
def test_a_folder_with_the_name_of_an_entry_is_not_replaced(
    store: Store, by: Callable[[Store, Claim], None]
) -> None:
    os.mkdir(f"{store.path}/cur/{LONG_AGO}.x:2,")
    claim = claimed(store, f"new/{LONG_AGO}.x")
    with pytest.raises(QueueError, match=r"cannot (defer|postpone) the entry"):
        by(store, claim)
    claim.release()
    assert names(store, "tmp") == []
    assert names(store, "new") == [f"{LONG_AGO}.x"]
    assert names(store, "cur") == [f"{LONG_AGO}.x:2,"]


def test_a_postponed_entry_of_a_missing_folder_is_an_error(store: Store) -> None:
    claim = claimed(store, "new/1.x")
    os.unlink(claim.path)
    with pytest.raises(QueueError, match="cannot postpone the entry"):
        store.postpone(claim, time.time())
    claim.release()


@pytest.mark.parametrize(("is_last", "suffix"), [(True, ""), (False, ".U2")])
def test_a_dead_letter_that_may_have_arrived_has_a_name_of_its_own(
    store: Store, is_last: bool, suffix: str
) -> None:
    claim = claimed(store, "new/1.x")
    store.bury_uncertain(claim, LEFT, is_last=is_last)
    claim.release()
    assert names(store, ".Failed/new") == [f"1.x{suffix}"]
