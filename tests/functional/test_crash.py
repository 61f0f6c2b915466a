"""Processes that are killed, at every call and at any moment, and what remains.

The ledger that a child keeps tells what it knew; the queue and the relay tell
what is true. How many kills at random moments: ``POSTCOMMIT_KILLS``, 500 by default.
The log tells how many died, and what came twice (``--log-cli-level=info``).
"""
from __future__ import annotations

import logging
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.smtpd import ScriptedRelay
from tests.support.zygote import Fate
from tests.support.zygote import Zygote

from postcommit._maildir.staging import is_prepared
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store


log = logging.getLogger(__name__)

KILLS = int(os.environ.get("POSTCOMMIT_KILLS", "500"))

MESSAGE_ID = re.compile(rb"^Message-Id: <([^>]+)>", re.MULTILINE)

GOOD, LATER, NEVER = "good@example.org", "later@example.org", "never@example.org"


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


def in_two_threads(
    work: Callable[[Zygote, range], tuple[int, int]], count: int
) -> tuple[int, int]:
    """Have `work` done with the even numbers below `count` and with the odd ones.

    Each with a zygote of its own; return the sums of what they return.
    """
    with ThreadPoolExecutor(2) as pool, Zygote() as one, Zygote() as other:
        even = pool.submit(work, one, range(0, count, 2))
        odd = pool.submit(work, other, range(1, count, 2))
        (first, second), (third, fourth) = even.result(), odd.result()
    return first + third, second + fourth


def accepted(relay: ScriptedRelay) -> Counter[tuple[str, str]]:
    """Count the pairs of message id and recipient that the relay has taken."""
    pairs: Counter[tuple[str, str]] = Counter()
    for message in relay.messages:
        found = MESSAGE_ID.search(message.data)
        assert found is not None, "a torn message was sent"
        for recipient in message.recipients:
            pairs[found[1].decode(), recipient] += 1
    return pairs


def waiting(queue: Path) -> set[tuple[str, str]]:
    """Return the pairs of message id and recipient that the queue has."""
    pairs = set()
    for folder in ("new", "cur"):
        for path in (queue / folder).iterdir():
            claim = Claim.take(str(path))
            assert claim is not None, "a claim outlived its holder"
            entry = claim.read()
            claim.release()
            found = MESSAGE_ID.search(entry.message)
            assert found is not None, "an entry is torn"
            pairs |= {(found[1].decode(), r) for r in entry.recipients}
    return pairs


def drain(zygote: Zygote, queue: Path, relay: ScriptedRelay) -> None:
    fate = zygote.run("drain_later", queue=str(queue), port=relay.port)
    assert not fate.killed
    assert not waiting(queue)


# Killed while it sends


def check_sender(
    zygote: Zygote, fate: Fate, queue: Path, relay: ScriptedRelay
) -> int:
    """Check the ledger against the truth; return how many are in doubt."""
    told: dict[str, set[str]] = {"committing": set(), "committed": set()}
    told["aborted"] = set()
    for status, *message_ids in fate.ledger:
        told[status] |= set(message_ids)
    open_ = told["committing"] - told["committed"]
    if not queue.exists():
        assert not told["committed"]
        return 0
    store = Store(str(queue))
    in_doubt = list(store.in_doubt())
    prepared = [p for p in (queue / "tmp").iterdir() if is_prepared(str(p))]
    assert sorted(in_doubt) == sorted(map(str, prepared))
    doubted = set()
    for path in in_doubt:
        found = MESSAGE_ID.search(Path(path).read_bytes())
        assert found is not None, "a prepared file is torn"
        doubted.add(found[1].decode())
    relay.messages.clear()
    drain(zygote, queue, relay)
    sent = Counter(message_id for message_id, _ in accepted(relay).elements())
    assert told["committed"] <= sent.keys(), "a committed mail is lost"
    assert not told["aborted"] & (sent.keys() | doubted), "an aborted mail was sent"
    assert sent.keys() <= told["committed"] | open_
    assert doubted <= open_, "a mail is in doubt without reason"
    assert not doubted & sent.keys()
    assert set(sent.values()) <= {1}, "a mail was sent twice"
    return len(doubted)


def test_a_sender_killed_at_each_call_loses_nothing(
    zygote: Zygote, relay: ScriptedRelay, tmp_path: Path
) -> None:
    whole = zygote.run("send", queue=str(tmp_path / "whole"), transactions=6)
    assert not whole.killed
    assert whole.calls > 50
    in_doubt = 0
    for number in range(1, whole.calls + 1):
        queue = tmp_path / str(number)
        fate = zygote.run("send", kill_at=number, queue=str(queue), transactions=6)
        assert fate.killed
        in_doubt += check_sender(zygote, fate, queue, relay)
    assert in_doubt > 0, "no kill fell between vote and finish"


def test_a_sender_killed_at_any_moment_loses_nothing(
    tmp_path: Path,
) -> None:
    def kill(zygote: Zygote, numbers: range) -> tuple[int, int]:
        killed = in_doubt = 0
        with ScriptedRelay() as relay:
            for number in numbers:
                queue = tmp_path / str(number)
                moment = random.Random(number).uniform(0, 0.08)
                fate = zygote.run(
                    "send", kill_after=moment, queue=str(queue), transactions=60
                )
                killed += fate.killed
                in_doubt += check_sender(zygote, fate, queue, relay)
        return killed, in_doubt

    killed, in_doubt = in_two_threads(kill, KILLS // 4)
    assert killed > 0
    log.info("senders killed: %d; mails in doubt: %d", killed, in_doubt)


# Killed while it drains


def fill(queue: Path, count: int) -> set[tuple[str, str]]:
    store = Store(str(queue))
    batch = store.batch()
    items = []
    wanted = set()
    for number in range(count):
        recipients = [(GOOD, LATER), (GOOD, NEVER), (GOOD,)][number % 3]
        message_id = f"{number}@example.org"
        head = f"Message-Id: <{message_id}>\r\nSubject: x\r\n\r\n".encode()
        items.append(store.stage("shop@example.org", recipients, [head, b"Text.\r\n"]))
        wanted |= {(message_id, recipient) for recipient in recipients}
    batch.prepare(items)
    batch.publish(items)
    return wanted


def check_drainer(
    zygote: Zygote, queue: Path, relay: ScriptedRelay, wanted: set[tuple[str, str]]
) -> int:
    """Drain the rest, check all; return how many were sent twice."""
    # What the child has written is still on its way through the relay.
    relay.wait_until(lambda: not relay.open)
    before = accepted(relay)
    window = before.keys() & waiting(queue)
    drain(zygote, queue, relay)
    sent = accepted(relay)
    refused = {pair for pair in wanted if pair[1] == NEVER}
    assert sent.keys() == wanted - refused, "a mail is lost"
    twice = {pair for pair, count in sent.items() if count > 1}
    assert twice == window, "a mail was sent twice outside of the window"
    assert max(sent.values()) <= 2
    assert dead_letters(queue) == refused
    return len(twice)


def dead_letters(queue: Path) -> set[tuple[str, str]]:
    pairs = set()
    for path in (queue / ".Failed" / "new").iterdir():
        claim = Claim.take(str(path))
        assert claim is not None
        entry = claim.read()
        claim.release()
        found = MESSAGE_ID.search(entry.message)
        assert found is not None
        assert "550" in entry.last_reply
        pairs |= {(found[1].decode(), r) for r in entry.recipients}
    return pairs


@pytest.fixture
def greylisting() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        relay.reply("RCPT", "550 5.1.1 No such user", address=NEVER)
        relay.reply("RCPT", "450 4.2.0 Greylisted", address=LATER, times=1)
        yield relay


def test_a_processor_killed_at_each_call_loses_nothing(
    zygote: Zygote, tmp_path: Path
) -> None:
    twice = number = 0
    killed = True
    while killed:
        number += 1
        queue = tmp_path / str(number)
        wanted = fill(queue, 3)
        with ScriptedRelay() as relay:
            relay.reply("RCPT", "550 5.1.1 No such user", address=NEVER)
            relay.reply("RCPT", "450 4.2.0 Greylisted", address=LATER, times=1)
            killed = zygote.run(
                "drain", kill_at=number, queue=str(queue), port=relay.port, workers=1
            ).killed
            twice += check_drainer(zygote, queue, relay, wanted)
    assert number > 40
    assert twice > 0, "no kill fell into the window"


def test_a_processor_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    def kill(zygote: Zygote, numbers: range) -> tuple[int, int]:
        killed = twice = 0
        for number in numbers:
            queue = tmp_path / str(number)
            wanted = fill(queue, 30)
            with ScriptedRelay() as relay:
                relay.reply("RCPT", "550 5.1.1 No such user", address=NEVER)
                moment = random.Random(number).uniform(0, 0.05)
                killed += zygote.run(
                    "drain",
                    kill_after=moment,
                    queue=str(queue),
                    port=relay.port,
                    workers=4,
                ).killed
                twice += check_drainer(zygote, queue, relay, wanted)
        return killed, twice

    killed, twice = in_two_threads(kill, KILLS * 3 // 4)
    assert killed > 0
    log.info("processors killed: %d; sent twice in the window: %d", killed, twice)
