"""Options and their schemas: check, parse and name one value.

Titles, units, bounds and defaults of options are in `postcommit.interfaces`. A
constructor takes its defaults from there, and passes its arguments to `checked`. ZCML,
settings, ini files, environment and command line give texts, which `parsed` turns into
values. All errors name the option and its value, and mask passwords.

An option has the name of its field in Python and ZCML, for example `pollingInterval`.
Elsewhere it has the name that `fields_of` returns, for example ``polling_interval``.
"""
from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any
from typing import cast

from transaction.interfaces import ITransactionManager
from zope.schema import Bool
from zope.schema import Choice
from zope.schema import Float
from zope.schema import Int
from zope.schema import Object
from zope.schema import Password
from zope.schema import TextLine
from zope.schema import Tuple
from zope.schema import getFieldsInOrder
from zope.schema.interfaces import IField
from zope.schema.interfaces import ValidationError

from postcommit._config.database import parse_database_url
from postcommit._mail.address import parse_address
from postcommit._mail.message import bare_id
from postcommit.errors import AddressError
from postcommit.errors import ConfigError
from postcommit.errors import OptionError
from postcommit.errors import is_url
from postcommit.interfaces import IDefaultSender
from postcommit.interfaces import ITLSOptions
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import can_be_host
from postcommit.interfaces import can_be_queue
from postcommit.interfaces import is_database_url
from postcommit.interfaces import is_ip_address
from postcommit.interfaces import is_page_path
from postcommit.interfaces import is_path
from postcommit.interfaces import is_url_host


_TRUE = frozenset({"true", "yes", "on", "t", "y", "1"})
_FALSE = frozenset({"false", "no", "off", "f", "n", "0"})

_TYPES = ((Bool, "True or False"), (Int, "a whole number"), (Float, "a number"))

# The values that the constraint of a field takes, for the text of an error.
_CONSTRAINTS = {
    can_be_host: "a host name or address",
    is_ip_address: "an IP address",
    is_page_path: "the path of a page, such as /mail",
    is_url_host: "a host name or address without a port",
}


# Names


def fields_of(contract: Any) -> dict[str, Any]:
    """Return the fields of `contract` that are options, by their names in settings.

    Those of TLS come last. Fields for objects, such as `mailer`, are not options.
    """
    prefix = contract.queryTaggedValue("settings_prefix", "")
    fields = [
        (prefix + setting_name(name), field)
        for name, field in getFieldsInOrder(contract)
        if not isinstance(field, Object)
    ]
    return dict(sorted(fields, key=lambda option: option[1].interface is ITLSOptions))


def setting_name(name: str) -> str:
    """Return the name `pollingInterval`, for example, as ``polling_interval``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True)
class Given:
    """The value of an option as it was given, text or not.

    `source` is the file, for example, and `name` is the option's name there. The source
    is empty if the name says where the option is, such as ``mail.port``.
    `may_be_alone` is true if half a login is ignored there, as older libraries do.
    """

    source: str
    name: str
    value: Any = dataclass_field(repr=False)
    may_be_alone: bool = False

    def refused(self, reason: str) -> OptionError:
        """Return an error that says where the option is, and what is wrong with it."""
        if self.source:
            return ConfigError(self.source, self.name, self.value, reason)
        return OptionError(self.name, self.value, reason)


# Text to value


def parsed(contract: Any, name: str, value: Any) -> Any:
    """Return `value`, text or not, as the field `name` of `contract` has it.

    Raises `OptionError` for a value that the field refuses.
    """
    field = contract[name]
    text = value
    if isinstance(value, str) and not isinstance(field, Password):
        text = value.strip()
    try:
        return checked(contract, name, _from_text(field, text))
    except OptionError as error:
        reason = error.reason
    raise OptionError(name, value, reason)


def _from_text(field: IField, text: Any) -> Any:
    """Return the value that `text` means, or `text` if it means none."""
    if isinstance(field, Bool) and isinstance(text, str):
        meant = truth(text)
        return text if meant is None else meant
    if isinstance(field, Tuple):
        words = text.replace(",", " ").split() if isinstance(text, str) else text
        return tuple(words) if isinstance(words, list) else words
    if isinstance(field, Int | Float) and isinstance(text, str):
        with suppress(ValueError):
            return int(text) if isinstance(field, Int) else float(text)
    return text


def truth(value: Any) -> bool | None:
    """Return the truth value that a word or a number means, None if it means none."""
    if isinstance(value, bool | int):
        value = str(int(value))
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in _TRUE else False if word in _FALSE else None


# Values


def checked(schema: Any, name: str, value: Any) -> Any:
    """Return `value` as the field `name` of `schema` has it.

    A path becomes a str, and an int becomes a float for a field of this type. Raises
    `OptionError` for a value that the field refuses. The error is raised without its
    cause, which would show the value. This may be a password.
    """
    field = schema[name]
    with suppress(ValidationError, TypeError, OverflowError):
        # zope.schema takes a bool for an int, and an int for a bool.
        is_int = isinstance(value, int) and isinstance(field, Bool | Int | Float)
        if is_int and isinstance(value, bool) != isinstance(field, Bool):
            raise TypeError("a truth value is not a number")
        if isinstance(field, Float) and isinstance(value, int | float):
            if not math.isfinite(value):
                raise TypeError("not a finite number")
            value = float(value)
        elif isinstance(field, TextLine) and isinstance(value, os.PathLike):
            value = os.fspath(value)
        field.validate(value)
        if isinstance(value, str) and is_database_url(value) and _is_queue(field):
            parse_database_url(value, name)
        return value
    if is_path(field) and isinstance(value, str) and is_url(value):
        raise OptionError(name, value, f"must be {_place(field)}")
    raise OptionError(name, value, f"must be {_expectation(field)}")


def _is_queue(field: IField) -> bool:
    return vars(field).get("constraint") is can_be_queue


def _place(field: IField) -> str:
    """Return what `field`, a path, takes instead of a URL."""
    if _is_queue(field):
        return "a path, or a URL such as postgresql://host/db"
    return "a path, not a URL"


def _expectation(field: IField) -> str:
    """Return what `field` takes, for example "a whole number from 1 to 65535"."""
    if isinstance(field, Choice):
        words = "one of " + ", ".join(repr(term.value) for term in field.vocabulary)
    elif isinstance(field, Object):
        words = f"an object that provides {field.schema.__name__}"
    elif isinstance(field, Tuple):
        words = f"one or more, each {_expectation(field.value_type)}"
    elif vars(field).get("constraint") in _CONSTRAINTS:
        words = _CONSTRAINTS[vars(field)["constraint"]]
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


def checked_queue_path(schema: Any, value: Any) -> str:
    """Return `value` as the absolute path of a queue, or as its URL.

    A relative path is made absolute now, because the working directory may change
    later. Raises `OptionError` as `checked` does, and for a URL that can never work.
    """
    path: str = checked(schema, "queuePath", value)
    if is_database_url(path) or os.path.isabs(path):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except OSError as error:
        cause = error.strerror
    reason = f"is relative to a working directory that does not exist: {cause}"
    raise OptionError("queuePath", path, reason)


def checked_mailer(mailer: Any) -> SupportsSend:
    """Return `mailer`. Raises `OptionError` for one without ``send()``.

    It may be an object that does not provide `IMailer`. For example, its ``send()`` may
    raise, as that of smtplib does.
    """
    if isinstance(mailer, type):
        raise OptionError("mailer", mailer, "must be a mailer, not its class")
    if not callable(getattr(mailer, "send", None)):
        raise OptionError("mailer", mailer, "must have a method send()")
    return mailer  # type: ignore[no-any-return]


def checked_mailers(mailers: Any) -> tuple[SupportsSend, ...]:
    """Return `mailers` as a tuple: at least one, each as `checked_mailer` has it.

    Raises `OptionError` also if one of them is there twice.
    """
    try:
        found = (mailers,) if isinstance(mailers, str) else tuple(mailers)
    except TypeError:
        reason = "must be several mailers, such as [first, second]"
        raise OptionError("mailers", mailers, reason) from None
    if not found:
        raise OptionError("mailers", mailers, "must have at least one mailer")
    for number, mailer in enumerate(found):
        if isinstance(mailer, type):
            reason = f"number {number + 1} must be a mailer, not its class"
            raise OptionError("mailers", mailer, reason)
        if not callable(getattr(mailer, "send", None)):
            reason = f"number {number + 1} must have a method send()"
            raise OptionError("mailers", mailer, reason)
        if any(mailer is other for other in found[:number]):
            raise OptionError("mailers", mailer, "is there twice")
    return found


def checked_notify(notify: Any) -> Callable[[Any], Any]:
    """Return `notify`. Raises `OptionError` if it cannot be called."""
    if not callable(notify):
        raise OptionError("notify", notify, "must be a function that takes an event")
    return notify  # type: ignore[no-any-return]


def checked_manager(manager: Any) -> ITransactionManager:
    """Return `manager`. Raises `OptionError` if it is not a transaction manager."""
    if not callable(getattr(manager, "get", None)):
        reason = "must be a transaction manager, as transaction.manager or request.tm"
        raise OptionError("transaction_manager", manager, reason)
    return manager


def checked_sender(sender: Any) -> str | None:
    """Return `sender`, which may have a display name, or be None.

    Raises `OptionError` for a text without an address that can be in an envelope.
    """
    sender = checked(IDefaultSender, "default_sender", sender)
    if sender is not None:
        try:
            parse_address(sender)
        except AddressError as error:
            raise OptionError("default_sender", sender, error.reason) from None
    return cast("str | None", sender)


def checked_message_id(message_id: Any) -> str:
    """Return a message id, as `send` returned it, without its angle brackets.

    Raises `OptionError` for anything but a str with such an id.
    """
    bare = bare_id(message_id) if isinstance(message_id, str) else ""
    if not bare or not bare.isprintable() or set(bare) & set("<> "):
        reason = "must be a message id, as send() returns it"
        raise OptionError("message_id", message_id, reason)
    return bare
