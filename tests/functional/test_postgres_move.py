"""Entries move between a folder and a database, each once."""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.contract.steps import ANN
from tests.contract.steps import BOB
from tests.contract.steps import EVE
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import stage
from tests.contract.steps import take_all
from tests.contract.steps import tried
from tests.support.postgresplace import PostgresPlace
from zope.interface.verify import verifyObject

from postcommit._cli.main import main
from postcommit._drain.contract import Settlement
from postcommit._drain.contract import Terms
from postcommit._kinds.operators import open_moving
from postcommit._kinds.operators import open_operators
from postcommit._kinds.queue import open_queue
from postcommit._maildir.item import EntryState
from postcommit._maildir.moving import IMoving
from postcommit._maildir.store import Store


@pytest.fixture(autouse=True)
def _apart(commands_apart: None) -> None:
    """Every test here calls a command."""


LATER = 4_000_000_000.25

TERMS = (
    Terms(not_before=LATER),
    Terms(bulk=True),
    Terms(not_before=LATER, bulk=True),
    Terms(not_before=LATER, expires=LATER + 60),
)


def fill_rooms(place: str) -> None:
    """Accept an entry with each of the terms, and hold others of each kind."""
    queue = open_queue(place)
    accept(queue)
    consumer = consume(queue)
    [claim] = take_all(consumer)
    left = Settlement(left=tried(claim.entry, ANN), due=consumer.now() + 1800)
    consumer.settle(claim, left)
    consumer.close()
    for terms in (None, *TERMS):
        accept(queue, terms=terms)
    operators = open_operators(place)
    with operators.changes() as changes:
        assert all(changes.hold(item) for item in list(operators.items(EntryState)))
    for terms in TERMS:
        accept(queue, terms=terms)


def release_all(place: str) -> None:
    operators = open_operators(place)
    with operators.changes() as changes:
        held = list(operators.items([EntryState.HELD]))
        assert all(changes.release(item) for item in held)


def fill(queue: Any) -> None:
    """Accept an entry in each of the states that an attempt leads to, and two more."""
    for _ in range(3):
        accept(queue, ANN, BOB, EVE)
    consumer = consume(queue)
    dead, deferred, _ = take_all(consumer)
    consumer.settle(dead, Settlement(rejected=tried(dead.entry, ANN, reply="550 No")))
    left = tried(deferred.entry, ANN, BOB)
    left.uncertain, left.doubts = 1, (1, 0)
    consumer.settle(deferred, Settlement(left=left, due=consumer.now() + 3600))
    consumer.close()
    for _ in range(2):
        accept(queue, BOB)


def seen(place: str) -> list[Any]:
    """Return all that is known of each entry, without where it is."""
    queue = open_operators(place)
    found = []
    for item in queue.items(EntryState):
        read = queue.details(item)
        assert read is not None
        has_due = item.state in (EntryState.DEFERRED, EntryState.FAILED)
        due = round(read.changed, 3) if has_due else None
        with queue.open(item) as file:
            data = file.read()
        found.append((item.state.value, data, due, round(item.accepted or 0, 3)))
    return sorted(found, key=str)


def number_at(place: str) -> int:
    return sum(1 for _ in open_operators(place).items(EntryState))


def test_the_contracts_are_kept(postgres: PostgresPlace, tmp_path: Path) -> None:
    for place in (postgres.url, str(tmp_path / "queue")):
        verifyObject(IMoving, open_moving(place))


def test_there_and_back(
    postgres: PostgresPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "queue")
    fill(Store(folder))
    before = seen(folder)
    assert main(["move", folder, postgres.url]) == 0
    assert "5 entries moved" in capsys.readouterr().out
    assert seen(folder) == []
    assert seen(postgres.url) == before
    assert main(["move", folder, postgres.url]) == 0
    assert "0 entries moved" in capsys.readouterr().out
    other = str(tmp_path / "other")
    assert main(["move", postgres.url, other]) == 0
    assert seen(postgres.url) == []
    assert seen(other) == before
    assert main(["move", other, postgres.url]) == 0
    assert seen(postgres.url) == before


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_an_entry_keeps_its_terms(
    postgres: PostgresPlace, tmp_path: Path, kind: str
) -> None:
    folders = [str(tmp_path / name) for name in ("queue", "other")]
    places = [folders[0], postgres.url, folders[1], postgres.url]
    if kind == "database":
        places = [postgres.url, folders[0], postgres.url]
    fill_rooms(places[0])
    # A file's name says when it is due. So it was accepted then, for its back-off.
    before = [entry[:3] for entry in seen(places[0])]
    for number, (source, target) in enumerate(pairwise(places)):
        assert main(["move", source, target]) == 0
        assert seen(source) == [], number
        assert [entry[:3] for entry in seen(target)] == before, number
    release_all(places[-1])
    states = Counter(state for state, *_ in seen(places[-1]))
    assert states == {"waiting": 1, "deferred": 1, "scheduled": 6, "bulk": 2}


def test_an_entry_that_was_sent_before_its_time_is_not_put_off_again(
    postgres: PostgresPlace, tmp_path: Path
) -> None:
    """An operator retries a scheduled entry: it waits for a processor only."""
    folder = str(tmp_path / "queue")
    accept(Store(folder), terms=Terms(not_before=LATER))
    operators = open_operators(folder)
    with operators.changes() as changes:
        assert all(changes.retry(item) for item in list(operators.items(EntryState)))
    assert main(["move", folder, postgres.url]) == 0
    consumer = consume(postgres.make())
    assert len(take_all(consumer)) == 1
    consumer.close()


def test_the_time_of_an_entry_may_be_in_its_name_only(
    postgres: PostgresPlace, tmp_path: Path
) -> None:
    folder = str(tmp_path / "queue")
    accept(Store(folder), terms=Terms(not_before=LATER))
    [path] = (tmp_path / "queue" / ".Later" / "new").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b"not-before" not in line.lower()]
    assert len(kept) < len(lines)
    path.write_bytes(b"".join(kept))
    assert main(["move", folder, postgres.url]) == 0
    column = "extract(epoch from not_before)::float8"
    [(time,)] = postgres.execute(f"select {column} from {{schema}}.entry")
    assert time == LATER


def test_an_entry_that_became_a_dead_letter_meanwhile_stays_one(
    postgres: PostgresPlace, tmp_path: Path
) -> None:
    """A processor has given it up after the command has listed it."""
    accept(postgres.make())
    [item] = open_operators(postgres.url).items([EntryState.WAITING])
    postgres.execute("update {schema}.entry set state = 'failed'")
    with open_moving(postgres.url).leaving(item) as moving:
        assert moving is not None
        assert moving.state is EntryState.FAILED


def test_an_entry_that_is_there_already_is_not_doubled(
    postgres: PostgresPlace, tmp_path: Path
) -> None:
    """As after a kill between the two steps."""
    folder = str(tmp_path / "queue")
    fill(postgres.make())
    rows = postgres.execute("select * from {schema}.entry").fetchall()
    names = postgres.schema
    postgres.execute(f"create table {names}.kept as select * from {{schema}}.entry")
    assert main(["move", postgres.url, folder]) == 0
    before = seen(folder)
    columns = "id, state, accepted, due, deferred, sender, recipients, attempts,"
    columns += " uncertain, doubts, last_reply, message_id, message"
    postgres.execute(
        f"insert into {{schema}}.entry ({columns}) select {columns} from {names}.kept"
    )
    assert len(seen(postgres.url)) == len(rows) == 5
    assert main(["move", postgres.url, folder]) == 0
    assert seen(postgres.url) == []
    assert seen(folder) == before


def test_an_entry_expires_where_it_is_moved_to(
    postgres: PostgresPlace, tmp_path: Path
) -> None:
    folder, other = str(tmp_path / "queue"), str(tmp_path / "other")
    store = Store(folder)
    expires = 4_000_000_000.5
    batch = store.batch()
    staged = store.stage(
        "", (ANN,), [b"Subject: x\n\n"], terms=Terms(expires=expires), is_first=True
    )
    batch.prepare([staged])
    batch.publish([staged])
    before = seen(folder)
    assert b"X-Zope-Expires" in before[0][1]
    assert main(["move", folder, postgres.url]) == 0
    assert main(["move", postgres.url, other]) == 0
    assert seen(other) == before


def test_a_sender_cannot_write_lines_of_the_envelope(
    postgres: PostgresPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row is from another program."""
    sender = "a@example.org\nX-Zope-To: eve@example.org"
    postgres.make()
    postgres.execute(
        "insert into {schema}.entry (sender, recipients, message)"
        " values (%(sender)s, array['ann@example.org'], 'Subject: x\n\n')",
        {"sender": sender},
    )
    folder = tmp_path / "queue"
    assert main(["move", postgres.url, str(folder)]) == 1
    assert "1 entry left" in capsys.readouterr().out
    assert list((folder / "new").iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_what_cannot_be_moved_stays_and_is_counted(
    postgres: PostgresPlace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    folder = str(tmp_path / "queue")
    places = [folder, postgres.url]
    queue: Any = Store(folder)
    if kind == "database":
        places.reverse()
        queue = postgres.make()
        item = queue.stage("", (ANN,), [b"Subject: x\n\n"], terms=Terms(bulk=True))
        queue.batch().publish([item])
        postgres.execute("update {schema}.entry set accepted = now() - interval '1 d'")
    else:
        (tmp_path / "queue" / "new" / "odd").write_bytes(b"odd")
    accept(queue)
    consumer = consume(queue)
    claims = consumer.take(1)
    accept(queue)
    if kind == "database":
        postgres.execute(
            "insert into {schema}.entry (sender, recipients, message)"
            " values ('', array['a b'], 'Subject: x\n\n')"
        )
    batch = queue.batch()
    items = [stage(queue)[1]]
    batch.prepare(items)
    batch.abandon(items)
    postgres.age(60)
    assert main(["move", *places]) == 1
    said = capsys.readouterr().out
    assert "1 in doubt left" in said
    assert "left: being sent" in said
    assert len(claims) == 1
    consumer.close()


def test_it_moves_between_the_two_kinds_only(
    postgres: PostgresPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (str(tmp_path), postgres.url):
        assert main(["move", place, place]) == 2
        assert "must be a folder if QUEUE is a URL" in capsys.readouterr().err


@pytest.mark.slow
def test_a_move_that_is_killed_and_run_again_loses_and_doubles_nothing(
    postgres: PostgresPlace, tmp_path: Path
) -> None:
    chance = random.Random(3)
    folder = str(tmp_path / "queue")
    store = Store(folder)
    for number in range(200):
        accept(store, terms=(None, *TERMS)[number % 5])
    before = seen(folder)
    places = [folder, postgres.url]
    program = "from postcommit._cli.main import main; main()"
    kills = 0
    for round in range(2):
        while seen(places[0]):
            command = [sys.executable, "-c", program, "move", *places]
            # A claim of the folder ends with its process, the lock of a row as well.
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            left = number_at(places[0]) - chance.randrange(1, 60)
            while child.poll() is None and number_at(places[0]) > left:
                pass
            if child.poll() is None:
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
            child.wait()
            if kills > 3:  # the last ones may take their time
                chance = random.Random()
                subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        places.reverse()
        assert seen(places[0]) == before, round
    assert kills
