"""A run through a queue: feeder, workers, pause, wake-up."""
from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from postcommit._drain.breaker import pause_after
from postcommit._drain.runner import Drain
from postcommit._drain.runner import Pace
from postcommit._drain.schedule import Schedule
from postcommit._maildir.consumer import Consumer
from postcommit._maildir.presence import pause_of
from postcommit._maildir.presence import ring
from postcommit._maildir.store import Store
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Tally
from tests.support import children
from tests.support.faults import full_disk
from tests.support.faults import without_privileges
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer
from tests.support.mailers import Taken
from tests.support.queues import write
from tests.support.service import eventually


HOUR = 3600.0


class Queue:
    """A queue that is drained by `mailer`; the clock is the real one."""

    def __init__(self, path: Path, mailer: ScriptedMailer) -> None:
        self.path = path
        self.mailer = mailer
        self.store = Store(str(path))
        self.min_backoff = HOUR

    def send(self, count: int = 1, recipient: str = "ann@x.org") -> None:
        """Accept so many entries, and wake whoever drains them."""
        present = len(list(self.store.maildir.paths("new")))
        batch = self.store.batch()
        items = [
            self.store.stage("", (recipient,), [b"Message-Id: <%d@x.org>\n\n" % n])
            for n in range(present, present + count)
        ]
        batch.prepare(items)
        batch.publish(items)

    def drain(
        self,
        workers: int = 2,
        rate_limit: float | None = None,
        polling: float = HOUR,
    ) -> Drain:
        schedule = Schedule(self.min_backoff, HOUR, 1e6)
        pace = Pace(workers, rate_limit, polling)
        return Drain(self.store, self.mailer, schedule, pace)

    def left(self) -> int:
        return sum(1 for _ in self.store.maildir)


@pytest.fixture(params=[ScriptedMailer, ScriptedPipelineMailer])
def queue(tmp_path: Path, request: pytest.FixtureRequest) -> Queue:
    return Queue(tmp_path / "queue", request.param())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    files, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    yield
    # What other tests have left may well end meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= files
    assert set(threading.enumerate()) <= threads


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of the queue are a tenth as long."""
    module = "postcommit._drain.breaker"
    monkeypatch.setattr(f"{module}.pause_after", lambda count: pause_after(count) / 10)


class Running:
    """A drain in a thread, until the end of the block."""

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.thread = threading.Thread(target=drain.until_stopped)

    def __enter__(self) -> Drain:
        self.thread.start()
        return self.drain

    def __exit__(self, *exc_info: object) -> None:
        self.drain.stop()
        assert self.drain.wait(60)
        self.thread.join(60)
        assert not self.thread.is_alive()


def await_sign_of_life(queue: Queue) -> None:
    """Make the last sign of life an old one, and wait for the next."""
    pipe = queue.path / ".wakeup"
    os.utime(pipe, (1000, 1000))
    eventually(lambda: os.stat(pipe).st_atime > 1000)


# Once


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_all_that_is_due_is_tried_once(queue: Queue, workers: int) -> None:
    queue.send(200)
    queue.send(3, "later@x.org")
    queue.send(2, "never@x.org")
    assert queue.drain(workers).once() == Tally(200, 3, 2)
    assert len(set(queue.mailer.sent)) == len(queue.mailer.sent) == 200
    assert queue.drain(workers).once() == Tally(0, 0, 0)


def test_an_empty_queue_is_nothing_to_do(queue: Queue) -> None:
    assert queue.drain().once() == Tally(0, 0, 0)


def test_it_ends_early_when_the_relay_is_in_trouble(queue: Queue) -> None:
    queue.send(500)
    queue.mailer.failure = RelayError("no connection")
    asked: list[object] = []
    queue.mailer.before = asked.append
    assert queue.drain(workers=1).once() == Tally(0, 0, 0)
    assert len(asked) < 100
    assert queue.left() == 500


def test_a_stop_ends_it_early(queue: Queue) -> None:
    queue.send(500)
    drain = queue.drain(workers=1)
    queue.mailer.before = lambda taken: drain.stop()
    tally = drain.once()
    assert 1 <= tally.sent < 100
    assert queue.left() == 500 - tally.sent


def test_a_stop_keeps_back_what_was_claimed_ahead(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Consumer, "quick_seconds", HOUR)  # on a slow disk, too

    threads: list[str] = []

    def stop_at_the_tenth(taken: object) -> None:
        threads.append(threading.current_thread().name)
        if len(threads) == 10:
            assert drain.is_going_on
            drain.stop()
            assert not drain.is_going_on

    queue.send(100)
    drain = queue.drain(workers=1)
    queue.mailer.before = stop_at_the_tenth
    assert drain.once() == Tally(10, 0, 0)
    assert threads == ["postcommit-0"] * 10
    assert queue.left() == 90


def test_one_that_is_cancelled_is_over_and_leaves_no_thread(queue: Queue) -> None:
    drain = queue.drain(workers=3)
    drain.begin()
    drain.cancel()
    assert drain.wait(0)
    assert not drain.is_going_on
    for thread in drain._threads:
        thread.join(60)
        assert not thread.is_alive()


# Until it is stopped


def test_a_commit_wakes_it_without_polling(queue: Queue) -> None:
    with Running(queue.drain()):
        for count in range(1, 6):
            queue.send()
            eventually(lambda count=count: len(queue.mailer.sent) == count)
    assert queue.left() == 0


def test_without_a_wake_up_it_polls(queue: Queue) -> None:
    (queue.path / ".wakeup").mkdir()
    with Running(queue.drain(polling=0.02)):
        queue.send()
        eventually(lambda: queue.mailer.sent)


def test_what_is_deferred_is_tried_again_when_it_is_due(queue: Queue) -> None:
    queue.min_backoff = 0.05
    with Running(queue.drain()):
        queue.send(1, "later@x.org")
        eventually(lambda: len(queue.mailer.attempts) >= 3)


def test_what_was_deferred_before_it_began_is_tried_when_it_is_due(
    queue: Queue,
) -> None:
    queue.send()
    [path] = queue.store.maildir.paths("new")
    claim = queue.store.claim(path)
    assert claim is not None
    queue.store.postpone(claim, time.time() + 0.3)
    claim.release()
    with Running(queue.drain()):
        eventually(lambda: queue.mailer.sent)


def test_stopping_lets_the_attempt_in_flight_finish(queue: Queue) -> None:
    started, finish = threading.Event(), threading.Event()

    def before(taken: object) -> None:
        started.set()
        assert finish.wait(60)

    queue.mailer.before = before
    drain = queue.drain(workers=1)
    with Running(drain):
        queue.send()
        assert started.wait(60)
        drain.stop()
        assert not drain.wait(0.05)
        finish.set()
    assert len(queue.mailer.sent) == 1
    assert queue.left() == 0


def test_two_drains_share_a_queue(queue: Queue) -> None:
    with Running(queue.drain()), Running(queue.drain()):
        for _ in range(20):
            queue.send(20)
        eventually(lambda: queue.left() == 0)
    assert len(queue.mailer.sent) == 400


def test_what_somebody_else_had_claimed_is_taken_up_when_he_dies(queue: Queue) -> None:
    queue.send()
    [path] = queue.store.maildir.paths("new")
    claim = queue.store.claim(path)
    assert claim is not None
    with Running(queue.drain(polling=0.02)):
        ring(str(queue.path))
        claim.release()
        eventually(lambda: queue.mailer.sent)


def test_a_rate_limit_spreads_the_messages(queue: Queue) -> None:
    times: list[float] = []
    queue.mailer.before = lambda taken: times.append(time.monotonic())
    queue.send(6)
    begun = time.monotonic()
    assert queue.drain(rate_limit=50).once().sent == 6
    # Six messages have five intervals of 20 ms between them.
    assert times[-1] - begun >= 0.1


# Trouble


@pytest.mark.parametrize("rate_limit", [None, 0.001])
def test_it_gives_signs_of_life_also_while_it_waits_for_workers(
    queue: Queue, rate_limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postcommit._drain.runner.SIGN_SECONDS", 0.001)
    monkeypatch.setattr("postcommit._maildir.presence._LEAST_SECONDS", 0.0)
    reached, released = threading.Event(), threading.Event()

    def before(taken: object) -> None:
        reached.set()
        released.wait(60)

    queue.mailer.before = before
    queue.send(200)
    with Running(queue.drain(1, rate_limit)) as drain:
        assert reached.wait(60)
        for _ in range(3):
            await_sign_of_life(queue)
        released.set()
        if rate_limit is None:
            eventually(lambda: not queue.left())
        else:
            await_sign_of_life(queue)
            drain.stop()


def test_a_worker_lives_on_if_something_fails_at_the_end_of_its_round(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send()
    drain = queue.drain(workers=1)
    done = drain._crew.done

    def done_and_fail(*args: Any) -> None:
        monkeypatch.undo()
        done(*args)
        raise MemoryError

    monkeypatch.setattr(drain._crew, "done", done_and_fail)
    assert drain.once().sent == 1
    assert "a worker failed at its end" in caplog.text
    assert queue.left() == 0


@pytest.mark.usefixtures("short_pauses")
def test_it_sleeps_while_one_entry_is_tried_after_a_pause(queue: Queue) -> None:
    """Others become due meanwhile, but they have to wait for its outcome."""
    for name, due in (("1", -5.0), ("2", 0.5), ("3", 0.6)):
        path = write(queue.store, f"cur/{name}:2,")
        os.utime(path, (time.time() + due,) * 2)
    reached, hold = threading.Event(), threading.Event()

    def before(taken: Taken) -> None:
        if queue.mailer.failure is None:
            reached.set()
            assert hold.wait(30)

    queue.mailer.failure = RelayError("no connection")
    queue.mailer.before = before
    drain = queue.drain(workers=4)
    sleeps: list[float] = []
    original = drain._consumer.wait

    def wait(timeout: float) -> None:
        sleeps.append(timeout)
        original(timeout)

    drain._consumer.wait = wait  # type: ignore[method-assign]
    with Running(drain):
        eventually(lambda: pause_of(str(queue.path)) is not None)
        queue.mailer.failure = None
        assert reached.wait(60)
        time.sleep(1)  # all of them are due
        count = len(sleeps)
        time.sleep(1)
        assert len(sleeps) - count < 5
        hold.set()
        eventually(lambda: queue.left() == 0)


@pytest.mark.usefixtures("short_pauses")
def test_while_the_relay_is_away_nothing_is_touched_and_then_all_is_sent(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    queue.mailer.failure = RelayError("no connection")
    queue.send(300)
    before = {
        path: (os.stat(path).st_ino, os.stat(path).st_mtime_ns)
        for path in queue.store.maildir
    }
    asked: list[float] = []
    queue.mailer.before = lambda taken: asked.append(time.monotonic())
    with Running(queue.drain(workers=4)):
        eventually(lambda: len(asked) > 1 and asked[-1] - asked[0] > 0.09)
        assert before == {
            path: (os.stat(path).st_ino, os.stat(path).st_mtime_ns)
            for path in queue.store.maildir
        }
        queue.mailer.failure = None
        eventually(lambda: queue.left() == 0)
    pauses = [r.getMessage() for r in caplog.records if "the queue" in r.getMessage()]
    assert pauses == [
        f"{queue.path}: the queue pauses: no connection",
        f"{queue.path}: the queue goes on",
    ]
    assert len(set(queue.mailer.sent)) == len(queue.mailer.sent) == 300


def test_a_claim_is_given_up_in_a_queue_in_which_nothing_has_changed_for_long(
    queue: Queue,
) -> None:
    queue.send()
    [path] = queue.store.maildir
    claim = queue.store.claim(path)
    assert claim is not None
    try:
        os.utime(queue.path / "new", (1000, 1000))
        with Running(queue.drain(workers=1, polling=0.02)):
            await_sign_of_life(queue)
            assert queue.left() == 1
            claim.release()
            eventually(lambda: queue.left() == 0)
    finally:
        claim.release()
    assert len(queue.mailer.sent) == 1


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("folder", ["new", "cur"])
def test_the_relay_comes_back_to_a_queue_in_which_nothing_has_changed_for_long(
    queue: Queue, folder: str
) -> None:
    # Then no time stamp tells that there is something to try.
    queue.send()
    if folder == "cur":
        [path] = queue.store.maildir
        os.rename(path, f"{queue.path}/cur/{os.path.basename(path)}:2,")
    for name in ("new", "cur"):
        os.utime(queue.path / name, (1000, 1000))
    queue.mailer.failure = RelayError("no connection")
    asked: list[object] = []
    queue.mailer.before = asked.append
    with Running(queue.drain(workers=1)):
        eventually(lambda: len(asked) >= 3)
        assert queue.left() == 1
        queue.mailer.failure = None
        eventually(lambda: queue.left() == 0)
    assert len(queue.mailer.sent) == 1


def test_what_is_sent_meanwhile_does_not_wait_for_a_slow_message(queue: Queue) -> None:
    def wait_for_the_second(taken: Taken) -> None:
        tried.append(taken)
        assert second_is_tried.wait(20)

    tried: list[Taken] = []
    second_is_tried = threading.Event()
    queue.mailer.before = wait_for_the_second
    with Running(queue.drain()):
        queue.send()
        eventually(lambda: len(tried) == 1)
        queue.send()
        try:
            eventually(lambda: len(tried) == 2)
        finally:
            second_is_tried.set()
        eventually(lambda: queue.left() == 0)


def test_an_entry_that_could_not_be_read_is_read_again_later(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise QueueError("it", "no", OSError(errno.EIO, "no"))

    def take_broken(*args: Any) -> list[Any]:
        claims: list[Any] = take(*args)
        for claim in claims:
            drain._consumer.take = take  # type: ignore[method-assign]
            claim.read = fail
        return claims

    drain = queue.drain(polling=0.05)
    take = drain._consumer.take
    drain._consumer.take = take_broken  # type: ignore[method-assign]
    queue.send()
    with Running(drain):
        eventually(lambda: "left in the queue" in caplog.text)
        eventually(lambda: queue.left() == 0)


def test_it_sleeps_during_a_pause(queue: Queue) -> None:
    queue.send()
    queue.mailer.failure = RelayError("no connection")
    with Running(queue.drain()) as drain:
        eventually(lambda: pause_of(queue.store.path) is not None)
        feeder = drain._feeder
        assert feeder is not None
        clock = time.pthread_getcpuclockid(feeder.ident or 0)
        before = time.clock_gettime(clock)
        time.sleep(0.5)
        assert time.clock_gettime(clock) - before < 0.1


def test_a_pause_is_posted_and_gone_with_the_drain(queue: Queue) -> None:
    queue.mailer.failure = RelayError("no connection")
    queue.send(3)
    queue.drain().once()  # which tells its caller, and pauses nothing
    assert pause_of(str(queue.path)) is None
    with Running(queue.drain()):
        eventually(lambda: pause_of(str(queue.path)))
    assert ".paused" not in os.listdir(queue.path)


@pytest.mark.usefixtures("short_pauses")
def test_a_pause_that_cannot_be_posted_delays_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(tmp_path / "queue", ScriptedMailer())
    queue.mailer.failure = RelayError("no connection")
    queue.send(3)
    asked: list[object] = []
    queue.mailer.before = asked.append

    def drain() -> None:
        with Running(queue.drain()):
            eventually(lambda: asked)
            before = os.listdir(queue.path)
            queue.mailer.failure = None
            eventually(lambda: queue.left() == 0)
            assert before == os.listdir(queue.path)

    (queue.path / ".wakeup").mkdir()  # so that only polling is told of
    queue.path.chmod(0o500)
    without_privileges(drain)
    assert len(set(queue.mailer.sent)) == 3
    told = [r.getMessage().split(": ")[1] for r in caplog.records]
    assert told == ["commits wake nobody, only polling", "the queue pauses"]


def test_a_pause_that_ends_while_the_feeder_looks_is_not_taken_for_none(
    queue: Queue,
) -> None:
    """Otherwise the feeder sleeps for a polling interval, and nobody is called."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        if threading.current_thread().name == "feeder":
            now += 0.6
        return now

    queue.mailer.failure = RelayError("no connection")
    queue.mailer.before = lambda taken: asked.append(taken)
    asked: list[object] = []
    queue.send()
    schedule = Schedule(HOUR, HOUR, 1e6)
    drain = Drain(queue.store, queue.mailer, schedule, Pace(1, None, HOUR), None, clock)
    running = Running(drain)
    running.thread.name = "feeder"
    with running:
        eventually(lambda: asked)
        queue.mailer.failure = None
        eventually(lambda: queue.left() == 0)


def test_after_a_pause_a_single_entry_is_tried_first(queue: Queue) -> None:
    queue.mailer.failure = RelayError("no connection")
    queue.send(50)
    asked: list[float] = []
    queue.mailer.before = lambda taken: asked.append(time.monotonic())
    with Running(queue.drain(workers=4)):
        eventually(lambda: asked and time.monotonic() - asked[0] > 0.9)
        first = len(asked)
        eventually(lambda: len(asked) > first)
        # The probe failed, so the next one is two seconds away.
        probe = asked[-1]
        eventually(lambda: time.monotonic() - probe > 0.5)
        assert len(asked) == first + 1


@pytest.mark.parametrize("workers", [1, 4])
def test_what_is_in_flight_does_not_keep_a_pause_from_ending(
    tmp_path: Path, workers: int
) -> None:
    """One reply may take ten minutes; the relay is back after a second."""
    mailer = ScriptedMailer()
    queue = Queue(tmp_path / "queue", mailer)
    reached, hold = threading.Event(), threading.Event()

    def wait(taken: Taken) -> None:
        if taken.recipients == ("slow@x.org",):
            reached.set()
            assert hold.wait(30)

    mailer.before = wait
    queue.send(1, "slow@x.org")
    with Running(queue.drain(workers=max(2, workers))):
        assert reached.wait(60)
        mailer.failure = RelayError("no connection")
        queue.send(3)
        eventually(lambda: pause_of(str(queue.path)) is not None)
        mailer.failure = None
        eventually(lambda: queue.left() == 1)
        assert not hold.is_set()
        hold.set()
        eventually(lambda: queue.left() == 0)
    assert len(mailer.sent) == 4


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("workers", [1, 4])
def test_a_message_at_which_the_relay_fails_does_not_stop_the_others(
    queue: Queue, workers: int
) -> None:
    queue.send(1, "poison@x.org")
    queue.send(10)
    with Running(queue.drain(workers)) as drain:
        eventually(lambda: len(queue.mailer.sent) == 10)
        # It fails at this one again, and did not at the others: an attempt counts.
        eventually(lambda: os.listdir(queue.path / "cur"))
        assert drain.is_going_on
        queue.send(1)
        eventually(lambda: len(queue.mailer.sent) == 11)
    [deferred] = queue.store.maildir.paths("cur")
    lines = Path(deferred).read_bytes().splitlines()
    assert b"X-Zope-To: poison@x.org" in lines
    assert b"X-Zope-Attempts: 1" in lines
    assert b"X-Zope-Reply: 421 4.7.0 Try again later" in lines
    assert queue.left() == 1


@pytest.mark.usefixtures("short_pauses")
def test_silence_does_not_end_a_pause(queue: Queue) -> None:
    queue.mailer.failure = RelayError("no connection")
    queue.send(3, "lost@x.org")
    with Running(queue.drain(workers=1)):
        eventually(lambda: pause_of(str(queue.path)) is not None)
        queue.mailer.failure = None
        eventually(lambda: len(queue.mailer.attempts) == 3)
        eventually(lambda: len(os.listdir(queue.path / "cur")) == 3)
        await_sign_of_life(queue)
        assert pause_of(str(queue.path)) is not None
        queue.send()
        eventually(lambda: pause_of(str(queue.path)) is None)


@pytest.mark.parametrize("workers", [1, 4])
def test_once_is_enough_to_get_past_a_message_at_which_the_relay_fails(
    queue: Queue, workers: int
) -> None:
    queue.send(1, "poison@x.org")
    queue.send(10)
    assert queue.drain(workers).once() == Tally(10, 1, 0)
    assert len(os.listdir(queue.path / "cur")) == 1
    # It is alone: then nobody knows whether it is the relay.
    [path] = queue.store.maildir.paths("cur")
    os.utime(path, (1e9, 1e9))
    before = os.stat(path)
    asked: list[Taken] = []
    queue.mailer.before = asked.append
    assert queue.drain(workers).once() == Tally(0, 0, 0)
    assert len(asked) == 1
    after = os.stat(path)
    assert (after.st_ino, after.st_mtime) == (before.st_ino, before.st_mtime)


def test_where_the_relay_fails_at_each_message_once_ends_after_two(
    queue: Queue,
) -> None:
    asked: list[tuple[str, ...]] = []
    queue.mailer.before = lambda taken: asked.append(taken.recipients)
    queue.send(5, "poison@x.org")
    assert queue.drain(workers=1).once() == Tally(0, 0, 0)
    # One mailer is a message ahead of its reports.
    assert len(asked) == (3 if isinstance(queue.mailer, ScriptedPipelineMailer) else 2)
    assert queue.left() == len(list(queue.store.maildir.paths("new"))) == 5


def test_one_that_is_stopped_gets_past_nothing(queue: Queue) -> None:
    queue.send(1, "poison@x.org")
    queue.send(3)
    drain = queue.drain(workers=1)
    queue.mailer.before = lambda taken: drain.stop()
    assert drain.once() == Tally(0, 0, 0)
    assert queue.left() == 4


@pytest.mark.usefixtures("short_pauses")
def test_a_mailer_against_its_contract_does_not_end_the_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ScriptedPipelineMailer):
        broken = True

        def pipeline(self) -> ScriptedPipeline:
            if self.broken:
                raise KeyError("a mistake")
            return super().pipeline()

    mailer = Broken()
    queue = Queue(tmp_path / "queue", mailer)
    queue.send(3)
    assert queue.drain().once() == Tally(0, 0, 0)
    with Running(queue.drain()):
        eventually(lambda: "a mistake" in caplog.text)
        mailer.broken = False
        eventually(lambda: queue.left() == 0)
    assert "a worker failed" in caplog.text


@pytest.mark.usefixtures("short_pauses")
def test_a_folder_that_cannot_be_read_pauses_the_queue(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send(2)
    os.rename(queue.path / "cur", queue.path / "away")
    drain = queue.drain()
    with Running(drain):
        eventually(lambda: "the queue pauses" in caplog.text)
        os.rename(queue.path / "away", queue.path / "cur")
        eventually(lambda: queue.left() == 0)


@pytest.mark.usefixtures("short_pauses")
def test_a_queue_that_does_not_know_how_long_to_wait_pauses(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """As one in a database that is away."""
    drain = queue.drain()
    seconds_to_wait = drain._consumer.seconds_to_wait

    def away() -> float:
        drain._consumer.seconds_to_wait = seconds_to_wait  # type: ignore[method-assign]
        raise QueueError("db", "is away")

    drain._consumer.seconds_to_wait = away  # type: ignore[method-assign]
    with Running(drain):
        eventually(lambda: "the queue pauses: db: is away" in caplog.text)
        queue.send()
        eventually(lambda: queue.left() == 0)


@pytest.mark.parametrize("broken", ["seconds_to_wait", "wait"])
@pytest.mark.usefixtures("short_pauses")
def test_an_error_that_nobody_expects_does_not_end_the_feeder(
    queue: Queue, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    drain = queue.drain()
    method = getattr(drain._consumer, broken)
    left = [RuntimeError("odd"), RuntimeError("odd")]

    def fail(*arguments: float) -> object:
        if left:
            raise left.pop()
        return method(*arguments)

    setattr(drain._consumer, broken, fail)
    with Running(drain):
        eventually(lambda: "the queue pauses: odd" in caplog.text)
        eventually(lambda: not left)
        queue.send()
        eventually(lambda: queue.left() == 0)
    failed = [r for r in caplog.records if "the feeder failed" in r.getMessage()]
    assert failed
    assert failed[0].exc_info


@pytest.mark.usefixtures("short_pauses")
def test_an_error_in_a_pause_is_not_logged_again(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    drain = queue.drain()
    drain._breaker.failed("the relay is away")
    drain._breaker._until += 600  # the pause lasts longer than the test
    caplog.clear()

    def fail(timeout: float) -> None:
        drain.stop()
        raise RuntimeError("odd")

    drain._consumer.wait = fail  # type: ignore[method-assign]
    drain.until_stopped()
    assert "the feeder failed" not in caplog.text


def fork_in_the_feeder(path: str) -> None:
    """Drain until the feeder has forked; tell how the child has ended."""
    queue = Queue(Path(path), ScriptedMailer())
    drain = queue.drain()
    parent = os.getpid()

    def wait(timeout: float) -> None:
        child = os.fork()
        if not child:
            raise OSError("the files are closed")
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        drain.stop()

    drain._consumer.wait = wait  # type: ignore[method-assign]
    drain.until_stopped()
    if os.getpid() != parent:
        # Not at once, so that the child can save which lines it has run.
        sys.exit(7 if not (queue.path / ".paused").exists() else 1)


def test_a_feeder_that_goes_on_in_a_forked_child_ends(tmp_path: Path) -> None:
    """As under gevent. The files of the queue are the parent's."""
    assert children.call(fork_in_the_feeder, str(tmp_path / "queue")) == "7\n"


def test_what_cannot_be_cleaned_up_is_told_and_the_loop_goes_on(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    os.rename(queue.path / "tmp", queue.path / "away")
    (queue.path / "tmp").touch()
    with Running(queue.drain()):
        eventually(lambda: f"{queue.path}: cannot clean up" in caplog.text)
        os.unlink(queue.path / "tmp")
        os.rename(queue.path / "away", queue.path / "tmp")
        queue.send()
        eventually(lambda: queue.left() == 0)


def test_one_that_ends_wakes_the_others(queue: Queue) -> None:
    with Running(queue.drain()):
        pipe = os.open(queue.path / ".wakeup", os.O_RDWR | os.O_NONBLOCK)
    assert os.read(pipe, 1)
    os.close(pipe)


def test_leftovers_are_removed_when_it_begins(queue: Queue) -> None:
    old = queue.path / "tmp" / "old"
    old.touch()
    os.utime(old, (1000.0, 1000.0))
    with Running(queue.drain()):
        eventually(lambda: not old.exists())


@pytest.mark.usefixtures("short_pauses")
def test_what_was_sent_but_cannot_be_removed_is_settled_when_it_can(
    queue: Queue,
) -> None:
    queue.send()
    (queue.path / "new").chmod(0o500)

    def run() -> None:
        with Running(queue.drain(workers=1)):
            eventually(lambda: queue.mailer.attempts)
            (queue.path / "new").chmod(0o700)
            eventually(lambda: queue.left() == 0)

    without_privileges(run)
    assert len(queue.mailer.attempts) == 1


@pytest.mark.usefixtures("short_pauses")
def test_where_nothing_can_be_removed_no_more_is_sent_until_it_can(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send(5)
    (queue.path / "new").chmod(0o500)
    drain = queue.drain(workers=1)

    def run() -> None:
        with Running(drain):
            eventually(lambda: drain._breaker.count >= 4)
            assert len(queue.mailer.attempts) <= 2
            (queue.path / "new").chmod(0o700)
            eventually(lambda: queue.left() == 0)

    without_privileges(run)
    assert len(set(queue.mailer.sent)) == len(queue.mailer.sent) == 5
    assert "a worker failed" not in caplog.text


class Stuck:
    """The oldest entry of a queue, which cannot be deferred, as an immutable file."""

    def __init__(self, queue: Queue) -> None:
        queue.send(1, "later@x.org")
        [path] = queue.store.maildir.paths("new")
        self._in_the_way = queue.path / "cur" / f"{os.path.basename(path)}:2,"
        self._in_the_way.mkdir()
        queue.send(5)

    def end(self) -> None:
        self._in_the_way.rmdir()


def test_an_oldest_entry_that_cannot_be_settled_does_not_stop_a_flush(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck(queue)
    assert queue.drain(workers=1).once() == Tally(sent=5)
    assert len(set(queue.mailer.sent)) == len(queue.mailer.sent) == 5
    assert caplog.text.count("the queue pauses") == 1
    # It was deferred, and nobody gets it twice.
    assert "it will be tried again: later@x.org: deferred" in caplog.text
    assert not [r for r in caplog.records if r.levelno == logging.CRITICAL]
    stuck.end()


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("workers", [1, 4])
def test_an_oldest_entry_that_cannot_be_settled_does_not_stop_the_others(
    queue: Queue, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck(queue)
    with Running(queue.drain(workers)):
        eventually(lambda: len(queue.mailer.sent) == 5)
        eventually(lambda: "the queue pauses" in caplog.text)
        queue.send()  # ends the pause, if it was the oldest that was settled last
        eventually(lambda: len(queue.mailer.sent) == 6)
        eventually(lambda: pause_of(str(queue.path)) is None)
        assert caplog.text.count("the queue pauses") == 1
        stuck.end()
        # Without a wake-up, and although the polling interval is an hour.
        eventually(lambda: list((queue.path / "cur").iterdir()))
    assert len(queue.mailer.attempts) == 7
    assert queue.left() == 1


def test_where_the_disk_is_full_each_flush_does_not_send_another_copy(
    tmp_path: Path,
) -> None:
    with full_disk(tmp_path, kilobytes=96) as disk:
        queue = Queue(disk / "queue", ScriptedPipelineMailer())
        queue.store.stage("", ("ann@x.org", "later@x.org"), [b"\n"]).commit()
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(b"x" * 4096):
                pass
        for _ in range(3):
            assert queue.drain().once() == Tally(0, 0, 0)
        assert len(queue.mailer.attempts) == 1


def test_what_can_be_settled_when_it_ends_is_counted(queue: Queue) -> None:
    new, away = queue.path / "new", queue.path / "away"

    class Mending(logging.Handler):
        """As soon as it is told that the folder is away, it is back."""

        def emit(self, record: logging.LogRecord) -> None:
            os.rename(away, new)

    queue.send()
    queue.mailer.before = lambda taken: os.rename(new, away)
    logger, mending = logging.getLogger("postcommit.drain.breaker"), Mending()
    logger.addHandler(mending)
    try:
        assert queue.drain(workers=1).once() == Tally(1, 0, 0)
    finally:
        logger.removeHandler(mending)
    assert queue.left() == 0


def test_with_fewer_threads_than_wanted_it_works(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send()
    drain = queue.drain(workers=3)
    drain._threads[1].start()
    assert drain.once() == Tally(1, 0, 0)
    told = f"{queue.path}: 1 of 3 workers could be started: threads can only"
    assert told in caplog.text
    drain._threads[1].join(60)
    assert drain._threads[2].ident is None  # nor was it tried


def test_a_thread_that_cannot_be_started_leaves_no_other_one(queue: Queue) -> None:
    drain = queue.drain(workers=3)
    drain._threads[0].start()
    with pytest.raises(RuntimeError, match="threads can only be started once"):
        drain.once()
    assert drain.wait(0)
    drain._threads[0].join(60)


# Mailers that keep no contract, and long looks


class Sated(ScriptedPipelineMailer):
    """Takes no message."""

    def pipeline(self) -> ScriptedPipeline:
        return SatedPipeline(self)


class SatedPipeline(ScriptedPipeline):
    def offer(self, mail: Outgoing, key: Any = None) -> None:
        """Forget it."""


class Leaving(ScriptedPipelineMailer):
    """Wants to end the process."""

    def pipeline(self) -> ScriptedPipeline:
        return LeavingPipeline(self)


class LeavingPipeline(ScriptedPipeline):
    def offer(self, mail: Outgoing, key: Any = None) -> None:
        raise SystemExit


@pytest.mark.parametrize("kind", [Sated, Leaving])
def test_a_mailer_that_does_nothing_ends_no_loop_and_makes_none(
    tmp_path: Path, kind: type[ScriptedPipelineMailer], caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(tmp_path / "queue", kind())
    queue.send(3)
    assert queue.drain(workers=2).once() == Tally(0, 0, 0)
    assert queue.left() == 3
    assert "a worker failed" in caplog.text
