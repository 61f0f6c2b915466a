"""The queue as a machine: whatever happens in whatever order, it is as a model is.

The model is a few dictionaries in memory. How many runs: ``POSTCOMMIT_EXAMPLES``, 12
by default.
"""
from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import invariant
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from postcommit._drain.schedule import Schedule
from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._maildir.consumer import Scan
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.item import EntryState
from postcommit._maildir.looking import items
from postcommit._maildir.maildir import unique_name
from postcommit._maildir.mending import MaildirChanges
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Staging
from postcommit._maildir.store import Store
from postcommit.errors import EntryError
from tests.support.draining import Bench
from tests.support.mailers import ScriptedMailer
from tests.support.transactions import mail


SENDER = "shop@example.org"
GOOD, LATER, NEVER = "good@example.org", "later@example.org", "never@example.org"

RECIPIENTS = st.lists(
    st.sampled_from([GOOD, LATER, NEVER, "else@example.org"]), min_size=1, unique=True
).map(tuple)

MAX_AGE = 5 * 86400.0
SCHEDULE = Schedule(60.0, 4000.0, MAX_AGE)

# Which of several there are: a number, however many there are.
WHICH = st.integers(min_value=0, max_value=1000)


@dataclass(frozen=True)
class Kept:
    """An entry of the model; `holder` is the worker that has claimed it."""

    message: bytes
    recipients: tuple[str, ...]
    state: EntryState = EntryState.WAITING
    due: float = 0.0
    attempts: int = 0
    holder: int | None = None


@dataclass
class Work:
    """What a worker has claimed."""

    name: str
    claim: Claim
    entry: Entry


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="postcommit-")) / "queue"
        self.store = Store(str(self.path))
        self.changes = MaildirChanges(self.store)
        self.now = time.time()
        self.count = 0
        # The model
        self.entries: dict[str, Kept] = {}
        self.dead: dict[str, Kept] = {}
        self.in_doubt: dict[str, Kept] = {}
        self.sending: set[str] = set()
        self.owed: set[tuple[str, str]] = set()
        # What lives
        self.transactions: list[tuple[Staging, list[Any], dict[str, Kept]]] = []
        self.work: dict[int, Work] = {}

    def teardown(self) -> None:
        for batch, staged, _ in self.transactions:
            batch.discard(staged)
        for work in self.work.values():
            work.claim.release()
        shutil.rmtree(self.path.parent)

    # Accept

    def new_message(self) -> bytes:
        self.count += 1
        return mail(f"{self.count}@x.org")

    def owe(self, kept: Kept) -> None:
        self.owed |= _pairs(kept)

    @rule(all_of_them=st.lists(RECIPIENTS, min_size=1, max_size=3))
    def vote(self, all_of_them: list[tuple[str, ...]]) -> None:
        """A transaction gets as far as its vote, and lives."""
        batch = self.store.batch()
        assert isinstance(batch, Staging)
        made = [Kept(self.new_message(), r) for r in all_of_them]
        staged: list[Any] = [
            self.store.stage(SENDER, kept.recipients, [kept.message]) for kept in made
        ]
        batch.prepare(staged)
        named = {item.name: kept for item, kept in zip(staged, made, strict=True)}
        self.transactions.append((batch, staged, named))

    @precondition(lambda self: self.transactions)
    @rule(which=WHICH, end=st.sampled_from(["finish", "finish", "abort", "die"]))
    def end_of_a_transaction(self, which: int, end: str) -> None:
        batch, staged, named = self.transactions.pop(which % len(self.transactions))
        if end == "finish":
            batch.publish(staged)
            self.entries |= named
            for kept in named.values():
                self.owe(kept)
        elif end == "abort":
            batch.discard(staged)
        else:
            batch._release()  # as the kernel does when the process dies
            self.in_doubt |= {
                name: replace(kept, state=EntryState.IN_DOUBT)
                for name, kept in named.items()
            }

    @rule(recipients=RECIPIENTS)
    def die_before_the_vote(self, recipients: tuple[str, ...]) -> None:
        """What is left is never sent, and removed 36 hours later."""
        staged: Any = self.store.stage(SENDER, recipients, [self.new_message()])
        long_ago = time.time() - 37 * 3600
        os.utime(staged.path, (long_ago, long_ago))

    @rule()
    def clean_up(self) -> None:
        self.store.remove_leftovers()
        prepared = [staged for _, staged, _ in self.transactions]
        left = len(self.in_doubt) + sum(map(len, prepared))
        assert len(list((self.path / "tmp").iterdir())) == left

    @precondition(lambda self: self.in_doubt)
    @rule(which=WHICH, send=st.booleans())
    def recover(self, which: int, send: bool) -> None:
        doubts = list(items(self.store, [EntryState.IN_DOUBT]))
        chosen = doubts[which % len(doubts)]
        assert list(self.changes.recover([chosen], send=send)) == [chosen]
        kept = replace(self.in_doubt.pop(chosen.name), state=EntryState.WAITING)
        if send:
            self.entries[chosen.name] = kept
            self.owe(kept)

    @rule(recipients=RECIPIENTS, library=st.sampled_from(["zope", "repoze"]))
    def accept_by_an_older_library(
        self, recipients: tuple[str, ...], library: str
    ) -> None:
        kept = Kept(self.new_message(), recipients)
        everybody = ", ".join(recipients)
        if library == "zope":
            head = f"X-Zope-From: {SENDER}\nX-Zope-To: {everybody}\n"
        else:
            head = f"X-Actually-From: {SENDER}\r\nX-Actually-To: {everybody}\r\n"
        name = f"{int(time.time())}.{os.getpid()}.{unique_name().split('.')[1]}"
        (self.path / "new" / name).write_bytes(head.encode() + kept.message)
        self.entries[name] = kept
        self.owe(kept)

    # Work, step by step

    def due(self) -> dict[str, Kept]:
        """Return what is due, also what was deferred before the clock was put back."""
        return {
            name: kept
            for name, kept in self.entries.items()
            if not self.now < kept.due <= self.now + 8000
        }

    def free(self) -> dict[str, Kept]:
        """Return what is due and claimed by nobody."""
        return {
            name: kept
            for name, kept in self.due().items()
            if kept.holder is None and name not in self.sending
        }

    def scanned(self) -> list[str]:
        scan = Scan(self.store.maildir, SCHEDULE, lambda: self.now)
        return list(iter(scan.next, None))

    @rule(worker=st.sampled_from([1, 2]), which=WHICH)
    def claim(self, worker: int, which: int) -> None:
        """Claim one of those that are due; all others who want it get nothing."""
        names = {Path(path).name.removesuffix(":2,"): path for path in self.scanned()}
        assert names.keys() == self.due().keys()
        free = self.free()
        for name in names.keys() - free.keys():
            assert self.store.claim(names[name]) is None
        if free and worker not in self.work:
            name = sorted(free)[which % len(free)]
            claim = self.store.claim(names[name])
            assert claim is not None
            self.work[worker] = Work(name, claim, claim.read())
            self.entries[name] = replace(free[name], holder=worker)

    def settled(self, worker: int) -> Work:
        work = self.work.pop(worker)
        work.claim.release()
        self.entries[work.name] = replace(self.entries[work.name], holder=None)
        return work

    @precondition(lambda self: self.work)
    @rule(which=WHICH)
    def die_with_a_claim(self, which: int) -> None:
        self.settled(self.worker(which))

    def worker(self, which: int) -> int:
        return sorted(self.work)[which % len(self.work)]

    @precondition(lambda self: self.work)
    @rule(which=WHICH)
    def finish(self, which: int) -> None:
        worker = self.worker(which)
        self.store.finish(self.work[worker].claim)
        name = self.settled(worker).name
        self.owed -= _pairs(self.entries.pop(name))

    @precondition(lambda self: self.work)
    @rule(which=WHICH, left=WHICH, seconds=st.floats(-1, 5000))
    def defer(self, which: int, left: int, seconds: float) -> None:
        """Some are sent, the others are left for later."""
        worker = self.worker(which)
        work = self.work[worker]
        kept = self.entries[work.name]
        number = left % len(kept.recipients) + 1
        sent, stay = kept.recipients[number:], kept.recipients[:number]
        due = float(int(self.now + seconds))
        again = _tried(work.entry, stay)
        self.store.defer(work.claim, again, due)
        self.owed -= _pairs(replace(kept, recipients=sent))
        self.entries[work.name] = replace(
            kept,
            recipients=stay,
            state=EntryState.DEFERRED,
            due=due,
            attempts=again.attempts,
        )
        self.settled(worker)

    @precondition(lambda self: self.work)
    @rule(which=WHICH, seconds=st.floats(0, 5000))
    def postpone(self, which: int, seconds: float) -> None:
        worker = self.worker(which)
        due = float(int(self.now + seconds))
        self.store.postpone(self.work[worker].claim, due)
        work = self.settled(worker)
        kept = self.entries[work.name]
        self.entries[work.name] = replace(kept, state=EntryState.DEFERRED, due=due)

    @precondition(lambda self: self.work)
    @rule(which=WHICH, dead=WHICH, dies=st.booleans())
    def bury(self, which: int, dead: int, dies: bool) -> None:
        """Some are rejected, the others sent; or we die before the entry goes."""
        worker = self.worker(which)
        work = self.work[worker]
        kept = self.entries[work.name]
        number = dead % len(kept.recipients) + 1
        letter = _tried(work.entry, kept.recipients[:number])
        self.store.bury(work.claim, letter)
        name = self.name_of_letter(f"{work.name}.R{letter.attempts}", letter.recipients)
        self.dead[name] = replace(
            kept,
            recipients=letter.recipients,
            state=EntryState.FAILED,
            attempts=letter.attempts,
            holder=None,
        )
        if not dies:
            self.store.finish(work.claim)
            del self.entries[work.name]
            self.owed -= _pairs(replace(kept, recipients=kept.recipients[number:]))
            self.work.pop(worker).claim.release(removed=True)
        else:
            self.settled(worker)

    def name_of_letter(self, name: str, recipients: tuple[str, ...]) -> str:
        """Return `name`, or another one if it is that of a letter to others.

        There is one if the processor died when some were rejected, and the others were
        rejected in the next attempt, which has the same number.
        """
        if name not in self.dead or self.dead[name].recipients == recipients:
            return name
        digest = "[0-9a-f]" * 16
        letters = (self.path / ".Failed" / "new").glob(f"{name}.{digest}")
        names = {letter.name for letter in letters}
        known = names & {*self.dead}
        alike = {each for each in known if self.dead[each].recipients == recipients}
        [found] = alike or names - known
        return found

    # Work, all at once

    @rule(broken=st.booleans())
    def drain(self, broken: bool) -> None:
        """A processor tries all that is due, perhaps without a relay."""
        mailer = ScriptedMailer()
        mailer.failure = "away" if broken else None
        bench = Bench(self.store, mailer, SCHEDULE, lambda: self.now)
        bench.work()
        bench.close()
        if broken:
            return
        free = self.free()
        tried = sorted(message_id_of(taken.message) for taken in mailer.attempts)
        assert tried == sorted(message_id_of(kept.message) for kept in free.values())
        for name, kept in free.items():
            self.drained(name, kept)

    def drained(self, name: str, kept: Kept) -> None:
        stay = tuple(r for r in kept.recipients if r == LATER)
        rejected = tuple(r for r in kept.recipients if r == NEVER)
        attempts = kept.attempts + 1
        del self.entries[name]
        accepted = accepted_at(name)
        assert accepted is not None
        if stay and kept.attempts and self.now - accepted >= MAX_AGE:
            rejected = tuple(r for r in kept.recipients if r in (LATER, NEVER))
            stay = ()
        if rejected:
            letter = f"{name}.R{attempts}" if stay else name
            self.dead[self.name_of_letter(letter, rejected)] = replace(
                kept, recipients=rejected, state=EntryState.FAILED, attempts=attempts
            )
        if stay:
            path = self.path / "cur" / f"{name}:2,"
            due = path.stat().st_mtime
            assert self.now + 0.89 * 60 <= due <= self.now + 1.11 * 4000
            self.entries[name] = replace(
                kept,
                recipients=stay,
                state=EntryState.DEFERRED,
                due=due,
                attempts=attempts,
            )
        gone = {r for r in kept.recipients if r not in (*stay, *rejected)}
        self.owed -= {(message_id_of(kept.message), recipient) for recipient in gone}

    # Others

    @rule(seconds=st.sampled_from([1.0, 60.0, 4000.0, 86400.0, MAX_AGE]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([1.0, 4000.0, 86400.0, 2 * MAX_AGE]))
    def the_clock_is_put_back(self, seconds: float) -> None:
        self.now -= seconds

    @precondition(lambda self: _waiting(self))
    @rule(which=WHICH, young=st.booleans())
    def claim_by_an_older_library(self, which: int, young: bool) -> None:
        """It is respected for three hours."""
        waiting = _waiting(self)
        name = waiting[which % len(waiting)]
        path = self.path / "new" / name
        sending = path.parent / f".sending-{name}"
        sending.unlink(missing_ok=True)  # of one that died long ago
        os.link(path, sending)
        age = 0 if young else 3 * 3600 + 1
        os.utime(path, (time.time() - age, time.time() - age))
        if young:
            self.sending.add(name)

    @precondition(lambda self: self.sending)
    @rule(which=WHICH, sent=st.booleans())
    def end_of_an_older_library(self, which: int, sent: bool) -> None:
        name = sorted(self.sending)[which % len(self.sending)]
        self.sending.remove(name)
        (self.path / "new" / f".sending-{name}").unlink()
        if sent:
            (self.path / "new" / name).unlink()
            self.owed -= _pairs(self.entries.pop(name))

    @precondition(lambda self: self.dead)
    @rule(which=WHICH, retry=st.booleans())
    def look_after_a_dead_letter(self, which: int, retry: bool) -> None:
        letters = list(items(self.store, [EntryState.FAILED]))
        chosen = letters[which % len(letters)]
        if retry and chosen.name in self.entries:
            # It was buried again, after a kill in the middle of that.
            with pytest.raises(EntryError, match="is in the queue already"):
                self.changes.retry(chosen)
            return
        kept = self.dead.pop(chosen.name)
        if retry:
            assert self.changes.retry(chosen)
            self.entries[chosen.name] = replace(kept, state=EntryState.WAITING, due=0.0)
        else:
            assert self.changes.delete(chosen)
            rest = (*self.entries.values(), *self.dead.values())
            self.owed -= _pairs(kept) - {p for other in rest for p in _pairs(other)}

    # What holds at every moment

    @invariant()
    def the_disk_is_as_the_model(self) -> None:
        found: dict[EntryState, dict[str, Kept]] = {state: {} for state in EntryState}
        for item in items(self.store, EntryState):
            data = Path(item.place).read_bytes()
            entry = parse_entry(data)
            is_deferred = item.state is EntryState.DEFERRED
            due = os.stat(item.place).st_mtime if is_deferred else 0.0
            found[item.state][item.name] = Kept(
                entry.message, entry.recipients, item.state, due, entry.attempts
            )
        for model, states in [
            (self.entries, (EntryState.WAITING, EntryState.DEFERRED)),
            (self.dead, (EntryState.FAILED,)),
            (self.in_doubt, (EntryState.IN_DOUBT,)),
        ]:
            there = {n: k for state in states for n, k in found[state].items()}
            assert there == {name: _bare(kept) for name, kept in model.items()}
        kept = (*self.entries.values(), *self.dead.values())
        assert self.owed <= {pair for one in kept for pair in _pairs(one)}, "lost"


def _bare(kept: Kept) -> Kept:
    due = kept.due if kept.state is EntryState.DEFERRED else 0.0
    return replace(kept, holder=None, due=due)


def _pairs(kept: Kept) -> set[tuple[str, str]]:
    return {(message_id_of(kept.message), recipient) for recipient in kept.recipients}


def _tried(entry: Entry, recipients: tuple[str, ...]) -> Entry:
    return replace(
        entry,
        recipients=recipients,
        attempts=entry.attempts + 1,
        last_reply="450 4.2.0 Later",
    )


def _waiting(machine: QueueMachine) -> list[str]:
    """Return what an older library would take."""
    return sorted(
        name
        for name, kept in machine.entries.items()
        if kept.state is EntryState.WAITING
        and kept.holder is None
        and name not in machine.sending
    )


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=int(os.environ.get("POSTCOMMIT_EXAMPLES", "12")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
