"""A message to many recipients is transmitted several times, each time to others."""
from __future__ import annotations

import pytest

from postcommit._mail.report import Reply
from postcommit._smtp.pipeline import SMTPPipeline
from tests.smtp.messages import SENDER
from tests.smtp.messages import message
from tests.smtp.messages import told
from tests.support.mailers import Taken
from tests.support.script import Hangup


MANY = tuple(f"{number}@example.org" for number in range(120))

WITHOUT = pytest.mark.parametrize("without", [(), ("PIPELINING",)], ids=str)


def transmit(mailer, *recipients, most=50):
    """Send one message to each of `recipients`; return the reports."""
    with SMTPPipeline(mailer._pool, recipients=most) as pipeline:
        reports = []
        for number, to in enumerate(recipients):
            pipeline.offer(Taken(SENDER, to, message(number)), key=number)
            reports += pipeline.completed()
        reports += pipeline.drain()
    assert [key for key, _ in reports] == list(range(len(recipients)))
    return [report for _, report in reports]


def taken(relay):
    return [len(taken.recipients) for taken in relay.messages]


def limit(relay, most, reply):
    """Have `relay` accept `most` recipients in one mail transaction."""
    accepted = [0]

    def mail(dialogue, usual):
        accepted[0] = 0
        return dialogue.say(usual.encode() + b"\r\n")

    def rcpt(dialogue, usual):
        accepted[0] += 1
        said = usual if accepted[0] <= most else reply
        return dialogue.say(said.encode() + b"\r\n")

    relay.on("MAIL", mail)
    relay.on("RCPT", rcpt)


@WITHOUT
def test_120_recipients_are_50_50_and_20(start, connect, without):
    relay = start(without=without)
    reports = transmit(connect(relay), MANY, MANY[:2])
    assert [told(report) for report in reports] == [["sent"] * 120, ["sent"] * 2]
    assert taken(relay) == [50, 50, 20, 2]
    assert tuple(r for m in relay.messages[:3] for r in m.recipients) == MANY
    assert [outcome.recipient for outcome in reports[0].outcomes] == list(MANY)
    assert relay.connections == 1


def test_without_a_limit_it_is_one(relay, connect):
    [report] = transmit(connect(relay), MANY, most=1000)
    assert told(report) == ["sent"] * 120
    assert taken(relay) == [120]


@WITHOUT
@pytest.mark.parametrize(
    "reply",
    [
        "452 4.5.3 Too many recipients",
        "452 Too many recipients",
        "552 5.5.3 Too many recipients",
        "552 Too many recipients",
        "550 5.5.3 Too many recipients",
        "451 4.5.3 Too many recipients",
    ],
)
def test_too_many_for_the_relay(start, connect, without, reply):
    """The others follow on the same connection, and the limit is remembered."""
    relay = start(without=without)
    limit(relay, 10, reply)
    first, second = transmit(connect(relay), MANY[:25], MANY[:15])
    assert told(first) == ["sent"] * 25
    assert told(second) == ["sent"] * 15
    assert taken(relay)[:3] == [10, 10, 5]
    assert taken(relay)[-2:] == [10, 5]
    assert relay.connections == 1
    # The limit was learned once: no recipient is offered in vain after that. Without
    # pipelining, the first refusal ends the commands.
    refused = sum(c.startswith("RCPT") for c in relay.commands) - 40
    assert refused == (1 if without else 15)


@WITHOUT
def test_a_full_mailbox_does_not_lower_the_limit(start, connect, without):
    relay = start(without=without)
    for number in range(0, 30, 3):
        relay.reply("RCPT", "452 4.2.2 Mailbox full", address=MANY[number])
    first, second = transmit(connect(relay), MANY[:30], MANY[30:55])
    expected = ["deferred" if number % 3 == 0 else "sent" for number in range(30)]
    assert told(first) == expected
    assert told(second) == ["sent"] * 25
    assert first.deferred[0].reply == Reply(452, "4.2.2", "Mailbox full")
    assert taken(relay) == [20, 25]


def test_all_mailboxes_are_full(relay, connect):
    relay.reply("RCPT", "452 4.2.2 Mailbox full")
    [report] = transmit(connect(relay), MANY[:5])
    assert told(report) == ["deferred"] * 5
    assert relay.messages == []


@WITHOUT
def test_a_loss_between_two_transmissions(start, connect, without):
    """The relay closes the connection after the first one; the others go on."""
    relay = start(without=without)
    relay.drop("END", after=b"250 2.0.0 Taken\r\n", times=1)
    [report] = transmit(connect(relay), MANY)
    assert told(report) == ["sent"] * 120
    assert taken(relay) == [50, 50, 20]
    assert relay.connections == 2


@WITHOUT
def test_a_loss_at_the_end_of_the_second(start, connect, without):
    relay = start(without=without)
    calls = []

    def hang_up(dialogue, usual):
        calls.append(usual)
        if len(calls) == 2:
            raise Hangup
        return dialogue.say(usual.encode() + b"\r\n")

    relay.on("END", hang_up)
    [report] = transmit(connect(relay), MANY)
    assert told(report) == ["sent"] * 50 + ["uncertain"] * 50 + ["sent"] * 20


@WITHOUT
def test_the_relay_fails_in_the_second(start, connect, without):
    """What was decided stays. The others are deferred: it may be their fault."""
    relay = start(without=without)
    relay.reply("RCPT", "421 4.7.0 Too many errors", address=MANY[60])
    [report] = transmit(connect(relay), MANY)
    assert told(report) == ["sent"] * 50 + ["deferred"] * 70
    assert taken(relay) == [50]
    # No connection is opened for the third transmission.
    assert relay.connections == 1


@WITHOUT
def test_the_relay_fails_at_the_end_of_the_second(start, connect, without):
    """With pipelining, the third one is on the wire behind it."""
    relay = start(without=without)
    calls = []

    def end(dialogue, usual):
        calls.append(usual)
        said = "421 4.3.2 Bye" if len(calls) == 2 else usual
        return dialogue.say(said.encode() + b"\r\n")

    relay.on("END", end)
    [report] = transmit(connect(relay), MANY)
    assert told(report) == ["sent"] * 50 + ["deferred"] * 70
    assert report.deferred[-1].reply == Reply(421, "4.3.2", "Bye")
    assert relay.connections == 1


@WITHOUT
def test_no_connection_for_the_second(start, connect, without):
    """A report has outcomes and a relay failure: the others were not decided."""
    relay = start(without=without)

    def end(dialogue, usual):
        relay.reply("CONNECT", "554 5.3.2 Not now")
        dialogue.say(b"250 2.0.0 Taken\r\n")
        dialogue.closing = "close"
        return 250

    relay.on("END", end)
    [report] = transmit(connect(relay), MANY)
    assert [outcome.recipient for outcome in report.outcomes] == list(MANY[:50])
    assert {outcome.status.value for outcome in report.outcomes} == {"sent"}
    assert report.relay_failure is not None
    assert not report.failed_mid_message
    assert report.undecided == MANY[50:]


def test_refused_recipients_in_each(relay, connect):
    relay.reply("RCPT", "550 5.1.1 Unknown", address=MANY[0])
    relay.reply("RCPT", "450 4.2.0 Later", address=MANY[119])
    [report] = transmit(connect(relay), MANY)
    assert told(report) == ["rejected"] + ["sent"] * 118 + ["deferred"]
    assert taken(relay) == [49, 50, 19]


def test_an_error_of_the_program_does_not_hide_what_was_sent(relay, connect):
    """Otherwise the first part would be sent again."""
    mailer = connect(relay)

    class Broken(str):
        """An address that cannot be written."""

        __slots__ = ()

        def __format__(self, spec):
            raise LookupError("broken")

    recipients = (*MANY[:100], Broken("x@example.org"))
    pipeline = SMTPPipeline(mailer._pool, recipients=50)
    with pytest.raises(LookupError), pipeline:
        pipeline.offer(Taken(SENDER, recipients, message(0)), key="key")
    [(key, report)] = pipeline.completed()
    assert key == "key"
    assert told(report) == ["sent"] * 50 + ["deferred"] * 51
    assert taken(relay) == [50]
