"""The vocabulary of delivery names."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from zope.component import provideUtility
from zope.component.testing import setUp
from zope.component.testing import tearDown
from zope.schema.interfaces import IVocabularyFactory

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import SMTPMailer
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


def test_without_deliveries_it_is_empty() -> None:
    assert list(MailDeliveryNames(None)) == []
