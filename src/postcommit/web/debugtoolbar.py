"""For pyramid_debugtoolbar: a panel with the mail of each request.

``debugtoolbar.includes = postcommit.web.debugtoolbar`` adds it to all other panels, and
``debugtoolbar.extra_panels = postcommit.web.debugtoolbar.MailPanel`` to those that
``debugtoolbar.panels`` names. It shows the mail that the request has sent by
``request.mail_delivery`` or `postcommit.pyramid.get_mail_delivery`.
"""
from __future__ import annotations

import os
from typing import TYPE_CHECKING
from typing import Any

from chameleon import PageTemplateFile
from pyramid.config import Configurator
from pyramid.request import Request
from zope.interface import directlyProvides
from zope.interface import providedBy

from postcommit._log import printable
from postcommit._mail.message import compose
from postcommit._mail.readable import field_of_header
from postcommit._mail.readable import header_of
from postcommit._queue.values import size
from postcommit.errors import PostcommitError
from postcommit.interfaces import Address
from postcommit.interfaces import Addresses
from postcommit.interfaces import MailDelivery
from postcommit.interfaces import Sendable
from postcommit.pyramid import WATCH
from postcommit.web._message import shown


if TYPE_CHECKING:

    class DebugPanel:
        """What a type checker has to know of the toolbar, which has no types."""

else:
    from pyramid_debugtoolbar.panels import DebugPanel


# Maximum number of mails that a panel keeps, and of characters of each text. The
# toolbar has the panels of the last hundred requests.
_MOST_MAILS = 50
_LONGEST_TEXT = 10_000

_template = PageTemplateFile(
    os.path.join(os.path.dirname(__file__), "templates", "panel.pt")
)


def includeme(config: Configurator) -> None:
    """Add the panel. ``debugtoolbar.includes`` calls it for the toolbar."""
    config.add_debugtoolbar_panel(MailPanel)


class MailPanel(DebugPanel):
    """The mail that one request has sent, with what became of its transaction."""

    name = "mail"
    title = nav_title = "Mail"

    def __init__(self, request: Request) -> None:
        self.data: dict[str, Any] = {"mails": [], "left_out": 0}
        request.environ[WATCH] = self._watched

    @property
    def has_content(self) -> bool:
        """Whether the request has sent mail."""
        return bool(self.data["mails"])

    @property
    def nav_subtitle(self) -> str:
        """The number of mails, beside the title."""
        count = len(self.data["mails"]) + self.data["left_out"]
        return f"{count}" if count else ""

    def render_content(self, request: Request) -> str:
        """Return the HTML of the panel."""
        return str(_template(**self.data))

    def _watched(self, delivery: MailDelivery) -> Any:
        return _Watched(delivery, self)

    def note(self, delivery: Any, message_id: str, args: tuple[Any, Any, Any]) -> None:
        """Remember a mail that `delivery` has taken, with the arguments of `send`."""
        if len(self.data["mails"]) >= _MOST_MAILS:
            self.data["left_out"] += 1
            return
        mail = {
            "message_id": message_id,
            "delivery": repr(delivery),
            "outcome": "not decided yet",
            **_content(delivery, args),
        }
        self.data["mails"].append(mail)

        def committed(has_succeeded: bool) -> None:
            mail["outcome"] = "committed" if has_succeeded else "failed, not sent"

        def aborted() -> None:
            mail["outcome"] = "aborted, not sent"

        manager = getattr(delivery, "transaction_manager", None)
        if manager is not None:
            manager.get().addAfterCommitHook(committed)
            manager.get().addAfterAbortHook(aborted)


class _Watched:
    """A delivery whose mail a panel notes. It is the delivery in all other respects."""

    def __init__(self, delivery: MailDelivery, panel: MailPanel) -> None:
        self._delivery = delivery
        self._panel = panel
        directlyProvides(self, providedBy(delivery))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)

    def send(
        self,
        fromaddr: Address | None,
        toaddrs: Addresses | None,
        message: Sendable,
        **options: Any,
    ) -> str:
        """Send `message` by the delivery, and note it."""
        if toaddrs is not None and not isinstance(toaddrs, str | bytes):
            toaddrs = list(toaddrs)  # it is read twice
        message_id = self._delivery.send(fromaddr, toaddrs, message, **options)
        self._panel.note(self._delivery, message_id, (fromaddr, toaddrs, message))
        return message_id


def _content(delivery: Any, args: tuple[Any, Any, Any]) -> dict[str, Any]:
    """Return what the panel shows of a message."""
    try:
        composed = compose(*args, getattr(delivery, "default_sender", None))
    except PostcommitError as error:  # a delivery of another kind may take more
        about = ("subject", "sender", "recipients", "size")
        return {**dict.fromkeys(about, ""), "text": printable(str(error))}
    message = shown(composed.message)
    return {
        "subject": printable(field_of_header(header_of(composed.header), "Subject")),
        "sender": composed.sender or "<>",
        "recipients": ", ".join(composed.recipients),
        "size": size(len(composed.message)),
        "text": (message.text or message.source_text)[:_LONGEST_TEXT],
    }
