"""Calls that the kernel refuses: nothing is lost, and the processor goes on.

Each call that a transition makes on a queue is refused once, with errors as they
come from disks that are full or broken, from missing permissions, files and
descriptors. How many at each test: ``POSTCOMMIT_FAULTS``, 40 by default, of all that
there are a sample. The log tells how many (``--log-cli-level=info``).
"""
from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support import children
from tests.support.faults import full_disk
from tests.support.faults import without_privileges
from tests.support.injected import Fate
from tests.support.injected import Injector
from tests.support.injected import Traced
from tests.support.mailers import ScriptedMailer
from tests.support.strace import needs_strace
from tests.support.transactions import files
from tests.support.transactions import mail
from tests.support.troubled import Hearing
from tests.support.troubled import drain_without_descriptors
from tests.support.troubled import start_without_descriptors

from postcommit import QueueProcessor
from postcommit._drain import breaker
from postcommit._mail.message import message_id_of
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.staging import is_prepared
from postcommit._maildir.store import Store
from postcommit.errors import QueueError


FAULTS = int(os.environ.get("POSTCOMMIT_FAULTS", "40"))

ERRORS = ("ENOSPC", "EIO", "EACCES", "EMFILE", "ENOENT")

GOOD, LATER, NEVER = "good@example.org", "later@example.org", "never@example.org"

GARBAGE = b"Neither an envelope nor a message.\n"

log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Injector]:
    with Injector(tmp_path_factory.mktemp("injected")) as injector:
        yield injector


def injections(fate: Fate, queue: Path) -> list[str]:
    """Return an injection for each call that touches `queue`, and each error."""
    calls = {(c.name, c.number) for c in fate.calls if str(queue) in c.text}
    every = [
        f"{name}:error={error}:when={number}"
        for name, number in sorted(calls)
        for error in ERRORS
        # What is there, and is removed, and is said not to be there: a lie.
        if (name, error) != ("unlink", "ENOENT")
    ]
    dice = random.Random(FAULTS)
    return dice.sample(every, min(FAULTS, len(every)))


def on_the_pipe(fate: Fate, queue: Path) -> list[str]:
    """Return an injection for each call that touches the pipe of a queue."""
    calls = {(c.name, c.number) for c in fate.calls if f"{queue}/.wakeup" in c.text}
    return [f"{name}:error=EIO:when={number}" for name, number in sorted(calls)]


def hits(fate: Fate, queue: Path) -> list[Traced]:
    return [c for c in fate.calls if c.is_injected and str(queue) in c.text]


def drained(queue: Path) -> Counter[str]:
    """Drain the queue a day later; return the message ids that were sent."""
    mailer = ScriptedMailer()
    later = time.time() + 86400
    QueueProcessor(str(queue), mailer, workers=1, clock=lambda: later).flush()
    for taken in mailer.attempts:
        assert taken.message == mail(message_id_of(taken.message)), "it is torn"
    return Counter(message_id_of(taken.message) for taken in mailer.attempts)


# A commit


def check_sender(fate: Fate, queue: Path) -> None:
    committed, aborted, unpublished = (
        {message_id for words in fate.told(word) for message_id in words[skip:]}
        for word, skip in [("committed", 0), ("aborted", 1), ("unpublished", 1)]
    )
    assert len(committed | aborted | unpublished) == 3
    for reason, *_ in fate.told("aborted") + fate.told("unpublished"):
        assert str(queue) in reason
    not_removed = {call.name for call in hits(fate, queue)} == {"unlink"}
    in_doubt = set()
    for name in files(queue):
        if name.startswith("tmp/"):
            assert is_prepared(name) or not_removed, "something is left behind"
            if is_prepared(name):
                entry = parse_entry((queue / name).read_bytes())
                in_doubt.add(message_id_of(entry.message))
    sent = drained(queue)
    assert set(sent.values()) <= {1}
    assert committed <= sent.keys(), "a committed mail is lost"
    assert not aborted & sent.keys(), "an aborted mail is sent"
    assert unpublished <= in_doubt | sent.keys(), "a mail is lost"
    assert in_doubt <= unpublished | (aborted if not_removed else set())
    logged = [text for _, text in fate.told("logged")]
    assert len(set(logged)) == len(logged) <= len(hits(fate, queue)), logged


@needs_strace
def test_a_fault_at_any_call_of_a_commit_loses_nothing(
    injector: Injector, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    queue = tmp_path / "whole" / "queue"
    Store(str(queue))
    whole = injector.run("send", queue=str(queue), transactions=2)
    assert len(whole.told("committed")) == 2
    seen: Counter[str] = Counter()
    for inject in injections(whole, queue):
        print(inject)
        queue = tmp_path / inject / "queue"
        queue.parent.mkdir()
        Store(str(queue))
        fate = injector.run("send", inject=inject, queue=str(queue), transactions=2)
        check_sender(fate, queue)
        seen["faults"] += bool(hits(fate, queue))
        seen.update(words[0] for words in fate.ledger)
    log.info("%s", dict(seen))
    assert seen["aborted"] > 0


# A processor


ENTRIES = [(GOOD,), (GOOD, LATER), (GOOD, NEVER)]


def fill(queue: Path) -> None:
    store = Store(str(queue))
    for number, recipients in enumerate(ENTRIES):
        message = mail(f"{number}@x.org")
        store.stage("shop@example.org", recipients, [message]).commit()
    (queue / "new" / "1790000000.garbage").write_bytes(GARBAGE)


TOLD = {
    ("MailSentEvent", "0@x.org", GOOD),
    ("MailSentEvent", "1@x.org", GOOD),
    ("MailDeferredEvent", "1@x.org", LATER),
    ("MailSentEvent", "2@x.org", GOOD),
    ("MailRejectedEvent", "2@x.org", NEVER),
    ("MailRejectedEvent", "", ""),
}


def check_drainer(fate: Fate, queue: Path, successes: int = 0) -> None:
    """Check that all is settled; a trouble is logged again after a success only."""
    assert fate.told("done"), "it hangs"
    sent = Counter(map(tuple, fate.told("sent")))
    assert sent == {(f"{n}@x.org", GOOD): 1 for n in range(3)}, "lost, or sent twice"
    told = Counter(map(tuple, fate.told("told")))
    assert told == dict.fromkeys(TOLD, 1), "an event is missing, or comes twice"
    not_removed = "unlink" in {call.name for call in hits(fate, queue)}
    assert not_removed or not files(queue)[0].startswith("tmp/")
    assert not list((queue / "new").iterdir())
    [deferred] = (queue / "cur").iterdir()
    assert parse_entry(deferred.read_bytes()).recipients == (LATER,)
    dead = sorted(path.read_bytes() for path in (queue / ".Failed/new").iterdir())
    assert parse_entry(dead[0]).recipients == (NEVER,)
    assert dead[1].endswith(GARBAGE)
    assert len(dead) == 2
    logged = Counter(text for _, text in fate.told("logged"))
    assert max(logged.values()) <= 1 + successes, logged


@needs_strace
@pytest.mark.parametrize("chosen", [injections, on_the_pipe])
def test_a_fault_at_any_call_of_a_processor_delays_and_loses_nothing(
    injector: Injector, tmp_path: Path, chosen: Callable[[Fate, Path], list[str]]
) -> None:
    (tmp_path / "whole").mkdir()
    queue = tmp_path / "whole" / "queue"
    fill(queue)
    whole = injector.run("drain", queue=str(queue), events=len(TOLD))
    check_drainer(whole, queue)
    seen: Counter[str] = Counter()
    for inject in chosen(whole, queue):
        print(inject)
        queue = tmp_path / inject / "queue"
        queue.parent.mkdir()
        fill(queue)
        fate = injector.run("drain", inject=inject, queue=str(queue), events=len(TOLD))
        check_drainer(fate, queue)
        seen["faults"] += bool(hits(fate, queue))
    log.info("%s", dict(seen))
    assert seen["faults"] > 0


@needs_strace
@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("openat:error=EMFILE", "new"),
        ("openat:error=EACCES", "new"),
        ("getdents64:error=EIO", "new"),
        ("newfstatat:error=EIO", "new"),
        ("openat:error=EMFILE", "entries"),
        ("flock:error=ENOLCK", "entries"),
        ("pread64:error=EIO", "entries"),
        ("rename,renameat2:error=EACCES", "entries"),
        ("unlink:error=EIO", "entries"),
        ("fsync:error=EIO", "everywhere"),
        ("utimensat:error=EIO", "everywhere"),
    ],
)
def test_a_fault_that_lasts_is_told_once_and_the_queue_is_drained_when_it_is_over(
    injector: Injector, tmp_path: Path, fault: str, where: str
) -> None:
    queue = tmp_path / "queue"
    fill(queue)
    paths: Sequence[Path] = [queue / where]
    if where == "entries":
        paths = list((queue / "new").iterdir())
    elif where == "everywhere":
        paths = []
    with injector.running(
        "drain", inject=fault, paths=paths, queue=str(queue), events=len(TOLD)
    ) as child:
        child.wait_for(lambda calls: sum(c.is_injected for c in calls) >= 10)
        child.heal()
        fate = child.end()
    check_drainer(fate, queue)


# Real ones


class Drainer:
    """A processor in this process, and its ledger."""

    def __init__(self, queue: Path, caplog: pytest.LogCaptureFixture) -> None:
        self._ledger: list[list[str]] = []
        self._caplog = caplog
        self._mailer = Hearing(
            lambda *words: self._ledger.append(list(words)), len(TOLD)
        )
        self._processor = QueueProcessor(
            str(queue), self._mailer, workers=1, pollingInterval=50
        )
        self.start = self._processor.start

    def wait_for_trouble(self) -> None:
        until = time.monotonic() + 30
        while not re.search("pauses|left in the queue", self._caplog.text):
            assert time.monotonic() < until, self._caplog.text
            time.sleep(0.01)
        time.sleep(0.3)  # while it looks again and again

    def end(self) -> Fate:
        done = self._mailer.all_told.wait(30)
        self._processor.stop()
        self._ledger.append(["done" if done else "hangs"])
        for record in self._caplog.records:
            self._ledger.append(["logged", record.levelname, record.getMessage()])
        return Fate(self._ledger, [])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_full_disk_delays_what_has_to_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with full_disk(tmp_path) as disk:
        if not os.path.ismount(disk):
            pytest.skip("needs the permission to mount a small file system")
        queue = disk / "queue"
        fill(queue)
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x"):
                pass
        drainer = Drainer(queue, caplog)
        drainer.start()
        drainer.wait_for_trouble()
        ballast.unlink()
        check_drainer(drainer.end(), queue)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("folder", ["tmp", "new", "cur", "."])
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_without_permission_delays_what_is_done_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str, mode: int
) -> None:
    queue = tmp_path / "queue"
    fill(queue)
    drainer = Drainer(queue, caplog)

    def refuse() -> None:
        (queue / ".wakeup").touch()  # no pipe, so nothing that is made again
        (queue / folder).chmod(mode)
        drainer.start()
        drainer.wait_for_trouble()
        (queue / folder).chmod(0o700)

    if (folder, mode) == (".", 0o000):
        (queue / folder).chmod(mode)
        with pytest.raises(QueueError, match="Permission denied"):
            without_privileges(drainer.start)
        (queue / folder).chmod(0o700)
        return
    without_privileges(refuse)
    # What is new is sent, though it cannot be looked for what is deferred.
    successes = len(ENTRIES) if (folder, mode) == ("cur", 0o000) else 0
    check_drainer(drainer.end(), queue, successes)


def test_without_descriptors_everything_waits(tmp_path: Path) -> None:
    queue, held = tmp_path / "queue", tmp_path / "held"
    fill(queue)
    (queue / "new").rename(held)
    (queue / "new").mkdir(0o700)
    told = children.call(drain_without_descriptors, str(queue), str(held), len(TOLD))
    check_drainer(Fate(json.loads(told), []), queue)


def test_a_start_without_descriptors_names_the_queue(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    Store(str(queue))
    told = children.call(start_without_descriptors, str(queue))
    *refused, last = json.loads(told)
    assert not last
    assert refused == [
        f"{queue}: cannot {doing}: Too many open files"
        for doing in ("open the Maildir", "open a pipe")
    ]
