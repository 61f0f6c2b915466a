"""What root writes into the queue of another user belongs to that user."""
from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from contextlib import suppress
from pathlib import Path

import pytest

from postcommit import Maildir
from postcommit import QueuedMailDelivery
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._mail.entry import Entry
from postcommit._maildir.files import OpenFile
from postcommit._maildir.files import give_to_owner
from postcommit._maildir.maildir import create_maildir
from postcommit._maildir.mark import adopt
from postcommit._maildir.presence import open_wakeup
from postcommit._maildir.store import Store
from tests.support import children
from tests.support.transactions import explicit
from tests.support.transactions import mail
from tests.support.users import owners


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="this is about root")

# A user that no password database has, as in many containers.
UID = 47110

SCHEDULE = Schedule(60.0, 4000.0, 1e6)


@pytest.fixture
def queue() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="postcommit-"))
    os.chown(folder, UID, UID)
    path = str(folder / "queue")
    children.call(_create_as_owner, path)
    yield path
    shutil.rmtree(folder)


def _become_owner() -> None:
    # What an interpreter reads late may be in a folder that only root can read.
    "".encode("idna")
    os.setgroups([])
    os.setgid(UID)
    os.setuid(UID)


def _create_as_owner(path: str) -> None:
    _become_owner()
    Store(path)


def _drain_as_owner(path: str) -> None:
    _become_owner()
    consumer = Store(path).consumer(SCHEDULE, lambda: time.time() + 3600)
    for claim in consumer.take(10):
        claim.read()
        consumer.settle(claim, Settlement())
        print("sent")
    consumer.close()


def _send(path: str, count: int) -> None:
    manager = explicit()
    manager.begin()
    delivery = QueuedMailDelivery(path, transaction_manager=manager)
    for number in range(count):
        delivery.send("a@x.org", "b@x.org", mail(f"{number}.{count}@x.org"))
    manager.commit()


def test_the_owner_can_send_what_root_has_committed(queue: str) -> None:
    _send(queue, 1)
    _send(queue, 3)
    writer = Maildir(queue).newMessage()
    writer.write(b"X-Zope-From: a@x.org\nX-Zope-To: b@x.org\nSubject: x\n\nText\n")
    writer.commit()
    assert owners(queue) == {(UID, UID)}
    assert children.call(_drain_as_owner, queue) == "sent\n" * 5


def test_a_message_belongs_to_the_owner_of_tmp(tmp_path: Path) -> None:
    queue = str(tmp_path / "queue")
    Store(queue)
    os.chown(f"{queue}/tmp", UID, UID)
    _send(queue, 1)
    [path] = Path(queue, "new").iterdir()
    assert path.stat().st_uid == UID


def test_a_processor_of_root_leaves_nothing_to_root(queue: str) -> None:
    _send(queue, 1)
    consumer = Store(queue).consumer(SCHEDULE)
    [claim] = consumer.take(1)
    entry = claim.read()
    dead = Entry("a@x.org", ("b@x.org",), entry.message, 1, "550 No")
    consumer.settle(claim, Settlement(rejected=dead, left=entry, due=time.time() + 60))
    consumer.post("away", 60)
    found = sorted(os.listdir(queue))
    assert found == [".Failed", ".paused", ".wakeup", "cur", "new", "tmp"]
    assert owners(queue) == {(UID, UID)}
    assert stat.S_IMODE(os.stat(f"{queue}/.Failed").st_mode) == 0o700
    consumer.close()
    assert children.call(_drain_as_owner, queue) == "sent\n"


def test_root_adopts_a_maildir_for_its_owner(queue: str) -> None:
    adopt(queue)
    assert owners(queue) == {(UID, UID)}


def _open_while_it_is_swapped(queue: str, other: str) -> None:
    path = f"{queue}/.wakeup"

    def swap(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and args[0] == path and not os.path.islink(path):
            os.unlink(path)
            os.symlink(other, path)

    sys.addaudithook(swap)
    with suppress(OSError):
        open_wakeup(queue).close()
    assert os.path.islink(path)


def test_root_gives_away_no_pipe_that_a_link_leads_to(
    queue: str, tmp_path: Path
) -> None:
    """The owner of the folder replaces the new pipe before it is opened."""
    other = str(tmp_path / "pipe")
    os.mkfifo(other)
    children.call(_open_while_it_is_swapped, queue, other)
    assert os.stat(other).st_uid == 0


def _create_while_it_is_swapped(queue: str, other: str) -> None:
    def swap(event: str, args: tuple[object, ...]) -> None:
        if event == "os.chown":
            for building in Path(queue).glob(".maildir-*"):
                if not building.is_symlink() and building.stat().st_uid == 0:
                    os.rename(building, f"{queue}/away")
                    os.symlink(other, building)

    sys.addaudithook(swap)
    create_maildir(f"{queue}/.Failed", owner_of=queue)
    assert os.path.exists(f"{queue}/away")


def test_root_gives_away_no_folder_that_a_link_leads_to(
    queue: str, tmp_path: Path
) -> None:
    """The owner of the queue replaces the new folder before it is given to him."""
    other = str(tmp_path / "other")
    Maildir(other, create=True)
    children.call(_create_while_it_is_swapped, queue, other)
    assert owners(other) == {(0, 0)}
    assert os.stat(other).st_uid == 0


def test_a_queue_of_root_stays_its_own(tmp_path: Path) -> None:
    Store(str(tmp_path / "queue"))
    _send(str(tmp_path / "queue"), 1)
    assert owners(str(tmp_path)) == {(0, 0)}


def test_a_file_is_given_away_only_by_root(queue: str, tmp_path: Path) -> None:
    with closing(OpenFile(str(tmp_path / "file"), os.O_RDWR | os.O_CREAT)) as file:
        os.setegid(UID)
        os.seteuid(UID)
        try:
            give_to_owner(file.descriptor, queue)
        finally:
            os.seteuid(0)
            os.setegid(0)
        assert os.fstat(file.descriptor).st_uid == 0
