"""Mail in the application's own transaction, by a session of SQLAlchemy."""
from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
import transaction
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.testing import DummyRequest
from sqlalchemy import orm
from tests.contract.steps import consume
from tests.contract.steps import take_all
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import cluster
from tests.support.postgresplace import PostgresPlace
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import PartnerFailed
from tests.support.transactions import explicit
from tests.support.transactions import failing
from tests.support.transactions import mail
from zope.interface.verify import verifyObject

from postcommit import OutboxMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit.errors import MissingExtraError
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IOutboxMailDelivery
from postcommit.pyramid import get_mail_delivery
from postcommit.testing import FakeClock
from postcommit.testing import RecordingMailer


ANN, BOB = "ann@example.org", "bob@example.org"

_OPEN = """
select query from pg_stat_activity
where state like 'idle in transaction%' and query like '%{schema}%'"""


class Base(orm.DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    name: orm.Mapped[str] = orm.mapped_column(primary_key=True)


class Shop:
    """A session on the database of a queue."""

    def __init__(self, place: PostgresPlace, manager: Any, **options: Any) -> None:
        url = cluster().conninfo.replace("postgresql:", "postgresql+psycopg:")
        self.place = place
        self.engine = sqlalchemy.create_engine(
            url,
            execution_options={"schema_translate_map": {None: place.schema}},
            **options,
        )
        Base.metadata.create_all(self.engine)
        self.manager = manager
        self.session = orm.Session(self.engine)

    def registered(self) -> Shop:
        zope.sqlalchemy.register(self.session, transaction_manager=self.manager)
        return self

    def delivery(self, **options: Any) -> OutboxMailDelivery:
        return OutboxMailDelivery(
            self.session,
            schema=self.place.schema,
            transaction_manager=self.manager,
            **options,
        )

    def committed(self) -> tuple[list[str], list[str]]:
        orders = self.place.execute("select name from {schema}.orders order by name")
        mails = sorted(seen.message_id for seen in self.place.look().queued)
        return [name for (name,) in orders], mails


@pytest.fixture
def shop(postgres: PostgresPlace) -> Iterator[Shop]:
    made = Shop(postgres, explicit()).registered()
    made.manager.begin()
    yield made
    if made.manager._txn is not None:
        made.manager.abort()
    made.session.close()
    made.engine.dispose()


def test_the_contract_is_kept(shop: Shop) -> None:
    delivery = shop.delivery()
    verifyObject(IOutboxMailDelivery, delivery)
    assert shop.place.schema in repr(delivery)
    with pytest.raises(AttributeError):
        delivery.schema = "other"


def test_data_and_mail_are_committed_together(shop: Shop) -> None:
    shop.session.add(Order(name="a"))
    name = shop.delivery().send(ANN, BOB, mail("a@x.org"))
    assert shop.committed() == ([], [])
    shop.manager.commit()
    assert shop.committed() == (["a"], ["a@x.org"])
    assert name == "a@x.org"
    mailer = ScriptedMailer()
    assert QueueProcessor(shop.place.url, mailer).flush().sent == 1
    [(sender, recipients, message)] = mailer.attempts
    assert (sender, recipients) == (ANN, (BOB,))
    assert message == mail("a@x.org")


def test_mail_alone_is_committed(shop: Shop) -> None:
    shop.delivery().send(ANN, [ANN, BOB], mail("a@x.org"))
    shop.manager.commit()
    assert shop.committed() == ([], ["a@x.org"])


def test_terms_are_columns_of_the_row(shop: Shop) -> None:
    clock, mailer = FakeClock(), RecordingMailer()
    processor = QueueProcessor(shop.place.url, mailer, clock=clock)
    delivery = shop.delivery()
    later = delivery.send(ANN, BOB, mail("later@x"), not_before=timedelta(hours=1))
    code = delivery.send(ANN, BOB, mail("code@x"), expires=timedelta(minutes=15))
    bulk = delivery.send(ANN, BOB, mail("bulk@x"), bulk=True)
    past = datetime(2020, 1, 1, tzinfo=UTC)
    new = delivery.send(ANN, BOB, mail("new@x"), not_before=past)
    shop.manager.commit()
    assert processor.flush().sent == 3
    sent = [each.message_id for each in mailer.outbox]
    assert {*sent[:2]} == {code, new}
    assert sent[2:] == [bulk]
    clock.advance(3601)
    assert processor.flush().sent == 1
    assert mailer.outbox[3].message_id == later
    shop.manager.begin()
    shop.delivery().send(ANN, BOB, mail("code@x"), expires=timedelta(hours=2))
    shop.manager.commit()
    clock.advance(7200)
    assert processor.flush().rejected == 1


def test_terms_that_can_never_be_kept_leave_the_transaction_alone(shop: Shop) -> None:
    shop.session.add(Order(name="a"))
    for terms in ({"expires": 5}, {"not_before": "soon"}, {"bulk": None}):
        with pytest.raises(OptionError, match=next(iter(terms))):
            shop.delivery().send(ANN, BOB, mail("a@x"), **terms)
    with pytest.raises(OptionError, match="message id"):
        shop.delivery().cancel("")
    shop.manager.commit()
    assert shop.committed() == (["a"], [])


@pytest.mark.parametrize("terms", [{}, {"bulk": True}, {"not_before": 2e9}])
@pytest.mark.parametrize("is_registered", [True, False])
def test_a_mail_is_called_off_with_the_data(
    postgres: PostgresPlace, terms: Any, is_registered: bool
) -> None:
    shop = Shop(postgres, explicit())
    if is_registered:
        shop.registered()
    shop.manager.begin()
    name = shop.delivery().send(ANN, BOB, mail("a@x"), **terms)
    shop.manager.commit()
    for end in (shop.manager.abort, shop.manager.commit):
        shop.manager.begin()
        assert shop.delivery().cancel(f" <{name}> ") is True
        assert shop.delivery().cancel(name) is False
        assert QueueProcessor(postgres.url, ScriptedMailer()).flush().sent == 0
        end()
        assert shop.committed()[1] == [name] * (end == shop.manager.abort)
    shop.manager.begin()
    assert shop.delivery().cancel(name) is False, "it is unknown"
    shop.manager.commit()
    assert postgres.execute(_OPEN).fetchall() == []
    shop.session.close()
    shop.engine.dispose()


def test_a_savepoint_takes_a_cancel_back(shop: Shop) -> None:
    first = shop.delivery().send(ANN, BOB, mail("a@x"))
    second = shop.delivery().send(ANN, BOB, mail("b@x"))
    assert shop.delivery().cancel(first), "it was sent in the same transaction"
    savepoint = shop.manager.savepoint()
    assert shop.delivery().cancel(second)
    savepoint.rollback()
    shop.manager.commit()
    assert shop.committed()[1] == [second]


def test_what_is_being_sent_is_not_called_off(shop: Shop) -> None:
    name = shop.delivery().send(ANN, BOB, mail("a@x"))
    shop.manager.commit()
    consumer = consume(shop.place.make())
    claims = take_all(consumer)
    shop.manager.begin()
    assert not shop.delivery().cancel(name)
    consumer.release(claims)
    assert shop.delivery().cancel(name)
    shop.manager.commit()
    consumer.close()
    assert shop.committed()[1] == []


def test_an_unregistered_session_joins_the_transaction(postgres: PostgresPlace) -> None:
    shop = Shop(postgres, explicit())
    shop.manager.begin()
    shop.delivery().send(ANN, BOB, mail("a@x.org"))
    shop.manager.commit()
    assert shop.committed() == ([], ["a@x.org"])
    shop.engine.dispose()


@pytest.mark.parametrize("stage", ["commit", "tpc_vote"])
@pytest.mark.parametrize("partner", [BEFORE, AFTER])
def test_an_abort_takes_both_back(shop: Shop, stage: str, partner: str) -> None:
    if (stage, partner) == ("tpc_vote", AFTER):
        partner = "~a partner"  # the session votes last, and commits in its vote
    shop.manager.get().join(failing(stage, partner))
    shop.session.add(Order(name="a"))
    shop.delivery().send(ANN, BOB, mail("a@x.org"))
    with pytest.raises(PartnerFailed):
        shop.manager.commit()
    shop.manager.abort()
    assert shop.committed() == ([], [])


def test_a_savepoint_takes_both_back(shop: Shop) -> None:
    shop.session.add(Order(name="a"))
    shop.delivery().send(ANN, BOB, mail("a@x.org"))
    savepoint = shop.manager.savepoint()
    shop.session.add(Order(name="b"))
    shop.delivery().send(ANN, BOB, mail("b@x.org"))
    savepoint.rollback()
    shop.manager.commit()
    assert shop.committed() == (["a"], ["a@x.org"])


def test_a_scoped_session_is_that_of_the_thread(postgres: PostgresPlace) -> None:
    shop = Shop(postgres, transaction.manager)
    scoped = orm.scoped_session(orm.sessionmaker(shop.engine))
    zope.sqlalchemy.register(scoped)
    delivery = OutboxMailDelivery(scoped, schema=postgres.schema)

    def send(name: str) -> None:
        delivery.send(ANN, BOB, mail(name))
        transaction.commit()

    send("a@x.org")
    thread = threading.Thread(target=send, args=("b@x.org",))
    thread.start()
    thread.join()
    assert shop.committed()[1] == ["a@x.org", "b@x.org"]
    scoped.remove()
    shop.engine.dispose()


def test_a_processor_takes_nothing_of_an_open_transaction(shop: Shop) -> None:
    shop.delivery().send(ANN, BOB, mail("a@x.org"))
    shop.session.flush()
    assert QueueProcessor(shop.place.url, ScriptedMailer()).flush().sent == 0
    shop.manager.commit()
    assert QueueProcessor(shop.place.url, ScriptedMailer()).flush().sent == 1


def test_an_object_that_is_not_complete_yet_is_not_flushed(shop: Shop) -> None:
    order = Order()
    shop.session.add(order)
    shop.delivery().send(ANN, BOB, mail("a@x.org"))
    order.name = "a"
    shop.manager.commit()
    assert shop.committed() == (["a"], ["a@x.org"])


def test_a_default_sender_is_used(shop: Shop) -> None:
    delivery = shop.delivery(default_sender="Shop <shop@example.org>")
    delivery.send(None, BOB, "Subject: x\n\nx")
    shop.manager.commit()
    [(sender,)] = shop.place.execute("select sender from {schema}.entry")
    assert sender == "shop@example.org"


@pytest.mark.parametrize("session", [None, "session", orm.Session])
def test_what_is_no_session_is_refused(session: Any) -> None:
    with pytest.raises(OptionError, match="session of SQLAlchemy"):
        OutboxMailDelivery(session)


def test_a_schema_that_cannot_be_is_refused(shop: Shop) -> None:
    with pytest.raises(OptionError, match="schema"):
        OutboxMailDelivery(shop.session, schema='a"; drop table')


def test_another_database_is_refused() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    session = orm.Session(engine)
    with pytest.raises(QueueError, match="not sqlite"):
        OutboxMailDelivery(session).send(ANN, BOB, mail())
    transaction.abort()
    engine.dispose()


def test_missing_tables_are_named_with_the_command(shop: Shop) -> None:
    delivery = OutboxMailDelivery(
        shop.session, schema="nowhere", transaction_manager=shop.manager
    )
    with pytest.raises(QueueError, match="postcommit migrate"):
        delivery.send(ANN, BOB, mail())


@pytest.mark.parametrize(
    ("number", "said"), [(0, "postcommit migrate URL"), (2, "newer postcommit")]
)
def test_tables_of_another_version_are_refused_as_by_a_queued_delivery(
    shop: Shop, number: int, said: str
) -> None:
    shop.place.execute("update {schema}.version set number = %s", [number])
    shop.session.add(Order(name="a"))
    with pytest.raises(QueueError, match=f"version {number}.*{said}"):
        shop.delivery().send(ANN, BOB, mail())
    with pytest.raises(QueueError, match=f"version {number}.*{said}"):
        shop.delivery().cancel("a@x")
    with pytest.raises(QueueError, match=f"version {number}"):
        QueuedMailDelivery(shop.place.url).send(ANN, BOB, mail())
    transaction.abort()
    shop.manager.commit()
    assert shop.committed() == (["a"], []), "the transaction may go on without it"
    shop.place.execute("delete from {schema}.version")
    shop.manager.begin()
    with pytest.raises(QueueError, match="version 0"):
        shop.delivery().send(ANN, BOB, mail())


def test_the_version_is_read_once_for_all_deliveries_of_an_engine(
    shop: Shop,
) -> None:
    statements: list[str] = []

    def note(*args: Any) -> None:
        statements.append(args[2])

    sqlalchemy.event.listen(shop.engine, "before_cursor_execute", note)
    for number in range(3):
        shop.delivery().send(ANN, BOB, mail(f"{number}@x"))
        shop.manager.commit()
        shop.manager.begin()
    words = [each.split()[0].lower() for each in statements]
    assert words == ["select", "select", "insert", "insert", "insert"]
    other = PostgresPlace()
    try:
        other.execute("update {schema}.version set number = 2")
        delivery = OutboxMailDelivery(
            shop.session, schema=other.schema, transaction_manager=shop.manager
        )
        with pytest.raises(QueueError, match="version 2"):
            delivery.send(ANN, BOB, mail())
    finally:
        shop.manager.abort()
        other.end()


def test_other_errors_are_those_of_sqlalchemy(shop: Shop) -> None:
    shop.place.execute("alter table {schema}.entry alter message_id type varchar(3)")
    with pytest.raises(sqlalchemy.exc.DataError):
        shop.delivery().send(ANN, BOB, mail())


def test_a_reply_to_commit_that_is_lost_keeps_both_or_none(shop: Shop) -> None:
    """The server ends the connection before the COMMIT is sent: nothing is there."""
    shop.session.add(Order(name="a"))
    shop.delivery().send(ANN, BOB, mail("a@x.org"))
    shop.session.flush()
    shop.place.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where state = 'idle in transaction'"
    )
    with pytest.raises(sqlalchemy.exc.OperationalError):
        shop.manager.commit()
    shop.manager.abort()
    assert shop.committed() == ([], [])


def test_a_role_needs_to_insert_only(postgres: PostgresPlace) -> None:
    role = f"writer_{postgres.schema}"
    for grant in (
        f"create role {role} login",
        f"grant usage on schema {{schema}} to {role}",
        f"grant insert on {{schema}}.entry to {role}",
    ):
        postgres.execute(grant)
    url = cluster().conninfo.replace("postgresql:", "postgresql+psycopg:")
    engine = sqlalchemy.create_engine(url.replace("postgres@", f"{role}@"))
    with orm.Session(engine) as session:
        OutboxMailDelivery(session, schema=postgres.schema).send(ANN, BOB, mail("a@x"))
        transaction.commit()
    engine.dispose()
    assert [seen.message_id for seen in postgres.look().queued] == ["a@x"]
    postgres.execute(f"drop owned by {role}")
    postgres.execute(f"drop role {role}")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zope.sqlalchemy", None)
    with pytest.raises(MissingExtraError, match=r"postcommit\[sqlalchemy\]"):
        OutboxMailDelivery(orm.Session())


# Pyramid


def pyramid(**settings: str) -> Configurator:
    named = {f"mail.{name}": value for name, value in settings.items()}
    config = Configurator(settings=named)
    config.include("postcommit.pyramid")
    config.commit()
    return config


def test_a_request_sends_by_its_session(shop: Shop) -> None:
    config = pyramid(session="dbsession", queue_path=shop.place.url)
    request = DummyRequest(dbsession=shop.session, tm=shop.manager)
    request.registry = config.registry
    for name in ("", "outbox"):
        found = get_mail_delivery(request, name)
        assert isinstance(found, OutboxMailDelivery)
        found.send(ANN, BOB, mail(f"{name}1@x.org"))
    assert isinstance(get_mail_delivery(request, "queued"), QueuedMailDelivery)
    shop.manager.commit()
    assert shop.committed()[1] == ["1@x.org", "outbox1@x.org"]
    with pytest.raises(RuntimeError, match=r"request\.mail_delivery"):
        config.registry.getUtility(IMailDelivery).send(ANN, BOB, mail())
    with pytest.raises(RuntimeError, match=r"request\.mail_delivery"):
        config.registry.getUtility(IMailDelivery).cancel("1@x.org")
    request.dbsession = None
    with pytest.raises(ConfigurationError, match="session=dbsession"):
        get_mail_delivery(request)


def test_without_a_queue_the_schema_is_the_default() -> None:
    config = pyramid(session="dbsession")
    request = DummyRequest(dbsession=orm.Session(), tm=None)
    request.registry = config.registry
    found: Any = get_mail_delivery(request)
    assert found.schema == "postcommit"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"session": "db session"}, r"mail\.session='db session': must be the attrib"),
        ({"session": "s", "queue_path": "/queue"}, r"queue_path='/queue': mail\.ses"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        pyramid(**settings)
