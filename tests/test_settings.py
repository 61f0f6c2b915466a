"""Options, as text or as values, to objects; or refused by name."""
from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import transaction
from zope.schema import Bool
from zope.schema import Choice
from zope.schema import Float
from zope.schema import Int
from zope.schema import TextLine

from postcommit.delivery import DirectMailDelivery
from postcommit.delivery import QueuedMailDelivery
from postcommit.errors import OptionError
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISMTPMailer
from postcommit.settings import delivery_from
from postcommit.settings import fields_of
from postcommit.settings import mailer_from
from postcommit.settings import processor_from
from postcommit.settings import setting_name
from postcommit.settings import sorted_out
from postcommit.settings import truth
from postcommit.testing import RecordingMailer


def other_than_default(field: Any) -> tuple[str, Any]:
    """Return a value that `field` does not have by default, as text and itself."""
    if isinstance(field, Bool):
        return ("no", False) if field.default else ("yes", True)
    if isinstance(field, Choice):
        value = next(t.value for t in field.vocabulary if t.value != field.default)
        return value, value
    if isinstance(field, Int):
        return " 77 ", 77
    if isinstance(field, Float):
        return "61.5", 61.5
    assert isinstance(field, TextLine)
    # A relative path of a queue would be made an absolute one.
    text = "/some/queue" if field.__name__ == "queuePath" else "some-text"
    return text, text


SMTP = fields_of(ISMTPMailer)
PROCESSOR = fields_of(IMailQueueProcessor)


def test_fields_are_those_that_text_can_tell() -> None:
    assert set(SMTP) == {
        "hostname",
        "port",
        "username",
        "password",
        "tls",
        "cafile",
        "verify",
        "connect_timeout",
        "timeout",
        "messages_per_connection",
        "idle_timeout",
        "pipelining",
    }
    assert "mailer" not in PROCESSOR
    assert PROCESSOR["polling_interval"] is IMailQueueProcessor["pollingInterval"]


@pytest.mark.parametrize("name", SMTP)
def test_each_option_reaches_the_mailer(name: str) -> None:
    text, value = other_than_default(SMTP[name])
    others = {"username": "me", "password": "secret"}
    for given in (text, value):
        mailer = mailer_from({**others, name: given})
        assert getattr(mailer, name) == value
        assert type(getattr(mailer, name)) is type(value)
        for other in set(SMTP) - {name, *others}:
            assert getattr(mailer, other) == SMTP[other].default


@pytest.mark.parametrize("name", PROCESSOR)
def test_each_option_reaches_the_processor(name: str) -> None:
    text, value = other_than_default(PROCESSOR[name])
    attribute = PROCESSOR[name].__name__
    mailer = RecordingMailer()
    for key, given in ((name, text), (attribute, value)):
        others = {} if name == "queue_path" else {"queue_path": "q"}
        processor = processor_from({**others, key: given}, mailer)
        assert getattr(processor, attribute) == value
        assert processor.mailer is mailer


def test_what_no_text_can_tell_reaches_the_objects() -> None:
    events: list[object] = []
    assert mailer_from({}, notify=events.append).notify == events.append
    processor_from({"queue_path": "q"}, RecordingMailer(), clock=lambda: 1.0)


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_option_is_one_that_is_not_there(nothing: str | None) -> None:
    mailer = mailer_from(dict.fromkeys(SMTP, nothing))
    for name, field in SMTP.items():
        assert getattr(mailer, name) == field.default


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"port": "0"}, "port='0': must be a whole number from 1 to 65535"),
        ({"port": "x"}, "port='x': must be a whole number"),
        ({"port": True}, "port=True: must be a whole number"),
        ({"verify": "perhaps"}, "verify='perhaps': must be True or False"),
        ({"tls": "ssl"}, "tls='ssl': must be one of 'auto', 'starttls'"),
        ({"timeout": "-1"}, "timeout='-1': must be a number of at least 0.001"),
        ({"timeout": "nan"}, "timeout='nan': must be a number"),
        ({"hostname": "a\nb"}, "hostname='a\\nb': must be a str of one line"),
        ({"prot": "25"}, "prot='***': there is no such option; do you mean port?"),
        ({"connectTimeOut": 1}, "do you mean connect_timeout?"),
        ({"quux": "25"}, "quux='***': there is no such option"),
    ],
)
def test_a_wrong_option_is_refused_by_name(given: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError) as caught:
        mailer_from(given)
    assert told in str(caught.value)


def test_a_password_is_in_no_error() -> None:
    word = "hush\nhush"
    for name in ("password", "pasword", "passphrase"):
        with pytest.raises(OptionError) as caught:
            mailer_from({name: word})
        assert "hush" not in "".join(traceback.format_exception(caught.value))
        assert caught.value.__context__ is None
        assert caught.value.value == "***"


def test_an_option_by_two_names_is_refused() -> None:
    given = {"queue_path": "q", "polling_interval": 1, "pollingInterval": 2}
    with pytest.raises(OptionError, match="pollingInterval=2: is given twice"):
        processor_from(given, RecordingMailer())


def test_a_processor_needs_a_queue() -> None:
    with pytest.raises(OptionError, match="queuePath=''"):
        processor_from({}, RecordingMailer())


def test_options_are_sorted_out() -> None:
    given = {"port": "26", "queue_path": "q", "workers": "2"}
    assert sorted_out(given, ISMTPMailer, IMailQueueProcessor) == (
        {"port": 26},
        {"queuePath": "q", "workers": 2},
    )


def test_deliveries(tmp_path: Path) -> None:
    path = str(tmp_path / "queue")
    queued = delivery_from({"queue_path": path})
    assert isinstance(queued, QueuedMailDelivery)
    assert queued.queuePath == path
    mailer = RecordingMailer()
    manager = transaction.TransactionManager()
    direct = delivery_from({}, mailer, transaction_manager=manager)
    assert isinstance(direct, DirectMailDelivery)
    assert direct.mailer is mailer
    assert direct.transaction_manager is manager
    with pytest.raises(OptionError, match="queue_path=None: is needed"):
        delivery_from({})


def test_truth_and_names() -> None:
    assert [truth(v) for v in ("Yes", 1, True)] == [True] * 3
    assert [truth(v) for v in ("OFF", 0, False)] == [False] * 3
    assert [truth(v) for v in ("maybe", 2, None, b"1")] == [None] * 4
    assert setting_name("queuePath") == "queue_path"
    assert setting_name("max_age") == "max_age"
