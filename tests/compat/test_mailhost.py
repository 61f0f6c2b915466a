"""Mail hosts of Zope that send through postcommit, with relays and transactions."""
from __future__ import annotations

import configparser
import copy
import functools
import pickle
import re
import smtplib
import time
import xmlrpc.client
from collections.abc import Callable
from collections.abc import Iterator
from email import message_from_bytes as parsed
from email.header import Header
from email.header import decode_header
from email.header import make_header
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest
import transaction
import zope.sendmail.mailer
from zope.component import getUtility
from zope.component.testing import setUp as set_up_components
from zope.component.testing import tearDown as tear_down_components
from zope.configuration.exceptions import ConfigurationError
from zope.configuration.xmlconfig import string as configure
from zope.sendmail.interfaces import IMailer

from postcommit import Maildir
from postcommit.compat._relay import ENVIRONMENT
from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay


# A part of Zope, which has no types and needs a minute to install.
module = pytest.importorskip("Products.MailHost.MailHost")
ours = pytest.importorskip("postcommit.mailhost")

ROOT = Path(__file__).parent.parent.parent
S, A, B = "s@example.org", "a@example.org", "b@example.org"
MESSAGE = "From: s@example.org\nTo: a@example.org\nSubject: x\n\nx\n"
NAMES = (
    *("SMTPMailer", "DirectMailDelivery", "QueuedMailDelivery"),
    *("QueueProcessorThread", "Maildir"),
)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    ours.restore()
    yield
    ours.restore()


@pytest.fixture
def replaced() -> None:
    ours.replace()


def host_of(relay: ScriptedRelay, **options: Any) -> Any:
    return module.MailHost("mail", "", "127.0.0.1", relay.port, **options)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def names() -> dict[str, Any]:
    return {name: vars(module)[name] for name in (*NAMES, "MailBase")}


class TestReplacement:
    def test_it_can_be_undone(self) -> None:
        older, send = names(), module.MailBase._send
        for _ in range(2):
            ours.replace(immediate=False)
            for name in NAMES:
                assert vars(module)[name].__module__.startswith("postcommit.")
            assert module.MailBase._send is not send
        for _ in range(2):
            ours.restore()
            assert names() == older
            assert module.MailBase._send is send

    def test_the_object_of_another_package_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours.replace(immediate=False)

        def printing(*arguments: Any, **options: Any) -> None: ...

        monkeypatch.setattr(module.MailBase, "_send", printing)
        ours.restore()
        assert module.MailBase._send is printing

    def test_a_second_call_repairs_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        older = module.SMTPMailer
        ours.replace()
        monkeypatch.setattr(module, "SMTPMailer", object)
        ours.replace()
        assert module.SMTPMailer is ours.SMTPMailer
        ours.restore()
        assert module.SMTPMailer is older

    def test_a_call_on_its_way_survives_the_end(self, relay: ScriptedRelay) -> None:
        ours.replace(immediate=False)
        send = module.MailBase._send
        ours.restore()
        send(host_of(relay), S, [A], MESSAGE, True)
        assert relay.messages == []
        transaction.commit()
        assert len(relay.messages) == 1

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("POSTCOMMIT_VERIFY", "maybe"),
            ("POSTCOMMIT_AUTH", "xyz"),
            ("POSTCOMMIT_KEYFILE", "/etc/passwd"),
        ],
    )
    def test_a_variable_that_cannot_work_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        older = names()
        monkeypatch.setenv(variable, value)
        with pytest.raises(ValueError, match=variable):
            ours.replace()
        assert names() == older

    def test_zope_sendmail_stays(self) -> None:
        older = zope.sendmail.mailer.SMTPMailer
        ours.replace()
        assert zope.sendmail.mailer.SMTPMailer is older
        assert "zope.sendmail" in older.__module__


class TestZCML:
    @pytest.fixture(autouse=True)
    def components(self) -> Iterator[None]:
        set_up_components()
        yield
        tear_down_components()

    def configure(self, *lines: str) -> None:
        namespaces = (
            'xmlns="http://namespaces.zope.org/zope"',
            'xmlns:mail="http://namespaces.zope.org/mail"',
        )
        text = "\n".join(lines)
        configure(f"<configure {' '.join(namespaces)}>{text}</configure>")

    include = '<include package="postcommit.mailhost" />'
    meta = '<include package="postcommit.mailhost" file="meta.zcml" />'

    def test_one_line(self) -> None:
        self.configure(self.include)
        assert module.SMTPMailer is ours.SMTPMailer

    def test_without_the_line(self) -> None:
        self.configure(self.meta)
        assert module.SMTPMailer is zope.sendmail.mailer.SMTPMailer

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_beside_zope_sendmail(self, ours_first: bool) -> None:
        theirs = (
            '<include package="zope.component" file="meta.zcml" />'
            '<include package="zope.security" file="meta.zcml" />'
            '<include package="zope.sendmail" file="meta.zcml" />'
            '<include package="zope.sendmail" />'
        )
        lines = [self.include, theirs] if ours_first else [theirs, self.include]
        self.configure(*lines)
        assert module.SMTPMailer is ours.SMTPMailer
        older = getUtility(IMailer, "smtp")
        assert type(older) is zope.sendmail.mailer.SMTPMailer

    def test_twice(self) -> None:
        self.configure(self.include, self.include)
        assert module.SMTPMailer is ours.SMTPMailer

    def test_a_site_may_choose_what_immediate_means(self) -> None:
        send = module.MailBase._send
        # The site's own directive prevails over that of the package.
        self.configure(self.include, '<mail:mailHost immediate="false" />')
        assert module.MailBase._send is not send
        self.configure(self.meta, '<mail:mailHost immediate="true" />')
        assert module.MailBase._send is send

    @pytest.mark.parametrize("overrides_first", [True, False])
    def test_the_overrides_of_the_page(
        self, tmp_path: Path, overrides_first: bool
    ) -> None:
        # Plone includes ours before all overrides, a site perhaps after them.
        send = module.MailBase._send
        page = (ROOT / "docs" / "plone.rst").read_text()
        [text] = re.findall("(?s)   <configure.*?</configure>", page)
        overrides = tmp_path / "overrides.zcml"
        overrides.write_text(text)
        plone = tmp_path / "plone.zcml"
        plone.write_text(
            '<configure xmlns="http://namespaces.zope.org/zope">'
            f"{self.include}</configure>"
        )
        lines = [
            f'<include file="{plone}" />',
            f'<includeOverrides file="{overrides}" />',
        ]
        self.configure(*(reversed(lines) if overrides_first else lines))
        assert module.MailBase._send is not send

    def test_nothing_else_can_be_chosen(self) -> None:
        with pytest.raises(ConfigurationError, match="immediate"):
            self.configure(self.meta, '<mail:mailHost immediate="maybe" />')

    def test_plone_includes_it_by_itself(self) -> None:
        setup = configparser.ConfigParser(interpolation=None)
        setup.read_string((ROOT / "setup.cfg").read_text())
        points = setup["options.entry_points"]["plone.autoinclude.plugin"]
        assert points.split("\n")[1:] == [
            "target = plone",
            "module = postcommit.mailhost",
        ]
        assert (Path(ours.__file__).parent / "configure.zcml").exists()


@pytest.mark.usefixtures("replaced")
class TestSending:
    def test_with_the_transaction(self, relay: ScriptedRelay) -> None:
        host = host_of(relay)
        host.send(MESSAGE, mto="Ann <a@example.org>, b@example.org", mfrom=S)
        assert relay.messages == []
        transaction.commit()
        [message] = relay.messages
        assert (message.sender, message.recipients) == (S, (A, B))

    def test_immediately(self, relay: ScriptedRelay) -> None:
        host_of(relay).send(MESSAGE, immediate=True)
        assert len(relay.messages) == 1

    def test_immediately_and_refused(self, relay: ScriptedRelay) -> None:
        relay.reply("RCPT", "550 5.1.1 no such user")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            host_of(relay).send(MESSAGE, immediate=True)

    def test_immediately_and_the_relay_is_away(self) -> None:
        host = module.MailHost("mail", "", "127.0.0.1", 1)
        with pytest.raises(ConnectionRefusedError):
            host.send(MESSAGE, immediate=True)

    def test_directly_and_the_relay_is_away(self) -> None:
        module.MailHost("mail", "", "127.0.0.1", 1).send(MESSAGE)
        with pytest.raises(ConnectionRefusedError):
            transaction.commit()

    def test_immediate_mail_may_wait_for_the_commit(self, relay: ScriptedRelay) -> None:
        ours.replace(immediate=False)
        host = host_of(relay)
        host.send(MESSAGE, immediate=True)
        transaction.abort()
        assert relay.messages == []
        host.send(MESSAGE, immediate=True)
        transaction.commit()
        assert len(relay.messages) == 1

    def test_another_package_may_have_its_own_send(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent = []

        # As Products.PrintingMailHost does.
        def printing(self: Any, *arguments: Any, immediate: bool = False) -> None:
            sent.append(immediate)

        monkeypatch.setattr(module.MailBase, "_send", printing)
        ours.replace(immediate=False)
        module.MailHost("mail").send(MESSAGE, immediate=True)
        assert sent == [False]

    def test_the_settings_of_the_mail_host_are_used(self) -> None:
        host = module.MailHost(
            "mail", smtp_host="relay", smtp_port=26, smtp_uid="ann", smtp_pwd="secret"
        )
        mailer = host._makeMailer()
        assert (mailer.hostname, mailer.port) == ("relay", 26)
        assert (mailer.username, mailer.password) == ("ann", "secret")
        for name in ("force_tls", "implicit_tls"):
            mailer = module.MailHost("mail", **{name: True})._makeMailer()
            assert getattr(mailer, name) is True

    def test_an_older_mailer_has_fewer_attributes(
        self, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As in zope.sendmail 6.2, and in 6.1 without implicit_tls.
        class Older:
            def __init__(self, hostname: str, port: int, **options: Any) -> None:
                self.hostname, self.port = hostname, port

        monkeypatch.setattr(zope.sendmail.mailer, "SMTPMailer", Older)
        host_of(relay).send(MESSAGE, immediate=True)
        assert len(relay.messages) == 1

    @pytest.mark.parametrize("is_queued", [True, False])
    @pytest.mark.parametrize("to", ["a@example.org, ", [A, ""]])
    def test_an_empty_recipient_is_dropped(
        self, relay: ScriptedRelay, tmp_path: Path, to: Any, is_queued: bool
    ) -> None:
        path = str(tmp_path / "queue")
        host = host_of(relay, smtp_queue=is_queued, smtp_queue_directory=path)
        host.send("Subject: x\n\nx", mto=to, mfrom=S)
        transaction.commit()
        relay.wait_until(lambda: relay.messages)
        host._stopQueueProcessorThread()
        assert [message.recipients for message in relay.messages] == [(A,)]

    def test_a_comment_is_refused_unless_the_mail_host_replaces_it(
        self, relay: ScriptedRelay
    ) -> None:
        host, commented = host_of(relay), f"{A} (Shop)"
        host.send(MESSAGE, mto=commented, immediate=True)
        host.send(f"From: {S}\nTo: {commented}\n\nx\n", immediate=True)
        assert [message.recipients for message in relay.messages] == [(A,), (A,)]
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            host.send(MESSAGE, mto=[commented])
        with pytest.raises(smtplib.SMTPSenderRefused):
            host.send(MESSAGE, mfrom=commented)
        with pytest.raises(smtplib.SMTPSenderRefused):
            host.send(f"From: {commented}\nTo: {A}\n\nx\n")

    def test_immediate_mail_gets_a_message_id(self, relay: ScriptedRelay) -> None:
        host_of(relay).send(MESSAGE, immediate=True)
        [received] = relay.messages
        assert parsed(received.data)["Message-Id"]

    def test_a_refused_sender_is_not_taken_for_a_refused_recipient(
        self, relay: ScriptedRelay
    ) -> None:
        # The registration of Plone has another answer to refused recipients.
        relay.reply("MAIL", "553 5.1.8 who?")
        with pytest.raises(smtplib.SMTPSenderRefused) as caught:
            host_of(relay).send(MESSAGE, immediate=True)
        assert caught.value.sender == S

    def test_a_message_with_its_sender_in_a_header(self, relay: ScriptedRelay) -> None:
        message = MIMEText("x")
        message["From"] = Header("Jürgen <s@example.org>", "utf-8")
        message["To"] = A
        host_of(relay).send(message, immediate=True)
        [received] = relay.messages
        assert received.sender == S

    @pytest.mark.parametrize("immediate", [True, False])
    def test_a_sender_with_a_long_name(
        self, relay: ScriptedRelay, immediate: bool
    ) -> None:
        # As Plone makes it of the name of a site: it is folded.
        name = Header("Ministerium für Wirtschaft und Energie, Innovation, Digitales")
        sender = f'"{name.encode()}" <{S}>'
        assert "\n" in sender
        host_of(relay).send(
            "Subject: x\n\nx", mto=A, mfrom=sender, immediate=immediate
        )
        transaction.commit()
        [received] = relay.messages
        assert received.sender == S
        [field] = parsed(received.data).get_all("From")
        assert str(make_header(decode_header(field))).startswith("Ministerium für")

    def test_the_certificate_of_another_machine(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ScriptedRelay(tls=authority.server()) as relay:
            host = host_of(relay, force_tls=True)
            with pytest.raises(OSError, match="POSTCOMMIT_VERIFY"):
                host.send(MESSAGE, immediate=True)
            monkeypatch.setenv("POSTCOMMIT_VERIFY", "false")
            host.send(MESSAGE, immediate=True)
            assert len(relay.messages) == 1


class TestPlone:
    """Plone's function around the constructor of zope.sendmail's mailer."""

    @staticmethod
    def wrapper(port: int) -> Callable[[Any], Any]:
        # As Products.CMFPlone.patches.sendmail: keywords only, some are replaced.
        def around(function: Any) -> Any:
            @functools.wraps(function)
            def wrapped(self: Any, **options: Any) -> Any:
                options |= {"hostname": "127.0.0.1", "port": port}
                options |= {"username": None, "password": None}
                return function(self, **options)

            return wrapped

        return around

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_it_is_around_ours(
        self, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, ours_first: bool
    ) -> None:
        if ours_first:
            ours.replace()
        older = zope.sendmail.mailer.SMTPMailer
        wrapped = self.wrapper(relay.port)(older.__init__)
        monkeypatch.setattr(older, "__init__", wrapped)
        ours.replace()
        host = module.MailHost("mail", smtp_host="elsewhere", implicit_tls=False)
        host.send(MESSAGE, immediate=True)
        assert len(relay.messages) == 1


@pytest.mark.usefixtures("replaced")
class TestQueue:
    @pytest.fixture
    def queue(self, tmp_path: Path) -> str:
        return str(tmp_path / "queue")

    @pytest.fixture
    def host(self, relay: ScriptedRelay, queue: str) -> Iterator[Any]:
        host = host_of(relay, smtp_queue=True, smtp_queue_directory=queue)
        yield host
        host._stopQueueProcessorThread()

    def test_mail_leaves_at_once(self, host: Any, relay: ScriptedRelay) -> None:
        assert not host.queueThreadAlive()
        for _ in range(3):
            host.send(MESSAGE)
        transaction.commit()
        assert host.queueThreadAlive()
        relay.wait_until(lambda: len(relay.messages) == 3)
        host.manage_restartQueueThread("stop")
        assert not host.queueThreadAlive()
        assert host.queueLength() == 0

    def test_a_recipient_that_is_refused_for_now_is_kept(
        self, host: Any, relay: ScriptedRelay
    ) -> None:
        relay.reply("RCPT", "450 4.2.0 greylisted", address=A)
        host.send(MESSAGE, mto=[A, B])
        transaction.commit()
        relay.wait_until(lambda: relay.messages)
        host.manage_restartQueueThread("stop")
        assert host.queueLength() == 1
        see = f"see: postcommit status {host.smtp_queue_directory}"
        assert str(host.queueLength()) == f"1 (1 deferred; {see})"

    def test_its_form_counts_what_needs_attention(
        self, host: Any, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MAILHOST_QUEUE_ONLY", "1")
        relay.reply("RCPT", "550 5.1.1 no such user", address=A)
        for _ in range(2):
            host.send(MESSAGE)
            transaction.commit()
        assert str(host.queueLength()) == "2"
        host._startQueueProcessorThread()
        folder = Path(host.smtp_queue_directory) / ".Failed"
        wait_for(lambda: len(list(folder.glob("*/*"))) == 2)
        host._stopQueueProcessorThread()
        assert host.queueLength() == 0
        see = f"see: postcommit status {host.smtp_queue_directory}"
        assert str(host.queueLength()) == f"0 (2 dead letters; {see})"

    def test_its_length_is_a_plain_number_for_programs(
        self, host: Any, relay: ScriptedRelay
    ) -> None:
        relay.reply("RCPT", "450 4.2.0 greylisted", address=A)
        host.send(MESSAGE)
        transaction.commit()
        wait_for(lambda: "deferred" in str(host.queueLength()))
        length = host.queueLength()
        # As Zope answers a monitor, and as a cache keeps it.
        answer = xmlrpc.client.dumps((length,), methodresponse=True)
        assert xmlrpc.client.loads(answer) == ((1,), None)
        for kept in (pickle.loads(pickle.dumps(length)), copy.deepcopy(length)):
            assert (type(kept), kept) == (int, 1)

    def test_its_form_says_that_the_queue_pauses(
        self, host: Any, relay: ScriptedRelay
    ) -> None:
        relay.down()
        host.send(MESSAGE)
        transaction.commit()
        wait_for(lambda: "paused" in str(host.queueLength()))
        assert host.queueLength() == 1

    def test_the_thread_can_be_started_again(
        self, host: Any, relay: ScriptedRelay
    ) -> None:
        for count in (1, 2):
            host.send(MESSAGE)
            transaction.commit()
            relay.wait_until(lambda count=count: len(relay.messages) == count)
            host.manage_restartQueueThread("stop")

    def test_another_process_may_send(
        self, host: Any, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MAILHOST_QUEUE_ONLY", "1")
        host.send(MESSAGE)
        transaction.commit()
        assert host.queueNonDeliveryMode()
        assert not host.queueThreadAlive()
        assert host.queueLength() == 1
        assert len(list(Maildir(queue))) == 1

    def test_a_folder_that_is_not_a_queue(self, host: Any, tmp_path: Path) -> None:
        host.smtp_queue_directory = str(tmp_path)
        assert "is not a maildir" in host.queueLength()
        with pytest.raises(ValueError, match="Maildir"):
            host.manage_restartQueueThread("start")

    def test_a_queue_that_is_missing(self, host: Any) -> None:
        assert "is not a maildir" in host.queueLength()

    def test_the_older_library_can_use_the_queue_again(
        self, host: Any, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MAILHOST_QUEUE_ONLY", "1")
        host.send(MESSAGE)
        transaction.commit()
        ours.restore()
        assert type(host.queueLength()) is int
        assert host.queueLength() == 1
        thread = module.QueueProcessorThread()
        thread.setMailer(host._makeMailer())
        thread.setQueuePath(host.smtp_queue_directory)
        thread.run(forever=False)
        assert len(relay.messages) == 1
        assert host.queueLength() == 0


class TestPage:
    """What ``docs/plone.rst`` says is so."""

    page = (ROOT / "docs" / "plone.rst").read_text()

    def test_the_lines(self) -> None:
        assert TestZCML.include in self.page
        assert '<mail:mailHost immediate="false" />' in self.page
        assert "pip install 'postcommit[mailhost]'" in self.page

    def test_the_variables(self) -> None:
        assert set(re.findall(r"``(POSTCOMMIT_\w+)", self.page)) == set(ENVIRONMENT)

    def test_the_line_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", "postcommit.mailhost"):
            ours.replace()
        [record] = caplog.records
        assert f"``{record.getMessage()}``" in self.page
