"""A typical application, with its tests: a mailer of its own, subscribers, Pyramid.

mypy and pyright check it, and pytest runs it.
"""
from __future__ import annotations

import smtplib
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.request import Request
from webtest import TestApp

from postcommit import ChangeStatus
from postcommit import DirectMailDelivery
from postcommit import EntryState
from postcommit import MailDeferredEvent
from postcommit import MailQueue
from postcommit import MailRejectedEvent
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit.interfaces import IMailErrorEvent
from postcommit.interfaces import MailDelivery
from postcommit.interfaces import QueueEntry
from postcommit.testing import Outbox


class Relay:
    """A mailer with only `send`, which returns what smtplib does."""

    def send(
        self, fromaddr: str, toaddrs: tuple[str, ...], message: bytes
    ) -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP("relay.example.org") as connection:
            return connection.sendmail(fromaddr, toaddrs, message)


def confirm(delivery: MailDelivery, order: str, address: str) -> str:
    message = EmailMessage()
    message["From"], message["To"] = "The Shop <shop@example.org>", address
    message["Subject"] = f"Your {order}"
    message.set_content("It is on its way.")
    return delivery.send(None, None, message)


def order(request: Request) -> dict[str, str]:
    return {"mail": confirm(request.mail_delivery, "teapot", request.params["to"])}


def remember(event: MailRejectedEvent) -> None:
    for recipient in event.recipients:
        code = event.reply.code if event.reply is not None else 0
        print(recipient.lower(), code + 0, event.errorMessage.strip())


def watch(event: object) -> None:
    if IMailErrorEvent.providedBy(event):
        kind = "deferred" if isinstance(event, MailDeferredEvent) else "failed"
        print(event.messageId, kind, ", ".join(event.recipients))


def main(global_config: dict[str, str], **settings: str) -> Any:
    with Configurator(settings=settings) as config:
        config.include("pyramid_tm")
        config.include("postcommit.pyramid")
        config.add_mailer(Relay(), "relay")
        config.add_mail_delivery(DirectMailDelivery(Relay()), "relay")
        config.add_subscriber(remember, MailRejectedEvent)
        config.add_subscriber(watch, IMailErrorEvent)
        config.add_route("order", "/order")
        config.add_view(order, route_name="order", renderer="json")
        return config.make_wsgi_app()


def run(queue: str) -> None:
    mailer = SMTPMailer("relay.example.org", 587, "shop", "secret", tls="starttls")
    report = mailer.send("shop@example.org", ["ann@example.org"], "Subject: x\n\n")
    for outcome in report.outcomes:
        print(outcome.recipient.upper(), outcome.status.value, outcome.reply.text)
    report.raise_for_failure()
    QueueProcessor(queue, mailer, workers=2).run()
    print(QueueProcessor(queue, Relay()).flush().sent + 1)


def support_page(path: str, search: str) -> list[str]:
    queue = MailQueue(path)
    status = queue.status()
    lines = [f"{status.counts[EntryState.FAILED]} failed, {status.due + 0} due"]
    if status.pause is not None:
        lines.append(f"{status.pause.reason.strip()}, {status.pause.since:.0f}")
    lines += queue.attention(status, warn_failed=0)
    return [*lines, *(row(entry) for entry in queue.list(search=search))]


def row(entry: QueueEntry) -> str:
    due = "never" if entry.due is None else f"{entry.due:.0f}"
    return f"{entry.id} {', '.join(entry.recipients)} {entry.subject} {due}"


def retry_all(path: str) -> int:
    queue = MailQueue(path)
    changes = queue.retry(*queue.list(EntryState.FAILED))
    for change in changes:
        if change.status is ChangeStatus.REFUSED:
            print(change.id, change.problem.capitalize())
    return sum(change.done for change in changes)


@pytest.fixture
def app() -> Any:
    return main({}, **{"tm.manager_hook": "pyramid_tm.explicit_manager"})


@pytest.fixture
def mail_registry(app: Any) -> Any:
    return app.registry


def test_an_order_is_confirmed(app: Any, mail_outbox: Outbox) -> None:
    TestApp(app).get("/order", {"to": "ann@example.org"})
    [mail] = mail_outbox.to("ann@example.org")
    assert mail.subject == "Your teapot"
    assert mail.message["From"].addresses[0].username == "shop"


def test_a_rejected_order_is_remembered(
    app: Any, mail_outbox: Outbox, capsys: pytest.CaptureFixture[str]
) -> None:
    mail_outbox.mailer.refuse("eve@example.org", "550 5.1.1 Unknown")
    TestApp(app).get("/order", {"to": "eve@example.org"})
    assert "eve@example.org 550 550 5.1.1 Unknown" in capsys.readouterr().out


def test_another_transaction_manager(tmp_path: Path) -> None:
    bound = QueuedMailDelivery(str(tmp_path / "queue")).bind(transaction.manager)
    with transaction.manager:
        assert "@" in confirm(bound, "kettle", "ann@example.org")


def test_a_support_page(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    bound = QueuedMailDelivery(path).bind(transaction.manager)
    with transaction.manager:
        confirm(bound, "kettle", "ann@example.org")
    first, *_, last = support_page(path, "kettle")
    assert first == "0 failed, 1 due"
    assert "ann@example.org Your kettle" in last
    assert retry_all(path) == 0
