"""A drain of a Maildir: what the contract leaves to the disk."""
from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from postcommit._drain.contract import IClaim
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._maildir.consumer import Consumer
from postcommit._maildir.presence import pause_of
from postcommit._maildir.presence import ring
from postcommit._maildir.store import Store
from postcommit.errors import QueueError
from tests.support.faults import without_privileges
from tests.support.queues import ENTRY
from tests.support.queues import defer
from tests.support.queues import wait


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def consumer(store: Store) -> Iterator[Consumer]:
    made = store.consumer(Schedule(60.0, 4000.0, 1e6))
    yield made
    made.close()


def test_an_entry_that_cannot_be_opened_says_so_when_it_is_read(
    store: Store, consumer: Consumer
) -> None:
    (Path(store.path) / "new" / "folder").mkdir()
    name = wait(store)
    claims = consumer.take(8)
    assert [claim.key for claim in claims] == [name, "folder"]
    for reading in (claims[1].read, claims[1].beginning):
        with pytest.raises(QueueError, match="cannot open the entry") as caught:
            reading()
        assert caught.value.path == claims[1].name
    consumer.release(claims)


def test_an_entry_that_somebody_has_removed_is_not_tried_again(
    store: Store, consumer: Consumer
) -> None:
    wait(store)
    [claim] = consumer.take(1)
    left = claim.read()
    os.unlink(claim.name)
    assert consumer.settle(claim, Settlement(left=left, due=1.0)) is Settled.REMOVED
    assert list(store.maildir) == []


def test_a_settlement_that_fails_keeps_the_claim_and_may_come_again(
    store: Store, consumer: Consumer
) -> None:
    wait(store)
    [claim] = consumer.take(1)
    settlement = Settlement(left=claim.read(), due=time.time() + 90)
    os.rename(f"{store.path}/cur", f"{store.path}/away")
    with pytest.raises(QueueError, match="cannot defer the entry"):
        consumer.settle(claim, settlement)
    os.rename(f"{store.path}/away", f"{store.path}/cur")
    assert store.claim(claim.name) is None
    assert consumer.settle(claim, settlement) is Settled.DONE
    assert [claim.key for _ in store.maildir.paths("cur")] == [claim.key]


def test_a_folder_that_cannot_be_read_is_trouble_of_the_queue(
    store: Store, consumer: Consumer
) -> None:
    wait(store)
    os.chmod(f"{store.path}/new", 0)

    def take() -> None:
        with pytest.raises(QueueError, match="cannot look for entries") as caught:
            consumer.take(1)
        assert caught.value.path == store.path

    without_privileges(take)
    os.chmod(f"{store.path}/new", 0o700)
    assert len(consumer.take(1)) == 1


def test_an_error_releases_what_was_taken(store: Store, consumer: Consumer) -> None:
    names = [wait(store), wait(store)]
    original = store.claim

    def fail_second(path: str, *locks: object) -> object:
        if path.endswith(names[1]):
            raise MemoryError("no room")
        return original(path)

    store.claim = fail_second  # type: ignore[assignment,method-assign]
    time_of_folder = time.time() - 60
    os.utime(f"{store.path}/new", (time_of_folder, time_of_folder))
    with pytest.raises(MemoryError):
        consumer.take(2)
    store.claim = original  # type: ignore[method-assign]
    claims = consumer.take(8) + consumer.take(8)
    assert [claim.key for claim in claims] == names


def test_what_this_drain_has_claimed_is_not_in_its_way(
    store: Store, consumer: Consumer
) -> None:
    names = [wait(store) for _ in range(5)]
    held = consumer.take(2)
    others = consumer.take(8)
    assert [claim.key for claim in others] == names[2:]
    names.append(wait(store))
    last = consumer.take(8)
    assert [claim.key for claim in last] == names[5:]
    consumer.release(held)
    assert [claim.key for claim in consumer.take(8)] == names[:2]


def test_the_note_of_a_dead_processor_is_swept_away(
    store: Store, consumer: Consumer
) -> None:
    paused = Path(store.path) / ".paused"
    paused.write_text('{"since": 1, "reason": "away", "process": 1}')
    assert pause_of(store.path) is None
    consumer.sweep()
    assert not paused.exists()


def claim_by_link(store: Store, name: str, *, age: float) -> None:
    os.link(f"{store.path}/new/{name}", f"{store.path}/new/.sending-{name}")
    then = time.time() - age
    os.utime(f"{store.path}/new/{name}", (then, then))


def test_entries_left_to_an_older_library_are_in_the_log_once(
    store: Store,
    consumer: Consumer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [wait(store) for _ in range(3)]
    hour = 3600.0
    for name, age in zip(names, (60.0, hour, 4 * hour), strict=True):
        claim_by_link(store, name, age=age)
    for _ in range(3):
        consumer.release(consumer.take(8))
        consumer.seconds_to_wait()
    [record] = caplog.records
    assert record.levelname == "WARNING"
    last = time.strftime("%Y-%m-%d %H:%M", time.gmtime(time.time() - 60 + 3 * hour))
    told = re.fullmatch(
        f"{store.path}: .*another library .*\\(2, by .sending- files\\).* until"
        r" (.*):\d\d UTC",
        record.getMessage(),
    )
    assert told is not None
    assert told[1] == last
    # An hour later, it is still there.
    monkeypatch.setattr("postcommit._maildir.consumer._LOG_SECONDS", 0.0)
    consumer._next_log = 0.0
    consumer.close()
    assert len(caplog.records) == 2
    for name in names:
        os.unlink(f"{store.path}/new/{name}")
    consumer._next_log = 0.0
    consumer.seconds_to_wait()
    assert len(caplog.records) == 2, "they are gone"


def test_a_pause_ends_with_the_drain(store: Store, consumer: Consumer) -> None:
    consumer.post("away", 60)
    assert pause_of(store.path) is not None
    consumer.close()
    assert pause_of(store.path) is None
    assert not (Path(store.path) / ".paused").exists()


def test_workers_share_a_look(store: Store, consumer: Consumer) -> None:
    names = [wait(store) for _ in range(200)]
    taken: list[str] = []

    def work() -> None:
        while claims := consumer.take(3):
            held.extend(claims)
            taken.extend(str(claim.key) for claim in claims)

    held: list[object] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(names)


def take_all(consumer: Consumer) -> list[IClaim]:
    """Claim all that is due."""
    claims: list[IClaim] = []
    while some := consumer.take(8):
        claims += some
    return claims


def settle_time(store: Store) -> None:
    """Make the folders look as if nothing had changed in them for a while."""
    long_ago = time.time() - 60
    for folder in ("new", "cur"):
        os.utime(f"{store.path}/{folder}", (long_ago, long_ago))


def test_a_deferred_entry_renamed_while_it_was_claimed_is_found_when_released(
    store: Store, consumer: Consumer
) -> None:
    name = defer(store, due=-5.0)
    [claim] = consumer.take(1)
    assert take_all(consumer) == []
    os.rename(claim.name, f"{claim.name}S")  # as a Maildir reader does
    settle_time(store)
    while (rest := consumer.seconds_to_wait()) < 1:
        time.sleep(rest)
        assert take_all(consumer) == []
    assert take_all(consumer) == []  # the look that has passed it by
    consumer.release([claim])
    time.sleep(0.01)  # longer than the rest after a look at one deferred entry
    assert [claim.key for claim in take_all(consumer)] == [name]


def test_an_entry_that_another_process_postpones_meanwhile_is_not_forgotten(
    store: Store,
) -> None:
    now = [time.time()]
    schedule = Schedule(60.0, 4000.0, 1e6)
    ours, theirs = store.consumer(schedule, lambda: now[0]), store.consumer(schedule)
    name = defer(store, due=-5.0)
    settle_time(store)
    original = store.claim

    def claim_later(path: str, *locks: object) -> object:
        store.claim = original  # type: ignore[method-assign]
        [claim] = theirs.take(1)
        theirs.postpone(claim, now[0] + 100)
        return original(path, *locks)  # type: ignore[arg-type]

    store.claim = claim_later  # type: ignore[assignment,method-assign]
    assert take_all(ours) == []
    assert ours.seconds_to_wait() == pytest.approx(100, abs=5)
    now[0] += 101
    assert [claim.key for claim in take_all(ours)] == [name]
    for consumer in (ours, theirs):
        consumer.close()


# Waiting rooms


def wait_in_a_room(store: Store, room: str) -> None:
    folder = Path(store.subfolder(room).new)
    (folder / f"1000000000.M000000P1Q{len(room)}.x").write_bytes(ENTRY)


def test_an_ordinary_queue_has_no_gate(store: Store, consumer: Consumer) -> None:
    wait(store)
    assert not consumer.let_in()
    assert consumer._gate is None
    assert consumer.seconds_to_wait() == math.inf


@pytest.mark.parametrize("room", [".Later", ".Bulk"])
def test_a_room_is_found_when_a_sender_rings(
    store: Store, consumer: Consumer, room: str
) -> None:
    assert not consumer.let_in()
    consumer._next_search = math.inf  # the next search is far away
    wait_in_a_room(store, room)
    assert not consumer.let_in()
    ring(store.path)
    consumer.wait(60.0)
    assert consumer.let_in()
    assert len(os.listdir(store.maildir.new)) == 1


def test_a_room_is_found_without_a_bell_after_some_seconds(
    store: Store, consumer: Consumer
) -> None:
    now = time.monotonic()
    assert not consumer.let_in()
    assert now < consumer._next_search <= time.monotonic() + 5.0
    wait_in_a_room(store, ".Later")
    consumer._next_search = time.monotonic()  # they have passed
    assert consumer.let_in()


def test_a_gate_serves_a_room_that_comes_later(
    store: Store, consumer: Consumer
) -> None:
    wait_in_a_room(store, ".Later")
    assert consumer.let_in()
    while consumer.let_in():
        pass
    wait_in_a_room(store, ".Bulk")
    assert consumer.let_in()
    assert len(os.listdir(store.maildir.new)) == 2
