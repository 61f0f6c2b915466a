"""What a type checker refuses. Each line that ends in a code must be an error."""
from __future__ import annotations

import postcommit
from postcommit import interfaces


class Coroutine:
    async def send(self, fromaddr: str, toaddrs: list[str], message: bytes) -> None: ...


class Swapped:
    def send(self, message: bytes, fromaddr: str, toaddrs: tuple[str, ...]) -> None: ...


postcommit.DirectMailDelivery(Coroutine())  # arg-type
postcommit.QueueProcessor("queue", Swapped())  # arg-type
postcommit.QueueProcessor("queue", postcommit.SMTPMailer)  # arg-type
postcommit.SMTPMailer(tls="startls")  # arg-type
postcommit.SMTPMailer(protocol="SMTP")  # arg-type
postcommit.SMTPMailer(auth="PLAIN")  # arg-type
postcommit.SMTPMailer(port="25")  # arg-type
postcommit.SMTPMailer(starttls=True)  # call-arg
postcommit.QueuedMailDelivery("queue").send(None, None, 42)  # arg-type
postcommit.QueuedMailDelivery("queue").send("a@x.org", 42, "")  # arg-type
postcommit.QueuedMailDelivery("queue").bind("manager")  # arg-type
postcommit.MailQueue("queue").list("failed")  # arg-type
postcommit.MailQueue("queue").recover("0123456789ab")  # call-arg
print(postcommit.MailQueue("queue").status().failed)  # attr-defined
print(postcommit.SMTPMailer().send("", "", "").outcome)  # attr-defined
print(postcommit.MailSentEvent("1@x.org").errorMessage)  # attr-defined
mailer: interfaces.IMailer = postcommit.SMTPMailer()  # valid-type
