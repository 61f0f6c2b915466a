"""Deliveries and mailers of a registry, replaced by ones that only record."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from typing import Any

import zope.event
from zope.component import getGlobalSiteManager
from zope.interface.interfaces import IComponents

from postcommit.delivery import DirectMailDelivery
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.testing.mailer import RecordingMailer
from postcommit.testing.outbox import Outbox


# Under which names there are deliveries if the application has none: as
# Pyramid and as ZCML have them.
_NAMES = ("", "Mail")

_running = ExitStack()


@contextmanager
def recording(registry: IComponents | None = None) -> Iterator[Outbox]:
    """Have `registry` send nothing; give the outbox, and put all back at the end.

    Each utility of the registry, the global one by default, that is a delivery
    or a mailer is replaced: mail arrives in the outbox when its transaction
    commits. If there is no delivery, there is one named "Mail" and one without
    a name. Events go to the registry's ``notify``, or to `zope.event.notify`.
    """
    components: Any = getGlobalSiteManager() if registry is None else registry
    mailer = RecordingMailer(notify=getattr(components, "notify", zope.event.notify))
    delivery = DirectMailDelivery(mailer)
    with ExitStack() as replaced:
        are_deliveries = [
            _replace(components, old, delivery, mailer, replaced)
            for old in list(components.registeredUtilities())
        ]
        for name in () if any(are_deliveries) else _NAMES:
            components.registerUtility(delivery, IMailDelivery, name, event=False)
            replaced.callback(
                components.unregisterUtility, delivery, IMailDelivery, name
            )
        yield mailer.outbox


def _replace(
    components: Any,
    old: Any,
    delivery: DirectMailDelivery,
    mailer: RecordingMailer,
    replaced: ExitStack,
) -> bool:
    """Replace what `old` registers, for a while; tell if it is a delivery.

    It is asked for what it is, not what it is registered for: there may be
    older interfaces.
    """
    is_delivery = IMailDelivery.providedBy(old.component)
    if is_delivery or IMailer.providedBy(old.component):
        new = delivery if is_delivery else mailer
        components.registerUtility(new, old.provided, old.name, event=False)
        replaced.callback(
            components.registerUtility,
            old.component,
            old.provided,
            old.name,
            old.info,
            event=False,
        )
    return is_delivery


def setUp(test: Any = None, *, registry: IComponents | None = None) -> Outbox:
    """Begin `recording`, until `tearDown`; return the outbox.

    In a doctest, which passes itself, the outbox is the name ``mail_outbox``.
    """
    outbox = _running.enter_context(recording(registry))
    if hasattr(test, "globs"):
        test.globs["mail_outbox"] = outbox
    return outbox


def tearDown(test: Any = None) -> None:
    """End all that `setUp` has begun."""
    _running.close()
