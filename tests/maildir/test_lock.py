"""Locks, between descriptors, processes and their children."""
from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from postcommit._maildir.files import FileLock
from tests.support import children


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    return str(path)


def is_free(path: str) -> bool:
    lock = FileLock(path)
    try:
        return lock.acquire()
    finally:
        lock.release()


def test_only_one_has_the_lock(path: str) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    assert not is_free(path)
    lock.release()
    assert is_free(path)


def test_those_who_only_look_do_not_take_each_other_for_the_holder(path: str) -> None:
    lookers = [FileLock(path), FileLock(path)]
    assert [looker.acquire(shared=True) for looker in lookers] == [True, True]
    assert not is_free(path)
    for looker in lookers:
        looker.release()
    holder, looker = FileLock(path), FileLock(path)
    assert holder.acquire()
    assert not looker.acquire(shared=True)
    holder.release()
    assert looker.acquire(shared=True)
    looker.release()


def test_release_may_come_again_and_closes_nothing_else(path: str) -> None:
    lock = FileLock(path)
    descriptor = lock.descriptor
    lock.release()
    other = os.open(path, os.O_RDONLY)
    assert other == descriptor, "the number should be used again"
    lock.release()
    os.fstat(other)
    os.close(other)


def test_what_is_not_locked_can_be_released(path: str) -> None:
    FileLock(path).release()
    assert is_free(path)


def test_a_copy_of_the_descriptor_does_not_keep_the_lock(path: str) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    copy = os.dup(lock.descriptor)  # as a child has that was just forked
    lock.release()
    assert is_free(path)
    os.close(copy)


def test_a_quick_release_leaves_the_lock_to_copies(path: str) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    copy = os.dup(lock.descriptor)
    lock.release(removed=True)
    assert not is_free(path)
    os.close(copy)
    assert is_free(path)


@pytest.mark.parametrize("kind", ["missing", "link", "folder"])
def test_what_is_no_file_of_that_name_cannot_be_locked(
    tmp_path: Path, path: str, kind: str
) -> None:
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=kind) as caught:
        FileLock(str(tmp_path / kind))
    numbers = {"missing": errno.ENOENT, "link": errno.ELOOP, "folder": errno.EISDIR}
    assert caught.value.errno == numbers[kind]


def test_a_pipe_does_not_make_us_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    FileLock(str(tmp_path / "pipe")).release()


def test_the_lock_dies_with_its_holder(path: str) -> None:
    program = (
        "import sys; from postcommit._maildir.files import FileLock;"
        "lock = FileLock(sys.argv[1]); print(lock.acquire(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not is_free(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert is_free(path)


def _fork_with_a_lock(path: str) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    number = lock.descriptor
    inherited = [lock, FileLock(path)]
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if not child:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        assert not is_free(path)
        own = os.open(path, os.O_RDONLY)
        assert own == number, "the number should be used again"
        for copy in inherited:
            copy.release()
        os.fstat(own)
        assert not is_free(path), "the child has released its parent's lock"
        os.write(to_parent, b"x")
        os.read(from_parent, 1)
        return
    os.read(from_child, 1)
    for mine in inherited:
        mine.release()
    assert is_free(path), "the living child keeps the lock"
    os.write(to_child, b"x")
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_neither_keeps_nor_breaks_a_lock(path: str) -> None:
    children.call(_fork_with_a_lock, path)


@pytest.mark.parametrize("removed", [True, False])
def test_a_lock_that_cannot_be_given_up_is_told_and_no_error(
    path: str, caplog: pytest.LogCaptureFixture, removed: bool
) -> None:
    lock = FileLock(path)
    assert lock.acquire()
    os.close(lock.descriptor)
    lock.release(removed=removed)
    lock.release(removed=removed)
    [record] = caplog.records
    assert "Bad file descriptor" in record.getMessage()
    assert is_free(path)
