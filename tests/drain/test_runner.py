"""QueueProcessor: run, start, stop and flush, in any order."""
from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transaction

from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._maildir.consumer import Consumer
from postcommit._maildir.presence import heartbeat
from postcommit._maildir.store import Store
from postcommit._processor import QueueProcessor
from postcommit._transaction.event import MailDeferredEvent
from postcommit._transaction.event import MailSentEvent
from postcommit.errors import NotAMaildirError
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.interfaces import Tally
from tests.support import children
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer
from tests.support.service import eventually
from tests.support.smtpd import ScriptedRelay
from tests.support.strace import needs_strace
from tests.support.strace import trace


HOUR_IN_MS = 3_600_000


@pytest.fixture
def mailer() -> ScriptedMailer:
    return ScriptedPipelineMailer()


@pytest.fixture
def delivery(tmp_path: Path) -> QueuedMailDelivery:
    return QueuedMailDelivery(str(tmp_path / "queue"))


@pytest.fixture
def processor(
    delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> Iterator[QueueProcessor]:
    processor = QueueProcessor(delivery.queuePath, mailer, HOUR_IN_MS)
    yield processor
    assert processor.stop(10)


def send(delivery: QueuedMailDelivery, recipient: str = "ann@x.org") -> None:
    with transaction.manager:
        delivery.send("shop@x.org", recipient, "Subject: x\n\n")


# In any order


def test_it_can_be_started_and_stopped_again_and_again(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    assert processor.stop()
    threads = set(threading.enumerate())
    for count in range(1, 4):
        processor.start()
        processor.start()
        send(delivery)
        eventually(lambda count=count: len(mailer.sent) == count)
        assert processor.stop(10)
        assert processor.stop(10)
    send(delivery)
    assert processor.flush() == Tally(1, 0, 0)
    assert set(threading.enumerate()) <= threads


def test_where_there_is_no_thread_to_be_had_nothing_is_left_of_a_start(
    processor: QueueProcessor,
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    size = threading.stack_size(1 << 46)  # more than there are addresses
    try:
        with pytest.raises(RuntimeError, match="thread"):
            processor.start()
    finally:
        threading.stack_size(size)
    assert processor.stop(10)
    assert processor.last_sign is None
    assert set(os.listdir("/proc/self/fd")) <= before
    processor.start()
    assert processor.stop(10)


def test_it_can_be_started_while_it_stops(delivery: QueuedMailDelivery) -> None:
    may_go_on, entered, sent = threading.Event(), threading.Event(), []

    class Slow:
        def send(self, fromaddr: str, toaddrs: object, message: bytes) -> None:
            if not entered.is_set():
                entered.set()
                assert may_go_on.wait(20)
            sent.append(message)

    processor = QueueProcessor(delivery.queuePath, Slow(), HOUR_IN_MS, workers=1)
    processor.start()
    send(delivery)
    assert entered.wait(20)
    assert not processor.stop(0)
    processor.start()
    send(delivery)
    eventually(lambda: len(sent) == 1)
    may_go_on.set()
    eventually(lambda: len(sent) == 2)
    assert processor.stop(10)


def test_it_says_whether_it_runs(processor: QueueProcessor) -> None:
    assert not processor.is_running
    processor.start()
    assert processor.is_running
    assert processor.stop(10)
    assert not processor.is_running
    processor.start()
    assert processor.is_running
    assert processor.stop(10)


def test_starting_twice_starts_one_thread(processor: QueueProcessor) -> None:
    others = set(threading.enumerate())
    processor.start()
    ours = set(threading.enumerate()) - others
    processor.start()
    assert set(threading.enumerate()) - others == ours
    assert all(thread.daemon for thread in ours)


def test_run_works_until_another_thread_stops_it(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    def stop_later() -> None:
        send(delivery)
        eventually(lambda: mailer.sent)
        assert processor.stop(10)

    other = threading.Thread(target=stop_later)
    other.start()
    processor.run()
    other.join(60)
    assert len(mailer.sent) == 1


def test_to_run_what_is_started_waits_and_starts_no_second_drain(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    processor.start()
    threads = set(threading.enumerate())
    other = threading.Thread(target=processor.run)
    other.start()
    send(delivery)
    eventually(lambda: mailer.sent)
    assert other.is_alive()
    assert set(threading.enumerate()) - threads == {other}
    assert processor.stop(10)
    other.join(60)
    assert not other.is_alive()


def test_flushing_while_it_runs_sends_nothing_twice(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    processor.start()
    with transaction.manager:
        for _ in range(300):
            delivery.send("shop@x.org", "ann@x.org", "Subject: x\n\n")
    processor.flush()
    eventually(lambda: len(mailer.sent) >= 300)
    assert processor.stop(10)
    assert len(set(mailer.sent)) == len(mailer.sent) == 300


def test_several_threads_may_call_all_of_it(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    def chaos(number: int) -> None:
        for step in range(6):
            [processor.start, processor.flush, lambda: processor.stop(10)][
                (number + step) % 3
            ]()
            send(delivery)

    threads = [threading.Thread(target=chaos, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert processor.stop(10)
    processor.flush()
    assert len(set(mailer.sent)) == len(mailer.sent) == 24


def test_stop_waits_no_longer_than_it_is_told(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    started, finish = threading.Event(), threading.Event()

    def before(taken: object) -> None:
        started.set()
        assert finish.wait(60)

    mailer.before = before
    processor.start()
    send(delivery)
    assert started.wait(60)
    assert not processor.stop(0.01)
    finish.set()
    assert processor.stop(10)
    assert len(mailer.sent) == 1


def test_a_subscriber_may_stop_it_and_does_not_wait_for_itself(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    stopped: list[bool] = []
    mailer.notify = lambda event: stopped.append(processor.stop())  # type: ignore[method-assign]
    send(delivery)
    processor.run()
    assert stopped == [False]


def test_a_signal_handler_may_stop_it(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    def handler(number: int, frame: object) -> None:
        assert not processor.stop()

    mailer.notify = lambda event: os.kill(os.getpid(), signal.SIGUSR1)  # type: ignore[method-assign]
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        send(delivery)
        processor.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(mailer.sent) == 1


def test_a_subscriber_may_send_mail(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    def notify(event: object) -> None:
        if isinstance(event, MailSentEvent) and event.recipients == ("ann@x.org",):
            delivery.send("shop@x.org", "boss@x.org", "Subject: sent\n\n")

    mailer.notify = notify  # type: ignore[method-assign]
    processor.start()
    send(delivery)
    eventually(lambda: len(mailer.sent) == 2)
    assert [r for _, r in mailer.sent] == ["ann@x.org", "boss@x.org"]


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_no_commit_is_missed_where_nothing_is_polled(
    delivery: QueuedMailDelivery, mailer: ScriptedMailer, workers: int
) -> None:
    """Whatever the workers do when it rings, and whenever their look has begun."""
    pauses = random.Random(workers)
    mailer.before = lambda taken: time.sleep(pauses.choice([0, 0, 0.0005, 0.003]))
    processor = QueueProcessor(
        delivery.queuePath, mailer, workers=workers, pollingInterval=3_600_000
    )

    def commit() -> None:
        bound = delivery.bind(transaction.TransactionManager())
        for _ in range(150):
            with bound.transaction_manager:
                bound.send("shop@x.org", "ann@x.org", "Subject: x\n\n")
            time.sleep(pauses.choice([0, 0.0002, 0.001, 0.004]))

    processor.start()
    try:
        senders = [threading.Thread(target=commit) for _ in range(3)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        eventually(lambda: len(mailer.sent) == 450)
    finally:
        processor.stop()


# Processes


CHILD = """
import sys, transaction
from postcommit import QueuedMailDelivery
delivery = QueuedMailDelivery(sys.argv[1])
delivery.send("shop@x.org", "ann@x.org", "Subject: x\\n\\n")
transaction.commit()
"""


def test_a_commit_of_another_process_wakes_it(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    processor.start()
    command = [sys.executable, "-c", CHILD, delivery.queuePath]
    subprocess.run(command, check=True, timeout=60)
    eventually(lambda: len(mailer.sent) == 1)


DRAINER = """
import sys
from postcommit import QueueProcessor, SMTPMailer
mailer = SMTPMailer("127.0.0.1", int(sys.argv[2]))
print(QueueProcessor(sys.argv[1], mailer, workers=4).flush().sent)
"""


def test_several_processes_drain_one_queue(delivery: QueuedMailDelivery) -> None:
    with ScriptedRelay() as relay:
        with transaction.manager:
            for number in range(400):
                message = f"Message-Id: <{number}@x.org>\n\n"
                delivery.send("shop@x.org", "ann@x.org", message)
        command = [sys.executable, "-c", DRAINER, delivery.queuePath, str(relay.port)]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        told = [int(process.communicate(timeout=60)[0]) for process in processes]
        assert sum(told) == 400
        assert len({message.data for message in relay.messages}) == 400
        assert len(relay.messages) == 400
        assert relay.violations == []


FORKER = """
import os, sys, threading, transaction
from postcommit import QueuedMailDelivery, QueueProcessor

class Mailer:
    sent = 0
    def send(self, fromaddr, toaddrs, message):
        Mailer.sent += 1

delivery = QueuedMailDelivery(sys.argv[1])
processor = QueueProcessor(sys.argv[1], Mailer(), 3_600_000)
processor.start()

def send():
    with transaction.manager:
        delivery.send("shop@x.org", "ann@x.org", "Subject: x\\n\\n")

def wait(count):
    pause = threading.Event()
    for _ in range(2000):
        if Mailer.sent >= count:
            return
        pause.wait(0.01)
    raise SystemExit(f"{Mailer.sent} sent, not {count}")

send()
wait(1)
child = os.fork()
if not child:
    assert processor.last_sign is None, "nothing lives in the child"
    assert processor.stop(0), "the child has nothing to stop"
    other = QueueProcessor(sys.argv[1] + "2", Mailer(), 3_600_000)
    delivery = QueuedMailDelivery(sys.argv[1] + "2")
    other.start()
    send()
    wait(2)
    assert other.stop(10)
    processor.start()
    assert processor.stop(10)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert processor.last_sign is not None
send()
wait(2)
assert processor.stop(10)
print("done")
"""


def test_a_forked_child_has_a_processor_of_its_own_and_its_parent_goes_on(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKER, str(tmp_path / "queue")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 0


FORKED_DURING_START = """
import os, signal, sys, threading
from postcommit import QueueProcessor
from postcommit.testing import RecordingMailer

class Slow(QueueProcessor):
    def _new_drain(self):
        reached.set()
        assert go.wait(60)
        return super()._new_drain()

reached, go = threading.Event(), threading.Event()
processor = Slow(sys.argv[1], RecordingMailer(), 3_600_000)
thread = threading.Thread(target=processor.start)
thread.start()
assert reached.wait(60)
child = os.fork()
go.set()
if not child:
    signal.alarm(60)  # ends a child that hangs
    processor.start()
    assert processor.is_running
    assert processor.stop()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
thread.join()
assert processor.stop()
print("done")
"""


def test_a_fork_while_another_thread_starts_the_processor(tmp_path: Path) -> None:
    """The child can start it, too. The lock of the parent's thread is not its own."""
    folder = str(tmp_path / "queue")
    command = [sys.executable, "-W", "ignore", "-c", FORKED_DURING_START, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.stdout == "done\n", done.stderr


EXIT = """
import sys, threading, transaction
from postcommit import QueuedMailDelivery, QueueProcessor

started = threading.Event()

class Mailer:
    def send(self, fromaddr, toaddrs, message):
        started.set()
        threading.Event().wait(0.3)
        print("sent", flush=True)

processor = QueueProcessor(sys.argv[1], Mailer(), 3_600_000)
processor.start()
with transaction.manager:
    QueuedMailDelivery(sys.argv[1]).send("", "ann@x.org", "Subject: x\\n\\n")
assert started.wait(30)
"""


def test_at_exit_the_attempt_in_flight_is_finished_and_settled(
    delivery: QueuedMailDelivery,
) -> None:
    command = [sys.executable, "-c", EXIT, delivery.queuePath]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "sent\n"), done.stderr
    assert os.listdir(f"{delivery.queuePath}/new") == []


def test_an_idle_processor_does_nothing_but_sleep(
    processor: QueueProcessor, delivery: QueuedMailDelivery, mailer: ScriptedMailer
) -> None:
    processor.start()
    send(delivery)
    eventually(lambda: mailer.sent)
    # Until what follows a mail is over: its removal, its events.
    eventually(lambda: _switches_within(0.3) < 10)


# A mailer that makes a mistake


class Mistaken(ScriptedPipelineMailer):
    """Raises at each message to poison@x.org, instead of reporting on it."""

    def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> Any:
        if "poison@x.org" in toaddrs:
            raise KeyError("a mistake")
        return super().send(fromaddr, toaddrs, message)

    def pipeline(self) -> ScriptedPipeline:
        """Return one, because otherwise the `send` of this class would be used."""
        return ScriptedPipeline(self)


OTHERS = ["ann@x.org", "bob@x.org", "carol@x.org"]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("way", ["flush", "start"])
def test_a_message_at_which_the_mailer_raises_does_not_stop_the_others(
    delivery: QueuedMailDelivery, way: str, workers: int, place: int
) -> None:
    for recipient in [*OTHERS[:place], "poison@x.org", *OTHERS[place:]]:
        send(delivery, recipient)
    mailer = Mistaken()
    processor = QueueProcessor(
        delivery.queuePath, mailer, HOUR_IN_MS, workers=workers
    )
    if way == "start":
        processor.start()
        eventually(lambda: len(mailer.sent) == 3)
    else:
        processor.flush()
    assert processor.stop(60)
    assert sorted(recipient for _, recipient in mailer.sent) == OTHERS


def test_a_message_at_which_the_mailer_raises_again_is_deferred(
    delivery: QueuedMailDelivery,
) -> None:
    for recipient in ["poison@x.org", *OTHERS]:
        send(delivery, recipient)
    mailer = Mistaken()
    processor = QueueProcessor(delivery.queuePath, mailer, HOUR_IN_MS, workers=1)
    assert processor.flush() == Tally(3, 1, 0)
    [event] = [e for e in mailer.events if isinstance(e, MailDeferredEvent)]
    assert event.recipients == ("poison@x.org",)
    assert "a mistake" in event.errorMessage
    assert len(os.listdir(f"{delivery.queuePath}/cur")) == 1


@pytest.mark.parametrize("place", range(9))
def test_a_mailer_raises_while_an_entry_is_removed(
    delivery: QueuedMailDelivery, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """The removal goes on beside the next messages, as in a database."""
    monkeypatch.setattr(Consumer, "quick_seconds", 3600.0)
    monkeypatch.setattr(Consumer, "begin_removal", lambda self, claim: True)
    others = [f"{number}@x.org" for number in range(8)]
    for recipient in [*others[:place], "poison@x.org", *others[place:]]:
        send(delivery, recipient)
    mailer = Mistaken()
    processor = QueueProcessor(delivery.queuePath, mailer, HOUR_IN_MS, workers=1)
    tally = processor.flush()
    assert tally.sent == 8
    assert sorted(recipient for _, recipient in mailer.sent) == others
    left = [name for state in ("new", "cur") for name in _entries(delivery, state)]
    assert len(left) == 1


def _entries(delivery: QueuedMailDelivery, state: str) -> list[str]:
    return os.listdir(f"{delivery.queuePath}/{state}")


def test_as_long_as_the_mailer_raises_at_all_messages_none_is_blamed(
    delivery: QueuedMailDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        send(delivery, "poison@x.org")
    mailer = Mistaken()
    processor = QueueProcessor(delivery.queuePath, mailer, HOUR_IN_MS)
    for _ in range(3):
        assert processor.flush() == Tally()
    assert mailer.events == []
    assert len(os.listdir(f"{delivery.queuePath}/new")) == 3
    assert "KeyError: 'a mistake'" in caplog.text, "its traceback"


def _switches_within(seconds: float) -> int:
    """Our own wait is one; a loop that polls would be hundreds."""
    switches = _voluntary_switches()
    threading.Event().wait(seconds)
    return _voluntary_switches() - switches


def _voluntary_switches() -> int:
    total = 0
    for thread in os.listdir("/proc/self/task"):
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        total += int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return total


def _interrupted_twice(queue: str) -> None:
    begun, over = threading.Event(), threading.Event()

    class Thinking(ScriptedMailer):
        def send(self, *args: object) -> None:
            begun.set()
            time.sleep(3600)

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)
        while not over.wait(2):
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        QueueProcessor(queue, Thinking(), HOUR_IN_MS, workers=1).run()
    over.set()
    assert heartbeat(queue) is None


def test_who_interrupts_twice_does_not_wait_for_the_relay(
    delivery: QueuedMailDelivery,
) -> None:
    send(delivery)
    children.call(_interrupted_twice, delivery.queuePath)
    assert len(list(Store(delivery.queuePath).maildir)) == 1


# Bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queuePath", ""),
        ("queuePath", 3),
        ("pollingInterval", -1),
        ("pollingInterval", 0),
        ("pollingInterval", 2.5),
        ("workers", 0),
        ("rate_limit", 0),
        ("min_backoff", -1),
        ("max_backoff", 10),
        ("max_age", "long"),
        ("mailer", object()),
    ],
)
def test_an_option_that_can_never_work_is_refused_by_name(
    name: str, value: object, mailer: ScriptedMailer
) -> None:
    options = {"queuePath": "queue", "mailer": mailer, name: value}
    with pytest.raises(OptionError, match=name) as caught:
        QueueProcessor(**options)  # type: ignore[arg-type]
    assert caught.value.name == name
    assert not os.path.exists("queue")


@pytest.mark.parametrize("method", ["run", "start", "flush"])
def test_a_path_that_is_no_queue_is_the_callers_error(
    tmp_path: Path, mailer: ScriptedMailer, method: str
) -> None:
    threads = set(threading.enumerate())
    (tmp_path / "file").touch()
    for path, error in [
        (tmp_path / "file", NotAMaildirError),
        (tmp_path, NotAMaildirError),
        (tmp_path / "missing" / "queue", QueueError),
    ]:
        processor = QueueProcessor(str(path), mailer)
        with pytest.raises(error, match=path.name):
            getattr(processor, method)()
        assert processor.stop(0)
    assert set(threading.enumerate()) <= threads


# Idle


def _be_idle(queue: str) -> None:
    processor = QueueProcessor(queue, ScriptedMailer(), pollingInterval=20)
    processor.start()
    time.sleep(1)
    os.write(1, b"end\n")
    processor.stop()


@needs_strace
@pytest.mark.parametrize("depth", [0, 1000])
def test_an_idle_poll_is_two_calls_however_deep_the_queue(
    tmp_path: Path, depth: int
) -> None:
    queue = tmp_path / "queue"
    Store(str(queue))
    later = time.time() + 3600
    for number in range(depth):
        (queue / "cur" / f"{number}:2,").touch()
        os.utime(queue / "cur" / f"{number}:2,", (later, later))
    for folder in ("new", "cur"):
        os.utime(queue / folder, (1e9, 1e9))  # no change is so recent that it may go on
    calls = trace(
        _be_idle,
        str(queue),
        below=queue,
        scratch=tmp_path,
        traced="%file,%desc",
    )
    calls = [call for call in calls if not call.endswith(".wakeup")]  # signs of life
    calls = calls[: calls.index("print end")]
    looked = [n for n, call in enumerate(calls) if re.search("getdents|cur/", call)]
    idle = calls[looked[-1] + 2 :]  # without the close
    assert all("stat" in call for call in idle), Counter(idle)
    asked = Counter(call.split()[1] for call in idle)
    assert asked.keys() == {"new", "cur"}
    assert min(asked.values()) >= 4
    assert abs(asked["new"] - asked["cur"]) <= 1
