"""`FileMailer`: files that a mail reader opens."""
from __future__ import annotations

import resource
from email import policy
from email.parser import BytesParser

import pytest
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

from postcommit._mailers.file import FileMailer
from postcommit.errors import AddressError
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import IMailDeferredEvent
from postcommit.interfaces import IMailSentEvent
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import told
from tests.support.mailers import Taken


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
    assert first.stat().st_mode & 0o777 == 0o600
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


@pytest.mark.parametrize(
    ("sender", "recipients", "said"),
    [
        (SENDER, (B, "b\n@example.org"), "AddressError: 'b\\n@example.org' is not an"),
        ("shop", (B,), "AddressError: 'shop' is not an envelope address"),
        (SENDER, (B, f"Bob <{C}>"), "pass bare addresses"),
        (SENDER, (B, B), "pass bare addresses"),
    ],
)
def test_a_pipeline_rejects_what_send_refuses(
    mailer, tmp_path, sender, recipients, said
):
    with mailer.pipeline() as pipeline:
        pipeline.offer(Taken(sender, recipients, MESSAGE), key=1)
        [(key, report)] = pipeline.completed()
    assert key == 1
    assert told(report) == ["rejected", "rejected"][: len(recipients)]
    assert said in report.outcomes[0].reply.text
    assert not (tmp_path / "mails").exists()


def test_a_pipeline_completes_a_header_as_send_does(mailer, tmp_path):
    with mailer.pipeline() as pipeline:
        pipeline.offer(Taken(SENDER, (B,), b"Bcc: x@example.org\nSubject: x\n\n"))
        [(_, report)] = pipeline.drain()
    [file] = (tmp_path / "mails").iterdir()
    message = BytesParser(policy=policy.default).parsebytes(file.read_bytes())
    assert message["Message-Id"] == f"<{report.message_id}>"
    assert message["Date"]
    assert message["Bcc"] is None


def test_a_folder_that_is_none(mailer, events, tmp_path):
    (tmp_path / "mails").write_text("a file")
    report = mailer.send(SENDER, B, MESSAGE)
    assert told(report) == "relay"
    assert isinstance(report.relay_failure, RelayError)
    assert "cannot write the message" in str(report.relay_failure)
    [event] = events
    assert IMailDeferredEvent.providedBy(event)


def test_a_file_that_cannot_be_written_is_removed(mailer, tmp_path):
    """Otherwise each attempt of a queue would leave one more of them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        report = mailer.send(SENDER, B, MESSAGE + b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told(report) == "relay"
    assert "File too large" in str(report.relay_failure)
    assert list((tmp_path / "mails").iterdir()) == []


def test_an_interrupt_in_a_subscriber_is_raised_after_the_events(tmp_path):
    heard = []

    def subscriber(event):
        heard.append(event.recipients)
        raise KeyboardInterrupt

    mailer = FileMailer(str(tmp_path / "mails"), notify=subscriber)
    with pytest.raises(KeyboardInterrupt):
        mailer.send(SENDER, [B, C], MESSAGE)
    assert heard == [(B, C)]
    assert len(list((tmp_path / "mails").iterdir())) == 1
