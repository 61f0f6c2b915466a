"""The directives of the namespace ``http://namespaces.zope.org/mail``.

Directives and attributes have the names that the files of zope.sendmail's users
have. What they take is derived from the contracts in `postcommit.interfaces`.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

from zope.component import queryUtility
from zope.component.zcml import Permission
from zope.component.zcml import handler
from zope.component.zcml import proxify
from zope.configuration.exceptions import ConfigurationError
from zope.configuration.fields import Bool
from zope.interface import Interface
from zope.interface.interface import InterfaceClass
from zope.schema import TextLine

from postcommit.delivery import DirectMailDelivery
from postcommit.delivery import QueuedMailDelivery
from postcommit.filemailer import FileMailer
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import TLSMode
from postcommit.interfaces import _
from postcommit.queue.mark import check_queue_path
from postcommit.queue.runner import QueueProcessor
from postcommit.settings import without_lone_username
from postcommit.smtp.mailer import SMTPMailer
from postcommit.smtp.sendmail import SendmailMailer
from postcommit.zcmlfields import attributes


# Threads start when all the rest of the configuration has been done.
_LAST = 1_000_000

# The attributes that older files choose the TLS mode with.
_MODES = {
    "implicit_tls": TLSMode.IMPLICIT.value,
    "force_tls": TLSMode.STARTTLS.value,
    "no_tls": TLSMode.NONE.value,
}


class IMailerDirective(Interface):
    """Registers a mailer."""

    name = TextLine(
        title=_("Name"), description=_("By which deliveries find the mailer.")
    )


class _IOlderTLS(IMailerDirective):
    implicit_tls = Bool(
        title=_("Implicit TLS"),
        description=_('The same as tls="implicit".'),
        required=False,
    )
    force_tls = Bool(
        title=_("Force TLS"),
        description=_('The same as tls="starttls".'),
        required=False,
    )
    no_tls = Bool(
        title=_("No TLS"), description=_('The same as tls="none".'), required=False
    )


ISMTPMailerDirective = InterfaceClass(
    "ISMTPMailerDirective",
    (_IOlderTLS,),
    attributes(ISMTPMailer),
    "Registers a mailer that talks to an SMTP relay.",
    __name__,
)

ISendmailMailerDirective = InterfaceClass(
    "ISendmailMailerDirective",
    (IMailerDirective,),
    attributes(ISendmailMailer),
    "Registers a mailer that runs the local sendmail command.",
    __name__,
)

IFileMailerDirective = InterfaceClass(
    "IFileMailerDirective",
    (IMailerDirective,),
    attributes(IFileMailer),
    "Registers a mailer that writes files, for development.",
    __name__,
)


class IDeliveryDirective(Interface):
    """Registers a delivery."""

    name = TextLine(
        title=_("Name"),
        description=_("By which the application finds the delivery."),
        default="Mail",
        required=False,
    )
    mailer = TextLine(title=_("Mailer"), description=_("The name of the mailer."))
    permission = Permission(
        title=_("Permission"),
        description=_("What one needs to send; none: the utility is not proxied."),
        required=False,
    )


class IDirectDeliveryDirective(IDeliveryDirective):
    """Registers a delivery that transmits while the transaction commits."""


class _IProcessorThread(IDeliveryDirective):
    processorThread = Bool(
        title=_("Processor thread"),
        description=_("Whether this process sends the queue, in threads."),
        default=True,
        required=False,
    )


IQueuedDeliveryDirective = InterfaceClass(
    "IQueuedDeliveryDirective",
    (_IProcessorThread,),
    attributes(IMailQueueProcessor, "mailer"),
    "Registers a delivery that accepts messages into a queue.",
    __name__,
)


# Mailers


def smtpMailer(_context: Any, name: str, **options: Any) -> None:
    """See `ISMTPMailerDirective`."""
    given = {flag: options.pop(flag) for flag in _MODES if flag in options}
    mode = _tls_mode(options.get("tls"), given)
    if mode is not None:
        options["tls"] = mode
    options = without_lone_username(options, f"mail:smtpMailer {name}")
    _register_mailer(_context, name, SMTPMailer(**options))


def _tls_mode(mode: str | None, given: dict[str, bool]) -> str | None:
    """Return the one mode that all attributes agree on; None where none tells."""
    wanted = {_MODES[flag] for flag, value in given.items() if value}
    unwanted = {_MODES[flag] for flag, value in given.items() if not value}
    if mode is not None:
        wanted.add(mode)
    if len(wanted) > 1 or wanted & unwanted:
        told = [f'tls="{mode}"'] if mode is not None else []
        told += [f'{flag}="{str(value).lower()}"' for flag, value in given.items()]
        raise ConfigurationError(f"{' and '.join(told)} contradict each other")
    return wanted.pop() if wanted else None


def sendmailMailer(_context: Any, name: str, **options: Any) -> None:
    """See `ISendmailMailerDirective`."""
    command = options.get("command", "")
    if "%(" in command:
        raise ConfigurationError(
            f"command={command!r}: name the program only, it gets its arguments"
        )
    _register_mailer(_context, name, SendmailMailer(**options))


def fileMailer(_context: Any, name: str, **options: Any) -> None:
    """See `IFileMailerDirective`."""
    _register_mailer(_context, name, FileMailer(**options))


def _register_mailer(_context: Any, name: str, mailer: IMailer) -> None:
    for contract in _with_older(IMailer):
        _register(_context, contract, name, lambda: mailer, info=_Place(_context.info))


class _Place:
    """Where a directive stands, without its text: that may have a password."""

    def __init__(self, info: Any) -> None:
        self._text = repr(info)

    def __repr__(self) -> str:
        return self._text


# Deliveries


def directDelivery(
    _context: Any, mailer: str, permission: str | None = None, name: str = "Mail"
) -> None:
    """See `IDirectDeliveryDirective`."""
    _register_delivery(
        _context, name, permission, lambda: DirectMailDelivery(_find_mailer(mailer))
    )


def queuedDelivery(
    _context: Any,
    queuePath: str,
    mailer: str,
    permission: str | None = None,
    name: str = "Mail",
    processorThread: bool = True,
    **options: Any,
) -> None:
    """See `IQueuedDeliveryDirective`."""
    if options and not processorThread:
        raise ConfigurationError(
            f'{", ".join(sorted(options))}: no effect with processorThread="false"'
        )
    delivery = QueuedMailDelivery(queuePath)
    processors: list[QueueProcessor] = []

    def make() -> QueuedMailDelivery:
        check_queue_path(queuePath)
        processor = QueueProcessor(queuePath, _find_mailer(mailer), **options)
        if processorThread:
            handler(
                "registerUtility", processor, IMailQueueProcessor, name, _context.info
            )
            processors.append(processor)
        return delivery

    def start() -> None:
        # There is none where another directive of that name has prevailed.
        for processor in processors:
            processor.start()

    _register_delivery(_context, name, permission, make)
    _context.action(
        # A str first, as in those of others: they are sorted to be told.
        discriminator=("mailQueueProcessor", name), callable=start, order=_LAST
    )


def _register_delivery(
    _context: Any, name: str, permission: str | None, make: Callable[[], Any]
) -> None:
    @functools.cache
    def protected() -> Any:
        made = make()
        if permission is None:
            return made
        return proxify(made, provides=IMailDelivery, permission=permission)

    for contract in _with_older(IMailDelivery):
        _register(_context, contract, name, protected)


def _find_mailer(name: str) -> IMailer:
    for contract in _with_older(IMailer):
        found = queryUtility(contract, name)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise ConfigurationError(f"the mailer {name!r} is not defined")


# Registration


def _with_older(contract: Any) -> list[Any]:
    """Return `contract`, and what zope.sendmail has instead, where it is installed.

    So that code which looks its utilities up by the older one finds ours, and the
    other way round.
    """
    try:
        older = import_module("zope.sendmail.interfaces")
    except ImportError:
        return [contract]
    return [contract, getattr(older, contract.__name__)]


def _register(
    _context: Any, contract: Any, name: str, make: Callable[[], Any], info: Any = None
) -> None:
    """Register what `make` returns, unless another directive prevails."""
    info = info or _context.info

    def register() -> None:
        handler("registerUtility", make(), contract, name, info)

    _context.action(
        discriminator=("utility", contract, name), callable=register, info=info
    )
