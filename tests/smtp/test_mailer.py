"""`SMTPMailer`: arguments, options, events and logs."""
from __future__ import annotations

import inspect
import logging
import resource
import socket

import pytest
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject
from zope.schema import getFieldsInOrder

from postcommit import DirectMailDelivery
from postcommit import FailoverMailer
from postcommit import FileMailer
from postcommit import SendmailMailer
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import AddressError
from postcommit.errors import DeliveryError
from postcommit.errors import MessageTypeError
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailRejectedEvent
from postcommit.interfaces import IMailSentEvent
from postcommit.interfaces import ISMTPMailer
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import told


def test_keeps_the_contract():
    verifyClass(ISMTPMailer, SMTPMailer)
    verifyObject(ISMTPMailer, SMTPMailer())


def test_defaults_are_those_of_the_schema():
    parameters = inspect.signature(SMTPMailer).parameters
    mailer = SMTPMailer()
    for name, field in getFieldsInOrder(ISMTPMailer):
        assert parameters[name].default == field.default, name
        assert getattr(mailer, name) == field.default, name


def test_original_arguments_have_their_places():
    mailer = SMTPMailer("mail.example", 587, "me", "secret")
    assert (mailer.hostname, mailer.port) == ("mail.example", 587)
    assert (mailer.username, mailer.password) == ("me", "secret")
    with pytest.raises(TypeError):
        SMTPMailer("mail.example", 587, "me", "secret", "starttls")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hostname", ""),
        ("hostname", "a\nb"),
        ("hostname", "relay:587"),
        ("hostname", "smtp://relay"),
        ("hostname", "relay example"),
        ("hostname", "user@relay"),
        ("hostname", "/"),
        ("helo_name", ""),
        ("helo_name", "a b"),
        ("helo_name", "web\r\nMAIL FROM:<>"),
        ("helo_name", "web\n"),
        ("helo_name", "web_1.example.org"),
        ("helo_name", "-web"),
        ("helo_name", "web."),
        ("helo_name", "b\u00fccher.example"),
        ("helo_name", "x" * 64 + ".example"),
        ("helo_name", "192.0.2.1"),
        ("helo_name", "2001:db8::1"),
        ("helo_name", "[192.0.2]"),
        ("helo_name", "[192.0.2.1"),
        ("helo_name", "[IPv6:192.0.2.1]"),
        ("helo_name", "[2001:db8::1]"),
        ("helo_name", "[IPv6:2001:db8::1::2]"),
        ("helo_name", "[IPv6:]"),
        ("helo_name", "[]"),
        ("source_address", "web"),
        ("port", 70000),
        ("port", 0),
        ("port", True),
        ("tls", "yes"),
        ("tls", True),
        ("verify", "yes"),
        ("timeout", 0),
        ("connect_timeout", None),
        ("messages_per_connection", 0),
        ("idle_timeout", -1.0),
        ("pipelining", None),
        ("cafile", 7),
        ("password", 7),
    ],
)
def test_options_that_can_never_work(name, value):
    with pytest.raises(OptionError, match=name):
        SMTPMailer(**{name: value})


@pytest.mark.parametrize(
    "hostname",
    ["relay", "r\u00e9lais.example", "192.0.2.1", "::1", "fe80::1%eth0", "/run/lmtp"],
)
def test_names_and_addresses_of_a_relay(hostname):
    assert SMTPMailer(hostname).hostname == hostname


def test_returns_a_report(relay, connect):
    report = connect(relay).send(SENDER, [B, C], MESSAGE)
    verifyObject(IDeliveryReport, report)
    assert report.message_id == "1@example.org"
    assert report.recipients == (B, C)
    report.raise_for_failure()


def test_no_file_descriptor_for_a_connection():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        report = SMTPMailer("127.0.0.1", notify=str).send(SENDER, B, MESSAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "no connection to 127.0.0.1:25" in str(report.relay_failure)
    assert "Too many open files" in str(report.relay_failure)


def test_completes_the_message(relay, connect):
    report = connect(relay).send(
        f"A <{SENDER}>", f"B <{B}>", "Subject: x\nBcc: c@example.org\n\nx\n"
    )
    [message] = relay.messages
    assert (message.sender, message.recipients) == (SENDER, (B,))
    assert f"Message-Id: <{report.message_id}>\r\n".encode() in message.data
    assert b"Bcc" not in message.data


def test_the_null_sender(relay, connect):
    assert told(connect(relay).send("", B, MESSAGE)) == ["sent"]
    assert relay.messages[0].sender == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((SENDER, [], MESSAGE), AddressError),
        ((SENDER, "x\r\nRCPT TO:<y>@example.org", MESSAGE), AddressError),
        (("a\n@example.org", B, MESSAGE), AddressError),
        ((SENDER, B, None), MessageTypeError),
    ],
)
def test_arguments_that_can_never_work(relay, connect, arguments, error):
    mailer = connect(relay)
    with pytest.raises(error):
        mailer.send(*arguments)
    assert relay.connections == 0
    assert mailer.events == []


def test_events(relay, connect):
    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    mailer = connect(relay)
    mailer.send(SENDER, [B, C], MESSAGE)
    sent, rejected = mailer.events
    assert IMailSentEvent.providedBy(sent)
    assert (sent.messageId, sent.recipients) == ("1@example.org", (B,))
    assert IMailRejectedEvent.providedBy(rejected)
    assert rejected.recipients == (C,)
    assert rejected.reply.code == 550


def test_a_line_in_the_log_for_each_recipient(relay, connect, caplog):
    relay.reply("RCPT", "550 5.1.1 Unknown", address=C)
    with caplog.at_level(logging.INFO):
        connect(relay).send(SENDER, [B, C], MESSAGE)
    assert [record.getMessage() for record in caplog.records] == [
        "<1@example.org> to b@example.org: sent: 250 2.0.0 Taken",
        "<1@example.org> to c@example.org: rejected: 550 5.1.1 Unknown",
    ]


def test_raise_for_failure(relay, connect):
    relay.reply("END", "554 5.6.0 Spam")
    with pytest.raises(DeliveryError, match=r"554 5\.6\.0 Spam"):
        connect(relay).send(SENDER, B, MESSAGE).raise_for_failure()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("web.example.org", "web.example.org"),
        ("web", "[127.0.0.1]"),
        ("web_1.example.org", "[127.0.0.1]"),
        ("10.0.0.1", "[127.0.0.1]"),
        ("a b.example", "[127.0.0.1]"),
    ],
)
def test_what_it_calls_itself(relay, connect, monkeypatch, name, said):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(socket, "getfqdn", None)
    connect(relay).check()
    assert relay.commands[0] == f"EHLO {said}"


@pytest.mark.parametrize(
    "name",
    [
        "shop.example.org",
        "localhost",
        "a-1.xn--bcher-kva.example",
        "1und1.example",
        "[192.0.2.1]",
        "[IPv6:2001:db8::1]",
        "[IPv6:::ffff:192.0.2.1]",
    ],
)
def test_it_calls_itself_as_it_was_told(start, connect, name):
    relay = start()
    connect(relay, helo_name=name).check()
    assert relay.commands[0] == f"EHLO {name}"


def test_a_name_that_is_refused_shows_the_remedy():
    with pytest.raises(OptionError, match=r"helo_name='192.*such as '\[192\.0\.2"):
        SMTPMailer(helo_name="192.0.2.1")


# Relays without EHLO


def no_ehlo(relay, reply):
    relay.extensions = []
    relay.reply("EHLO", reply)


@pytest.mark.parametrize("reply", ["500 Unknown", "502 5.5.1 Not implemented"])
@pytest.mark.parametrize("tls", ["auto", "none"])
def test_helo_where_ehlo_is_unknown(relay, connect, reply, tls):
    no_ehlo(relay, reply)
    mailer = connect(relay, tls=tls, helo_name="shop.example.org")
    assert told(mailer.send(SENDER, [B, C], MESSAGE)) == ["sent", "sent"]
    assert relay.commands[:2] == ["EHLO shop.example.org", "HELO shop.example.org"]
    assert relay.commands[2] == f"MAIL FROM:<{SENDER}>"
    assert told(mailer.send(SENDER, B, "Subject: \xe4\n\nx\n")) == ["sent"]
    assert relay.connections == 1


def test_helo_is_refused_too(relay, connect):
    no_ehlo(relay, "502 5.5.1 No")
    relay.reply("HELO", "550 5.7.1 Go away")
    with pytest.raises(RelayError, match=r"HELO refused: 550 5\.7\.1 Go away"):
        connect(relay).check()


@pytest.mark.parametrize("reply", ["550 5.7.1 No", "501 5.5.2 No", "504 5.5.1 Odd"])
def test_no_helo_after_another_refusal(relay, connect, reply):
    no_ehlo(relay, reply)
    report = connect(relay, helo_name="shop").send(SENDER, B, MESSAGE)
    hint = "; set helo_name to a name that the relay accepts, it is 'shop'"
    told = f"127.0.0.1:{relay.port}: EHLO refused: {reply}"
    told += hint * reply.startswith("50")
    assert str(report.relay_failure) == told
    assert not any(command.startswith("HELO") for command in relay.commands)


@pytest.mark.parametrize(
    ("options", "need"),
    [
        ({"tls": "starttls"}, "STARTTLS"),
        ({"username": "me", "password": "secret"}, "a login"),
    ],
)
def test_helo_is_not_enough(relay, connect, options, need):
    no_ehlo(relay, "502 5.5.1 Not implemented")
    text = f"EHLO refused: 502.*; HELO is not enough for {need}"
    with pytest.raises(RelayError, match=text) as caught:
        connect(relay, **options).check()
    assert caught.value.reply.code == 502
    assert not any(command.startswith("HELO") for command in relay.commands)


def test_helo_under_tls(start, connect, authority):
    relay = start(tls=authority.server(), implicit_tls=True)
    no_ehlo(relay, "500 5.5.1 What?")
    mailer = connect(relay, tls="implicit", cafile=authority.cafile)
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["sent"]
    assert relay.messages[0].tls


@pytest.mark.parametrize("code", [500, 502])
def test_no_helo_in_lmtp(start, connect, code):
    relay = start()
    relay.reply("EHLO", f"{code} 5.5.1 What?")
    with pytest.raises(RelayError, match=f"LHLO refused: {code}"):
        connect(relay, protocol="lmtp").check()
    assert [command.partition(" ")[0] for command in relay.commands] == ["LHLO"]


def test_tells_where_it_goes():
    assert repr(SMTPMailer("mail.example", 587)) == "<SMTPMailer mail.example:587>"
    assert repr(SMTPMailer("/run/dovecot/lmtp")) == "<SMTPMailer /run/dovecot/lmtp>"


# Options


def test_the_relay_cannot_be_assigned(relay, connect):
    mailer = connect(relay)
    with pytest.raises(AttributeError):
        mailer.relay = None
    assert send_to(mailer) == ["sent"]


def send_to(mailer):
    return told(mailer.send(SENDER, B, MESSAGE))


@pytest.mark.parametrize("kind", [SMTPMailer, SendmailMailer, FileMailer])
def test_notify_is_a_function(kind, tmp_path):
    options = {"folder": str(tmp_path)} if kind is FileMailer else {}
    with pytest.raises(OptionError, match="notify=5: must be a function"):
        kind(notify=5, **options)
    with pytest.raises(OptionError, match="notify=5: must be a function"):
        FailoverMailer([SMTPMailer()], notify=5)


@pytest.mark.parametrize("made", [DirectMailDelivery, lambda m: FailoverMailer([m])])
def test_a_class_is_not_a_mailer(made):
    with pytest.raises(OptionError, match="must be a mailer, not its class"):
        made(SMTPMailer)


def test_a_subclass_may_have_an_option_as_a_property(relay):
    class Fixed(SMTPMailer):
        @property
        def port(self):
            return relay.port

    assert send_to(Fixed("127.0.0.1")) == ["sent"]


def test_a_token_that_cannot_be_compared(start):
    class Token:
        def __hash__(self):
            return 1

        def __eq__(self, other):
            raise KeyError("no comparison")

        def __call__(self):
            return "good"

    relay = start(tokens=["good"], mechanisms=["XOAUTH2"])
    for _ in range(2):
        mailer = SMTPMailer("127.0.0.1", relay.port, "me", token=Token())
        assert send_to(mailer) == ["sent"]
        mailer.close()


def test_a_name_without_addresses(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *args: [])
    failure = SMTPMailer("mx.example.org").send(SENDER, B, MESSAGE).relay_failure
    told = "no connection to mx.example.org:25: the name has no address"
    assert str(failure) == told


def test_an_ipv6_address_is_shown_in_brackets():
    assert str(SMTPMailer("::1", 2525).relay) == "[::1]:2525"
    assert str(SMTPMailer("/run/relay").relay) == "/run/relay"
