"""The vocabulary of delivery names."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from zope.component import getGlobalSiteManager
from zope.component import provideUtility
from zope.component.testing import setUp
from zope.component.testing import tearDown
from zope.interface.interfaces import IComponentLookup
from zope.interface.registry import Components
from zope.schema.interfaces import IVocabularyFactory

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import SMTPMailer
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.vocabulary import MailDeliveryNames


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    setUp()
    yield
    tearDown()


def test_it_provides_a_vocabulary_factory() -> None:
    assert IVocabularyFactory.providedBy(MailDeliveryNames)


def test_it_has_the_names_of_the_registered_deliveries_in_order() -> None:
    provideUtility(QueuedMailDelivery("queue"), name="queued")
    provideUtility(DirectMailDelivery(SMTPMailer()), name="direct")
    provideUtility(SMTPMailer(), IMailer, name="no delivery")
    assert [term.value for term in MailDeliveryNames()] == ["direct", "queued"]


class Located:
    """A context that tells where the look-up begins."""

    def __init__(self, site: Components) -> None:
        self.site = site

    def __conform__(self, contract: object) -> object:
        return self.site if contract is IComponentLookup else None


def test_a_context_in_a_site_sees_what_that_has_too() -> None:
    site = Components("site", (getGlobalSiteManager(),))
    provideUtility(QueuedMailDelivery("queue"), name="global")
    site.registerUtility(QueuedMailDelivery("queue"), IMailDelivery, "local")
    names = [term.value for term in MailDeliveryNames(Located(site))]
    assert names == ["global", "local"]


@pytest.mark.parametrize("context", [object(), {}, "a form's data"])
def test_a_context_in_no_site_sees_the_current_one(context: object) -> None:
    provideUtility(QueuedMailDelivery("queue"), name="queued")
    assert [term.value for term in MailDeliveryNames(context)] == ["queued"]


def test_without_deliveries_it_is_empty() -> None:
    assert list(MailDeliveryNames(None)) == []
