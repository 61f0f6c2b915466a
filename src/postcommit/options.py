"""Options against their schema: one error, which names option and value.

Titles, units, bounds and defaults of options are written in
`postcommit.interfaces` and nowhere else. A constructor takes its defaults from
there, and hands what it was given to `checked`.
"""
from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import Any
from typing import cast

from transaction.interfaces import ITransactionManager
from zope.interface import Interface
from zope.schema import Bool
from zope.schema import Choice
from zope.schema import Float
from zope.schema import Int
from zope.schema import Object
from zope.schema import TextLine
from zope.schema.interfaces import IField
from zope.schema.interfaces import ValidationError

from postcommit.errors import OptionError
from postcommit.errors import is_url
from postcommit.interfaces import IMailer
from postcommit.interfaces import is_path


_TYPES = ((Bool, "True or False"), (Int, "a whole number"), (Float, "a number"))


def checked(schema: type[Interface], name: str, value: Any) -> Any:
    """Return `value` as option `name` of `schema` has it.

    A path becomes a str and an int a float where the field wants it. Raises
    `OptionError` for a value that the field refuses. The error has no cause,
    because that would show the value, and the value may be a password.
    """
    field = cast(Any, schema)[name]
    with suppress(ValidationError, TypeError, OverflowError):
        value = _converted(field, value)
        field.validate(value)
        return value
    if is_path(field) and isinstance(value, str) and is_url(value):
        raise OptionError(name, value, "must be a path, not a URL")
    raise OptionError(name, value, f"must be {_expectation(field)}")


def _converted(field: IField, value: Any) -> Any:
    # To zope.schema, a bool is an int and an int is a bool.
    mixed_up = isinstance(value, bool) != isinstance(field, Bool)
    if isinstance(field, Bool | Int | Float) and isinstance(value, int) and mixed_up:
        raise TypeError("a truth value is no number")
    if isinstance(field, Float) and isinstance(value, int | float):
        if not math.isfinite(value):
            raise TypeError("no number of seconds")
        return float(value)
    if isinstance(field, TextLine) and isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _expectation(field: IField) -> str:
    """Say what `field` takes: «a whole number from 1 to 65535»."""
    if isinstance(field, Choice):
        words = "one of " + ", ".join(repr(term.value) for term in field.vocabulary)
    elif isinstance(field, Object):
        words = f"an object that provides {field.schema.__name__}"
    else:
        words = next(
            (words for kind, words in _TYPES if isinstance(field, kind)),
            "a str of one line",
        )
        words += _bounds(field)
    return words if field.required else f"{words}, or None"


def _bounds(field: IField) -> str:
    low = getattr(field, "min", None)
    high = getattr(field, "max", None)
    if high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low:g}"
    return " that is not empty" if getattr(field, "min_length", None) else ""


def checked_queue_path(schema: type[Interface], value: Any) -> str:
    """Return `value` as the absolute path of a queue.

    As it is now: later, there may be another working directory, and another queue.
    Raises `OptionError` as `checked` does.
    """
    path: str = checked(schema, "queuePath", value)
    if os.path.isabs(path):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except OSError as error:
        cause = error.strerror
    reason = f"is relative to a working directory that does not exist: {cause}"
    raise OptionError("queuePath", path, reason)


def checked_mailer(mailer: Any) -> IMailer:
    """Return `mailer`. Raises `OptionError` if it cannot be one.

    It need not provide `IMailer`: a ``send()`` that raises, as that of
    smtplib, will do.
    """
    if not callable(getattr(mailer, "send", None)):
        raise OptionError("mailer", mailer, "must have a method send()")
    return mailer  # type: ignore[no-any-return]


def checked_manager(manager: Any) -> ITransactionManager:
    """Return `manager`. Raises `OptionError` if transactions cannot be had of it."""
    if not callable(getattr(manager, "get", None)):
        reason = "must be a transaction manager, as transaction.manager or request.tm"
        raise OptionError("transaction_manager", manager, reason)
    return manager
