"""The worker on a queue in memory: all that it needs is the contract."""
from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import transaction

from postcommit._drain.breaker import Breaker
from postcommit._drain.breaker import CircuitState
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._drain.settle import Settler
from postcommit._drain.worker import Worker
from postcommit._mail.entry import Entry
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._maildir.consumer import Unopened
from postcommit._transaction.event import MailRejectedEvent
from postcommit._transaction.event import MailSentEvent
from postcommit.errors import EntryError
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from tests.support.mailers import BYE
from tests.support.mailers import LATER
from tests.support.mailers import NEVER
from tests.support.mailers import OK
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer


ENTRY = Entry("s@x.org", ("a@x.org",), b"Message-Id: <1@x.org>\n\nText.\n")
ALL_FAIL = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
ONE_FAILS = OSError(errno.EIO, os.strerror(errno.EIO))


class Claim:
    """A claim of an entry in memory; `read` may raise."""

    accepted = 1000.0
    expires = None

    def __init__(self, key: int, read: Callable[[], Entry]) -> None:
        self.key = key
        self.name = f"memory/{key}"
        self._read = read

    def read(self) -> Entry:
        self.entry = self._read()
        return self.entry

    def beginning(self) -> bytes:
        return ENTRY.message


class Consumer:
    """A queue in memory, with what a worker and a settler call."""

    quick_seconds = 0.002

    def __init__(self, *reads: Callable[[], Entry]) -> None:
        self.waiting = [Claim(number, read) for number, read in enumerate(reads)]
        self.released: list[int] = []
        self.settled: list[tuple[int, Settlement]] = []
        self.postponed: list[tuple[int, float]] = []
        self.buried: list[tuple[int, str]] = []
        self.posted: list[object] = []
        self.answer = Settled.DONE
        self.goes_on = False  # a removal, while the next message is sent
        self.error: Exception | None = None  # of each settlement
        self.steps: list[str] = []
        self.looks: list[int] = []  # the most entries that each look may claim

    def now(self) -> float:
        return 2000.0

    def is_sure(self, claim: Claim) -> bool:
        return True

    def take(self, most: int, avoid: Collection[Hashable] = ()) -> list[Claim]:
        self.looks.append(most)
        taken = [claim for claim in self.waiting if claim.key not in avoid][:most]
        self.waiting = [claim for claim in self.waiting if claim not in taken]
        return taken

    def release(self, claims: Iterable[Claim]) -> None:
        self.released += [claim.key for claim in claims]

    def begin_removal(self, claim: Claim) -> bool:
        if self.goes_on:
            self.steps.append(f"begin {claim.key}")
        return self.goes_on

    def settle(self, claim: Claim, settlement: Settlement) -> Settled:
        self.steps.append(f"settle {claim.key}")
        if self.error is not None:
            raise self.error
        self.settled.append((claim.key, settlement))
        return self.answer

    def postpone(self, claim: Claim, due: float) -> None:
        self.postponed.append((claim.key, due))

    def bury_unreadable(self, claim: Claim, reason: str) -> None:
        self.buried.append((claim.key, reason))

    def post(self, reason: object, seconds: float) -> None:
        self.posted.append(reason)

    def ring(self) -> None:
        """Nobody waits."""


class Bench:
    """A worker on entries that are read by `reads`."""

    def __init__(self, *reads: Callable[[], Entry]) -> None:
        self.mailer = ScriptedMailer()
        self.consumer = Consumer(*reads)
        self.breaker = Breaker("memory")
        self.breaker.show_to(self.consumer)  # type: ignore[arg-type]
        self.settler = Settler(
            self.consumer,  # type: ignore[arg-type]
            self.mailer,
            Schedule(60, 4000, 5 * 86400, 3),
            self.breaker,
        )
        self.worker = Worker(
            self.consumer,  # type: ignore[arg-type]
            self.mailer,
            self.breaker,
            self.settler,
        )


def good() -> Entry:
    return ENTRY


def failing(error: OSError, before: Callable[[], None] = list) -> Callable[[], Entry]:
    def read() -> Entry:
        before()
        raise QueueError("memory", "cannot be read", error)

    return read


def test_entries_are_sent_in_order_and_settled() -> None:
    bench = Bench(good, good, good)
    assert not bench.worker.work(10)
    assert bench.settler.tally == Tally(3, 0, 0)
    assert bench.consumer.settled == [(key, Settlement()) for key in range(3)]
    assert bench.consumer.released == []


def test_a_queue_that_fails_at_a_read_pauses_and_the_rest_is_left() -> None:
    bench = Bench(good, failing(ALL_FAIL), good)
    bench.worker.work(10)
    assert len(bench.mailer.attempts) == 1
    assert bench.breaker.state is CircuitState.OPEN
    assert bench.breaker.count == 1
    [reason] = bench.consumer.posted
    assert str(reason) == "memory: cannot be read"
    assert bench.consumer.released[0] == 1
    assert bench.breaker.skipped == frozenset()


def test_after_the_queue_failed_at_a_read_nothing_more_is_read() -> None:
    """If the relay is quick, several entries are claimed at a time."""

    def read() -> Entry:
        read_later.append("read")
        return ENTRY

    read_later: list[str] = []
    bench = Bench(good, failing(ALL_FAIL), read)
    bench.worker.work(10)
    assert read_later == []


def test_up_to_eight_entries_are_claimed_together_if_the_relay_is_quick() -> None:
    bench = Bench(*[good] * 500)
    bench.worker.work(500)
    assert len(bench.mailer.attempts) == 500
    assert max(bench.consumer.looks) == 8


def test_one_entry_is_claimed_at_a_time_when_the_relay_is_slow() -> None:
    def be_slow_at_last(taken: object) -> None:
        if len(bench.mailer.attempts) >= 20:
            time.sleep(0.003)

    bench = Bench(*[good] * 40)
    bench.mailer.before = be_slow_at_last
    bench.worker.work(100)
    assert len(bench.mailer.attempts) == 40
    assert bench.consumer.looks[-1] == 1


def large() -> Entry:
    """Return an entry that is as much as may be read ahead, and a byte more."""
    return replace(ENTRY, message=ENTRY.message.ljust((1 << 16) + 1))


def test_large_entries_are_claimed_one_at_a_time() -> None:
    bench = Bench(*[large] * 8)
    assert bench.worker.work(8)
    assert len(bench.mailer.attempts) == 8
    assert set(bench.consumer.looks) == {1}


def test_large_entries_that_are_claimed_together_are_read_and_sent_in_turn() -> None:
    def read() -> Entry:
        ahead.append(len(ahead) + 15 - len(bench.mailer.attempts))
        return large()

    ahead: list[int] = []  # how many were read and not sent, before each is read
    bench = Bench(*[good] * 15, *[read] * 20)
    assert not bench.worker.work(100)
    assert len(bench.mailer.attempts) == 35
    assert bench.consumer.released == []
    assert set(ahead[1:]) == {0}
    assert bench.consumer.looks[-1] == 1


def test_an_entry_that_another_processor_may_have_is_not_sent() -> None:
    bench = Bench(good, good, good)
    bench.consumer.is_sure = lambda claim: claim.key != 1  # type: ignore
    bench.worker.work(10)
    assert [key for key, _ in bench.consumer.settled] == [0]
    assert bench.consumer.released[0] == 1


def test_a_relay_that_fails_after_a_pause_of_others_does_not_begin_another() -> None:
    """The message was in flight when their pause began."""

    def another_worker_pauses_and_goes_on(taken: object) -> None:
        bench.breaker.failed("away")
        bench.breaker.succeeded()

    bench = Bench(good)
    bench.consumer.clear = list  # type: ignore[attr-defined]
    bench.mailer.before = another_worker_pauses_and_goes_on
    bench.mailer.failure = RelayError("timed out")
    bench.worker.work(10)
    assert bench.breaker.state is CircuitState.CLOSED
    assert bench.breaker.count == 1
    assert bench.consumer.released == [0]


@pytest.mark.parametrize("step", ["take", "read"])
def test_a_failure_that_began_before_a_pause_of_others_does_not_begin_another(
    step: str,
) -> None:
    def another_worker_pauses_and_goes_on() -> None:
        bench.breaker.failed("away")
        bench.breaker.succeeded()

    def take(most: int, avoid: Collection[Hashable] = ()) -> list[Claim]:
        another_worker_pauses_and_goes_on()
        raise QueueError("memory", "cannot be read", ALL_FAIL)

    consumer_calls: list[str] = []
    bench = Bench(failing(ALL_FAIL, another_worker_pauses_and_goes_on))
    bench.consumer.clear = lambda: consumer_calls.append("clear")  # type: ignore
    if step == "take":
        bench.worker._take = take  # type: ignore[assignment]
    bench.worker.work(10)
    assert consumer_calls == ["clear"]
    assert bench.breaker.state is CircuitState.CLOSED
    assert bench.breaker.count == 1


def test_entries_that_cannot_be_read_are_skipped_until_the_next_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(failing(ONE_FAILS), good, failing(ONE_FAILS), good)
    bench.worker.work(10)
    assert len(bench.mailer.attempts) == 2
    assert bench.breaker.state is CircuitState.CLOSED
    assert bench.breaker.skipped == {0, 2}
    assert bench.consumer.released == [0, 2]
    assert "memory/0: left in the queue" in caplog.text
    assert "memory/2: left in the queue" in caplog.text


@pytest.mark.parametrize(
    ("answer", "logged"),
    [
        (Settled.REMOVED, "memory/0: somebody has removed it"),
        (Settled.TAKEN, "memory/0: this process stood still and has lost the entry"),
    ],
)
def test_a_claim_that_was_lost_is_logged(
    answer: Settled, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(good)
    bench.consumer.answer = answer
    bench.worker.work(10)
    assert logged in caplog.text
    assert bench.settler.tally == Tally(1, 0, 0)


def later() -> Entry:
    """Return an entry whose recipient is deferred."""
    return replace(ENTRY, recipients=("later@x.org",))


def fails_once(bench: Bench) -> Callable[[], float]:
    """Return a clock that fails while the settler decides, and works afterwards."""
    failed: list[bool] = []

    def now() -> float:
        if bench.mailer.attempts and not failed:
            failed.append(True)
            raise ArithmeticError("an error of the program")
        return 2000.0

    return now


def test_an_error_of_the_program_postpones_the_entry_by_the_schedule(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(later)
    bench.consumer.now = fails_once(bench)  # type: ignore[method-assign]
    bench.worker.work(10)
    [(key, due)] = bench.consumer.postponed
    assert key == 0
    # It is 1,000 seconds old, so the next attempt is 1,000 seconds away, or nearly so.
    assert due == pytest.approx(3000, abs=101)
    assert "ArithmeticError: an error of the program" in caplog.text
    assert bench.consumer.settled == []
    assert bench.consumer.released == []


def test_an_entry_that_cannot_be_postponed_either_is_released(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def postpone(claim: Claim, due: float) -> None:
        raise QueueError("memory", "cannot be changed", ONE_FAILS)

    bench = Bench(later)
    bench.consumer.now = fails_once(bench)  # type: ignore[method-assign]
    bench.consumer.postpone = postpone  # type: ignore[method-assign]
    bench.worker.work(10)
    assert bench.consumer.released == [0]
    assert "memory/0: left in the queue" in caplog.text
    assert "cannot be changed" in caplog.text


def test_what_a_mailer_has_announced_is_not_announced_again() -> None:
    def send(fromaddr: str, toaddrs: Sequence[str], message: bytes) -> DeliveryReport:
        report = DeliveryReport.alike("1@x.org", toaddrs, Status.DEFERRED, LATER)
        return replace(report, announced=True)

    bench = Bench(good)
    bench.mailer.send = send  # type: ignore[method-assign]
    bench.worker.work(10)
    assert bench.settler.tally == Tally(deferred=1)
    assert bench.mailer.events == []


def lost() -> Entry:
    """Return an entry whose message may have arrived: the connection is lost."""
    return replace(ENTRY, recipients=("lost@x.org",))


def cannot_settle(bench: Bench, error: Exception, times: int = 1) -> None:
    """Have the queue settle nothing for a number of times."""
    settle = bench.consumer.settle
    errors = [error] * times

    def settle_or_raise(claim: Claim, settlement: Settlement) -> Settled:
        if errors:
            raise errors.pop()
        return settle(claim, settlement)

    bench.consumer.settle = settle_or_raise  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("read", "state"),
    [(good, CircuitState.CLOSED), (lost, CircuitState.HALF_OPEN)],
)
def test_what_is_settled_later_ends_the_pause_if_the_relay_gave_an_answer(
    read: Callable[[], Entry], state: CircuitState
) -> None:
    bench = Bench(read)
    bench.consumer.clear = list  # type: ignore[attr-defined]
    cannot_settle(bench, QueueError("memory", "cannot be changed", ONE_FAILS))
    assert not bench.worker.work(10)
    assert bench.breaker.state is CircuitState.OPEN
    assert bench.settler.tally == Tally()
    assert bench.mailer.events == []
    bench.breaker.shorten()
    bench.worker.work(10)
    assert bench.breaker.state is state
    assert len(bench.consumer.settled) == len(bench.mailer.attempts) == 1
    assert sum(bench.settler.tally) == len(bench.mailer.events) == 1


@pytest.mark.parametrize(
    ("number", "is_full"), [(errno.ENOSPC, True), (errno.EIO, False)]
)
def test_an_entry_that_needs_a_later_time_only_gets_it_on_a_full_disk(
    number: int, is_full: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(later)
    error = QueueError("memory", "cannot be changed", OSError(number, "no"))
    cannot_settle(bench, error)
    bench.worker.work(10)
    assert bench.consumer.settled == []
    if is_full:
        [(key, due)] = bench.consumer.postponed
        assert (key, due) == (0, pytest.approx(3000, abs=101))
        assert bench.settler.tally == Tally(deferred=1)
        assert "cannot be changed" not in caplog.text
        assert "lost the entry" not in caplog.text
    else:
        assert bench.consumer.postponed == []
        assert bench.settler.tally == Tally()
        assert "memory/0: left in the queue" in caplog.text
        assert "QueueError: memory: cannot be changed" in caplog.text


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (QueueError("memory", "cannot be changed", ONE_FAILS), 2),
        (MemoryError(), 2),
        (QueueError("memory", "is full", OSError(errno.ENOSPC, "full")), 3),
    ],
)
def test_two_entries_that_cannot_be_settled_stop_the_rest_unless_the_disk_is_full(
    error: Exception, last: int
) -> None:
    """If it is full, entries that are sent and removed make room."""
    bench = Bench(good, good, good, good)
    cannot_settle(bench, error, 10)
    for sent in (1, 2, last):
        assert not bench.worker.work(10)
        assert bench.breaker.state is CircuitState.OPEN
        assert len(bench.mailer.attempts) == sent
        bench.breaker._until = 0.0


def test_what_cannot_be_settled_at_the_end_is_postponed_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(good)
    cannot_settle(bench, QueueError("memory", "cannot be changed", ONE_FAILS), 2)
    bench.worker.work(10)
    caplog.clear()
    bench.settler.abandon()
    assert bench.settler.unsettled == {}
    assert bench.consumer.postponed == [(0, pytest.approx(3000, abs=101))]
    [record] = caplog.records
    assert record.levelname == "CRITICAL"
    assert "memory/0: sent to a@x.org, but the queue could not note" in caplog.text
    assert "QueueError: memory: cannot be changed" in caplog.text


def fail_after(bench: Bench, *outcomes: Outcome) -> None:
    """Have the relay fail when these recipients are decided."""

    def send(fromaddr: str, toaddrs: Sequence[str], message: bytes) -> DeliveryReport:
        return DeliveryReport(
            "1@x.org", tuple(toaddrs), outcomes, RelayError("gone"), True
        )

    bench.mailer.send = send  # type: ignore[method-assign]


def several() -> Entry:
    return replace(ENTRY, recipients=("a@x.org", "b@x.org", "c@x.org"))


def test_nothing_is_announced_of_recipients_that_a_relay_was_not_asked_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(several)
    fail_after(bench, Outcome("a@x.org", Status.SENT, OK))
    bench.worker.work(10)
    left = replace(ENTRY, recipients=("b@x.org", "c@x.org"))
    settlement = Settlement(left=left, due=2000.0, is_part=True)
    assert bench.consumer.settled == [(0, settlement)]
    [event] = bench.mailer.events
    assert isinstance(event, MailSentEvent)
    assert event.recipients == ("a@x.org",)
    assert "b@x.org" not in caplog.text


def test_recipients_after_a_deferred_one_are_tried_before_it() -> None:
    """The trouble of the relay uses up no attempt."""
    bench = Bench(several)
    fail_after(
        bench,
        Outcome("a@x.org", Status.REJECTED, NEVER),
        Outcome("b@x.org", Status.DEFERRED, LATER),
    )
    bench.worker.work(10)
    [(_, settlement)] = bench.consumer.settled
    assert settlement.rejected is not None
    assert settlement.rejected.recipients == ("a@x.org",)
    assert settlement.left is not None
    assert settlement.left.recipients == ("c@x.org", "b@x.org")
    assert (settlement.left.attempts, settlement.due) == (0, 2000.0)


def no_entry() -> Entry:
    raise EntryError("there is no envelope")


def test_what_is_not_an_entry_is_buried_and_announced_by_its_message_id() -> None:
    bench = Bench(no_entry, good)
    bench.worker.work(10)
    assert bench.consumer.buried == [(0, "there is no envelope")]
    rejected, _ = bench.mailer.events
    assert isinstance(rejected, MailRejectedEvent)
    assert rejected.messageId == "1@x.org"
    assert rejected.errorMessage == "unreadable: there is no envelope"
    assert bench.consumer.released == []
    assert bench.breaker.skipped == frozenset()


@pytest.mark.parametrize("read", [good, no_entry])
def test_a_subscriber_is_called_in_a_transaction_that_is_committed(
    read: Callable[[], Entry],
) -> None:
    def subscriber(event: object) -> None:
        transaction.get().addAfterCommitHook(committed.append)

    committed: list[bool] = []
    bench = Bench(read)
    bench.mailer.notify = subscriber  # type: ignore[method-assign]
    bench.worker.work(10)
    assert committed == [True]


def test_what_is_not_an_entry_and_cannot_be_read_either_is_released(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def beginning() -> bytes:
        raise QueueError("memory", "cannot be read", ONE_FAILS)

    bench = Bench(no_entry, good)
    bench.consumer.waiting[0].beginning = beginning  # type: ignore[method-assign]
    bench.worker.work(10)
    assert bench.consumer.buried == []
    assert set(bench.consumer.released) == {0}
    assert bench.breaker.skipped == {0}
    assert "memory: cannot be read" in caplog.text
    assert len(bench.mailer.attempts) == 1


def test_an_empty_queue_is_looked_at_once() -> None:
    bench = Bench()
    assert not bench.worker.work(10)
    assert bench.consumer.looks == [1]


def test_a_full_pass_says_that_there_may_be_more() -> None:
    bench = Bench(good, good, good)
    assert bench.worker.work(2)
    assert len(bench.mailer.attempts) == 2
    assert not bench.worker.work(2)
    assert len(bench.mailer.attempts) == 3


def refuse(bench: Bench) -> None:
    """Have the relay refuse one more connection from now on."""

    def send(fromaddr: str, toaddrs: Sequence[str], message: bytes) -> DeliveryReport:
        return DeliveryReport("1@x.org", tuple(toaddrs), (), BYE, False, True)

    bench.mailer.send = send  # type: ignore[method-assign]


def half_open(breaker: Breaker) -> None:
    """Let a pause begin, and be over."""
    breaker.failed("away")
    breaker.shorten()
    assert breaker.state is CircuitState.HALF_OPEN


def test_a_refused_connection_pauses_the_queue_if_no_other_worker_is_called() -> None:
    bench = Bench(good, good)
    refuse(bench)
    assert not bench.worker.work(10)
    assert not bench.worker.was_refused
    assert bench.breaker.state is CircuitState.OPEN
    assert bench.consumer.released == [0]


def test_a_refused_connection_is_no_pause_while_others_are_in_use() -> None:
    bench = Bench(good, good)
    bench.worker.is_alone = False
    refuse(bench)
    assert bench.worker.work(10)
    assert bench.worker.was_refused
    assert bench.breaker.state is CircuitState.CLOSED
    assert bench.consumer.released == [0]


def test_a_probe_whose_connection_is_refused_makes_the_pause_longer() -> None:
    bench = Bench(good)
    bench.worker.is_alone = False
    refuse(bench)
    half_open(bench.breaker)
    assert not bench.worker.work(10)
    assert bench.breaker.state is CircuitState.OPEN
    assert bench.breaker.count == 2


def test_a_worker_that_ends_does_not_end_the_probe_of_another() -> None:
    def another_worker_probes() -> Entry:
        half_open(bench.breaker)
        assert bench.breaker.begin_probe()
        return ENTRY

    bench = Bench(another_worker_probes)
    bench.worker.work(10)
    assert bench.breaker.is_probed


def test_a_suspect_is_tried_after_a_pause_if_nothing_else_is_due() -> None:
    def poison() -> Entry:
        return replace(ENTRY, recipients=("poison@x.org",))

    bench = Bench(poison)
    tried: list[object] = []
    bench.mailer.before = tried.append
    for count in (1, 2):
        bench.worker.work(10)
        assert len(tried) == count
        assert bench.breaker.suspects.keys() == {0}
        bench.consumer.waiting.append(Claim(0, poison))  # it was released
        bench.breaker.shorten()


def test_a_claim_that_could_not_be_opened_raises_why() -> None:
    error = QueueError("queue/new/1", "cannot open the entry", ONE_FAILS)
    claim = Unopened("queue/new/1", error)
    assert claim.accepted == 0.0
    with pytest.raises(QueueError) as caught:
        claim.read()
    assert caught.value is error


# A removal goes on while the next message is sent


class Removing(Bench):
    """A worker on a queue that answers later. `steps` has what was done, in order."""

    def __init__(self, *reads: Callable[[], Entry]) -> None:
        super().__init__(*reads)
        self.consumer.goes_on = True
        self.consumer.quick_seconds = 3600.0  # however slow this machine is
        self.steps = self.consumer.steps
        self.mailer.before = lambda taken: self.steps.append("send")
        self.mailer.notify = lambda event: self.steps.append("announce")  # type: ignore


def test_the_next_message_is_sent_before_a_removal_has_ended() -> None:
    bench = Removing(good, good, good, good)
    bench.worker.work(3)
    # As long as it is not known to be quick, and before the end, it waits.
    first = ["send", "settle 0", "announce"]
    second = ["send", "begin 1", "send", "settle 1", "announce"]
    assert bench.steps == [*first, *second, "settle 2", "announce"]
    assert bench.settler.tally == Tally(3, 0, 0)
    assert bench.consumer.released == []


def test_two_removals_at_most_have_no_answer() -> None:
    bench = Removing(*[good] * 40)
    bench.worker.work(40)
    begun = [step for step in bench.steps if step.startswith("begin")]
    assert begun == [f"begin {number}" for number in range(1, 39)]
    unanswered = []
    waiting = 0
    for step in bench.steps[bench.steps.index("begin 1") :]:
        waiting += step.startswith("begin") - step.startswith("settle")
        unanswered.append(waiting)
    assert max(unanswered) == 2
    assert [key for key, _ in bench.consumer.settled] == list(range(40))
    assert bench.steps.count("announce") == 40


def test_only_what_was_sent_to_all_is_removed_while_the_next_is_sent() -> None:
    later = replace(ENTRY, recipients=("a@x.org", "later@x.org"))
    bench = Removing(good, good, lambda: later, good, good)
    bench.worker.work(5)
    assert "begin 2" not in bench.steps
    assert bench.steps.index("settle 1") < bench.steps.index("settle 2")
    assert bench.settler.tally == Tally(5, 1, 0)


def test_a_removal_that_fails_pauses_the_queue_and_is_ended_later() -> None:
    def fail_at_the_third(taken: object) -> None:
        if len(bench.mailer.attempts) == 2:
            bench.consumer.error = QueueError("memory", "is away", scope="queue")

    bench = Removing(*[good] * 10)
    bench.mailer.before = fail_at_the_third
    bench.worker.work(10)
    assert bench.breaker.state is CircuitState.OPEN
    assert "announce" not in bench.steps[bench.steps.index("settle 1") :]
    sent = len(bench.mailer.attempts)
    assert sent == 4
    bench.consumer.error = None
    bench.settler.settle_again()
    assert bench.settler.tally == Tally(sent, 0, 0)
    assert sorted(key for key, _ in bench.consumer.settled) == list(range(sent))


def test_a_removal_is_ended_before_a_failure_of_the_relay_is_judged() -> None:
    def fail_at_the_third(taken: object) -> None:
        bench.steps.append("send")
        if bench.steps.count("send") == 3:
            bench.mailer.failure = RelayError("timed out")

    bench = Removing(good, good, good)
    bench.mailer.before = fail_at_the_third
    bench.worker.work(10)
    assert bench.steps[-3:] == ["send", "settle 1", "announce"]
    assert bench.consumer.released == [2]
    assert bench.breaker.state is CircuitState.OPEN


def test_a_removal_is_ended_also_when_a_mailer_breaks_its_contract() -> None:
    def interrupt(taken: object) -> None:
        bench.steps.append("send")
        if bench.steps.count("send") == 3:
            raise KeyboardInterrupt

    bench = Removing(good, good, good, good)
    bench.mailer.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.worker.work(10)
    assert bench.steps[-2:] == ["settle 1", "announce"]
    assert bench.consumer.released == [2]


class Mistaken(ScriptedPipelineMailer):
    """Raises at its third message."""

    def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> Any:
        if len(self.attempts) == 2:
            raise LookupError("a mistake")
        return super().send(fromaddr, toaddrs, message)

    def pipeline(self) -> ScriptedPipeline:
        """Return one, because otherwise the `send` of this class would be used."""
        return ScriptedPipeline(self)


def test_a_message_that_was_sent_is_not_suspect_after_a_mistake_at_the_next() -> None:
    bench = Removing(good, good, good, good)
    bench.worker._mailer = bench.settler._mailer = Mistaken()
    with pytest.raises(LookupError):
        bench.worker.work(10)
    assert bench.steps == ["begin 0", "begin 1", "settle 0", "settle 1"]
    assert bench.settler.tally == Tally(2, 0, 0)
    assert list(bench.breaker.suspects) == [2]
    assert bench.consumer.released == [2]
