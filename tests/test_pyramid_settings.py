"""The settings of a Pyramid application, to objects; or refused by name."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from zope.schema import getFieldsInOrder

from postcommit import FailoverMailer
from postcommit import SMTPMailer
from postcommit._config.legacy import PYRAMID_MAILER
from postcommit._mailers.file import FileMailer
from postcommit._mailers.sendmail import SendmailMailer
from postcommit.errors import OptionError
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.pyramid import _KNOWN
from postcommit.pyramid import MailSettings


def settings(**given: Any) -> MailSettings:
    others = {"pyramid.debug_all": "true", "mailing.list": "x"}
    whole = {**others, **{f"mail.{name}": value for name, value in given.items()}}
    return MailSettings(whole, "mail.", [].append)


def test_without_settings() -> None:
    made = settings()
    assert list(made.mailers) == ["", "smtp"]
    mailer = made.mailers[""]
    assert mailer is made.mailers["smtp"]
    for name, field in getFieldsInOrder(ISMTPMailer):
        assert getattr(mailer, name) == field.default, name
    assert made.queue_path is None
    assert made.runs_processor is False
    assert made.default_sender is None


def test_the_names_of_pyramid_mailer() -> None:
    made = settings(
        host="relay.example.org",
        port=" 465 ",
        username="me",
        password="secret",
        ssl="true",
        tls="false",
        debug="0",
        keyfile="",
        certfile=None,
        default_sender="shop@example.org",
        sendmail_app="/usr/lib/sendmail",
        sendmail_template="",
        queue_path="",
        top_level_directory="/tmp/mails",
    )
    mailer: Any = made.mailers[""]
    assert type(mailer) is SMTPMailer
    assert (mailer.hostname, mailer.port) == ("relay.example.org", 465)
    assert (mailer.username, mailer.password) == ("me", "secret")
    assert mailer.tls == "implicit"
    assert set(made.mailers) == {"", "smtp", "sendmail", "file"}
    sendmail: Any = made.mailers["sendmail"]
    assert sendmail.command == "/usr/lib/sendmail"
    assert sendmail.timeout == ISendmailMailer["timeout"].default
    assert made.direct(mailer).default_sender == "shop@example.org"
    assert made.queue_path is None


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "auto"),
        ({"tls": "true"}, "starttls"),
        ({"tls": True}, "starttls"),
        ({"tls": 1}, "starttls"),
        ({"tls": "false"}, "none"),
        ({"tls": False}, "none"),
        ({"tls": "none"}, "none"),
        ({"tls": "auto"}, "auto"),
        ({"ssl": "true"}, "implicit"),
        ({"ssl": "false"}, "auto"),
        ({"ssl": "true", "tls": "false"}, "implicit"),
        ({"ssl": "true", "tls": "implicit"}, "implicit"),
        ({"ssl": "false", "tls": "true"}, "starttls"),
        ({"ssl": "false", "tls": "false"}, "none"),
    ],
)
def test_tls(given: dict[str, Any], mode: str) -> None:
    mailer: Any = settings(**given).mailers[""]
    assert mailer.tls == mode


def test_the_mailer_is_chosen() -> None:
    made = settings(mailer="sendmail", sendmail_timeout="5")
    sendmail: Any = made.mailers[""]
    assert type(sendmail) is SendmailMailer
    assert sendmail is made.mailers["sendmail"]
    assert sendmail.timeout == 5.0
    # A file for development, on top of one for production
    made = settings(mailer="file", folder="/tmp/mails", host="relay.example.org")
    assert type(made.mailers[""]) is FileMailer
    assert type(made.mailers["smtp"]) is SMTPMailer


def test_mailers_publish_as_told() -> None:
    events: list[Any] = []
    made = MailSettings({"mail.folder": "/tmp/x"}, "mail.", events.append)
    for mailer in made.mailers.values():
        assert mailer.notify == events.append  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"hots": "x"}, "mail.hots='***': there is no such option; do you mean"),
        ({"hots": "x"}, "do you mean mail.host?"),
        ({"queuepath": "x"}, "mail.queuepath='***': there is no such option"),
        ({"debug": "1"}, "mail.debug='1': set the level of the logger"),
        ({"sendmail_template": "a b"}, "mail.sendmail_template='a b': the program"),
        ({"host": "a", "hostname": "a"}, "mail.hostname='a': mail.host is the same"),
        ({"host": "a\nb"}, r"mail.host='a\nb': must be a str of one line"),
        ({"port": "smtp"}, "mail.port='smtp': must be a whole number from 1 to 65535"),
        ({"port": "0"}, "mail.port='0': must be a whole number"),
        ({"timeout": "soon"}, "mail.timeout='soon': must be a number"),
        ({"verify": "maybe"}, "mail.verify='maybe': must be True or False"),
        ({"tls": "ssl"}, "mail.tls='ssl': must be one of 'auto'"),
        ({"tls": 2}, "mail.tls=2: must be one of 'auto'"),
        ({"ssl": "implicit"}, "mail.ssl='implicit': must be true or false"),
        ({"ssl": "1", "tls": "1"}, "mail.ssl='1': contradicts mail.tls='1'; remove"),
        ({"ssl": "0", "tls": "implicit"}, "mail.ssl='0': contradicts mail.tls='imp"),
        ({"username": "me", "password": 7}, "mail.password='***': must be a str"),
        ({"mailer": "pigeon"}, "mail.mailer='pigeon': must be one of smtp, sendmail"),
        (
            {"mailer": "bakcup", "backup.host": "mx"},
            "file, amqp, backup, failover; do you mean 'backup'?",
        ),
        ({"mailer": ["smtp"]}, "mail.mailer=['smtp']: must be one of smtp, sendmail"),
        ({"mailer": "file"}, "mail.folder: is needed by the mailer 'file'"),
        ({"folder": "a", "top_level_directory": "a"}, "is the same"),
        ({"sendmail_timeout": "0"}, "mail.sendmail_timeout='0': must be a number"),
        ({"processor": "true"}, "mail.processor='true': needs mail.queue_path"),
        ({"processor": "perhaps"}, "mail.processor='perhaps': must be true or false"),
        ({"queue_path": "/none/x"}, "mail.queue_path='/none/x': there is no folder"),
        ({"queue_path": "/dev/null"}, "mail.queue_path='/dev/null': is no folder"),
        ({"queue_path": "q", "workers": "0"}, "mail.workers='0': must be a whole"),
        ({"queue_path": "q", "polling_interval": "0"}, "mail.polling_interval='0': "),
        (
            {"queue_path": "q", "min_backoff": "9999"},
            "mail.min_backoff='9999': max_backoff=4000.0 must not be less than min",
        ),
        ({"mailer": "failover"}, "mail.failover_mailers: is needed by mailer=fa"),
        ({"failover_retry_after": "5"}, "has no effect without mail.failover_mailers"),
        ({"failover_mailers": "smtp smpt"}, "no mailer 'smpt'; do you mean 'smtp'?"),
        (
            {"failover_mailers": "smtp b", "host": "mx", "b.host": "MX", "b.port": 25},
            "failover_mailers='smtp b': 'smtp' and 'b' are the same relay",
        ),
        (
            {"failover_mailers": "smtp ses"},
            "no mailer 'ses' (smtp, sendmail, file, amqp)",
        ),
        ({"mailer": "amqp"}, "mail.amqp_url: is needed by the mailer 'amqp'"),
        ({"amqp_queue": "q"}, "mail.amqp_url: is needed by the mailer 'amqp'"),
        ({"amqp_url": "amqps://u:s3cret@:"}, "mail.amqp_url"),
        ({"failover_mailers": "smtp smtp"}, "'smtp' is there twice"),
        ({"failover_mailers": "a:pw@mx"}, "there is no mailer '***@mx' (smtp"),
        ({"failover_mailers": "failover"}, "'failover' cannot be a part of itself"),
        ({"failover_mailers": ["smtp", None]}, "there is no mailer None (smtp"),
        ({"failover_mailers": 3}, "mail.failover_mailers=3: must be names of mailers"),
        ({"failover_mailers": "file"}, "mail.folder: is needed by the mailer"),
        ({"failover.mailers": "smtp"}, "do you mean mail.failover_mailers?"),
        ({"smtp.hostname": "mx"}, "there is no such option; do you mean mail.hostname"),
        ({"queue.path": "q"}, "there is no such option; do you mean mail.queue_path?"),
        ({"backup.hots": "mx"}, "mail.backup.hots='***': there is no such option; do"),
        ({"backup.hots": "mx"}, "do you mean mail.backup.host?"),
        ({"backup.queue_path": "q"}, "mail.backup.queue_path='***': there is no such"),
        ({"backup.port": "26"}, "mail.backup.host: is needed by the mailer"),
        ({"backup.tls": "none"}, "mail.backup.host: is needed by the mailer"),
        (
            {"backup.host": "mx", "bakcup.port": "26"},
            "is needed by the mailer 'bakcup'; or do you mean mail.backup?",
        ),
        ({"backup.port": "0"}, "mail.backup.port='0': must be a whole number"),
        ({"backup.password": "x"}, "mail.backup.password='***': has no effect without"),
        ({"mailer": "backup"}, "mail.mailer='backup': must be one of smtp, sendmail"),
        (
            {"failover_mailers": "smtp backupp", "backup.host": "mx"},
            "there is no mailer 'backupp'; do you mean 'backup'?",
        ),
        (
            {
                "failover_mailers": "smtp",
                "failover_retry_after": "-1",
            },
            "mail.failover_retry_after='-1': must be a number of at least 0",
        ),
        ({"password": "x"}, "mail.password='***': has no effect without a username"),
        ({"default_sender": "me"}, "mail.default_sender='me': it needs something"),
    ],
)
def test_what_can_never_work(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        settings(**given)
    assert reason in str(caught.value)


def test_the_page_has_every_setting() -> None:
    page = (Path(__file__).parent.parent / "docs" / "pyramid.rst").read_text()
    older = {*PYRAMID_MAILER.names, *PYRAMID_MAILER.switches}
    assert set(re.findall(r"``mail\.(\w+)(?![.\w])", page)) == {*_KNOWN, *older}


@pytest.mark.parametrize(
    "login", [{"username": "me"}, {"username": "me", "password": " "}]
)
def test_a_username_alone_is_no_login_as_with_pyramid_mailer(
    login: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    mailer: Any = settings(host="mx", **login).mailers[""]
    assert (mailer.username, mailer.password) == (None, None)
    [record] = caplog.records
    assert "no login" in record.getMessage()


# Several mailers


@pytest.mark.parametrize(
    "parts",
    ["smtp backup sendmail", "smtp,backup, sendmail", ["smtp", "backup", "sendmail"]],
)
def test_a_failover_mailer_of_other_mailers(parts: Any) -> None:
    events: list[Any] = []
    given = {
        "mail.mailer": "failover",
        "mail.failover_mailers": parts,
        "mail.failover_retry_after": "30",
        "mail.failover_round_robin": "true",
        "mail.host": "mx1.example.org",
        "mail.username": "shop",
        "mail.password": "secret",
        "mail.tls": "starttls",
        "mail.backup.host": "mx2.example.org",
        "mail.backup.port": "587",
        "mail.backup.ssl": "true",
        "mail.unused.port": "",
    }
    made = MailSettings(given, "mail.", events.append)
    mailer: Any = made.mailers[""]
    assert type(mailer) is FailoverMailer
    assert mailer is made.mailers["failover"]
    assert (mailer.retry_after, mailer.round_robin) == (30.0, True)
    assert mailer.notify == events.append
    names = ["smtp", "backup", "sendmail"]
    assert mailer.mailers == tuple(made.mailers[name] for name in names)
    assert set(made.mailers) == {"", "failover", *names}
    backup: Any = made.mailers["backup"]
    assert (backup.hostname, backup.port, backup.tls) == (
        "mx2.example.org",
        587,
        "implicit",
    )
    # The login is for the other host.
    assert (backup.username, backup.password) == (None, None)


def test_a_further_mailer_may_be_the_only_one() -> None:
    made = settings(**{"mailer": "backup", "backup.host": "mx"})
    assert made.mailers[""] is made.mailers["backup"]
    assert "failover" not in made.mailers


def test_a_failover_mailer_beside_the_one_that_is_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The application may look it up, but probably it is a mistake."""
    made = settings(**{"failover_mailers": "smtp bulk", "bulk.host": "mx2"})
    assert type(made.mailers[""]) is SMTPMailer
    assert type(made.mailers["failover"]) is FailoverMailer
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "set mail.mailer = failover" in record.getMessage()


def test_a_further_mailer_that_no_setting_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = {"mailer": "failover", "failover_mailers": "smtp backup"}
    hosts = {"backup.host": "mx2", "bakcup.host": "mx3"}
    made = settings(**parts, **hosts)
    assert set(made.mailers) == {"", "smtp", "backup", "bakcup", "failover"}
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("mail.bakcup: no other setting names")


def test_names_begin_with_the_prefix() -> None:
    given = {"shop.mail.backup.host": "mx", "mail.other.thing": "x"}
    made = MailSettings(given, "shop.mail.", [].append)
    assert set(made.mailers) == {"", "smtp", "backup"}
