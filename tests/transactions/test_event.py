"""Events: what a report gives rise to, and when it is dispatched."""
from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import transaction
import zope.event
from persistent.mapping import PersistentMapping
from transaction import TransactionManager
from transaction._manager import TransactionManager as RealManager
from transaction.interfaces import NoTransaction
from transaction.interfaces import TransientError
from ZODB.DB import DB
from ZODB.POSException import ConflictError

from postcommit._delivery.direct import DirectMailDelivery
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mailers.file import FileMailer
from postcommit._transaction import repeats
from postcommit._transaction.event import MailDeferredEvent
from postcommit._transaction.event import MailErrorEvent
from postcommit._transaction.event import MailRejectedEvent
from postcommit._transaction.event import MailSentEvent
from postcommit._transaction.event import MailUncertainEvent
from postcommit._transaction.event import announce
from postcommit._transaction.event import committing
from postcommit._transaction.event import events_of
from postcommit._transaction.event import own_transaction
from postcommit.errors import RelayError
from postcommit.interfaces import Status
from tests.support import children
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner


OK = Reply(250, "2.0.0", "Queued")
LATER = Reply(450, "4.2.0", "Greylisted")
NEVER = Reply(550, "5.1.1", "No such user")
LOST = Reply(0, "4.4.2", "Connection lost")


def report(*outcomes: tuple[str, Status, Reply]) -> DeliveryReport:
    made = tuple(Outcome(*outcome) for outcome in outcomes)
    return DeliveryReport("1@x.org", tuple(o.recipient for o in made), made)


MIXED = report(
    ("a@x.org", Status.SENT, OK),
    ("b@x.org", Status.REJECTED, NEVER),
    ("c@x.org", Status.SENT, OK),
    ("d@x.org", Status.DEFERRED, LATER),
    ("e@x.org", Status.UNCERTAIN, LOST),
)


# What a report gives rise to


def test_there_is_one_event_for_each_status_and_reply() -> None:
    told = [(type(e), e.recipients) for e in events_of(MIXED)]
    assert told == [
        (MailSentEvent, ("a@x.org", "c@x.org")),
        (MailRejectedEvent, ("b@x.org",)),
        (MailDeferredEvent, ("d@x.org",)),
        (MailDeferredEvent, ("e@x.org",)),
    ]
    assert {event.messageId for event in events_of(MIXED)} == {"1@x.org"}


def test_an_error_event_has_the_reply_and_says_it() -> None:
    _, rejected, deferred, uncertain = events_of(MIXED)
    assert isinstance(rejected, MailErrorEvent)
    assert isinstance(deferred, MailErrorEvent)
    assert isinstance(uncertain, MailErrorEvent)
    assert rejected.reply == NEVER
    assert rejected.errorMessage == "550 5.1.1 No such user"
    assert deferred.reply == LATER
    # The relay said nothing there: the text is ours.
    assert uncertain.reply is None
    assert uncertain.errorMessage == "4.4.2 Connection lost"


@pytest.mark.parametrize(
    "failure", [RelayError("mx: 535 No", Reply(535, "", "No")), RelayError("Away")]
)
def test_a_relay_failure_defers_all_recipients(failure: Any) -> None:
    made = DeliveryReport("1@x.org", ("a@x.org", "b@x.org"), relay_failure=failure)
    [event] = events_of(made)
    assert isinstance(event, MailDeferredEvent)
    assert event.recipients == ("a@x.org", "b@x.org")
    assert event.errorMessage == str(failure)
    assert event.reply == failure.reply


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (MailSentEvent("1@x.org"), "<MailSentEvent 1@x.org to >"),
        (
            MailRejectedEvent("1@x.org", "550 No", recipients=("a@x.org",)),
            "<MailRejectedEvent 1@x.org to a@x.org: 550 No>",
        ),
    ],
)
def test_an_event_shows_what_it_is_about(event: object, shown: str) -> None:
    assert repr(event) == shown


# Announcing


def test_an_announcement_tells_log_and_subscribers_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    heard: list[Any] = []
    announce(MIXED, heard.append, TransactionManager())
    assert len(heard) == 4
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "<1@x.org> to a@x.org: sent: 250 2.0.0 Queued"),
        ("ERROR", "<1@x.org> to b@x.org: rejected: 550 5.1.1 No such user"),
        ("INFO", "<1@x.org> to c@x.org: sent: 250 2.0.0 Queued"),
        ("WARNING", "<1@x.org> to d@x.org: deferred: 450 4.2.0 Greylisted"),
        ("WARNING", "<1@x.org> to e@x.org: uncertain: 4.4.2 Connection lost"),
    ]


def test_a_relay_failure_has_a_line_for_each_recipient(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = RelayError("no connection")
    failed = DeliveryReport("1@x.org", ("a@x.org",), relay_failure=failure)
    announce(failed, repr, TransactionManager())
    [record] = caplog.records
    assert record.getMessage() == (
        "<1@x.org> to a@x.org: not sent: the relay failed: no connection"
    )


def test_a_relay_failure_is_about_the_recipients_without_an_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    reply = Reply(421, "4.3.2", "Bye")
    failure = RelayError("mx: greeting refused: 421 4.3.2 Bye", reply)
    sent = Outcome("b@x.org", Status.SENT, OK)
    failed = DeliveryReport("1@x.org", ("a@x.org", "b@x.org"), (sent,), failure)
    first, second = events_of(failed)
    assert (type(first), first.recipients) == (MailSentEvent, ("b@x.org",))
    assert (type(second), second.recipients) == (MailDeferredEvent, ("a@x.org",))
    assert second.reply is reply  # type: ignore[attr-defined]
    announce(failed, repr, TransactionManager())
    assert caplog.messages == [
        "<1@x.org> to b@x.org: sent: 250 2.0.0 Queued",
        f"<1@x.org> to a@x.org: not sent: the relay failed: {failure}",
    ]


def test_an_uncertain_recipient_that_is_given_up_has_an_event_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = Reply(0, "4.4.2", "Lost")
    uncertain = Outcome("a@x.org", Status.UNCERTAIN, lost)
    both = (uncertain, replace(uncertain, recipient="b@x.org", given_up=True))
    made = DeliveryReport("1@x.org", ("a@x.org", "b@x.org"), both)
    first, second = events_of(made)
    assert (type(first), first.recipients) == (MailDeferredEvent, ("a@x.org",))
    assert (type(second), second.recipients) == (MailUncertainEvent, ("b@x.org",))
    announce(made, repr, TransactionManager())
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "<1@x.org> to a@x.org: uncertain: 4.4.2 Lost"),
        ("ERROR", "<1@x.org> to b@x.org: uncertain, given up: 4.4.2 Lost"),
    ]


def test_what_was_announced_is_not_announced_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[Any] = []
    announce(replace(MIXED, announced=True), heard.append, TransactionManager())
    assert heard == caplog.records == []


# Each in a transaction of its own


MANAGERS = [
    pytest.param(lambda: transaction.manager, id="thread-local"),
    pytest.param(TransactionManager, id="implicit"),
    pytest.param(lambda: TransactionManager(explicit=True), id="explicit"),
]


@pytest.mark.parametrize("make", MANAGERS)
def test_each_event_has_a_transaction_of_its_own(make: Callable[[], Any]) -> None:
    manager = make()
    seen: list[Any] = []
    announce(MIXED, lambda event: seen.append(manager.get()), manager)
    assert len(set(map(id, seen))) == 4
    assert {current.status for current in seen} == {"Committed"}


@pytest.mark.parametrize("make", MANAGERS)
def test_a_subscriber_that_raises_has_its_transaction_aborted_and_is_logged(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()
    calls: list[str] = []

    def subscriber(event: Any) -> None:
        manager.get().addAfterCommitHook(lambda status: calls.append("committed"))
        manager.get().addAfterAbortHook(lambda: calls.append("aborted"))
        if isinstance(event, MailRejectedEvent):
            raise KeyError("a mistake")

    announce(MIXED, subscriber, manager)
    assert calls == ["committed", "aborted", "committed", "committed"]
    [record] = [r for r in caplog.records if r.exc_info]
    assert "MailRejectedEvent 1@x.org to b@x.org" in record.getMessage()


@pytest.mark.parametrize("make", MANAGERS)
def test_a_subscriber_whose_commit_fails_harms_nothing(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()

    def refuse() -> None:
        raise KeyError("no commit")

    def subscriber(event: Any) -> None:
        manager.get().addBeforeCommitHook(refuse)

    announce(report(("a@x.org", Status.SENT, OK)), subscriber, manager)
    assert "no commit" in caplog.text
    with own_transaction(manager):
        assert manager.get().status == "Active"


ONE = report(("a@x.org", Status.SENT, OK))


class Conflicting:
    """A subscriber whose transaction fails for now, the first `times`."""

    def __init__(self, manager: Any, times: int, *, in_the_commit: bool) -> None:
        self.manager = manager
        self.left = times
        self.calls = 0
        self.committed = 0
        self._in_the_commit = in_the_commit

    def __call__(self, event: Any) -> None:
        self.calls += 1
        current = self.manager.get()
        current.addAfterCommitHook(self._count)
        if self.left:
            self.left -= 1
            if self._in_the_commit:
                current.addBeforeCommitHook(self._conflict)
            else:
                self._conflict()

    def _count(self, committed: bool) -> None:
        self.committed += committed

    def _conflict(self) -> None:
        raise TransientError("another was faster")


@pytest.mark.parametrize("make", MANAGERS)
@pytest.mark.parametrize("in_the_commit", [True, False])
@pytest.mark.parametrize("times", [1, 3])
def test_a_subscriber_with_a_conflict_is_called_again(
    make: Callable[[], Any],
    in_the_commit: bool,
    times: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = make()
    subscriber = Conflicting(manager, times, in_the_commit=in_the_commit)
    announce(ONE, subscriber, manager)
    assert (subscriber.calls, subscriber.committed) == (times + 1, 1)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize("make", MANAGERS)
def test_a_subscriber_is_called_again_three_times_at_most(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()
    subscriber = Conflicting(manager, 99, in_the_commit=True)
    announce(ONE, subscriber, manager)
    assert (subscriber.calls, subscriber.committed) == (4, 0)
    assert "another was faster" in caplog.text
    with own_transaction(manager):
        assert manager.get().status == "Active"


def test_a_resource_may_say_that_its_error_is_for_now() -> None:
    """As that of zope.sqlalchemy does of a serialisation failure."""

    class Resource(Partner):
        def should_retry(self, error: Exception) -> bool:
            return isinstance(error, OSError)

    manager = TransactionManager()
    failures = [OSError("could not serialize"), KeyError("a mistake"), None]
    calls = []

    def subscriber(event: Any) -> None:
        manager.get().join(Resource(BEFORE))
        failure = failures[len(calls)]
        calls.append(event)
        if failure:
            raise failure

    announce(ONE, subscriber, manager)
    assert len(calls) == 2


def test_a_subscriber_that_ended_its_transaction_may_have_a_conflict() -> None:
    manager = TransactionManager(explicit=True)
    calls: list[Any] = []

    def subscriber(event: Any) -> None:
        calls.append(event)
        manager.commit()
        raise TransientError if len(calls) == 1 else KeyError

    announce(ONE, subscriber, manager)
    assert len(calls) == 2


def test_a_subscriber_that_is_repeated_may_cause_another_dispatch() -> None:
    manager = TransactionManager()
    inner = Conflicting(manager, 2, in_the_commit=True)
    outer = Conflicting(manager, 1, in_the_commit=False)

    def subscriber(event: Any) -> None:
        outer(event)
        announce(ONE, inner, manager)

    announce(ONE, subscriber, manager)
    assert (outer.calls, outer.committed) == (2, 1)
    assert (inner.calls, inner.committed) == (3, 1)


def test_a_dispatch_does_not_wait_forever_for_one_that_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The subscriber that is repeated waits for a dispatch in another thread."""
    monkeypatch.setattr(repeats, "_PATIENCE", 0.01)
    manager = transaction.manager
    inner = Conflicting(manager, 1, in_the_commit=True)
    outer = Conflicting(manager, 1, in_the_commit=False)

    def subscriber(event: Any) -> None:
        outer(event)
        thread = threading.Thread(
            target=announce, args=(ONE, inner, manager)
        )
        thread.start()
        thread.join()

    announce(ONE, subscriber, manager)
    assert (outer.committed, inner.committed) == (1, 1)


def test_a_lock_that_an_interrupt_has_left_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repeats, "_PATIENCE", 0.01)
    thread = threading.Thread(target=repeats._turn.acquired)
    thread.start()
    thread.join()
    left = repeats._turn.lock
    subscriber = Conflicting(transaction.manager, 1, in_the_commit=True)
    announce(ONE, subscriber, transaction.manager)
    assert subscriber.committed == 1
    assert repeats._turn.lock is not left


def test_a_lock_that_two_threads_wait_for_is_replaced_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other one has replaced it while this one waited."""
    new = threading.RLock()

    class Left:
        def acquire(self, timeout: float) -> bool:
            monkeypatch.setattr(repeats._turn, "lock", new)
            return False

    monkeypatch.setattr(repeats._turn, "lock", Left())
    assert repeats._turn.acquired() is new
    new.release()


def _fork_while_it_is_repeated() -> None:
    manager = TransactionManager()
    subscriber = Conflicting(manager, 1, in_the_commit=False)
    began = threading.Event()
    forked = threading.Event()

    def slow(event: Any) -> None:
        subscriber(event)
        began.set()
        assert forked.wait(60)

    thread = threading.Thread(target=announce, args=(ONE, slow, manager))
    thread.start()
    assert began.wait(60)
    child = os.fork()
    if not child:
        other = Conflicting(TransactionManager(), 1, in_the_commit=False)
        signal.alarm(2)  # far less than it would wait for the lock
        announce(ONE, other, other.manager)
        assert other.committed == 1
        return
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_process_does_not_wait_for_its_parent_s_dispatch() -> None:
    children.call(_fork_while_it_is_repeated)


def test_an_interrupt_in_a_subscriber_is_returned_after_the_other_events() -> None:
    manager = TransactionManager()
    heard: list[Any] = []
    failure = KeyboardInterrupt()

    def subscriber(event: Any) -> None:
        heard.append(event)
        if len(heard) == 2:
            raise failure

    assert announce(MIXED, subscriber, manager) is failure
    assert len(heard) == 4


def test_where_nobody_has_subscribed_there_is_no_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subscribers: list[Any] = []
    monkeypatch.setattr(zope.event, "subscribers", subscribers)
    begun: list[object] = []

    class Synchronizer:
        newTransaction = staticmethod(begun.append)

        def ignored(self, txn: object) -> None:
            pass

        beforeCompletion = afterCompletion = ignored

    manager = TransactionManager()
    synchronizer = Synchronizer()
    manager.registerSynch(synchronizer)
    sent = report(("a@x.org", Status.SENT, OK))
    announce(sent, zope.event.notify, manager)
    assert begun == []
    seen: list[object] = []
    subscribers.append(seen.append)
    announce(sent, zope.event.notify, manager)
    assert len(seen) == len(begun) == 1


@pytest.mark.parametrize("make", MANAGERS)
def test_a_transaction_that_cannot_begin_is_put_away(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing:
        def newTransaction(self, txn: object) -> None:
            raise KeyError("no beginning")

        def ignored(self, txn: object) -> None:
            pass

        beforeCompletion = afterCompletion = ignored

    manager = make()
    synchronizer = Refusing()
    manager.registerSynch(synchronizer)
    seen: list[Any] = []
    announce(report(("a@x.org", Status.SENT, OK)), seen.append, manager)
    assert seen == []
    assert "no beginning" in caplog.text
    manager.unregisterSynch(synchronizer)
    with own_transaction(manager):
        assert manager.get().status == "Active"


@pytest.mark.parametrize("make", MANAGERS)
@pytest.mark.parametrize("end", ["commit", "abort"])
def test_a_subscriber_may_end_its_transaction_itself(
    make: Callable[[], Any], end: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = make()
    made = report(("a@x.org", Status.SENT, OK))
    announce(made, lambda event: getattr(manager, end)(), manager)
    assert not [r for r in caplog.records if r.exc_info]


@pytest.mark.parametrize("make", MANAGERS)
def test_the_ended_transaction_is_put_back(make: Callable[[], Any]) -> None:
    manager = make()
    calls: list[Any] = []

    def hook(status: bool) -> None:
        ended = manager.get()
        with own_transaction(manager):
            calls.append(manager.get() is not ended)
        calls.append(manager.get() is ended)

    current = manager.begin()
    current.addAfterCommitHook(hook)
    current.addAfterCommitHook(lambda status: calls.append(manager.get() is current))
    manager.commit()
    assert calls == [True, True, True]
    if manager.explicit:
        with pytest.raises(NoTransaction):
            manager.get()
    else:
        assert manager.get() is not current
        manager.abort()


def test_transaction_still_keeps_its_current_one_where_we_set_it_aside() -> None:
    """Should this fail, `own_transaction` has to be thought over."""
    manager = TransactionManager()
    assert type(manager) is RealManager
    assert manager._txn is None
    current = manager.begin()
    assert manager._txn is current
    assert "self._txn" in inspect.getsource(RealManager.free)
    assert isinstance(transaction.manager.manager, RealManager)
    manager.abort()
    assert manager._txn is None


def test_a_mailer_does_not_end_the_work_of_the_application(tmp_path: Any) -> None:
    """A connection of ZODB forgets changes when another transaction begins."""
    seen: list[Any] = []
    mailer = FileMailer(str(tmp_path), notify=lambda event: seen.append(stock["rods"]))
    database = DB(None)
    with transaction.manager:
        root = database.open(transaction.manager).root()
        root["stock"] = stock = PersistentMapping(rods=3)
    other = TransactionManager()
    transaction.begin()
    stock["rods"] = 2
    database.open(other).root()["stock"]["rods"] = 9
    other.commit()
    mailer.send("me@example.org", "ann@example.org", b"Subject: Rods\n\n")
    assert (seen, stock["rods"]) == ([2], 2)
    with pytest.raises(ConflictError):
        transaction.commit()
    transaction.abort()


class OtherManager:
    """Has what `postcommit.TransactionManager` asks for, and no more."""

    def __init__(self) -> None:
        self._wrapped = TransactionManager()
        self.get, self.begin = self._wrapped.get, self._wrapped.begin
        self.commit, self.abort = self._wrapped.commit, self._wrapped.abort


@pytest.mark.parametrize("is_delegated", [False, True])
def test_another_implementation_of_a_manager_may_commit_mail(
    tmp_path: Any, is_delegated: bool
) -> None:
    told: list[object] = []
    mailer: Any = FileMailer(str(tmp_path), notify=told.append)
    if is_delegated:
        mailer = SimpleNamespace(send=mailer.send, notify=told.append)
    manager = OtherManager()
    delivery = DirectMailDelivery(mailer, transaction_manager=manager)
    delivery.send("a@x.org", "b@x.org", b"Subject: x\n\nx\n")
    manager.commit()
    assert [type(event) for event in told] == [MailSentEvent]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_subscriber_that_raises_does_not_end_the_work_of_the_application(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Any) -> None:
        raise LookupError

    current = transaction.begin()
    mailer = FileMailer(str(tmp_path), notify=fail)
    report = mailer.send("me@example.org", "ann@example.org", b"Subject: Rods\n\n")
    assert report.announced
    assert transaction.get() is current
    assert caplog.messages[-1].startswith("A subscriber failed: <MailSentEvent")
    transaction.abort()


def test_a_commit_that_an_interrupt_has_ended_is_not_the_one_of_the_caller(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An interrupt may have come before `committing` was set back."""
    token = committing.set(transaction.TransactionManager())
    try:
        test_a_subscriber_that_raises_does_not_end_the_work_of_the_application(
            tmp_path, caplog
        )
    finally:
        committing.reset(token)
