"""What a drain takes from a queue on disk, and where it leaves it."""
from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from postcommit._drain.contract import IClaim
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._mail.entry import Entry
from postcommit._maildir.consumer import Consumer
from postcommit._maildir.consumer import Scan
from postcommit._maildir.entry import BEGINNING
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.files import birth_time
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store
from postcommit._maildir.store import do_all
from postcommit.errors import EntryError
from postcommit.errors import QueueError
from tests.support.queues import ENTRY
from tests.support.queues import MESSAGE
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.queues import wait
from tests.support.queues import write


SCHEDULE = Schedule(60.0, 4000.0, 1e6)
TRIED = Entry(SENDER, RECIPIENTS, MESSAGE, 1, "550 No such user")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def consumer(store: Store) -> Iterator[Consumer]:
    made = store.consumer(SCHEDULE)
    yield made
    made.close()


def keys(claims: list[IClaim]) -> list[object]:
    return [claim.key for claim in claims]


def forget_changes(store: Store) -> None:
    """Make the last change of the folders one of long ago."""
    for folder in ("new", "cur"):
        os.utime(f"{store.path}/{folder}", (1e9, 1e9))


# Take


def test_what_came_before_the_feeder_woke_is_found_in_the_same_call(
    store: Store, consumer: Consumer
) -> None:
    first = wait(store)
    claims = consumer.take(1)
    second = wait(store)
    consumer.wait(0)
    claims += consumer.take(1)  # which goes on with the look that began before
    assert keys(claims) == [first, second]


def test_what_came_after_the_feeder_woke_is_left_to_its_next_wake(
    store: Store, consumer: Consumer
) -> None:
    """One look is enough for each wake, because what comes later rings."""
    first = wait(store)
    claims = consumer.take(1)
    wait(store)
    assert consumer.take(1) == []
    assert keys(claims) == [first]


def test_a_stop_ends_also_a_look_that_was_not_at_its_end(
    store: Store, consumer: Consumer
) -> None:
    for _ in range(3):
        wait(store)
    held = consumer.take(1)
    assert len(held) == 1
    consumer.stop()
    taken: list[list[IClaim]] = []
    thread = threading.Thread(target=lambda: taken.append(consumer.take(1)))
    thread.daemon = True
    thread.start()
    thread.join(60)
    assert taken == [[]]


def test_an_entry_that_was_locked_is_found_again_in_a_folder_that_did_not_change(
    store: Store, consumer: Consumer
) -> None:
    name = wait(store)
    forget_changes(store)
    another = Store(store.path).claim(f"{store.path}/new/{name}")
    assert another is not None
    assert consumer.take(1) == []
    assert consumer.take(1) == []
    another.release()
    assert keys(consumer.take(1)) == [name]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_process_without_descriptors_takes_nothing_and_names_the_queue(
    store: Store, consumer: Consumer, number: int
) -> None:
    def fail_second(path: str, *locks: Any) -> Any:
        if path.endswith(names[1]):
            raise OSError(number, os.strerror(number), path)
        return claim(path, *locks)

    names = [wait(store), wait(store)]
    claim = store.claim
    store.claim = fail_second  # type: ignore[method-assign]
    with pytest.raises(QueueError, match="cannot work on the entries") as caught:
        consumer.take(2)
    reason = f"{store.path}: cannot work on the entries: {os.strerror(number)}"
    assert str(caught.value) == reason
    assert caught.value.scope == "queue"
    store.claim = claim  # type: ignore[method-assign]
    taken = consumer.take(2) + consumer.take(2)
    assert keys(taken) == names


def test_a_new_entry_that_was_released_comes_before_those_that_came_later(
    store: Store, consumer: Consumer
) -> None:
    names = [wait(store) for _ in range(3)]
    consumer.release(consumer.take(1))
    claims = [claim for _ in names for claim in consumer.take(1)]
    assert keys(claims) == names


def test_a_new_entry_of_a_clock_that_was_put_back_is_due_when_it_is_not_avoided(
    store: Store, consumer: Consumer
) -> None:
    path = write(store, "new/1.x")
    os.utime(path, (time.time() + 3000,) * 2)
    forget_changes(store)
    assert consumer.take(1, {"1.x"}) == []
    assert keys(consumer.take(1)) == ["1.x"]


def test_a_change_during_the_rest_after_a_look_is_seen_when_the_rest_is_over(
    store: Store,
) -> None:
    uptime = 0.0
    scan = Scan(store.maildir, SCHEDULE, time.time, lambda: uptime)
    path = write(store, "cur/1.x")
    os.utime(path, (time.time() + 3000,) * 2)
    forget_changes(store)
    assert scan.next() is None
    second = write(store, "cur/2.x")
    os.utime(second, (1e9, 1e9))
    os.utime(second.parent, (1.1e9, 1.1e9))  # another time, of long ago
    assert scan.next() is None
    assert scan.seconds_to_wait() > 0
    uptime += 1
    assert scan.next() == str(second)


def test_a_sweep_removes_what_a_dead_sender_has_left(
    store: Store, consumer: Consumer
) -> None:
    path = write(store, "tmp/old")
    os.utime(path, (1e9, 1e9))
    consumer.sweep()
    assert not path.exists()
    os.rmdir(path.parent)
    path.parent.touch()
    with pytest.raises(QueueError, match="cannot clean up"):
        consumer.sweep()


def test_a_pipe_among_the_entries_is_named_when_it_is_read(
    store: Store, consumer: Consumer
) -> None:
    os.mkfifo(f"{store.path}/new/1.pipe")
    [claim] = consumer.take(1)
    with pytest.raises(QueueError) as caught:
        claim.read()
    reason = f"{claim.name}: is no regular file; remove it from the queue"
    assert str(caught.value) == reason
    assert claim.name == f"{store.path}/new/1.pipe"


def test_the_clock_of_the_drain_says_when_an_entry_without_a_time_was_accepted(
    store: Store,
) -> None:
    if birth_time(store.path) is None:
        pytest.skip("this file system does not say when a folder was created")
    now = time.time() + 5000
    path = write(store, "new/1234567890.x")
    os.utime(path, (1234567890, 1234567890))
    consumer = store.consumer(SCHEDULE, lambda: now)
    [claim] = consumer.take(1)
    assert claim.accepted == now
    consumer.close()


# Wait


def test_a_deferral_rings_and_says_when_the_entry_is_due(
    store: Store, consumer: Consumer
) -> None:
    for postpones in (True, False):
        wait(store)
        [claim] = consumer.take(1)
        while consumer.take(1):
            pass
        consumer.wait(0)  # what has rung so far
        due = time.time() + 50
        if postpones:
            consumer.postpone(claim, due)
        else:
            consumer.settle(claim, Settlement(left=TRIED, due=due))
        assert 40 < consumer.seconds_to_wait() <= 50
        before = time.monotonic()
        consumer.wait(20)
        assert time.monotonic() - before < 10
        os.unlink(next(store.maildir.paths("cur")))


def test_an_entry_that_is_buried_or_finished_is_not_claimed_any_more(
    store: Store, consumer: Consumer
) -> None:
    for settle in (
        lambda claim: consumer.bury_unreadable(claim, "no envelope"),
        lambda claim: consumer.settle(claim, Settlement()),
    ):
        path = write(store, "new/1.x")
        consumer.wait(0)
        [claim] = consumer.take(1)
        settle(claim)
        again = write(store, "new/1.x")  # of the same name
        os.utime(path.parent)
        consumer.wait(0)
        claims = consumer.take(1)
        assert [c.name for c in claims] == [str(again)]
        consumer.settle(claims[0], Settlement())


def test_an_entry_that_cannot_be_buried_is_released(
    store: Store, consumer: Consumer
) -> None:
    path = write(store, "new/1.x", b"nothing")
    Path(f"{store.path}/.Failed").touch()  # no folder
    [claim] = consumer.take(1)
    with pytest.raises(QueueError, match=r"\.Failed: is no folder"):
        consumer.bury_unreadable(claim, "no envelope")
    another = Store(store.path).claim(str(path))
    assert another is not None
    another.release()


# Read


def test_the_beginning_of_a_file_begins_with_its_first_byte(
    store: Store, consumer: Consumer
) -> None:
    write(store, "new/1.x")
    [claim] = consumer.take(1)
    assert claim.beginning() == ENTRY


@pytest.mark.parametrize("head", [b"", b"X-Zope-From: s@x.org\nX-Zope-To: a@x.org"])
def test_a_file_larger_than_the_memory_is_not_read(
    store: Store, consumer: Consumer, head: bytes
) -> None:
    path = write(store, "new/1.x", head)
    os.truncate(path, 1 << 42)
    [claim] = consumer.take(1)
    with pytest.raises(EntryError):
        claim.read()
    assert len(claim.beginning()) == BEGINNING


def test_the_lines_of_an_attempt_are_written_if_there_is_anything_to_keep() -> None:
    """A number without a reply, or a reply that an attempt which did not count left."""
    for attempts, reply in [(0, "450 Later"), (3, ""), (0, "")]:
        entry = Entry(SENDER, RECIPIENTS, MESSAGE, attempts, reply)
        read = parse_entry(preamble_of(entry) + MESSAGE)
        assert (read.attempts, read.last_reply) == (attempts, reply)


def test_a_recipient_that_is_no_utf_8_is_named_by_its_line() -> None:
    data = b"X-Zope-From: a@x.org\nX-Zope-To: \xff\nx"
    with pytest.raises(EntryError, match="X-Zope-To: is no UTF-8"):
        parse_entry(data)


def test_a_large_entry_is_read_whole(store: Store, consumer: Consumer) -> None:
    body = b"x" * (2 * BEGINNING)
    write(store, "new/1.x", ENTRY + body)
    [claim] = consumer.take(1)
    assert claim.read().message == MESSAGE + body


# Settle


def dead_letters(store: Store) -> list[str]:
    return sorted(os.listdir(f"{store.path}/.Failed/new"))


LEFT = replace(TRIED, recipients=("b@x.org",))


@pytest.mark.parametrize(
    ("settlement", "dead"),
    [
        (Settlement(rejected=TRIED), ["{}"]),
        (Settlement(uncertain=TRIED), ["{}"]),
        (Settlement(rejected=TRIED, uncertain=TRIED), ["{}.R1", "{}.U1"]),
        (Settlement(rejected=TRIED, left=LEFT, due=1e10), ["{}.R1"]),
        (Settlement(uncertain=TRIED, left=LEFT, due=1e10), ["{}.U1"]),
    ],
)
def test_a_dead_letter_has_the_name_of_the_entry_if_it_is_all_that_remains(
    store: Store, consumer: Consumer, settlement: Settlement, dead: list[str]
) -> None:
    name = wait(store)
    [claim] = consumer.take(1)
    consumer.settle(claim, settlement)
    assert dead_letters(store) == [each.format(name) for each in dead]
    left = [name] if settlement.left else []
    assert [Path(path).name.partition(":")[0] for path in store.maildir] == left
    if left:
        another = store.claim(next(iter(store.maildir)))
        assert another is not None, "it is not released"
        another.release()


def test_an_entry_whose_file_was_replaced_is_not_there_any_more(store: Store) -> None:
    claim = store.claim(str(write(store, "new/1.x")))
    assert claim is not None
    os.unlink(claim.path)
    write(store, "new/1.x", b"another one")
    assert not store.still_has(claim)
    claim.release()


class Restless(Store):
    """A store whose entry is moved each time it was found, as by a Maildir reader."""

    moves = 0

    def still_has(self, claim: Claim) -> bool:
        has = super().still_has(claim)
        self.move(claim)
        return has

    def move(self, claim: Claim) -> None:
        self.moves += 1
        os.rename(claim.path, f"{self.path}/cur/{claim.key}:2,{'RS'[self.moves % 2]}")


def test_who_moves_an_entry_again_and_again_is_told_of(tmp_path: Path) -> None:
    store = Restless(str(tmp_path / "queue"))
    claim = store.claim(str(write(store, "new/1.x")))
    assert claim is not None
    store.move(claim)
    with pytest.raises(QueueError, match="another program moves it again and again"):
        store.finish(claim)
    assert len(list(store.maildir)) == 1, "it is not lost"
    assert Store.still_has(store, claim)
    store.finish(claim)
    assert list(store.maildir) == []
    claim.release()


def test_two_items_of_a_transaction_that_is_ours_alone_are_prepared(
    store: Store,
) -> None:
    """One rename decides about one entry only."""
    for count in (1, 2):
        batch = store.batch()
        items = [store.stage(SENDER, RECIPIENTS, [MESSAGE]) for _ in range(count)]
        batch.prepare(items, alone=True)
        assert len(list(store.in_doubt())) == 0  # its leader lives
        batch.abandon(items)
        assert len(list(store.in_doubt())) == (count if count > 1 else 0)


# Syncs


def test_all_syncs_have_ended_when_they_are_done() -> None:
    def sync() -> None:
        time.sleep(0.05)
        ended.append(1)

    for count in (1, 2, 40):
        ended: list[int] = []
        do_all([sync] * count)
        assert len(ended) == count


@pytest.mark.parametrize("failing", range(3))
def test_a_sync_that_fails_in_any_thread_is_an_error(failing: int) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "no")

    syncs: list[Callable[[], object]] = [lambda: time.sleep(0.01)] * 3
    syncs[failing] = fail
    with pytest.raises(OSError, match="no"):
        do_all(syncs)


def test_a_claim_says_where_its_entry_is(store: Store) -> None:
    for folder, is_deferred in (("new", False), ("cur", True)):
        path = write(store, f"{folder}/1.x")
        claim = Claim.take(str(path))
        assert claim is not None
        assert (claim.name, claim.key) == (str(path), "1.x")
        assert claim.is_deferred is is_deferred
        claim.release()
