"""A relay dies at any point of the dialogue, and no recipient gets a message twice.

Each run has two relays on sockets. A seed decides how each of them fails: it is cut off
after a number of bytes, says something else or nothing at a stage, or goes away. The
oracle counts what each relay has taken. A message whose last reply was lost may come
twice, because the outcome of that attempt is uncertain.
"""
from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import transaction

from postcommit import DirectMailDelivery
from postcommit import FailoverMailer
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from tests.support.smtpd import ScriptedRelay


RUNS = 500
LOTS = 10

KINDS = (*("well", "cut", "drop", "reply", "dead", "crash") * 3, "mute")
STAGES = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END", "RSET")
REPLIES = ("421 4.3.2 Closing", "450 4.2.0 Later", "550 5.1.1 No")


def fall_silent(dialogue: Any, usual: str) -> int:
    while True:
        dialogue.fill()  # until the client hangs up


def afflict(relay: ScriptedRelay, random: random.Random) -> None:
    """Have `relay` fail in some way, once or for good."""
    relay.script.rules.clear()
    relay.cuts.clear()
    kind = random.choice(KINDS)
    stage, times = random.choice(STAGES), random.choice((1, 2, None))
    if kind == "cut":
        for _ in range(random.randint(1, 3)):
            way = random.choice(("received", "sent"))
            relay.cut(**{way: random.randint(1, 900)})
    elif kind == "drop":
        reset = random.random() < 0.5
        after = random.choice((None, *REPLIES))
        relay.drop(stage, times=times, reset=reset, after=after)
    elif kind == "reply":
        relay.reply(stage, random.choice(REPLIES), times=times)
    elif kind == "mute":
        relay.on(stage, fall_silent, times=1)
    elif kind == "dead":
        relay.down()
    elif kind == "crash":
        left = random.randint(1, 12)

        def crash(dialogue: Any, usual: Any) -> int:
            nonlocal left
            left -= 1
            if not left:
                relay.refuse()
                dialogue.closing = "close"
            lines = [usual] if isinstance(usual, str) else usual
            return int(dialogue.say("".join(f"{line}\r\n" for line in lines).encode()))

        relay.on(random.choice(("MAIL", "RCPT", "DATA", "END")), crash)


class Run:
    """Two relays, a mailer, and what became of each recipient."""

    def __init__(self, relays: list[ScriptedRelay], seed: int) -> None:
        self.random = random.Random(seed)
        self.relays = relays
        for relay in relays:
            relay.messages.clear()
            relay.completed.clear()
            relay.down()
            relay.up()
            afflict(relay, self.random)
        # Number of events for each recipient, by their kind.
        self.events: Counter[tuple[str, str]] = Counter()
        parts = [
            SMTPMailer(
                "127.0.0.1",
                relay.port,
                timeout=0.1,
                final_timeout=0.1,
                recipients_per_transaction=self.random.choice((1, 2, 50)),
                pipelining=self.random.random() < 0.8,
            )
            for relay in relays
        ]
        self.mailer = FailoverMailer(
            parts,
            retry_after=self.random.choice((0, 60)),
            round_robin=self.random.random() < 0.3,
            notify=self.note,
        )
        self.mails = [
            tuple(f"{n}.{r}@x.org" for r in range(self.random.choice((1, 1, 3))))
            for n in range(self.random.randint(1, 6))
        ]

    def note(self, event: Any) -> None:
        kind = type(event).__name__
        for recipient in event.recipients:
            self.events[recipient, kind] += 1

    def send(self, delivery: Any) -> None:
        with transaction.manager:
            for recipients in self.mails:
                delivery.send("me@x.org", recipients, b"Subject: x\r\n\r\nx\r\n")

    def check(self, records: list[logging.LogRecord]) -> None:
        """Compare what the relays have taken with what was reported."""
        taken = Counter(
            recipient
            for relay in self.relays
            for message in relay.messages
            for recipient in message.recipients
        )
        uncertain = Counter(
            recipient
            for record in records
            if getattr(record, "status", "") == "uncertain"
            for recipient in record.recipients  # type: ignore[attr-defined]
        )
        for recipient in itertools.chain(*self.mails):
            sent = self.events[recipient, "MailSentEvent"]
            assert sent <= 1, f"{recipient} was reported as sent twice"
            most = sent + uncertain[recipient]
            assert sent <= taken[recipient] <= most, f"{recipient} has a duplicate"


@pytest.fixture(scope="module")
def relays() -> Iterator[list[ScriptedRelay]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ScriptedRelay()) for _ in range(2)]


@pytest.mark.parametrize("lot", range(LOTS))
def test_a_direct_delivery_sends_no_duplicate(
    lot: int, relays: list[ScriptedRelay], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "postcommit.event")
    for seed in range(lot, RUNS, LOTS):
        caplog.clear()
        run = Run(relays, seed)
        run.send(DirectMailDelivery(run.mailer))
        run.check(caplog.records)
        decided = sum(run.events.values())
        assert decided == sum(map(len, run.mails)), "each recipient has one outcome"
        run.mailer.close()


@pytest.mark.parametrize("lot", range(LOTS))
def test_a_drain_sends_no_duplicate(
    lot: int,
    relays: list[ScriptedRelay],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "postcommit.event")
    for seed in range(lot, RUNS, LOTS):
        caplog.clear()
        run = Run(relays, seed)
        queue = str(tmp_path / str(seed))
        run.send(QueuedMailDelivery(queue))
        processor = QueueProcessor(
            queue, run.mailer, min_backoff=0, max_backoff=0, workers=2
        )
        for _ in range(3):
            processor.flush()
        for relay in relays:  # they are well again
            relay.down()
            relay.up()
            relay.script.rules.clear()
            relay.cuts.clear()
        for _ in range(3):
            processor.flush()
        run.check(caplog.records)
        for recipient in itertools.chain(*run.mails):
            final = ("MailSentEvent", "MailRejectedEvent", "MailUncertainEvent")
            ends = [kind for kind in final if run.events[recipient, kind]]
            assert len(ends) == 1, f"{recipient}: {ends}"
        run.mailer.close()
