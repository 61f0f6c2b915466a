"""What arrives from another machine is accepted once, whatever its name."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from postcommit._maildir.arrivals import Arrival
from postcommit._maildir.arrivals import Arrivals
from postcommit._maildir.arrivals import name_here
from postcommit._maildir.maildir import unique_name
from postcommit._maildir.store import Store
from postcommit.errors import QueueError
from tests.support.queues import ENTRY


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


def names(store: Store, *folder: str) -> list[str]:
    return sorted(os.listdir(os.path.join(store.path, *folder)))


def test_nothing_is_no_work(store: Store) -> None:
    assert Arrivals(store).accept([]) == 0


def test_each_is_accepted_once(store: Store) -> None:
    arrivals = [Arrival(unique_name(), ENTRY) for _ in range(5)]
    both = Arrivals(store), Arrivals(store)
    assert both[0].accept([*arrivals, *arrivals]) == 5
    assert both[0].accept(arrivals) == both[1].accept(arrivals) == 0
    assert names(store, "new") == sorted(a.name for a in arrivals)
    assert names(store, "tmp") == []


@pytest.mark.parametrize("suffix", [".R1", ".U12", ".R3.0123456789abcdef"])
def test_a_dead_letter_of_some_recipients_is_the_entry(
    store: Store, suffix: str
) -> None:
    arrivals, name = Arrivals(store), unique_name()
    assert arrivals.accept([Arrival(unique_name(), ENTRY)]) == 1  # before there is any
    store.bury_bytes(f"{name}{suffix}", ENTRY, "x")
    assert arrivals.accept([Arrival(name, ENTRY)]) == 0
    other = unique_name()
    assert arrivals.accept([Arrival(other, ENTRY)]) == 1


@pytest.mark.parametrize("flags", ["", ":2,", ":2,S"])
def test_a_copy_of_what_is_deferred(store: Store, flags: str) -> None:
    name = unique_name()
    Path(store.path, "cur", f"{name}{flags}").write_bytes(ENTRY)
    assert Arrivals(store).accept([Arrival(name, ENTRY)]) == 0


def test_another_receiver_is_faster(store: Store) -> None:
    name = unique_name()

    class Slow(Arrivals):
        def _is_entry(self, name: str, data: bytes) -> bool:
            assert Arrivals(store).accept([Arrival(name, data)]) == 1
            return super()._is_entry(name, data)

    Slow(store).accept([Arrival(name, ENTRY)])
    assert names(store, "new") == [name]
    assert names(store, "tmp") == []


def test_what_cannot_be_accepted_leaves_nothing_and_can_be_tried_again(
    store: Store,
) -> None:
    arrivals = [Arrival(unique_name(), ENTRY) for _ in range(3)]
    os.rename(f"{store.path}/new", f"{store.path}/away")
    with pytest.raises(QueueError):
        Arrivals(store).accept(arrivals)
    assert names(store, "tmp") == []
    os.rename(f"{store.path}/away", f"{store.path}/new")
    assert Arrivals(store).accept(arrivals) == 3


UUID = "1700000000.0123456789abcdef0123456789abcdef"


def test_a_name_that_is_unique_is_kept() -> None:
    for name in (unique_name(), f"{unique_name()}.P0123abcd", UUID):
        assert name_here(Arrival(name, b"x")) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../../x", "\ud800", "x" * 300, "1700000000.P1Q2.web", "é"],
)
def test_any_other_name_is_made_of_the_bytes(name: str) -> None:
    made = name_here(Arrival(name, b"x"))
    assert made == name_here(Arrival(name, b"x"))
    assert made != name_here(Arrival(name, b"y"))
    assert made.startswith(("0000000000.H", "1700000000.H"))
    assert len(made) == 44


# Terms


def marked(letters: str) -> str:
    return f"{unique_name()},{letters}=0123456789"


@pytest.mark.parametrize(
    ("letters", "room"), [("L", "new"), ("B", ".Bulk/new"), ("LB", ".Bulk/new")]
)
def test_a_bulk_entry_arrives_in_its_room(
    store: Store, letters: str, room: str
) -> None:
    name = marked(letters)
    assert Arrivals(store).accept([Arrival(name, ENTRY)]) == 1
    assert names(store, room) == [name]
    assert Arrivals(store).accept([Arrival(name, ENTRY)]) == 0


@pytest.mark.parametrize("mark", [",X=0123456789", ",B=012345678", ",B=0123456789/"])
def test_a_mark_that_is_not_ours_does_not_stay(mark: str) -> None:
    assert ",B" not in name_here(Arrival(f"{unique_name()}{mark}", b"x"))
