"""The classes of repoze.sendmail, with relays, queues, programs and transactions."""
from __future__ import annotations

import json
import smtplib
import subprocess
import sys
from email import message_from_bytes
from email.message import EmailMessage
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest
import transaction

from postcommit import Maildir
from postcommit import QueueProcessor
from postcommit.compat.repoze_sendmail import DirectMailDelivery
from postcommit.compat.repoze_sendmail import NotAnEmailMessage
from postcommit.compat.repoze_sendmail import QueuedMailDelivery
from postcommit.compat.repoze_sendmail import SendmailCommandReturnedNonZero
from postcommit.compat.repoze_sendmail import SendmailMailer
from postcommit.compat.repoze_sendmail import SMTPMailer
from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay


S, A, B = "s@example.org", "a@example.org", "b@example.org"


def message_of(**fields: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in ({"From": S, "To": A} | fields).items():
        message[name.replace("_", "-")] = value
    message.set_content("x")
    return message


def mailer_of(relay: ScriptedRelay, **options: Any) -> SMTPMailer:
    return SMTPMailer("127.0.0.1", relay.port, **options)


class TestSMTPMailer:
    def test_the_arguments_by_position(self) -> None:
        given = ("relay", "26", "ann", "secret", True, False, False, 1)
        mailer = SMTPMailer(*given)  # type: ignore[arg-type]
        names = (
            *("hostname", "port", "username", "password"),
            *("no_tls", "force_tls", "ssl", "debug_smtp"),
        )
        assert tuple(getattr(mailer, name) for name in names) == given

    def test_it_sends(self, relay: ScriptedRelay) -> None:
        mailer_of(relay).send(S, {A}, message_of())
        [message] = relay.messages
        assert message.recipients == (A,)

    def test_it_takes_messages_as_objects_only(self, relay: ScriptedRelay) -> None:
        with pytest.raises(NotAnEmailMessage):
            mailer_of(relay).send(S, [A], b"Subject: x\n\nx")
        assert relay.messages == []

    def test_a_refusal_is_raised(self, relay: ScriptedRelay) -> None:
        relay.reply("RCPT", "550 5.1.1 no such user")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            mailer_of(relay).send(S, [A], message_of())

    def test_tls_that_is_missing_is_a_runtime_error(self, relay: ScriptedRelay) -> None:
        with pytest.raises(RuntimeError):
            mailer_of(relay, force_tls=True).send(S, [A], message_of())

    def test_tls_from_the_first_byte(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POSTCOMMIT_CAFILE", authority.cafile)
        with ScriptedRelay(tls=authority.server(), implicit_tls=True) as relay:
            mailer_of(relay, ssl=True).send(S, [A], message_of())
            assert len(relay.messages) == 1


class Program:
    """A program in place of sendmail, which writes down how it was called."""

    def __init__(self, folder: Path, status: int = 0) -> None:
        self._called = folder / "called.json"
        self.path = str(folder / "program")
        Path(self.path).write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            "said = [sys.argv[1:], sys.stdin.read()]\n"
            f"open({str(self._called)!r}, 'w').write(json.dumps(said))\n"
            f"sys.exit({status})\n"
        )
        Path(self.path).chmod(0o755)

    @property
    def arguments(self) -> list[str]:
        arguments: list[str] = json.loads(self._called.read_text())[0]
        return arguments

    @property
    def message(self) -> str:
        return str(json.loads(self._called.read_text())[1])


class TestSendmailMailer:
    def test_without_a_template(self, tmp_path: Path) -> None:
        program = Program(tmp_path)
        SendmailMailer(program.path).send(S, [A], message_of(To=B))
        assert program.arguments == ["-i", "-f", S, "--", A]
        assert "To: b@example.org" in program.message

    def test_with_a_template(self, tmp_path: Path) -> None:
        program = Program(tmp_path)
        template = ["{sendmail_app}", "-oi", "-f", "{sender}"]
        SendmailMailer(program.path, template).send(S, [A, B], message_of())
        assert program.arguments == ["-oi", "-f", S, A, B]

    def test_an_address_is_never_an_option(self, tmp_path: Path) -> None:
        program = Program(tmp_path)
        template = ["{sendmail_app}", "-i"]
        mailer = SendmailMailer(program.path, template)
        mailer.send(S, ["-bs@example.org"], message_of())
        assert program.arguments == ["-i", "--", "-bs@example.org"]

    def test_the_null_sender(self, tmp_path: Path) -> None:
        program = Program(tmp_path)
        template = ["{sendmail_app}", "-f", "{sender}"]
        SendmailMailer(program.path, template).send("", [A], message_of())
        assert program.arguments == ["-f", "<>", A]

    def test_without_recipients_those_of_the_header(self, tmp_path: Path) -> None:
        program = Program(tmp_path)
        SendmailMailer(program.path).send(S, None, message_of(To=A, Cc=B))
        assert program.arguments[-2:] == [A, B]

    def test_the_defaults_may_be_those_of_a_class(self, tmp_path: Path) -> None:
        program = Program(tmp_path)

        class Ours(SendmailMailer):
            sendmail_app = program.path

        Ours().send(S, [A], message_of())
        assert program.arguments[-1] == A

    @pytest.mark.parametrize("status", [67, 75, 78])
    def test_a_program_that_fails_is_an_error(
        self, tmp_path: Path, status: int
    ) -> None:
        program = Program(tmp_path, status)
        with pytest.raises(SendmailCommandReturnedNonZero) as caught:
            SendmailMailer(program.path).send(S, [A], message_of())
        assert isinstance(caught.value, subprocess.CalledProcessError)
        assert caught.value.returncode == status
        assert caught.value.cmd[0] == program.path

    def test_a_program_that_is_missing_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            SendmailMailer(str(tmp_path / "missing")).send(S, [A], message_of())

    def test_it_takes_messages_as_objects_only(self, tmp_path: Path) -> None:
        with pytest.raises(NotAnEmailMessage):
            SendmailMailer(str(tmp_path / "missing")).send(S, [A], "Subject: x\n\nx")

    def test_with_a_delivery(self, tmp_path: Path) -> None:
        program = Program(tmp_path)
        DirectMailDelivery(SendmailMailer(program.path)).send(S, [A], message_of())
        transaction.commit()
        assert program.arguments[-1] == A

    def test_a_subclass_with_its_own_send_is_not_bypassed(self, tmp_path: Path) -> None:
        program = Program(tmp_path)

        class Redirecting(SendmailMailer):
            def send(
                self, fromaddr: Any = None, toaddrs: Any = None, message: Any = None
            ) -> None:
                super().send(fromaddr, [B], message)

        DirectMailDelivery(Redirecting(program.path)).send(S, [A], message_of())
        transaction.commit()
        assert program.arguments[-1] == B


class Older:
    """A mailer that was written for repoze.sendmail."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def __repr__(self) -> str:
        return "<Older>"

    def send(self, fromaddr: str, toaddrs: Any, message: Any) -> None:
        if not isinstance(message, Message):
            raise NotAnEmailMessage()
        self.sent.append((fromaddr, tuple(toaddrs), message))


class TestDirectDelivery:
    def test_the_id_comes_back_in_brackets(self, relay: ScriptedRelay) -> None:
        message = message_of()
        message_id = DirectMailDelivery(mailer_of(relay)).send(S, [A], message)
        assert message_id == message["Message-Id"]
        assert message_id.startswith("<")
        assert message_id.endswith("@example.org>")
        transaction.commit()
        [received] = relay.messages
        assert message_id.encode() in received.data
        assert f"Date: {message['Date']}".encode() in received.data

    def test_an_id_and_a_date_that_are_there_stay(self, relay: ScriptedRelay) -> None:
        date = "Mon, 30 Nov 2026 02:00:00 -0000"
        message = message_of(Message_Id="<1@example.org>", Date=date)
        message_id = DirectMailDelivery(mailer_of(relay)).send(None, None, message)
        assert message_id == "<1@example.org>"
        transaction.commit()
        [received] = relay.messages
        assert received.data.count(b"Message-I") == 1
        assert (received.sender, received.recipients) == (S, (A,))

    def test_the_transaction_manager_is_looked_at_with_the_first_mail(
        self, relay: ScriptedRelay
    ) -> None:
        delivery = DirectMailDelivery(mailer_of(relay), transaction_manager=object())
        with pytest.raises(ValueError, match="transaction_manager"):
            delivery.send(S, [A], message_of())

    def test_another_transaction_manager(self, relay: ScriptedRelay) -> None:
        manager = transaction.TransactionManager(explicit=True)
        delivery = DirectMailDelivery(mailer_of(relay), manager)
        manager.begin()
        delivery.send(S, [A], message_of())
        delivery.send(S, [B], message_of())
        assert len(manager.get()._resources) == 1
        transaction.abort()
        manager.commit()
        assert len(relay.messages) == 2

    def test_it_takes_messages_as_objects_only(self, relay: ScriptedRelay) -> None:
        with pytest.raises(NotAnEmailMessage):
            DirectMailDelivery(mailer_of(relay)).send(S, [A], "Subject: x\n\nx")

    def test_an_older_mailer_gets_an_object(self) -> None:
        mailer = Older()
        DirectMailDelivery(mailer).send(S, [A], message_of(Subject="Grüße"))
        transaction.commit()
        [(sender, recipients, message)] = mailer.sent
        assert (sender, recipients) == (S, (A,))
        assert message.get_payload() == "x\n"

    def test_an_older_mailer_is_named_in_the_log(
        self,
    ) -> None:
        delivery = DirectMailDelivery(Older())
        delivery.send(S, [A], message_of())
        assert repr(delivery._delivery()) == "<DirectMailDelivery <Older>>"

    def test_a_mailer_of_ours(self, relay: ScriptedRelay) -> None:
        from postcommit import SMTPMailer as OurMailer

        mailer = OurMailer("127.0.0.1", relay.port)
        DirectMailDelivery(mailer).send(S, [A], message_of())
        transaction.commit()
        mailer.close()
        assert len(relay.messages) == 1

    def test_a_subclass_with_its_own_send_gets_an_object(
        self, relay: ScriptedRelay
    ) -> None:
        class Redirecting(SMTPMailer):
            def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
                super().send(fromaddr, [B], message)

        mailer = Redirecting("127.0.0.1", relay.port)
        DirectMailDelivery(mailer).send(S, [A], message_of())
        transaction.commit()
        assert [message.recipients for message in relay.messages] == [(B,)]


    def test_the_mailer_may_be_set_at_any_time(self) -> None:
        one, other = Older(), Older()
        delivery = DirectMailDelivery(one)
        for mailer in (one, other):
            delivery.mailer = mailer
            delivery.send(S, [A], message_of())
            transaction.commit()
        assert (len(one.sent), len(other.sent)) == (1, 1)

    def test_the_domain_of_the_id_is_in_ascii(self, relay: ScriptedRelay) -> None:
        message = message_of()
        delivery = DirectMailDelivery(mailer_of(relay))
        message_id = delivery.send("s@bücher.example", [A], message)
        assert message_id == message["Message-Id"]
        assert message_id.endswith("@xn--bcher-kva.example>")
        transaction.commit()
        assert message_id.encode() in relay.messages[0].data

    @pytest.mark.parametrize("sender", ["root", "s@exa\nmple.org"])
    def test_a_message_that_is_refused_stays_as_it_is(
        self, relay: ScriptedRelay, sender: str
    ) -> None:
        message = message_of()
        before = message.items()
        with pytest.raises(smtplib.SMTPSenderRefused):
            DirectMailDelivery(mailer_of(relay)).send(sender, [A], message)
        assert message.items() == before

    @pytest.mark.parametrize("hostname", ["relay:25", "", "a b"])
    def test_options_that_cannot_work_are_refused_before_the_commit(
        self, hostname: str
    ) -> None:
        with pytest.raises(ValueError, match="hostname"):
            DirectMailDelivery(SMTPMailer(hostname)).send(S, [A], message_of())
        for template in (["{sendmail_app}", "{nosuch}"], ["{0}"], ["{"], [1]):
            mailer = SendmailMailer("/bin/true", template)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="sendmail_template"):
                DirectMailDelivery(mailer).send(S, [A], message_of())

    def test_options_of_a_subclass_with_its_own_send_are_not_looked_at(self) -> None:
        class Printing(SMTPMailer):
            def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
                printed.append(message)

        printed: list[Message] = []
        DirectMailDelivery(Printing("")).send(S, [A], message_of())
        transaction.commit()
        assert len(printed) == 1


class TestEncoding:
    """A text that is not ASCII has no character set in an older kind of message."""

    def message(self, text: str) -> Message:
        message = Message()
        message["Subject"] = "x"
        message.set_payload(text)
        return message

    @pytest.mark.parametrize(
        ("text", "charset"), [("Grüße", "iso-8859-1"), ("Γειά", "utf-8")]
    )
    def test_it_is_encoded_as_in_repoze_sendmail(
        self, relay: ScriptedRelay, text: str, charset: str
    ) -> None:
        message = self.message(text)
        mailer_of(relay).send(S, [A], message)
        DirectMailDelivery(mailer_of(relay)).send(S, [A], message)
        transaction.commit()
        assert message.get_payload() == text
        for received in relay.messages:
            assert received.data.isascii()
            parsed = message_from_bytes(received.data)
            assert parsed.get_content_charset() == charset
            payload = parsed.get_payload(decode=True)
            assert payload.decode(charset).strip() == text  # type: ignore[union-attr]

    def test_a_part_of_a_message(self, relay: ScriptedRelay) -> None:
        whole = MIMEMultipart()
        whole.attach(self.message("Grüße"))
        whole.attach(MIMEText("plain"))
        mailer_of(relay).send(S, [A], whole)
        [first, second] = message_from_bytes(relay.messages[0].data).get_payload()
        assert first.get_content_charset() == "iso-8859-1"
        assert second.get_payload().strip() == "plain"

    def test_bytes_stay(self, relay: ScriptedRelay) -> None:
        raw = "Subject: x\r\n\r\nGrüße\r\n".encode()
        mailer_of(relay).send(S, [A], message_from_bytes(raw))
        assert raw.partition(b"\r\n\r\n")[2] in relay.messages[0].data


class TestAddresses:
    """An address that cannot work is an error of ours and of smtplib."""

    def test_a_mailer(self, relay: ScriptedRelay) -> None:
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            mailer_of(relay).send(S, ["root"], message_of())
        assert isinstance(caught.value, ValueError)

    def test_a_program(self) -> None:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            SendmailMailer("/bin/false").send(S, ["root"], message_of())

    def test_deliveries(self, relay: ScriptedRelay, tmp_path: Path) -> None:
        for delivery in (
            DirectMailDelivery(mailer_of(relay)),
            QueuedMailDelivery(str(tmp_path / "queue")),
        ):
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                delivery.send(S, ["root"], message_of())
        transaction.commit()
        assert relay.messages == []


class TestQueuedDelivery:
    def test_mail_is_in_the_queue_with_the_commit(
        self, tmp_path: Path, relay: ScriptedRelay
    ) -> None:
        path = str(tmp_path / "queue")
        delivery = QueuedMailDelivery(path)
        assert delivery.queuePath == path
        message_id = delivery.send(S, {A}, message_of())
        assert message_id.startswith("<")
        transaction.commit()
        assert len(list(Maildir(path))) == 1
        QueueProcessor(path, mailer_of(relay)).flush()  # type: ignore[arg-type]
        assert len(relay.messages) == 1

    def test_another_transaction_manager(self, tmp_path: Path) -> None:
        manager = transaction.TransactionManager()
        path = str(tmp_path / "queue")
        QueuedMailDelivery(path, manager).send(S, [A], message_of())
        transaction.commit()
        assert list(Maildir(path)) == []
        manager.commit()
        assert len(list(Maildir(path))) == 1
