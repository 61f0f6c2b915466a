"""A queue as a machine: whatever happens in whatever order, it is as a model is.

The model is a few dictionaries in memory. How many runs: ``POSTCOMMIT_EXAMPLES``, 12
by default.
"""
from __future__ import annotations

import os
import time
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import ClassVar

from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import invariant
from hypothesis.stateful import precondition
from hypothesis.stateful import rule

from postcommit._drain.contract import IConsumer
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._drain.contract import Terms
from postcommit._mail.message import message_id_of
from tests.contract.places import PLACES
from tests.contract.places import Look
from tests.contract.places import Place
from tests.contract.places import Seen
from tests.contract.steps import ANN
from tests.contract.steps import BOB
from tests.contract.steps import EVE
from tests.contract.steps import Clock
from tests.contract.steps import consume
from tests.contract.steps import let_in
from tests.contract.steps import stage
from tests.contract.steps import tried


RECIPIENTS = st.lists(st.sampled_from([ANN, BOB, EVE]), min_size=1, unique=True)

# Which of several there are: a number, however many there are.
WHICH = st.integers(min_value=0, max_value=1000)

LATER = "450 4.2.0 Later"
REJECTED = "550 5.1.1 No such user"


# The terms that there are: seconds from now before which it is not sent, and bulk.
TERMS = st.sampled_from([None, (60.0, False), (4000.0, True), (None, True)])

# Holders that are not a drain: a transaction that cancels, and an operator.
CANCELLING, OPERATOR = -1, -2


@dataclass(frozen=True)
class Kept:
    """An entry of the model; `holder` is the drain that has claimed it.

    `was_due` says that a feeder has seen a time at which it was due. On disk, the entry
    has left its room then, and stays due if the clock is put back.
    """

    recipients: tuple[str, ...]
    attempts: int = 0
    last_reply: str = ""
    due: float = 0.0
    holder: int | None = None
    not_before: float | None = None
    was_due: bool = False
    bulk: bool = False

    def seen(self, message_id: str) -> Seen:
        return Seen(
            message_id, self.recipients, self.attempts, 0, self.last_reply, self.due
        )


class Queue(RuleBasedStateMachine):
    kind: ClassVar[type[Place]]

    def __init__(self) -> None:
        super().__init__()
        self.place = self.kind()
        self.queue = self.place.make()
        self.clock = Clock()
        self.drains: list[IConsumer] = [self.drain() for _ in range(2)]
        self.claims: dict[str, Any] = {}
        self.transactions: list[tuple[Any, list[Any], dict[str, Kept]]] = []
        self.cancels: list[tuple[str, Any, Any]] = []
        # The model
        self.entries: dict[str, Kept] = {}
        self.dead: list[Seen] = []
        self.on_hold: set[str] = set()
        self.in_doubt: dict[str, Kept] = {}

    def drain(self) -> IConsumer:
        return consume(self.place.make(), self.clock)

    def teardown(self) -> None:
        for batch, items, _ in self.transactions:
            batch.discard(items)
        for _, batch, item in self.cancels:
            batch.discard([item])
        for drain in self.drains:
            drain.close()
        self.place.end()

    # Accept

    @rule(
        all_of_them=st.lists(RECIPIENTS, min_size=1, max_size=3),
        alone=st.booleans(),
        terms=TERMS,
    )
    def vote(
        self,
        all_of_them: list[list[str]],
        alone: bool,
        terms: tuple[float | None, bool] | None,
    ) -> None:
        """A transaction gets as far as its vote, and lives."""
        not_before, given = None, None
        if terms is not None:
            if terms[0] is not None:
                not_before = float(int(self.clock.now + terms[0]))
            given = Terms(not_before, bulk=terms[1])
        staged = [stage(self.queue, *r, terms=given) for r in all_of_them]
        items = [item for _, item in staged]
        batch = self.queue.batch()
        batch.prepare(items, alone=alone)
        named = {
            name: Kept(
                tuple(recipients), not_before=not_before, bulk=bool(terms and terms[1])
            )
            for (name, _), recipients in zip(staged, all_of_them, strict=True)
        }
        if alone and len(items) == 1:
            batch.publish(items)  # it is not in doubt at any moment
            self.entries |= named
        else:
            self.transactions.append((batch, items, named))

    @precondition(lambda self: self.transactions)
    @rule(which=WHICH, end=st.sampled_from(["finish", "abort", "abandon", "die"]))
    def end_of_a_transaction(self, which: int, end: str) -> None:
        batch, items, named = self.transactions.pop(which % len(self.transactions))
        if end == "finish":
            batch.publish(items)
            self.entries |= named
        elif end == "abort":
            batch.discard(items)
        else:
            if end == "die":
                self.place.die_with_batch(batch)
            else:
                batch.abandon(items)
            self.in_doubt |= named

    @rule()
    def die_before_the_vote(self) -> None:
        stage(self.queue, ANN)
        self.place.age(37 * 3600)
        self.drains[0].sweep()

    # Cancel and hold

    @precondition(lambda self: self.entries)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        name = sorted(self.entries)[which % len(self.entries)]
        kept = self.entries[name]
        item = self.queue.cancel(name)
        assert (item is None) is (kept.holder not in (None, OPERATOR))
        if item is not None:
            batch = self.queue.batch()
            batch.prepare([item])
            self.cancels.append((name, batch, item))
            self.entries[name] = replace(kept, holder=CANCELLING)

    @precondition(lambda self: self.cancels)
    @rule(which=WHICH, commits=st.booleans())
    def end_of_a_cancel(self, which: int, commits: bool) -> None:
        name, batch, item = self.cancels.pop(which % len(self.cancels))
        if commits:
            batch.publish([item])
            del self.entries[name]
        else:
            batch.discard([item])
            is_held = name in self.on_hold
            holder = OPERATOR if is_held else None
            self.entries[name] = replace(self.entries[name], holder=holder)

    @precondition(lambda self: hasattr(self.place, "hold"))
    @rule(which=WHICH)
    def hold_or_release(self, which: int) -> None:
        free = (None, OPERATOR)
        names = [n for n, kept in self.entries.items() if kept.holder in free]
        if names:
            name = sorted(names)[which % len(names)]
            self.place.hold(name)  # type: ignore[attr-defined]
            kept = self.entries[name]
            if kept.holder is None:
                self.on_hold.add(name)
                self.entries[name] = replace(kept, holder=OPERATOR)
            else:
                self.on_hold.remove(name)
                # It goes back into its room, by the clock of the machine.
                self.entries[name] = replace(kept, holder=None, was_due=False)

    # Drain

    def free(self, *, surely: bool = True) -> set[str]:
        """Return what can be taken: due, and claimed by nobody.

        What is due further ahead than any entry is deferred is due, too: the clock was
        put back. Without `surely`, also what was due before the clock was put back.
        """
        now = self.clock.now
        return {
            name
            for name, kept in self.entries.items()
            if kept.holder is None
            and not now < kept.due <= now + 8000
            and (
                kept.attempts
                or kept.due
                or kept.not_before is None
                or kept.not_before <= now
                or (kept.was_due and not surely)
            )
        }

    def note_what_is_due(self) -> None:
        now = self.clock.now
        for name, kept in self.entries.items():
            if kept.not_before is not None and kept.not_before <= now:
                self.entries[name] = replace(kept, was_due=True)

    @rule(which=st.sampled_from([0, 1]), most=st.integers(1, 4))
    def take(self, which: int, most: int) -> None:
        drain = self.drains[which]
        drain.wait(min(drain.seconds_to_wait(), 0.01))
        self.note_what_is_due()
        claims = drain.take(most)
        # A ring wakes one of the drains. The other one looks for a room, which was
        # missing before, after some seconds.
        until = time.monotonic() + 60
        while not claims and time.monotonic() < until:
            let_in(drain)
            claims = drain.take(most)
            if not self.free():
                break
        assert len(claims) <= most
        names = [message_id_of(claim.read().message) for claim in claims]
        assert set(names) <= self.free(surely=False)
        assert claims or not self.free()
        # A bulk entry comes last, or with the new ones when it was let in.
        ordered = [name for name in names if not self.entries[name].bulk]
        are_new = [not self.entries[name].due for name in ordered]
        assert are_new == sorted(are_new, reverse=True)
        for name, claim in zip(names, claims, strict=True):
            assert drain.is_sure(claim)
            self.claims[name] = claim
            self.entries[name] = replace(self.entries[name], holder=which)

    def held(self, which: int) -> tuple[str, Kept, Any, IConsumer]:
        """Return a claimed entry, its claim and its drain; the claim is to end."""
        name = sorted(self.claims)[which % len(self.claims)]
        kept = self.entries[name]
        assert kept.holder is not None
        return name, kept, self.claims.pop(name), self.drains[kept.holder]

    @precondition(lambda self: self.claims)
    @rule(which=WHICH, outcomes=st.tuples(*[st.sampled_from("slr")] * 3))
    def settle(self, which: int, outcomes: tuple[str, ...]) -> None:
        """Each recipient is sent, tried later or rejected."""
        name, kept, claim, drain = self.held(which)
        parts: dict[str, list[str]] = {"s": [], "l": [], "r": []}
        for recipient, outcome in zip(kept.recipients, outcomes, strict=False):
            parts[outcome].append(recipient)
        later, rejected = parts["l"], parts["r"]
        due = float(int(self.clock.now + 60))
        settlement = Settlement(
            tried(claim.entry, *rejected, reply=REJECTED) if rejected else None,
            None,
            tried(claim.entry, *later, reply=LATER) if later else None,
            due,
        )
        assert drain.settle(claim, settlement) is Settled.DONE
        attempts = kept.attempts + 1
        if rejected:
            self.dead.append(Seen(name, tuple(rejected), attempts, 0, REJECTED))
        if later:
            bulk = kept.bulk
            self.entries[name] = Kept(tuple(later), attempts, LATER, due, bulk=bulk)
        else:
            del self.entries[name]

    @precondition(lambda self: self.claims)
    @rule(which=WHICH, seconds=st.integers(1, 5000))
    def postpone(self, which: int, seconds: int) -> None:
        name, kept, claim, drain = self.held(which)
        due = float(int(self.clock.now) + seconds)
        drain.postpone(claim, due)
        self.entries[name] = replace(kept, due=due, holder=None)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        name, kept, claim, drain = self.held(which)
        drain.release([claim])
        self.entries[name] = replace(kept, holder=None)

    @rule(which=st.sampled_from([0, 1]), dies=st.booleans())
    def end_of_a_drain(self, which: int, dies: bool) -> None:
        """All that it has claimed is free; another drain begins."""
        if dies:
            self.place.die_with_claims(self.drains[which])
        self.drains[which].close()
        self.drains[which] = self.drain()
        for name, kept in self.entries.items():
            if kept.holder == which:
                del self.claims[name]
                self.entries[name] = replace(kept, holder=None)

    @rule(seconds=st.sampled_from([1.0, 60.0, 4000.0, 86400.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(seconds=st.sampled_from([1.0, 4000.0, 86400.0]))
    def the_clock_is_put_back(self, seconds: float) -> None:
        self.clock.now -= seconds

    # What holds at every moment

    @invariant()
    def the_queue_is_as_the_model(self) -> None:
        found = self.place.look()
        assert Look(*map(sorted, found)) == Look(
            sorted(kept.seen(name) for name, kept in self.entries.items()),
            sorted(self.dead),
            sorted(kept.seen(name) for name, kept in self.in_doubt.items()),
        )


SETTINGS = settings(
    max_examples=int(os.environ.get("POSTCOMMIT_EXAMPLES", "12")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)

for _kind in PLACES:
    _machine = type(f"{_kind.__name__}Queue", (Queue,), {"kind": _kind})
    _test = _machine.TestCase
    _test.settings = SETTINGS
    globals()[f"Test{_kind.__name__}"] = _test
del _test
