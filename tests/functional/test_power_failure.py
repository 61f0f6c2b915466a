"""The power fails at any moment: nothing is lost, torn, or sent too early.

The calls of a child are recorded; `tests.support.power` tells what the disk may
have when the power fails in between. Each such state becomes a real folder, and a
fresh processor drains it. How many states at each moment:
``POSTCOMMIT_DISK_STATES``, 12 by default; of more, a sample. From 100 on the larger
cases are larger still. The log tells what was found (``--log-cli-level=info``).
"""
from __future__ import annotations

import logging
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import disk
from tests.support.disk import Disk
from tests.support.disk import State
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import Taken
from tests.support.outage import DRAINED
from tests.support.outage import LATER
from tests.support.outage import MOST
from tests.support.outage import NEVER
from tests.support.outage import SENDERS
from tests.support.outage import everything
from tests.support.power import states
from tests.support.strace import needs_strace
from tests.support.syscalls import Call
from tests.support.syscalls import record
from tests.support.transactions import mail

from postcommit import QueueProcessor
from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._maildir import item
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Store


log = logging.getLogger(__name__)

pytestmark = needs_strace

UNIQUE = re.compile(r"\d+\.M\d+P\d+Q\d+R\w+\.[^ :]+")
STEPS = ("write", "fsync", "rename", "renameat2", "unlink")

GARBAGE = b"Neither an envelope nor a message.\n"

# What happened


def fill(
    queue: Path, entries: Sequence[tuple[str, ...]], *, again: bool = False
) -> None:
    """Accept entries with these recipients; `again`: they were deferred before."""
    store = Store(str(queue))
    for number, recipients in enumerate(entries):
        message = mail(f"{number}@x.org")
        store.stage("shop@example.org", recipients, [message]).commit()
        if again:
            [path] = store.maildir.paths("new")
            claim = store.claim(path)
            assert claim is not None
            entry = Entry("shop@example.org", recipients, message, 0, "450 4.2.0 x")
            store.defer(claim, entry, time.time() - 1)
            claim.release()


@dataclass(frozen=True)
class Story:
    """What one queue went through; `words` are told at a place in the order."""

    name: str
    before: State
    calls: Sequence[Call]
    root: Path

    def disk(self) -> Disk:
        return Disk(self.root, self.before, self.calls)

    def told(self, disk: Disk, moment: int) -> list[list[str]]:
        lines = [line.split("|") for at, line in disk.marks if at <= moment]
        return [words for name, *words, _ in lines if name == self.name]

    def steps(self) -> list[str]:
        """Return what was done below the queue, and what was told, in order."""
        queue = self.root / "queue"
        [entry] = [Path(name).name for name in self.before if "/new/" in name] or [
            Path(name).name for name in self.before if "/cur/" in name
        ]
        opened: dict[int, str] = {}
        steps: list[str] = []
        for call in self.calls:
            if call.name == "openat":
                opened[call.result] = call.path
            if call.name == "write" and call.descriptor == 1:
                name, word, *_ = call.strings[0].decode().split("|")
                if name == self.name and word != "drained" and word not in steps:
                    steps.append(word)
            elif call.name in STEPS:
                paths = [path.decode() for path in call.strings]
                if call.name in ("write", "fsync"):
                    paths = [opened.get(call.descriptor, "")]
                if all(Path(path).is_relative_to(queue) for path in paths):
                    below = [os.path.relpath(path, queue) for path in paths]
                    name = call.name.replace("renameat2", "rename")
                    steps.append(" ".join([name, *below]))
        entry = entry.partition(":")[0]
        steps = [step for step in steps if ".probe" not in step]
        return [UNIQUE.sub("FILE", step.replace(entry, "ENTRY")) for step in steps]

    def without(self, pattern: str) -> Story:
        """Return what it would be, had a sync not been made."""
        paths: dict[int, str] = {}
        calls = []
        for call in self.calls:
            if call.name == "openat":
                nameless = "/#" if "O_TMPFILE" in call.arguments else ""
                paths[call.result] = call.path + nameless
            synced = call.name == "fsync" and paths.get(call.descriptor, "")
            if not synced or not re.fullmatch(f"{self.root}/{pattern}", synced):
                calls.append(call)
        assert len(calls) < len(self.calls), "it is not synced"
        return replace(self, calls=calls)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Story]:
    base = tmp_path_factory.mktemp("recorded")
    for name in (*SENDERS, *DRAINED):
        root = base / name
        root.mkdir()
        if name in DRAINED:
            fill(root / "queue", DRAINED[name], again=name == "defer again")
            if name == "unreadable":
                (root / "queue" / "new" / "1790000000.garbage").write_bytes(GARBAGE)
        elif name != "first":
            Store(str(root / "queue"))
    before = {name: disk.read(base / name) for name in (*SENDERS, *DRAINED)}
    calls = record(everything, str(base), scratch=base)
    return {n: Story(n, before[n], calls, base / n) for n in before}


# The order of calls


DEFERRED = ["fsync cur", "fsync new", "settled"]
BURIED = [
    "write .Failed/tmp/FILE",
    "fsync .Failed/tmp/FILE",
    "rename .Failed/tmp/FILE .Failed/new/ENTRY",
    "fsync .Failed/new",
]


def test_a_deferral_syncs_each_step_before_the_next(stories: dict[str, Story]) -> None:
    assert stories["defer"].steps() == [
        "sent",
        "write tmp/FILE",
        "fsync tmp/FILE",
        "rename new/ENTRY cur/ENTRY:2,",
        "rename tmp/FILE cur/ENTRY:2,",
        *DEFERRED,
    ]


def test_a_second_deferral_replaces_the_entry_by_one_rename(
    stories: dict[str, Story],
) -> None:
    assert stories["defer again"].steps() == [
        "sent",
        "write tmp/FILE",
        "fsync tmp/FILE",
        "rename tmp/FILE cur/ENTRY:2,",
        *DEFERRED,
    ]


def test_a_burial_is_on_the_disk_before_the_entry_is_removed(
    stories: dict[str, Story],
) -> None:
    made = stories["bury"].steps()
    assert "fsync ." in made, "the folder of the dead letters is new"
    assert made[made.index(BURIED[0]) :] == [*BURIED, "unlink new/ENTRY", "settled"]


def test_a_burial_is_on_the_disk_before_the_rest_is_deferred(
    stories: dict[str, Story],
) -> None:
    made = stories["all"].steps()
    at = made.index(BURIED[0])
    buried = [step.replace("new/ENTRY", "new/ENTRY.R1") for step in BURIED]
    assert made[at : at + 5] == [*buried, "write tmp/FILE"]
    assert made[-3:] == DEFERRED


# What the power failure leaves


@dataclass
class Left:
    """What a state turned out to be: pairs of message id and recipient."""

    sent: Counter[tuple[str, str]]
    dead: set[tuple[str, str]]
    in_doubt: Counter[str]
    set_aside: list[bytes]


def recover(root: Path) -> Left:
    """Drain what is there a day later; tell what is in doubt, and send that too."""
    queue = root / "queue"
    if not queue.exists():
        return Left(Counter(), set(), Counter(), [])
    admin = MaildirOperators(str(queue))
    doubts = list(admin.items([item.EntryState.IN_DOUBT]))
    in_doubt = Counter(
        check(parse_entry(Path(doubt.place).read_bytes())) for doubt in doubts
    )
    sent = drain(queue)
    again = list(admin.items([item.EntryState.IN_DOUBT]))
    assert again == doubts, "what is in doubt is not left alone"
    dead = set()
    set_aside = []
    for path in sorted((queue / ".Failed" / "new").glob("*")):
        data = path.read_bytes()
        if data.endswith(GARBAGE):
            set_aside.append(data)
        else:
            entry = parse_entry(data)
            dead |= {(check(entry), recipient) for recipient in entry.recipients}
    if doubts:
        with admin.changes() as changes:
            assert {*changes.recover(doubts, send=True)} == {*doubts}
        assert {message_id for message_id, _ in drain(queue)} == set(in_doubt)
    return Left(sent, dead, in_doubt, set_aside)


def drain(queue: Path) -> Counter[tuple[str, str]]:
    mailer = ScriptedMailer()
    mailer.outcomes.clear()
    later = time.time() + 86400
    QueueProcessor(str(queue), mailer, workers=1, clock=lambda: later).flush()
    assert not list(Store(str(queue)).maildir)
    pairs: Counter[tuple[str, str]] = Counter()
    for taken in mailer.attempts:
        message_id = check(taken)
        pairs.update((message_id, recipient) for recipient in taken.recipients)
    return pairs


def check(found: Entry | Taken) -> str:
    message_id = message_id_of(found.message)
    assert found.message == mail(message_id), "a message is torn"
    return message_id


def outages(
    story: Story, scratch: Path, atomic: bool
) -> Iterator[tuple[list[list[str]], Left]]:
    """Yield what was told before each power failure, and what is left by it."""
    recorded = story.disk()
    dice = random.Random(MOST)
    seen = set()
    root = scratch / "state"
    for moment in recorded.moments:
        told = story.told(recorded, moment)
        for state in states(recorded, moment, atomic=atomic, most=MOST, dice=dice):
            key = repr((told, state))
            if key in seen:
                continue
            seen.add(key)
            disk.write(state, root)
            yield told, recover(root)


# What must hold


def check_sender(story: Story, scratch: Path, atomic: bool) -> Counter[str]:
    count = SENDERS[story.name][1]
    wanted = {f"{number}@x.org" for number in range(count)}
    seen: Counter[str] = Counter()
    for told, left in outages(story, scratch, atomic):
        sent = {message_id for message_id, _ in left.sent}
        assert set(left.sent.values()) <= {1}, "a mail is sent twice"
        if ["committed"] in told:
            assert sent == wanted, "a mail is lost"
            assert not (atomic and left.in_doubt), "a mail that was sent is in doubt"
        elif ["voted"] in told:
            assert sent | set(left.in_doubt) == wanted, "a mail is lost"
            assert not (atomic and sent & set(left.in_doubt))
        elif story.name == "alone":
            # Its own rename decides, while the commit runs.
            assert not sent or ["committing"] in told, "a mail is sent too early"
            assert not left.in_doubt, "there is nobody to doubt"
        elif story.name == "two alone":
            assert not sent or ["committing"] in told, "a mail is sent too early"
            assert not sent or sent | set(left.in_doubt) == wanted, "a mail is lost"
        else:
            assert not sent, "a mail is sent too early"
        seen["in doubt"] += bool(left.in_doubt)
        seen["sent"] += bool(sent)
        seen["in both"] += bool(sent & set(left.in_doubt))
        seen["states"] += 1
    return seen


def check_drainer(story: Story, scratch: Path, atomic: bool) -> Counter[str]:
    wanted = {
        (f"{number}@x.org", recipient): LATER in recipients
        for number, recipients in enumerate(DRAINED[story.name])
        for recipient in recipients
    }
    seen: Counter[str] = Counter()
    for told, left in outages(story, scratch, atomic):
        sent = {(words[1], words[2]) for words in told if words[0] == "sent"}
        settled = {words[1] for words in told if words[0] == "settled"}
        everywhere = sent | set(left.sent) | left.dead
        assert everywhere == set(wanted), "a mail is lost"
        assert {recipient for _, recipient in left.dead} <= {NEVER}
        assert not left.in_doubt
        again = (sent | left.dead) & set(left.sent)
        # Of the two renames of a deferral, the second may be on the disk alone.
        twice = {pair for pair, count in left.sent.items() if count > 1}
        # A removal is not synced, a deferral is.
        deferred = {pair for pair, stays in wanted.items() if stays}
        assert twice <= deferred, "sent twice"
        settled_twice = {p for p in again & deferred | twice if p[0] in settled}
        assert not settled_twice, "sent twice"
        assert max(left.sent.values(), default=0) <= 2
        if story.name == "unreadable":
            assert [a.endswith(GARBAGE) for a in left.set_aside] == [True]
        seen["twice"] += bool(twice)
        seen["again"] += bool(again)
        seen["dead"] += bool(left.dead)
        seen["states"] += 1
    return seen


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
@pytest.mark.parametrize("name", SENDERS)
def test_a_mail_is_sent_if_the_commit_returned_and_not_before_the_vote_ended(
    stories: dict[str, Story], tmp_path: Path, name: str, atomic: bool
) -> None:
    seen = check_sender(stories[name], tmp_path, atomic)
    log.info("%s: %s", name, dict(seen))
    assert bool(seen["in doubt"]) == (name != "alone")
    assert bool(seen["sent"]) == (name != "aborted")
    assert bool(seen["in both"]) == (
        name not in ("aborted", "alone") and not atomic
    )


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
@pytest.mark.parametrize("name", DRAINED)
def test_an_entry_that_is_worked_on_is_as_it_was_or_as_it_will_be(
    stories: dict[str, Story], tmp_path: Path, name: str, atomic: bool
) -> None:
    seen = check_drainer(stories[name], tmp_path, atomic)
    log.info("%s: %s", name, dict(seen))
    assert bool(seen["dead"]) == any(NEVER in r for r in DRAINED[name])
    assert bool(seen["again"]) == bool(DRAINED[name])


# Without any of the syncs, the model finds what is lost


@pytest.mark.parametrize("name", ["one", "alone"])
@pytest.mark.parametrize(
    "synced", [r"queue/tmp/[^/]+", r"queue/tmp", r"queue/new"]
)
def test_each_sync_of_a_commit_is_needed(
    stories: dict[str, Story], tmp_path: Path, name: str, synced: str
) -> None:
    if (name, synced) == ("alone", "queue/tmp"):
        with pytest.raises(AssertionError, match="it is not synced"):
            stories[name].without(synced)
        return
    broken = "torn|no envelope|empty|sent too early|is lost"
    with pytest.raises((AssertionError, ValueError), match=broken):
        check_sender(stories[name].without(synced), tmp_path, atomic=True)


@pytest.mark.parametrize(
    ("synced", "lost"),
    [
        (r"queue/tmp/[^/]+", "lost|torn|empty|no envelope"),
        (r"queue/cur", "sent twice"),
        (r"queue/.Failed/tmp/[^/]+", "lost|torn|empty|no envelope"),
        (r"queue/.Failed/new", "lost"),
    ],
)
def test_each_sync_of_a_deferral_and_a_burial_is_needed(
    stories: dict[str, Story], tmp_path: Path, synced: str, lost: str
) -> None:
    with pytest.raises((AssertionError, ValueError), match=lost):
        check_drainer(stories["all"].without(synced), tmp_path, atomic=True)
