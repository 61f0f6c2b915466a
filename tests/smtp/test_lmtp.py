"""LMTP (RFC 2033): a reply to the final dot for each recipient that was accepted."""
from __future__ import annotations

import pytest

from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import message
from tests.smtp.messages import told


D = "d@example.org"
EACH = (B, C, D)

WITHOUT = pytest.mark.parametrize("without", [(), ("PIPELINING",)], ids=str)


@pytest.fixture
def mail_store(connect):
    """Make a mailer for a relay that speaks LMTP."""

    def mail_store(relay, **options):
        return connect(relay, protocol="lmtp", **options)

    return mail_store


def send(mailer, *recipients):
    """Send a message to each of `recipients` in one pipeline."""
    batch = [(SENDER, to, message(number)) for number, to in enumerate(recipients)]
    return [told(report) for report in mailer.send_all(batch)]


def taken(relay):
    return [message.recipients for message in relay.messages]


@WITHOUT
def test_all_are_sent(start, mail_store, without):
    relay = start(without=without)
    results = send(mail_store(relay), EACH, (C,), EACH)
    assert results == [["sent"] * 3, ["sent"], ["sent"] * 3]
    assert taken(relay) == [EACH, (C,), EACH]
    assert relay.connections == 1
    assert relay.commands[0].startswith("LHLO ")


@WITHOUT
def test_each_has_its_own_reply(start, mail_store, without):
    relay = start(without=without)
    relay.reply("END", "452 4.2.2 Mailbox full", address=C)
    relay.reply("END", "550 5.2.1 Mailbox disabled", address=D)
    results = send(mail_store(relay), EACH, (B,), (D, C, B))
    each = ["sent", "deferred", "rejected"]
    assert results == [each, ["sent"], each[::-1]]
    assert taken(relay) == [(B,), (B,), (B,)]


@WITHOUT
def test_refused_recipients_have_no_final_reply(start, mail_store, without):
    relay = start(without=without)
    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    relay.reply("END", "450 4.2.0 Later", address=D)
    expected = ["sent", "rejected", "deferred"]
    assert send(mail_store(relay), EACH, EACH) == [expected] * 2
    assert taken(relay) == [(B,), (B,)]


@WITHOUT
def test_no_recipient_was_accepted(start, mail_store, without):
    """DATA is refused, and the next message is transmitted on the same connection."""
    relay = start(without=without)
    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    assert send(mail_store(relay), (C,), (B,)) == [["rejected"], ["sent"]]
    assert relay.connections == 1


def test_no_recipient_was_accepted_but_data_is_welcome(start, mail_store):
    """The number of replies to a lone dot is not defined. The connection is closed."""
    relay = start()
    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    relay.reply("DATA", "354 Go on", times=1)
    assert send(mail_store(relay), (C,), (B,)) == [["rejected"], ["sent"]]
    assert relay.connections == 2
    assert len(relay.completed) == 1


@WITHOUT
def test_hangs_up_between_two_final_replies(start, mail_store, without):
    """Those without a reply are uncertain. The others are not sent again."""
    relay = start(without=without)
    relay.reply("END", "450 4.2.0 Later", address=B)
    relay.drop("END", address=C, times=1)
    results = send(mail_store(relay), EACH, (D,))
    assert results == [["deferred", "uncertain", "uncertain"], ["sent"]]
    assert relay.connections == 2


@WITHOUT
def test_hangs_up_after_a_part_of_a_final_reply(start, mail_store, without):
    """The code decides."""
    relay = start(without=without)
    relay.drop("END", after=b"550 5.2.1 Dis", address=C, times=1)
    assert send(mail_store(relay), EACH) == [["sent", "rejected", "uncertain"]]


@WITHOUT
def test_refuses_to_work_between_two_final_replies(start, mail_store, without):
    """421 is about one recipient, and nothing was said about the one behind."""
    relay = start(without=without)
    relay.drop("END", after=b"421 4.3.2 Bye\r\n", address=C, times=1)
    results = send(mail_store(relay), EACH, (D,))
    assert results == [["sent", "deferred", "uncertain"], ["sent"]]


@WITHOUT
def test_refuses_to_work_at_the_only_final_reply(start, mail_store, without):
    """The relay has failed, as in SMTP."""
    relay = start(without=without)
    relay.drop("END", after=b"421 4.3.2 Bye\r\n", address=C)
    assert send(mail_store(relay), (C,), (B,)) == ["relay", "relay"]


def test_a_reply_to_another_command(start, mail_store):
    relay = start(without=["PIPELINING"])
    relay.reply("END", "354 Go on", address=C)
    assert send(mail_store(relay), EACH) == [["sent", "uncertain", "uncertain"]]


@WITHOUT
def test_many_recipients(start, mail_store, without):
    many = tuple(f"{number}@example.org" for number in range(120))
    relay = start(without=without)
    relay.reply("END", "450 4.2.0 Later", address=many[70])
    [result] = send(mail_store(relay), many)
    assert result == ["sent"] * 70 + ["deferred"] + ["sent"] * 49
    assert list(map(len, taken(relay))) == [50, 49, 20]
    assert relay.connections == 1
