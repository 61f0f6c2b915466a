"""A queue is told from a person's mailbox, and a mailbox is left alone."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transaction
from pyramid.config import Configurator
from zope.component.testing import PlacelessSetup
from zope.configuration import xmlconfig
from zope.sendmail.delivery import QueuedMailDelivery as OlderDelivery
from zope.sendmail.maildir import Maildir as OlderMaildir

from postcommit._cli import main as cli
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._maildir.item import EntryState
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.mark import _head
from postcommit._maildir.mark import adopt
from postcommit._maildir.mark import check_queue_path
from postcommit._maildir.mark import refuse_mailbox
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Store
from postcommit._processor import QueueProcessor
from postcommit.errors import NotAMaildirError
from postcommit.errors import NotAQueueError
from postcommit.testing import RecordingMailer
from tests.support.faults import without_privileges
from tests.support.queues import ENTRY
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import write
from tests.support.strace import needs_strace
from tests.support.strace import trace


pytestmark = pytest.mark.usefixtures("commands_apart")


LETTER = b"Return-Path: <ann@example.org>\nSubject: Hello\n\nText.\n"
OF_REPOZE = b"Subject: x\nX-Actually-To: a@x.org\nX-Actually-From: s@x.org\n\nText.\n"
MESSAGE = "Subject: x\n\nText.\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Maildir(str(tmp_path / "Maildir"), create=True)
    return tmp_path / "Maildir"


@pytest.fixture
def mailbox(path: Path) -> Path:
    (path / "new" / "1700000000.M1P1.host").write_bytes(LETTER)
    (path / "cur" / "1700000000.M2P1.host:2,S").write_bytes(LETTER)
    return path


def is_queue(path: Path) -> bool:
    try:
        refuse_mailbox(Maildir(str(path)))
    except NotAQueueError:
        return False
    return True


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# What opens a queue to change something in it


def by_pyramid(path: str) -> None:
    settings = {"mail.queue_path": path, "mail.processor": "true"}
    config = Configurator(settings=settings)
    config.include("postcommit.pyramid")
    config.make_wsgi_app()


def by_zcml(path: str) -> None:
    setup = PlacelessSetup()
    setup.setUp()
    try:
        xmlconfig.string(
            '<configure xmlns:mail="http://namespaces.zope.org/mail">'
            '<include package="postcommit" />'
            '<mail:smtpMailer name="smtp" />'
            f'<mail:queuedDelivery mailer="smtp" queuePath="{path}" /></configure>'
        )
    finally:
        setup.tearDown()


WAYS: list[Callable[[str], Any]] = [
    Store,
    lambda path: QueueProcessor(path, RecordingMailer()).flush(),
    lambda path: QueueProcessor(path, RecordingMailer()).run(),
    lambda path: QueueProcessor(path, RecordingMailer()).start(),
    lambda path: QueuedMailDelivery(path).send("s@x.org", "a@x.org", MESSAGE),
    by_pyramid,
    by_zcml,
]


def test_a_path_is_checked_and_nothing_is_created(
    tmp_path: Path, mailbox: Path
) -> None:
    check_queue_path(str(tmp_path / "queue"))
    assert not (tmp_path / "queue").exists()
    Store(str(tmp_path / "queue"))
    check_queue_path(str(tmp_path / "queue"))
    with pytest.raises(NotAQueueError, match="may be a person's mailbox"):
        check_queue_path(str(mailbox))


@pytest.mark.parametrize("way", WAYS)
def test_a_mailbox_is_refused_and_left_as_it_is(
    way: Callable[[str], Any], mailbox: Path
) -> None:
    before = contents(mailbox)
    with pytest.raises(Exception, match=r"person's mailbox.*--adopt"):
        way(str(mailbox))
    transaction.abort()
    assert contents(mailbox) == before
    assert ".wakeup" not in os.listdir(mailbox)


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["flush"],
        ["flush", "--create"],
        ["retry", "ALL"],
        ["delete", "ALL", "--yes"],
        ["recover", "--send"],
        ["hold"],
        ["release"],
        ["pause"],
        ["resume"],
    ],
)
def test_commands_refuse_a_mailbox(
    command: list[str], mailbox: Path, capsys: Any
) -> None:
    before = contents(mailbox)
    assert cli.main([command[0], str(mailbox), *command[1:]]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), "only the refusal"
    assert "person's mailbox" in err
    assert contents(mailbox) == before


@pytest.mark.parametrize("command", ["status", "list", "check"])
def test_a_mailbox_may_be_looked_at(command: str, mailbox: Path, capsys: Any) -> None:
    before = contents(mailbox)
    assert cli.main([command, str(mailbox)]) in (0, 1)
    assert contents(mailbox) == before


@pytest.mark.parametrize("command", ["retry", "delete"])
def test_a_command_may_adopt(command: str, mailbox: Path, capsys: Any) -> None:
    words = [command, str(mailbox), "--adopt", "1700000000.M1P1.host"]
    assert cli.main(words) == 0
    assert is_queue(mailbox)
    adopt(str(mailbox))  # again, which changes nothing
    assert QueueProcessor(str(mailbox), RecordingMailer()).flush() == (0, 0, 0, 0)
    dead = os.listdir(mailbox / ".Failed" / "new")
    assert len(dead) == (2 if command == "retry" else 1)


def test_flush_may_adopt(mailbox: Path, capsys: Any) -> None:
    assert cli.main(["flush", str(mailbox), "--adopt"]) == 0
    assert len(os.listdir(mailbox / ".Failed" / "new")) == 2


def test_what_is_no_maildir_cannot_be_adopted(tmp_path: Path) -> None:
    with pytest.raises(NotAMaildirError):
        adopt(str(tmp_path))


# What is a queue


def test_a_new_or_an_empty_folder_is_a_queue(tmp_path: Path) -> None:
    Store(str(tmp_path / "new"))
    assert is_queue(tmp_path / "new")
    OlderMaildir(str(tmp_path / "older"), True)
    assert is_queue(tmp_path / "older")


@pytest.mark.parametrize("entry", [ENTRY, OF_REPOZE, b"X-Zope-From: damaged"])
@pytest.mark.parametrize("place", ["new/1700000000.M1P1.host", "cur/1.host:2,"])
def test_entries_of_each_library_tell(entry: bytes, place: str, path: Path) -> None:
    (path / place).write_bytes(entry)
    for number in range(9):  # damaged by a power failure, for example
        (path / "new" / f"17000000{number}.host").write_bytes(b"damaged")
    (path / ".Sent").mkdir()
    assert is_queue(path)


def test_a_queue_of_zope_sendmail_is_taken_over(tmp_path: Path) -> None:
    queue = str(tmp_path / "older")
    OlderDelivery(queue).send("s@x.org", ["a@x.org"], MESSAGE)
    transaction.commit()
    mailer = RecordingMailer()
    assert QueueProcessor(queue, mailer).flush() == (1, 0, 0, 0)
    # And is one from now on, whatever is put into it.
    write(Store(queue), "new/1700000000.M1P1.host", LETTER)
    assert is_queue(Path(queue))


@pytest.mark.parametrize("name", [".rejected-1700000000.1", ".sending-1700000000.1"])
def test_what_an_older_library_has_claimed_or_put_aside_tells(
    name: str, path: Path
) -> None:
    (path / "new" / name).write_bytes(LETTER)
    (path / "new" / "1700000001.1").write_bytes(LETTER)
    assert is_queue(path)


def test_what_has_no_text_tells_nothing(path: Path) -> None:
    (path / "new" / "1700000000.1").touch()
    (path / "new" / "1700000000.2").symlink_to("/etc/passwd")
    (path / "new" / "1700000000.3").symlink_to("nowhere")
    (path / "new" / "1700000000.4").mkdir()
    (path / "new" / ".keep").touch()
    os.mkfifo(path / "new" / "1700000000.5")
    assert is_queue(path)


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"Neither one nor the other.\n"])
def test_damaged_files_are_no_mail_of_a_person(data: bytes, path: Path) -> None:
    (path / "new" / "1700000000.1").write_bytes(data)
    assert is_queue(path)
    (path / "cur" / "1700000000.2:2,").write_bytes(LETTER)
    assert not is_queue(path)


@pytest.mark.parametrize("first", [b"From ann Mon", b">From ann", b"X-Spam-Score: 1"])
def test_however_a_letter_begins(first: bytes, path: Path) -> None:
    (path / "new" / "1700000000.1").write_bytes(first + b"\nSubject: x\n\n")
    assert not is_queue(path)


def test_what_was_sent_meanwhile_tells_nothing(path: Path) -> None:
    assert _head(str(path / "new" / "gone")) == b""


def test_ours_with_dead_letters_only(path: Path) -> None:
    store = Store(str(path))
    bury(store)
    assert is_queue(path)
    defer(store)
    assert is_queue(path)


# What is not


@pytest.mark.parametrize(
    "name",
    [".Sent", "dovecot-uidlist", "dovecot.index.log", "subscriptions", "maildirsize"],
)
def test_an_empty_mailbox_of_a_mail_server(name: str, path: Path) -> None:
    if name.startswith("."):
        Maildir(str(path / name), create=True)
        assert is_queue(path)
        (path / name / "maildirfolder").touch()
    else:
        (path / name).touch()
    with pytest.raises(NotAQueueError, match=f"it has '{name}'"):
        refuse_mailbox(Maildir(str(path)))


def test_a_folder_of_a_mailbox_or_dead_letters_are_no_queue(path: Path) -> None:
    bury(Store(str(path)))
    with pytest.raises(NotAQueueError, match="a folder of another Maildir"):
        Store(str(path / ".Failed"))


def test_files_beside_the_folders_do_not_matter(path: Path) -> None:
    (path / "README").touch()
    (path / "lost+found").mkdir()
    (path / ".hidden").touch()
    assert is_queue(path)


def test_a_fault_of_the_disk_is_left_to_the_processor(mailbox: Path) -> None:
    def look() -> None:
        assert is_queue(mailbox)

    os.chmod(mailbox / "new", 0o000)
    without_privileges(look)
    os.chmod(mailbox / "new", 0o700)
    assert not is_queue(mailbox)
    for folder in ("new", "cur"):
        for file in (mailbox / folder).iterdir():
            os.chmod(file, 0o000)
    without_privileges(look)


def test_an_envelope_of_repoze_may_follow_a_long_header(path: Path) -> None:
    many = ",\n ".join(f"recipient.number.{n}@example.org" for n in range(3000))
    entry = b"To: " + many.encode() + b"\n" + OF_REPOZE
    (path / "new" / "1700000000.1.host").write_bytes(entry)
    assert is_queue(path)
    letter = b"To: " + many.encode() + b"\n" + LETTER
    (path / "new" / "1700000000.1.host").write_bytes(letter)
    assert not is_queue(path)


# What it costs


def _open(queue: str) -> None:
    Store(queue)


@needs_strace
def test_a_large_queue_costs_no_more_than_a_small_one(
    path: Path, tmp_path: Path
) -> None:
    def calls() -> int:
        where = {"below": path, "scratch": tmp_path}
        return len(trace(_open, str(path), **where, traced="%file"))

    found = []
    for count in (100, 2000):
        for number in range(count):
            (path / "new" / f"1700000000.M{number}P1.host").write_bytes(LETTER)
            (path / "cur" / f"1700000000.M{number}P1.host:2,").write_bytes(ENTRY)
        found.append(calls())
    assert found[0] == found[1] < 100
    adopt(str(path))
    assert calls() < 12


# Links


@pytest.mark.parametrize("name", ["tmp", "new", "cur", ".Failed"])
@pytest.mark.parametrize("way", WAYS)
def test_a_link_in_place_of_a_folder_is_refused(
    name: str, way: Callable[[str], Any], path: Path, tmp_path: Path
) -> None:
    other = Store(str(tmp_path / "other"))
    write(other, "new/1700000000.M1P1.host", LETTER)
    target = tmp_path / "other" / ("" if name == ".Failed" else "new")
    if name != ".Failed":
        (path / name).rmdir()
    (path / name).symlink_to(target)
    before = contents(tmp_path / "other")
    with pytest.raises(Exception, match=f"{name} is a symbolic link"):
        way(str(path))
    transaction.abort()
    assert contents(tmp_path / "other") == before


def test_commands_refuse_a_link(path: Path, tmp_path: Path, capsys: Any) -> None:
    (path / "new").rename(tmp_path / "new")
    (path / "new").symlink_to(tmp_path / "new")
    for command in ("flush", "status", "check", "list"):
        assert cli.main([command, str(path)]) == 2
        assert "new is a symbolic link" in capsys.readouterr().err


def test_the_queue_itself_may_be_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    QueuedMailDelivery(str(tmp_path / "link")).send("s@x.org", "a@x.org", MESSAGE)
    transaction.commit()
    assert len(list(MaildirOperators(str(path)).items([EntryState.WAITING]))) == 1
