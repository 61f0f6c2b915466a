"""The worker's loop, without SMTP: claim, offer, attribute, settle, announce, note."""
from __future__ import annotations

import errno
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from postcommit._drain.breaker import CircuitState
from postcommit._drain.contract import IClaim
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.store import Store
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Tally
from tests.support.draining import Bench
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer
from tests.support.queues import write


class Line:
    """A bench with a pipeline mailer, whose steps are in `steps`."""

    def __init__(self, path: Path, mailer: ScriptedMailer | None = None) -> None:
        self.steps: list[str] = []
        self.store = Store(str(path))
        self.mailer = mailer or ScriptedPipelineMailer()
        self.mailer.before = lambda taken: self.step("offer", taken.message)
        self.mailer.notify = lambda event: self.step("announce", event.messageId)  # type: ignore[method-assign,attr-defined]
        self.bench = Bench(self.store, self.mailer, Schedule(60, 4000, 432000))
        self._record("attribute", self.bench.breaker)
        self._record("settle", self.bench.consumer)
        self._record("release", self.bench.consumer)
        self._record("note", self.bench.breaker)

    def step(self, name: str, message: object = "") -> None:
        if isinstance(message, bytes):
            message = message_id_of(message)
        self.steps.append(f"{name} {str(message).partition('@')[0]}".strip())

    def _record(self, name: str, owner: Any) -> None:
        method = getattr(owner, name)

        def recorded(*args: Any, **options: Any) -> Any:
            self.step(name)
            return method(*args, **options)

        setattr(owner, name, recorded)

    def send(self, *recipients: str) -> list[str]:
        paths = []
        for number, recipient in enumerate(recipients):
            message = b"Message-Id: <%d@x.org>\n\nText.\n" % number
            item = self.store.stage("shop@x.org", (recipient,), [message])
            item.commit()
            paths.append(item.path)
        return paths

    def work(self) -> list[str]:
        self.bench.work()
        return self.steps

    def left(self) -> int:
        return sum(1 for _ in self.store.maildir)

    def is_free(self, path: str) -> bool:
        claim = self.store.claim(path)
        if claim is not None:
            claim.release()
        return claim is not None


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path / "queue")
    yield line
    line.bench.close()


def test_it_attributes_settles_announces_and_notes_in_this_order(line: Line) -> None:
    line.send("ann@x.org")
    assert line.work() == ["offer 0", "attribute", "settle", "announce 0", "note"]


def test_a_report_is_settled_before_the_next_reply_is_awaited(line: Line) -> None:
    """The mailer is one message ahead of its reports."""
    line.send("ann@x.org", "bob@x.org", "eve@x.org")
    done = ["attribute", "settle", "announce {}", "note"]
    first, second, third = ([step.format(n) for step in done] for n in range(3))
    assert line.work() == [
        "offer 0",
        "offer 1",
        *first,
        "offer 2",
        *second,
        *third,
    ]


def test_a_relay_failure_settles_and_announces_nothing(line: Line) -> None:
    [path] = line.send("ann@x.org")
    line.mailer.failure = RelayError("no connection")
    assert line.work() == ["offer 0", "attribute", "release", "note"]
    assert line.is_free(path)
    assert line.bench.breaker.results[0].trouble is line.mailer.failure


def test_after_a_failure_nothing_more_is_offered(line: Line) -> None:
    paths = line.send(*["ann@x.org"] * 5)
    line.mailer.failure = RelayError("no connection")
    offered = [step for step in line.work() if step.startswith("offer")]
    assert offered == ["offer 0", "offer 1"]
    assert all(map(line.is_free, paths))


class Partly(ScriptedPipelineMailer):
    """Has an answer for the first recipient before its relay fails."""

    def send(self, fromaddr: str, toaddrs: Any, message: bytes) -> Any:
        self.failure = None
        report = super().send(fromaddr, toaddrs[:1], message)
        failure = RelayError("gone")
        everybody = tuple(toaddrs)
        return DeliveryReport(report.message_id, everybody, report.outcomes, failure)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "tally", "attempts"),
    [
        ("ann", Tally(sent=1), 0),
        ("never", Tally(rejected=1), 0),
        # Then the relay may have hung up because of this message: an attempt counts.
        ("later", Tally(deferred=2), 1),
    ],
)
def test_recipients_that_were_decided_before_a_relay_failure_are_settled(
    tmp_path: Path, first: str, tally: Tally, attempts: int
) -> None:
    line = Line(tmp_path / "queue", Partly())
    recipients = (f"{first}@x.org", "bob@x.org")
    line.store.stage("", recipients, [b"Message-Id: <0@x.org>\n\n"]).commit()
    line.bench.work()
    [result] = line.bench.breaker.results
    assert (result.tally, str(result.trouble)) == (tally, "gone")
    [path] = line.store.maildir
    claim = line.store.claim(path)
    assert claim is not None
    left = claim.read()
    claim.release()
    assert left.attempts == attempts
    assert left.recipients == recipients[-1 - attempts :]
    line.bench.close()


@pytest.mark.parametrize("first", ["later", "lost"])
def test_recipients_that_were_not_reached_are_not_given_up(
    tmp_path: Path, first: str
) -> None:
    """The entry is too old, but the relay failed before it was asked about them."""
    line = Line(tmp_path / "queue", Partly())
    entry = Entry("", (f"{first}@x.org", "bob@x.org"), b"Message-Id: <0@x.org>\n\n", 1)
    write(line.store, "cur/1:2,", preamble_of(entry) + entry.message)
    line.bench.consumer.now = lambda: time.time() + 1e6
    line.bench.work()
    [path] = line.store.maildir
    left = parse_entry(Path(path).read_bytes())
    assert (left.recipients, left.attempts) == (("bob@x.org",), 1)
    [dead] = Store(f"{line.store.path}/.Failed", to_look=True).maildir
    assert parse_entry(Path(dead).read_bytes()).recipients == (f"{first}@x.org",)
    line.bench.close()


def test_all_recipients_decided_and_the_relay_gone(tmp_path: Path) -> None:
    line = Line(tmp_path / "queue", Partly())
    line.send("ann@x.org")
    line.bench.work()
    [result] = line.bench.breaker.results
    assert (result.tally, str(result.trouble)) == (Tally(sent=1), "gone")
    assert line.left() == 0
    line.bench.close()


class Failing(ScriptedPipelineMailer):
    """Raises an error of the program in one step of the second message."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.step = step

    def pipeline(self) -> ScriptedPipeline:
        return FailingPipeline(self, self.step)


class FailingPipeline(ScriptedPipeline):
    def __init__(self, mailer: ScriptedMailer, step: str) -> None:
        super().__init__(mailer)
        self.step = step

    def offer(self, mail: Outgoing, key: object = None) -> None:
        is_second = message_id_of(mail.message) == "1@x.org"
        if is_second and self.step == "offer":
            self.done += self.behind
            self.behind = []
            raise KeyError("a mistake")
        super().offer(mail, key)

    def drain(self) -> Any:
        if self.step == "drain":
            self.done += self.behind
            raise KeyError("a mistake")
        return super().drain()


@pytest.mark.parametrize(("step", "left"), [("offer", 2), ("drain", 0)])
def test_what_was_sent_before_an_error_of_the_program_is_settled(
    tmp_path: Path, step: str, left: int
) -> None:
    line = Line(tmp_path / "queue", Failing(step))
    paths = line.send(*["ann@x.org"] * (3 if step == "offer" else 2))
    with pytest.raises(KeyError, match="a mistake"):
        line.work()
    assert line.left() == left
    assert all(line.is_free(path) for path in paths[-left:] if left)
    assert line.bench.settler.tally.sent == len(paths) - left
    line.bench.close()


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_closed_at_the_end(tmp_path: Path, fails: bool) -> None:
    class Closing(ScriptedPipelineMailer):
        def pipeline(self) -> ScriptedPipeline:
            return ClosingPipeline(self)

    class ClosingPipeline(ScriptedPipeline):
        def __enter__(self) -> ClosingPipeline:
            steps.append("enter")
            return self

        def __exit__(self, *exc_info: object) -> None:
            steps.append("exit")

        def drain(self) -> list[Any]:
            steps.append("drain")
            if fails:
                raise KeyError("a mistake")
            return super().drain()

    steps: list[str] = []
    line = Line(tmp_path / "queue", Closing())
    line.send("ann@x.org")
    if fails:
        with pytest.raises(KeyError, match="a mistake"):
            line.work()
    else:
        line.work()
    assert steps == ["enter", "drain", "exit"]
    line.bench.close()


def test_what_the_mailer_does_not_report_is_released(tmp_path: Path) -> None:
    class Silent(ScriptedPipelineMailer):
        def pipeline(self) -> ScriptedPipeline:
            return SilentPipeline(self)

    class SilentPipeline(ScriptedPipeline):
        def drain(self) -> list[Any]:
            return []

    line = Line(tmp_path / "queue", Silent())
    [path] = line.send("ann@x.org")
    with pytest.raises(RuntimeError, match=f"gave no report for {path}$"):
        line.work()
    assert line.is_free(path)
    line.bench.close()


class Late(ScriptedPipelineMailer):
    """Reports at the end only."""

    def pipeline(self) -> ScriptedPipeline:
        return LatePipeline(self)


class LatePipeline(ScriptedPipeline):
    def completed(self) -> list[Any]:
        return []

    def drain(self) -> list[Any]:
        self.done += self.behind
        done, self.done, self.behind = self.done, [], []
        return done


def test_what_was_released_after_the_last_look_is_looked_for_again(
    tmp_path: Path,
) -> None:
    """Another worker may have looked in vain while it was in flight."""
    line = Line(tmp_path / "queue", Late())
    line.send("ann@x.org", "bob@x.org")
    line.mailer.failure = RelayError("no connection")
    assert line.bench.worker.work(50)
    line.mailer.failure = None
    assert not line.bench.worker.work(50)
    assert line.left() == 0
    line.bench.close()


# Stop, pause, and a claim that is not sure


def test_nothing_is_offered_if_a_pause_begins_during_the_look(line: Line) -> None:
    """With a rate limit, the look may take as long as the wait for the next slot."""
    [path] = line.send("ann@x.org")
    take = line.bench.worker._take

    def take_slowly(most: int, avoid: Collection[Hashable] = ()) -> list[IClaim]:
        claims = take(most, avoid)
        line.bench.breaker.failed("another worker lost the relay")
        return claims

    line.bench.worker._take = take_slowly
    assert line.work() == ["release"]
    assert line.is_free(path)


def _stop(line: Line) -> None:
    line.bench.worker.is_stopping = True


def _pause(line: Line) -> None:
    line.bench.breaker.failed("another worker had a failure")


def _lose_the_lease(line: Line) -> None:
    line.bench.consumer.is_sure = lambda claim: False


@pytest.mark.parametrize("happen", [_stop, _pause, _lose_the_lease])
def test_what_is_in_flight_is_finished_and_the_rest_is_released(
    line: Line, happen: Callable[[Line], None]
) -> None:
    paths = line.send(*["ann@x.org"] * 20)
    offered: list[object] = []

    def count(taken: object) -> None:
        offered.append(taken)
        if len(offered) == 4:  # then several are claimed ahead
            happen(line)

    line.mailer.before = count
    line.bench.work()
    assert len(offered) == 4
    assert line.left() == 16
    assert all(map(line.is_free, paths[4:]))


def test_a_worker_that_is_told_to_stop_takes_nothing(line: Line) -> None:
    line.send("ann@x.org")
    line.bench.worker.is_stopping = True
    assert line.work() == []


def test_a_worker_takes_no_more_than_it_is_told_to(line: Line) -> None:
    line.send(*["ann@x.org"] * 5)
    assert line.bench.worker.work(3)
    assert line.left() == 2
    assert not line.bench.worker.work(3)
    assert line.left() == 0


def test_while_it_is_half_open_one_entry_is_tried_by_one_worker(tmp_path: Path) -> None:
    line = Line(tmp_path / "queue")
    line.send(*["lost@x.org"] * 3)
    breaker, worker = line.bench.breaker, line.bench.worker
    breaker._clock = lambda: 0.0
    breaker.failed("away")
    assert not worker.work(50)
    breaker._clock = lambda: 1.0
    assert breaker.state is CircuitState.HALF_OPEN
    line.mailer.before = lambda taken: probes.append(breaker.begin_probe())
    probes: list[bool] = []
    assert worker.work(50)
    assert probes == [False]
    assert line.left() == 3
    assert breaker.begin_probe()  # by another worker
    assert not worker.work(50)
    assert probes == [False]
    line.bench.close()


# Suspects


def test_a_suspect_is_tried_after_all_others(line: Line) -> None:
    line.send("poison@x.org", "ann@x.org")
    line.mailer.before = lambda taken: tried.append(taken.recipients[0])
    tried: list[str] = []
    line.bench.work()
    assert tried == ["poison@x.org", "ann@x.org"]
    line.send("bob@x.org", "eve@x.org")
    line.bench.work()
    assert tried[2:] == ["bob@x.org", "eve@x.org", "poison@x.org"]
    assert not line.bench.work()  # it is deferred
    assert line.left() == 1


def test_a_suspect_is_a_probe_only_for_a_worker_that_may_wait(line: Line) -> None:
    line.send("poison@x.org")
    line.bench.work()
    breaker, worker = line.bench.breaker, line.bench.worker
    breaker._clock = lambda: 0.0
    breaker.failed("away")
    breaker._clock = lambda: 1.0
    line.mailer.before = lambda taken: tried.append(taken)
    tried: list[object] = []
    worker.tries_suspects = False
    assert not worker.work(50)
    assert not tried
    worker.tries_suspects = True
    worker.work(50)
    assert len(tried) == 1


# Entries that cannot be read or settled


@pytest.mark.parametrize(
    ("reason", "is_all"), [(errno.EIO, False), (errno.EMFILE, True)]
)
def test_an_entry_that_cannot_be_read_is_skipped_or_pauses_the_queue(
    line: Line, reason: int, is_all: bool, caplog: pytest.LogCaptureFixture
) -> None:
    paths = line.send("ann@x.org", "bob@x.org")
    take = line.bench.consumer.take
    error = QueueError("it", "no", OSError(reason, "no"))

    def take_broken(most: int, avoid: Collection[Hashable] = ()) -> list[IClaim]:
        claims: list[Any] = take(1, avoid)
        for claim in claims:
            if claim.name == paths[0]:
                claim.read = lambda: _raise(error)
        return claims

    line.bench.consumer.take = take_broken
    line.bench.work()
    assert line.is_free(paths[0])
    if is_all:
        assert line.left() == 2
        assert str(line.bench.breaker.results[0].trouble) == "it: no"
    else:
        assert line.left() == 1
        assert f"{paths[0]}: left in the queue" in caplog.text
        assert line.bench.breaker.skipped
    line.bench.consumer.take = take
    assert [result.tally.sent for result in line.bench.work()] == [1] * (1 + is_all)
    assert not line.bench.breaker.failing


def _raise(error: Exception) -> None:
    raise error


def test_one_that_is_not_an_entry_and_cannot_be_kept_is_skipped(line: Line) -> None:
    (Path(line.store.path) / "new" / "0.x").write_bytes(b"nothing")
    (Path(line.store.path) / ".Failed").touch()  # no folder for dead letters
    line.send("ann@x.org")
    assert [result.tally.sent for result in line.bench.work()] == [1]
    assert line.left() == 1


def test_a_beginning_that_cannot_be_read_keeps_no_claim(line: Line) -> None:
    path = Path(line.store.path) / "new" / "0.x"
    path.write_bytes(b"nothing")
    take = line.bench.consumer.take

    def take_broken(most: int, avoid: Collection[Hashable] = ()) -> list[IClaim]:
        claims: list[Any] = take(most, avoid)
        for claim in claims:
            claim.beginning = lambda: _raise(MemoryError())
        return claims

    line.bench.consumer.take = take_broken
    assert not line.bench.work()
    assert line.is_free(str(path))


@pytest.mark.parametrize(
    ("recipient", "settled", "level", "told"),
    [
        ("ann@x.org", Settled.TAKEN, "CRITICAL", "may be sent twice"),
        ("lost@x.org", Settled.TAKEN, "CRITICAL", "may be sent twice"),
        ("later@x.org", Settled.TAKEN, "WARNING", "nothing was sent here"),
        ("ann@x.org", Settled.REMOVED, "WARNING", "somebody has removed it"),
    ],
)
def test_an_entry_that_was_lost_meanwhile_is_named_and_announced(
    line: Line,
    recipient: str,
    settled: Settled,
    level: str,
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    line.send(recipient)

    def lose(claim: Any, settlement: Settlement) -> Settled:
        claim.release()
        return settled

    line.bench.consumer.settle = lose
    assert "announce 0" in line.work()
    [record] = [r for r in caplog.records if told in r.getMessage()]
    assert record.levelname == level


def test_if_no_time_can_be_had_for_a_report_the_entry_is_released(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a decision nor a later time is possible without the clock."""
    [path] = line.send("later@x.org")
    line.mailer.before = lambda taken: setattr(line.bench.consumer, "now", broken)

    def broken() -> float:
        raise MemoryError

    line.bench.work()
    assert "it will be tried again: later@x.org: deferred" in caplog.text
    assert line.is_free(path)
