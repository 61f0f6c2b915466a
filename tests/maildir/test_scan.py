"""What is due in a queue, and when it is worth a look."""
from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

import pytest

from postcommit._drain.schedule import Schedule
from postcommit._maildir.consumer import Scan
from postcommit._maildir.maildir import Maildir


NOW = 1_700_000_000.0

SCHEDULE = Schedule(min_backoff=60, max_backoff=6000, max_age=432000)


class Queue:
    """A queue of files whose names are all that matters, its scan and its clocks."""

    def __init__(self, folder: Path) -> None:
        self.maildir = Maildir(str(folder / "queue"), create=True)
        self.path = folder / "queue"
        self.now = NOW
        self.uptime = 0.0
        self.scan = Scan(
            self.maildir, SCHEDULE, lambda: self.now, lambda: self.uptime
        )

    def new(self, name: str) -> Path:
        path = self.path / "new" / name
        path.touch()
        return path

    def deferred(self, name: str, due: float) -> Path:
        path = self.path / "cur" / name
        path.touch()
        os.utime(path, (due, due))
        return path

    def settle(self) -> None:
        """Make as if the folders changed long ago."""
        for folder in ("new", "cur"):
            os.utime(self.path / folder, (NOW - 1e6, NOW - 1e6))

    def rest(self) -> None:
        """Let the while go by that follows a look at deferred entries."""
        self.uptime += 1

    def paths(self) -> Iterator[str]:
        while (path := self.scan.next()) is not None:
            yield path

    def due(self) -> list[str]:
        return [os.path.basename(path) for path in self.paths()]


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path)


def test_new_entries_come_before_deferred_ones_each_in_order(queue: Queue) -> None:
    for name in ("3", "1", "2"):
        queue.new(name)
    for name in ("6", "4", "5"):
        queue.deferred(name, NOW)
    assert queue.due() == ["1", "2", "3", "4", "5", "6"]


def test_a_look_may_end_early_and_goes_on_in_the_next_call(queue: Queue) -> None:
    queue.deferred("1", NOW + 1)
    due = queue.deferred("2", NOW)
    queue.uptime = 1.0
    assert queue.scan.next(until=0.5) is None
    assert queue.scan.next(until=1.5) == str(due)


def test_what_is_deferred_is_due_at_its_time(queue: Queue) -> None:
    queue.deferred("soon", NOW + 60)
    queue.deferred("later", NOW + 4000)
    queue.settle()
    assert queue.due() == []
    assert queue.scan.seconds_to_wait() == pytest.approx(60)
    queue.now += 60
    queue.rest()
    assert queue.scan.seconds_to_wait() <= 0
    assert queue.due() == ["soon"]


def test_files_that_begin_with_a_dot_are_no_entries(queue: Queue) -> None:
    queue.new(".sending-1")
    queue.new(".rejected-2")
    assert queue.due() == []


def test_an_unchanged_queue_costs_two_calls_and_yields_nothing(queue: Queue) -> None:
    queue.new("1")
    queue.deferred("2", NOW)
    queue.settle()
    assert queue.due() == ["1", "2"]
    queue.rest()
    # Were they looked at, they would be due.
    assert queue.due() == []
    assert queue.scan.seconds_to_wait() == math.inf


def test_a_change_is_seen(queue: Queue) -> None:
    queue.settle()
    assert queue.due() == []
    queue.new("1")
    assert queue.due() == ["1"]
    queue.deferred("2", NOW)
    assert queue.due() == ["1", "2"]


def test_a_change_right_after_a_look_is_seen_however_coarse_the_times_are(
    queue: Queue,
) -> None:
    changed = time.time()
    for name in ("1", "2", "3"):
        queue.new(name)
        os.utime(queue.path / "new", (changed, changed))
        assert name in queue.due()


@pytest.mark.parametrize("folder", ["new", "cur"])
def test_what_comes_while_a_folder_is_read_is_seen_next_time(
    queue: Queue, folder: str
) -> None:
    add = {
        "new": lambda name: queue.new(name),
        "cur": lambda name: queue.deferred(name, NOW),
    }[folder]
    add("1")
    queue.settle()
    reading = queue.paths()
    assert os.path.basename(str(next(reading))) == "1"
    add("2")
    # Later than the look at it, but long ago by now.
    os.utime(queue.path / folder, (NOW - 1e5, NOW - 1e5))
    assert list(reading) in ([], [str(queue.path / folder / "2")])
    queue.rest()
    assert "2" in queue.due()


def test_what_stayed_is_looked_at_again(queue: Queue) -> None:
    queue.new("1")
    queue.deferred("2", NOW)
    queue.settle()
    assert queue.due() == ["1", "2"]
    queue.scan.look_again()
    queue.rest()
    assert queue.due() == ["1", "2"]


def test_a_note_of_what_is_due_is_kept(queue: Queue) -> None:
    queue.settle()
    assert queue.due() == []
    queue.scan.note_due(NOW + 30)
    queue.scan.note_due(NOW + 90)
    assert queue.scan.seconds_to_wait() == pytest.approx(30)
    queue.deferred("1", NOW + 30)
    queue.settle()
    queue.now += 30
    assert queue.due() == ["1"]


def test_a_look_that_is_put_off_is_not_forgotten(queue: Queue) -> None:
    queue.deferred("1", NOW + 4000)
    queue.settle()
    assert queue.due() == []
    assert queue.scan.seconds_to_wait() == pytest.approx(4000)
    queue.deferred("2", NOW)  # by somebody who rings, and not twice
    assert queue.due() == []
    assert 0 < queue.scan.seconds_to_wait() < 0.001
    queue.rest()
    assert queue.due() == ["2"]


def test_no_note_is_lost_when_two_come_at_once(queue: Queue) -> None:
    earlier = threading.Thread(target=queue.scan.note_due, args=(NOW + 30,))

    class Interrupted(float):
        """While it is compared, another thread gives its note."""

        def __lt__(self, other: float) -> bool:
            is_less = super().__lt__(other)
            earlier.start()
            earlier.join(0.2)
            return is_less

    queue.settle()
    queue.scan.note_due(Interrupted(NOW + 90))
    earlier.join()
    assert queue.scan.seconds_to_wait() == pytest.approx(30)


def test_an_entry_that_another_one_removes_meanwhile_is_skipped(queue: Queue) -> None:
    paths = [queue.deferred(f"{n}", NOW) for n in range(5)]
    found = []
    for path in queue.paths():
        found.append(os.path.basename(path))
        if len(found) == 1:
            paths[1].unlink()
            paths[2].unlink()
    assert found == ["0", "3", "4"]


def test_new_entries_get_in_while_many_deferred_ones_are_tried(queue: Queue) -> None:
    for n in range(20):
        queue.deferred(f"deferred {n:02d}", NOW)
    found = []
    for path in queue.paths():
        found.append(os.path.basename(path))
        if len(found) == 5:
            queue.new("new")
        queue.uptime += 0.05  # each takes its time at the relay
    assert "new" in found
    assert found.index("new") < 15
    assert len(found) >= 21


def test_a_disk_that_is_slow_does_not_keep_a_look_from_its_end(queue: Queue) -> None:
    seconds = itertools.count(0.0)  # each call takes a second
    queue.scan = Scan(queue.maildir, SCHEDULE, lambda: NOW, seconds.__next__)
    for name in ("1", "2"):
        queue.deferred(name, NOW)
    assert queue.due() == ["1", "2"]


def test_a_large_folder_of_what_is_not_due_is_not_looked_through_all_the_time(
    queue: Queue,
) -> None:
    for n in range(3000):
        queue.deferred(f"{n}", NOW + 4000)
    queue.settle()
    assert queue.due() == []
    queue.deferred("due", NOW)
    queue.scan.note_due(NOW)
    # A look at 3,000 files is followed by a rest; it is due then.
    assert queue.due() == []
    assert queue.scan.seconds_to_wait() == pytest.approx(0.06)
    queue.uptime += 0.059
    assert queue.due() == []
    queue.uptime += 0.002
    assert queue.due() == ["due"]


def test_where_the_clock_was_put_back_nothing_waits_for_its_return(
    queue: Queue,
) -> None:
    for name in ("1", "2"):
        queue.deferred(name, NOW + 3600)
    queue.settle()
    assert queue.due() == []
    queue.rest()
    queue.now -= 1e8
    assert queue.scan.seconds_to_wait() == 0
    assert queue.due() == ["1", "2"]


# Several processes


def numbers(paths: Sequence[str | None]) -> list[int]:
    return [int(os.path.basename(path)) for path in paths if path]


def test_where_another_process_works_this_one_goes_on_elsewhere(queue: Queue) -> None:
    for n in range(100):
        queue.new(f"{n:03d}")
    first = queue.scan.next()
    assert first is not None
    queue.scan.passed_over(first)  # another one has claimed it
    halves = [queue.scan.next() for _ in range(49)]
    assert numbers(halves) == [*range(50, 99)]
    for n in range(1, 40):
        (queue.path / "new" / f"{n:03d}").unlink()  # the other one has sent them
    assert numbers(list(queue.paths())) == [99, *range(40, 50)]


def test_each_entry_comes_whatever_the_others_have_claimed(queue: Queue) -> None:
    for n in range(60):
        queue.new(f"{n:03d}")
    found = []
    while (path := queue.scan.next()) is not None:
        found += numbers([path])
        if found[-1] % 3 == 0:
            queue.scan.passed_over(path)
    assert sorted(found) == [*range(60)]


def test_a_claim_that_fails_after_the_look_makes_the_next_look_worth_it(
    queue: Queue,
) -> None:
    path = str(queue.new("1"))
    queue.settle()
    assert queue.due() == ["1"]
    assert queue.due() == []
    queue.scan.passed_over(path)
    assert queue.due() == ["1"]


# Avoided and released


def test_what_is_avoided_comes_last_and_is_not_lost(queue: Queue) -> None:
    for name in ("1", "2"):
        queue.new(name)
    queue.deferred("3", NOW)
    queue.settle()
    assert queue.scan.next({"1", "3"}) == str(queue.path / "new/2")
    assert queue.scan.next({"1", "3"}) is None
    assert queue.scan.next({"1", "3"}) is None
    assert queue.due() == ["1", "3"]


def test_what_is_avoided_and_found_again_comes_once(queue: Queue) -> None:
    queue.new("1")
    assert queue.scan.next({"1"}) is None
    queue.new("2")
    assert queue.due() == ["1", "2"]


def test_what_is_avoided_may_be_deferred_meanwhile(queue: Queue) -> None:
    path = queue.deferred("1", NOW)
    queue.settle()
    assert queue.scan.next({"1"}) is None
    os.utime(path, (NOW + 60, NOW + 60))
    assert queue.due() == []
    assert queue.scan.seconds_to_wait() == pytest.approx(60)


def test_when_an_avoided_entry_is_due_is_known(queue: Queue) -> None:
    queue.deferred("1", NOW + 60)
    assert queue.scan.next({"1"}) is None
    assert queue.scan.seconds_to_wait() == pytest.approx(60)


def test_during_a_look_it_is_not_forgotten_when_entries_are_due(queue: Queue) -> None:
    """Another thread asks while one looks, and is not woken at the end of the look."""
    later = queue.deferred("2", NOW + 60)
    assert queue.due() == []
    queue.deferred("1", NOW)
    queue.rest()
    assert queue.scan.next() == str(queue.path / "cur/1")
    assert queue.scan.seconds_to_wait() <= 60
    os.unlink(later)
    queue.settle()
    assert queue.due() == []
    assert queue.scan.seconds_to_wait() == math.inf


def test_what_was_released_comes_next_unless_it_is_avoided(queue: Queue) -> None:
    for name in ("1", "2"):
        queue.new(name)
    queue.settle()
    first = queue.scan.next()
    assert first is not None
    queue.scan.released(first)
    assert queue.scan.next({"1"}) == str(queue.path / "new/2")
    assert queue.scan.next() == first
    assert queue.due() == []
    queue.scan.released(str(queue.path / "cur/gone"))  # it may have another name now
    assert queue.due() == ["1", "2"]


def test_what_was_deferred_and_released_comes_after_new_entries(queue: Queue) -> None:
    deferred = str(queue.deferred("1", NOW))
    queue.settle()
    assert queue.due() == ["1"]
    queue.new("2")
    os.utime(queue.path / "new", (NOW - 1e5, NOW - 1e5))
    queue.scan.released(deferred)
    assert queue.due() == ["2", "1"]


def test_nobody_waits_for_long_who_has_something_already(queue: Queue) -> None:
    queue.new("1")
    with queue.scan._looking:  # as another thread that looks
        assert queue.scan.next(until=0.01) is None


def test_a_folder_that_cannot_be_read_ends_the_look(queue: Queue) -> None:
    queue.new("1")
    os.rename(queue.path / "new", queue.path / "away")
    with pytest.raises(FileNotFoundError):
        queue.scan.next()
    os.rename(queue.path / "away", queue.path / "new")
    queue.rest()
    assert queue.due() == ["1"]


def test_nothing_comes_after_a_stop(queue: Queue) -> None:
    queue.new("1")
    queue.new("2")
    assert queue.scan.next({"1"}) is not None
    queue.scan.is_stopped = True
    assert queue.due() == []
