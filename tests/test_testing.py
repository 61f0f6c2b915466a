"""What applications test with: recording mailer, outbox, fixtures, clock."""
from __future__ import annotations

import doctest
import subprocess
import sys
import time

import pytest
import transaction
import zope.event
from transaction import TransactionManager
from zope.component import getGlobalSiteManager
from zope.component import getUtility
from zope.component.testing import PlacelessSetup
from zope.interface.registry import Components
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

import postcommit.testing
from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit.errors import RelayError
from postcommit.interfaces import IMailDeferredEvent
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IMailRejectedEvent
from postcommit.interfaces import IMailSentEvent
from postcommit.interfaces import IPipelineMailer
from postcommit.interfaces import IRelayCheck
from postcommit.testing import FakeClock
from postcommit.testing import Mail
from postcommit.testing import Outbox
from postcommit.testing import RecordingMailer
from postcommit.testing import recording
from postcommit.testing import setUp
from postcommit.testing import tearDown
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import message
from tests.smtp.messages import told
from tests.support.mailers import send_all


class Relay:
    """Lets the tests of `SMTPMailer` tell a `RecordingMailer` what to say."""

    connections = 0

    def __init__(self):
        self.mailer = RecordingMailer()

    @property
    def messages(self):
        return self.mailer.outbox

    def reply(self, stage, reply, address=None):
        if stage == "RCPT":
            self.mailer.refuse(address, reply)
        else:
            self.mailer.refuse_message(reply)


class TestAsTheRealOne:
    """The tests of `SMTPMailer` that are about more than the wire."""

    from tests.smtp.test_mailer import test_a_line_in_the_log_for_each_recipient
    from tests.smtp.test_mailer import test_arguments_that_can_never_work
    from tests.smtp.test_mailer import test_completes_the_message
    from tests.smtp.test_mailer import test_events
    from tests.smtp.test_mailer import test_raise_for_failure
    from tests.smtp.test_mailer import test_returns_a_report
    from tests.smtp.test_mailer import test_the_null_sender

    for _name, _test in list(vars().items()):
        if _name.startswith("test_"):
            vars()[_name] = staticmethod(_test)

    @pytest.fixture
    def relay(self):
        return Relay()

    @pytest.fixture
    def connect(self):
        def connect(relay):
            relay.mailer.events = []
            relay.mailer.notify = relay.mailer.events.append
            return relay.mailer

        return connect


@pytest.fixture
def mailer():
    events = []
    made = RecordingMailer(notify=events.append)
    made.events = events
    return made


@pytest.fixture
def components():
    setup = PlacelessSetup()
    setup.setUp()
    yield getGlobalSiteManager()
    setup.tearDown()


def test_the_mailer_keeps_its_contracts(mailer):
    for contract in (IPipelineMailer, IRelayCheck):
        verifyClass(contract, RecordingMailer)
        verifyObject(contract, mailer)
    mailer.close()
    assert repr(mailer) == "<RecordingMailer with 0 mails>"


# Scripted outcomes


def test_a_refused_recipient(mailer):
    mailer.refuse(B, "450 4.2.0 Greylisted", times=1)
    assert told(mailer.send(SENDER, [B, C], MESSAGE)) == ["deferred", "sent"]
    assert told(mailer.send(SENDER, [B, C], MESSAGE)) == ["sent", "sent"]
    assert [mail.recipients for mail in mailer.outbox] == [(C,), (B, C)]


def test_what_was_told_first_comes_first(mailer):
    mailer.refuse(B, "450 4.2.0 Greylisted", times=1)
    mailer.refuse(B, "550 5.1.1 Unknown")
    for expected in ("deferred", "rejected", "rejected"):
        assert told(mailer.send(SENDER, B, MESSAGE)) == [expected]
    assert mailer.outbox == []


def test_a_refused_message(mailer):
    mailer.refuse(B, "550 5.1.1 Unknown")
    mailer.refuse_message("451 4.3.0 Later", times=1)
    report = mailer.send(SENDER, [B, C], MESSAGE)
    assert told(report) == ["rejected", "deferred"]
    assert str(report.outcomes[1].reply) == "451 4.3.0 Later"


def test_a_reply_that_is_the_relay_s_trouble(mailer):
    mailer.refuse(B, "421 4.3.2 Going down", times=1)
    assert told(mailer.send(SENDER, [C, B], MESSAGE)) == "relay"
    mailer.refuse_message("421 4.3.2 Going down")
    assert told(mailer.send(SENDER, [C, B], MESSAGE)) == "relay"
    assert mailer.outbox == []


def test_a_lost_connection(mailer):
    mailer.lose(times=1)
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["uncertain"]
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["sent"]
    assert len(mailer.outbox) == 2
    deferred, sent = mailer.events
    assert IMailDeferredEvent.providedBy(deferred)
    assert IMailSentEvent.providedBy(sent)


def test_a_failing_relay_and_one_that_recovers(mailer):
    mailer.check()
    mailer.fail("no route")
    report = mailer.send(SENDER, B, MESSAGE)
    assert told(report) == "relay"
    assert str(report.relay_failure) == "no route"
    with pytest.raises(RelayError, match="no route"):
        mailer.check()
    mailer.recover()
    mailer.check()
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["sent"]


def test_no_reply(mailer):
    with pytest.raises(RelayError, match="not SMTP"):
        mailer.refuse(B, "no way")


def test_batches(mailer):
    mailer.refuse(C, "550 5.1.1 Unknown")
    batch = [(SENDER, [address], message(address[0])) for address in (B, C)]
    reports = list(send_all(mailer, batch))
    assert [told(report) for report in reports] == [["sent"], ["rejected"]]
    assert [report.message_id for report in reports] == [
        "b@example.org",
        "c@example.org",
    ]
    assert mailer.events == []


def test_a_queue_and_a_clock(mailer, tmp_path):
    """The schedule of a queue, without waiting for it."""
    clock = FakeClock()
    delivery = QueuedMailDelivery(str(tmp_path / "queue"))
    processor = QueueProcessor(str(tmp_path / "queue"), mailer, clock=clock)
    mailer.refuse(B, "450 4.2.0 Greylisted", times=1)
    with transaction.manager:
        delivery.send(SENDER, [B, C], MESSAGE)
    assert processor.flush() == (1, 1, 0, 0)
    assert processor.flush() == (0, 0, 0, 0)
    clock.advance(70)
    assert processor.flush() == (1, 0, 0, 0)
    assert [mail.recipients for mail in mailer.outbox] == [(C,), (B,)]


def test_the_clock():
    clock = FakeClock(5.0)
    clock.advance(2.5)
    assert clock() == clock.now == 7.5
    assert repr(clock) == "<FakeClock 7.500>"
    assert FakeClock()() == pytest.approx(time.time(), abs=60)


# The outbox


def test_a_mail(mailer):
    mailer.send(
        SENDER, B, "Subject: =?utf-8?q?T=C3=BCr?=\nTo: b@example.org\n\nHello\n"
    )
    [mail] = mailer.outbox
    assert (mail.sender, mail.recipients) == (SENDER, (B,))
    assert (mail.subject, mail.text) == ("T\u00fcr", "Hello\n")
    assert mail.message["To"].addresses[0].username == "b"
    assert mail.message["Message-Id"] == f"<{mail.message_id}>"
    assert b"\r\n\r\nHello\r\n" in mail.data


def test_a_mail_without_subject_or_text():
    mail = Mail(SENDER, (B,), "1@x", b"Content-Type: text/html\r\n\r\n<p>\r\n")
    assert (mail.subject, mail.text, mail.html) == ("", "", "<p>\n")


def test_a_mail_without_html():
    assert Mail(SENDER, (B,), "1@x", b"Subject: x\r\n\r\nHi\r\n").html == ""


def test_a_mail_shows_its_subject():
    shown = repr(Mail(SENDER, (B,), "1@x", b"Subject: =?utf-8?q?T=C3=BCr?=\r\n\r\nHi"))
    assert shown == (
        f"Mail(sender={SENDER!r}, subject='T\u00fcr', recipients=({B!r},),"
        " message_id='1@x')"
    )


def test_an_outbox_may_have_no_mailer():
    outbox = Outbox()
    with pytest.raises(LookupError, match="without a mailer"):
        outbox.mailer  # noqa: B018
    assert RecordingMailer(outbox).outbox is outbox


def test_the_outbox_is_a_sequence(mailer):
    outbox = mailer.outbox
    assert isinstance(outbox, Outbox)
    assert not outbox
    mailer.send(SENDER, B, MESSAGE)
    mailer.send(SENDER, [B, C], MESSAGE)
    first, second = outbox
    assert outbox[0] is first
    assert outbox[1:] == [second]
    assert outbox == [first, second]
    assert outbox == (first, second)
    assert outbox != None  # noqa: E711
    assert outbox.to(C) == [second]
    assert repr(outbox).startswith("<Outbox [Mail(sender='a@example.org'")
    assert outbox.mailer is mailer
    outbox.clear()
    assert outbox == []


# Registries


def send(registry, name="Mail", to=B):
    return registry.getUtility(IMailDelivery, name).send(SENDER, to, MESSAGE)


def test_an_empty_registry_gets_deliveries_for_a_while(components):
    with recording() as outbox:
        for name in ("", "Mail"):
            with transaction.manager:
                send(components, name)
        assert len(outbox) == 2
    assert list(components.registeredUtilities()) == []


def test_deliveries_and_mailers_are_replaced_for_a_while(tmp_path):
    registry = Components("application")
    smtp = SMTPMailer()
    queued = QueuedMailDelivery(str(tmp_path / "queue"))
    other = object()
    registry.registerUtility(queued, IMailDelivery, "shop", "why")
    registry.registerUtility(smtp, IMailer, "smtp")
    registry.registerUtility(other, zope.interface.Interface, "other")
    before = sorted(map(repr, registry.registeredUtilities()))
    with recording(registry) as outbox:
        with transaction.manager:
            send(registry, "shop")
            assert outbox == []
        registry.getUtility(IMailer, "smtp").send(SENDER, C, MESSAGE)
        assert [mail.recipients for mail in outbox] == [(B,), (C,)]
        assert registry.queryUtility(IMailDelivery) is None
        assert registry.getUtility(zope.interface.Interface, "other") is other
    assert sorted(map(repr, registry.registeredUtilities())) == before
    assert registry.getUtility(IMailDelivery, "shop") is queued
    assert not (tmp_path / "queue").exists()


def queued(tmp_path, **options):
    return QueuedMailDelivery(str(tmp_path / "queue"), **options)


def direct(tmp_path, **options):
    return DirectMailDelivery(SMTPMailer(), **options)


@pytest.mark.parametrize("kind", [queued, direct])
def test_a_delivery_keeps_its_sender(tmp_path, kind):
    registry = Components("application")
    delivery = kind(tmp_path, default_sender="Shop <shop@x.org>")
    registry.registerUtility(delivery, IMailDelivery)
    with recording(registry) as outbox:
        with transaction.manager:
            registry.getUtility(IMailDelivery).send(None, B, "Subject: x\n\n")
        assert [mail.sender for mail in outbox] == ["shop@x.org"]
        assert outbox[0].message["From"] == "Shop <shop@x.org>"


@pytest.mark.parametrize("kind", [queued, direct])
def test_a_delivery_keeps_its_transaction_manager(tmp_path, kind):
    registry = Components("application")
    manager = TransactionManager(explicit=True)
    delivery = kind(tmp_path, transaction_manager=manager)
    registry.registerUtility(delivery, IMailDelivery)
    with recording(registry) as outbox:
        manager.begin()
        send(registry, "")
        transaction.commit()
        assert outbox == []
        manager.commit()
        assert len(outbox) == 1


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_delivery_that_checks_the_relay_does_so(tmp_path, is_asked):
    registry = Components("application")
    delivery = direct(tmp_path, check_relay=is_asked)
    registry.registerUtility(delivery, IMailDelivery)
    with recording(registry) as outbox:
        outbox.mailer.fail()
        send(registry, "")
        if is_asked:
            with pytest.raises(RelayError, match="it is down"):
                transaction.commit()
            transaction.abort()
        else:
            transaction.commit()


def test_deliveries_with_the_same_options_keep_the_order_of_their_mail(tmp_path):
    registry = Components("application")
    for name in ("one", "two"):
        registry.registerUtility(queued(tmp_path), IMailDelivery, name)
    with recording(registry) as outbox:
        with transaction.manager:
            for number, name in enumerate(["one", "two", "one"]):
                delivery = registry.getUtility(IMailDelivery, name)
                delivery.send(SENDER, B, message(number))
        assert [mail.message_id[0] for mail in outbox] == ["0", "1", "2"]


def test_a_processor_does_nothing_for_a_while(tmp_path):
    """What is in its queue are no mails of the test."""
    path = str(tmp_path / "queue")
    with transaction.manager:
        QueuedMailDelivery(path).send(SENDER, B, MESSAGE)
    registry = Components("application")
    mailer = RecordingMailer()
    processor = QueueProcessor(path, mailer, workers=1)
    registry.registerUtility(processor, IMailQueueProcessor)
    with recording(registry) as outbox:
        idle = registry.getUtility(IMailQueueProcessor)
        verifyObject(IMailQueueProcessor, idle)
        assert (idle.queuePath, idle.workers) == (path, 1)
        idle.start()
        idle.run()
        assert idle.flush() == (0, 0, 0, 0)
        assert idle.stop()
    assert mailer.outbox == outbox == []
    assert registry.getUtility(IMailQueueProcessor) is processor
    assert processor.flush() == (1, 0, 0, 0)


def test_all_is_put_back_after_an_error():
    registry = Components("application")
    with pytest.raises(ZeroDivisionError), recording(registry):
        1 / 0  # noqa: B018
    assert list(registry.registeredUtilities()) == []


def test_events_go_to_the_registry():
    registry = Components("application")
    events = []
    registry.notify = events.append
    with recording(registry), transaction.manager:
        send(registry)
    [event] = events
    assert IMailSentEvent.providedBy(event)


def test_events_go_to_everybody(components, monkeypatch):
    seen = []
    monkeypatch.setattr(zope.event, "subscribers", [seen.append])
    with recording(), transaction.manager:
        send(components)
    assert list(filter(IMailSentEvent.providedBy, seen))


def test_set_up_and_tear_down(components):
    outbox = setUp()
    with transaction.manager:
        send(components)
    assert len(outbox) == 1
    tearDown()
    tearDown()
    assert components.queryUtility(IMailDelivery, "Mail") is None


def test_set_up_for_a_doctest(components):
    text = """
    >>> import transaction
    >>> from zope.component import getUtility
    >>> from postcommit.interfaces import IMailDelivery
    >>> delivery = getUtility(IMailDelivery, "Mail")
    >>> _ = delivery.send("a@example.org", "b@example.org", "Subject: x")
    >>> transaction.commit()
    >>> mail_outbox[0].subject
    'x'
    """
    test = doctest.DocTestParser().get_doctest(text, {}, "example", None, 0)
    setUp(test)
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    assert len(test.globs["mail_outbox"]) == 1
    tearDown(test)


# Fixtures


def test_the_fixture(components, mail_outbox):
    send(components)
    transaction.abort()
    assert mail_outbox == []
    send(components)
    transaction.commit()
    assert len(mail_outbox) == 1


def test_the_mailer_of_the_fixture_can_refuse(components, mail_outbox, monkeypatch):
    seen = []
    monkeypatch.setattr(zope.event, "subscribers", [seen.append])
    mail_outbox.mailer.refuse(B, "550 5.1.1 Unknown")
    with transaction.manager:
        send(components, to=[B, C])
    assert [mail.recipients for mail in mail_outbox] == [(C,)]
    [event] = filter(IMailRejectedEvent.providedBy, seen)
    assert event.recipients == (B,)


def test_a_failure_of_a_test_shows_the_subject(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import transaction\n"
        "from zope.component import getUtility\n"
        "from postcommit.interfaces import IMailDelivery\n"
        "def test_it(mail_outbox):\n"
        "    with transaction.manager:\n"
        "        getUtility(IMailDelivery).send('', 'b@x.org', 'Subject: Teapot')\n"
        "    assert mail_outbox == []\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert done.returncode == 1
    assert "subject='Teapot'" in done.stdout


class TestWithARegistryOfItsOwn:
    @pytest.fixture
    def mail_registry(self):
        registry = Components("application")
        mailer = RecordingMailer()
        registry.registerUtility(DirectMailDelivery(mailer), IMailDelivery)
        registry.mailer = mailer
        return registry

    def test_the_fixture(self, mail_registry, mail_outbox):
        mail_registry.mailer.refuse(B, "550 5.1.1 Unknown")
        with transaction.manager:
            send(mail_registry, "")
        assert mail_outbox.to(B)


def test_pytest_finds_the_fixture_by_itself(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it(request):\n"
        "    assert 'postcommit._delivery' not in sys.modules\n"
        "    assert request.getfixturevalue('mail_outbox') == []\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )


def test_names():
    for name in postcommit.testing.__all__:
        assert getattr(postcommit.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        postcommit.testing.other  # noqa: B018


@pytest.mark.usefixtures("components")
def test_rejected_is_told_after_the_commit():
    """As with the real one: the commit stands."""
    events = []
    mailer = RecordingMailer(notify=events.append)
    mailer.refuse(B, "550 5.1.1 Unknown")
    getGlobalSiteManager().registerUtility(DirectMailDelivery(mailer), IMailDelivery)
    with transaction.manager:
        getUtility(IMailDelivery).send(SENDER, B, MESSAGE)
        assert events == []
    [event] = events
    assert IMailRejectedEvent.providedBy(event)
