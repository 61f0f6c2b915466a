"""Operators look into a queue in PostgreSQL, and change it, by the same commands."""
from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import transaction
from tests.contract.steps import ANN
from tests.contract.steps import BOB
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import stage
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import cluster
from tests.support.postgresplace import PostgresPlace
from tests.support.smtpd import ScriptedRelay
from zope.interface.verify import verifyObject

from postcommit import MailQueue
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._cli.main import main
from postcommit._config.database import parse_database_url
from postcommit._drain.contract import Settlement
from postcommit._mail.terms import Terms
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import IChanges
from postcommit._maildir.item import IOperators
from postcommit._postgres import checking
from postcommit._postgres.operators import PostgresOperators
from postcommit._queue.selection import Selection
from postcommit.errors import EntryError
from postcommit.errors import ItemError
from postcommit.errors import QueueError


@pytest.fixture(autouse=True)
def _apart(commands_apart: None) -> None:
    """Every test here may call a command."""


Command = Callable[..., str]


@pytest.fixture
def command(postgres: PostgresPlace, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that calls a command on the queue, and returns what it prints."""

    def call(name: str, *words: str, status: int = 0, first: str = "") -> str:
        argv = [name, *first.split(), postgres.url, *words]
        assert main(argv) == status, capsys.readouterr()
        return capsys.readouterr().out

    return call


class Filled:
    """A queue with one entry in each state; their message ids."""

    def __init__(self, place: PostgresPlace) -> None:
        self.place = place
        queue = place.make()
        self.failed, self.deferred = accept(queue, ANN), accept(queue, ANN, BOB)
        consumer = consume(queue)
        for claim in consumer.take(2):
            entry = replace(claim.read(), attempts=1, last_reply="450 4.2.0 Later")
            if self.failed in entry.message.decode():
                consumer.settle(claim, Settlement(rejected=entry))
            else:
                due = consumer.now() + 300
                consumer.settle(claim, Settlement(left=entry, due=due))
        consumer.close()
        self.waiting = accept(queue, BOB)
        self.in_doubt, item = stage(queue, ANN)
        batch = queue.batch()
        batch.prepare([item])
        place.die_with_batch(batch)
        place.age(60)


@pytest.fixture
def filled(postgres: PostgresPlace) -> Filled:
    return Filled(postgres)


def by_state(queue: PostgresOperators) -> dict[EntryState, Any]:
    found: dict[EntryState, Any] = {}
    for item in queue.items(EntryState):
        assert found.setdefault(item.state, item) is item
    return found


def test_the_contracts_are_kept(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    verifyObject(IOperators, queue)
    with queue.changes() as changes:
        verifyObject(IChanges, changes)


def test_each_entry_is_listed_in_its_state(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    steps = []
    found = by_state(queue)
    assert list(found) == [
        *(EntryState.WAITING, EntryState.DEFERRED),
        *(EntryState.FAILED, EntryState.IN_DOUBT),
    ]
    for state, name in [
        (EntryState.WAITING, filled.waiting),
        (EntryState.DEFERRED, filled.deferred),
        (EntryState.FAILED, filled.failed),
        (EntryState.IN_DOUBT, filled.in_doubt),
    ]:
        [item] = queue.items(
            [state], message_id=name, step=lambda: steps.append(1)
        )
        assert item == found[state]
        read = queue.details(item)
        assert read is not None
        assert read.message_id == name
        is_tried = state in (EntryState.WAITING, EntryState.DEFERRED)
        assert (read.due is not None) == is_tried
        assert item.accepted == pytest.approx(read.changed, abs=400)
        with queue.open(item) as file:
            entry = parse_entry(file.read())
        assert (entry.sender, entry.recipients) == (read.sender, read.recipients)
        for given in (item.id, item.id[:6], item.name, item.place, name, item.key.hex):
            assert queue.find([given]) == [item]
    assert len(steps) == 4


def test_an_id_that_means_nothing_or_much_is_refused(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    for given in ("abc", " ", "deadbeefdead", "nobody@example.org"):
        with pytest.raises(ItemError):
            queue.find([given])
    for n in range(2):
        filled.place.execute(
            "insert into {schema}.entry (id, sender, recipients, message) values"
            f" ('aaaaaa{n}a-aaaa-aaaa-aaaa-aaaaaaaaaaaa', '', array['{BOB}'], 'x')"
        )
    with pytest.raises(ItemError, match="ambiguous"):
        queue.find(["aaaaaa"])


def test_a_survey_counts_all(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    seen = queue.survey()
    assert list(seen.counts.values()) == [1, 0, 1, 0, 0, 1, 1]
    assert seen.due == 1
    assert seen.oldest_due is not None
    assert seen.reasons[EntryState.DEFERRED].reply == "450 4.2.0 Later"
    assert (seen.heartbeat, seen.pause) == (None, None)
    consumer = consume(filled.place.make())
    consumer.post("535 no such password", 60)
    seen = queue.survey()
    assert seen.heartbeat is not None
    assert seen.pause is not None
    assert seen.pause.reason == "535 no such password"
    assert seen.pause.next_attempt - seen.pause.since == pytest.approx(60, abs=1)
    consumer.clear()
    assert queue.survey().pause is None
    consumer.close()


def test_bulk_mail_that_no_processor_sends_needs_attention(
    postgres: PostgresPlace,
) -> None:
    queue = MailQueue(postgres.url)
    store = postgres.make()
    now = time.time()
    assert queue.status().oldest_bulk is None
    accept(store, terms=Terms(not_before=now + 7200, bulk=True))
    assert queue.status().oldest_bulk is None
    accept(store, terms=Terms(bulk=True))
    postgres.execute("update {schema}.entry set due = now() - interval '2 h' where bulk"
        " and not_before is null")
    accept(store, terms=Terms(bulk=True))
    seen = queue.status()
    assert seen.oldest_bulk == pytest.approx(now - 7200, abs=600)
    assert (seen.due, seen.oldest_due, seen.counts[EntryState.BULK]) == (0, None, 2)
    [said] = queue.attention(seen)
    assert said.startswith("a bulk entry waits for 2h")
    consumer = consume(store)
    assert queue.attention(queue.status(), warn_age=0.0) == ()
    consumer.close()


def test_a_change_is_made_and_wakes_a_processor(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    found = by_state(queue)
    consumer = consume(filled.place.make())
    with queue.changes() as changes:
        for state in (EntryState.WAITING, EntryState.DEFERRED, EntryState.FAILED):
            assert changes.retry(found[state])
        for refused in (changes.retry, changes.delete):
            with pytest.raises(QueueError, match="in doubt"):
                refused(found[EntryState.IN_DOUBT])
        with pytest.raises(QueueError, match="not in doubt"):
            list(changes.recover([found[EntryState.WAITING]], send=True))
        doubts = [found[EntryState.IN_DOUBT]]
        assert list(changes.recover(doubts, send=True)) == doubts
        assert list(changes.recover(doubts, send=True)) == []
    consumer.wait(0.5)
    claims = consumer.take(8)
    assert len(claims) == 4
    with queue.changes() as changes:
        for item in found.values():
            item = item._replace(state=EntryState.WAITING)
            assert not changes.retry(item), "it is being sent"
            assert not changes.delete(item)
    consumer.release(claims)
    with queue.changes() as changes:
        for item in found.values():
            item = item._replace(state=EntryState.WAITING)
            assert changes.delete(item)
            assert not changes.delete(item)
            assert queue.details(item) is None
            with pytest.raises(FileNotFoundError):
                queue.open(item)
    with queue.changes() as changes, pytest.raises(EntryError, match="gone"):
        changes.retry(found[EntryState.FAILED])
    consumer.close()


def test_what_waits_is_cancelled(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    store = filled.place.make()
    accept(store, terms=Terms(not_before=4e9))
    accept(store, terms=Terms(bulk=True))
    before = by_state(queue)
    with queue.changes() as changes:
        assert changes.hold(before.pop(EntryState.BULK))
        before = by_state(queue)
        dead = before.pop(EntryState.FAILED)
        with pytest.raises(EntryError, match="dead letter"):
            changes.cancel(dead)
        assert not changes.cancel(dead._replace(state=EntryState.DEFERRED))
        with pytest.raises(QueueError, match="in doubt"):
            changes.cancel(before.pop(EntryState.IN_DOUBT))
        assert before.keys() == {
            *(EntryState.WAITING, EntryState.SCHEDULED, EntryState.DEFERRED),
            EntryState.HELD,
        }
        for item in before.values():
            assert changes.cancel(item)
            assert not changes.cancel(item)
    assert by_state(queue).keys() == {EntryState.FAILED, EntryState.IN_DOUBT}


def test_what_is_in_doubt_can_be_dropped(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    [doubt] = queue.items([EntryState.IN_DOUBT])
    with queue.changes() as changes:
        assert list(changes.recover([doubt], send=False)) == [doubt]
    assert filled.place.look().in_doubt == []
    assert filled.place.execute("select from {schema}.batch").fetchall() == []


def test_two_who_recover_at_the_same_time_share_the_work(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    [doubt] = queue.items([EntryState.IN_DOUBT])
    with cluster().connect() as other, other.transaction():
        schema = filled.place.schema
        other.execute(f"select from {schema}.batch for update".encode())
        with queue.changes() as changes:
            assert list(changes.recover([doubt], send=True)) == []
    assert len(filled.place.look().in_doubt) == 1


def test_a_transaction_that_votes_is_not_in_doubt(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    batch = queue.batch()
    items = [stage(queue)[1]]
    batch.prepare(items)
    postgres.age(3600)  # also if it votes for long
    operators = PostgresOperators(postgres.url)
    assert list(operators.items([EntryState.IN_DOUBT])) == []
    batch.discard(items)


def test_what_is_not_an_entry_is_shown_and_not_sent(postgres: PostgresPlace) -> None:
    postgres.execute(
        "insert into {schema}.entry (sender, recipients, message)"
        " values ('', array[]::text[], 'Subject: x\n\n')"
    )
    QueueProcessor(postgres.url, ScriptedMailer()).flush()
    queue = PostgresOperators(postgres.url)
    [item] = queue.items([EntryState.FAILED])
    read = queue.details(item)
    assert read is not None
    assert "envelope is damaged" in read.problem
    assert queue.open(item).read().endswith(b"Subject: x\n\n")
    with queue.changes() as changes, pytest.raises(EntryError, match="cannot be sent"):
        changes.retry(item)
    assert any("is no entry" in finding.problem for finding in queue.check())


def test_a_header_without_an_end_is_read_in_part(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    queue.batch().publish([queue.stage("", (ANN,), [b"X: " + b"x" * (1 << 21)])])
    operators = PostgresOperators(postgres.url)
    [item] = operators.items([EntryState.WAITING])
    read = operators.details(item)
    assert read is not None
    assert len(read.head) == 1 << 20


def test_a_large_header_is_read_to_its_end(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    head = b"X-Long: " + b"x" * (1 << 17) + b"\nMessage-Id: <long@x.org>\n\n"
    queue.batch().publish([queue.stage("", (ANN,), [head + b"y" * (1 << 20)])])
    operators = PostgresOperators(postgres.url)
    [item] = operators.items([EntryState.WAITING])
    read = operators.details(item)
    assert read is not None
    assert read.message_id == "long@x.org"


# A role that may only look


def test_a_role_that_may_only_look_takes_old_batches_for_dead(filled: Filled) -> None:
    schema = filled.place.schema
    role = f"looker_{schema}"
    for grant in (
        f"create role {role} login",
        f"grant usage on schema {schema} to {role}",
        f"grant select on all tables in schema {schema} to {role}",
    ):
        filled.place.execute(grant)
    queue = PostgresOperators(filled.place.url.replace("//postgres@", f"//{role}@"))
    assert len(by_state(queue)) == 4
    assert queue.survey().counts[EntryState.IN_DOUBT] == 1
    with pytest.raises(QueueError, match="grant"), queue.changes():
        pass
    assert any("by this role" in finding.problem for finding in queue.check())
    filled.place.execute(f"drop owned by {role}")
    filled.place.execute(f"drop role {role}")


# Check


def test_check_finds_what_is_wrong(postgres: PostgresPlace) -> None:
    accept(postgres.make())
    far = "update {schema}.entry set deferred = true, due = now() + interval '2 days'"
    postgres.execute(far)
    consumer = consume(postgres.make())
    postgres.execute("update {schema}.process set beat = now() - interval '1 hour'")
    problems = {finding.problem for finding in PostgresOperators(postgres.url).check()}
    consumer.close()
    for part in ("fsync = off", "more than a day", "silent for"):
        assert any(part in problem for problem in problems), part


def test_check_finds_what_slows_it_down(
    postgres: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_MANY_DEAD", -1)
    monkeypatch.setattr(checking, "_LONG", 0.0)
    accept(postgres.make())
    with cluster().connect() as other, other.transaction():
        other.execute("select pg_current_xact_id()")
        other.execute("declare c cursor for select 1")
        findings = list(PostgresOperators(postgres.url).check())
    assert any("dead rows" in finding.problem for finding in findings)
    assert any("pg_terminate_backend" in finding.advice for finding in findings)


@pytest.fixture
def drainer(postgres: PostgresPlace) -> Iterator[str]:
    """The name of a role that may do all with the queue, and see no statistics."""
    name = f"drainer_{postgres.schema}"
    for statement in (
        f"create role {name} login",
        f"grant usage on schema {{schema}} to {name}",
        f"grant all on all tables in schema {{schema}} to {name}",
    ):
        postgres.execute(statement)
    yield name
    postgres.execute(f"drop owned by {name}")
    postgres.execute(f"drop role {name}")


@pytest.mark.parametrize("grant", ["pg_read_all_stats", "pg_monitor"])
def test_check_logs_what_it_cannot_see(
    postgres: PostgresPlace,
    drainer: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    grant: str,
) -> None:
    """The columns of other roles' transactions are NULL then, without an error."""
    monkeypatch.setattr(checking, "_LONG", 0.0)
    url = postgres.url.replace("//postgres@", f"//{drainer}@")

    def sees_it() -> bool:
        findings = list(PostgresOperators(url).check())
        return any("pg_terminate_backend" in finding.advice for finding in findings)

    with cluster().connect() as other, other.transaction():
        other.execute("select pg_current_xact_id()")
        other.execute("declare c cursor for select 1")
        assert not sees_it()
        [record] = caplog.records
        assert f"'grant pg_read_all_stats to {drainer}'" in record.getMessage()
        postgres.execute(f"grant {grant} to {drainer}")
        assert sees_it()
    assert len(caplog.records) == 1


def test_what_check_cannot_see_is_a_line_and_not_a_finding(
    postgres: PostgresPlace, drainer: str
) -> None:
    url = postgres.url.replace("//postgres@", f"//{drainer}@")
    code = "import sys; from postcommit._cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert [line.split(";")[0] for line in done.stderr.splitlines()] == [
        f"{parse_database_url(url).name}: long transactions of other roles, and"
        " standbys that are behind, cannot be seen"
    ]
    assert "cannot be seen" not in done.stdout
    assert "fsync = off" in done.stdout
    assert done.returncode == 1


def test_an_error_of_the_database_is_not_taken_for_a_lack_of_rights(
    postgres: PostgresPlace,
) -> None:
    queue = PostgresOperators(postgres.url)
    postgres.execute("drop table {schema}.batch cascade")
    with pytest.raises(QueueError, match="does not exist"):
        list(queue.items([EntryState.IN_DOUBT]))


# The commands


def test_status_list_show_and_check(filled: Filled, command: Command) -> None:
    said = command("status", status=1)
    assert "1  waiting, never tried" in said
    assert "1 in doubt; 'postcommit recover'" in said
    told = json.loads(command("status", "--json", status=1))
    assert told["queue"] == PostgresOperators(filled.place.url).name
    assert "postcommit_queue_entries" in command("status", "--prometheus", status=1)
    lines = command("list", "--json").splitlines()
    assert [json.loads(line)["message_id"] for line in lines] == [
        filled.waiting,
        filled.deferred,
        filled.in_doubt,
    ]
    first = json.loads(lines[0])
    assert first["url"].endswith(f"#{first['id']}")
    assert "path" not in first
    assert first["id"] in command("list", "--to", BOB)
    shown = command("show", first["id"])
    assert filled.waiting in shown
    assert parse_entry(command("show", "--raw", first["id"]).encode())
    assert "fsync" in command("check", status=1)
    assert json.loads(command("check", "--json", status=1).splitlines()[0])["url"]


def test_retry_delete_and_recover(filled: Filled, command: Command) -> None:
    assert command("retry", "ALL").count("will be retried") == 1
    assert "accepted" in command("recover", first="--send")
    assert command("retry", "ALL", "--failed").count("will be retried") == 1
    assert command("delete", "ALL", "--yes").count("deleted") == 4
    assert filled.place.look().queued == []
    assert "nothing is in doubt" in command("recover", first="--send")


def test_flush_and_run_drain_it(
    postgres: PostgresPlace, command: Command, relay: ScriptedRelay
) -> None:
    delivery = QueuedMailDelivery(postgres.url)
    delivery.send(ANN, BOB, "Subject: x\n\nx")
    transaction.commit()
    options = ["--hostname", "127.0.0.1", "--port", str(relay.port)]
    assert "1 sent" in command("flush", *options)
    with pytest.raises(AssertionError, match="postcommit migrate"):
        command("flush", "--create", *options)


def test_migrate_creates_the_tables_once(capsys: pytest.CaptureFixture[str]) -> None:
    url = cluster().url(f"migrated{threading.get_native_id()}")
    assert main(["migrate", url]) == 0
    assert "created the schema migrated" in capsys.readouterr().out
    assert main(["migrate", url]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["status", url, "--no-processor"]) == 0


def test_migrate_takes_only_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "/queue"]) == 2
    assert "a URL such as postgresql://host/db" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["migrate", "status"])
def test_a_url_that_cannot_work_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "postgresql://ann:s3cret@h/db"
    with pytest.raises(SystemExit):
        raise SystemExit(main([name, url]))
    said = capsys.readouterr().err
    assert "~/.pgpass" in said
    assert "s3cret" not in said


# Hold and pause


def test_entries_are_held_and_released(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    store = filled.place.make()
    accept(store, terms=Terms(not_before=4e9, expires=5e9))
    accept(store, terms=Terms(bulk=True))
    before = {item.id: item.state for item in queue.items(EntryState)}
    wanted = (EntryState.SCHEDULED, EntryState.BULK, EntryState.DEFERRED)
    items = list(queue.items(wanted))
    assert [item.state for item in items] == [
        *(EntryState.SCHEDULED, EntryState.DEFERRED, EntryState.BULK)
    ]
    read = queue.details(items[0])
    assert read is not None
    assert (read.due, read.expires) == (4e9, 5e9)
    assert queue.survey().next_scheduled == pytest.approx(4e9, abs=5)
    with queue.changes() as changes:
        assert [changes.hold(item) for item in items] == [True] * 3
        held = list(queue.items([EntryState.HELD]))
        with pytest.raises(EntryError, match="is held"):
            changes.retry(held[0])
        with pytest.raises(EntryError, match="not held"):
            changes.release(items[0])
        assert [changes.release(item) for item in held] == [True] * 3
        assert {i.id: i.state for i in queue.items(EntryState)} == before
        for state, error in (
            (EntryState.FAILED, EntryError),
            (EntryState.IN_DOUBT, QueueError),
        ):
            [item] = queue.items([state])
            with pytest.raises(error):
                changes.hold(item)
        assert changes.retry(items[0])
    assert not list(queue.items([EntryState.SCHEDULED]))


def test_a_queue_is_paused_by_hand(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    assert queue.survey().stopped is None
    with queue.changes() as changes:
        assert changes.stop("ann", "new relay")
        assert not changes.stop("bob", "again")
    stopped = queue.survey().stopped
    assert stopped is not None
    assert (stopped.who, stopped.reason) == ("ann", "new relay")
    consumer = consume(filled.place.make())
    assert consumer.take(8) == []
    with queue.changes() as changes:
        assert changes.resume()
        assert not changes.resume()
    assert len(consumer.take(8)) > 0
    consumer.close()


def test_the_age_of_scheduled_mail_begins_when_it_was_sent(filled: Filled) -> None:
    place = filled.place
    queue = PostgresOperators(place.url)
    place.execute("update {schema}.entry set accepted = now() - interval '2 h'")
    young = accept(place.make(), terms=Terms(not_before=4e9))
    older = Selection((EntryState.SCHEDULED,), older=3600.0)
    newer = Selection((EntryState.SCHEDULED,), newer=3600.0)
    assert list(older.details(queue)) == []
    assert [read.message_id for read in newer.details(queue)] == [young]
    place.execute("update {schema}.entry set accepted = now() - interval '2 h'")
    assert [read.message_id for read in older.details(queue)] == [young]
    assert list(newer.details(queue)) == []


def test_what_has_expired_is_not_retried(filled: Filled) -> None:
    queue = PostgresOperators(filled.place.url)
    filled.place.execute("update {schema}.entry set expires = 'epoch'")
    [item] = queue.items([EntryState.FAILED])
    said = "it expired at 1970-01-01 00:00:00 UTC"
    with queue.changes() as changes, pytest.raises(EntryError, match=said):
        changes.retry(item)


def test_a_retried_entry_is_as_old_as_before(filled: Filled) -> None:
    """A scheduled one is not older than its time, and not younger than now."""
    place = filled.place
    queue = PostgresOperators(place.url)
    store = place.make()
    accept(store, terms=Terms(not_before=4e9))
    accept(store, terms=Terms(bulk=True))
    place.execute("update {schema}.entry set accepted = now() - interval '30 days'")
    with queue.changes() as changes:
        for item in queue.items([EntryState.SCHEDULED, EntryState.DEFERRED]):
            assert changes.retry(item)
    ages = place.execute(
        "select now() - accepted < interval '1 h', count(*), bool_and(not bulk)"
        " from {schema}.entry where state = 'queued' and due <= now() and"
        " not_before is null and not bulk group by 1 order by 1"
    ).fetchall()
    assert [young for young, *_ in ages] == [False, True]
    assert ages[1][1] == 1
