"""Deliveries with a sender for messages that have none."""
from __future__ import annotations

from email.header import decode_header
from email.header import make_header

import pytest
import transaction
from transaction import TransactionManager
from zope.interface.verify import verifyObject

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit.errors import OptionError
from postcommit.interfaces import IDefaultSender
from postcommit.testing import RecordingMailer


SHOP = "The Shop <shop@example.org>"


@pytest.fixture
def mailer():
    return RecordingMailer()


@pytest.fixture
def delivery(mailer):
    return DirectMailDelivery(mailer, default_sender=SHOP)


def send(delivery, *args):
    with transaction.manager:
        message_id = delivery.send(*args)
    [mail] = delivery.mailer.outbox
    assert mail.message_id == message_id
    return mail


def test_both_deliveries_have_the_option(delivery, mailer):
    queued = QueuedMailDelivery("queue", default_sender=SHOP)
    for each in (delivery, queued):
        verifyObject(IDefaultSender, each)
        assert each.default_sender == SHOP
        assert each.bind(TransactionManager()).default_sender == SHOP
    for each in (DirectMailDelivery(mailer), QueuedMailDelivery("queue")):
        assert each.default_sender is IDefaultSender["default_sender"].default is None


@pytest.mark.parametrize("to", [None, "b@example.org"])
def test_a_message_without_a_sender(delivery, to):
    text = "To: b@example.org\nBcc: c@example.org\nSubject: x\n\nFrom: nobody\n"
    mail = send(delivery, None, to, text)
    assert mail.sender == "shop@example.org"
    assert mail.message["From"] == SHOP
    expected = ("b@example.org",) if to else ("b@example.org", "c@example.org")
    assert mail.recipients == expected
    assert mail.message["Bcc"] is None
    assert mail.text == "From: nobody\n"


@pytest.mark.parametrize("name", ["From", "sender"])
def test_a_message_with_a_sender(delivery, name):
    mail = send(delivery, None, "b@example.org", f"{name}: a@example.org\n\nx\n")
    assert mail.sender == "a@example.org"
    assert mail.message.get_all(name) == ["a@example.org"]


def test_recipients_that_can_be_read_once(delivery):
    to = (f"{name}@example.org" for name in "bc")
    mail = send(delivery, None, to, "From: a@example.org\n\nx\n")
    assert mail.recipients == ("b@example.org", "c@example.org")


@pytest.mark.parametrize(
    ("sender", "field"),
    [
        ("Bücher <shop@example.org>", "=?utf-8?q?B=C3=BCcher?= <shop@example.org>"),
        ('"Shop, The" <shop@example.org>', '"Shop, The" <shop@example.org>'),
        ("shop@bücher.example", "shop@xn--bcher-kva.example"),
        (
            "Größe <shop@größe.example>",
            "=?utf-8?b?R3LDtsOfZQ==?= <shop@xn--gre-6ka8i.example>",
        ),
        ("Council: Reform <site@x.org>", '"Council: Reform" <site@x.org>'),
        ("Shop [EU] <site@x.org>", '"Shop [EU]" <site@x.org>'),
        ("@home <site@x.org>", '"@home" <site@x.org>'),
        ('"The \\"Shop\\"" <site@x.org>', '"The \\"Shop\\"" <site@x.org>'),
        ("=?utf-8?q?=C3=84?= <site@x.org>", "=?utf-8?q?=C3=84?= <site@x.org>"),
        ("<site@x.org>", "<site@x.org>"),
        ('"ä<b"@bücher.example', '"ä<b"@xn--bcher-kva.example'),
    ],
)
def test_a_name_in_any_script(mailer, sender, field):
    mail = send(
        DirectMailDelivery(mailer, default_sender=sender),
        None,
        "b@example.org",
        "Subject: x\n\nx\n",
    )
    assert mail.data.splitlines()[0] == f"From: {field}".encode()


@pytest.mark.parametrize("sender", ["", "a@example.org"])
def test_a_sender_of_the_envelope(delivery, sender):
    mail = send(delivery, sender, "b@example.org", "Subject: x\n\nx\n")
    assert mail.sender == sender
    assert mail.message["From"] is None


def test_another_transaction_manager(delivery, mailer):
    manager = TransactionManager(explicit=True)
    with manager:
        delivery.bind(manager).send(None, "b@example.org", "Subject: x\n\nx\n")
        assert mailer.outbox == []
    assert mailer.outbox[0].sender == "shop@example.org"


@pytest.mark.parametrize(
    "sender", ["", "The Shop", "a@x.org, b@x.org", "a\nb <a@x.org>", b"a@x.org", 3]
)
def test_a_sender_that_can_never_work(mailer, sender):
    with pytest.raises(OptionError, match=r"default_sender=.*: ") as caught:
        DirectMailDelivery(mailer, default_sender=sender)
    assert caught.value.name == "default_sender"
    with pytest.raises(OptionError):
        QueuedMailDelivery("queue", default_sender=sender)


def test_the_line_ends_of_the_header_are_kept(delivery):
    mail = send(delivery, None, "b@example.org", b"Subject: x\r\n\r\nx\r\n")
    header = mail.data.partition(b"\r\n\r\n")[0]
    assert header.startswith(b"From: The Shop <shop@example.org>\r\n")
    assert header.count(b"\n") == header.count(b"\r\n")


def test_a_message_that_is_sent_again(delivery):
    text = "Resent-Date: x\nResent-To: b@example.org\nTo: c@example.org\n\nx\n"
    mail = send(delivery, None, None, text)
    assert (mail.sender, mail.recipients) == ("shop@example.org", ("b@example.org",))


@pytest.mark.parametrize(
    "name", ["Köln, Shop", 'Die "Köln"', "Jörg: Shop", "Shop [Köln]", "Shop @ Köln"]
)
def test_a_name_that_no_parser_takes_for_one_is_encoded_whole(mailer, name):
    written = f'"{name}"' if "," in name else name
    delivery = DirectMailDelivery(mailer, default_sender=f"{written} <a@x.org>")
    mail = send(delivery, None, "b@example.org", "Subject: x\n\nx\n")
    field, address = mail.data.splitlines()[0].decode("ascii").rsplit(" ", 1)
    assert address == "<a@x.org>"
    assert str(make_header(decode_header(field.removeprefix("From: ")))) == name
