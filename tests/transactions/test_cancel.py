"""A mail that waits is called off when, and only when, the transaction commits."""
from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from transaction import TransactionManager
from transaction.interfaces import TransactionFailedError

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._maildir import store as store_module
from postcommit._maildir.cancellation import waiting
from postcommit._maildir.gate import Gate
from postcommit._maildir.item import EntryState
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.interfaces import IScheduledMailDelivery
from postcommit.interfaces import Tally
from postcommit.testing import FakeClock
from postcommit.testing import RecordingMailer
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import failing
from tests.support.transactions import mail
from tests.support.users import without_rights


ANN, BOB = "ann@example.org", "bob@example.org"
HOUR = timedelta(hours=1)

WAYS: dict[str, dict[str, Any]] = {
    "new": {},
    "scheduled": {"not_before": HOUR},
    "bulk": {"bulk": True},
    "both": {"not_before": HOUR, "bulk": True},
    "expiring": {"expires": 5 * HOUR},
    "deferred": {},
}


class Post:
    def __init__(self, queue: Path) -> None:
        self.queue = queue
        self.manager = TransactionManager(explicit=True)
        self.manager.begin()
        self.delivery = QueuedMailDelivery(
            str(queue), transaction_manager=self.manager
        )
        self.mailer = RecordingMailer()
        self.clock = FakeClock()

    def commit(self) -> None:
        self.manager.commit()
        self.manager.begin()

    def accepted(self, way: str = "new", message_id: str = "1@x.org") -> str:
        """Have a mail wait in this way, alone in its transaction."""
        self.delivery.send("", ANN, mail(message_id), **WAYS[way])
        self.commit()
        if way == "deferred":
            self.mailer.refuse(ANN, "450 4.2.0 Later", times=1)
            assert self.flush() == Tally(0, 1, 0, 0)
        return message_id

    def flush(self) -> Tally:
        return QueueProcessor(
            str(self.queue), self.mailer, clock=self.clock
        ).flush()

    def flush_later(self) -> Tally:
        self.clock.advance(2 * 3600)
        return self.flush()

    def waiting(self) -> list[str]:
        found = (path for path in self.queue.rglob("*") if path.is_file())
        names = (str(path.relative_to(self.queue)) for path in found)
        return sorted(n for n in names if "maildirfolder" not in n and n[:2] != ".w")


@pytest.fixture
def post(tmp_path: Path) -> Post:
    return Post(tmp_path / "queue")


ways = pytest.mark.parametrize("way", WAYS)


@ways
@pytest.mark.parametrize("form", ["{}", "<{}>", " <{}> "])
def test_a_mail_that_waits_is_called_off(post: Post, way: str, form: str) -> None:
    name = post.accepted(way)
    assert post.delivery.cancel(form.format(name)) is True
    post.commit()
    assert post.waiting() == []
    assert post.flush_later() == Tally()


@ways
def test_it_waits_again_after_an_abort(post: Post, way: str) -> None:
    name = post.accepted(way)
    before = post.waiting()
    assert post.delivery.cancel(name)
    post.manager.abort()
    assert post.waiting() == before
    assert post.flush_later().sent == 1


@ways
def test_it_waits_again_after_a_rollback(post: Post, way: str) -> None:
    name = post.accepted(way)
    savepoint = post.manager.get().savepoint()
    assert post.delivery.cancel(name)
    savepoint.rollback()
    assert post.delivery.cancel(name)
    savepoint.rollback()
    post.commit()
    assert post.flush_later().sent == 1


@ways
def test_nobody_sends_it_before_the_transaction_ends(post: Post, way: str) -> None:
    name = post.accepted(way)
    assert post.delivery.cancel(name)
    assert post.flush_later() == Tally()  # it may have left its room by now
    post.commit()
    assert post.waiting() == []


@ways
def test_one_of_two_transactions_calls_it_off(post: Post, way: str) -> None:
    name = post.accepted(way)
    other = TransactionManager(explicit=True)
    other.begin()
    assert post.delivery.cancel(name)
    assert not post.delivery.bind(other).cancel(name)
    other.commit()
    post.commit()
    assert post.waiting() == []


@pytest.mark.parametrize("sort_key", [BEFORE, AFTER])
@pytest.mark.parametrize("stage", ["tpc_vote", "commit"])
def test_it_waits_if_another_resource_refuses(
    post: Post, stage: str, sort_key: str
) -> None:
    name = post.accepted("scheduled")
    before = post.waiting()
    post.manager.get().join(failing(stage, sort_key))
    assert post.delivery.cancel(name)
    with pytest.raises(PartnerFailed):
        post.manager.commit()
    assert post.waiting() == before


def test_it_is_called_off_together_with_a_mail_in_its_place(post: Post) -> None:
    name = post.accepted("scheduled")
    post.manager.get().join(Partner(BEFORE))
    assert post.delivery.cancel(name)
    other = post.delivery.send("", BOB, mail("2@x.org"), not_before=HOUR)
    post.commit()
    assert post.flush_later().sent == 1
    assert [each.message_id for each in post.mailer.outbox] == [other]


def test_also_without_another_resource(post: Post) -> None:
    name = post.accepted("scheduled")
    assert post.delivery.cancel(name)
    post.delivery.send("", BOB, mail("2@x.org"))
    post.commit()
    assert post.flush_later().sent == 1
    assert post.waiting() == []


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("partner", [True, False])
def test_a_mail_of_the_same_transaction_is_called_off(
    post: Post, is_first: bool, partner: bool
) -> None:
    if partner:
        post.manager.get().join(Partner(BEFORE))
    if not is_first:
        post.delivery.send("", BOB, mail("2@x.org"))
    name = post.delivery.send("", ANN, mail("1@x.org"), not_before=HOUR)
    assert post.delivery.cancel(name)
    assert not post.delivery.cancel(name)
    post.commit()
    assert len(post.waiting()) == (not is_first)
    assert post.flush_later().sent == (not is_first)


def test_a_mail_of_the_same_transaction_is_kept_after_a_rollback(post: Post) -> None:
    name = post.delivery.send("", ANN, mail("1@x.org"))
    savepoint = post.manager.get().savepoint()
    assert post.delivery.cancel(name)
    savepoint.rollback()
    post.commit()
    assert post.flush().sent == 1


def test_a_mail_of_the_same_transaction_goes_with_its_abort(post: Post) -> None:
    assert post.delivery.cancel(post.delivery.send("", ANN, mail("1@x.org")))
    post.manager.abort()
    assert post.waiting() == []


def test_what_is_unknown_or_was_sent_is_not_called_off(post: Post) -> None:
    name = post.accepted()
    assert not post.delivery.cancel("2@x.org")
    assert post.flush().sent == 1
    assert not post.delivery.cancel(name)
    post.mailer.refuse(ANN, "550 5.1.1 No such user")
    name = post.accepted(message_id="3@x.org")
    assert post.flush().rejected == 1
    assert not post.delivery.cancel(name), "a dead letter does not wait"
    post.commit()
    assert len(post.waiting()) == 1


def test_what_is_being_sent_is_not_called_off(post: Post) -> None:
    name = post.accepted()
    [path] = Store(str(post.queue)).maildir
    claim = Claim.take(path)
    assert claim is not None
    assert not post.delivery.cancel(name)
    claim.release()
    assert post.delivery.cancel(name)


def test_all_entries_of_a_message_are_called_off(post: Post) -> None:
    for way in reversed(WAYS):  # the deferred one first
        post.accepted(way)
    post.accepted("new", "2@x.org")
    assert post.delivery.cancel("1@x.org")
    post.commit()
    assert post.flush_later().sent == 1
    assert [each.message_id for each in post.mailer.outbox] == ["2@x.org"]


def test_a_message_with_a_long_header_is_found(post: Post) -> None:
    many = [f"user{n}@example.org" for n in range(5000)]
    data = b"X-Long: %b\r\nMessage-Id: <1@x.org>\r\n\r\nText.\r\n" % (b"x " * 50_000)
    post.delivery.send("", many, data)
    post.commit()
    assert post.delivery.cancel("1@x.org")


def test_a_file_that_is_not_an_entry_is_no_obstacle(post: Post) -> None:
    name = post.accepted()
    (post.queue / "new" / "0").write_text("no entry")
    (post.queue / "new" / "1").symlink_to(post.queue / "nowhere")
    (post.queue / "new" / ".sending-0").write_bytes(b"")
    (post.queue / "new" / "2").mkdir()
    assert post.delivery.cancel(name)


@pytest.mark.parametrize("value", [None, b"1@x.org", 7, "", "<>", "  ", "a b", "<a<b>"])
def test_what_is_not_a_message_id_is_refused(post: Post, value: Any) -> None:
    with pytest.raises(OptionError, match="must be a message id") as caught:
        post.delivery.cancel(value)
    assert caught.value.name == "message_id"


def test_a_queue_that_cannot_be_read_is_an_error(post: Post) -> None:
    name = post.accepted("both")
    post.accepted("new")
    (post.queue / "cur").rename(post.queue / "gone")
    with pytest.raises(QueueError, match="look for the mail"):
        post.delivery.cancel(name)
    (post.queue / "gone").rename(post.queue / "cur")
    assert post.flush_later().sent == 2, "nothing is claimed any more"


def test_an_interrupted_search_leaves_no_claim(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = post.accepted("both")
    post.accepted("new")
    claimed: list[str] = []
    claim = Store.claim

    def interrupted(self: Store, path: str, locks: Any = None) -> Any:
        if claimed:
            raise KeyboardInterrupt
        claimed.append(path)
        return claim(self, path, locks)

    with monkeypatch.context() as patch:
        patch.setattr(store_module.Store, "claim", interrupted)
        with pytest.raises(KeyboardInterrupt):
            post.delivery.cancel(name)
    assert post.delivery.cancel(name)


# Files and folders of somebody else


@pytest.fixture
def shared() -> Iterator[Post]:
    """A queue in a folder that other users than root may enter."""
    folder = Path(tempfile.mkdtemp(prefix="postcommit-"))
    folder.chmod(0o755)
    yield Post(folder / "queue")
    shutil.rmtree(folder)


def test_an_entry_that_cannot_be_read_is_not_taken_for_unknown(shared: Post) -> None:
    name, other = shared.accepted(), shared.accepted("new", "2@x.org")
    path = next(
        path
        for path in (shared.queue / "new").iterdir()
        if b"1@x.org" in path.read_bytes()
    )
    with without_rights(shared.queue, path, mode=0):
        assert shared.delivery.cancel(other), "it has nothing to do with this one"
        operators = MaildirOperators(str(shared.queue))
        assert not list(operators.items(EntryState, message_id=name)), "for a list"
        for unknown in (name, "3@x.org"):
            with pytest.raises(QueueError, match="look for the mail") as caught:
                shared.delivery.cancel(unknown)
            assert str(path) in str(caught.value)
    assert shared.delivery.cancel(name)


@pytest.mark.parametrize("way", ["new", "scheduled", "both", "deferred"])
@pytest.mark.parametrize("with_partner", [True, False])
def test_the_vote_refuses_what_could_not_be_removed(
    shared: Post, way: str, with_partner: bool
) -> None:
    name = shared.accepted(way)
    [path] = (
        path
        for folder in ("new", "cur", ".Later/new")
        for path in (shared.queue / folder).glob("*")
    )
    partner = Partner(BEFORE)
    if with_partner:
        shared.manager.get().join(partner)
    with without_rights(shared.queue, path.parent, mode=0o555):
        assert shared.delivery.cancel(name)
        with pytest.raises(QueueError, match="cannot remove the entry"):
            shared.manager.commit()
    assert "tpc_finish" not in partner.calls
    assert shared.flush_later().sent == 1


def test_a_room_that_cannot_be_read_keeps_nobody_from_pausing(shared: Post) -> None:
    shared.accepted("scheduled")
    shared.accepted("new", "2@x.org")
    operators = MaildirOperators(str(shared.queue))
    room = shared.queue / ".Later"
    with without_rights(shared.queue, room, mode=0):
        with operators.changes() as changes:
            assert changes.stop("ann")
            for item in operators.items([EntryState.WAITING]):
                assert changes.hold(item)
        with pytest.raises(QueueError, match=r"\.Later/new: cannot look through"):
            operators.survey()
    assert operators.survey().counts[EntryState.HELD] == 1


# The entry moves while it is claimed


def held_by_a_person(post: Post, way: str) -> None:
    operators = MaildirOperators(str(post.queue))
    with operators.changes() as changes:
        for item in list(operators.items(EntryState)):
            act = changes.release if item.state is EntryState.HELD else changes.hold
            act(item)


class Interrupted(Maildir):
    """A Maildir in which a person acts before the folder of this number is read."""

    def __init__(self, post: Post, way: str, number: int) -> None:
        super().__init__(str(post.queue))
        self.act = lambda: held_by_a_person(post, way)
        self.left = number

    def folder(self, name: str) -> str:
        if self.left == 0:
            self.act()
        self.left -= 1
        return super().folder(name)


@ways
@pytest.mark.parametrize("is_held", [True, False])
def test_it_is_found_although_a_person_moves_it(
    post: Post, way: str, is_held: bool
) -> None:
    """It is held, or released, before any one of the folders is read."""
    name = post.accepted(way)
    if is_held:
        held_by_a_person(post, way)
    for number in range(8):
        maildir = Interrupted(post, way, number)
        assert list(waiting(maildir, name)), number
        assert maildir.left < 0, "the person has acted"
        held_by_a_person(post, way)


def moved_by_the_feeder(post: Post, way: str) -> None:
    gate = Gate(Store(str(post.queue)), lambda: post.clock() + 7200)
    while gate.let_in():
        pass


def moved_by_a_reader(post: Post, way: str) -> None:
    moved_by_the_feeder(post, way)
    [name] = os.listdir(post.queue / "new")
    (post.queue / "new" / name).rename(post.queue / "cur" / f"{name}:2,S")


def removed(post: Post, way: str) -> None:
    [path] = (p for p in post.queue.glob(".*/new/*"))
    path.unlink()


@pytest.mark.parametrize("way", ["scheduled", "bulk", "both"])
@pytest.mark.parametrize("move", [moved_by_the_feeder, moved_by_a_reader, removed])
def test_it_is_removed_wherever_it_is_by_then(
    post: Post, way: str, move: Callable[[Post, str], None]
) -> None:
    name = post.accepted(way)
    assert post.delivery.cancel(name)
    move(post, way)
    post.commit()
    assert post.waiting() == []


def test_what_cannot_be_removed_is_logged_as_a_loss(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    names = [post.accepted("scheduled", f"{n}@x.org") for n in range(2)]
    for name in names:
        assert post.delivery.cancel(name)
    path = sorted((post.queue / ".Later/new").iterdir())[0]
    data = path.read_bytes()
    path.unlink()
    path.mkdir()  # in the place of the file
    (path / "x").write_bytes(data)
    with pytest.raises(OSError, match="remove the entry"):
        post.manager.commit()
    assert "was called off, but cannot be removed and may be sent" in caplog.text
    assert [p.name for p in (post.queue / ".Later/new").iterdir()] == [path.name]


def test_an_interrupted_commit_says_that_the_mail_may_be_sent(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    name = post.accepted("scheduled")
    post.manager.get().join(Partner(BEFORE))
    assert post.delivery.cancel(name)
    post.delivery.send("", ANN, mail("2@x.org"))
    assert post.delivery.cancel(post.delivery.send("", ANN, mail("3@x.org")))
    [resource] = (
        r for r in post.manager.get()._resources if not isinstance(r, Partner)
    )
    resource.tpc_vote(post.manager.get())
    caplog.set_level(logging.CRITICAL)
    resource._batch.abandon(resource.items)
    assert "it was called off, but may be sent" in caplog.text
    left = post.waiting()
    assert len(left) == 2
    assert post.flush_later().sent == 1


def test_a_child_does_not_call_off_what_its_parent_has(post: Post) -> None:
    name = post.accepted("scheduled")
    assert post.delivery.cancel(name)
    child = os.fork()
    if not child:
        post.manager.abort()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert post.flush_later() == Tally(), "the claim is still ours"
    post.commit()
    assert post.waiting() == []


def test_a_transaction_that_takes_no_more_work_keeps_no_claim(post: Post) -> None:
    name = post.accepted("scheduled")
    post.manager.get().join(failing("commit", BEFORE))
    with pytest.raises(PartnerFailed):
        post.manager.commit()
    with pytest.raises(TransactionFailedError):
        post.delivery.cancel(name)
    post.manager.abort()
    assert post.flush_later().sent == 1


def test_the_contract(post: Post) -> None:
    assert IScheduledMailDelivery.providedBy(post.delivery)
