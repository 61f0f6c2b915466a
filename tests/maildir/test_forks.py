"""Forks at any moment, while other threads send mail and drain the queue.

A child must not keep a file of the queue open: with an entry it would keep its lock,
with the wake-up pipe it would look like a processor.
"""
from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import _forks as forks
from postcommit._maildir import files
from postcommit._maildir.files import FileLock
from postcommit._maildir.files import OpenFile
from postcommit._maildir.files import open_pipe
from tests.support import children
from tests.support.mailers import ScriptedMailer
from tests.support.transactions import explicit
from tests.support.transactions import mail


# Without the guard, one child of a hundred or two has a file of the queue open.
FORKS = 600


def open_below(folder: str) -> list[str]:
    """Return the files, not folders, below `folder` that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
            is_folder = stat.S_ISDIR(os.fstat(int(number)).st_mode)
        except OSError:
            continue  # that of the listing itself
        if target.startswith(folder) and not is_folder:
            found.append(target)
    return found


def _send(queue: str, stop: threading.Event) -> None:
    manager = explicit()
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    count = 0
    while not stop.is_set():
        manager.begin()
        for _ in range(count % 2 + 1):
            count += 1
            message = mail(f"{threading.get_ident()}.{count}@x.org")
            delivery.send("a@example.org", "b@example.org", message)
        manager.commit()


def _fork_while_mail_is_sent(queue: str, forks: int) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    stop = threading.Event()
    senders = [threading.Thread(target=_send, args=(queue, stop)) for _ in range(2)]
    processor = QueueProcessor(queue, ScriptedMailer(), workers=2)
    processor.start()
    for sender in senders:
        sender.start()
    kept = []
    for _ in range(forks):
        child = os.fork()
        if not child:
            os._exit(min(len(open_below(queue)), 100))
        kept.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for sender in senders:
        sender.join()
    assert processor.stop(30)
    assert os.listdir(f"{queue}/new") == [] or processor.flush().sent
    print(sum(map(bool, kept)))


def test_no_child_has_a_file_of_the_queue_open(tmp_path: Path) -> None:
    told = children.call(_fork_while_mail_is_sent, str(tmp_path / "queue"), FORKS)
    assert told == "0\n", f"{told.strip()} of {FORKS} children had a file open"


def _fork_in_a_signal_handler(folder: str) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    path = f"{folder}/file"
    forks = 0

    def fork(*_: object) -> None:
        nonlocal forks
        forks += 1
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        OpenFile(path, os.O_RDONLY).close()
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

    Path(path).touch()
    signal.signal(signal.SIGALRM, fork)
    fork()
    while forks < 100:
        lock = FileLock(path)
        assert lock.acquire()
        lock.release()
        for end in open_pipe():
            end.close()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("done")


def test_a_signal_handler_may_fork_while_its_thread_opens_a_file(
    tmp_path: Path,
) -> None:
    assert children.call(_fork_in_a_signal_handler, str(tmp_path)) == "done\n"


class _Signals(OpenFile):
    """Has a signal arrive as soon as it is closed."""

    def close(self) -> None:
        super().close()
        os.kill(os.getpid(), signal.SIGUSR1)


def _open_in_a_child_that_closes_its_copies(path: str) -> None:
    Path(path).touch()
    opened: list[FileLock] = []

    def on_signal(*_: object) -> None:
        if not opened:
            opened.append(FileLock(path))

    signal.signal(signal.SIGUSR1, on_signal)
    file = _Signals(path, os.O_RDONLY)
    child = os.fork()
    if not child:
        assert open_below(path) == [path]  # it was opened by the handler
        grandchild = os.fork()
        if not grandchild:
            os._exit(len(open_below(path)))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    print(os.waitpid(child, 0)[1], file.descriptor > 0)


def test_a_file_that_a_new_child_opens_is_closed_in_its_own_child(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "file")
    told = children.call(_open_in_a_child_that_closes_its_copies, path)
    assert told == "0 True\n"


def _fork_while_an_open_hangs(folder: str) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    # To open a named pipe waits for its other end, as a dead file server would.
    os.mkfifo(f"{folder}/pipe")
    opening = threading.Thread(
        target=OpenFile, args=(f"{folder}/pipe", os.O_RDONLY), daemon=True
    )
    opening.start()
    began = time.monotonic()
    child = os.fork()
    if not child:
        OpenFile(f"{folder}/file", os.O_RDWR | os.O_CREAT).close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(time.monotonic() - began < 10)
    OpenFile(f"{folder}/pipe", os.O_WRONLY).close()
    opening.join()


def _fork_while_a_lock_is_held(folder: str) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    held = threading.Event()

    def hold() -> None:
        with logging._lock:  # type: ignore[attr-defined]
            held.set()
            while not files._guard.thread:
                time.sleep(0.001)
            OpenFile(f"{folder}/file", os.O_RDWR | os.O_CREAT).close()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    print("done")


def test_a_fork_may_wait_for_a_lock_of_who_opens_a_file(tmp_path: Path) -> None:
    # A hook that was registered earlier is called after ours, as that of `logging`.
    assert children.call(_fork_while_a_lock_is_held, str(tmp_path)) == "done\n"


def test_an_open_that_hangs_does_not_block_a_fork_for_ever(tmp_path: Path) -> None:
    assert children.call(_fork_while_an_open_hangs, str(tmp_path)) == "True\n"


def _fork_in_two_threads(folder: str) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)

    def forks() -> None:
        for _ in range(50):
            child = os.fork()
            if not child:
                os._exit(min(len(open_below(folder)), 100))
            assert os.waitpid(child, 0)[1] == 0

    Path(folder, "file").touch()
    threads = [threading.Thread(target=forks) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        FileLock(f"{folder}/file").release()
        for end in open_pipe():
            end.close()
    print("done")


def test_two_threads_may_fork_while_a_third_opens_files(tmp_path: Path) -> None:
    assert children.call(_fork_in_two_threads, str(tmp_path)) == "done\n"


class Thing:
    """Something that must not go on in a forked child."""

    def __init__(self, name: str, said: int) -> None:
        self.name = name
        self.said = said

    def fail(self) -> None:
        os.write(self.said, f"{self.name} fails\n".encode())
        raise RuntimeError("no way")

    def forget(self) -> None:
        os.write(self.said, f"{self.name} is forgotten\n".encode())


def test_a_child_forgets_in_the_order_of_the_registrations() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    reader, writer = os.pipe()
    names = ("first", "second", "dropped", "third")
    first, second, dropped, third = (Thing(name, writer) for name in names)
    for thing in (first, second, dropped, third):
        forks.register(thing, Thing.forget)
    forks.register(second, Thing.fail)
    del dropped, thing
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.close(writer)
    with open(reader) as lines:
        told = lines.read().splitlines()
    assert told == ["first is forgotten", "second fails", "third is forgotten"]


def test_what_a_child_cannot_forget_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # In this process, so that it is seen; without the things of other tests.
    registered: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
    monkeypatch.setattr(forks, "_registered", registered)
    monkeypatch.setattr(forks, "register", registered.__setitem__)
    with open(os.devnull, "wb") as said:
        things = [Thing(name, said.fileno()) for name in ("first", "second")]
        for thing in things:
            forks.register(thing, Thing.fail)
        forks._after_in_child()
    assert caplog.text.count("cannot be forgotten in a forked child") == 2
    assert caplog.text.count("RuntimeError: no way") == 2


def test_a_file_that_is_dropped_is_closed_whoever_was_faster(tmp_path: Path) -> None:
    for is_closed in (False, True):
        file = OpenFile(str(tmp_path / "file"), os.O_RDWR | os.O_CREAT)
        descriptor = file.descriptor
        if is_closed:
            os.close(descriptor)
        del file
        assert not os.path.exists(f"/proc/self/fd/{descriptor}")


def test_the_end_of_the_interpreter_says_nothing(tmp_path: Path) -> None:
    code = (
        "import builtins, os, sys\n"
        "from postcommit._maildir.files import FileLock\n"
        "builtins.kept = FileLock(sys.argv[1])\n"
        "builtins.kept.itself = builtins.kept\n"
    )
    (tmp_path / "file").touch()
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
