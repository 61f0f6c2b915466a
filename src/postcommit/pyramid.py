"""For Pyramid: ``config.include("postcommit.pyramid")``.

The names of the settings begin with ``mail.``, or with the value of the setting
``postcommit.prefix``. `includeme` registers these utilities in the application's
registry:

=====================  ================  =========================================
interface              name              object
=====================  ================  =========================================
`IMailer`              none              the mailer that ``mail.mailer`` names
`IMailer`              ``smtp``          always
`IMailer`              ``sendmail``,     if there are settings for them
                       ``file``,
                       ``failover``
`IMailer`              ``backup``, for   for settings such as ``mail.backup.hostname``
                       example
`IMailDelivery`        none              by a session if there is a ``mail.session``;
                                         or queued if there is a queue, or direct
`IMailDelivery`        ``outbox``        if there is a ``mail.session``
`IMailDelivery`        ``direct``        through the mailer without a name
`IMailDelivery`        ``queued``        if there is a ``mail.queue_path``
`IMailDelivery`        ``sendmail``      direct, through the mailer of that name
`IMailQueueProcessor`  none              if there is a ``mail.queue_path``
=====================  ================  =========================================

``config.add_mailer``, ``config.add_mail_delivery`` and
``config.add_mail_processor`` replace them or add others.
"""
from __future__ import annotations

import copy
import difflib
import functools
import logging
import os
import re
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NoReturn

import zope.event
from zope.interface import implementer

from postcommit.errors import MissingExtraError


try:
    from pyramid.config import Configurator
    from pyramid.events import NewRequest
    from pyramid.exceptions import ConfigurationError
    from pyramid.interfaces import PHASE1_CONFIG
    from pyramid.interfaces import PHASE2_CONFIG
    from pyramid.registry import Registry
    from pyramid.request import Request
    from pyramid.threadlocal import manager as threadlocals
except ModuleNotFoundError as _missing:
    raise MissingExtraError("pyramid", "pyramid") from _missing

from postcommit._build import MAILERS
from postcommit._build import build
from postcommit._build import twin
from postcommit._config.database import parse_database_url
from postcommit._config.options import Given
from postcommit._config.options import checked
from postcommit._config.options import fields_of
from postcommit._config.options import truth
from postcommit._config.sources import from_settings
from postcommit._kinds.queue import check_place
from postcommit._outbox import OutboxMailDelivery
from postcommit.errors import MISSING
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.errors import masked
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import IAMQPMailer
from postcommit.interfaces import IDirectMailDelivery
from postcommit.interfaces import IFailoverMailer
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IOutboxMailDelivery
from postcommit.interfaces import IQueuedMailDelivery
from postcommit.interfaces import IQueuePage
from postcommit.interfaces import IScheduledMailDelivery
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import MailDelivery
from postcommit.interfaces import Moment
from postcommit.interfaces import Sendable
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import is_database_url


log: logging.Logger = logging.getLogger("postcommit.pyramid")

# Keys of the registry: the `MailSettings`, the `_Starter`, and whether the page of
# `postcommit.web.pyramid` is included.
SETTINGS = "postcommit.settings"
PAGE = "postcommit.web"
# Key of the environ of a request: returns a delivery in place of another one. See
# `postcommit.web.debugtoolbar`.
WATCH = "postcommit.watch"
_STARTER = "postcommit.starter"

# Name of the failover mailer; names of further mailers in settings.
_FAILOVER = "failover"
_NAME = re.compile(r"\w[\w-]*")

# The order of an action after those of the application.
_LAST = 1000

# Names of all settings, without their prefix.
_KNOWN = (
    *(name for contract in MAILERS.values() for name in fields_of(contract)),
    *fields_of(IFailoverMailer),
    "failover_mailers",
    *fields_of(IMailQueueProcessor),
    *fields_of(IQueuedMailDelivery),
    *fields_of(IQueuePage),
    *("mailer", "processor", "session"),
)


@implementer(IQueuePage)
class PageSettings:
    """The settings of `postcommit.web.pyramid`. See `IQueuePage`."""

    def __init__(
        self,
        path: str,
        hosts: tuple[str, ...] = IQueuePage["hosts"].default,
        insecure: bool = IQueuePage["insecure"].default,
    ) -> None:
        self.path: str = checked(IQueuePage, "path", path).rstrip("/")
        self.hosts: tuple[str, ...] = checked(IQueuePage, "hosts", hosts)
        self.insecure: bool = checked(IQueuePage, "insecure", insecure)


class Publisher:
    """Publishes events to the subscribers of an application.

    The registry of the application is current, also if no request is served, for
    example in the thread of a processor. There the current request is None.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __call__(self, event: Any) -> None:
        if threadlocals.get()["registry"] is self._registry:
            self._registry.notify(event)
            return
        threadlocals.push({"registry": self._registry, "request": None})
        try:
            self._registry.notify(event)
        finally:
            threadlocals.pop()


def get_mail_delivery(request: Request, name: str = "") -> MailDelivery:
    """Return the delivery that has `name`, bound to ``request.tm`` if that exists.

    Raises `ComponentLookupError` if this delivery is not registered.
    """
    delivery = _bound_delivery(request, name)
    watch = request.environ.get(WATCH)
    return delivery if watch is None else watch(delivery)


def _bound_delivery(request: Request, name: str) -> MailDelivery:
    delivery: MailDelivery = request.registry.getUtility(IMailDelivery, name)
    if isinstance(delivery, SessionDelivery):
        return delivery.of(request)
    if not hasattr(delivery, "bind"):
        return delivery
    manager = getattr(request, "tm", None)
    if manager is None:
        _warn_that_tm_is_missing()
        return delivery
    bound: MailDelivery = delivery.bind(manager)
    return bound


@functools.cache
def _warn_that_tm_is_missing() -> None:
    """Warn once. This may be right, because a middleware may commit."""
    log.warning(
        "The request has no tm: mail is sent when transaction.manager commits;"
        " include pyramid_tm, or commit it"
    )


@implementer(IScheduledMailDelivery)
class SessionDelivery:
    """Inserts mail by the session that a request has as its `attribute`.

    `schema` is that of the queue. `get_mail_delivery` returns an `OutboxMailDelivery`
    for each request.
    """

    def __init__(
        self, attribute: str, schema: str, default_sender: str | None
    ) -> None:
        self._attribute = attribute
        self._schema = schema
        self.default_sender = default_sender

    def of(self, request: Request) -> MailDelivery:
        """Return the delivery by the session of `request`.

        Raises `ConfigurationError` for a request without it.
        """
        session = getattr(request, self._attribute, None)
        if session is None:
            said = f"session={self._attribute}: the request has no such attribute"
            raise ConfigurationError(said)
        return OutboxMailDelivery(
            session,
            schema=self._schema,
            default_sender=self.default_sender,
            transaction_manager=getattr(request, "tm", None),
        )

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
        *,
        not_before: Moment | None = None,
        expires: Moment | None = None,
        bulk: bool = False,
    ) -> NoReturn:
        """Raise RuntimeError: only a request has a session."""
        raise _session_is_missing()

    def cancel(self, message_id: str) -> NoReturn:
        """Raise RuntimeError: only a request has a session."""
        raise _session_is_missing()


def _session_is_missing() -> RuntimeError:
    return RuntimeError(
        "a mail is inserted by the session of a request: use request.mail_delivery"
        " or get_mail_delivery(request)"
    )


# The settings


class MailSettings:
    """The settings that begin with `prefix`, as objects.

    `mailers` has the mailers by name. The default mailer has the name ``""``. Settings
    such as ``mail.backup.hostname`` make a further SMTP mailer, here ``backup``. It has
    these options only. All mailers publish with `notify`.

    `queue_path` is None without a queue. `runs_processor` is true if the application
    drains the queue, and `forbids_processors` if it must not start any processor.

    Raises `OptionError` with the name of a setting that is unknown or can never work.
    """

    def __init__(
        self, settings: Mapping[str, Any], prefix: str, notify: Callable[[Any], Any]
    ) -> None:
        self.prefix = prefix
        further, own = _apart(settings, prefix)
        self._given = from_settings(own, prefix, _KNOWN)
        self.mailers: dict[str, SupportsSend] = self._mailers(further, notify)
        queue_path = self._given.get("queue_path")
        processor = self._given.get("processor")
        runs = None if processor is None else truth(processor.value)
        if processor and runs is None:
            raise processor.refused("must be true or false")
        if processor and runs and not queue_path:
            raise processor.refused(f"needs {prefix}queue_path")
        self.runs_processor: bool = runs is True
        self.forbids_processors: bool = runs is False
        # Options that cannot work are refused now, and not with the first mail.
        direct = self.direct(self.mailers[""])
        self.default_sender: str | None = direct.default_sender
        self.queue_path: str | None = None
        if queue_path is not None:
            self.queue_path = self.queued().queuePath
            self.processor(self.mailers[""])
            self._check_queue(queue_path)
        self.session: SessionDelivery | None = self._session()

    def _session(self) -> SessionDelivery | None:
        """Return the delivery by the session of a request, if there is such a one."""
        given = self._given.get("session")
        if given is None:
            return None
        if not str(given.value).isidentifier():
            raise given.refused("must be the attribute of a request, such as dbsession")
        schema = IOutboxMailDelivery["schema"].default
        if self.queue_path is not None:
            if not is_database_url(self.queue_path):
                reason = "needs a queue in a database, such as postgresql://host/db"
                raise self._given["queue_path"].refused(f"{given.name} {reason}")
            schema = parse_database_url(self.queue_path).schema
        return SessionDelivery(str(given.value), schema, self.default_sender)

    def direct(self, mailer: SupportsSend) -> Any:
        """Return a `DirectMailDelivery` through `mailer`."""
        return build(IDirectMailDelivery, self._given, mailer=mailer)

    def queued(self) -> Any:
        """Return a `QueuedMailDelivery` into the queue."""
        return build(IQueuedMailDelivery, self._given)

    def processor(self, mailer: SupportsSend) -> Any:
        """Return a `QueueProcessor` of the queue."""
        return build(IMailQueueProcessor, self._given, mailer=mailer)

    @property
    def page_option(self) -> Given | None:
        """A setting of the page of `postcommit.web.pyramid`, if there is one."""
        names = fields_of(IQueuePage)
        return next((self._given[name] for name in names if name in self._given), None)

    def page(self) -> PageSettings:
        """Return the settings of the page of `postcommit.web.pyramid`."""
        if "web_path" not in self._given:
            reason = "is needed by postcommit.web.pyramid, such as /mail"
            raise OptionError(f"{self.prefix}web_path", MISSING, reason)
        page: PageSettings = build(IQueuePage, self._given, kind=PageSettings)
        return page

    def _mailers(
        self, further: Mapping[str, dict[str, Given]], notify: Callable[[Any], Any]
    ) -> dict[str, SupportsSend]:
        name = f"{self.prefix}mailer"
        chosen = self._given.get("mailer", Given("", name, "smtp"))
        names = [*MAILERS, *further]
        parts = self._failover_mailers(names)
        if chosen.value not in (*names, _FAILOVER):
            known = ", ".join((*names, _FAILOVER))
            raise chosen.refused(f"must be one of {known}{_hint(chosen.value, names)}")
        if chosen.value == _FAILOVER and not parts:
            name = f"{self.prefix}failover_mailers"
            raise OptionError(name, MISSING, "is needed by mailer=failover")
        needed = {"smtp", chosen.value, *parts}
        if "file" in needed and "folder" not in self._given:
            name = f"{self.prefix}folder"
            raise OptionError(name, MISSING, "is needed by the mailer 'file'")
        is_asked = fields_of(IAMQPMailer).keys() & self._given.keys()
        if ("amqp" in needed or is_asked) and "amqp_url" not in self._given:
            name = f"{self.prefix}amqp_url"
            raise OptionError(name, MISSING, "is needed by the mailer 'amqp'")
        mailers = {
            name: build(contract, self._given, notify=notify)
            for name, contract in MAILERS.items()
            if name in needed or fields_of(contract).keys() & self._given.keys()
        }
        for name, options in further.items():
            mailers[name] = build(ISMTPMailer, options, notify=notify)
            if "hostname" not in options:
                raise self._host_is_missing(name, further)
        self._warn_of_unused({chosen.value, *parts}, mailers, parts)
        if parts:
            found = [mailers[part] for part in parts]
            self._check_twins(found, parts)
            mailers[_FAILOVER] = build(
                IFailoverMailer, self._given, mailers=found, notify=notify
            )
        return {"": mailers[chosen.value], **mailers}

    def _check_twins(self, mailers: list[Any], names: list[str]) -> None:
        for number, mailer in enumerate(mailers):
            other = twin(mailer, mailers[:number])
            if other is not None:
                first = names[mailers.index(other)]
                reason = f"{first!r} and {names[number]!r} are the same relay"
                raise self._given["failover_mailers"].refused(reason)

    def _host_is_missing(
        self, name: str, further: Mapping[str, dict[str, Given]]
    ) -> OptionError:
        """Return the error for the further mailer `name`, which may be misspelt."""
        others = [other for other in further if "hostname" in further[other]]
        near = difflib.get_close_matches(name, others, 1)
        hint = f"; or do you mean {self.prefix}{near[0]}?" if near else ""
        reason = f"is needed by the mailer {name!r}{hint}"
        return OptionError(f"{self.prefix}{name}.host", MISSING, reason)

    def _warn_of_unused(
        self, used: set[str], mailers: Mapping[str, Any], parts: list[str]
    ) -> None:
        """Log a warning for each mailer beside the one that the settings send with.

        It is not an error, because the application may look the mailer up.
        """
        chosen = f"{self.prefix}mailer"
        if parts and _FAILOVER not in used:
            told = "%sfailover_mailers has no effect on mail, unless the application"
            told += " looks up the mailer 'failover'; set %s = failover"
            log.warning(told, self.prefix, chosen)
        for name in mailers.keys() - MAILERS.keys() - used:
            told = "%s%s: no other setting names this mailer, so it sends mail only if"
            told += " the application looks it up; add it to %sfailover_mailers"
            log.warning(told, self.prefix, name, self.prefix)

    def _failover_mailers(self, names: list[str]) -> list[str]:
        """Return the names of the parts of the failover mailer, none without one."""
        given = self._given.get("failover_mailers")
        if given is None:
            for name in fields_of(IFailoverMailer).keys() & self._given.keys():
                reason = f"has no effect without {self.prefix}failover_mailers"
                raise self._given[name].refused(reason)
            return []
        value = given.value
        parts = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise given.refused("must be names of mailers, such as 'smtp sendmail'")
        for number, part in enumerate(parts):
            if part == _FAILOVER:
                raise given.refused(f"{part!r} cannot be a part of itself")
            if part not in names:
                known = ", ".join(names)
                shown = masked("failover_mailers", part)
                reason = f"there is no mailer {shown!r}{_hint(part, names)} ({known})"
                raise given.refused(reason)
            if part in parts[:number]:
                raise given.refused(f"{part!r} is there twice")
        return list(parts)

    def _check_queue(self, queue_path: Given) -> None:
        try:
            check_place(queue_path.value)
        except QueueError as error:
            raise queue_path.refused(error.reason) from error


def _hint(name: object, names: list[str]) -> str:
    """Return the question for one of `names` that is nearly `name`, or nothing."""
    near = difflib.get_close_matches(str(name), names, 1)
    return f"; do you mean {near[0]!r}?" if near else ""


def _apart(
    settings: Mapping[str, Any], prefix: str
) -> tuple[dict[str, dict[str, Given]], dict[str, Any]]:
    """Return the options of the further mailers by their names, and the settings left.

    ``mail.backup.port`` is an option of the mailer ``backup``. The mailers that are
    always known do not have such settings. These are left, and their error says so.
    """
    names: dict[str, None] = {}
    left = dict(settings)
    for whole in settings:
        name, dot, option = whole.removeprefix(prefix).partition(".")
        is_known = name in (*MAILERS, _FAILOVER) or f"{name}_{option}" in _KNOWN
        if whole.startswith(prefix) and dot and _NAME.fullmatch(name) and not is_known:
            names[name] = None
            del left[whole]
    known = fields_of(ISMTPMailer)
    further = {
        name: from_settings(settings, f"{prefix}{name}.", known) for name in names
    }
    return {name: options for name, options in further.items() if options}, left


# Directives


def add_mailer(config: Configurator, mailer: Any, name: str = "") -> None:
    """Register `mailer`. Its events go to the application's subscribers.

    If its `notify` is not `zope.event.notify`, it is not changed.
    """
    if getattr(mailer, "notify", None) is zope.event.notify:
        mailer.notify = Publisher(config.registry)
    _add(config, IMailer, name, lambda: mailer)


def add_mail_delivery(config: Configurator, delivery: Any, name: str = "") -> None:
    """Register `delivery`. Without a name it becomes ``request.mail_delivery``.

    If its `default_sender` is None, a copy with ``mail.default_sender`` is registered.
    A delivery of another kind, without this attribute, is registered without changes,
    and a warning is logged.
    """
    sender = config.registry[SETTINGS].default_sender
    if sender is not None and not hasattr(delivery, "default_sender"):
        told = "%s has no default_sender: the one in the settings is not used for it"
        log.warning(told, type(delivery).__name__)
    elif sender is not None and delivery.default_sender is None:
        delivery = copy.copy(delivery)
        # The option of a delivery of ours cannot be assigned, but it is ours to set.
        object.__setattr__(delivery, "default_sender", sender)
    _add(config, IMailDelivery, name, lambda: delivery)


def add_mail_processor(config: Configurator, processor: Any, name: str = "") -> None:
    """Register `processor`. It starts with the first request of a process.

    If ``mail.processor`` is false, it does not start. If it replaces the processor of
    ``mail.queue_path``, it starts only if ``mail.processor`` is true. Raises
    `ConfigurationError` for an object without a method ``start()``.
    """
    if not callable(getattr(processor, "start", None)):
        shown = masked("processor", processor)
        raise ConfigurationError(
            f"add_mail_processor: {shown!r} must have a method start(), as"
            " QueueProcessor has"
        )
    settings = config.registry[SETTINGS]
    if name or settings.queue_path is None:
        starts = not settings.forbids_processors
    else:
        starts = settings.runs_processor
    _add_processor(config, name, lambda: processor, starts=starts)


def _add_processor(
    config: Configurator, name: str, make: Callable[[], Any], *, starts: bool
) -> None:
    def make_and_note() -> Any:
        config.registry[_STARTER].note(name, starts=starts)
        return make()

    _add(config, IMailQueueProcessor, name, make_and_note)


def _add(
    config: Configurator, contract: Any, name: str, make: Callable[[], Any]
) -> None:
    """Register the object that `make` returns, if no other configuration prevails."""

    def register() -> None:
        config.registry.registerUtility(make(), contract, name)

    discriminator = (contract, name)
    shown = config.introspectable(
        "mail utilities", discriminator, name or "(default)", contract.__name__
    )
    # Mailers come first, because deliveries and processors look them up.
    order = PHASE1_CONFIG if contract is IMailer else PHASE2_CONFIG
    config.action(discriminator, register, order=order, introspectables=(shown,))


# Registration


def includeme(config: Configurator) -> None:
    """Register the utilities that the settings describe.

    Raises `ConfigurationError` with the name of a setting that is unknown or can never
    work.
    """
    given = config.registry.settings
    prefix = given.get("postcommit.prefix", "mail.")
    try:
        settings = MailSettings(given, prefix, Publisher(config.registry))
    except OptionError as error:
        raise ConfigurationError(str(error)) from error
    config.registry[SETTINGS] = settings
    if not config.autocommit:  # otherwise the page may be included later
        check = functools.partial(_check_page, config.registry)
        config.action(None, check, order=_LAST)
    config.registry[_STARTER] = starter = _Starter(config.registry)
    config.add_subscriber(starter, NewRequest)
    for directive in (add_mailer, add_mail_delivery, add_mail_processor):
        config.add_directive(directive.__name__, directive)
    config.add_request_method(get_mail_delivery, "mail_delivery", reify=True)
    for name, mailer in settings.mailers.items():
        config.add_mailer(mailer, name)
    _include_deliveries(config, settings)
    if settings.queue_path is not None:
        _include_processor(config, settings)


def _check_page(registry: Registry) -> None:
    """Raise `ConfigurationError` for settings of a page that is not included."""
    settings = registry[SETTINGS]
    if PAGE not in registry and settings.page_option is not None:
        reason = "has no effect without config.include('postcommit.web.pyramid')"
        raise ConfigurationError(str(settings.page_option.refused(reason)))


def _include_deliveries(config: Configurator, settings: MailSettings) -> None:
    def direct(mailer: str) -> Callable[[], Any]:
        @functools.cache
        def make() -> Any:
            return settings.direct(config.registry.getUtility(IMailer, mailer))

        return make

    makers = dict.fromkeys(("", "direct"), direct(""))
    if "sendmail" in settings.mailers:
        makers["sendmail"] = direct("sendmail")
    if settings.queue_path is not None:
        queued = settings.queued()
        makers[""] = makers["queued"] = lambda: queued
    if settings.session is not None:
        makers[""] = makers["outbox"] = lambda: settings.session
    for name, make in makers.items():
        _add(config, IMailDelivery, name, make)


def _include_processor(config: Configurator, settings: MailSettings) -> None:
    def make() -> Any:
        return settings.processor(config.registry.getUtility(IMailer))

    _add_processor(config, "", make, starts=settings.runs_processor)


class _Starter:
    """Starts processors with the first request that a process serves.

    A server that loads the application and then forks would lose threads that were
    started before. This way each process that serves requests runs processors, and
    their parent does not. At exit, a `QueueProcessor` stops itself.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        # Name of each processor: id of the process in which it was started, or 0.
        self._processes: dict[str, int] = {}

    def note(self, name: str, *, starts: bool) -> None:
        """Remember whether to start the processor that has `name`."""
        self._processes.pop(name, None)
        if starts:
            self._processes[name] = 0

    def __call__(self, event: NewRequest) -> None:
        """Start the processors that do not run in this process."""
        current = os.getpid()
        for name, process in self._processes.items():
            if process != current:
                try:
                    self._registry.getUtility(IMailQueueProcessor, name).start()
                except Exception:
                    # It may succeed later, and the request does not need it.
                    log.exception(
                        "The processor %r cannot start; the next request tries again",
                        name or "(default)",
                    )
                else:
                    self._processes[name] = current
