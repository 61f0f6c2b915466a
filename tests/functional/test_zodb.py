"""Mail beside a ZODB, and subscribers that write to it."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import transaction
from persistent.mapping import PersistentMapping
from tests.support.transactions import AFTER
from tests.support.transactions import MANAGERS
from tests.support.transactions import Hearing
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
from ZODB.POSException import ConflictError

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._mail.report import Reply
from postcommit.interfaces import Status
from postcommit.testing import RecordingMailer


ANN, BOB = "ann@example.org", "bob@example.org"


class Shop:
    """A database and its connection, in the transactions of one manager."""

    def __init__(self, db: DB, manager: ITransactionManager) -> None:
        self.db = db
        self.manager = manager
        self.connection = db.open(manager)
        self.root = self.connection.root()

    def seen_by_others(self) -> dict[str, Any]:
        """What is committed, without our connection."""
        with self.db.transaction(note="look") as connection:
            return dict(connection.root())

    def transactions(self) -> list[str]:
        """The descriptions of the transactions in the storage."""
        return [record.description.decode() for record in self.db.storage.iterator()]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[DB]:
    db = DB(FileStorage(str(tmp_path / "Data.fs")))
    yield db
    db.close()


@pytest.fixture(params=MANAGERS)
def shop(request: pytest.FixtureRequest, db: DB) -> Iterator[Shop]:
    with begun(request.param) as manager:
        shop = Shop(db, manager)
        yield shop
    shop.connection.close()


def direct(
    shop: Shop, subscriber: Callable[[Any], object], **mailer: Any
) -> DirectMailDelivery:
    return DirectMailDelivery(
        Mailer(notify=subscriber, **mailer), transaction_manager=shop.manager
    )


def order(shop: Shop, delivery: Any, name: str = "a") -> None:
    shop.root[name] = "ordered"
    delivery.send(ANN, BOB, mail(f"{name}@example.org"))


# The mail and the database


def test_ours_comes_after_the_storage(shop: Shop, tmp_path: Path) -> None:
    queued = QueuedMailDelivery(
        str(tmp_path / "queue"), transaction_manager=shop.manager
    )
    seen = []

    class Looking(Mailer):
        def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
            seen.append((shop.seen_by_others(), accepted(tmp_path / "queue")))
            return super().send(fromaddr, toaddrs, message)

    order(shop, DirectMailDelivery(Looking(), transaction_manager=shop.manager))
    order(shop, queued)
    resources = shop.manager.get()._resources
    keys = sorted(resource.sortKey() for resource in resources)
    assert keys[0] == shop.connection.sortKey()
    shop.manager.commit()
    assert seen == [({"a": "ordered"}, ["a@example.org"])]


def test_a_conflict_sends_no_mail_and_its_retry_one(
    shop: Shop, tmp_path: Path
) -> None:
    queue = tmp_path / "queue"
    delivery = QueuedMailDelivery(str(queue), transaction_manager=shop.manager)
    shop.manager.abort()
    tries = 0

    def work() -> None:
        nonlocal tries
        tries += 1
        order(shop, delivery)
        if tries == 1:
            with shop.db.transaction() as other:
                other.root()["other"] = "faster"

    shop.manager.run(work)
    assert tries == 2
    assert accepted(queue) == ["a@example.org"]
    assert len(files(queue)) == 1


def test_a_conflict_without_a_retry_leaves_no_file(shop: Shop, tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    delivery = QueuedMailDelivery(str(queue), transaction_manager=shop.manager)
    order(shop, delivery)
    with shop.db.transaction() as other:
        other.root()["other"] = "faster"
    with pytest.raises(ConflictError):
        shop.manager.commit()
    shop.manager.abort()
    assert files(queue) == []


def test_savepoints_of_both_go_together(shop: Shop, tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    delivery = QueuedMailDelivery(str(queue), transaction_manager=shop.manager)
    order(shop, delivery, "a")
    savepoint = shop.manager.savepoint()
    order(shop, delivery, "b")
    savepoint.rollback()
    order(shop, delivery, "c")
    shop.manager.commit()
    assert sorted(shop.seen_by_others()) == ["a", "c"]
    assert accepted(queue) == ["a@example.org", "c@example.org"]


# Subscribers


def test_a_subscriber_writes_through_the_same_connection(shop: Shop) -> None:
    ended = []

    def confirm(event: Any) -> None:
        assert shop.manager.get() is not ended[0]
        assert shop.root["a"] == "ordered"
        shop.manager.get().note("confirmed")
        shop.root["a"] = "confirmed"
        shop.root[event.messageId] = event.recipients

    order(shop, direct(shop, confirm))
    ended.append(shop.manager.get())
    ended[0].note("ordered")
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "confirmed", "a@example.org": (BOB,)}
    assert shop.transactions()[-2:] == ["ordered", "confirmed"]
    shop.manager.begin()
    assert shop.root["a"] == "confirmed"
    shop.root["b"] = "later"
    shop.manager.commit()
    assert shop.seen_by_others()["b"] == "later"


def test_each_event_has_a_transaction_of_its_own(shop: Shop) -> None:
    def confirm(event: Any) -> None:
        shop.manager.get().note(event.messageId)
        shop.root[event.messageId] = "confirmed"

    delivery = direct(shop, confirm)
    for name in ("a", "b", "c"):
        order(shop, delivery, name)
    shop.manager.commit()
    wanted = [f"{name}@example.org" for name in ("a", "b", "c")]
    assert shop.transactions()[-3:] == wanted


def test_a_subscriber_that_raises_harms_nothing_else(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def confirm(event: Any) -> None:
        shop.root[event.messageId] = "confirmed"
        if event.messageId == "b@example.org":
            raise PartnerFailed("in the subscriber")

    delivery = direct(shop, confirm)
    for name in ("a", "b", "c"):
        order(shop, delivery, name)
    shop.manager.commit()
    seen = shop.seen_by_others()
    assert [seen.get(f"{name}@example.org") for name in ("a", "b", "c")] == [
        "confirmed",
        None,
        "confirmed",
    ]
    assert [seen[name] for name in ("a", "b", "c")] == ["ordered"] * 3
    assert "in the subscriber" in caplog.text
    shop.manager.begin()
    assert "b@example.org" not in shop.root


def test_a_subscriber_with_a_conflict_loses_only_its_own_change(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def confirm(event: Any) -> None:
        shop.root["a"] = "confirmed"
        with shop.db.transaction() as other:
            other.root()["other"] = "faster"

    order(shop, direct(shop, confirm))
    shop.manager.commit()
    assert shop.seen_by_others() == {"a": "ordered", "other": "faster"}
    assert "ConflictError" in caplog.text


def test_workers_that_note_rejections_in_one_object_lose_none(
    db: DB, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "postcommit.event")
    with db.transaction() as connection:
        connection.root()["refused"] = PersistentMapping()
    here = threading.local()

    def note(event: Any) -> None:
        if not hasattr(here, "connection"):
            here.connection = db.open()
        refused = here.connection.root()["refused"]
        # Changes of a PersistentMapping always conflict; so that there are many,
        # a transaction takes longer than its commit.
        time.sleep(0.002)
        for recipient in event.recipients:
            refused[recipient] = event.errorMessage

    mailer = RecordingMailer(notify=note)
    mailer.refuse_message("550 5.1.1 No such user")
    delivery = QueuedMailDelivery(str(tmp_path / "queue"))
    with transaction.manager:
        for number in range(200):
            delivery.send(ANN, f"{number}@example.org", mail(f"{number}@x.org"))
    QueueProcessor(str(tmp_path / "queue"), mailer, workers=4).flush()
    with db.transaction() as connection:
        assert len(connection.root()["refused"]) == 200
    repeated = [r for r in caplog.records if "repeated" in r.getMessage()]
    assert len(repeated) > 20, "there were hardly any conflicts"


@pytest.mark.parametrize("ending", ["commit", "abort", "doom"])
def test_a_subscriber_may_end_its_transaction_itself(
    shop: Shop, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    def confirm(event: Any) -> None:
        shop.root["a"] = "confirmed"
        getattr(shop.manager, ending)()

    order(shop, direct(shop, confirm))
    shop.manager.commit()
    expected = "confirmed" if ending == "commit" else "ordered"
    assert shop.seen_by_others() == {"a": expected}
    failed = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert bool(failed) == (ending == "doom")


def test_a_subscriber_may_send_into_a_queue(shop: Shop, tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    queued = QueuedMailDelivery(str(queue), transaction_manager=shop.manager)

    def complain(event: Any) -> None:
        shop.root["a"] = "refused"
        queued.send(ANN, "postmaster", mail("complaint@example.org"))

    refused = {"status": Status.REJECTED, "reply": Reply(550, "5.1.1", "No")}
    order(shop, direct(shop, complain, **refused))
    shop.manager.commit()
    assert accepted(queue) == ["complaint@example.org"]
    assert shop.seen_by_others() == {"a": "refused"}


def test_a_subscriber_may_send_directly_and_hear_of_that_too(shop: Shop) -> None:
    told = []

    def confirm(event: Any) -> None:
        told.append(event.messageId)
        shop.root[event.messageId] = "told"
        if len(told) < 3:
            delivery.send(ANN, BOB, mail(f"{len(told)}@example.org"))

    delivery = direct(shop, confirm)
    order(shop, delivery)
    shop.manager.commit()
    assert told == ["a@example.org", "1@example.org", "2@example.org"]
    assert set(told) < shop.seen_by_others().keys()


def test_a_subscriber_that_sends_and_raises_sends_nothing(
    shop: Shop, tmp_path: Path
) -> None:
    queue = tmp_path / "queue"
    queued = QueuedMailDelivery(str(queue), transaction_manager=shop.manager)

    def complain(event: Any) -> None:
        queued.send(ANN, "postmaster", mail("complaint@example.org"))
        raise PartnerFailed

    order(shop, direct(shop, complain))
    shop.manager.commit()
    assert files(queue) == []


def test_events_are_told_where_another_resource_fails_in_the_end(shop: Shop) -> None:
    def confirm(event: Any) -> None:
        shop.root["a"] = "confirmed"

    order(shop, direct(shop, confirm))
    shop.manager.get().join(failing("tpc_finish", AFTER))
    with pytest.raises(PartnerFailed):
        shop.manager.commit()
    shop.manager.abort()
    assert shop.seen_by_others() == {"a": "confirmed"}
    shop.manager.begin()
    order(shop, direct(shop, confirm), "b")
    shop.manager.commit()
    assert shop.seen_by_others()["b"] == "ordered"


# Others


def _hooks_of_others(shop: Shop, delivery: Any) -> list[object]:
    """Commit, with mail or without, and return what other hooks have seen."""
    seen: list[object] = []
    current = shop.manager.get()

    def hook(committed: bool, name: str, *, keyword: int) -> None:
        there = shop.manager.get()
        seen.append((name, keyword, committed, there is current, there.status))
        seen.append(sorted(shop.root))
        try:
            shop.root["hook"] = name
        except ValueError as error:
            seen.append(str(error))
        if name == "first":
            current.addAfterCommitHook(hook, ("nested",), {"keyword": 3})
        if name == "raises":
            raise PartnerFailed

    current.addAfterCommitHook(hook, ("first",), {"keyword": 1})
    current.addAfterCommitHook(hook, ("raises",), {"keyword": 2})
    shop.root["a"] = "ordered"
    if delivery is not None:
        delivery.send(ANN, BOB, mail())
    late = failing("nothing", AFTER)
    late._acts["tpc_finish"] = lambda: current.addAfterCommitHook(
        hook, ("last",), {"keyword": 4}
    )
    current.join(late)
    shop.manager.commit()
    seen.append(shop.manager._txn if shop.manager.explicit else None)
    shop.manager.begin()
    seen.append(sorted(shop.root))
    return seen


def test_hooks_of_others_run_as_if_we_were_not_there(shop: Shop) -> None:
    hearing = Hearing()
    seen = []
    for delivery in (None, direct(shop, hearing)):
        with closing(DB(None)) as db:
            other = Shop(db, shop.manager)
            seen.append(_hooks_of_others(other, delivery))
            shop.manager.abort()
            other.connection.close()
        shop.manager.begin()
    assert seen[0] == seen[1]
    assert len(hearing) == 1


class Synchronizer:
    """Writes down each call, with a number for the transaction."""

    def __init__(self) -> None:
        self.known: list[object] = []
        self.calls: list[tuple[str, int]] = []

    def _note(self, name: str, current: object) -> None:
        if not any(current is known for known in self.known):
            self.known.append(current)
        number = next(n for n, known in enumerate(self.known) if known is current)
        self.calls.append((name, number))

    def newTransaction(self, current: object) -> None:
        self._note("new", current)

    def beforeCompletion(self, current: object) -> None:
        self._note("before", current)

    def afterCompletion(self, current: object) -> None:
        self._note("after", current)


def test_synchronizers_hear_of_each_transaction_once(shop: Shop) -> None:
    synchronizer = Synchronizer()
    shop.manager.registerSynch(synchronizer)

    def confirm(event: Any) -> None:
        shop.root["a"] = "confirmed"
        if event.messageId == "b@example.org":
            raise PartnerFailed

    delivery = direct(shop, confirm)
    order(shop, delivery, "a")
    order(shop, delivery, "b")
    shop.manager.commit()
    shop.manager.begin()
    shop.manager.unregisterSynch(synchronizer)
    expected = [(name, n) for n in range(3) for name in ("new", "before", "after")]
    assert synchronizer.calls == [*expected, ("new", 3)]


def test_a_synchronizer_that_fails_to_begin_costs_only_the_event(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Synchronizer):
        def newTransaction(self, current: object) -> None:
            super().newTransaction(current)
            if len(self.known) == 2:
                raise PartnerFailed("cannot begin")

    broken = Broken()
    shop.manager.registerSynch(broken)
    hearing = Hearing()
    order(shop, direct(shop, hearing))
    shop.manager.commit()
    shop.manager.unregisterSynch(broken)
    assert hearing == []
    assert "cannot begin" in caplog.text
    assert broken.calls[-1] == ("after", 1), "what had begun was not ended"
    assert shop.seen_by_others() == {"a": "ordered"}
