"""The queue on disk: each transition."""
from __future__ import annotations

import mailbox
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from postcommit._mail.entry import Entry
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store
from postcommit._maildir.store import _age
from postcommit.errors import EntryError
from postcommit.errors import QueueError
from tests.support.faults import full_disk
from tests.support.faults import without_privileges


MESSAGE = b"Message-Id: <1@x.org>\nSubject: x\n\nText.\n"
ENTRY = Entry("shop@x.org", ("ann@x.org", "bob@x.org"), MESSAGE)
TRIED = Entry("shop@x.org", ("bob@x.org",), MESSAGE, 1, "450 Later")

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


def accept(store: Store, message: Sequence[bytes] = (MESSAGE,)) -> Claim:
    item = store.stage(ENTRY.sender, ENTRY.recipients, message)
    batch = store.batch()
    batch.prepare([item])
    batch.publish([item])
    claim = store.claim(item.path)
    assert claim is not None
    return claim


def fill(path: Path) -> None:
    """Write to `path` until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def files(store: Store) -> dict[str, list[str]]:
    """Return the names of the files in each folder that has any."""
    found: dict[str, list[str]] = {}
    for folder, _, names in os.walk(store.path):
        names = sorted(set(names) - {"maildirfolder", ".wakeup"})
        if names:
            found[os.path.relpath(folder, store.path)] = names
    return found


def read(path: str) -> Entry:
    return parse_entry(Path(path).read_bytes())


def test_an_accepted_entry_is_what_was_sent(store: Store) -> None:
    claim = accept(store, [b"Subject: x\n", memoryview(b"\nText.")])
    assert claim.read() == Entry(ENTRY.sender, ENTRY.recipients, b"Subject: x\n\nText.")
    assert files(store) == {"new": [claim.key]}
    assert abs(store.accepted(claim) - time.time()) < 60
    claim.release()


def test_a_finished_entry_is_gone(store: Store) -> None:
    claim = accept(store)
    store.finish(claim)
    store.finish(claim)
    claim.release(removed=True)
    assert files(store) == {}


def test_a_deferred_entry_is_rewritten_in_cur_and_its_mtime_is_when_it_is_due(
    store: Store,
) -> None:
    claim = accept(store)
    due = time.time() + 60
    store.defer(claim, TRIED, due)
    assert files(store) == {"cur": [f"{claim.key}:2,"]}
    path = f"{store.path}/cur/{claim.key}:2,"
    assert claim.path == path
    assert read(path) == TRIED
    assert os.stat(path).st_mtime == pytest.approx(due, abs=0.001)
    assert os.stat(path).st_mode & 0o777 == 0o600
    claim.release()


def test_an_entry_is_deferred_again_in_its_place(store: Store) -> None:
    claim = accept(store)
    store.defer(claim, TRIED, 1000.0)
    claim.release()
    [path] = store.maildir.paths("cur")
    again = store.claim(path)
    assert again is not None
    store.defer(again, ENTRY, 2000.0)
    again.release()
    assert read(path) == ENTRY
    assert os.stat(path).st_mtime == 2000.0
    assert list(files(store)) == ["cur"]


@pytest.mark.parametrize("seconds", [-(2**40), -1, 0, 10**11, 2**40])
def test_a_name_without_a_time_gets_one_once_whatever_time_the_file_has(
    seconds: int
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        other = Store(f"{folder}/queue")
        path = f"{folder}/queue/new/what"
        Path(path).write_bytes(preamble_of(ENTRY) + ENTRY.message)
        subprocess.run(["touch", "-d", f"@{seconds}", path], check=True)
        names = []
        for _ in range(3):
            claim = other.claim(path)
            assert claim is not None
            other.defer(claim, TRIED, time.time())
            claim.release()
            [path] = other.maildir.paths("cur")
            names.append(os.path.basename(path))
        assert len(set(names)) == 1
        accepted = accepted_at(names[0])
        assert accepted is not None
        assert 0 <= accepted <= time.time()


def test_an_entry_is_postponed_without_writing(store: Store) -> None:
    claim = accept(store)
    number = os.stat(claim.path).st_ino
    store.postpone(claim, 1000.0)
    claim.release()
    [path] = store.maildir.paths("cur")
    assert os.stat(path).st_mtime == 1000.0
    assert os.stat(path).st_ino == number
    again = store.claim(path)
    assert again is not None
    store.postpone(again, 2000.0)
    again.release()
    assert os.stat(path).st_mtime == 2000.0


def test_a_buried_entry_is_a_dead_letter_with_its_own_recipients(store: Store) -> None:
    claim = accept(store)
    store.bury(claim, TRIED)
    store.bury(claim, TRIED)  # as after a crash
    assert files(store) == {
        "new": [claim.key],
        ".Failed/new": [f"{claim.key}.R1"],
    }
    assert read(f"{store.path}/.Failed/new/{claim.key}.R1") == TRIED
    claim.release()


def test_a_dead_letter_of_which_nothing_stays_keeps_the_name(store: Store) -> None:
    claim = accept(store)
    store.bury(claim, TRIED, is_last=True)
    store.bury(claim, TRIED, is_last=True)  # as after a crash
    assert files(store) == {"new": [claim.key], ".Failed/new": [claim.key]}
    assert read(f"{store.path}/.Failed/new/{claim.key}") == TRIED
    claim.release()


def test_the_attempts_of_one_entry_are_dead_letters_of_their_own(store: Store) -> None:
    claim = accept(store)
    for attempts in (1, 2):
        store.bury(claim, Entry("", ("a@x.org",), MESSAGE, attempts, "550"))
    assert files(store)[".Failed/new"] == [f"{claim.key}.R1", f"{claim.key}.R2"]
    claim.release()


def named(store: Store, name: str, message: bytes) -> Claim:
    """Claim a new entry of this name, as another program may write it."""
    path = Path(store.path, "new", name)
    path.write_bytes(preamble_of(ENTRY) + message)
    claim = store.claim(str(path))
    assert claim is not None
    return claim


NAME = "1790000000.M1P1Q1.web"


@pytest.mark.parametrize("by", ["defer", "postpone"])
def test_a_deferral_keeps_another_entry_of_the_same_name(store: Store, by: str) -> None:
    messages = [b"Subject: 1\n\n", b"Subject: 2\n\n", b"Subject: 3\n\n"]
    for message in messages:
        claim = named(store, NAME, message)
        entry = claim.read()
        due = time.time() + 60
        for _ in range(2):  # the second time, there is nothing to rename
            if by == "defer":
                store.defer(claim, entry, due)
            else:
                store.postpone(claim, due)
        claim.release()
    kept = list(store.maildir.paths("cur"))
    assert sorted(read(path).message for path in kept) == messages
    assert f"{store.path}/cur/{NAME}:2," in kept
    assert all(path.endswith(":2,") for path in kept)
    assert {accepted_at(os.path.basename(path)) for path in kept} == {1790000000.000001}


@pytest.mark.parametrize("is_last", [True, False])
def test_a_dead_letter_replaces_only_the_same_one(
    store: Store, is_last: bool
) -> None:
    for message in (b"Subject: 1\n\n", b"Subject: 2\n\n"):
        for reply in ("550 No", "550 No!"):  # the second time, after a crash
            claim = named(store, NAME, message)
            left = Entry("shop@x.org", ("bob@x.org",), message, 1, reply)
            store.bury(claim, left, is_last=is_last)
            store.finish(claim)
            claim.release(removed=True)
    folder = Path(store.path, ".Failed", "new")
    buried = [read(str(path)) for path in sorted(folder.iterdir())]
    messages = [entry.message for entry in buried]
    assert messages == [b"Subject: 1\n\n", b"Subject: 2\n\n"]
    assert {entry.last_reply for entry in buried} == {"550 No!"}


def test_files_of_one_name_that_are_no_entries_are_all_kept(store: Store) -> None:
    path = Path(store.path, "new", "report.txt")
    large = b"x" * (5 << 20)
    for data in (b"1", b"2", b"2", large, large):
        path.write_bytes(data)
        claim = store.claim(str(path))
        assert claim is not None
        store.bury_unreadable(claim, "it is no entry")
        claim.release()
    folder = Path(store.path, ".Failed", "new")
    found = sorted(file.read_bytes().partition(b"\n")[2] for file in folder.iterdir())
    assert found == [b"", b"", b"1", b"2"]
    assert not path.exists()


def test_what_has_taken_the_name_of_a_dead_letter_and_cannot_be_read(
    store: Store,
) -> None:
    claim = named(store, NAME, MESSAGE)
    store.bury(claim, TRIED, is_last=True)
    taken = Path(store.path, ".Failed", "new", NAME)
    for make in (os.mkfifo, lambda path: os.symlink("nowhere", path)):
        taken.unlink()
        make(taken)
        store.bury(claim, TRIED, is_last=True)
        [other] = set(taken.parent.iterdir()) - {taken}
        assert read(str(other)) == TRIED
        assert not taken.is_file()
    claim.release()


def test_what_cannot_be_read_is_kept_as_it_is_with_the_reason(store: Store) -> None:
    path = f"{store.path}/new/1700000000.1.host"
    Path(path).write_bytes(b"\0no entry\xff")
    claim = store.claim(path)
    assert claim is not None
    store.bury_unreadable(claim, "there is\nno envelope")
    claim.release(removed=True)
    assert files(store) == {".Failed/new": ["1700000000.1.host"]}
    kept = Path(f"{store.path}/.Failed/new/1700000000.1.host").read_bytes()
    assert kept == b"X-Zope-Unreadable: there is no envelope\n\0no entry\xff"
    with pytest.raises(EntryError, match="before: there is no envelope"):
        parse_entry(kept)


def test_any_maildir_reader_can_open_it(store: Store) -> None:
    claim = accept(store)
    store.bury(claim, TRIED)
    claim.release()
    reader = mailbox.Maildir(store.path, create=False)
    assert reader.list_folders() == ["Failed"]
    assert [m["X-Zope-To"] for m in reader] == ["ann@x.org, bob@x.org"]
    assert [m["X-Zope-To"] for m in reader.get_folder("Failed")] == ["bob@x.org"]


# Files of the older libraries


def test_a_claim_of_an_older_library_is_respected_for_three_hours(store: Store) -> None:
    claim = accept(store)
    claim.release()
    sending = f"{store.path}/new/.sending-{claim.key}"
    os.link(claim.path, sending)
    for age in (0, 3 * 3600 - 60):
        os.utime(sending, (time.time() - age,) * 2)
        assert store.claim(claim.path) is None
    [until] = store.held_until()
    assert abs(until - time.time() - 60) < 10
    os.utime(sending, (time.time() - 3 * 3600 - 60,) * 2)
    again = store.claim(claim.path)
    assert again is not None
    assert not os.path.exists(sending), "it would stay for ever"
    again.release()
    assert store.held_until() == []


def test_entries_that_an_older_library_has_sent_are_forgotten(store: Store) -> None:
    claim = accept(store)
    claim.release()
    sending = f"{store.path}/new/.sending-{claim.key}"
    os.link(claim.path, sending)
    os.utime(sending)
    assert store.claim(claim.path) is None
    assert len(store.held_until()) == 1
    os.unlink(claim.path)
    assert store.held_until() == []
    os.rename(sending, claim.path)
    assert store.held_until() == [], "it is looked at when it is claimed again"


def test_claims_of_an_older_library_are_counted_while_workers_find_more(
    store: Store,
) -> None:
    claim = accept(store)
    claim.release()
    paths = [claim.path]
    for number in range(2000):
        paths.append(f"{store.path}/new/1700000000.{number}.host")
        os.link(claim.path, paths[-1])
    for path in paths:
        folder, name = os.path.split(path)
        os.link(path, f"{folder}/.sending-{name}")
    os.utime(claim.path)

    def look() -> None:
        for path in paths:
            assert store.claim(path) is None

    worker = threading.Thread(target=look)
    worker.start()
    while worker.is_alive():
        store.held_until()
    assert len(store.held_until()) == len(paths)


def test_a_file_with_the_name_of_an_old_claim_that_is_another_one_stays(
    store: Store,
) -> None:
    claim = accept(store)
    claim.release()
    os.link(claim.path, f"{store.path}/backup")
    other = Path(store.path, "new", f".sending-{claim.key}")
    other.write_bytes(b"another")
    os.utime(other, (1.0, 1.0))
    again = store.claim(claim.path)
    assert again is not None
    assert other.read_bytes() == b"another"
    again.release()


def test_another_link_to_an_entry_is_no_claim(store: Store) -> None:
    claim = accept(store)
    claim.release()
    os.link(claim.path, f"{store.path}/backup")
    again = store.claim(claim.path)
    assert again is not None
    again.release()


def test_a_name_that_does_not_tell_the_time_leaves_the_mtime(store: Store) -> None:
    path = f"{store.path}/new/message"
    Path(path).write_bytes(preamble_of(ENTRY) + MESSAGE)
    hour_ago = int(time.time()) - 3600.0
    os.utime(path, (hour_ago, hour_ago))
    claim = store.claim(path)
    assert claim is not None
    assert store.accepted(claim) == hour_ago
    claim.release()


# Trouble


def test_what_fails_half_way_leaves_the_entry_and_can_be_done_again(
    store: Store,
) -> None:
    claim = accept(store)
    os.rename(f"{store.path}/cur", f"{store.path}/away")
    with pytest.raises(QueueError, match="cannot defer the entry") as caught:
        store.defer(claim, TRIED, 1000.0)
    assert caught.value.path == claim.path
    assert files(store) == {"new": [claim.key]}
    assert read(claim.path) == ENTRY
    assert store.claim(claim.path) is None
    os.rename(f"{store.path}/away", f"{store.path}/cur")
    store.defer(claim, TRIED, 1000.0)
    claim.release()
    assert files(store) == {"cur": [f"{claim.key}:2,"]}


def test_a_folder_that_cannot_be_synced_is_told(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    claim = accept(store)
    store.defer(claim, TRIED, 1000.0)
    os.rmdir(f"{store.path}/new")
    claim.release()
    [path] = store.maildir.paths("cur")
    again = store.claim(path)
    assert again is not None
    store.defer(again, ENTRY, 2000.0)
    again.release()
    assert read(path) == ENTRY
    assert "queue/new: cannot be synced" in caplog.text


def test_a_full_disk_leaves_the_entry_as_it_was(tmp_path: Path) -> None:
    with full_disk(tmp_path, kilobytes=96) as disk:
        store = Store(str(disk / "queue"))
        claim = accept(store, [MESSAGE, b"x" * 40_000])
        filler = disk / "filler"
        with pytest.raises(OSError, match=r"space|large"):
            fill(filler)
        before = claim.read_bytes()
        for transition in (store.bury, lambda c, e: store.defer(c, e, 1000.0)):
            with pytest.raises(QueueError, match="cannot"):
                transition(claim, claim.read())
        assert claim.read_bytes() == before
        assert os.listdir(f"{store.path}/tmp") == []
        filler.unlink()
        store.defer(claim, TRIED, 1000.0)
        claim.release()


def test_a_folder_without_permission_is_an_error_that_names_the_entry(
    store: Store,
) -> None:
    claim = accept(store)
    os.chmod(f"{store.path}/new", 0o500)

    def finish() -> None:
        with pytest.raises(QueueError, match="cannot remove the entry") as caught:
            store.finish(claim)
        assert caught.value.path == claim.path
        assert isinstance(caught.value.__cause__, PermissionError)

    without_privileges(finish)
    os.chmod(f"{store.path}/new", 0o700)
    claim.release()
    assert files(store) == {"new": [claim.key]}


# What a crash left behind


def test_leftovers_go_after_36_hours_but_prepared_files_never(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.remove_leftovers()
    claim = accept(store)
    store.bury(claim, TRIED)
    claim.release()
    now = time.time()
    for name, age in [
        ("tmp/old", 1.6),
        ("tmp/young", 1.4),
        ("tmp/1.host:prepared=1.host", 400.0),
        (".Failed/tmp/old", 1.6),
        ("new/old", 400.0),
    ]:
        Path(store.path, name).touch()
        os.utime(Path(store.path, name), (now - age * DAY,) * 2)
    store.remove_leftovers()
    left = files(store)
    assert left["tmp"] == ["1.host:prepared=1.host", "young"]
    assert ".Failed/tmp" not in left
    assert "old" in left["new"]
    assert caplog.text.count("removed, it was never complete") == 2


def test_a_leftover_that_is_gone_meanwhile_has_no_age(tmp_path: Path) -> None:
    assert _age(str(tmp_path / "gone")) == 0.0


def test_what_is_in_doubt_is_found(store: Store) -> None:
    items = [store.stage("", ("a@x.org",), [MESSAGE]) for _ in range(3)]
    batch = store.batch()
    batch.prepare(items)
    assert list(store.in_doubt()) == []
    # The process dies here: its lock is gone, the files stay.
    dead = batch._leader
    assert dead is not None
    dead.release()
    assert list(store.in_doubt()) == sorted(item.path for item in items)
    batch.discard(items)
    assert list(store.in_doubt()) == []


def test_a_file_is_added_once(store: Store) -> None:
    path = "new/1790000000.a"
    store.add(path, [b"one"], 1.0)
    with pytest.raises(FileExistsError):
        store.add(path, [b"two"], 1.0)
    assert Path(store.path, path).read_bytes() == b"one"
    assert list(Path(store.path, "tmp").iterdir()) == []
