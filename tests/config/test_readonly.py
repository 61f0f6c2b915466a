"""An option is as the constructor has set it, or its assignment takes effect."""
from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import transaction
from sqlalchemy.orm import Session
from zope.interface import Attribute
from zope.interface import alsoProvides
from zope.interface import providedBy
from zope.interface.interface import Method
from zope.security.checker import CheckerPublic
from zope.security.checker import InterfaceChecker
from zope.security.checker import ProxyFactory

import postcommit
from postcommit import AMQPMailer
from postcommit import DirectMailDelivery
from postcommit import FailoverMailer
from postcommit import FileMailer
from postcommit import MailQueue
from postcommit import OutboxMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import QueueReceiver
from postcommit import SendmailMailer
from postcommit import SMTPMailer
from postcommit._config.readonly import ReadOnlyOptions
from postcommit.interfaces import IMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.testing import RecordingMailer


def things() -> list[Any]:
    return [
        SMTPMailer(),
        SendmailMailer(),
        FileMailer("mail"),
        AMQPMailer("amqps://mq.example.org"),
        FailoverMailer([SMTPMailer()]),
        DirectMailDelivery(RecordingMailer()),
        QueuedMailDelivery("queue"),
        OutboxMailDelivery(Session()),
        QueueProcessor("queue", SMTPMailer()),
        MailQueue("queue"),
        QueueReceiver("amqps://mq.example.org", "postcommit", "queue"),
    ]


def options_of(thing: Any) -> list[str]:
    return sorted(
        {
            name
            for contract in providedBy(thing).flattened()
            for name, member in contract.namesAndDescriptions()
            if not isinstance(member, Method) and name != "notify"
            # What an object says of itself, such as whether it runs, is not an option.
            and not isinstance(getattr(type(thing), name, None), property)
        }
    )


def cases() -> list[Any]:
    return [
        pytest.param(thing, name, id=f"{type(thing).__name__}-{name}")
        for thing in things()
        for name in options_of(thing)
    ]


@pytest.mark.parametrize(("thing", "name"), cases())
def test_an_option_cannot_be_assigned(thing: Any, name: str) -> None:
    before = getattr(thing, name)
    with pytest.raises(AttributeError) as caught:
        setattr(thing, name, "s3cret")
    assert getattr(thing, name) is before
    assert f"{name} cannot be changed; make" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_test_knows_every_class_with_options() -> None:
    public = [getattr(postcommit, name) for name in postcommit.__all__]
    with_options = {
        each
        for each in public
        if isinstance(each, type) and issubclass(each, ReadOnlyOptions)
    }
    assert with_options == {type(thing) for thing in things()}


def test_the_options_are_found() -> None:
    assert {"port", "password", "token", "ssl_context"} <= {*options_of(SMTPMailer())}
    assert "check_relay" in options_of(DirectMailDelivery(RecordingMailer()))


def test_a_subclass_may_have_more_attributes_and_set_them() -> None:
    class Counting(SMTPMailer):
        def __init__(self) -> None:
            self.count = 0
            super().__init__()
            self.count += 1

    mailer = Counting()
    mailer.count = 7
    assert mailer.count == 7
    with pytest.raises(AttributeError, match="port cannot be changed"):
        mailer.port = 2525


@pytest.mark.parametrize("thing", things()[:4])
def test_the_events_go_to_an_assigned_function(thing: Any, tmp_path: Path) -> None:
    events: list[object] = []
    mailer = FileMailer(str(tmp_path))
    mailer.notify = events.append
    mailer.send("a@x.org", "b@x.org", b"Subject: x\r\n\r\n")
    assert len(events) == 1
    thing.notify = events.append


def test_an_assigned_transaction_manager_is_used() -> None:
    mailer = RecordingMailer()
    delivery = DirectMailDelivery(mailer)
    manager = transaction.TransactionManager()
    delivery.transaction_manager = manager
    delivery.send("a@x.org", "b@x.org", b"Subject: x\r\n\r\n")
    manager.commit()
    assert len(mailer.outbox) == 1


@pytest.mark.parametrize("thing", things())
def test_a_copy_has_the_same_options(thing: Any) -> None:
    copied = copy.copy(thing)
    for name in options_of(thing):
        assert getattr(copied, name) is getattr(thing, name)


def test_a_mailer_without_connections_can_be_pickled() -> None:
    for mailer in SendmailMailer(timeout=5), FileMailer("mail"):
        restored = pickle.loads(pickle.dumps(mailer))
        assert vars(restored) == vars(mailer)


def test_a_security_proxy_refuses_it_too() -> None:
    mailer = SMTPMailer()
    proxied = ProxyFactory(mailer, InterfaceChecker(ISMTPMailer, CheckerPublic))
    assert proxied.port == 25
    with pytest.raises(AttributeError):
        proxied.port = 2525
    assert mailer.port == 25


def test_an_interface_that_is_added_later_does_no_harm() -> None:
    class IMarked(IMailer):
        colour = Attribute("Anything.")

    mailer: Any = SMTPMailer()
    alsoProvides(mailer, IMarked)
    mailer.colour = "red"
    mailer.colour = "blue"
    assert mailer.colour == "blue"
