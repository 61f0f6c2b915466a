"""The wake-up of a processor by a commit."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from postcommit.queue import wakeup
from postcommit.queue.wakeup import Bell
from postcommit.queue.wakeup import heartbeat
from postcommit.queue.wakeup import ring
from tests.support import children
from tests.support.faults import without_privileges


HOUR = 3600.0


def test_a_ring_from_another_process_wakes(tmp_path: Path) -> None:
    bell = Bell(str(tmp_path))
    code = "import sys; from postcommit.queue.wakeup import ring; ring(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]):
        started = time.monotonic()
        bell.wait(HOUR)
    assert time.monotonic() - started < 60
    bell.close()


def test_a_ring_before_the_wait_is_not_lost_and_wakes_once(tmp_path: Path) -> None:
    bell = Bell(str(tmp_path))
    for _ in range(3):
        ring(str(tmp_path))
    bell.wait(HOUR)
    started = time.monotonic()
    bell.wait(0.02)
    assert time.monotonic() - started >= 0.02
    bell.close()


def test_ringing_one_bell_wakes_just_that_one(tmp_path: Path) -> None:
    one, other = Bell(str(tmp_path)), Bell(str(tmp_path))
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
    Bell(str(tmp_path)).close()
    ring(str(tmp_path))
    ring(str(tmp_path / "missing"))


def test_ringing_writes_into_nothing_but_a_pipe(tmp_path: Path) -> None:
    (tmp_path / ".wakeup").write_bytes(b"kept")
    ring(str(tmp_path))
    assert (tmp_path / ".wakeup").read_bytes() == b"kept"


def test_a_bell_can_be_rung_any_number_of_times(tmp_path: Path) -> None:
    bell = Bell(str(tmp_path))
    for _ in range(70_000):  # more than a pipe holds
        bell.ring()
    for _ in range(70_000):
        ring(str(tmp_path))
    bell.wait(HOUR)
    bell.close()


def test_a_closed_bell_is_rung_in_vain_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    bell = Bell(str(tmp_path))
    bell.close()
    bell.ring()
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_a_pipe_there_is_still_polling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".wakeup").mkdir()
    before = set(os.listdir("/proc/self/fd"))
    bell = Bell(str(tmp_path))
    assert "only polling" in caplog.text
    bell.wait(0.001)
    threading.Thread(target=bell.ring).start()
    bell.wait(HOUR)
    bell.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_two_listeners_one_ring(tmp_path: Path) -> None:
    """One of them reads it; the other one may wake, but finds nothing."""
    one, other = Bell(str(tmp_path)), Bell(str(tmp_path))
    waiting = [
        threading.Thread(target=bell.wait, args=(HOUR,), daemon=True)
        for bell in (one, other)
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
    bell = Bell(str(tmp_path))
    assert abs((heartbeat(str(tmp_path)) or 0) - time.time()) < 5
    bell.close()
    assert heartbeat(str(tmp_path)) is None


def test_what_is_no_pipe_tells_of_nobody(tmp_path: Path) -> None:
    (tmp_path / ".wakeup").touch()
    assert heartbeat(str(tmp_path)) is None


def test_a_pipe_that_may_not_be_opened_does_not_tell(tmp_path: Path) -> None:
    Bell(str(tmp_path)).close()
    (tmp_path / ".wakeup").chmod(0)

    def look() -> None:
        with pytest.raises(PermissionError):
            heartbeat(str(tmp_path))

    without_privileges(look)


def test_only_the_processor_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / ".wakeup"
    bell = Bell(str(tmp_path))
    os.utime(pipe, (1000, 1000))
    ring(str(tmp_path))
    bell.beat()  # a second has not passed since the last one
    assert heartbeat(str(tmp_path)) == 1000
    monkeypatch.setattr(wakeup, "_LEAST_SECONDS", 0.0)
    bell.beat()
    assert (heartbeat(str(tmp_path)) or 0) > 1000
    bell.close()


def test_who_sleeps_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(wakeup, "_LEAST_SECONDS", 0.0)
    bell = Bell(str(tmp_path))
    os.utime(tmp_path / ".wakeup", (1000, 1000))
    waiting = threading.Thread(target=bell.wait, args=(HOUR,))
    waiting.start()
    until = time.monotonic() + 60
    while heartbeat(str(tmp_path)) == 1000:
        assert time.monotonic() < until
    bell.ring()
    waiting.join(60)
    bell.close()


def test_signs_of_life_that_fail_and_a_close_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bell = Bell(str(tmp_path))
    [pipe] = bell._outside
    os.close(pipe.descriptor)
    for _ in range(3):
        bell._last_beat = -HOUR
        bell.beat()
    assert caplog.text.count("no sign of life") == 1
    bell.close()
    bell.ring()
    assert caplog.text.count("cannot be closed") == 1


def _fork_with_a_bell(queue: str) -> None:
    bell = Bell(queue)
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if not child:
        os.write(to_parent, b"x")
        os.read(from_parent, 1)
        # The numbers that the copy had are another file's now, and stay it.
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        bell.ring()
        bell.close()
        assert [os.read(other, 1) for other in others] == [b""] * 3
        return
    os.read(from_child, 1)
    assert heartbeat(queue) is not None
    bell.ring()
    bell.wait(HOUR)
    bell.close()
    assert heartbeat(queue) is None, "the child looks like a processor"
    os.write(to_child, b"x")
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_looks_like_no_processor_and_takes_nothing(
    tmp_path: Path,
) -> None:
    children.call(_fork_with_a_bell, str(tmp_path))
