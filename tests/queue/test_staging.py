"""The entries of one transaction, on their way into the queue."""
from __future__ import annotations

import atexit
import errno
import logging
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

from postcommit import Maildir
from postcommit import QueuedMailDelivery
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.interfaces import IBatch
from postcommit.maildir import MaildirMessageWriter
from postcommit.queue.lock import FileLock
from postcommit.queue.staging import Staging
from postcommit.queue.staging import is_in_doubt
from postcommit.queue.staging import is_prepared
from postcommit.queue.staging import original_name
from postcommit.queue.staging import stage
from postcommit.queue.store import Store
from postcommit.queue.wakeup import Bell
from tests.support import children
from tests.support.faults import small_files
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


def staged(maildir: Maildir, count: int = 3) -> list[MaildirMessageWriter]:
    return [stage(maildir, [b"message ", b"%d" % n]) for n in range(count)]


def in_doubt(queue: Path) -> list[str]:
    return sorted(os.path.basename(path) for path in Store(str(queue)).in_doubt())


# Stage


def test_an_entry_is_staged_complete_and_closed(queue: Path, maildir: Maildir) -> None:
    item = stage(maildir, [b"a", b"b"])
    assert files(queue) == [f"tmp/{item.name}"]
    assert Path(item.path).read_bytes() == b"ab"
    assert item.path not in [
        os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
    ]


def test_what_cannot_be_written_leaves_nothing(queue: Path, maildir: Maildir) -> None:
    with small_files(100), pytest.raises(QueueError) as caught:
        stage(maildir, [b"x" * 1000])
    assert caught.value.errno == errno.EFBIG
    assert files(queue) == []


def test_an_interrupt_leaves_nothing(queue: Path, maildir: Maildir) -> None:
    def lines():
        yield b"begun"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(maildir, lines())
    assert files(queue) == []


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
    leader = items[0].name
    assert files(queue) == [f"tmp/{i.name}:prepared={leader}" for i in items]
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
    bell = Bell(maildir.path)
    items = staged(maildir)
    batch.prepare(items)
    batch.publish(items)
    before = time.monotonic()
    bell.wait(60)
    assert time.monotonic() - before < 30
    bell.close()


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


def refused(batch: Staging, items: list[MaildirMessageWriter]) -> QueueError:
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


# What fails when all is decided


def test_what_cannot_be_published_stays_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging, caplog: pytest.LogCaptureFixture
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    (queue / "new" / items[1].name).mkdir()
    with pytest.raises(PublishError, match="1 entries stay in doubt") as caught:
        batch.publish(items)
    batch.discard([items[0], items[2]])
    left = f"{items[1].name}:prepared={items[0].name}"
    assert caught.value.names == (left,)
    assert caught.value.path == str(queue)
    assert left in caplog.text
    assert caplog.records[-1].levelno == logging.CRITICAL
    assert in_doubt(queue) == [left]
    assert (queue / "new" / items[0].name).is_file()
    assert (queue / "new" / items[2].name).is_file()


def test_a_leader_that_cannot_be_published_is_in_doubt(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir)
    batch.prepare(items)
    (queue / "new" / items[0].name).mkdir()
    with pytest.raises(PublishError):
        batch.publish(items)
    assert in_doubt(queue) == [f"{items[0].name}:prepared={items[0].name}"]


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

    class Interrupting(list[MaildirMessageWriter]):
        def __reversed__(self) -> Iterator[MaildirMessageWriter]:
            yield items[2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.publish(Interrupting(items))
    assert in_doubt(queue) == [os.path.basename(item.path) for item in items[:2]]
    assert (queue / "new" / items[2].name).is_file()


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


def _commit(queue: str, count: int, sort_key: str, act: str) -> None:
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


def test_leftovers_go_after_36_hours_and_prepared_files_never(
    queue: Path, maildir: Maildir, batch: Staging
) -> None:
    items = staged(maildir, 4)
    prepared, (young, old) = items[:2], items[2:]
    batch.prepare(prepared)
    for item, hours in [(prepared[0], 100), (young, 35.9), (old, 36.1)]:
        moment = time.time() - hours * 3600
        os.utime(item.path, (moment, moment))
    Store(str(queue)).remove_leftovers()
    left = [young.path, *(item.path for item in prepared)]
    assert files(queue) == sorted(f"tmp/{os.path.basename(path)}" for path in left)
    batch.discard(prepared)


# Durable, with few descriptors, threads or not


@needs_strace
def test_a_commit_syncs_each_step_before_the_next(queue: Path, tmp_path: Path) -> None:
    Store(str(queue))
    calls = trace(
        _commit, str(queue), 1, AFTER, "go on", below=queue, scratch=tmp_path
    )
    name = os.listdir(queue / "new")[0]
    assert calls == [
        f"write tmp/{name}",
        f"fsync tmp/{name}",
        f"rename tmp/{name} tmp/{name}:prepared={name}",
        "fsync tmp",
        f"rename tmp/{name}:prepared={name} new/{name}",
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
    steps = [re.sub(r"\d+\.M\S+", "NAME", call) for call in calls]
    assert steps == [
        *["write tmp/NAME"] * 20,
        *["fsync tmp/NAME"] * 20,
        *["rename tmp/NAME tmp/NAME"] * 20,
        "fsync tmp",
        *["rename tmp/NAME new/NAME"] * 20,
        "fsync new",
        "print committed",
    ]
    assert len({call for call in calls if call.startswith("fsync tmp/")}) == 20
    leader = calls[0].removeprefix("write tmp/")
    assert calls[-3].endswith(f"new/{leader}"), "the leader is not the last"


def _create(path: str) -> None:
    Maildir(path, create=True)
    print("created", flush=True)


@needs_strace
def test_a_new_queue_is_on_the_disk_before_it_is_used(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    calls = trace(_create, str(below / "queue"), below=below, scratch=tmp_path)
    assert [re.sub(r"\.maildir-\w+", "BUILDING", call) for call in calls] == [
        "mkdir BUILDING",
        "mkdir BUILDING/tmp",
        "mkdir BUILDING/new",
        "mkdir BUILDING/cur",
        "fsync BUILDING",
        "rename BUILDING queue",
        "fsync .",
        "print created",
    ]


def _commit_with_few_descriptors(queue: str, count: int) -> None:
    Store(queue)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 1 + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    _commit(queue, count, AFTER, "go on")
    assert len(os.listdir(f"{queue}/new")) == count


def test_a_thousand_messages_need_few_descriptors(queue: Path) -> None:
    children.call(_commit_with_few_descriptors, str(queue), 1000)


def _commit_at_exit(queue: str) -> None:
    atexit.register(_commit, queue, 3, AFTER, "go on")


def test_an_exit_handler_may_commit_though_no_thread_can_begin(queue: Path) -> None:
    assert "committed" in children.call(_commit_at_exit, str(queue))
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
