"""Senders and processors are killed at any moment; nothing committed is lost.

There are 10 kills of each kind by default, ``POSTCOMMIT_CONTRACT_KILLS`` of them. A
queue may have more, in several parts, which run in different processes.
"""
from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable

import pytest

from postcommit._drain.contract import Settlement
from postcommit._mail.message import message_id_of
from tests.contract.places import Place
from tests.contract.places import Seen
from tests.contract.steps import ANN
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import ids
from tests.contract.steps import stage
from tests.contract.steps import take_all
from tests.contract.steps import tried
from tests.support.service import eventually


Say = Callable[[str], None]


# Number of entries that are accepted before each kill of a processor.
_ENTRIES = 60


@pytest.fixture
def kills() -> int:
    """The number of kills in one test."""
    return int(os.environ.get("POSTCOMMIT_CONTRACT_KILLS", "10"))


@pytest.fixture
def part() -> int:
    """The number of this part, from which its kills get their moments."""
    return 0


def killed(work: Callable[[Say], None], seconds: float) -> list[str]:
    """Run `work` in a process for so long, and kill it. Return what it has said."""
    warnings.simplefilter("ignore", DeprecationWarning)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            work(lambda line: os.write(writer, f"{line}\n".encode()) and None)
        finally:
            os._exit(1)  # it is killed before
    os.close(writer)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with open(reader, encoding="ascii") as lines:
        return [line.rstrip("\n") for line in lines if line.endswith("\n")]


def names_of(entries: list[Seen]) -> set[str]:
    return {seen.message_id for seen in entries}


@pytest.mark.parametrize("alone", [False, True])
def test_a_sender_that_is_killed_loses_nothing_and_sends_nothing_undecided(
    place: Place, kills: int, part: int, alone: bool
) -> None:
    chance = random.Random(part)
    accepted: set[str] = set()
    decided: set[str] = set()
    aborted: set[str] = set()

    def send(say: Say) -> None:
        queue = place.make()
        for number in range(10**6):
            count = 1 if alone else number % 3 + 1
            staged = [stage(queue) for _ in range(count)]
            items = [item for _, item in staged]
            batch = queue.batch()
            batch.prepare(items, alone=alone)
            names = " ".join(name for name, _ in staged)
            if number % 5 == 4:
                say(f"aborted {names}")
                batch.discard(items)
                continue
            say(f"decided {names}")
            batch.publish(items)
            say(f"accepted {names}")

    for _ in range(kills):
        for line in killed(send, chance.uniform(0.02, 0.2)):
            what, *names = line.split()
            found = {"accepted": accepted, "decided": decided, "aborted": aborted}
            found[what] |= set(names)
    if not alone:  # otherwise what was not accepted in one step was aborted by the kill

        def is_accepted_or_in_doubt() -> bool:
            look = place.look()
            return decided <= names_of(look.queued + look.in_doubt)

        eventually(is_accepted_or_in_doubt)  # a server may not know yet of the death
    queued = names_of(place.look().queued)
    assert accepted
    assert accepted <= queued, "lost"
    assert not aborted & queued
    assert queued <= decided


def test_a_sender_that_is_killed_calls_off_all_it_said_and_nothing_else(
    place: Place, kills: int, part: int
) -> None:
    chance = random.Random(part)
    accepted: set[str] = set()
    decided: set[str] = set()
    done: set[str] = set()

    def call_off(say: Say) -> None:
        queue = place.make()
        for number in range(10**6):
            name = accept(queue, ANN)
            say(f"accepted {name}")
            item = queue.cancel(name)
            assert item is not None
            batch = queue.batch()
            batch.prepare([item])
            if number % 3 == 2:
                batch.discard([item])
                continue
            say(f"decided {name}")
            batch.publish([item])
            say(f"done {name}")

    for _ in range(kills):
        for line in killed(call_off, chance.uniform(0.02, 0.2)):
            what, name = line.split()
            {"accepted": accepted, "decided": decided, "done": done}[what].add(name)
    consumer = consume(place.make())
    left: list[str] = []

    def is_taken() -> bool:
        left.extend(ids(take_all(consumer)))
        return names_of(place.look().queued) == set(left)

    eventually(is_taken)  # a server may not know yet that the process is dead
    consumer.close()
    assert done
    assert not done & set(left), "sent, though called off"
    assert accepted - decided <= set(left), "lost"
    assert sorted(left) == sorted(seen.message_id for seen in place.look().queued)


def test_a_processor_that_is_killed_loses_nothing(
    place: Place, kills: int, part: int
) -> None:
    chance = random.Random(part)
    queue = place.make()
    sent: Counter[str] = Counter()

    def work(say: Say) -> None:
        consumer = consume(place.make())
        while True:
            for claim in consumer.take(4):
                entry = claim.read()
                name = message_id_of(entry.message)
                if entry.attempts:
                    say(f"sent {name}")
                    consumer.settle(claim, Settlement())
                else:
                    left, due = tried(entry, *entry.recipients), consumer.now()
                    consumer.settle(claim, Settlement(left=left, due=due))

    names = set()
    for _ in range(kills):
        for _ in range(_ENTRIES):
            name, item = stage(queue, ANN)
            batch = queue.batch()
            batch.prepare([item], alone=True)
            batch.publish([item])
            names.add(name)
        lines = killed(work, chance.uniform(0.05, 0.3))
        sent.update(line.split()[1] for line in lines)
    place.let_leases_end()
    consumer = consume(queue)
    consumer.sweep()
    left = ids(take_all(consumer))
    consumer.close()
    assert len(left) == len(set(left)) == len(place.look().queued)
    assert set(sent) | set(left) == names, "lost"
    # Each kill may come between the sending and the removal of one entry.
    twice = [name for name, count in sent.items() if count + (name in left) > 1]
    assert len(twice) <= kills
    assert place.look().failed == []
