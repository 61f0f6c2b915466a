"""The failure table, at every stage, with and without pipelining."""
from __future__ import annotations

import pytest

from postcommit._mail.report import Reply
from postcommit.errors import RelayError
from postcommit.interfaces import Status
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import message
from tests.smtp.messages import side_by_side
from tests.smtp.messages import told


pytestmark = pytest.mark.parametrize("without", [(), ("PIPELINING",)], ids=str)

RELAY = "relay"
SENT = [Status.SENT.value] * 2
DEFERRED = [Status.DEFERRED.value] * 2
REJECTED = [Status.REJECTED.value] * 2
UNCERTAIN = [Status.UNCERTAIN.value] * 2

REPLIES = [
    ("CONNECT", "421 4.3.2 Busy", RELAY),
    ("CONNECT", "450 4.3.2 Busy", RELAY),
    ("CONNECT", "554 5.7.1 No", RELAY),
    ("EHLO", "421 4.3.2 Busy", RELAY),
    ("EHLO", "450 4.3.2 Busy", RELAY),
    ("EHLO", "550 5.7.1 No", RELAY),
    *[
        (stage, reply, expected)
        for stage in ("MAIL", "RCPT", "DATA", "END")
        for reply, expected in [
            ("421 4.3.2 Busy", RELAY),
            ("450 4.2.0 Later", DEFERRED),
            ("451 4.3.0 Later", DEFERRED),
            ("530 5.7.0 Log in first", RELAY),
            ("550 5.7.1 No", REJECTED),
            ("552 5.3.4 Too much", DEFERRED if stage == "RCPT" else REJECTED),
            ("554 5.7.1 No", REJECTED),
        ]
    ],
]


@pytest.mark.parametrize(("stage", "reply", "expected"), REPLIES)
def test_replies(start, connect, without, stage, reply, expected):
    relay = start(without=without)
    relay.reply(stage, reply, times=None if stage in ("CONNECT", "RCPT") else 1)
    mailer = connect(relay)
    report = mailer.send(SENDER, [B, C], MESSAGE)
    assert told(report) == expected
    assert relay.messages == []
    if expected == RELAY:
        said = Reply(int(reply[:3]), reply[4:9], reply[10:])
        assert report.relay_failure.reply == said
        assert str(report.relay_failure).endswith(reply)
    else:
        assert {str(outcome.reply) for outcome in report.outcomes} == {reply}
    # nothing of it leaks into the next message
    relay.script.clear()
    assert told(mailer.send(SENDER, [B, C], message(2))) == SENT
    assert [m.recipients for m in relay.messages] == [(B, C)]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("CONNECT", RELAY),
        ("EHLO", RELAY),
        ("MAIL", DEFERRED),
        ("RCPT", DEFERRED),
        ("DATA", DEFERRED),
        ("END", UNCERTAIN),
        ("QUIT", SENT),
    ],
)
def test_hanging_up(start, connect, without, stage, expected, reset):
    relay = start(without=without)
    relay.drop(stage, reset=reset, times=1)
    mailer = connect(relay, messages_per_connection=1)
    report = mailer.send(SENDER, [B, C], MESSAGE)
    assert told(report) == expected
    if expected == RELAY:
        assert isinstance(report.relay_failure, RelayError)
        assert report.relay_failure.reply is None
    assert told(mailer.send(SENDER, [B, C], message(2))) == SENT


def test_falling_silent(start, connect, without):
    expected = {
        "CONNECT": RELAY,
        "EHLO": RELAY,
        "MAIL": RELAY,
        "RCPT": RELAY,
        "DATA": RELAY,
        "END": UNCERTAIN,
        "QUIT": SENT,
    }

    def fall_silent(stage):
        relay = start(without=without)
        hold = relay.hold(stage)
        mailer = connect(relay, messages_per_connection=1, timeout=1)
        outcome = told(mailer.send(SENDER, [B, C], MESSAGE))
        assert hold.reached.is_set()
        hold.release()
        if stage == "END":  # it took the message after all
            relay.wait_until(lambda: not relay.open)
            assert len(relay.completed) == 1
        return stage, outcome

    assert dict(side_by_side(fall_silent, [(stage,) for stage in expected])) == expected


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize(
    "garbage", [b"hello\r\n", b"2\r\n", b"999 x\r\n", b"\r\n", b"2500\r\n"]
)
def test_garbage(start, connect, without, stage, garbage):
    relay = start(without=without)
    relay.reply(stage, garbage)
    assert told(connect(relay).send(SENDER, [B, C], MESSAGE)) == RELAY
    assert relay.messages == []


def test_garbage_in_reply_to_the_final_dot(start, connect, without):
    relay = start(without=without)
    relay.reply("END", b"hello\r\n")
    assert told(connect(relay).send(SENDER, [B, C], MESSAGE)) == UNCERTAIN


# What follows a code, and is not as RFC 5321, 4.2 has it.
TAILS = [
    b"\r\r\n",
    b" text\r\r\n",
    b"\n",
    b"text\r\n",
    b"\t\r\n",
    b"_\r\n",
    b" \0\r\n",
    b" \xff\xfe\r\n",
    b" a\rb\r\n",
    b" " + b"x" * 10_000 + b"\r\n",
]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    ("stage", "code", "expected"),
    [
        ("CONNECT", b"220", SENT),
        ("EHLO", b"250", SENT),
        ("MAIL", b"250", SENT),
        ("MAIL", b"450", DEFERRED),
        ("RCPT", b"250", SENT),
        ("RCPT", b"550", REJECTED),
        ("DATA", b"354", SENT),
        ("DATA", b"550", REJECTED),
        ("END", b"250", SENT),
        ("END", b"450", DEFERRED),
        ("END", b"550", REJECTED),
        ("QUIT", b"221", SENT),
    ],
)
def test_what_follows_a_code_decides_nothing(
    start, connect, without, stage, code, expected, tail
):
    relay = start(without=without)

    def say(dialogue, usual):
        return dialogue.say(code + tail)

    relay.on(stage, say)
    mailer = connect(relay)
    assert told(mailer.send(SENDER, [B, C], MESSAGE)) == expected
    assert len(relay.messages) == (expected == SENT)
    assert told(mailer.send(SENDER, [B, C], MESSAGE)) == expected
    assert relay.connections == 1


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(250, 550, REJECTED), (550, 250, SENT), (250, 450, DEFERRED), (250, 251, SENT)],
)
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "END"])
def test_the_code_of_the_last_line_counts(
    start, connect, without, stage, first, last, expected
):
    relay = start(without=without)

    def say(dialogue, usual):
        dialogue.say(b"%d-some\r\n%d text\r\n" % (first, last))
        return last

    relay.on(stage, say)
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    assert told(report) == expected
    assert len(relay.messages) == (expected == SENT)
    if expected == REJECTED:
        assert report.rejected[0].reply == Reply(550, "", "some\ntext")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"2", UNCERTAIN),
        (b"25", UNCERTAIN),
        (b"250", SENT),
        (b"250 2.0.0 Que", SENT),
        (b"250-2.0.0 Que", SENT),
        (b"250-2.0.0 Queued\r\n", SENT),
        (b"250-2.0.0 Queued\r\n25", SENT),
        (b"250-2.0.0 Queued\r\nas 1", SENT),
        (b"550 5.7.1 N", REJECTED),
        (b"550-5.7.1 No\r\n", REJECTED),
        (b"450 4.2", DEFERRED),
        (b"421 4.3.2", RELAY),
        (b"354 Go", UNCERTAIN),
        (b"2500", UNCERTAIN),
        (b"hello", UNCERTAIN),
    ],
)
@pytest.mark.parametrize("how", ["close", "silence", "flood"])
def test_a_reply_to_the_final_dot_that_breaks_off(
    start, connect, without, said, expected, how
):
    """Its code decides. If it were uncertain, the relay would get the message again."""
    relay = start(without=without)
    hold = relay.hold("QUIT")

    def break_off(dialogue, usual):
        dialogue.say(said)
        if how == "close":
            dialogue.closing = "close"
        elif how == "silence":
            dialogue.flush()
            hold.wait()
        elif not said[-1:].isdigit():
            dialogue.say(b"x" * (1 << 20))
        else:
            dialogue.closing = "close"
        return 0

    relay.on("END", break_off)
    mailer = connect(relay, timeout=0.2 if how == "silence" else 5)
    report = mailer.send(SENDER, [B, C], MESSAGE)
    hold.release()
    assert told(report) == expected


def test_one_of_two_recipients_is_refused(start, connect, without):
    relay = start(without=without)
    relay.reply("RCPT", "450 4.2.0 Greylisted", address=B)
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    assert told(report) == ["deferred", "sent"]
    assert str(report.deferred[0].reply) == "450 4.2.0 Greylisted"
    assert [m.recipients for m in relay.messages] == [(C,)]


def test_recipients_keep_their_own_replies(start, connect, without):
    relay = start(without=without)
    relay.reply("RCPT", "450 4.2.0 Later", address=B)
    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    assert told(report) == ["deferred", "rejected"]
    assert [o.reply.code for o in report.outcomes] == [450, 550]


def test_refused_by_the_envelope_accepted_and_refused_at_the_end(
    start, connect, without
):
    relay = start(without=without)
    relay.reply("RCPT", "450 4.2.0 Later", address=B)
    relay.reply("END", "554 5.6.0 Spam")
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    assert told(report) == ["deferred", "rejected"]


@pytest.mark.parametrize("stage", ["RCPT", "DATA", "END"])
def test_too_many_errors(start, connect, without, stage):
    """What the relay refused before it hung up is not tried again for ever."""
    relay = start(without=without)
    relay.reply("RCPT", "550 5.1.1 Unknown", address=B)
    relay.drop(
        stage, after="421 4.7.0 Too many errors", address=C if stage == "RCPT" else None
    )
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    assert told(report) == ["rejected", "deferred"]
    assert report.deferred[0].reply.code == 421


def test_hanging_up_after_refusals(start, connect, without):
    relay = start(without=without)
    relay.reply("RCPT", "550 5.1.1 Unknown", address=B)
    relay.drop("RCPT", address=C)
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    assert told(report) == ["rejected", "deferred"]
    assert report.deferred[0].reply.enhanced == "4.4.2"


def test_silence_after_refusals(start, connect, without):
    relay = start(without=without)
    relay.reply("RCPT", "550 5.1.1 Unknown", address=B)
    relay.hold("RCPT", address=C)
    report = connect(relay, timeout=0.5).send(SENDER, [B, C], MESSAGE)
    assert told(report) == ["rejected", "deferred"]


def test_a_greeting_with_two_codes(start, connect, without):
    """As Postfix's postscreen says it. The last code counts, all texts are shown."""
    relay = start(without=without)
    denied = "521 5.3.2 Service denied: blocked using dnsbl.example"
    relay.reply("CONNECT", ["220-mx.example.org ESMTP", denied])
    mailer = connect(relay)
    report = mailer.send(SENDER, [B, C], MESSAGE)
    assert report.relay_failure.reply.code == 521
    assert report.relay_failure.reply.enhanced == "5.3.2"
    for text in ("mx.example.org ESMTP", "Service denied: blocked using dnsbl.example"):
        assert text in report.relay_failure.reply.text
        with pytest.raises(RelayError, match=text):
            mailer.check()


def test_a_recipient_refused_with_two_codes(start, connect, without):
    relay = start(without=without)
    reply = ["550-5.1.1 Unknown here", "554 5.7.1 And not relayed"]
    relay.reply("RCPT", reply, address=B)
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    assert told(report) == ["rejected", "sent"]
    expected = Reply(554, "5.7.1", "5.1.1 Unknown here\nAnd not relayed")
    assert report.rejected[0].reply == expected


@pytest.mark.parametrize("end", ["250 2.0.0 Taken", "554 5.5.1 No recipients", None])
def test_all_refused_and_data_welcome_all_the_same(start, connect, without, end):
    relay = start(without=without)
    relay.reply("RCPT", "550 5.1.1 Unknown", times=1)
    relay.reply("DATA", "354 Go on", times=1)
    if end is None:
        relay.drop("END", times=1)
    elif end.startswith("5"):
        relay.reply("END", end, times=1)
    mailer = connect(relay)
    assert told(mailer.send(SENDER, [B], MESSAGE)) == ["rejected"]
    relay.script.clear()
    assert told(mailer.send(SENDER, [B], message(2))) == ["sent"]
    if "PIPELINING" not in without:
        assert relay.completed[0].raw == b".\r\n"
    assert [m.recipients for m in relay.messages] == [(B,)]


def test_the_sender_is_refused_and_all_else_welcome_all_the_same(
    start, connect, without
):
    relay = start(without=without)
    relay.reply("MAIL", "550 5.7.1 No", times=1)
    relay.reply("RCPT", "250 2.1.5 Welcome", times=1)
    relay.reply("DATA", "354 Go on", times=1)
    mailer = connect(relay)
    assert told(mailer.send(SENDER, [B], MESSAGE)) == ["rejected"]
    relay.script.clear()
    assert told(mailer.send(SENDER, [B], message(2))) == ["sent"]
    assert [m.recipients for m in relay.messages] == [(B,)]


def test_a_sender_who_is_welcome_in_other_words(start, connect, without):
    relay = start(without=without)
    relay.reply("MAIL", "251 2.1.0 Welcome", times=1)
    assert told(connect(relay).send(SENDER, [B, C], MESSAGE)) == SENT


def test_a_batch_with_a_message_for_nobody(start, connect, without):
    messages = [(SENDER, (), MESSAGE), (SENDER, (B,), message(2))]
    reports = list(connect(start(without=without)).send_all(messages))
    assert [told(report) for report in reports] == [[], ["sent"]]


def test_a_recipient_to_whom_it_will_be_forwarded(start, connect, without):
    relay = start(without=without)
    relay.reply("RCPT", "251 2.1.5 User not local; will forward", times=1)
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    assert told(report) == SENT
    assert [m.recipients for m in relay.messages] == [(B, C)]


@pytest.mark.parametrize("number", [99, 100, 101, 250])
def test_many_recipients(start, connect, without, number):
    relay = start(without=without)
    recipients = [f"r{i}@example.org" for i in range(number)]
    relay.reply("RCPT", "550 5.1.1 Unknown", address=recipients[-1])
    report = connect(relay, recipients_per_transaction=1000).send(
        SENDER, recipients, MESSAGE
    )
    assert told(report) == ["sent"] * (number - 1) + ["rejected"]
    assert relay.messages[0].recipients == tuple(recipients[:-1])


def test_many_recipients_and_a_refused_sender(start, connect, without):
    relay = start(without=without)
    relay.reply("MAIL", "550 5.7.1 No")
    recipients = [f"r{i}@example.org" for i in range(250)]
    report = connect(relay, recipients_per_transaction=1000).send(
        SENDER, recipients, MESSAGE
    )
    assert told(report) == ["rejected"] * 250
    assert len(relay.commands) < 110


def test_hangs_up_in_the_middle_of_the_message(start, connect, without):
    relay = start(without=without)
    relay.cut(received=5000)
    # More than the system keeps for a socket to send.
    big = MESSAGE + (b"x" * 70 + b"\r\n") * 140_000
    assert told(connect(relay).send(SENDER, [B, C], big)) == DEFERRED


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"552 5.3.4 Too big\r\n", REJECTED),
        (b"452 4.3.1 Full\r\n", DEFERRED),
        (b"421 4.3.2 Bye\r\n", RELAY),
        (b"250 2.0.0 Hm\r\n", DEFERRED),
    ],
)
def test_says_why_in_the_middle_of_the_message(
    start, connect, without, reply, expected
):
    relay = start(without=without)

    def refuse(dialogue, usual):
        dialogue.say(b"354 Go on\r\n")
        dialogue.flush()
        dialogue.fill()  # the message has begun
        dialogue.say(reply)
        dialogue.hang_up()

    relay.on("DATA", refuse)
    big = MESSAGE + (b"x" * 70 + b"\r\n") * 100_000
    assert told(connect(relay).send(SENDER, [B, C], big)) == expected


def test_does_not_read_the_message(start, connect, without):
    relay = start(without=without)

    def stall(dialogue, usual):
        dialogue.say(b"354 Go on\r\n")
        dialogue.flush()
        relay.stopping.wait()
        dialogue.hang_up()

    relay.on("DATA", stall)
    big = MESSAGE + (b"x" * 70 + b"\r\n") * 100_000
    assert told(connect(relay, timeout=0.2).send(SENDER, [B, C], big)) == RELAY
