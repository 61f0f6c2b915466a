"""Each option of each schema, from each source, to its object.

`CONTRACTS` are the objects that have options, and `SOURCES` the ways to give one. Each
test gives one option, and looks at all options of the object.
"""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

import pytest
from pyramid.config import Configurator
from zope.component import getUtilitiesFor
from zope.component import getUtility
from zope.component.testing import PlacelessSetup
from zope.configuration import xmlconfig
from zope.interface.interface import InterfaceClass
from zope.schema import Bool
from zope.schema import Choice
from zope.schema import Float
from zope.schema import Int
from zope.schema import Object
from zope.schema import Password
from zope.schema import getFieldsInOrder

from postcommit import _build as build
from postcommit import interfaces
from postcommit._cli import main as cli
from postcommit._cli.configuration import Configuration
from postcommit._config.options import fields_of
from postcommit.interfaces import IAMQPMailer
from postcommit.interfaces import IDirectMailDelivery
from postcommit.interfaces import IFailoverMailer
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IQueuedMailDelivery
from postcommit.interfaces import IQueuePage
from postcommit.interfaces import IQueueReceiver
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import is_path
from postcommit.pyramid import PAGE
from postcommit.pyramid import SETTINGS
from postcommit.testing import RecordingMailer


class Kind(NamedTuple):
    """How an object with options is made by ZCML, and found in a registry.

    `needs` are options without which there is no such object. `others` is what it needs
    besides: settings of Pyramid, and arguments of a command.
    """

    directive: str
    zcml: tuple[Any, str]
    pyramid: tuple[Any, str]
    needs: tuple[str, ...] = ()
    others: tuple[dict[str, str], tuple[str, ...]] = ({}, ())


CONTRACTS = {
    ISMTPMailer: Kind('smtpMailer name="m"', (IMailer, "m"), (IMailer, "smtp")),
    ISendmailMailer: Kind(
        'sendmailMailer name="m"', (IMailer, "m"), (IMailer, "sendmail")
    ),
    IFileMailer: Kind(
        'fileMailer name="m"', (IMailer, "m"), (IMailer, "file"), ("folder",)
    ),
    IAMQPMailer: Kind(
        'amqpMailer name="m"', (IMailer, "m"), (IMailer, "amqp"), ("amqp_url",)
    ),
    IFailoverMailer: Kind(
        'failoverMailer name="m" mailers="smtp"',
        (IMailer, "m"),
        (IMailer, "failover"),
        others=({"failover_mailers": "smtp"}, ("--failover", "127.0.0.2")),
    ),
    IDirectMailDelivery: Kind(
        'directDelivery mailer="smtp"',
        (IMailDelivery, "Mail"),
        (IMailDelivery, "direct"),
    ),
    IQueuedMailDelivery: Kind(
        'queuedDelivery mailer="smtp" processorThread="no"',
        (IMailDelivery, "Mail"),
        (IMailDelivery, "queued"),
        ("queue_path",),
    ),
    IMailQueueProcessor: Kind(
        'queuedDelivery mailer="smtp"',
        (IMailQueueProcessor, "Mail"),
        (IMailQueueProcessor, ""),
        ("queue_path",),
    ),
}

# Options without which another one cannot be given.
TOGETHER = {
    "username": ("password",),
    "password": ("username",),
    "auth": ("username", "password"),
    "keyfile": ("certfile",),
    "amqp_keyfile": ("amqp_certfile",),
}

# URLs of a broker. A user needs a password, and a password a user.
BROKER = "amqps://mq.example.org"
URLS = {"amqp_password": "amqps://shop@mq.example.org"}


# Options that are names of hosts.
HOSTS = dict.fromkeys(
    ("hostname", "server_name", "helo_name", "amqp_server_name"), "mx.example.org"
)


class Case(NamedTuple):
    """An option of an object, and the others that it needs, as texts and values."""

    contract: Any
    name: str
    texts: dict[str, str]
    values: dict[str, Any]
    folder: Path

    def attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        fields = fields_of(self.contract)
        return {fields[name].__name__: value for name, value in given.items()}


def example(name: str, field: Any, folder: Path) -> tuple[str, Any]:
    """Return a value that `field` does not have by default, as text and as it is."""
    if isinstance(field, Bool):
        return ("no", False) if field.default else ("yes", True)
    if isinstance(field, Choice):
        value = next(t.value for t in field.vocabulary if t.value != field.default)
        return value, value
    if isinstance(field, Int):
        return " 77 ", 77
    if isinstance(field, Float):
        return "61.5", 61.5
    text = str(folder / "queue") if is_path(field) else f"{name}@x.org"
    text = {**HOSTS, "source_address": "127.0.0.2"}.get(name, text)
    return text, text


# The sources


def from_python(case: Case) -> Any:
    others: dict[str, Any] = {}
    if "mailer" in case.contract:
        others = {"mailer": RecordingMailer()}
    if "mailers" in case.contract:
        others = {"mailers": [RecordingMailer()]}
    return build._CLASSES[case.contract](**case.attributes(case.values), **others)


def from_zcml(case: Case) -> Any:
    kind = CONTRACTS[case.contract]
    given = case.attributes(case.texts)
    words = " ".join(f'{name}="{text}"' for name, text in given.items())
    xmlconfig.string(
        '<configure xmlns="http://namespaces.zope.org/zope"'
        ' xmlns:mail="http://namespaces.zope.org/mail">'
        f'<include package="postcommit" /><mail:{kind.directive} {words} />'
        "</configure>"
    )
    return getUtility(*kind.zcml)


def from_pyramid(case: Case, given: dict[str, Any] | None = None) -> Any:
    given = case.texts if given is None else given
    given = {**CONTRACTS[case.contract].others[0], **given}
    config = Configurator(settings={f"mail.{n}": v for n, v in given.items()})
    config.include("postcommit.pyramid")
    config.commit()
    return config.registry.getUtility(*CONTRACTS[case.contract].pyramid)


def from_values_in_pyramid(case: Case) -> Any:
    return from_pyramid(case, case.values)


def made(case: Case, argv: list[str], environ: dict[str, str]) -> Any:
    if case.contract is IQueueReceiver:
        # The URL is the first word of the command. The queue must be somewhere, too.
        environ = {**environ, "POSTCOMMIT_QUEUE_PATH": str(case.folder)}
        parsed = cli._parser().parse_args(["receive", *argv])
        return Configuration(parsed, environ).receiver()
    argv = ["run", *argv, *CONTRACTS[case.contract].others[1]]
    configuration = Configuration(cli._parser().parse_args(argv), environ)
    mailer = configuration.mailer()
    is_mailer = case.contract in (ISMTPMailer, IFailoverMailer, IAMQPMailer)
    return mailer if is_mailer else configuration.processor(mailer)


def from_command_line(case: Case) -> Any:
    argv = []
    for name, text in case.texts.items():
        field = fields_of(case.contract)[name]
        flag = name.replace("_", "-")
        if isinstance(field, Bool):
            argv.append(f"--no-{flag}" if field.default else f"--{flag}")
        elif isinstance(field, Password):
            (case.folder / "secret").write_text(text)
            argv += [f"--{flag}-file", str(case.folder / "secret")]
        else:
            is_word = name in ("queue_path", "receive_url")
            argv += [text] if is_word else [f"--{flag}", text]
    return made(case, argv, {})


def from_environment(case: Case) -> Any:
    variables = {f"POSTCOMMIT_{n.upper()}": text for n, text in case.texts.items()}
    return made(case, [], variables)


def from_ini(case: Case) -> Any:
    lines = ["[postcommit]", *(f"{n} = {text}" for n, text in case.texts.items())]
    (case.folder / "shop.ini").write_text("\n".join(lines))
    return made(case, ["--config", str(case.folder / "shop.ini")], {})


# The commands have an SMTP mailer, or several, or a broker's, and a processor.
OF_COMMANDS = (ISMTPMailer, IFailoverMailer, IAMQPMailer, IMailQueueProcessor)

SOURCES: dict[Callable[[Case], Any], Any] = {
    from_python: CONTRACTS,
    from_zcml: CONTRACTS,
    from_pyramid: CONTRACTS,
    from_values_in_pyramid: CONTRACTS,
    from_command_line: OF_COMMANDS,
    from_environment: OF_COMMANDS,
    from_ini: OF_COMMANDS,
}


@pytest.fixture(autouse=True)
def components() -> Iterator[None]:
    setup = PlacelessSetup()
    setup.setUp()
    yield
    for _, processor in getUtilitiesFor(IMailQueueProcessor):
        processor.stop()
    setup.tearDown()


@pytest.mark.parametrize(
    ("source", "contract", "name"),
    [
        pytest.param(source, contract, name, id=f"{source.__name__}-{name}")
        for source, contracts in SOURCES.items()
        for contract in contracts
        for name in fields_of(contract)
    ],
)
def test_an_option_reaches_its_object_and_changes_no_other(
    source: Callable[[Case], Any], contract: Any, name: str, tmp_path: Path
) -> None:
    fields = fields_of(contract)
    given = {name, *TOGETHER.get(name, ()), *CONTRACTS[contract].needs}
    examples = {n: example(n, fields[n], tmp_path) for n in fields if n in given}
    if "amqp_url" in given:
        examples["amqp_url"] = (URLS.get(name, BROKER),) * 2
    texts = {n: text for n, (text, _) in examples.items()}
    values = {n: value for n, (_, value) in examples.items()}
    found = source(Case(contract, name, texts, values, tmp_path))
    assert contract.providedBy(found)
    for other, field in fields.items():
        expected = values.get(other, field.default)
        assert getattr(found, field.__name__) == expected, other
        assert type(getattr(found, field.__name__)) is type(expected)
    assert values[name] != fields[name].default


# The command ``receive`` has a receiver, from all sources but those of an application.
RECEIVES = (from_command_line, from_environment, from_ini)


@pytest.mark.parametrize("source", RECEIVES)
@pytest.mark.parametrize("name", fields_of(IQueueReceiver))
def test_an_option_reaches_the_receiver(
    source: Callable[[Case], Any], name: str, tmp_path: Path
) -> None:
    fields = fields_of(IQueueReceiver)
    given = {name, "receive_url"}
    if name == "receive_keyfile":
        given.add("receive_certfile")
    examples = {n: example(n, fields[n], tmp_path) for n in fields if n in given}
    url = URLS.get(name.replace("receive_", "amqp_"), BROKER)
    examples["receive_url"] = (url, url)
    if name == "receive_server_name":
        examples[name] = ("mx.example.org",) * 2
    texts = {n: text for n, (text, _) in examples.items()}
    values = {n: value for n, (_, value) in examples.items()}
    found = source(Case(IQueueReceiver, name, texts, values, tmp_path))
    for other, field in fields.items():
        expected = values.get(other, field.default)
        assert getattr(found, field.__name__) == expected, other
    assert found.queuePath == str(tmp_path)


# The page of an application has settings only.


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize("name", fields_of(IQueuePage))
def test_a_setting_reaches_the_page(name: str, is_text: bool) -> None:
    examples: dict[str, tuple[str, Any]] = {
        "web_path": ("/mail", "/mail"),
        "web_hosts": ("mx.example.org, ::1", ("mx.example.org", "::1")),
        "web_insecure": ("yes", True),
    }
    given = {one: examples[one] for one in {name, "web_path"}}
    settings = {f"mail.{n}": text if is_text else v for n, (text, v) in given.items()}
    config = Configurator(settings=settings)
    config.registry[PAGE] = True
    config.include("postcommit.pyramid")
    page = config.registry[SETTINGS].page()
    assert IQueuePage.providedBy(page)
    for other, field in fields_of(IQueuePage).items():
        expected = given[other][1] if other in given else field.default
        assert getattr(page, field.__name__) == expected


def test_every_schema_with_options_is_in_the_table() -> None:
    schemas = {
        contract
        for contract in vars(interfaces).values()
        if isinstance(contract, InterfaceClass)
        and any(not isinstance(f, Object) for _, f in getFieldsInOrder(contract))
        and any(contract.implementedBy(kind) for kind in build._CLASSES.values())
    }
    bases = {
        interfaces.IDefaultSender,
        interfaces.IBroker,
        interfaces.ITLSOptions,
    }
    assert schemas - bases == set(CONTRACTS)
    assert set(build._CLASSES) == set(CONTRACTS)
