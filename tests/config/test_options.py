"""Options against their schema."""
from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import pytest

from postcommit._config.options import Given
from postcommit._config.options import checked
from postcommit._config.options import checked_mailer
from postcommit._config.options import checked_queue_path
from postcommit._config.options import checked_sender
from postcommit._config.options import fields_of
from postcommit._config.options import parsed
from postcommit._config.options import setting_name
from postcommit._config.options import truth
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import ConfigError
from postcommit.errors import OptionError
from postcommit.interfaces import IDirectMailDelivery
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from tests.support.contexts import outer_exception


@pytest.mark.parametrize(
    ("schema", "name", "value", "taken"),
    [
        (ISMTPMailer, "port", 65535, 65535),
        (ISMTPMailer, "timeout", None, None),
        (ISMTPMailer, "timeout", 5, 5.0),
        (ISMTPMailer, "cafile", Path("/etc/ca.pem"), "/etc/ca.pem"),
        (ISMTPMailer, "verify", False, False),
        (ISMTPMailer, "tls", "none", "none"),
        (IMailQueueProcessor, "queuePath", Path("queue"), "queue"),
        (IMailQueueProcessor, "rate_limit", 10, 10.0),
    ],
)
def test_a_good_value_is_taken(schema: Any, name: str, value: Any, taken: Any) -> None:
    result = checked(schema, name, value)
    assert result == taken
    assert type(result) is type(taken)


@pytest.mark.parametrize("path", ["queue", "/var/../queue"])
def test_the_path_of_a_queue_is_absolute(path: str) -> None:
    taken = checked_queue_path(IMailQueueProcessor, Path(path))
    assert taken == os.path.join(os.getcwd(), path)


@pytest.mark.parametrize(
    ("schema", "name", "value", "expectation"),
    [
        (ISMTPMailer, "port", 70000, "port=70000: must be a whole number from 1 to"),
        (ISMTPMailer, "port", 0, "port=0: must be a whole number from 1 to 65535"),
        (ISMTPMailer, "port", "25", "port='25': must be a whole number"),
        (ISMTPMailer, "port", True, "port=True: must be a whole number"),
        (ISMTPMailer, "hostname", "", "hostname='': must be a str of one line that is"),
        (ISMTPMailer, "hostname", "a\nb", "must be a str of one line"),
        (ISMTPMailer, "hostname", b"x", "must be a str of one line"),
        (ISMTPMailer, "verify", 1, "verify=1: must be True or False"),
        (ISMTPMailer, "tls", "ssl", "one of 'auto', 'starttls', 'implicit', 'none'"),
        (ISMTPMailer, "timeout", 0, "must be a number of at least 0.001, or None"),
        (ISMTPMailer, "timeout", float("nan"), "must be a number"),
        (ISMTPMailer, "connect_timeout", "30", "must be a number"),
        (ISMTPMailer, "cafile", 3, "must be a str of one line, or None"),
        (ISMTPMailer, "cafile", "https://x.org/ca", "must be a path, not a URL"),
        (ISMTPMailer, "server_name", "", "must be a host name or address, or None"),
        (ISMTPMailer, "server_name", "smtp://mx", "must be a host name or address"),
        (ISMTPMailer, "helo_name", "a b", "must be a host name or address, or None"),
        (ISMTPMailer, "source_address", "mx", "must be an IP address, or None"),
        (IMailQueueProcessor, "queuePath", "", "must be a str of one line that is"),
        (IMailQueueProcessor, "queuePath", "a\0b", "must be a str of one line"),
        (IMailQueueProcessor, "queuePath", "a\ud800", "must be a str of one line"),
        (IMailQueueProcessor, "queuePath", "a\nb", "must be a str of one line"),
        (IMailQueueProcessor, "pollingInterval", -1, "a whole number of at least 1"),
        (IDirectMailDelivery, "mailer", 3, "must be an object that provides IMailer"),
    ],
)
def test_a_bad_value_is_refused_by_name(
    schema: Any, name: str, value: Any, expectation: str
) -> None:
    with pytest.raises(OptionError) as caught:
        checked(schema, name, value)
    assert expectation in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.name == name
    # The cause would show the value, which may be a misplaced password.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is outer_exception()


@pytest.mark.parametrize("password", [b"hushhush", "hush\nhush", 4711])
def test_a_password_is_not_repeated(password: object) -> None:
    with pytest.raises(OptionError) as caught:
        checked(ISMTPMailer, "password", password)
    error = caught.value
    told = traceback.TracebackException.from_exception(error).format()
    for shown in (str(error), repr(error), str(error.value), *told):
        assert "hush" not in shown
        assert "4711" not in shown
    assert "***" in str(error)
    assert error.__cause__ is None
    assert error.__context__ is outer_exception()


def test_a_mailer_needs_send_and_nothing_else() -> None:
    class Mailer:
        def send(self, fromaddr: str, toaddrs: list[str], message: bytes) -> None:
            raise NotImplementedError

    for mailer in (Mailer(), SMTPMailer()):
        assert checked_mailer(mailer) is mailer
    for mailer in (None, 3, type("NoMailer", (), {"send": 3})()):
        with pytest.raises(OptionError, match=r"must have a method send\(\)"):
            checked_mailer(mailer)


def test_a_relative_path_where_the_working_directory_is_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(OptionError, match="directory that does not exist") as caught:
        checked_queue_path(IMailQueueProcessor, "queue")
    assert (caught.value.name, caught.value.value) == ("queuePath", "queue")
    absolute = str(tmp_path / "queue")
    assert checked_queue_path(IMailQueueProcessor, absolute) == absolute


def test_a_sender_may_have_a_display_name_or_be_none() -> None:
    for sender in (None, "shop@example.org", "The Shop <shop@example.org>"):
        assert checked_sender(sender) == sender
    with pytest.raises(OptionError, match="default_sender='The Shop': "):
        checked_sender("The Shop")


# Names


def test_options_are_the_fields_that_a_text_can_give() -> None:
    assert set(fields_of(ISMTPMailer)) == {
        "hostname",
        "port",
        "username",
        "password",
        "auth",
        "tls",
        "cafile",
        "verify",
        "certfile",
        "keyfile",
        "server_name",
        "helo_name",
        "source_address",
        "protocol",
        "connect_timeout",
        "timeout",
        "final_timeout",
        "recipients_per_transaction",
        "messages_per_connection",
        "idle_timeout",
        "pipelining",
        "dsn",
    }
    processor = fields_of(IMailQueueProcessor)
    assert "mailer" not in processor
    assert processor["polling_interval"] is IMailQueueProcessor["pollingInterval"]
    # Another mailer has a timeout, too.
    assert set(fields_of(ISendmailMailer)) == {
        "sendmail_command",
        "sendmail_timeout",
        "sendmail_recipients_per_transaction",
    }


def test_names_in_settings() -> None:
    assert setting_name("queuePath") == "queue_path"
    assert setting_name("max_age") == "max_age"


@pytest.mark.parametrize("source", ["", "shop.ini"])
def test_an_option_says_where_it_was_given_but_not_the_password(source: str) -> None:
    given = Given(source, "password", "hunter2")
    error = given.refused("is wrong")
    assert str(error) == f"{source}{source and ': '}password='***': is wrong"
    assert isinstance(error, ConfigError) == bool(source)
    assert "hunter2" not in repr(given)


# Texts


@pytest.mark.parametrize(
    ("schema", "name", "value", "taken"),
    [
        (ISMTPMailer, "port", " 26 ", 26),
        (ISMTPMailer, "port", 26, 26),
        (ISMTPMailer, "timeout", "1.5", 1.5),
        (ISMTPMailer, "timeout", None, None),
        (ISMTPMailer, "verify", " Off\n", False),
        (ISMTPMailer, "verify", True, True),
        (ISMTPMailer, "hostname", " mx ", "mx"),
        (ISMTPMailer, "password", " a ", " a "),
        (IMailQueueProcessor, "pollingInterval", "7", 7),
    ],
)
def test_a_text_is_parsed(schema: Any, name: str, value: Any, taken: Any) -> None:
    result = parsed(schema, name, value)
    assert result == taken
    assert type(result) is type(taken)


@pytest.mark.parametrize(
    ("name", "text"),
    [("port", "1.5"), ("port", ""), ("timeout", "soon"), ("verify", "maybe")],
)
def test_an_error_has_the_text_as_it_was_given(name: str, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parsed(ISMTPMailer, name, f" {text} ")
    assert (caught.value.name, caught.value.value) == (name, f" {text} ")
    assert caught.value.__context__ is outer_exception()


def test_truth() -> None:
    assert [truth(v) for v in ("Yes", " on ", 1, True)] == [True] * 4
    assert [truth(v) for v in ("OFF", "0", 0, False)] == [False] * 4
    assert [truth(v) for v in ("maybe", 2, None, b"1")] == [None] * 4
