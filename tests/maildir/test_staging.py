"""The entries of one transaction, on their way into the queue."""
from __future__ import annotations

import atexit
import errno
import logging
import os
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

from postcommit import Maildir
from postcommit import QueuedMailDelivery
from postcommit._maildir.files import FileLock
from postcommit._maildir.maildir import Staged
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.staging import _is_complete
from postcommit._maildir.staging import is_in_doubt
from postcommit._maildir.staging import is_prepared
from postcommit._maildir.staging import original_name
from postcommit._maildir.store import Staging
from postcommit._maildir.store import Store
from postcommit._maildir.store import do_all
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.interfaces import IBatch
from tests.support import children
from tests.support.faults import begin_no_threads
from tests.support.faults import without_privileges
from tests.support.strace import needs_strace
from tests.support.strace import trace
from tests.support.transactions import AFTER
from tests.support.transactions import Partner
from tests.support.transactions import explicit
from tests.support.transactions import files
from tests.support.transactions import mail


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def maildir(queue: Path) -> Maildir:
    return Maildir(str(queue), create=True)


@pytest.fixture
def batch(maildir: Maildir) -> Staging:
    return Staging(maildir)


def staged(maildir: Maildir, count: int = 3) -> list[Staged]:
    return [maildir.add([b"message ", b"%d" % n]) for n in range(count)]


def prepared(item: Staged, leader: Staged) -> str:
    checksums = [f"{zlib.crc32(Path(i.path).read_bytes()):08x}" for i in (item, leader)]
    return f"{item.name},C={checksums[0]}:prepared={leader.name},C={checksums[1]}"


def in_doubt(queue: Path) -> list[str]:
    return sorted(os.path.basename(path) for path in Store(str(queue)).in_doubt())


# Prepare, publish, discard


def test_the_contract_is_kept(batch: Staging) -> None:
    verifyClass(IBatch, Staging)
    verifyObject(IBatch, batch)


def test_the_sort_key_comes_after_storages_and_before_sqlalchemy(
    batch: Staging, queue: Path
) -> None:
    assert f"{queue}/Data.fs:1" < batch.sort_key < "~sqlalchemy:1"
    assert batch.sort_key < "~mail:relayed:", "a relay may take long"
    assert batch.sort_key == Staging(Maildir(str(queue))).sort_key


def test_prepared_files_name_their_leader(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    assert files(queue) == [f"tmp/{prepared(i, items[0])}" for i in items]
    for item in items:
        assert is_prepared(item.path)
        assert original_name(item.path) == item.name
    batch.discard(items)


def test_published_entries_have_their_own_names(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    batch.publish(items)
    assert files(queue) == [f"new/{item.name}" for item in items]
    for number, path in enumerate(maildir):
        assert Path(path).read_bytes() == b"message %d" % number
        assert not is_prepared(path)


def test_publishing_wakes_the_processor(maildir: Maildir, batch: Staging) -> None:
    wakeup = Wakeup(maildir.path)
    items = staged(maildir)
    batch.prepare(items)
    batch.publish(items)
    before = time.monotonic()
    wakeup.wait(60)
    assert time.monotonic() - before < 30
    wakeup.close()


def test_without_items_nothing_is_done(queue: Path, batch: Staging) -> None:
    (queue / "new").rmdir()
    batch.prepare([])
    batch.publish([])
    batch.discard([])
    assert files(queue) == []


@pytest.mark.parametrize("prepared", [False, True])
def test_discarding_removes_all_and_may_be_repeated(
    queue: Path, maildir: Maildir, batch: Staging, prepared: bool
) -> None:
    items = staged(maildir)
    if prepared:
        batch.prepare(items)
    for _ in range(2):
        batch.discard(items)
        assert files(queue) == []


def test_discarding_what_is_published_does_nothing(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    batch.publish(items)
    batch.discard(items)
    assert len(files(queue)) == 3


@pytest.mark.parametrize("ending", ["publish", "discard"])
def test_no_descriptor_is_left_open(
    maildir: Maildir, batch: Staging, ending: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    items = staged(maildir)
    batch.prepare(items)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    getattr(batch, ending)(items)
    assert len(os.listdir("/proc/self/fd")) == before


# What can fail fails in the vote


def refused(batch: Staging, items: list[Staged]) -> QueueError:
    with pytest.raises(QueueError) as caught:
        batch.prepare(items)
    batch.discard(items)
    return caught.value


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("number", [0, -1])
def test_a_file_that_vanished_is_refused(
    queue: Path, maildir: Maildir, batch: Staging, count: int, number: int
) -> None:
    items = staged(maildir, count)
    os.unlink(items[number].path)
    error = refused(batch, items)
    assert error.errno == errno.ENOENT
    assert str(queue) in str(error)
    assert files(queue) == []


@pytest.mark.parametrize("count", [2, 40])
def test_a_file_that_cannot_be_synced_is_refused(
    queue: Path, maildir: Maildir, batch: Staging, count: int
) -> None:
    items = staged(maildir, count)
    for item in items[1:]:
        os.chmod(item.path, 0o200)  # so it cannot be opened to be synced
    errors: list[QueueError] = []
    without_privileges(lambda: errors.append(refused(batch, items)))
    assert [error.errno for error in errors] == [errno.EACCES]
    assert files(queue) == []


def test_a_folder_that_vanished_is_refused(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    (queue / "new").rmdir()
    assert refused(batch, items).errno == errno.ENOENT
    assert files(queue) == []


def test_a_folder_that_lets_nothing_in_is_refused(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    (queue / "new").chmod(0o500)
    without_privileges(lambda: refused(batch, items))
    assert files(queue) == []


def test_a_file_that_somebody_else_has_locked_is_refused(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    # Else nobody could tell that its transaction is alive.
    items = staged(maildir)
    stranger = FileLock(items[0].path)
    assert stranger.acquire()
    assert "locked by another process" in str(refused(batch, items))
    stranger.release()
    assert files(queue) == []


def test_files_that_cannot_be_removed_are_told(
    queue: Path,
    maildir: Maildir,
    batch: Staging,
    caplog: pytest.LogCaptureFixture,
) -> None:
    items = staged(maildir, 2)
    (queue / "tmp").chmod(0o500)
    without_privileges(lambda: batch.discard(items))
    assert len(caplog.records) == 2
    assert all(item.name in caplog.text for item in items)


def test_what_is_abandoned_before_the_vote_is_discarded(
    queue: Path, maildir: Maildir, batch: Staging, caplog: pytest.LogCaptureFixture
) -> None:
    batch.abandon(staged(maildir, 2))
    assert files(queue) == []
    assert caplog.records == []


def test_an_item_that_cannot_be_removed_is_named(
    queue: Path, maildir: Maildir, batch: Staging, caplog: pytest.LogCaptureFixture
) -> None:
    items = staged(maildir, 2)
    (queue / "tmp").chmod(0o500)
    without_privileges(lambda: batch.discard(items))
    (queue / "tmp").chmod(0o700)
    assert caplog.text.count("Left behind") == 2
    assert all(item.name in caplog.text for item in items)


# What fails when all is decided


def test_what_cannot_be_published_stays_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging, caplog: pytest.LogCaptureFixture
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    left = prepared(items[1], items[0])
    items[1].target = str(queue / "gone" / items[1].name)
    with pytest.raises(PublishError, match="1 entries stay in doubt") as caught:
        batch.publish(items)
    batch.discard([items[0], items[2]])
    assert caught.value.names == (left,)
    assert caught.value.path == str(queue)
    assert caught.value.errno == errno.ENOENT
    assert left in caplog.text
    assert caplog.records[-1].levelno == logging.CRITICAL
    assert in_doubt(queue) == [left]
    assert (queue / "new" / items[0].name).is_file()
    assert (queue / "new" / items[2].name).is_file()


def test_entries_whose_names_are_taken_are_published_under_others(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    for item in items:
        (queue / "new" / item.name).write_text("of another container")
    batch.publish(items)
    for item in items:
        assert (queue / "new" / item.name).read_text() == "of another container"
    assert sorted(maildir.paths("new")) == sorted(
        [*(f"{queue}/new/{item.name}" for item in items), *(i.path for i in items)]
    )
    assert len(list(maildir.paths("new"))) == 6
    assert list(maildir.paths("tmp")) == []


def test_a_leader_that_cannot_be_published_is_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    items[0].target = str(queue / "gone" / items[0].name)
    with pytest.raises(PublishError):
        batch.publish(items)
    assert in_doubt(queue) == [prepared(items[0], items[0])]


def test_a_folder_that_vanishes_after_the_vote_leaves_all_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    (queue / "new").rmdir()
    with pytest.raises(PublishError) as caught:
        batch.publish(items)
    assert caught.value.errno == errno.ENOENT
    (queue / "new").mkdir()
    assert in_doubt(queue) == sorted(caught.value.names)
    assert len(caught.value.names) == 3


def test_a_folder_that_cannot_be_synced_is_told(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)

    def commit() -> None:
        batch.prepare(items)
        with pytest.raises(PublishError, match="power failure") as caught:
            batch.publish(items)
        assert caught.value.names == ()

    (queue / "new").chmod(0o300)  # to be written, but not to be opened
    without_privileges(commit)
    (queue / "new").chmod(0o700)
    assert files(queue) == [f"new/{item.name}" for item in items]


def test_publishing_that_is_interrupted_leaves_the_rest_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)

    class Interrupting(list[Staged]):
        def __reversed__(self) -> Iterator[Staged]:
            yield items[2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.publish(Interrupting(items))
    assert in_doubt(queue) == [os.path.basename(item.path) for item in items[:2]]
    assert (queue / "new" / items[2].name).is_file()


def test_what_an_interrupt_leaves_prepared_does_not_look_alive(
    queue: Path, maildir: Maildir
) -> None:
    items = staged(maildir)
    batch = Staging(maildir)
    batch.prepare(items)
    del batch  # as the transaction is forgotten, without a word to it
    assert len(in_doubt(queue)) == 3


# In doubt


def test_what_a_living_transaction_holds_is_not_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    assert in_doubt(queue) == []
    batch.prepare(items)
    assert in_doubt(queue) == []
    batch.publish(items)
    assert in_doubt(queue) == []


def test_what_lost_its_leader_is_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    os.unlink(items[0].path)
    assert in_doubt(queue) == [os.path.basename(item.path) for item in items[1:]]
    gone = items[1].path
    batch.discard(items)
    assert not is_in_doubt(gone)


def test_those_who_look_do_not_hide_it_from_each_other(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    batch._release()  # as its death does
    looker = FileLock(items[0].path)
    assert looker.acquire(shared=True)
    assert len(in_doubt(queue)) == 3
    looker.release()


def _commit(queue: str, count: int, sort_key: str | None, act: str) -> None:
    manager = explicit()
    manager.begin()
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    for number in range(count):
        delivery.send("a@example.org", "b@example.org", mail(f"{number}@example.org"))

    def wait() -> None:
        print("voted", flush=True)
        sys.stdin.readline()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    acts = {"wait": wait, "die": die, "go on": lambda: None}
    if sort_key is not None:
        manager.get().join(Partner(sort_key, tpc_vote=acts[act]))
    manager.commit()
    print("committed", flush=True)


def test_a_process_killed_between_vote_and_finish_leaves_all_in_doubt(
    queue: Path,
) -> None:
    children.call(_commit, str(queue), 3, AFTER, "die", status=-signal.SIGKILL)
    assert len(files(queue)) == 3
    assert [f"tmp/{name}" for name in in_doubt(queue)] == files(queue)
    for path in (queue / "tmp").iterdir():
        assert path.read_bytes().endswith(b"\r\n\r\nText.\r\n")


def test_in_doubt_begins_with_the_death_of_the_process(queue: Path) -> None:
    with children.running(_commit, str(queue), 3, AFTER, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "voted\n"
        assert len(files(queue)) == 3
        assert in_doubt(queue) == []
        process.kill()
        process.wait()
        assert len(in_doubt(queue)) == 3


def power_failure(item: Staged) -> None:
    """Leave what a power failure during the vote may: the name, but not all data."""
    path = Path(item.path)
    path.write_bytes(b"\0" * path.stat().st_size)


def test_what_is_prepared_but_incomplete_is_not_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging, caplog: pytest.LogCaptureFixture
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    whole = os.path.basename(items[1].path)
    power_failure(items[0])
    power_failure(items[2])
    os.utime(items[0].path, (1, 1))
    store = Store(str(queue))
    store.remove_leftovers()
    assert len(files(queue)) == 3, "the transaction is alive"
    batch._release()  # as its death does
    assert in_doubt(queue) == [whole]
    store.remove_leftovers()
    assert caplog.messages == [f"{items[0].path}: removed, it was never complete"]
    assert [f"tmp/{os.path.basename(i.path)}" for i in items[1:]] == files(queue)
    assert in_doubt(queue) == [whole], "though the leader is gone"


def test_what_is_published_at_this_moment_is_not_in_doubt(
    queue: Path, maildir: Maildir
) -> None:
    assert not _is_complete(f"{queue}/tmp/gone")


def test_leftovers_go_after_36_hours_and_prepared_files_never(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir, 4)
    voted, (young, old) = items[:2], items[2:]
    batch.prepare(voted)
    for item, hours in [(voted[0], 100), (young, 35.9), (old, 36.1)]:
        moment = time.time() - hours * 3600
        os.utime(item.path, (moment, moment))
    Store(str(queue)).remove_leftovers()
    left = [young.path, *(item.path for item in voted)]
    assert files(queue) == sorted(f"tmp/{os.path.basename(path)}" for path in left)
    batch.discard(voted)


# Alone


def test_alone_a_single_entry_is_never_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir, 1)
    batch.prepare(items, alone=True)
    assert files(queue) == [f"tmp/{items[0].name}"]
    batch.publish(items)
    assert files(queue) == [f"new/{items[0].name}"]


def test_alone_what_cannot_be_published_is_aborted(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir, 1)
    batch.prepare(items, alone=True)
    (queue / "new").rmdir()
    with pytest.raises(QueueError, match="cannot accept the entry") as caught:
        batch.publish(items)
    assert caught.value.errno == errno.ENOENT
    assert not isinstance(caught.value, PublishError)
    assert files(queue) == []


def test_alone_a_folder_that_cannot_be_synced_is_told(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir, 1)

    def commit() -> None:
        batch.prepare(items, alone=True)
        with pytest.raises(PublishError, match="power failure"):
            batch.publish(items)

    (queue / "new").chmod(0o300)  # to be written, but not to be opened
    without_privileges(commit)
    (queue / "new").chmod(0o700)
    assert files(queue) == [f"new/{items[0].name}"]


def test_alone_or_not_the_transaction_tells(queue: Path) -> None:
    assert children.call(_commit, str(queue), 1, None, "").split() == ["committed"]
    children.call(_commit, str(queue), 1, AFTER, "die", status=-signal.SIGKILL)
    [doubted, accepted] = files(queue)
    assert accepted.startswith("new/")
    assert [doubted] == [f"tmp/{name}" for name in in_doubt(queue)]


# Durable, with few descriptors, threads or not


def steps(calls: list[str]) -> list[str]:
    """Name the file NAME, the prepared one NAME:prepared, and one without a name #."""
    calls = [call for call in calls if ".probe" not in call]
    named = [re.sub(r"(\d+\.M\d+P\w+)\.[^ :,]+", "NAME", call) for call in calls]
    named = [re.sub(r"#\d+", "#", call) for call in named]
    return [re.sub(r",C=\w+:prepared=NAME,C=\w+", ":prepared", call) for call in named]


@needs_strace
def test_a_commit_syncs_each_step_before_the_next(queue: Path, tmp_path: Path) -> None:
    Store(str(queue))
    calls = trace(
        _commit, str(queue), 1, AFTER, "go on", below=queue, scratch=tmp_path
    )
    assert steps(calls) == [
        "write tmp/#",
        "linkat tmp/# tmp/NAME",
        "rename tmp/NAME tmp/NAME:prepared",
        "fsync tmp/NAME:prepared",
        "fsync tmp",
        "rename tmp/NAME:prepared new/NAME",
        "fsync new",
        "print committed",
    ]


@needs_strace
def test_a_commit_of_many_syncs_all_files_and_each_folder_once(
    queue: Path, tmp_path: Path
) -> None:
    Store(str(queue))
    calls = trace(
        _commit, str(queue), 20, AFTER, "go on", below=queue, scratch=tmp_path
    )
    assert steps(calls) == [
        "write tmp/#",
        *["write tmp/NAME"] * 19,
        "linkat tmp/# tmp/NAME",
        *["rename tmp/NAME tmp/NAME:prepared"] * 20,
        *["fsync tmp/NAME:prepared"] * 20,
        "fsync tmp",
        *["rename tmp/NAME:prepared new/NAME"] * 20,
        "fsync new",
        "print committed",
    ]
    assert len({call for call in calls if call.startswith("fsync tmp/")}) == 20
    calls = [call for call in calls if ".probe" not in call]
    leader = calls[20].rpartition("/")[2]
    assert calls[-3].endswith(f"new/{leader}"), "the leader is not the last"


@needs_strace
def test_who_sleeps_is_woken_when_there_is_something_to_find(
    queue: Path, tmp_path: Path
) -> None:
    Store(str(queue))
    wakeup = Wakeup(str(queue))
    for other in (None, AFTER):
        calls = trace(
            _commit, str(queue), 2, other, "go on", below=queue, scratch=tmp_path
        )
        assert steps(calls)[-2:] == ["write .wakeup", "print committed"]
        assert calls.count("write .wakeup") == 1
        assert steps(calls)[-3] == "fsync new"
    wakeup.close()


@needs_strace
def test_several_entries_alone_are_prepared(queue: Path, tmp_path: Path) -> None:
    # For they are several renames.
    Store(str(queue))
    calls = trace(_commit, str(queue), 2, None, "", below=queue, scratch=tmp_path)
    assert steps(calls).count("rename tmp/NAME tmp/NAME:prepared") == 2
    assert steps(calls).count("fsync tmp") == 1


def _create(path: str) -> None:
    Maildir(path, create=True)
    print("created", flush=True)


@needs_strace
def test_a_new_queue_is_on_the_disk_before_it_is_used(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    calls = trace(_create, str(below / "queue"), below=below, scratch=tmp_path)
    calls = [re.sub(r"\.maildir-\w+", "BUILDING", call) for call in calls]
    assert [call for call in calls if ".probe" not in call] == [
        "mkdir BUILDING",
        "mkdir BUILDING/tmp",
        "mkdir BUILDING/new",
        "mkdir BUILDING/cur",
        "fsync BUILDING",
        "rename BUILDING queue",
        "fsync .",
        "print created",
    ]


def _commit_at_exit(queue: str) -> None:
    atexit.register(_commit, queue, 3, AFTER, "go on")


def test_an_exit_handler_may_commit_though_no_thread_can_begin(queue: Path) -> None:
    assert "committed" in children.call(_commit_at_exit, str(queue))
    assert len(files(queue)) == 3


def _commit_without_threads(queue: str) -> None:
    begin_no_threads()
    with pytest.raises(RuntimeError):
        threading.Thread(target=print).start()
    _commit(queue, 3, AFTER, "go on")


def test_without_a_thread_files_are_synced_one_by_one(queue: Path) -> None:
    assert "committed" in children.call(_commit_without_threads, str(queue))
    assert len(files(queue)) == 3


def test_threads_commit_side_by_side(queue: Path) -> None:
    delivery = QueuedMailDelivery(str(queue))

    def work() -> None:
        for number in range(5):
            manager = explicit()
            manager.begin()
            bound = delivery.bind(manager)
            bound.send("a@example.org", "b@example.org", mail())
            bound.send("a@example.org", "b@example.org", mail())
            if number % 2:
                manager.abort()
            else:
                manager.commit()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files(queue)) == 8 * 3 * 2
    assert all(name.startswith("new/") for name in files(queue))


def test_nothing_that_a_thread_raises_passes_for_a_sync() -> None:
    def fail() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        do_all([lambda: None, fail, lambda: None])
