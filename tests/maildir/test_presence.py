"""What a living processor shows to others, and how they wake it."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from postcommit import QueueProcessor
from postcommit._maildir import presence
from postcommit._maildir.files import OpenFile
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.presence import PauseNote
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.presence import heartbeat
from postcommit._maildir.presence import open_wakeup
from postcommit._maildir.presence import pause_of
from postcommit._maildir.presence import ring
from postcommit._maildir.store import Store
from tests.support import children
from tests.support.faults import full_disk
from tests.support.faults import without_privileges
from tests.support.mailers import ScriptedMailer
from tests.support.queues import wait


HOUR = 3600.0


def test_a_ring_from_another_process_wakes(tmp_path: Path) -> None:
    wakeup = Wakeup(str(tmp_path))
    code = (
        "import sys; from postcommit._maildir.presence import ring; ring(sys.argv[1])"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]):
        started = time.monotonic()
        wakeup.wait(HOUR)
    assert time.monotonic() - started < 60
    wakeup.close()


def test_a_ring_before_the_wait_is_not_lost_and_wakes_once(tmp_path: Path) -> None:
    wakeup = Wakeup(str(tmp_path))
    for _ in range(3):
        ring(str(tmp_path))
    wakeup.wait(HOUR)
    started = time.monotonic()
    wakeup.wait(0.02)
    assert time.monotonic() - started >= 0.02
    wakeup.close()


def test_ringing_one_wakeup_wakes_just_that_one(tmp_path: Path) -> None:
    one, other = Wakeup(str(tmp_path)), Wakeup(str(tmp_path))
    one.ring()
    one.wait(HOUR)
    started = time.monotonic()
    other.wait(0.02)
    assert time.monotonic() - started >= 0.02
    one.close()
    other.close()


def test_ringing_does_nothing_where_nobody_listens(tmp_path: Path) -> None:
    ring(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    Wakeup(str(tmp_path)).close()
    ring(str(tmp_path))
    ring(str(tmp_path / "missing"))


def test_ringing_writes_into_nothing_but_a_pipe(tmp_path: Path) -> None:
    (tmp_path / ".wakeup").write_bytes(b"kept")
    ring(str(tmp_path))
    assert (tmp_path / ".wakeup").read_bytes() == b"kept"


def test_a_wakeup_can_be_rung_any_number_of_times(tmp_path: Path) -> None:
    wakeup = Wakeup(str(tmp_path))
    for _ in range(70_000):  # more than a pipe holds
        wakeup.ring()
    for _ in range(70_000):
        ring(str(tmp_path))
    wakeup.wait(HOUR)
    wakeup.close()


def test_a_closed_wakeup_does_nothing_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    wakeup = Wakeup(str(tmp_path))
    wakeup.close()
    wakeup.ring()
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_a_pipe_there_is_still_polling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".wakeup").mkdir()
    before = set(os.listdir("/proc/self/fd"))
    wakeup = Wakeup(str(tmp_path))
    assert "only polling" in caplog.text
    wakeup.wait(0.001)
    threading.Thread(target=wakeup.ring).start()
    wakeup.wait(HOUR)
    wakeup.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_two_listeners_one_ring(tmp_path: Path) -> None:
    """One of them reads it; the other one may wake, but finds nothing."""
    one, other = Wakeup(str(tmp_path)), Wakeup(str(tmp_path))
    waiting = [
        threading.Thread(target=wakeup.wait, args=(HOUR,), daemon=True)
        for wakeup in (one, other)
    ]
    for thread in waiting:
        thread.start()
    for _ in range(1000):
        ring(str(tmp_path))
        for thread in waiting:
            thread.join(0.001)
        if not any(thread.is_alive() for thread in waiting):
            break
    assert not any(thread.is_alive() for thread in waiting)
    one.close()
    other.close()


# Signs of life


def test_a_living_processor_can_be_told_from_a_dead_one(tmp_path: Path) -> None:
    assert heartbeat(str(tmp_path)) is None
    wakeup = Wakeup(str(tmp_path))
    assert abs((heartbeat(str(tmp_path)) or 0) - time.time()) < 5
    wakeup.close()
    assert heartbeat(str(tmp_path)) is None


def test_what_is_no_pipe_tells_of_nobody(tmp_path: Path) -> None:
    (tmp_path / ".wakeup").touch()
    assert heartbeat(str(tmp_path)) is None


def test_a_pipe_that_may_not_be_opened_does_not_tell(tmp_path: Path) -> None:
    Wakeup(str(tmp_path)).close()
    (tmp_path / ".wakeup").chmod(0)

    def look() -> None:
        with pytest.raises(PermissionError):
            heartbeat(str(tmp_path))

    without_privileges(look)


def test_only_the_processor_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / ".wakeup"
    wakeup = Wakeup(str(tmp_path))
    os.utime(pipe, (1000, 1000))
    ring(str(tmp_path))
    wakeup.give_sign()  # a second has not passed since the last one
    assert heartbeat(str(tmp_path)) == 1000
    monkeypatch.setattr(presence, "_LEAST_SECONDS", 0.0)
    wakeup.give_sign()
    assert (heartbeat(str(tmp_path)) or 0) > 1000
    wakeup.close()


def test_who_sleeps_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_MOST_SECONDS", 0.001)
    monkeypatch.setattr(presence, "_LEAST_SECONDS", 0.0)
    wakeup = Wakeup(str(tmp_path))
    os.utime(tmp_path / ".wakeup", (1000, 1000))
    waiting = threading.Thread(target=wakeup.wait, args=(HOUR,))
    waiting.start()
    until = time.monotonic() + 60
    while heartbeat(str(tmp_path)) == 1000:
        assert time.monotonic() < until
    wakeup.ring()
    waiting.join(60)
    wakeup.close()


@pytest.mark.parametrize("how", ["deleted", "moved away", "pipe deleted"])
def test_a_queue_that_is_replaced_is_waked_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    monkeypatch.setattr(presence, "_LEAST_SECONDS", 0.0)
    queue = tmp_path / "queue"
    queue.mkdir()
    wakeup = Wakeup(str(queue))
    if how == "moved away":
        queue.rename(tmp_path / "away")
    else:
        (queue / ".wakeup").unlink()
    if how == "deleted":
        queue.rmdir()
    if how != "pipe deleted":
        wakeup.wait(0.0)  # nothing is there yet
        wakeup.wait(0.0)
        assert caplog.text.count("commits wake nobody") == 1
        queue.mkdir()
    assert heartbeat(str(queue)) is None
    before = len(os.listdir("/proc/self/fd"))
    wakeup.wait(0.0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert "is opened, it was replaced" in caplog.text
    assert heartbeat(str(queue)) is not None
    since = time.monotonic()
    wakeup.wait(HOUR)  # rung by itself: there may be work
    ringing = threading.Timer(0.05, ring, (str(queue),))
    ringing.start()
    wakeup.wait(HOUR)
    assert time.monotonic() - since < 60
    ringing.join()
    wakeup.close()
    wakeup.give_sign()
    assert heartbeat(str(queue)) is None


@pytest.mark.parametrize("how", ["restored", "another"])
def test_a_processor_goes_on_in_a_queue_that_was_replaced(
    tmp_path: Path, how: str
) -> None:
    queue = tmp_path / "queue"
    mailer = ScriptedMailer()
    backup = Store(str(tmp_path / "backup"))
    wait(backup)
    Store(str(queue))
    processor = QueueProcessor(str(queue), mailer, pollingInterval=300)
    processor.start()
    try:
        if how == "another":
            queue.rename(tmp_path / "away")
        else:
            while queue.exists():  # the note of its pause may come in between
                shutil.rmtree(queue, ignore_errors=True)
        os.rename(backup.path, queue)
        until = time.monotonic() + 60
        while len(mailer.attempts) < 1 or heartbeat(str(queue)) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        assert processor.stop(60)
    assert len(mailer.attempts) == 1


def test_a_wakeup_that_is_closed_while_it_opens_the_pipe_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakeup = Wakeup(str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))

    def opened(path: str) -> OpenFile:
        pipe = open_wakeup(path)
        wakeup.close()
        return pipe

    monkeypatch.setattr(presence, "open_wakeup", opened)
    (tmp_path / ".wakeup").unlink()
    wakeup.last_sign = -HOUR
    wakeup.give_sign()
    assert len(os.listdir("/proc/self/fd")) == before - 3
    assert heartbeat(str(tmp_path)) is None


def test_signs_of_life_that_fail_and_a_close_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wakeup = Wakeup(str(tmp_path))
    [pipe] = wakeup._outside
    os.close(pipe.descriptor)
    for _ in range(3):
        wakeup.last_sign = -HOUR
        wakeup.give_sign()
    assert caplog.text.count("no sign of life") == 1
    wakeup.close()
    wakeup.ring()
    assert caplog.text.count("cannot be closed") == 1


def _fork_with_a_wakeup(queue: str) -> None:
    wakeup = Wakeup(queue)
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if not child:
        os.write(to_parent, b"x")
        os.read(from_parent, 1)
        # The numbers that the copy had are another file's now, and stay it.
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        wakeup.ring()
        wakeup.close()
        assert [os.read(other, 1) for other in others] == [b""] * 3
        return
    os.read(from_child, 1)
    assert heartbeat(queue) is not None
    wakeup.ring()
    wakeup.wait(HOUR)
    wakeup.close()
    assert heartbeat(queue) is None, "the child looks like a processor"
    os.write(to_child, b"x")
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_looks_like_no_processor_and_takes_nothing(
    tmp_path: Path,
) -> None:
    children.call(_fork_with_a_wakeup, str(tmp_path))


# The pause


@pytest.fixture
def queue(tmp_path: Path) -> str:
    return Maildir(str(tmp_path / "queue"), create=True).path


@pytest.fixture
def note(queue: str) -> Iterator[PauseNote]:
    note = PauseNote(queue)
    yield note
    note.clear()


def names(queue: str) -> list[str]:
    """Return every file of the queue; the folders are those of a Maildir."""
    found = [path for path in Path(queue).rglob("*") if not path.is_dir()]
    return sorted(str(path.relative_to(queue)) for path in found)


def reason(queue: str) -> str | None:
    pause = pause_of(queue)
    return pause.reason if pause else None


def test_what_is_posted_is_shown_until_it_is_cleared(
    queue: str, note: PauseNote
) -> None:
    assert pause_of(queue) is None
    before = time.time()
    note.post("535 5.7.8 no\r\n such \x0b password", 64.0)
    pause = pause_of(queue)
    assert pause is not None
    assert before <= pause.since <= time.time()
    assert pause.next_attempt == pytest.approx(pause.since + 64, abs=0.001)
    assert pause.reason == "535 5.7.8 no such password"
    assert pause.process == os.getpid()
    assert names(queue) == [".paused"]
    assert os.stat(f"{queue}/.paused").st_mode & 0o777 == 0o600
    note.clear()
    assert pause_of(queue) is None
    assert names(queue) == []


def test_it_is_written_once_unless_the_reason_changes(
    queue: str, note: PauseNote
) -> None:
    note.post("away", 1)
    first, file = pause_of(queue), os.stat(f"{queue}/.paused").st_ino
    note.post("away", 2000)
    longer = pause_of(queue)
    assert os.stat(f"{queue}/.paused").st_ino == file
    note.post("login refused", 4000)
    other = pause_of(queue)
    assert first is not None
    assert longer is not None
    assert other is not None
    assert first.since == longer.since == other.since
    assert first.next_attempt + 1000 < longer.next_attempt
    assert longer.next_attempt + 1000 < other.next_attempt
    assert (longer.reason, other.reason) == ("away", "login refused")
    assert names(queue) == [".paused"]


def test_a_new_pause_begins_again(
    queue: str, note: PauseNote, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now in (1000.0, 5000.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        note.post("away", 1)
        pause = pause_of(queue)
        assert pause is not None
        assert (pause.since, pause.next_attempt) == (now, now + 1)
        note.clear()


def test_a_long_reason_is_cut(queue: str, note: PauseNote) -> None:
    note.post("\N{SNOWMAN}" * 100_000, 1)
    assert reason(queue) == "\N{SNOWMAN}" * 1000


def test_the_last_of_two_processors_is_heard_and_leaves_the_other_alone(
    queue: str, note: PauseNote
) -> None:
    other = PauseNote(queue)
    note.post("of one", 1)
    other.post("of the other", 1)
    assert reason(queue) == "of the other"
    note.clear()
    assert reason(queue) == "of the other"
    note.post("of one", 1)
    assert reason(queue) == "of one"
    other.post("of the other", 2)
    assert reason(queue) == "of the other"
    other.clear()
    assert pause_of(queue) is None
    note.post("of one", 2)  # whose name is gone
    assert reason(queue) == "of one"


def test_one_that_somebody_has_removed_comes_back(queue: str, note: PauseNote) -> None:
    note.post("away", 1)
    os.unlink(f"{queue}/.paused")
    assert pause_of(queue) is None
    note.post("away", 2)
    assert reason(queue) == "away"


def test_one_whose_processor_was_killed_says_nothing_and_is_cleaned_away(
    queue: str,
) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        note = PauseNote(queue)  # which has the lock
        note.post("away", 300)
        os.write(tell, b"!")
        signal.pause()
        os._exit(1)
    try:
        os.read(ready, 1)
        assert reason(queue) == "away"
        PauseNote(queue).clean()
        assert reason(queue) == "away"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)
    assert pause_of(queue) is None
    assert names(queue) == [".paused"]
    PauseNote(queue).clean()
    assert names(queue) == []
    PauseNote(queue).clean()


def test_a_child_of_the_processor_does_not_speak_for_it(queue: str) -> None:
    note = PauseNote(queue)
    note.post("away", 300)
    ready, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(ready, 1)  # until the parent closes
        note.post("of the child", 1)
        os._exit(0)
    os.close(ready)
    note.clear()
    assert pause_of(queue) is None
    os.close(end)
    os.waitpid(child, 0)
    assert pause_of(queue) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\xff",
        b"[]",
        b"7",
        b'{"since": 1, "reason": "away"}',
        b'{"since": "x", "reason": "", "process": 1}',
    ],
)
def test_what_is_no_boardis_none(queue: str, note: PauseNote, data: bytes) -> None:
    note.post("away", 1)
    with open(f"{queue}/.paused", "r+b") as file:
        file.truncate()
        file.write(data)
    assert pause_of(queue) is None


def test_a_folder_of_that_name_is_no_reason_to_fail(
    queue: str, note: PauseNote, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkdir(f"{queue}/.paused")
    note.clean()
    note.post("away", 1)
    assert pause_of(queue) is None
    note.clear()
    assert names(queue) == []
    assert caplog.records == []


def test_a_full_disk_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with full_disk(tmp_path) as disk:
        if not os.path.ismount(disk):
            pytest.skip("no file system may be mounted here")
        queue = Maildir(str(disk / "queue"), create=True).path
        with pytest.raises(OSError, match="No space"):
            Path(queue, "filler").write_bytes(bytes(1 << 20))
        note = PauseNote(queue)
        note.post("away", 1)
        found = pause_of(queue)
        note.clear()
        assert names(queue) == ["filler"]
    assert found is None
    assert caplog.records == []


def test_without_permission_nothing_is_told_rather_than_what_is_not_true(
    queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    def post() -> None:
        note = PauseNote(queue)
        note.post("away", 1)
        os.chmod(queue, 0o500)
        note.post("away", 2)
        assert reason(queue) == "away"  # the time can still be changed
        note.post("login refused", 4)
        assert pause_of(queue) is None
        note.clear()
        os.chmod(queue, 0)
        assert pause_of(queue) is None
        note.clean()
        note.post("away", 1)
        os.chmod(queue, 0o700)
        assert pause_of(queue) is None

    without_privileges(post)
    assert names(queue) == [".paused"]
    assert caplog.records == []


def test_no_descriptor_is_left(queue: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    note = PauseNote(queue)
    for why in ("away", "login refused", "away"):
        note.post(why, 1)
        assert pause_of(queue) is not None
    os.mkdir(f"{queue}/other")
    note.clear()
    note.clean()
    assert set(os.listdir("/proc/self/fd")) == before


def test_other_libraries_see_no_message_in_it(queue: str, note: PauseNote) -> None:
    older = pytest.importorskip("zope.sendmail.maildir")
    note.post("away", 1)
    assert list(older.Maildir(queue)) == []
    assert list(Maildir(queue)) == []
