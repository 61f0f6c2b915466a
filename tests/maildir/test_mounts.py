"""Which file system a folder is on, and what one lacks that a queue needs."""
from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from postcommit import Maildir
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._maildir import mounts as module
from postcommit._maildir.checking import check
from postcommit._maildir.maildir import try_out
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.mounts import mount_of
from postcommit._maildir.mounts import remoteness
from postcommit._maildir.presence import lacks_pipes
from postcommit._maildir.store import Store
from postcommit.errors import MaildirError
from tests.support import children
from tests.support.faults import without_privileges
from tests.support.lacking import lacking
from tests.support.lacking import needs_fuse
from tests.support.mailers import ScriptedMailer
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.service import Running
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay
from tests.support.strace import needs_strace
from tests.support.strace import trace
from tests.support.transactions import explicit
from tests.support.transactions import mail


PROBLEMS = {
    "colons": "is on a file system without ':' in file names, which a queue needs",
    "streams": "is on a file system without ':' in file names, which a queue needs",
    "locks": "is on a file system without file locks (flock: No locks available),"
    " which a queue needs",
}


def problems(path: object) -> list[str]:
    return [finding.problem for finding in check(Store(str(path), to_look=True), 0.0)]


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def folders(path: Path) -> str:
    for name in ("tmp", "new", "cur"):
        (path / name).mkdir(parents=True)
    return str(path)


# What a queue needs


@needs_fuse
@pytest.mark.parametrize("lacks", PROBLEMS)
def test_an_unfit_file_system_is_found_when_the_queue_is_created_or_opened(
    lacks: str,
) -> None:
    with lacking(lacks) as folder:
        path = str(folder / "queue")
        for create in (Store, lambda path: Maildir(path, create=True)):
            with pytest.raises(MaildirError) as caught:
                create(path)
            assert caught.value.path == path
            assert caught.value.reason.startswith(PROBLEMS[lacks])
            assert "put the queue on another one" in caught.value.reason
            assert everything(folder) == []
        folders(folder / "queue")
        manager = explicit()
        manager.begin()
        delivery = QueuedMailDelivery(path, transaction_manager=manager)
        processor = QueueProcessor(path, ScriptedMailer())
        for use in (
            lambda: delivery.send("a@x.org", "b@x.org", mail("1@x.org")),
            processor.flush,
            processor.start,
            lambda: Store(path),
        ):
            with pytest.raises(MaildirError) as caught:
                use()
            assert caught.value.reason.startswith(PROBLEMS[lacks])
        manager.abort()
        assert everything(folder / "queue") == ["cur", "new", "tmp"]
        assert PROBLEMS[lacks] in problems(path)
        assert MaildirOperators(path).survey().due == 0, "it can be looked at"


@needs_fuse
@pytest.mark.parametrize("lacks", ["nothing", "pipes", "links"])
def test_what_a_queue_can_do_without(lacks: str) -> None:
    with lacking(*{lacks} - {"nothing"}) as folder:
        path = folder / "queue"
        manager = explicit()
        delivery = QueuedMailDelivery(str(path), transaction_manager=manager)
        for number in range(2):
            manager.begin()
            for recipient in range(2 * number + 1):
                to = f"{recipient}@x.org"
                delivery.send("a@x.org", to, mail(f"{number}.{recipient}@x.org"))
            manager.commit()
        mailer = ScriptedMailer()
        assert QueueProcessor(str(path), mailer).flush().sent == 4
        found = problems(path)
        without_pipes = "is on a file system without named pipes"
        assert (without_pipes in found) == (lacks == "pipes")
        [remote] = [problem for problem in found if problem != without_pipes]
        assert remote == f"is on FUSE (fuse, mounted at {folder})"
        assert everything(path) == sorted(
            ["cur", "new", "tmp", *[".wakeup"] * (lacks != "pipes")]
        )


def _open(path: str) -> None:
    Store(path)
    print("opened")
    Store(path)


@needs_strace
def test_a_file_system_is_tried_once_for_each_process(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    Store(str(queue))
    traced = "openat,write"
    calls = trace(_open, str(queue), below=queue, scratch=tmp_path, traced=traced)
    tried = [call for call in calls if ".probe" in call]
    assert len(tried) == 1
    assert calls.index(tried[0]) < calls.index("print opened")


@needs_strace
def test_nothing_is_left_behind_by_a_process_that_is_killed(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    Store(str(queue))
    seen = set()
    for call in ("openat", "flock", "unlink"):
        strace = ["strace", "-f", "-o", str(tmp_path / "trace")]
        strace += ["-P", f"{queue}/tmp/.probe:2,", "-e", f"inject={call}:signal=KILL"]
        children.call(_open, str(queue), under=strace, status=-signal.SIGKILL)
        seen |= set(everything(queue))
        children.call(_open, str(queue))
        assert everything(queue) == ["cur", "new", "tmp"]
    assert "tmp/.probe:2," in seen


def test_a_reader_without_permission_to_write_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "queue"
    Store(str(path))
    for folder in ("tmp", "new", "cur", ""):
        (path / folder).chmod(0o555)

    def read() -> None:
        assert try_out(str(path / "tmp")) == ("", False)
        assert not lacks_pipes(str(path / "tmp"))
        Store(str(path))

    try:
        without_privileges(read)
    finally:
        for folder in ("tmp", "new", "cur", ""):
            (path / folder).chmod(0o700)


def test_a_trial_that_was_left_by_another_user_is_no_reason(tmp_path: Path) -> None:
    path = tmp_path / "tmp"
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    (path / ".probe").touch()
    left = path / ".probe:2,"
    left.touch()
    left.chmod(0)

    def look() -> None:
        assert try_out(str(path))[0] == ""

    without_privileges(look)
    assert everything(path) == []


def test_a_trial_that_another_process_makes_now_is_no_reason(tmp_path: Path) -> None:
    with open(tmp_path / ".probe:2,", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert try_out(str(tmp_path))[0] == ""


def test_many_may_try_at_once(tmp_path: Path) -> None:
    code = "import sys; from postcommit._maildir.maildir import try_out"
    code += "\nfor n in range(300): assert not try_out(sys.argv[1])[0]"
    several = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)
    ]
    assert [one.wait(60) for one in several] == [0] * 4
    assert everything(tmp_path) == []


@needs_strace
@pytest.mark.parametrize(
    ("fault", "also"),
    [("EMFILE:when=1", ""), ("EINVAL", ""), ("ENOSPC", ""), ("ENOSPC", "plain")],
)
def test_a_fault_that_is_not_of_the_name_is_not_taken_for_one(
    tmp_path: Path, fault: str, also: str
) -> None:
    queue = tmp_path / "queue"
    Store(str(queue))
    strace = ["strace", "-f", "-o", str(tmp_path / "trace")]
    strace += ["-P", f"{queue}/tmp/.probe:2,", "-e", f"inject=openat:error={fault}"]
    strace += ["-P", f"{queue}/tmp/.probe"] * bool(also)
    strace += ["-e", "inject=linkat:error=EXDEV"]  # the file is not there already
    assert children.call(_open, str(queue), under=strace) == "opened\n"
    assert everything(queue) == ["cur", "new", "tmp"]


# Where it is


@contextmanager
def mounted(*arguments: str, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(at)], check=False)
    if done.returncode:
        pytest.skip("may not mount")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")
def test_a_read_only_file_system_is_named_and_how_to_change_it(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "none", at=tmp_path / "a disk") as disk:
        store = Store(str(disk / "queue"))
        wait(store)
        leave_in_doubt(store, 2)
        before = everything(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        [finding, *doubts] = check(Store(store.path, to_look=True), 0.0)
        assert finding.problem == "is on a file system that is read-only"
        assert [doubt.problem[:11] for doubt in doubts[:2]] == ["is in doubt"] * 2
        assert not any("run as" in found.advice for found in (finding, *doubts))
        command = finding.advice.partition("'")[2].partition("';")[0]
        assert command == f"mount -o remount,rw '{disk}'"
        subprocess.run(["sh", "-c", command], check=True)
        assert finding not in list(check(store, 0.0))
        assert everything(disk) == before


def test_a_local_disk_is_not_remote(tmp_path: Path) -> None:
    assert remoteness("/proc") == ""
    assert mount_of("/proc/self/") == ("/proc", "proc")


@pytest.mark.parametrize(
    ("type", "name"),
    [
        ("nfs", "NFS"),
        ("nfs4", "NFS"),
        ("cifs", "CIFS"),
        ("smb3", "CIFS"),
        ("9p", "9p"),
        ("fuse.sshfs", "FUSE"),
        ("fuseblk", "FUSE"),
        ("virtiofs", "FUSE"),
    ],
)
def test_remote_file_systems_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type: str, name: str
) -> None:
    # These cannot be mounted here: the kernel's own lines, with other types.
    real = os.path.realpath(tmp_path)
    table = tmp_path / "mountinfo"
    table.write_text(
        f"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"30 27 0:9 / {real} rw shared:1 master:2 - tmpfs none rw\n"
        f"31 30 0:9 / {real}/a\\040disk rw - {type} server:/x rw\n"
        f"32 30 0:9 / {real}/a\\040dis rw - tmpfs none rw\n"
    )
    monkeypatch.setattr(module, "_MOUNTS", str(table))
    (tmp_path / "a disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a disk")
    for path in ("a disk", "a disk/queue", "link/queue"):
        told = remoteness(str(tmp_path / path))
        assert told == f"is on {name} ({type}, mounted at {real}/a disk)"
    for path in ("other", "a disk too"):
        assert remoteness(str(tmp_path / path)) == ""
    with table.open("a") as file:
        file.write(f"33 31 0:9 / {real}/a\\040disk rw - ext4 /dev/vdb rw\n")
    assert remoteness(str(tmp_path / "a disk")) == "", "it is covered by another one"
    table.unlink()
    assert remoteness(str(tmp_path / "a disk")) == ""


@needs_fuse
def test_the_service_names_a_remote_file_system_and_refuses_an_unfit_one() -> None:
    with ScriptedRelay() as relay, lacking() as folder:
        path = str(folder / "queue")
        with Running("run", path, *to(relay), "--create") as service:
            service.wait_for(f"{path}: is on FUSE (fuse, mounted at {folder}); a local")
            service.signal(signal.SIGTERM)
            assert service.ended() == 0
        assert service.log.count("is on FUSE") == 1
    with ScriptedRelay() as relay, lacking("colons") as folder:
        path = folders(folder / "queue")
        with Running("run", path, *to(relay)) as service:
            service.wait_for(PROBLEMS["colons"])
            assert service.ended() == 2
