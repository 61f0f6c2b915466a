"""A queue in PostgreSQL, wherever the path of a queue is taken."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import transaction
from pyramid.config import Configurator
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.functional.servers import Server
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import cluster
from tests.support.postgresplace import PostgresPlace
from tests.support.smtpd import ScriptedRelay
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import MANAGERS
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import begun
from tests.support.transactions import failing
from tests.support.transactions import mail
from zope.component import getUtility
from zope.configuration import xmlconfig

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._config.database import parse_database_url
from postcommit._drain.contract import Terms
from postcommit._mail.row import MOST_BYTES
from postcommit._mail.row import row
from postcommit._maildir.item import EntryState
from postcommit._postgres.operators import PostgresOperators
from postcommit._postgres.queue import PostgresQueue
from postcommit._postgres.schema import migrate
from postcommit.errors import OptionError
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.interfaces import IMailDelivery
from postcommit.testing import FakeClock


ANN, BOB = "ann@example.org", "bob@example.org"

SECRET = "s3cret"

# The columns of a row that have a time, and values that cannot be one.
TIMES = ("accepted", "due", "not_before", "expires")
NO_TIMES = ("infinity", "-infinity", "1969-01-01", "10000-01-02")

NUMBERS = ("attempts", "uncertain")


def queued(place: PostgresPlace) -> list[str]:
    return sorted(seen.message_id for seen in place.look().queued)


def deliver(place: PostgresPlace, manager: Any, **options: Any) -> QueuedMailDelivery:
    return QueuedMailDelivery(place.url, transaction_manager=manager, **options)


# Transactions


@pytest.mark.parametrize("kind", MANAGERS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("partner", [None, BEFORE, AFTER])
def test_mail_is_accepted_when_the_transaction_commits(
    postgres: PostgresPlace, kind: str, count: int, partner: str | None
) -> None:
    with begun(kind) as manager:
        delivery = deliver(postgres, manager)
        if partner:
            manager.get().join(Partner(partner))
        ids = [delivery.send(ANN, BOB, mail(f"{n}@x.org")) for n in range(count)]
        assert queued(postgres) == []
        manager.commit()
    assert queued(postgres) == ids
    assert postgres.look().in_doubt == []


@pytest.mark.parametrize("stage", ["commit", "tpc_vote"])
@pytest.mark.parametrize("partner", [BEFORE, AFTER])
def test_an_aborted_transaction_leaves_nothing(
    postgres: PostgresPlace, stage: str, partner: str
) -> None:
    with begun("explicit") as manager:
        manager.get().join(failing(stage, partner))
        deliver(postgres, manager).send(ANN, BOB, mail())
        with pytest.raises(PartnerFailed):
            manager.commit()
        manager.abort()
    assert postgres.execute("select from {schema}.entry").fetchall() == []
    assert postgres.execute("select from {schema}.batch").fetchall() == []


def test_a_savepoint_takes_the_later_mail_back(postgres: PostgresPlace) -> None:
    with begun("explicit") as manager:
        delivery = deliver(postgres, manager)
        delivery.send(ANN, BOB, mail("1@x.org"))
        savepoint = manager.savepoint()
        delivery.send(ANN, BOB, mail("2@x.org"))
        savepoint.rollback()
        manager.commit()
    assert queued(postgres) == ["1@x.org"]


def test_a_batch_that_was_recovered_by_hand_is_a_publish_error(
    postgres: PostgresPlace,
) -> None:
    """The server ends the connection between vote and finish; an operator is quick."""

    def recover() -> None:
        postgres.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where state = 'idle in transaction'"
        )
        postgres.execute("delete from {schema}.entry")
        postgres.execute("delete from {schema}.batch")

    with begun("explicit") as manager:
        manager.get().join(Partner(BEFORE, tpc_finish=recover))
        deliver(postgres, manager).send(ANN, BOB, mail())
        with pytest.raises(PublishError, match="recovered by hand"):
            manager.commit()
    assert queued(postgres) == []


# Draining


def test_a_processor_sends_what_is_accepted(
    postgres: PostgresPlace, relay: ScriptedRelay
) -> None:
    from postcommit import SMTPMailer

    delivery = QueuedMailDelivery(postgres.url)
    for number in range(20):
        delivery.send(ANN, BOB, mail(f"{number}@x.org"))
    transaction.commit()
    processor = QueueProcessor(
        postgres.url, SMTPMailer("127.0.0.1", relay.port), workers=2
    )
    assert processor.flush().sent == 20
    assert len(relay.messages) == 20
    assert postgres.execute("select from {schema}.entry").fetchall() == []
    assert postgres.execute("select from {schema}.process").fetchall() == []


def test_a_commit_in_this_process_wakes_the_processor_at_once(
    postgres: PostgresPlace,
) -> None:
    mailer = ScriptedMailer()
    processor = QueueProcessor(postgres.url, mailer, pollingInterval=3_600_000)
    processor.start()
    try:
        delivery = QueuedMailDelivery(postgres.url)
        delivery.send(ANN, BOB, mail("a@x.org"))
        transaction.commit()
        Server.wait_until(_NoLog(), lambda: bool(mailer.sent), "nothing was sent")
        # Another program inserts a row: it is found by a query each second.
        postgres.execute(
            "insert into {schema}.entry (sender, recipients, message) values"
            f" ('', array['{BOB}'], 'Subject: x\n\n')"
        )
        Server.wait_until(_NoLog(), lambda: len(mailer.sent) == 2, "no second mail")
    finally:
        assert processor.stop(30)


class _NoLog(Server):
    log = ""

    def __init__(self) -> None:
        pass

    def start(self) -> None: ...
    def stop(self) -> None: ...


def test_rows_that_are_not_entries_become_dead_letters(postgres: PostgresPlace) -> None:
    insert = "insert into {schema}.entry (sender, recipients, message) values "
    for values in (
        "('', array[]::text[], 'Subject: x\n\n')",
        f"('no address', array['{BOB}'], 'Subject: x\n\n')",
        f"('', array['{BOB}'], '')",
        "('', array['a b'], 'Subject: x\n\n')",
    ):
        postgres.execute(insert + values)
    mailer = ScriptedMailer()
    assert QueueProcessor(postgres.url, mailer).flush().sent == 0
    assert mailer.sent == []
    assert len(postgres.look().failed) == 4
    problems = postgres.execute("select problem from {schema}.entry").fetchall()
    assert all(problem for (problem,) in problems)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((time, f"'{value}'") for time in TIMES for value in NO_TIMES),
        *((number, value) for number in NUMBERS for value in ("-1", "2147483647")),
    ],
)
def test_a_value_that_no_entry_can_have_is_refused(
    postgres: PostgresPlace, column: str, value: str
) -> None:
    """Otherwise a claim could not be read, and no other entry would be sent."""
    insert = f"insert into {{schema}}.entry (sender, recipients, message, {column})"
    with pytest.raises(psycopg.errors.CheckViolation, match="entry_"):
        postgres.execute(f"{insert} values ('', array['{BOB}'], 'x', {value})")


@pytest.mark.parametrize("state", ["queued", "held"])
def test_a_row_that_waits_must_be_due_at_its_time(
    postgres: PostgresPlace, state: str
) -> None:
    """Otherwise it is sent at once, because its due time has the default."""
    columns = "sender, recipients, message, state, not_before"
    insert = f"insert into {{schema}}.entry ({columns}"
    row = f"values ('', array['{BOB}'], E'Subject: x\\n\\n', '{state}'"
    later = "date_trunc('day', now()) + interval '2 days'"
    with pytest.raises(psycopg.errors.CheckViolation, match="entry_not_before"):
        postgres.execute(f"{insert}) {row}, {later})")
    with pytest.raises(psycopg.errors.CheckViolation, match="entry_not_before"):
        postgres.execute(f"{insert}, due) {row}, {later}, {later} - interval '1 ms')")
    postgres.execute(f"{insert}, due) {row}, {later}, {later})")
    postgres.execute(f"{insert}) {row}, now() - interval '1 day')")
    assert QueueProcessor(postgres.url, ScriptedMailer()).flush().sent == (
        state == "queued"
    )


def test_a_scheduled_entry_is_settled_although_the_clock_was_put_back(
    postgres: PostgresPlace,
) -> None:
    """Its new due time, and that of its dead letter, may be before its time."""
    clock, queue = FakeClock(), postgres.make()
    terms = Terms(not_before=clock() + 3600)
    for recipient in ("dave@x.org", "later@x.org", "never@x.org", "lost@x.org"):
        accept(queue, recipient, terms=terms)
        accept(queue, recipient, "eve@x.org", "no@x.org", terms=terms)
    clock.advance(3601)
    consumer = consume(queue, clock)
    for claim in consumer.take(4):
        consumer.postpone(claim, clock() - 3600)
    consumer.close()
    early = "select from {schema}.entry where due < not_before"
    assert len(postgres.execute(early).fetchall()) == 4
    operators = PostgresOperators(postgres.url)
    with operators.changes() as changes:
        for item in operators.items([EntryState.DEFERRED]):
            assert changes.hold(item)
        for item in operators.items([EntryState.HELD]):
            assert changes.release(item)
    mailer = ScriptedMailer()
    mailer.outcomes["no"] = mailer.outcomes["never"]
    assert QueueProcessor(postgres.url, mailer, clock=clock).flush().sent == 6
    assert postgres.execute(early).fetchall(), "the dead letters"
    with operators.changes() as changes:
        for item in operators.items([EntryState.FAILED]):
            assert changes.retry(item)
    assert postgres.look().failed == []


def test_doubts_that_do_not_fit_the_recipients_are_not_used(
    postgres: PostgresPlace,
) -> None:
    """The uncertain attempts of each recipient, in a row of another program."""
    insert = "insert into {schema}.entry (sender, recipients, message, doubts) values "
    row = "('', array['lost@x.org', 'bob@x.org'], 'Subject: x\n\n', "
    for doubts in ("'{null,1}'", "'{-1,1}'", "'{{1},{2}}'", "'{1,2,3}'"):
        postgres.execute(f"{insert}{row}{doubts})")
    result = QueueProcessor(postgres.url, ScriptedMailer()).flush()
    assert (result.sent, result.deferred) == (4, 4)
    assert [each.uncertain for each in postgres.look().queued] == [1] * 4


def test_terms_decide_the_order_of_claims(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    consumer = consume(queue)
    now = consumer.now()
    terms = {
        "bulk@x.org": Terms(bulk=True),
        "later@x.org": Terms(not_before=now + 3600),
        "past@x.org": Terms(not_before=now - 10, expires=now + 60),
        "plain@x.org": None,
    }
    items = [
        queue.stage("", (ANN,), [mail(name)], terms=given)
        for name, given in terms.items()
    ]
    batch = queue.batch()
    batch.prepare(items)
    batch.publish(items)
    claims = consumer.take(8)
    names = [claim.read().message.split()[1][1:-1].decode() for claim in claims]
    assert names == ["plain@x.org", "past@x.org", "bulk@x.org"]
    assert claims[1].expires == pytest.approx(now + 60, abs=1e-3)
    assert consumer.seconds_to_wait() == pytest.approx(3600, abs=60)
    consumer.close()


def test_nothing_is_taken_while_the_queue_is_stopped(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    item = queue.stage("", (ANN,), [mail()])
    queue.batch().publish([item])
    postgres.execute("insert into {schema}.stopped (who, reason) values ('me', '')")
    consumer = consume(queue)
    assert consumer.take(1) == []
    postgres.execute("delete from {schema}.stopped")
    assert len(consumer.take(1)) == 1
    consumer.close()


def test_processors_share_one_rate(postgres: PostgresPlace) -> None:
    consumers = [consume(postgres.make()) for _ in range(3)]
    waits = sorted(each.reserve(10) for _ in range(5) for each in consumers)
    assert waits[-1] == pytest.approx(1.4, abs=0.4)
    for each in consumers:
        each.close()


def test_a_lost_slot_releases_the_claim(postgres: PostgresPlace) -> None:
    """The rate cannot be asked: the entry is not held for ever."""
    delivery = QueuedMailDelivery(postgres.url)
    delivery.send(ANN, BOB, mail())
    transaction.commit()
    postgres.execute("alter table {schema}.pace rename to hidden")
    mailer = ScriptedMailer()
    processor = QueueProcessor(postgres.url, mailer, rate_limit=10.0)
    with pytest.raises(QueueError):
        processor.flush()
    assert mailer.sent == []
    postgres.execute("alter table {schema}.hidden rename to pace")
    assert processor.flush().sent == 1


# Messages


def test_a_large_message_is_stored_whole(postgres: PostgresPlace) -> None:
    message = mail() + os.urandom(1000).hex().encode() * (25 << 20 >> 11)
    queue = postgres.make()
    item = queue.stage(ANN, (BOB,), [message])
    batch = queue.batch()
    batch.prepare([item])
    batch.publish([item])
    consumer = consume(queue)
    [claim] = consumer.take(1)
    assert claim.read().message == message
    assert claim.beginning() == message[: 1 << 22]
    consumer.close()


def test_a_message_that_is_too_large_is_refused_with_the_limit() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 30

    with pytest.raises(QueueError, match=str(MOST_BYTES)):
        row("postgresql://db", "", [BOB], Huge())


def test_odd_ids_and_replies_fit_into_their_columns(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    long = "x" * 5000 + "@x.org"
    item = queue.stage(ANN, (BOB,), [f"Message-Id: <{long}>\n\n".encode()])
    queue.batch().publish([item])
    consumer = consume(queue)
    [claim] = consumer.take(1)
    from dataclasses import replace

    from postcommit._drain.contract import Settlement

    left = replace(claim.read(), attempts=1, last_reply="4\0 \udc80 later")
    consumer.settle(claim, Settlement(left=left, due=0.0))
    [seen] = postgres.look().queued
    assert seen.last_reply == "4 ? later"
    assert long.startswith(seen.message_id[:1000])
    consumer.close()


# URLs


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://h/db?postcommit_schema=Big", "small letters"),
        ("postgresql://h/db?postcommit_schema=a;drop", "small letters"),
        ("postgresql://h/db?postcommit_schema=pg_mail", "schema of the server"),
        ("postgresql://h/?postcommit_schema=information_schema", "of the server"),
        ("postgresql://h/db?postcommit_prepare=yes", "0 or 1"),
        ("postgresql://h/db?postcommit_shema=a", "no parameter postcommit_shema"),
        ("postgresql://h/d b", "%20"),
        ("postgresql://h/db#x", "after #"),
        ("mysql://h/db", "a URL such as postgresql://"),
    ],
)
def test_a_url_that_cannot_work_is_refused_where_it_is_given(
    url: str, said: str
) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        QueuedMailDelivery(url)
    assert caught.value.name == "queuePath"
    with pytest.raises(OptionError, match=said):
        QueueProcessor(url, ScriptedMailer())


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{SECRET}@127.0.0.1:1/db",
        f"postgres:/ann:{SECRET}@127.0.0.1:1/db?sslmode=disable",
        f"postgresql://ann@127.0.0.1:1/db?password={SECRET}",
        f"postgresql://ann@127.0.0.1:1/db?p%61ssword={SECRET}",
        f"postgresql://ann:%{SECRET}@127.0.0.1:1/db",
        f"postgresql://ann:{SECRET}@127.0.0.1:1/db?nonsense={SECRET}",
    ],
)
def test_a_url_with_a_password_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(OptionError, match=r"~/\.pgpass") as caught:
        QueuedMailDelivery(url)
    error: BaseException | None = caught.value
    shown = []
    while error is not None:
        shown += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    assert SECRET not in " ".join(shown)


def test_an_older_library_delivers_to_a_url(postgres: PostgresPlace) -> None:
    from postcommit.compat import zope_sendmail

    delivery = zope_sendmail.QueuedMailDelivery(postgres.url)
    delivery.send(ANN, [BOB], mail("a@x.org"))
    transaction.commit()
    assert queued(postgres) == ["a@x.org"]


def test_zcml_takes_a_url(postgres: PostgresPlace) -> None:
    context = xmlconfig.file("meta.zcml", __import__("postcommit"))
    xmlconfig.string(
        f"""
        <configure xmlns="http://namespaces.zope.org/zope"
                   xmlns:mail="http://namespaces.zope.org/mail">
          <mail:smtpMailer name="smtp" hostname="127.0.0.1" />
          <mail:queuedDelivery name="Mail" permission="zope.Public" mailer="smtp"
              queuePath="{postgres.url}" processorThread="false" />
        </configure>""",
        context,
    )
    getUtility(IMailDelivery, "Mail").send(ANN, BOB, mail("a@x.org"))
    transaction.commit()
    assert queued(postgres) == ["a@x.org"]


def test_settings_take_a_url(postgres: PostgresPlace) -> None:
    config = Configurator(settings={"mail.queue_path": postgres.url})
    config.include("postcommit.pyramid")
    config.commit()
    config.registry.getUtility(IMailDelivery).send(ANN, BOB, mail("a@x.org"))
    transaction.commit()
    assert queued(postgres) == ["a@x.org"]


def test_no_module_of_psycopg_is_imported_for_a_folder(tmp_path: Path) -> None:
    program = f"""
import sys, transaction, postcommit
from postcommit._cli.main import main
delivery = postcommit.QueuedMailDelivery({str(tmp_path / "queue")!r})
delivery.send("a@x.org", "b@x.org", "Subject: x\\n\\n")
transaction.commit()
main(["status", {str(tmp_path / "queue")!r}])
assert "psycopg" not in sys.modules
assert "postcommit._postgres" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["psycopg"] = None
import postcommit
try:
    postcommit.QueuedMailDelivery("postgresql://h/db").send("a@x.org", "b@x.org", "x")
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert "pip install 'postcommit[postgres]'" in done.stdout


def test_the_parameters_of_libpq_and_ours_are_kept_apart(
    postgres: PostgresPlace,
) -> None:
    url = f"{postgres.url}&connect_timeout=3&postcommit_prepare=1&"
    delivery = QueuedMailDelivery(url)
    for number in range(12):
        delivery.send(ANN, BOB, mail(f"{number:02}@x.org"))
        transaction.commit()
    assert QueueProcessor(url, ScriptedMailer()).flush().sent == 12
    parsed = parse_database_url(url)
    assert parsed.conninfo.endswith("/postgres?connect_timeout=3")
    assert parsed.prepares


def test_a_parameter_that_libpq_does_not_know_is_an_error_of_the_queue() -> None:
    with pytest.raises(QueueError, match="not a URL of libpq"):
        QueuedMailDelivery("postgresql://h/db?nonsense=1").send(ANN, BOB, mail())
    transaction.abort()


def test_an_error_does_not_show_the_row(postgres: PostgresPlace) -> None:
    postgres.execute("alter table {schema}.entry add check (message_id = 'x')")
    with pytest.raises(QueueError, match="check constraint") as caught:
        accept(postgres.make())
    assert caught.value.scope == "entry"
    assert ANN not in str(caught.value)


def test_a_forked_child_lets_go_of_the_sockets(postgres: PostgresPlace) -> None:
    """Otherwise the server would not notice the death of the parent."""
    queue = postgres.make()
    connection = queue.connections.take()
    queue.connections._forget()  # as in a child
    with pytest.raises(psycopg.OperationalError):
        connection.execute("select 1")
    assert queue.connections.rows("select 1", doing="ask") == [(1,)]


def test_the_copies_of_a_forked_child_do_nothing(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    accept(queue)
    consumer = consume(queue)
    claims = consumer.take(1)
    ours, consumer._process = consumer._process, -1  # as in a child
    consumer.release(claims)
    consumer.post("away", 60)
    consumer.close()
    assert consumer.take(1) == []
    [(paused,)] = postgres.execute("select paused_since from {schema}.process")
    assert paused is None
    held = "select from {schema}.entry where holder is not null"
    assert len(postgres.execute(held).fetchall()) == 1
    consumer._process = ours
    consumer.close()
    connection = queue.connections.take()
    connection.process = -1
    connection.__del__()
    assert not connection.closed
    connection.close()


def test_a_lock_whose_connection_was_closed_is_not_needed(
    postgres: PostgresPlace,
) -> None:
    queue = postgres.make()
    batch: Any = queue.batch()
    items = [queue.stage("", (ANN,), [mail("a@x.org")])]
    batch.prepare(items)
    batch._held.close()
    batch.publish(items)
    assert queued(postgres) == ["a@x.org"]


def test_a_batch_without_entries_does_nothing(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    batch = queue.batch()
    batch.prepare([])
    batch.publish([])
    batch.abandon([])
    batch.discard([])
    assert queued(postgres) == []


def sends(url: str) -> bool:
    """Create the tables of a queue, and return whether a mail goes through it."""
    migrate(parse_database_url(url))
    delivery = QueuedMailDelivery(url)
    for partner in (False, True):
        if partner:
            transaction.get().join(Partner(BEFORE))
        delivery.send(ANN, BOB, mail())
        transaction.commit()
    assert not [each.problem for each in PostgresOperators(url).check()][1:]
    return QueueProcessor(url, ScriptedMailer()).flush().sent == 2


@pytest.fixture
def database() -> Iterator[str]:
    """The name of a new database, which needs quotes and percent-encoding."""
    name = f"Mail @{os.urandom(4).hex()}/ü"
    with cluster().connect() as connection:
        connection.execute(f'create database "{name}"'.encode())
        yield name
        connection.execute(f'drop database "{name}" with (force)'.encode())


@pytest.mark.parametrize("service", [False, True])
def test_the_host_may_be_a_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str, service: bool
) -> None:
    """Of libpq, or of a service file. Then the URL has three slashes."""
    place = {"host": cluster().folder, "port": cluster().port}
    if service:
        file = tmp_path / "services"
        lines = ("[mail]", *(f"{key}={value}" for key, value in place.items()))
        file.write_text("\n".join(lines))
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        place = {"service": "mail"}
    parameters = "&".join(f"{key}={value}" for key, value in place.items())
    name = f"postgresql:///{quote(database, safe='')}?{parameters}"
    url = f"{name}&user=postgres&connect_timeout=60"
    assert parse_database_url(url).name == name
    assert sends(url)


@pytest.mark.parametrize("schema", ["order", "user", "_1"])
def test_a_schema_may_be_a_word_of_sql(schema: str, database: str) -> None:
    place = cluster().conninfo.removesuffix("postgres") + quote(database, safe="")
    assert sends(f"{place}?postcommit_schema={schema}")


# The schema


def new_schema() -> str:
    return cluster().url(f"fresh{os.urandom(4).hex()}")


def test_nothing_is_created_without_migrate() -> None:
    url = new_schema()
    delivery = QueuedMailDelivery(url)
    with pytest.raises(QueueError, match="postcommit migrate postgresql://127"):
        delivery.send(ANN, BOB, mail())
    transaction.abort()
    parsed = parse_database_url(url)
    assert migrate(parsed) == (0, 1)
    assert migrate(parsed) == (1, 1)
    delivery.send(ANN, BOB, mail())
    transaction.commit()


def test_a_schema_that_was_created_for_the_role_is_used() -> None:
    url = parse_database_url(new_schema())
    with cluster().connect() as connection:
        connection.execute(f"create schema {url.schema}".encode())
    assert migrate(url) == (0, 1)


def test_several_may_create_the_tables_at_once() -> None:
    """As containers do that are started together."""
    url = parse_database_url(new_schema())
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: migrate(url), range(6)))
    assert sorted(done) == [(0, 1), *[(1, 1)] * 5]


@pytest.mark.parametrize("table", ["version", "entry"])
def test_tables_of_another_program_are_left_alone(table: str) -> None:
    url = new_schema()
    parsed = parse_database_url(url)
    with cluster().connect() as connection:
        connection.execute(f"create schema {parsed.schema}".encode())
        connection.execute(f"create table {parsed.schema}.{table} (x int)".encode())
    with pytest.raises(QueueError, match="tables of another program"):
        migrate(parsed)
    if table == "version":
        with pytest.raises(QueueError, match="tables of another program"):
            PostgresQueue(url)


@pytest.mark.parametrize(
    ("number", "said"), [(0, "run 'postcommit migrate"), (2, "a newer postcommit")]
)
def test_another_version_is_refused(
    postgres: PostgresPlace, number: int, said: str
) -> None:
    postgres.execute(f"update {{schema}}.version set number = {number}")
    with pytest.raises(QueueError, match=said):
        postgres.make()
    with pytest.raises(QueueError, match=f"version {number}"):
        migrate(parse_database_url(postgres.url))
    postgres.execute("delete from {schema}.version")
    with pytest.raises(QueueError, match="version 0"):
        postgres.make()


def test_a_database_that_is_not_utf_8_is_refused() -> None:
    with cluster().connect() as connection:
        connection.execute("drop database if exists latin")
        connection.execute(
            "create database latin encoding 'LATIN1' template template0 locale 'C'"
        )
    url = cluster().conninfo.removesuffix("postgres") + "latin"
    with pytest.raises(QueueError, match="LATIN1"):
        migrate(parse_database_url(url))


# Roles


@pytest.fixture
def role(postgres: PostgresPlace) -> Any:
    """A function that makes a role with these grants, and returns its URL."""
    name = f"role{os.urandom(4).hex()}"

    def make(*grants: str) -> str:
        postgres.execute(f"create role {name} login")
        postgres.execute(f"grant usage on schema {{schema}} to {name}")
        postgres.execute(f"grant select on {{schema}}.version to {name}")
        for grant in grants:
            right, _, tables = grant.partition(" on ")
            for table in tables.split(", "):
                postgres.execute(f"grant {right} on {{schema}}.{table} to {name}")
        return postgres.url.replace("//postgres@", f"//{name}@")

    yield make
    postgres.execute(f"drop owned by {name}")
    postgres.execute(f"drop role {name}")


def test_a_sender_alone_only_inserts_and_reads_what_was_removed(
    postgres: PostgresPlace, role: Callable[..., str]
) -> None:
    delivery = QueuedMailDelivery(role("insert on entry", "select on removed"))
    delivery.send(ANN, BOB, mail("a@x.org"))
    transaction.commit()
    assert queued(postgres) == ["a@x.org"]


def test_a_sender_beside_others_needs_the_batches(
    postgres: PostgresPlace, role: Callable[..., str]
) -> None:
    url = role(
        "select, insert, update, delete on entry, batch",
        "select on removed",
    )
    for end in (transaction.commit, transaction.abort):
        transaction.get().join(Partner(BEFORE))
        QueuedMailDelivery(url).send(ANN, BOB, mail("a@x.org"))
        end()
    assert queued(postgres) == ["a@x.org"]


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_refused_insert_leaves_nothing_behind_and_says_nothing_else(
    postgres: PostgresPlace,
    role: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
    is_alone: bool,
) -> None:
    delivery = QueuedMailDelivery(role("insert on entry", "select on removed"))
    delivery.send(ANN, BOB, mail("a@x.org"))
    if is_alone:
        delivery.send(ANN, BOB, mail("b@x.org"))
    else:
        transaction.get().join(Partner(BEFORE))
    with pytest.raises(QueueError, match="permission denied for table batch"):
        transaction.commit()
    transaction.abort()
    assert "Left behind" not in caplog.text
    assert postgres.execute("select from {schema}.entry").fetchall() == []


def test_an_entry_that_may_not_be_removed_is_left_behind_and_logged(
    postgres: PostgresPlace,
    role: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The role may insert into both tables, but not lock the row of the batch."""
    url = role("insert on entry, batch", "select on removed")
    delivery = QueuedMailDelivery(url)
    for name in ("a@x.org", "b@x.org"):
        delivery.send(ANN, BOB, mail(name))
    with pytest.raises(QueueError, match="permission denied for table batch"):
        transaction.commit()
    transaction.abort()
    assert "Left behind, and in doubt: batch" in caplog.text
    assert len(postgres.look().in_doubt) == 2


def test_a_processor_needs_these_rights(
    postgres: PostgresPlace, role: Callable[..., str]
) -> None:
    url = role(
        "select, insert, update, delete on entry, process",
        "select, update on pace",
        "select on stopped, batch",
        "select, delete on removed",
    )
    QueuedMailDelivery(url).send(ANN, BOB, mail("a@x.org"))
    transaction.commit()
    processor = QueueProcessor(url, ScriptedMailer(), rate_limit=100.0)
    assert processor.flush().sent == 1


@pytest.mark.parametrize("grants", [(), ("select on entry",)])
def test_a_role_without_rights_is_told_which(
    postgres: PostgresPlace, role: Callable[..., str], grants: tuple[str, ...]
) -> None:
    url = role(*grants)
    with pytest.raises(QueueError, match=r'grant insert on table "\w+"\.entry'):
        QueuedMailDelivery(url).send(ANN, BOB, mail())
    transaction.abort()
    with pytest.raises(QueueError, match=r"grant \w+ on table"):
        QueueProcessor(url, ScriptedMailer()).start()
    postgres.execute(
        f"revoke usage on schema {{schema}} from {parse_role(url)}"
    )
    with pytest.raises(QueueError, match="grant usage on schema"):
        PostgresQueue(url)


def parse_role(url: str) -> str:
    return url.partition("//")[2].partition("@")[0]


def test_another_isolation_of_the_role_changes_nothing(
    postgres: PostgresPlace, role: Callable[..., str]
) -> None:
    url = role("all on entry, batch, process, pace, stopped, removed")
    postgres.execute(
        f"alter role {parse_role(url)} set default_transaction_isolation"
        " = 'serializable'"
    )
    delivery = QueuedMailDelivery(url)
    for number in range(30):
        delivery.send(ANN, BOB, mail(f"{number}@x.org"))
    transaction.commit()
    mailer = ScriptedMailer()
    processor = QueueProcessor(url, mailer, workers=4)
    assert processor.flush().sent == 30
    assert len(set(mailer.sent)) <= 30


def test_a_server_that_was_restarted_is_not_noticed_by_a_sender(
    postgres: PostgresPlace,
) -> None:
    delivery = QueuedMailDelivery(postgres.url)
    for number in range(3):
        delivery.send(ANN, BOB, mail(f"{number}@x.org"))
        transaction.commit()
        postgres.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where pid <> pg_backend_pid() and application_name = 'postcommit'"
        )
    assert len(queued(postgres)) == 3


