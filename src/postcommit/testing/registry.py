"""Replaces the mail utilities of a registry by others that only record."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from typing import Any

import zope.event
from zope.component import getGlobalSiteManager
from zope.interface import implementer
from zope.interface.interfaces import IComponents

from postcommit._delivery.direct import DirectMailDelivery
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IScheduledMailDelivery
from postcommit.interfaces import MailQueueProcessor
from postcommit.interfaces import Tally
from postcommit.testing.delivery import RecordingDelivery
from postcommit.testing.mailer import RecordingMailer
from postcommit.testing.outbox import Outbox


# Names of the deliveries for an application without a delivery: those of Pyramid and
# of ZCML.
_NAMES = ("", "Mail")

_running = ExitStack()


@contextmanager
def recording(registry: IComponents | None = None) -> Iterator[Outbox]:
    """Replace the mail utilities of `registry`, and yield the outbox.

    All utilities are restored at the end. By default the registry is the global
    registry. Each delivery and each mailer in it is replaced, so that mail arrives in
    the outbox when its transaction commits. A delivery keeps its `default_sender`,
    `transaction_manager` and `check_relay`. Processors are replaced by objects that do
    nothing. Without any delivery, two are registered, one named "Mail" and the other
    without a name. Events go to the registry's ``notify``, or to `zope.event.notify`.
    The `mailer` of the outbox receives the mail. For example, let it refuse a
    recipient.
    """
    components: Any = getGlobalSiteManager() if registry is None else registry
    mailer = RecordingMailer(notify=getattr(components, "notify", zope.event.notify))
    replacements = _Deliveries(mailer)
    with ExitStack() as replaced:
        are_deliveries = []
        for old in list(components.registeredUtilities()):
            # The object decides, because it may be registered for the interface of an
            # older library.
            are_deliveries.append(IMailDelivery.providedBy(old.component))
            if are_deliveries[-1]:
                _replace(components, old, replacements.of(old.component), replaced)
            elif IMailer.providedBy(old.component):
                _replace(components, old, mailer, replaced)
            elif IMailQueueProcessor.providedBy(old.component):
                _replace(components, old, _Idle(old.component), replaced)
        scheduled = RecordingDelivery(mailer)
        for name in () if any(are_deliveries) else _NAMES:
            components.registerUtility(scheduled, IMailDelivery, name, event=False)
            replaced.callback(
                components.unregisterUtility, scheduled, IMailDelivery, name
            )
        yield mailer.outbox


class _Deliveries:
    """The deliveries that replace others, each for all with the same options."""

    def __init__(self, mailer: RecordingMailer) -> None:
        self._mailer = mailer
        self._made: dict[tuple[object, ...], DirectMailDelivery] = {}

    def of(self, old: Any) -> DirectMailDelivery:
        """Return the delivery that replaces `old`, which may be of another library."""
        kind: type[DirectMailDelivery] = DirectMailDelivery
        if IScheduledMailDelivery.providedBy(old):
            kind = RecordingDelivery
        sender = getattr(old, "default_sender", None)
        manager = getattr(old, "transaction_manager", None)
        options: dict[str, Any] = {
            "default_sender": sender if isinstance(sender, str) else None,
            "transaction_manager": manager if hasattr(manager, "get") else None,
            "check_relay": getattr(old, "check_relay", False) is True,
        }
        key = kind, *map(id, options.values())
        if key not in self._made:
            self._made[key] = kind(self._mailer, **options)
        return self._made[key]


def _replace(components: Any, old: Any, new: Any, replaced: ExitStack) -> None:
    """Register `new` in the place of `old`, until `replaced` is closed."""
    components.registerUtility(new, old.provided, old.name, event=False)
    replaced.callback(
        components.registerUtility,
        old.component,
        old.provided,
        old.name,
        old.info,
        event=False,
    )


@implementer(IMailQueueProcessor)
class _Idle:
    """A processor that sends nothing, with the options of the replaced object."""

    is_running = False

    def __init__(self, processor: MailQueueProcessor) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def run(self) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self, timeout: float | None = None) -> bool:
        return True

    def flush(self) -> Tally:
        return Tally()


def setUp(test: Any = None, *, registry: IComponents | None = None) -> Outbox:
    """Begin `recording`, and return the outbox. `tearDown` ends it.

    In a doctest, which passes itself, the outbox is the name ``mail_outbox``.
    """
    outbox = _running.enter_context(recording(registry))
    if hasattr(test, "globs"):
        test.globs["mail_outbox"] = outbox
    return outbox


def tearDown(test: Any = None) -> None:
    """End every `recording` that `setUp` has begun."""
    _running.close()
