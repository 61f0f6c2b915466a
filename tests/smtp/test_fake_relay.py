"""Reports are true whatever a relay does that follows a seed, without a network."""
from __future__ import annotations

import logging
import os
from collections import Counter

import pytest

from postcommit._smtp.mailer import SMTPPipeline
from tests.smtp.fakerelay import STRAY
from tests.smtp.fakerelay import Relay


DIALOGUES = int(os.environ.get("POSTCOMMIT_DIALOGUES", "20000"))

# Number of times that the relay may have taken a message with an outcome.
ALLOWED = {
    "sent": {1},
    "uncertain": {0, 1},
    "deferred": {0},
    "rejected": {0},
    "relay": {0},
}


def transmit(relay):
    """Send all mails of `relay` in one pipeline; return their reports."""
    reports = []
    with SMTPPipeline(relay, recipients=relay.recipients) as pipeline:
        for number, mail in enumerate(relay.mails):
            pipeline.offer(mail, key=number)
            reports += pipeline.completed()
        reports += pipeline.drain()
    assert [number for number, _ in reports] == list(range(len(relay.mails)))
    return [report for _, report in reports]


def check(relay, mail, report):
    """Yield what is wrong with `report`, and the statuses."""
    statuses = {outcome.recipient: outcome.status.value for outcome in report.outcomes}
    if report.relay_failure is not None:
        statuses = dict.fromkeys(mail.recipients, "relay") | statuses
    else:
        told = [outcome.recipient for outcome in report.outcomes]
        assert told == list(mail.recipients)
    # If the connection is lost after a stray reply, this cannot be told from the reply
    # to the next command. In LMTP, the next one is about another recipient.
    hangs_up = len(relay.tricks) > 1 or relay.most_errors or relay.most_named
    is_clear = STRAY not in relay.tricks.values() or not hangs_up
    for recipient, status in statuses.items():
        key = (mail.sender, recipient)
        allowed = ALLOWED[status]
        if relay.protocol == "lmtp" and not is_clear:
            allowed = {0, 1}
        assert relay.taken[key] in allowed, (key, status)
        if status == "rejected" and is_clear and "im possible" not in recipient:
            assert key in relay.refused, key
        yield status


def play(seed):
    relay = Relay(seed)
    seen = Counter()
    for mail, report in zip(relay.mails, transmit(relay), strict=True):
        seen.update(check(relay, mail, report))
    return seen


@pytest.mark.parametrize("lane", range(4))
def test_every_report_is_true(lane):
    logging.getLogger("postcommit").setLevel(logging.CRITICAL)
    seen = Counter()
    try:
        for seed in range(lane, DIALOGUES, 4):
            try:
                seen += play(seed)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
    finally:
        logging.getLogger("postcommit").setLevel(logging.NOTSET)
    assert set(seen) == set(ALLOWED)
