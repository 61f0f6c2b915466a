"""The queue in an operator's hands, and the commands for it."""
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from postcommit.cli import main
from postcommit.errors import NotAMaildirError
from postcommit.errors import QueueError
from postcommit.queue.admin import Admin
from postcommit.queue.admin import Counts
from postcommit.queue.entry import Entry
from postcommit.queue.store import Store


MESSAGE = b"Message-Id: <1@x.org>\n\nText.\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


def leave_in_doubt(store: Store, count: int = 2) -> list[str]:
    """Prepare entries as a process that dies then; return their names."""
    batch = store.batch()
    items = [store.stage("", ("a@x.org",), [MESSAGE]) for _ in range(count)]
    batch.prepare(items)
    leader = batch._leader
    assert leader is not None
    leader.release()
    return [item.name for item in items]


def fill(store: Store) -> None:
    """Leave an entry in each state."""
    for state in ("waiting", "deferred", "failed"):
        item = store.stage("", ("a@x.org",), [MESSAGE])
        item.commit()
        claim = store.claim(item.path)
        assert claim is not None
        if state == "deferred":
            store.postpone(claim, time.time() + 60)
        if state == "failed":
            store.bury(claim, Entry("", ("a@x.org",), MESSAGE, 1, "550 No"))
            store.finish(claim)
        claim.release()


def test_entries_are_counted_by_their_state(store: Store) -> None:
    admin = Admin(store.path)
    assert admin.counts() == Counts(0, 0, 0, 0)
    fill(store)
    leave_in_doubt(store, 3)
    Path(store.path, "new", ".sending-1").touch()
    assert admin.counts() == Counts(1, 1, 1, 3)


def test_what_a_living_transaction_holds_is_not_in_doubt(store: Store) -> None:
    batch = store.batch()
    items = [store.stage("", ("a@x.org",), [MESSAGE]) for _ in range(2)]
    batch.prepare(items)
    assert list(Admin(store.path).in_doubt()) == []
    batch.discard(items)


def test_what_is_in_doubt_can_be_sent(store: Store) -> None:
    names = leave_in_doubt(store)
    admin = Admin(store.path)
    for doubt in list(admin.in_doubt()):
        assert abs((doubt.accepted or 0) - time.time()) < 60
        admin.send(doubt)
    assert sorted(os.listdir(f"{store.path}/new")) == sorted(names)
    assert list(admin.in_doubt()) == []


def test_what_is_in_doubt_can_be_dropped(store: Store) -> None:
    leave_in_doubt(store)
    admin = Admin(store.path)
    for doubt in list(admin.in_doubt()):
        admin.drop(doubt)
    assert admin.counts() == Counts(0, 0, 0, 0)


def test_what_somebody_else_has_sent_meanwhile_is_an_error(store: Store) -> None:
    leave_in_doubt(store, 1)
    admin = Admin(store.path)
    [doubt] = admin.in_doubt()
    admin.send(doubt)
    with pytest.raises(QueueError, match="cannot accept the entry"):
        admin.send(doubt)


def test_a_path_that_is_no_queue_is_refused_and_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="missing"):
        Admin(str(tmp_path / "missing"))
    with pytest.raises(NotAMaildirError):
        Admin(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# The commands


def test_status_tells_and_its_exit_status_too(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    assert main(["status", store.path]) == 0
    numbers = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert numbers == [
        ["1", "waiting,"],
        ["1", "deferred"],
        ["1", "dead"],
        ["0", "in"],
    ]
    [name] = leave_in_doubt(store, 1)
    assert main(["status", store.path]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert name in last
    assert time.strftime("sent %Y-%m-") in last


@pytest.mark.parametrize(
    ("choice", "said", "left"), [("--send", "accepted", 3), ("--drop", "removed", 0)]
)
def test_recover_sends_or_drops_all(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    choice: str,
    said: str,
    left: int,
) -> None:
    names = leave_in_doubt(store, 2)
    os.rename(
        f"{store.path}/tmp/{names[1]}:prepared={names[0]}",
        f"{store.path}/tmp/odd:prepared={names[0]}",
    )
    leave_in_doubt(store, 1)
    assert main(["recover", store.path, choice]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == 3 * [said]
    assert f"{said}  odd" in lines
    assert len(os.listdir(f"{store.path}/new")) == left
    assert os.listdir(f"{store.path}/tmp") == []
    assert main(["status", store.path]) == 0


@pytest.mark.parametrize("command", ["status", "recover --send"])
def test_a_missing_queue_is_one_line_and_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    missing = str(tmp_path / "missing")
    assert main([*command.split(), missing]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert missing in captured.err
    assert not captured.out
    assert not os.path.exists(missing)


def test_recover_does_nothing_without_a_choice(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_in_doubt(store)
    with pytest.raises(SystemExit) as caught:
        main(["recover", store.path])
    assert caught.value.code == 2
    assert "--send" in capsys.readouterr().err
    assert Admin(store.path).counts().in_doubt == 2
