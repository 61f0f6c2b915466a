"""Maildir folders, on a real disk."""
from __future__ import annotations

import errno
import os
import re
import socket
import stat
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject
from zope.sendmail.maildir import Maildir as OlderMaildir

from postcommit import Maildir
from postcommit._maildir import files as files_module
from postcommit._maildir.files import birth_time
from postcommit._maildir.files import explained
from postcommit._maildir.files import optional
from postcommit._maildir.files import remove
from postcommit._maildir.files import rename
from postcommit._maildir.files import sync
from postcommit._maildir.maildir import FOLDERS
from postcommit._maildir.maildir import MaildirMessageWriter
from postcommit._maildir.maildir import Staged
from postcommit._maildir.maildir import check_path
from postcommit._maildir.maildir import unique_name
from postcommit.errors import NotAMaildirError
from postcommit.errors import QueueError
from postcommit.interfaces import IMaildir
from postcommit.interfaces import IMaildirFactory
from postcommit.interfaces import IMaildirMessageWriter
from tests.support import children
from tests.support.faults import small_files
from tests.support.faults import without_privileges
from tests.support.strace import needs_strace
from tests.support.strace import trace
from tests.support.transactions import files


@pytest.fixture
def maildir(tmp_path: Path) -> Maildir:
    return Maildir(str(tmp_path / "maildir"), create=True)


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    yield folder
    folder.chmod(0o700)


def open_files() -> list[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if os.path.lexists(link))


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


# The folder


def test_the_contracts_are_kept(maildir: Maildir) -> None:
    verifyObject(IMaildirFactory, Maildir)
    verifyClass(IMaildir, Maildir)
    verifyObject(IMaildir, maildir)
    verifyClass(IMaildirMessageWriter, MaildirMessageWriter)
    writer = maildir.newMessage()
    verifyObject(IMaildirMessageWriter, writer)
    writer.abort()


def test_a_missing_folder_is_created_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "maildir"
    Maildir(str(path), create=True)
    assert sorted(os.listdir(path)) == ["cur", "new", "tmp"]
    assert {mode(path / name) for name in ("", *FOLDERS)} == {0o700}
    assert os.listdir(tmp_path) == ["maildir"]


def test_a_missing_folder_is_an_error_unless_it_may_be_created(
    tmp_path: Path,
) -> None:
    with pytest.raises(QueueError, match="missing") as caught:
        Maildir(str(tmp_path / "missing"))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.path == str(tmp_path / "missing")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("spelling", [os.fsencode, Path, lambda path: f"{path}/"])
def test_the_path_may_be_spelled_in_any_way(tmp_path: Path, spelling) -> None:
    path = spelling(str(tmp_path / "maildir"))
    for maildir in (Maildir(path, create=True), Maildir(path)):
        writer = maildir.newMessage()
        writer.write(b"x")
        writer.commit()
    assert len(list(Maildir(str(tmp_path / "maildir")))) == 2


@pytest.mark.parametrize("create", [False, True])
def test_a_file_is_no_maildir(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(NotAMaildirError, match="file: is no folder"):
        Maildir(str(path), create)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("present", [(), ("tmp", "new"), ("letters",)])
def test_another_folder_is_no_maildir(
    tmp_path: Path, create: bool, present: tuple[str, ...]
) -> None:
    for name in present:
        (tmp_path / name).mkdir()
    missing = next(name for name in FOLDERS if name not in present)
    with pytest.raises(NotAMaildirError, match=f"it has no .*{missing}"):
        Maildir(str(tmp_path), create)
    assert sorted(os.listdir(tmp_path)) == sorted(present)


def test_errors_are_value_errors_as_those_of_zope_sendmail(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("missing", "file", "folder", "file/below"):
        path = str(tmp_path / name)
        for library in (Maildir, OlderMaildir):
            with pytest.raises(ValueError, match=name):
                library(path)
        for create in (True, False) if name != "missing" else (False,):
            with pytest.raises(OSError, match=name):
                Maildir(path, create)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_or_a_file_in_place_of_a_folder_is_refused(
    maildir: Maildir, name: str, tmp_path: Path
) -> None:
    os.rename(maildir.folder(name), tmp_path / name)
    os.symlink(tmp_path / name, maildir.folder(name))
    with pytest.raises(NotAMaildirError, match=f"{name} is a symbolic link"):
        Maildir(maildir.path)
    os.unlink(maildir.folder(name))
    Path(maildir.folder(name)).touch()
    with pytest.raises(NotAMaildirError, match=f"{name} is a file"):
        Maildir(maildir.path, create=True)


@pytest.mark.parametrize("create", [False, True])
def test_a_link_that_leads_nowhere_is_no_maildir(tmp_path: Path, create: bool) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(QueueError, match="link"):
        Maildir(str(tmp_path / "link"), create)
    assert os.listdir(tmp_path) == ["link"]


def test_a_link_to_a_maildir_is_one(maildir: Maildir, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(maildir.path)
    Maildir(str(tmp_path / "link"), create=True).newMessage().commit()
    assert len(list(maildir)) == 1


def test_a_relative_path_means_the_folder_of_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    maildir = Maildir("maildir", create=True)
    message = maildir.newMessage()
    monkeypatch.chdir("/")
    message.commit()
    maildir.newMessage().commit()
    assert len(list(maildir)) == len(files(tmp_path / "maildir")) == 2


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("name", ["null\0character", "surrogate\ud800"])
def test_what_can_be_no_path_is_no_maildir(
    tmp_path: Path, create: bool, name: str
) -> None:
    with pytest.raises(NotAMaildirError, match="can be no path") as caught:
        Maildir(str(tmp_path / name), create)
    assert caught.value.path.endswith(name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("create", [False, True])
def test_a_url_is_no_maildir(create: bool) -> None:
    with pytest.raises(NotAMaildirError, match="is a URL; name a folder"):
        Maildir("https://example.org/queue", create)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("missing/maildir", errno.ENOENT),
        ("file/maildir", errno.ENOTDIR),
        ("x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_a_parent_that_cannot_be_one_is_named(
    tmp_path: Path, path: str, number: int
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QueueError) as caught:
        Maildir(str(tmp_path / path), create=True)
    assert caught.value.errno == number
    assert path in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_a_parent_without_permission_is_named(closed_folder: Path) -> None:
    def create() -> None:
        with pytest.raises(QueueError, match="closed/maildir") as caught:
            Maildir(str(closed_folder / "maildir"), create=True)
        assert caught.value.errno == errno.EACCES

    without_privileges(create)
    assert os.listdir(closed_folder) == []


def test_a_creation_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    # There is no folder yet that could have a dot in it.
    with pytest.raises(QueueError, match="maildir"):
        Maildir(f"{tmp_path}/maildir/.", create=True)
    assert os.listdir(tmp_path) == []


def test_many_may_create_the_same_maildir_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "maildir")
    barrier = threading.Barrier(8)
    failed = []

    def create() -> None:
        barrier.wait()
        try:
            Maildir(path, create=True).newMessage().commit()
        except Exception as error:
            failed.append(error)

    for _ in range(3):
        threads = [threading.Thread(target=create) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(Maildir(path))) == 8
        for found in Maildir(path):
            os.unlink(found)
        for name in ("tmp", "new", "cur", ""):
            os.rmdir(f"{path}/{name}")
        assert os.listdir(tmp_path) == [], "what the slower ones built is left"
    assert failed == []


# Names


def test_names_say_when_and_where(maildir: Maildir) -> None:
    host = re.escape(socket.gethostname())
    pattern = rf"\d{{10}}\.M\d{{6}}P{os.getpid()}Q\d+R[0-9a-f]{{16}}\.{host}"
    assert re.fullmatch(pattern, unique_name())
    assert unique_name(1.5).startswith("0000000001.M500000P")


def test_names_sort_by_time_and_never_repeat() -> None:
    names = [unique_name(seconds / 7) for seconds in range(1000)]
    assert names == sorted(names)
    assert len({unique_name(1.0) for _ in range(1000)}) == 1000


# Iteration


def test_messages_come_new_ones_first_and_in_order(maildir: Maildir) -> None:
    wanted = [f"{f}/{n}" for f in ("new", "cur") for n in ("1", "2", "3")]
    for path in reversed(wanted):
        Path(maildir.path, path).touch()
    for path in ("new/.sending-1", "tmp/4", "cur/.hidden"):
        Path(maildir.path, path).touch()
    assert list(maildir) == [f"{maildir.path}/{path}" for path in wanted]


def test_each_of_thousands_comes_once(maildir: Maildir) -> None:
    for number in range(2500):
        Path(maildir.path, "new", str(number)).touch()
    assert len(set(maildir)) == len(list(maildir)) == 2500


# The writer


def test_a_message_arrives_with_its_commit(maildir: Maildir) -> None:
    writer = maildir.newMessage()
    writer.write(b"bytes, ")
    writer.write("str, ä")
    writer.writelines([b", lines", " of both"])
    assert files(Path(maildir.path)) == [f"tmp/{writer.name}"]
    writer.commit()
    assert files(Path(maildir.path)) == [f"new/{writer.name}"]
    [path] = maildir
    assert path == writer.path == writer.target
    assert Path(path).read_bytes() == "bytes, str, ä, lines of both".encode()
    assert mode(path) == 0o600


def test_a_commit_may_come_again(maildir: Maildir) -> None:
    writer = maildir.newMessage()
    writer.commit()
    os.rename(writer.path, f"{maildir.folder('cur')}/{writer.name}")
    writer.commit()
    writer.abort()
    assert files(Path(maildir.path)) == [f"cur/{writer.name}"]


def test_a_commit_succeeds_once_its_folder_is_on_the_disk(maildir: Maildir) -> None:
    writer = maildir.newMessage()

    def commit() -> None:
        with pytest.raises(QueueError, match=writer.name) as caught:
            writer.commit()
        assert caught.value.errno == errno.EACCES

    os.chmod(maildir.folder("new"), 0o300)  # it takes files, and cannot be opened
    without_privileges(commit)
    assert os.path.exists(writer.target)
    without_privileges(commit)
    os.chmod(maildir.folder("new"), 0o700)
    writer.commit()
    assert list(maildir) == [writer.target]


def test_an_abort_after_the_commit_does_nothing(maildir: Maildir) -> None:
    writer = maildir.newMessage()
    writer.commit()
    writer.abort()
    assert len(list(maildir)) == 1


def test_an_abort_removes_the_file_and_may_come_again(maildir: Maildir) -> None:
    writer = maildir.newMessage()
    writer.write(b"x")
    for _ in range(2):
        writer.abort()
        assert files(Path(maildir.path)) == []
    with pytest.raises(ValueError, match=f"{writer.name}: was aborted"):
        writer.commit()


def test_an_abort_does_not_need_the_file(maildir: Maildir) -> None:
    writer = maildir.newMessage()
    os.unlink(writer.path)
    writer.abort()
    assert files(Path(maildir.path)) == []


def test_a_closed_message_can_be_committed_or_aborted(maildir: Maildir) -> None:
    for ending in ("commit", "abort"):
        writer = maildir.newMessage()
        writer.write(b"x")
        writer.close()
        writer.close()
        getattr(writer, ending)()
    assert len(files(Path(maildir.path))) == 1


def test_a_folder_that_vanishes_fails_the_commit(maildir: Maildir) -> None:
    writer = maildir.newMessage()
    os.rmdir(maildir.folder("new"))
    reason = f"{writer.name}: cannot move the message into the Maildir"
    with pytest.raises(QueueError, match=reason) as caught:
        writer.commit()
    assert caught.value.errno == errno.ENOENT
    writer.abort()
    assert files(Path(maildir.path)) == []


def test_a_full_disk_fails_the_write_and_the_abort_cleans_up(
    maildir: Maildir,
) -> None:
    with small_files(1000):
        writer = maildir.newMessage()
        with pytest.raises(QueueError, match=f"{writer.name}: cannot write") as caught:
            writer.write(b"x" * 100_000)
        assert caught.value.errno == errno.EFBIG
        writer.abort()
    assert files(Path(maildir.path)) == []


def test_a_message_written_in_pieces_has_the_checksum_of_all(maildir: Maildir) -> None:
    writer = maildir.newMessage()
    writer.write(b"Subject: x\n")
    writer.writelines(["\n", b"Text.\n"])
    assert writer.checksum == zlib.crc32(b"Subject: x\n\nText.\n")
    writer.abort()


# A message written at once


def test_what_is_added_is_complete_and_closed(maildir: Maildir) -> None:
    pieces = [b"a", memoryview(b"b" * 100_000), b"c"]
    message = maildir.add(pieces)
    assert files(Path(maildir.path)) == [f"tmp/{message.name}"]
    assert Path(message.path).read_bytes() == b"".join(pieces)
    assert mode(message.path) == 0o600
    assert message.checksum == zlib.crc32(b"".join(pieces))
    assert message.path not in open_files()
    message.commit()
    assert list(maildir) == [message.target]


@pytest.mark.parametrize("nameless", [False, True])
@pytest.mark.parametrize("size", [1000, 200_000])
def test_what_cannot_be_added_leaves_nothing(
    maildir: Maildir, size: int, nameless: bool
) -> None:
    before = open_files()
    with small_files(100), pytest.raises(QueueError, match="cannot write") as caught:
        maildir.add([b"x" * size], nameless=nameless)
    assert caught.value.errno == errno.EFBIG
    assert files(Path(maildir.path)) == []
    assert open_files() == before


@pytest.mark.parametrize("nameless", [False, True])
def test_what_is_interrupted_leaves_nothing(maildir: Maildir, nameless: bool) -> None:
    class Interrupting(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            raise KeyboardInterrupt

    before = open_files()
    with pytest.raises(KeyboardInterrupt):
        maildir.add(Interrupting(), nameless=nameless)
    assert files(Path(maildir.path)) == []
    assert open_files() == before


def test_a_message_cannot_be_added_where_there_is_no_folder(maildir: Maildir) -> None:
    os.rmdir(maildir.folder("tmp"))
    with pytest.raises(QueueError, match="cannot write") as caught:
        maildir.add([b"x"])
    assert caught.value.errno == errno.ENOENT


def test_a_folder_without_permission_takes_no_message(maildir: Maildir) -> None:
    def write() -> None:
        with pytest.raises(QueueError, match="cannot create the file") as caught:
            maildir.newMessage()
        assert caught.value.errno == errno.EACCES

    os.chmod(maildir.folder("tmp"), 0o500)
    without_privileges(write)
    assert files(Path(maildir.path)) == []


def test_a_file_that_cannot_be_removed_is_named(maildir: Maildir) -> None:
    writer = maildir.newMessage()

    def abort() -> None:
        with pytest.raises(QueueError, match=f"{writer.name}: cannot remove"):
            writer.abort()

    os.chmod(maildir.folder("tmp"), 0o500)
    without_privileges(abort)


def test_what_a_server_has_renamed_without_saying_so_is_followed(
    maildir: Maildir,
) -> None:
    message = maildir.add([b"x"])
    # As on NFS, where the answer to the first request was lost.
    os.rename(message.path, message.target)
    message.move(message.target)
    assert message.path == message.target
    message.abort()
    assert list(maildir) == [message.target]


def test_what_is_gone_cannot_be_renamed(maildir: Maildir) -> None:
    message = maildir.add([b"x"])
    os.unlink(message.path)
    with pytest.raises(FileNotFoundError):
        message.move(message.target)


# A message without a name


def test_what_has_no_name_is_seen_when_it_is_committed(maildir: Maildir) -> None:
    message = maildir.add([b"a", b"b"], nameless=True)
    assert files(Path(maildir.path)) == []
    assert message.checksum == zlib.crc32(b"ab")
    message.commit()
    assert list(maildir) == [message.path] == [message.target]
    assert Path(message.path).read_bytes() == b"ab"
    assert mode(message.path) == 0o600
    assert os.stat(message.path).st_nlink == 1
    assert not any(maildir.path in path for path in open_files())
    message.abort()
    assert list(maildir) == [message.target]


def test_what_has_no_name_gets_it_once(maildir: Maildir) -> None:
    message = maildir.add([b"x"], nameless=True)
    for _ in range(2):
        message.give_name()
        assert files(Path(maildir.path)) == [f"tmp/{message.name}"]
    message.sync()
    message.move(f"{message.path}:moved")
    assert files(Path(maildir.path)) == [f"tmp/{message.name}:moved"]
    message.abort()
    assert files(Path(maildir.path)) == []


def test_what_has_no_name_is_gone_when_it_is_aborted(maildir: Maildir) -> None:
    before = open_files()
    message = maildir.add([b"x"], nameless=True)
    for _ in range(2):
        message.abort()
    assert files(Path(maildir.path)) == []
    assert open_files() == before
    with pytest.raises(ValueError, match="was aborted"):
        message.commit()


def test_what_has_no_name_is_gone_when_it_is_forgotten(maildir: Maildir) -> None:
    maildir.add([b"x"], nameless=True).abort()  # tries whether there is such a thing
    before = open_files()
    message = maildir.add([b"x"], nameless=True)
    assert len(open_files()) == len(before) + 1
    del message
    assert open_files() == before


def _fork_with_a_nameless_message(path: str) -> None:
    maildir = Maildir(path)
    message = maildir.add([b"x"], nameless=True)
    child = os.fork()
    if not child:
        # What we have open is closed, as a daemon does; files of its own get the
        # numbers, that of the message, too.
        os.closerange(3, 256)
        own = [os.open(path, os.O_RDONLY) for _ in range(8)]
        message.abort()
        del message
        assert [os.path.sameopenfile(fd, own[0]) for fd in own] == [True] * 8
        assert not any(f"{path}/" in name for name in open_files())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    message.commit()


def test_a_child_of_a_fork_closes_what_has_no_name_and_nothing_else(
    maildir: Maildir,
) -> None:
    children.call(_fork_with_a_nameless_message, maildir.path)
    assert len(list(maildir)) == 1


@pytest.mark.parametrize("nameless", [True, False])
def test_a_message_whose_name_is_taken_gets_another(
    maildir: Maildir, *, nameless: bool
) -> None:
    message = maildir.add([b"x"], nameless=nameless)
    taken = Path(message.target)
    taken.write_bytes(b"of somebody else")
    message.commit()
    assert taken.read_bytes() == b"of somebody else"
    assert Path(message.path).read_bytes() == b"x"
    assert re.fullmatch(rf"{re.escape(str(taken))}\.R[0-9a-f]{{16}}", message.target)
    message.abort()
    assert sorted(maildir) == [str(taken), message.target]


@pytest.mark.parametrize("nameless", [True, False])
def test_an_abort_leaves_the_file_that_has_taken_a_name(
    maildir: Maildir, *, nameless: bool
) -> None:
    message = maildir.add([b"x"], nameless=nameless)
    taken = Path(maildir.path, "tmp", "taken")
    taken.write_bytes(b"of somebody else")
    with pytest.raises(FileExistsError):
        message.move(str(taken))
    message.abort()
    assert files(Path(maildir.path)) == ["tmp/taken"]


def test_a_second_name_that_is_taken_is_an_error(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postcommit._maildir.maildir.another_name", lambda path: path)
    message = maildir.add([b"x"])
    Path(message.target).write_bytes(b"of somebody else")
    with pytest.raises(QueueError) as caught:
        message.commit()
    assert caught.value.errno == errno.EEXIST
    assert Path(message.target).read_bytes() == b"of somebody else"


def _rename(path: str, kernel: str) -> None:
    if kernel == "no ctypes":
        files_module._renameat2 = None
    Path(path, "one").write_bytes(b"1")
    Path(path, "other").write_bytes(b"2")
    with pytest.raises(FileExistsError) as caught:
        rename(f"{path}/one", f"{path}/other")
    assert caught.value.filename2 == f"{path}/other"
    assert Path(path, "other").read_bytes() == b"2"
    rename(f"{path}/one", f"{path}/third")
    assert Path(path, "third").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError):
        rename(f"{path}/one", f"{path}/fourth")


@needs_strace
@pytest.mark.parametrize("kernel", ["has it", "EINVAL", "ENOSYS", "no ctypes"])
def test_a_rename_never_replaces(tmp_path: Path, kernel: str) -> None:
    inject = f"renameat2:error={kernel}" if kernel[0] == "E" else ""
    folder = tmp_path / "folder"
    folder.mkdir()
    trace(_rename, str(folder), kernel, below=folder, scratch=tmp_path, inject=inject)
    assert sorted(os.listdir(folder)) == ["other", "third"]


def test_a_name_is_short_enough_for_that_of_a_prepared_file() -> None:
    name = unique_name()
    host = name.split(".", 2)[2]
    # A process number of 7 digits, a count of 10, and the longest host.
    longest = f"1796006072.M345753P4194304Q1234567890R{'f' * 16}.{'h' * 40}"
    assert len(host) <= 40
    assert len(f"{longest},C=1957ec37:prepared={longest},C=1957ec37") <= 255


def _add_without_links(path: str) -> None:
    message = Maildir(path).add([b"x"], nameless=True)
    assert files(Path(path)) == [f"tmp/{message.name}"]
    message.commit()


@needs_strace
def test_where_nothing_gets_its_name_later_it_has_one_at_once(
    maildir: Maildir, tmp_path: Path
) -> None:
    # As on NFS, which says so when the file is opened; without /proc the link fails.
    trace(
        _add_without_links,
        maildir.path,
        below=tmp_path,
        scratch=tmp_path,
        inject="linkat:error=ENOENT",
    )
    assert len(list(maildir)) == 1


def test_a_folder_that_lets_nothing_in_lets_in_nothing_without_a_name(
    maildir: Maildir,
) -> None:
    def add() -> None:
        with pytest.raises(QueueError, match="tmp") as caught:
            maildir.add([b"x"], nameless=True)
        assert caught.value.errno == errno.EACCES

    os.chmod(maildir.folder("tmp"), 0o500)
    without_privileges(add)
    assert files(Path(maildir.path)) == []


# Helpers


def test_errors_are_explained_once() -> None:
    with (
        pytest.raises(QueueError) as caught,
        explained("outer", "do"),
        explained("inner", "undo"),
    ):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert caught.value.path == "inner"
    assert caught.value.reason == "cannot undo: No such file or directory"
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_error_without_a_number_is_explained_by_its_text() -> None:
    with (
        pytest.raises(QueueError, match="cannot read: only a text"),
        explained("path", "read"),
    ):
        raise OSError("only a text")


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        sync(str(tmp_path / "missing"))


def test_whether_there_can_be_one(tmp_path: Path) -> None:
    check_path(str(tmp_path / "box"))
    assert list(tmp_path.iterdir()) == []
    Maildir(str(tmp_path / "box"), create=True)
    check_path(str(tmp_path / "box"))
    with pytest.raises(NotAMaildirError):
        check_path(str(tmp_path))
    with pytest.raises(QueueError, match=r"no folder '.*' to create it in"):
        check_path(str(tmp_path / "missing" / "box"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(QueueError, match="loop/box: cannot open the Maildir"):
        check_path(str(tmp_path / "loop" / "box"))


def test_a_message_that_was_never_filled_can_be_aborted(
    maildir: Maildir,
) -> None:
    message = Staged(maildir, unique_name())
    message.abort()
    message.abort()


def test_a_writer_that_is_closed_refuses_to_write(maildir: Maildir) -> None:
    writer = maildir.newMessage()
    writer.close()
    with pytest.raises(ValueError, match="is closed, cannot be written to"):
        writer.write(b"more")
    writer.abort()


def test_what_is_not_there_was_never_created(tmp_path: Path) -> None:
    assert birth_time(str(tmp_path / "missing")) is None


def test_a_python_without_ctypes_does_not_say_when_a_file_was_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert optional("no_such_module") is None
    monkeypatch.setattr("postcommit._maildir.files._ctypes", None)
    assert birth_time(str(tmp_path)) is None


@pytest.mark.parametrize("error", [OSError("not permitted"), MemoryError()])
def test_a_ctypes_that_is_forbidden_does_not_say_it_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(name: None, **options: bool) -> None:
        raise error

    monkeypatch.setattr("ctypes.CDLL", refuse)
    assert birth_time(str(tmp_path)) is None
