"""What Pyramid includes: utilities, directives, requests, events, the processor."""
from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import transaction
import zope.event
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationConflictError
from pyramid.exceptions import ConfigurationError
from pyramid.request import Request
from pyramid.response import Response
from pyramid.threadlocal import get_current_registry
from pyramid.threadlocal import get_current_request
from transaction import TransactionManager
from webtest import TestApp as Browser
from zope.interface.interfaces import ComponentLookupError

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit.errors import QueueError
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IMailSentEvent
from postcommit.pyramid import _warn_that_tm_is_missing
from postcommit.pyramid import get_mail_delivery
from postcommit.testing import RecordingMailer
from tests.support import children


MESSAGE = "From: shop@example.org\nTo: ann@example.org\nSubject: x\n\nx\n"


def configurator(**settings: Any) -> Configurator:
    config = Configurator(
        settings={f"mail.{name}": value for name, value in settings.items()}
    )
    config.include("postcommit.pyramid")
    return config


def application(config: Configurator) -> Browser:
    """Return an application that sends a mail in each request."""

    def view(request: Request) -> Response:
        with transaction.manager:
            return Response(request.mail_delivery.send(None, None, MESSAGE))

    config.add_view(view)
    return Browser(config.make_wsgi_app())


# Utilities


def test_without_a_queue() -> None:
    config = configurator(host="relay.example.org")
    config.commit()
    registry = config.registry
    mailer = registry.getUtility(IMailer)
    assert (type(mailer), mailer.hostname) == (SMTPMailer, "relay.example.org")
    assert registry.getUtility(IMailer, "smtp") is mailer
    delivery = registry.getUtility(IMailDelivery)
    assert (type(delivery), delivery.mailer) == (DirectMailDelivery, mailer)
    assert registry.getUtility(IMailDelivery, "direct") is delivery
    assert {name for name, _ in registry.getUtilitiesFor(IMailDelivery)} == {
        "",
        "direct",
    }
    assert registry.queryUtility(IMailQueueProcessor) is None


def test_with_a_queue_and_the_sendmail_command(tmp_path: Path) -> None:
    queue = str(tmp_path / "queue")
    config = configurator(queue_path=queue, workers="2", sendmail_app="/bin/mail")
    config.commit()
    registry = config.registry
    delivery = registry.getUtility(IMailDelivery)
    assert (type(delivery), delivery.queuePath) == (QueuedMailDelivery, queue)
    assert registry.getUtility(IMailDelivery, "queued") is delivery
    assert type(registry.getUtility(IMailDelivery, "direct")) is DirectMailDelivery
    sendmail = registry.getUtility(IMailDelivery, "sendmail").mailer
    assert sendmail is registry.getUtility(IMailer, "sendmail")
    assert sendmail.command == "/bin/mail"
    processor = registry.getUtility(IMailQueueProcessor)
    assert (processor.queuePath, processor.workers) == (queue, 2)
    assert processor.mailer is registry.getUtility(IMailer)


def test_a_default_sender() -> None:
    config = configurator(default_sender="The Shop <shop@example.org>")
    mailer = RecordingMailer()
    config.add_mailer(mailer)
    config.commit()
    with transaction.manager:
        config.registry.getUtility(IMailDelivery).send(None, "b@example.org", "x")
    assert mailer.outbox[0].message["From"] == "The Shop <shop@example.org>"


def test_a_default_sender_of_a_delivery_that_was_added() -> None:
    config = configurator(default_sender="The Shop <shop@example.org>")
    mailer = RecordingMailer()
    for name in ("", "bulk"):
        config.add_mail_delivery(DirectMailDelivery(mailer), name)
    config.commit()
    request = Request.blank("/")
    request.registry, request.tm = config.registry, TransactionManager(explicit=True)
    for name in ("", "bulk"):
        with request.tm:
            get_mail_delivery(request, name).send(None, "b@example.org", "x")
        assert mailer.outbox[-1].sender == "shop@example.org"
        assert mailer.outbox[-1].message["From"] == "The Shop <shop@example.org>"


def test_a_delivery_may_have_a_default_sender_of_its_own() -> None:
    config = configurator(default_sender="shop@example.org")
    mailer = RecordingMailer()
    own = DirectMailDelivery(mailer, default_sender="news@example.org")
    config.add_mail_delivery(own)
    config.commit()
    with transaction.manager:
        config.registry.getUtility(IMailDelivery).send(None, "b@example.org", "x")
    assert mailer.outbox[0].sender == "news@example.org"


def test_a_delivery_of_another_kind_may_take_the_default_sender() -> None:
    class Elsewhere:
        default_sender: str | None = None

        def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> str:
            return str(fromaddr or self.default_sender)

    config = configurator(default_sender="shop@example.org")
    added = Elsewhere()
    config.add_mail_delivery(added)
    config.commit()
    request = Request.blank("/")
    request.registry, request.tm = config.registry, TransactionManager()
    sent = get_mail_delivery(request).send(None, "b@example.org", "x")
    assert sent == "shop@example.org"
    # Another application may have another sender for it.
    assert added.default_sender is None


def test_a_delivery_without_the_option_is_registered_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = configurator(default_sender="shop@example.org")
    added = Processor()
    config.add_mail_delivery(added)
    config.commit()
    assert config.registry.getUtility(IMailDelivery) is added
    told = "Processor has no default_sender: the one in the settings is not used for it"
    assert caplog.messages == [told]


def test_another_prefix() -> None:
    config = Configurator(
        settings={
            "postcommit.prefix": "post.",
            "post.host": "relay.example.org",
            "mail.support": "help@example.org",
        }
    )
    config.include("postcommit.pyramid")
    config.commit()
    assert config.registry.getUtility(IMailer).hostname == "relay.example.org"


def test_a_setting_that_can_never_work() -> None:
    with pytest.raises(ConfigurationError, match=r"mail\.hots='\*\*\*'"):
        configurator(hots="x")


# Directives and conflicts


def test_the_application_overrides_the_settings(tmp_path: Path) -> None:
    config = configurator(queue_path=str(tmp_path / "queue"))
    mailer, delivery = RecordingMailer(), DirectMailDelivery(RecordingMailer())
    processor = QueueProcessor(str(tmp_path / "other"), mailer)
    config.add_mail_delivery(delivery)
    config.add_mail_processor(processor)
    config.add_mailer(mailer)
    config.commit()
    registry = config.registry
    assert registry.getUtility(IMailer) is mailer
    assert registry.getUtility(IMailDelivery) is delivery
    assert registry.getUtility(IMailDelivery, "direct").mailer is mailer
    assert registry.getUtility(IMailQueueProcessor) is processor


def test_including_it_twice_is_no_conflict() -> None:
    config = Configurator()
    for _ in range(2):
        config.include(lambda config: config.include("postcommit.pyramid"))
    config.commit()
    assert config.registry.getUtility(IMailDelivery)


@pytest.mark.parametrize(
    "directive", ["add_mailer", "add_mail_delivery", "add_mail_processor"]
)
def test_two_includes_that_differ_conflict(directive: str) -> None:
    config = configurator()

    kind = Processor if directive == "add_mail_processor" else RecordingMailer

    def one(config: Configurator) -> None:
        getattr(config, directive)(kind(), "newsletter")

    def another(config: Configurator) -> None:
        getattr(config, directive)(kind(), "newsletter")

    config.include(one)
    config.include(another)
    with pytest.raises(ConfigurationConflictError) as caught:
        config.commit()
    shown = str(caught.value)
    assert shown.count(__file__) == 2
    assert shown.count('"newsletter")') == 2


def test_what_is_registered_can_be_introspected() -> None:
    config = configurator()
    config.add_mailer(RecordingMailer(), "newsletter")
    config.commit()
    found = config.introspector.get("mail utilities", (IMailer, "newsletter"))
    assert (found.title, found.type_name) == ("newsletter", "IMailer")


# Requests


def test_a_request_has_the_delivery() -> None:
    config = configurator()
    mailer = RecordingMailer()
    config.add_mailer(mailer)
    app = application(config)
    message_id = app.get("/").text
    assert mailer.outbox[0].message_id == message_id


def test_the_delivery_is_bound_to_the_transactions_of_the_request() -> None:
    config = configurator()
    mailer = RecordingMailer()
    config.add_mailer(mailer)
    config.commit()
    request = Request.blank("/")
    request.registry = config.registry
    request.tm = TransactionManager(explicit=True)
    delivery = get_mail_delivery(request)
    assert delivery.transaction_manager is request.tm
    assert config.registry.getUtility(IMailDelivery).transaction_manager is (
        transaction.manager
    )
    with request.tm:
        get_mail_delivery(request, "direct").send(None, None, MESSAGE)
        assert mailer.outbox == []
    assert len(mailer.outbox) == 1


def test_without_a_manager_it_is_said_once_that_somebody_has_to_commit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _warn_that_tm_is_missing.cache_clear()
    config = configurator()
    config.add_mailer(RecordingMailer())
    config.commit()
    for _ in range(2):
        request = Request.blank("/")
        request.registry = config.registry
        delivery = get_mail_delivery(request)
        assert delivery.transaction_manager is transaction.manager
    assert caplog.messages == [
        "The request has no tm: mail is sent when transaction.manager commits;"
        " include pyramid_tm, or commit it"
    ]


def test_a_delivery_of_another_kind_is_left_as_it_is() -> None:
    config = configurator()
    delivery = object()
    config.add_mail_delivery(delivery, "other")
    config.commit()
    request = Request.blank("/")
    request.registry = config.registry
    request.tm = transaction.manager
    assert get_mail_delivery(request, "other") is delivery
    with pytest.raises(ComponentLookupError):
        get_mail_delivery(request, "none")


# Events


def test_subscribers_of_the_application_hear_of_its_mail() -> None:
    config = configurator()
    config.add_mailer(SMTPMailer("127.0.0.1", 1), "other")
    mailer = RecordingMailer()
    config.add_mailer(mailer)
    seen: list[Any] = []

    def subscriber(event: Any) -> None:
        seen.append((event, get_current_registry(), get_current_request()))

    config.add_subscriber(subscriber, IMailSentEvent)
    app = application(config)
    message_id = app.get("/").text
    [(event, registry, request)] = seen
    assert event.messageId == message_id
    assert registry is app.app.registry
    assert request.mail_delivery
    seen.clear()
    # As a processor does, outside of any request
    mailer.send(None, None, MESSAGE)
    [(_, registry, request)] = seen
    assert (registry, request) == (app.app.registry, None)
    assert get_current_registry() is not registry


def test_a_mailer_that_publishes_elsewhere_keeps_doing_so() -> None:
    config = configurator()
    events: list[Any] = []
    mailer = RecordingMailer(notify=events.append)
    plain = RecordingMailer()
    assert plain.notify is zope.event.notify
    config.add_mailer(mailer)
    config.add_mailer(plain, "plain")
    config.add_mailer(object(), "with send() only")
    config.commit()
    assert mailer.notify == events.append
    assert plain.notify is not zope.event.notify


# The processor


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


class Processor:
    """Remembers how often it was started, and can fail first."""

    def __init__(self, *errors: Exception) -> None:
        self.started: list[int] = []
        self._errors = list(errors)

    def start(self) -> None:
        if self._errors:
            raise self._errors.pop()
        self.started.append(os.getpid())


def sent_by_a_request(app: Browser, processor: Any) -> str:
    """Return the id of a mail that a request sends; `processor` has sent it."""
    try:
        message_id: str = app.get("/").text
    finally:
        assert processor.stop(30)
        processor.flush()
    return message_id


def test_the_processor_starts_with_the_first_request(queue: Path) -> None:
    config = configurator(queue_path=str(queue), processor="true")
    processor = Processor()
    config.add_mail_processor(processor)
    app = application(config)
    assert processor.started == []
    for _ in range(2):
        app.get("/")
    assert processor.started == [os.getpid()]


@pytest.mark.parametrize(
    ("settings", "started"),
    [
        ({}, ["", "bulk"]),
        ({"processor": "false"}, []),
        ({"queue_path": "."}, ["bulk"]),
        ({"queue_path": ".", "processor": "true"}, ["", "bulk"]),
        ({"queue_path": ".", "processor": "false"}, []),
    ],
)
def test_processors_that_were_added_start_unless_a_setting_says_no(
    queue: Path, settings: dict[str, str], started: list[str]
) -> None:
    if "queue_path" in settings:
        settings = {**settings, "queue_path": str(queue)}
    config = configurator(**settings)
    config.add_mailer(RecordingMailer())
    processors = {name: Processor() for name in ("", "bulk")}
    for name, processor in processors.items():
        config.add_mail_processor(processor, name)
    app = application(config)
    for _ in range(2):
        app.get("/")
    assert [n for n, p in processors.items() if p.started] == started
    assert all(len(p.started) <= 1 for p in processors.values())


def test_a_processor_that_was_added_drains_its_queue(queue: Path) -> None:
    config = configurator()
    mailer = RecordingMailer()
    config.add_mail_delivery(QueuedMailDelivery(str(queue)))
    processor = QueueProcessor(str(queue), mailer)
    config.add_mail_processor(processor, "bulk")
    message_id = sent_by_a_request(application(config), processor)
    assert [mail.message_id for mail in mailer.outbox] == [message_id]


def test_one_processor_that_cannot_start_does_not_stop_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = configurator()
    config.add_mailer(RecordingMailer())
    broken, other = Processor(RuntimeError("no more threads")), Processor()
    config.add_mail_processor(broken, "broken")
    config.add_mail_processor(other, "other")
    app = application(config)
    app.get("/")
    assert (broken.started, other.started) == ([], [os.getpid()])
    assert "no more threads" in caplog.text
    app.get("/")
    assert (broken.started, other.started) == ([os.getpid()], [os.getpid()])


def test_a_processor_that_is_overridden_does_not_start(queue: Path) -> None:
    config = configurator()
    config.add_mailer(RecordingMailer())
    included, own = Processor(), Processor()
    config.include(lambda config: config.add_mail_processor(included, "bulk"))
    config.add_mail_processor(own, "bulk")
    application(config).get("/")
    assert (included.started, own.started) == ([], [os.getpid()])


def serve_before_and_after_a_fork(queue: str) -> None:
    """To be called in a process of its own, without other threads."""
    config = configurator(queue_path=queue, processor="true")
    processors = {"": Processor(), "bulk": Processor()}
    for name, processor in processors.items():
        config.add_mail_processor(processor, name)
    app = application(config)
    app.get("/")
    child = os.fork()
    if not child:
        app.get("/")
        expected = [os.getppid(), os.getpid()]
        os._exit(any(p.started != expected for p in processors.values()))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_forked_process_has_one_of_its_own(queue: Path) -> None:
    children.call(serve_before_and_after_a_fork, str(queue))


def test_a_processor_that_cannot_start_yet(
    queue: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configurator(queue_path=str(queue), processor="true")
    processor = Processor(QueueError(str(queue), "is not mounted"))
    config.add_mail_processor(processor)
    app = application(config)
    with caplog.at_level(logging.ERROR):
        app.get("/")
    assert "is not mounted" in caplog.text
    assert processor.started == []
    app.get("/")
    assert processor.started == [os.getpid()]


@pytest.mark.parametrize("processor", [None, RecordingMailer(), "me:hunter2@mx"])
def test_what_cannot_start_is_not_a_processor(processor: Any) -> None:
    config = configurator()
    with pytest.raises(ConfigurationError, match=r"must have a method start\(\)") as e:
        config.add_mail_processor(processor, "bulk")
    assert "hunter2" not in str(e.value)


def test_without_the_setting_nothing_starts(queue: Path) -> None:
    config = configurator(queue_path=str(queue))
    processor = Processor()
    config.add_mail_processor(processor)
    application(config).get("/")
    assert processor.started == []
    assert len(list((queue / "new").iterdir())) == 1


def test_all_of_it(queue: Path) -> None:
    config = configurator(queue_path=str(queue), processor="true")
    mailer = RecordingMailer()
    config.add_mailer(mailer)
    app = application(config)
    processor = app.app.registry.getUtility(IMailQueueProcessor)
    message_id = sent_by_a_request(app, processor)
    assert [mail.message_id for mail in mailer.outbox] == [message_id]
