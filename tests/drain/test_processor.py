"""One entry: claimed, transmitted, settled, told."""
from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import ClassVar

import pytest
import transaction
from zope.interface import classImplements

from postcommit._drain.schedule import Schedule
from postcommit._mail.entry import Entry
from postcommit._mail.report import DeliveryReport
from postcommit._maildir.consumer import Consumer
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.item import EntryState
from postcommit._maildir.looking import details
from postcommit._maildir.looking import items
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store
from postcommit._transaction.event import MailDeferredEvent
from postcommit._transaction.event import MailRejectedEvent
from postcommit._transaction.event import MailSentEvent
from postcommit._transaction.event import MailUncertainEvent
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailEvent
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from tests.support.draining import Bench
from tests.support.draining import Result
from tests.support.faults import full_disk
from tests.support.faults import without_privileges
from tests.support.mailers import NEVER
from tests.support.mailers import OK
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer
from tests.support.queues import ENTRY


ANN, BOB = "ann@x.org", "bob@x.org"
LATER, REFUSED, LOST = "later@x.org", "never@x.org", "lost@x.org"

DAY = 86400.0


class Queue:
    """A queue, a worker on it and a clock."""

    benches: ClassVar[list[Bench]] = []  # to be closed

    def __init__(self, path: Path, mailer: ScriptedMailer) -> None:
        self.store = Store(str(path))
        self.path = path
        self.mailer = mailer
        self.now = time.time()
        schedule = Schedule(60, 4000, 5 * DAY)
        self.bench = Bench(self.store, mailer, schedule, lambda: self.now)
        self.benches.append(self.bench)

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bench.close()

    def send(
        self, *recipients: str, message_id: str = "1@x.org", body: str = "Text."
    ) -> str:
        message = f"Message-Id: <{message_id}>\n\n{body}\n".encode()
        item = self.store.stage("shop@x.org", recipients, [message])
        item.commit()
        return item.path

    def work(self, *paths: str) -> list[Result]:
        """Work on what is due, or on just these `paths`."""
        return self.bench.work(paths or None)

    def settle_again(self) -> list[Result]:
        """Work on nothing but what could not be settled before."""
        return self.bench.work([])

    def entries(self, folder: str) -> list[Entry]:
        found = sorted((self.path / folder).glob("*"))
        return [parse_entry(path.read_bytes()) for path in found]

    def events(self) -> list[tuple[type, tuple[str, ...]]]:
        return [(type(e), e.recipients) for e in self.mailer.events]  # type: ignore[attr-defined]


@pytest.fixture(params=[ScriptedMailer, ScriptedPipelineMailer])
def queue(tmp_path: Path, request: pytest.FixtureRequest) -> Queue:
    return Queue(tmp_path / "queue", request.param())


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    for bench in Queue.benches:
        bench.close()
    Queue.benches.clear()
    assert set(os.listdir("/proc/self/fd")) <= before


# The table of the design


def test_when_every_recipient_is_sent_the_entry_is_removed(queue: Queue) -> None:
    queue.send(ANN, BOB)
    assert queue.work() == [Result(Tally(2, 0, 0))]
    assert queue.entries("new") == queue.entries("cur") == []
    assert queue.events() == [(MailSentEvent, (ANN, BOB))]


def test_who_failed_for_now_stays_alone_until_it_is_due(queue: Queue) -> None:
    queue.send(ANN, LATER, LOST)
    [result] = queue.work()
    assert result.tally == Tally(1, 2, 0)
    [entry] = queue.entries("cur")
    assert entry.recipients == (LATER, LOST)
    assert entry.attempts == 1
    assert entry.last_reply == (
        "later@x.org: 450 4.2.0 Greylisted; lost@x.org: 4.4.2 Connection lost"
    )
    [path] = queue.store.maildir.paths("cur")
    assert 54 <= os.stat(path).st_mtime - queue.now <= 66
    assert queue.events() == [
        (MailSentEvent, (ANN,)),
        (MailDeferredEvent, (LATER,)),
        (MailDeferredEvent, (LOST,)),
    ]


def test_a_second_attempt_is_for_those_who_are_left(queue: Queue) -> None:
    queue.send(ANN, LATER)
    queue.work()
    del queue.mailer.outcomes["later"]
    queue.now += 3600
    assert queue.work() == [Result(Tally(1, 0, 0))]
    assert queue.mailer.attempts[-1].recipients == (LATER,)
    assert queue.entries("cur") == []


def test_each_attempt_is_counted_and_later_than_the_one_before(queue: Queue) -> None:
    queue.send(LATER)
    waits = []
    for attempts in range(1, 12):
        [result] = queue.work()
        [entry] = queue.entries("cur")
        assert entry.attempts == attempts
        assert result.tally == Tally(0, 1, 0)
        [path] = queue.store.maildir.paths("cur")
        due = os.stat(path).st_mtime
        waits.append(due - queue.now)
        queue.now = due
    assert waits[0] < 70
    assert waits[-1] > 3000
    assert max(waits) <= 4400


def test_who_is_rejected_goes_to_the_dead_letters_and_the_rest_goes_on(
    queue: Queue,
) -> None:
    queue.send(ANN, REFUSED, LATER)
    [result] = queue.work()
    assert result.tally == Tally(1, 1, 1)
    [dead] = queue.entries(".Failed/new")
    assert dead.recipients == (REFUSED,)
    assert dead.last_reply == "550 5.1.1 No such user"
    [left] = queue.entries("cur")
    assert left.recipients == (LATER,)
    assert (MailRejectedEvent, (REFUSED,)) in queue.events()


def test_a_relay_failure_touches_nothing(queue: Queue) -> None:
    path = queue.send(ANN)
    before = os.stat(path)
    queue.mailer.failure = failure = RelayError("no connection")
    assert queue.work() == [Result(trouble=failure)]
    after = os.stat(path)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert queue.entries("new")[0].attempts == 0
    assert queue.mailer.events == []
    queue.mailer.failure = None
    assert queue.work() == [Result(Tally(1, 0, 0))]


def test_what_is_too_old_is_given_up_with_its_last_reply(queue: Queue) -> None:
    queue.send(LATER, LOST)
    queue.work()
    queue.now += 5 * DAY + 1
    assert queue.work() == [Result(Tally(0, 0, 1, 1))]
    assert queue.entries("cur") == []
    [rejected, uncertain] = queue.entries(".Failed/new")
    assert rejected.recipients == (LATER,)
    assert rejected.attempts == uncertain.attempts == 2
    assert rejected.last_reply == "450 4.2.0 Greylisted"
    assert uncertain.recipients == (LOST,)
    assert uncertain.last_reply == (
        "uncertain, it may have arrived: 4.4.2 Connection lost"
    )
    assert queue.events()[-2:] == [
        (MailRejectedEvent, (LATER,)),
        (MailUncertainEvent, (LOST,)),
    ]


def test_what_is_old_but_sent_at_last_is_sent(queue: Queue) -> None:
    queue.send(ANN)
    queue.now += 30 * DAY
    assert queue.work() == [Result(Tally(1, 0, 0))]
    assert not (queue.path / ".Failed").exists()


@pytest.mark.parametrize("data", [b"", b"\0" * 10_000, b"X-Zope-From: a@x.org\n"])
def test_what_cannot_be_read_is_a_dead_letter_and_the_queue_goes_on(
    queue: Queue, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (queue.path / "new" / "0.host").write_bytes(data)
    queue.send(ANN)
    results = queue.work()
    assert Result(Tally(1, 0, 0)) in results
    assert queue.entries("new") == []
    [kept] = (queue.path / ".Failed" / "new").iterdir()
    assert kept.read_bytes().endswith(b"\n" + data)
    assert [e for e, _ in queue.events()].count(MailRejectedEvent) == 1
    assert "unreadable, now a dead letter" in caplog.text


def test_the_event_of_what_cannot_be_read_has_the_id_that_is_in_it(
    queue: Queue,
) -> None:
    data = b"X-Zope-From: \nX-Zope-To: \nMessage-Id: <7@x.org>\n\n"
    (queue.path / "new" / "0.host").write_bytes(data)
    queue.work()
    [event] = queue.mailer.events
    assert IMailEvent.providedBy(event)
    assert isinstance(event, MailRejectedEvent)
    assert event.errorMessage.startswith("unreadable: ")


# Others at work


def test_what_is_claimed_by_another_one_or_gone_stays(queue: Queue) -> None:
    path = queue.send(ANN)
    claim = queue.store.claim(path)
    assert claim is not None
    gone = queue.send(BOB)
    os.unlink(gone)
    assert queue.work(path, gone) == []
    claim.release()
    assert queue.work() == [Result(Tally(1, 0, 0))]


def test_what_was_deferred_after_it_was_found_due_is_not_tried_at_once(
    queue: Queue,
) -> None:
    """As where several processors have read the same names."""
    queue.send(LATER)
    queue.work()
    queue.now += DAY
    other = Queue(queue.path, queue.mailer)
    other.now = queue.now
    deferred = other.work  # when the other processor has read the names
    names, claim = iter(queue.store.maildir.paths("cur")), other.store.claim
    [path] = names

    def claim_late(path: str, *locks: Any) -> Claim | None:
        other.store.claim = claim  # type: ignore[method-assign]
        assert queue.work() == [Result(Tally(0, 1, 0))]
        return claim(path, *locks)

    other.store.claim = claim_late  # type: ignore[method-assign]
    assert deferred() == []
    assert len(queue.mailer.attempts) == 2
    os.utime(path, (queue.now, queue.now))  # as a retry does
    assert queue.work() == [Result(Tally(0, 1, 0))]


def test_what_is_new_is_due_also_where_the_clock_was_put_back(queue: Queue) -> None:
    queue.send(ANN)
    queue.now -= DAY
    assert queue.work() == [Result(Tally(1, 0, 0))]


def test_a_batch_is_settled_in_order_and_each_as_soon_as_it_is_reported(
    queue: Queue,
) -> None:
    for number in range(5):
        queue.send(ANN, message_id=f"{number}@x.org")
    left: list[int] = []
    queue.mailer.notify = lambda event: left.append(len(queue.entries("new")))  # type: ignore[method-assign]
    assert queue.work() == 5 * [Result(Tally(1, 0, 0))]
    assert left == [4, 3, 2, 1, 0]
    assert [m for m, _ in queue.mailer.sent] == [f"{n}@x.org" for n in range(5)]


@pytest.mark.parametrize(
    ("quick_seconds", "body", "claimed"),
    [
        # Each time twice as many, to eight: as long as it goes quickly.
        (1e6, "Text.", [1, 2, 1, 4, 3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1, 3, 2, 1]),
        (0.0, "Text.", 18 * [1]),
        # What is large is not kept in memory for later.
        (1e6, 40_000 * "No", 18 * [1]),
    ],
    ids=["quick", "slow", "large"],
)
def test_as_long_as_the_relay_is_quick_some_entries_are_claimed_ahead(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick_seconds: float,
    body: str,
    claimed: list[int],
) -> None:
    monkeypatch.setattr(Consumer, "quick_seconds", quick_seconds)
    queue = Queue(tmp_path / "queue", ScriptedMailer())
    paths = [queue.send(ANN, message_id=f"{n}@x.org", body=body) for n in range(18)]
    found: list[int] = []
    queue.mailer.before = lambda taken: found.append(
        sum(os.path.exists(path) and is_claimed(queue, path) for path in paths)
    )
    assert queue.work() == 18 * [Result(Tally(1, 0, 0))]
    assert found == claimed


def is_claimed(queue: Queue, path: str) -> bool:
    claim = queue.store.claim(path)
    if claim is not None:
        claim.release()
    return claim is None


def test_what_was_claimed_ahead_is_let_go_of_when_the_relay_fails(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Consumer, "quick_seconds", 1e6)
    paths = [queue.send(ANN, message_id=f"{n}@x.org") for n in range(20)]
    asked = []

    def fail_the_ninth(taken: object) -> None:
        asked.append(taken)
        if len(asked) == 9:
            queue.mailer.failure = RelayError("no connection")

    queue.mailer.before = fail_the_ninth
    results = queue.work()
    sent = [result for result in results if not result.trouble]
    assert sent == 8 * [Result(Tally(1, 0, 0))]
    # A batch is one ahead of its reports.
    ahead = isinstance(queue.mailer, ScriptedPipelineMailer)
    assert len(asked) == len(results) == 9 + ahead
    assert not any(is_claimed(queue, path) for path in paths[8:])


# Trouble


def test_an_entry_that_cannot_be_opened_is_left_and_logged_once(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    (queue.path / "new" / "0.folder").mkdir()
    queue.send(ANN)
    assert queue.work() == [Result(Tally(1, 0, 0))]
    for _ in range(3):
        assert queue.work() == []
    assert caplog.text.count("0.folder: left in the queue") == 1


def test_a_file_that_is_larger_than_the_memory_is_left_and_not_claimed(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    path = queue.path / "new" / "0.host"
    path.write_bytes(ENTRY)
    os.truncate(path, 1 << 43)
    assert queue.work() == []
    assert "MemoryError" in caplog.text
    claim = queue.store.claim(str(path))
    assert claim is not None
    claim.release()


@pytest.mark.parametrize("beginning", [b"", b"X-Zope-From: ", b"a: b\n" * 1000])
def test_a_large_file_that_is_not_an_entry_is_recognised_by_its_beginning(
    queue: Queue, caplog: pytest.LogCaptureFixture, beginning: bytes
) -> None:
    path = queue.path / "new" / "0.host"
    path.write_bytes(beginning)
    os.truncate(path, 1 << 43)  # more than fits into memory, or on the disk
    queue.send(ANN)
    assert queue.work() == [Result(Tally(1, 0, 0))]
    assert "unreadable, now a dead letter: there is no" in caplog.text
    assert queue.entries("new") == []
    [dead] = items(queue.store, [EntryState.FAILED])
    read = details(dead)
    assert read is not None
    assert read.size == 1 << 43
    assert read.problem.startswith("there is no")


def test_an_envelope_of_any_length_is_read(queue: Queue) -> None:
    many = [f"recipient.number.{n}@example.org" for n in range(130_000)]
    preamble = f"X-Zope-From: \nX-Zope-To: {', '.join(many)}\n"
    path = queue.path / "new" / "0.host"
    path.write_bytes(f"{preamble}Subject: x\n\nText.\n".encode())
    [item] = items(queue.store, [EntryState.WAITING])
    read = details(item)
    assert read is not None
    assert len(read.recipients) == len(many)
    assert queue.work() == [Result(Tally(len(many), 0, 0))]


class Faulty(Store):
    """A store that cannot claim, as on a file system that has no locks."""

    def claim(self, path: str, *_: object) -> Claim | None:
        raise OSError(errno.ENOLCK, "No locks available", path)


def test_what_every_entry_would_fare_alike_with_is_trouble_of_the_queue(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        queue.send(ANN, message_id=f"{number}@x.org")
    bench = Bench(Faulty(str(queue.path)), queue.mailer, Schedule(60, 4000, 5 * DAY))
    Queue.benches.append(bench)
    [result] = bench.work()
    assert str(result.trouble) == (
        f"{queue.path}: cannot work on the entries: No locks available"
    )
    assert caplog.text == ""  # that is for the one who pauses


def test_what_is_removed_by_hand_during_an_attempt_is_not_tried_again(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    path = queue.send(LATER)
    queue.mailer.before = lambda taken: os.remove(path)
    [result] = queue.work()
    assert result.trouble is None
    assert queue.entries("new") == queue.entries("cur") == []
    assert f"{path}: somebody has removed it" in caplog.text
    assert queue.work() == []


def test_what_is_moved_to_another_folder_by_hand_is_not_tried_again(
    queue: Queue, tmp_path: Path
) -> None:
    path = queue.send(LATER)
    queue.mailer.before = lambda taken: os.rename(path, tmp_path / "elsewhere")
    [result] = queue.work()
    assert result.trouble is None
    assert queue.work() == []


def test_a_name_that_does_not_tell_the_time_may_be_gone_when_it_is_settled(
    queue: Queue,
) -> None:
    path = queue.path / "new" / "by-hand"
    os.rename(queue.send(LATER), path)
    queue.mailer.before = lambda taken: path.unlink()
    [result] = queue.work()
    assert result.trouble is None
    assert queue.work() == []


@pytest.mark.parametrize("recipients", [(ANN,), (ANN, LATER), (ANN, REFUSED, LATER)])
def test_what_a_maildir_reader_moves_during_an_attempt_is_settled_where_it_is(
    queue: Queue, recipients: tuple[str, ...]
) -> None:
    path = queue.send(*recipients)
    queue.send(BOB, message_id="2@x.org")  # another one, which stays where it is
    seen = f"{queue.path}/cur/{os.path.basename(path)}:2,S"

    def read(taken: object) -> None:
        if os.path.exists(path):
            os.rename(path, seen)

    queue.mailer.before = read
    results = queue.work()
    assert all(result.trouble is None for result in results)
    left = [entry.recipients for entry in queue.entries("cur")]
    assert left == ([(LATER,)] if LATER in recipients else [])
    assert queue.work() == []
    assert [taken.recipients for taken in queue.mailer.attempts].count(recipients) == 1


def test_what_was_changed_under_its_name_is_not_what_was_sent(queue: Queue) -> None:
    """Somebody removes the entry, and puts another one in its place."""
    path = queue.send(ANN)

    def replace(taken: object) -> None:
        queue.mailer.before = lambda taken: None
        os.rename(path, f"{path}.away")
        os.rename(queue.send(BOB), f"{queue.path}/cur/{os.path.basename(path)}:2,")
        os.unlink(f"{path}.away")

    queue.mailer.before = replace
    [result] = queue.work()
    assert result == Result(Tally(1, 0, 0))
    assert [entry.recipients for entry in queue.entries("cur")] == [(BOB,)]


def test_who_may_not_look_takes_nothing_for_removed(queue: Queue) -> None:
    """Some were sent, some rejected: until it is settled, nobody tries it again."""
    queue.send(ANN, REFUSED, LATER)
    new = queue.path / "new"
    queue.mailer.before = lambda taken: new.chmod(0)
    troubles: list[object] = []
    without_privileges(lambda: troubles.extend(r.trouble for r in queue.work()))
    new.chmod(0o700)
    assert {type(trouble) for trouble in troubles} == {QueueError}
    assert len(queue.work()) == 1  # what was left is settled
    assert [taken.recipients for taken in queue.mailer.attempts] == [
        (ANN, REFUSED, LATER)
    ]
    assert [entry.recipients for entry in queue.entries("cur")] == [(LATER,)]


def test_a_removal_that_finds_nothing_where_something_is_is_tried_again(
    queue: Queue,
) -> None:
    path = queue.send(ANN)
    new, away = queue.path / "new", queue.path / "away"
    queue.mailer.before = lambda taken: os.rename(new, away)
    [result, *_] = queue.work()
    assert isinstance(result.trouble, QueueError)
    os.rename(away, new)
    assert queue.settle_again() == [Result(Tally(1, 0, 0))]
    assert not os.path.exists(path)
    assert len(queue.mailer.attempts) == 1


@pytest.mark.parametrize("folder", ["new", "cur"])
def test_whose_name_does_not_tell_the_time_is_given_up_one_day(
    queue: Queue, folder: str
) -> None:
    path = queue.path / folder / ("mail-42" if folder == "new" else "mail-42:2,S")
    os.rename(queue.send(LATER), path)
    os.utime(path, (queue.now, queue.now))
    began = queue.now
    for _ in range(30):
        queue.work()
        queue.now += DAY / 4
        if not queue.entries("cur"):
            break
    assert 5 * DAY <= queue.now - began <= 6 * DAY
    assert queue.events()[-1] == (MailRejectedEvent, (LATER,))
    [dead] = (queue.path / ".Failed" / "new").iterdir()
    assert dead.name == f"{int(began)}.mail-42"


def test_a_folder_that_vanishes_leaves_an_attempt_unsettled(queue: Queue) -> None:
    queue.send(LATER)
    new, away = queue.path / "new", queue.path / "away"
    queue.mailer.before = lambda taken: os.rename(new, away)
    [result, *_] = queue.work()
    assert isinstance(result.trouble, OSError)
    os.rename(away, new)
    [result] = queue.settle_again()
    assert result.trouble is None
    assert len(queue.entries("cur")) == 1


def test_two_workers_settle_what_is_left_without_being_in_each_others_way(
    queue: Queue,
) -> None:
    paths = [queue.send(ANN, message_id=f"{number}@x.org") for number in range(2)]
    new = queue.path / "new"
    new.chmod(0o500)

    def work() -> None:
        for path in paths:  # in trouble, it would not go on to the second one
            assert queue.work(path)

    without_privileges(work)
    new.chmod(0o700)
    assert len(queue.entries("new")) == 2
    settler = queue.bench.settler
    others: list[list[bool]] = []
    queue.mailer.notify = lambda event: others.append(settler.settle_again())  # type: ignore[method-assign]
    assert settler.settle_again() == [True, True]
    assert others == [[], []]  # another worker that comes meanwhile goes on
    assert queue.entries("new") == []


def test_where_several_cannot_be_settled_nothing_more_is_transmitted(
    queue: Queue,
) -> None:
    paths = [queue.send(ANN, message_id=f"{number}@x.org") for number in range(4)]
    new = queue.path / "new"
    new.chmod(0o500)

    def work() -> None:
        for path in paths:
            assert all(r.trouble for r in queue.work(path))

    without_privileges(work)
    new.chmod(0o700)
    assert len(queue.mailer.attempts) == 2
    assert sum(result.tally.sent for result in queue.work(*paths[2:])) == 4
    assert len(queue.mailer.attempts) == 4


def test_one_that_can_never_be_settled_does_not_stop_the_others(queue: Queue) -> None:
    """As a file that is immutable."""
    stuck = queue.send(LATER, message_id="stuck@x.org")
    others = [queue.send(ANN, message_id=f"{number}@x.org") for number in range(3)]
    cur = f"{queue.path}/cur/{os.path.basename(stuck)}:2,"
    os.mkdir(cur)  # so that it cannot get there
    [result] = queue.work(stuck)
    assert isinstance(result.trouble, OSError)
    for path in others:
        assert queue.work(path) == [Result(Tally(1, 0, 0))]
    assert queue.work() == []
    os.rmdir(cur)
    assert queue.bench.abandon() == Tally(0, 1, 0)


def test_on_a_full_disk_more_is_transmitted_for_what_is_removed_makes_room(
    tmp_path: Path,
) -> None:
    with (
        full_disk(tmp_path, kilobytes=96) as disk,
        Queue(disk / "queue", ScriptedMailer()) as queue,
    ):
        paths = [queue.send(ANN, LATER, message_id=f"{n}@x.org") for n in range(2)]
        paths.append(queue.send(ANN, message_id="alone@x.org"))
        with pytest.raises(OSError, match=r"space|large"):
            _fill(disk / "filler")
        for path in paths:
            queue.work(path)
        assert len(queue.mailer.attempts) == 3
        before = queue.bench.settler.tally
        assert len(queue.settle_again()) == 2
        after = queue.bench.settler.tally
        assert (after.sent - before.sent, after.deferred - before.deferred) == (2, 2)


def test_what_was_sent_but_cannot_be_removed_is_not_sent_again(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send(ANN)
    new = queue.path / "new"
    new.chmod(0o500)

    def work() -> None:
        results = queue.work()
        assert any(isinstance(r.trouble, OSError) for r in results)
        for _ in range(3):
            assert queue.work() == []

    without_privileges(work)
    new.chmod(0o700)
    assert len(queue.mailer.attempts) == 1
    assert queue.mailer.events == []
    assert caplog.text.count("left in the queue") == 1
    # When the disk is well again, it is settled, and told.
    assert queue.work()[0] == Result(Tally(1, 0, 0))
    assert queue.entries("new") == []
    assert queue.events() == [(MailSentEvent, (ANN,))]
    assert len(queue.mailer.attempts) == 1


def test_who_ends_while_something_is_unsettled_says_that_it_is_sent_again(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    path = queue.send(ANN)
    (queue.path / "new").chmod(0o500)

    def work_and_end() -> None:
        queue.work()
        assert queue.bench.abandon() == Tally()

    without_privileges(work_and_end)
    (queue.path / "new").chmod(0o700)
    [record] = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert path in record.getMessage()
    assert f"sent to {ANN}, but" in record.getMessage()
    assert "it will be sent again" in record.getMessage()
    assert queue.mailer.events == []
    claim = queue.store.claim(path)
    assert claim is not None
    claim.release()


@pytest.mark.parametrize("recipients", [(ANN,), (ANN, LATER), (ANN, REFUSED)])
def test_who_ends_settles_what_can_be_settled_by_now(
    queue: Queue, caplog: pytest.LogCaptureFixture, recipients: tuple[str, ...]
) -> None:
    queue.send(*recipients)
    new, away = queue.path / "new", queue.path / "away"
    queue.mailer.before = lambda taken: os.rename(new, away)
    [result, *_] = queue.work()
    assert isinstance(result.trouble, OSError)
    os.rename(away, new)
    assert sum(queue.bench.abandon()) == len(recipients)
    assert queue.events()[0] == (MailSentEvent, (ANN,))
    assert queue.entries("new") == []
    left = [entry.recipients for entry in queue.entries("cur")]
    assert left == ([(LATER,)] if LATER in recipients else [])
    assert not [r for r in caplog.records if r.levelno == logging.CRITICAL]


@pytest.mark.parametrize("recipients", [(ANN, LATER), (ANN, REFUSED)])
def test_what_cannot_be_settled_at_the_end_is_sent_again_by_the_schedule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recipients: tuple[str, ...]
) -> None:
    with (
        full_disk(tmp_path, kilobytes=96) as disk,
        Queue(disk / "queue", ScriptedMailer()) as queue,
    ):
        queue.send(*recipients)
        with pytest.raises(OSError, match=r"space|large"):
            _fill(disk / "filler")
        queue.work()
        assert queue.bench.abandon() == Tally()
        assert queue.work() == []
        [path] = queue.store.maildir.paths("cur")
        assert 54 <= os.stat(path).st_mtime - queue.now <= 66
        queue.now += 70
        assert queue.work()[0].trouble is not None
        assert len(queue.mailer.attempts) == 2
        queue.bench.abandon()
    critical = [r for r in caplog.records if r.levelno == logging.CRITICAL]
    assert len(critical) == 2


@pytest.mark.parametrize(
    ("recipients", "settled"), [((LATER,), True), ((ANN, LATER), False)]
)
def test_on_a_full_disk_a_deferral_needs_no_space_unless_something_was_sent(
    tmp_path: Path, recipients: tuple[str, ...], settled: bool
) -> None:
    with (
        full_disk(tmp_path, kilobytes=96) as disk,
        Queue(disk / "queue", ScriptedMailer()) as queue,
    ):
        queue.send(*recipients)
        filler = disk / "filler"
        with pytest.raises(OSError, match=r"space|large"):
            _fill(filler)
        [result] = queue.work()
        if settled:
            assert result.tally == Tally(0, 1, 0)
            assert queue.entries("cur")[0].attempts == 0
        else:
            assert isinstance(result.trouble, OSError)
            filler.unlink()
            assert queue.work()[0].tally == Tally(1, 1, 0)
            assert queue.entries("cur")[0].recipients == (LATER,)
        assert len(queue.mailer.attempts) == 1


def test_on_a_full_disk_an_uncertain_attempt_is_not_forgotten(tmp_path: Path) -> None:
    with (
        full_disk(tmp_path, kilobytes=96) as disk,
        Queue(disk / "queue", ScriptedMailer()) as queue,
    ):
        queue.send(LOST)
        with pytest.raises(OSError, match=r"space|large"):
            _fill(disk / "filler")
        assert isinstance(queue.work()[0].trouble, OSError)
        for _ in range(5):
            queue.now += 5000
            assert queue.work() == []
        assert len(queue.mailer.attempts) == 1
        (disk / "filler").unlink()
        assert queue.settle_again()[0].tally == Tally(0, 1, 0)
        [entry] = queue.entries("cur")
        assert (entry.attempts, entry.uncertain) == (1, 1)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_mailer_against_its_contract_leaves_no_claim(tmp_path: Path) -> None:
    class Breaking(ScriptedPipeline):
        def offer(self, mail: Outgoing, key: object = None) -> None:
            raise KeyError("a mistake")

    class Broken(ScriptedPipelineMailer):
        def pipeline(self) -> ScriptedPipeline:
            return Breaking(self)

    queue = Queue(tmp_path / "queue", Broken())
    path = queue.send(ANN)
    with pytest.raises(KeyError, match="a mistake"):
        queue.work()
    claim = queue.store.claim(path)
    assert claim is not None
    claim.release()


# Events


def test_the_entry_is_settled_before_anybody_hears_of_it(queue: Queue) -> None:
    queue.send(ANN)
    left: list[int] = []
    queue.mailer.notify = lambda event: left.append(len(queue.entries("new")))  # type: ignore[method-assign]
    queue.work()
    assert left == [0]


@pytest.mark.parametrize("mistake", [KeyError, SystemExit, KeyboardInterrupt])
def test_each_event_has_a_transaction_and_one_that_raises_harms_nothing(
    queue: Queue, caplog: pytest.LogCaptureFixture, mistake: type[BaseException]
) -> None:
    seen = []

    def notify(event: object) -> None:
        seen.append(transaction.get())
        if isinstance(event, MailSentEvent):
            raise mistake("a mistake")

    queue.mailer.notify = notify  # type: ignore[method-assign]
    queue.send(ANN, LATER, REFUSED)
    [result] = queue.work()
    assert result.tally == Tally(1, 1, 1)
    assert len(set(map(id, seen))) == 3
    assert [t.status for t in seen] == ["Active", "Committed", "Committed"]
    assert "a mistake" in caplog.text


def test_a_subscriber_that_leaves_the_thread_has_nothing_sent_twice(
    queue: Queue,
) -> None:
    def leave(event: object) -> None:
        raise SystemExit

    queue.mailer.notify = leave  # type: ignore[method-assign]
    for number in range(5):
        queue.send(ANN, message_id=f"{number}@x.org")
    assert [result.tally.sent for result in queue.work()] == [1] * 5
    assert queue.work() == []
    assert len(queue.mailer.attempts) == 5


def test_a_filter_that_raises_has_nothing_sent_twice(queue: Queue) -> None:
    def broken(record: logging.LogRecord) -> bool:
        raise ValueError("a filter that does not work")

    logger = logging.getLogger("postcommit.event")
    logger.setLevel(logging.INFO)
    logger.addFilter(broken)
    try:
        for number in range(5):
            queue.send(ANN, message_id=f"{number}@x.org")
        assert [result.tally.sent for result in queue.work()] == [1] * 5
    finally:
        logger.removeFilter(broken)
        logger.setLevel(logging.NOTSET)
    assert len(queue.mailer.attempts) == len(queue.events()) == 5


def test_a_line_for_each_recipient_is_logged(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    queue.send(ANN, REFUSED)
    queue.work()
    assert [r.getMessage() for r in caplog.records] == [
        "<1@x.org> to ann@x.org: sent: 250 2.0.0 Queued",
        f"<1@x.org> to never@x.org: rejected: {NEVER}",
    ]


def test_a_report_that_does_not_know_whose_turn_it_was_blames_nobody(
    queue: Queue,
) -> None:
    class Report:
        """Of a mailer that is older than the question."""

        def __init__(self, report: DeliveryReport) -> None:
            self.message_id, self.recipients = report.message_id, report.recipients
            self.outcomes, self.relay_failure = (), report.relay_failure

    directly = queue.mailer.send
    queue.mailer.send = lambda *message: Report(directly(*message))  # type: ignore
    classImplements(Report, IDeliveryReport)
    queue.send("poison@x.org")
    for _ in range(2):
        [result] = queue.work()
        assert result.trouble is not None
        sent = DeliveryReport.alike("2", [BOB], Status.SENT, OK)
        queue.bench.breaker.attribute("another", sent)
    assert not queue.bench.breaker.suspects


def test_silence_at_others_is_no_answer_that_has_a_message_blamed(
    queue: Queue,
) -> None:
    poison = queue.send("poison@x.org")
    lost = queue.send(LOST, message_id="2@x.org")
    [failed] = queue.work(poison)
    assert failed.trouble is not None
    [uncertain] = queue.work(lost)
    assert uncertain.silent
    [failed] = queue.work(poison)
    assert failed.trouble is not None
    assert queue.entries("new")[0].attempts == 0
    later = queue.send(LATER, message_id="3@x.org")
    [deferred] = queue.work(later)
    assert not deferred.silent
    [blamed] = queue.work(poison)
    assert blamed.tally == Tally(0, 1, 0)
    assert blamed.silent
