"""The errors: one root, a built-in error each, attributes to keep."""
from __future__ import annotations

import copy
import errno
import inspect
import pickle
from typing import Any

import pytest

from postcommit import errors
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit.errors import AddressError
from postcommit.errors import AddressTypeError
from postcommit.errors import ConfigError
from postcommit.errors import DeliveryError
from postcommit.errors import EntryError
from postcommit.errors import ForkedError
from postcommit.errors import ItemError
from postcommit.errors import MaildirError
from postcommit.errors import MessageError
from postcommit.errors import MessageTypeError
from postcommit.errors import MissingExtraError
from postcommit.errors import NotAMaildirError
from postcommit.errors import NotAQueueError
from postcommit.errors import OptionError
from postcommit.errors import PostcommitError
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.errors import TooManyConnections
from postcommit.errors import shown
from postcommit.interfaces import Status


CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_error_has_the_root_and_is_a_built_in_error(kind: Any) -> None:
    assert issubclass(kind, PostcommitError)
    built_in = {b for b in kind.__mro__ if b.__module__ == "builtins"}
    assert built_in - {object, BaseException, Exception} or kind is PostcommitError
    assert inspect.getdoc(kind)


def test_a_queue_error_has_the_number_and_file_of_its_cause() -> None:
    cause = OSError(errno.ENOSPC, "No space left on device")
    error = QueueError("queue/tmp/1", "cannot write: No space left on device", cause)
    assert error.errno == errno.ENOSPC
    assert error.filename == error.path == "queue/tmp/1"
    assert "cannot write: No space left on device" in str(error)


def test_a_queue_error_without_a_cause_names_its_path() -> None:
    error = NotAMaildirError("queue", "is a file")
    assert str(error) == "queue: is a file"
    assert isinstance(error, NotADirectoryError)
    assert error.errno is None


def test_a_publish_error_names_what_is_in_doubt_and_what_to_do() -> None:
    cause = OSError(errno.EIO, "Input/output error")
    error = PublishError("queue/new", ("1", "2"), cause)
    assert error.names == ("1", "2")
    assert "2 entries stay in doubt" in str(error)
    assert "postcommit recover" in str(error)
    assert error.errno == errno.EIO
    assert "power failure" in str(PublishError("queue/new", (), cause))


FULL = OSError(errno.ENOSPC, "No space left on device")
REPORT = DeliveryReport.alike("1@x.org", ("a@x.org",), Status.REJECTED, Reply(550))

EXAMPLES = [
    PostcommitError("anything"),
    OptionError("port", 70000, "must be smaller"),
    AddressError("a b@x.org", "it has a space"),
    AddressTypeError(None, "it is no str"),
    MessageError("it has two ids"),
    MessageTypeError("it is a number"),
    QueueError("queue", "is missing"),
    QueueError("queue", "is full", FULL),
    MaildirError("queue", "is missing"),
    NotAMaildirError("queue", "is a file"),
    NotAQueueError("queue", "is a mailbox"),
    PublishError("queue", ("1",), FULL),
    ForkedError("not yours"),
    EntryError("it is empty"),
    ItemError("12ab", "is ambiguous"),
    MissingExtraError("cli", "click"),
    ConfigError("shop.ini", "port", 0, "is too small"),
    RelayError("away", Reply(421)),
    TooManyConnections("421 4.7.0 Too many connections", Reply(421)),
    DeliveryError(REPORT, "a@x.org: rejected"),
]


def test_there_is_an_example_of_each_error() -> None:
    assert {type(error) for error in EXAMPLES} == set(CLASSES)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_can_be_copied_and_sent_to_another_process(error: Any) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert twin.__dict__ == error.__dict__
        for name in ("errno", "filename", "name"):
            assert getattr(twin, name, None) == getattr(error, name, None)


def test_an_error_names_an_option_an_address_and_an_extra() -> None:
    option, address = EXAMPLES[1:3]
    assert str(option) == "port=70000: must be smaller"
    assert str(address) == "'a b@x.org' is not an envelope address: it has a space"
    assert "pip install 'postcommit[cli]'" in str(MissingExtraError("cli", "click"))


def test_an_error_in_a_configuration_says_where_it_is() -> None:
    error = ConfigError("shop.ini, [postcommit]", "port", "0", "is too small")
    assert str(error) == "shop.ini, [postcommit]: port='0': is too small"
    assert error.source == "shop.ini, [postcommit]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("a\n\x1b", r"'a\n\x1b'"),
        ("x" * 1000, f"{'x' * 300!r}... (length 1000)"),
        (b"x" * 1000, f"{b'x' * 300!r}... (length 1000)"),
        (["x" * 1000], f"['{'x' * 298}..."),
    ],
)
def test_a_value_is_shown_but_not_for_ever(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("number", "scope", "is_full"),
    [
        (errno.EMFILE, "queue", False),
        (errno.EROFS, "queue", False),
        (errno.ENOLCK, "queue", False),
        (errno.EACCES, "entry", False),
        (errno.ENOSPC, "entry", True),
        (errno.EDQUOT, "entry", True),
    ],
)
def test_an_error_of_a_queue_says_whether_other_entries_meet_it(
    number: int, scope: str, is_full: bool
) -> None:
    error = QueueError("queue", "cannot write the entry", OSError(number, "x"))
    assert (error.scope, error.is_full) == (scope, is_full)
