"""What becomes of mail in the waiting rooms, for kills and power failures."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transaction import TransactionManager

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._mail.terms import Terms
from postcommit._maildir.item import EntryState
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Store
from tests.support.mailers import ScriptedMailer
from tests.support.transactions import AFTER
from tests.support.transactions import Partner
from tests.support.transactions import mail


Tell = Callable[..., None]

ANN = "ann@example.org"
COUNT = 3
NAMES = [f"{number}@x.org" for number in range(COUNT)]


def fill(queue: str, action: str) -> None:
    """Prepare a queue for one of the `ACTIONS`."""
    store = Store(queue)
    now = time.time()
    terms = [Terms(now + 3600), Terms(bulk=True), None]
    if action in ("let in", "defer", "cancel late", "hold late"):
        terms = [Terms(now - 5), Terms(now - 4, bulk=True), Terms(bulk=True)]
    if action == "schedule":
        terms = []
    for name, term in zip(NAMES, terms, strict=False):
        store.stage("shop@example.org", (ANN,), [mail(name)], terms=term).commit()
    if action == "release":
        hold(lambda *words: None, queue)


def schedule(tell: Tell, queue: str) -> None:
    manager = TransactionManager(explicit=True)
    manager.begin()
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    hour = time.time() + 3600
    for name, terms in zip(
        NAMES, [{"not_before": hour}, {"bulk": True}, {"expires": 2e9}], strict=True
    ):
        delivery.send("shop@example.org", ANN, mail(name), **terms)
    manager.get().join(Partner(AFTER, tpc_vote=lambda: tell("voted")))
    manager.commit()
    tell("done")


def let_in(tell: Tell, queue: str) -> None:
    consumer = Store(queue).consumer(Schedule(60.0, 4000.0, 1e6))
    while consumer.let_in():
        pass
    tell("done")
    consumer.close()


def defer(tell: Tell, queue: str) -> None:
    consumer = Store(queue).consumer(Schedule(60.0, 4000.0, 1e6))
    while consumer.let_in():
        pass
    for claim in consumer.take(COUNT):
        left = replace(claim.read(), attempts=1, last_reply="450 4.2.0 Later")
        consumer.settle(claim, Settlement(left=left, due=time.time() + 60))
    tell("done")
    consumer.close()


def cancel_late(tell: Tell, queue: str) -> None:
    """Cancel what has left its room, and was not sent."""
    let_in(lambda *words: None, queue)
    cancel(tell, queue)


def cancel(tell: Tell, queue: str) -> None:
    manager = TransactionManager(explicit=True)
    delivery = QueuedMailDelivery(queue, transaction_manager=manager)
    manager.begin()
    for name in NAMES:
        assert delivery.cancel(name)
    manager.abort()
    manager.begin()
    for name in NAMES[:2]:
        assert delivery.cancel(name)
    manager.get().join(Partner(AFTER, tpc_vote=lambda: tell("voted")))
    manager.commit()
    tell("done")


def hold(tell: Tell, queue: str) -> None:
    admin = MaildirOperators(queue)
    items = list(admin.items(EntryState))
    with admin.changes() as changes:
        for item in items:
            assert changes.hold(item)
    tell("done")


def hold_late(tell: Tell, queue: str) -> None:
    """Hold what has left its room, and was not sent."""
    let_in(lambda *words: None, queue)
    hold(tell, queue)


def release(tell: Tell, queue: str) -> None:
    admin = MaildirOperators(queue)
    items = list(admin.items([EntryState.HELD]))
    with admin.changes() as changes:
        for item in items:
            assert changes.release(item)
    tell("done")


ACTIONS = {
    "schedule": schedule,
    "let in": let_in,
    "defer": defer,
    "cancel": cancel,
    "cancel late": cancel_late,
    "hold": hold,
    "hold late": hold_late,
    "release": release,
}


def act(tell: Tell, queue: str, action: str) -> None:
    """For a zygote."""
    ACTIONS[action](tell, queue)


def record_all(base: str) -> None:
    """Do each of the actions in a queue of its own, and tell on standard output."""
    for number, (name, function) in enumerate(ACTIONS.items()):

        def tell(*words: str, name: str = name) -> None:
            os.write(1, "|".join([name, *words, "\n"]).encode())

        function(tell, f"{base}/{number}/queue")


# What is left


def drained(queue: Path) -> list[str]:
    """Send what is due a day later; return the message ids."""
    mailer = ScriptedMailer()
    later = time.time() + 86400
    QueueProcessor(str(queue), mailer, workers=1, clock=lambda: later).flush()
    found = []
    for attempt in mailer.attempts:
        [name] = [name for name in NAMES if mail(name) == attempt.message]
        found.append(name)
    return found


def check(queue: Path, action: str, told: list[str]) -> None:
    """Drain what is left, and release what is held: each mail is sent once."""
    if not queue.exists():
        assert not told
        return
    doubts = [
        item.place
        for item in MaildirOperators(str(queue)).items([EntryState.IN_DOUBT])
    ]
    first = drained(queue)
    release(lambda *words: None, str(queue))
    second = drained(queue)
    sent = first + second
    # Of the two renames of a deferral, the second may be on the disk alone.
    if action != "defer" or "done" in told:
        assert len(sent) == len(set(sent)), "a mail is sent twice"
    if action == "schedule":
        assert not second
        if "done" in told:
            assert sorted(sent) == NAMES, "a mail is lost"
        elif "voted" in told:
            assert len(sent) + len(doubts) == COUNT, "a mail is lost"
        else:
            assert not sent, "a mail is sent too early"
        return
    kept = set(NAMES)
    if action.startswith("cancel"):
        kept = {NAMES[2]}
        if "done" in told:
            assert set(sent) == kept, "a mail that was called off is sent"
        if "voted" not in told:
            assert set(sent) == set(NAMES), "a mail is lost"
    assert kept <= set(sent), "a mail is lost"
    if "done" in told and action.startswith("hold"):
        assert not first, "a held mail is sent"
    if "done" in told and action == "release":
        assert not second, "a released mail is held"
