"""Applications test mail that waits, expires or is called off, without a queue."""
from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.request import Request
from zope.interface.registry import Components
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit.errors import OptionError
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IScheduledMailDelivery
from postcommit.pyramid import get_mail_delivery
from postcommit.testing import Outbox
from postcommit.testing import RecordingMailer
from postcommit.testing import recording
from postcommit.testing.delivery import RecordingDelivery
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import PartnerFailed
from tests.support.transactions import failing
from tests.support.transactions import mail


ANN = "ann@example.org"
HOUR = timedelta(hours=1)
MESSAGE = """\
Message-Id: <1@x.org>
Date: Mon, 30 Nov 2026 08:00:00 +0000
From: shop@example.org
To: ann@example.org

Hello.
"""


@pytest.fixture
def components() -> Components:
    return Components()


@pytest.fixture
def outbox(components: Components) -> Iterator[Outbox]:
    with recording(components) as outbox:
        yield outbox
    transaction.abort()


@pytest.fixture
def delivery(components: Components, outbox: Outbox) -> Any:
    return components.getUtility(IMailDelivery)


def send(delivery: Any, number: int = 1, **terms: Any) -> str:
    message_id: str = delivery.send("", ANN, mail(f"{number}@x.org"), **terms)
    return message_id


def test_the_contract(delivery: Any) -> None:
    assert verifyClass(IScheduledMailDelivery, RecordingDelivery)
    assert verifyObject(IScheduledMailDelivery, delivery)


def test_the_outbox_has_the_terms(delivery: Any, outbox: Outbox) -> None:
    when = datetime(2030, 1, 1, 8, 0, 0, 250000, tzinfo=UTC)
    with transaction.manager:
        send(delivery, not_before=when, expires=when + HOUR, bulk=True)
        send(delivery)
    first, second = outbox
    assert (first.not_before, first.expires, first.bulk) == (when, when + HOUR, True)
    assert (second.not_before, second.expires, second.bulk) == (None, None, False)


def test_terms_that_can_never_work_are_refused(delivery: Any) -> None:
    with pytest.raises(OptionError, match="no time zone"):
        send(delivery, not_before=datetime(2030, 1, 1))


@pytest.mark.parametrize("terms", [{"not_before": HOUR}, {"bulk": True}])
def test_what_waits_is_called_off(
    delivery: Any, outbox: Outbox, terms: dict[str, Any]
) -> None:
    with transaction.manager:
        name, other = send(delivery, **terms), send(delivery, 2, **terms)
    with transaction.manager:
        assert delivery.cancel(f"<{name}>")
        assert len(outbox) == 2
    assert [each.message_id for each in outbox] == [other]
    assert not delivery.cancel(name)


def test_what_was_sent_is_not_called_off(delivery: Any, outbox: Outbox) -> None:
    with transaction.manager:
        name = send(delivery)
    assert not delivery.cancel(name)
    assert not delivery.cancel("2@x.org")
    with pytest.raises(OptionError):
        delivery.cancel("")


def test_what_the_same_transaction_sends_is_called_off(
    delivery: Any, outbox: Outbox
) -> None:
    with transaction.manager:
        assert delivery.cancel(send(delivery))
        send(delivery, 2)
    assert [each.message_id for each in outbox] == ["2@x.org"]


def test_an_abort_and_a_rollback_take_it_back(delivery: Any, outbox: Outbox) -> None:
    with transaction.manager:
        name = send(delivery, not_before=HOUR)
    assert delivery.cancel(name)
    transaction.abort()
    savepoint = transaction.savepoint()
    assert delivery.cancel(name)
    savepoint.rollback()
    transaction.get().join(failing("tpc_vote", BEFORE))
    assert delivery.cancel(name)
    with pytest.raises(PartnerFailed):
        transaction.commit()
    transaction.abort()
    assert len(outbox) == 1


def test_what_is_cleared_meanwhile_is_no_obstacle(
    delivery: Any, outbox: Outbox
) -> None:
    with transaction.manager:
        name = send(delivery, bulk=True)
    with transaction.manager:
        assert delivery.cancel(name)
        outbox.clear()
    assert len(outbox) == 0


def test_an_interrupted_commit_keeps_the_outbox(delivery: Any, outbox: Outbox) -> None:
    with transaction.manager:
        name = send(delivery, bulk=True)
    transaction.get().join(Partner(BEFORE))
    assert delivery.cancel(name)
    [resource] = (
        r for r in transaction.get()._resources if not isinstance(r, Partner)
    )
    resource._batch.abandon(resource.items)
    assert len(outbox) == 1


def test_a_delivery_is_replaced_by_one_of_its_kind(
    components: Components, tmp_path: Any
) -> None:
    """So a test fails if production would."""
    queued = QueuedMailDelivery(str(tmp_path / "queue"))
    components.registerUtility(queued, IMailDelivery, "queued")
    direct = DirectMailDelivery(RecordingMailer())
    components.registerUtility(direct, IMailDelivery, "direct")
    with recording(components) as outbox:
        with transaction.manager:
            send(components.getUtility(IMailDelivery, "queued"), bulk=True)
        with pytest.raises(OptionError, match="bulk"):
            send(components.getUtility(IMailDelivery, "direct"), bulk=True)
        assert len(outbox) == 1
    assert not (tmp_path / "queue").exists()


def test_a_direct_delivery_refuses_terms() -> None:
    mailer = RecordingMailer()
    delivery: Any = DirectMailDelivery(mailer)
    for name, value in [
        *(("not_before", HOUR), ("not_before", "soon"), ("not_before", False)),
        *(("expires", HOUR), ("expires", 0), ("bulk", True), ("bulk", None)),
    ]:
        with pytest.raises(OptionError, match="use a QueuedMailDelivery") as caught:
            send(delivery, **{name: value})
        assert (caught.value.name, caught.value.value) == (name, value)
    assert not IScheduledMailDelivery.providedBy(delivery)
    with transaction.manager:
        send(delivery, not_before=None, expires=None, bulk=False)
    assert len(mailer.outbox) == 1


@pytest.mark.parametrize("is_recorded", [True, False])
def test_pyramid_passes_terms_on(tmp_path: Any, is_recorded: bool) -> None:
    queue = tmp_path / "queue"
    settings = {"mail.host": "relay.example.org", "mail.queue_path": str(queue)}
    config = Configurator(settings=settings)
    config.include("postcommit.pyramid")
    config.commit()

    def use() -> None:
        request = Request.blank("/")
        request.registry = config.registry
        request.tm = transaction.manager
        delivery = get_mail_delivery(request)
        with transaction.manager:
            name = send(delivery, not_before=HOUR)
            send(delivery, 2, not_before=HOUR)
        with transaction.manager:
            assert delivery.cancel(name)

    if is_recorded:
        with recording(config.registry) as outbox:
            use()
            assert [each.message_id for each in outbox] == ["2@x.org"]
    else:
        use()
        assert len(list((queue / ".Later/new").iterdir())) == 1


def test_a_mail_is_called_off_once_in_a_transaction() -> None:
    mailer = RecordingMailer()
    delivery = RecordingDelivery(mailer)
    with transaction.manager:
        name = delivery.send(None, None, MESSAGE, bulk=True)
    assert delivery.cancel(name)
    assert not delivery.cancel(name), "as with a queue"
    transaction.abort()
    assert delivery.cancel(name)
    transaction.commit()
    assert list(mailer.outbox) == []


def test_the_same_message_is_sent_again_after_it_was_called_off() -> None:
    mailer = RecordingMailer()
    delivery = RecordingDelivery(mailer)
    with transaction.manager:
        name = delivery.send(None, None, MESSAGE, bulk=True)
        assert delivery.cancel(name)
        delivery.send(None, None, MESSAGE, bulk=True)
    assert [mail.message_id for mail in mailer.outbox] == [name]
