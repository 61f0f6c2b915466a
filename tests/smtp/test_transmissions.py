"""A message to many recipients is transmitted several times, each time to others."""
from __future__ import annotations

import time
from collections import Counter

import pytest

from postcommit._mail.report import Reply
from postcommit._mail.report import Stage
from postcommit._smtp.connection import parse
from postcommit._smtp.mailer import SMTPPipeline
from tests.smtp.messages import SENDER
from tests.smtp.messages import message
from tests.smtp.messages import told
from tests.smtp.test_dialogue import ORDINARY
from tests.smtp.test_dialogue import Link
from tests.smtp.test_dialogue import begin
from tests.support.mailers import Taken
from tests.support.script import Hangup


MANY = tuple(f"{number}@example.org" for number in range(120))

# Those that a relay may refuse.
UNKNOWN = MANY[:25]

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


def decided(report):
    """Return the statuses of the recipients that have an outcome."""
    return {outcome.recipient: outcome.status.value for outcome in report.outcomes}


def taken(relay):
    return [len(taken.recipients) for taken in relay.messages]


def limit(relay, most, reply, refusal=None, data=None):
    """Have `relay` take `most` recipients in one mail transaction.

    With a `refusal`, it refuses those in `UNKNOWN`, and counts them as well. With
    `data`, it says that to DATA after too many.
    """
    seen = [0]

    def mail(dialogue, usual):
        seen[0] = 0
        return dialogue.say(usual.encode() + b"\r\n")

    def rcpt(dialogue, usual):
        seen[0] += 1
        command = relay.commands[-1]
        said = usual
        if seen[0] > most:
            said = reply
        elif refusal is not None and any(f"<{r}>" in command for r in UNKNOWN):
            said = refusal
        return dialogue.say(said.encode() + b"\r\n")

    def content(dialogue, usual):
        said = data if data is not None and seen[0] > most else usual
        return dialogue.say(said.encode() + b"\r\n")

    relay.on("MAIL", mail)
    relay.on("RCPT", rcpt)
    relay.on("DATA", content)


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
@pytest.mark.parametrize("refusal", ["550 5.1.1 Unknown", "450 4.7.1 Greylisted"])
@pytest.mark.parametrize("data", [None, "503 5.5.1 No", "554 Too many recipients"])
@pytest.mark.parametrize(
    "reply",
    [
        "452 4.5.3 Too many recipients",
        "452 too many recipients",
        "552 too many recipients",
        "550 5.5.3 Too many recipients",
        "452 No more",
    ],
)
@pytest.mark.parametrize("first", [MANY[:10], MANY[16:26], MANY[20:30], MANY[:28]])
def test_a_relay_that_counts_refused_recipients(
    start, connect, without, first, reply, data, refusal
):
    """Exim counts them. The others follow, even if all before them were refused."""
    relay = start(without=without)
    limit(relay, 10, reply, refusal, data)
    to = (*first, *MANY[40:80])
    [report] = transmit(connect(relay), to)
    refused = "rejected" if refusal.startswith("550") else "deferred"
    known = [r for r in to if r not in UNKNOWN]
    expected = {r: "sent" if r in known else refused for r in to}
    assert decided(report) == expected
    got = [r for message in relay.messages for r in message.recipients]
    assert sorted(got) == sorted(known)
    # The limit is not the number of those that were accepted.
    assert max(taken(relay)) == 10
    assert relay.connections == 1


@WITHOUT
def test_a_relay_without_a_word_is_not_asked_for_ever(start, connect, without):
    """Most of the recipients are deferred after one more transmission."""
    relay = start(without=without)
    relay.reply("RCPT", "550 5.1.1 Unknown", address=MANY[0])
    relay.reply("RCPT", "452 Later")
    [report] = transmit(connect(relay), MANY[:50])
    assert told(report) == ["rejected"] + ["deferred"] * 49
    assert sum(command.startswith("RCPT") for command in relay.commands) == 99


@WITHOUT
def test_a_refused_sender_is_not_about_the_number(start, connect, without):
    relay = start(without=without)
    relay.reply("MAIL", "550 5.7.1 You may not")
    relay.reply("RCPT", "452 4.5.3 Too many recipients")
    [report] = transmit(connect(relay), MANY[:20])
    assert told(report) == ["rejected"] * 20
    assert sum(command.startswith("MAIL") for command in relay.commands) == 1


@WITHOUT
@pytest.mark.parametrize(
    "reply",
    ["554 Too many recipients", "550 5.5.0 Maximum number of recipients reached"],
)
def test_too_many_in_words(start, connect, without, reply):
    relay = start(without=without)
    limit(relay, 10, reply)
    [report] = transmit(connect(relay), MANY[:25])
    assert told(report) == ["sent"] * 25
    assert taken(relay) == [10, 10, 5]


@WITHOUT
def test_too_many_in_this_hour(start, connect, without):
    """A rate is not a number: to go on at once would not help."""
    relay = start(without=without)
    limit(relay, 10, "450 4.7.1 Error: too many recipients from 192.0.2.1")
    [report] = transmit(connect(relay), MANY[:25])
    assert told(report) == ["sent"] * 10 + ["deferred"] * 15
    assert taken(relay) == [10]


@WITHOUT
@pytest.mark.parametrize("most", [50, 1000, 20_000])
@pytest.mark.parametrize("count", [1_000, 10_000])
def test_a_relay_that_takes_100(start, connect, without, most, count):
    """RFC 5321, 4.5.3.1.8 obliges it to no more."""
    relay = start(without=without)
    limit(relay, 100, "452 4.5.3 Error: too many recipients")
    many = tuple(f"{number}@example.org" for number in range(count))
    [report] = transmit(connect(relay), many, most=most)
    assert set(told(report)) == {"sent"}
    got = [recipient for message in relay.messages for recipient in message.recipients]
    assert sorted(got) == sorted(many)
    per_connection = 100
    assert relay.connections == -(-len(relay.messages) // per_connection)


@WITHOUT
def test_503_to_data_after_too_many_recipients(start, connect, without):
    """The relay forgets those that it had accepted. They follow on their own."""
    relay = start(without=without)
    limit(relay, 100, "452 4.5.3 Too many recipients")
    offered = [0]

    def data(dialogue, usual):
        offered[0] += 1
        refused = "503 5.5.1 Error: need RCPT command"
        said = refused if offered[0] == 1 else usual
        return dialogue.say(said.encode() + b"\r\n")

    relay.on("DATA", data)
    [report] = transmit(connect(relay), MANY, most=1000)
    assert told(report) == ["sent"] * 120
    assert taken(relay) == [100, 20]
    assert relay.connections == 1


@WITHOUT
@pytest.mark.parametrize("stage", ["DATA", "END"])
@pytest.mark.parametrize(
    "reply",
    [
        "554 Transaction failed: Recipient count exceeds 50",
        "554 5.5.3 Sorry",
        "452 4.5.3 Too many recipients",
    ],
)
def test_the_whole_message_has_too_many(start, connect, without, stage, reply):
    """Amazon SES takes 50, and says so in the end."""
    relay = start(without=without)

    def act(dialogue, usual):
        is_over = len(dialogue.recipients) > 50
        said = reply if is_over else usual
        return dialogue.say(said.encode() + b"\r\n")

    relay.on(stage, act)
    first, second = transmit(connect(relay), MANY[:51], MANY[:30], most=1000)
    assert told(first) == ["sent"] * 51
    assert told(second) == ["sent"] * 30
    assert sorted(taken(relay)) in ([25, 26, 30], [4, 25, 26, 26])
    assert relay.connections == 1


@pytest.mark.parametrize("stage", ["DATA", "END"])
def test_the_whole_message_has_too_many_for_one(relay, connect, stage):
    """A relay that says so to any number: no recipient is tried for ever."""
    relay.reply(stage, "554 5.5.3 Too many recipients")
    [report] = transmit(connect(relay), MANY[:10])
    assert told(report) == ["rejected"] * 10
    assert relay.messages == []
    assert sum(command.startswith("MAIL") for command in relay.commands) < 20


@WITHOUT
@pytest.mark.parametrize("ending", [b" 50\r\n", b""])
def test_a_loss_after_the_whole_message_had_too_many(start, connect, without, ending):
    """The reply may be incomplete, too."""
    relay = start(without=without)
    relay.drop("END", after=b"554 Recipient count exceeds" + ending, times=1)
    [report] = transmit(connect(relay), MANY[:51], most=1000)
    assert told(report) == ["sent"] * 51
    assert taken(relay) == [26, 25]
    assert relay.connections == 2


@WITHOUT
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("RCPTMAX=20", [20] * 6),
        ("MAILMAX=5 rcptmax=20", [20] * 6),
        ("RCPTMAX=0", [50, 50, 20]),
        ("RCPTMAX=", [50, 50, 20]),
        ("RCPTMAX=12345678", [50, 50, 20]),
        ("RCPTMAX=all OTHER=1", [50, 50, 20]),
        ("RCPTMAX=\N{ARABIC-INDIC DIGIT FIVE}", [50, 50, 20]),
        ("", [50, 50, 20]),
    ],
)
def test_limits_that_the_relay_announces(start, connect, without, limits, expected):
    relay = start(without=without)
    relay.extensions.append(f"LIMITS {limits}")
    [report] = transmit(connect(relay), MANY)
    assert told(report) == ["sent"] * 120
    assert taken(relay) == expected
    assert relay.connections == (2 if "MAILMAX" in limits else 1)


@WITHOUT
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("RCPTDOMAINMAX=1", [3, 2, 1, 1]),
        ("RCPTDOMAINMAX=2", [5, 2]),
        ("RCPTDOMAINMAX=2 RCPTMAX=4", [4, 2, 1]),
        ("RCPTDOMAINMAX=3", [7]),
    ],
)
def test_a_limit_of_domains(start, connect, without, limits, expected):
    relay = start(without=without)
    relay.extensions.append(f"LIMITS {limits}")
    domains = ["a.example", "A.example", "a.EXAMPLE", "b.example", "b.example"]
    domains += ["c.example", "a.example"]
    to = tuple(f"{number}@{domain}" for number, domain in enumerate(domains))
    [report] = transmit(connect(relay), to)
    assert told(report) == ["sent"] * 7
    assert taken(relay) == expected


@WITHOUT
def test_a_limit_of_messages_for_a_connection(start, connect, without):
    """The next message finds a new connection, also in another pipeline."""
    relay = start(without=without)
    relay.extensions.append("LIMITS MAILMAX=2")
    mailer = connect(relay)
    for _ in range(3):
        [report] = transmit(mailer, MANY[:1])
        assert told(report) == ["sent"]
    assert [message.connection for message in relay.messages] == [1, 1, 2]
    assert relay.commands.count("QUIT") == 1


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
def test_a_loss_after_the_relay_has_shown_its_limit(start, connect, without):
    """The next connection learns it again. Nothing is sent twice."""
    relay = start(without=without)
    limit(relay, 10, "452 4.5.3 Too many recipients")
    relay.drop("END", after=b"250 2.0.0 Taken\r\n", times=1)
    [report] = transmit(connect(relay), MANY)
    assert told(report) == ["sent"] * 120
    got = [recipient for message in relay.messages for recipient in message.recipients]
    assert sorted(got) == sorted(MANY)
    assert max(taken(relay)) == 10
    assert relay.connections == 2


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("reply", ["250 Ok", "550 No", "452 4.2.2 Full", "452 4.5.3 X"])
def test_the_time_for_many_recipients_is_linear(pipelining, reply):
    """Each of 60,000 takes not much longer than each of 3,000.

    It would take twenty times as long if the work grew with the square.
    """

    def seconds_for_each(count):
        many = tuple(f"{number}@example.org" for number in range(count))
        talk = begin(Link(pipelining=pipelining), recipients=many)
        said = parse(reply.encode() + b"\r\n")
        first = [True]
        began = time.process_time()
        while True:
            data = talk.data_to_send()
            for stage in talk.awaited():
                if stage is Stage.RCPT and not first[0]:
                    talk.receive(said)
                else:
                    talk.receive(ORDINARY[stage])
                    first[0] = stage is not Stage.RCPT
            if not data and not talk.awaited():
                break
        [(_, report)] = talk.completed()
        assert len(report.outcomes) == count
        return (time.process_time() - began) / count

    small = min(seconds_for_each(3_000) for _ in range(3))
    assert min(seconds_for_each(60_000) for _ in range(2)) < 8 * small


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
@pytest.mark.parametrize("refusals", [0, 1, 20])
@pytest.mark.parametrize("ending", [b"421 4.7.0 Error: too many errors\r\n", b""])
@pytest.mark.parametrize("reply", ["452 4.5.3 Too many recipients", "452 No more"])
def test_a_relay_that_ends_after_refusals_for_the_number(
    start, connect, without, refusals, ending, reply
):
    """Its refusals have shown the limit. Postfix ends after 20 errors, for example."""
    relay = start(without=without)
    errors = Counter()

    def rcpt(dialogue, usual):
        if len(dialogue.recipients) < 10:
            return dialogue.say(usual.encode() + b"\r\n")
        errors[dialogue.number] += 1
        if errors[dialogue.number] <= refusals:
            return dialogue.say(reply.encode() + b"\r\n")
        dialogue.closing = "close"
        return dialogue.say(ending) if ending else 0

    relay.on("RCPT", rcpt)
    [report] = transmit(connect(relay), MANY)
    if not refusals:
        # Nothing has shown a limit.
        assert report.relay_failure is not None if ending else report.deferred
        return
    assert told(report) == ["sent"] * 120
    got = [recipient for message in relay.messages for recipient in message.recipients]
    assert sorted(got) == sorted(MANY)
    assert relay.connections <= 3


@WITHOUT
@pytest.mark.parametrize("most", [1, 10, 49, 50])
@pytest.mark.parametrize(
    "reply", ["421 4.5.3 Too many recipients", "421 Maximum number of recipients: 10"]
)
def test_a_relay_that_ends_because_of_the_number(start, connect, without, most, reply):
    """It says so with 421, at the first recipient that it does not take."""
    relay = start(without=without)

    def rcpt(dialogue, usual):
        if len(dialogue.recipients) < most:
            return dialogue.say(usual.encode() + b"\r\n")
        dialogue.closing = "close"
        return dialogue.say(reply.encode() + b"\r\n")

    relay.on("RCPT", rcpt)
    [report] = transmit(connect(relay), MANY[:60])
    assert told(report) == ["sent"] * 60
    assert max(taken(relay)) == most
    # One more for the refusal.
    assert relay.connections == (1 if most == 50 else 2)


@WITHOUT
def test_a_relay_that_ends_at_any_number(start, connect, without):
    """No recipient is tried for ever, and it is the relay that fails."""
    relay = start(without=without)
    relay.reply("RCPT", "421 4.5.3 Too many recipients")
    [report] = transmit(connect(relay), MANY[:60])
    assert report.relay_failure.reply == Reply(421, "4.5.3", "Too many recipients")
    assert report.outcomes == ()
    assert relay.connections == 1


@WITHOUT
@pytest.mark.parametrize("errors", [1, 2, 5])
@pytest.mark.parametrize("ending", [b"421 4.7.0 Error: too many errors\r\n", b""])
def test_a_relay_that_ends_after_refusals_of_the_whole(
    start, connect, without, errors, ending
):
    """The halves go on from there, on a new connection."""
    relay = start(without=without)
    seen = Counter()

    def content(dialogue, usual):
        if len(dialogue.recipients) <= 3:
            return dialogue.say(usual.encode() + b"\r\n")
        seen[dialogue.number] += 1
        if seen[dialogue.number] <= errors:
            return dialogue.say(b"554 5.5.3 Too many recipients\r\n")
        dialogue.closing = "close"
        return dialogue.say(ending) if ending else 0

    relay.on("DATA", content)
    [report] = transmit(connect(relay), MANY[:50])
    assert told(report) == ["sent"] * 50
    got = [recipient for message in relay.messages for recipient in message.recipients]
    assert sorted(got) == sorted(MANY[:50])
    assert relay.connections <= 6


@WITHOUT
@pytest.mark.parametrize("most", [50, 77, 100, 120])
@pytest.mark.parametrize(
    "reply", ["452 4.5.3 Too many recipients", "550 5.5.3 Too many recipients"]
)
def test_a_relay_that_refuses_more_on_a_connection(
    start, connect, without, most, reply
):
    """It does not end the connection, so the mailer does."""
    relay = start(without=without)
    seen = Counter()

    def rcpt(dialogue, usual):
        said = usual if seen[dialogue.number] < most else reply
        seen[dialogue.number] += said is usual
        return dialogue.say(said.encode() + b"\r\n")

    relay.on("RCPT", rcpt)
    many = tuple(f"{number}@example.org" for number in range(600))
    [report] = transmit(connect(relay), many)
    assert told(report) == ["sent"] * 600
    got = [recipient for message in relay.messages for recipient in message.recipients]
    assert sorted(got) == sorted(many)
    assert relay.connections <= 600 // 50


@WITHOUT
@pytest.mark.parametrize("count", [1, 2])
def test_a_relay_that_refuses_another_message(start, connect, without, count):
    """The recipients of all messages count."""
    relay = start(without=without)
    seen = Counter()

    def rcpt(dialogue, usual):
        is_over = seen[dialogue.number] >= 10
        seen[dialogue.number] += not is_over
        said = "452 4.5.3 Too many recipients in this session" if is_over else usual
        return dialogue.say(said.encode() + b"\r\n")

    relay.on("RCPT", rcpt)
    reports = transmit(connect(relay), *[MANY[:count]] * 30)
    assert [told(report) for report in reports] == [["sent"] * count] * 30
    assert relay.connections == 3 * count


@WITHOUT
def test_a_relay_that_takes_no_more_at_all(start, connect, without):
    """A new connection does not help, and is tried once."""
    relay = start(without=without)
    seen = []

    def rcpt(dialogue, usual):
        seen.append(usual)
        said = usual if len(seen) <= 50 else "452 4.5.3 Too many recipients"
        return dialogue.say(said.encode() + b"\r\n")

    relay.on("RCPT", rcpt)
    [report] = transmit(connect(relay), MANY)
    assert told(report) == ["sent"] * 50 + ["deferred"] * 70
    assert relay.connections == 2


@WITHOUT
def test_a_limit_that_gets_smaller_until_it_is_one(start, connect, without):
    """The relay ends after each second recipient: it takes no message of two."""
    relay = start(without=without)
    most = Counter()

    def rcpt(dialogue, usual):
        taken = len(dialogue.recipients)
        if taken < max(10 - dialogue.number, 1):
            return dialogue.say(usual.encode() + b"\r\n")
        most[dialogue.number] += 1
        if most[dialogue.number] > 1 or taken == 1:
            dialogue.closing = "close"
        return dialogue.say(b"452 4.5.3 Too many recipients\r\n")

    relay.on("RCPT", rcpt)
    [report] = transmit(connect(relay), MANY[:20])
    assert told(report) == ["sent"] * 20
    assert relay.connections <= 12


@WITHOUT
def test_the_relay_fails_in_the_second(start, connect, without):
    """What was decided stays. The others are left to the next attempt."""
    relay = start(without=without)
    relay.reply("RCPT", "421 4.7.0 Too many errors", address=MANY[60])
    [report] = transmit(connect(relay), MANY)
    assert decided(report) == dict.fromkeys(MANY[:50], "sent")
    assert report.relay_failure.reply == Reply(421, "4.7.0", "Too many errors")
    assert report.undecided == MANY[50:]
    # The message is not to blame: the next attempt begins with those of the second one.
    assert not report.failed_mid_message
    assert taken(relay) == [50]
    # One more connection, because the relay may only have had enough of the first one.
    assert relay.connections == 2


@WITHOUT
@pytest.mark.parametrize("refusal", ["550 5.1.1 Unknown", "450 4.2.0 Later"])
def test_the_relay_fails_after_refusals_in_the_second(start, connect, without, refusal):
    """The others of the second are deferred, and the third one is sent."""
    relay = start(without=without)
    relay.reply("RCPT", refusal, address=MANY[50])
    relay.reply("RCPT", "421 4.7.0 Too many errors", address=MANY[60])
    [report] = transmit(connect(relay), MANY)
    first = "rejected" if refusal.startswith("5") else "deferred"
    assert told(report) == ["sent"] * 50 + [first] + ["deferred"] * 49 + ["sent"] * 20
    assert report.relay_failure is None
    assert taken(relay) == [50, 20]


@WITHOUT
@pytest.mark.parametrize("most", [50, 77, 100, 120])
@pytest.mark.parametrize("ending", [b"421 4.7.0 Too many recipients\r\n", b""])
def test_a_relay_that_takes_so_many_on_a_connection(
    start, connect, without, most, ending
):
    """After whole transmissions, the next one gets a new connection at once."""
    relay = start(without=without)
    seen = Counter()

    def rcpt(dialogue, usual):
        seen[dialogue.number] += 1
        if seen[dialogue.number] <= most:
            return dialogue.say(usual.encode() + b"\r\n")
        dialogue.closing = "close"
        return dialogue.say(ending) if ending else 0

    relay.on("RCPT", rcpt)
    many = tuple(f"{number}@example.org" for number in range(600))
    [report] = transmit(connect(relay), many)
    assert told(report) == ["sent"] * 600
    got = [recipient for message in relay.messages for recipient in message.recipients]
    assert sorted(got) == sorted(many)
    assert relay.connections == -(-600 // (most // 50 * 50))


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
    assert decided(report) == dict.fromkeys(MANY[:50], "sent")
    assert report.relay_failure.reply == Reply(421, "4.3.2", "Bye")
    assert report.undecided == MANY[50:]
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
