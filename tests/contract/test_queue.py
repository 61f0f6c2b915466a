"""Entries are accepted, taken and settled, as `IQueue` and `IConsumer` promise."""
from __future__ import annotations

import itertools
import math
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
from zope.interface.verify import verifyObject

from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IConsumer
from postcommit._drain.contract import IQueue
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._drain.contract import Terms
from postcommit.interfaces import IBatch
from tests.contract.places import Look
from tests.contract.places import Place
from tests.contract.places import Seen
from tests.contract.steps import ANN
from tests.contract.steps import BOB
from tests.contract.steps import EVE
from tests.contract.steps import Clock
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import ids
from tests.contract.steps import let_in
from tests.contract.steps import seconds_of_rest
from tests.contract.steps import stage
from tests.contract.steps import take_all
from tests.contract.steps import tried


def test_the_contracts_are_kept(place: Place) -> None:
    queue = place.make()
    accept(queue)
    consumer = consume(queue)
    [claim] = consumer.take(1)
    claim.read()
    for contract, kept in [
        (IQueue, queue),
        (IBatch, queue.batch()),
        (IConsumer, consumer),
        (IClaim, claim),
    ]:
        verifyObject(contract, kept)
    consumer.close()


# Accept


def test_entries_are_due_when_they_are_published(place: Place) -> None:
    queue = place.make()
    consumer = consume(place.make())
    staged = [stage(queue) for _ in range(3)]
    items = [item for _, item in staged]
    assert take_all(consumer) == []
    batch = queue.batch()
    batch.prepare(items)
    assert take_all(consumer) == []
    assert place.look() == Look([], [], [])
    batch.publish(items)
    assert sorted(ids(take_all(consumer))) == sorted(name for name, _ in staged)
    consumer.close()


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_discarded_entry_is_gone(place: Place, is_prepared: bool) -> None:
    queue = place.make()
    items = [stage(queue)[1] for _ in range(2)]
    batch = queue.batch()
    if is_prepared:
        batch.prepare(items)
    batch.discard(items)
    batch.discard(items)
    assert place.look() == Look([], [], [])


@pytest.mark.parametrize("how", ["died", "abandoned"])
def test_what_nobody_has_decided_is_in_doubt_and_never_taken(
    place: Place, how: str
) -> None:
    queue = place.make()
    staged = [stage(queue) for _ in range(2)]
    items = [item for _, item in staged]
    batch = queue.batch()
    batch.prepare(items)
    if how == "died":
        place.die_with_batch(batch)
    else:
        batch.abandon(items)
    place.age(100 * 3600)
    consumer = consume(place.make())
    consumer.sweep()
    assert take_all(consumer) == []
    consumer.close()
    found = place.look()
    assert found == Look([], [], found.in_doubt)
    assert {seen.message_id for seen in found.in_doubt} == {name for name, _ in staged}


def test_what_a_dead_sender_has_only_staged_is_swept_away(place: Place) -> None:
    stage(place.make())
    consumer = consume(place.make())
    consumer.sweep()
    place.age(37 * 3600)
    consumer.sweep()
    assert take_all(consumer) == []
    assert place.look() == Look([], [], [])
    consumer.close()


# Terms


def test_scheduled_entries_are_taken_when_they_are_due(place: Place) -> None:
    queue, clock = place.make(), Clock()
    consumer = consume(place.make(), clock)
    times = [3600.0, 60.0, 1800.0]
    names = [accept(queue, terms=Terms(clock.now + seconds)) for seconds in times]
    let_in(consumer)
    assert take_all(consumer) == []
    assert 0 < seconds_of_rest(consumer) <= 60
    clock.now += 59.0
    let_in(consumer)
    assert take_all(consumer) == []
    clock.now += 1742.0
    let_in(consumer)
    claims = take_all(consumer)
    assert ids(claims) == [names[1], names[2]]
    clock.now += 1800.0
    let_in(consumer)
    assert ids(take_all(consumer)) == [names[0]]
    consumer.close()


def test_a_scheduled_entry_is_as_old_as_the_time_when_it_was_due(place: Place) -> None:
    """Its back-off begins then, and it is not too old after its first attempt."""
    queue, clock = place.make(), Clock()
    due = clock.now + 10 * 86400.0
    accept(queue, terms=Terms(due))
    consumer = consume(place.make(), clock)
    clock.now = due + 1.0
    let_in(consumer)
    [claim] = take_all(consumer)
    assert claim.accepted == pytest.approx(due, abs=0.01)
    consumer.close()


def test_new_entries_come_before_bulk_entries(place: Place) -> None:
    queue = place.make()
    consumer = consume(place.make())
    bulk = [accept(queue, terms=Terms(bulk=True)) for _ in range(3)]
    new = [accept(queue) for _ in range(3)]
    claims = take_all(consumer)
    let_in(consumer)
    claims += take_all(consumer)
    assert ids(claims) == new + bulk
    consumer.close()


@pytest.mark.parametrize("terms", [None, Terms(bulk=True)])
def test_a_processor_whose_clock_is_behind_takes_what_waits_for_no_time(
    place: Place, terms: Terms | None
) -> None:
    queue, clock = place.make(), Clock()
    clock.now -= 2 * 3600
    consumer = consume(place.make(), clock)
    name = accept(queue, terms=terms)
    let_in(consumer)
    assert ids(take_all(consumer)) == [name]
    consumer.close()


@pytest.mark.parametrize("is_scheduled", [False, True])
def test_a_deferred_bulk_entry_is_an_ordinary_deferred_one(
    place: Place, is_scheduled: bool
) -> None:
    queue, clock = place.make(), Clock()
    consumer = consume(place.make(), clock)
    begin = clock.now + 60 if is_scheduled else None
    name = accept(queue, terms=Terms(begin, bulk=True))
    clock.now += 61
    let_in(consumer)
    [claim] = take_all(consumer)
    left = tried(claim.entry, *claim.entry.recipients)
    consumer.settle(claim, Settlement(left=left, due=clock.now + 60))
    other = accept(queue, terms=Terms(bulk=True))
    clock.now += 61
    claims = take_all(consumer)
    let_in(consumer)
    assert ids([*claims, *take_all(consumer)]) == [name, other]
    consumer.close()


@pytest.mark.parametrize("bulk", [False, True])
def test_a_scheduled_entry_is_as_old_as_its_time(place: Place, bulk: bool) -> None:
    """Otherwise one that waited for more than five days would never be deferred."""
    queue, clock = place.make(), Clock()
    consumer = consume(place.make(), clock)
    begin = clock.now + 30 * 86400
    accept(queue, terms=Terms(begin, bulk=bulk))
    clock.now = begin + 5
    let_in(consumer)
    [claim] = take_all(consumer)
    assert abs(claim.accepted - begin) < 1
    left = tried(claim.entry, *claim.entry.recipients)
    consumer.settle(claim, Settlement(left=left, due=clock.now + 60))
    clock.now += 61
    [claim] = take_all(consumer)
    assert abs(claim.accepted - begin) < 1
    consumer.close()


def test_a_claim_says_when_its_entry_expires(place: Place) -> None:
    queue, clock = place.make(), Clock()
    expires = float(int(clock.now)) + 900.25
    accept(queue, terms=Terms(expires=expires))
    accept(queue)
    consumer = consume(place.make(), clock)
    assert [claim.expires for claim in take_all(consumer)] == [expires, None]
    consumer.close()


def test_a_deferred_entry_keeps_the_time_when_it_expires(place: Place) -> None:
    queue, clock = place.make(), Clock()
    consumer = consume(place.make(), clock)
    expires = float(int(clock.now)) + 900
    accept(queue, terms=Terms(expires=expires))
    [claim] = take_all(consumer)
    left = tried(claim.entry, *claim.entry.recipients)
    consumer.settle(claim, Settlement(left=left, due=clock.now + 60))
    clock.now += 61
    [claim] = take_all(consumer)
    assert claim.expires == expires
    consumer.close()


@pytest.mark.parametrize("terms", [Terms(2e9), Terms(bulk=True), Terms(2e9, bulk=True)])
def test_entries_with_terms_are_prepared_and_discarded(
    place: Place, terms: Terms
) -> None:
    queue = place.make()
    for end in ("publish", "discard"):
        items = [stage(queue, terms=t)[1] for t in (terms, None)]
        batch = queue.batch()
        batch.prepare(items)
        getattr(batch, end)(items)
        assert len(place.look().queued) == 2


# Cancel


@pytest.mark.parametrize("terms", [None, Terms(2e9), Terms(bulk=True)])
def test_what_is_cancelled_is_not_taken_and_then_removed(
    place: Place, terms: Terms | None
) -> None:
    queue = place.make()
    name, other = accept(queue, terms=terms), accept(queue)
    item = queue.cancel(name)
    assert item is not None
    assert queue.cancel(name, [item]) is None, "once is enough"
    consumer = consume(place.make())
    let_in(consumer)
    assert ids(take_all(consumer)) == [other]
    batch = queue.batch()
    batch.prepare([item], alone=True)
    batch.publish([item])
    assert [seen.message_id for seen in place.look().queued] == [other]
    assert queue.cancel(name) is None
    consumer.close()


@pytest.mark.parametrize("terms", [None, Terms(bulk=True)])
def test_a_feeder_rests_while_what_is_due_may_be_called_off(
    place: Place, terms: Terms | None
) -> None:
    queue = place.make()
    name = accept(queue, terms=terms)
    consumer = consume(place.make())
    item = queue.cancel(name)
    let_in(consumer)
    assert take_all(consumer) == []
    assert seconds_of_rest(consumer) > 0
    consumer.wait(0)
    queue.batch().discard([item])
    consumer.wait(60)  # it is rung
    let_in(consumer)
    assert ids(take_all(consumer)) == [name]
    consumer.close()


def test_what_is_not_cancelled_in_the_end_is_taken(place: Place) -> None:
    queue = place.make()
    name = accept(queue)
    item = queue.cancel(name)
    batch = queue.batch()
    batch.prepare([item])
    batch.discard([item])
    batch.discard([item])
    consumer = consume(place.make())
    claims = take_all(consumer)
    assert ids(claims) == [name]
    assert queue.cancel(name) is None, "it is being sent"
    consumer.close()


# Take


def test_new_entries_come_first_then_deferred_ones(place: Place) -> None:
    queue, clock = place.make(), Clock()
    consumer = consume(queue, clock)
    older = [accept(queue) for _ in range(3)]
    for claim in take_all(consumer):
        left = tried(claim.entry, ANN)
        assert consumer.settle(claim, Settlement(left=left, due=clock.now + 90))
    newer = [accept(queue) for _ in range(3)]
    clock.now += 100
    names = ids(take_all(consumer, most=4))
    assert names[:3] == newer
    assert sorted(names[3:]) == sorted(older)
    consumer.close()


def test_no_entry_is_claimed_twice(place: Place) -> None:
    queue = place.make()
    names = [accept(queue) for _ in range(60)]
    consumers = [consume(place.make()) for _ in range(3)]
    found: list[str] = []
    claims = []

    def work(consumer: IConsumer) -> None:
        for claim in take_all(consumer, most=3):
            assert consumer.is_sure(claim)
            claims.append(claim)
            found.extend(ids([claim]))

    threads = [
        threading.Thread(target=work, args=(one,)) for one in consumers for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(found) == Counter(names)
    assert len({claim.key for claim in claims}) == len(names)
    for consumer in consumers:
        consumer.close()


def test_what_is_avoided_is_taken_when_it_is_not(place: Place) -> None:
    queue = place.make()
    one, other = accept(queue), accept(queue)
    consumer = consume(queue)
    [claim] = consumer.take(1)
    consumer.release([claim])
    avoid = {claim.key}
    rest = take_all(consumer, avoid=avoid)
    assert take_all(consumer, avoid=avoid) == []
    assert sorted(ids(rest) + ids(take_all(consumer))) == sorted([one, other])
    consumer.close()


def test_a_released_entry_can_be_taken_at_once_as_it_was(place: Place) -> None:
    queue = place.make()
    name = accept(queue, ANN, BOB)
    consumer, other = consume(queue), consume(place.make())
    for _ in range(3):
        for one in (consumer, other):
            [claim] = take_all(one)
            assert claim.read().recipients == (ANN, BOB)
            one.release([claim])
    assert place.look().queued == [Seen(name, (ANN, BOB))]
    consumer.close()
    other.close()


@pytest.mark.parametrize("how", ["close", "die"])
def test_the_claims_of_a_drain_end_with_it(place: Place, how: str) -> None:
    queue = place.make()
    names = [accept(queue) for _ in range(5)]
    consumer, other = consume(queue), consume(place.make())
    claims = take_all(consumer)
    assert take_all(other) == []
    if how == "close":
        consumer.close()
        consumer.close()
        assert consumer.take(5) == []
    else:
        place.die_with_claims(consumer)
    assert sorted(ids(take_all(other))) == sorted(names)
    assert len(claims) == 5
    consumer.close()
    other.close()


def test_nothing_is_taken_after_a_stop(place: Place) -> None:
    queue = place.make()
    accept(queue)
    consumer = consume(queue)
    consumer.stop()
    assert consumer.take(1) == []
    began = time.monotonic()
    consumer.wait(60)
    assert time.monotonic() - began < 30
    consumer.close()
    assert len(place.look().queued) == 1


def test_a_claim_knows_its_entry(place: Place) -> None:
    queue = place.make()
    accept(queue)
    consumer = consume(queue)
    [claim] = consumer.take(1)
    assert claim.read() is claim.entry
    assert claim.beginning().endswith(claim.entry.message)
    assert claim.accepted == pytest.approx(consumer.now(), abs=60)
    assert claim.expires is None
    assert isinstance(hash(claim.key), int)
    assert claim.name
    consumer.close()


# Settle

SETTLEMENTS: dict[str, Callable[[IClaim, float], Settlement]] = {
    "sent": lambda claim, due: Settlement(),
    "later": lambda claim, due: Settlement(left=tried(claim.entry, BOB), due=due),
    "rejected": lambda claim, due: Settlement(
        rejected=tried(claim.entry, ANN, reply="550 No")
    ),
    "uncertain": lambda claim, due: Settlement(
        uncertain=tried(claim.entry, EVE, reply="lost")
    ),
    "both": lambda claim, due: Settlement(
        tried(claim.entry, ANN, reply="550 No"), tried(claim.entry, EVE, reply="lost")
    ),
    "all": lambda claim, due: Settlement(
        tried(claim.entry, ANN, reply="550 No"),
        tried(claim.entry, EVE, reply="lost"),
        tried(claim.entry, BOB),
        due,
    ),
}


@pytest.mark.parametrize("case", SETTLEMENTS)
def test_a_settlement_is_done_and_ends_the_claim(place: Place, case: str) -> None:
    queue, clock = place.make(), Clock()
    name = accept(queue, ANN, BOB, EVE)
    consumer, other = consume(queue, clock), consume(place.make(), clock)
    [claim] = take_all(consumer)
    due = float(int(clock.now + 90))
    settlement = SETTLEMENTS[case](claim, due)
    assert consumer.settle(claim, settlement) is Settled.DONE
    found = place.look()
    wanted = Look(
        [Seen(name, (BOB,), 1, 0, "450 4.2.0 Later", due)] if settlement.left else [],
        [Seen(name, (ANN,), 1, 0, "550 No")] * bool(settlement.rejected)
        + [Seen(name, (EVE,), 1, 0, "lost")] * bool(settlement.uncertain),
        [],
    )
    assert (found.queued, sorted(found.failed), found.in_doubt) == wanted
    clock.now += 100
    assert ids(take_all(other)) == [name] * bool(settlement.left)
    consumer.close()
    other.close()


def test_a_postponed_entry_is_due_later_and_as_it_was(place: Place) -> None:
    queue, clock = place.make(), Clock()
    name = accept(queue, ANN, BOB)
    consumer = consume(queue, clock)
    [claim] = take_all(consumer)
    due = float(int(clock.now + 90))
    consumer.postpone(claim, due)
    assert place.look().queued == [Seen(name, (ANN, BOB), due=due)]
    assert take_all(consumer) == []
    clock.now += 100
    consumer.wait(consumer.seconds_to_wait())
    assert ids(take_all(consumer)) == [name]
    consumer.close()


def test_a_deferred_entry_keeps_its_age_and_counts_its_attempts(place: Place) -> None:
    queue, clock = place.make(), Clock()
    name = accept(queue)
    consumer = consume(queue, clock)
    [claim] = take_all(consumer)
    accepted = claim.accepted
    for attempt in range(1, 4):
        left = tried(claim.entry, ANN)
        consumer.settle(claim, Settlement(left=left, due=clock.now + 90))
        clock.now += 100
        [claim] = take_all(consumer)
        assert claim.entry.attempts == attempt
        assert claim.accepted == pytest.approx(accepted, abs=1)
    assert ids([claim]) == [name]
    consumer.close()


def test_what_is_not_an_entry_becomes_a_dead_letter(place: Place) -> None:
    queue = place.make()
    accept(queue)
    consumer = consume(queue)
    [claim] = consumer.take(1)
    consumer.bury_unreadable(claim, "there is no envelope")
    assert take_all(consumer) == []
    consumer.close()


# The feeder


def test_the_next_due_entry_is_known(place: Place) -> None:
    queue, clock = place.make(), Clock()
    consumer = consume(queue, clock)
    assert take_all(consumer) == []
    assert consumer.seconds_to_wait() == math.inf
    for seconds in (300, 90):
        accept(queue)
        [claim] = take_all(consumer)
        left = tried(claim.entry, ANN)
        consumer.settle(claim, Settlement(left=left, due=clock.now + seconds))
    assert consumer.seconds_to_wait() == pytest.approx(90, abs=1)
    consumer.close()


def test_a_commit_wakes_the_feeder_and_so_does_a_ring(place: Place) -> None:
    consumer = consume(place.make())
    for wake in (lambda: accept(place.make()), consumer.ring):
        began = time.monotonic()
        thread = threading.Thread(target=wake)
        thread.start()
        consumer.wait(60)
        thread.join()
        assert time.monotonic() - began < 30
    assert consumer.last_sign <= time.monotonic()
    consumer.give_sign()
    consumer.close()
    consumer.ring()


def test_slots_are_as_far_apart_as_the_rate_says(place: Place) -> None:
    consumer = consume(place.make())
    waits = [consumer.reserve(10) for _ in range(4)]
    assert waits[0] <= 0.05
    apart = [later - earlier for earlier, later in itertools.pairwise(waits)]
    assert all(0.0 < seconds <= 0.1 for seconds in apart)
    consumer.close()


def test_a_pause_is_shown_and_ends_without_an_error(place: Place) -> None:
    consumer, other = consume(place.make()), consume(place.make())
    for one in (consumer, other):
        one.post("535 no such password", 60)
    for one in (consumer, other):
        one.post(OSError("away"), 120)
    consumer.clear()
    consumer.clear()
    consumer.close()
    other.close()
    assert place.look() == Look([], [], [])


# A forked child


def test_a_child_has_no_part_in_claims_and_batches(place: Place) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    queue = place.make()
    accept(queue)
    item = stage(queue)[1]
    batch = queue.batch()
    batch.prepare([item])
    consumer, other = consume(queue), consume(place.make())
    claims = take_all(consumer)
    ready, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        consumer.release(claims)
        consumer.close()
        os.read(ready, 1)  # until the parent closes
        os._exit(0)
    os.close(ready)
    assert take_all(other) == [], "the child has released it"
    consumer.release(claims)
    one = take_all(other)
    assert len(one) == 1, "the child has kept it"
    batch.publish([item])
    assert len(one + take_all(other)) == 2
    os.close(end)
    os.waitpid(child, 0)
    consumer.close()
    other.close()
