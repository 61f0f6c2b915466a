"""`FileMailer`: files that a mail reader opens."""
from __future__ import annotations

from email import policy
from email.parser import BytesParser

import pytest
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

from postcommit.errors import AddressError
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.filemailer import FileMailer
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import IMailDeferredEvent
from postcommit.interfaces import IMailSentEvent
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import told


@pytest.fixture
def events():
    return []


@pytest.fixture
def mailer(tmp_path, events):
    return FileMailer(str(tmp_path / "mails"), notify=events.append)


def test_keeps_the_contract(mailer):
    verifyClass(IFileMailer, FileMailer)
    verifyObject(IFileMailer, mailer)
    assert repr(mailer) == f"<FileMailer {mailer.folder}>"
    with pytest.raises(OptionError, match="folder"):
        FileMailer("")


def test_each_message_is_a_file(mailer, events, tmp_path):
    report = mailer.send(SENDER, [B, C], "Subject: T\u00fcr\n\nHello\n.\n\u00fc\n")
    mailer.send("", C, MESSAGE)
    assert told(report) == ["sent", "sent"]
    first, second = sorted((tmp_path / "mails").iterdir())
    assert {first.suffix, second.suffix} == {".eml"}
    assert report.outcomes[0].reply.text == f"Written to {first}"
    message = BytesParser(policy=policy.default).parsebytes(first.read_bytes())
    assert message["Return-Path"] == f"<{SENDER}>"
    assert message.get_all("Delivered-To") == [B, C]
    assert message["Message-Id"] == f"<{report.message_id}>"
    assert first.read_bytes().endswith(b"\r\n\r\nHello\r\n.\r\n\xc3\xbc\r\n")
    assert second.read_bytes() == (
        b"Return-Path: <>\r\nDelivered-To: c@example.org\r\n" + MESSAGE
    )
    assert [IMailSentEvent.providedBy(event) for event in events] == [True, True]


def test_arguments_that_can_never_work(mailer, tmp_path):
    with pytest.raises(AddressError):
        mailer.send(SENDER, "b\n@example.org", MESSAGE)
    assert not (tmp_path / "mails").exists()


def test_a_folder_that_is_none(mailer, events, tmp_path):
    (tmp_path / "mails").write_text("a file")
    report = mailer.send(SENDER, B, MESSAGE)
    assert told(report) == "relay"
    assert isinstance(report.relay_failure, RelayError)
    assert "cannot write the message" in str(report.relay_failure)
    [event] = events
    assert IMailDeferredEvent.providedBy(event)
