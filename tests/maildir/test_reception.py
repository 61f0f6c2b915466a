"""The note of a receiver: shown while it lives, and never in its way."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from postcommit._maildir.reception import PREFIX
from postcommit._maildir.reception import Reception
from postcommit._maildir.reception import ReceptionNote
from postcommit._maildir.reception import receptions
from postcommit._maildir.reception import remove_dead
from postcommit._maildir.store import Store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return Store(str(tmp_path / "queue")).path


def note(path: str, broker: str = "amqp://mq/") -> ReceptionNote:
    return ReceptionNote(path, Reception(broker, "postcommit"))


def test_what_is_shown_is_read(path: str) -> None:
    mine = note(path)
    mine.show(connected=True)
    [found] = receptions(path)
    assert found == mine.reception
    mine.reception.received = 7
    mine.show(connected=False, problem="it is\ndown" + "x" * 1000)
    [found] = receptions(path)
    assert (found.received, found.connected) == (7, False)
    assert found.problem.startswith("it is down")
    assert len(found.problem) < 600
    mine.close()
    mine.close()
    assert receptions(path) == []


def test_counts_alone_are_written_once_a_second(path: str) -> None:
    mine = note(path)
    mine.show(connected=True)
    mine.reception.received = 7
    mine.show(connected=True)
    assert receptions(path)[0].received == 0
    mine._written -= 1.0
    mine.show(connected=True)
    assert receptions(path)[0].received == 7
    mine.close()


def test_several_are_shown_in_the_order_of_their_beginning(path: str) -> None:
    notes = [note(path, f"amqp://{number}/") for number in range(3)]
    for number, mine in enumerate(notes):
        mine.reception.began -= number
        mine.show(connected=True)
    assert [r.broker[7] for r in receptions(path)] == ["2", "1", "0"]
    for mine in notes:
        mine.close()


def test_a_note_without_a_lock_means_nothing_and_is_removed(path: str) -> None:
    dead = Path(path, f"{PREFIX}dead")
    dead.write_text("{}")
    mine = note(path)
    mine.show(connected=True)
    assert len(receptions(path)) == 1
    remove_dead(path)
    assert not dead.exists()
    assert len(receptions(path)) == 1
    mine.close()


def test_a_disk_in_trouble_is_not_the_trouble_of_the_receiver(path: str) -> None:
    mine = note(path)
    os.rename(f"{path}/tmp", f"{path}/away")
    mine.show(connected=True)
    assert receptions(path) == []
    os.rename(f"{path}/away", f"{path}/tmp")
    mine.show(connected=True)
    assert len(receptions(path)) == 1
    mine.close()
    assert receptions(f"{path}/nowhere") == []


def test_a_note_that_cannot_get_its_place_leaves_nothing(path: str) -> None:
    mine = note(f"{path}/none")
    mine.show(connected=True)
    mine._path = path
    lacking = Path(path, "tmp")
    lacking.chmod(0o700)
    mine.show(connected=True)
    assert os.listdir(lacking) == []
    mine.close()
