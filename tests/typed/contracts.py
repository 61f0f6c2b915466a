"""Each class has the type of its interface, and methods return what they promise."""
from __future__ import annotations

import smtplib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from typing import assert_type

import transaction

import postcommit
from postcommit import interfaces


# Assignments say which classes have which type.

smtp: interfaces.PipelineMailer = postcommit.SMTPMailer()
sendmail: interfaces.PipelineMailer = postcommit.SendmailMailer()
file: interfaces.PipelineMailer = postcommit.FileMailer("mails")
checked: interfaces.RelayCheck = postcommit.SMTPMailer()
direct: interfaces.MailDelivery = postcommit.DirectMailDelivery(smtp)
queued: interfaces.MailDelivery = postcommit.QueuedMailDelivery("queue")
scheduled: interfaces.ScheduledMailDelivery = postcommit.QueuedMailDelivery("queue")
bindable: interfaces.BindableMailDelivery = postcommit.DirectMailDelivery(smtp)
bindable = postcommit.QueuedMailDelivery("queue")
bound: interfaces.MailDelivery = bindable.bind(transaction.manager)
processor: interfaces.MailQueueProcessor = postcommit.QueueProcessor("queue", file)
factory: interfaces.MaildirFactory = postcommit.Maildir
maildir: interfaces.Maildir = postcommit.Maildir("queue", create=True)
writer: interfaces.MaildirMessageWriter = maildir.newMessage()
report: interfaces.DeliveryReport = postcommit.DeliveryReport("1@x.org", ("a@x.org",))
reply: interfaces.Reply = postcommit.Reply(250, "2.0.0", "Taken")
outcome: interfaces.Outcome = postcommit.Outcome(
    "a@x.org", postcommit.Status.SENT, postcommit.Reply()
)
sent: interfaces.MailEvent = postcommit.MailSentEvent("1@x.org")
failed: interfaces.MailErrorEvent = postcommit.MailErrorEvent("1@x.org", "No")
rejected: interfaces.MailErrorEvent = postcommit.MailRejectedEvent("1@x.org", "No")


# Methods return concrete classes.


def results(mailer: postcommit.SMTPMailer, queue: postcommit.QueueProcessor) -> None:
    made = mailer.send("", "a@x.org", b"Subject: x\n\n")
    assert_type(made, postcommit.DeliveryReport)
    assert_type(made.outcomes, tuple[postcommit.Outcome, ...])
    assert_type(made.rejected[0].reply.code, int)
    assert_type(made.outcomes[0].status, postcommit.Status)
    assert_type(queue.flush(), postcommit.Tally)
    assert_type(queue.flush().sent, int)
    assert_type(queue.stop(1.0), bool)
    delivery = postcommit.QueuedMailDelivery("queue")
    assert_type(delivery.bind(transaction.manager), postcommit.QueuedMailDelivery)
    assert_type(delivery.send(None, iter(["a@x.org"]), "text"), str)
    later = delivery.send(None, None, "text", not_before=timedelta(hours=1), bulk=True)
    assert_type(later, str)
    assert_type(delivery.cancel(later), bool)
    for path in postcommit.Maildir("queue"):
        assert_type(path, str)
    with mailer.pipeline() as pipeline:
        for _, each in pipeline.drain():
            assert_type(each, postcommit.DeliveryReport)


# Interfaces say of which type their objects are.


def narrowed(event: object) -> None:
    if interfaces.IMailSentEvent.providedBy(event):
        assert_type(event, postcommit.MailSentEvent)
    elif interfaces.IMailErrorEvent.providedBy(event):
        assert_type(event.errorMessage, str)
        assert_type(event.reply, interfaces.Reply | None)
    assert_type(interfaces.IMailer(event), interfaces.Mailer)
    assert_type(interfaces.IMailer(event, None), interfaces.Mailer | None)
    print(interfaces.ISMTPMailer["port"].default, interfaces.IMailer.names())


# Mailers of applications: an exact one, those with wider or other types, and wrappers.


class Full:
    def send(
        self,
        fromaddr: interfaces.Address | None,
        toaddrs: interfaces.Addresses | None,
        message: interfaces.Sendable,
    ) -> postcommit.DeliveryReport:
        status = postcommit.Status.SENT
        taken = postcommit.Outcome("a@x.org", status, postcommit.Reply(250))
        return postcommit.DeliveryReport("1@x.org", ("a@x.org",), (taken,))


class Quiet:
    def send(self, sender: str, recipients: Sequence[str], data: bytes) -> None:
        print(sender, *recipients, data.decode())


class Untyped:
    def send(self, *arguments: Any) -> Any:
        return {}


class Reporting:
    def send(
        self, fromaddr: str, toaddrs: Iterable[str], message: bytes
    ) -> Mapping[str, tuple[int, bytes]]:
        return smtplib.SMTP().sendmail(fromaddr, tuple(toaddrs), message)


class Either:
    def __init__(self, first: interfaces.Mailer, second: interfaces.Mailer) -> None:
        self.mailers = [first, second]

    def send(
        self, fromaddr: str, toaddrs: tuple[str, ...], message: bytes
    ) -> interfaces.DeliveryReport:
        said = self.mailers[0].send(fromaddr, toaddrs, message)
        if said.relay_failure is not None:
            said = self.mailers[1].send(fromaddr, toaddrs, message)
        return said


class Pipelined(Full):
    notify = staticmethod(print)

    def pipeline(self) -> interfaces.Pipeline:
        return smtp.pipeline()


full: interfaces.Mailer = Full()
pipelined: interfaces.PipelineMailer = Pipelined()
for own in (Full(), Quiet(), Untyped(), Reporting(), Either(full, smtp), Pipelined()):
    postcommit.DirectMailDelivery(own)
    postcommit.QueueProcessor("queue", own, 1000, rate_limit=2)


def looking(queue: postcommit.MailQueue) -> None:
    for entry in queue.list(postcommit.EntryState.FAILED, search="teapot"):
        shown: interfaces.QueueEntry = entry
        assert_type(shown.recipients, tuple[str, ...])
        assert_type(queue.retry(entry, "0123456789ab")[0].done, bool)
    status: interfaces.QueueStatus = queue.status()
    assert_type(status.counts[postcommit.EntryState.FAILED], int)
    pause: interfaces.QueuePause | None = status.pause
    reason: interfaces.QueueReason = status.reasons[postcommit.EntryState.FAILED]
    finding: interfaces.QueueFinding = next(iter(queue.check()))
    print(pause, reason, finding)
