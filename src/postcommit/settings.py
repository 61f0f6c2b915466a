"""From options to objects, for whoever has them as text or as values.

What an option is called, takes and means is derived from the contracts in
`postcommit.interfaces`. In settings it has the name of its field, in lower case
with underscores: `pollingInterval` is ``polling_interval``. Both are understood.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from zope.schema import Bool
from zope.schema import Float
from zope.schema import Int
from zope.schema import Object
from zope.schema import Password
from zope.schema import getFieldsInOrder

from postcommit.delivery import DirectMailDelivery
from postcommit.delivery import QueuedMailDelivery
from postcommit.errors import OptionError
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IQueuedMailDelivery
from postcommit.interfaces import ISMTPMailer
from postcommit.log import Log
from postcommit.options import checked
from postcommit.queue.runner import QueueProcessor
from postcommit.smtp.mailer import SMTPMailer


log = Log(__name__)

_TRUE = frozenset({"true", "yes", "on", "t", "y", "1"})
_FALSE = frozenset({"false", "no", "off", "f", "n", "0"})


def fields_of(schema: Any) -> dict[str, Any]:
    """Return the fields of `schema` that are options, by their names in settings.

    A field has ``title``, ``description`` (which has the unit), ``default`` and
    ``__name__``, the attribute's. Fields for objects are no options.
    """
    return {
        setting_name(name): field
        for name, field in getFieldsInOrder(schema)
        if not isinstance(field, Object)
    }


def setting_name(name: str) -> str:
    """Return what the field `name` is called in settings."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def truth(value: Any) -> bool | None:
    """Return what is meant by a word or a number; None where it is no truth value."""
    if isinstance(value, bool | int):
        value = str(int(value))
    word = value.lower() if isinstance(value, str) else ""
    return True if word in _TRUE else False if word in _FALSE else None


def from_text(field: Any, value: Any) -> Any:
    """Return `value` as `field` wants it, or as it is, to be refused by name."""
    if not isinstance(value, str):
        return value
    if isinstance(field, Bool):
        meant = truth(value)
        return value if meant is None else meant
    try:
        if isinstance(field, Int):
            return int(value)
        if isinstance(field, Float):
            return float(value)
    except ValueError:
        pass  # the field says better what is wrong with it
    return value


def option(schema: Any, name: str, value: Any) -> Any:
    """Return `value`, text or not, as the option `name` of `schema` has it.

    Raises `OptionError` for a value that the field refuses, with the name that was
    given.
    """
    field = _field(schema, name)
    is_secret = isinstance(field, Password)
    stripped = value.strip() if isinstance(value, str) and not is_secret else value
    try:
        return checked(schema, field.__name__, from_text(field, stripped))
    except OptionError as error:
        reason = error.reason
    raise OptionError(name, value, reason)


def sorted_out(given: Mapping[str, Any], *schemas: Any) -> tuple[dict[str, Any], ...]:
    """Return the options of each schema among `given`, by attribute, converted.

    None and the empty text are like an option that is not there. Raises
    `OptionError` for a value that can never work, or an option that no schema
    has, and names one that may have been meant.
    """
    found: tuple[dict[str, Any], ...] = tuple({} for _ in schemas)
    for name, value in given.items():
        owner = _owner(name, schemas)
        if owner is None:
            known = [other for schema in schemas for other in fields_of(schema)]
            raise unknown(name, known)
        attribute = _field(schemas[owner], name).__name__
        if attribute in found[owner]:
            raise OptionError(name, value, "is given twice, by two names")
        if value is not None and value != "":
            found[owner][attribute] = option(schemas[owner], name, value)
    return found


def unknown(name: str, known: Iterable[str], prefix: str = "") -> OptionError:
    """Return the error for an option `name` that is not one of `known`.

    The value is not shown, because the name may be a misspelt ``password``.
    `prefix` is what all names begin with in the settings.
    """
    near = difflib.get_close_matches(setting_name(name), list(known), 1)
    hint = f"; do you mean {prefix}{near[0]}?" if near else ""
    return OptionError(f"{prefix}{name}", "***", f"there is no such option{hint}")


def _field(schema: Any, name: str) -> Any:
    fields = fields_of(schema)
    return fields.get(name) or fields.get(setting_name(name))


def _owner(name: str, schemas: tuple[Any, ...]) -> int | None:
    owners = (n for n, schema in enumerate(schemas) if _field(schema, name))
    return next(owners, None)


def without_lone_username(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return `options` without a user name that has no password.

    zope.sendmail, repoze.sendmail and pyramid_mailer do not log in then, and a site
    that moves from them may depend on it. `source` names the settings in the log.
    """
    kept = dict(options)
    if kept.get("username") and not kept.get("password"):
        log.warning("%s: a username without a password is ignored: no login", source)
        del kept["username"]
    return kept


def mailer_from(given: Mapping[str, Any], **others: Any) -> SMTPMailer:
    """Return an SMTP mailer with these options, text or values.

    `others` are what no text can tell: `notify` and `token`. Raises
    `OptionError`.
    """
    [options] = sorted_out(given, ISMTPMailer)
    return SMTPMailer(**options, **others)


def processor_from(
    given: Mapping[str, Any], mailer: IMailer, **others: Any
) -> QueueProcessor:
    """Return a processor with these options, ``queue_path`` among them.

    `others` is what no text can tell: `clock`. Raises `OptionError`.
    """
    [options] = sorted_out(given, IMailQueueProcessor)
    queue_path = options.pop("queuePath", "")
    made: QueueProcessor = QueueProcessor(queue_path, mailer, **options, **others)
    return made


def delivery_from(
    given: Mapping[str, Any], mailer: IMailer | None = None, **others: Any
) -> QueuedMailDelivery | DirectMailDelivery:
    """Return a queued delivery where there is a ``queue_path``, or a direct one.

    That goes through `mailer`. `others` are ``transaction_manager`` and, for a
    direct one, ``check_relay``. Raises `OptionError`.
    """
    [options] = sorted_out(given, IQueuedMailDelivery)
    if options:
        return QueuedMailDelivery(options["queuePath"], **others)
    if mailer is None:
        raise OptionError("queue_path", None, "is needed where there is no mailer")
    return DirectMailDelivery(mailer, **others)
