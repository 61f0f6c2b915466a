"""For Pyramid: ``config.include("postcommit.pyramid")``.

The settings begin with ``mail.``, or with what the setting ``postcommit.prefix``
has. What `includeme` registers are utilities of the application's registry:

=====================  ================  =========================================
interface              name              which
=====================  ================  =========================================
`IMailer`              none              the one that ``mail.mailer`` names
`IMailer`              its setting       ``smtp``; ``sendmail`` and ``file`` where
                                         there are settings for them
`IMailDelivery`        none              queued where there is a queue, or direct
`IMailDelivery`        ``direct``        through the mailer without a name
`IMailDelivery`        ``queued``        where there is a ``mail.queue_path``
`IMailDelivery`        ``sendmail``      direct, through the mailer of that name
`IMailQueueProcessor`  none              where there is a ``mail.queue_path``
=====================  ================  =========================================

``config.add_mailer``, ``config.add_mail_delivery`` and
``config.add_mail_processor`` take their places, or add to them.
"""
from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import zope.event
from pyramid.config import Configurator
from pyramid.events import NewRequest
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import PHASE1_CONFIG
from pyramid.interfaces import PHASE2_CONFIG
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.threadlocal import manager as threadlocals

from postcommit.delivery import DirectMailDelivery
from postcommit.delivery import QueuedMailDelivery
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.mailsettings import MailSettings


log = logging.getLogger(__name__)


class Publisher:
    """Publishes events to the subscribers of an application.

    Where no request is being served, as in a processor's threads, they find the
    application's registry all the same, and no request.
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


def get_mail_delivery(request: Request, name: str = "") -> Any:
    """Return the delivery that has `name`, bound to ``request.tm`` if there is one.

    Raises `ComponentLookupError` where there is none.
    """
    delivery = request.registry.getUtility(IMailDelivery, name)
    if not hasattr(delivery, "bind"):
        return delivery
    manager = getattr(request, "tm", None)
    if manager is None:
        _tell_that_nobody_commits()
        return delivery
    return delivery.bind(manager)


@functools.cache
def _tell_that_nobody_commits() -> None:
    """Once: there may be somebody, such as a middleware."""
    log.warning(
        "The request has no tm: mail leaves when transaction.manager commits;"
        " include pyramid_tm, or see to that"
    )


# Directives


def add_mailer(config: Configurator, mailer: Any, name: str = "") -> None:
    """Register `mailer`; events that it would publish to all go to the application."""
    if getattr(mailer, "notify", None) is zope.event.notify:
        mailer.notify = Publisher(config.registry)
    _add(config, IMailer, name, lambda: mailer)


def add_mail_delivery(config: Configurator, delivery: Any, name: str = "") -> None:
    """Register `delivery`; without a name it becomes ``request.mail_delivery``."""
    _add(config, IMailDelivery, name, lambda: delivery)


def add_mail_processor(config: Configurator, processor: Any, name: str = "") -> None:
    """Register `processor`; that without a name is what ``mail.processor`` starts."""
    _add(config, IMailQueueProcessor, name, lambda: processor)


def _add(
    config: Configurator, contract: Any, name: str, make: Callable[[], Any]
) -> None:
    def register() -> None:
        config.registry.registerUtility(make(), contract, name)

    discriminator = (contract, name)
    shown = config.introspectable(
        "mail utilities", discriminator, name or "(default)", contract.__name__
    )
    # Deliveries and processors ask for the mailer that has prevailed.
    order = PHASE1_CONFIG if contract is IMailer else PHASE2_CONFIG
    config.action(discriminator, register, order=order, introspectables=(shown,))


# The settings


def includeme(config: Configurator) -> None:
    """Register what the settings say.

    Raises `ConfigurationError`, which names the setting, for one that is
    unknown or can never work.
    """
    for directive in (add_mailer, add_mail_delivery, add_mail_processor):
        config.add_directive(directive.__name__, directive)
    config.add_request_method(get_mail_delivery, "mail_delivery", reify=True)
    given = config.registry.settings
    prefix = given.get("postcommit.prefix", "mail.")
    try:
        settings = MailSettings(given, prefix, Publisher(config.registry))
    except OptionError as error:
        raise ConfigurationError(str(error)) from error
    for name, mailer in settings.mailers.items():
        config.add_mailer(mailer, name)
    _include_deliveries(config, settings)
    if settings.queue_path is not None:
        _include_queue(config, settings)


def _include_deliveries(config: Configurator, settings: MailSettings) -> None:
    def direct(mailer: str) -> Callable[[], Any]:
        @functools.cache
        def make() -> Any:
            found = config.registry.getUtility(IMailer, mailer)
            return settings.named(DirectMailDelivery(found))

        return make

    makers = dict.fromkeys(("", "direct"), direct(""))
    if "sendmail" in settings.mailers:
        makers["sendmail"] = direct("sendmail")
    if settings.queue_path is not None:
        queued = settings.named(QueuedMailDelivery(settings.queue_path))
        makers[""] = makers["queued"] = lambda: queued
    for name, make in makers.items():
        _add(config, IMailDelivery, name, make)


def _include_queue(config: Configurator, settings: MailSettings) -> None:
    def make() -> Any:
        return settings.processor(config.registry.getUtility(IMailer))

    _add(config, IMailQueueProcessor, "", make)
    if settings.runs_processor:
        config.add_subscriber(_starter(config.registry), NewRequest)


def _starter(registry: Registry) -> Callable[[NewRequest], None]:
    """Return a subscriber that starts the processor with the first request.

    Not before: a server that preloads the application forks afterwards, and
    threads do not survive that. So each process that serves requests has a
    processor, and the one that they were forked from has none.
    """
    process = 0

    def start(event: NewRequest) -> None:
        nonlocal process
        if process != os.getpid():
            try:
                registry.getUtility(IMailQueueProcessor).start()
            except QueueError:
                log.exception("The queue is not sent; the next request tries again")
            else:
                process = os.getpid()

    return start
