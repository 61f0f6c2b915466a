"""How a queue is: counts, what is due, the most common reply."""
from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from postcommit.errors import QueueError
from postcommit.queue.entry import accepted_at
from postcommit.queue.notice import Board
from postcommit.queue.store import Store
from postcommit.queue.survey import Reason
from postcommit.queue.survey import _changed
from postcommit.queue.survey import survey
from postcommit.queue.wakeup import Bell
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.queues import write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


def test_an_empty_queue(store: Store) -> None:
    seen = survey(store, time.time())
    counts = (seen.waiting, seen.deferred, seen.failed, seen.in_doubt, seen.due)
    assert counts == (0, 0, 0, 0, 0)
    assert (seen.oldest_due, seen.looked_at, seen.foreign_claims) == (None, 0, 0)
    assert (seen.deferred_reason, seen.failed_reason, seen.heartbeat) == (None,) * 3


def test_each_state_is_counted(store: Store) -> None:
    fill(store)
    leave_in_doubt(store, 2)
    seen = survey(store, time.time())
    counts = (seen.waiting, seen.deferred, seen.failed, seen.in_doubt, seen.due)
    assert counts == (1, 1, 1, 3, 1)


def test_what_waits_is_due_since_it_came(store: Store) -> None:
    first = wait(store)
    wait(store)
    seen = survey(store, time.time())
    assert seen.due == 2
    assert seen.oldest_due == accepted_at(first)


def test_the_oldest_due_is_the_first_of_new_and_deferred(store: Store) -> None:
    defer(store, due=-50)
    defer(store, due=-90)
    defer(store, due=-70)
    defer(store, due=90)
    now = time.time()
    wait(store)
    seen = survey(store, now)
    assert seen.due == 4
    assert seen.oldest_due is not None
    assert 80 < now - seen.oldest_due < 90 + 60
    assert seen.looked_at == seen.deferred == 4


def test_an_older_one_that_waits_is_the_oldest(store: Store) -> None:
    defer(store, due=-50)
    write(store, "new/1700000000.M5P1Q1.web")
    assert survey(store, time.time()).oldest_due == 1700000000.000005


def test_without_time_not_all_are_asked_and_that_is_told(store: Store) -> None:
    for _ in range(3):
        defer(store, due=-50)
    seen = survey(store, time.time(), most_seconds=0.0)
    assert (seen.deferred, seen.looked_at, seen.due) == (3, 0, 0)
    assert seen.oldest_due is None


def test_what_goes_while_we_look_is_never_due(store: Store) -> None:
    folder = os.open(f"{store.path}/cur", os.O_RDONLY)
    try:
        assert _changed("1700000000.M1P1Q1.web:2,", folder) == math.inf
    finally:
        os.close(folder)


def test_the_most_common_reply_whatever_is_particular_in_it(store: Store) -> None:
    defer(store, "451 4.3.0 Disk full")
    defer(store, "450 4.2.0 Greylisted <a@x.org> for 17 s")
    defer(store, "450 4.2.0 Greylisted <b@x.org> for 300 s")
    seen = survey(store, time.time())
    assert seen.deferred_reason is not None
    assert seen.deferred_reason.reply.startswith("450 4.2.0 Greylisted <")
    assert (seen.deferred_reason.count, seen.deferred_reason.looked_at) == (2, 3)


def test_why_dead_letters_failed(store: Store) -> None:
    bury(store, "550 5.1.1 No such user")
    write(store, ".Failed/new/1700000000.M1P1Q1.web", b"")
    write(store, ".Failed/cur/1700000000.M1P1Q2.web:2,S", b"")
    seen = survey(store, time.time())
    assert seen.failed == 3
    assert seen.failed_reason == Reason("the file is empty", 2, 3)


def test_entries_without_a_reply_have_no_reason(store: Store) -> None:
    write(store, "cur/1700000000.M1P1Q1.web:2,")
    assert survey(store, time.time()).deferred_reason is None


def test_what_other_libraries_have_put_aside(store: Store) -> None:
    write(store, "new/.rejected-1700000000.M1P1Q1.web")
    write(store, "new/.other")
    write(store, "new/1700000000.M1P1Q2.web")
    young = write(store, "new/.sending-1700000000.M1P1Q2.web")
    now = time.time()
    seen = survey(store, now)
    assert (seen.waiting, seen.failed, seen.foreign_claims) == (1, 1, 1)
    os.utime(young, (now - 4 * 3600,) * 2)
    assert survey(store, now).foreign_claims == 0


def test_a_sign_of_life(store: Store) -> None:
    before = time.time() - 60
    bell = Bell(store.path)
    try:
        beat = survey(store, time.time()).heartbeat
        assert beat is not None
        assert beat > before
    finally:
        bell.close()
    assert survey(store, time.time()).heartbeat is None


def test_why_it_pauses(store: Store) -> None:
    assert survey(store, time.time()).pause is None
    board = Board(store.path)
    try:
        board.post("away", 1)
        pause = survey(store, time.time()).pause
        assert pause is not None
        assert pause.reason == "away"
    finally:
        board.clear()


def test_what_cannot_be_looked_through_is_an_error(store: Store) -> None:
    os.rmdir(f"{store.path}/cur")
    with pytest.raises(QueueError, match="cannot look through the queue"):
        survey(store, time.time())
