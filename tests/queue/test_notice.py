"""Why a queue pauses, told to those outside of its processor."""
from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from postcommit.maildir import Maildir
from postcommit.queue import notice as module
from postcommit.queue.notice import Board
from postcommit.queue.notice import posted
from postcommit.queue.pause import Pause
from tests.support.faults import full_disk
from tests.support.faults import without_privileges


@pytest.fixture
def queue(tmp_path: Path) -> str:
    return Maildir(str(tmp_path / "queue"), create=True).path


@pytest.fixture
def board(queue: str) -> Iterator[Board]:
    board = Board(queue)
    yield board
    board.clear()


def names(queue: str) -> list[str]:
    """Return every file of the queue; the folders are those of a Maildir."""
    found = [path for path in Path(queue).rglob("*") if not path.is_dir()]
    return sorted(str(path.relative_to(queue)) for path in found)


def reason(queue: str) -> str | None:
    notice = posted(queue)
    return notice.reason if notice else None


def test_what_is_posted_is_told_until_it_is_cleared(queue: str, board: Board) -> None:
    assert posted(queue) is None
    before = time.time()
    board.post("535 5.7.8 no\r\n such \x0b password", 64.0)
    notice = posted(queue)
    assert notice is not None
    assert before <= notice.since <= time.time()
    assert notice.next_attempt == pytest.approx(notice.since + 64, abs=0.001)
    assert notice.reason == "535 5.7.8 no such password"
    assert notice.process == os.getpid()
    assert names(queue) == [".paused"]
    assert os.stat(f"{queue}/.paused").st_mode & 0o777 == 0o600
    board.clear()
    assert posted(queue) is None
    assert names(queue) == []


def test_it_is_written_once_unless_the_reason_changes(
    queue: str, board: Board
) -> None:
    board.post("away", 1)
    first, file = posted(queue), os.stat(f"{queue}/.paused").st_ino
    board.post("away", 2000)
    longer = posted(queue)
    assert os.stat(f"{queue}/.paused").st_ino == file
    board.post("login refused", 4000)
    other = posted(queue)
    assert first is not None
    assert longer is not None
    assert other is not None
    assert first.since == longer.since == other.since
    assert first.next_attempt + 1000 < longer.next_attempt
    assert longer.next_attempt + 1000 < other.next_attempt
    assert (longer.reason, other.reason) == ("away", "login refused")
    assert names(queue) == [".paused"]


def test_a_new_pause_begins_anew(
    queue: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now in (1000.0, 5000.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        board.post("away", 1)
        notice = posted(queue)
        assert notice is not None
        assert (notice.since, notice.next_attempt) == (now, now + 1)
        board.clear()


def test_a_long_reason_is_cut(queue: str, board: Board) -> None:
    board.post("\N{SNOWMAN}" * 100_000, 1)
    assert reason(queue) == "\N{SNOWMAN}" * 1000


def test_the_last_of_two_processors_is_heard_and_leaves_the_other_alone(
    queue: str, board: Board
) -> None:
    other = Board(queue)
    board.post("of one", 1)
    other.post("of the other", 1)
    assert reason(queue) == "of the other"
    board.clear()
    assert reason(queue) == "of the other"
    board.post("of one", 1)
    assert reason(queue) == "of one"
    other.post("of the other", 2)
    assert reason(queue) == "of the other"
    other.clear()
    assert posted(queue) is None
    board.post("of one", 2)  # whose name is gone
    assert reason(queue) == "of one"


def test_one_that_somebody_has_removed_comes_back(queue: str, board: Board) -> None:
    board.post("away", 1)
    os.unlink(f"{queue}/.paused")
    assert posted(queue) is None
    board.post("away", 2)
    assert reason(queue) == "away"


def test_one_whose_processor_was_killed_says_nothing_and_is_cleaned_away(
    queue: str,
) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        board = Board(queue)  # which has the lock
        board.post("away", 300)
        os.write(tell, b"!")
        signal.pause()
        os._exit(1)
    try:
        os.read(ready, 1)
        assert reason(queue) == "away"
        Board(queue).clean()
        assert reason(queue) == "away"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)
    assert posted(queue) is None
    assert names(queue) == [".paused"]
    Board(queue).clean()
    assert names(queue) == []
    Board(queue).clean()


def test_a_child_of_the_processor_does_not_speak_for_it(queue: str) -> None:
    board = Board(queue)
    board.post("away", 300)
    ready, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(ready, 1)  # until the parent closes
        board.post("of the child", 1)
        os._exit(0)
    os.close(ready)
    board.clear()
    assert posted(queue) is None
    os.close(end)
    os.waitpid(child, 0)
    assert posted(queue) is None


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
def test_what_is_no_notice_is_none(queue: str, board: Board, data: bytes) -> None:
    board.post("away", 1)
    with open(f"{queue}/.paused", "r+b") as file:
        file.truncate()
        file.write(data)
    assert posted(queue) is None


def test_a_folder_of_that_name_is_no_reason_to_fail(
    queue: str, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkdir(f"{queue}/.paused")
    board.clean()
    board.post("away", 1)
    assert posted(queue) is None
    board.clear()
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
        board = Board(queue)
        board.post("away", 1)
        found = posted(queue)
        board.clear()
        assert names(queue) == ["filler"]
    assert found is None
    assert caplog.records == []


def test_without_permission_nothing_is_told_rather_than_what_is_not_true(
    queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    def post() -> None:
        board = Board(queue)
        board.post("away", 1)
        os.chmod(queue, 0o500)
        board.post("away", 2)
        assert reason(queue) == "away"  # the time can still be changed
        board.post("login refused", 4)
        assert posted(queue) is None
        board.clear()
        os.chmod(queue, 0)
        assert posted(queue) is None
        board.clean()
        board.post("away", 1)
        os.chmod(queue, 0o700)
        assert posted(queue) is None

    without_privileges(post)
    assert names(queue) == [".paused"]
    assert caplog.records == []


def test_no_descriptor_is_left(queue: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    board = Board(queue)
    for why in ("away", "login refused", "away"):
        board.post(why, 1)
        assert posted(queue) is not None
    os.mkdir(f"{queue}/other")
    board.clear()
    board.clean()
    assert set(os.listdir("/proc/self/fd")) == before


def test_other_libraries_see_no_message_in_it(queue: str, board: Board) -> None:
    older = pytest.importorskip("zope.sendmail.maildir")
    board.post("away", 1)
    assert list(older.Maildir(queue)) == []
    assert list(Maildir(queue)) == []


# The pause


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_pause_is_posted_as_long_as_it_lasts(queue: str) -> None:
    clock = Clock()
    pause = Pause(queue, clock)
    pause.failed("nobody is to know")
    assert posted(queue) is None
    pause.succeeded()
    with pause.posted():
        pause.failed("away")
        assert reason(queue) == "away"
        pause.failed("what was in flight")
        assert reason(queue) == "away"
        clock.now += 1
        pause.failed("login refused")
        assert reason(queue) == "login refused"
        pause.succeeded()
        assert names(queue) == []
        pause.failed("away")
    assert names(queue) == []
    clock.now += 1
    pause.failed("nobody is to know")
    assert names(queue) == []


def test_a_pause_that_is_none_touches_no_file(
    queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = Pause(queue)
    with pause.posted(), monkeypatch.context() as patch:
        touched: list[Board] = []
        patch.setattr(Board, "clear", lambda self: touched.append(self))
        for _ in range(3):
            pause.succeeded()
        assert touched == []
        pause.failed("away")
        pause.succeeded()
        assert len(touched) == 1


def test_a_dead_one_is_gone_when_a_processor_begins(queue: str) -> None:
    notice = {"since": 1, "reason": "away", "process": 1}
    Path(queue, module.PAUSED).write_text(json.dumps(notice))
    with Pause(queue).posted():
        assert names(queue) == []
