"""``config.include("postcommit.pyramid_mailer")`` in applications of pyramid_mailer."""
from __future__ import annotations

import re
import smtplib
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyramid_mailer.mailer
import pytest
import repoze.sendmail.mailer
import transaction
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid_mailer import get_mailer
from pyramid_mailer.interfaces import IMailer
from pyramid_mailer.mailer import DebugMailer
from pyramid_mailer.mailer import DummyMailer
from pyramid_mailer.mailer import Mailer
from pyramid_mailer.message import Attachment
from pyramid_mailer.message import Message
from webtest import TestApp as Browser

from postcommit import Maildir
from postcommit import pyramid_mailer as ours
from postcommit._cli.main import main
from postcommit.compat import repoze_sendmail
from tests.compat.test_repoze_sendmail import Program
from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay


ROOT = Path(__file__).parent.parent.parent
S, A, B = "s@example.org", "a@example.org", "b@example.org"
OURS = "postcommit.pyramid_mailer"
THEIRS = "pyramid_mailer"

NAMES = (
    *("SMTPMailer", "SMTP_SSLMailer", "SendmailMailer"),
    *("DirectMailDelivery", "QueuedMailDelivery"),
)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    ours.restore()
    yield
    ours.restore()


def addon(config: Configurator) -> None:
    """Include pyramid_mailer, as kinto-emailer does."""
    config.include(THEIRS)


def debugging_addon(config: Configurator) -> None:
    config.include("pyramid_mailer.debug")


def message_of(**fields: Any) -> Message:
    fields = {"subject": "x", "sender": S, "recipients": [A], "body": "x"} | fields
    return Message(**fields)


def configured(settings: dict[str, Any], *included: Any) -> Configurator:
    config = Configurator(settings=settings)
    for one in included:
        config.include(one)
    return config


def settings_of(relay: ScriptedRelay, **others: Any) -> dict[str, Any]:
    settings = {"mail.host": "127.0.0.1", "mail.port": str(relay.port)}
    return settings | {f"mail.{name}": value for name, value in others.items()}


def uses_ours(mailer: Any) -> bool:
    return isinstance(mailer.smtp_mailer, repoze_sendmail.SMTPMailer)


ORDERS: dict[str, tuple[Any, ...]] = {
    "alone": (OURS,),
    "before it": (OURS, THEIRS),
    "after it": (THEIRS, OURS),
    "before an add-on": (OURS, addon),
    "after an add-on": (addon, OURS),
    "twice": (OURS, OURS),
}


@pytest.mark.parametrize("included", ORDERS.values(), ids=ORDERS)
def test_each_order_of_inclusion(
    relay: ScriptedRelay, included: tuple[Any, ...]
) -> None:
    def view(request: Any) -> Response:
        assert type(request.mailer) is Mailer
        assert request.mailer.transaction_manager is request.tm
        request.mailer.send(message_of())
        if "fail" in request.params:
            raise ValueError("no")
        return Response("sent")

    config = configured(settings_of(relay), "pyramid_tm", *included)
    config.add_route("send", "/")
    config.add_view(view, route_name="send")
    assert uses_ours(get_mailer(config.registry))
    browser = Browser(config.make_wsgi_app())
    assert browser.get("/").text == "sent"
    assert len(relay.messages) == 1
    with pytest.raises(ValueError, match="no"):
        browser.get("/?fail=1")
    assert len(relay.messages) == 1
    assert uses_ours(get_mailer(config.registry))


KINDS = {"pyramid_mailer.testing": DummyMailer, "pyramid_mailer.debug": DebugMailer}


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_mailers_for_tests_and_for_development_stay(
    tmp_path: Path, kind: str, ours_first: bool
) -> None:
    included = [OURS, kind] if ours_first else [kind, OURS]
    settings = {"mail.top_level_directory": str(tmp_path / "mail")}
    config = configured(settings, *included)
    config.commit()
    assert type(get_mailer(config.registry)) is KINDS[kind]


def test_it_can_be_included_when_all_is_done_at_once(relay: ScriptedRelay) -> None:
    config = Configurator(settings=settings_of(relay), autocommit=True)
    for included in (OURS, THEIRS, OURS):
        config.include(included)
        assert uses_ours(get_mailer(config.registry))


def test_another_prefix(relay: ScriptedRelay) -> None:
    settings = {"pyramid_mailer.prefix": "post.", "post.host": "relay.example.org"}
    mailer = get_mailer(configured(settings, OURS).registry)
    assert mailer.smtp_mailer.hostname == "relay.example.org"


def test_what_it_replaces_can_be_put_back() -> None:
    module = pyramid_mailer.mailer
    older = {name: vars(module)[name] for name in NAMES}
    for _ in range(2):
        ours.replace()
        for name in NAMES:
            assert vars(module)[name].__module__.startswith("postcommit.")
    for _ in range(2):
        ours.restore()
        assert {name: vars(module)[name] for name in NAMES} == older
    assert isinstance(Mailer().smtp_mailer, repoze.sendmail.mailer.SMTPMailer)


def test_a_variable_that_cannot_work_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POSTCOMMIT_VERIFY", "maybe")
    with pytest.raises(ValueError, match="POSTCOMMIT_VERIFY"):
        Configurator(settings={}).include(OURS)


def test_settings_that_cannot_work_are_refused_before_the_commit() -> None:
    mailer = get_mailer(configured({"mail.host": "relay:25"}, OURS).registry)
    with pytest.raises(ValueError, match="hostname"):
        mailer.send(message_of())
    mailer.send_immediately(message_of(), fail_silently=True)


class TestRebuilding:
    """A mailer that was registered before keeps its options."""

    def rebuilt(self, mailer: Any) -> Any:
        config = Configurator(settings={})
        config.registry.registerUtility(mailer, IMailer)
        config.include(OURS)
        return get_mailer(config.registry)

    def test_options(self) -> None:
        manager = transaction.TransactionManager()
        mailer = self.rebuilt(
            Mailer(
                host="relay",
                port=26,
                username="ann",
                password="secret",
                tls=True,
                debug=1,
                queue_path="queue",
                default_sender=S,
                transaction_manager=manager,
                sendmail_app="/bin/true",
                sendmail_template=["{sendmail_app}"],
            )
        )
        smtp, sendmail = mailer.smtp_mailer, mailer.sendmail_mailer
        assert type(smtp) is repoze_sendmail.SMTPMailer
        assert (smtp.hostname, smtp.port, smtp.username) == ("relay", 26, "ann")
        assert (smtp.password, smtp.force_tls, smtp.no_tls) == ("secret", True, False)
        assert (smtp.debug_smtp, smtp.ssl) == (1, False)
        assert type(sendmail) is repoze_sendmail.SendmailMailer
        assert sendmail.sendmail_app == "/bin/true"
        assert sendmail.sendmail_template == ["{sendmail_app}"]
        assert (mailer.queue_path, mailer.default_sender) == ("queue", S)
        assert mailer.transaction_manager is manager

    def test_the_mailer_of_an_addon_under_another_name(self) -> None:
        config = Configurator(settings={})
        config.registry.registerUtility(Mailer(host="bulk"), IMailer, "bulk")
        config.include(OURS)
        bulk = config.registry.getUtility(IMailer, "bulk")
        assert uses_ours(bulk)
        assert bulk.smtp_mailer.hostname == "bulk"
        assert uses_ours(get_mailer(config.registry))

    def test_the_default_template_is_not_kept(self) -> None:
        assert self.rebuilt(Mailer()).sendmail_mailer.sendmail_template is None

    def test_tls_from_the_first_byte(self) -> None:
        smtp = self.rebuilt(
            Mailer(ssl=True, certfile="c.pem", keyfile="k.pem")
        ).smtp_mailer
        assert type(smtp) is ours.SMTP_SSLMailer
        assert (smtp.ssl, smtp.certfile, smtp.keyfile) == (True, "c.pem", "k.pem")
        assert smtp.smtp is smtplib.SMTP_SSL

    def test_other_mailers_stay(self) -> None:
        class Special:
            def send(self, *arguments: Any) -> None: ...

        special = Special()
        given = Mailer(smtp_mailer=special, sendmail_mailer=special)
        mailer = self.rebuilt(given)
        assert mailer.smtp_mailer is special
        assert mailer.sendmail_mailer is special

    def test_a_subclass_stays(self) -> None:
        class Special(Mailer):  # type: ignore[misc]
            pass

        special = Special()
        assert self.rebuilt(special) is special


class TestSending:
    @pytest.fixture
    def mailer(self, relay: ScriptedRelay, tmp_path: Path) -> Any:
        settings = settings_of(relay, queue_path=str(tmp_path / "queue"))
        program = Program(tmp_path)
        settings["mail.sendmail_app"] = program.path
        return get_mailer(configured(settings, OURS).registry)

    def test_within_the_transaction(self, mailer: Any, relay: ScriptedRelay) -> None:
        message_id = mailer.send(message_of())
        assert relay.messages == []
        transaction.commit()
        [message] = relay.messages
        assert message_id.encode() in message.data
        assert message_id.startswith("<")

    def test_immediately(self, mailer: Any, relay: ScriptedRelay) -> None:
        assert mailer.send_immediately(message_of()) is None
        assert len(relay.messages) == 1
        relay.down()
        mailer.smtp_mailer.port = 1
        mailer.send_immediately(message_of(), fail_silently=True)
        with pytest.raises(ConnectionRefusedError):
            mailer.send_immediately(message_of())

    def test_into_the_queue(self, mailer: Any, tmp_path: Path) -> None:
        mailer.send_to_queue(message_of())
        transaction.commit()
        assert len(list(Maildir(str(tmp_path / "queue")))) == 1

    @pytest.mark.parametrize("immediately", [True, False])
    def test_through_sendmail(
        self, mailer: Any, tmp_path: Path, immediately: bool
    ) -> None:
        send: Callable[[Message], Any] = mailer.send_sendmail
        if immediately:
            send = mailer.send_immediately_sendmail
        send(message_of())
        transaction.commit()
        program = Program(tmp_path)
        assert program.arguments == ["-i", "-f", S, "--", A]

    def test_everything_in_a_message(self, mailer: Any, relay: ScriptedRelay) -> None:
        message = message_of(
            subject="Grüße aus Köln",
            sender="Jürgen Müller <s@example.org>",
            recipients=[f"Änne <{A}>"],
            cc=[B],
            bcc=["secret@example.org"],
            body="Schöne Grüße",
            html="<p>Schöne Grüße</p>",
            attachments=[Attachment("öl.bin", "application/x-oil", b"\xc3\xb6l")],
        )
        mailer.send(message)
        transaction.commit()
        [received] = relay.messages
        assert sorted(received.recipients) == [A, B, "secret@example.org"]
        assert received.sender == S
        assert b"secret" not in received.data
        assert received.data.isascii()


class TestGoingBack:
    """``docs/moving-pyramid-mailer.rst`` says how to empty the queue."""

    def test_the_commands_also_send_what_is_deferred(
        self, relay: ScriptedRelay, tmp_path: Path
    ) -> None:
        page = (ROOT / "docs" / "moving-pyramid-mailer.rst").read_text()
        commands = re.findall(r"^    \$ postcommit (.*)", page, re.MULTILINE)
        assert [command.split()[0] for command in commands] == ["retry", "flush"]
        queue = str(tmp_path / "queue")
        settings = settings_of(relay, queue_path=queue)
        mailer = get_mailer(configured(settings, OURS).registry)
        mailer.send_to_queue(message_of())
        transaction.commit()
        relay.reply("RCPT", "450 4.2.0 greylisted", times=1)
        for command in ["flush QUEUE --hostname mx.example.org", *commands]:
            for older, newer in (
                ("QUEUE", queue),
                ("/var/spool/shop", queue),
                ("mx.example.org", f"127.0.0.1 --port {relay.port}"),
            ):
                command = command.replace(older, newer)
            main(command.split())
        assert len(relay.messages) == 1
        assert list(Maildir(queue)) == []


class TestSSL:
    def test_a_client_certificate_on_any_python(
        self,
        authority: Authority,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("POSTCOMMIT_CAFILE", authority.cafile)
        chain = tmp_path / "client.pem"
        authority.write_chain(chain, "client.example.org")
        with ScriptedRelay(tls=authority.server(), implicit_tls=True) as relay:
            settings = settings_of(relay, ssl="true", certfile=str(chain))
            mailer = get_mailer(configured(settings, OURS).registry)
            mailer.send_immediately(message_of())
            assert len(relay.messages) == 1

    def test_the_certificate_in_the_settings_prevails_over_the_environment(
        self,
        authority: Authority,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("POSTCOMMIT_CAFILE", authority.cafile)
        one, other = tmp_path / "one.pem", tmp_path / "other.pem"
        for chain in (one, other):
            authority.write_chain(chain, f"{chain.stem}.example.org")
        # The key of another certificate does not fit.
        monkeypatch.setenv("POSTCOMMIT_CERTFILE", str(other))
        monkeypatch.setenv("POSTCOMMIT_KEYFILE", str(other))
        with ScriptedRelay(tls=authority.server(), implicit_tls=True) as relay:
            settings = settings_of(relay, ssl="true", certfile=str(one))
            mailer = get_mailer(configured(settings, OURS).registry)
            mailer.send_immediately(message_of())
            assert len(relay.messages) == 1

    def test_options_may_be_positional(self) -> None:
        for kind in (pyramid_mailer.mailer.SMTP_SSLMailer, ours.SMTP_SSLMailer):
            options = ("relay", 465, "ann", "secret", False, True, True, 1)
            mailer = kind(*options, certfile="c.pem", keyfile="k.pem")
            assert (mailer.hostname, mailer.port) == ("relay", 465)
            assert (mailer.force_tls, mailer.ssl, mailer.debug_smtp) == (True, True, 1)
            assert (mailer.certfile, mailer.keyfile) == ("c.pem", "k.pem")
        assert ours.SMTP_SSLMailer(ssl=False).ssl

    def test_a_login_goes_through_tls_although_it_is_not_asked_for(
        self, authority: Authority
    ) -> None:
        settings = {
            "mail.host": "relay.example.org",
            "mail.username": "ann",
            "mail.password": "secret",
        }
        mailer = get_mailer(configured(settings, OURS).registry)
        assert mailer.smtp_mailer.no_tls
        assert mailer.smtp_mailer._tls().value == "auto"
