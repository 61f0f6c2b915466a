"""The settings of a Pyramid application: from text to mailers and options.

Their names are those of the options, and those that pyramid_mailer has for
them. This module does not need Pyramid.
"""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from zope.schema import getFieldsInOrder

from postcommit.defaultsender import DefaultSender
from postcommit.errors import AddressError
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.errors import masked
from postcommit.filemailer import FileMailer
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import TLSMode
from postcommit.queue.mark import check_queue_path
from postcommit.queue.runner import QueueProcessor
from postcommit.settings import from_text
from postcommit.settings import truth
from postcommit.settings import unknown
from postcommit.settings import without_lone_username
from postcommit.smtp.mailer import SMTPMailer
from postcommit.smtp.sendmail import SendmailMailer


_MAILERS = ("smtp", "sendmail", "file")

# Of pyramid_mailer, and of no use here. What says no is ignored.
_REFUSED = {
    "certfile": "certificates of clients are not supported",
    "keyfile": "certificates of clients are not supported",
    "sendmail_template": "the program gets its arguments; name it in sendmail_app",
    "debug": "set the level of the logger 'postcommit' instead",
}


def _fields(contract: Any, *names: str) -> dict[str, str]:
    """Return the options of `contract` as settings of the same names."""
    return {name: name for name, _ in getFieldsInOrder(contract) if name not in names}


# Which option of which contract a setting is. Of two for the same option, the
# application may use one.
_SMTP = {"host": "hostname", **_fields(ISMTPMailer, "tls")}
_SENDMAIL = {
    "sendmail_app": "command",
    **{f"sendmail_{name}": name for name in _fields(ISendmailMailer)},
}
_FILE = {"top_level_directory": "folder", **_fields(IFileMailer)}
_PROCESSOR = {
    "polling_interval": "pollingInterval",
    **_fields(IMailQueueProcessor, "queuePath", "pollingInterval", "mailer"),
}

# All names of settings, without the prefix.
_KNOWN = (
    *_SMTP,
    *_SENDMAIL,
    *_FILE,
    *_PROCESSOR,
    *("mailer", "tls", "ssl", "queue_path", "processor", "default_sender"),
)


class MailSettings:
    """What the settings that begin with `prefix` say.

    An empty setting is one that is not there. `mailers` has the mailers by
    name, the one without a name is to be used; they publish with `notify`.
    `queue_path` is None where there is no queue. `runs_processor` is whether the
    application itself drains it, `forbids_processors` whether it must not run any.

    Raises `OptionError`, which names the setting, for one that is unknown or
    can never work.
    """

    def __init__(
        self, settings: Mapping[str, Any], prefix: str, notify: Callable[[Any], Any]
    ) -> None:
        self._prefix = prefix
        self._given: dict[str, Any] = {}
        for name, value in settings.items():
            if name.startswith(prefix):
                value = value.strip() if isinstance(value, str) else value
                if value not in (None, ""):
                    self._given[name.removeprefix(prefix)] = value
        self._left = dict(self._given)
        self.mailers = self._mailers(notify)
        self.queue_path: str | None = self._take("queue_path")
        runs_processor = self._truth("processor")
        self.runs_processor = runs_processor is True
        self.forbids_processors = runs_processor is False
        self._processor_options = self._options(IMailQueueProcessor, _PROCESSOR)
        self._default_sender: str | None = self._take("default_sender")
        self._refuse_what_is_left()
        self._check()

    def processor(self, mailer: IMailer) -> QueueProcessor:
        """Return a processor of the queue."""

        def make(**options: Any) -> QueueProcessor:
            return QueueProcessor(self.queue_path or "", mailer, **options)

        made: QueueProcessor = self._made(make, _PROCESSOR, self._processor_options)
        return made

    def named(self, delivery: IMailDelivery) -> IMailDelivery:
        """Return `delivery`, or one that knows the default sender."""
        if self._default_sender is None:
            return delivery
        return DefaultSender(delivery, self._default_sender)

    def _mailers(self, notify: Callable[[Any], Any]) -> dict[str, IMailer]:
        chosen = self._take("mailer", "smtp")
        if chosen not in _MAILERS:
            reason = f"must be one of {', '.join(_MAILERS)}"
            raise self._error("mailer", chosen, reason)
        smtp = self._options(ISMTPMailer, _SMTP)
        smtp = without_lone_username(smtp, f"{self._prefix}*")
        mode = self._tls_mode()
        if mode is not None:
            smtp["tls"] = mode
        names = {**_SMTP, "tls": "tls"}
        mailers = {"smtp": self._made(SMTPMailer, names, smtp, notify=notify)}
        for name, kind, contract, names in (
            ("sendmail", SendmailMailer, ISendmailMailer, _SENDMAIL),
            ("file", FileMailer, IFileMailer, _FILE),
        ):
            options = self._options(contract, names)
            if options or chosen == name:
                if name == "file" and not options:
                    raise self._error("folder", None, "is needed by mailer=file")
                mailers[name] = self._made(kind, names, options, notify=notify)
        return {"": mailers[chosen], **mailers}

    def _tls_mode(self) -> Any:
        """Return the mode that ``tls`` and ``ssl`` mean; None where none tells.

        To pyramid_mailer, true is STARTTLS, and ``ssl`` is implicit TLS.
        """
        ssl = self._truth("ssl")
        tls = self._take("tls")
        meant = truth(tls)
        mode = tls
        if meant is True:
            mode = TLSMode.STARTTLS.value
        elif meant is False:
            mode = None if ssl else TLSMode.NONE.value
        implicit = TLSMode.IMPLICIT.value
        if mode is not None and ssl is not None and ssl != (mode == implicit):
            other = masked("tls", tls)
            raise self._error("ssl", ssl, f"contradicts {self._prefix}tls={other!r}")
        return implicit if ssl else mode

    # Values

    def _take(self, name: str, default: Any = None) -> Any:
        return self._left.pop(name, default)

    def _truth(self, name: str) -> bool | None:
        value = self._take(name)
        meant = truth(value)
        if value is not None and meant is None:
            raise self._error(name, value, "must be true or false")
        return meant

    def _options(self, contract: Any, names: Mapping[str, str]) -> dict[str, Any]:
        """Take what is there of `names`; return it as options of `contract`."""
        options: dict[str, Any] = {}
        for name, option in names.items():
            if name in self._left:
                if option in options:
                    reason = f"{self._prefix}{self._setting(names, option)} is the same"
                    raise self._error(name, self._left[name], reason)
                options[option] = from_text(contract[option], self._take(name))
        return options

    def _setting(self, names: Mapping[str, str], option: str) -> str:
        """Return by which of `names` the option was given."""
        found = [name for name, o in names.items() if o == option]
        return next((name for name in found if name in self._given), found[-1])

    def _made(
        self,
        kind: Callable[..., Any],
        names: Mapping[str, str],
        options: Mapping[str, Any],
        **others: Any,
    ) -> Any:
        try:
            return kind(**options, **others)
        except OptionError as error:
            name = self._setting(names, error.name)
            raise self._error(name, error.value, error.reason) from error

    # Errors

    def _refuse_what_is_left(self) -> None:
        for name, value in self._left.items():
            if name not in _REFUSED:
                raise unknown(name, _KNOWN, self._prefix)
            if truth(value) is not False:
                raise self._error(name, value, _REFUSED[name])

    def _check(self) -> None:
        """Raise what would otherwise be raised by the first mail."""
        if self.queue_path is not None:
            self.processor(self.mailers[""])
            try:
                check_queue_path(self.queue_path)
            except QueueError as error:
                path = self.queue_path
                raise self._error("queue_path", path, error.reason) from error
        elif self.runs_processor:
            raise self._error("processor", True, f"needs {self._prefix}queue_path")
        if self._default_sender is not None:
            try:
                DefaultSender(None, self._default_sender)
            except AddressError as error:
                sender = self._default_sender
                raise self._error("default_sender", sender, error.reason) from error

    def _error(self, name: str, value: object, reason: str) -> OptionError:
        return OptionError(f"{self._prefix}{name}", value, reason)
