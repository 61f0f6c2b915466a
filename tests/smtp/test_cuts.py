"""The connection cut after each byte of a whole dialogue, in both directions.

Whatever the relay took is told as sent or uncertain, what is told as sent it
took, and nobody is lost. Nothing is sent twice.
"""
from __future__ import annotations

from collections import Counter

import pytest

from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import message
from tests.support.smtpd import ScriptedRelay


MESSAGES = [(SENDER, (f"{i}.{B}", C, f"{i}.{C}"), message(i)) for i in range(3)]


def run(connect, without, direction, byte):
    with ScriptedRelay(without=without) as relay:
        relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
        if byte is not None:
            relay.cut(**{direction: byte})
        mailer = connect(relay)
        reports = list(mailer.send_all(MESSAGES))
        mailer.close()
        relay.wait_until(lambda: not relay.open)
    return relay, reports


@pytest.mark.parametrize("without", [(), ("PIPELINING",)], ids=str)
@pytest.mark.parametrize("direction", ["received", "sent"])
def test_cut(connect, without, direction):
    totals = {}
    with ScriptedRelay(without=without) as relay:
        relay.reply("RCPT", "550 5.1.1 Unknown", address=C)

        def quit(dialogue, usual):
            totals.update(dialogue.total)
            return dialogue.say(b"221 Bye\r\n")

        relay.on("QUIT", quit)
        mailer = connect(relay)
        list(mailer.send_all(MESSAGES))
        mailer.close()
    seen = set()
    for byte in range(1, totals[direction]):
        relay, reports = run(connect, without, direction, byte)
        seen |= check(relay, reports)
    # else the test would not see what it is about
    assert seen >= {"sent", "deferred", "uncertain", "rejected", "relay"}


def check(relay, reports):
    taken = Counter((m.data, r) for m in relay.messages for r in m.recipients)
    assert set(taken.values()) <= {1}
    seen = set()
    assert len(reports) == len(MESSAGES)
    for report, (_, recipients, data) in zip(reports, MESSAGES, strict=True):
        assert report.recipients == recipients
        if report.relay_failure is not None:
            seen.add("relay")
            assert not any(taken[data, recipient] for recipient in recipients)
            continue
        for recipient, outcome in zip(recipients, report.outcomes, strict=True):
            status = outcome.status.value
            seen.add(status)
            assert outcome.recipient == recipient
            allowed = {"sent": {1}, "uncertain": {0, 1}}.get(status, {0})
            assert taken[data, recipient] in allowed
            if recipient == C:
                assert status != "sent"
    return seen
