"""Options to objects: pairs that cannot work, and errors that name the place."""
from __future__ import annotations

import socket
import traceback
from typing import Any

import pytest

from postcommit._build import build
from postcommit._build import consistent
from postcommit._config.options import Given
from postcommit.errors import OptionError
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISMTPMailer
from postcommit.testing import RecordingMailer
from tests.support.contexts import outer_exception


def given(source: str = "", **values: Any) -> dict[str, Given]:
    return {name: Given(source, name, value) for name, value in values.items()}


def mailer(**values: Any) -> Any:
    return build(ISMTPMailer, given(**values))


def test_options_of_other_objects_are_left_alone() -> None:
    options = given(port="26", queue_path="/q", workers="2", nonsense="x")
    found = RecordingMailer()
    processor = build(IMailQueueProcessor, options, mailer=found)
    assert (processor.queuePath, processor.workers) == ("/q", 2)
    assert processor.mailer is found
    assert build(ISMTPMailer, options).port == 26


def test_arguments_that_no_text_can_give() -> None:
    events: list[object] = []
    found = build(ISMTPMailer, {}, notify=events.append)
    assert found.notify == events.append


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"port": "0"}, "port='0': must be a whole number from 1 to 65535"),
        ({"port": "x"}, "port='x': must be a whole number"),
        ({"port": True}, "port=True: must be a whole number"),
        ({"verify": "perhaps"}, "verify='perhaps': must be True or False"),
        ({"tls": "ssl"}, "tls='ssl': must be one of 'auto', 'starttls'"),
        ({"timeout": "-1"}, "timeout='-1': must be a number of at least 0.001"),
        ({"timeout": "nan"}, "timeout='nan': must be a number"),
        ({"hostname": "a\nb"}, "hostname='a\\nb': must be a str of one line"),
        ({"hostname": "a/b"}, "hostname='a/b': must be a name, an address, or"),
        ({"username": "me"}, "password: is needed with a username"),
        ({"password": "x"}, "password='***': has no effect without a username"),
        ({"auth": "plain"}, "auth='plain': has no effect without a username"),
        (
            {"auth": "xoauth2", "username": "me", "password": "x"},
            "auth='xoauth2': needs a token, which is an argument of SMTPMailer in Py",
        ),
        ({"keyfile": "/k"}, "keyfile='/k': has no effect without certfile"),
        ({"cafile": "/c", "tls": "none"}, "cafile='/c': has no effect with tls='none'"),
        ({"certfile": "c", "tls": "none"}, "certfile='c': has no effect with tls='no"),
        ({"server_name": "x", "tls": "none"}, "server_name='x': has no effect with t"),
    ],
)
@pytest.mark.parametrize("source", ["", "shop.ini"])
def test_a_wrong_option_is_refused_where_it_is(
    values: dict[str, Any], told: str, source: str
) -> None:
    with pytest.raises(OptionError) as caught:
        build(ISMTPMailer, given(source, **values))
    is_missing = told.startswith("password: ")
    place = "" if is_missing or not source else f"{source}: "
    assert str(caught.value).startswith(f"{place}{told}")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"min_backoff": "9", "max_backoff": "8"}, "max_backoff='8': must not be less"),
        ({"min_backoff": "9999"}, "min_backoff='9999': max_backoff=4000.0 must not be"),
        ({"max_backoff": "1"}, "max_backoff='1': must not be less than min_backoff=60"),
    ],
)
def test_options_that_contradict_each_other_or_a_default(
    values: dict[str, Any], told: str
) -> None:
    options = given(queue_path="q", **values)
    with pytest.raises(OptionError) as caught:
        build(IMailQueueProcessor, options, mailer=RecordingMailer())
    assert told in str(caught.value)


def test_a_password_is_in_no_error() -> None:
    word = "hush\nhush"
    with pytest.raises(OptionError) as caught:
        mailer(username="me", password=word)
    assert "hush" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is outer_exception()
    assert caught.value.value == "***"


# Logins


LOGIN = {"username": "me", "password": "secret"}


@pytest.mark.parametrize(
    "host",
    ["mx.example.org", "192.0.2.1", "2001:db8::1", " MX ", "10.0.0.1"],
)
@pytest.mark.parametrize("mode", ["none", " none "])
def test_a_login_that_is_never_sent_is_refused(host: str, mode: str) -> None:
    with pytest.raises(OptionError, match="never sent in clear to") as caught:
        mailer(hostname=host, tls=mode, **LOGIN)
    assert caught.value.name == "username"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        *(
            {"hostname": host}
            for host in ("127.0.0.7", "::1", "::ffff:127.0.0.1", "0.0.0.0")
        ),
        *({"hostname": host} for host in ("LOCALHOST", "ip6-localhost", "a.localhost")),
        {"hostname": socket.gethostname()},
        {"hostname": f"{socket.gethostname().partition('.')[0].upper()}.example.org"},
        {"hostname": "/run/dovecot/lmtp"},
        {"hostname": "mx.example.org", "tls": "auto"},
        {"hostname": "mx.example.org", "tls": "starttls"},
    ],
)
def test_a_login_that_may_be_sent_is_not(options: dict[str, str]) -> None:
    found = mailer(**{"tls": "none", **options}, **LOGIN)
    assert (found.username, found.password) == ("me", "secret")


def test_without_a_login_nothing_needs_tls() -> None:
    assert mailer(hostname="mx.example.org", tls="none").tls == "none"


@pytest.mark.parametrize("lone", ["username", "password"])
def test_half_a_login_may_be_ignored(
    lone: str, caplog: pytest.LogCaptureFixture
) -> None:
    half = {lone: Given("shop.ini", lone, "hunter2", may_be_alone=True)}
    assert consistent(half) == {}
    told = ["shop.ini: a username without a password is ignored: no login"]
    assert caplog.messages == (told if lone == "username" else [])
    whole = {name: Given("x", name, "y", may_be_alone=True) for name in LOGIN}
    assert consistent(whole) == whole
