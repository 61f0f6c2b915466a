"""A vocabulary of the mail deliveries that an application has registered."""
from __future__ import annotations

from typing import Any

from zope.component import getUtilitiesFor
from zope.interface import provider
from zope.interface.interfaces import IComponentLookup
from zope.schema.interfaces import IVocabularyFactory
from zope.schema.vocabulary import SimpleVocabulary

from postcommit.interfaces import IMailDelivery


@provider(IVocabularyFactory)
def MailDeliveryNames(context: Any = None) -> SimpleVocabulary:
    """Return the names of the `IMailDelivery` utilities, sorted.

    To be registered as the utility "Mail Delivery Names". The look-up begins at the
    site that `context` is in. If it is not in a site, as that of a form, the look-up
    begins at the current site.
    """
    if IComponentLookup(context, None) is None:
        context = None
    names = {name for name, _ in getUtilitiesFor(IMailDelivery, context)}
    vocabulary: SimpleVocabulary = SimpleVocabulary.fromValues(sorted(names))
    return vocabulary
