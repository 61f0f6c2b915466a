"""The errors: one root, a built-in error each, attributes to keep."""
from __future__ import annotations

import errno
import inspect
from typing import Any

import pytest

from postcommit import errors
from postcommit.errors import NotAMaildirError
from postcommit.errors import PostcommitError
from postcommit.errors import PublishError
from postcommit.errors import QueueError


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
