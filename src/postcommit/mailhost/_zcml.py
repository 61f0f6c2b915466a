"""The directive ``mail:mailHost``."""
from __future__ import annotations

from typing import Any

from zope.configuration.fields import Bool
from zope.interface import Interface

from postcommit.interfaces import _
from postcommit.mailhost import replace


class IMailHostDirective(Interface):
    """Lets mail hosts send through postcommit."""

    immediate = Bool(
        title=_("Immediate"),
        description=_(
            "Whether mail that is to be sent immediately is sent before the transaction"
            " commits."
        ),
        default=True,
        required=False,
    )


def mailHost(_context: Any, immediate: bool = True) -> None:
    """Let mail hosts send through postcommit. See `IMailHostDirective`."""
    _context.action(
        discriminator=("mailHost", ""), callable=replace, kw={"immediate": immediate}
    )
