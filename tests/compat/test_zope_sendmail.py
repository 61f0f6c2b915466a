"""The classes of zope.sendmail, with relays, queues and transactions."""
from __future__ import annotations

import email
import shutil
import smtplib
import threading
import time
from email.header import Header
from pathlib import Path
from typing import Any

import pytest
import transaction

from postcommit import QueueProcessor
from postcommit.compat import repoze_sendmail
from postcommit.compat import zope_sendmail
from postcommit.compat.zope_sendmail import DirectMailDelivery
from postcommit.compat.zope_sendmail import Maildir
from postcommit.compat.zope_sendmail import QueuedMailDelivery
from postcommit.compat.zope_sendmail import QueueProcessorThread
from postcommit.compat.zope_sendmail import SMTPMailer
from postcommit.errors import OptionError
from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay


S, A, B = "s@example.org", "a@example.org", "b@example.org"
MESSAGE = "From: s@example.org\nSubject: x\n\nx\n"


def mailer_of(relay: ScriptedRelay, **options: Any) -> SMTPMailer:
    return SMTPMailer("127.0.0.1", relay.port, **options)


class TestMailer:
    def test_the_arguments_by_position_and_by_keyword(self) -> None:
        given = ("relay", "26", "ann", "secret", True, False, False, 3.5)
        names = (
            *("hostname", "port", "username", "password"),
            *("no_tls", "force_tls", "implicit_tls", "timeout"),
        )
        for mailer in (
            SMTPMailer(*given),  # type: ignore[arg-type]
            SMTPMailer(**dict(zip(names, given, strict=True))),  # type: ignore[arg-type]
        ):
            assert tuple(getattr(mailer, name) for name in names) == given
        assert repr(mailer) == "<SMTPMailer relay:26>"

    def test_its_text_shows_no_secret(self) -> None:
        assert repr(SMTPMailer("ann:secret@relay")) == "<SMTPMailer ***@relay:25>"

    def test_the_port_may_be_a_text(self, relay: ScriptedRelay) -> None:
        mailer = SMTPMailer("127.0.0.1", str(relay.port))
        mailer.send(S, [A, B], MESSAGE)
        [message] = relay.messages
        assert (message.sender, message.recipients) == (S, (A, B))

    def test_the_attributes_may_be_set_later(self, relay: ScriptedRelay) -> None:
        mailer = SMTPMailer("relay.invalid")
        mailer.hostname, mailer.port = "127.0.0.1", relay.port
        mailer.send(S, A, MESSAGE.encode())
        assert len(relay.messages) == 1

    def test_mailers_with_the_same_options_share_a_connection(
        self, relay: ScriptedRelay
    ) -> None:
        for _ in range(3):
            mailer_of(relay).send(S, [A], MESSAGE)
        assert relay.connections == 1

    def test_nothing_is_raised_if_one_recipient_was_sent(
        self, relay: ScriptedRelay, caplog: pytest.LogCaptureFixture
    ) -> None:
        relay.reply("RCPT", "550 5.1.1 no such user", address=B)
        mailer_of(relay).send(S, [A, B], MESSAGE)
        assert f"to {B}: rejected" in caplog.text

    def test_a_refusal_is_raised(self, relay: ScriptedRelay) -> None:
        relay.reply("RCPT", "550 5.1.1 no such user")
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            mailer_of(relay).send(S, [A], MESSAGE)
        assert caught.value.recipients == {A: (550, b"5.1.1 no such user")}

    def test_a_user_without_a_password_does_not_log_in(
        self, relay: ScriptedRelay
    ) -> None:
        for password in (None, ""):
            mailer_of(relay, username="ann", password=password).send(S, [A], MESSAGE)
        assert len(relay.messages) == 2

    def test_a_login(self) -> None:
        with ScriptedRelay(users={"ann": "secret"}) as relay:
            mailer_of(relay, username="ann", password="secret").send(S, [A], MESSAGE)
            assert len(relay.messages) == 1

    def test_no_timeout_is_that_of_the_protocol(self, relay: ScriptedRelay) -> None:
        mailer_of(relay, timeout=None).send(S, [A], MESSAGE)
        assert len(relay.messages) == 1

    def test_a_timeout_is_for_each_reply(self, relay: ScriptedRelay) -> None:
        relay.hold("EHLO")
        with pytest.raises(TimeoutError):
            mailer_of(relay, timeout=0.1).send(S, [A], MESSAGE)

    def test_the_address_may_be_the_value_of_a_header(
        self, relay: ScriptedRelay
    ) -> None:
        sender, to = Header("Jürgen <s@example.org>"), Header("a@example.org")
        mailer = mailer_of(relay)
        mailer.send(sender, [to], MESSAGE)
        mailer.send(sender, to, MESSAGE)
        assert [message.recipients for message in relay.messages] == [(A,), (A,)]
        assert {message.sender for message in relay.messages} == {S}

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_the_value_of_a_header_may_be_folded(
        self, relay: ScriptedRelay, end: str
    ) -> None:
        sender = f'"=?utf-8?q?Lot?={end} =?utf-8?q?te?=" <s@example.org>'
        to = f'"Doe,{end} Ann" <{A}>,{end}\tBob{end} <{B}>'
        mailer = mailer_of(relay)
        mailer.send(sender, to, MESSAGE)
        mailer.send(sender, [f"Ann{end} <{A}>", B], MESSAGE)
        for message in relay.messages:
            assert (message.sender, message.recipients) == (S, (A, B))
        assert len(relay.messages) == 2

    @pytest.mark.parametrize(
        "to",
        [
            ["root"],
            "root",
            ["a@example.org\r\nDATA"],
            "a@example.org\nb@example.org",
            ["a@example.org\n x@example.org"],
            [],
        ],
    )
    def test_an_address_that_cannot_work_is_an_error_of_both_kinds(
        self, relay: ScriptedRelay, to: Any
    ) -> None:
        for kind in (ValueError, smtplib.SMTPRecipientsRefused):
            with pytest.raises(kind):
                mailer_of(relay).send(S, to, MESSAGE)
        assert relay.connections == 0

    def test_deliveries_refuse_it_when_it_is_given(
        self, relay: ScriptedRelay, tmp_path: Path
    ) -> None:
        for delivery in (
            DirectMailDelivery(mailer_of(relay)),
            QueuedMailDelivery(str(tmp_path / "queue")),
        ):
            for kind in (ValueError, smtplib.SMTPException):
                with pytest.raises(kind):
                    delivery.send(S, ["root"], MESSAGE)

    def test_the_address_that_cannot_work_is_named(self, relay: ScriptedRelay) -> None:
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            mailer_of(relay).send(S, [A, "root"], MESSAGE)
        [(address, (code, text))] = caught.value.recipients.items()
        assert (address, code) == ("root", 553)
        assert b"before and after an @" in text

    def test_a_sender_that_cannot_work_is_named(self, relay: ScriptedRelay) -> None:
        for kind in (ValueError, smtplib.SMTPSenderRefused):
            with pytest.raises(kind, match=r"^'root' is not an envelope address"):
                mailer_of(relay).send("root", [A], MESSAGE)

    def test_no_recipients(self, relay: ScriptedRelay) -> None:
        with pytest.raises(smtplib.SMTPRecipientsRefused, match="no recip") as caught:
            mailer_of(relay).send(S, [], MESSAGE)
        assert caught.value.recipients == {}

    @pytest.mark.parametrize(
        ("to", "kept"),
        [
            ([A, "", B], (A, B)),
            ([A, " "], (A,)),
            (f"{A}, ", (A,)),
            (f"{A},,{B}", (A, B)),
            ([A.encode(), b""], (A,)),
            (Header(f"{A},"), (A,)),
        ],
    )
    def test_empty_items_of_a_list_are_dropped(
        self, relay: ScriptedRelay, tmp_path: Path, to: Any, kept: tuple[str, ...]
    ) -> None:
        path = str(tmp_path / "queue")
        mailer_of(relay).send(S, to, MESSAGE)
        DirectMailDelivery(mailer_of(relay)).send(S, to, MESSAGE)
        QueuedMailDelivery(path).send(S, to, MESSAGE)
        transaction.commit()
        QueueProcessor(path, mailer_of(relay)).flush()  # type: ignore[arg-type]
        assert [message.recipients for message in relay.messages] == [kept] * 3

    @pytest.mark.parametrize("to", ["", " ", ",", [""], ["", " "], b""])
    def test_a_list_of_empty_items_is_refused(
        self, relay: ScriptedRelay, to: Any
    ) -> None:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            mailer_of(relay).send(S, to, MESSAGE)

    @pytest.mark.parametrize("hostname", ["", None])
    def test_a_host_name_that_is_missing_is_not_localhost(
        self, relay: ScriptedRelay, hostname: Any
    ) -> None:
        with pytest.raises(smtplib.SMTPServerDisconnected, match="hostname"):
            SMTPMailer(hostname, relay.port).send(S, [A], MESSAGE)
        assert relay.connections == 0

    @pytest.mark.parametrize("port", [0, "0", "smtp", -1])
    def test_a_port_that_cannot_work_is_an_error_of_both_kinds(self, port: Any) -> None:
        for kind in (ValueError, OSError):
            with pytest.raises(kind, match="port"):
                SMTPMailer("127.0.0.1", port).send(S, [A], MESSAGE)

    def test_options_that_cannot_work_pause_a_queue(self, tmp_path: Path) -> None:
        QueuedMailDelivery(str(tmp_path / "queue")).send(S, [A], MESSAGE)
        transaction.commit()
        thread = QueueProcessorThread()
        thread.setMailer(SMTPMailer("relay:25"))
        thread.setQueuePath(str(tmp_path / "queue"))
        thread.run(forever=False)
        assert len(list(Maildir(str(tmp_path / "queue")))) == 1
        assert not (tmp_path / "queue" / ".Failed").exists()

    def test_the_vote_raises_as_smtplib_does(self, relay: ScriptedRelay) -> None:
        mailer = mailer_of(relay)
        mailer.vote(S, [A], MESSAGE)
        mailer.abort()
        assert relay.messages == []
        relay.reply("CONNECT", "554 5.3.2 no service")
        with pytest.raises(smtplib.SMTPConnectError):
            mailer_of(relay, timeout=9).vote(S, [A], MESSAGE)
        with pytest.raises(ConnectionRefusedError):
            SMTPMailer("127.0.0.1", 1).vote(S, [A], MESSAGE)


class TestTLS:
    def test_it_is_required(self, relay: ScriptedRelay) -> None:
        with pytest.raises(RuntimeError):
            mailer_of(relay, force_tls=True).send(S, [A], MESSAGE)

    def test_it_is_used_where_offered(self, authority: Authority) -> None:
        with ScriptedRelay(tls=authority.server()) as relay:
            mailer_of(relay).send(S, [A], MESSAGE)
            assert "STARTTLS" in relay.commands

    def test_it_is_not_used_if_that_is_wanted(self, authority: Authority) -> None:
        with ScriptedRelay(tls=authority.server()) as relay:
            mailer_of(relay, no_tls=True).send(S, [A], MESSAGE)
            assert "STARTTLS" not in relay.commands

    def test_a_login_uses_it_all_the_same(self, authority: Authority) -> None:
        # A host whose name looks like this machine may have another address.
        login = {"username": "ann", "password": "x"}
        with ScriptedRelay(tls=authority.server(), users={"ann": "x"}) as relay:
            mailer_of(relay, no_tls=True, **login).send(S, [A], MESSAGE)
            assert "STARTTLS" in relay.commands
        with ScriptedRelay(users={"ann": "x"}) as relay:
            mailer_of(relay, no_tls=True, **login).send(S, [A], MESSAGE)
            assert len(relay.messages) == 1

    def test_it_may_be_spoken_from_the_first_byte(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POSTCOMMIT_CAFILE", authority.cafile)
        with ScriptedRelay(tls=authority.server(), implicit_tls=True) as relay:
            mailer_of(relay, implicit_tls=True).send(S, [A], MESSAGE)
            assert len(relay.messages) == 1


class TestCertificates:
    """A certificate that is not trusted names the variables that help."""

    hint = r"POSTCOMMIT_CAFILE .* POSTCOMMIT_VERIFY"

    def test_the_error_says_what_to_set(self, authority: Authority) -> None:
        with ScriptedRelay(tls=authority.server()) as relay:
            mailer = mailer_of(relay, force_tls=True)
            for call in (mailer.send, mailer.vote):
                with pytest.raises(OSError, match=self.hint):
                    call(S, [A], MESSAGE)

    def test_the_log_of_a_queue_says_what_to_set(
        self, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        QueuedMailDelivery(str(tmp_path / "queue")).send(S, [A], MESSAGE)
        transaction.commit()
        with ScriptedRelay(tls=authority.server()) as relay:
            thread = QueueProcessorThread()
            thread.setMailer(mailer_of(relay, force_tls=True))
            thread.setQueuePath(str(tmp_path / "queue"))
            thread.run(forever=False)
        assert "POSTCOMMIT_VERIFY" in caplog.text
        assert len(list(Maildir(str(tmp_path / "queue")))) == 1

    @pytest.mark.parametrize("variable", ["POSTCOMMIT_CAFILE", "POSTCOMMIT_VERIFY"])
    def test_each_of_them_helps(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        value = authority.cafile if variable == "POSTCOMMIT_CAFILE" else "false"
        with ScriptedRelay(tls=authority.server()) as relay:
            mailer = mailer_of(relay, force_tls=True)
            with pytest.raises(OSError, match="certificate"):
                mailer.send(S, [A], MESSAGE)
            monkeypatch.setenv(variable, value)
            mailer.send(S, [A], MESSAGE)
            assert len(relay.messages) == 1

    def test_a_value_that_cannot_be_is_refused(
        self, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POSTCOMMIT_VERIFY", "maybe")
        for kind in (ValueError, OSError):
            with pytest.raises(kind, match="POSTCOMMIT_VERIFY"):
                mailer_of(relay).send(S, [A], MESSAGE)
            with pytest.raises(kind, match="POSTCOMMIT_VERIFY"):
                DirectMailDelivery(mailer_of(relay)).send(S, [A], MESSAGE)

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("POSTCOMMIT_CAFILE", "/etc/passwd"),
            ("POSTCOMMIT_SERVER_NAME", "relay.example.org"),
            ("POSTCOMMIT_CERTFILE", "/etc/passwd"),
            ("POSTCOMMIT_AUTH", "plain"),
        ],
    )
    def test_a_variable_without_a_meaning_for_a_mailer_is_ignored(
        self, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, variable: str,
        value: str,
    ) -> None:
        monkeypatch.setenv(variable, value)
        mailer_of(relay, no_tls=True).send(S, [A], MESSAGE)
        assert len(relay.messages) == 1

    def test_the_address_to_connect_from_is_not_for_a_unix_socket(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POSTCOMMIT_SOURCE_ADDRESS", "127.0.0.1")
        with pytest.raises(FileNotFoundError):
            SMTPMailer(str(tmp_path / "socket")).send(S, [A], MESSAGE)

    def test_the_reply_to_the_end_of_a_message_has_its_own_timeout(
        self, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POSTCOMMIT_FINAL_TIMEOUT", "0.1")
        relay.hold("END")
        with pytest.raises(smtplib.SMTPServerDisconnected, match="No reply"):
            mailer_of(relay).send(S, [A], MESSAGE)

    def test_other_variables_of_ours_are_left_alone(
        self, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POSTCOMMIT_PORT", "1")
        monkeypatch.setenv("POSTCOMMIT_KILLS", "1")
        mailer_of(relay).send(S, [A], MESSAGE)
        assert len(relay.messages) == 1


class Voting:
    """A mailer of another library."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.calls: list[str] = []

    def vote(self, fromaddr: str, toaddrs: Any, message: bytes) -> None:
        self.calls.append("vote")
        if self.refuses:
            raise RuntimeError("the relay is away")

    def send(self, fromaddr: str, toaddrs: Any, message: bytes) -> None:
        self.calls.append("send")

    def abort(self) -> None:
        self.calls.append("abort")


class SendingOnly:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, fromaddr: str, toaddrs: Any, message: bytes) -> None:
        self.sent.append((fromaddr, tuple(toaddrs), message))


class TestDirectDelivery:
    def test_mail_leaves_with_the_commit(self, relay: ScriptedRelay) -> None:
        delivery = DirectMailDelivery(mailer_of(relay))
        message_id = delivery.send(S, [A], MESSAGE)
        assert relay.messages == []
        transaction.commit()
        [message] = relay.messages
        assert f"<{message_id}>".encode() in message.data

    def test_mail_of_an_aborted_transaction_stays(self, relay: ScriptedRelay) -> None:
        DirectMailDelivery(mailer_of(relay)).send(S, [A], MESSAGE)
        transaction.abort()
        assert relay.messages == []

    def test_the_relay_is_asked_at_the_vote(self) -> None:
        DirectMailDelivery(SMTPMailer("127.0.0.1", 1)).send(S, [A], MESSAGE)
        with pytest.raises(ConnectionRefusedError):
            transaction.commit()

    def test_an_older_mailer_votes(self) -> None:
        mailer = Voting()
        DirectMailDelivery(mailer).send(S, [A], MESSAGE)
        transaction.commit()
        assert mailer.calls == ["vote", "send"]

    def test_the_vote_of_an_older_mailer_may_refuse(self) -> None:
        mailer = Voting(refuses=True)
        DirectMailDelivery(mailer).send(S, [A], MESSAGE)
        with pytest.raises(RuntimeError, match="away"):
            transaction.commit()
        assert mailer.calls == ["vote", "abort"]

    def test_a_mailer_need_not_vote(self) -> None:
        mailer = SendingOnly()
        DirectMailDelivery(mailer).send(S, [A], MESSAGE)
        transaction.commit()
        [(sender, recipients, message)] = mailer.sent
        assert (sender, recipients) == (S, (A,))
        assert b"Message-Id" in message

    def test_a_mailer_of_ours_is_asked(self) -> None:
        from postcommit import SMTPMailer as OurMailer

        DirectMailDelivery(OurMailer("127.0.0.1", 1)).send(S, [A], MESSAGE)
        with pytest.raises(ConnectionError):
            transaction.commit()

    def test_a_subclass_with_its_own_send_is_not_bypassed(
        self, relay: ScriptedRelay
    ) -> None:
        class Redirecting(SMTPMailer):
            def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
                super().send(fromaddr, [B], message)

        mailer = Redirecting("127.0.0.1", relay.port)
        DirectMailDelivery(mailer).send(S, [A], MESSAGE)
        transaction.commit()
        assert [message.recipients for message in relay.messages] == [(B,)]

    def test_the_mailer_may_be_set_at_any_time(self) -> None:
        one, other = SendingOnly(), SendingOnly()
        delivery = DirectMailDelivery(one)
        for mailer in (one, other):
            delivery.mailer = mailer
            delivery.send(S, [A], MESSAGE)
            transaction.commit()
        assert (len(one.sent), len(other.sent)) == (1, 1)

    def test_an_error_in_the_finish_does_not_harm_the_commit(
        self, relay: ScriptedRelay, caplog: pytest.LogCaptureFixture
    ) -> None:
        relay.reply("END", "554 5.7.1 spam")
        DirectMailDelivery(mailer_of(relay)).send(S, [A], MESSAGE)
        transaction.commit()
        assert "spam" in caplog.text


class TestQueuedDelivery:
    def test_mail_is_in_the_queue_with_the_commit(self, tmp_path: Path) -> None:
        path = str(tmp_path / "queue")
        delivery = QueuedMailDelivery(path)
        assert delivery.queuePath == path
        delivery.send(S, ["Ann <a@example.org>"], MESSAGE)
        assert len(list(Maildir(path))) == 0
        transaction.commit()
        assert len(list(Maildir(path))) == 1

    def test_all_mails_of_a_transaction_have_one_data_manager(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Maildir("queue", True)
        QueuedMailDelivery("queue").send(S, [A], MESSAGE)
        QueuedMailDelivery(str(tmp_path / "queue")).send(S, [B], MESSAGE)
        assert len(transaction.get()._resources) == 1
        transaction.commit()
        assert len(list(Maildir("queue"))) == 2

    def test_a_folder_that_is_something_else_is_a_value_error(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="Maildir"):
            QueuedMailDelivery(str(tmp_path)).send(S, [A], MESSAGE)

    def test_a_queue_that_was_removed_is_made_again(self, tmp_path: Path) -> None:
        path = tmp_path / "queue"
        for _ in range(2):
            QueuedMailDelivery(str(path)).send(S, [A], MESSAGE)
            transaction.commit()
            assert len(list(Maildir(str(path)))) == 1
            shutil.rmtree(path)


def thread_of(path: Path, relay: ScriptedRelay) -> QueueProcessorThread:
    thread = QueueProcessorThread(interval=0.5)
    thread.setMailer(mailer_of(relay))
    thread.setQueuePath(str(path))
    return thread


class TestProcessorThread:
    def test_it_sends_at_once_what_is_committed(
        self, tmp_path: Path, relay: ScriptedRelay
    ) -> None:
        thread = thread_of(tmp_path / "queue", relay)
        thread.interval = 3600
        thread.start()
        assert thread.is_alive()
        QueuedMailDelivery(str(tmp_path / "queue")).send(S, [A], MESSAGE)
        transaction.commit()
        relay.wait_until(lambda: relay.messages)
        thread.stop()
        thread.join(60)
        assert not thread.is_alive()

    def test_one_pass(self, tmp_path: Path, relay: ScriptedRelay) -> None:
        QueuedMailDelivery(str(tmp_path / "queue")).send(S, [A], MESSAGE)
        transaction.commit()
        thread_of(tmp_path / "queue", relay).run(forever=False)
        assert len(relay.messages) == 1
        assert list(Maildir(str(tmp_path / "queue"))) == []

    def test_it_is_harmless_before_its_start(self, tmp_path: Path) -> None:
        thread = QueueProcessorThread()
        assert not thread.is_alive()
        thread.stop()
        thread.start()
        thread.join(60)
        assert not thread.is_alive()

    def test_it_needs_a_mailer_and_a_queue(self) -> None:
        with pytest.raises(ValueError, match="setMailer"):
            QueueProcessorThread().run(forever=False)

    def test_it_needs_a_maildir(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="Maildir"):
            QueueProcessorThread().setQueuePath(str(tmp_path))

    def test_it_does_not_wait_for_a_slow_relay_without_limit(
        self, tmp_path: Path, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("postcommit.compat.zope_sendmail._STOP_SECONDS", 0.1)
        hold = relay.hold("END")
        QueuedMailDelivery(str(tmp_path / "queue")).send(S, [A], MESSAGE)
        transaction.commit()
        thread = thread_of(tmp_path / "queue", relay)
        thread.start()
        assert hold.reached.wait(60)
        stopping = threading.Thread(target=thread.stop, daemon=True)
        stopping.start()
        stopping.join(60)
        assert not stopping.is_alive()
        thread.join(60)
        assert not thread.is_alive()
        hold.release()
        # What was in flight is settled all the same.
        until = time.monotonic() + 10
        while list(Maildir(str(tmp_path / "queue"))):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert len(relay.messages) == 1

    def test_it_may_be_stopped_at_any_moment(
        self, tmp_path: Path, relay: ScriptedRelay
    ) -> None:
        for wait in (0.0, 0.001, 0.01):
            thread = thread_of(tmp_path / "queue", relay)
            thread.start()
            time.sleep(wait)  # any moment will do
            thread.stop()
            thread.join(60)
            assert not thread.is_alive()
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith("postcommit.compat")]


class TestMaildir:
    def test_a_missing_one_is_a_value_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="queue"):
            Maildir(str(tmp_path / "queue"))

    def test_another_folder_is_a_value_error(self, tmp_path: Path) -> None:
        for create in (False, True):
            with pytest.raises(ValueError, match="Maildir"):
                Maildir(str(tmp_path), create)


@pytest.mark.parametrize("library", [zope_sendmail, repoze_sendmail])
def test_the_keywords_of_a_queue_are_passed_on(library: Any, tmp_path: Path) -> None:
    message: Any = email.message_from_string("Message-Id: <1@x.org>\n\nx")
    if library is zope_sendmail:
        message = message.as_string()
    direct = library.DirectMailDelivery(library.SMTPMailer("localhost"))
    with pytest.raises(OptionError, match="bulk=True: needs a queue"):
        direct.send("a@x.org", ["b@x.org"], message, bulk=True)
    queued = library.QueuedMailDelivery(str(tmp_path / "queue"))
    queued.send("a@x.org", ["b@x.org"], message, bulk=True)
    transaction.commit()
    assert [path.name for path in tmp_path.glob("queue/*/new/*")] != []
    assert list(tmp_path.glob("queue/new/*")) == []
