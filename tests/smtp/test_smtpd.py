"""The scripted relay itself, seen by smtplib."""
from __future__ import annotations

import smtplib
import ssl

import pytest

from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay


def client(relay: ScriptedRelay) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", relay.port, local_hostname="client.example")


def test_takes_a_message():
    with ScriptedRelay() as relay, client(relay) as smtp:
        smtp.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\n.x\r\n")
        [message] = relay.messages
    assert message.sender == "a@example.org"
    assert message.recipients == ("b@example.org",)
    assert message.data == b"Subject: x\r\n\r\n.x\r\n"
    assert message.raw == b"Subject: x\r\n\r\n..x\r\n.\r\n"
    assert relay.violations == []


def test_says_what_the_script_has():
    with ScriptedRelay() as relay, client(relay) as smtp:
        relay.reply("RCPT", "450 4.2.0 Later", address="b@example.org", times=1)
        to = ["b@example.org", "c@example.org"]
        refused = smtp.sendmail("a@example.org", to, b"x\r\n")
        assert refused == {"b@example.org": (450, b"4.2.0 Later")}
        assert smtp.sendmail("a@example.org", to, b"x\r\n") == {}
    assert [m.recipients for m in relay.messages] == [("c@example.org",), tuple(to)]


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END"])
def test_hangs_up_at_each_stage(stage):
    with ScriptedRelay() as relay:
        relay.drop(stage)
        if stage == "EHLO":  # smtplib takes it for one without ESMTP
            relay.drop("HELO")
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client(relay).sendmail("a@example.org", ["b@example.org"], b"x\r\n")
        assert relay.messages == []
        assert len(relay.completed) == (stage == "END")


def test_tells_of_bare_line_feeds():
    with ScriptedRelay() as relay, client(relay) as smtp:
        smtp.ehlo()
        smtp.mail("a@example.org")
        smtp.rcpt("b@example.org")
        smtp.docmd("DATA")
        smtp.send(b"x\ny\r\n.\r\n")
        smtp.getreply()
    assert relay.violations == ["bare CR or LF in data"]


def test_speaks_tls(tmp_path):
    authority = Authority(tmp_path)
    context = ssl.create_default_context(cafile=authority.cafile)
    with ScriptedRelay(tls=authority.server()) as relay, client(relay) as smtp:
        smtp.starttls(context=context)
        smtp.sendmail("a@example.org", ["b@example.org"], b"x\r\n")
    assert [message.tls for message in relay.messages] == [True]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_lets_users_in(mechanism):
    with ScriptedRelay(users={"me": "secret"}, mechanisms=[mechanism]) as relay:
        with client(relay) as smtp:
            smtp.login("me", "secret")
        with client(relay) as smtp, pytest.raises(smtplib.SMTPAuthenticationError):
            smtp.login("me", "wrong")
    assert relay.violations == []


def test_goes_and_comes_back():
    with ScriptedRelay() as relay:
        client(relay).close()
        relay.down()
        with pytest.raises(ConnectionRefusedError):
            client(relay)
        relay.up()
        client(relay).close()
    assert relay.connections == 2
