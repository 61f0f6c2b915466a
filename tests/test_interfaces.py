"""The contracts: every class keeps its own, and the original names stay."""
from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
from sqlalchemy.orm import Session
from zope.interface import Interface
from zope.interface import implementedBy
from zope.interface.interface import InterfaceClass
from zope.interface.interface import Method
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject
from zope.schema import getFieldsInOrder
from zope.schema.interfaces import IField

import postcommit
from postcommit import interfaces
from postcommit._amqp.mailer import AMQPMailer
from postcommit._amqp.receiver import QueueReceiver
from postcommit._cli.demo.shop import OrderBook
from postcommit._cli.progress import WatchedMailer
from postcommit._delivery.direct import DirectMailDelivery
from postcommit._delivery.queued import QueuedMailDelivery
from postcommit._drain.schedule import Schedule
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._maildir.consumer import Consumer
from postcommit._maildir.consumer import Unopened
from postcommit._maildir.item import IChanges
from postcommit._maildir.item import IOperators
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.mending import MaildirChanges
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.moving import IMoving
from postcommit._maildir.moving import MaildirMoving
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store
from postcommit._mailers.failover import FailoverMailer
from postcommit._mailers.file import FileMailer
from postcommit._mailers.foreign import pipeline_of
from postcommit._mailers.sendmail import SendmailMailer
from postcommit._outbox import OutboxMailDelivery
from postcommit._processor import QueueProcessor
from postcommit._queue.queue import MailQueue
from postcommit._smtp.mailer import SMTPMailer
from postcommit._transaction.datamanager import DataManager
from postcommit._transaction.datamanager import Savepoint
from postcommit._transaction.event import MailDeferredEvent
from postcommit._transaction.event import MailErrorEvent
from postcommit._transaction.event import MailRejectedEvent
from postcommit._transaction.event import MailSentEvent
from postcommit._transaction.event import MailUncertainEvent
from postcommit._zcml import Option
from postcommit.compat import repoze_sendmail
from postcommit.compat import zope_sendmail
from postcommit.pyramid import PageSettings
from postcommit.pyramid import SessionDelivery
from postcommit.testing import RecordingMailer
from postcommit.testing.delivery import RecordingDelivery
from postcommit.testing.registry import _Idle
from postcommit.web.pyramid import _AsItIs
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipelineMailer


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(postcommit.__path__, "postcommit."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def implementers() -> Iterator[Any]:
    for module in modules():
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ != module.__name__ or inspect.isabstract(kind):
                continue
            for contract in implementedBy(kind):
                # Which each tuple has, and is no promise of ours.
                if not contract.__module__.startswith("zope.interface.common."):
                    yield pytest.param(contract, kind, id=f"{kind.__name__}")


SCHEMAS = [
    contract
    for _, contract in sorted(vars(interfaces).items())
    if isinstance(contract, InterfaceClass) and contract is not Interface
]


IMPLEMENTERS = list(implementers())


@pytest.mark.parametrize(("contract", "kind"), IMPLEMENTERS)
def test_each_class_keeps_its_contract(contract: Any, kind: type) -> None:
    if kind is not Consumer:  # each object has the methods of its wakeup and its note
        assert verifyClass(contract, kind)


def test_each_object_keeps_its_contract(tmp_path: Path) -> None:
    queue = str(tmp_path / "queue")
    reply = Reply(250)
    mailer = SMTPMailer()
    broker = AMQPMailer("amqps://mq.example.org")
    delivery = QueuedMailDelivery(queue)
    store = Store(queue)
    manager = delivery.transaction_manager
    data_manager = DataManager.of(delivery, store.batch, manager)
    writer = store.maildir.newMessage()
    writer.abort()
    with transaction.manager:
        delivery.send("a@x.org", "b@x.org", b"Subject: x\n\n")
    consumer = store.consumer(Schedule(60, 4000, 86400, 3))
    [claim] = consumer.take(1)
    claim.read()
    checked = set()
    for contract, candidate in [
        (interfaces.IReply, reply),
        (interfaces.IOutcome, Outcome("a@x.org", interfaces.Status.SENT, reply)),
        (interfaces.IDeliveryReport, DeliveryReport("1@x.org", ())),
        (interfaces.ISMTPMailer, mailer),
        (interfaces.IPipelineMailer, mailer),
        (interfaces.IMailer, mailer),
        (interfaces.IRelayCheck, mailer),
        (interfaces.IMailer, SendmailMailer()),
        (interfaces.ISendmailMailer, SendmailMailer()),
        (interfaces.IFileMailer, FileMailer(str(tmp_path / "mail"))),
        (interfaces.IFailoverMailer, FailoverMailer([mailer])),
        (interfaces.IQueuePage, PageSettings("/mail")),
        (interfaces.IPipeline, FailoverMailer([mailer]).pipeline()),
        (interfaces.IPipelineMailer, RecordingMailer()),
        (interfaces.IPipelineMailer, WatchedMailer(mailer, print)),
        (interfaces.IPipeline, mailer.pipeline()),
        (interfaces.IPipeline, RecordingMailer().pipeline()),
        (interfaces.IPipeline, WatchedMailer(mailer, print).pipeline()),
        (interfaces.IPipeline, pipeline_of(ScriptedPipelineMailer())),
        (interfaces.IPipeline, pipeline_of(ScriptedMailer())),
        (interfaces.IPipeline, FileMailer(str(tmp_path / "mail")).pipeline()),
        (interfaces.IPipeline, zope_sendmail.SMTPMailer().pipeline()),
        (interfaces.IRelayCheck, RecordingMailer()),
        (interfaces.IDirectMailDelivery, DirectMailDelivery(mailer)),
        (interfaces.IQueuedMailDelivery, delivery),
        (interfaces.IScheduledMailDelivery, RecordingDelivery(RecordingMailer())),
        (interfaces.IOutboxMailDelivery, OutboxMailDelivery(Session())),
        (interfaces.IScheduledMailDelivery, SessionDelivery("x", "postcommit", None)),
        (interfaces.IMailDelivery, zope_sendmail.QueuedMailDelivery(queue)),
        (interfaces.IMailDelivery, zope_sendmail.DirectMailDelivery(mailer)),
        (interfaces.IMailDelivery, repoze_sendmail.QueuedMailDelivery(queue)),
        (interfaces.IMailDelivery, repoze_sendmail.DirectMailDelivery(mailer)),
        (interfaces.ISendmailMailer, repoze_sendmail.SendmailMailer()._mailer()),
        (interfaces.IMailQueueProcessor, QueueProcessor(queue, mailer)),
        (interfaces.IMailQueueProcessor, _Idle(QueueProcessor(queue, mailer))),
        (interfaces.IMailQueue, MailQueue(queue)),
        (interfaces.IMailSentEvent, MailSentEvent("1@x.org")),
        (interfaces.IMailErrorEvent, MailErrorEvent("1@x.org", "x")),
        (interfaces.IMailDeferredEvent, MailDeferredEvent("1@x.org", "x")),
        (interfaces.IMailRejectedEvent, MailRejectedEvent("1@x.org", "x")),
        (interfaces.IMailUncertainEvent, MailUncertainEvent("1@x.org", "x")),
        (interfaces.IMaildirFactory, Maildir),
        (interfaces.IMaildir, store.maildir),
        (interfaces.IMaildirMessageWriter, writer),
        (interfaces.IBatch, store.batch()),
        (interfaces.IBatch, DirectMailDelivery(mailer)._batch()),
        (interfaces.IBatch, RecordingDelivery(RecordingMailer())._batch()),
        (interfaces.IBatch, OrderBook([])),
        (interfaces.IAMQPMailer, broker),
        (interfaces.IBroker, broker),
        (interfaces.IPipeline, broker.pipeline()),
        (interfaces.IQueueReceiver, QueueReceiver("amqps://mq", "q", queue)),
        (IOperators, MaildirOperators(queue)),
        (IMoving, MaildirMoving(queue)),
        (IChanges, MaildirChanges(store)),
        *(
            (contract, Option(interfaces.ISMTPMailer, "port"))
            for contract in implementedBy(Option)
        ),
        (*implementedBy(Store), store),
        (*implementedBy(Consumer), consumer),
        (*implementedBy(Claim), claim),
        (*implementedBy(DataManager), data_manager),
        (*implementedBy(Savepoint), data_manager.savepoint()),
    ]:
        assert verifyObject(contract, candidate), candidate
        checked.add(type(candidate))
    consumer.close()
    # An entry that cannot be opened has no attribute `entry`: `read` raises.
    kinds = {parameter.values[1] for parameter in IMPLEMENTERS} - {Unopened}
    kinds -= {_AsItIs}  # no response of Pyramid has all that its IResponse has
    # These need a server: tests/functional/test_postgres_*.py looks at them.
    kinds -= {kind for kind in kinds if "._postgres." in kind.__module__}
    assert kinds == checked & kinds, "no object of these was looked at"


ORIGINAL = {
    "IMailDelivery": {"send": "(fromaddr, toaddrs, message)"},
    "IDirectMailDelivery": {"mailer": None},
    "IQueuedMailDelivery": {"queuePath": "TextLine"},
    "IMailQueueProcessor": {
        "queuePath": "TextLine",
        "pollingInterval": "Int",
        "mailer": None,
    },
    "IMailer": {"send": "(fromaddr, toaddrs, message)"},
    "ISMTPMailer": {
        "hostname": "TextLine",
        "port": "Int",
        "username": "TextLine",
        "password": "Password",
    },
    "IMailEvent": {"messageId": None},
    "IMailSentEvent": {"messageId": None},
    "IMailErrorEvent": {"messageId": None, "errorMessage": None},
    "IMaildirFactory": {"__call__": "(dirname, create=False)"},
    "IMaildir": {"__iter__": "()", "newMessage": "()"},
    "IMaildirMessageWriter": {
        "write": "(data)",
        "writelines": "(lines)",
        "commit": "()",
        "abort": "()",
    },
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_names_and_signatures_stay(name: str) -> None:
    contract = getattr(interfaces, name)
    for member, wanted in ORIGINAL[name].items():
        found = contract[member]
        if isinstance(found, Method):
            assert found.getSignatureString() == wanted
        elif wanted is not None:
            assert type(found).__name__ == wanted


@pytest.mark.parametrize(
    ("name", "positional"),
    [
        ("DirectMailDelivery", "mailer"),
        ("QueuedMailDelivery", "queuePath"),
        ("QueueProcessor", "queuePath, mailer, pollingInterval=5000"),
        ("SMTPMailer", "hostname='localhost', port=25, username=None, password=None"),
        ("Maildir", "dirname, create=False"),
        ("MailSentEvent", "messageId"),
        ("MailErrorEvent", "messageId, errorMessage"),
    ],
)
def test_further_arguments_are_keyword_only_and_optional(
    name: str, positional: str
) -> None:
    parameters = inspect.signature(getattr(postcommit, name)).parameters.values()
    found = [
        str(parameter.replace(annotation=parameter.empty))
        for parameter in parameters
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    assert ", ".join(found) == positional
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter.default is not parameter.empty


@pytest.mark.parametrize(
    ("special", "general"),
    [
        ("IDirectMailDelivery", "IMailDelivery"),
        ("IQueuedMailDelivery", "IMailDelivery"),
        ("ISMTPMailer", "IMailer"),
        ("IMailSentEvent", "IMailEvent"),
        ("IMailErrorEvent", "IMailEvent"),
        ("IMailDeferredEvent", "IMailErrorEvent"),
        ("IMailRejectedEvent", "IMailErrorEvent"),
        ("IMailUncertainEvent", "IMailErrorEvent"),
    ],
)
def test_a_subscriber_chooses_by_interface(special: str, general: str) -> None:
    assert getattr(interfaces, special).extends(getattr(interfaces, general))


@pytest.mark.parametrize(
    ("contract", "option", "default"),
    [
        (interfaces.IMailQueueProcessor, "pollingInterval", 5000),
        (interfaces.IMailQueueProcessor, "workers", 4),
        (interfaces.IMailQueueProcessor, "rate_limit", None),
        (interfaces.IMailQueueProcessor, "min_backoff", 60),
        (interfaces.IMailQueueProcessor, "max_backoff", 4000),
        (interfaces.IMailQueueProcessor, "max_age", 432000),
        (interfaces.IMailQueueProcessor, "max_uncertain", 3),
        (interfaces.ISMTPMailer, "hostname", "localhost"),
        (interfaces.ISMTPMailer, "port", 25),
        (interfaces.ISMTPMailer, "username", None),
        (interfaces.ISMTPMailer, "password", None),
        (interfaces.ISMTPMailer, "tls", "auto"),
        (interfaces.ISMTPMailer, "cafile", None),
        (interfaces.ISMTPMailer, "verify", True),
        (interfaces.ISMTPMailer, "connect_timeout", 30),
        (interfaces.ISMTPMailer, "timeout", None),
        (interfaces.ISMTPMailer, "messages_per_connection", 100),
        (interfaces.ISMTPMailer, "idle_timeout", 30),
        (interfaces.ISMTPMailer, "pipelining", True),
    ],
)
def test_the_defaults_are_those_of_the_schema(
    contract: Any, option: str, default: object
) -> None:
    assert contract[option].default == default
    made = SMTPMailer() if contract is interfaces.ISMTPMailer else None
    made = made or QueueProcessor("queue", SMTPMailer())
    assert getattr(made, option) == default


@pytest.mark.parametrize("contract", SCHEMAS, ids=lambda contract: contract.__name__)
def test_a_form_could_be_made_of_each_schema(contract: Any) -> None:
    assert contract.getDoc().strip()
    for _, field in getFieldsInOrder(contract):
        assert IField.providedBy(field)
        assert str(field.title)
        assert str(field.description)
    for name, member in contract.namesAndDescriptions():
        assert member.getDoc(), f"{contract.__name__}.{name} says nothing"
