"""Mail beside an SQL database, and subscribers that write to it."""
from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import zope.sqlalchemy
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from tests.support.transactions import AFTER
from tests.support.transactions import MANAGERS
from tests.support.transactions import Mailer
from tests.support.transactions import PartnerFailed
from tests.support.transactions import accepted
from tests.support.transactions import begun
from tests.support.transactions import failing
from tests.support.transactions import files
from tests.support.transactions import mail
from transaction.interfaces import ITransactionManager
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit._maildir.store import Store


ANN, BOB = "ann@example.org", "bob@example.org"


class Base(orm.DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    name: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    state: orm.Mapped[str]
    # Checked by the database in its commit, not before.
    parent: orm.Mapped[str | None] = orm.mapped_column(
        sqlalchemy.ForeignKey("orders.name", deferrable=True, initially="DEFERRED")
    )


class Shop:
    """A database and a session, in the transactions of one manager."""

    def __init__(self, path: Path, manager: ITransactionManager) -> None:
        self.path = path
        self.manager = manager
        self.engine = sqlalchemy.create_engine(f"sqlite:///{path}")
        sqlalchemy.event.listen(self.engine, "connect", _check_foreign_keys)
        Base.metadata.create_all(self.engine)
        self.session = orm.Session(self.engine)
        zope.sqlalchemy.register(self.session, transaction_manager=manager)

    def order(self, delivery: Any, name: str = "a", parent: str | None = None) -> None:
        self.session.add(Order(name=name, state="ordered", parent=parent))
        delivery.send(ANN, BOB, mail(f"{name}@example.org"))

    def set_state(self, name: str, state: str) -> None:
        found = self.session.get(Order, name)
        assert found is not None
        found.state = state

    def seen_by_others(self) -> dict[str, str]:
        """What is committed, by a connection that no pool has kept."""
        with closing(sqlite3.connect(self.path)) as connection:
            return dict(connection.execute("SELECT name, state FROM orders"))


def _check_foreign_keys(connection: Any, record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


@pytest.fixture(params=MANAGERS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with begun(request.param) as manager:
        shop = Shop(tmp_path / "shop.sqlite", manager)
        yield shop
    shop.session.close()
    shop.engine.dispose()


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def queued(shop: Shop, queue: Path) -> QueuedMailDelivery:
    return QueuedMailDelivery(str(queue), transaction_manager=shop.manager)


def direct(shop: Shop, subscriber: Callable[[Any], object]) -> DirectMailDelivery:
    mailer = Mailer(notify=subscriber)
    return DirectMailDelivery(mailer, transaction_manager=shop.manager)


# The mail and the database


def test_our_vote_is_cast_before_the_database_commits(
    shop: Shop, queue: Path, queued: QueuedMailDelivery
) -> None:
    seen = []
    sqlalchemy.event.listen(
        shop.engine, "commit", lambda connection: seen.extend(files(queue))
    )
    shop.order(queued)
    shop.manager.commit()
    [at_commit] = seen
    assert at_commit.startswith("tmp/")
    assert ":prepared=" in at_commit
    assert accepted(queue) == ["a@example.org"]
    assert shop.seen_by_others() == {"a": "ordered"}


def test_a_database_that_refuses_to_commit_sends_no_mail(
    shop: Shop, queue: Path, queued: QueuedMailDelivery
) -> None:
    mailer = Mailer()
    delivery = DirectMailDelivery(mailer, transaction_manager=shop.manager)
    shop.order(queued, "a", parent="missing")
    shop.order(delivery, "b")
    with pytest.raises(IntegrityError):
        shop.manager.commit()
    shop.manager.abort()
    assert files(queue) == []
    assert mailer.sent == []
    assert shop.seen_by_others() == {}


def test_an_interrupt_right_after_the_database_has_committed_leaves_a_doubt(
    shop: Shop, queue: Path, queued: QueuedMailDelivery
) -> None:
    @sqlalchemy.event.listens_for(shop.session, "after_commit")
    def interrupt(session: orm.Session) -> None:
        raise KeyboardInterrupt

    shop.order(queued)
    with pytest.raises(KeyboardInterrupt):
        shop.manager.commit()
    shop.manager.abort()
    gc.collect()  # the traceback kept the lock that shows a living transaction
    assert shop.seen_by_others() == {"a": "ordered"}
    assert len(list(Store(str(queue)).in_doubt())) == len(files(queue)) == 1


def test_a_mail_that_cannot_be_prepared_keeps_the_database_from_committing(
    shop: Shop, queue: Path, queued: QueuedMailDelivery
) -> None:
    shop.order(queued)
    (queue / "new").rmdir()
    with pytest.raises(OSError, match="queue"):
        shop.manager.commit()
    shop.manager.abort()
    assert files(queue) == []
    assert shop.seen_by_others() == {}


def test_beside_both_databases_ours_is_in_between(
    shop: Shop, queue: Path, queued: QueuedMailDelivery, tmp_path: Path
) -> None:
    with closing(DB(FileStorage(str(tmp_path / "Data.fs")))) as db:
        connection = db.open(shop.manager)
        connection.root()["a"] = 1
        shop.order(queued)
        shop.session.flush()
        resources = sorted(shop.manager.get()._resources, key=lambda r: r.sortKey())
        assert [type(resource).__name__ for resource in resources] == [
            "Connection",
            "DataManager",
            "SessionDataManager",
        ]
        shop.manager.commit()
        connection.close()
    assert accepted(queue) == ["a@example.org"]


# Subscribers


def test_a_subscriber_writes_through_the_same_session(shop: Shop) -> None:
    ended = []

    def confirm(event: Any) -> None:
        assert shop.manager.get() is not ended[0]
        shop.set_state("a", "confirmed")

    shop.order(direct(shop, confirm))
    ended.append(shop.manager.get())
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "confirmed"}
    shop.manager.begin()
    shop.set_state("a", "later")
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "later"}


def test_a_subscriber_that_raises_harms_nothing_else(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def confirm(event: Any) -> None:
        name = event.messageId.removesuffix("@example.org")
        shop.set_state(name, "confirmed")
        shop.session.flush()
        if name == "b":
            raise PartnerFailed("in the subscriber")

    delivery = direct(shop, confirm)
    for name in ("a", "b", "c"):
        shop.order(delivery, name)
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "confirmed", "b": "ordered", "c": "confirmed"}
    assert "in the subscriber" in caplog.text


def test_a_subscriber_whose_change_is_refused_harms_nothing_else(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def confirm(event: Any) -> None:
        name = event.messageId.removesuffix("@example.org")
        shop.session.add(Order(name=f"{name}2", state="new", parent="missing"))

    shop.order(direct(shop, confirm))
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "ordered"}
    assert "IntegrityError" in caplog.text


def test_a_subscriber_whose_row_was_changed_by_another_is_called_again(
    shop: Shop,
) -> None:
    calls: list[Any] = []

    def confirm(event: Any) -> None:
        calls.append(event)
        shop.set_state("a", "confirmed")
        if len(calls) == 1:
            # In PostgreSQL this may be a serialisation failure, too.
            raise orm.exc.StaleDataError

    shop.order(direct(shop, confirm))
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "confirmed"}
    assert len(calls) == 2


def test_a_subscriber_may_send_into_a_queue(
    shop: Shop, queue: Path, queued: QueuedMailDelivery
) -> None:
    def confirm(event: Any) -> None:
        shop.order(queued, "receipt")

    shop.order(direct(shop, confirm))
    shop.manager.commit()
    assert accepted(queue) == ["receipt@example.org"]
    assert shop.seen_by_others() == {"a": "ordered", "receipt": "ordered"}


def test_a_subscriber_may_send_directly_and_hear_of_that_too(shop: Shop) -> None:
    def confirm(event: Any) -> None:
        name = event.messageId.removesuffix("@example.org")
        shop.set_state(name, "confirmed")
        if name == "a":
            shop.order(delivery, "receipt")

    delivery = direct(shop, confirm)
    shop.order(delivery)
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "confirmed", "receipt": "confirmed"}


def test_what_hooks_of_others_write_is_dropped_as_ever(shop: Shop) -> None:
    def hook(committed: bool, name: str) -> None:
        with pytest.raises(ValueError, match="expected txn status"):
            shop.session.add(Order(name=name, state="from a hook"))
        shop.session.close()

    current = shop.manager.get()
    current.addAfterCommitHook(hook, ("before",))
    shop.order(direct(shop, lambda event: shop.set_state("a", "confirmed")))
    current.addBeforeCommitHook(current.addAfterCommitHook, (hook, ("after",)))
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "confirmed"}


def test_events_are_told_where_another_resource_fails_in_the_end(shop: Shop) -> None:
    shop.order(direct(shop, lambda event: shop.set_state("a", "confirmed")))
    shop.manager.get().join(failing("tpc_finish", AFTER))
    with pytest.raises(PartnerFailed):
        shop.manager.commit()
    shop.manager.abort()
    assert shop.seen_by_others() == {"a": "confirmed"}
