"""A vocabulary of the mail deliveries that an application has registered."""
from __future__ import annotations

from typing import Any

from zope.component import getUtilitiesFor
from zope.interface import provider
from zope.schema.interfaces import IVocabularyFactory
from zope.schema.vocabulary import SimpleVocabulary

from postcommit.interfaces import IMailDelivery


@provider(IVocabularyFactory)
def MailDeliveryNames(context: Any = None) -> SimpleVocabulary:
    """Return the names of the `IMailDelivery` utilities, sorted.

    To be registered as the utility "Mail Delivery Names". `context` is where
    the look-up begins.
    """
    names = {name for name, _ in getUtilitiesFor(IMailDelivery, context)}
    vocabulary: SimpleVocabulary = SimpleVocabulary.fromValues(sorted(names))
    return vocabulary
