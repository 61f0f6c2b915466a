"""The deliveries, in real transactions."""
from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import transaction
from transaction import TransactionManager
from transaction.interfaces import DoomedTransaction
from transaction.interfaces import NoTransaction
from transaction.interfaces import TransactionFailedError
from transaction.interfaces import TransientError
from zope.interface import implementer
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

from postcommit import DirectMailDelivery
from postcommit import MailDeferredEvent
from postcommit import MailSentEvent
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._maildir.store import Store
from postcommit._mailers.base import OneByOne
from postcommit._mailers.foreign import from_result
from postcommit.errors import AddressError
from postcommit.errors import MessageError
from postcommit.errors import MessageTypeError
from postcommit.errors import NotAMaildirError
from postcommit.errors import OptionError
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.interfaces import IBatch
from postcommit.interfaces import IDirectMailDelivery
from postcommit.interfaces import IPipelineMailer
from postcommit.interfaces import IQueuedMailDelivery
from postcommit.interfaces import IRelayCheck
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from postcommit.testing import RecordingMailer
from tests.support import children
from tests.support.faults import full_disk
from tests.support.faults import without_privileges
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import MANAGERS
from tests.support.transactions import STAGES
from tests.support.transactions import Hearing
from tests.support.transactions import Mailer
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import accepted
from tests.support.transactions import begun
from tests.support.transactions import entries
from tests.support.transactions import explicit
from tests.support.transactions import failing
from tests.support.transactions import files
from tests.support.transactions import mail


ANN, BOB = "ann@example.org", "bob@example.org"


class Office:
    """A delivery, and a look at what has left by it."""

    def __init__(self, kind: str, queue: Path, manager: Any) -> None:
        self.kind = kind
        self.manager = manager
        self.queue = queue
        self.mailer = Mailer()
        self.delivery: Any
        if kind == "direct":
            self.delivery = DirectMailDelivery(
                self.mailer, transaction_manager=manager
            )
        else:
            self.delivery = QueuedMailDelivery(str(queue), transaction_manager=manager)

    def send(self, name: str) -> str:
        message_id: str = self.delivery.send(ANN, BOB, mail(f"{name}@example.org"))
        return message_id

    @property
    def left(self) -> list[str]:
        """The names of the messages that have left; none may be half way."""
        assert not any(name.startswith("tmp/") for name in files(self.queue))
        sent = [message_id_of(message) for _, _, message in self.mailer.sent]
        return [i.removesuffix("@example.org") for i in [*sent, *accepted(self.queue)]]


@pytest.fixture(params=MANAGERS)
def manager(request: pytest.FixtureRequest) -> Iterator[Any]:
    with begun(request.param) as manager:
        yield manager


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture(params=["queued", "direct"])
def office(request: pytest.FixtureRequest, queue: Path) -> Office:
    manager = explicit()
    manager.begin()
    return Office(request.param, queue, manager)


@pytest.fixture
def hearing() -> Hearing:
    return Hearing()


# The contracts


def test_the_contracts_are_kept(queue: Path) -> None:
    verifyClass(IQueuedMailDelivery, QueuedMailDelivery)
    verifyObject(IQueuedMailDelivery, QueuedMailDelivery(str(queue)))
    verifyClass(IDirectMailDelivery, DirectMailDelivery)
    verifyObject(IDirectMailDelivery, DirectMailDelivery(Mailer()))
    batch = DirectMailDelivery(Mailer())._batch()
    verifyClass(IBatch, type(batch))
    verifyObject(IBatch, batch)


def test_a_delivery_keeps_what_it_was_made_of(queue: Path) -> None:
    mailer = Mailer()
    assert DirectMailDelivery(mailer).mailer is mailer
    assert QueuedMailDelivery(str(queue)).queuePath == str(queue)
    assert QueuedMailDelivery(queue).queuePath == str(queue)
    assert not queue.exists(), "the first mail creates it"


@pytest.mark.parametrize("manager", [42, object(), transaction.Transaction])
def test_what_is_no_transaction_manager_is_named(queue: Path, manager: Any) -> None:
    with pytest.raises(OptionError, match=r"transaction_manager=.* request\.tm"):
        QueuedMailDelivery(str(queue), transaction_manager=manager)
    delivery = DirectMailDelivery(Mailer())
    with pytest.raises(OptionError, match="transaction_manager="):
        delivery.bind(manager)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_whether_a_relay_is_checked_is_a_truth_value(value: Any) -> None:
    with pytest.raises(OptionError, match=r"check_relay=.* True or False"):
        DirectMailDelivery(Mailer(), check_relay=value)


def test_a_delivery_says_what_it_is() -> None:
    assert repr(QueuedMailDelivery("/a/queue")) == "<QueuedMailDelivery /a/queue>"
    direct = DirectMailDelivery(SMTPMailer("relay.example.org"))
    assert repr(direct) == "<DirectMailDelivery <SMTPMailer relay.example.org:25>>"


@pytest.mark.parametrize("path", [None, 7, "", "a\nb", "/a\0b"])
def test_a_path_that_cannot_be_one_is_named(path: Any) -> None:
    with pytest.raises(OptionError, match="queuePath") as caught:
        QueuedMailDelivery(path)
    assert caught.value.value == path


@pytest.mark.parametrize("mailer", [None, "mailer", object()])
def test_what_cannot_send_is_no_mailer(mailer: Any) -> None:
    with pytest.raises(OptionError, match="mailer"):
        DirectMailDelivery(mailer)


def test_a_mailer_that_cannot_check_its_relay_is_named() -> None:
    with pytest.raises(OptionError, match="check_relay"):
        DirectMailDelivery(Mailer(), check_relay=True)


# The ordinary ways


def test_a_commit_lets_the_mail_go(manager: Any, queue: Path) -> None:
    for kind in ("queued", "direct"):
        office = Office(kind, queue / kind, manager)
        queue.mkdir(exist_ok=True)
        assert office.send("a") == "a@example.org"
        office.send("b")
        manager.commit()
        assert office.left == ["a", "b"]
        manager.begin()


def test_an_abort_forgets_it(manager: Any, queue: Path) -> None:
    for kind in ("queued", "direct"):
        office = Office(kind, queue / kind, manager)
        queue.mkdir(exist_ok=True)
        for number in range(50):
            office.send(str(number))
        manager.abort()
        assert office.left == []
        manager.begin()


def test_the_default_is_the_manager_of_the_thread(queue: Path) -> None:
    mailer = Mailer()
    DirectMailDelivery(mailer).send(ANN, BOB, mail("direct@example.org"))
    QueuedMailDelivery(str(queue)).send(ANN, BOB, mail("queued@example.org"))
    transaction.commit()
    assert len(mailer.sent) == 1
    assert accepted(queue) == ["queued@example.org"]


def test_a_manager_may_be_false(queue: Path) -> None:
    class Manager(TransactionManager):
        def __len__(self) -> int:
            return 0

    office = Office("queued", queue, Manager())
    office.send("a")
    office.manager.commit()
    assert office.left == ["a"]


def test_an_entry_has_the_envelope_and_the_message(queue: Path) -> None:
    delivery = QueuedMailDelivery(str(queue), transaction_manager=TransactionManager())
    message = EmailMessage()
    message["From"], message["To"], message["Bcc"] = ANN, BOB, "eve@example.org"
    message.set_content("Grüße")
    message_id = delivery.send(None, None, message)
    delivery.transaction_manager.commit()
    [entry] = entries(queue)
    assert entry.sender == ANN
    assert entry.recipients == (BOB, "eve@example.org")
    assert message_id_of(entry.message) == message_id
    assert b"eve@example.org" not in entry.message


def test_a_mailer_gets_the_envelope_and_the_message() -> None:
    mailer = Mailer()
    manager = TransactionManager()
    delivery = DirectMailDelivery(mailer, transaction_manager=manager)
    delivery.send(f"Ann <{ANN}>", [BOB, b"eve@example.org"], mail())
    manager.commit()
    assert mailer.sent == [(ANN, (BOB, "eve@example.org"), mail())]


# Managers


def test_without_a_transaction_an_explicit_manager_refuses(office: Office) -> None:
    office.manager.abort()
    with pytest.raises(NoTransaction):
        office.send("a")
    office.manager.begin()
    office.manager.commit()
    assert office.left == []
    assert not office.queue.exists(), "it was opened before anybody wanted it"


def test_a_bound_copy_joins_the_transactions_of_another_manager(
    office: Office,
) -> None:
    other = explicit()
    other.begin()
    bound = office.delivery.bind(other)
    assert type(bound) is type(office.delivery)
    office.send("a")
    bound.send(ANN, BOB, mail("b@example.org"))
    office.manager.abort()
    other.commit()
    assert office.left == ["b"]
    assert office.delivery.transaction_manager is office.manager


def test_bound_copies_share_a_data_manager(office: Office) -> None:
    for number in range(5):
        bound = office.delivery.bind(office.manager)
        bound.send(ANN, BOB, mail(f"{number}@example.org"))
    assert len(office.manager.get()._resources) == 1
    office.manager.commit()
    assert office.left == ["0", "1", "2", "3", "4"]


def test_two_deliveries_in_one_transaction(tmp_path: Path) -> None:
    manager = explicit()
    manager.begin()
    offices = [
        Office(kind, tmp_path / str(number), manager)
        for number, kind in enumerate(["direct", "queued", "direct", "queued"])
    ]
    for office in offices:
        office.send("a")
    savepoint = manager.savepoint()
    for office in offices:
        office.send("b")
    savepoint.rollback()
    manager.commit()
    assert [office.left for office in offices] == [["a"]] * 4


def test_two_deliveries_into_one_queue(queue: Path) -> None:
    manager = explicit()
    manager.begin()
    first, second = Office("queued", queue, manager), Office("queued", queue, manager)
    first.send("a")
    second.send("b")
    manager.commit()
    assert sorted(first.left) == ["a", "b"]


def test_entries_are_accepted_before_a_relay_is_waited_for(queue: Path) -> None:
    manager = explicit()
    manager.begin()
    direct = Office("direct", queue, manager)
    queued = Office("queued", queue, manager)
    seen = []

    class Slow(Mailer):
        def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
            seen.append(accepted(queue))
            return super().send(fromaddr, toaddrs, message)

    DirectMailDelivery(Slow(), transaction_manager=manager).send(ANN, BOB, mail())
    direct.send("a")
    queued.send("b")
    manager.commit()
    assert seen == [["b@example.org"]]


def test_each_thread_has_its_own_transaction(office: Office) -> None:
    office.manager.abort()
    delivery = office.delivery.bind(transaction.manager)
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        delivery.send(ANN, BOB, mail(f"{number}@example.org"))
        barrier.wait()
        if number % 2:
            transaction.commit()
        else:
            transaction.abort()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(office.left) == ["1", "3"]


def test_a_retried_transaction_sends_one_mail(office: Office) -> None:
    office.manager.abort()
    tries = []
    for attempt in office.manager.attempts():
        with attempt:
            tries.append(office.send("a"))
            if len(tries) < 3:
                office.manager.get().join(Partner(AFTER, tpc_vote=conflict))
    assert len(tries) == 3
    assert office.left == ["a"]


def conflict() -> None:
    raise TransientError("conflict")


@pytest.mark.parametrize("stage", ["commit", "tpc_vote"])
def test_a_function_run_again_sends_one_mail(office: Office, stage: str) -> None:
    office.manager.abort()
    tries = []

    def work() -> None:
        tries.append(office.send("a"))
        if len(tries) == 1:
            acts: dict[str, Callable[[], object]] = {stage: conflict}
            office.manager.get().join(Partner(AFTER, **acts))

    office.manager.run(work)
    assert len(tries) == 2
    assert office.left == ["a"]


# Failures of others


@pytest.mark.parametrize("sort_key", [BEFORE, AFTER])
@pytest.mark.parametrize("stage", STAGES)
def test_whichever_stage_a_partner_fails_in_mail_goes_once_or_not_at_all(
    office: Office, stage: str, sort_key: str
) -> None:
    for name in ("a", "b", "c"):
        office.send(name)
    office.manager.get().join(failing(stage, sort_key))
    with pytest.raises(PartnerFailed):
        office.manager.commit()
    published = (stage, sort_key) == ("tpc_finish", AFTER)
    for _ in range(2):
        assert office.left == (["a", "b", "c"] if published else [])
        office.manager.abort()
        office.manager.begin()
    office.send("d")
    office.manager.commit()
    assert office.left[-1] == "d"


def test_a_partner_that_fails_in_everything_harms_nobody(office: Office) -> None:
    office.send("a")
    acts = dict.fromkeys(["tpc_vote", "abort", "tpc_abort"], _fail)
    office.manager.get().join(Partner(BEFORE, **acts))
    with pytest.raises(PartnerFailed):
        office.manager.commit()
    with pytest.raises(PartnerFailed):
        office.manager.abort()
    assert office.left == []


def _fail() -> None:
    raise PartnerFailed


def test_a_doomed_transaction_sends_nothing(office: Office) -> None:
    office.send("a")
    office.manager.doom()
    office.send("b")
    with pytest.raises(DoomedTransaction):
        office.manager.commit()
    office.manager.abort()
    assert office.left == []


# Sending at odd times


def test_a_before_commit_hook_may_send(office: Office) -> None:
    office.manager.get().addBeforeCommitHook(office.send, ("a",))
    office.manager.commit()
    assert office.left == ["a"]


def test_a_partner_may_send_in_its_vote_before_ours(office: Office) -> None:
    office.send("a")
    office.manager.get().join(Partner(BEFORE, tpc_vote=lambda: office.send("b")))
    office.manager.commit()
    assert office.left == ["a", "b"]


def test_a_partner_that_sends_after_our_vote_aborts_the_transaction(
    office: Office,
) -> None:
    office.send("a")
    office.manager.get().join(Partner(AFTER, tpc_vote=lambda: office.send("b")))
    with pytest.raises(ValueError, match="expected txn status"):
        office.manager.commit()
    office.manager.abort()
    assert office.left == []


def test_a_failed_transaction_takes_no_mail(office: Office) -> None:
    office.manager.get().join(failing("tpc_vote", AFTER))
    with pytest.raises(PartnerFailed):
        office.manager.commit()
    with pytest.raises(TransactionFailedError):
        office.send("a")
    office.manager.abort()
    assert office.left == []


def test_an_after_commit_hook_cannot_send_in_the_transaction_that_ended(
    office: Office,
) -> None:
    refused = []

    def hook(committed: bool) -> None:
        with pytest.raises(ValueError, match="expected txn status"):
            office.send("a")
        refused.append(committed)

    office.manager.get().addAfterCommitHook(hook)
    office.manager.commit()
    assert refused == [True]
    assert office.left == []


@pytest.mark.parametrize("when", ["Before", "After"])
def test_what_an_abort_hook_sends_is_forgotten(office: Office, when: str) -> None:
    getattr(office.manager.get(), f"add{when}AbortHook")(office.send, ("a",))
    office.manager.abort()
    assert office.left == []


# Savepoints


def test_a_rollback_drops_exactly_the_later_messages(office: Office) -> None:
    before = office.manager.savepoint()
    office.send("a")
    before.rollback()
    office.send("b")
    outer = office.manager.savepoint()
    office.send("c")
    inner = office.manager.savepoint(optimistic=True)
    office.send("d")
    inner.rollback()
    office.send("e")
    inner.rollback()
    # The first one has no name yet.
    assert len(files(office.queue)) == (office.kind == "queued")
    office.send("f")
    outer.rollback()
    outer.rollback()
    office.send("g")
    office.manager.commit()
    assert office.left == ["b", "g"]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((ANN, [], mail()), AddressError),
        ((ANN, "bob", mail()), AddressError),
        ((ANN, "bob@example.org\n", mail()), AddressError),
        (("ann@example.org\r\nX: y", BOB, mail()), AddressError),
        ((ANN, BOB, None), MessageTypeError),
        ((ANN, BOB, 7), MessageTypeError),
        ((ANN, BOB, b"Message-Id: wrong\r\n\r\n"), MessageError),
        ((None, BOB, mail()), AddressError),
    ],
)
def test_bad_input_leaves_neither_file_nor_joined_transaction(
    office: Office, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        office.delivery.send(*arguments)
    assert office.manager.get()._resources == []
    assert files(office.queue) == []


def queue_refused(path: Path | str) -> QueueError:
    """Send in vain; check that nothing has changed, and return the error."""
    manager = explicit()
    manager.begin()
    delivery = QueuedMailDelivery(str(path), transaction_manager=manager)
    with pytest.raises(QueueError) as caught:
        delivery.send(ANN, BOB, mail(text="x" * 200_000))
    assert manager.get()._resources == []
    assert str(path) in str(caught.value)
    manager.commit()
    return caught.value


def test_a_queue_that_is_a_file_is_named(queue: Path) -> None:
    queue.write_text("precious")
    assert isinstance(queue_refused(queue), NotAMaildirError)
    assert queue.read_text() == "precious"


def test_a_queue_that_is_another_folder_is_named(queue: Path) -> None:
    (queue / "letters").mkdir(parents=True)
    assert isinstance(queue_refused(queue), NotAMaildirError)
    assert os.listdir(queue) == ["letters"]


def test_a_queue_whose_parent_does_not_exist_is_named(queue: Path) -> None:
    assert queue_refused(queue / "below").errno == errno.ENOENT
    assert not queue.exists()


def test_a_relative_queue_stays_where_it_was_meant_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    manager = explicit()
    delivery = QueuedMailDelivery("queue", transaction_manager=manager)
    processor = QueueProcessor("queue", ScriptedMailer())
    os.chdir("other")
    with manager:
        delivery.send(ANN, BOB, mail())
    assert len(os.listdir(tmp_path / "queue" / "new")) == 1
    assert processor.flush() == Tally(1, 0, 0)
    assert os.listdir(tmp_path / "other") == []


@pytest.mark.parametrize("closed", ["parent", "queue", "tmp"])
def test_a_queue_without_permission_is_named(tmp_path: Path, closed: str) -> None:
    queue = tmp_path / "parent" / "queue"
    queue.parent.mkdir()
    if closed != "parent":
        QueuedMailDelivery(str(queue))._queue()
    folder = {"parent": queue.parent, "queue": queue, "tmp": queue / "tmp"}[closed]
    folder.chmod(0o000 if closed == "queue" else 0o500)

    def send() -> None:
        assert queue_refused(queue).errno == errno.EACCES

    without_privileges(send)
    folder.chmod(0o700)
    assert files(queue) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with full_disk(tmp_path) as disk:
        error = queue_refused(disk / "queue")
        assert error.errno in (errno.ENOSPC, errno.EFBIG)
        assert files(disk / "queue") == []
        manager = explicit()
        manager.begin()
        office = Office("queued", disk / "queue", manager)
        office.send("small")
        manager.commit()
        assert office.left == ["small"]


def test_a_queue_that_vanishes_before_the_vote_aborts_the_transaction(
    queue: Path,
) -> None:
    manager = explicit()
    manager.begin()
    office = Office("queued", queue, manager)
    office.send("a")
    queue.rename(queue.with_name("elsewhere"))
    partner = Partner(BEFORE)
    manager.get().join(partner)
    with pytest.raises(QueueError, match=str(queue)):
        manager.commit()
    manager.abort()
    assert "tpc_finish" not in partner.calls
    assert not queue.exists()


def test_a_queue_that_vanishes_after_the_vote_is_told_and_kept_in_doubt(
    queue: Path,
) -> None:
    manager = explicit()
    manager.begin()
    office = Office("queued", queue, manager)
    office.send("a")
    manager.get().join(Partner(AFTER, tpc_vote=lambda: (queue / "new").rmdir()))
    with pytest.raises(PublishError) as caught:
        manager.commit()
    manager.abort()
    assert files(queue) == [f"tmp/{name}" for name in caught.value.names]
    assert len(files(queue)) == 1


def test_where_one_queue_fails_after_the_decision_the_others_get_their_mail(
    tmp_path: Path,
) -> None:
    manager = explicit()
    manager.begin()
    broken, *others = (
        Office(kind, tmp_path / f"{number} {kind}", manager)
        for number, kind in enumerate(["queued", "queued", "direct"])
    )
    for office in (broken, *others):
        office.send("a")
    # The database, which has committed before any mail is told to go.
    database = Partner(BEFORE, tpc_finish=(broken.queue / "new").rmdir)
    manager.get().join(database)
    with pytest.raises(PublishError) as caught:
        manager.commit()
    manager.abort()
    assert files(broken.queue) == [f"tmp/{name}" for name in caught.value.names]
    assert [office.left for office in others] == [["a"], ["a"]]


# Direct delivery


@implementer(IRelayCheck)
class CheckedMailer(Mailer):
    """Tells whether its relay is there."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.failure = failure
        self.checks = 0

    def check(self) -> None:
        self.checks += 1
        if self.failure:
            raise self.failure


def test_a_relay_that_is_away_refuses_the_vote_if_it_is_asked() -> None:
    manager = explicit()
    manager.begin()
    mailer = CheckedMailer(RelayError("away"))
    delivery = DirectMailDelivery(
        mailer, check_relay=True, transaction_manager=manager
    )
    delivery.send(ANN, BOB, mail())
    with pytest.raises(RelayError, match="away"):
        manager.commit()
    manager.abort()
    assert (mailer.checks, mailer.sent) == (1, [])


def test_a_relay_is_only_asked_when_there_is_mail() -> None:
    manager = explicit()
    mailer = CheckedMailer()
    delivery = DirectMailDelivery(
        mailer, check_relay=True, transaction_manager=manager
    )
    for kept in (False, True):
        manager.begin()
        delivery.send(ANN, BOB, mail("a@example.org"))
        savepoint = manager.savepoint()
        delivery.send(ANN, BOB, mail("b@example.org"))
        savepoint.rollback()
        manager.commit() if kept else manager.abort()
    manager.begin()
    before = manager.savepoint()
    delivery.send(ANN, BOB, mail())
    before.rollback()
    manager.commit()
    assert (mailer.checks, len(mailer.sent)) == (1, 1)


class VotingMailer(Mailer):
    """Can say why it will not send, as the mailers of zope.sendmail."""

    def __init__(self, *failures: Exception | None) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.failures = dict(zip(("vote", "abort"), failures, strict=False))

    def _called(self, name: str, *args: Any) -> None:
        self.calls.append(" ".join([name, *(message_id_of(a) for a in args[2:])]))
        if failure := self.failures.get(name):
            raise failure

    def vote(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
        assert (fromaddr, toaddrs) == (ANN, (BOB,))
        self._called("vote", fromaddr, toaddrs, message)

    def abort(self) -> None:
        self._called("abort")


def _vote(mailer: Any, **options: Any) -> TransactionManager:
    """Return the manager of a transaction with two mails."""
    manager = TransactionManager()
    delivery = DirectMailDelivery(mailer, transaction_manager=manager, **options)
    for name in ("a", "b"):
        delivery.send(ANN, BOB, mail(f"{name}@example.org"))
    return manager


def test_a_mailer_with_a_vote_is_asked_about_each_message() -> None:
    mailer = VotingMailer()
    _vote(mailer, check_relay=True).commit()
    assert mailer.calls == ["vote a@example.org", "vote b@example.org"]
    assert len(mailer.sent) == 2


def test_a_mailer_with_a_vote_is_asked_only_if_that_is_wanted() -> None:
    mailer = VotingMailer(RuntimeError("HELO refused"))
    _vote(mailer).commit()
    _vote(mailer).abort()
    assert mailer.calls == []
    assert len(mailer.sent) == 2


@pytest.mark.parametrize("failure", [None, OSError("not connected")])
def test_a_mailer_that_votes_no_aborts_the_transaction(
    failure: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    mailer = VotingMailer(RuntimeError("HELO refused"), failure)
    manager = _vote(mailer, check_relay=True)
    with pytest.raises(RuntimeError, match="HELO refused"):
        manager.commit()
    manager.abort()
    assert mailer.calls == ["vote a@example.org", "abort"]
    assert mailer.sent == []
    assert ("not connected" in caplog.text) == bool(failure)


def test_a_mailer_that_votes_may_have_no_abort() -> None:
    class Voting(Mailer):
        def vote(self, *args: Any) -> None: ...

    mailer = Voting()
    _vote(mailer, check_relay=True).abort()
    _vote(mailer, check_relay=True).commit()
    assert len(mailer.sent) == 2


def test_a_mailer_of_zope_sendmail_is_asked_whether_its_relay_is_there() -> None:
    from zope.sendmail.mailer import SMTPMailer as ZopeMailer

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mailer = ZopeMailer("127.0.0.1", unused.getsockname()[1])
        manager = _vote(mailer, check_relay=True)
        with pytest.raises(ConnectionRefusedError):
            manager.commit()
        manager.abort()


def test_nothing_is_asked_where_all_was_rolled_back() -> None:
    manager = explicit()
    manager.begin()
    mailer = CheckedMailer()
    delivery = DirectMailDelivery(
        mailer, check_relay=True, transaction_manager=manager
    )
    delivery._batch().prepare([])
    assert mailer.checks == 0


def test_what_became_of_it_is_told_after_the_last_resource() -> None:
    manager = explicit()
    manager.begin()
    order: list[object] = []
    mailer = Mailer(notify=lambda event: order.append(type(event)))
    DirectMailDelivery(mailer, transaction_manager=manager).send(ANN, BOB, mail())
    manager.get().join(Partner(AFTER, tpc_finish=lambda: order.append("finished")))
    manager.commit()
    assert order == ["finished", MailSentEvent]


def test_it_is_told_also_where_the_commit_fails_in_the_end(hearing: Hearing) -> None:
    manager = explicit()
    manager.begin()
    mailer = Mailer(notify=hearing)
    DirectMailDelivery(mailer, transaction_manager=manager).send(ANN, BOB, mail())
    manager.get().join(failing("tpc_finish", AFTER))
    with pytest.raises(PartnerFailed):
        manager.commit()
    manager.abort()
    assert [type(event) for event in hearing] == [MailSentEvent]


def test_a_hook_that_ends_the_transaction_again_leaves_the_log(
    caplog: pytest.LogCaptureFixture, hearing: Hearing
) -> None:
    caplog.set_level(logging.INFO, "postcommit")
    manager = TransactionManager()
    delivery = DirectMailDelivery(Mailer(notify=hearing), transaction_manager=manager)
    manager.get().addAfterCommitHook(lambda committed: manager.begin())
    delivery.send(ANN, BOB, mail("a@example.org"))
    manager.commit()
    assert hearing == [], "transaction has forgotten our hook"
    assert f"<a@example.org> to {BOB}: sent" in caplog.text


def test_a_recipient_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "postcommit")
    manager = TransactionManager()
    delivery = DirectMailDelivery(Mailer(), transaction_manager=manager)
    delivery.send(ANN, [BOB, ANN], mail("a@example.org"))
    manager.commit()
    assert [record.getMessage() for record in caplog.records] == [
        f"<a@example.org> to {BOB}: sent: 250 2.0.0 Ok",
        f"<a@example.org> to {ANN}: sent: 250 2.0.0 Ok",
    ]


def test_a_mailer_from_elsewhere_may_raise(hearing: Hearing) -> None:
    class Elsewhere:
        notify = hearing

        def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
            raise ConnectionRefusedError("nobody there")

    manager = TransactionManager()
    delivery = DirectMailDelivery(Elsewhere(), transaction_manager=manager)
    delivery.send(ANN, BOB, mail("a@example.org"))
    manager.commit()
    [event] = hearing
    assert type(event) is MailDeferredEvent
    assert (event.messageId, event.recipients) == ("a@example.org", (BOB,))
    assert "nobody there" in event.errorMessage


@implementer(IPipelineMailer)
class Faithless(Mailer):
    """Promises a report for each message; each pipeline gives just one."""

    def __init__(self, failure: Exception | None, notify: Any) -> None:
        super().__init__(notify=notify)
        self.failure = failure

    def pipeline(self) -> FaithlessPipeline:
        return FaithlessPipeline(self)


class FaithlessPipeline(ScriptedPipeline):
    offered = 0

    def offer(self, mail: Any, key: Any = None) -> None:
        self.offered += 1
        if self.offered == 1:
            report = DeliveryReport.alike(
                message_id_of(mail.message), mail.recipients, Status.SENT, Reply(250)
            )
            self.done.append((key, report))
        elif self.mailer.failure:
            raise self.mailer.failure


@pytest.mark.parametrize("failure", [RuntimeError("broken"), None])
def test_a_mailer_that_breaks_its_contract_does_not_break_the_commit(
    failure: Exception | None, hearing: Hearing, caplog: pytest.LogCaptureFixture
) -> None:
    manager = explicit()
    manager.begin()
    mailer = Faithless(failure, hearing)
    delivery = DirectMailDelivery(mailer, transaction_manager=manager)
    for name in ("a", "b", "c"):
        delivery.send(ANN, BOB, mail(f"{name}@example.org"))
    manager.commit()
    told = [(type(event), event.messageId) for event in hearing]
    assert told == [
        (MailSentEvent, "a@example.org"),
        (MailDeferredEvent, "b@example.org"),
        # After an error, another pipeline is given the others.
        (MailSentEvent if failure else MailDeferredEvent, "c@example.org"),
    ]
    assert "Faithless" in caplog.text


class Interrupted(Faithless):
    def __init__(self, notify: Any) -> None:
        super().__init__(KeyboardInterrupt(), notify)  # type: ignore[arg-type]


def test_an_interrupt_in_the_middle_leaves_the_log_of_what_was_sent(
    hearing: Hearing, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    manager = explicit()
    manager.begin()
    delivery = DirectMailDelivery(Interrupted(hearing), transaction_manager=manager)
    for name in ("a", "b"):
        delivery.send(ANN, BOB, mail(f"{name}@example.org"))
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    assert "<a@example.org> to bob@example.org: sent: 250" in caplog.text
    assert "<b@example.org> to bob@example.org: uncertain" in caplog.text


class Subscriber(Hearing):
    """Raises `failure` when it hears of the message `a`."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure

    def __call__(self, event: Any) -> None:
        super().__call__(event)
        if event.messageId == "a@example.org":
            raise self.failure


@pytest.mark.parametrize("kind", MANAGERS)
@pytest.mark.parametrize("failure", [KeyboardInterrupt("^C"), SystemExit(3)])
def test_an_interrupt_in_a_subscriber_is_raised_after_the_commit(
    kind: str, failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "postcommit")
    with begun(kind) as manager:
        hearing = Subscriber(failure)
        mailer = Mailer(notify=hearing)
        database = Partner(AFTER)
        manager.get().join(database)
        hooks: list[Any] = []
        manager.get().addAfterCommitHook(hooks.append)
        delivery = DirectMailDelivery(mailer, transaction_manager=manager)
        for name in ("a", "b"):
            delivery.send(ANN, BOB, mail(f"{name}@example.org"))
        with pytest.raises(type(failure)) as caught:
            manager.commit()
        assert caught.value is failure
        # The outcome stays, and the others hear of theirs.
        assert database.calls[-1] == "abort", "the last step of a commit with hooks"
        assert "tpc_finish" in database.calls
        assert hooks == [True]
        assert [event.messageId for event in hearing] == [
            "a@example.org",
            "b@example.org",
        ]
        assert "<a@example.org> to bob@example.org: sent" in caplog.text
        # The manager is as after any commit.
        manager.begin()
        delivery.send(ANN, BOB, mail("c@example.org"))
        manager.commit()
        assert len(mailer.sent) == 3


class Delegating:
    """A mailer of an application: it has ``send()`` only, and uses one of ours."""

    def __init__(self, mailer: RecordingMailer) -> None:
        self.mailer = mailer

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
        return self.mailer.send(fromaddr, toaddrs, message)


@pytest.mark.parametrize("kind", MANAGERS)
@pytest.mark.parametrize("failure", [None, PartnerFailed])
def test_a_mailer_that_delegates_announces_when_the_commit_is_over(
    kind: str, failure: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Subscribers are unknown code, and other resources have not finished before."""
    with begun(kind) as manager:
        other = Partner(AFTER) if failure is None else failing("tpc_finish", AFTER)
        heard: list[tuple[str, list[str]]] = []
        ours = RecordingMailer()
        ours.notify = lambda event: heard.append((event.messageId, [*other.calls]))
        mailer: Any = Delegating(ours)
        delivery = DirectMailDelivery(mailer, transaction_manager=manager)
        delivery.send(ANN, BOB, mail("a@example.org"))
        delivery.send(ANN, BOB, mail("b@example.org"))
        manager.get().join(other)
        with suppress(PartnerFailed):
            manager.commit()
        assert [name for name, _ in heard] == ["a@example.org", "b@example.org"]
        assert all("tpc_finish" in calls for _, calls in heard)
        assert "Error in hook" not in caplog.text


def test_an_interrupt_of_such_a_subscriber_is_raised_by_the_commit() -> None:
    with begun("thread-local") as manager:
        ours = RecordingMailer()
        ours.notify = Subscriber(KeyboardInterrupt())
        delivery = DirectMailDelivery(Delegating(ours))  # type: ignore[arg-type]
        delivery.send(ANN, BOB, mail("a@example.org"))
        other = Partner(AFTER)
        manager.get().join(other)
        with pytest.raises(KeyboardInterrupt):
            manager.commit()
        assert "tpc_finish" in other.calls


def test_an_interrupt_while_mail_is_transmitted_is_raised_after_the_commit(
    hearing: Hearing,
) -> None:
    manager = explicit()
    manager.begin()
    delivery = DirectMailDelivery(Interrupted(hearing), transaction_manager=manager)
    for name in ("a", "b", "c"):
        delivery.send(ANN, BOB, mail(f"{name}@example.org"))
    other = Partner(AFTER)
    manager.get().join(other)
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    assert "tpc_finish" in other.calls
    assert "tpc_abort" not in other.calls
    assert [(type(event), event.messageId) for event in hearing] == [
        (MailSentEvent, "a@example.org"),
        (MailDeferredEvent, "b@example.org"),
        (MailDeferredEvent, "c@example.org"),
    ]
    assert "Perhaps not sent" in hearing[1].errorMessage
    assert "Not sent: interrupted by KeyboardInterrupt" in hearing[2].errorMessage


def test_a_subscriber_s_own_mail_may_be_interrupted_too() -> None:
    """Each of the two commits raises the interrupt when it is over."""
    manager = explicit()
    manager.begin()
    inner = DirectMailDelivery(
        Mailer(notify=Subscriber(KeyboardInterrupt())), transaction_manager=manager
    )

    def send_on(event: Any) -> None:
        inner.send(ANN, BOB, mail("a@example.org"))

    outer = DirectMailDelivery(Mailer(notify=send_on), transaction_manager=manager)
    outer.send(ANN, BOB, mail("b@example.org"))
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    assert len(inner.mailer.sent) == 1  # type: ignore[attr-defined]
    manager.begin()


def test_what_an_interrupted_commit_does_not_send_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    manager = explicit()
    manager.begin()
    mailer = Mailer()
    delivery = DirectMailDelivery(mailer, transaction_manager=manager)
    delivery.send(ANN, [BOB, ANN], mail("a@example.org"))
    manager.get().join(Partner(BEFORE, tpc_finish=interrupt))
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    manager.abort()
    assert mailer.sent == []
    [record] = [r for r in caplog.records if r.name == "postcommit.delivery"]
    assert record.levelname == "CRITICAL"
    assert record.getMessage() == (
        f"<a@example.org> to {BOB}, {ANN}: the commit was interrupted, the mail is not"
        " sent"
    )


class Impatient(logging.Handler):
    """Is interrupted in the first records of what was sent."""

    def __init__(self, times: int) -> None:
        super().__init__(logging.INFO)
        self.left = times

    def emit(self, record: logging.LogRecord) -> None:
        if self.left:
            self.left -= 1
            raise KeyboardInterrupt


@contextmanager
def impatient(times: int) -> Iterator[None]:
    handler = Impatient(times)
    logger = logging.getLogger("postcommit.event")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def test_two_interrupts_while_it_is_logged_lose_no_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "postcommit")
    manager = explicit()
    manager.begin()
    delivery = DirectMailDelivery(Mailer(), transaction_manager=manager)
    for name in ("a", "b", "c"):
        delivery.send(ANN, BOB, mail(f"{name}@example.org"))
    with impatient(2), pytest.raises(KeyboardInterrupt):
        manager.commit()
    manager.abort()
    ours = [r for r in caplog.records if r.name.startswith("postcommit")]
    assert [record.getMessage() for record in ours] == [
        "<a@example.org> to bob@example.org: sent: 250 2.0.0 Ok",
        "<b@example.org> to bob@example.org: deferred: 4.3.0 Not sent: interrupted by"
        " KeyboardInterrupt",
        "<c@example.org> to bob@example.org: the commit was interrupted, the mail is"
        " not sent",
    ]


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_while_the_last_one_is_logged_loses_no_outcome(
    times: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "postcommit")
    manager = TransactionManager()
    delivery = DirectMailDelivery(Mailer(), transaction_manager=manager)
    delivery.send(ANN, BOB, mail("a@example.org"))
    with impatient(times), pytest.raises(KeyboardInterrupt):
        manager.commit()
    manager.abort()
    ours = [r for r in caplog.records if r.name.startswith("postcommit")]
    assert [record.getMessage() for record in ours] == [
        "<a@example.org> to bob@example.org: sent: 250 2.0.0 Ok"
    ]


class Unfinished(OneByOne):
    """Has taken all messages when it is interrupted, and reports on none."""

    def completed(self) -> list[Any]:
        return []

    def drain(self) -> list[Any]:
        raise KeyboardInterrupt


def test_a_message_that_was_offered_is_not_called_unsent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Slow(Mailer):
        def pipeline(self) -> Unfinished:
            return Unfinished(lambda mail: from_result(None, mail))

    manager = explicit()
    manager.begin()
    delivery = DirectMailDelivery(Slow(), transaction_manager=manager)
    for name in ("a", "b"):
        delivery.send(ANN, BOB, mail(f"{name}@example.org"))
    with impatient(1), pytest.raises(KeyboardInterrupt):
        manager.commit()
    manager.abort()
    ours = [r for r in caplog.records if r.name.startswith("postcommit")]
    assert [record.getMessage() for record in ours] == [
        "<a@example.org> to bob@example.org: uncertain: 4.3.0 Perhaps not sent:"
        " interrupted by KeyboardInterrupt",
        "<b@example.org> to bob@example.org: the commit was interrupted, the mail is"
        " perhaps not sent",
    ]


def test_what_an_interrupted_commit_leaves_in_doubt_is_in_the_log(
    queue: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    manager = explicit()
    manager.begin()
    Office("queued", queue, manager).send("a")
    manager.get().join(Partner(BEFORE, tpc_finish=interrupt))
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    manager.abort()
    [name] = files(queue)
    assert [f"tmp/{os.path.basename(p)}" for p in Store(str(queue)).in_doubt()] == [
        name
    ]
    assert f"in doubt, for 'postcommit recover': {name[4:]}" in caplog.text


def test_an_only_entry_that_was_not_accepted_is_not_in_doubt(queue: Path) -> None:
    store = Store(str(queue))
    item = store.stage(ANN, (BOB,), [mail()], is_first=False)
    assert len(files(queue)) == 1
    batch = store.batch()
    batch.prepare([item], alone=True)
    batch.abandon([item])
    assert files(queue) == []


# Memory, forks


@pytest.mark.parametrize("ending", ["commit", "abort"])
def test_nothing_is_left_of_a_transaction_that_ended(
    office: Office, ending: str
) -> None:
    gc.disable()
    try:
        office.send("a")
        data_manager = weakref.ref(office.manager.get()._resources[0])
        batch = weakref.ref(data_manager()._batch)
        getattr(office.manager, ending)()
        assert (data_manager(), batch()) == (None, None)
    finally:
        gc.enable()


def test_a_delivery_that_is_forgotten_still_sends(office: Office) -> None:
    office.send("a")
    del office.delivery
    gc.collect()
    other = Office("queued", office.queue, office.manager)
    other.send("b")
    office.manager.commit()
    assert sorted(office.left) == ["a", "b"]


def _as_object(message: bytes) -> EmailMessage:
    made = EmailMessage()
    made["Message-Id"] = "<1@example.org>"
    made.add_attachment(message, maintype="application", subtype="octet-stream")
    return made


@pytest.mark.parametrize(
    ("kind", "most"), [(bytes, 0.01), (bytes.decode, 1.01), (_as_object, 1.1)]
)
def test_a_large_message_is_held_once_on_its_way_into_the_queue(
    queue: Path, kind: Callable[[bytes], Any], most: float
) -> None:
    message = kind(mail() + b"0123456789abcdefghijklmn\n" * 10**6)
    delivery = QueuedMailDelivery(str(queue), transaction_manager=TransactionManager())
    delivery.send(ANN, BOB, mail())
    delivery.transaction_manager.abort()
    tracemalloc.start()
    try:
        delivery.send(ANN, BOB, message)
        delivery.transaction_manager.commit()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = os.path.getsize(next((queue / "new").iterdir()))
    assert size > 25 * 10**6
    assert peak < most * size


def _fork(kind: str, queue: str) -> None:
    manager = explicit()
    manager.begin()
    office = Office(kind, Path(queue), manager)
    office.send("a")
    child = os.fork()
    if not child:
        manager.abort()
        manager.begin()
        office.send("b")
        manager.commit()
        return
    assert os.waitpid(child, 0)[1] == 0
    office.send("c")
    manager.commit()
    wanted = ["a", "b", "c"] if kind == "queued" else ["a", "c"]
    assert sorted(office.left) == wanted


@pytest.mark.parametrize("kind", ["queued", "direct"])
def test_a_forked_child_that_begins_again_harms_nothing(
    kind: str, queue: Path
) -> None:
    children.call(_fork, kind, str(queue))
