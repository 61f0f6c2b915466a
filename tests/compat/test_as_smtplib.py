"""Reports as exceptions of smtplib: what smtplib raises in the same dialogue."""
from __future__ import annotations

import smtplib
import socket
from collections.abc import Callable
from collections.abc import Iterator

import pytest

from postcommit import SMTPMailer
from postcommit._mail.as_smtplib import NotOfferedError
from postcommit._mail.as_smtplib import SilentError
from postcommit._mail.as_smtplib import raise_as_smtplib
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit.errors import RelayError
from postcommit.interfaces import Status
from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay


A, B = "a@example.org", "b@example.org"
MESSAGE = b"From: s@example.org\r\nSubject: x\r\n\r\nx\r\n"

Prepare = Callable[[ScriptedRelay], None]


def by_smtplib(relay: ScriptedRelay) -> Exception | None:
    try:
        with smtplib.SMTP("127.0.0.1", relay.port, timeout=10) as connection:
            connection.sendmail("s@example.org", [A, B], MESSAGE)
    except smtplib.SMTPException as error:
        return error
    return None


def by_us(port: int, **options: object) -> Exception | None:
    mailer = SMTPMailer("127.0.0.1", port, **options)  # type: ignore[arg-type]
    try:
        mailer.send("s@example.org", [A, B], MESSAGE).raise_as_smtplib()
    except Exception as error:
        return error
    finally:
        mailer.close()
    return None


SCRIPTS: dict[str, Prepare] = {
    "all is well": lambda relay: None,
    "one recipient is refused": lambda relay: relay.reply(
        "RCPT", "550 5.1.1 no such user", address=A
    ),
    "all recipients are refused": lambda relay: relay.reply(
        "RCPT", "550 5.1.1 no such user"
    ),
    "each is refused for another reason": lambda relay: (
        relay.reply("RCPT", "550 5.1.1 no such user", address=A),
        relay.reply("RCPT", "450 4.2.0 greylisted", address=B),
    )[0],
    "the sender is refused": lambda relay: relay.reply("MAIL", "553 5.1.8 who?"),
    "the message is refused": lambda relay: relay.reply("END", "554 5.7.1 spam"),
    "the message is deferred": lambda relay: relay.reply("END", "451 4.7.1 later"),
    "the relay hangs up in the message": lambda relay: relay.drop("MAIL"),
    "the relay hangs up after the message": lambda relay: relay.drop("END"),
    "the relay is busy": lambda relay: relay.reply("CONNECT", "421 4.3.2 busy"),
    "the relay has no service": lambda relay: relay.reply("CONNECT", "554 5.3.2 no"),
    "EHLO is refused": lambda relay: (
        relay.reply("EHLO", "550 5.7.1 who?"),
        relay.reply("HELO", "550 5.7.1 who?"),
    )[0],
    "the relay wants a login": lambda relay: relay.reply("MAIL", "530 5.7.0 log in"),
    "the relay refuses DATA": lambda relay: relay.reply("DATA", "554 5.5.1 no"),
    "one recipient, then the message": lambda relay: (
        relay.reply("RCPT", "550 5.1.1 no such user", address=A),
        relay.reply("END", "554 5.7.1 spam"),
    )[0],
    "the relay resets the connection": lambda relay: relay.drop("EHLO", reset=True),
    "the relay does not greet": lambda relay: relay.drop("CONNECT"),
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_ours_can_be_caught_like_that_of_smtplib(script: Prepare) -> None:
    with ScriptedRelay() as relay:
        script(relay)
        theirs = by_smtplib(relay)
    with ScriptedRelay() as relay:
        script(relay)
        ours = by_us(relay.port)
    if theirs is None:
        assert ours is None
        return
    # "Recipients refused" must not hide that the sender or the message was refused.
    assert type(ours) is type(theirs), ours
    if isinstance(theirs, smtplib.SMTPResponseException):
        assert getattr(ours, "smtp_code", None) == theirs.smtp_code
        assert getattr(ours, "smtp_error", None) == theirs.smtp_error
    if isinstance(theirs, smtplib.SMTPRecipientsRefused):
        assert isinstance(ours, smtplib.SMTPRecipientsRefused)
        assert ours.recipients == theirs.recipients


def test_a_refused_login_is_an_authentication_error() -> None:
    login = {"username": "ann", "password": "wrong"}
    with ScriptedRelay(users={"ann": "secret"}) as relay:
        error = by_us(relay.port, **login)
    assert isinstance(error, smtplib.SMTPAuthenticationError)
    assert error.smtp_code == 535
    assert "wrong" not in str(error)


def test_tls_that_is_not_offered_is_a_runtime_error(relay: ScriptedRelay) -> None:
    error = by_us(relay.port, tls="starttls")
    assert isinstance(error, NotOfferedError)
    assert isinstance(error, RuntimeError)
    assert isinstance(error, smtplib.SMTPNotSupportedError)
    assert "offers no STARTTLS" in str(error)


def test_a_login_that_is_not_offered_is_a_runtime_error(relay: ScriptedRelay) -> None:
    error = by_us(relay.port, username="ann", password="secret")
    assert isinstance(error, NotOfferedError)
    assert "AUTH" in str(error)


def test_a_text_of_the_relay_is_not_taken_for_a_lack(relay: ScriptedRelay) -> None:
    relay.reply("CONNECT", b"this host offers nothing\r\n")
    error = by_us(relay.port)
    assert type(error) is smtplib.SMTPServerDisconnected


def test_a_bad_certificate_is_the_error_of_ssl(authority: Authority) -> None:
    with ScriptedRelay(tls=authority.server()) as relay:
        error = by_us(relay.port, tls="starttls")
    assert type(error).__name__ == "SSLCertVerificationError"
    assert "cafile" in str(error)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_relay_that_is_down_is_the_error_of_the_system(closed_port: int) -> None:
    error = by_us(closed_port)
    assert isinstance(error, ConnectionRefusedError)
    assert error.errno
    assert isinstance(error.__cause__, RelayError)


def test_a_name_that_is_unknown_is_a_gaierror() -> None:
    mailer = SMTPMailer("relay.invalid")
    report = mailer.send("s@example.org", [A], MESSAGE)
    with pytest.raises(socket.gaierror):
        report.raise_as_smtplib()


def test_a_silent_relay_is_a_timeout_and_a_lost_connection() -> None:
    with ScriptedRelay() as relay:
        relay.hold("CONNECT")
        error = by_us(relay.port, timeout=0.1)
    assert isinstance(error, SilentError)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, smtplib.SMTPServerDisconnected)


def test_a_relay_that_is_not_smtp_is_a_lost_connection(relay: ScriptedRelay) -> None:
    relay.reply("CONNECT", b"HTTP/1.0 400\r\n")
    error = by_us(relay.port)
    assert isinstance(error, smtplib.SMTPServerDisconnected)
    assert "not SMTP" in str(error)


def test_what_we_refuse_ourselves_has_a_code_all_the_same() -> None:
    with ScriptedRelay(extensions=["SIZE 10"]) as relay:
        error = by_us(relay.port)
    assert isinstance(error, smtplib.SMTPDataError)
    assert error.smtp_code == 554
    assert error.smtp_error.startswith(b"5.3.4")


def test_a_deferral_of_ours_has_a_temporary_code() -> None:
    replies = (Reply(0, "4.1.0", "memory"), Reply(452, "", "full"))
    parts = [
        DeliveryReport.alike("x@y", [to], Status.DEFERRED, reply)
        for to, reply in zip((A, B), replies, strict=True)
    ]
    outcomes = tuple(part.outcomes[0] for part in parts)
    with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
        DeliveryReport("x@y", (A, B), outcomes).raise_as_smtplib()
    assert caught.value.recipients == {A: (451, b"4.1.0 memory"), B: (452, b"full")}


def test_the_failure_of_several_addresses_is_the_error_of_the_last() -> None:
    inner = RelayError("inner")
    inner.__cause__ = ConnectionRefusedError(111, "no")
    outer = RelayError("outer")
    outer.__cause__ = inner
    with pytest.raises(ConnectionRefusedError, match="outer"):
        DeliveryReport("x@y", (A,), relay_failure=outer).raise_as_smtplib()


def test_a_relay_that_shuts_down_refuses_no_recipient(relay: ScriptedRelay) -> None:
    relay.reply("RCPT", "421 4.3.2 bye")
    error = by_us(relay.port)
    assert type(error) is smtplib.SMTPResponseException
    assert error.smtp_code == 421


def test_nothing_is_raised_for_a_report_about_no_recipients() -> None:
    DeliveryReport("x@y", ()).raise_as_smtplib()


def test_the_refused_sender_is_named() -> None:
    reply = Reply(553, command="MAIL")
    report = DeliveryReport.alike("x@y", [A], Status.REJECTED, reply)
    with pytest.raises(smtplib.SMTPSenderRefused) as caught:
        raise_as_smtplib(report, "s@example.org")
    assert caught.value.sender == "s@example.org"


@pytest.mark.parametrize(
    ("code", "kind"),
    [(535, smtplib.SMTPAuthenticationError), (421, smtplib.SMTPResponseException)],
)
def test_a_failure_of_a_mailer_that_names_no_command(
    code: int, kind: type[Exception]
) -> None:
    failure = RelayError("refused", Reply(code))
    with pytest.raises(kind):
        DeliveryReport("x@y", (A,), relay_failure=failure).raise_as_smtplib()
