"""The directives of the namespace ``http://namespaces.zope.org/mail``.

Directives and attributes have the names that they have in zope.sendmail. The attributes
are derived from the contracts in `postcommit.interfaces`. An error says what a value
must be, and zope.configuration adds file and line.
"""
from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from zope.component import getUtilitiesFor
from zope.component import queryUtility
from zope.component.zcml import Permission
from zope.component.zcml import handler
from zope.component.zcml import proxify
from zope.configuration.exceptions import ConfigurationError
from zope.configuration.fields import Bool
from zope.configuration.fields import Tokens
from zope.interface import Interface
from zope.interface import implementer
from zope.interface.interface import InterfaceClass
from zope.schema import Field
from zope.schema import TextLine
from zope.schema.interfaces import IFromUnicode
from zope.schema.interfaces import InvalidValue

from postcommit._build import build
from postcommit._build import twin
from postcommit._config import legacy
from postcommit._config.options import Given
from postcommit._config.options import fields_of
from postcommit._config.options import parsed
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._kinds.queue import check_place
from postcommit.errors import OptionError
from postcommit.errors import masked
from postcommit.interfaces import IAMQPMailer
from postcommit.interfaces import IDirectMailDelivery
from postcommit.interfaces import IFailoverMailer
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IQueuedMailDelivery
from postcommit.interfaces import IScheduledMailDelivery
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import MailQueueProcessor
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import _
from postcommit.interfaces import is_database_url
from postcommit.interfaces import is_path


# Order of the actions that start threads: after all other configuration.
_LAST = 1_000_000


# Attributes


@implementer(IFromUnicode)
class Option(Field):
    """The option `name` of `contract`, parsed and checked as in settings.

    The fields of zope.schema would show a value that they refuse, and the value may be
    a password. A relative path is below the folder of the ZCML file. An empty path is
    refused, because it would be that folder itself.
    """

    def __init__(self, contract: Any, name: str, **details: Any) -> None:
        super().__init__(**details)
        self._contract = contract
        self._name = name

    def fromUnicode(self, value: str) -> Any:
        try:
            option = parsed(self._contract, self._name, value)
            if not is_path(self._contract[self._name]):
                return option
            if option and is_database_url(option):
                return option
            if option:
                return self.context.path(option)
            reason = str(OptionError(self._name, value, "must not be empty"))
        except OptionError as error:
            reason = str(error)
        raise InvalidValue(reason)


def _attributes(contract: Any) -> dict[str, Field]:
    """Return the options of `contract` as attributes of a directive, by their names."""
    return {
        field.__name__: Option(
            contract,
            field.__name__,
            title=field.title,
            description=field.description,
            required=field.required and field.default is None,
            default=field.default,
        )
        for field in fields_of(contract).values()
    }


def _given(
    directive: str, contract: Any, options: Mapping[str, Any]
) -> dict[str, Given]:
    """Return the attributes of a directive by the names of `fields_of`."""
    names = {field.__name__: name for name, field in fields_of(contract).items()}
    return {
        names.get(name, name): Given(
            directive, name, value, may_be_alone=name == "username"
        )
        for name, value in options.items()
        if value not in (None, "")
    }


# The schemas of the directives


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
    _attributes(ISMTPMailer),
    "Registers a mailer that talks to an SMTP relay.",
    __name__,
)

ISendmailMailerDirective = InterfaceClass(
    "ISendmailMailerDirective",
    (IMailerDirective,),
    _attributes(ISendmailMailer),
    "Registers a mailer that runs the local sendmail command.",
    __name__,
)

IAMQPMailerDirective = InterfaceClass(
    "IAMQPMailerDirective",
    (IMailerDirective,),
    _attributes(IAMQPMailer),
    "Registers a mailer that hands messages over to a RabbitMQ broker.",
    __name__,
)

IFileMailerDirective = InterfaceClass(
    "IFileMailerDirective",
    (IMailerDirective,),
    _attributes(IFileMailer),
    "Registers a mailer that writes files, for development.",
    __name__,
)


class _IMailers(IMailerDirective):
    mailers = Tokens(
        title=_("Mailers"),
        description=_(
            "The names of the mailers, in the order in which they are tried, separated"
            " by blanks or commas. Their directives come before this one."
        ),
        value_type=TextLine(),
        min_length=1,
    )


IFailoverMailerDirective = InterfaceClass(
    "IFailoverMailerDirective",
    (_IMailers,),
    _attributes(IFailoverMailer),
    "Registers a mailer that uses the next of several ones if a relay fails.",
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


IDirectDeliveryDirective = InterfaceClass(
    "IDirectDeliveryDirective",
    (IDeliveryDirective,),
    _attributes(IDirectMailDelivery),
    "Registers a delivery that transmits while the transaction commits.",
    __name__,
)


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
    _attributes(IMailQueueProcessor) | _attributes(IQueuedMailDelivery),
    "Registers a delivery that accepts messages into a queue.",
    __name__,
)


# Mailers


def smtpMailer(_context: Any, name: str, **options: Any) -> None:
    """Register a mailer. See `ISMTPMailerDirective`."""
    given = _given(f"mail:smtpMailer {name}", ISMTPMailer, options)
    given = legacy.translated(given, legacy.ZOPE_SENDMAIL)
    _register_mailer(_context, name, build(ISMTPMailer, given))


def sendmailMailer(_context: Any, name: str, **options: Any) -> None:
    """Register a mailer. See `ISendmailMailerDirective`."""
    given = _given(f"mail:sendmailMailer {name}", ISendmailMailer, options)
    command = given.get("sendmail_command")
    if command is not None and "%(" in command.value:
        raise command.refused("name the program only, it gets its arguments")
    _register_mailer(_context, name, build(ISendmailMailer, given))


def fileMailer(_context: Any, name: str, **options: Any) -> None:
    """Register a mailer. See `IFileMailerDirective`."""
    given = _given(f"mail:fileMailer {name}", IFileMailer, options)
    _register_mailer(_context, name, build(IFileMailer, given))


def amqpMailer(_context: Any, name: str, **options: Any) -> None:
    """Register a mailer. See `IAMQPMailerDirective`."""
    given = _given(f"mail:amqpMailer {name}", IAMQPMailer, options)
    _register_mailer(_context, name, build(IAMQPMailer, given))


def failoverMailer(
    _context: Any, name: str, mailers: list[str], **options: Any
) -> None:
    """Register a mailer. See `IFailoverMailerDirective`."""
    given = _given(f"mail:failoverMailer {name}", IFailoverMailer, options)
    mailers = " ".join(mailers).replace(",", " ").split()
    if not mailers:
        raise ConfigurationError("mailers: must have the name of at least one mailer")
    if name in mailers:
        raise ConfigurationError(f"mailers: {name!r} cannot be a part of itself")
    for part in mailers:
        if mailers.count(part) > 1:
            raise ConfigurationError(f"mailers: {part!r} is there twice")

    @functools.cache
    def make() -> Any:
        hint = ", or only after this one, which it is a part of"
        found = [_find_mailer(part, hint) for part in mailers]
        for number, mailer in enumerate(found):
            other = twin(mailer, found[:number])
            if other is not None:
                pair = f"{mailers[found.index(other)]!r} and {mailers[number]!r}"
                raise ConfigurationError(f"mailers: {pair} are the same relay")
        return build(IFailoverMailer, given, mailers=found)

    for contract in _with_older(IMailer):
        _register(_context, contract, name, make)


def _register_mailer(_context: Any, name: str, mailer: SupportsSend) -> None:
    for contract in _with_older(IMailer):
        _register(_context, contract, name, lambda: mailer, info=_Place(_context.info))


class _Place:
    """Place of a directive, without its text, which may have a password."""

    def __init__(self, info: Any) -> None:
        self._text = repr(info)

    def __repr__(self) -> str:
        return self._text


# Deliveries


def directDelivery(
    _context: Any,
    mailer: str,
    permission: str | None = None,
    name: str = "Mail",
    **options: Any,
) -> None:
    """Register a delivery. See `IDirectDeliveryDirective`."""
    given = _given(f"mail:directDelivery {name}", IDirectMailDelivery, options)

    def make() -> Any:
        return build(IDirectMailDelivery, given, mailer=_find_mailer(mailer))

    _register_delivery(_context, name, permission, make)


def queuedDelivery(
    _context: Any,
    queuePath: str,
    mailer: str,
    permission: str | None = None,
    name: str = "Mail",
    processorThread: bool = True,
    default_sender: str | None = None,
    **options: Any,
) -> None:
    """Register a delivery. See `IQueuedDeliveryDirective`."""
    if options and not processorThread:
        raise ConfigurationError(
            f'{", ".join(sorted(options))}: no effect with processorThread="false"'
        )
    options |= {"queuePath": queuePath, "default_sender": default_sender}
    given = _given(f"mail:queuedDelivery {name}", IMailQueueProcessor, options)
    delivery = build(IQueuedMailDelivery, given)
    processors: list[MailQueueProcessor] = []

    def make() -> Any:
        check_place(queuePath)
        found = _find_mailer(mailer)
        processor = build(IMailQueueProcessor, given, mailer=found)
        if processorThread:
            handler(
                "registerUtility", processor, IMailQueueProcessor, name, _context.info
            )
            processors.append(processor)
        return delivery

    def start() -> None:
        # It is missing if another directive with the same name prevailed.
        for processor in processors:
            processor.start()

    _register_delivery(_context, name, permission, make)
    _context.action(
        # It begins with a str, because discriminators are sorted for error texts.
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
        contract: Any = IMailDelivery
        if isinstance(made, QueuedMailDelivery):
            contract = IScheduledMailDelivery  # it has more methods
        return proxify(made, provides=contract, permission=permission)

    for contract in _with_older(IMailDelivery):
        _register(_context, contract, name, protected)


def _find_mailer(name: str, hint: str = "") -> SupportsSend:
    for contract in _with_older(IMailer):
        found = queryUtility(contract, name)
        if found is not None:
            return found  # type: ignore[no-any-return]
    shown = masked("mailer", name)
    defined = [one for one, _ in getUtilitiesFor(IMailer)]
    near = difflib.get_close_matches(name, defined, 1)
    hint += f"; do you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(f"the mailer {shown!r} is not defined{hint}")


# Registration


def _with_older(contract: Any) -> list[Any]:
    """Return `contract` and that of zope.sendmail, if this is installed.

    Code that looks up utilities by the contract of zope.sendmail finds ours, and
    deliveries find mailers that are registered for it. A program may have imported our
    interfaces by the older name, too. Then both are the same, and returned once.
    """
    try:
        older = import_module("zope.sendmail.interfaces")
    except ImportError:
        return [contract]
    return list(dict.fromkeys([contract, getattr(older, contract.__name__)]))


def _register(
    _context: Any, contract: Any, name: str, make: Callable[[], Any], info: Any = None
) -> None:
    """Register the object that `make` returns, unless another directive prevails."""
    info = info or _context.info

    def register() -> None:
        handler("registerUtility", make(), contract, name, info)

    _context.action(
        discriminator=("utility", contract, name), callable=register, info=info
    )
