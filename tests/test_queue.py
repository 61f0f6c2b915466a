"""`MailQueue`: a queue as support pages and scripts see it."""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from postcommit import ChangeStatus
from postcommit import EntryState
from postcommit import ItemError
from postcommit import MailQueue
from postcommit import OptionError
from postcommit import QueueChange
from postcommit import QueueError
from postcommit._mail.entry import Entry
from postcommit._maildir.store import Store
from tests.support.queues import ENTRY
from tests.support.queues import MESSAGE
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import fill_rooms
from tests.support.queues import hold
from tests.support.queues import leave_in_doubt
from tests.support.queues import wait
from tests.support.queues import write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def queue(store: Store) -> MailQueue:
    return MailQueue(store.path)


def only(queue: MailQueue, state: EntryState) -> str:
    [entry] = queue.list(state)
    return entry.id


def claimed_elsewhere(store: Store, folder: str) -> Iterator[None]:
    [path] = store.maildir.paths(folder)
    claim = store.claim(path)
    assert claim is not None
    yield
    claim.release()


# Looking


def test_the_status(queue: MailQueue, store: Store) -> None:
    fill(store)
    status = queue.status()
    assert {state.key: count for state, count in status.counts.items()} == {
        "waiting": 1,
        "scheduled": 0,
        "deferred": 1,
        "bulk": 0,
        "held": 0,
        "failed": 1,
        "in_doubt": 1,
    }
    assert (status.due, status.pause, status.heartbeat) == (1, None, None)
    assert status.reasons[EntryState.FAILED].reply == "550 5.1.1 No such user"
    assert queue.attention(status) == (
        "1 in doubt; 'postcommit recover' sends or drops them",
        "1 due, processor not running; 'postcommit run' or 'postcommit flush'",
    )
    in_doubt, failed = queue.attention(status, needs_processor=False, warn_failed=0)
    assert in_doubt.startswith("1 in doubt")
    assert failed == "1 dead letter; 'postcommit list --failed'"


def test_a_list_has_the_states_that_are_asked_for(
    queue: MailQueue, store: Store
) -> None:
    fill(store)
    fill_rooms(store)
    assert [entry.state for entry in queue.list()] == list(EntryState)
    [dead] = queue.list(EntryState.FAILED)
    assert (dead.sender, dead.recipients) == (SENDER, RECIPIENTS)
    assert (dead.subject, dead.message_id) == ("Teapot", "1@x.org")
    assert dead.last_reply == "550 5.1.1 No such user"
    assert dead.due is None
    assert os.path.exists(dead.place)
    assert dead.header == "Message-Id: <1@x.org>\nSubject: Teapot\n"


@pytest.mark.parametrize(
    "wanted",
    [
        {"recipient": "c@x.org"},
        {"recipient": "c*"},
        {"sender": "@y.org"},
        {"message_id": "2@x.org"},
        {"search": "TEEKÄNNCHEN"},
        {"search": "2@x"},
        {"search": "t@Y.ORG"},
        {"search": "C@x"},
    ],
)
def test_a_list_by_content(
    queue: MailQueue, store: Store, wanted: dict[str, str]
) -> None:
    wait(store)
    other = (
        b"X-Zope-From: t@y.org\nX-Zope-To: c@x.org\nMessage-Id: <2@x.org>\n"
        b"Subject: =?utf-8?q?Ihr_Teek=C3=A4nnchen?=\n\nteapot\n"
    )
    write(store, "new/1700000000.M1P1Q1.web", other)
    [found] = queue.list(**wanted)  # type: ignore[arg-type]
    assert found.name == "1700000000.M1P1Q1.web"


def test_a_list_by_age(queue: MailQueue, store: Store) -> None:
    wait(store)
    write(store, f"new/{time.time() - 7200:.0f}.M1P1Q1.web", ENTRY)
    [old] = queue.list(older=3600)
    [new] = queue.list(newer=3600)
    assert (old.accepted or 0) < (new.accepted or 0)


def test_a_list_goes_on_where_it_was(queue: MailQueue, store: Store) -> None:
    names = [wait(store) for _ in range(5)]
    looked: list[None] = []

    def step() -> None:
        looked.append(None)

    rest = [e.name for e in queue.list(start=3, step=step)]
    assert rest == sorted(names)[3:]
    assert len(looked) == 5


def test_an_entry_by_its_id(queue: MailQueue, store: Store) -> None:
    fill(store)
    fill_rooms(store)
    id = only(queue, EntryState.DEFERRED)
    assert queue.show(id[:8]).id == id
    assert {entry.state for entry in queue.find("1@x.org")} == set(EntryState)
    with pytest.raises(ItemError, match="has 7 entries, give one") as caught:
        queue.show("<1@x.org>")
    assert sorted(caught.value.choices) == sorted(e.id for e in queue.list())
    with pytest.raises(ItemError, match="is not in this queue") as caught:
        queue.show("0123456789ab")
    assert caught.value.choices == ()


def test_an_ambiguous_id_has_choices(queue: MailQueue, store: Store) -> None:
    by_beginning: dict[str, list[str]] = {}
    for number in range(2000):
        write(store, f"new/17{number:08d}.M1P1Q1.web")
    for entry in queue.list():
        by_beginning.setdefault(entry.id[:4], []).append(entry.id)
    beginning, ids = max(by_beginning.items(), key=lambda found: len(found[1]))
    assert len(ids) > 1
    with pytest.raises(ItemError, match="is ambiguous") as caught:
        queue.show(beginning)
    assert sorted(caught.value.choices) == sorted(ids)


def test_the_message(queue: MailQueue, store: Store) -> None:
    wait(store)
    [entry] = queue.list()
    assert queue.message(entry) == queue.message(entry.id) == MESSAGE
    assert queue.message(entry, 10) == MESSAGE[:10]
    write(store, "cur/what:2,", b"no envelope")
    [damaged] = queue.list(EntryState.DEFERRED)
    assert damaged.subject == ""
    assert damaged.problem == "there is no envelope"
    assert queue.message(damaged) == b"no envelope"


def test_an_entry_that_goes_while_it_is_read(
    queue: MailQueue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait(store)
    [entry] = queue.list()
    operators = type(queue._operators)
    find = operators.find

    def sent_at_once(self: object, ids: object) -> object:
        found = find(self, ids)  # type: ignore[arg-type]
        os.unlink(found[0].place)
        return found

    monkeypatch.setattr(operators, "find", sent_at_once)
    with pytest.raises(ItemError, match="is gone: it was sent, or deleted, just now"):
        queue.show(entry.id)
    wait(store)
    [entry] = queue.list()
    with pytest.raises(ItemError, match="is gone: it was sent, or deleted, just now"):
        queue.message(entry.id)


def test_the_message_of_an_entry_that_has_moved(
    queue: MailQueue, store: Store
) -> None:
    wait(store)
    [entry] = queue.list()
    defer(store)
    assert queue.message(entry) == MESSAGE
    os.unlink(next(store.maildir.paths("cur")))
    with pytest.raises(ItemError, match="is not in this queue"):
        queue.message(entry)


def test_findings(queue: MailQueue, store: Store) -> None:
    assert list(queue.check()) == []
    write(store, "new/what", b"text")
    assert "new/what" in {os.path.relpath(f.place, store.path) for f in queue.check()}


# Changing


def test_retry_a_dead_letter(queue: MailQueue, store: Store) -> None:
    bury(store)
    [dead] = queue.list(EntryState.FAILED)
    assert queue.actions(dead) == ("retry", "delete")
    assert queue.retry(dead) == (QueueChange(dead.id, ChangeStatus.DONE),)
    [waiting] = queue.list()
    assert (waiting.id, waiting.state) == (dead.id, EntryState.WAITING)
    assert queue.actions(waiting) == ("hold", "cancel", "delete")


def test_retry_makes_deferred_entries_due(queue: MailQueue, store: Store) -> None:
    defer(store, due=5000)
    id = only(queue, EntryState.DEFERRED)
    [change] = queue.retry(id[:6])
    assert change.done
    assert (queue.show(id).due or 0) <= time.time()


def test_a_retry_warns_of_a_second_copy(queue: MailQueue, store: Store) -> None:
    wait(store)
    [path] = store.maildir.paths("new")
    claim = store.claim(path)
    assert claim is not None
    store.bury(claim, Entry(SENDER, RECIPIENTS, MESSAGE, 1, "lost", 1))
    store.finish(claim)
    claim.release(removed=True)
    [change] = queue.retry(only(queue, EntryState.FAILED))
    assert change.done
    assert change.warning == "it may have arrived already; a second copy may arrive"


def test_delete(queue: MailQueue, store: Store) -> None:
    fill(store)
    states = (EntryState.WAITING, EntryState.DEFERRED, EntryState.FAILED)
    changes = queue.delete(*queue.list(*states))
    assert [change.status for change in changes] == [ChangeStatus.DONE] * 3
    assert [entry.state for entry in queue.list()] == [EntryState.IN_DOUBT]


def test_cancel_what_waits(queue: MailQueue, store: Store) -> None:
    hold(store, defer(store))
    fill(store)
    fill_rooms(store)
    changes = queue.cancel(*queue.list())
    refused = {change.id: change for change in changes if not change.done}
    left = {entry.id: entry.state for entry in queue.list()}
    assert refused.keys() == left.keys()
    assert set(left.values()) == {EntryState.FAILED, EntryState.IN_DOUBT}
    assert len(changes) == 8
    [dead] = (id for id, state in left.items() if state is EntryState.FAILED)
    assert refused[dead].status is ChangeStatus.REFUSED
    problem = "it is a dead letter, which is not sent; delete it"
    assert refused[dead].problem == problem


def test_cancel_by_message_id_leaves_the_dead_letter(
    queue: MailQueue, store: Store
) -> None:
    fill(store)
    changes = queue.cancel("<1@x.org>")
    assert sorted(change.status.value for change in changes) == [
        *("done", "done", "refused", "refused")
    ]
    assert {entry.state for entry in queue.list()} == {
        *(EntryState.FAILED, EntryState.IN_DOUBT)
    }


def test_an_entry_that_becomes_a_dead_letter_is_not_cancelled(
    queue: MailQueue, store: Store
) -> None:
    """A deletion removes it. This is how the two differ."""
    wait(store)
    [listed] = queue.list()
    bury(store)
    [change] = queue.cancel(*queue.list())
    assert change.status is ChangeStatus.REFUSED
    [change] = queue.cancel(listed)
    assert not change.done
    [change] = queue.delete(*queue.list())
    assert change.done


def test_a_cancellation_warns_of_a_copy_that_may_have_arrived(
    queue: MailQueue, store: Store
) -> None:
    wait(store)
    [path] = store.maildir.paths("new")
    claim = store.claim(path)
    assert claim is not None
    lost = Entry(SENDER, RECIPIENTS, MESSAGE, 1, "lost", 1)
    store.defer(claim, lost, time.time() + 60)
    claim.release()
    [change] = queue.cancel(only(queue, EntryState.DEFERRED))
    assert change.done
    assert change.warning == "it may have arrived already"


def test_hold_and_release(queue: MailQueue, store: Store) -> None:
    defer(store)
    [entry] = queue.list()
    assert queue.actions(entry) == ("retry", "hold", "cancel", "delete")
    assert queue.hold(entry) == (QueueChange(entry.id, ChangeStatus.DONE),)
    [held] = queue.list()
    assert (held.id, held.state) == (entry.id, EntryState.HELD)
    assert queue.actions(held) == ("release", "cancel", "delete")
    [change] = queue.retry(held)
    assert change.status is ChangeStatus.REFUSED
    [change] = queue.release(held)
    assert change.done
    assert only(queue, EntryState.DEFERRED) == entry.id
    [change] = queue.release(entry.id)
    assert change.status is ChangeStatus.REFUSED


@pytest.mark.parametrize("send", [True, False])
def test_recover(queue: MailQueue, store: Store, send: bool) -> None:
    leave_in_doubt(store)
    doubtful = list(queue.list(EntryState.IN_DOUBT))
    assert queue.actions(doubtful[0]) == ("recover",)
    changes = queue.recover(*doubtful, send=send)
    assert [change.done for change in changes] == [True, True]
    assert len(list(queue.list())) == 2 * send


def test_an_action_that_does_not_fit_the_state(
    queue: MailQueue, store: Store
) -> None:
    fill(store)
    doubtful = only(queue, EntryState.IN_DOUBT)
    dead = only(queue, EntryState.FAILED)
    for action in (queue.retry, queue.cancel, queue.delete):
        [change] = action(doubtful)
        assert change.status is ChangeStatus.REFUSED
        assert change.problem == "it is in doubt, so it can only be recovered"
    [change] = queue.recover(dead, send=True)
    assert change.status is ChangeStatus.REFUSED
    assert change.problem == "it is not in doubt but failed"
    assert len(list(queue.list())) == 4


def test_a_dead_letter_that_is_not_an_entry(queue: MailQueue, store: Store) -> None:
    bury(store)
    [path] = Path(store.path, ".Failed").glob("*/1*")
    path.write_bytes(b"text")
    [change] = queue.retry(only(queue, EntryState.FAILED))
    assert change.status is ChangeStatus.REFUSED
    assert change.problem == "it cannot be sent: there is no envelope"


@pytest.mark.parametrize("action", ["retry", "cancel", "delete"])
def test_an_entry_that_is_being_sent(
    queue: MailQueue, store: Store, action: str
) -> None:
    defer(store)
    id = only(queue, EntryState.DEFERRED)
    for _ in claimed_elsewhere(store, "cur"):
        [change] = getattr(queue, action)(id)
        assert change.status is ChangeStatus.CLAIMED
        assert change.problem == "a processor is sending it now"
    [change] = getattr(queue, action)(id)
    assert change.done


def test_an_entry_that_was_sent_meanwhile(queue: MailQueue, store: Store) -> None:
    for _ in range(3):
        wait(store)
    gone, there, _ = queue.list()
    os.unlink(gone.place)
    changes = {change.id: change for change in queue.delete(gone, there)}
    assert changes[gone.id].status is ChangeStatus.GONE
    assert "sent or deleted" in changes[gone.id].problem
    assert changes[there.id].done
    wait(store)
    [change] = queue.recover(gone, send=False)
    assert change.status is ChangeStatus.GONE


def test_an_entry_that_is_deferred_meanwhile(
    queue: MailQueue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait(store)
    [entry] = queue.list()
    operators = type(queue._operators)
    find = operators.find

    def deferred_at_once(self: object, ids: object) -> object:
        found = find(self, ids)  # type: ignore[arg-type]
        if found[0].state is EntryState.WAITING:
            defer(store)
        return found

    monkeypatch.setattr(operators, "find", deferred_at_once)
    [change] = queue.delete(entry)
    assert change.done
    assert list(queue.list()) == []


def test_entries_that_somebody_else_recovers(
    queue: MailQueue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_in_doubt(store, 1)
    [doubtful] = queue.list(EntryState.IN_DOUBT)
    operators = type(queue._operators)
    find = operators.find
    claims = []

    def claimed_at_once(self: object, ids: object) -> object:
        found = find(self, ids)  # type: ignore[arg-type]
        claims.append(store.claim(found[0].place))
        return found

    monkeypatch.setattr(operators, "find", claimed_at_once)
    [change] = queue.recover(doubtful, send=True)
    assert claims[0] is not None
    claims[0].release()
    assert change.status is ChangeStatus.CLAIMED
    assert change.problem == "somebody else is recovering it now"


@pytest.mark.parametrize("id", ["0123", "0123456789abcd", "nobody@x.org", ""])
def test_an_id_that_means_nothing(queue: MailQueue, store: Store, id: str) -> None:
    wait(store)
    for change in (queue.retry, queue.delete):
        with pytest.raises(ItemError):
            change(id)
    assert len(list(queue.list())) == 1


# The queue itself


def test_a_queue_that_is_missing(tmp_path: Path) -> None:
    queue = MailQueue(str(tmp_path / "none"))
    assert repr(queue) == f"<MailQueue {tmp_path}/none>"
    for method in (queue.status, queue.list, queue.check):
        with pytest.raises(QueueError, match="none"):
            method()
    assert not (tmp_path / "none").exists()


def test_a_mailbox_can_be_looked_at_only(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "Maildir"))
    write(store, "new/1.mail", b"From: a@x.org\n\nprivate\n")
    queue = MailQueue(store.path)
    [entry] = queue.list()
    with pytest.raises(QueueError, match="person's mailbox"):
        queue.delete(entry)
    [change] = MailQueue(store.path, adopt=True).delete(entry)
    assert change.done


def test_a_path_that_can_never_work() -> None:
    with pytest.raises(OptionError, match="queuePath"):
        MailQueue("")


def test_the_path_stays(queue: MailQueue) -> None:
    with pytest.raises(AttributeError, match="cannot be changed"):
        queue.queuePath = "elsewhere"


def test_a_relative_path_is_that_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert MailQueue("queue").queuePath == str(tmp_path / "queue")
