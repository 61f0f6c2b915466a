"""Entries leave their rooms in portions, in their order, at little cost."""
from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from postcommit._maildir import gate as gate_module
from postcommit._maildir.gate import Gate
from postcommit._maildir.store import Store
from tests.support.queues import ENTRY
from tests.support.strace import needs_strace
from tests.support.strace import trace


NOW = 1_800_000_000.0
MARK = ",L=0123456789"


class Room:
    """A queue of files whose names are all that matters, its gate and its clocks."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder / "queue"))
        self.path = folder / "queue"
        self.now = NOW
        self.uptime = 0.0
        for room in (".Later", ".Bulk"):
            self.store.subfolder(room)
        self.gate = self.another()

    def another(self) -> Gate:
        return Gate(self.store, lambda: self.now, lambda: self.uptime)

    def schedule(self, *seconds: float) -> None:
        for after in seconds:
            name = f"{NOW + after:010.0f}.M000000P1Q1R{os.urandom(8).hex()}.x{MARK}"
            (self.path / ".Later/new" / name).touch()

    def wait_behind(self, count: int) -> None:
        for number in range(count):
            (self.path / ".Bulk/new" / f"{NOW + number:010.0f}.x,B=0123456789").touch()

    def let_all_in(self) -> None:
        self.uptime += 1000  # it is rested
        while self.gate.let_in():
            pass

    def new(self) -> list[int]:
        names = sorted(os.listdir(self.path / "new"))
        return [int(name[:10]) - int(NOW) for name in names]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_what_is_due_comes_in_and_the_rest_is_waited_for(room: Room) -> None:
    room.schedule(5, -5, 10, 0)
    room.let_all_in()
    assert room.new() == [-5, 0]
    assert room.gate.seconds_to_wait() == pytest.approx(5)
    room.now += 7
    assert room.gate.seconds_to_wait() == 0
    room.let_all_in()
    assert room.new() == [-5, 0, 5]


def test_an_empty_room_is_not_waited_for(room: Room) -> None:
    room.let_all_in()
    assert room.gate.seconds_to_wait() == float("inf")


def test_a_portion_grows_and_shrinks_with_the_time_that_it_takes(room: Room) -> None:
    room.schedule(*range(-3000, 0))
    room.gate.let_in()
    sizes = []
    for seconds in [0.001] * 12 + [0.01] + [0.1] * 9:
        before = len(room.new())
        room.uptime += seconds
        assert room.gate.let_in()
        sizes.append(len(room.new()) - before)
    assert sizes[:8] == [4, 8, 16, 32, 64, 128, 256, 256]
    assert sizes[12] == 256
    assert sizes[13:] == [128, 64, 32, 16, 8, 4, 2, 2, 2]


def test_scheduled_entries_come_before_bulk_entries(room: Room) -> None:
    room.wait_behind(3)
    room.schedule(-1, -2)
    room.gate.let_in()
    assert room.new() == [-2, -1]
    room.let_all_in()
    assert room.new() == [-2, -1, 0, 1, 2]


def test_only_the_next_names_are_kept_of_many(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "_KEPT", 5)
    monkeypatch.setattr(gate_module, "_CHUNK", 3)
    room.schedule(*range(100))
    room.gate.let_in()
    assert len(room.gate._later._soon) <= 10
    room.now += 200
    room.let_all_in()
    assert room.new() == list(range(100))


def test_names_are_read_in_slices(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between them, the workers look for new mail."""
    monkeypatch.setattr(gate_module, "_CHUNK", 10)
    monkeypatch.setattr(gate_module, "_SLICE", -1.0)
    room.schedule(*range(-5, 95))
    for _ in range(10):
        assert room.gate.let_in()
        assert room.gate.seconds_to_wait() == 0
        assert room.new() == []
    room.let_all_in()
    assert room.new() == [-5, -4, -3, -2, -1, 0]


def test_entries_that_are_known_come_in_during_a_look(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.schedule(10, 20, 30)
    room.let_all_in()
    monkeypatch.setattr(gate_module, "_CHUNK", 1)
    monkeypatch.setattr(gate_module, "_SLICE", -1.0)
    room.schedule(40)
    room.now += 25
    room.uptime += 1000
    assert room.gate.let_in()
    assert room.gate._later.is_looking
    assert room.new() == [10, 20]
    room.let_all_in()
    assert room.new() == [10, 20]


def test_after_a_look_there_is_a_rest(room: Room) -> None:
    def read_on(names: object) -> None:
        look(names)  # type: ignore[arg-type]
        later._rest_until = room.uptime + 9.0

    later = room.gate._later
    look = later._read_on
    later._read_on = read_on  # type: ignore[method-assign]
    room.schedule(50)
    room.gate.let_in()
    room.schedule(5)
    room.now += 6
    assert not room.gate.let_in()
    assert 0 < room.gate.seconds_to_wait() <= 9
    room.uptime += 9
    room.gate.let_in()
    assert room.new() == [5]


def test_a_folder_that_is_gone_between_two_names_is_an_error_of_that_room(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    room.wait_behind(3)
    os.rename(room.path / ".Later", room.path / ".Gone")
    room.let_all_in()
    assert room.new() == [0, 1, 2]
    assert caplog.text.count("what waits there is not sent") == 1


def _be_idle(queue: str) -> None:
    gate = Gate(Store(queue), lambda: NOW)
    os.write(1, b"begin\n")
    for _ in range(5):
        assert not gate.let_in()
    os.write(1, b"end\n")


@needs_strace
@pytest.mark.parametrize("depth", [0, 500])
def test_an_idle_look_is_two_calls_however_many_wait(
    room: Room, tmp_path: Path, depth: int
) -> None:
    room.schedule(*range(1000, 1000 + depth))
    for name in (".Later/new", ".Bulk/new"):
        os.utime(room.path / name, (1e9, 1e9))  # no change is recent
    traced = "%file,%desc"
    queue = room.path
    calls = trace(_be_idle, str(queue), below=queue, scratch=tmp_path, traced=traced)
    calls = calls[calls.index("print begin") : calls.index("print end")]
    looked = [n for n, call in enumerate(calls) if "getdents" in call]
    idle = [c for c in calls[looked[-1] + 1 :] if re.search("Later|Bulk", c)]
    asked = Counter(call.split()[1] for call in idle if "stat" in call)
    assert asked == {".Later/new": 4, ".Bulk/new": 4}
    assert len([c for c in idle if "stat" not in c]) <= 2  # the close


def test_an_entry_that_another_processor_lets_in_is_passed_by(room: Room) -> None:
    room.schedule(*range(-20, 0))
    other = room.another()
    while room.gate.let_in() or other.let_in():
        pass
    assert room.new() == list(range(-20, 0))


def test_names_without_a_time_are_read_in_parts(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "_KEPT", 3)
    for number in range(10):
        (room.path / ".Later/new" / f"odd{number}").write_bytes(ENTRY)
    (room.path / ".Later/new" / ".hidden").touch()
    for _ in range(6):
        room.let_all_in()
    assert len(os.listdir(room.path / "new")) == 10


def test_closing_forgets_what_was_read(room: Room) -> None:
    room.wait_behind(300)
    room.schedule(*range(10))
    room.gate.let_in()
    room.gate.close()
    assert room.gate.seconds_to_wait() == float("inf")
